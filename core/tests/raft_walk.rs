//! Larger clusters, with everything that may go wrong, at random: lost, repeated, late messages, crashes that lose what was not
//! synced, slow and failed disks, partitions, changes of membership, snapshots. Then all is mended, and the cluster must come to
//! rest: one leader, one log, everything applied everywhere, nobody disturbed by one that comes back.
//!
//! `RAFT_SEEDS=FROM..TO cargo test -p ice-core --test raft_walk` runs others.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment chooses the seeds")]

mod raft_support;

use ice_core::bug::Bug;
use ice_core::ids::ReplicaId;
use ice_core::raft::{Bytes, Effect, Input, Lane, Leave, Membership, Persisted, Role, Step, autopilot};
use ice_core::rng::{Rng, Seed};
use ice_core::time::{Instant, Span};
use raft_support::{World, config, founded};
use std::collections::BTreeMap;

/// Steps of one walk.
const STEPS: u64 = 1500;

/// How often the interesting things happened.
#[derive(Default, Debug)]
struct Seen {
    leaders: u64,
    committed: u64,
    snapshots: u64,
    joint: u64,
    reads: u64,
    crashes: u64,
    transfers: u64,
}

struct Walk {
    w: World,
    rng: Rng,
    bug: Option<Bug>,
    ids: Vec<ReplicaId>,
    next_id: u64,
    keep_entries: u64,
    message_entries: usize,
    commands: u64,
    seen: Seen,
    /// Whether these faults come up in this run.
    crashes: bool,
    slow_disks: bool,
    changes: bool,
    partitions: bool,
    piloted: bool,
}

fn pick<T: Copy>(rng: &mut Rng, all: &[T]) -> Option<T> {
    if all.is_empty() { None } else { Some(all[rng.below(all.len() as u64) as usize]) }
}

impl Walk {
    fn new(seed: u64, bug: Option<Bug>) -> Walk {
        let mut rng = Rng::new(Seed(seed)).fork(1);
        let mut w = World::new(seed);
        w.piece = 16 << rng.below(5);
        let mut walk = Walk {
            w,
            bug,
            ids: Vec::new(),
            next_id: 1,
            keep_entries: if rng.chance(500) { 0 } else { rng.below(8) },
            message_entries: if rng.chance(500) { 1 + rng.below(2) as usize } else { 1024 },
            commands: 0,
            seen: Seen::default(),
            crashes: rng.chance(700),
            slow_disks: rng.chance(600),
            changes: rng.chance(700),
            partitions: rng.chance(600),
            piloted: rng.chance(300),
            rng,
        };
        let n = 1 + walk.rng.below(5);
        if n == 1 {
            let id = walk.fresh();
            walk.join(id, Persisted::found(id, 7));
        } else {
            let all: Vec<ReplicaId> = (0..n).map(|_| walk.fresh()).collect();
            for id in all.clone() {
                walk.join(id, founded(Membership::of(all.clone())));
            }
        }
        walk
    }

    fn fresh(&mut self) -> ReplicaId {
        let id = ReplicaId(self.next_id);
        self.next_id += 1;
        id
    }

    fn join(&mut self, id: ReplicaId, disk: Persisted) {
        let mut c = config(id);
        c.bug = self.bug;
        c.keep_entries = self.keep_entries;
        c.message_entries = self.message_entries;
        self.w.add(c, disk);
        self.w.host_mut(id).auto_sync = !self.slow_disks;
        self.ids.push(id);
        self.w.start(id);
    }

    fn up(&self) -> Vec<ReplicaId> {
        self.ids.iter().copied().filter(|id| self.w.is_up(*id)).collect()
    }

    fn leaders(&self) -> Vec<ReplicaId> {
        let leads = |id: &ReplicaId| self.w.raft(*id).is_some_and(|r| r.role() == Role::Leader);
        self.ids.iter().copied().filter(leads).collect()
    }

    /// What the nodes were told.
    fn news(&mut self) {
        for h in self.w.hosts.values_mut() {
            for e in h.seen.drain(..) {
                match e {
                    Effect::Role { role: Role::Leader, .. } => self.seen.leaders += 1,
                    Effect::Committed { entries } => self.seen.committed += entries.len() as u64,
                    Effect::SnapshotPiece { .. } => self.seen.snapshots += 1,
                    Effect::Members { membership, .. } if membership.is_joint() => self.seen.joint += 1,
                    Effect::ReadReady { .. } => self.seen.reads += 1,
                    Effect::TransferEnded { done: true, .. } => self.seen.transfers += 1,
                    _ => (),
                }
            }
        }
    }

