//! Bulk bytes in memory, named by handles that the core routes without looking inside.

use bytes::Bytes;
use ice_core::ids::PayloadId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes between their arrival (from the kernel, a socket or the log) and the moment the core releases them.
///
/// Every handle is released exactly once. Cloned [`Bytes`] may outlive the handle, for example in the log lane's buffer;
/// the budget counts handles, not clones.
pub struct PayloadPool {
    inner: Mutex<Inner>,
    max_bytes: usize,
}

struct Inner {
    held: HashMap<u64, Bytes>,
    bytes: usize,
    next: u64,
}

/// The budget of the pool is used up: try again after something was released (`EAGAIN`, 503).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the payload pool is full: {held_bytes} of {max_bytes} bytes are in use")]
pub struct PoolFull {
    /// In use.
    pub held_bytes: usize,
    /// The budget.
    pub max_bytes: usize,
}

/// For metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolUse {
    /// Handles that were not released yet.
    pub count: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl PayloadPool {
    /// An empty pool with a budget of `max_bytes`.
    pub fn new(max_bytes: usize) -> PayloadPool {
        PayloadPool { inner: Mutex::new(Inner { held: HashMap::new(), bytes: 0, next: 1 }), max_bytes }
    }

    /// Keeps `bytes`. A payload larger than the whole budget is taken when the pool is empty, so that nothing waits forever.
    pub fn insert(&self, bytes: Bytes) -> Result<PayloadId, PoolFull> {
        let mut inner = self.lock();
        if inner.bytes > 0 && inner.bytes.saturating_add(bytes.len()) > self.max_bytes {
            return Err(PoolFull { held_bytes: inner.bytes, max_bytes: self.max_bytes });
        }
        Ok(inner.put(bytes))
    }

    /// Keeps `bytes` whatever the budget: for bytes that are already counted against another limit, such as those of an
    /// operation that is being recovered from the log.
    pub fn insert_unbounded(&self, bytes: Bytes) -> PayloadId {
        self.lock().put(bytes)
    }

    /// The bytes of a handle that was not released yet. Cheap: the bytes are shared, not copied.
    pub fn get(&self, id: PayloadId) -> Option<Bytes> {
        self.lock().held.get(&id.0).cloned()
    }

    /// Lets go of a handle. Releasing one twice, or one that never was, is a bug of ours: debug builds stop, release builds
    /// write it to the log and go on, because nothing is lost by it.
    pub fn release(&self, id: PayloadId) {
        let gone = {
            let mut inner = self.lock();
            let gone = inner.held.remove(&id.0);
            inner.bytes -= gone.as_ref().map_or(0, Bytes::len);
            gone
        };
        if gone.is_none() {
            tracing::error!(payload = %id, "released twice, or never held");
            debug_assert!(gone.is_some(), "payload {id} was released twice, or never held");
        }
    }

    /// What is in use now.
    pub fn used(&self) -> PoolUse {
        let inner = self.lock();
        PoolUse { count: inner.held.len(), bytes: inner.bytes }
    }

    /// How many more bytes fit into the budget now.
    pub fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.lock().bytes)
    }

    // The map stays consistent whoever panics: no user code runs under the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, bytes: Bytes) -> PayloadId {
        let id = self.next;
        self.next += 1;
        self.bytes += bytes.len();
        self.held.insert(id, bytes);
        PayloadId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_held() {
        let pool = PayloadPool::new(100);
        let a = pool.insert(Bytes::from(vec![1; 60])).unwrap();
        let b = pool.insert(Bytes::from(vec![2; 40])).unwrap();
        assert_ne!(a, b);
        assert_eq!(pool.used(), PoolUse { count: 2, bytes: 100 });
        assert_eq!(pool.room(), 0);
        assert_eq!(pool.insert(Bytes::from_static(b"x")), Err(PoolFull { held_bytes: 100, max_bytes: 100 }));
        let kept = pool.get(a).unwrap();
        pool.release(a);
        assert_eq!(pool.get(a), None);
        assert_eq!(kept.len(), 60, "a clone outlives its handle");
        assert_eq!(pool.used(), PoolUse { count: 1, bytes: 40 });
        pool.release(b);
        assert_eq!(pool.used(), PoolUse::default());
    }

    #[test]
    fn one_that_exceeds_the_budget_is_taken_alone() {
        let pool = PayloadPool::new(10);
        let big = pool.insert(Bytes::from(vec![0; 50])).unwrap();
        assert!(pool.insert(Bytes::from_static(b"y")).is_err());
        pool.insert_unbounded(Bytes::from_static(b"z"));
        pool.release(big);
        assert!(pool.insert(Bytes::from_static(b"y")).is_ok());
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "released twice")]
    fn a_double_release_is_noticed() {
        let pool = PayloadPool::new(10);
        let a = pool.insert(Bytes::from_static(b"a")).unwrap();
        pool.release(a);
        pool.release(a);
    }
}
