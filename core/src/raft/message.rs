//! What replicas say to each other.

use super::entry::{Base, Bytes, Entry, Index, Term};
use crate::ids::ReplicaId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A message. May be lost, repeated, delayed, reordered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Of which cluster.
    pub cluster: u64,
    /// The sender. The node vouches that it is who it says.
    pub from: ReplicaId,
    /// For whom.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// "Would you vote for me in the next term?" Binds nobody.
    PreVote {
        /// Place and term of the sender's last entry.
        last: (Index, Term),
    },
    /// Answer to `PreVote`.
    PreVoteReply {
        /// The term that the asker had.
        asked: Term,
        /// Yes.
        granted: bool,
    },
    /// "Vote for me in this term." Said only after the sender's own vote is durable.
    Vote {
        /// Place and term of the sender's last entry.
        last: (Index, Term),
        /// The leader asked for it: who hears from that leader may vote all the same.
        handover: bool,
    },
    /// Answer to `Vote`; a yes is durable.
    VoteReply {
        /// Yes.
        granted: bool,
    },
    /// A leader's entries after `prev`.
    Append {
        /// Place and term of the entry before them.
        prev: (Index, Term),
        /// In order, without gaps; may be none.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// Everything up to here is as the leader has it, and durable.
    Appended {
        /// Place of the last.
        matched: Index,
    },
    /// The entry before those that came is not there.
    Conflict {
        /// Place of that entry.
        prev: Index,
        /// Nothing after this place can be as the leader has it.
        hint: (Index, Term),
    },
    /// The leader lives.
    Heartbeat {
        /// What the receiver may commit, as far as the leader knows of its log.
        commit: Index,
        /// The latest round of questions whether it still leads.
        round: u64,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// That of the question.
        round: u64,
    },
    /// A piece of a snapshot.
    Snapshot {
        /// Number of the transfer, of this leader in this term.
        transfer: u64,
        /// What the whole snapshot stands for.
        base: Base,
        /// Which piece, from 0.
        piece: u32,
        /// The store's bytes.
        data: Bytes,
        /// The last piece.
        last: bool,
    },
    /// How far the transfer is.
    SnapshotReply {
        /// Its number.
        transfer: u64,
        /// The next piece that is wanted; `None`: it failed, begin a new one.
        next: Option<u32>,
    },
    /// "Stand for election now": the leader hands over.
    TimeoutNow,
    /// Answer to anything from an earlier term: the sender's own term is news.
    NewerTerm,
}

impl Body {
    /// Only a leader says this.
    pub(crate) fn is_leaders(&self) -> bool {
        matches!(self, Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } | Body::TimeoutNow)
    }
}
