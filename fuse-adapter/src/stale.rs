//! Which answers may be cached.
//!
//! The kernel keeps an answer for a day, so an answer must not reach it after the news that made it wrong. Two rules see to that:
//!
//! - The news are *recorded* here before the kernel is told. An answer notes the record's position when its request starts
//!   and looks at what was recorded since when it leaves; if its inodes are among it, it leaves with a lifetime of zero.
//! - Looking and leaving happen under a lock that recording excludes. So an answer with a long lifetime has been written to
//!   the kernel before the news that concern it are written.
//!
//! What remains is an answer that was written but not yet used by the process that waits for it. For names the kernel
//! orders this itself (an invalidation waits for the directory's lock, which lookups hold), for known inodes, too (it
//! compares versions); for an inode that it does not know yet, the invalidation is simply sent once more a little later,
//! and [`StaleLog::answered_since`] tells whether that is needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Lifetime of what is cached.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Inode numbers remembered. An answer that took longer than so many changes is not cached.
const RING: usize = 1024;

/// A position in the record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

/// The inodes of recent news.
pub(crate) struct StaleLog {
    ring: RwLock<Ring>,
    /// `Ring::next`, readable without the lock.
    next: AtomicU64,
    start: Instant,
    /// Milliseconds after `start` of the last answer that may be cached, plus one; 0: none yet.
    answered: AtomicU64,
}

struct Ring {
    next: u64,
    slots: Box<[u64; RING]>,
}

impl Ring {
    fn touched(&self, since: Mark, inos: &[u64]) -> bool {
        let behind = self.next.wrapping_sub(since.0);
        behind > RING as u64 || (since.0..self.next).any(|i| inos.contains(&self.slots[(i % RING as u64) as usize]))
    }
}

impl StaleLog {
    pub(crate) fn new() -> StaleLog {
        StaleLog {
            ring: RwLock::new(Ring { next: 0, slots: Box::new([0; RING]) }),
            next: AtomicU64::new(0),
            start: Instant::now(),
            answered: AtomicU64::new(0),
        }
    }

    /// To be called before a request looks at anything.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.next.load(Ordering::SeqCst))
    }

    /// Sends an answer about these inodes; `send` is told how long it may be cached.
    pub(crate) fn answer<T>(&self, since: Mark, inos: &[u64], send: impl FnOnce(Duration) -> T) -> T {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let ttl = if ring.touched(since, inos) { Duration::ZERO } else { TTL };
        let out = send(ttl);
        self.answered.store(self.now(), Ordering::SeqCst);
        out
    }

    /// Whether news about any of these inodes came since.
    pub(crate) fn touched(&self, since: Mark, inos: &[u64]) -> bool {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).touched(since, inos)
    }

    /// Records news about inodes, before the kernel is told.
    pub(crate) fn record(&self, inos: impl Iterator<Item = u64>) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for ino in inos {
            let at = (ring.next % RING as u64) as usize;
            ring.slots[at] = ino;
            ring.next += 1;
        }
        self.next.store(ring.next, Ordering::SeqCst);
    }

    /// Whether an answer that may be cached left within this time.
    pub(crate) fn answered_since(&self, age: Duration) -> bool {
        let last = self.answered.load(Ordering::SeqCst);
        last != 0 && self.now().saturating_sub(last) <= age.as_millis() as u64
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_older_than_news_about_it_is_not_cached() {
        let log = StaleLog::new();
        assert!(!log.answered_since(Duration::from_secs(9)));
        let mark = log.mark();
        assert_eq!(log.answer(mark, &[1, 2], |t| t), TTL);
        assert!(log.answered_since(Duration::from_secs(9)));
        log.record([7, 2].into_iter());
        assert_eq!(log.answer(mark, &[1, 3], |t| t), TTL);
        assert_eq!(log.answer(mark, &[1, 2], |t| t), Duration::ZERO);
        assert_eq!(log.answer(log.mark(), &[1, 2], |t| t), TTL);
    }

    #[test]
    fn an_answer_that_outlived_the_record_is_not_cached() {
        let log = StaleLog::new();
        let mark = log.mark();
        log.record((100..).take(RING));
        assert!(!log.touched(mark, &[5]));
        log.record([100].into_iter());
        assert!(log.touched(mark, &[5]), "the first news are forgotten, so anything may be stale");
    }
}
