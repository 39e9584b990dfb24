//! Threads for work that may wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Most threads.
const THREADS: usize = 32;
/// Most jobs that wait for a thread.
const QUEUE: usize = 256;
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// Work.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

/// A bounded pool whose threads come and go with the work. When it is dropped, what was accepted is still done.
#[derive(Default)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

impl Pool {
    /// Hands a job over, or back if there is no room for it.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.idle <= state.queue.len() && state.threads < THREADS {
            let inner = Arc::clone(&self.inner);
            let spawned = std::thread::Builder::new().name("ice-fuse-wait".into()).spawn(move || inner.run());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(job),
                Err(_) => {}
            }
        }
        if state.queue.len() >= QUEUE {
            return Err(job);
        }
        state.queue.push_back(job);
        drop(state);
        self.inner.work.notify_one();
        Ok(())
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (back, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.inner.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn full_hands_back_and_dropping_finishes_what_was_accepted() {
        let pool = Pool::default();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (done, count) = mpsc::channel();
        let job = || {
            let (gate, done) = (Arc::clone(&gate), done.clone());
            Box::new(move || {
                let open = gate.0.lock().unwrap();
                drop(gate.1.wait_while(open, |open| !*open).unwrap());
                done.send(()).unwrap();
            }) as Job
        };
        let mut accepted = 0;
        while pool.submit(job()).is_ok() {
            accepted += 1;
            assert!(accepted <= THREADS + QUEUE);
        }
        assert!(accepted >= QUEUE);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        drop(pool);
        drop(done);
        // The template above still holds a sender, so count instead of waiting for the end.
        for _ in 0..accepted {
            count.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}
