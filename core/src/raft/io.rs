//! What goes into the machine and what comes out of it.

use super::entry::{Base, Bytes, Damage, Entry, Index, Record, Term};
use super::members::{BadChange, Leave, Membership, Step};
use super::message::Message;
use crate::ids::ReplicaId;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// A message arrived. Anything may be in it.
    Message(Message),
    /// Commands for the log, in order. Answered by `Accepted` (all of them) or `Rejected`.
    Propose {
        /// Chosen by the node.
        request: u64,
        /// Each becomes one entry.
        commands: Vec<Bytes>,
    },
    /// Up to which entry must the store have applied the log, so that a read is linearizable? Answered by `ReadReady` or `Rejected`.
    Read {
        /// Chosen by the node.
        request: u64,
    },
    /// Change the membership. Answered by `Accepted` (the entry; the change is complete when it is committed, and where it made a
    /// joint configuration, when that is left) or `Rejected`.
    Change {
        /// Chosen by the node.
        request: u64,
        /// Carried out as one.
        steps: Vec<Step>,
        /// How a joint configuration ends.
        leave: Leave,
    },
    /// Leave a joint configuration that was entered with [`Leave::Explicit`]. Answered like `Change`.
    LeaveJoint {
        /// Chosen by the node.
        request: u64,
    },
    /// Hand the leadership over; to whoever can take it soonest if nobody is named. Answered by `TransferEnded` or `Rejected`.
    Transfer {
        /// Chosen by the node.
        request: u64,
        /// A voter.
        to: Option<ReplicaId>,
    },
    /// The node is about to stop: hand over if leading, and do not stand for election any more.
    Stop,
    /// Stand for election now, without asking first. Whoever hears from a leader refuses, unless `handover`.
    Campaign {
        /// As if the leader had asked for it.
        handover: bool,
    },
    /// All writes up to this ticket are durable.
    Persisted {
        /// Of the latest of them.
        ticket: u64,
    },
    /// How the log lane is.
    Disk(Lane),
    /// The store has applied all entries up to this one.
    Applied {
        /// Place of the entry.
        index: Index,
    },
    /// The store's own state up to this entry is durable: the log may drop what is not needed by followers.
    Compact {
        /// Place of the entry; applied before.
        index: Index,
    },
    /// Messages to this replica get nowhere.
    Unreachable(ReplicaId),
    /// They do again.
    Reachable(ReplicaId),
    /// A piece of the store's state for a follower. Answers `SnapshotWanted`.
    SnapshotPiece {
        /// Number of the transfer.
        transfer: u64,
        /// All pieces of a transfer are of the state after this entry.
        index: Index,
        /// At most `RAFT_PIECE_MAX_BYTES`.
        data: Bytes,
        /// Where the next piece begins; `None`: this was the last.
        cursor: Option<Bytes>,
    },
    /// The store cannot go on with this transfer: it was overtaken, or is busy. It is begun anew later.
    SnapshotFailed {
        /// Number of the transfer.
        transfer: u64,
    },
    /// A piece is in the store's hands. Answers the receiver's `SnapshotPiece`, except for the last piece.
    PieceTaken {
        /// That of the piece.
        ticket: u64,
    },
    /// The snapshot is whole, its checksum holds, and it is the store's state now, durably, together with what it stands for.
    /// Answers the last piece.
    SnapshotInstalled {
        /// That of the last piece.
        ticket: u64,
    },
    /// The pieces are of no use: the store is as it was. Answers any piece.
    SnapshotRefused {
        /// That of the piece.
        ticket: u64,
    },
}

/// How the log lane is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Lane {
    /// Writes are answered soon.
    #[default]
    Fine,
    /// They are answered, but so late that others should lead, if there are any whose lane is better.
    Slow,
    /// They are not answered. What was in flight will never be, also when the lane is `Fine` again: it is written again then.
    Failed,
}

