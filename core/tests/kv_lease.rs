//! Leases through changes of leaders: nobody who was told that his lease lasts loses it before, and no lease lasts for ever.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment says how much")]

use ice_core::bug::Bug;
use ice_core::kv::command::{Action, Command, Put};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lessor::{KeepAlive, Lessor, NotKept};
use ice_core::kv::{Answer, Store};
use ice_core::rng::{Rng, Seed};
use ice_core::time::{Instant, Span};
use std::collections::BTreeMap;

const NODES: usize = 3;
/// How long a leader may go on without having heard of the next one; the lessor's grace is this and a bit.
const STALE: Span = Span::s(2);
const GRACE: Span = Span::s(3);

#[derive(Default)]
struct Node {
    store: Store,
    lessor: Lessor,
}

/// What a holder was promised, counted from when he asked.
type Beliefs = BTreeMap<LeaseId, Instant>;

struct World {
    now: Instant,
    nodes: Vec<Node>,
    log: Vec<Command>,
    /// How much of the log is committed; a leader that comes makes it all.
    leader: usize,
    since: Instant,
    /// Leaders that do not know yet that they are none, and until when.
    stale: BTreeMap<usize, Instant>,
    beliefs: Beliefs,
    /// Keep-alives that are answered when the log is applied up to there: lease, when asked, for how long.
    answers: Vec<(usize, LeaseId, Instant, u64)>,
    ended: u64,
}

impl World {
    fn new(bug: Option<Bug>) -> World {
        let mut w = World {
            now: Instant(1),
            nodes: (0..NODES).map(|_| Node::default()).collect(),
            log: Vec::new(),
            leader: 0,
            since: Instant(1),
            stale: BTreeMap::new(),
            beliefs: BTreeMap::new(),
            answers: Vec::new(),
            ended: 0,
        };
        w.nodes.iter_mut().for_each(|n| n.lessor.plant(bug));
        w.nodes[0].lessor.promote(GRACE);
        w
    }

    fn propose(&mut self, node: usize, action: Action) -> bool {
        assert!(self.nodes[node].lessor.leads(), "asked of a follower");
        let counts = node == self.leader;
        if counts {
            self.log.push(Command::node(action));
        }
        counts
    }

    fn apply(&mut self, node: usize) {
        loop {
            let at = self.nodes[node].store.applied() as usize;
            let Some(command) = self.log.get(at).cloned() else { break };
            let n = &mut self.nodes[node];
            let outcome = n.store.apply(at as u64 + 1, &command);
            n.lessor.effects(&n.store, &outcome.effects, self.now);
            if node != self.leader {
                continue;
            }
            if let Ok(Answer::Expired(ids)) = &outcome.result {
                for id in ids {
                    self.ended += 1;
                    let until = self.beliefs.remove(id).unwrap_or_default();
                    assert!(until <= self.now, "lease {id:?} ended {:?} too early", until.since(self.now));
                }
            }
            let now = at + 1;
            for (index, id, asked, ttl_s) in std::mem::take(&mut self.answers) {
                if index == now {
                    self.believe(id, asked, ttl_s);
                } else {
                    self.answers.push((index, id, asked, ttl_s));
                }
            }
        }
    }

    fn believe(&mut self, id: LeaseId, asked: Instant, ttl_s: u64) {
        let until = asked.after(Span::s(ttl_s));
        let b = self.beliefs.entry(id).or_default();
        *b = (*b).max(until);
    }

    fn keep_alive(&mut self, node: usize, id: LeaseId) {
        let n = &mut self.nodes[node];
        match n.lessor.keep_alive(&n.store, id, self.now) {
            Ok(KeepAlive::Renewed { ttl_s }) => self.believe(id, self.now, ttl_s),
            Ok(KeepAlive::Propose { action, ttl_s }) => {
                if self.propose(node, action) {
                    self.answers.push((self.log.len(), id, self.now, ttl_s));
                }
            }
            Err(NotKept::NotLeader | NotKept::Gone(_)) => {}
        }
    }

    fn change_leader(&mut self, to: usize, rng: &mut Rng) {
        if to == self.leader {
            return;
        }
        // The old one may go on believing; what it proposes now is never committed.
        let old = self.leader;
        self.stale.insert(old, self.now.after(Span(rng.below(STALE.0))));
        self.answers.clear();
        self.leader = to;
        self.since = self.now;
        if self.stale.remove(&to).is_some() {
            self.nodes[to].lessor.demote();
        }
        self.apply(to);
        self.nodes[to].lessor.promote(GRACE);
    }

    fn step(&mut self, by: Span, rng: &mut Rng, lose: u32) {
        self.now = self.now.after(by);
        let over: Vec<usize> = self.stale.iter().filter(|(_, at)| **at <= self.now).map(|(n, _)| *n).collect();
        for n in over {
            self.stale.remove(&n);
            self.nodes[n].lessor.demote();
        }
        for node in 0..NODES {
            let leads = node == self.leader || self.stale.contains_key(&node);
            let mut out = Vec::new();
            let n = &mut self.nodes[node];
            while n.lessor.pump(&n.store, self.now, &mut out) {}
            assert!(leads || out.is_empty(), "a follower proposes {out:?}");
            for action in out {
                if !rng.chance(lose) {
                    self.propose(node, action);
                }
            }
            if rng.chance(800) || node == self.leader {
                self.apply(node);
            }
        }
    }
}

