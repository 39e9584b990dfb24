//! The checkpoint and the replay of the log.
//!
//! Keys: `i` and an inode's id for everything known of it (operations, disk, moves), `k` for a kept copy, `c` for the cut.
//! Pages are taken while operations go on; what changes after its page was taken is paged again. So, once
//! [`Tree::take_dirty`] returns fewer than asked for, all pages together are the exact state of that moment, and the log
//! needs to be replayed from there. Replaying records from before it does no harm: repeats change nothing.

use super::model::*;
use super::slab::NONE;
use super::{Damaged, Put, ROOT, StateRecord, Tree};
use crate::action::{LogRecord, Spot};
use crate::event::Witness;
use crate::ids::{InodeId, ReplicaId};
use crate::time::{Hlc, Stamp};
use alloc::boxed::Box;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// An inode in the checkpoint.
#[derive(Serialize, Deserialize)]
struct Page {
    state: StateRecord,
    /// Moves that would make a cycle.
    skipped: Vec<Stamp>,
    /// For each entry of `state`, and those that were forgotten: where it stands on disk.
    spots: Vec<Option<Spot>>,
    /// Entries that the cluster forgot; their spots come last.
    forgotten: Vec<super::EntryRecord>,
    held: Option<HeldContent>,
    witness: Witness,
    attrs_due: bool,
    /// Versions that may have lost.
    heads: Vec<Stamp>,
}

fn put_stamp(key: &mut Vec<u8>, s: Stamp) {
    key.extend_from_slice(&s.time.0.to_be_bytes());
    key.extend_from_slice(&s.replica.0.to_be_bytes());
}

fn get_stamp(b: &[u8]) -> Option<Stamp> {
    let time = Hlc(u64::from_be_bytes(b.get(..8)?.try_into().ok()?));
    let replica = ReplicaId(u64::from_be_bytes(b.get(8..16)?.try_into().ok()?));
    Some(Stamp { time, replica })
}

fn get_id(b: &[u8]) -> Option<InodeId> {
    Some(InodeId(u128::from_be_bytes(b.get(..16)?.try_into().ok()?)))
}

fn inode_key(id: InodeId) -> Box<[u8]> {
    let mut key = alloc::vec![b'i'];
    key.extend_from_slice(&id.0.to_be_bytes());
    key.into()
}

pub(super) fn copy_key(inode: InodeId, lost: Stamp) -> Box<[u8]> {
    let mut key = alloc::vec![b'k'];
    key.extend_from_slice(&inode.0.to_be_bytes());
    put_stamp(&mut key, lost);
    key.into()
}

pub(super) fn cut_key() -> Box<[u8]> {
    Box::from(&b"c"[..])
}

impl Tree {
    /// Up to `max` changed pages of the checkpoint. Fewer: all pages taken so far are the exact state of this moment.
    pub fn take_dirty(&mut self, max: usize) -> Vec<Put> {
        let mut out: Vec<Put> = Vec::new();
        while out.len() < max {
            if let Some(i) = self.dirty.pop_first() {
                if self.inodes.get(i).is_some() {
                    let page = postcard::to_allocvec(&self.page(i)).ok().map(Vec::into_boxed_slice);
                    out.push((inode_key(self.id_of(i)), page));
                }
            } else if let Some(id) = self.gone.pop_first() {
                out.push((inode_key(id), None));
            } else if let Some(key) = self.dirty_keys.pop_first() {
                let value = self.side_value(&key);
                out.push((key, value));
            } else {
                break;
            }
        }
        out
    }

    fn side_value(&self, key: &[u8]) -> Option<Box<[u8]>> {
        let mut value = Vec::new();
        match key.split_first()? {
            (b'c', _) => put_stamp(&mut value, self.cut),
            (b'k', rest) => {
                let copy = self.copies.get(&(get_id(rest)?, get_stamp(rest.get(16..)?)?))?;
                value.extend_from_slice(&copy.0.to_be_bytes());
            }
            _ => return None,
        }
        Some(value.into())
    }

