//! The event queue: virtual time, ties broken by the order of insertion.

use ice_core::time::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

struct Entry<T> {
    at: Instant,
    number: u64,
    what: T,
}
impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What will happen, soonest first.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    number: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), number: 0 }
    }
}

impl<T> Queue<T> {
    /// `what` will happen at `at`, after everything put at that time before.
    pub fn put(&mut self, at: Instant, what: T) {
        self.number += 1;
        self.heap.push(Reverse(Entry { at, number: self.number, what }));
    }
    /// When the next thing happens.
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|e| e.0.at)
    }
    /// The next thing.
    pub fn take(&mut self) -> Option<(Instant, T)> {
        self.heap.pop().map(|e| (e.0.at, e.0.what))
    }
    /// How many things wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }
    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
