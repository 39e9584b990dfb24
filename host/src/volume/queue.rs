//! A queue between threads. Who pushes has bounded what it pushes: the core its actions in flight, the table of open files
//! its dirty ones.
//!
//! Waking a thread costs more than most of what it is woken for. While one is at work, and gets on, it takes what comes as
//! well. Another stands by: it takes what waits when that is as much as one takes at once, or when it has waited for a while.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So long what comes is left to those at work.
const PATIENCE: Duration = Duration::from_millis(2);

pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    more: Condvar,
    /// Threads that take from it.
    workers: usize,
    /// Items that one takes at once.
    batch: usize,
}

struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
    /// Threads that wait for items.
    idle: usize,
    /// One of them was woken, or waits for a while whether what came is left to it.
    standby: bool,
}

impl<T> Queue<T> {
    /// For so many threads, each of which takes `batch` items at once.
    pub(crate) fn new(workers: usize, batch: usize) -> Queue<T> {
        let inner = Inner { items: VecDeque::new(), closed: false, idle: 0, standby: false };
        Queue { inner: Mutex::new(inner), more: Condvar::new(), workers, batch }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item; drops it after [`Queue::close`].
    pub(crate) fn push(&self, item: T) {
        let mut inner = self.inner();
        if inner.closed {
            return;
        }
        inner.items.push_back(item);
        // Who does not wait looks for items before waiting.
        if inner.idle > 0 && (!inner.standby || inner.items.len() >= self.batch) {
            inner.standby = true;
            drop(inner);
            self.more.notify_one();
        }
    }

    /// Appends the oldest items to `items`; waits for one. `false` after [`Queue::close`], when all is taken.
    pub(crate) fn pop(&self, items: &mut Vec<T>) -> bool {
        let mut inner = self.inner();
        // Until when a thread that was woken leaves what waits to others.
        let mut patience: Option<Instant> = None;
        let mut called = false;
        loop {
            if !inner.items.is_empty() {
                let now = Instant::now();
                let others = inner.idle + 1 < self.workers && inner.items.len() < self.batch;
                let until = *patience.get_or_insert(now + PATIENCE);
                if called && others && now < until && !inner.closed {
                    inner.idle += 1;
                    inner = self.more.wait_timeout(inner, until - now).unwrap_or_else(PoisonError::into_inner).0;
                    inner.idle -= 1;
                    continue;
                }
                let n = inner.items.len().min(self.batch);
                items.extend(inner.items.drain(..n));
                inner.standby &= !called;
                if !inner.items.is_empty() && inner.idle > 0 && !inner.standby {
                    inner.standby = true;
                    self.more.notify_one();
                }
                return true;
            }
            if called {
                inner.standby = false;
                patience = None;
            }
            if inner.closed {
                return false;
            }
            inner.idle += 1;
            inner = self.more.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
            called = true;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.inner().items.len()
    }

    /// No more items come.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn nothing_is_left_and_a_stuck_thread_does_not_hold_up_the_others() {
        let queue = Arc::new(Queue::<u32>::new(2, 4));
        let (tell, seen) = channel();
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, tell, gate) = (Arc::clone(&queue), tell.clone(), Arc::clone(&gate));
                std::thread::spawn(move || {
                    let mut items = Vec::new();
                    while queue.pop(&mut items) {
                        for item in items.drain(..) {
                            tell.send(item).unwrap();
                            if item == 0 {
                                gate.lock().unwrap().recv_timeout(LONG).unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        queue.push(0);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), 0, "one thread is stuck from here on");
        queue.push(1);
        assert_eq!(seen.recv_timeout(LONG).unwrap(), 1, "nothing else comes that could wake the other");
        for item in 2..100 {
            queue.push(item);
        }
        for item in 2..100 {
            assert_eq!(seen.recv_timeout(LONG).unwrap(), item);
        }
        go.send(()).unwrap();
        queue.close();
        workers.into_iter().for_each(|w| w.join().unwrap());
        assert_eq!(queue.len(), 0);
    }
}
