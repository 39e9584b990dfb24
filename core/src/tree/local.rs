//! Changes made in `backing` here become operations.

use super::model::*;
use super::{LocalOp, LocalOutcome, Mint, Tree};
use crate::action::{LogRecord, Refused};
use crate::event::{Change, Witness};
use crate::ids::{EntryId, InodeId, Name};
use crate::op::{Attr, Attrs, ContentDigest, Kind, Make, OpBody};
use crate::time::{Stamp, UnixTime};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Remembered numbers of generations, beyond which they are found again by counting.
const GENERATIONS_MAX: usize = 65_536;

type Outcome = Result<LocalOutcome, Refused>;

/// Issues operations of one change.
struct Issue<'a, 'm> {
    mint: &'a mut Mint<'m>,
    ops: Vec<LocalOp>,
    records: Vec<LogRecord>,
}

impl Tree {
    /// A change that was made in `backing` here: becomes operations, which are integrated as standing there already.
    ///
    /// Names are those on disk. A name or inode that is not known there is refused with [`Refused::Unknown`] and changes
    /// nothing; what is known but cannot be (a file as a directory) too.
    pub fn local(&mut self, change: &Change, mint: &mut Mint<'_>) -> Outcome {
        let mut issue = Issue { mint, ops: Vec::new(), records: Vec::new() };
        let i = match change {
            Change::Create { parent, name, kind, attrs, witness } => {
                self.local_create(*parent, name, kind, *attrs, *witness, &mut issue)?
            }
            Change::Link { inode, parent, name, witness } => {
                self.local_link(*inode, *parent, name, *witness, &mut issue)?
            }
            Change::Rename { parent, name, new_parent, new_name, exchange } => {
                self.local_rename((*parent, name), (*new_parent, new_name), *exchange, &mut issue)?
            }
            Change::Remove { parent, name } => {
                let e = self.known_name(*parent, name)?.1;
                let i = self.entries[e].inode;
                let id = self.id_of(i);
                self.news(i);
                self.issue_remove(e, &mut issue);
                return Ok(LocalOutcome { inode: id, ops: issue.ops, records: issue.records });
            }
            Change::Attr { inode, attr, witness } => self.local_attr(*inode, attr, *witness, &mut issue)?,
            Change::Content { inode, size, digest, mtime, witness, .. } => {
                self.local_content(*inode, (*size, *digest), *mtime, *witness, &mut issue)?
            }
            Change::Lost { parent, name } => {
                let e = self.known_name(*parent, name)?.1;
                let i = self.entries[e].inode;
                self.lose(e, &mut issue.records);
                i
            }
            Change::Torn { inode, witness } => {
                let i = self.known_inode(*inode)?;
                if self.inodes[i].tag != Tag::File {
                    return Err(Refused::Unknown);
                }
                self.set_torn(i);
                self.inodes[i].witness = *witness;
                self.inodes[i].set(ATTR_DUE, true);
                // The log cannot say that the bytes are nobody's: after another crash they are to be looked at again.
                let unseen = Witness { disk: witness.disk, sum: 0 };
                issue.records.push(LogRecord::Holds {
                    inode: *inode,
                    version: Stamp::ZERO,
                    witness: unseen,
                    attrs: false,
                });
                self.call_inode(i);
                self.call_heads(i);
                i
            }
            Change::Touch { inode, witness } => {
                let i = self.known_inode(*inode)?;
                self.see(i, *witness, &mut issue);
                i
            }
        };
        self.news(i);
        Ok(LocalOutcome { inode: self.id_of(i), ops: issue.ops, records: issue.records })
    }

    fn known_inode(&self, inode: InodeId) -> Result<u32, Refused> {
        self.inode_of(inode).filter(|i| self.on_disk(*i)).ok_or(Refused::Unknown)
    }

    fn known_dir(&self, dir: InodeId) -> Result<u32, Refused> {
        self.inode_of(dir).filter(|d| self.dir_stands(*d)).ok_or(Refused::Unknown)
    }

    fn known_name(&mut self, dir: InodeId, name: &Name) -> Result<(u32, u32), Refused> {
        let d = self.known_dir(dir)?;
        let e = self.disk_child(d, name).ok_or(Refused::Unknown)?;
        self.work.news_in(d);
        Ok((d, e))
    }

    fn issue(&mut self, body: OpBody, witness: Witness, to: &mut Issue<'_, '_>) -> Stamp {
        let stamp = (to.mint)();
        self.integrate_here(stamp, &body, witness);
        to.ops.push(LocalOp { stamp, body, here: Some(witness) });
        stamp
    }

