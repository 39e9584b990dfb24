//! What a node says about itself, for the API, the UI and judges.

use crate::ids::{Incarnation, ReplicaId};
use crate::message::Frontier;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One other member, as this node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Identity of its data.
    pub replica: ReplicaId,
    /// Its start.
    pub incarnation: Incarnation,
    /// Its `node_id`.
    pub name: String,
    /// Its addresses.
    pub urls: Vec<String>,
    /// Its condition.
    pub state: PeerState,
    /// In words, why it is not up.
    pub why: String,
    /// Our operations that it has not acknowledged as durable.
    pub lag_ops: u64,
    /// Bytes of content of ours that it does not hold durably, as far as they were counted.
    pub lag_bytes: u64,
    /// Its clock minus ours, in nanoseconds, half the round trip taken off; `None` if not measured.
    pub clock_skew_ns: Option<i64>,
    /// It left for good.
    pub left: bool,
}

/// Condition of a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Not heard of since this node started.
    Unknown,
    /// Connected.
    Up,
    /// Silent, but not yet declared down.
    Suspect,
    /// Declared down.
    Down,
}

/// The node's own view of everything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Identity of this node's data.
    pub replica: ReplicaId,
    /// This start.
    pub incarnation: Incarnation,
    /// `node_id`.
    pub name: String,
    /// Told to the others.
    pub urls: Vec<String>,
    /// The other members, by name.
    pub peers: Vec<PeerStatus>,
    /// Operations known.
    pub known: Frontier,
    /// Operations in the durable log.
    pub durable: Frontier,
    /// Inodes in the tree.
    pub inodes: u64,
    /// Changes that are known but do not stand in `backing` yet.
    pub pending: u64,
    /// Addresses of a cluster were named, and none of its members was met yet.
    pub joining: bool,
    /// Operations that a connected member has and this node has not.
    pub missing_ops: u64,
    /// Bytes of content that must still be fetched, as far as known.
    pub pending_bytes: u64,
    /// Conflict copies that were kept and still exist.
    pub conflicts: u64,
    /// Every reason for which the service is not complete, in words. Empty: all is well.
    pub reasons: Vec<String>,
    /// What is still on its way, in words: why the node is not in sync although all is well. Empty: nothing waits.
    pub waits: Vec<String>,
    /// All members are up, have all that this node has, bytes included, and it has all that they have.
    pub in_sync: bool,
}
