//! No message and no state of the disk makes a replica panic: what cannot be right is refused, and counted or told.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only the core itself must not look around")]

mod raft_support;

use ice_core::ids::ReplicaId;
use ice_core::raft::{
    Base, Body, Bytes, Content, Damage, Effect, Entry, Hard, Input, Membership, Message, Persisted, Raft, Reason,
    Record, Role,
};
use ice_core::rng::{Rng, Seed};
use ice_core::time::{Instant, Span};
use ice_core::wire;
use raft_support::{World, config, founded};

const A: ReplicaId = ReplicaId(1);
const B: ReplicaId = ReplicaId(2);
const C: ReplicaId = ReplicaId(3);

fn three() -> World {
    let mut w = World::new(1);
    for id in [A, B, C] {
        w.add(config(id), founded(Membership::of([A, B, C])));
        w.start(id);
    }
    w.step(A, Some(Input::Campaign { handover: true }));
    while !w.net.is_empty() {
        w.deliver(0);
    }
    w
}

fn recovered(disk: Persisted, store: Base) -> (Raft, Vec<Effect>) {
    let mut r = Raft::recover(config(A), Seed(1), disk, store);
    let mut fx = Vec::new();
    r.tick(Instant(0), &mut fx);
    (r, fx)
}

fn noop(index: u64, term: u64) -> Entry {
    Entry { term, index, content: Content::Noop }
}

fn disk(entries: Vec<Entry>) -> Persisted {
    let hard = Hard { cluster: 7, term: 5, vote: None, commit: 0 };
    Persisted { hard, base: Base::default(), entries }
}

#[test]
fn a_log_that_nobody_can_have_written_makes_a_replica_take_no_part() {
    let config_of_none = Membership { outgoing: [B].into(), ..Membership::default() };
    let cases = [
        (disk(vec![noop(1, 1), noop(3, 1)]), Damage::Gap),
        (disk(vec![noop(2, 1)]), Damage::Gap),
        (disk(vec![noop(1, 2), noop(2, 1)]), Damage::Terms),
        (disk(vec![noop(1, 6)]), Damage::TermForgotten),
        (Persisted { hard: Hard { commit: 9, ..disk(vec![]).hard }, ..disk(vec![noop(1, 1)]) }, Damage::TailLost),
        (disk(vec![Entry { term: 1, index: 1, content: Content::Config(config_of_none) }]), Damage::Unsound),
        (
            Persisted { base: Base { index: 4, term: 1, membership: Membership::of([A]) }, ..disk(vec![noop(5, 2)]) },
            Damage::StoreBehind,
        ),
        (Persisted { hard: Hard { term: u64::MAX, ..Hard::default() }, ..Persisted::default() }, Damage::Terms),
        (Persisted { hard: Hard::default(), ..disk(vec![noop(1, 0)]) }, Damage::LogLost),
    ];
    for (disk, why) in cases {
        let (mut r, fx) = recovered(disk.clone(), Base::default());
        assert_eq!(r.broken(), Some(why), "{disk:?}");
        assert!(fx.contains(&Effect::Broken(why)), "it says so");
        // It says nothing to anybody, and nothing more to its own node.
        let mut fx = Vec::new();
        let m = Message { cluster: 7, from: B, to: A, term: 9, body: Body::Vote { last: (9, 9), handover: true } };
        r.handle(Instant(1), Input::Message(m), &mut fx);
        r.handle(Instant(1), Input::Campaign { handover: true }, &mut fx);
        assert_eq!(r.tick(Instant(Span::s(100).0), &mut fx), None);
        assert_eq!(fx, vec![]);
        assert_eq!(r.refused().broken, 1);
        r.handle(Instant(1), Input::Read { request: 4 }, &mut fx);
        assert_eq!(fx, vec![Effect::Rejected { request: 4, why: Reason::Broken, leader: None }]);
    }
}

#[test]
fn a_store_that_is_ahead_takes_the_place_of_the_log() {
    // A snapshot was installed, and the machine died before the log knew of it.
    let store = Base { index: 9, term: 4, membership: Membership::of([A, B, C]) };
    let (r, fx) = recovered(disk(vec![noop(1, 1), noop(2, 1)]), store.clone());
    assert_eq!((r.broken(), r.last(), r.commit(), r.applied()), (None, (9, 4), 9, 9));
    assert_eq!(r.membership().1, &store.membership);
    let told = fx.iter().find_map(|e| match e {
        Effect::Persist { record, .. } => record.base.clone(),
        _ => None,
    });
    assert_eq!(told, Some(store.clone()), "the log is told");
    // A store that is behind the end of the log leaves it alone.
    let store = Base { index: 1, term: 1, ..store };
    let (r, _) = recovered(disk(vec![noop(1, 1), noop(2, 1)]), store);
    assert_eq!((r.broken(), r.last(), r.applied()), (None, (2, 1), 1));
    // A log without anything below a store that has a past was lost.
    let store = Base { index: 9, term: 4, membership: Membership::of([A]) };
    assert_eq!(recovered(Persisted::default(), store).0.broken(), Some(Damage::LogLost));
}

