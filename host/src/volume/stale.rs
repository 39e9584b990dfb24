//! Telling adapters what their caches must forget: from a thread of its own that holds no lock. A kernel may make the
//! teller wait until calls in flight have ended, and those may need our locks.

use super::{Shared, Volume};
use crate::vfs::Stale;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// News that wait. Beyond it, workers that make news wait as well.
const WAITING_MAX: usize = 16 * 1024;

type Sink = dyn Fn(&[Stale]) + Send + Sync;

#[derive(Default)]
pub(crate) struct StaleQueue {
    inner: Mutex<Inner>,
    more: Condvar,
    room: Condvar,
}

#[derive(Default)]
struct Inner {
    waiting: Vec<Stale>,
    sinks: Vec<Arc<Sink>>,
    busy: bool,
    closed: bool,
}

impl StaleQueue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues news. Must not be called with a lock held that an adapter's call may want; waits while too much waits.
    pub(crate) fn push(&self, news: impl IntoIterator<Item = Stale>) {
        let mut inner = self.inner();
        while inner.waiting.len() >= WAITING_MAX && !inner.closed {
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.sinks.is_empty() {
            return;
        }
        inner.waiting.extend(news);
        if !inner.waiting.is_empty() {
            self.more.notify_all();
        }
    }

    /// Enqueues the little news of a single look, without ever waiting.
    pub(crate) fn push_now(&self, news: Vec<Stale>) {
        let mut inner = self.inner();
        if !inner.sinks.is_empty() && !news.is_empty() {
            inner.waiting.extend(news);
            self.more.notify_all();
        }
    }

    /// Waits until everything pushed so far was told.
    pub(crate) fn drained(&self) {
        let mut inner = self.inner();
        while (!inner.waiting.is_empty() || inner.busy) && !inner.closed {
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn add_sink(&self, sink: Box<Sink>) {
        self.inner().sinks.push(Arc::from(sink));
    }

    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.more.notify_all();
        self.room.notify_all();
    }
}

impl Volume {
    /// Waits until adapters have been told of everything that was applied so far. For tests.
    #[doc(hidden)]
    pub fn stale_told(&self) {
        self.s.stale.drained();
    }
}

impl Shared {
    pub(crate) fn run_stale(&self) {
        let queue = &self.stale;
        let mut inner = queue.inner();
        while !inner.closed {
            if inner.waiting.is_empty() {
                inner = queue.more.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let news = std::mem::take(&mut inner.waiting);
            let sinks = inner.sinks.clone();
            inner.busy = true;
            drop(inner);
            for sink in &sinks {
                sink(&news);
            }
            inner = queue.inner();
            inner.busy = false;
            queue.room.notify_all();
        }
    }
}
