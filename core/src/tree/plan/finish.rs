//! What comes of actions.

use super::desk::{Flight, Kept, Park, What, Work};
use crate::action::LogRecord;
use crate::event::{IoError, Witness};
use crate::ids::InodeId;
use crate::time::Stamp;
use crate::tree::model::*;
use crate::tree::{Ticket, Tree};
use alloc::vec::Vec;

impl Tree {
    /// The record that says what disk holds of an inode now.
    pub(in crate::tree) fn holds_record(&self, i: u32) -> LogRecord {
        let n = &self.inodes[i];
        LogRecord::Holds { inode: n.id(), version: self.held(i).stamp, witness: n.witness, attrs: !n.has(ATTR_DUE) }
    }

    pub(in crate::tree) fn stands_record(&self, e: u32) -> LogRecord {
        let spot = self.seat(e).map(|s| self.spot_of(&s, e));
        LogRecord::Stands { entry: self.entries[e].id(), spot }
    }

    /// An action was done; `witness` is what stands on disk now. Returns what to log. An unknown ticket is ignored. If bytes
    /// were set aside as a conflict copy, the records come from the next `own_ops`.
    pub fn applied(&mut self, ticket: Ticket, witness: Witness) -> Vec<LogRecord> {
        let overtaken = |f: &Flight| f.what == What::MoveToCopy && f.stale;
        let overtaken = self.work.flights.get(&ticket).is_some_and(overtaken);
        let Some(mut f) = self.work.end(ticket, !overtaken) else { return Vec::new() };
        if let Some((_, _, dir, name)) = f.keep.take_if(|_| overtaken) {
            // Somebody here used the file meanwhile: it may not be what was to be kept. It was merely moved.
            f.what = What::Move;
            f.to = Some(Seat::At(dir, name));
        }
        let i = f.inode;
        let e = self.moved_entry(&f);
        let mut log = Vec::new();
        let before = self.inodes[i].witness;
        if f.stale && matches!(f.what, What::Make | What::Attr | What::Install) {
            // Somebody here changed it meanwhile, and may have been overwritten by what was planned before.
            self.inodes[i].set(ATTR_DUE, true);
        }
        if let Some((x, _)) = f.over
            && self.seat(x) == f.to
        {
            self.set_seat(x, None);
            log.push(self.stands_record(x));
        }
        match f.what {
            What::Make | What::Link => {
                if self.seat(e).is_none() {
                    let made = f.what == What::Make;
                    self.set_seat(e, f.to.clone());
                    self.inodes[i].witness = witness;
                    if made {
                        self.set_held(i, f.content.0, Some((f.content.1, f.content.2)));
                    }
                    log.push(self.stands_record(e));
                    log.push(self.holds_record(i));
                }
            }
            What::Move => {
                if self.seat(e) == f.from {
                    self.set_seat(e, f.to.clone());
                    self.inodes[i].witness = witness;
                    log.push(self.stands_record(e));
                    log.push(self.holds_record(i));
                }
            }
            What::Remove | What::MoveToCopy => {
                if self.seat(e) == f.from {
                    self.set_seat(e, None);
                    log.push(self.stands_record(e));
                    if f.what == What::Remove && self.on_disk(i) {
                        self.inodes[i].witness = witness;
                        log.push(self.holds_record(i));
                    }
                }
            }
            What::Attr => {
                self.inodes[i].witness = witness;
                log.push(self.holds_record(i));
            }
            What::Install => {
                self.inodes[i].witness = witness;
                self.set_held(i, f.content.0, Some((f.content.1, f.content.2)));
                log.push(self.holds_record(i));
            }
        }
        self.dirty.insert(i);
        self.dirty.extend(f.over.map(|(_, x)| x));
        if let Some((_, version, dir, name)) = f.keep.clone() {
            // A new name changes the time of change, which is part of the sum: unknown until the host looks again.
            let moved = f.what == What::MoveToCopy;
            let witness = if moved { witness } else { Witness { disk: before.disk, sum: 0 } };
            let records = core::mem::take(&mut log);
            self.kept.push(Kept { inode: i, version, dir, name, witness, records });
        }
        self.landed(&f);
        log
    }

    /// The entry that an action moved: the one it was meant for, or another name of the same inode that a user put in its
    /// place meanwhile.
    fn moved_entry(&self, f: &Flight) -> u32 {
        match &f.from {
            Some(Seat::At(p, name)) if self.seat(f.entry) != f.from => {
                let now = self.disk_child(*p, name).filter(|x| self.entries[*x].inode == f.inode);
                now.unwrap_or(f.entry)
            }
            _ => f.entry,
        }
    }

    fn landed(&mut self, f: &Flight) {
        for d in &f.dirs {
            self.work.wake(*d);
        }
        for i in [Some(f.inode), f.over.map(|(_, i)| i)].into_iter().flatten() {
            self.work.wake(i);
            for e in self.entries_of(i) {
                self.call_entry(e);
            }
            self.call_inode(i);
            self.call_heads(i);
        }
        if let Some((lost, _)) = self.copy_of.get(&self.id_of(f.inode)).copied()
            && let Some(i) = self.inode_of(lost)
        {
            // What is to become of the losing version may depend on whether its copy stands.
            self.call_heads(i);
            self.work.wake(i);
        }
        self.recall_lost(f.inode);
    }

