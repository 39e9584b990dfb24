//! Locks in random histories, against a table that looks at every byte: nobody holds what conflicts, whoever may be served is
//! served, tokens grow, nobody is passed over for ever, and every deadlock is refused.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment says how much")]

mod kv_support;

use ice_core::bug::Bug;
use ice_core::ids::{InodeId, ReplicaId};
use ice_core::kv::command::{Action, Command};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::files::{File, Kind, Lock};
use ice_core::kv::lock::named::Acquire;
use ice_core::kv::lock::{FileKey, LockAction, LockAnswer, Mode, Owner, Span, WaitId};
use ice_core::kv::{Answer, Effect, Error, Outcome};
use ice_core::rng::{Rng, Seed};
use kv_support::Replica;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that are told apart; the next one stands for all that follow.
const BYTES: u64 = 8;

#[derive(Clone)]
struct Waiting {
    file: u64,
    owner: Owner,
    mode: Mode,
    span: Span,
}

/// Byte by byte: who holds it, how.
#[derive(Default)]
struct Table {
    bytes: BTreeMap<(u64, u64), BTreeMap<Owner, Mode>>,
    waiting: BTreeMap<WaitId, Waiting>,
    token: u64,
}

impl Table {
    fn set(&mut self, file: u64, owner: Owner, span: Span, mode: Option<Mode>) {
        for b in span.first..=span.last.min(BYTES) {
            let at = self.bytes.entry((file, b)).or_default();
            at.remove(&owner);
            if let Some(mode) = mode {
                at.insert(owner, mode);
            }
            let writers = at.values().filter(|m| **m == Mode::Exclusive).count();
            assert!(writers == 0 || at.len() == 1, "byte {b} of {file} is held by {at:?}");
        }
    }

    fn against(&self, w: &Waiting) -> BTreeSet<Owner> {
        let mut out = BTreeSet::new();
        for b in w.span.first..=w.span.last.min(BYTES) {
            for (owner, mode) in self.bytes.get(&(w.file, b)).into_iter().flatten() {
                if *owner != w.owner && (*mode == Mode::Exclusive || w.mode == Mode::Exclusive) {
                    out.insert(*owner);
                }
            }
        }
        out
    }

    fn token(&mut self, token: u64) {
        assert!(token > self.token, "token {token} after {}", self.token);
        self.token = token;
    }

    /// Somebody who waits is in a circle of holders.
    fn deadlocked(&self) -> bool {
        let of = |o: Owner| self.waiting.values().filter(move |w| w.owner == o);
        self.waiting.values().any(|w| {
            let mut seen = self.against(w);
            let mut todo: Vec<Owner> = seen.iter().copied().collect();
            while let Some(o) = todo.pop() {
                if o == w.owner {
                    return true;
                }
                todo.extend(of(o).flat_map(|w| self.against(w)).filter(|n| seen.insert(*n)));
            }
            false
        })
    }
}

fn key(file: u64) -> FileKey {
    FileKey { kind: Kind::Posix, file: File::Inode(InodeId(u128::from(file))) }
}

fn files(seed: u64, bug: Option<Bug>) -> (u64, u64, u64) {
    let mut rng = Rng::new(Seed(seed));
    let mut replica = Replica::default();
    replica.store.plant(bug);
    let mut table = Table::default();
    let (mut granted, mut waited, mut refused) = (0, 0, 0);
    for n in 1..=400u64 {
        let file = rng.below(2);
        let owner = Owner { replica: ReplicaId(1 + rng.below(2)), session: 1 + rng.below(2), id: rng.below(2) };
        let first = rng.below(BYTES);
        let span = Span { first, last: if rng.chance(200) { u64::MAX } else { first + rng.below(BYTES - first) } };
        let id = WaitId { replica: owner.replica, number: n };
        let action = match rng.below(12) {
            0..=6 => {
                let mode = if rng.chance(400) { Mode::Exclusive } else { Mode::Shared };
                let wait = rng.chance(700).then_some(id);
                LockAction::Lock(Lock { file: key(file), owner, mode, span, at_ms: n, wait, detect: true })
            }
            7..=9 => {
                LockAction::Unlock { file: key(file), owner, span: if rng.chance(500) { Span::ALL } else { span } }
            }
            10 => match table.waiting.keys().nth(rng.below(8) as usize) {
                Some(wait) => LockAction::Cancel { wait: *wait },
                None => LockAction::Cancel { wait: id },
            },
            _ if rng.chance(700) => LockAction::EndSession { replica: owner.replica, session: owner.session },
            _ => LockAction::EndReplica { replica: owner.replica },
        };
        let o: Outcome = replica.apply(n, &[Command::node(Action::Lock(action.clone()))]).remove(0);
        // First what the command itself did, then whom it let in.
        match (&action, &o.result) {
            (LockAction::Lock(l), Ok(Answer::Lock(LockAnswer::Granted(g)))) => {
                granted += 1;
                table.token(g.token);
                table.set(file, owner, l.span, Some(l.mode));
            }
            (LockAction::Lock(l), Ok(Answer::Lock(LockAnswer::Waiting))) => {
                waited += 1;
                let w = Waiting { file, owner, mode: l.mode, span: l.span };
                table.waiting.insert(id, w);
            }
            (LockAction::Lock(l), Err(Error::Deadlock)) => {
                refused += 1;
                assert!(l.wait.is_some());
            }
            (LockAction::Lock(l), Err(Error::Locked)) => assert!(l.wait.is_none()),
            (LockAction::Unlock { span, .. }, Ok(_)) => table.set(file, owner, *span, None),
            (LockAction::Cancel { wait }, Ok(Answer::Lock(LockAnswer::Cancelled { found }))) => {
                assert_eq!(table.waiting.remove(wait).is_some(), *found);
            }
            (LockAction::EndSession { replica, session }, Ok(_)) => {
                end(&mut table, |o| o.replica == *replica && o.session == *session);
            }
            (LockAction::EndReplica { replica }, Ok(_)) => end(&mut table, |o| o.replica == *replica),
            other => panic!("{other:?}"),
        }
        for e in &o.effects {
            match e {
                Effect::LockGranted { wait, grant } => {
                    granted += 1;
                    table.token(grant.token);
                    let w = table.waiting.remove(wait).expect("granted to somebody who does not wait");
                    table.set(w.file, w.owner, w.span, Some(w.mode));
                }
                Effect::LockRefused { wait, .. } => assert!(!table.waiting.contains_key(wait)),
                other => panic!("{other:?}"),
            }
        }
        // Whoever has nobody against him but those who wait, too, has somebody before him: the first of all that wait for a
        // file is never in that place.
        for f in 0..2 {
            let first = table.waiting.values().find(|w| w.file == f);
            let all: Vec<&Waiting> = table.waiting.values().filter(|w| w.file == f).collect();
            if let (Some(_), true) = (first, !all.is_empty()) {
                assert!(all.iter().any(|w| !table.against(w).is_empty()), "all wait for nobody on {f}");
            }
        }
        assert!(!table.deadlocked(), "a deadlock was not refused");
        assert_eq!(replica.store.locks().waiting(), table.waiting.len());
        for ((f, b), holders) in &table.bytes {
            let held = replica.store.locks().file(&key(*f)).iter();
            let here: BTreeMap<Owner, Mode> =
                held.filter(|h| h.span.first <= *b && *b <= h.span.last).map(|h| (h.owner, h.mode)).collect();
            assert_eq!(&here, holders, "byte {b} of file {f}");
        }
        if rng.chance(100) {
            replica.checkpoint(3);
        }
        if rng.chance(50) {
            replica.restart();
            replica.store.plant(bug);
        }
    }
    (granted, waited, refused)
}