    /// The disk object looks different, and nothing else.
    fn see(&mut self, i: u32, witness: Witness, to: &mut Issue<'_, '_>) {
        if self.inodes[i].witness != witness {
            self.inodes[i].witness = witness;
            self.dirty.insert(i);
            let record = self.holds_record(i);
            to.records.push(record);
        }
    }

    /// An entry vanished from disk without anybody's will, and with a directory what was in it.
    pub(super) fn lose(&mut self, e: u32, records: &mut Vec<LogRecord>) {
        let mut todo = alloc::vec![e];
        let mut gone = BTreeSet::new();
        while let Some(e) = todo.pop() {
            if !gone.insert(e) {
                continue;
            }
            let dir = self.entries[e].inode;
            if self.inodes[dir].tag == Tag::Dir {
                let range = (dir, 0, 0)..=(dir, u32::MAX, u32::MAX);
                let here = self.names.range(range.clone()).filter(|(_, _, e)| self.entries[*e].has(HERE));
                todo.extend(here.chain(self.moved.range(range)).map(|(_, _, e)| *e));
            }
        }
        for e in gone {
            let (entry, i) = (self.entries[e].id(), self.entries[e].inode);
            self.set_seat(e, None);
            self.call_heads(i);
            records.push(LogRecord::Stands { entry, spot: None });
        }
    }

    fn issue_remove(&mut self, e: u32, to: &mut Issue<'_, '_>) {
        let i = self.entries[e].inode;
        let witness = self.inodes[i].witness;
        let entry = self.entries[e].id();
        if self.entries[e].has(LIVE) && !self.entries[e].has(FORGOTTEN) {
            let others: Vec<u32> = self.entries_of(i).into_iter().filter(|o| *o != e).collect();
            let last = !others.iter().any(|o| self.entries[*o].has(LIVE));
            // Under a name that others deleted and that still stands here he sees the bytes live on: he speaks for no later
            // ones than they did.
            let doomed = others.into_iter().filter(|o| self.is_seated(*o) && !self.entries[*o].has(LIVE));
            let theirs = doomed.filter_map(|o| self.removal(o)).map(|(_, saw)| saw).min();
            let held = self.held(i).stamp;
            let saw = theirs.map_or(held, |theirs| theirs.min(held));
            self.issue(OpBody::Remove { entry, saw, last }, witness, to);
        } else {
            // It was deleted by somebody else already, only not on this disk: now it is.
            self.touch(i);
            self.set_seat(e, None);
            self.settle();
            to.records.push(LogRecord::Stands { entry, spot: None });
        }
    }

    fn issue_place(&mut self, e: u32, parent: InodeId, name: &Name, to: &mut Issue<'_, '_>) {
        let i = self.entries[e].inode;
        let witness = self.inodes[i].witness;
        let (entry, inode, name) = (self.entries[e].id(), self.id_of(i), name.clone());
        self.issue(OpBody::Place { entry, inode, parent, name, make: None }, witness, to);
    }

    /// Places an entry anew where it is placed. It may stand elsewhere on disk.
    fn issue_confirm(&mut self, e: u32, parent: InodeId, name: &Name, to: &mut Issue<'_, '_>) {
        let (entry, inode) = (self.entries[e].id(), self.id_of(self.entries[e].inode));
        let body = OpBody::Place { entry, inode, parent, name: name.clone(), make: None };
        let stamp = (to.mint)();
        self.integrate(stamp, &body);
        to.ops.push(LocalOp { stamp, body, here: None });
    }

