//! Watchers, and what they should have been told.

use super::word;
use crate::world::{Ev, World};
use ice_core::control::Watching;
use ice_core::kv::Store;
use ice_core::kv::watch::{Event, Hub, Message, StreamId, Told, WatchId, WatchSpec};
use ice_core::time::{Instant, Span};
use std::collections::BTreeMap;

/// A change of a key: revision, key, what it is then.
pub(super) type Change = (u64, String, Option<String>);

/// A watcher.
pub(super) struct Watcher {
    pub(super) node: usize,
    pub(super) epoch: u32,
    /// `all`, or one key.
    pub(super) key: String,
    /// From this revision on; 0: not known yet.
    pub(super) start: u64,
    slow: bool,
    /// It was told what has a smaller number.
    number: u64,
    early: BTreeMap<u64, Told>,
    pub(super) got: Vec<Change>,
    /// Everything up to here was told.
    pub(super) upto: u64,
    /// It was cancelled; from where it may begin again.
    pub(super) cancelled: Option<Option<u64>>,
    /// Its node's process ended.
    pub(super) closed: bool,
}

impl Watcher {
    pub(super) fn new(node: usize, epoch: u32, key: &str, start: u64, slow: bool) -> Watcher {
        Watcher {
            node,
            epoch,
            key: key.to_owned(),
            start,
            slow,
            number: 1,
            early: BTreeMap::new(),
            got: Vec::new(),
            upto: 0,
            cancelled: None,
            closed: false,
        }
    }

    pub(super) fn wants(&self, key: &str) -> bool {
        self.key == "all" || self.key == key
    }
}

fn change(e: &Event) -> Change {
    let key = String::from_utf8_lossy(&e.kv.key).into_owned();
    (e.kv.modified, key, (!e.deleted).then(|| word(&e.kv.value)))
}

/// Every change that ever was, in order: what all watchers should be told, and what all stores should have been.
#[derive(Default)]
pub(super) struct Truth {
    hub: Hub,
    begun: bool,
    /// Changes of all keys.
    pub(super) all: Vec<Change>,
    /// They are all changes up to here.
    pub(super) revision: u64,
    /// The furthest that any store has come.
    pub(super) applied: u64,
}

impl Truth {
    /// A store has moved on.
    pub(super) fn learn(&mut self, store: &Store, now: Instant) -> Result<(), String> {
        let who = WatchId { stream: StreamId(1), id: 1 };
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            let spec = WatchSpec { end: b"\0".to_vec(), start: 1, ..WatchSpec::default() };
            self.hub.create(store, now, who.stream, Some(who.id), spec, &mut out).map_err(|e| e.to_string())?;
        }
        while store.revision() > self.revision {
            let more = self.hub.advance(store, now, &mut out) | self.hub.catch_up(store, now, 4096, &mut out);
            let some = !out.is_empty();
            for message in out.drain(..) {
                match message.told {
                    Told::Events { events, bytes, revision, .. } => {
                        self.all.extend(events.iter().map(|e| change(e)));
                        self.hub.taken(who, bytes);
                        self.revision = self.revision.max(revision);
                    }
                    Told::Cancelled { compacted, .. } => {
                        return Err(format!("what was not seen yet is compacted up to {compacted:?}"));
                    }
                    Told::Created { .. } | Told::Progress { .. } => {}
                }
            }
            if !more && !some {
                self.revision = store.revision();
            }
        }
        Ok(())
    }

    /// What a key was at a revision.
    pub(super) fn at(&self, key: &str, revision: u64) -> Option<&str> {
        let upto = self.all.partition_point(|c| c.0 <= revision);
        self.all[..upto].iter().rev().find(|c| c.1 == key).and_then(|c| c.2.as_deref())
    }
}

impl World {
    pub(super) fn look_is_true(&mut self, n: usize, key: &str, revision: u64, saw: Option<&str>) {
        let was = self.plane.truth.at(key, revision);
        if was != saw {
            let text = format!("n{} shows {key} as {saw:?} at revision {revision}, it was {was:?}", n + 1);
            self.fail("local reads", text);
        }
    }

    pub(super) fn plane_told(&mut self, n: usize, message: Message) {
        let epoch = self.hosts[n].epoch;
        let Some(w) = self.plane.watchers.get_mut(&message.stream).filter(|w| (w.node, w.epoch) == (n, epoch)) else {
            let text = format!("n{} tells a stream that it does not have: {message:?}", n + 1);
            return self.fail("watches", text);
        };
        if message.number < w.number || w.early.insert(message.number, message.told).is_some() {
            let text = format!("n{} tells its stream {:?} number {} twice", n + 1, message.stream, message.number);
            return self.fail("watches", text);
        }
        let mut wrong = None;
        let mut taken = Vec::new();
        while let Some(told) = w.early.remove(&w.number) {
            w.number += 1;
            if w.cancelled.is_some() {
                wrong = Some("is told something after it was cancelled".to_owned());
            }
            match told {
                Told::Created { revision, .. } => {
                    if w.start == 0 {
                        w.start = revision + 1;
                    }
                }
                Told::Events { revision, events, fragment, bytes, .. } => {
                    w.got.extend(events.iter().map(|e| change(e)));
                    if !fragment {
                        w.upto = w.upto.max(revision);
                    }
                    taken.push((bytes, w.slow));
                }
                Told::Progress { revision, .. } => w.upto = w.upto.max(revision),
                Told::Cancelled { compacted, .. } => w.cancelled = Some(compacted),
            }
        }
        if let Some(text) = wrong {
            return self.fail("watches", format!("a watcher of n{} {text}", n + 1));
        }
        for (bytes, slow) in taken {
            let late = if slow {
                Span::ms(self.rngs.plane.range(1_000, 8_000))
            } else {
                Span(self.rngs.plane.below(50_000_000))
            };
            let what = Watching::Taken(WatchId { stream: message.stream, id: 7 }, bytes);
            self.queue.put(self.now.after(late), Ev::Taken(n, epoch, Box::new(what)));
        }
    }
}
