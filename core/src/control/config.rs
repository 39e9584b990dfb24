//! Settings of the control plane.

use crate::limits::{KV_QUOTA_BYTES, RAFT_PIECE_MAX_BYTES};
use crate::raft::autopilot;
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// Settings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// A node without a past founds a cluster of one. Otherwise it waits until a cluster takes it in.
    pub found: bool,
    /// The quorum is lost for good: this replica goes on alone, with what it knows, as another cluster. Members of the old one that
    /// come back are refused until they join without their data.
    pub rescue: bool,
    /// Between two signs of life of a leader.
    pub heartbeat: Span,
    /// Without a sign of life for so long, another leader is wanted.
    pub election: Span,
    /// Up to as much longer, by chance.
    pub jitter: Span,
    /// Who gets a vote.
    pub autopilot: autopilot::Settings,
    /// Bytes that the store may take; beyond it writing is refused and the alarm raised. 0: no limit.
    pub quota_bytes: u64,
    /// Entries that are kept for members that lag, though the store no longer needs them; who lacks more gets a snapshot.
    pub keep_entries: u64,
    /// Bytes in one piece of a snapshot, at most [`RAFT_PIECE_MAX_BYTES`].
    pub piece_bytes: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            found: false,
            rescue: false,
            heartbeat: Span::ms(100),
            election: Span::ms(600),
            jitter: Span::ms(600),
            autopilot: autopilot::Settings::default(),
            quota_bytes: KV_QUOTA_BYTES,
            keep_entries: 10_000,
            piece_bytes: RAFT_PIECE_MAX_BYTES,
        }
    }
}