    /// Somebody here builds on something that stands on disk but was deleted by others, who may have forgotten it already:
    /// it is made anew where it stands, directories above it first. Returns the inode that it is from now on.
    fn ensure_live(&mut self, i: u32, with_content: bool, to: &mut Issue<'_, '_>) -> Result<u32, Refused> {
        let live = |e: &u32| self.entries[*e].has(LIVE) && !self.entries[*e].has(FORGOTTEN);
        let entries = self.entries_of(i);
        if i == super::ROOT || entries.iter().any(live) {
            return Ok(i);
        }
        let seats = self.seats(i);
        self.locate(self.id_of(i)).ok_or(Refused::Unknown)?; // It has a way up: what follows ends.
        let first = seats.iter().find(|(e, _)| self.entries[*e].has(FIRST)).or(seats.first());
        let Some((e, Seat::At(dir, name))) = first.cloned() else { return Err(Refused::Unknown) };
        let dir = self.ensure_live(dir, false, to)?;
        let (parent, kind) = (self.id_of(dir), self.kind(i).ok_or(Refused::Unknown)?);
        let (held, witness, attrs) = (self.held(i), self.inodes[i].witness, self.attrs(i));
        let xattrs = self.xattrs(self.id_of(i));
        let due = self.inodes[i].has(ATTR_DUE) || self.work.is_busy(i);
        let (entry, n) = if self.entries[e].has(FIRST) {
            (self.entries[e].id(), i)
        } else {
            // Only what created an inode can create it again: the file begins a life of its own.
            self.touch(i);
            self.set_seat(e, None);
            self.settle();
            to.records.push(LogRecord::Stands { entry: self.entries[e].id(), spot: None });
            let (entry, _) = self.generation((dir, name_hash(&name)), &|g| EntryId::derive(parent, &name, &kind, g));
            (entry, self.intern_inode(entry.first_inode(), Stamp::ZERO))
        };
        let inode = entry.first_inode();
        let make = Some(Box::new(Make { kind, attrs }));
        self.issue(OpBody::Place { entry, inode, parent, name, make }, witness, to);
        if let Some((size, digest)) = held.bytes.filter(|(size, _)| (with_content || n != i) && *size > 0) {
            let body = OpBody::SetContent { inode, base: Stamp::ZERO, size, digest, mtime: attrs.mtime };
            self.issue(body, witness, to);
        }
        for (name, value) in xattrs {
            let attr = Attr::Xattr { name, value: Some(serde_bytes::ByteBuf::from(value.into_vec())) };
            self.issue(OpBody::SetAttr { inode, attr }, witness, to);
        }
        if n != i && due {
            self.inodes[n].set(ATTR_DUE, true);
            to.records.push(self.holds_record(n));
            self.call_inode(n);
        }
        Ok(n)
    }

    /// The smallest generation whose id is unused. Also the id of the one before it.
    fn generation(&mut self, key: (u32, u32), id: &dyn Fn(u32) -> EntryId) -> (EntryId, Option<EntryId>) {
        let used = |g: u32| {
            let id = id(g);
            self.by_entry.contains_key(&id) || self.inode_of(id.first_inode()).is_some() || self.early.contains_key(&id)
        };
        let mut g = self.generations.get(&key).copied().filter(|g| *g > 0 && used(*g - 1)).unwrap_or(0);
        while used(g) {
            g += 1;
        }
        if self.generations.len() >= GENERATIONS_MAX {
            self.generations.clear();
        }
        if g > 0 {
            self.generations.insert(key, g);
        } else {
            self.generations.remove(&key);
        }
        (id(g), g.checked_sub(1).map(id))
    }

    fn local_create(
        &mut self,
        parent: InodeId,
        name: &Name,
        kind: &Kind,
        attrs: Attrs,
        witness: Witness,
        to: &mut Issue<'_, '_>,
    ) -> Result<u32, Refused> {
        let p = self.known_dir(parent)?;
        self.work.news_in(p);
        if let Some(old) = self.disk_child(p, name) {
            self.issue_remove(old, to);
        }
        self.ensure_live(p, false, to)?;
        let (new, last) = self.generation((p, name_hash(name)), &|g| EntryId::derive(parent, name, kind, g));
        // Somebody else created the same thing and it has not come to disk here yet, nor is about to: then it is this one.
        let waiting = last.filter(|id| {
            self.entry_of(*id).is_some_and(|e| {
                let n = &self.entries[e];
                n.has(LIVE) && !self.shows(n.inode) && n.parent == p && n.name.as_ref() == Some(name)
            })
        });
        let entry = waiting.unwrap_or(new);
        let inode = entry.first_inode();
        let make = Some(Box::new(Make { kind: kind.clone(), attrs }));
        self.issue(OpBody::Place { entry, inode, parent, name: name.clone(), make }, witness, to);
        self.inode_of(inode).ok_or(Refused::Limit)
    }

