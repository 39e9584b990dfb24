//! Random streams of the simulator: one per concern, so that a draw more in one does not shift the others.

use ice_core::rng::{Rng, Seed};

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Stream(Rng);

impl Stream {
    /// The stream of `seed` for one concern.
    pub fn new(seed: u64, concern: &str) -> Stream {
        let mut label = 0xcbf2_9ce4_8422_2325_u64;
        for b in concern.bytes() {
            label = (label ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
        Stream(Rng::new(Seed(seed)).fork(label))
    }
    /// 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }
    /// An index below `n`; 0 if `n` is 0.
    pub fn index(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }
    /// A number from `lo` to `hi`, both included.
    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.0.below(hi.saturating_sub(lo).saturating_add(1))
    }
    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.0.chance(per_mille)
    }
    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }
    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }
    /// An index into `weights`, each as likely as its weight; `None` if all are zero.
    pub fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.below(total);
        for (i, w) in weights.iter().enumerate() {
            if at < u64::from(*w) {
                return Some(i);
            }
            at -= u64::from(*w);
        }
        None
    }
}
