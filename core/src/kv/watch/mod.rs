//! Watchers: who wants to be told of changes, and how far he is.
//!
//! Each node has its own [`Hub`]; nothing of it is replicated. A watcher is **synced** if it has been told of everything up to
//! the newest revision: then [`Hub::advance`], called after entries were applied, tells it of what is new. Otherwise it is
//! **behind** and [`Hub::catch_up`] tells it from history, in portions.
//!
//! The hub never queues events. What a receiver has been sent and not yet taken is counted; beyond
//! [`limits::WATCH_IN_FLIGHT_BYTES`] nothing more is sent to it: it falls behind, which costs nothing, and catches up once
//! it has taken some ([`Hub::taken`]). If history has been compacted meanwhile, it is cancelled with the revision from which it
//! may begin again.
//!
//! All events of one revision come in one [`Told::Events`], unless the watcher agreed to fragments and they are more than
//! [`limits::WATCH_RESPONSE_MAX_BYTES`]: then all but the last say that more of the same revision follows. Whatever is told to a
//! stream has a number, since an outbox has no order: the adapter sends them by their numbers.

mod interest;
#[cfg(test)]
mod tests;

use super::history::Record;
use super::keys::{KeyRange, RangeEnd};
use super::range::KeyValue;
use super::{Error, Store};
use crate::bug::Bug;
use crate::limits;
use crate::time::Instant;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;
use interest::Interest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A client's stream of watches; numbered by the adapter, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub u64);

/// A watcher: its stream, and its id there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct WatchId {
    /// The stream.
    pub stream: StreamId,
    /// Chosen by the client, or the lowest free one.
    pub id: i64,
}

/// What somebody wants to be told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WatchSpec {
    /// The first key. Empty with the end `"\0"`: all keys.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// See [`KeyRange::new`].
    #[serde(with = "serde_bytes")]
    pub end: Vec<u8>,
    /// From this revision on; 0 is from the next one.
    pub start: u64,
    /// Not of puts.
    pub no_put: bool,
    /// Not of deletions.
    pub no_delete: bool,
    /// Also what was there before.
    pub prev_kv: bool,
    /// A sign of life when nothing has happened for [`limits::WATCH_PROGRESS_INTERVAL`].
    pub progress: bool,
    /// Large revisions may come in pieces.
    pub fragment: bool,
}

/// A change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// It was deleted: `kv` has only the key and the revision.
    pub deleted: bool,
    /// What is there now.
    pub kv: KeyValue,
    /// What was there before, if that was asked for and is not compacted.
    pub prev: Option<KeyValue>,
}

impl Event {
    /// What it costs a receiver.
    fn bytes(&self) -> usize {
        let kv = |k: &KeyValue| k.key.len() + k.value.len() + 64;
        kv(&self.kv) + self.prev.as_ref().map_or(0, kv)
    }
}

/// An event that several watchers are told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared(Arc<Event>);

impl Shared {
    /// The event itself, shared.
    pub fn event(&self) -> Arc<Event> {
        Arc::clone(&self.0)
    }
}

impl Deref for Shared {
    type Target = Event;
    fn deref(&self) -> &Event {
        &self.0
    }
}
impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}
impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Shared, D::Error> {
        Event::deserialize(d).map(|e| Shared(Arc::new(e)))
    }
}

/// What a stream is told, in the order of its numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// To whom.
    pub stream: StreamId,
    /// From 1 on, without gaps.
    pub number: u64,
    /// What.
    pub told: Told,
}