#[test]
fn records_that_do_not_follow_are_not_taken() {
    let hard = Hard::default();
    let mut p = Persisted::default();
    assert!(p.take(Record { hard, base: None, append: vec![noop(1, 1), noop(2, 1), noop(3, 1)] }));
    assert!(p.take(Record { hard, base: None, append: vec![noop(2, 2)] }));
    assert_eq!(p.last(), (2, 2), "what follows an entry that is replaced is gone");
    let before = p.clone();
    assert!(!p.take(Record { hard, base: None, append: vec![noop(4, 2)] }), "a gap");
    assert_eq!(p, before);
    let base = Base { index: 2, term: 2, membership: Membership::default() };
    assert!(p.take(Record { hard, base: Some(base.clone()), append: vec![noop(3, 2)] }));
    assert_eq!((p.base.clone(), p.entries.len()), (base, 1));
    assert!(!p.take(Record { hard, base: None, append: vec![noop(2, 3)] }), "below the beginning");
}

/// Else, having forgotten the term, it could help a leader of an earlier one into office, which replaces what it acknowledged.
#[test]
fn nothing_is_acknowledged_in_a_term_that_could_be_forgotten() {
    let mut w = three();
    w.host_mut(B).auto_sync = false;
    // Entries that are durable here since long, from the leader of a later term.
    let entries = vec![noop(2, 2)];
    for body in [Body::Append { prev: (1, 1), entries, commit: 2 }, Body::Heartbeat { commit: 2, round: 0 }] {
        w.step(B, Some(Input::Message(Message { cluster: 7, from: C, to: B, term: 5, body })));
    }
    assert_eq!(w.raft(B).map(|r| (r.term(), r.durable())), Some((5, 2)));
    assert_eq!(w.net, vec![], "not a word");
    w.sync(B, usize::MAX);
    let said: Vec<&Body> = w.net.iter().map(|m| &m.body).collect();
    assert_eq!(said, [&Body::HeartbeatReply { round: 0 }, &Body::Appended { matched: 2 }]);
}

#[test]
fn two_clusters_do_not_hear_each_other() {
    let mut w = three();
    let from_elsewhere = |body| Message { cluster: 8, from: B, to: A, term: 50, body };
    for body in [
        Body::Vote { last: (99, 49), handover: true },
        Body::Heartbeat { commit: 99, round: 0 },
        Body::Append { prev: (0, 0), entries: vec![noop(1, 50)], commit: 1 },
    ] {
        w.step(A, Some(Input::Message(from_elsewhere(body))));
    }
    let r = w.raft(A).expect("up");
    assert_eq!((r.role(), r.term(), r.refused().foreign), (Role::Leader, 2, 3));
}

#[test]
fn a_second_leader_of_a_term_and_entries_against_what_is_committed_are_refused() {
    let mut w = three();
    let m = |to, body| Message { cluster: 7, from: C, to, term: 2, body };
    w.step(A, Some(Input::Message(m(A, Body::Heartbeat { commit: 2, round: 0 }))));
    w.step(B, Some(Input::Message(m(B, Body::Append { prev: (0, 0), entries: vec![noop(1, 2)], commit: 0 }))));
    assert_eq!(w.raft(A).expect("up").refused().second_leader, 1);
    assert_eq!(w.raft(B).expect("up").refused().second_leader, 1);
    // In a term of its own, but with another past.
    let entries = vec![noop(1, 3), noop(2, 3), noop(3, 3)];
    let body = Body::Append { prev: (0, 0), entries, commit: 3 };
    w.step(B, Some(Input::Message(Message { cluster: 7, from: C, to: B, term: 3, body })));
    let r = w.raft(B).expect("up");
    assert_eq!((r.refused().against_committed, r.last(), r.commit()), (1, (2, 2), 2));
}

fn number(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..=4 => rng.below(9),
        5 => u64::MAX - rng.below(3),
        6 => (1 << 60) - 1 + rng.below(3),
        _ => rng.next_u64(),
    }
}

fn some_membership(rng: &mut Rng) -> Membership {
    let mut ids = || (0..rng.below(4)).map(|_| ReplicaId(rng.below(5))).collect();
    Membership { voters: ids(), outgoing: ids(), learners: ids(), learners_next: ids(), auto_leave: rng.chance(500) }
}

fn some_base(rng: &mut Rng) -> Base {
    Base { index: number(rng), term: number(rng), membership: some_membership(rng) }
}

fn some_entries(rng: &mut Rng, first: u64) -> Vec<Entry> {
    let mut index = first;
    let mut term = rng.below(6);
    (0..rng.below(5))
        .map(|_| {
            index = if rng.chance(900) { index.wrapping_add(1) } else { number(rng) };
            term = if rng.chance(900) { term.wrapping_add(rng.below(2)) } else { number(rng) };
            let content = match rng.below(4) {
                0 => Content::Config(some_membership(rng)),
                1 => Content::Noop,
                _ => Content::Command(Bytes::from(vec![7; rng.below(40) as usize])),
            };
            Entry { term, index, content }
        })
        .collect()
}

