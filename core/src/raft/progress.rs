//! What a leader knows of one follower.

use super::entry::{Base, Bytes, Index};
use crate::limits::{RAFT_FLIGHT_MAX_BYTES, RAFT_FLIGHT_MAX_MESSAGES};
use crate::time::Instant;
use alloc::collections::VecDeque;
use serde::{Deserialize, Serialize};

/// How entries are sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// Where its log agrees with ours is not known: one message at a time.
    Probe {
        /// It is under way.
        sent: bool,
    },
    /// It is known: messages follow each other without waiting, as many as the window has room for.
    Replicate,
    /// It needs what the log no longer has.
    Snapshot(Sending),
}

/// A snapshot on its way out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Sending {
    /// 0: waits for its turn.
    pub(crate) transfer: u64,
    /// What it stands for; known with the first piece.
    pub(crate) base: Option<Base>,
    /// The piece that is under way or asked for.
    pub(crate) piece: u32,
    /// It, until the follower has it: the bytes, and where the next one begins.
    pub(crate) held: Option<(Bytes, Option<Bytes>)>,
    /// When it was sent, or the transfer failed.
    pub(crate) at: Instant,
}

/// What a leader knows of one follower.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// It holds our log up to here, durably.
    pub(crate) matched: Index,
    /// The next entry to send.
    pub(crate) next: Index,
    pub(crate) mode: Mode,
    /// When it last answered in this term.
    pub(crate) heard: Instant,
    /// Messages may get there.
    pub(crate) reachable: bool,
    /// The latest round of "do you still follow me" that it answered.
    pub(crate) round: u64,
    /// The latest commit index that it was told.
    pub(crate) told: Index,
    flight: VecDeque<(Index, u64)>,
    flight_bytes: u64,
}

impl Progress {
    pub(crate) fn new(next: Index, now: Instant) -> Progress {
        Progress {
            matched: 0,
            next,
            mode: Mode::Probe { sent: false },
            heard: now,
            reachable: true,
            round: 0,
            told: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
        }
    }

    pub(crate) fn window_full(&self) -> bool {
        self.flight.len() >= RAFT_FLIGHT_MAX_MESSAGES || self.flight_bytes >= RAFT_FLIGHT_MAX_BYTES
    }

    /// Entries up to `last` left, in one message.
    pub(crate) fn sent(&mut self, last: Index, bytes: u64) {
        self.next = last + 1;
        self.flight.push_back((last, bytes));
        self.flight_bytes += bytes;
    }

    pub(crate) fn probe(&mut self) {
        self.mode = Mode::Probe { sent: false };
        self.next = self.matched + 1;
        self.land_all();
    }

    fn land_all(&mut self) {
        self.flight.clear();
        self.flight_bytes = 0;
    }

    /// The oldest message counts as lost: there is room for one more.
    pub(crate) fn free_one(&mut self) {
        if let Some((_, b)) = self.flight.pop_front() {
            self.flight_bytes -= b;
        }
    }

    /// It holds everything up to `matched`. True if that is news.
    pub(crate) fn holds(&mut self, matched: Index) -> bool {
        while self.flight.front().is_some_and(|(last, _)| *last <= matched) {
            self.free_one();
        }
        self.next = self.next.max(matched + 1);
        let news = matched > self.matched;
        self.matched = self.matched.max(matched);
        news
    }

    pub(crate) fn replicate(&mut self) {
        self.mode = Mode::Replicate;
        self.next = self.matched + 1;
        self.land_all();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flight.len()
    }
}
