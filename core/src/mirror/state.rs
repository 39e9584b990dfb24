//! Catching up by state, when the operations that are missing were cut.
//!
//! The inode space is cut into 64 buckets, each into 64 again; every bucket has a set hash of the records in it. The node
//! that lags sends its 64 digests; the other answers with the digests of the 64 parts of each bucket that differs; the
//! node asks for the parts that differ, and merges the records it gets. So a round costs what differs.
//!
//! All of it goes through the log. Its disk sets the pace: what is asked for at once is bounded, and the next buckets are asked
//! for when those before are durable, or are little. Pages of one bucket say where they begin: if one is lost, the rest does
//! not count as seen, and the round begins anew.
//!
//! What the other knew when it answered first is a lower bound of what the node knows afterwards: that frontier is
//! adopted at the end, and made durable by a checkpoint before it is acknowledged to anybody.

use crate::ids::{InodeId, ReplicaId};
use crate::limits::STATE_IN_FLIGHT_BYTES;
use crate::message::Frontier;
use crate::time::{Instant, Span};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Buckets asked for at once, at most.
pub(crate) const BUCKETS_PER_WANT: usize = 64;
/// A round that makes no progress for so long is given up and begun anew.
const STALL: Span = Span::s(5);

/// A round that this node drives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) from: ReplicaId,
    pub(crate) context: Option<Frontier>,
    /// Buckets of level 2 still to be asked for.
    pub(crate) todo: Vec<u32>,
    /// How many of them, from the end, were asked for and have not come.
    pub(crate) asked: usize,
    /// The bucket that is under way, and the records seen of it so far.
    pub(crate) open: Option<(u32, Vec<InodeId>)>,
    /// Bytes of records, about, that came since all of them were durable here, and the last log record about them.
    pub(crate) unsynced: (usize, u64),
    /// Bytes that came in all, and in how many buckets.
    pub(crate) came: (u64, u64),
    /// Nothing more is asked for before what came is durable.
    pub(crate) waits: bool,
    pub(crate) progress: Instant,
}

impl Round {
    pub(crate) fn new(number: u64, from: ReplicaId, now: Instant) -> Round {
        Round {
            number,
            from,
            context: None,
            todo: Vec::new(),
            asked: 0,
            open: None,
            unsynced: (0, 0),
            came: (0, 0),
            waits: false,
            progress: now,
        }
    }

    /// How many buckets to ask for at once, by what came in those before.
    pub(crate) fn next_want(&self) -> usize {
        let (bytes, buckets) = self.came;
        let each = bytes.checked_div(buckets).map_or(STATE_IN_FLIGHT_BYTES as u64, |each| each.max(1));
        (STATE_IN_FLIGHT_BYTES as u64 / each).clamp(1, BUCKETS_PER_WANT as u64) as usize
    }

    pub(crate) fn stalls_at(&self) -> Instant {
        self.progress.after(STALL)
    }
}

/// A bucket that this node is sending to somebody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) to: ReplicaId,
    pub(crate) round: u64,
    pub(crate) level: u8,
    pub(crate) buckets: Vec<u32>,
    pub(crate) after: Option<InodeId>,
}
