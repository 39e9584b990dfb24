//! Compact storage: slots named by `u32`, replicas named by `u16`.
//!
//! Slots live in chunks, so that growing never copies and never doubles memory.

use crate::ids::ReplicaId;
use crate::time::{Hlc, Stamp};
use alloc::collections::BTreeMap;
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
