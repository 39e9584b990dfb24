//! Compact storage: slots named by `u32`, replicas named by `u16`.
//!
//! Slots live in chunks, so that growing never copies and never doubles memory.

use crate::ids::ReplicaId;
use crate::time::{Hlc, Stamp};
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::ops::{Index, IndexMut};
use serde::{Deserialize, Serialize};

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

const CHUNK: usize = 256;

/// Slots of `T`. Indexing a free slot is a bug of the tree and panics.
#[derive(Serialize, Deserialize)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(i) = self.free.pop() {
            self.chunks[i as usize / CHUNK][i as usize % CHUNK] = Some(value);
            return i;
        }
        if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let n = self.chunks.len() - 1;
        let chunk = &mut self.chunks[n];
        chunk.push(Some(value));
        (n * CHUNK + chunk.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, i: u32) -> Option<T> {
        let v = self.chunks.get_mut(i as usize / CHUNK)?.get_mut(i as usize % CHUNK)?.take()?;
        self.len -= 1;
        self.free.push(i);
        Some(v)
    }

    pub(crate) fn get(&self, i: u32) -> Option<&T> {
        self.chunks.get(i as usize / CHUNK)?.get(i as usize % CHUNK)?.as_ref()
    }

    /// All slots in use, by number.
    pub(crate) fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        let slots = self.chunks.iter().enumerate().flat_map(|(n, c)| c.iter().enumerate().map(move |(k, v)| (n, k, v)));
        slots.filter(|(_, _, v)| v.is_some()).map(|(n, k, _)| (n * CHUNK + k) as u32)
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, i: u32) -> &T {
        self.get(i).expect("slot in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, i: u32) -> &mut T {
        self.chunks[i as usize / CHUNK][i as usize % CHUNK].as_mut().expect("slot in use")
    }
}

/// Slots by an id of 128 bits, in the order of the ids. The ids themselves stand in the slots: what is kept here are their
/// first 32 bits, and the whole id only of those few that share them with another.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Ids {
    short: BTreeMap<u32, u32>,
    same: BTreeMap<u128, u32>,
}

fn head(id: u128) -> u32 {
    (id >> 96) as u32
}

impl Ids {
    /// `id_of` says the id of a slot that is in here, in this and all other methods.
    pub(super) fn get(&self, id: u128, id_of: impl Fn(u32) -> u128) -> Option<u32> {
        let first = self.short.get(&head(id)).copied().filter(|i| id_of(*i) == id);
        first.or_else(|| self.same.get(&id).copied())
    }

    /// The id must not be in here.
    pub(super) fn insert(&mut self, id: u128, slot: u32) {
        match self.short.entry(head(id)) {
            Entry::Vacant(v) => {
                v.insert(slot);
            }
            Entry::Occupied(_) => {
                self.same.insert(id, slot);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u128, id_of: impl Fn(u32) -> u128) {
        if self.same.remove(&id).is_none() && self.short.get(&head(id)).is_some_and(|i| id_of(*i) == id) {
            self.short.remove(&head(id));
        }
    }

    /// The slots of the ids from `low` to `high`, both included, by id. None if `low` is above `high`.
    pub(super) fn range<'a>(
        &'a self,
        low: u128,
        high: u128,
        id_of: impl Fn(u32) -> u128 + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        // A map's range must not begin after its end.
        let some = low <= high;
        let short = some.then(|| self.short.range(head(low)..=head(high))).into_iter().flatten();
        let short = short.map(move |(_, i)| (id_of(*i), *i)).filter(move |(id, _)| (low..=high).contains(id));
        let mut short = short.peekable();
        let same = some.then(|| self.same.range(low..=high)).into_iter().flatten();
        let mut same = same.map(|(id, i)| (*id, *i)).peekable();
        core::iter::from_fn(move || match (short.peek(), same.peek()) {
            (Some(a), Some(b)) if a.0 > b.0 => same.next(),
            (Some(_), _) => short.next(),
            (None, _) => same.next(),
        })
        .map(|(_, i)| i)
    }
}

/// Replicas by a short number. Number 0 is the replica of [`Stamp::ZERO`].
#[derive(Serialize, Deserialize)]
pub(super) struct Replicas {
    list: Vec<ReplicaId>,
    numbers: BTreeMap<ReplicaId, u16>,
}

impl Default for Replicas {
    fn default() -> Self {
        let mut numbers = BTreeMap::new();
        numbers.insert(ReplicaId(0), 0);
        Replicas { list: alloc::vec![ReplicaId(0)], numbers }
    }
}

/// A stamp in 10 bytes, meaningful with its [`Replicas`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(Rust, packed(2))]
pub(super) struct Short {
    time: u64,
    replica: u16,
}

impl Replicas {
    /// `None` when 65,536 replicas are known already (members are limited to far fewer).
    pub(super) fn shorten(&mut self, s: Stamp) -> Option<Short> {
        if let Some(n) = self.numbers.get(&s.replica) {
            return Some(Short { time: s.time.0, replica: *n });
        }
        let n = u16::try_from(self.list.len()).ok()?;
        self.list.push(s.replica);
        self.numbers.insert(s.replica, n);
        Some(Short { time: s.time.0, replica: n })
    }

    pub(super) fn full(&self, s: Short) -> Stamp {
        Stamp { time: Hlc(s.time), replica: self.list[s.replica as usize] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_one_beginning_are_told_apart_and_come_in_order() {
        let head = |h: u128, rest: u128| (h << 96) | rest;
        let ids = [head(7, 30), head(7, 10), head(7, 20), head(3, 5), head(9, 1), 0, u128::MAX];
        let id_of = |i: u32| ids[i as usize];
        let mut index = Ids::default();
        (0..ids.len() as u32).for_each(|i| index.insert(id_of(i), i));
        let all = |index: &Ids| index.range(0, u128::MAX, id_of).collect::<Vec<_>>();
        assert!((0..ids.len() as u32).all(|i| index.get(id_of(i), id_of) == Some(i)));
        assert_eq!(index.get(head(7, 11), id_of), None);
        assert_eq!(all(&index), [5, 3, 1, 2, 0, 4, 6]);
        assert_eq!(index.range(head(7, 11), head(7, 30), id_of).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(index.range(head(7, 31), head(8, 0), id_of).count(), 0);
        assert_eq!(index.range(2, 1, id_of).count(), 0);

        // The one whose beginning stands for all three goes first.
        index.remove(id_of(0), id_of);
        assert_eq!(all(&index), [5, 3, 1, 2, 4, 6]);
        assert_eq!(index.get(id_of(2), id_of), Some(2));
        index.insert(id_of(0), 0);
        index.remove(id_of(1), id_of);
        index.remove(id_of(1), id_of);
        assert_eq!(all(&index), [5, 3, 2, 0, 4, 6]);
        (0..ids.len() as u32).for_each(|i| index.remove(id_of(i), id_of));
        assert_eq!(all(&index), [0; 0]);
    }
}