/// What is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Told {
    /// The watcher is there.
    Created {
        /// Which.
        id: i64,
        /// The newest revision.
        revision: u64,
    },
    /// Something changed.
    Events {
        /// Which watcher.
        id: i64,
        /// Everything that concerns it up to here has been told with this (unless more follows).
        revision: u64,
        /// Of one or more revisions, ascending.
        events: Vec<Shared>,
        /// More of the same revision follows.
        fragment: bool,
        /// To be given to [`Hub::taken`] when the receiver has it.
        bytes: usize,
    },
    /// Nothing that concerns it has happened up to here, besides what was told.
    Progress {
        /// Which watcher; `None`: all of the stream, which asked.
        id: Option<i64>,
        /// Up to here.
        revision: u64,
    },
    /// The watcher is gone.
    Cancelled {
        /// Which.
        id: i64,
        /// Because what it wanted is compacted: it may begin again here.
        compacted: Option<u64>,
        /// The newest revision.
        revision: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Watcher {
    spec: WatchSpec,
    /// It has been told of everything before this revision. While synced it is only a lower bound of what it wants.
    next: u64,
    synced: bool,
    in_flight: usize,
    /// When it last heard anything.
    heard: Instant,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stream {
    ids: BTreeSet<i64>,
    next_id: i64,
    told: u64,
    wants_progress: bool,
}

/// All watchers of a node.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Hub {
    watchers: BTreeMap<WatchId, Watcher>,
    streams: BTreeMap<StreamId, Stream>,
    interest: Interest,
    /// Who is behind, in the order in which they will be helped.
    behind: VecDeque<WatchId>,
    /// Synced watchers have been told of everything up to here.
    revision: u64,
    /// When somebody wants a sign of life.
    signs: BTreeSet<(Instant, WatchId)>,
    /// Instead of [`limits::WATCH_IN_FLIGHT_BYTES`].
    window: Option<usize>,
    bug: Option<Bug>,
}

/// Events on their way to one watcher.
#[derive(Default)]
struct Batch {
    events: Vec<Shared>,
    bytes: usize,
}

fn range_of(spec: &WatchSpec) -> KeyRange<'_> {
    let key = if spec.key.is_empty() { &b"\0"[..] } else { &spec.key };
    KeyRange::new(key, &spec.end)
}

impl WatchSpec {
    /// The keys meant; for asking permission.
    pub fn range(&self) -> KeyRange<'_> {
        range_of(self)
    }

    fn wants(&self, r: &Record) -> bool {
        if r.rev.is_tombstone() { !self.no_delete } else { !self.no_put }
    }
}

impl Hub {
    /// Without watchers, of a store at `revision`.
    pub fn new(revision: u64) -> Hub {
        Hub { revision, ..Hub::default() }
    }

    /// Nobody is sent more than this without taking it, instead of [`limits::WATCH_IN_FLIGHT_BYTES`].
    pub fn limit(&mut self, bytes: usize) {
        self.window = Some(bytes.min(limits::WATCH_IN_FLIGHT_BYTES));
    }

    /// Plants a bug, for tests of the tests. Without the feature `planted-bugs` it does nothing.
    pub fn plant(&mut self, bug: Option<Bug>) {
        self.bug = bug;
    }

    /// Watchers.
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Watchers that are behind.
    pub fn behind(&self) -> usize {
        self.behind.len()
    }

    /// Makes a watcher. `id`: as the client wishes.
    ///
    /// Refused: [`Error::EmptyKey`] for a range that no key can be in, [`Error::DuplicateKey`] for an id that is taken,
    /// [`Error::TooLarge`] when there are as many watchers as there may be.
    pub fn create(
        &mut self,
        store: &Store,
        now: Instant,
        stream: StreamId,
        id: Option<i64>,
        spec: WatchSpec,
        out: &mut Vec<Message>,
    ) -> Result<WatchId, Error> {
        if range_of(&spec).is_empty() {
            return Err(Error::EmptyKey);
        }
        if spec.key.len().max(spec.end.len()) > limits::KV_KEY_MAX_BYTES {
            return Err(Error::KeyTooLong);
        }
        let of_stream = self.streams.get(&stream).map_or(0, |s| s.ids.len());
        if self.watchers.len() >= limits::WATCHERS_MAX || of_stream >= limits::WATCHERS_PER_STREAM_MAX {
            return Err(Error::TooLarge);
        }
        let s = self.streams.entry(stream).or_default();
        let id = match id {
            Some(id) if s.ids.contains(&id) => return Err(Error::DuplicateKey),
            Some(id) => id,
            None => {
                // Ids are as many as watchers, which are limited: this ends.
                while s.ids.contains(&s.next_id) {
                    s.next_id = s.next_id.wrapping_add(1);
                }
                s.next_id
            }
        };
        s.ids.insert(id);
        let who = WatchId { stream, id };
        if self.watchers.is_empty() {
            self.revision = store.revision;
        }
        let next = if spec.start == 0 { store.revision + 1 } else { spec.start };
        self.interest.add(range_of(&spec), who);
        if spec.progress {
            self.signs.insert((now.after(limits::WATCH_PROGRESS_INTERVAL), who));
        }
        let synced = next > self.revision && self.revision == store.revision;
        self.watchers.insert(who, Watcher { spec, next, synced, in_flight: 0, heard: now });
        if !synced {
            self.behind.push_back(who);
        }
        self.tell(stream, Told::Created { id, revision: store.revision }, out);
        Ok(who)
    }

