//! Planted bugs: a simulator that finds nothing proves nothing. Each of these must be found within a stated number of seeds.
//! They exist only in builds with the feature `planted-bugs`.

use serde::{Deserialize, Serialize};

/// A mistake that the protocol makes on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Bug {
    /// The log counts as durable without a sync.
    SkipSync,
    /// A peer acknowledges operations that its log does not hold durably.
    AckBeforeDurable,
    /// A peer acknowledges content that it has not got.
    AckBeforeContent,
    /// A gap in a peer's operations is not noticed.
    ApplyOutOfOrder,
    /// A losing version is overwritten without a copy.
    LoseConflictCopy,
    /// A file that is edited while another node deletes it stays deleted.
    DeleteWins,
    /// Lost operations are not sent again.
    NoResend,
    /// An origin is used on after a crash.
    ReuseLife,
    /// A payload is never released.
    MissRelease,
    /// A payload is released twice.
    ReleaseTwice,
    /// A request is answered twice.
    ReplyTwice,
    /// A waiting request outlives its give-up time.
    WaitForever,
    /// The log is cut before the checkpoint is durable.
    CutEarly,
    /// Operations that were never known here and lie below the cut are taken for repeats and dropped.
    TakeStrangersForRepeats,
    /// The log is cut although bytes that wait for their place stand nowhere else.
    CutBytes,
    /// What comes by state is believed to replace every earlier version, also one that the speaker never knew.
    SettleUnknown,
    /// A deletion is forgotten before every member knows of it.
    ForgetTombstone,
    /// The winner of concurrent edits is the one with the later modification time.
    CompareByMtime,
    /// What is known of a member is replaced by what is said of an earlier start of it.
    IgnoreIncarnation,
    /// A move that makes a directory its own ancestor is carried out.
    AllowCycle,
    /// A member that is down counts as one that holds a copy.
    CountDownMember,
    /// After the end of a process others are heard before the scan.
    HearBeforeScan,
    /// The store applies an entry of the log again.
    ApplyTwice,
    /// Compaction takes out what is still to be read.
    CompactLiveVersion,
    /// A lock that is given back is granted to two who wait.
    GrantLockTwice,
    /// Consensus: a vote is not made durable.
    VoteTwice,
    /// Consensus: entries of earlier terms are committed by counting copies.
    CommitOldTerm,
    /// Consensus: a follower acknowledges entries, or a leader counts its own, before they are durable.
    RaftAckBeforeDurable,
    /// Consensus: a leader answers reads without asking whether it still leads.
    StaleRead,
    /// Consensus: a replica that heard from no leader stands for election at once, in a new term.
    SkipPreVote,
    /// Consensus: a configuration among entries that are dropped is forgotten.
    ForgetConfig,
    /// Consensus: a follower does not look whether the entries before those that come are the leader's.
    SkipMatch,
    /// Consensus: entries after a conflicting one are kept.
    KeepConflict,
    /// Consensus: a snapshot that is older than what is committed takes its place.
    OldSnapshot,
    /// Consensus: after a restart, entries that the store contains are applied once more.
    RaftApplyTwice,
    /// Consensus: an acknowledged write counts for the entries that replaced what it wrote.
    StaleTicket,
    /// Consensus: membership is changed by more than one voter at once without a joint configuration.
    SkipJoint,
    /// Consensus: a vote is given to a candidate that lacks entries.
    VoteForShorter,
    /// Consensus: a majority of the new half of a joint configuration is enough.
    IgnoreOutgoing,
    /// Consensus: a leader that hears from no majority goes on.
    SkipCheckQuorum,
    /// Consensus: membership is changed before the leader has committed an entry of its own term.
    ChangeTooEarly,
    /// A watcher that has just caught up misses what was applied meanwhile.
    WatchSkipsEvent,
    /// A follower ends leases.
    ExpireOnFollower,
    /// A leader that returns uses what it knew of leases when it last led.
    LeaseExpiresEarly,
    /// The control plane: a proposal goes to a new leader before it is known that it is not in the log of the one before.
    ProposeAgainEarly,
    /// The control plane: proposals of one node overtake each other.
    OvertakeProposals,
    /// The control plane: a read is answered before the store is far enough.
    ReadEarly,
    /// The control plane: a lock that is granted to nobody is kept.
    KeepWithdrawnLock,
    /// The control plane: a node that starts leaves what it held before as it is.
    SkipEndReplica,
    /// The control plane: what a leader decided is proposed to the next one.
    OutliveOffice,
    /// The control plane: a checkpoint holds no entries that the store has not applied.
    CutWithoutEntries,
    /// The control plane: a snapshot counts as installed before it is durable.
    InstallEarly,
}

impl Bug {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Bug> {
        Bug::ALL.into_iter().chain(Bug::STORE).chain(Bug::CONSENSUS).chain(Bug::CONTROL)
    }

    /// Those that the simulator finds.
    pub const ALL: [Bug; 22] = [
        Bug::SkipSync,
        Bug::AckBeforeDurable,
        Bug::AckBeforeContent,
        Bug::ApplyOutOfOrder,
        Bug::LoseConflictCopy,
        Bug::DeleteWins,
        Bug::NoResend,
        Bug::ReuseLife,
        Bug::MissRelease,
        Bug::ReleaseTwice,
        Bug::ReplyTwice,
        Bug::WaitForever,
        Bug::CutEarly,
        Bug::TakeStrangersForRepeats,
        Bug::CutBytes,
        Bug::SettleUnknown,
        Bug::ForgetTombstone,
        Bug::CompareByMtime,
        Bug::IgnoreIncarnation,
        Bug::AllowCycle,
        Bug::CountDownMember,
        Bug::HearBeforeScan,
    ];

    /// Those of the replicated store, which its own tests find.
    pub const STORE: [Bug; 6] = [
        Bug::ApplyTwice,
        Bug::CompactLiveVersion,
        Bug::GrantLockTwice,
        Bug::WatchSkipsEvent,
        Bug::ExpireOnFollower,
        Bug::LeaseExpiresEarly,
    ];

    /// Those of [`crate::control`], which the simulator finds.
    pub const CONTROL: [Bug; 8] = [
        Bug::ProposeAgainEarly,
        Bug::OvertakeProposals,
        Bug::ReadEarly,
        Bug::KeepWithdrawnLock,
        Bug::SkipEndReplica,
        Bug::OutliveOffice,
        Bug::CutWithoutEntries,
        Bug::InstallEarly,
    ];

    /// Those of [`crate::raft`], which tests of the core itself hunt.
    pub const CONSENSUS: [Bug; 16] = [
        Bug::VoteTwice,
        Bug::CommitOldTerm,
        Bug::RaftAckBeforeDurable,
        Bug::StaleRead,
        Bug::SkipPreVote,
        Bug::ForgetConfig,
        Bug::SkipMatch,
        Bug::KeepConflict,
        Bug::OldSnapshot,
        Bug::RaftApplyTwice,
        Bug::StaleTicket,
        Bug::SkipJoint,
        Bug::VoteForShorter,
        Bug::IgnoreOutgoing,
        Bug::SkipCheckQuorum,
        Bug::ChangeTooEarly,
    ];
}
