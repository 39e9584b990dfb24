//! Counters of what each peer was sent: operations that give a file content or a name (`PUT`) and those that remove one
//! (`DEL`). An operation succeeds when the peer says that it holds it durably, and fails when it could not be handed over or
//! the connection broke before that.

use ice_core::ids::ReplicaId;
use ice_core::message::{Held, Message};
use ice_core::op::{Op, OpBody};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Peers that are counted; a further one takes the place of the quietest.
const PEERS_MAX: usize = 256;
/// Messages per connection whose acknowledgement is awaited; a further one is added to the newest.
const AWAITED_MAX: usize = 4096;

/// Index in the arrays below.
const PUT: usize = 0;
const DEL: usize = 1;
const NAMES: [&str; 2] = ["PUT", "DEL"];

#[derive(Clone, Copy, Default)]
struct Count {
    requests: u64,
    success: u64,
    fail: u64,
    total: Duration,
    last: Duration,
}

/// The counters of all peers, by base URL.
#[derive(Default)]
pub struct Counters(Mutex<BTreeMap<String, [Count; 2]>>);

impl Counters {
    /// All zero.
    pub fn new() -> Counters {
        Counters::default()
    }

    fn update(&self, peer: &str, change: impl FnOnce(&mut [Count; 2])) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !peers.contains_key(peer) && peers.len() >= PEERS_MAX {
            let quietest = peers.iter().min_by_key(|(_, c)| c[PUT].requests + c[DEL].requests).map(|(k, _)| k.clone());
            if let Some(quietest) = quietest {
                peers.remove(&quietest);
            }
        }
        change(peers.entry(peer.to_owned()).or_default());
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// `{url: {total, ops: {PUT|DEL: {requests, success, fail, avg_ms, last_ms}}}}`.
    pub fn to_json(&self) -> Value {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Map::new();
        for (peer, counts) in peers.iter() {
            let mut ops = Map::new();
            for (name, c) in NAMES.iter().zip(counts).filter(|(_, c)| c.requests > 0) {
                let ended = c.success + c.fail;
                let avg = if ended == 0 { 0.0 } else { c.total.as_secs_f64() * 1e3 / ended as f64 };
                let last = c.last.as_secs_f64() * 1e3;
                ops.insert(
                    (*name).to_owned(),
                    json!({"requests": c.requests, "success": c.success, "fail": c.fail, "avg_ms": avg, "last_ms": last}),
                );
            }
            let total: u64 = counts.iter().map(|c| c.requests).sum();
            all.insert(peer.clone(), json!({"total": total, "ops": ops}));
        }
        Value::Object(all)
    }
}

struct Awaited {
    origin: ReplicaId,
    last: u64,
    since: Instant,
    counts: [u64; 2],
}

/// Follows one connection. Dropping it counts what was not acknowledged as failed.
pub struct Follower<'a> {
    counters: &'a Counters,
    peer: String,
    awaited: VecDeque<Awaited>,
}

