//! All that can happen to a small cluster within a few steps: every order of messages, losses, repeats, elections, crashes with
//! loss of what was not synced. After every step the judge looks on.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the environment chooses, and time is measured"
)]

mod raft_support;

use ice_core::bug::Bug;
use ice_core::ids::ReplicaId;
use ice_core::raft::{Body, Bytes, Input, Leave, Membership, Message, Raft, Role, Step};
use ice_core::time::Span;
use raft_support::{World, config, founded, shape};
use serde::Serialize;
use std::collections::BTreeSet;

/// What may happen, and how often.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Budget {
    campaigns: u8,
    proposals: u8,
    crashes: u8,
    repeats: u8,
    reads: u8,
    beats: u8,
    changes: u8,
    checkpoints: u8,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    voters: u64,
    learners: u64,
    /// Writes become durable by a step of their own.
    slow_disks: bool,
    start: Start,
    /// Entries in one message.
    message_entries: usize,
    budget: Budget,
    bug: Option<Bug>,
    states: usize,
}

/// What has happened before.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    /// Nobody leads.
    Cold,
    /// The first leader is in office, and all know of it.
    Settled,
    /// The first has an entry of its own that nobody else has, then the last led for a moment and has one, too, and now the first is
    /// back, in a still later term, with the vote of the second.
    Eight,
    /// The first made the learner a voter, which only that one knows; then the second was elected by the others, wants to remove
    /// one of them, and the first was too late to be elected in the same term.
    Rivals,
    /// The second has been asked to write an entry of the first, which the first lost in a crash. Now the first leads again.
    Overwritten,
}

#[derive(Clone, Debug)]
enum Action {
    Deliver(usize),
    Repeat(usize),
    /// So many writes become durable.
    Sync(ReplicaId, usize),
    Campaign(ReplicaId),
    Propose(ReplicaId),
    Crash(ReplicaId, usize),
    Read(ReplicaId),
    Beat(ReplicaId),
    Change(ReplicaId, u8),
    Checkpoint(ReplicaId),
}

#[derive(Debug)]
struct Outcome {
    states: usize,
    complete: bool,
    /// The fault, and the way to it.
    fault: Option<(String, Vec<String>)>,
}

fn begin(plan: &Plan) -> World {
    let mut w = World::new(1);
    let voters = (1..=plan.voters).map(ReplicaId);
    let learners = (plan.voters + 1..=plan.voters + plan.learners).map(ReplicaId);
    let membership = Membership { learners: learners.clone().collect(), ..Membership::of(voters.clone()) };
    for id in voters.chain(learners) {
        let mut c = config(id);
        // Time stands still, but for the beats of leaders.
        (c.election, c.jitter, c.bug) = (Span::s(1_000_000), Span(0), plan.bug);
        c.message_entries = plan.message_entries;
        w.add(c, founded(membership.clone()));
        w.start(id);
    }
    if plan.start != Start::Cold {
        w.step(ReplicaId(1), Some(Input::Campaign { handover: true }));
        while !w.net.is_empty() {
            w.deliver(0);
        }
    }
    let last = ReplicaId(plan.voters);
    match plan.start {
        Start::Cold | Start::Settled => (),
        Start::Overwritten => {
            let (one, two, three) = (ReplicaId(1), ReplicaId(2), ReplicaId(3));
            w.host_mut(one).auto_sync = false;
            w.host_mut(two).auto_sync = false;
            w.step(one, Some(Input::Propose { request: 0, commands: vec![Bytes::from(vec![9])] }));
            pass_between(&mut w, one, two);
            w.net.clear();
            w.crash(one, 0);
            w.host_mut(one).auto_sync = true;
            w.start(one);
            w.step(one, Some(Input::Campaign { handover: true }));
            pass_between(&mut w, one, two);
            pass_between(&mut w, one, three);
            pass_between(&mut w, three, one);
            w.net.retain(|m| matches!(m.body, Body::Append { .. }));
        }
        Start::Eight => {
            w.step(ReplicaId(1), Some(Input::Propose { request: 0, commands: vec![Bytes::from(vec![9])] }));
            w.net.clear();
            elect(&mut w, last, &[ReplicaId(2)]);
            w.crash(ReplicaId(1), 0);
            w.start(ReplicaId(1));
            // Its first try is in the term of the other.
            w.step(ReplicaId(1), Some(Input::Campaign { handover: true }));
            w.net.clear();
            elect(&mut w, ReplicaId(1), &[ReplicaId(2)]);
            w.step(ReplicaId(1), None);
        }
        Start::Rivals => {
            let new = ReplicaId(plan.voters + 1);
            let steps = vec![Step::Voter(new)];
            w.step(ReplicaId(1), Some(Input::Change { request: 0, steps, leave: Leave::Auto }));
            pass_between(&mut w, ReplicaId(1), new);
            w.net.clear();
            let others: Vec<ReplicaId> = (3..=plan.voters).map(ReplicaId).collect();
            elect(&mut w, ReplicaId(2), &others);
            // The first starts again, tries, too, and comes too late for this term.
            w.crash(ReplicaId(1), 0);
            w.start(ReplicaId(1));
            w.step(ReplicaId(1), Some(Input::Campaign { handover: true }));
            w.net.retain(|m| m.from != ReplicaId(1));
            let steps = vec![Step::Remove(last)];
            w.step(ReplicaId(2), Some(Input::Change { request: 0, steps, leave: Leave::Auto }));
        }
    }
    if plan.slow_disks {
        w.hosts.values_mut().for_each(|h| h.auto_sync = false);
    }
    w
}

