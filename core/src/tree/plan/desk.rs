//! The books of materialisation: what is ready, waits, is parked, is in flight.

use crate::action::LogRecord;
use crate::event::Witness;
use crate::ids::{EntryId, Name};
use crate::op::ContentDigest;
use crate::time::Stamp;
use crate::tree::model::Seat;
use crate::tree::{Ticket, Version};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Transfers asked for and not answered.
pub(super) const NEEDS_MAX: usize = 64;

/// A piece of work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(in crate::tree) enum Work {
    /// Where an entry stands.
    Entry(u32),
    /// Content and attributes of an inode.
    Inode(u32),
    /// The bytes of a losing version that is not on disk here (only ever parked).
    Head(u32, Stamp),
}

/// Why work is parked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::tree) enum Park {
    /// Bytes were asked for.
    Bytes,
    /// Disk was not as believed.
    Changed,
    /// Somebody writes the file.
    Busy,
    /// Another error.
    Failed,
}

/// What an action in flight does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum What {
    Make,
    Link,
    Move,
    Remove,
    Attr,
    Install,
    /// The last name of a deleted file becomes the copy of a losing version.
    MoveToCopy,
}

/// An action in flight.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Flight {
    pub(super) what: What,
    pub(super) work: Work,
    pub(super) inode: u32,
    pub(super) entry: u32,
    pub(super) from: Option<Seat>,
    pub(super) to: Option<Seat>,
    /// The entry that loses its place at `to`, and its inode.
    pub(super) over: Option<(u32, u32)>,
    /// Version, size and digest that disk will hold.
    pub(super) content: (Stamp, u64, ContentDigest),
    /// For a losing version: where its bytes will stand.
    pub(super) keep: Option<(EntryId, Version, u32, Name)>,
    /// Directories it works in.
    pub(super) dirs: Vec<u32>,
    /// There was news from disk meanwhile: a failure says nothing.
    pub(super) stale: bool,
}

/// Bytes of a losing version that were given a name of their own, to be published.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::tree) struct Kept {
    pub(in crate::tree) inode: u32,
    pub(in crate::tree) version: Version,
    pub(in crate::tree) dir: u32,
    pub(in crate::tree) name: Name,
    pub(in crate::tree) witness: Witness,
    /// To be logged after its operations.
    pub(in crate::tree) records: Vec<LogRecord>,
}

/// The books.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::tree) struct Desk {
    ready: BTreeSet<Work>,
    waiting: BTreeSet<(u32, Work)>,
    /// The same by work.
    waits: BTreeSet<(Work, u32)>,
    parked: BTreeMap<Work, Park>,
    /// Parked work by the directory that a local change may unblock.
    parked_in: BTreeSet<(u32, Work)>,
    /// Parked work by the inode that it would replace.
    parked_on: BTreeSet<(u32, Work)>,
    /// Work that would need bytes while enough are being asked for.
    hungry: BTreeSet<Work>,
    needs: usize,
    pub(super) flights: BTreeMap<Ticket, Flight>,
    busy: BTreeSet<u32>,
    /// Directories that are being moved or removed.
    pub(super) moving: BTreeSet<u32>,
    reserved: BTreeSet<(u32, Name)>,
    /// Copies of losing versions that are being set aside and are not published yet, with the inode that lost.
    keeping: BTreeMap<EntryId, u32>,
    tickets: u64,
}

