//! What a node is told at its start.

use crate::bug::Bug;
use crate::event::Ack;
use crate::ids::{Incarnation, ReplicaId};
use crate::op::Op;
use crate::time::{Span, Stamp};
use crate::{action::LogRecord, ids::InodeId};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Settings of the protocol.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Identity of this node's data.
    pub replica: ReplicaId,
    /// Number of this start, durable already.
    pub incarnation: Incarnation,
    /// `node_id`.
    pub name: String,
    /// Addresses told to the others, best first.
    pub urls: Vec<String>,
    /// Addresses told to clients of the control plane.
    pub clients: Vec<String>,
    /// Addresses to dial until a member answers.
    pub join: Vec<String>,
    /// What `fsync` will ask, for the word on degraded service in status.
    pub ack: Ack,
    /// Between two signs of life on a link.
    pub heartbeat: Span,
    /// Silence on a link, in phi (see `member`), that makes a member down; three eighths of it make it suspect. At least 1. With the
    /// mean interval at `heartbeat` one phi is 2.3 of it.
    pub phi_down: u32,
    /// Longest time between two tries to reach a member that is away.
    pub redial: Span,
    /// Failed tries to reach a member whose link broke before it is declared down.
    pub dial_failures: u32,
    /// Operations kept for members that lag behind; beyond it they are caught up by state.
    pub retained_ops: usize,
    /// Log records after which a checkpoint is written.
    pub checkpoint_records: u64,
    /// A checkpoint is written after this in any case, if there is anything to write.
    pub checkpoint_after: Span,
    /// Pages of a checkpoint held in memory before they are committed (at least 1).
    pub checkpoint_pages: usize,
    /// The control plane; `None`: this node has no part in one.
    pub control: Option<crate::control::Config>,
    /// Planted bug, for tests of the tests.
    pub bug: Option<Bug>,
}

impl Config {
    /// A node with the product's defaults.
    pub fn new(replica: ReplicaId, name: &str) -> Config {
        Config {
            replica,
            incarnation: Incarnation(1),
            name: name.into(),
            urls: Vec::new(),
            clients: Vec::new(),
            join: Vec::new(),
            ack: Ack::Auto,
            heartbeat: Span::ms(500),
            phi_down: 8,
            redial: Span::s(5),
            dial_failures: 1,
            retained_ops: crate::limits::RETAINED_OPS_MAX,
            checkpoint_records: 50_000,
            checkpoint_after: Span::s(60),
            checkpoint_pages: 40_000,
            control: None,
            bug: None,
        }
    }

    /// True if `bug` is planted. Always false without the feature `planted-bugs`.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }
}

/// How the last run of this node ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Ending {
    /// In order, or there was none.
    #[default]
    Clean,
    /// The process died; what it had written is still there.
    ProcessCrash,
    /// The machine died: anything that was not synced may be gone.
    MachineCrash,
}

/// What the host found on disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Recovered {
    /// The last committed checkpoint.
    pub pages: Vec<(Box<[u8]>, Box<[u8]>)>,
    /// Log records from the checkpoint's cut on, with their numbers, in order. Their payloads are in the pool.
    pub log: Vec<(u64, LogRecord)>,
    /// What is in the staging area.
    pub staged: Vec<(InodeId, Stamp)>,
    /// How the last run ended.
    pub ending: Ending,
}

impl Recovered {
    /// The operations in the log.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.log.iter().filter_map(|(_, r)| match r {
            LogRecord::Op { op, .. } => Some(op),
            _ => None,
        })
    }
}
