//! Reading.

use super::error::Error;
use super::history::{Record, Rev};
use super::keys::KeyRange;
use super::lease::LeaseId;
use super::{Store, command};
use alloc::vec::Vec;
use core::cmp::Ordering;
use serde::{Deserialize, Serialize};

/// A key as it is, or was at some revision.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// Revision at which the key came to be.
    pub create: u64,
    /// Revision of the last change.
    pub modified: u64,
    /// Changes since it came to be; 0 for a deletion (in events).
    pub version: u64,
    /// The lease under which it lives; 0 is none.
    pub lease: LeaseId,
}

/// What is to be read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RangeRequest {
    /// The first key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// See [`KeyRange::new`].
    #[serde(with = "serde_bytes")]
    pub end: Vec<u8>,
    /// At most so many keys; 0 is all.
    pub limit: u64,
    /// As of this revision; 0 is now.
    pub revision: u64,
    /// In which order.
    pub order: SortOrder,
    /// By what.
    pub target: SortTarget,
    /// Without values.
    pub keys_only: bool,
    /// Only how many there are.
    pub count_only: bool,
    /// Leave out what was changed before; 0 is no limit, here and below.
    pub min_modified: u64,
    /// Leave out what was changed after.
    pub max_modified: u64,
    /// Leave out what was created before.
    pub min_create: u64,
    /// Leave out what was created after.
    pub max_create: u64,
}

/// Order of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SortOrder {
    /// As it comes: by key, ascending.
    #[default]
    None,
    Ascend,
    Descend,
}

/// What the answer is sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Modified,
    Value,
}

/// What was read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RangeAnswer {
    /// The store's revision while it was read.
    pub revision: u64,
    /// What was found.
    pub kvs: Vec<KeyValue>,
    /// There is more than `limit` allowed.
    pub more: bool,
    /// Keys in the range, whatever limit and filters left out.
    pub count: u64,
}

impl RangeRequest {
    /// One key.
    pub fn key(key: &[u8]) -> RangeRequest {
        RangeRequest { key: key.to_vec(), ..RangeRequest::default() }
    }
    /// The keys meant.
    pub fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.end)
    }
    /// Rules that need no store.
    pub fn check(&self) -> Result<(), Error> {
        command::check_key(&self.key)
    }
    fn filters(&self) -> bool {
        self.min_modified != 0 || self.max_modified != 0 || self.min_create != 0 || self.max_create != 0
    }
    fn lets_pass(&self, r: &Record) -> bool {
        let modified = r.rev.main();
        let upper = |max: u64, n: u64| max == 0 || n <= max;
        modified >= self.min_modified
            && upper(self.max_modified, modified)
            && r.create >= self.min_create
            && upper(self.max_create, r.create)
    }
}

impl Store {
    /// Reads at the newest revision or an earlier one. Permissions are asked by [`super::auth::Auth::may_read`] before.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, Error> {
        self.range_in(request, self.revision)
    }

    /// Reads while `current` is the newest revision (within a transaction that has written, the one that it makes).
    pub(super) fn range_in(&self, request: &RangeRequest, current: u64) -> Result<RangeAnswer, Error> {
        request.check()?;
        let at = self.readable(request.revision, current)?;
        let found = self.index.range(request.range()).filter_map(|slot| {
            let rev = self.index.rev_at(slot, at).filter(|r| !r.is_tombstone())?;
            Some((slot, rev))
        });
        let mut answer = RangeAnswer { revision: current, ..RangeAnswer::default() };
        if request.count_only {
            answer.count = found.count() as u64;
            return Ok(answer);
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let all = limit == 0 || request.order != SortOrder::None || request.filters();
        let take = if all { usize::MAX } else { limit };
        let mut records: Vec<(u32, &Record)> = Vec::new();
        for (n, (slot, rev)) in found.enumerate() {
            answer.count += 1;
            if n < take {
                let record = self.record(rev);
                records.push((slot, record));
            }
        }
        if request.filters() {
            records.retain(|(_, r)| request.lets_pass(r));
        }
        self.sort(request, &mut records);
        let found = if all { records.len() as u64 } else { answer.count };
        if limit > 0 {
            records.truncate(limit);
            answer.more = found > request.limit;
        }
        answer.kvs = records.into_iter().map(|(slot, r)| self.kv(slot, r, !request.keys_only)).collect();
        Ok(answer)
    }

    /// The revision that a request for `revision` reads.
    pub(super) fn readable(&self, revision: u64, current: u64) -> Result<u64, Error> {
        match revision {
            0 => Ok(current),
            r if r > current => Err(Error::FutureRevision { current: self.revision }),
            r if r < self.compacted => Err(Error::Compacted { compacted: self.compacted }),
            r => Ok(r),
        }
    }

    fn sort(&self, request: &RangeRequest, records: &mut [(u32, &Record)]) {
        // Without an order, what is to be sorted by anything but the key is sorted ascending: etcd does so.
        let by_key = request.target == SortTarget::Key;
        let descend = request.order == SortOrder::Descend;
        if by_key {
            if descend {
                records.reverse();
            }
            return;
        }
        let compare = |a: &Record, b: &Record| -> Ordering {
            match request.target {
                SortTarget::Key => Ordering::Equal,
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create.cmp(&b.create),
                SortTarget::Modified => a.rev.main().cmp(&b.rev.main()),
                SortTarget::Value => a.value.cmp(&b.value),
            }
        };
        // Equals stay in the order of their keys.
        records.sort_by(|(_, a), (_, b)| if descend { compare(b, a) } else { compare(a, b) });
    }

    /// What a revision in the index says. The two always agree: anything else is our own bug.
    pub(super) fn record(&self, rev: Rev) -> &Record {
        self.history.get(rev).expect("the index names only what is in the history")
    }

    pub(super) fn kv(&self, slot: u32, r: &Record, value: bool) -> KeyValue {
        KeyValue {
            key: self.index.key(slot).to_vec(),
            value: if value { r.value.to_vec() } else { Vec::new() },
            create: r.create,
            modified: r.rev.main(),
            version: r.version,
            lease: r.lease,
        }
    }

    /// The newest record of a key that is there.
    pub(super) fn live(&self, key: &[u8]) -> Option<(u32, &Record)> {
        let slot = self.index.find(key)?;
        let rev = *self.index.revs(slot).last()?;
        (!rev.is_tombstone()).then(|| (slot, self.record(rev)))
    }

    /// The key as it is now.
    pub fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.live(key).map(|(slot, r)| self.kv(slot, r, true))
    }
}
