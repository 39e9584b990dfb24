//! Who waits for how many copies.

use crate::event::Ack;
use crate::ids::OpToken;
use crate::time::{Instant, Span};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// One waiting request.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Waiter {
    /// Everything of ours up to this number.
    pub(crate) seq: u64,
    pub(crate) ack: Ack,
    pub(crate) give_up: Instant,
}

/// What is known of the other members, for counting copies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    /// Up to here it holds our operations and their content durably.
    pub(crate) held: u64,
    /// It is not declared down.
    pub(crate) up: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Syncs {
    waiting: BTreeMap<OpToken, Waiter>,
}

/// Copies needed under `ack`, this node's included, with these other members.
pub(crate) fn needed(ack: Ack, others: &[Copy]) -> usize {
    let members = others.len() + 1;
    match ack {
        Ack::Local => 1,
        Ack::One => 2,
        Ack::Quorum => members / 2 + 1,
        Ack::All => members,
        Ack::Auto if members == 2 => 1 + others.iter().filter(|c| c.up).count(),
        Ack::Auto => members / 2 + 1,
    }
}

impl Syncs {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn add(&mut self, token: OpToken, seq: u64, ack: Ack, now: Instant, timeout: Span) {
        self.waiting.insert(token, Waiter { seq, ack, give_up: now.after(timeout) });
    }

    pub(crate) fn remove(&mut self, token: OpToken) -> bool {
        self.waiting.remove(&token).is_some()
    }

    pub(crate) fn drain(&mut self) -> Vec<OpToken> {
        core::mem::take(&mut self.waiting).into_keys().collect()
    }

    /// The highest number that anybody waits for on other nodes.
    pub(crate) fn waited_remote(&self) -> u64 {
        self.waiting.values().filter(|w| w.ack != Ack::Local).map(|w| w.seq).max().unwrap_or(0)
    }

    /// Those whose policy is met: (token, copies). `down_counts`: with a planted bug.
    pub(crate) fn met(&mut self, durable: u64, others: &[Copy], down_counts: bool) -> Vec<(OpToken, u32)> {
        let mut done = Vec::new();
        self.waiting.retain(|token, w| {
            let remote = others.iter().filter(|c| c.held >= w.seq || (down_counts && !c.up)).count();
            let met = durable >= w.seq && remote + 1 >= needed(w.ack, others);
            if met {
                done.push((*token, (remote + 1) as u32));
            }
            !met
        });
        done
    }

    /// Those whose time is over.
    pub(crate) fn late(&mut self, now: Instant) -> Vec<OpToken> {
        let late: Vec<OpToken> = self.waiting.iter().filter(|(_, w)| w.give_up <= now).map(|(t, _)| *t).collect();
        for t in &late {
            self.waiting.remove(t);
        }
        late
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|w| w.give_up).min()
    }
}
