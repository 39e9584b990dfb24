//! What the log is made of, and what of it is durable.

use super::members::Membership;
use crate::ids::ReplicaId;
use crate::limits::RAFT_COMMAND_MAX_BYTES;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of a term of office; 0 before the first.
pub type Term = u64;
/// A place in the log; the first entry has 1.
pub type Index = u64;
/// Messages of later terms are taken for damage: nobody lives to see them, and counting on from here must not overflow.
pub const TERM_MAX: Term = 1 << 60;
/// Likewise for places in the log.
pub const INDEX_MAX: Index = 1 << 60;

/// Bytes that this module does not look into, cheap to copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub Arc<[u8]>);

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Bytes {
        Bytes(b.into())
    }
}
impl From<Vec<u8>> for Bytes {
    fn from(b: Vec<u8>) -> Bytes {
        Bytes(b.into())
    }
}
impl core::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        let b: serde_bytes::ByteBuf = serde::Deserialize::deserialize(d)?;
        Ok(Bytes(b.into_vec().into()))
    }
}

/// What an entry is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// Nothing: a leader's first entry, which lets it commit those of earlier terms.
    Noop,
    /// A configuration, the whole of it.
    Config(Membership),
    /// A command to the state machine.
    Command(Bytes),
}

/// An entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The term of the leader that made it.
    pub term: Term,
    /// Its place.
    pub index: Index,
    /// What it says.
    pub content: Content,
}

impl Entry {
    /// What it counts for in limits, in bytes.
    pub fn size(&self) -> u64 {
        32 + match &self.content {
            Content::Noop => 0,
            Content::Config(m) => 16 * m.members().len() as u64,
            Content::Command(c) => c.len() as u64,
        }
    }

    /// Within the limits.
    pub(crate) fn is_sound(&self) -> bool {
        let fits = match &self.content {
            Content::Noop => true,
            Content::Config(m) => m.is_sound(),
            Content::Command(c) => c.len() <= RAFT_COMMAND_MAX_BYTES,
        };
        fits && self.term <= TERM_MAX && self.index <= INDEX_MAX
    }
}

/// What everything up to a place in the log comes down to, as far as this module is concerned. The state machine's own state
/// at that place is the store's business.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Base {
    /// The last entry that it stands for; 0: for none.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The configuration there.
    pub membership: Membership,
}

/// What must never be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hard {
    /// The cluster; 0: none yet. Drawn when a cluster is founded and when one is rescued. Messages of other clusters are
    /// refused: their terms have nothing to do with ours.
    pub cluster: u64,
    /// The latest term seen.
    pub term: Term,
    /// Who got this replica's vote in it.
    pub vote: Option<ReplicaId>,
    /// Everything up to here is known to be committed. Only a hint: it need not be the newest.
    pub commit: Index,
}

/// One write to the log lane. Folded in their order with [`Persisted::take`], records give what a replica starts from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Replaces the one before.
    pub hard: Hard,
    /// The log begins after this from now on. What was there before is gone if the log has this very entry, otherwise all of it.
    pub base: Option<Base>,
    /// Replaces whatever the log has from the place of the first on.
    pub append: Vec<Entry>,
}

/// What records come down to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Persisted {
    /// As in the last record.
    pub hard: Hard,
    /// Before the first entry.
    pub base: Base,
    /// In order, without gaps.
    pub entries: Vec<Entry>,
}

impl Persisted {
    /// A cluster of one, `me`. `cluster` is drawn at random and not 0.
    pub fn found(me: ReplicaId, cluster: u64) -> Persisted {
        let first = Entry { term: 1, index: 1, content: Content::Config(Membership::of([me])) };
        Persisted {
            hard: Hard { cluster: cluster.max(1), term: 1, vote: Some(me), commit: 0 },
            base: Base::default(),
            entries: alloc::vec![first],
        }
    }

    /// Makes `me`, a survivor of a cluster that has lost its quorum for good, the only member of a new one.
    ///
    /// Everything in its log counts, also what was not committed: nothing that this replica knows is lost, but what only
    /// the lost ones knew is. `cluster` is drawn at random and not the old one: members of the old cluster that come back are
    /// refused, and must join anew without their data. The record is to be appended to the log, durably, before the replica starts.
    pub fn rescue(&self, me: ReplicaId, cluster: u64) -> Record {
        let (last, last_term) = self.last();
        let term = self.hard.term.max(last_term) + 1;
        let alone = Entry { term, index: last + 1, content: Content::Config(Membership::of([me])) };
        let cluster =
            if cluster == self.hard.cluster || cluster == 0 { self.hard.cluster ^ 1 << 63 | 1 } else { cluster };
        Record {
            hard: Hard { cluster, term, vote: Some(me), commit: self.hard.commit.min(last) },
            base: None,
            append: alloc::vec![alone],
        }
    }

    /// Place and term of the last entry.
    pub fn last(&self) -> (Index, Term) {
        self.entries.last().map_or((self.base.index, self.base.term), |e| (e.index, e.term))
    }

    /// What this comes down to after one more record. False if the record does not follow: there is a gap, and what is in this
    /// is not what it was; nothing was taken then.
    pub fn take(&mut self, record: Record) -> bool {
        if let Some(base) = record.base.clone() {
            self.cut(base);
        }
        if let Some(first) = record.append.first() {
            let from = first.index;
            if from <= self.base.index || from > self.last().0.saturating_add(1) {
                return false;
            }
            self.entries.truncate((from - self.base.index - 1) as usize);
            self.entries.extend(record.append);
        }
        self.hard = record.hard;
        true
    }

    /// Everything up to `base` is known otherwise.
    pub(crate) fn cut(&mut self, base: Base) {
        if base.index < self.base.index || (base.index == self.base.index && base.term == self.base.term) {
            return;
        }
        let same = self.entries.iter().any(|e| e.index == base.index && e.term == base.term);
        if same {
            self.entries.retain(|e| e.index > base.index);
        } else {
            self.entries.clear();
        }
        self.base = base;
    }
}

/// Why a replica takes no part: what its disk holds cannot have been written by it, so it may have forgotten what it promised.
/// It has to come back as another replica, without this log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Damage {
    /// Entries are missing between two others, or between the store and the first.
    Gap,
    /// Terms go down along the log, or beyond the limit.
    Terms,
    /// There is an entry of a later term than the replica has seen.
    TermForgotten,
    /// Entries that were committed are missing at the end.
    TailLost,
    /// A configuration or a command breaks a limit.
    Unsound,
    /// The store has applied less than the log has dropped.
    StoreBehind,
    /// The store has a past, and the log knows nothing of it.
    LogLost,
}