    fn propose(&mut self, id: ReplicaId) {
        self.commands += 1;
        let request = self.w.request();
        let n = 1 + self.rng.below(3);
        let commands = (0..n).map(|k| Bytes::from(format!("{}.{k}", self.commands).into_bytes())).collect();
        self.w.step(id, Some(Input::Propose { request, commands }));
    }

    fn change(&mut self, id: ReplicaId) {
        let request = self.w.request();
        let Some(r) = self.w.raft(id) else { return };
        if r.membership().1.is_joint() {
            return self.w.step(id, Some(Input::LeaveJoint { request }));
        }
        if self.piloted {
            let now = self.w.now();
            let since = Instant(0);
            let table: BTreeMap<ReplicaId, autopilot::Member> =
                self.ids.iter().map(|i| (*i, autopilot::Member { up: self.w.is_up(*i), since, left: false })).collect();
            let settings = autopilot::Settings { dead_after: Span::ms(1), settle: Span(0), ..Default::default() };
            if let Some(steps) = autopilot::next_of(r, &table, &settings, now) {
                self.w.step(id, Some(Input::Change { request, steps, leave: Leave::Auto }));
            }
            return;
        }
        let n = 1 + self.rng.below(3);
        let mut steps = Vec::new();
        let members = r.membership().1.clone();
        for _ in 0..n {
            let Some(who) = pick(&mut self.rng, &self.ids) else { continue };
            steps.push(match self.rng.below(3) {
                0 if members.voters.len() > 2 => Step::Remove(who),
                1 if members.voters.len() > 2 => Step::Learner(who),
                _ => Step::Voter(who),
            });
        }
        let leave = if self.rng.chance(200) { Leave::Explicit } else { Leave::Auto };
        self.w.step(id, Some(Input::Change { request, steps, leave }));
    }

    fn disturb(&mut self) {
        let up = self.up();
        let any = pick(&mut self.rng, &self.ids).expect("somebody");
        let Some(id) = pick(&mut self.rng, &up) else {
            return self.w.start(any);
        };
        match self.rng.below(12) {
            0 if self.crashes && self.rng.chance(400) => {
                self.seen.crashes += 1;
                let keep = self.rng.below(4) as usize;
                self.w.crash(id, keep);
            }
            1..=3 if !self.w.is_up(any) => self.w.start(any),
            4 if self.slow_disks => {
                let lane = [Lane::Slow, Lane::Failed, Lane::Fine, Lane::Fine][self.rng.below(4) as usize];
                self.w.step(id, Some(Input::Disk(lane)));
            }
            5 => self.w.checkpoint(id),
            6 if self.partitions && any != id => {
                self.w.cut.insert((id, any));
                if self.rng.chance(700) {
                    self.w.cut.insert((any, id));
                }
            }
            7 => self.w.cut.clear(),
            8 => {
                let input = if self.rng.chance(500) { Input::Unreachable(any) } else { Input::Reachable(any) };
                self.w.step(id, Some(input));
            }
            9 => {
                if self.w.host(id).hold_pieces {
                    self.w.release_pieces(id);
                } else if self.rng.chance(300) {
                    self.w.host_mut(id).hold_pieces = true;
                }
            }
            10 => {
                let handover = self.rng.chance(300);
                self.w.step(id, Some(Input::Campaign { handover }));
            }
            11 if self.changes && self.ids.len() < 8 && self.rng.chance(200) => {
                let id = self.fresh();
                self.join(id, Persisted::default());
            }
            _ => (),
        }
    }

    fn work(&mut self) {
        let leaders = self.leaders();
        let up = self.up();
        let Some(id) = pick(&mut self.rng, &leaders).or_else(|| pick(&mut self.rng, &up)) else { return };
        match self.rng.below(10) {
            0..=4 => self.propose(id),
            5 | 6 => drop(self.w.read(id)),
            7 | 8 if self.changes => self.change(id),
            9 if self.rng.chance(300) => {
                let request = self.w.request();
                let to = pick(&mut self.rng, &self.ids);
                self.w.step(id, Some(Input::Transfer { request, to }));
            }
            _ => (),
        }
    }

    fn time(&mut self) {
        let now = self.w.now().after(Span::ms(1 + self.rng.below(150)));
        for id in self.up() {
            // Clocks do not go at the same pace.
            if self.rng.chance(900) {
                let h = self.w.host_mut(id);
                h.now = h.now.max(now);
            }
            let h = self.w.host(id);
            if h.wake.is_some_and(|d| d.at <= h.now) {
                self.w.step(id, None);
            }
        }
    }

