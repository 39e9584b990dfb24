//! Frames of a trace: what a node was given, in order, and what it answered. Enough to run it again, bit for bit.
//!
//! A recording begins with [`Frame::Start`] or [`Frame::Key`]. Each step is a [`Frame::Step`], written *before* the step, so that
//! the input that broke a node is the last thing on its tape, and a [`Frame::Answer`], written *before* the outbox is carried out.
//! [`Frame::State`] comes every so often. The container (lengths, checksums, hash chain) belongs to the host.

use crate::action::Outbox;
use crate::config::{Config, Recovered};
use crate::event::Batch;
use crate::rng::Seed;
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The format described here.
pub const FORMAT: u32 = 5;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// How the node began.
    Start(Box<Start>),
    /// What a step is given. Written before the step: it is on the tape also if the step never ends.
    Step {
        /// Its time.
        now: Instant,
        /// All of the step's batch: at most [`crate::limits::EVENTS_PER_STEP_MAX`] events.
        events: Batch,
    },
    /// What the step before answered. Written before the outbox is carried out.
    Answer {
        /// [`outbox_digest`].
        outbox: u128,
    },
    /// The node's state after the last step.
    State {
        /// [`crate::node::Node::digest`].
        digest: u128,
    },
    /// All of the node's state between two steps: a replay may begin here.
    Key(Box<Key>),
}

/// A state from which a replay may begin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Key {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the software: a state is only sure to mean the same to the same version.
    pub software: String,
    /// [`crate::node::Node::keyframe`].
    #[serde(with = "serde_bytes")]
    pub node: Vec<u8>,
    /// [`crate::node::Node::digest`].
    pub digest: u128,
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
