//! What a scan finds on disk, and what the tree makes of it without an operation.
//!
//! After a crash disk and log need not tell the same story: what was carried out may not be recorded any more, what was
//! recorded may have been undone. Taking the difference for an edit of today would let old states win over newer ones that
//! others have acknowledged. So a scan first shows what it finds, and what can be explained by what is known (the place that
//! an entry should have or had, a version of the file) only changes what is believed to stand there. Operations come only of
//! the rest, through [`Tree::local`].

use super::heads::Verdict;
use super::model::*;
use super::names::{MARK, conflict_name};
use super::plan::Kept;
use super::{Tree, Version};
use crate::action::{LogRecord, Refused, Sighting, Spot};
use crate::event::{Found, Thing, Witness};
use crate::ids::{EntryId, InodeId, Name};
use crate::op::{ContentDigest, Kind};
use crate::time::Stamp;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Something that was removed here not long ago: a machine crash may have undone that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// The directory it was removed from.
    pub parent: InodeId,
    /// Its name there.
    pub name: Name,
    /// As it last looked.
    pub witness: Witness,
    /// Size and digest of a file's bytes, if they were known.
    pub bytes: Option<(u64, ContentDigest)>,
}

/// Versions of files by their size and digest.
pub type ByBytes = BTreeMap<(u64, ContentDigest), Vec<(InodeId, Stamp)>>;

/// What was made under a name, the latest last.
pub type ByPlace = BTreeMap<(InodeId, Name), Vec<InodeId>>;

/// What the log knows of others' changes that may have been carried out without a record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Carried {
    /// Bytes that were given to files.
    pub bytes: ByBytes,
    /// Objects that were made, under the names that they had first. Later operations may have given them others.
    pub made: ByPlace,
}

/// What a machine crash may have brought back: what was removed, and older editions of files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bygone<'a> {
    /// Removed lately.
    pub removed: &'a [Removed],
    /// Replaced lately by another edition of the same file.
    pub replaced: &'a [Removed],
}

/// What came of showing something to the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// For the host.
    pub sighting: Sighting,
    /// What is believed differently now, to be logged.
    pub records: Vec<LogRecord>,
}

impl Tree {
    /// Takes note of what a scan found, as far as it needs no operation. With `lost` disk may also have gone back to an earlier
    /// state (the machine crashed), and `removed` names what such a crash may have brought back.
    pub fn found(&mut self, found: &Found, lost: bool, removed: &Bygone<'_>) -> Result<Seen, Refused> {
        let mut records = Vec::new();
        let here = match &found.at {
            Spot::Limbo(_) => Seat::Limbo,
            Spot::At { parent, name } => {
                let p = self.inode_of(*parent).filter(|d| self.dir_stands(*d)).ok_or(Refused::Unknown)?;
                self.work.news_in(p);
                Seat::At(p, name.clone())
            }
        };
        let seated = match (&here, &found.at) {
            (Seat::At(p, name), _) => self.disk_child(*p, name),
            (Seat::Limbo, Spot::Limbo(id)) => self.entry_of(*id).filter(|e| self.seat(*e) == Some(Seat::Limbo)),
            _ => None,
        };
        let Some(thing) = &found.thing else {
            let sighting = self.found_nothing(seated, lost, &mut records);
            return Ok(Seen { sighting, records });
        };
        let sighting = self.found_thing(&here, seated, found, thing, lost, removed, &mut records);
        Ok(Seen { sighting, records })
    }

    /// Something that is known may explain an object under this name: it is worth its digest to show it.
    pub fn may_explain(&self, dir: InodeId, name: &Name) -> bool {
        let Some(p) = self.inode_of(dir) else { return false };
        self.carried.as_ref().is_some_and(|c| !c.bytes.is_empty() || !c.made.is_empty())
            || name.as_bytes().windows(MARK.len()).any(|w| w == MARK)
            || !self.waiting_at(&(p, name.clone())).is_empty()
    }

