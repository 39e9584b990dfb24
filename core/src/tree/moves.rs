//! The move log: placements of directories in the order of their stamps.
//!
//! Kleppmann et al. (2021) undo the moves that are later than a late one, apply it, and redo them. Here the old place is
//! not kept with each move: a directory has a *base* placement, which every member knows, and its moves since; what is in
//! force at a point of the order is the latest move before it that was not skipped, else the base. Undoing is therefore
//! looking up, and redoing happens beside the tree, so that only the difference touches it.

use super::model::*;
use super::slab::NONE;
use super::{ROOT, Tree};
use crate::bug::Bug;
use crate::time::Stamp;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Placements in force at some point of the order, where they differ from those in force now: parent and stamp.
type Overlay = BTreeMap<u32, Option<(u32, Stamp)>>;

impl Tree {
    /// The stamps of all logged moves of a directory.
    pub(super) fn moves_of(&self, e: u32) -> Vec<Stamp> {
        self.moves_of.range((e, Stamp::ZERO)..=(e, Stamp::MAX)).map(|(_, s)| *s).collect()
    }

    /// A directory's placement becomes known.
    pub(super) fn log_move(&mut self, e: u32, place: Place) {
        let Place { stamp, parent, name } = place;
        let settled = if self.entries[e].has(LOGGED) { self.base.get(&e).cloned() } else { self.placement(e) };
        if self.moves.contains_key(&stamp) || settled.as_ref().is_some_and(|b| stamp <= b.stamp) {
            return;
        }
        if !self.entries[e].has(LOGGED) {
            self.entries[e].set(LOGGED, true);
            if let Some(b) = settled {
                self.hold_parent(b.parent);
                self.base.insert(e, b);
            }
        }
        self.hold_parent(parent);
        let last = self.moves.last_key_value().is_none_or(|(s, _)| *s < stamp);
        self.moves.insert(stamp, Move { entry: e, parent, name, skipped: false });
        self.moves_of.insert((e, stamp));
        let leaf = !self.inodes[self.entries[e].inode].has(PARENT);
        self.inodes[parent].set(PARENT, true);
        if leaf && self.entries[e].inode != parent {
            // Nothing was ever below it: it can be in no cycle, and no other move depends on it.
            if self.placement(e).is_none_or(|p| p.stamp < stamp) {
                self.enforce(e, Some(stamp));
            }
        } else if last {
            let cycle = self.would_cycle(&Overlay::new(), self.entries[e].inode, parent);
            self.skip(stamp, cycle);
            if !cycle {
                self.enforce(e, Some(stamp));
            }
        } else {
            self.redo_from(stamp);
        }
    }

    /// Whether `inode` stands on the way from `parent` up to the root.
    fn would_cycle(&self, overlay: &Overlay, inode: u32, parent: u32) -> bool {
        if self.has_bug(Bug::AllowCycle) {
            return false;
        }
        let mut at = parent;
        for _ in 0..=self.inodes.len() {
            if at == inode {
                return true;
            }
            let up = self.inodes[at].entry;
            if at == ROOT || up == NONE {
                return false;
            }
            at = match overlay.get(&up) {
                Some(Some((p, _))) => *p,
                Some(None) => return false,
                None => self.entries[up].parent,
            };
            if at == NONE {
                return false;
            }
        }
        true
    }

    fn skip(&mut self, stamp: Stamp, skipped: bool) {
        if let Some(m) = self.moves.get_mut(&stamp)
            && m.skipped != skipped
        {
            let i = self.entries[m.entry].inode;
            self.touch(i);
            if let Some(m) = self.moves.get_mut(&stamp) {
                m.skipped = skipped;
            }
        }
    }

    /// Puts a logged move (or the base) in force.
    fn enforce(&mut self, e: u32, stamp: Option<Stamp>) {
        let place = match stamp.and_then(|s| self.moves.get(&s).map(|m| (s, m))) {
            Some((stamp, m)) => Some(Place { stamp, parent: m.parent, name: m.name.clone() }),
            None => self.base.get(&e).cloned(),
        };
        self.set_place(e, place);
    }

