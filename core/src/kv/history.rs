//! All revisions that were not compacted, in their order.
//!
//! New ones come at the end only; compaction takes some out of the middle. So they lie in chunks that are always full but for
//! the last, or those that compaction has thinned out: no room is lost to growth, and none is copied by it.

use super::lease::LeaseId;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Records of a chunk.
const CHUNK: usize = 256;

/// What a revision costs besides its key and value, for the quota.
const RECORD_COST_BYTES: u64 = 128;

/// What a revision with a key and a value of these lengths counts towards the space quota.
pub(super) fn cost(key: usize, value: usize) -> u64 {
    key as u64 + value as u64 + RECORD_COST_BYTES
}

const TOMBSTONE: u32 = 1 << 31;

/// A change of one key: the revision of the store, and the place among the changes of that revision.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(Rust, packed(4))]
pub(super) struct Rev {
    main: u64,
    /// The highest bit marks a deletion. It takes no part in comparisons.
    sub: u32,
}

impl Rev {
    pub(super) fn new(main: u64, sub: u32, tombstone: bool) -> Rev {
        Rev { main, sub: if tombstone { sub | TOMBSTONE } else { sub } }
    }
    pub(super) fn main(self) -> u64 {
        self.main
    }
    pub(super) fn sub(self) -> u32 {
        self.sub & !TOMBSTONE
    }
    /// The key was deleted.
    pub(super) fn is_tombstone(self) -> bool {
        self.sub & TOMBSTONE != 0
    }
    /// For comparisons.
    pub(super) fn place(self) -> (u64, u32) {
        (self.main, self.sub())
    }
}

impl fmt::Debug for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cross = if self.is_tombstone() { "t" } else { "" };
        write!(f, "{}_{}{cross}", self.main(), self.sub())
    }
}

/// One key's state as a revision made it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) rev: Rev,
    /// Slot of the key in the index.
    pub(super) key: u32,
    /// Revision at which the key came to be.
    pub(super) create: u64,
    /// Changes since then, this one included; 0 for a deletion.
    pub(super) version: u64,
    pub(super) lease: LeaseId,
    #[serde(with = "serde_bytes")]
    pub(super) value: Box<[u8]>,
}

/// All records.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct History {
    chunks: Vec<Vec<Record>>,
    /// The first of each chunk, side by side: what a search looks at.
    firsts: Vec<(u64, u32)>,
    len: usize,
}

/// Where a record lies; good until the next change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    chunk: usize,
    at: usize,
}

impl History {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends. The revision is higher than all others: anything else is our own bug.
    pub(super) fn push(&mut self, record: Record) {
        let place = record.rev.place();
        assert!(self.last().is_none_or(|l| l < place), "revisions only grow");
        if self.chunks.last().is_none_or(|c| c.len() >= CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
            self.firsts.push(place);
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(record);
        }
        self.len += 1;
    }

    fn last(&self) -> Option<(u64, u32)> {
        self.chunks.last().and_then(|c| c.last()).map(|r| r.rev.place())
    }

    /// The first record that is not before `place`.
    pub(super) fn seek(&self, place: (u64, u32)) -> Place {
        let after = self.firsts.partition_point(|f| *f <= place);
        let Some(chunk) = after.checked_sub(1) else { return Place { chunk: 0, at: 0 } };
        let at = self.chunks[chunk].partition_point(|r| r.rev.place() < place);
        self.settle(Place { chunk, at })
    }

    fn settle(&self, p: Place) -> Place {
        match self.chunks.get(p.chunk) {
            Some(c) if p.at >= c.len() => Place { chunk: p.chunk + 1, at: 0 },
            _ => p,
        }
    }

    pub(super) fn at(&self, p: Place) -> Option<&Record> {
        self.chunks.get(p.chunk)?.get(p.at)
    }

    pub(super) fn get(&self, rev: Rev) -> Option<&Record> {
        self.at(self.seek(rev.place())).filter(|r| r.rev.place() == rev.place())
    }

    /// Records from `place` on.
    pub(super) fn from(&self, place: (u64, u32)) -> impl Iterator<Item = &Record> + '_ {
        let p = self.seek(place);
        let head = self.chunks.get(p.chunk).map_or(&[][..], |c| &c[p.at..]);
        let tail = self.chunks.get(p.chunk + 1..).unwrap_or_default();
        head.iter().chain(tail.iter().flatten())
    }

    /// The chunk in which the first record from `from` on lies, from that record on.
    pub(super) fn chunk(&self, from: (u64, u32)) -> &[Record] {
        let p = self.seek(from);
        self.chunks.get(p.chunk).map_or(&[], |c| &c[p.at..])
    }

    /// Shows `drop` the records of the chunk in which the first record from `from` on lies, and takes out those for which it
    /// says so. Answers where the next chunk begins, if there is one.
    pub(super) fn thin(&mut self, from: (u64, u32), mut drop: impl FnMut(&Record) -> bool) -> Option<(u64, u32)> {
        let p = self.seek(from);
        let chunk = self.chunks.get_mut(p.chunk)?;
        let before = chunk.len();
        chunk.retain(|r| r.rev.place() < from || !drop(r));
        let gone = before - chunk.len();
        self.len -= gone;
        let next = self.firsts.get(p.chunk + 1).copied();
        if gone > 0 {
            self.mend(p.chunk);
        }
        next
    }

    /// After records of a chunk went: an empty one goes, a small one joins the one before it.
    fn mend(&mut self, n: usize) {
        if self.chunks[n].is_empty() {
            self.chunks.remove(n);
            self.firsts.remove(n);
            return;
        }
        self.firsts[n] = self.chunks[n][0].rev.place();
        let joins = n > 0 && self.chunks[n - 1].len() + self.chunks[n].len() <= CHUNK;
        if joins {
            let tail = self.chunks.remove(n);
            self.firsts.remove(n);
            self.chunks[n - 1].extend(tail);
        } else {
            self.chunks[n].shrink_to(CHUNK / 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(main: u64) -> Record {
        Record {
            rev: Rev::new(main, 0, false),
            key: 0,
            create: main,
            version: 1,
            lease: LeaseId(0),
            value: Box::default(),
        }
    }

    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<Record>(), 56);
    }

    #[test]
    fn thinned_chunks_are_found_and_joined() {
        let mut h = History::default();
        (1..=2000).for_each(|n| h.push(record(n)));
        let mut from = Some((0, 0));
        while let Some(place) = from {
            from = h.thin(place, |r| r.rev.main() % 10 != 0);
        }
        assert_eq!(h.len(), 200);
        assert!(h.chunks.len() <= 2, "{} chunks", h.chunks.len());
        let all: Vec<u64> = h.from((0, 0)).map(|r| r.rev.main()).collect();
        assert_eq!(all, (1..=200).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(h.from((15, 0)).next().map(|r| r.rev.main()), Some(20));
        assert!(h.get(Rev::new(2000, 0, false)).is_some());
        assert!(h.get(Rev::new(1999, 0, false)).is_none());
        assert!(h.from((2001, 0)).next().is_none());
    }
}
