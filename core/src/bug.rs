//! Planted bugs: a simulator that finds nothing proves nothing. Each of these must be found within a stated number of seeds.
//! They exist only in builds with the feature `planted-bugs`.

use serde::{Deserialize, Serialize};

/// A mistake that the protocol makes on purpose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Bug {
    /// `fsync` is answered without a log sync.
    SkipSync,
    /// A peer acknowledges operations that its log does not hold durably.
    AckBeforeDurable,
    /// A peer acknowledges content that it has not got.
    AckBeforeContent,
    /// Removed entries are forgotten at once.
    ForgetTombstone,
    /// A gap in a peer's operations is not noticed.
    ApplyOutOfOrder,
    /// The version with the later modification time wins, not the one with the later stamp.
    CompareByMtime,
    /// A losing version is overwritten without a copy.
    LoseConflictCopy,
    /// Lost operations are not sent again.
    NoResend,
    /// An origin is used on after a crash.
    ReuseLife,
    /// A payload is never released.
    MissRelease,
    /// A payload is released twice.
    ReleaseTwice,
    /// A move that makes a cycle is not skipped.
    AllowCycle,
    /// An edit that is concurrent with a delete stays deleted.
    DeleteWins,
    /// A request is answered twice.
    ReplyTwice,
    /// A waiting request outlives its give-up time.
    WaitForever,
    /// A member that is down is counted as a copy.
    CountDownMember,
    /// The log is cut before the checkpoint is durable.
    CutEarly,
    /// A new start accepts messages of the peer's older start.
    IgnoreIncarnation,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 18] = [
        Bug::SkipSync,
        Bug::AckBeforeDurable,
        Bug::AckBeforeContent,
        Bug::ForgetTombstone,
        Bug::ApplyOutOfOrder,
        Bug::CompareByMtime,
        Bug::LoseConflictCopy,
        Bug::NoResend,
        Bug::ReuseLife,
        Bug::MissRelease,
        Bug::ReleaseTwice,
        Bug::AllowCycle,
        Bug::DeleteWins,
        Bug::ReplyTwice,
        Bug::WaitForever,
        Bug::CountDownMember,
        Bug::CutEarly,
        Bug::IgnoreIncarnation,
    ];
}
