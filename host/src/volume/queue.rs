//! A queue between threads. Who pushes has bounded what it pushes: the core its actions in flight, the table of open files
//! its dirty ones.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    more: Condvar,
}

struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Queue<T> {
        Queue { inner: Mutex::new(Inner { items: VecDeque::new(), closed: false }), more: Condvar::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item; drops it after [`Queue::close`].
    pub(crate) fn push(&self, item: T) {
        let mut inner = self.inner();
        if !inner.closed {
            inner.items.push_back(item);
            self.more.notify_one();
        }
    }

    /// The oldest item; waits for one. `None` after [`Queue::close`], when all is taken.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut inner = self.inner();
        loop {
            if let Some(item) = inner.items.pop_front() {
                return Some(item);
            }
            if inner.closed {
                return None;
            }
            inner = self.more.wait(inner).unwrap_or_else(PoisonError::into_inner);
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