    fn page(&self, i: u32) -> Page {
        let mut entries = self.entries_of(i);
        // In the order of the state record, then the forgotten ones.
        entries.sort_by_key(|e| self.entries[*e].has(FORGOTTEN));
        let spots = entries.iter().map(|e| self.seat(*e).map(|s| self.spot_of(&s, *e))).collect();
        let forgotten = entries.iter().filter(|e| self.entries[**e].has(FORGOTTEN));
        let forgotten = forgotten.map(|e| self.stored_entry(*e)).collect();
        let moves = entries.iter().flat_map(|e| self.moves_of(*e));
        let n = &self.inodes[i];
        let held = self.held(i);
        Page {
            state: self.state_record(i),
            skipped: moves.filter(|s| self.moves.get(s).is_some_and(|m| m.skipped)).collect(),
            spots,
            forgotten,
            held: (self.on_disk(i) && (!held.stamp.is_zero() || held.bytes.is_none())).then_some(held),
            witness: n.witness,
            // What is in flight is not there yet.
            attrs_due: n.has(ATTR_DUE) || (self.on_disk(i) && self.work.is_busy(i)),
            heads: self.heads.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, s)| *s).collect(),
        }
    }

    fn stored_entry(&self, e: u32) -> super::EntryRecord {
        let place = self.placement(e).map(|p| super::PlaceRecord {
            stamp: p.stamp,
            parent: self.id_of(p.parent),
            name: p.name,
            base: true,
        });
        super::EntryRecord { id: self.entries[e].id(), places: place.into_iter().collect(), removed: Vec::new() }
    }

    /// Takes in one record of the checkpoint. Records may come in any order; afterwards [`Tree::finish_load`].
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        self.loading = true;
        match key.split_first() {
            Some((b'c', [])) => self.cut = get_stamp(value).ok_or(Damaged("cut"))?,
            Some((b'k', rest)) => {
                let (inode, lost) = get_id(rest).zip(rest.get(16..).and_then(get_stamp)).ok_or(Damaged("copy key"))?;
                let copy = get_id(value).ok_or(Damaged("copy"))?;
                self.copies.insert((inode, lost), copy);
                self.copy_of.insert(copy, (inode, lost));
            }
            Some((b'i', rest)) => {
                let id = get_id(rest).filter(|_| rest.len() == 16).ok_or(Damaged("inode key"))?;
                let page: Page = postcard::from_bytes(value).map_err(|_| Damaged("inode"))?;
                if page.state.inode != id {
                    return Err(Damaged("inode under another key"));
                }
                self.load_page(page)?;
            }
            _ => return Err(Damaged("key")),
        }
        Ok(())
    }

    fn load_page(&mut self, page: Page) -> Result<(), Damaged> {
        let Page { state: r, skipped, spots, forgotten, held, witness, attrs_due, heads } = page;
        let i = self.intern_inode(r.inode, r.cut);
        if self.inodes[i].entry != NONE || r.entries.len() + forgotten.len() != spots.len() {
            return Err(Damaged("inode stored twice, or its entries"));
        }
        if let Some((stamp, kind)) = &r.make {
            self.set_make(i, *stamp, kind);
        }
        self.set_mode(i, r.mode.0, r.mode.1);
        self.set_owner(i, r.owner.0, r.owner.1, r.owner.2);
        self.set_times(i, r.times.0, r.times.1, r.mtime);
        for x in r.xattrs {
            self.set_xattr(i, x.stamp, &x.name, x.value.map(|v| v.into_vec()));
        }
        let short = self.replicas.shorten(r.content.0).ok_or(Damaged("too many replicas"))?;
        let n = &mut self.inodes[i];
        (n.content, n.size, n.digest) = (short, r.content.1, r.content.2);
        n.set_mtime(r.mtime);
        n.witness = witness;
        n.set(ATTR_DUE, attrs_due);
        for v in r.versions {
            self.versions.insert((i, v.stamp), v);
            self.version_ages.insert((v.stamp, i));
        }
        self.heads.extend(heads.into_iter().map(|s| (i, s)));
        for (id, removal) in r.early {
            self.early.entry(id).or_default().push(removal);
        }
        let known = r.entries.len();
        for (n, (record, spot)) in r.entries.into_iter().chain(forgotten).zip(spots).enumerate() {
            let e = self.intern_entry(record.id, i);
            if self.entries[e].inode != i {
                return Err(Damaged("entry of two inodes"));
            }
            self.load_entry(e, record, &skipped)?;
            self.entries[e].set(FORGOTTEN, n >= known);
            if let Some(spot) = spot {
                self.load_spot(e, spot);
            }
        }
        match held {
            Some(h) if h.stamp.is_zero() => self.set_torn(i),
            Some(h) => self.set_held(i, h.stamp, h.bytes),
            None => {}
        }
        Ok(())
    }

    fn load_entry(&mut self, e: u32, record: super::EntryRecord, skipped: &[Stamp]) -> Result<(), Damaged> {
        let dir = self.inodes[self.entries[e].inode].tag;
        let logs = self.entries[e].has(FIRST) && matches!(dir, Tag::Dir | Tag::Unknown);
        let mut force: Option<Place> = None;
        let all = record.places.len();
        for p in record.places {
            let parent = self.intern_inode(p.parent, p.stamp);
            self.replicas.shorten(p.stamp).ok_or(Damaged("too many replicas"))?;
            let place = Place { stamp: p.stamp, parent, name: p.name };
            if logs {
                self.inodes[parent].set(PARENT, true);
            }
            if logs && !p.base {
                self.entries[e].set(LOGGED, true);
                self.hold_parent(parent);
                let skip = skipped.contains(&p.stamp);
                if !skip {
                    force = Some(place.clone());
                }
                if self.moves.contains_key(&p.stamp) {
                    return Err(Damaged("two moves at one time"));
                }
                self.moves.insert(p.stamp, Move { entry: e, parent, name: place.name, skipped: skip });
                self.moves_of.insert((e, p.stamp));
            } else {
                if logs && all > 1 {
                    self.hold_parent(parent);
                    self.base.insert(e, place.clone());
                }
                force = Some(place);
            }
        }
        if force.is_some() {
            self.set_place(e, force);
        }
        if !record.removed.is_empty() {
            self.entries[e].set(REMOVED, true);
            self.removed.insert(e, record.removed);
            self.bury(e);
        }
        Ok(())
    }

    fn load_spot(&mut self, e: u32, spot: Spot) {
        match spot {
            Spot::At { parent, name } => {
                let p = self.intern_inode(parent, Stamp::ZERO);
                let n = &self.entries[e];
                if n.parent == p && n.name.as_ref() == Some(&name) {
                    // Nearly all: `finish_load` corrects it for those that are not live.
                    self.hold_parent(p);
                    self.inodes[p].disk_kids += 1;
                    self.entries[e].set(HERE, true);
                } else {
                    self.set_seat(e, Some(Seat::At(p, name)));
                }
            }
            Spot::Limbo(_) => self.set_seat(e, Some(Seat::Limbo)),
        }
    }

    /// All records are in: what they left open is derived, and what disk lacks becomes work.
    pub fn finish_load(&mut self) {
        self.loading = true;
        let entries: Vec<u32> = self.entries.keys().collect();
        for e in &entries {
            self.refresh(*e);
        }
        while let Some(i) = self.recheck.pop_first() {
            if let Some(e) = self.inodes.get(i).map(|n| n.entry).filter(|e| *e != NONE) {
                self.refresh(e);
            }
        }
        for e in &entries {
            let n = &self.entries[*e];
            if n.has(HERE) && !n.has(LIVE) {
                let (p, name) = (n.parent, n.name.clone());
                if let Some(name) = name {
                    self.moved.insert((p, name_hash(&name), *e));
                    self.spots.insert(*e, Seat::At(p, name));
                }
                self.entries[*e].set(HERE, false);
                self.entries[*e].set(ELSEWHERE, true);
            }
            if self.entries[*e].has(FORGOTTEN) {
                self.bury(*e);
            }
        }
        self.loading = false;
        self.touched.clear();
        self.sum_all();
        for e in entries {
            self.call_entry(e);
        }
        let inodes: Vec<u32> = self.inodes.keys().collect();
        for i in inodes {
            if i != ROOT && self.inodes[i].entry == NONE {
                self.orphans.insert((Stamp::ZERO, i));
            }
            self.call_inode(i);
        }
        self.heads_due = self.heads.clone();
        self.dirty.clear();
        self.gone.clear();
        self.dirty_keys.clear();
    }

    /// Takes in a record of the log again, after [`Tree::finish_load`], in the order in which they were written.
    pub fn replay(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Op { op, here: None } => self.integrate(op.stamp(), &op.body),
            LogRecord::Op { op, here: Some(witness) } => self.integrate_here(op.stamp(), &op.body, *witness),
            LogRecord::Holds { inode, version, witness, attrs } => {
                if let Some(i) = self.inode_of(*inode).filter(|i| self.on_disk(*i)) {
                    self.set_held(i, *version, None);
                    self.inodes[i].witness = *witness;
                    self.inodes[i].set(ATTR_DUE, !*attrs);
                    self.call_inode(i);
                    self.call_heads(i);
                }
            }
            LogRecord::Stands { entry, spot } => self.stands(*entry, spot.as_ref()),
            LogRecord::Kept { inode, lost, copy } => {
                self.note_copy(*inode, *lost, *copy);
                if let Some(i) = self.inode_of(*inode) {
                    self.settle_head(i, *lost);
                    self.settle();
                }
            }
            // Merged by the owner, who knows what was known then.
            LogRecord::State { .. } | LogRecord::Absent { .. } => {}
            LogRecord::Member(_) | LogRecord::Life(_) | LogRecord::Raft(_) | LogRecord::Alone => {}
        }
    }

    /// All of the log is in. What seems to stand in a directory that stands nowhere does not stand there.
    pub fn finish_replay(&mut self) {
        let astray: Vec<u32> =
            self.entries.keys().filter(|e| self.seat_dir(*e).is_some_and(|d| !self.dir_stands(d))).collect();
        for e in astray {
            self.lose(e, &mut Vec::new());
        }
    }
}
