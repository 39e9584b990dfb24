//! Work that only a few may do at a time.

use futures::lock::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A few turns, and a bounded number of those who wait for one.
pub(crate) struct Turns {
    slots: Vec<Mutex<()>>,
    next: AtomicUsize,
    inside: AtomicUsize,
    most: usize,
}

/// A turn, or the wait for one; over when it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody's turn, over when it is dropped.
pub(crate) struct Turn<'a> {
    _slot: MutexGuard<'a, ()>,
    _counted: Counted<'a>,
}

impl Turns {
    pub(crate) fn new(at_once: usize, waiting: usize) -> Turns {
        Turns {
            slots: (0..at_once.max(1)).map(|_| Mutex::new(())).collect(),
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            most: at_once.max(1) + waiting,
        }
    }

    /// Waits for a turn; `None` at once if too many wait already.
    pub(crate) async fn take(&self) -> Option<Turn<'_>> {
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(&self.inside);
        if before >= self.most {
            return None;
        }
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        Some(Turn { _slot: self.slots[slot].lock().await, _counted: counted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_few_work_a_few_wait_and_the_rest_is_sent_away() {
        let turns = Turns::new(2, 1);
        let first = turns.take().now_or_never().flatten().unwrap();
        let second = turns.take().now_or_never().flatten().unwrap();
        let mut third = Box::pin(turns.take());
        assert!(third.as_mut().now_or_never().is_none(), "waits");
        assert!(turns.take().now_or_never().unwrap().is_none(), "sent away");
        drop(first);
        assert!(third.now_or_never().flatten().is_some());
        drop(second);
        assert!(turns.take().now_or_never().flatten().is_some());
    }
}