/// Delivers what is on its way from `from` to `to`.
fn pass_between(w: &mut World, from: ReplicaId, to: ReplicaId) {
    while let Some(k) = w.net.iter().position(|m| m.from == from && m.to == to) {
        w.deliver(k);
    }
}

/// `who` is elected by `by`. All else is lost.
fn elect(w: &mut World, who: ReplicaId, by: &[ReplicaId]) {
    w.step(who, Some(Input::Campaign { handover: true }));
    for v in by {
        pass_between(w, who, *v);
        pass_between(w, *v, who);
    }
    assert_eq!(w.raft(who).map(Raft::role), Some(Role::Leader));
    w.net.retain(|m| m.from == who && m.term == w.hosts[&who].raft.as_ref().map_or(0, Raft::term));
    w.net.retain(|m| matches!(m.body, Body::Append { .. }));
}

/// A message that would be ignored.
fn is_idle(w: &World, m: &Message) -> bool {
    let Some(r) = w.raft(m.to) else { return true };
    let role = r.role();
    match m.body {
        _ if m.term > r.term() => false,
        // The answer would tell that there is a later term, no more; unless that is forgotten in a crash.
        Body::Vote { .. } | Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
            m.term < w.host(m.to).disk.synced.hard.term
        }
        Body::VoteReply { .. } => m.term < r.term() || role != Role::Candidate,
        Body::Appended { .. } | Body::Conflict { .. } | Body::HeartbeatReply { .. } | Body::SnapshotReply { .. } => {
            m.term < r.term() || role != Role::Leader
        }
        Body::NewerTerm => true,
        _ => false,
    }
}

fn actions(w: &World, b: &Budget, plan: &Plan) -> Vec<Action> {
    let mut all = Vec::new();
    for (k, m) in w.net.iter().enumerate() {
        if w.net[..k].contains(m) {
            continue;
        }
        all.push(Action::Deliver(k));
        if b.repeats > 0 {
            all.push(Action::Repeat(k));
        }
    }
    for h in w.hosts.values() {
        let Some(r) = &h.raft else { continue };
        let id = h.id;
        if !h.disk.unsynced.is_empty() {
            all.push(Action::Sync(id, usize::MAX));
        }
        if plan.start == Start::Overwritten && h.disk.unsynced.len() > 1 {
            all.push(Action::Sync(id, 1));
        }
        let leads = r.role() == Role::Leader;
        // All are alike in the beginning; of the rivals it is the first one's turn.
        let only_first = (plan.start == Start::Cold && w.term() == 1) || plan.start == Start::Rivals;
        if b.campaigns > 0 && !leads && (!only_first || id.0 == 1) && r.membership().1.is_voter(id) {
            all.push(Action::Campaign(id));
        }
        if leads && b.proposals > 0 {
            all.push(Action::Propose(id));
        }
        if leads && b.reads > 0 {
            all.push(Action::Read(id));
        }
        if leads && b.beats > 0 {
            all.push(Action::Beat(id));
        }
        let may_change = r.change_blocked().is_none() || plan.bug == Some(Bug::ChangeTooEarly);
        if leads && b.changes > 0 && may_change {
            all.extend((0..4).map(|k| Action::Change(id, k)));
        }
        if b.crashes > 0 {
            all.push(Action::Crash(id, 0));
            if !h.disk.unsynced.is_empty() {
                all.push(Action::Crash(id, usize::MAX));
            }
        }
        if b.checkpoints > 0 && r.applied() > r.base().index {
            all.push(Action::Checkpoint(id));
        }
    }
    all
}

