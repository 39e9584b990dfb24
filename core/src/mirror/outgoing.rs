//! What each connected member still has to be sent.

use super::history::History;
use crate::ids::ReplicaId;
use crate::limits::{OPS_IN_FLIGHT_BYTES, OPS_IN_FLIGHT_MAX, OPS_MESSAGE_PAYLOAD_BYTES, OPS_PER_MESSAGE_MAX};
use crate::message::{Held, Mark, Message};
use crate::op::Op;
use crate::time::{Instant, Span};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Operations that a peer does not acknowledge for so long are sent again.
pub(crate) const RESEND_AFTER: Span = Span::ms(1500);
/// Operations that nobody waits for are held back this long at most, so that a burst of them shares a message.
pub(crate) const GATHER: Span = Span(700_000);
/// The same when the last message left less than [`BUSY`] ago: larger messages cost everybody less, and what is made there
/// of a new file's operations is made at once.
pub(crate) const GATHER_BUSY: Span = Span::ms(3);
const BUSY: Span = Span::ms(10);

/// One connected member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    /// Our operations: sent up to here.
    pub(crate) sent: u64,
    /// Acknowledged as durable up to here.
    pub(crate) acked: u64,
    /// Up to here the peer was told that somebody waits.
    urgent: u64,
    /// Sent, not acknowledged: (number, payload bytes).
    flight: u64,
    flight_bytes: u64,
    progress: Instant,
    /// Since when operations are held back for company.
    gathering: Option<Instant>,
    /// When operations left last.
    left: Option<Instant>,
    /// Operations of others that it asked for: origin -> next number.
    relays: BTreeMap<ReplicaId, u64>,
}

impl Outgoing {
    /// The peer knows our operations up to `known`.
    pub(crate) fn new(known: u64, now: Instant) -> Outgoing {
        Outgoing {
            sent: known,
            acked: known,
            urgent: 0,
            flight: 0,
            flight_bytes: 0,
            progress: now,
            gathering: None,
            left: None,
            relays: BTreeMap::new(),
        }
    }

    /// The peer asked for operations. `last`: the number of our last one.
    pub(crate) fn want(&mut self, origin: ReplicaId, from: u64, me: ReplicaId, last: u64) {
        if origin == me {
            // It knows those before, and whatever it was told of those behind did not arrive.
            self.sent = from.saturating_sub(1).min(last);
            self.flight = self.sent.saturating_sub(self.acked);
        } else if self.relays.len() < 256 {
            self.relays.insert(origin, from);
        }
    }

    /// The peer holds this durably.
    pub(crate) fn held(&mut self, held: &Held, me: ReplicaId, now: Instant) {
        let Some(m) = held.log.iter().find(|m| m.origin == me) else { return };
        if m.seq > self.acked {
            self.acked = m.seq;
            self.progress = now;
            self.sent = self.sent.max(m.seq);
            self.flight = self.sent - self.acked;
            if self.flight == 0 {
                self.flight_bytes = 0;
            }
        }
    }

    /// When unacknowledged operations are sent again.
    pub(crate) fn resend_at(&self) -> Option<Instant> {
        (self.acked < self.sent).then(|| self.progress.after(RESEND_AFTER))
    }

    /// When operations that are held back for company are sent.
    pub(crate) fn gathered_at(&self) -> Option<Instant> {
        self.gathering.map(|t| t.after(self.patience(t)))
    }

    /// How long operations that came up at this time are held back.
    fn patience(&self, since: Instant) -> Span {
        let busy = self.left.is_some_and(|t| since.since(t) < BUSY);
        if busy { GATHER_BUSY } else { GATHER }
    }

    /// Gives up waiting for an acknowledgement and starts over behind the last one.
    pub(crate) fn resend(&mut self, now: Instant) {
        self.sent = self.acked;
        self.urgent = self.urgent.min(self.acked);
        self.flight = 0;
        self.flight_bytes = 0;
        self.progress = now;
    }

    /// The next message for this peer, if there is anything to say. `waited`: somebody waits for our operations up to here.
    pub(crate) fn next(&mut self, me: ReplicaId, waited: u64, history: &History, now: Instant) -> Option<Message> {
        self.own(me, waited, history, now).or_else(|| self.relay(history))
    }

    fn own(&mut self, me: ReplicaId, waited: u64, history: &History, now: Instant) -> Option<Message> {
        let (last, _) = history.known(me);
        let gathering = self.gathering.take();
        if self.sent >= last {
            if waited > self.urgent && waited > self.acked {
                self.urgent = waited;
                let after = history.before(me, self.sent + 1);
                return Some(Message::Ops { origin: me, after, ops: Vec::new(), urgent: true });
            }
            return None;
        }
        if self.flight >= OPS_IN_FLIGHT_MAX || self.flight_bytes >= OPS_IN_FLIGHT_BYTES {
            return None;
        }
        let cut = history.cut(me);
        if self.sent < cut.0 {
            // It gets the others by state, and goes on behind them. If this is lost, it asks.
            if self.acked == self.sent {
                self.progress = now;
            }
            self.sent = cut.0;
            return Some(Message::Cut(Mark { origin: me, seq: cut.0, time: cut.1 }));
        }
        let since = gathering.unwrap_or(now);
        let enough = last - self.sent >= OPS_PER_MESSAGE_MAX as u64;
        if !enough && waited <= self.sent && since.after(self.patience(since)) > now {
            self.gathering = Some(since);
            return None;
        }
        let after = history.before(me, self.sent + 1);
        let (ops, bytes) = collect(history, me, self.sent + 1);
        let n = ops.len() as u64;
        if n == 0 {
            return None;
        }
        if self.acked == self.sent {
            self.progress = now;
        }
        self.left = Some(now);
        self.sent += n;
        if self.sent < last {
            // What did not fit goes on in the next message, without waiting again.
            self.gathering = Some(Instant(0));
        }
        self.flight += n;
        self.flight_bytes += bytes;
        let urgent = waited > self.acked && after.0 < waited;
        if urgent {
            self.urgent = self.sent.min(waited);
        }
        Some(Message::Ops { origin: me, after, ops, urgent })
    }

    fn relay(&mut self, history: &History) -> Option<Message> {
        let (origin, from) = self.relays.pop_first()?;
        let cut = history.cut(origin);
        if from <= cut.0 {
            return Some(Message::Cut(Mark { origin, seq: cut.0, time: cut.1 }));
        }
        let after = history.before(origin, from);
        let (ops, _) = collect(history, origin, from);
        let last = ops.last()?.seq;
        if last < history.known(origin).0 {
            self.relays.insert(origin, last + 1);
        }
        Some(Message::Ops { origin, after, ops, urgent: false })
    }
}

/// As many operations as fit into one message, and their payload bytes.
fn collect(history: &History, origin: ReplicaId, from: u64) -> (Vec<Op>, u64) {
    let mut bytes = 0u64;
    let mut ops = Vec::new();
    for op in history.from(origin, from).take(OPS_PER_MESSAGE_MAX) {
        let len = op.payload.map_or(0, |p| u64::from(p.len));
        if !ops.is_empty() && bytes + len > OPS_MESSAGE_PAYLOAD_BYTES {
            break;
        }
        bytes += len;
        ops.push(op.clone());
    }
    (ops, bytes)
}
