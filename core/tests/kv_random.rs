//! The store against a naive model, in random histories: answers, ranges of the past, watches; with sweeps, checkpoints,
//! restarts and snapshots at random moments, which nobody may notice. `KV_SEEDS` sets the number of histories.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment says how much")]

mod kv_support;

use ice_core::bug::Bug;
use ice_core::kv::command::{Command, Entry};
use ice_core::kv::keys::KeyRange;
use ice_core::kv::watch::{Hub, Message, StreamId, Told, WatchId, WatchSpec};
use ice_core::rng::{Rng, Seed};
use ice_core::time::Instant;
use kv_support::Replica;
use kv_support::model::{Draw, Model};
use std::collections::BTreeMap;

fn seeds() -> u64 {
    std::env::var("KV_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(60)
}

/// What a watcher was told, for comparison.
struct Seen {
    spec: WatchSpec,
    from: u64,
    events: Vec<(u64, Vec<u8>, bool, Vec<u8>)>,
    untaken: usize,
    cancelled: Option<u64>,
}

#[derive(Default)]
struct Watchers {
    hub: Hub,
    seen: BTreeMap<WatchId, Seen>,
    numbers: BTreeMap<StreamId, u64>,
    at: u64,
}

impl Watchers {
    fn create(&mut self, draw: &mut Draw<'_>, replica: &Replica) {
        let (key, end) = draw.keys();
        let spec = WatchSpec {
            key,
            end,
            start: if draw.below(2) == 0 { 0 } else { draw.below(replica.store.revision() + 3) },
            no_put: draw.below(6) == 0,
            no_delete: draw.below(6) == 0,
            prev_kv: draw.below(2) == 0,
            progress: draw.below(4) == 0,
            fragment: draw.below(2) == 0,
        };
        let from = if spec.start == 0 { replica.store.revision() + 1 } else { spec.start };
        let stream = StreamId(draw.below(3));
        let mut out = Vec::new();
        if let Ok(who) = self.hub.create(&replica.store, Instant(self.at), stream, None, spec.clone(), &mut out) {
            self.seen.insert(who, Seen { spec, from, events: Vec::new(), untaken: 0, cancelled: None });
        }
        self.hear(out, replica, &Model::default());
    }

    fn hear(&mut self, messages: Vec<Message>, replica: &Replica, model: &Model) {
        for m in messages {
            let number = self.numbers.entry(m.stream).or_default();
            *number += 1;
            assert_eq!(m.number, *number, "messages out of order");
            match m.told {
                Told::Created { .. } => {}
                Told::Progress { id, revision } => {
                    assert!(revision <= replica.store.revision());
                    // Nothing may be missing up to there.
                    for (who, seen) in &self.seen {
                        if who.stream == m.stream && id.is_none_or(|id| id == who.id) && seen.cancelled.is_none() {
                            assert_eq!(seen.events, expected(model, seen, revision), "progress without events");
                        }
                    }
                }
                Told::Cancelled { id, compacted, .. } => {
                    let seen = self.seen.get_mut(&WatchId { stream: m.stream, id }).expect("known");
                    assert!(compacted.is_some(), "nobody asked for it");
                    seen.cancelled = compacted;
                }
                Told::Events { id, events, bytes, .. } => {
                    let seen = self.seen.get_mut(&WatchId { stream: m.stream, id }).expect("known");
                    assert!(seen.cancelled.is_none(), "told after it was cancelled");
                    seen.untaken += bytes;
                    for e in events {
                        let entry = (e.kv.modified, e.kv.key.clone(), e.deleted, e.kv.value.clone());
                        if seen.spec.prev_kv {
                            let before = model.at(e.kv.modified - 1).remove(&e.kv.key);
                            let readable = e.kv.modified > model.compacted;
                            assert_eq!(e.prev, before.filter(|_| readable), "what was there before {entry:?}");
                        } else {
                            assert_eq!(e.prev, None);
                        }
                        seen.events.push(entry);
                    }
                }
            }
        }
    }

    fn turn(&mut self, draw: &mut Draw<'_>, replica: &Replica, model: &Model) {
        let mut out = Vec::new();
        self.at += 20_000_000_000;
        let now = Instant(self.at);
        while self.hub.advance(&replica.store, now, &mut out) {}
        if draw.below(2) == 0 {
            self.hub.catch_up(&replica.store, now, 1 + draw.below(10) as usize, &mut out);
        }
        if draw.below(4) == 0 {
            self.hub.ask_progress(StreamId(draw.below(3)));
        }
        self.hub.signs_of_life(now, &mut out);
        self.hear(out, replica, model);
        for (who, seen) in &mut self.seen {
            if draw.below(3) == 0 {
                self.hub.taken(*who, std::mem::take(&mut seen.untaken));
            }
        }
    }

    /// Everybody takes everything: then nothing may be missing.
    fn judge(&mut self, replica: &Replica, model: &Model) {
        for _ in 0..10_000 {
            let mut out = Vec::new();
            while self.hub.advance(&replica.store, Instant(self.at), &mut out) {}
            self.hub.catch_up(&replica.store, Instant(self.at), 50, &mut out);
            self.hear(out, replica, model);
            for (who, seen) in &mut self.seen {
                self.hub.taken(*who, std::mem::take(&mut seen.untaken));
            }
            if self.hub.behind() == 0 {
                break;
            }
        }
        assert_eq!(self.hub.behind(), 0, "somebody never catches up");
        for seen in self.seen.values() {
            let wanted = expected(model, seen, model.revision);
            match seen.cancelled {
                None => assert_eq!(seen.events, wanted, "events of {:?}", seen.spec),
                Some(compacted) => {
                    assert!(wanted.starts_with(&seen.events), "events of {:?}", seen.spec);
                    // It had not been told of something that is gone.
                    assert!(seen.from < compacted && compacted <= model.compacted);
                }
            }
        }
    }
}

fn expected(model: &Model, seen: &Seen, upto: u64) -> Vec<(u64, Vec<u8>, bool, Vec<u8>)> {
    let range = KeyRange::new(&seen.spec.key, &seen.spec.end);
    let wanted = model.all.iter().filter(|v| {
        let deleted = v.version == 0;
        let kind = if deleted { !seen.spec.no_delete } else { !seen.spec.no_put };
        v.modified >= seen.from && v.modified <= upto && kind && range.contains(&v.key)
    });
    wanted.map(|v| (v.modified, v.key.clone(), v.version == 0, v.value.clone())).collect()
}

/// One history. Panics where store and model differ.
fn history(seed: u64, bug: Option<Bug>, commands: u64) {
    let mut rng = Rng::new(Seed(seed));
    let mut model = Model::default();
    let mut replica = Replica::default();
    let mut other = Replica::default();
    let mut watchers = Watchers::default();
    watchers.hub.plant(bug);
    // A few events fill it: half of the histories have slow receivers.
    if seed.is_multiple_of(2) {
        watchers.hub.limit(500);
    }
    replica.store.plant(bug);
    let mut index = 0;
    while index < commands {
        index += 1 + rng.below(2);
        let mut draw = Draw(&mut rng);
        let batch: Vec<Command> = (0..1 + draw.below(3)).map(|_| Command::node(draw.action(model.revision))).collect();
        // What goes through the log comes out as it went in.
        let entry = Entry { commands: batch };
        let entry = Entry::decode(&entry.encode()).expect("an entry");
        let outcomes = replica.apply(index, &entry.commands);
        assert_eq!(other.apply(index, &entry.commands), outcomes, "replicas differ");
        // Said again, as after a restart by a host that does not know better, it is nothing.
        replica.store.apply_all(index - draw.below(2), &entry.commands);
        for (c, o) in entry.commands.iter().zip(&outcomes) {
            let expected = model.apply(c);
            // Only the last outcome of an entry can be compared with the model's newest revision.
            if entry.commands.len() == 1 {
                model.agrees(o, &expected, c);
            } else {
                assert_eq!(o.result, expected, "{c:?}");
            }
        }
        for _ in 0..3 {
            let r = draw.range(model.revision);
            assert_eq!(replica.store.range(&r), model.range(&r, model.revision), "{r:?}");
        }
        if draw.below(4) == 0 {
            watchers.create(&mut draw, &replica);
        }
        watchers.turn(&mut draw, &replica, &model);
        match draw.below(12) {
            0..=3 => drop(replica.store.sweep()),
            4 => replica.checkpoint(1 + draw.below(5) as usize),
            5 => {
                replica.restart();
                replica.store.plant(bug);
            }
            6 => other.install(&mut replica.store, 1 + draw.below(300) as usize),
            7 => other.checkpoint(3),
            8 => drop(other.store.sweep()),
            9 if !other.disk.is_empty() => {
                other.checkpoint(2);
                other.restart();
            }
            _ => {}
        }
        assert_eq!(replica.store.hash(0), other.store.hash(0), "replicas differ");
        let past = draw.below(model.revision + 2);
        assert_eq!(replica.store.hash(past), other.store.hash(past), "replicas differ in the past");
    }
    watchers.judge(&replica, &model);
    while replica.store.sweep() {}
    while other.store.sweep() {}
    assert_eq!(replica.store.digest(), other.store.digest());
    assert_eq!(replica.store.size_bytes(), other.store.size_bytes());
    replica.restart();
}

#[test]
fn agrees_with_a_naive_model() {
    for seed in 1..=seeds() {
        if let Err(e) = std::panic::catch_unwind(|| history(seed, None, 250)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(e);
        }
    }
}

/// Each bug shows within this many histories.
#[cfg(feature = "planted-bugs")]
const WITHIN: u64 = 30;

#[cfg(feature = "planted-bugs")]
fn found(bug: Bug) {
    let seed = (1..=WITHIN).find(|seed| std::panic::catch_unwind(|| history(*seed, Some(bug), 250)).is_err());
    assert!(seed.is_some(), "{bug:?} was not found within {WITHIN} histories");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    found(Bug::CompactLiveVersion);
    found(Bug::WatchSkipsEvent);
    found(Bug::ApplyTwice);
}