    fn tell(&mut self, stream: StreamId, told: Told, out: &mut Vec<Message>) {
        let s = self.streams.entry(stream).or_default();
        s.told += 1;
        out.push(Message { stream, number: s.told, told });
    }

    fn remove(&mut self, who: WatchId) -> Option<Watcher> {
        let w = self.watchers.remove(&who)?;
        self.interest.remove(range_of(&w.spec), who);
        if !w.synced {
            self.behind.retain(|b| *b != who);
        }
        if w.spec.progress {
            self.signs.retain(|(_, s)| *s != who);
        }
        if let Some(s) = self.streams.get_mut(&who.stream) {
            s.ids.remove(&who.id);
        }
        Some(w)
    }

    /// The client wants no more of it. False if it is not there.
    pub fn cancel(&mut self, store: &Store, who: WatchId, out: &mut Vec<Message>) -> bool {
        let found = self.remove(who).is_some();
        if found {
            let told = Told::Cancelled { id: who.id, compacted: None, revision: store.revision };
            self.tell(who.stream, told, out);
        }
        found
    }

    /// The stream is closed: nothing is told to it any more.
    pub fn close(&mut self, stream: StreamId) {
        let ids: Vec<i64> = self.streams.get(&stream).map(|s| s.ids.iter().copied().collect()).unwrap_or_default();
        for id in ids {
            self.remove(WatchId { stream, id });
        }
        self.streams.remove(&stream);
    }

    /// The receiver has taken some of what it was sent.
    pub fn taken(&mut self, who: WatchId, bytes: usize) {
        if let Some(w) = self.watchers.get_mut(&who) {
            w.in_flight = w.in_flight.saturating_sub(bytes);
        }
    }

    /// The stream asks how far it is: it is told as soon as all its watchers are synced.
    pub fn ask_progress(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(&stream) {
            s.wants_progress = true;
        }
    }

    /// To be called before [`Store::sweep`], so that what was just compacted is still there to be told.
    ///
    /// Tells synced watchers of what was applied since, in whole revisions, about [`limits::WATCH_RECORDS_PER_STEP`] changes of
    /// keys. True if there is more to do.
    pub fn advance(&mut self, store: &Store, now: Instant, out: &mut Vec<Message>) -> bool {
        if self.watchers.is_empty() || self.revision > store.revision {
            self.revision = store.revision;
        }
        if self.revision == store.revision {
            return false;
        }
        // What we have not told was swept away: nobody is synced.
        if self.revision < store.thinned {
            let all: Vec<WatchId> = self.watchers.iter().filter(|(_, w)| w.synced).map(|(who, _)| *who).collect();
            for who in all {
                self.fall_behind(who, self.revision + 1);
            }
            self.revision = store.revision;
            return false;
        }
        let window = self.window.unwrap_or(limits::WATCH_IN_FLIGHT_BYTES);
        let mut batches: BTreeMap<WatchId, Batch> = BTreeMap::new();
        let mut seen = 0;
        let mut at = self.revision;
        let mut matched: Vec<WatchId> = Vec::new();
        let mut full: Vec<WatchId> = Vec::new();
        for r in store.history.from((self.revision + 1, 0)) {
            if r.rev.main() != at {
                if seen >= limits::WATCH_RECORDS_PER_STEP {
                    break;
                }
                at = r.rev.main();
                full = batches
                    .iter()
                    .filter(|(_, b)| b.bytes >= limits::WATCH_RESPONSE_MAX_BYTES)
                    .map(|(w, _)| *w)
                    .collect();
            }
            for who in full.drain(..) {
                let batch = batches.remove(&who).unwrap_or_default();
                self.send(who, at - 1, batch, now, out);
            }
            seen += 1;
            matched.clear();
            self.interest.find(store.index.key(r.key), &mut matched);
            let mut made = [None, None];
            for who in &matched {
                let Some(w) = self.watchers.get(who) else { continue };
                if !w.synced || r.rev.main() < w.next || !w.spec.wants(r) {
                    continue;
                }
                // Who had credit when a revision began is told all of it.
                let begun = batches.get(who).and_then(|b| b.events.last()).is_some_and(|e| e.kv.modified == at);
                if w.in_flight >= window && !begun {
                    if let Some(batch) = batches.remove(who) {
                        self.send(*who, at - 1, batch, now, out);
                    }
                    self.fall_behind(*who, at);
                    continue;
                }
                let event = made[usize::from(w.spec.prev_kv)].get_or_insert_with(|| store.event(r, w.spec.prev_kv));
                let batch = batches.entry(*who).or_default();
                batch.bytes += event.bytes();
                batch.events.push(event.clone());
            }
        }
        // The history ends with the newest revision; where it was left, `at` is the last one that was told.
        self.revision = if seen >= limits::WATCH_RECORDS_PER_STEP { at } else { store.revision };
        for (who, batch) in batches {
            self.send(who, self.revision, batch, now, out);
        }
        self.revision < store.revision
    }

