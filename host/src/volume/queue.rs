//! A queue between threads. Who pushes has bounded what it pushes: the core its actions in flight, the table of open files
//! its dirty ones.
//!
//! Waking a thread costs more than most of what it is woken for. While one is at work, and gets on, it takes what comes as
//! well; another is woken when as much waits as one takes at once, or when the one at work has not come back for a while.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that has been at work for so long without coming back is not waited for.
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
    /// One of them was woken and has not come yet.
    woken: bool,
    /// When a thread took items last.
    taken: Instant,
}

impl<T> Queue<T> {
    /// For so many threads, each of which takes `batch` items at once.
    pub(crate) fn new(workers: usize, batch: usize) -> Queue<T> {
        let inner = Inner { items: VecDeque::new(), closed: false, idle: 0, woken: false, taken: Instant::now() };
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
        let alone = inner.idle == self.workers && !inner.woken;
        let late = !inner.woken && inner.taken.elapsed() > PATIENCE;
        // Who does not wait looks for items before waiting.
        if inner.idle > 0 && (alone || late || inner.items.len() >= self.batch) {
            inner.woken = true;
            drop(inner);
            self.more.notify_one();
        }
    }

    /// Appends the oldest items to `items`; waits for one. `false` after [`Queue::close`], when all is taken.
    pub(crate) fn pop(&self, items: &mut Vec<T>) -> bool {
        let mut inner = self.inner();
        loop {
            if !inner.items.is_empty() {
                let n = inner.items.len().min(self.batch);
                items.extend(inner.items.drain(..n));
                inner.taken = Instant::now();
                return true;
            }
            if inner.closed {
                return false;
            }
            inner.idle += 1;
            inner = self.more.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
            inner.woken = false;
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
        std::thread::sleep(PATIENCE * 2);
        for item in 1..100 {
            queue.push(item);
        }
        for item in 1..100 {
            assert_eq!(seen.recv_timeout(LONG).unwrap(), item);
        }
        go.send(()).unwrap();
        queue.close();
        workers.into_iter().for_each(|w| w.join().unwrap());
        assert_eq!(queue.len(), 0);
    }
}