impl Desk {
    pub(super) fn len(&self) -> usize {
        let kept = self.parked.keys().filter(|w| !self.ready.contains(w)).count();
        self.ready.len() + kept + self.waits.len() + self.hungry.len() + self.flights.len()
    }
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || (self.needs < NEEDS_MAX && !self.hungry.is_empty())
    }
    pub(super) fn needs(&self) -> usize {
        self.needs
    }

    /// Work on this is due.
    pub(in crate::tree) fn call(&mut self, w: Work) {
        self.ready.insert(w);
    }

    /// The next piece of work that is not parked.
    pub(super) fn take(&mut self) -> Option<Work> {
        loop {
            let w = match self.ready.pop_first() {
                Some(w) => w,
                None if self.needs < NEEDS_MAX => self.hungry.pop_first()?,
                None => return None,
            };
            self.stop_waiting(w);
            if !self.parked.contains_key(&w) {
                return Some(w);
            }
        }
    }

    pub(super) fn done(&mut self, w: Work) {
        self.ready.remove(&w);
    }

    pub(super) fn wait(&mut self, key: u32, w: Work) {
        self.waiting.insert((key, w));
        self.waits.insert((w, key));
    }

    fn stop_waiting(&mut self, w: Work) {
        while let Some((_, key)) = self.waits.range((w, 0)..=(w, u32::MAX)).next().copied() {
            self.waits.remove(&(w, key));
            self.waiting.remove(&(key, w));
        }
    }

    /// There is nothing to do about it.
    pub(in crate::tree) fn at_rest(&mut self, w: Work) {
        self.stop_waiting(w);
        self.ready.remove(&w);
        self.hungry.remove(&w);
        self.unpark(w);
    }

    /// Something about this inode changed: look again at all that waits for it.
    pub(in crate::tree) fn wake(&mut self, key: u32) {
        while let Some(w) = self.waiting.range((key, Work::Entry(0))..).next().copied().filter(|(k, _)| *k == key) {
            self.waiting.remove(&w);
            self.waits.remove(&(w.1, w.0));
            self.ready.insert(w.1);
        }
    }

    pub(super) fn is_parked(&self, w: Work) -> bool {
        self.parked.contains_key(&w)
    }

    pub(super) fn park(&mut self, w: Work, why: Park) {
        if why == Park::Bytes {
            self.needs += 1;
        }
        if self.parked.insert(w, why) == Some(Park::Bytes) {
            self.needs -= 1;
        }
    }

    pub(super) fn park_in(&mut self, dirs: &[u32], w: Work, why: Park) {
        self.park(w, why);
        self.parked_in.extend(dirs.iter().map(|d| (*d, w)));
    }

    /// Parked work that this inode's news may unblock.
    pub(super) fn park_on(&mut self, i: u32, w: Work) {
        self.parked_on.insert((i, w));
    }

    /// False: enough bytes are being asked for already; the work comes back by itself.
    pub(super) fn park_for_bytes(&mut self, w: Work) -> bool {
        let room = self.needs < NEEDS_MAX;
        if room {
            self.park(w, Park::Bytes);
        } else {
            self.hungry.insert(w);
        }
        room
    }

    /// No longer parked, whatever the reason. The caller calls it if it is still due.
    pub(in crate::tree) fn unpark(&mut self, w: Work) {
        if self.parked.remove(&w) == Some(Park::Bytes) {
            self.needs -= 1;
        }
    }

    pub(super) fn unpark_if(&mut self, w: Work, why: Park) {
        if self.parked.get(&w) == Some(&why) {
            self.unpark(w);
            self.ready.insert(w);
        }
    }

    /// A local change happened in this directory.
    pub(in crate::tree) fn news_in(&mut self, dir: u32) {
        while let Some(x) = self.parked_in.range((dir, Work::Entry(0))..).next().copied().filter(|(d, _)| *d == dir) {
            self.parked_in.remove(&x);
            self.unpark_if(x.1, Park::Changed);
        }
        for f in self.flights.values_mut().filter(|f| f.dirs.contains(&dir)) {
            f.stale = true;
        }
    }

    /// Some directory stands elsewhere now.
    pub(in crate::tree) fn news_below(&mut self) {
        self.flights.values_mut().for_each(|f| f.stale = true);
    }

    /// A local change of this inode happened.
    pub(in crate::tree) fn news_of(&mut self, i: u32) {
        for f in self.flights.values_mut().filter(|f| f.inode == i || f.over.is_some_and(|(_, x)| x == i)) {
            f.stale = true;
        }
        while let Some(x) = self.parked_on.range((i, Work::Entry(0))..).next().copied().filter(|(o, _)| *o == i) {
            self.parked_on.remove(&x);
            self.unpark_if(x.1, Park::Changed);
        }
    }

    /// Everything that is parked or waits is looked at again. Returns the losing versions among it.
    pub(super) fn retry(&mut self) -> Vec<(u32, Stamp)> {
        let mut heads = Vec::new();
        self.needs = 0;
        self.parked_in.clear();
        self.parked_on.clear();
        self.ready.append(&mut self.hungry);
        self.waits.clear();
        while let Some((_, w)) = self.waiting.pop_first() {
            self.ready.insert(w);
        }
        while let Some((w, _)) = self.parked.pop_first() {
            match w {
                Work::Head(i, v) => heads.push((i, v)),
                _ => {
                    self.ready.insert(w);
                }
            }
        }
        heads
    }

    /// Losing versions of this inode whose bytes were asked for.
    pub(super) fn unpark_heads(&mut self, i: u32) -> Vec<(u32, Stamp)> {
        let range = Work::Head(i, Stamp::ZERO)..=Work::Head(i, Stamp::MAX);
        let mine: Vec<Work> = self.parked.range(range).map(|(w, _)| *w).collect();
        let mut heads = Vec::new();
        for w in mine {
            self.unpark(w);
            if let Work::Head(i, v) = w {
                heads.push((i, v));
            }
        }
        heads
    }

    pub(in crate::tree) fn is_busy(&self, i: u32) -> bool {
        self.busy.contains(&i)
    }
    pub(in crate::tree) fn is_reserved(&self, dir: u32, name: &Name) -> bool {
        !self.reserved.is_empty() && self.reserved.contains(&(dir, name.clone()))
    }
    /// The copy at this name is published.
    pub(in crate::tree) fn kept(&mut self, copy: EntryId, dir: u32, name: &Name) {
        self.reserved.remove(&(dir, name.clone()));
        self.wake(dir);
        if let Some(i) = self.keeping.remove(&copy) {
            self.wake(i);
        }
    }
    /// This copy is being set aside from the inode given.
    pub(super) fn keeping(&self, copy: EntryId) -> Option<u32> {
        self.keeping.get(&copy).copied()
    }

    /// Takes the locks of an action and gives it its ticket.
    pub(super) fn begin(&mut self, f: Flight, dir: bool) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.busy.insert(f.inode);
        self.busy.extend(f.over.map(|(_, i)| i));
        if dir && matches!(f.what, What::Move | What::Remove) {
            self.moving.insert(f.inode);
        }
        if let Some(Seat::At(p, name)) = &f.to {
            self.reserved.insert((*p, name.clone()));
        }
        if let Some((copy, _, p, name)) = &f.keep {
            self.reserved.insert((*p, name.clone()));
            self.keeping.insert(*copy, f.inode);
        }
        self.flights.insert(ticket, f);
        ticket
    }

    /// Gives the locks back. The name of a kept version stays reserved after success, until it is published.
    pub(super) fn end(&mut self, ticket: Ticket, ok: bool) -> Option<Flight> {
        let f = self.flights.remove(&ticket)?;
        self.busy.remove(&f.inode);
        if let Some((_, i)) = f.over {
            self.busy.remove(&i);
        }
        self.moving.remove(&f.inode);
        if let Some(Seat::At(p, name)) = &f.to {
            self.reserved.remove(&(*p, name.clone()));
        }
        if let Some((copy, _, p, name)) = f.keep.as_ref().filter(|_| !ok) {
            self.reserved.remove(&(*p, name.clone()));
            self.keeping.remove(copy);
        }
        Some(f)
    }
}