fn some_message(rng: &mut Rng, to: ReplicaId) -> Message {
    let pair = |rng: &mut Rng| (number(rng), number(rng));
    let body = match rng.below(14) {
        0 => Body::PreVote { last: pair(rng) },
        1 => Body::PreVoteReply { asked: number(rng), granted: rng.chance(500) },
        2 => Body::Vote { last: pair(rng), handover: rng.chance(500) },
        3 => Body::VoteReply { granted: rng.chance(500) },
        4..=6 => {
            let prev = pair(rng);
            Body::Append { prev, entries: some_entries(rng, prev.0), commit: number(rng) }
        }
        7 => Body::Appended { matched: number(rng) },
        8 => Body::Conflict { prev: number(rng), hint: pair(rng) },
        9 => Body::Heartbeat { commit: number(rng), round: number(rng) },
        10 => Body::HeartbeatReply { round: number(rng) },
        11 => Body::Snapshot {
            transfer: number(rng),
            base: some_base(rng),
            piece: number(rng) as u32,
            data: Bytes::from(vec![1; rng.below(9) as usize]),
            last: rng.chance(500),
        },
        12 => Body::SnapshotReply { transfer: number(rng), next: rng.chance(700).then(|| number(rng) as u32) },
        _ => [Body::TimeoutNow, Body::NewerTerm][rng.below(2) as usize].clone(),
    };
    let cluster = if rng.chance(950) { 7 } else { number(rng) };
    Message { cluster, from: ReplicaId(rng.below(5)), to, term: number(rng), body }
}

/// Nothing is judged here: the sender lies.
#[test]
fn any_message_in_any_state() {
    for seed in 0..400 {
        let mut rng = Rng::new(Seed(seed));
        let mut r = Raft::recover(config(A), Seed(seed), founded(Membership::of([A, B, C])), Base::default());
        let mut now = 0;
        for _ in 0..300 {
            now += rng.below(Span::ms(300).0);
            let input = match rng.below(20) {
                0 => Input::Propose { request: 1, commands: vec![Bytes::from(vec![1])] },
                1 => Input::Read { request: 2 },
                2 => Input::Persisted { ticket: number(&mut rng) },
                3 => Input::Campaign { handover: rng.chance(500) },
                4 => Input::Unreachable(ReplicaId(rng.below(5))),
                5 => Input::PieceTaken { ticket: number(&mut rng) },
                6 => Input::SnapshotFailed { transfer: number(&mut rng) },
                7 => Input::SnapshotRefused { ticket: number(&mut rng) },
                _ => Input::Message(some_message(&mut rng, A)),
            };
            let mut fx = Vec::new();
            // Through the codec, as it would come.
            let input: Input = wire::decode(&wire::encode(&input)).expect("it is an input");
            r.handle(Instant(now), input, &mut fx);
            r.tick(Instant(now), &mut fx);
            // Answer what is asked, so that it gets on.
            let mut more = Vec::new();
            for e in fx {
                match e {
                    Effect::Persist { ticket, .. } => more.push(Input::Persisted { ticket }),
                    Effect::Committed { entries } => {
                        more.extend(entries.last().map(|e| Input::Applied { index: e.index }));
                    }
                    Effect::SnapshotPiece { ticket, last: true, .. } => {
                        more.push(Input::SnapshotInstalled { ticket });
                    }
                    Effect::SnapshotPiece { ticket, .. } => more.push(Input::PieceTaken { ticket }),
                    _ => (),
                }
            }
            let mut fx = Vec::new();
            for i in more {
                r.handle(Instant(now), i, &mut fx);
            }
        }
        // The whole of it can be kept and taken up again.
        let copy: Raft = wire::decode(&wire::encode(&r)).expect("it is a machine");
        assert_eq!(copy.digest(), r.digest());
    }
}

#[test]
fn any_disk() {
    for seed in 0..3000 {
        let mut rng = Rng::new(Seed(seed));
        let base = if rng.chance(500) { Base::default() } else { some_base(&mut rng) };
        let hard = Hard {
            cluster: rng.below(2) * 7,
            term: number(&mut rng),
            vote: rng.chance(500).then_some(B),
            commit: number(&mut rng),
        };
        let entries = some_entries(&mut rng, base.index);
        let store = if rng.chance(500) { base.clone() } else { some_base(&mut rng) };
        let mut r = Raft::recover(config(A), Seed(seed), Persisted { hard, base, entries }, store);
        for k in 0..20 {
            let mut fx = Vec::new();
            r.handle(Instant(k * Span::ms(500).0), Input::Message(some_message(&mut rng, A)), &mut fx);
            r.tick(Instant(k * Span::ms(500).0), &mut fx);
        }
    }
}

#[test]
fn the_same_inputs_have_the_same_effects() {
    let run = || {
        let mut w = three();
        for k in 0..50u8 {
            let at = w.now().after(Span::ms(100));
            w.set_now(at);
            w.step(A, Some(Input::Propose { request: 0, commands: vec![Bytes::from(vec![k])] }));
            while !w.net.is_empty() {
                w.deliver(0);
            }
        }
        [A, B, C].map(|id| w.raft(id).expect("up").digest())
    };
    assert_eq!(run(), run());
}
