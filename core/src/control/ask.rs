//! What is asked of the control plane, what it answers, and what members say to each other about it besides consensus.

use crate::ids::ReplicaId;
use crate::kv;
use crate::kv::command::{Command, Entry};
use crate::kv::error::Error;
use crate::kv::lease::LeaseId;
use crate::kv::lock::{Grant, LockAction};
use crate::kv::snapshot::{SnapshotCursor, SnapshotId};
use crate::kv::watch::{StreamId, WatchId, WatchSpec};
use crate::raft::{self, Bytes, Damage, Index, Reason, Step, Term};
use serde::{Deserialize, Serialize};

/// A request. Each is answered once, at the latest when its time is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// A command for the store. Answered [`Answer::Applied`] once it is applied here.
    Propose(Command),
    /// From when on does this replica's store hold all that was acknowledged to anybody before now? Answered [`Answer::Ready`]
    /// then: a look at the store after that is linearizable.
    Read,
    /// A sign of life of a lease. Answered [`Answer::Kept`].
    KeepAlive(LeaseId),
    /// How much time a lease has left. Answered [`Answer::Time`].
    LeaseTime(LeaseId),
    /// Takes a lock ([`LockAction::Acquire`] or [`LockAction::Lock`]; `wait` in it is filled in if
    /// it is none; otherwise it is this node's, and new), and waits for it as long as the
    /// request may take. Answered [`Answer::Granted`]. Whoever gives up, or whose time is over, gives back what comes after
    /// that.
    Lock(LockAction),
    /// A change of the members. Answered [`Answer::Done`] once it is committed.
    Change(Step),
    /// Hands the leadership to a voter. Only asked of the leader. Answered [`Answer::Done`].
    Transfer(ReplicaId),
    /// A watcher. Answered [`Answer::Done`]; what it is told comes as [`crate::action::Outbox::told`].
    Watch {
        /// Of this stream.
        stream: StreamId,
        /// As the client calls it.
        id: i64,
        /// What it wants to be told.
        spec: WatchSpec,
    },
    /// Begins to read the whole store as it is now. Answered [`Answer::Snapshot`].
    SnapshotBegin,
    /// That is over. Answered [`Answer::Done`].
    SnapshotEnd(SnapshotId),
}

/// What a client's watches do that needs no answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Watching {
    /// So many bytes of what a watcher was told have been taken.
    Taken(WatchId, usize),
    /// No more of this one. It is told that it is cancelled.
    Cancel(WatchId),
    /// The stream wants to be told when all its watchers are current.
    Progress(StreamId),
    /// The stream is gone.
    Close(StreamId),
}

/// Where the store stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    /// Its revision.
    pub revision: u64,
    /// The term of consensus.
    pub term: Term,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// What the command did, and the store right after it.
    Applied {
        /// As the store says.
        answer: Result<kv::Answer, Error>,
        /// After it.
        head: Head,
    },
    /// The store is far enough.
    Ready(Head),
    /// The lease lasts for so many seconds from now.
    Kept(u64),
    /// A lease's time, in seconds.
    Time {
        /// Until it ends if nobody keeps it alive.
        remaining_s: u64,
        /// What each sign of life gives it.
        granted_s: u64,
    },
    /// The lock is held.
    Granted(Grant),
    /// The store can be read with this, until [`Ask::SnapshotEnd`].
    Snapshot {
        /// Names it.
        id: SnapshotId,
        /// Its beginning.
        cursor: SnapshotCursor,
    },
    /// Done.
    Done,
    /// Not done.
    Refused(Refused),
}

/// Why not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refused {
    /// The store says so.
    Store(Error),
    /// No leader was found in time. It was not done.
    NoLeader,
    /// Only the leader does that.
    NotLeader,
    /// Time is over. Whether it was done, or will be, is not known.
    Timeout,
    /// Too much waits already. It was not done.
    Busy,
    /// Larger than a command may be.
    TooLarge,
    /// The node stops.
    Stopping,
    /// The asker went away.
    Interrupted,
    /// This node has no part in the control plane.
    Off,
    /// This replica takes no part, because its log is damaged.
    Broken(Damage),
    /// Consensus refuses it.
    Consensus(Reason),
}

/// What members say to each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Consensus.
    Raft(raft::Message),
    /// Commands for the leader of this term. It takes each number of a sender once in its term, in order, and none below `low`.
    Propose {
        /// Only whoever leads in this term takes it.
        term: Term,
        /// The sender no longer waits for anything before this number.
        low: u64,
        /// The sender's last one before it that it still waits for; 0: there is none.
        after: u64,
        /// The sender's number.
        number: u64,
        /// A [`Proposal`].
        proposal: Bytes,
    },
    /// The leader has it in its log. (If it has not, it says nothing, and is asked again.)
    Proposed {
        /// Its term.
        term: Term,
        /// The sender's number.
        number: u64,
    },
    /// Something only the leader knows.
    Call {
        /// The sender's number.
        number: u64,
        /// What.
        call: Call,
    },
    /// The answer. None comes from somebody who does not lead.
    Called {
        /// The sender's number.
        number: u64,
        /// The answer.
        result: Result<CallAnswer, Refused>,
    },
}

impl Message {
    /// About how many bytes of entries and commands are in it.
    pub fn weight(&self) -> usize {
        match self {
            Message::Propose { proposal, .. } => proposal.len(),
            Message::Raft(m) => match &m.body {
                raft::Body::Append { entries, .. } => entries.iter().map(|e| e.size() as usize).sum(),
                raft::Body::Snapshot { data, .. } => data.len(),
                _ => 0,
            },
            _ => 0,
        }
    }
}

/// What a replica says of its control plane when it meets another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster; 0: none yet.
    pub cluster: u64,
    /// How many have a say in it.
    pub voters: u8,
    /// The store's revision.
    pub revision: u64,
}

/// What only the leader knows. May be asked again: that changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Call {
    /// Up to which entry must a store have applied the log, so that a read is linearizable?
    Read,
    /// A sign of life of a lease.
    KeepAlive(LeaseId),
    /// How much time it has left.
    LeaseTime(LeaseId),
    /// A change of the members.
    Change(Step),
}

/// The leader's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CallAnswer {
    /// Up to here.
    ReadAt(Index),
    /// It lasts for so many seconds from now.
    Kept(u64),
    /// So many seconds, of so many.
    Time(u64, u64),
    /// Done.
    Done,
}

/// What one entry of the replicated log holds: commands, and who proposed them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// The node that waits for what they do.
    pub origin: ReplicaId,
    /// Its number for them; never used twice, across its restarts.
    pub number: u64,
    /// They.
    pub entry: Entry,
}
