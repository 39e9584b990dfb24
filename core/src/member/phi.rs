//! Accrual failure detection: Hayashibara et al., *The φ accrual failure detector* (2004), with an exponential
//! distribution of arrival intervals (as Cassandra does), in integers.
//!
//! `phi = elapsed / (mean * ln 10)`: the number of nines of confidence that the peer is gone.

use crate::time::{Instant, Span};
use serde::{Deserialize, Serialize};

/// Intervals that the mean is taken over.
const WINDOW: u64 = 32;

/// What is known about the arrival of a peer's signs of life.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Phi {
    last: Instant,
    /// Moving average of the interval, in nanoseconds. Never below `floor`.
    mean: u64,
    floor: u64,
}

impl Phi {
    /// `expected` is the interval at which the peer promised to speak.
    pub(crate) fn new(now: Instant, expected: Span) -> Phi {
        Phi { last: now, mean: expected.0.max(1), floor: expected.0.max(1) }
    }

    /// A sign of life.
    pub(crate) fn heard(&mut self, now: Instant) {
        // One long silence must not blind the detector for the next minutes.
        let interval = now.since(self.last).0.min(self.floor.saturating_mul(8));
        self.mean = (self.mean.saturating_mul(WINDOW - 1).saturating_add(interval) / WINDOW).max(self.floor);
        self.last = now;
    }

    /// When phi reaches `level / parts` if nothing is heard until then.
    pub(crate) fn reaches(&self, level: u64, parts: u64) -> Instant {
        // ln 10 = 2.3026
        self.last.after(Span(self.mean.saturating_mul(level).saturating_mul(23026) / (10_000 * parts)))
    }

    /// Last sign of life.
    pub(crate) fn last(&self) -> Instant {
        self.last
    }
}
