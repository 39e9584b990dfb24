//! Keys in their order, each with the revisions that changed it.
//!
//! The order is kept apart from the keys: leaves of slot numbers, found by comparing the keys behind them. A key costs its
//! bytes once, 32 bytes of slot and some 6 of order. Leaves keep a copy of their first key, so that finding the leaf touches
//! little memory.

use super::history::Rev;
use super::keys::{KeyRange, RangeEnd};
use crate::tree::slab::Slab;
use alloc::boxed::Box;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

const LEAF: usize = 256;

/// Revisions of a key, oldest first. Most keys have one.
#[derive(Clone, Serialize, Deserialize)]
enum Revs {
    One(Rev),
    #[allow(clippy::box_collection, reason = "a million keys with one revision are to pay for one, not for a list")]
    Many(Box<Vec<Rev>>),
}

impl Revs {
    fn as_slice(&self) -> &[Rev] {
        match self {
            Revs::One(r) => core::slice::from_ref(r),
            Revs::Many(v) => v,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Slot {
    #[serde(with = "serde_bytes")]
    key: Box<[u8]>,
    revs: Revs,
}

/// Slots of keys that follow each other. Never empty.
#[derive(Serialize, Deserialize)]
struct Leaf {
    #[serde(with = "serde_bytes")]
    first: Box<[u8]>,
    slots: Vec<u32>,
}

/// All keys that have a revision.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Index {
    slots: Slab<Slot>,
    leaves: Vec<Leaf>,
}

impl Index {
    /// Keys, those included of which only a deletion is known.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn key(&self, slot: u32) -> &[u8] {
        self.slots.get(slot).map_or(&[], |s| &s.key)
    }

    /// Oldest first.
    pub(super) fn revs(&self, slot: u32) -> &[Rev] {
        self.slots.get(slot).map_or(&[], |s| s.revs.as_slice())
    }

    /// The newest revision of the key that is not later than `main`.
    pub(super) fn rev_at(&self, slot: u32, main: u64) -> Option<Rev> {
        let revs = self.revs(slot);
        match revs.last() {
            Some(last) if last.main() <= main => Some(*last),
            _ => revs[..revs.partition_point(|r| r.main() <= main)].last().copied(),
        }
    }

    /// The leaf in which `key` is or would be, and the place in it.
    fn locate(&self, key: &[u8]) -> (usize, Result<usize, usize>) {
        let leaf = self.leaves.partition_point(|l| *l.first <= *key).saturating_sub(1);
        let found = self.leaves.get(leaf).map_or(Err(0), |l| l.slots.binary_search_by(|s| self.key(*s).cmp(key)));
        (leaf, found)
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<u32> {
        let (leaf, found) = self.locate(key);
        found.ok().map(|n| self.leaves[leaf].slots[n])
    }

    /// Adds a revision, which is later than all others of the key.
    pub(super) fn add(&mut self, key: &[u8], rev: Rev) -> u32 {
        let (leaf, found) = self.locate(key);
        match found {
            Ok(n) => {
                let slot = self.leaves[leaf].slots[n];
                match &mut self.slots[slot].revs {
                    Revs::Many(v) => v.push(rev),
                    one => {
                        let first = one.as_slice()[0];
                        *one = Revs::Many(Box::new(alloc::vec![first, rev]));
                    }
                }
                slot
            }
            Err(n) => {
                let slot = self.slots.insert(Slot { key: key.into(), revs: Revs::One(rev) });
                self.insert(leaf, n, slot);
                slot
            }
        }
    }

    fn leaf(&self, slots: Vec<u32>) -> Leaf {
        Leaf { first: self.key(slots[0]).into(), slots }
    }

    fn insert(&mut self, leaf: usize, at: usize, slot: u32) {
        let Some(l) = self.leaves.get_mut(leaf) else {
            let new = self.leaf(alloc::vec![slot]);
            self.leaves.push(new);
            return;
        };
        // Keys that come in order leave full leaves behind them.
        if l.slots.len() >= LEAF && at == l.slots.len() {
            let new = self.leaf(alloc::vec![slot]);
            self.leaves.insert(leaf + 1, new);
            return;
        }
        l.slots.insert(at, slot);
        if l.slots.len() > LEAF {
            let tail = l.slots.split_off(LEAF / 2);
            l.slots.shrink_to_fit();
            let new = self.leaf(tail);
            self.leaves.insert(leaf + 1, new);
        }
        if at == 0 {
            self.leaves[leaf].first = self.key(slot).into();
        }
    }

    /// Takes out a revision; the key goes with its last one. True if it went.
    pub(super) fn drop_rev(&mut self, slot: u32, rev: Rev) -> bool {
        let Some(s) = self.slots.get(slot) else { return false };
        if s.revs.as_slice() == [rev] {
            let (leaf, found) = self.locate(self.key(slot));
            if let Ok(n) = found {
                self.leaves[leaf].slots.remove(n);
                self.mend(leaf);
            }
            self.slots.remove(slot);
            return true;
        }
        if let Revs::Many(v) = &mut self.slots[slot].revs {
            v.retain(|r| *r != rev);
            if let [last] = v[..] {
                self.slots[slot].revs = Revs::One(last);
            } else if v.capacity() > 2 * v.len() + 8 {
                v.shrink_to_fit();
            }
        }
        false
    }

    fn mend(&mut self, leaf: usize) {
        // A first key that has gone still divides what is left from what is before it.
        if self.leaves[leaf].slots.is_empty() {
            self.leaves.remove(leaf);
        } else if leaf > 0 && self.leaves[leaf - 1].slots.len() + self.leaves[leaf].slots.len() <= LEAF / 2 {
            let tail = self.leaves.remove(leaf);
            self.leaves[leaf - 1].slots.extend(tail.slots);
        }
    }

    /// Slots of the keys in a range, in order.
    pub(super) fn range<'a>(&'a self, range: KeyRange<'a>) -> impl Iterator<Item = u32> + 'a {
        let (leaf, found) = self.locate(range.start);
        let (Ok(at) | Err(at)) = found;
        let count = match range.end {
            RangeEnd::Single => usize::from(found.is_ok()),
            _ => usize::MAX,
        };
        let head = self.leaves.get(leaf).map_or(&[][..], |l| &l.slots[at..]);
        let tail = self.leaves.get(leaf + 1..).unwrap_or_default();
        let all = head.iter().chain(tail.iter().flat_map(|l| &l.slots)).copied().take(count);
        all.take_while(move |s| match range.end {
            RangeEnd::Before(end) => self.key(*s) < end,
            _ => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Seed};
    use alloc::collections::BTreeMap;

    #[test]
    fn a_slot_is_small() {
        assert_eq!(size_of::<Slot>(), 32);
        assert_eq!(size_of::<Option<Slot>>(), 32);
    }

    #[test]
    fn keeps_keys_in_order() {
        let mut rng = Rng::new(Seed(3));
        let mut index = Index::default();
        let mut model: BTreeMap<Vec<u8>, Vec<Rev>> = BTreeMap::new();
        for main in 1..20_000u64 {
            let key = alloc::format!("{}", rng.below(3000)).into_bytes();
            if rng.chance(if main < 10_000 { 200 } else { 600 }) {
                if let Some((key, revs)) = model.range_mut(key..).next().map(|(k, v)| (k.clone(), v)) {
                    let slot = index.find(&key).expect("known");
                    let rev = revs.remove(rng.below(revs.len() as u64) as usize);
                    assert_eq!(index.drop_rev(slot, rev), revs.is_empty());
                    if revs.is_empty() {
                        model.remove(&key);
                    }
                }
            } else {
                let rev = Rev::new(main, 0, false);
                index.add(&key, rev);
                model.entry(key).or_default().push(rev);
            }
            assert_eq!(index.len(), model.len());
        }
        let all: Vec<&[u8]> = index.range(KeyRange::new(b"\0", b"\0")).map(|s| index.key(s)).collect();
        assert_eq!(all, model.keys().map(|k| &k[..]).collect::<Vec<_>>());
        for (key, revs) in &model {
            let slot = index.find(key).expect("known");
            assert_eq!(index.revs(slot), &revs[..]);
            let middle = revs[revs.len() / 2];
            assert_eq!(index.rev_at(slot, middle.main()), Some(middle));
            assert_eq!(index.rev_at(slot, revs[0].main() - 1), None);
            assert_eq!(index.range(KeyRange::new(key, b"")).collect::<Vec<_>>(), [slot]);
        }
        for (a, b) in [("1", "2"), ("25", "24"), ("0", "\0"), ("1234", "1235"), ("x", "z")] {
            let found: Vec<&[u8]> =
                index.range(KeyRange::new(a.as_bytes(), b.as_bytes())).map(|s| index.key(s)).collect();
            let wanted: Vec<&[u8]> = model
                .keys()
                .map(|k| &k[..])
                .filter(|k| KeyRange::new(a.as_bytes(), b.as_bytes()).contains(k))
                .collect();
            assert_eq!(found, wanted);
        }
    }
}
