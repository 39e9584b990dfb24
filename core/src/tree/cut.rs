//! Forgetting what only served to order operations, once every member knows them.

use super::model::*;
use super::plan::Work;
use super::slab::NONE;
use super::{ROOT, Tree};
use crate::bug::Bug;
use crate::time::Stamp;
use alloc::boxed::Box;
use alloc::vec::Vec;

impl Tree {
    /// Every member has every operation up to `stable`, and none at or below it will come any more: forget deletions,
    /// versions and moves that everybody knows. At most `max` things; true: call again (with the same stamp or a later one).
    pub fn cut(&mut self, stable: Stamp, max: usize) -> bool {
        if stable > self.agreed {
            self.heads_due.append(&mut self.heads_waiting);
        }
        self.agreed = stable;
        if stable > self.cut {
            self.cut = stable;
            self.dirty_keys.insert(super::store::cut_key());
        }
        let mut left = max;
        while left > 0 && self.moves.first_key_value().is_some_and(|(s, _)| *s <= self.agreed) {
            left -= 1;
            self.fold_first_move();
        }
        while let Some((s, i)) = self.version_ages.first().copied().filter(|(s, _)| *s <= self.agreed && left > 0) {
            left -= 1;
            self.version_ages.pop_first();
            self.forget_version(i, s);
        }
        // What disk is not ready for is looked at again by the next call.
        let mut graves = Vec::new();
        if self.has_bug(Bug::ForgetTombstone) {
            for (_, e) in core::mem::take(&mut self.graves) {
                self.visit_grave(e);
            }
        }
        while let Some((s, e)) = self.graves.first().copied().filter(|(s, _)| *s <= self.agreed && left > 0) {
            left -= 1;
            self.graves.remove(&(s, e));
            if !self.visit_grave(e) {
                graves.push((s, e));
            }
        }
        self.graves.extend(graves);
        let mut xattrs = Vec::new();
        while let Some((s, i)) = self.xattr_graves.first().copied().filter(|(s, _)| *s <= self.agreed && left > 0) {
            left -= 1;
            self.xattr_graves.remove(&(s, i));
            if !self.forget_xattrs(i) {
                xattrs.push((s, i));
            }
        }
        self.xattr_graves.extend(xattrs);
        while let Some((s, i)) = self.orphans.first().copied().filter(|(s, _)| *s <= self.agreed && left > 0) {
            left -= 1;
            self.orphans.remove(&(s, i));
            self.visit_orphan(i);
        }
        if self.early.values().any(|r| r.iter().any(|r| r.at <= self.agreed)) {
            self.touch(ROOT);
            let cut = self.agreed;
            self.early.values_mut().for_each(|r| r.retain(|r| r.at > cut));
            self.early.retain(|_, r| !r.is_empty());
        }
        self.settle();
        left == 0
    }

    /// At or below the stamp that [`Tree::cut`] was told last: an operation that is integrated now is taken for a repeat.
    pub fn is_cut(&self, stamp: Stamp) -> bool {
        stamp <= self.cut
    }

    /// It is (or may be) dead: `cut` looks at it in time.
    pub(super) fn bury(&mut self, e: u32) {
        let n = &self.entries[e];
        if n.has(REMOVED) {
            let last = self.removed.get(&e).and_then(|r| r.last()).map_or(Stamp::ZERO, |r| r.at);
            self.graves.insert((last, e));
        } else if n.has(FORGOTTEN) {
            self.graves.insert((Stamp::ZERO, e));
        }
    }

    fn forget_version(&mut self, i: u32, s: Stamp) {
        if !self.versions.contains_key(&(i, s)) {
            return;
        }
        if self.heads.contains(&(i, s)) {
            if self.verdict(i, s) != super::heads::Verdict::Drop {
                return; // Looked at again when it is settled.
            }
            self.settle_head(i, s);
        }
        if self.feeds_copy(i, s) {
            return; // Only this tells which bytes the copy is made of. Looked at again when it stands.
        }
        self.versions.remove(&(i, s));
        self.dirty.insert(i);
    }

    /// If `copy` is a conflict's copy: what was not forgotten before it stood is looked at again.
    pub(super) fn recall_lost(&mut self, copy: u32) {
        let Some((inode, lost)) = self.copy_of.get(&self.id_of(copy)).copied() else { return };
        if let Some(i) = self.inode_of(inode)
            && lost <= self.cut
            && self.versions.contains_key(&(i, lost))
        {
            self.version_ages.insert((lost, i));
            for e in self.entries_of(i) {
                self.bury(e);
            }
        }
    }

