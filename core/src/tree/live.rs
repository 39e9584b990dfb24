//! Which entries are live: shown in the logical tree.

use super::model::*;
use super::names::is_marked;
use super::slab::NONE;
use super::{ROOT, Removal, Tree, plan};
use crate::bug::Bug;
use crate::time::Stamp;
use alloc::vec::Vec;

impl Tree {
    /// No deletion counts against its placement.
    pub(super) fn unremoved(&self, e: u32) -> bool {
        let n = &self.entries[e];
        if n.has(FORGOTTEN) || n.name.is_none() {
            return false;
        }
        if !n.has(REMOVED) {
            return true;
        }
        let place = self.stamp(n.place);
        self.removed.get(&e).is_none_or(|r| r.iter().all(|r| r.at < place))
    }

    /// It is one of the names that its file has or had: known with its place, and not forgotten.
    fn is_name(&self, e: u32) -> bool {
        let n = &self.entries[e];
        !n.has(FORGOTTEN) && n.name.is_some()
    }

    /// The deletions that count against its placement.
    fn removals(&self, e: u32) -> impl Iterator<Item = Removal> + '_ {
        let place = self.stamp(self.entries[e].place);
        let all = self.removed.get(&e).filter(|_| self.is_name(e)).into_iter().flatten();
        all.filter(move |r| r.at > place).copied()
    }

    /// Its last deletion and the newest version that any deleter (whose deletion counts) had seen.
    pub(super) fn removal(&self, e: u32) -> Option<(Stamp, Stamp)> {
        self.removals(e).map(|r| (r.at, r.saw)).reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
    }

    /// Live by the registers of its inode alone.
    pub(super) fn own_live(&self, e: u32) -> bool {
        let n = &self.entries[e];
        let i = &self.inodes[n.inode];
        let odd = i.tag == Tag::Dir && (!n.has(FIRST) || i.entry != e);
        if i.tag == Tag::Unknown || n.name.is_none() || n.has(FORGOTTEN) || odd {
            return false;
        }
        self.unremoved(e) || (i.tag == Tag::File && !self.has_bug(Bug::DeleteWins) && self.revived(e))
    }

    /// All names of the file are deleted, this one last, and there is newer content than its deleters had seen.
    fn revived(&self, e: u32) -> bool {
        let inode = self.entries[e].inode;
        let Some((last, saw)) = self.removal(e) else { return false };
        let winner = self.winner(inode).0;
        if !self.inodes[inode].has(MULTI) {
            return winner > saw;
        }
        let mine = (last, self.entries[e].id());
        let earlier = |o: u32| self.removal(o).is_none_or(|r| (r.0, self.entries[o].id()) <= mine);
        let entries = self.entries_of(inode);
        entries.iter().all(|o| !self.unremoved(*o) && earlier(*o)) && !self.deleted_whole(&entries, winner)
    }

    /// Somebody who had seen this version, or a later one, deleted the last name that he knew of; or those who had seen it
    /// deleted all these names.
    fn deleted_whole(&self, entries: &[u32], version: Stamp) -> bool {
        let mut names = entries.iter().copied().filter(|e| self.is_name(*e));
        let file = names.clone().any(|e| self.removals(e).any(|r| r.last && r.saw >= version));
        file || names.all(|e| self.removals(e).any(|r| r.saw >= version))
    }

    /// Whether the other names of the file are live or not rests on the deletion of this one.
    pub(super) fn decides_for_others(&self, e: u32) -> bool {
        let i = self.entries[e].inode;
        if self.inodes[i].tag != Tag::File {
            return false;
        }
        let others: Vec<u32> = self.entries_of(i).into_iter().filter(|o| *o != e && self.is_name(*o)).collect();
        if others.iter().any(|o| self.unremoved(*o)) {
            return false;
        }
        let revived = others.iter().any(|o| self.entries[*o].has(LIVE));
        revived || !self.deleted_whole(&others, self.winner(i).0)
    }

    fn is_live(&self, e: u32) -> bool {
        if self.own_live(e) {
            return true;
        }
        let n = &self.entries[e];
        let i = &self.inodes[n.inode];
        i.tag == Tag::Dir && i.entry == e && n.has(FIRST) && n.name.is_some() && i.live_kids > 0
    }

    /// Brings the `LIVE` mark of an entry in line.
    pub(super) fn refresh(&mut self, e: u32) {
        if self.entries.get(e).is_none() {
            return;
        }
        let live = self.is_live(e);
        if live != self.entries[e].has(LIVE) {
            self.set_live(e, live);
        }
    }

    /// Enters the entry into the name index or takes it out. A change of the placement happens while it is out.
    pub(super) fn set_live(&mut self, e: u32, live: bool) {
        let n = &self.entries[e];
        if n.has(LIVE) == live {
            return;
        }
        let Some(name) = n.name.clone() else { return };
        let (parent, inode) = (n.parent, n.inode);
        let key = (parent, name_hash(&name), e);
        if is_marked(&name) {
            if live {
                self.marked.insert(e)
            } else {
                self.marked.remove(&e)
            };
        }
        if live {
            self.names.insert(key);
            self.inodes[parent].live_kids += 1;
            self.entries[e].set(LIVE, true);
            if self.spots.get(&e) == Some(&Seat::At(parent, name.clone())) {
                self.spots.remove(&e);
                self.moved.remove(&key);
                self.entries[e].set(ELSEWHERE, false);
                self.entries[e].set(HERE, true);
            }
        } else {
            self.names.remove(&key);
            self.inodes[parent].live_kids -= 1;
            if self.entries[e].has(HERE) {
                self.spots.insert(e, Seat::At(parent, name.clone()));
                self.moved.insert(key);
                self.entries[e].set(HERE, false);
                self.entries[e].set(ELSEWHERE, true);
            }
            self.entries[e].set(LIVE, false);
            self.bury(e);
            if self.inodes[inode].has(MULTI) {
                // Whether other names can be forgotten may have rested on this one.
                for other in self.entries_of(inode) {
                    self.bury(other);
                }
            }
        }
        if parent != ROOT && self.inodes[parent].entry != NONE {
            self.recheck.insert(parent);
        }
        if self.inodes[inode].tag == Tag::Dir && self.entries[e].has(FORGOTTEN) && live {
            self.rebirths.insert(inode);
        }
        self.call_group(parent, &name);
        self.call_entry(e);
        self.call_inode(inode);
    }

    /// Puts work on an entry in line, if disk differs.
    pub(super) fn call_entry(&mut self, e: u32) {
        if self.loading {
            return;
        }
        if self.entry_at_rest(e) {
            self.work.at_rest(plan::Work::Entry(e));
        } else {
            self.work.call(plan::Work::Entry(e));
        }
    }

    /// Puts work on an inode in line, if disk differs.
    pub(super) fn call_inode(&mut self, i: u32) {
        if self.loading {
            return;
        }
        if self.inode_at_rest(i) {
            self.work.at_rest(plan::Work::Inode(i));
        } else {
            self.work.call(plan::Work::Inode(i));
        }
    }
}