    fn local_link(
        &mut self,
        inode: InodeId,
        parent: InodeId,
        name: &Name,
        witness: Witness,
        to: &mut Issue<'_, '_>,
    ) -> Result<u32, Refused> {
        let mut i = self.known_inode(inode)?;
        let p = self.known_dir(parent)?;
        if self.inodes[i].tag == Tag::Dir {
            return Err(Refused::Unknown);
        }
        self.work.news_in(p);
        if let Some(old) = self.disk_child(p, name) {
            if self.entries[old].inode == i {
                self.see(i, witness, to);
                return Ok(i);
            }
            self.issue_remove(old, to);
        }
        self.ensure_live(p, false, to)?;
        i = self.ensure_live(i, true, to)?;
        let inode = self.id_of(i);
        // A name that only newer content brought back would be gone again as soon as there is another one.
        for e in self.entries_of(i) {
            if self.entries[e].has(LIVE) && !self.unremoved(e) {
                let Some(place) = self.placement(e) else { continue };
                let parent = self.id_of(place.parent);
                if self.is_seated(e) {
                    self.issue_confirm(e, parent, &place.name, to);
                }
            }
        }
        let (entry, last) = self.generation((p, name_hash(name)), &|g| EntryId::derive_link(parent, name, inode, g));
        let waiting = last.filter(|id| {
            self.entry_of(*id).is_some_and(|e| {
                let n = &self.entries[e];
                n.has(LIVE)
                    && !self.is_seated(e)
                    && !self.work.is_busy(i)
                    && n.parent == p
                    && n.name.as_ref() == Some(name)
            })
        });
        let entry = waiting.unwrap_or(entry);
        self.issue(OpBody::Place { entry, inode, parent, name: name.clone(), make: None }, witness, to);
        Ok(i)
    }

    fn local_rename(
        &mut self,
        from: (InodeId, &Name),
        into: (InodeId, &Name),
        exchange: bool,
        to: &mut Issue<'_, '_>,
    ) -> Result<u32, Refused> {
        let (from_dir, e) = self.known_name(from.0, from.1)?;
        let d = self.known_dir(into.0)?;
        self.work.news_in(d);
        let mut e = e;
        let mut i = self.entries[e].inode;
        let target = self.disk_child(d, into.1);
        if target.is_some_and(|t| t != e && self.entries[t].inode == i) || target == Some(e) {
            return Ok(i); // Two names of one file: rename(2) does nothing.
        }
        self.ensure_live(d, false, to)?;
        if exchange && let Some(t) = target {
            self.ensure_live(from_dir, false, to)?;
            self.ensure_live(self.entries[t].inode, true, to)?;
        }
        i = self.ensure_live(i, true, to)?;
        let target = self.disk_child(d, into.1);
        e = self.disk_child(from_dir, from.1).ok_or(Refused::Unknown)?;
        match target {
            Some(t) if exchange => {
                self.news(self.entries[t].inode);
                self.issue_place(e, into.0, into.1, to);
                self.issue_place(t, from.0, from.1, to);
                return Ok(i);
            }
            None if exchange => return Err(Refused::Unknown),
            Some(t) => {
                self.news(self.entries[t].inode);
                self.issue_remove(t, to);
            }
            None => {}
        }
        self.issue_place(e, into.0, into.1, to);
        Ok(i)
    }

    fn local_attr(
        &mut self,
        inode: InodeId,
        attr: &Attr,
        witness: Witness,
        to: &mut Issue<'_, '_>,
    ) -> Result<u32, Refused> {
        let i = self.known_inode(inode)?;
        self.issue(OpBody::SetAttr { inode, attr: attr.clone() }, witness, to);
        Ok(i)
    }

    fn local_content(
        &mut self,
        inode: InodeId,
        bytes: (u64, ContentDigest),
        mtime: UnixTime,
        witness: Witness,
        to: &mut Issue<'_, '_>,
    ) -> Result<u32, Refused> {
        let i = self.known_inode(inode)?;
        if self.inodes[i].tag != Tag::File {
            return Err(Refused::Unknown);
        }
        let (size, digest) = bytes;
        let held = self.held(i);
        let winner = self.winner(i);
        let atime = self.inodes[i].atime();
        let newest = self.inodes[i].mtime();
        if held.bytes == Some(bytes) {
            // The bytes are the same. A time that is not the newest one known was set by somebody here.
            if held.stamp == winner.0 && mtime != newest {
                self.issue(OpBody::SetAttr { inode, attr: Attr::Times { atime, mtime } }, witness, to);
            }
            self.see(i, witness, to);
        } else if (winner.1, winner.2) == bytes && !winner.0.is_zero() && !self.heads.contains(&(i, held.stamp)) {
            // What others wrote meanwhile, and nothing of ours is overwritten by it.
            self.set_held(i, winner.0, None);
            self.inodes[i].witness = witness;
            if mtime != newest {
                self.inodes[i].set(ATTR_DUE, true);
            }
            self.call_inode(i);
            self.call_heads(i);
            let record = self.holds_record(i);
            to.records.push(record);
        } else {
            let i = self.ensure_live(i, false, to)?;
            let (inode, base) = (self.id_of(i), self.held(i).stamp);
            self.issue(OpBody::SetContent { inode, base, size, digest, mtime }, witness, to);
        }
        self.call_inode(i);
        Ok(self.inode_of(inode).filter(|i| self.on_disk(*i)).unwrap_or(i))
    }
}