    /// After a crash: what of others' changes the log knows. That it was carried out may not be recorded. Counts until
    /// [`Tree::scanned`].
    pub fn crashed(&mut self, carried: Carried) {
        self.carried = Some(carried);
    }

    /// Everything on disk was compared after the start.
    pub fn scanned(&mut self) {
        self.carried = None;
    }

    fn found_nothing(&mut self, seated: Option<u32>, lost: bool, records: &mut Vec<LogRecord>) -> Sighting {
        let Some(e) = seated else { return Sighting::Known(InodeId::ROOT) };
        let inode = self.id_of(self.entries[e].inode);
        let wanted_here = match (self.seat(e), self.desired(e)) {
            (Some(Seat::At(p, name)), desired) => desired == Some((p, name)),
            _ => false,
        };
        if wanted_here && !lost {
            return Sighting::Unknown; // Somebody took it away.
        }
        self.lose(e, records);
        Sighting::Known(inode)
    }

    #[allow(clippy::too_many_arguments)] // One place, spelled out.
    fn found_thing(
        &mut self,
        here: &Seat,
        seated: Option<u32>,
        found: &Found,
        thing: &Thing,
        lost: bool,
        removed: &Bygone<'_>,
        records: &mut Vec<LogRecord>,
    ) -> Sighting {
        let crashed = lost || self.carried.is_some();
        let known = thing.object.and_then(|o| self.inode_of(o)).filter(|j| self.kind(*j).as_ref() == Some(&thing.kind));
        if let Some(e) = seated {
            let i = self.entries[e].inode;
            let another = known.is_none() && self.inodes[i].witness.disk != thing.disk;
            // What is to go may have been replaced by what is to take its name.
            if another
                && self.desired(e).is_none()
                && let Some((heir, version)) = self.entry_that_waits(here, known, thing, crashed)
            {
                return self.take_seat(heir, here, thing.disk, Some(version), records);
            }
            // What stood here went on, and what came after it did not get as far.
            if another
                && self.version_of(i, thing.bytes, lost).is_none()
                && let Some((e, version)) = self.entry_carried_out(here, thing)
            {
                return self.take_seat(e, here, thing.disk, Some(version), records);
            }
            if self.kind(i).as_ref() == Some(&thing.kind) && known.is_none_or(|j| j == i) {
                let sighting = self.found_in_place(e, i, thing, lost, records);
                if another && *here == Seat::Limbo && sighting == Sighting::Unknown {
                    // An edition that nobody remembers, where nobody else looks: the entry is made anew.
                    self.unseat(e, records);
                    return Sighting::Aside;
                }
                return sighting;
            }
        }
        if let Some(e) = known.and_then(|j| self.entry_that_moved(j, here, found, lost)) {
            // Under a name the host looks at the bytes next, in limbo nobody does.
            let hidden = *here == Seat::Limbo && thing.kind == Kind::File;
            let version = if hidden { self.version_of(self.entries[e].inode, thing.bytes, lost) } else { None };
            if hidden && lost && version.is_none() {
                return Sighting::Aside;
            }
            return self.take_seat(e, here, thing.disk, version, records);
        }
        if let Some((e, version)) = self.entry_that_waits(here, known, thing, crashed) {
            return self.take_seat(e, here, thing.disk, Some(version), records);
        }
        if known.is_none()
            && let Some((e, version)) = self.entry_carried_out(here, thing)
        {
            return self.take_seat(e, here, thing.disk, Some(version), records);
        }
        if let Seat::At(p, name) = here {
            if let Some((i, v)) = self.unfinished_copy(known, *p, name, thing) {
                return self.take_copy(i, v, (*p, name), found, thing, records);
            }
            if known.is_none()
                && let Some(sighting) = self.torn_link(*p, name, thing, lost)
            {
                return sighting;
            }
        }
        let Spot::At { parent, name } = &found.at else {
            return Sighting::Aside; // Set aside by us, and nothing is known of it any more.
        };
        if lost && let Some(sighting) = self.was_removed(known, (*parent, name), thing, removed) {
            return sighting;
        }
        Sighting::Unknown
    }