    /// An action failed and changed nothing.
    ///
    /// `Changed` waits for a local change of the inode or in the directory, `Busy` for [`Tree::released`], everything else
    /// for [`Tree::came`] or [`Tree::retry`].
    pub fn failed(&mut self, ticket: Ticket, error: IoError) {
        let Some(f) = self.work.end(ticket, false) else { return };
        if matches!(f.what, What::Attr | What::Install) {
            self.inodes[f.inode].set(ATTR_DUE, true);
        }
        let why = match error {
            IoError::Changed if f.stale => None,
            IoError::Changed => Some(Park::Changed),
            IoError::Busy => Some(Park::Busy),
            _ => Some(Park::Failed),
        };
        if let Some(why) = why {
            self.work.park_in(&f.dirs, f.work, why);
            if let Some((_, x)) = f.over {
                self.work.park_on(x, f.work);
            }
        }
        self.landed(&f);
    }

    /// A transfer for this inode ended, well or not: look again. A `Need` is repeated if the bytes are still missing.
    pub fn came(&mut self, inode: InodeId) {
        let Some(i) = self.inode_of(inode) else { return };
        let copies: Vec<InodeId> =
            self.copies.range((inode, Stamp::ZERO)..=(inode, Stamp::MAX)).map(|(_, c)| *c).collect();
        let copies: Vec<u32> = copies.into_iter().filter_map(|c| self.inode_of(c)).collect();
        for i in core::iter::once(i).chain(copies) {
            self.look_again(i, &[Park::Bytes, Park::Failed]);
            let heads = self.work.unpark_heads(i);
            self.heads_due.extend(heads);
        }
    }

    /// Nobody writes this file any more.
    pub fn released(&mut self, inode: InodeId) {
        if let Some(i) = self.inode_of(inode) {
            self.look_again(i, &[Park::Busy]);
        }
    }

    fn look_again(&mut self, i: u32, why: &[Park]) {
        let entries = self.entries_of(i).into_iter().map(Work::Entry);
        for w in entries.chain([Work::Inode(i)]) {
            for why in why {
                self.work.unpark_if(w, *why);
            }
        }
    }

    /// Disk was changed by others at this inode: what failed or is in flight there may go differently now.
    pub(in crate::tree) fn news(&mut self, i: u32) {
        self.work.news_of(i);
        self.look_again(i, &[Park::Changed]);
    }

    /// Try again everything that failed or waits.
    pub fn retry(&mut self) {
        let heads = self.work.retry();
        self.heads_due.extend(heads);
        self.heads_due.extend(self.heads.iter().copied());
    }

    /// Versions that are wanted here and are not in their file on disk. O(n).
    pub fn lacking(&self) -> Vec<(InodeId, Stamp)> {
        let mut out = Vec::new();
        for i in self.inodes.keys().filter(|i| matches!(self.inodes[*i].tag, Tag::File | Tag::Unknown)) {
            let (version, size, _) = self.winner(i);
            let due = size > 0 && (self.held(i).stamp != version || !self.on_disk(i));
            let entries = self.entries_of(i);
            if due && (entries.is_empty() || entries.iter().any(|e| self.entries[*e].has(LIVE))) {
                out.push((self.id_of(i), version));
            }
        }
        let held = |i: u32, v: Stamp| self.held(i).stamp == v && self.on_disk(i);
        let heads = self
            .heads
            .iter()
            .filter(|(i, v)| !held(*i, *v) && self.versions.get(&(*i, *v)).is_some_and(|v| v.size > 0));
        out.extend(heads.map(|(i, v)| (self.id_of(*i), *v)));
        out
    }

    /// Whether staged bytes of this version may still be asked for.
    pub fn wants(&self, inode: InodeId, version: Stamp) -> bool {
        let Some(i) = self.inode_of(inode) else { return false };
        let due = self.winner(i).0 == version && self.lacks_winner(i);
        due || self.work.is_busy(i)
            || (self.heads.contains(&(i, version)) && self.held(i).stamp != version)
            || self.feeds_copy(i, version)
    }

    /// The newest content is not on disk, and belongs there.
    fn lacks_winner(&self, i: u32) -> bool {
        let entries = self.entries_of(i);
        // Content may come before the name it belongs to.
        let named = entries.is_empty() || entries.iter().any(|e| self.entries[*e].has(LIVE));
        named && (self.held(i).stamp != self.winner(i).0 || !self.on_disk(i))
    }

    /// A losing version whose copy is known and does not hold its bytes on disk yet: they may be staged under the name of
    /// the version.
    pub(in crate::tree) fn feeds_copy(&self, i: u32, lost: Stamp) -> bool {
        let Some(v) = self.versions.get(&(i, lost)) else { return false };
        let Some(c) = self.copy_of(self.id_of(i), lost).and_then(|c| self.inode_of(c)) else { return false };
        let (winner, size, digest) = self.winner(c);
        let same = winner.is_zero() || (size, digest) == (v.size, v.digest);
        (same && self.lacks_winner(c)) || self.work.is_busy(c)
    }
}