fn history(seed: u64, bug: Option<Bug>) -> u64 {
    let mut rng = Rng::new(Seed(seed));
    let mut w = World::new(bug);
    let leases = 1 + rng.below(6) as i64;
    for _ in 0..1500 {
        w.step(Span::ms(50 + rng.below(4000)), &mut rng, 100);
        let id = LeaseId(1 + rng.below(leases as u64) as i64);
        match rng.below(10) {
            0 if w.nodes[w.leader].store.lease(id).is_none() => {
                let ttl_s = [5, 30, 400, 900][rng.below(4) as usize];
                let asked = w.now;
                let leader = w.leader;
                w.propose(leader, Action::LeaseGrant { id, ttl_s });
                w.apply(leader);
                w.believe(id, asked, ttl_s);
            }
            1..=6 => {
                // Whoever believes to lead is asked.
                let stale = w.stale.keys().next().copied();
                let node = if rng.chance(300) { stale.unwrap_or(w.leader) } else { w.leader };
                w.keep_alive(node, id);
            }
            7 if rng.chance(150) => {
                let to = rng.below(NODES as u64) as usize;
                w.change_leader(to, &mut rng);
            }
            _ => {}
        }
    }
    // Nobody keeps anything alive any more: all end.
    for _ in 0..1000 {
        w.step(Span::s(2), &mut rng, 100);
    }
    let left: Vec<_> = w.nodes[w.leader].store.leases().map(|(id, _)| id).collect();
    assert!(left.is_empty(), "never ended: {left:?}");
    w.ended
}

#[test]
fn nobody_loses_a_lease_that_he_believes_in() {
    let ended: u64 = (1..=100).map(|seed| history(seed, None)).sum();
    assert!(ended > 500, "hardly anything was tried: {ended}");
}

/// A cluster that changes its leader more often than a lease lasts.
#[test]
fn long_leases_end_although_leaders_change() {
    let mut rng = Rng::new(Seed(1));
    let mut w = World::new(None);
    w.propose(0, Action::LeaseGrant { id: LeaseId(1), ttl_s: 3600 });
    w.apply(0);
    let mut changes = 0;
    while w.nodes[w.leader].store.lease(LeaseId(1)).is_some() {
        for _ in 0..80 {
            w.step(Span::s(5), &mut rng, 0);
        }
        changes += 1;
        let to = (w.leader + 1) % NODES;
        w.change_leader(to, &mut rng);
        assert!(changes < 20, "400 s each, and still not ended");
    }
    assert!(changes >= 9, "ended early");
}

/// What is proposed and lost is proposed again, and portions are bounded.
#[test]
fn ends_come_in_portions() {
    let mut w = World::new(None);
    for n in 1..=10_000 {
        w.propose(0, Action::LeaseGrant { id: LeaseId(n), ttl_s: 10 });
    }
    w.log.push(Command::node(Action::Put(Put { key: b"k".to_vec(), lease: LeaseId(7), ..Put::default() })));
    w.apply(0);
    let mut rng = Rng::new(Seed(1));
    w.change_leader(1, &mut rng);
    let mut out = Vec::new();
    let n = &mut w.nodes[1];
    w.now = w.now.after(Span::s(14));
    let mut calls = 0;
    while n.lessor.pump(&n.store, w.now, &mut out) {
        calls += 1;
        assert!(calls < 100, "no end");
    }
    // The time began when the new leader saw them: none is over.
    assert!(out.is_empty());
    assert!(calls >= 2, "all at once");
    w.now = w.now.after(Span::s(14));
    let mut calls = 0;
    while n.lessor.pump(&n.store, w.now, &mut out) && calls < 100 {
        calls += 1;
    }
    let proposed: usize = out.iter().map(|a| if let Action::LeaseExpire { ids } = a { ids.len() } else { 0 }).sum();
    assert_eq!(proposed, ice_core::limits::LEASE_EXPIRE_IN_FLIGHT_MAX);
    assert!(n.lessor.keep_alive(&n.store, LeaseId(1), w.now).is_err(), "its end is on its way");
    // All of that is lost, but tried again.
    for _ in 0..40 {
        w.step(Span::s(2), &mut rng, 0);
    }
    assert_eq!(w.nodes[1].store.leases().count(), 0);
    assert!(w.nodes[1].store.get(b"k").is_none());
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    const WITHIN: u64 = 20;
    let found = [Bug::ExpireOnFollower, Bug::LeaseExpiresEarly].map(|bug| {
        let shows = |seed: &u64| std::panic::catch_unwind(|| history(*seed, Some(bug))).is_err();
        (bug, (1..=WITHIN).find(shows))
    });
    for (bug, seed) in found {
        assert!(seed.is_some(), "{bug:?} was not found within {WITHIN} histories");
    }
}