    /// Which version of a file these bytes are. Without `lost` disk cannot have gone back.
    fn version_of(&self, i: u32, bytes: (u64, ContentDigest), lost: bool) -> Option<Stamp> {
        let held = self.held(i);
        let (winner, size, digest) = self.winner(i);
        if (size, digest) == bytes {
            return Some(winner);
        }
        if held.bytes == Some(bytes) {
            return Some(held.stamp);
        }
        let all = self.versions.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, v)| v);
        let same = all.filter(|v| (v.size, v.digest) == bytes && (lost || v.stamp > held.stamp));
        same.map(|v| v.stamp).max().or_else(|| (lost && bytes == (0, ContentDigest::EMPTY)).then_some(Stamp::ZERO))
    }

    /// The object stands where the tree believes its inode to stand; it may be another edition of it.
    fn found_in_place(&mut self, e: u32, i: u32, thing: &Thing, lost: bool, records: &mut Vec<LogRecord>) -> Sighting {
        let inode = self.id_of(i);
        let believed = self.inodes[i].witness.disk;
        let same = believed == thing.disk || believed == 0;
        if self.inodes[i].tag != Tag::File {
            if !same {
                self.take_edition(i, thing.disk, None, records);
            }
            return Sighting::Known(inode);
        }
        let held = self.held(i);
        let version = self.version_of(i, thing.bytes, lost);
        if same {
            return match version {
                Some(v) if v == held.stamp && held.bytes.is_some() => Sighting::Known(inode),
                Some(v) => {
                    self.take_edition(i, thing.disk, Some(v), records);
                    Sighting::Known(inode)
                }
                None => Sighting::Unknown,
            };
        }
        let newer = version.is_some_and(|v| v > held.stamp);
        if thing.twin && newer {
            // Bytes that must be kept have a name of their own by now, or get one first.
            return if self.is_overwritten(i) { Sighting::Newer(inode) } else { Sighting::Unknown };
        }
        if thing.twin {
            // Two objects where one file should be: the other one has the better bytes. This name is to be linked to it again.
            let sighting = match version {
                Some(v) if self.is_safe(i, v) => Sighting::Removed,
                None if !lost => return Sighting::Unknown,
                _ => Sighting::Aside,
            };
            self.unseat(e, records);
            return sighting;
        }
        match version {
            Some(v) => {
                self.take_edition(i, thing.disk, Some(v), records);
                Sighting::Known(inode)
            }
            None => Sighting::Unknown,
        }
    }

    /// The bytes of this version need not be kept for the sake of a conflict.
    fn is_safe(&self, i: u32, version: Stamp) -> bool {
        let held = self.held(i).stamp;
        version == held || !self.heads.contains(&(i, version)) || self.verdict(i, version) == Verdict::Drop
    }

    /// What disk is believed to hold of it need not be kept for the sake of a conflict.
    fn is_overwritten(&self, i: u32) -> bool {
        let held = self.held(i).stamp;
        !self.heads.contains(&(i, held)) || self.verdict(i, held) == Verdict::Drop
    }

    /// Another object, or other bytes, than what was believed stands for this inode.
    fn take_edition(&mut self, i: u32, disk: u64, version: Option<Stamp>, records: &mut Vec<LogRecord>) {
        self.news(i);
        if let Some(v) = version {
            self.set_held(i, v, None);
        }
        // Attributes were not compared: the host looks at them next.
        self.inodes[i].witness = Witness { disk, sum: 0 };
        self.dirty.insert(i);
        self.call_inode(i);
        self.call_heads(i);
        records.push(self.holds_record(i));
    }

    /// The entry of a known object that stands here now.
    fn entry_that_moved(&self, j: u32, here: &Seat, found: &Found, lost: bool) -> Option<u32> {
        let from = found.thing.as_ref().and_then(|t| t.from.as_ref());
        let left = |e: &u32| {
            let seat = self.seat(*e);
            seat.is_none() || seat.is_some_and(|s| Some(self.spot_of(&s, *e)).as_ref() == from)
        };
        let entries = self.entries_of(j);
        match (here, &found.at) {
            (Seat::Limbo, Spot::Limbo(id)) => {
                return entries.into_iter().find(|e| self.entries[*e].id() == *id && left(e));
            }
            (Seat::At(p, name), _) => {
                let wanted =
                    entries.iter().find(|e| self.desired(**e).as_ref() == Some(&(*p, name.clone())) && left(e));
                if let Some(e) = wanted {
                    return Some(*e);
                }
            }
            _ => {}
        }
        let gone = |e: &u32| self.is_seated(*e) && left(e);
        let e = entries.into_iter().find(gone)?;
        // Nobody moves what should not stand anywhere: it is one of several names that a crash brought back.
        (lost || self.seat(e) == Some(Seat::Limbo)).then_some(e)
    }

    /// An entry that should stand here and does not yet, and the version that would make it this object.
    fn entry_that_waits(&self, here: &Seat, known: Option<u32>, thing: &Thing, crashed: bool) -> Option<(u32, Stamp)> {
        let Seat::At(p, name) = here else { return None };
        let place = (*p, name.clone());
        for e in self.waiting_at(&place) {
            let i = self.entries[e].inode;
            if self.on_disk(i) || self.kind(i).as_ref() != Some(&thing.kind) {
                continue;
            }
            if let Some(j) = known {
                // Bytes that lost a conflict were given a further name; or an object is taken for two.
                let copied = |(_, v): (&(u32, Stamp), &Version)| self.copy_id(j, *v) == self.entries[e].id();
                if !self.versions.range((j, Stamp::ZERO)..=(j, Stamp::MAX)).any(copied) {
                    continue;
                }
            }
            if thing.kind != Kind::File {
                return Some((e, Stamp::ZERO));
            }
            let (winner, size, digest) = self.winner(i);
            if (size, digest) == thing.bytes {
                return Some((e, winner));
            }
            let all = self.versions.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, v)| v);
            let same = all.filter(|v| v.size > 0 && (v.size, v.digest) == thing.bytes).map(|v| v.stamp).max();
            // It was made before its bytes came.
            let bare = crashed && thing.bytes == (0, ContentDigest::EMPTY);
            if let Some(v) = same.or_else(|| bare.then_some(Stamp::ZERO)) {
                return Some((e, v));
            }
        }
        None
    }

    /// An object that stands nowhere and never did as far as is recorded: a file of which the log has these very bytes, or
    /// something without bytes that was first made under this name. It was made here for an operation that later ones
    /// renamed or removed. The plan does the same with it, then.
    fn entry_carried_out(&self, here: &Seat, thing: &Thing) -> Option<(u32, Stamp)> {
        let carried = self.carried.as_ref()?;
        let unrecorded = |inode: &InodeId| {
            let i = self.inode_of(*inode)?;
            let made = self.on_disk(i) || self.inodes[i].witness.disk != 0 || !self.held(i).stamp.is_zero();
            if made || self.kind(i).as_ref() != Some(&thing.kind) {
                return None;
            }
            let entries = self.entries_of(i);
            let alive = entries.iter().find(|e| self.desired(**e).is_some());
            alive.or(entries.first()).copied()
        };
        if thing.kind == Kind::File && thing.bytes.0 > 0 {
            let all = carried.bytes.get(&thing.bytes)?;
            return all.iter().find_map(|(inode, version)| Some((unrecorded(inode)?, *version)));
        }
        let Seat::At(p, name) = here else { return None };
        let all = carried.made.get(&(self.id_of(*p), name.clone()))?;
        all.iter().rev().find_map(|inode| Some((unrecorded(inode)?, Stamp::ZERO)))
    }

    /// Entries that should stand at a place and stand nowhere.
    fn waiting_at(&self, place: &(u32, Name)) -> Vec<u32> {
        let plain = self.group(place.0, &place.1);
        let mut all: Vec<u32> = plain;
        if place.1.as_bytes().windows(MARK.len()).any(|w| w == MARK) {
            // A clash shows an entry under another name than its register says.
            let range = (place.0, 0, 0)..=(place.0, u32::MAX, u32::MAX);
            all.extend(self.names.range(range).map(|(_, _, e)| *e).filter(|e| !self.is_seated(*e)));
        }
        all.retain(|e| !self.is_seated(*e) && self.desired(*e).as_ref() == Some(place));
        all
    }

    /// A name of a file that stands elsewhere as another object. It is to become a link to that one.
    fn torn_link(&self, p: u32, name: &Name, thing: &Thing, lost: bool) -> Option<Sighting> {
        for e in self.waiting_at(&(p, name.clone())) {
            let i = self.entries[e].inode;
            if !self.on_disk(i) || self.inodes[i].tag != Tag::File || thing.kind != Kind::File {
                continue;
            }
            if let Some(v) = self.version_of(i, thing.bytes, lost) {
                return Some(if self.is_safe(i, v) { Sighting::Removed } else { Sighting::Aside });
            }
        }
        None
    }

    /// Bytes that lost a conflict, given a name of their own before that was recorded.
    fn unfinished_copy(&self, known: Option<u32>, p: u32, name: &Name, thing: &Thing) -> Option<(u32, Version)> {
        if thing.kind != Kind::File || !name.as_bytes().windows(MARK.len()).any(|w| w == MARK) {
            return None;
        }
        let published = |i: u32, v: Stamp| self.kept.iter().any(|k| k.inode == i && k.version.stamp == v);
        let mut mine = self.heads.iter().filter(|(i, _)| known.is_none_or(|j| j == *i));
        mine.find_map(|(i, stamp)| {
            let v = self.versions.get(&(*i, *stamp)).filter(|v| (v.size, v.digest) == thing.bytes)?;
            if published(*i, *stamp) || !matches!(self.verdict(*i, *stamp), Verdict::Keep(_)) {
                return None;
            }
            let id = self.copy_id(*i, *v);
            let beside = |base: &Name| [8, 16, 32].iter().any(|d| conflict_name(base, *stamp, id, *d) == *name);
            let of = |e: u32| {
                let seat = match self.seat(e) {
                    Some(Seat::At(d, n)) if d == p => Some(n),
                    _ => None,
                };
                seat.is_some_and(|n| beside(&n)) || self.entries[e].name.as_ref().is_some_and(beside)
            };
            self.entries_of(*i).into_iter().any(of).then_some((*i, *v))
        })
    }

    fn take_copy(
        &mut self,
        i: u32,
        v: Version,
        (p, name): (u32, &Name),
        found: &Found,
        thing: &Thing,
        records: &mut Vec<LogRecord>,
    ) -> Sighting {
        let copy = self.copy_id(i, v).first_inode();
        // The last name of a deleted file becomes its copy by a move.
        let from = found.thing.as_ref().and_then(|t| t.from.clone());
        let left = self.seats(i).into_iter().find(|(e, s)| Some(self.spot_of(s, *e)) == from);
        if let Some((e, _)) = left {
            self.unseat(e, records);
        }
        self.news(i);
        let witness = Witness { disk: thing.disk, sum: 0 };
        let records = Vec::new();
        self.kept.push(Kept { inode: i, version: v, dir: p, name: name.clone(), witness, records });
        Sighting::Known(copy)
    }

    /// What a crash brought back goes again. File systems use inode numbers again: only the place or the bytes make sure that
    /// it is the same thing. What merely has the number is kept aside.
    fn was_removed(
        &self,
        known: Option<u32>,
        at: (InodeId, &Name),
        thing: &Thing,
        removed: &Bygone<'_>,
    ) -> Option<Sighting> {
        let file = thing.kind == Kind::File;
        let mut sighting = None;
        for r in removed.removed.iter().chain(removed.replaced).filter(|r| r.witness.disk == thing.disk) {
            let same_bytes = !file || r.bytes.is_none_or(|b| b == thing.bytes);
            let sure = file && thing.bytes.0 > 0 && r.bytes == Some(thing.bytes);
            match (r.parent, &r.name) == at {
                true if same_bytes => return Some(Sighting::Removed),
                // As it was before it was written and removed.
                true if file => sighting = Some(Sighting::Aside),
                // Of a file that has other names only the one was removed.
                false if known.is_none() && sure => return Some(Sighting::Removed),
                false if known.is_none() && same_bytes => sighting = Some(Sighting::Aside),
                _ => {}
            }
        }
        sighting
    }

    /// An entry stands here now. What was believed to stand here does not: it will be found elsewhere, or missing.
    fn take_seat(
        &mut self,
        e: u32,
        here: &Seat,
        disk: u64,
        version: Option<Stamp>,
        records: &mut Vec<LogRecord>,
    ) -> Sighting {
        let i = self.entries[e].inode;
        if let Seat::At(p, name) = here
            && let Some(other) = self.disk_child(*p, name).filter(|o| *o != e)
        {
            self.touch(self.entries[other].inode);
            self.set_seat(other, Some(Seat::Limbo));
            self.settle();
            records.push(self.stands_record(other));
        }
        self.news(i);
        self.touch(i);
        let fresh = !self.on_disk(i);
        self.set_seat(e, Some(here.clone()));
        if fresh {
            self.inodes[i].set(ATTR_DUE, true);
        }
        if let Some(v) = version.filter(|_| self.inodes[i].tag == Tag::File) {
            self.set_held(i, v, None);
        }
        self.inodes[i].witness = Witness { disk, sum: 0 };
        self.settle();
        self.call_inode(i);
        self.call_heads(i);
        records.push(self.stands_record(e));
        records.push(self.holds_record(i));
        Sighting::Known(self.id_of(i))
    }

    fn unseat(&mut self, e: u32, records: &mut Vec<LogRecord>) {
        let i = self.entries[e].inode;
        self.touch(i);
        self.set_seat(e, None);
        self.settle();
        self.call_heads(i);
        records.push(LogRecord::Stands { entry: self.entries[e].id(), spot: None });
    }

    /// What is about to be replaced by the edition with this disk number, as a crash might bring it back.
    pub fn outdated(&self, inode: InodeId, disk: u64) -> Vec<Removed> {
        let Some(i) = self.inode_of(inode).filter(|i| self.inodes[*i].tag == Tag::File) else { return Vec::new() };
        let (witness, bytes) = (self.inodes[i].witness, self.held(i).bytes);
        if witness.disk == 0 || witness.disk == disk {
            return Vec::new();
        }
        let spots = self.seats(i).into_iter().filter_map(|(_, seat)| match seat {
            Seat::At(p, name) => Some(Removed { parent: self.id_of(p), name, witness, bytes }),
            Seat::Limbo => None,
        });
        spots.collect()
    }

    /// What is about to be taken from disk by this record, as a crash might bring it back. For the replay of the log.
    pub fn leaving(&self, entry: EntryId) -> Option<Removed> {
        let e = self.entry_of(entry)?;
        let Some(Seat::At(p, name)) = self.seat(e) else { return None };
        let i = self.entries[e].inode;
        let bytes = (self.inodes[i].tag == Tag::File).then(|| self.held(i).bytes).flatten();
        Some(Removed { parent: self.id_of(p), name, witness: self.inodes[i].witness, bytes })
    }
}