    /// False: not yet, though nothing will call for another look.
    fn visit_grave(&mut self, e: u32) -> bool {
        let Some(n) = self.entries.get(e) else { return true };
        let i = n.inode;
        let place = self.stamp(n.place);
        let (live, removed, forgotten) = (n.has(LIVE), n.has(REMOVED), n.has(FORGOTTEN));
        let last = self.removed.get(&e).and_then(|r| r.last()).map_or(Stamp::ZERO, |r| r.at);
        if self.has_bug(Bug::ForgetTombstone) && removed && !live && !self.is_seated(e) && !self.work.is_busy(i) {
            self.purge(e);
            return true;
        }
        if last > self.agreed {
            self.graves.insert((last, e));
            return true;
        }
        // Disk may still have attributes of an earlier life.
        let due = self.inodes[i].has(XATTRS) && (self.inodes[i].has(ATTR_DUE) || self.work.is_busy(i));
        if live && removed && !forgotten {
            if last < place {
                if place > self.agreed {
                    self.graves.insert((place, e));
                } else if due {
                    return false;
                } else {
                    self.forget_removals(e);
                }
            }
            // A file that newer content brought back keeps its deletion: another name of it may still decide otherwise. It
            // comes here again when it is placed anew, and a directory that is held by what is in it when it dies.
            return true;
        }
        if self.is_seated(e) && !live {
            self.work.wake(i); // What its deleter saw is known by now.
        }
        if live || !(removed || forgotten) || self.is_seated(e) {
            return true;
        }
        if self.work.is_busy(i) {
            return false;
        }
        let alive = place > last && !forgotten && self.entries[e].name.is_some();
        let unsettled = self.heads.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).next().is_some();
        if alive || unsettled {
            return true; // Its creation is missing, or a conflict is not settled: looked at again then.
        }
        let mut versions = self.versions.range((i, Stamp::ZERO)..=(i, Stamp::MAX));
        if versions.any(|((_, s), _)| self.feeds_copy(i, *s)) {
            return true; // A copy is still to be made of it: looked at again when that stands.
        }
        if self.inodes[i].tag == Tag::Dir && self.inodes[i].refs > 0 {
            return true; // Something dead in it may come back and need it.
        }
        if let Some(s) = self.moves_of(e).first() {
            self.graves.insert((*s, e));
            return true;
        }
        if self.inodes[i].has(MULTI) && removed && self.decides_for_others(e) {
            return true; // Looked at again when another name goes, or has a place again.
        }
        let last = self.last_register(i);
        if last > self.agreed {
            // Said about it by somebody who did not know of its end: part of what a new life would begin with.
            self.graves.insert((last, e));
            return true;
        }
        self.purge(e);
        true
    }

    /// When anything was last said about an inode itself.
    fn last_register(&self, i: u32) -> Stamp {
        let n = &self.inodes[i];
        let registers = [n.make, n.mode_at, n.owner_at, n.times_at, n.content].into_iter().map(|s| self.stamp(s));
        registers.chain(self.xattrs_raw(i).map(|(_, x)| x.stamp)).max().unwrap_or(Stamp::ZERO)
    }

    /// The deletions no longer matter; what they hid of an earlier life goes with them.
    fn forget_removals(&mut self, e: u32) {
        let i = self.entries[e].inode;
        self.touch(i);
        self.forget_earlier_life(i);
        self.removed.remove(&e);
        self.entries[e].set(REMOVED, false);
        if self.inodes[i].has(MULTI) {
            for other in self.entries_of(i) {
                self.bury(other);
            }
        }
    }

    /// Drops what an earlier life left in the registers. The inode is touched already.
    fn forget_earlier_life(&mut self, i: u32) {
        let Some((before, saw)) = self.floor(i) else { return };
        let old: Vec<_> =
            self.xattrs_raw(i).filter(|(_, x)| x.stamp <= before).map(|(name, _)| (i, Box::from(name))).collect();
        for key in old {
            self.xattrs.remove(&key);
        }
        if self.stamp(self.inodes[i].content) <= saw {
            let held = self.held(i);
            let n = &mut self.inodes[i];
            n.content = super::slab::Short::default();
            (n.size, n.digest) = (0, crate::op::ContentDigest::EMPTY);
            self.set_held(i, held.stamp, held.bytes);
        }
    }

    pub(super) fn xattrs_raw(&self, i: u32) -> impl Iterator<Item = (&[u8], &Xattr)> {
        let from = (i, Box::from(&b""[..]));
        self.xattrs.range(from..).take_while(move |((n, _), _)| *n == i).map(|((_, name), x)| (&**name, x))
    }

    /// False: disk may still have them.
    fn forget_xattrs(&mut self, i: u32) -> bool {
        let Some(n) = self.inodes.get(i) else { return true };
        if n.has(ATTR_DUE) || self.work.is_busy(i) {
            return false;
        }
        let cut = self.agreed;
        let dead = self.xattrs_raw(i).filter(|(_, x)| x.value.is_none() && x.stamp <= cut);
        let dead: Vec<_> = dead.map(|(name, _)| (i, Box::from(name))).collect();
        if !dead.is_empty() {
            self.touch(i);
        }
        for key in dead {
            self.xattrs.remove(&key);
        }
        let any = self.xattrs_raw(i).next().is_some();
        self.inodes[i].set(XATTRS, any);
        true
    }

    /// Takes an entry out of all books.
    pub(super) fn purge(&mut self, e: u32) {
        let i = self.entries[e].inode;
        self.touch(i);
        if self.inodes[i].has(MULTI) {
            // What this name's deletion hides would show again.
            self.forget_earlier_life(i);
        }
        self.set_live(e, false);
        for s in self.moves_of(e) {
            self.forget_move(s);
        }
        if let Some(b) = self.base.remove(&e) {
            self.drop_parent(b.parent);
        }
        let parent = self.entries[e].parent;
        let id = self.entries[e].id();
        self.removed.remove(&e);
        self.by_entry.remove(&id);
        self.entries.remove(e);
        self.work.at_rest(Work::Entry(e));
        if self.inodes[i].has(MULTI) {
            self.links.remove(&(i, e));
            let rest: Vec<u32> = self.links.range((i, 0)..=(i, u32::MAX)).map(|(_, e)| *e).collect();
            if self.inodes[i].entry == e {
                self.inodes[i].entry = rest.first().copied().unwrap_or(NONE);
            }
            if let [only] = rest[..] {
                self.links.remove(&(i, only));
                self.inodes[i].set(MULTI, false);
            }
            for other in rest {
                self.bury(other);
            }
        } else {
            self.inodes[i].entry = NONE;
        }
        if parent != NONE {
            self.drop_parent(parent);
        }
        if self.inodes[i].entry == NONE {
            if self.inodes[i].refs == 0 {
                self.free_inode(i);
            } else {
                self.orphans.insert((self.cut, i));
            }
        }
    }

    fn visit_orphan(&mut self, i: u32) {
        let Some(n) = self.inodes.get(i) else { return };
        if i == ROOT || n.entry != NONE || n.refs > 0 || self.work.is_busy(i) {
            return;
        }
        let last = self.last_register(i);
        if last > self.agreed {
            self.orphans.insert((last, i));
        } else {
            self.touch(i);
            self.free_inode(i);
        }
    }

    /// Gives back the slot of an inode without entries. It is touched already.
    fn free_inode(&mut self, i: u32) {
        let id = self.id_of(i);
        self.recall_lost(i);
        self.work.wake(i);
        self.work.at_rest(Work::Inode(i));
        let xattrs: Vec<_> = self.xattrs_raw(i).map(|(name, _)| (i, Box::from(name))).collect();
        for key in xattrs {
            self.xattrs.remove(&key);
        }
        let mine = (i, Stamp::ZERO)..=(i, Stamp::MAX);
        let versions: Vec<_> = self.versions.range(mine.clone()).map(|(k, _)| *k).collect();
        for key in versions {
            self.versions.remove(&key);
        }
        for key in self.heads.range(mine.clone()) {
            self.work.at_rest(Work::Head(i, key.1));
        }
        for set in [&mut self.heads, &mut self.heads_due, &mut self.heads_waiting, &mut self.heads_needed] {
            let keys: Vec<_> = set.range(mine.clone()).copied().collect();
            for key in keys {
                set.remove(&key);
            }
        }
        if let Some((inode, lost)) = self.copy_of.remove(&id) {
            self.copies.remove(&(inode, lost));
            self.dirty_keys.insert(super::store::copy_key(inode, lost));
        }
        self.details.remove(&i);
        self.held.remove(&i);
        self.touched.remove(&i);
        self.recheck.remove(&i);
        self.rebirths.remove(&i);
        self.dirty.remove(&i);
        self.by_inode.remove(id.0, |i| self.inodes[i].id().0);
        self.inodes.remove(i);
        self.gone.insert(id);
    }
}