/// Changes of membership that are worth trying: one voter less, one more, an exchange, and one of all others.
fn steps(r: &Raft, which: u8) -> Vec<Step> {
    let m = r.membership().1;
    let other = m.voters.iter().rev().find(|v| **v != r.me()).copied();
    let learner = m.learners.first().copied();
    match which {
        0 => other.map(Step::Remove).into_iter().collect(),
        1 => learner.map(Step::Voter).into_iter().collect(),
        3 => {
            let others = m.voters.iter().filter(|v| **v != r.me()).map(|v| Step::Remove(*v));
            others.chain(learner.map(Step::Voter)).collect()
        }
        _ => other.map(Step::Learner).into_iter().chain(learner.map(Step::Voter)).collect(),
    }
}

fn act(w: &mut World, b: &mut Budget, a: &Action) {
    match *a {
        Action::Deliver(k) => drop(w.deliver(k)),
        Action::Repeat(k) => {
            b.repeats -= 1;
            let m = w.net[k].clone();
            w.step(m.to, Some(Input::Message(m)));
        }
        Action::Sync(id, n) => w.sync(id, n),
        Action::Campaign(id) => {
            b.campaigns -= 1;
            w.step(id, Some(Input::Campaign { handover: true }));
        }
        Action::Propose(id) => {
            b.proposals -= 1;
            let command = Bytes::from(vec![b.proposals]);
            w.step(id, Some(Input::Propose { request: 0, commands: vec![command] }));
        }
        Action::Crash(id, keep) => {
            b.crashes -= 1;
            w.crash(id, keep);
            w.start(id);
        }
        Action::Read(id) => {
            b.reads -= 1;
            w.read(id);
        }
        Action::Beat(id) => {
            b.beats -= 1;
            let h = w.host_mut(id);
            h.now = h.now.after(h.config.heartbeat);
            w.step(id, None);
        }
        Action::Change(id, which) => {
            b.changes -= 1;
            let steps = steps(w.raft(id).expect("up"), which);
            w.step(id, Some(Input::Change { request: 0, steps, leave: Leave::Auto }));
        }
        Action::Checkpoint(id) => {
            b.checkpoints -= 1;
            w.checkpoint(id);
        }
    }
    let idle: Vec<bool> = w.net.iter().map(|m| is_idle(w, m)).collect();
    let mut idle = idle.into_iter();
    w.net.retain(|_| !idle.next().unwrap_or(false));
}

fn word(w: &World, a: &Action) -> String {
    match a {
        Action::Deliver(k) | Action::Repeat(k) => {
            let m = &w.net[*k];
            let how = if matches!(a, Action::Repeat(_)) { "repeated " } else { "" };
            format!("{how}{} -> {} in term {}: {:?}", m.from, m.to, m.term, m.body)
        }
        other => format!("{other:?}"),
    }
}

fn explore(plan: &Plan) -> Outcome {
    let mut seen = BTreeSet::new();
    let mut states = 0;
    // Depth first, each state with the actions that are still to be tried: the way to a fault is on the stack.
    let first = begin(plan);
    let todo = actions(&first, &plan.budget, plan);
    let mut stack = vec![(first, plan.budget, todo)];
    while let Some((w, b, todo)) = stack.last_mut() {
        let Some(a) = todo.pop() else {
            stack.pop();
            continue;
        };
        let (mut w2, mut b2) = (w.clone(), *b);
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut w2, &mut b2, &a))).is_err();
        if died {
            w2.judge.fault = Some("an assertion".into());
        }
        if let Some(fault) = w2.judge.fault.take() {
            let last = word(w, &a);
            let way = stack.iter().skip(1).map(|(w, ..)| w.note.clone()).chain([last]).collect();
            return Outcome { states, complete: false, fault: Some((fault, way)) };
        }
        if seen.insert(shape(&w2, &b2)) {
            states += 1;
            if states >= plan.states {
                return Outcome { states, complete: false, fault: None };
            }
            w2.note = word(w, &a);
            let todo = actions(&w2, &b2, plan);
            stack.push((w2, b2, todo));
        }
    }
    Outcome { states, complete: true, fault: None }
}

fn plan(voters: u64, learners: u64, budget: Budget) -> Plan {
    let (slow_disks, start, message_entries) = (false, Start::Cold, 1024);
    Plan { voters, learners, slow_disks, start, message_entries, budget, bug: None, states: 100_000 }
}

fn holds(what: &str, plan: &Plan) {
    let begun = std::time::Instant::now();
    let o = explore(plan);
    println!("{what}: {} states, {}, {:?}", o.states, if o.complete { "all" } else { "cut off" }, begun.elapsed());
    if let Some((fault, way)) = o.fault {
        panic!("{what}: {fault}\n  {}", way.join("\n  "));
    }
    assert!(o.complete, "{what}: more than {} states", plan.states);
}

fn settled(voters: u64, learners: u64, budget: Budget) -> Plan {
    Plan { start: Start::Settled, ..plan(voters, learners, budget) }
}

fn slow(plan: Plan) -> Plan {
    Plan { slow_disks: true, ..plan }
}