/// What the machine wants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Effect {
    /// Send it. May be lost.
    Send(Message),
    /// Write it to the log lane, in the order of tickets, and say `Persisted` when it is durable.
    Persist {
        /// 1, 2, 3 ...
        ticket: u64,
        /// What to write.
        record: Record,
    },
    /// Apply these in their order: they are committed, durable here, and follow what was handed out before.
    Committed {
        /// Without gaps. A portion; the next comes after `Applied`.
        entries: Vec<Entry>,
    },
    /// The proposal is in the leader's log. It is carried out if an entry of this term is committed at this place, and it never
    /// will be if one of another term is; until one is, its outcome is unknown, whoever leads.
    Accepted {
        /// Whose.
        request: u64,
        /// Of the entries.
        term: Term,
        /// Place of the first.
        index: Index,
        /// How many.
        count: u64,
    },
    /// The request had no effect.
    Rejected {
        /// Whose.
        request: u64,
        /// Why.
        why: Reason,
        /// Whom to ask.
        leader: Option<ReplicaId>,
    },
    /// The read is linearizable once the store has applied everything up to `index`.
    ReadReady {
        /// Whose.
        request: u64,
        /// Place of the entry.
        index: Index,
    },
    /// Something of this has changed.
    Role {
        /// What this replica is.
        role: Role,
        /// In this term.
        term: Term,
        /// Who leads, as far as is known.
        leader: Option<ReplicaId>,
    },
    /// This configuration holds from now on, committed or not.
    Members {
        /// Place of its entry.
        index: Index,
        /// The whole of it.
        membership: Membership,
    },
    /// A follower needs more than the log has: give a piece of the store's state (`SnapshotPiece`, or `SnapshotFailed`).
    SnapshotWanted {
        /// For whom.
        to: ReplicaId,
        /// Number of the transfer. A new number is a new transfer, from the store's newest state.
        transfer: u64,
        /// From here on; `None`: from the beginning.
        after: Option<Bytes>,
    },
    /// The transfer is over, one way or the other: what was kept for it can go.
    SnapshotDone {
        /// Number of the transfer.
        transfer: u64,
    },
    /// A piece of a leader's state for our store. Piece 0 begins anew: what came before is of no use. Answered by `PieceTaken`,
    /// or if it is the last one by `SnapshotInstalled` or `SnapshotRefused`.
    SnapshotPiece {
        /// To be quoted in the answer.
        ticket: u64,
        /// What the whole stands for.
        base: Base,
        /// Which piece.
        piece: u32,
        /// The bytes.
        data: Bytes,
        /// The last one: put it into place.
        last: bool,
    },
    /// The transfer of leadership has ended.
    TransferEnded {
        /// Whose.
        request: u64,
        /// Another leads, or at least this one no longer does.
        done: bool,
    },
    /// This replica takes no part any more.
    Broken(Damage),
}

/// What a replica is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Role {
    /// Follows whoever leads.
    #[default]
    Follower,
    /// Asks whether an election would succeed.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// Why a request was rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// Ask the leader.
    NotLeader,
    /// Too much waits already. Come again.
    Busy,
    /// A command or a batch is larger than any may be, or empty.
    Size,
    /// The leadership is being handed over. Ask the new leader.
    Transferring,
    /// A change of membership is under way.
    ChangeUnderWay,
    /// The leader has not committed an entry of its own term yet. Come again.
    TooEarly,
    /// The change makes no sense.
    BadChange(BadChange),
    /// No such voter, or it leads already.
    NoTarget,
    /// This replica takes no part.
    Broken,
}

/// What was refused or ignored, and how often: news for status, not for decisions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Refused {
    /// For another replica, or from this one itself.
    pub misrouted: u64,
    /// Of another cluster.
    pub foreign: u64,
    /// Breaks a limit or contradicts itself.
    pub malformed: u64,
    /// From somebody else who claims to lead in a term that has a leader.
    pub second_leader: u64,
    /// Entries that contradict what is committed.
    pub against_committed: u64,
    /// Answers to nothing that was asked, or from nobody who was.
    pub stray: u64,
    /// Votes that were not even considered, as a leader is heard.
    pub protected: u64,
    /// Entries for which there is no room.
    pub full: u64,
    /// While this replica takes no part.
    pub broken: u64,
}
