//! Compaction, and the hash by which copies are compared.
//!
//! A compaction counts at once: earlier revisions can no longer be read. What is thereby not needed is taken out afterwards,
//! in portions, as the node has time; nobody can tell how far that has come. Of each key stays what is needed to read at the
//! revision of the compaction and later, and a deletion made by that very revision, for watchers that begin there.

use super::history::{Record, Rev};
use super::{Error, Store};
use crate::limits;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Where a hash has come to. It is made in portions, while commands are applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HashCursor {
    revision: u64,
    compacted: u64,
    at: (u64, u32),
    chain: [u8; 32],
}

/// A hash of all records up to a revision, without those that compaction drops. Copies that agree have equal ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreHash {
    /// The hash.
    pub hash: u64,
    /// The revision up to which it was made.
    pub revision: u64,
    /// What was compacted: hashes of stores that were compacted differently cannot be compared.
    pub compacted: u64,
}

impl Store {
    pub(super) fn compact(&mut self, revision: u64) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision { current: self.revision });
        }
        self.compacted = revision;
        self.sweep_from = Some((0, 0));
        Ok(())
    }

    /// Whether a record is needed with what is before `compacted` gone.
    pub(super) fn survives(&self, r: &Record, compacted: u64) -> bool {
        let main = r.rev.main();
        if main > compacted {
            return true;
        }
        let revs = self.index.revs(r.key);
        let next = revs.partition_point(|o| o.place() <= r.rev.place());
        let newest = revs.get(next).is_none_or(|n| n.main() > compacted);
        newest && (!r.rev.is_tombstone() || main == compacted)
    }

    /// Takes out some of what compaction left over: up to [`limits::COMPACT_RECORDS_PER_STEP`] records are looked at. True if
    /// there is more to do now. While a snapshot is being read nothing is taken out, nor while too many rows wait to be
    /// deleted.
    pub fn sweep(&mut self) -> bool {
        let mut budget = limits::COMPACT_RECORDS_PER_STEP;
        while let Some(from) = self.sweep_from {
            if self.rows.images.any() || self.rows.dropped() >= limits::COMPACT_ROWS_WAITING_MAX {
                return false;
            }
            if budget == 0 {
                return true;
            }
            let compacted = self.compacted;
            let drops_live = self.has(crate::bug::Bug::CompactLiveVersion);
            let chunk = self.history.chunk(from);
            budget = budget.saturating_sub(chunk.len());
            let old = chunk.iter().take_while(|r| r.rev.main() <= compacted);
            let gone: Vec<(Rev, u32, u64)> = old
                .filter(|r| !self.survives(r, compacted) || (drops_live && r.rev.main() == compacted))
                .map(|r| (r.rev, r.key, super::history::cost(self.index.key(r.key).len(), r.value.len())))
                .collect();
            if !gone.is_empty() {
                self.thinned = compacted;
            }
            for (rev, slot, cost) in &gone {
                self.index.drop_rev(*slot, *rev);
                self.size_bytes -= cost;
                self.rows.record_dropped(rev.place());
            }
            let mut gone = gone.iter().map(|(rev, ..)| rev.place()).peekable();
            let next = self.history.thin(from, |r| gone.next_if_eq(&r.rev.place()).is_some());
            self.sweep_from = next.filter(|n| n.0 <= compacted);
        }
        false
    }

    /// Begins a hash of everything up to a revision (0: the newest).
    pub fn hash_begin(&self, revision: u64) -> Result<HashCursor, Error> {
        let revision = self.readable(revision, self.revision)?;
        Ok(HashCursor { revision, compacted: self.compacted, at: (0, 0), chain: [0; 32] })
    }

    /// Goes on with a hash, over up to `max_records`. `Ok(None)`: call again. Fails if a compaction came in between.
    pub fn hash_step(&self, cursor: &mut HashCursor, max_records: usize) -> Result<Option<StoreHash>, Error> {
        if cursor.compacted != self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        let mut left = max_records.max(1);
        for r in self.history.from(cursor.at) {
            if r.rev.main() > cursor.revision {
                break;
            }
            if left == 0 {
                return Ok(None);
            }
            left -= 1;
            if self.survives(r, cursor.compacted) {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&cursor.chain);
                hasher.update(&super::rows::record_key(r.rev.place()));
                hasher.update(&self.record_page(r));
                cursor.chain = *hasher.finalize().as_bytes();
            }
            cursor.at = (r.rev.main(), r.rev.sub() + 1);
        }
        let mut b = [0; 8];
        b.copy_from_slice(&cursor.chain[..8]);
        Ok(Some(StoreHash { hash: u64::from_le_bytes(b), revision: cursor.revision, compacted: cursor.compacted }))
    }

    /// A whole hash at once; for stores that are known to be small.
    pub fn hash(&self, revision: u64) -> Result<StoreHash, Error> {
        let mut cursor = self.hash_begin(revision)?;
        loop {
            if let Some(hash) = self.hash_step(&mut cursor, usize::MAX)? {
                return Ok(hash);
            }
        }
    }
}