    fn fall_behind(&mut self, who: WatchId, next: u64) {
        let skips = cfg!(feature = "planted-bugs") && self.bug == Some(Bug::WatchSkipsEvent);
        if let Some(w) = self.watchers.get_mut(&who)
            && w.synced
        {
            w.synced = false;
            w.next = w.next.max(next + u64::from(skips));
            self.behind.push_back(who);
        }
    }

    /// Sends a batch: everything up to `revision` that concerns the watcher.
    fn send(&mut self, who: WatchId, revision: u64, batch: Batch, now: Instant, out: &mut Vec<Message>) {
        let Some(w) = self.watchers.get_mut(&who) else { return };
        if batch.events.is_empty() {
            return;
        }
        w.in_flight += batch.bytes;
        w.heard = now;
        let fragment = w.spec.fragment;
        let id = who.id;
        if !fragment || batch.bytes <= limits::WATCH_RESPONSE_MAX_BYTES {
            let told = Told::Events { id, revision, events: batch.events, fragment: false, bytes: batch.bytes };
            self.tell(who.stream, told, out);
            return;
        }
        let mut part = Batch::default();
        for e in batch.events {
            let bytes = e.bytes();
            if !part.events.is_empty() && part.bytes + bytes > limits::WATCH_RESPONSE_MAX_BYTES {
                let Batch { events, bytes } = core::mem::take(&mut part);
                self.tell(who.stream, Told::Events { id, revision, events, fragment: true, bytes }, out);
            }
            part.bytes += bytes;
            part.events.push(e);
        }
        let Batch { events, bytes } = part;
        self.tell(who.stream, Told::Events { id, revision, events, fragment: false, bytes }, out);
    }

    /// Helps those who are behind, looking at about `budget` changes of keys altogether; once [`Hub::advance`] has nothing more
    /// to do. True if there is more to do that does
    /// not have to wait for a receiver.
    pub fn catch_up(&mut self, store: &Store, now: Instant, budget: usize, out: &mut Vec<Message>) -> bool {
        if self.revision != store.revision {
            return true;
        }
        let window = self.window.unwrap_or(limits::WATCH_IN_FLIGHT_BYTES);
        let mut left = budget;
        let mut waiting = 0;
        while left > 0 && waiting < self.behind.len() {
            let Some(who) = self.behind.pop_front() else { break };
            let Some(w) = self.watchers.get(&who) else { continue };
            if w.next < store.compacted {
                let told = Told::Cancelled { id: who.id, compacted: Some(store.compacted), revision: store.revision };
                self.remove(who);
                self.tell(who.stream, told, out);
                continue;
            }
            if w.in_flight >= window {
                self.behind.push_back(who);
                waiting += 1;
                continue;
            }
            waiting = 0;
            left = left.saturating_sub(self.help(store, who, now, left.min(limits::WATCH_RECORDS_PER_STEP), out));
        }
        self.progress(store, out);
        waiting < self.behind.len()
    }