    fn one(&mut self) {
        match self.rng.below(100) {
            0..=64 if !self.w.net.is_empty() => {
                // Mostly in order.
                let n = self.w.net.len() as u64;
                let k = if self.rng.chance(600) { self.rng.below(n.min(4)) } else { self.rng.below(n) } as usize;
                match self.rng.below(20) {
                    0 => drop(self.w.net.remove(k)),
                    1 => {
                        let m = self.w.net[k].clone();
                        self.w.net.push(m);
                    }
                    _ => drop(self.w.deliver(k)),
                }
            }
            65..=74 => {
                let up = self.up();
                if let Some(id) = pick(&mut self.rng, &up) {
                    let n = 1 + self.rng.below(3) as usize;
                    if self.w.host(id).lane != Lane::Failed {
                        self.w.sync(id, n);
                    }
                }
            }
            75..=82 => self.time(),
            83..=93 => self.work(),
            _ => self.disturb(),
        }
        // The network does not hold everything.
        if self.w.net.len() > 200 {
            self.w.net.drain(..100);
        }
        self.news();
    }

    /// Time goes on, and everything arrives at once.
    fn pass(&mut self, span: Span) {
        let end = self.w.now().after(span);
        let mut n = 0u64;
        loop {
            while !self.w.net.is_empty() {
                self.w.deliver(0);
                n += 1;
                assert!(n < 100_000, "messages without end");
            }
            let Some((at, id)) = self.w.next_wake().filter(|(at, _)| *at <= end) else { break };
            self.w.set_now(at);
            self.w.step(id, None);
            n += 1;
            assert!(n < 100_000, "timers without end");
        }
        self.w.set_now(end);
        self.news();
    }

    fn describe(&self) -> String {
        let one = |r: &ice_core::raft::Raft| {
            format!("    {:?} durable {} {:?} {} {:?}\n", r, r.durable(), r.broken(), r.membership().1, r.refused())
        };
        self.w.hosts.values().filter_map(|h| h.raft.as_ref()).map(one).collect()
    }

