//! Placements: one register for what is not a directory, the move log for directories.

use super::model::*;
use super::slab::NONE;
use super::{ROOT, Tree};
use alloc::vec::Vec;

impl Tree {
    /// The placement in force.
    pub(super) fn placement(&self, e: u32) -> Option<Place> {
        let n = &self.entries[e];
        Some(Place { stamp: self.stamp(n.place), parent: n.parent, name: n.name.clone()? })
    }

    /// A directory, or something that may turn out to be one. Only the entry that made a directory names it.
    fn may_be_dir(&self, e: u32) -> bool {
        let n = &self.entries[e];
        n.has(FIRST) && matches!(self.inodes[n.inode].tag, Tag::Dir | Tag::Unknown)
    }

    /// A placement becomes known. The inode is touched already.
    pub(super) fn put(&mut self, e: u32, place: Place) {
        if self.may_be_dir(e) {
            self.log_move(e, place);
        } else if self.placement(e).is_none_or(|p| p.stamp < place.stamp) {
            self.set_place(e, Some(place));
        }
    }

    /// Puts a placement in force.
    pub(super) fn set_place(&mut self, e: u32, place: Option<Place>) {
        self.touch(self.entries[e].inode);
        self.set_live(e, false);
        let old = self.entries[e].parent;
        if let Some(p) = &place {
            self.hold_parent(p.parent);
        }
        let short = place.as_ref().and_then(|p| self.replicas.shorten(p.stamp)).unwrap_or_default();
        let n = &mut self.entries[e];
        n.place = short;
        n.parent = place.as_ref().map_or(NONE, |p| p.parent);
        n.name = place.map(|p| p.name);
        if old != NONE {
            self.drop_parent(old);
        }
        self.bury(e);
    }

    /// A placement refers to this directory: its slot must stay.
    pub(super) fn hold_parent(&mut self, p: u32) {
        self.inodes[p].refs += 1;
    }

    pub(super) fn drop_parent(&mut self, p: u32) {
        self.inodes[p].refs -= 1;
        if p != ROOT && self.inodes[p].refs == 0 {
            match self.inodes[p].entry {
                NONE => {
                    self.orphans.insert((self.cut, p));
                }
                e => self.bury(e),
            }
        }
    }

    /// It turned out not to be a directory: only its latest placement counts.
    pub(super) fn leave_log(&mut self, e: u32) {
        let stamps: Vec<_> = self.moves_of(e);
        let mut best = self.base.remove(&e);
        if let Some(b) = &best {
            self.drop_parent(b.parent);
        }
        for s in stamps {
            self.moves_of.remove(&(e, s));
            if let Some(m) = self.moves.remove(&s) {
                self.drop_parent(m.parent);
                if best.as_ref().is_none_or(|b| b.stamp < s) {
                    best = Some(Place { stamp: s, parent: m.parent, name: m.name });
                }
            }
        }
        self.entries[e].set(LOGGED, false);
        self.set_place(e, best);
    }
}
