//! Snapshots: the whole store as it was after one entry of the log, in chunks, while it goes on.
//!
//! Revisions never change, so those up to the snapshot's are still there when their turn comes (nothing is swept meanwhile).
//! What changes in place is kept as it was, from the first change on, for each snapshot under way; if that becomes more
//! than [`limits::SNAPSHOT_KEPT_MAX_BYTES`], or the snapshot takes longer than [`limits::SNAPSHOT_COMMANDS_MAX`] entries of
//! the log, it is overtaken and has to be begun again.
//!
//! The rows of a snapshot are those of [`super::rows`], without what compaction drops: two replicas that have applied the same
//! entries make the same rows. Each chunk carries the hash of itself and all before it. [`Restore`] takes chunks in their
//! order and becomes a store only when it has all of them.

use super::rows::{Loader, RowKey, meta_key, record_key};
use super::{Damaged, Error, Store};
use crate::limits;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Names a snapshot under way, on this replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

/// The snapshot cannot be finished: too much has changed since it was begun, or it was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overtaken;

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the snapshot was overtaken")
    }
}
impl core::error::Error for Overtaken {}

/// How things were when a snapshot was begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Image {
    applied: u64,
    revision: u64,
    compacted: u64,
    meta: Vec<u8>,
    /// Rows that have changed since, as they were; `None`: they were not there.
    kept: BTreeMap<RowKey, Option<Vec<u8>>>,
    kept_bytes: usize,
    overtaken: bool,
}

/// All snapshots under way.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Images {
    under_way: BTreeMap<SnapshotId, Image>,
    last: u64,
}

impl Images {
    /// Some snapshot still needs what is swept otherwise.
    pub(super) fn any(&self) -> bool {
        self.under_way.values().any(|i| !i.overtaken)
    }

    pub(super) fn touch(&mut self, key: &RowKey, old: impl FnOnce() -> Option<Vec<u8>>) {
        if !self.any() {
            return;
        }
        let mut old = Some(old);
        let mut value: Option<Option<Vec<u8>>> = None;
        for image in self.under_way.values_mut().filter(|i| !i.overtaken) {
            if image.kept.contains_key(key) {
                continue;
            }
            if let Some(old) = old.take() {
                value = Some(old());
            }
            let value = value.clone().flatten();
            image.kept_bytes += 64 + value.as_ref().map_or(0, Vec::len);
            image.kept.insert(key.clone(), value);
            if image.kept_bytes > limits::SNAPSHOT_KEPT_MAX_BYTES {
                image.overtake();
            }
        }
    }

    /// Another entry of the log was applied.
    pub(super) fn applied(&mut self, index: u64) {
        for image in self.under_way.values_mut() {
            if index.saturating_sub(image.applied) > limits::SNAPSHOT_COMMANDS_MAX {
                image.overtake();
            }
        }
    }
}

impl Image {
    fn overtake(&mut self) {
        self.overtaken = true;
        self.kept = BTreeMap::new();
    }
}

/// How far a reader of a snapshot has come. Several may read one at different speeds; a chunk can be asked for again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotCursor {
    snapshot: SnapshotId,
    number: u64,
    chain: [u8; 32],
    at: Position,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Position {
    Record(u64, u32),
    Row(Option<RowKey>),
    Meta,
    End,
}

/// A part of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// The log's entry after which the store was so.
    pub applied: u64,
    /// The store's revision then.
    pub revision: u64,
    /// From 0 on.
    pub number: u64,
    /// Keys and values.
    pub rows: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
    /// Nothing follows.
    pub last: bool,
    /// Hash of this and all chunks before.
    pub chain: [u8; 32],
}

impl Chunk {
    fn chained(&self, before: &[u8; 32]) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"icecluster store snapshot 1");
        h.update(before);
        for n in [self.applied, self.revision, self.number, u64::from(self.last), self.rows.len() as u64] {
            h.update(&n.to_le_bytes());
        }
        for (k, v) in &self.rows {
            h.update(&(k.len() as u64).to_le_bytes());
            h.update(k);
            h.update(&(v.len() as u64).to_le_bytes());
            h.update(v);
        }
        *h.finalize().as_bytes()
    }
}

impl Store {
    /// Begins a snapshot of this moment. To be ended by [`Store::snapshot_end`], also when it was read to its end: until then
    /// no compaction takes effect in memory.
    pub fn snapshot_begin(&mut self) -> Result<(SnapshotId, SnapshotCursor), Error> {
        let images = &self.rows.images;
        if images.under_way.len() >= limits::SNAPSHOTS_UNDER_WAY_MAX {
            return Err(Error::TooManySnapshots);
        }
        let image = Image {
            applied: self.applied,
            revision: self.revision,
            compacted: self.compacted,
            meta: crate::wire::encode(&self.meta()),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            overtaken: false,
        };
        let images = &mut self.rows.images;
        images.last += 1;
        let id = SnapshotId(images.last);
        images.under_way.insert(id, image);
        Ok((id, self.snapshot_cursor(id)))
    }

    /// A reader from the beginning.
    pub fn snapshot_cursor(&self, id: SnapshotId) -> SnapshotCursor {
        SnapshotCursor { snapshot: id, number: 0, chain: [0; 32], at: Position::Record(0, 0) }
    }

    /// Ends a snapshot. False if it was not there.
    pub fn snapshot_end(&mut self, id: SnapshotId) -> bool {
        self.rows.images.under_way.remove(&id).is_some()
    }