    /// Tells one watcher from history. Answers what that cost.
    fn help(&mut self, store: &Store, who: WatchId, now: Instant, budget: usize, out: &mut Vec<Message>) -> usize {
        let Some(w) = self.watchers.get(&who) else { return 1 };
        let range = range_of(&w.spec);
        let mut batch = Batch::default();
        let mut seen = 0;
        // The first revision that it has not been told of.
        let mut next = w.next;
        let mut done = true;
        let mut look = |r: &Record, batch: &mut Batch, next: &mut u64| -> bool {
            let main = r.rev.main();
            if main != *next && (seen >= budget || batch.bytes >= limits::WATCH_RESPONSE_MAX_BYTES) {
                *next = main;
                return false;
            }
            *next = main;
            seen += 1;
            if w.spec.wants(r) && range.contains(store.index.key(r.key)) {
                let event = store.event(r, w.spec.prev_kv);
                batch.bytes += event.bytes();
                batch.events.push(event);
            }
            true
        };
        if let RangeEnd::Single = range.end {
            let revs = store.index.find(range.start).map_or(&[][..], |slot| store.index.revs(slot));
            for rev in &revs[revs.partition_point(|r| r.main() < w.next)..] {
                if !look(store.record(*rev), &mut batch, &mut next) {
                    done = false;
                    break;
                }
            }
        } else {
            for r in store.history.from((w.next, 0)) {
                if !look(r, &mut batch, &mut next) {
                    done = false;
                    break;
                }
            }
        }
        let start = w.next;
        let told = if done { store.revision } else { next - 1 };
        if let Some(w) = self.watchers.get_mut(&who) {
            w.next = if done { start.max(store.revision + 1) } else { next };
            w.synced = done;
            if !done {
                self.behind.push_back(who);
            }
        }
        self.send(who, told, batch, now, out);
        seen.max(1)
    }

    /// Streams that asked are told, if all their watchers are synced.
    fn progress(&mut self, store: &Store, out: &mut Vec<Message>) {
        if self.revision != store.revision {
            return;
        }
        let asked: Vec<StreamId> = self.streams.iter().filter(|(_, s)| s.wants_progress).map(|(id, _)| *id).collect();
        for stream in asked {
            let Some(s) = self.streams.get_mut(&stream) else { continue };
            let synced = |id: &i64| self.watchers.get(&WatchId { stream, id: *id }).is_none_or(|w| w.synced);
            if s.ids.iter().all(synced) {
                s.wants_progress = false;
                self.tell(stream, Told::Progress { id: None, revision: store.revision }, out);
            }
        }
    }

    /// When [`Hub::signs_of_life`] wants to be called again.
    pub fn wake(&self) -> Option<Instant> {
        self.signs.first().map(|(at, _)| *at)
    }

    /// Tells those who asked for it, and have heard nothing for a while, that they have missed nothing.
    pub fn signs_of_life(&mut self, now: Instant, out: &mut Vec<Message>) {
        let window = self.window.unwrap_or(limits::WATCH_IN_FLIGHT_BYTES);
        while let Some((at, who)) = self.signs.first().copied()
            && at <= now
        {
            self.signs.pop_first();
            let Some(w) = self.watchers.get_mut(&who) else { continue };
            let quiet = w.heard.after(limits::WATCH_PROGRESS_INTERVAL) <= now;
            // One who is behind has events to come; one who does not take anything would not take this either.
            let tells = quiet && w.synced && w.in_flight < window;
            if tells {
                w.heard = now;
            }
            let next = if quiet { now } else { w.heard };
            self.signs.insert((next.after(limits::WATCH_PROGRESS_INTERVAL), who));
            if tells {
                self.tell(who.stream, Told::Progress { id: Some(who.id), revision: self.revision }, out);
            }
        }
    }
}

impl Store {
    fn event(&self, r: &Record, prev: bool) -> Shared {
        let deleted = r.rev.is_tombstone();
        let mut kv = self.kv(r.key, r, true);
        kv.modified = r.rev.main();
        let before = || {
            let main = r.rev.main();
            let revs = self.index.revs(r.key);
            let at = revs.partition_point(|o| o.place() < r.rev.place());
            let prev = revs.get(at.checked_sub(1)?).filter(|p| !p.is_tombstone())?;
            // What a reader could not read any more is not told either, swept or not.
            (main > self.compacted).then(|| self.kv(r.key, self.record(*prev), true))
        };
        let prev = if prev { before() } else { None };
        Shared(Arc::new(Event { deleted, kv, prev }))
    }
}
