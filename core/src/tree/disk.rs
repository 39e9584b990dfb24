//! The materialised tree: where entries stand in `backing`. Only what differs from the logical tree costs memory.

use super::model::*;
use super::{ROOT, Tree};
use crate::action::Spot;
use crate::ids::{EntryId, InodeId, Name};

impl Tree {
    /// Where an entry stands on disk.
    pub(super) fn seat(&self, e: u32) -> Option<Seat> {
        let n = self.entries.get(e)?;
        if n.has(HERE) {
            return n.name.clone().map(|name| Seat::At(n.parent, name));
        }
        if n.has(ELSEWHERE) { self.spots.get(&e).cloned() } else { None }
    }

    /// The directory in which an entry stands on disk.
    pub(super) fn seat_dir(&self, e: u32) -> Option<u32> {
        let n = self.entries.get(e)?;
        if n.has(HERE) {
            return Some(n.parent);
        }
        match self.spots.get(&e)? {
            Seat::At(p, _) => Some(*p),
            Seat::Limbo => None,
        }
    }

    pub(super) fn is_seated(&self, e: u32) -> bool {
        self.entries[e].flags & (HERE | ELSEWHERE) != 0
    }

    /// Some name of the inode stands on disk (the root always does).
    pub(super) fn on_disk(&self, i: u32) -> bool {
        let n = &self.inodes[i];
        if i == ROOT {
            return true;
        }
        if n.has(MULTI) {
            return self.entries_of(i).into_iter().any(|e| self.is_seated(e));
        }
        n.entry != super::NONE && self.is_seated(n.entry)
    }

    /// Its names on disk.
    pub(super) fn seats(&self, i: u32) -> alloc::vec::Vec<(u32, Seat)> {
        self.entries_of(i).into_iter().filter_map(|e| Some((e, self.seat(e)?))).collect()
    }

    /// The entry now stands there.
    pub(super) fn set_seat(&mut self, e: u32, seat: Option<Seat>) {
        let old = self.seat(e);
        if old == seat {
            return;
        }
        let inode = self.entries[e].inode;
        self.dirty.insert(inode);
        if let Some(Seat::At(p, name)) = &old {
            if self.entries[e].has(ELSEWHERE) {
                self.moved.remove(&(*p, name_hash(name), e));
            }
            self.inodes[*p].disk_kids -= 1;
            self.drop_parent(*p);
            self.work.wake(*p);
        }
        self.spots.remove(&e);
        self.entries[e].set(HERE | ELSEWHERE, false);
        if let Some(seat) = seat {
            let n = &self.entries[e];
            let same = match &seat {
                Seat::At(p, name) => n.has(LIVE) && n.parent == *p && n.name.as_ref() == Some(name),
                Seat::Limbo => false,
            };
            if let Seat::At(p, name) = &seat {
                self.hold_parent(*p);
                self.inodes[*p].disk_kids += 1;
                self.work.wake(*p);
                if !same {
                    self.moved.insert((*p, name_hash(name), e));
                }
            }
            self.entries[e].set(if same { HERE } else { ELSEWHERE }, true);
            if !same {
                self.spots.insert(e, seat);
            }
        } else {
            if !self.on_disk(inode) {
                self.inodes[inode].set(HELD_SAME | ATTR_DUE, false);
                self.held.remove(&inode);
            }
            self.bury(e);
        }
        if self.inodes[inode].tag == Tag::Dir {
            // It stands elsewhere now: what failed or is in flight below it may have missed it.
            self.work.news_below();
            self.work.news_in(inode);
        }
        self.work.wake(inode);
        self.call_entry(e);
        self.call_inode(inode);
    }

    /// What stands on disk in a directory under a name.
    pub(super) fn disk_child(&self, dir: u32, name: &Name) -> Option<u32> {
        let h = name_hash(name);
        let range = (dir, h, 0)..=(dir, h, u32::MAX);
        let here = self.names.range(range.clone()).map(|(_, _, e)| *e);
        let here = here.filter(|e| self.entries[*e].has(HERE) && self.entries[*e].name.as_ref() == Some(name));
        let apart = self.moved.range(range).map(|(_, _, e)| *e);
        let apart = apart.filter(|e| matches!(self.spots.get(e), Some(Seat::At(_, n)) if n == name));
        here.chain(apart).next()
    }

    pub(super) fn spot_of(&self, seat: &Seat, e: u32) -> Spot {
        match seat {
            Seat::At(p, name) => Spot::At { parent: self.inodes[*p].id(), name: name.clone() },
            Seat::Limbo => Spot::Limbo(self.entries[e].id()),
        }
    }

    /// The entry that names a directory, if it stands on disk.
    pub(super) fn dir_entry(&self, dir: u32) -> Option<u32> {
        let n = self.inodes.get(dir)?;
        (n.tag == Tag::Dir && n.entry != super::NONE && self.is_seated(n.entry)).then_some(n.entry)
    }

    /// A directory that is there to put something into.
    pub(super) fn dir_stands(&self, dir: u32) -> bool {
        dir == ROOT || self.dir_entry(dir).is_some()
    }

    /// Whether `dir` is `top` or stands below it on disk.
    pub(super) fn stands_below(&self, dir: u32, top: u32) -> bool {
        let mut at = dir;
        for _ in 0..=self.inodes.len() {
            if at == top {
                return true;
            }
            match self.dir_entry(at).and_then(|e| self.seat_dir(e)) {
                Some(up) if at != ROOT => at = up,
                _ => return false,
            }
        }
        false
    }

    /// Disk shows the entry as it should be.
    pub(super) fn entry_at_rest(&self, e: u32) -> bool {
        let Some(n) = self.entries.get(e) else { return true };
        match self.desired(e) {
            None => !self.is_seated(e),
            Some((p, name)) if n.has(HERE) => p == n.parent && n.name.as_ref() == Some(&name),
            Some((p, name)) => self.spots.get(&e) == Some(&Seat::At(p, name)),
        }
    }

    /// Disk holds the newest content and attributes of the inode, or none of its names stands there.
    pub(super) fn inode_at_rest(&self, i: u32) -> bool {
        let Some(n) = self.inodes.get(i) else { return true };
        if !self.on_disk(i) {
            return true;
        }
        let held = self.held(i);
        let behind = n.tag == Tag::File && (held.stamp != self.winner(i).0 || held.bytes.is_none());
        !behind && !n.has(ATTR_DUE)
    }

    /// An entry's slot and a place on disk, from the log.
    pub(super) fn stands(&mut self, entry: EntryId, spot: Option<&Spot>) {
        let Some(e) = self.entry_of(entry) else { return };
        let seat = match spot {
            None => None,
            Some(Spot::Limbo(_)) => Some(Seat::Limbo),
            Some(Spot::At { parent, name }) => {
                let at = self.cut;
                Some(Seat::At(self.intern_inode(*parent, at), name.clone()))
            }
        };
        self.set_seat(e, seat);
    }

    pub(super) fn id_of(&self, i: u32) -> InodeId {
        self.inodes[i].id()
    }
}