const NONE: Budget =
    Budget { campaigns: 0, proposals: 0, crashes: 0, repeats: 0, reads: 0, beats: 0, changes: 0, checkpoints: 0 };

#[test]
fn two_elections_of_three() {
    holds("two elections of three", &plan(3, 0, Budget { campaigns: 2, ..NONE }));
}

#[test]
fn three_elections_of_two_a_proposal_and_a_crash() {
    holds("elections of two", &plan(2, 0, Budget { campaigns: 3, proposals: 1, crashes: 1, ..NONE }));
}

#[test]
fn a_proposal_and_an_election() {
    holds("a proposal", &settled(3, 0, Budget { campaigns: 1, proposals: 1, ..NONE }));
}

#[test]
fn a_crash_of_a_slow_disk() {
    holds("a crash before anybody leads", &slow(plan(2, 0, Budget { campaigns: 2, crashes: 1, ..NONE })));
    holds("one of two", &slow(settled(2, 0, Budget { campaigns: 1, proposals: 1, crashes: 1, ..NONE })));
    holds("one of three", &slow(settled(3, 0, Budget { campaigns: 1, crashes: 1, ..NONE })));
}

#[test]
fn a_read_and_an_election() {
    holds("a read", &settled(3, 0, Budget { campaigns: 1, reads: 1, ..NONE }));
}

#[test]
fn a_snapshot_and_lost_or_repeated_messages() {
    let budget = Budget { proposals: 1, checkpoints: 1, beats: 1, ..NONE };
    holds("a repeat", &settled(2, 0, Budget { repeats: 1, ..budget }));
    holds("a crash", &settled(2, 0, Budget { crashes: 1, ..budget }));
    holds("two proposals", &settled(2, 0, Budget { proposals: 2, ..budget }));
    holds("an election", &settled(2, 0, Budget { campaigns: 1, ..budget }));
}

#[test]
fn a_change_of_membership() {
    holds("a change and an election", &settled(2, 1, Budget { changes: 1, campaigns: 1, ..NONE }));
    holds("of three", &settled(3, 0, Budget { changes: 1, campaigns: 1, ..NONE }));
}

#[cfg(feature = "planted-bugs")]
/// The situation of figure 8 in Ongaro and Ousterhout, 2014, with three replicas.
fn eight() -> Plan {
    Plan { start: Start::Eight, message_entries: 1, ..plan(3, 0, Budget { campaigns: 1, ..NONE }) }
}

#[cfg(feature = "planted-bugs")]
/// A change that nobody has heard of, and another one after it.
fn rivals() -> Plan {
    Plan { start: Start::Rivals, ..plan(4, 1, Budget { campaigns: 1, ..NONE }) }
}

#[cfg(feature = "planted-bugs")]
/// Writes in flight for entries that are replaced.
fn overwritten() -> Plan {
    Plan { start: Start::Overwritten, ..plan(3, 0, NONE) }
}

/// Each mistake is found within so many states; without it, the same search finds nothing.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    let hunts = [
        (Bug::VoteTwice, 100, plan(3, 0, Budget { campaigns: 1, ..NONE })),
        (Bug::RaftAckBeforeDurable, 100, slow(settled(2, 0, Budget { proposals: 1, ..NONE }))),
        (Bug::StaleTicket, 1000, slow(overwritten())),
        (Bug::StaleRead, 3000, settled(3, 0, Budget { campaigns: 1, reads: 1, ..NONE })),
        (Bug::VoteForShorter, 100, settled(3, 0, Budget { campaigns: 1, proposals: 1, ..NONE })),
        (Bug::CommitOldTerm, 2000, eight()),
        (Bug::ChangeTooEarly, 1000, rivals()),
        (Bug::SkipJoint, 100, settled(3, 1, Budget { campaigns: 1, changes: 1, ..NONE })),
        (Bug::IgnoreOutgoing, 500, settled(3, 1, Budget { campaigns: 1, changes: 1, ..NONE })),
    ];
    assert!(hunts.iter().map(|(bug, ..)| *bug).eq(raft_support::EXPLORED));
    let mut missed = Vec::new();
    for (bug, states, plan) in hunts {
        let plan = Plan { states, ..plan };
        let sound = explore(&plan);
        assert!(sound.fault.is_none(), "without {bug:?}: {:?}", sound.fault);
        let o = raft_support::quiet(|| explore(&Plan { bug: Some(bug), ..plan }));
        println!("{bug:?}: {} states, {:?}", o.states, o.fault.as_ref().map(|(why, way)| (why, way.len())));
        if o.fault.is_none() {
            missed.push((bug, o.states));
        }
    }
    assert!(missed.is_empty(), "not found within so many states: {missed:?}");
}