    /// Decides all moves from `from` on again.
    pub(super) fn redo_from(&mut self, from: Stamp) {
        let mut overlay = Overlay::new();
        for m in self.moves.range(from..).map(|(_, m)| m) {
            overlay.entry(m.entry).or_insert_with(|| {
                let before = self.moves_of.range((m.entry, Stamp::ZERO)..(m.entry, from)).rev().map(|(_, s)| *s);
                let logged = before.filter_map(|s| Some((s, self.moves.get(&s)?)));
                let valid = logged.filter(|(_, m)| !m.skipped).map(|(s, m)| (m.parent, s)).next();
                valid.or_else(|| self.base.get(&m.entry).map(|b| (b.parent, b.stamp)))
            });
        }
        let mut flips = Vec::new();
        for (stamp, m) in self.moves.range(from..) {
            let skipped = self.would_cycle(&overlay, self.entries[m.entry].inode, m.parent);
            if !skipped {
                overlay.insert(m.entry, Some((m.parent, *stamp)));
            }
            if skipped != m.skipped {
                flips.push((*stamp, skipped));
            }
        }
        for (stamp, skipped) in flips {
            self.skip(stamp, skipped);
        }
        for (e, place) in overlay {
            let now = self.placement(e).map(|p| p.stamp);
            let then = place.map(|(_, s)| s);
            if now != then {
                self.enforce(e, then);
            }
        }
        let done: Vec<Stamp> =
            self.suspended.iter().filter(|s| self.moves.get(s).is_none_or(|m| !m.skipped)).copied().collect();
        for s in done {
            self.suspended.remove(&s);
        }
    }

    /// A placement that somebody else knows to be settled. What is known here about earlier ones no longer counts.
    pub(super) fn settle_move(&mut self, e: u32, place: Place) {
        let inode = self.entries[e].inode;
        self.inodes[place.parent].set(PARENT, true);
        if !self.entries[e].has(LOGGED) {
            if self.placement(e).is_some_and(|p| p.stamp >= place.stamp) {
                return;
            }
            if self.would_cycle(&Overlay::new(), inode, place.parent) {
                self.suspended.insert(place.stamp);
                self.log_move(e, place);
                return;
            }
            self.set_place(e, Some(place));
        } else {
            if self.base.get(&e).is_some_and(|b| b.stamp >= place.stamp) {
                return;
            }
            for s in self.moves_of(e).into_iter().filter(|s| *s < place.stamp) {
                self.forget_move(s);
            }
            // Kept in the log, where it is checked like any other until `cut` folds it into the base.
            let stamp = place.stamp;
            self.log_move(e, place);
            self.redo_from(stamp);
            if self.moves.get(&stamp).is_some_and(|m| m.skipped) {
                self.suspended.insert(stamp);
            }
        }
        if let Some(s) = self.suspended.first().copied() {
            self.redo_from(s);
        }
    }

    /// Takes a move out of the log. Its directory's placement must not rest on it, or be decided again afterwards.
    pub(super) fn forget_move(&mut self, stamp: Stamp) {
        if let Some(m) = self.moves.remove(&stamp) {
            self.moves_of.remove(&(m.entry, stamp));
            self.suspended.remove(&stamp);
            self.drop_parent(m.parent);
        }
    }

    /// The first move of the log is known to every member: it becomes the base of its directory.
    pub(super) fn fold_first_move(&mut self) {
        let Some((_, m)) = self.moves.first_key_value() else { return };
        let inode = self.entries[m.entry].inode;
        if m.skipped {
            self.touch(inode);
        }
        self.dirty.insert(inode);
        let Some((stamp, m)) = self.moves.pop_first() else { return };
        self.moves_of.remove(&(m.entry, stamp));
        self.suspended.remove(&stamp);
        let e = m.entry;
        if m.skipped {
            self.drop_parent(m.parent);
        } else if let Some(old) = self.base.insert(e, Place { stamp, parent: m.parent, name: m.name }) {
            // The reference of the move is now that of the base.
            self.drop_parent(old.parent);
        }
        if self.moves_of(e).is_empty() {
            self.entries[e].set(LOGGED, false);
            if let Some(b) = self.base.remove(&e) {
                self.drop_parent(b.parent);
            }
        }
    }
}
