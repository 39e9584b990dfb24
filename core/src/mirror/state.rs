//! Catching up by state, when the operations that are missing were cut.
//!
//! The inode space is cut into 64 buckets, each into 64 again; every bucket has a set hash of the records in it. The node
//! that lags sends its 64 digests; the other answers with the digests of the 64 parts of each bucket that differs; the
//! node asks for the parts that differ, and merges the records it gets. So a round costs what differs.
//!
//! What the other knew when it answered first is a lower bound of what the node knows afterwards: that frontier is
//! adopted at the end, and made durable by a checkpoint before it is acknowledged to anybody.

use crate::ids::{InodeId, ReplicaId};
use crate::message::Frontier;
use crate::time::{Instant, Span};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

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
    /// The bucket that is under way, and the records seen of it so far.
    pub(crate) open: Option<(u32, Vec<InodeId>)>,
    pub(crate) progress: Instant,
}

impl Round {
    pub(crate) fn new(number: u64, from: ReplicaId, now: Instant) -> Round {
        Round { number, from, context: None, todo: Vec::new(), open: None, progress: now }
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