    fn isolate(&mut self, id: ReplicaId) {
        for other in self.ids.clone() {
            self.w.cut.extend([(id, other), (other, id)]);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.w.judge.fault.take().map_or(Ok(()), Err)
    }

    fn mend(&mut self) {
        self.w.cut.clear();
        for id in self.ids.clone() {
            if !self.w.is_up(id) {
                self.w.start(id);
            }
            self.w.host_mut(id).auto_sync = true;
            if self.w.host(id).lane != Lane::Fine {
                self.w.step(id, Some(Input::Disk(Lane::Fine)));
            }
            self.w.sync(id, usize::MAX);
            self.w.release_pieces(id);
            for other in self.ids.clone() {
                self.w.step(id, Some(Input::Reachable(other)));
            }
        }
    }

    /// The leader, and all that is committed applied by all its members.
    fn at_rest(&mut self) -> Result<ReplicaId, String> {
        self.check()?;
        let leader = self.w.leader().ok_or("nobody leads")?;
        let r = self.w.raft(leader).expect("up");
        let (commit, term) = (r.commit(), r.term());
        if r.last().0 != commit {
            return Err(format!("{leader} has {} and committed {commit}", r.last().0));
        }
        for id in r.membership().1.members() {
            let o = self.w.raft(id).ok_or("down")?;
            if o.applied() != commit || o.term() != term || o.last().0 != commit {
                return Err(format!("{id} applied {} of {commit}, log {}, term {}", o.applied(), o.last().0, o.term()));
            }
        }
        Ok(leader)
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        self.mend();
        self.pass(Span::s(20));
        self.check()?;
        let leader = self.w.leader().ok_or("nobody leads after all was mended")?;
        if self.w.raft(leader).is_some_and(|r| r.membership().1.is_joint()) {
            let request = self.w.request();
            self.w.step(leader, Some(Input::LeaveJoint { request }));
            self.pass(Span::s(5));
        }
        self.check()?;
        let leader = self.w.leader().ok_or("nobody leads after a change")?;
        self.propose(leader);
        self.w.read(leader);
        self.pass(Span::s(5));
        let leader = self.at_rest()?;
        // No election in idle running.
        let term = self.w.term();
        self.pass(Span::s(60));
        if self.w.term() != term {
            return Err(format!("an election in idle running: term {term}, then {}", self.w.term()));
        }
        // One is cut off and comes back. Nobody is disturbed.
        let voters: Vec<ReplicaId> = self.w.raft(leader).expect("up").membership().1.voters.iter().copied().collect();
        let others: Vec<ReplicaId> = voters.iter().copied().filter(|v| *v != leader).collect();
        if let Some(one) = pick(&mut self.rng, &others).filter(|_| others.len() > 1) {
            self.isolate(one);
            self.pass(Span::s(6));
            self.w.cut.clear();
            self.pass(Span::s(6));
            if self.w.term() != term {
                return Err(format!("{one} came back and led to an election: term {term}, then {}", self.w.term()));
            }
            self.at_rest()?;
        }
        // A leader without a majority gives up in time, and its requests end.
        if !others.is_empty() {
            self.isolate(leader);
            self.w.read(leader);
            self.pass(Span::ms(1200));
            if self.w.raft(leader).is_some_and(|r| r.role() == Role::Leader) {
                return Err(format!("{leader} still leads without a majority"));
            }
            self.pass(Span::s(5));
            self.w.cut.clear();
            self.pass(Span::s(10));
            self.at_rest()?;
        }
        Ok(())
    }
}

fn walk(seed: u64, bug: Option<Bug>, steps: u64) -> Result<Seen, String> {
    let mut walk = Walk::new(seed, bug);
    for _ in 0..steps {
        walk.one();
        walk.check()?;
    }
    walk.come_to_rest().map_err(|why| format!("{why}\n{}", walk.describe()))?;
    Ok(walk.seen)
}

#[test]
fn at_random() {
    let range = std::env::var("RAFT_SEEDS").unwrap_or_else(|_| "1..120".into());
    let (from, to) = range.split_once("..").expect("FROM..TO");
    let (from, to): (u64, u64) = (from.parse().expect("a number"), to.parse().expect("a number"));
    let mut sum = Seen::default();
    let mut failed = Vec::new();
    for seed in from..to {
        let outcome =
            std::panic::catch_unwind(|| walk(seed, None, STEPS)).unwrap_or_else(|_| Err("an assertion".into()));
        match outcome {
            Ok(s) => {
                sum.leaders += s.leaders;
                sum.committed += s.committed;
                sum.snapshots += s.snapshots;
                sum.joint += s.joint;
                sum.reads += s.reads;
                sum.crashes += s.crashes;
                sum.transfers += s.transfers;
            }
            Err(why) => failed.push(format!("RAFT_SEEDS={seed}..{} {why}", seed + 1)),
        }
    }
    println!("{sum:?}");
    assert!(failed.is_empty(), "{} of {} fail\n{}", failed.len(), to - from, failed.join("\n"));
    let runs = to - from;
    if runs >= 100 {
        // A walk that does not get anywhere proves nothing.
        for (what, n) in [
            ("leaders", sum.leaders / 3),
            ("entries", sum.committed / 30),
            ("snapshots", sum.snapshots * 2),
            ("joint configurations", sum.joint * 2),
            ("reads", sum.reads / 3),
            ("crashes", sum.crashes / 3),
            ("transfers", sum.transfers * 4),
        ] {
            assert!(n >= runs, "few {what} in {runs} runs");
        }
    }
}

/// Each mistake is found within so many seeds, all of which pass without it.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    let hunts = [
        (Bug::RaftAckBeforeDurable, 10),
        (Bug::SkipPreVote, 10),
        (Bug::ForgetConfig, 10),
        (Bug::SkipMatch, 119),
        (Bug::KeepConflict, 10),
        (Bug::OldSnapshot, 119),
        (Bug::RaftApplyTwice, 10),
        (Bug::SkipCheckQuorum, 10),
    ];
    for bug in Bug::CONSENSUS {
        let hunted = hunts.iter().any(|(b, _)| *b == bug) || raft_support::EXPLORED.contains(&bug);
        assert!(hunted, "nobody hunts {bug:?}");
    }
    for (bug, seeds) in hunts {
        let found = raft_support::quiet(|| {
            (1..=seeds).find_map(|seed| match std::panic::catch_unwind(|| walk(seed, Some(bug), STEPS)) {
                Ok(Ok(_)) => None,
                Ok(Err(why)) => Some((seed, why.lines().next().unwrap_or_default().to_string())),
                Err(_) => Some((seed, "an assertion".into())),
            })
        });
        println!("{bug:?}: {found:?}");
        assert!(found.is_some(), "{bug:?} is not found within {seeds} seeds");
    }
}