impl<'a> Follower<'a> {
    /// For a connection to the peer at this base URL.
    pub fn new(counters: &'a Counters, peer: String) -> Follower<'a> {
        Follower { counters, peer, awaited: VecDeque::new() }
    }

    /// The peer's address became known (of a connection that it opened itself).
    pub fn named(&mut self, peer: &str) {
        if self.peer != peer {
            peer.clone_into(&mut self.peer);
        }
    }

    /// A message is handed to the connection.
    pub fn sent(&mut self, message: &Message, now: Instant) {
        let Message::Ops { origin, ops, .. } = message else { return };
        let counts = count(ops);
        let Some(last) = ops.last().map(|op| op.seq).filter(|_| counts != [0, 0]) else { return };
        self.counters.update(&self.peer, |c| {
            for (c, n) in c.iter_mut().zip(counts) {
                c.requests += n;
            }
        });
        let full = self.awaited.len() >= AWAITED_MAX;
        match self.awaited.back_mut() {
            Some(newest) if full => {
                (newest.origin, newest.last) = (*origin, last);
                for (sum, n) in newest.counts.iter_mut().zip(counts) {
                    *sum += n;
                }
            }
            _ => self.awaited.push_back(Awaited { origin: *origin, last, since: now, counts }),
        }
    }

    /// A message arrived.
    pub fn received(&mut self, message: &Message, now: Instant) {
        let held = match message {
            Message::Held(held) => held,
            Message::Beat(beat) => &beat.held,
            _ => return,
        };
        if self.awaited.is_empty() {
            return;
        }
        let (counters, peer) = (self.counters, &self.peer);
        self.awaited.retain(|a| {
            let done = holds(held, a.origin, a.last);
            if done {
                counters.update(peer, |c| finish(c, a, now, true));
            }
            !done
        });
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        for a in &self.awaited {
            self.counters.update(&self.peer, |c| finish(c, a, now, false));
        }
    }
}

fn holds(held: &Held, origin: ReplicaId, seq: u64) -> bool {
    held.log.iter().any(|mark| mark.origin == origin && mark.seq >= seq)
}

fn finish(counts: &mut [Count; 2], a: &Awaited, now: Instant, success: bool) {
    let took = now.saturating_duration_since(a.since);
    for (c, n) in counts.iter_mut().zip(a.counts).filter(|(_, n)| *n > 0) {
        if success {
            c.success += n;
        } else {
            c.fail += n;
        }
        c.total += took.saturating_mul(n.min(u64::from(u32::MAX)) as u32);
        c.last = took;
    }
}

fn count(ops: &[Op]) -> [u64; 2] {
    let mut counts = [0, 0];
    for op in ops {
        match op.body {
            OpBody::SetContent { .. } | OpBody::Place { .. } => counts[PUT] += 1,
            OpBody::Remove { .. } => counts[DEL] += 1,
            OpBody::SetAttr { .. } => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use ice_core::ids::EntryId;
    use ice_core::message::Mark;
    use ice_core::time::{Hlc, Stamp};

    fn removals(from: u64, to: u64) -> Message {
        let op = |seq| Op {
            origin: ReplicaId(1),
            seq,
            time: Hlc(seq),
            body: OpBody::Remove { entry: EntryId(5), saw: Stamp::ZERO, last: true },
            payload: None,
        };
        Message::Ops {
            origin: ReplicaId(1),
            after: (from - 1, Hlc(0)),
            ops: (from..=to).map(op).collect(),
            urgent: false,
        }
    }

    #[test]
    fn follows_operations_to_their_end() {
        let counters = Counters::new();
        let start = Instant::now();
        let mut link = Follower::new(&counters, "http://b:1".into());
        link.sent(&removals(1, 3), start);
        link.sent(&removals(4, 5), start);
        let held = Held { log: vec![Mark { origin: ReplicaId(1), seq: 4, time: Hlc(4) }], ..Held::default() };
        link.received(&Message::Held(held), start + Duration::from_millis(20));
        let all = counters.to_json();
        assert_eq!(all["http://b:1"]["total"], 5);
        let del = &all["http://b:1"]["ops"]["DEL"];
        assert_eq!((&del["requests"], &del["success"], &del["fail"]), (&json!(5), &json!(3), &json!(0)));
        assert_eq!((&del["avg_ms"], &del["last_ms"]), (&json!(20.0), &json!(20.0)));
        drop(link);
        assert_eq!(counters.to_json()["http://b:1"]["ops"]["DEL"]["fail"], 2);
        counters.reset();
        assert_eq!(counters.to_json(), json!({}));
    }

    #[test]
    fn does_not_grow_without_bound() {
        let counters = Counters::new();
        let mut link = Follower::new(&counters, "http://a:1".into());
        for n in 1..2 * AWAITED_MAX as u64 {
            link.sent(&removals(n, n), Instant::now());
        }
        assert_eq!(link.awaited.len(), AWAITED_MAX);
        link.received(
            &Message::Held(Held {
                log: vec![Mark { origin: ReplicaId(1), seq: u64::MAX, time: Hlc(0) }],
                ..Held::default()
            }),
            Instant::now(),
        );
        let success = counters.to_json()["http://a:1"]["ops"]["DEL"]["success"].as_u64();
        assert_eq!(success, Some(2 * AWAITED_MAX as u64 - 1));
        for n in 0..2 * PEERS_MAX {
            Follower::new(&counters, format!("http://p{n}:1")).sent(&removals(1, 1), Instant::now());
        }
        assert_eq!(counters.to_json().as_object().map(|o| o.len()), Some(PEERS_MAX));
    }
}
