//! Digests of the tree: sums of one hash per inode, so that a change costs one inode and not the tree
//! (Bellare, Micciancio, *A new paradigm for collision-free hashing: incrementality at reduced cost*, 1997: AdHash).
//!
//! Each inode has two hashes: of what is *shown* (equal on all replicas with the same operations, whatever they have
//! forgotten) and of what is *behind* it (deletions, skipped moves, unsettled versions), which a
//! replica drops as others learn of it. The digest of the tree sums the former, the buckets for comparison by state both.

use super::model::*;
use super::slab::NONE;
use super::{ROOT, Tree};
use crate::ids::{InodeId, Name};
use crate::time::{Stamp, UnixTime};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Levels of buckets: 1, 64, 4096.
const LEVELS: u8 = 3;

/// What is shown, and what is behind it.
pub(super) type Hashes = (u128, u128);

#[derive(Serialize, Deserialize)]
pub(super) struct Sums {
    shown: u128,
    levels: [Vec<u128>; LEVELS as usize],
}

impl Default for Sums {
    fn default() -> Self {
        let level = |n: u32| alloc::vec![0u128; 64usize.pow(n)];
        Sums { shown: 0, levels: [level(0), level(1), level(2)] }
    }
}

/// The bucket of an inode: the top bits of its id.
fn bucket_of(id: InodeId, level: u8) -> usize {
    if level == 0 { 0 } else { (id.0 >> (128 - 6 * u32::from(level))) as usize }
}

impl Sums {
    pub(super) fn add(&mut self, id: InodeId, (shown, behind): Hashes) {
        self.shown = self.shown.wrapping_add(shown);
        for level in 0..LEVELS {
            let b = &mut self.levels[level as usize][bucket_of(id, level)];
            *b = b.wrapping_add(shown).wrapping_add(behind);
        }
    }
    pub(super) fn subtract(&mut self, id: InodeId, (shown, behind): Hashes) {
        self.add(id, (shown.wrapping_neg(), behind.wrapping_neg()));
    }
}

struct Sink(blake3::Hasher);

impl Sink {
    fn new(what: u8, id: InodeId) -> Sink {
        let mut s = Sink(blake3::Hasher::new());
        s.bytes(b"icecluster tree 1").n(u64::from(what)).id(id.0);
        s
    }
    fn bytes(&mut self, b: &[u8]) -> &mut Self {
        self.n(b.len() as u64);
        self.0.update(b);
        self
    }
    fn n(&mut self, n: u64) -> &mut Self {
        self.0.update(&n.to_le_bytes());
        self
    }
    fn id(&mut self, n: u128) -> &mut Self {
        self.0.update(&n.to_le_bytes());
        self
    }
    fn stamp(&mut self, s: Stamp) -> &mut Self {
        self.n(s.time.0).n(s.replica.0)
    }
    fn time(&mut self, t: UnixTime) -> &mut Self {
        self.n(t.sec as u64).n(u64::from(t.nsec))
    }
    fn name(&mut self, n: Option<&Name>) -> &mut Self {
        self.bytes(n.map_or(&[], |n| n.as_bytes()))
    }
    fn end(&self) -> u128 {
        let mut b = [0u8; 16];
        b.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        u128::from_le_bytes(b)
    }
}

impl Tree {
    pub(super) fn inode_hash(&self, i: u32) -> Hashes {
        let n = &self.inodes[i];
        let mut entries = self.entries_of(i);
        entries.retain(|e| !self.entries[*e].has(FORGOTTEN));
        if i != ROOT && entries.is_empty() && n.entry != NONE {
            return (0, 0);
        }
        entries.sort_unstable_by_key(|e| self.entries[*e].id());
        (self.shown_hash(i, &entries), self.behind_hash(i, &entries))
    }

    fn shown_hash(&self, i: u32, entries: &[u32]) -> u128 {
        let live: Vec<u32> = entries.iter().copied().filter(|e| self.own_live(*e)).collect();
        if live.is_empty() && i != ROOT {
            return 0;
        }
        let n = &self.inodes[i];
        let mut h = Sink::new(1, n.id());
        if let Some(kind) = self.kind(i) {
            kind.hash_into(&mut h.0);
        }
        h.n(u64::from(n.mode)).stamp(self.stamp(n.mode_at));
        h.n(u64::from(n.uid)).n(u64::from(n.gid)).stamp(self.stamp(n.owner_at));
        h.time(n.atime()).time(n.mtime()).stamp(self.stamp(n.times_at));
        let (version, size, digest) = self.winner(i);
        h.stamp(version).n(size).bytes(&digest.0);
        for (name, x) in self.xattrs_of(i) {
            if let Some(value) = &x.value {
                h.bytes(name).stamp(x.stamp).bytes(value);
            }
        }
        for e in live {
            let e = &self.entries[e];
            h.id(e.id().0).stamp(self.stamp(e.place)).id(self.id_of(e.parent).0).name(e.name.as_ref());
        }
        h.end()
    }

