//! Three kinds of time, kept apart by their types.
//!
//! [`Instant`] drives timers and never goes back; [`Hlc`] orders changes between nodes; [`UnixTime`] is what users see.

use crate::ids::ReplicaId;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The core's logical clock: nanoseconds since an arbitrary origin, passed in with every step, never decreasing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub u64);

impl Span {
    /// `n` milliseconds.
    pub const fn ms(n: u64) -> Span {
        Span(n * 1_000_000)
    }
    /// `n` seconds.
    pub const fn s(n: u64) -> Span {
        Span(n * 1_000_000_000)
    }
}

impl Instant {
    /// `self + span`, saturating at the end of time.
    pub fn after(self, span: Span) -> Instant {
        Instant(self.0.saturating_add(span.0))
    }
    /// The time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// When the node wants to be stepped again, and why: the cause is written into traces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Deadline {
    /// Not later than this.
    pub at: Instant,
    /// What is due then.
    pub why: Wake,
}

/// Causes of a timer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Wake {
    /// A heartbeat is due.
    Heartbeat,
    /// A silent peer may have to be suspected.
    Suspect,
    /// An unreachable address may be dialled again.
    Dial,
    /// Operations that were not acknowledged are sent again.
    Resend,
    /// A request reaches its give-up time.
    GiveUp,
    /// Acknowledgements or log syncs that were held back for company.
    Batch,
    /// A failed disk action or transfer is tried again.
    Retry,
    /// Checkpointing goes on.
    Checkpoint,
    /// No leader was heard, or a leader did not hear from a majority.
    Election,
}

/// Hybrid logical time in nanoseconds since 1970: wall clock where it moves forward, counter where it does not.
/// Kulkarni et al., *Logical Physical Clocks* (2014), in the one-number form: `max(last + 1, wall)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hlc(pub u64);

/// A total order over all operations of a volume: time first, then replica. Unique per operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// When, by the issuing replica's hybrid clock.
    pub time: Hlc,
    /// By whom.
    pub replica: ReplicaId,
}

impl Stamp {
    /// Before every real stamp: "no version", "never".
    pub const ZERO: Stamp = Stamp { time: Hlc(0), replica: ReplicaId(0) };

    /// After every real stamp.
    pub const MAX: Stamp = Stamp { time: Hlc(u64::MAX), replica: ReplicaId(u64::MAX) };

    /// True for [`Stamp::ZERO`].
    pub fn is_zero(&self) -> bool {
        *self == Stamp::ZERO
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}", self.time.0, self.replica)
    }
}
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Time as users see it on files. Seconds may be negative (before 1970).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct UnixTime {
    /// Whole seconds since 1970, rounded down.
    pub sec: i64,
    /// 0..1_000_000_000.
    pub nsec: u32,
}
