//! Frames of a trace: what a node was given, in order, and what it answered. Enough to run it again, bit for bit.
//!
//! A recorder writes [`Frame::Start`] once, then [`Frame::Step`] for each step *before* its outbox is dispatched, and
//! [`Frame::State`] every so often. The container (lengths, checksums, hash chain) belongs to the host.

use crate::action::Outbox;
use crate::config::{Config, Recovered};
use crate::event::Batch;
use crate::rng::Seed;
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// The format described here.
pub const FORMAT: u32 = 1;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// How the node began.
    Start(Box<Start>),
    /// One step.
    Step {
        /// Its time.
        now: Instant,
        /// What it was given.
        events: Batch,
        /// [`outbox_digest`] of what it answered.
        outbox: u128,
    },
    /// The node's state after the last step.
    State {
        /// [`crate::node::Node::digest`].
        digest: u128,
    },
}

/// How the node began.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the software.
    pub software: String,
    /// First argument of `recover`.
    pub config: Config,
    /// Second argument.
    pub seed: Seed,
    /// Third argument.
    pub disk: Recovered,
    /// The state after `recover`.
    pub digest: u128,
}

/// A stable digest of an outbox.
pub fn outbox_digest(out: &Outbox) -> u128 {
    crate::digest::of(out)
}