    /// 0 for most: nothing is behind what is shown.
    fn behind_hash(&self, i: u32, entries: &[u32]) -> u128 {
        let n = &self.inodes[i];
        let odd = REMOVED | LOGGED;
        let heads = self.heads.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, s)| *s);
        let plain = n.tag != Tag::Unknown
            && !n.has(XATTRS)
            && heads.clone().next().is_none()
            && entries.iter().all(|e| self.entries[*e].flags & odd == 0 && self.entries[*e].name.is_some())
            && (i != ROOT || self.early.is_empty());
        if plain || (entries.is_empty() && n.tag != Tag::Unknown && i != ROOT) {
            return 0;
        }
        let mut h = Sink::new(2, n.id());
        let mut any = n.tag == Tag::Unknown && !entries.is_empty();
        for s in [n.mode_at, n.owner_at, n.times_at, n.content] {
            any |= n.tag == Tag::Unknown && self.stamp(s) > Stamp::ZERO;
            h.stamp(self.stamp(s));
        }
        // What is shown tells of the values, but nothing is shown of what is dead, and it may come back.
        let dead = !entries.iter().any(|e| self.own_live(*e));
        for (name, x) in self.xattrs_of(i).into_iter().filter(|(_, x)| dead || x.value.is_none()) {
            any = true;
            h.bytes(name).stamp(x.stamp);
        }
        for (e, removed) in entries.iter().filter_map(|e| Some((e, self.removed.get(e)?))) {
            any = true;
            let e = &self.entries[*e];
            h.id(e.id().0).stamp(self.stamp(e.place)).name(e.name.as_ref());
            for r in removed {
                h.stamp(r.at).stamp(r.saw).n(u64::from(r.last));
            }
        }
        for s in entries.iter().filter(|e| self.entries[**e].has(LOGGED)).flat_map(|e| self.moves_of(*e)) {
            if let Some(m) = self.moves.get(&s).filter(|m| m.skipped) {
                any = true;
                h.stamp(s).id(self.id_of(m.parent).0).name(Some(&m.name));
            }
        }
        for s in heads {
            any = true;
            h.stamp(s);
        }
        if i == ROOT {
            for (id, removed) in &self.early {
                any = true;
                h.id(id.0);
                for r in removed {
                    h.stamp(r.at).stamp(r.saw).n(u64::from(r.last));
                }
            }
        }
        if any { h.end() } else { 0 }
    }

    /// Of the logical tree: equal on all replicas that know the same operations. O(1).
    pub fn digest(&self) -> u128 {
        self.sums.shown
    }

    /// Of all that is known about the inodes of a bucket. Level 0 is one bucket, level 1 has 64, level 2 has 4096; a bucket
    /// outside of them holds nothing. Replicas that have forgotten different things may differ here although their trees
    /// are equal.
    pub fn bucket_digest(&self, level: u8, bucket: u32) -> u128 {
        self.sums.levels.get(level as usize).and_then(|l| l.get(bucket as usize)).copied().unwrap_or(0)
    }

    /// The ids of a bucket, as a range.
    pub(super) fn bucket_range(level: u8, bucket: u32) -> Option<(InodeId, InodeId)> {
        if level >= LEVELS || u64::from(bucket) >= 64u64.pow(u32::from(level)) {
            return None;
        }
        if level == 0 {
            return Some((InodeId(0), InodeId(u128::MAX)));
        }
        let shift = 128 - 6 * u32::from(level);
        let low = u128::from(bucket) << shift;
        Some((InodeId(low), InodeId(low | ((1u128 << shift) - 1))))
    }

    /// Computes all sums anew.
    pub(super) fn sum_all(&mut self) {
        let mut sums = Sums::default();
        for i in self.inodes.keys() {
            sums.add(self.id_of(i), self.inode_hash(i));
        }
        self.sums = sums;
    }

    /// Whether the sums are what they would be if computed anew. For tests; O(n).
    pub fn sums_are_sound(&self) -> bool {
        let mut sums = Sums::default();
        for i in self.inodes.keys() {
            sums.add(self.id_of(i), self.inode_hash(i));
        }
        sums.shown == self.sums.shown && sums.levels == self.sums.levels
    }
}