fn end(table: &mut Table, who: impl Fn(Owner) -> bool) {
    table.waiting.retain(|_, w| !who(w.owner));
    for holders in table.bytes.values_mut() {
        holders.retain(|o, _| !who(*o));
    }
}

/// Named locks: one holder each, served in the order of asking.
fn named(seed: u64, bug: Option<Bug>) -> u64 {
    let mut rng = Rng::new(Seed(seed));
    let mut replica = Replica::default();
    replica.store.plant(bug);
    let mut queues: BTreeMap<u64, Vec<(u64, WaitId)>> = BTreeMap::new();
    let mut token = 0;
    let mut served = 0;
    for n in 1..=300u64 {
        let (name, holder) = (rng.below(2), rng.below(4));
        let id = WaitId { replica: ReplicaId(1), number: n };
        let text = |n: u64| n.to_string().into_bytes();
        let queue = queues.entry(name).or_default();
        let take = rng.chance(600);
        let action = if take {
            LockAction::Acquire(Acquire {
                name: text(name),
                holder: holder.to_string(),
                replica: ReplicaId(1),
                lease: LeaseId(0),
                at_ms: n,
                wait: Some(id),
            })
        } else {
            LockAction::Release { name: text(name).into(), holder: holder.to_string(), token: 0 }
        };
        let o = replica.apply(n, &[Command::node(Action::Lock(action))]).remove(0);
        match o.result {
            Ok(Answer::Lock(LockAnswer::Granted(g))) => {
                if queue.is_empty() {
                    assert!(g.token > token, "an old token");
                    token = g.token;
                    queue.push((holder, id));
                }
                assert_eq!(queue[0].0, holder, "two holders");
            }
            Ok(Answer::Lock(LockAnswer::Waiting)) => queue.push((holder, id)),
            Ok(Answer::Lock(LockAnswer::Released { count: 1 })) => {
                assert_eq!(queue.remove(0).0, holder, "released by somebody else");
            }
            Err(Error::NotLocked) => assert!(!take && queue.first().is_none_or(|q| q.0 != holder)),
            other => panic!("{other:?}"),
        }
        for e in &o.effects {
            let Effect::LockGranted { wait, grant } = e else { panic!("{e:?}") };
            assert_eq!(queue.first().map(|q| q.1), Some(*wait), "not the next one");
            assert!(grant.token > token, "an old token");
            token = grant.token;
            served += 1;
        }
        if rng.chance(100) {
            replica.checkpoint(2);
            replica.restart();
            replica.store.plant(bug);
        }
    }
    served
}

#[test]
fn nobody_holds_what_conflicts() {
    let mut all = (0, 0, 0);
    for seed in 1..=60 {
        let (a, b, c) = files(seed, None);
        all = (all.0 + a, all.1 + b, all.2 + c);
    }
    assert!(all.0 > 3000 && all.1 > 500 && all.2 > 50, "hardly anything was tried: {all:?}");
}

#[test]
fn named_locks_have_one_holder_and_a_fair_queue() {
    let served: u64 = (1..=60).map(|seed| named(seed, None)).sum();
    assert!(served > 1000, "hardly anything was tried: {served}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    const WITHIN: u64 = 5;
    let bug = Some(Bug::GrantLockTwice);
    let by_files = (1..=WITHIN).any(|seed| std::panic::catch_unwind(|| files(seed, bug)).is_err());
    let by_names = (1..=WITHIN).any(|seed| std::panic::catch_unwind(|| named(seed, bug)).is_err());
    assert!(by_files && by_names, "files: {by_files}, names: {by_names}");
}