    /// The next chunk, of about `max_bytes`; `None` after the last one. The cursor is moved only if that succeeds.
    pub fn snapshot_chunk(&self, cursor: &mut SnapshotCursor, max_bytes: usize) -> Result<Option<Chunk>, Overtaken> {
        let image = self.rows.images.under_way.get(&cursor.snapshot).filter(|i| !i.overtaken).ok_or(Overtaken)?;
        if cursor.at == Position::End {
            return Ok(None);
        }
        let mut rows: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)> = Vec::new();
        let mut bytes = 0;
        let mut looked = 0;
        let mut at = cursor.at.clone();
        while bytes < max_bytes && looked < limits::SNAPSHOT_RECORDS_PER_CHUNK_MAX && at != Position::End {
            looked += 1;
            let (row, next) = self.snapshot_row(image, &at);
            if let Some((key, value)) = row {
                bytes += key.len() + value.len() + 8;
                rows.push((key.into(), value.into()));
            }
            at = next;
        }
        let last = at == Position::End;
        let (applied, revision, number) = (image.applied, image.revision, cursor.number);
        let mut chunk = Chunk { applied, revision, number, rows, last, chain: [0; 32] };
        chunk.chain = chunk.chained(&cursor.chain);
        (cursor.at, cursor.number, cursor.chain) = (at, cursor.number + 1, chunk.chain);
        Ok(Some(chunk))
    }

    /// The row at a position, if it belongs to the snapshot, and the next position.
    fn snapshot_row(&self, image: &Image, at: &Position) -> (Option<(Vec<u8>, Vec<u8>)>, Position) {
        match at {
            Position::Record(main, sub) => {
                let found = self.history.at(self.history.seek((*main, *sub)));
                let Some(r) = found.filter(|r| r.rev.main() <= image.revision) else {
                    return (None, Position::Row(None));
                };
                let place = r.rev.place();
                let row = self.survives(r, image.compacted).then(|| (record_key(place), self.record_page(r)));
                (row, Position::Record(place.0, place.1 + 1))
            }
            Position::Row(after) => {
                use core::ops::Bound::{Excluded, Unbounded};
                let live = self.row_after(after.as_ref());
                let from = after.as_ref().map_or(Unbounded, Excluded);
                let kept = image.kept.range((from, Unbounded)).next();
                match (live, kept) {
                    (None, None) => (None, Position::Meta),
                    (live, Some((key, old))) if live.as_ref().is_none_or(|l| key <= l) => {
                        let row = old.as_ref().map(|old| (key.bytes(), old.clone()));
                        (row, Position::Row(Some(key.clone())))
                    }
                    (Some(key), _) => {
                        let row = self.row(&key).map(|v| (key.bytes(), v));
                        (row, Position::Row(Some(key)))
                    }
                    (None, Some(_)) => (None, Position::Meta),
                }
            }
            Position::Meta => (Some((meta_key(), image.meta.clone())), Position::End),
            Position::End => (None, Position::End),
        }
    }
}

/// What a receiver says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Taken; the next one is this number.
    Next(u64),
    /// It was the last one: [`Restore::finish`] makes the store.
    Whole,
}

/// Takes a snapshot's chunks.
#[derive(Default, Serialize, Deserialize)]
pub struct Restore {
    loader: Loader,
    of: Option<(u64, u64)>,
    next: u64,
    chain: [u8; 32],
    whole: bool,
    failed: bool,
}

impl Restore {
    /// Takes a chunk. One that was taken already is passed over; after any error the whole has to be begun again.
    pub fn chunk(&mut self, chunk: &Chunk) -> Result<Progress, Damaged> {
        let taken = self.take(chunk);
        self.failed |= taken.is_err();
        taken
    }

    fn take(&mut self, chunk: &Chunk) -> Result<Progress, Damaged> {
        if self.failed {
            return Err(Damaged("a chunk before was refused"));
        }
        if self.of.is_some_and(|of| of != (chunk.applied, chunk.revision)) {
            return Err(Damaged("a chunk of another snapshot"));
        }
        if chunk.number < self.next {
            return Ok(if self.whole { Progress::Whole } else { Progress::Next(self.next) });
        }
        if chunk.number > self.next || self.whole {
            return Err(Damaged("a chunk is missing"));
        }
        let chain = chunk.chained(&self.chain);
        if chain != chunk.chain {
            return Err(Damaged("a chunk's checksum"));
        }
        for (key, value) in &chunk.rows {
            self.loader.row(key, value)?;
        }
        self.of = Some((chunk.applied, chunk.revision));
        self.chain = chain;
        self.next += 1;
        self.whole = chunk.last;
        Ok(if self.whole { Progress::Whole } else { Progress::Next(self.next) })
    }

    /// The number of the chunk that comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The store, if all chunks have been taken and belong together. Its rows are all to be written: see
    /// [`Store::replaces`].
    pub fn finish(self) -> Result<Store, Damaged> {
        let of = self.of.filter(|_| self.whole && !self.failed).ok_or(Damaged("the snapshot is not whole"))?;
        let mut store = self.loader.finish()?;
        if (store.applied, store.revision) != of {
            return Err(Damaged("the snapshot is of another moment than it says"));
        }
        // Nothing of it stands on disk yet.
        store.replaces(&Store::default());
        Ok(store)
    }
}
