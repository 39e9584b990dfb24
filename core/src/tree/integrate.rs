//! Operations become part of the tree: in any order, any number of times.

use super::model::*;
use super::{Removal, Tree, Version};
use crate::event::Witness;
use crate::ids::{EntryId, InodeId, Name};
use crate::limits;
use crate::op::{Attr, Attrs, Kind, Make, OpBody};
use crate::time::{Stamp, UnixTime};
use alloc::boxed::Box;
use alloc::vec::Vec;

impl Tree {
    /// Integrates an operation that is not in `backing` yet: another replica's, or at replay one of ours.
    pub fn integrate(&mut self, stamp: Stamp, body: &OpBody) {
        self.integrate_unsettled(stamp, body);
        self.settle();
    }

    /// Without `settle`.
    pub(super) fn integrate_unsettled(&mut self, stamp: Stamp, body: &OpBody) {
        if stamp <= self.cut || self.replicas.shorten(stamp).is_none() {
            return;
        }
        match body {
            OpBody::Place { entry, inode, parent, name, make } => {
                self.op_place(stamp, *entry, *inode, *parent, name, make.as_deref());
            }
            OpBody::Remove { entry, saw, last } => {
                self.op_remove(*entry, Removal { at: stamp, saw: *saw, last: *last });
            }
            OpBody::SetAttr { inode, attr } => {
                let i = self.intern_inode(*inode, stamp);
                self.touch(i);
                if self.set_attr(i, stamp, attr) && self.shows(i) {
                    self.inodes[i].set(ATTR_DUE, true);
                }
            }
            OpBody::SetContent { inode, base, size, digest, mtime } => {
                let i = self.intern_inode(*inode, stamp);
                if *inode == InodeId::ROOT {
                    return;
                }
                self.touch(i);
                // A version is always later than what it was made from.
                let base = if *base < stamp { *base } else { Stamp::ZERO };
                let before = self.inodes[i].mtime();
                self.add_version(i, Version { stamp, base, size: *size, digest: *digest, mtime: *mtime });
                if self.inodes[i].mtime() != before && self.shows(i) {
                    self.inodes[i].set(ATTR_DUE, true);
                }
            }
        }
    }

    /// Integrates an operation of ours that stands in `backing` already. `witness` belongs to its inode afterwards.
    pub(super) fn integrate_here(&mut self, stamp: Stamp, body: &OpBody, witness: Witness) {
        if stamp <= self.cut {
            return; // Part of the checkpoint already.
        }
        match body {
            OpBody::Place { entry, inode, parent, name, make } => {
                let due = self.inode_of(*inode).filter(|i| self.on_disk(*i)).map(|i| self.inodes[i].has(ATTR_DUE));
                self.integrate_unsettled(stamp, body);
                let (Some(e), Some(i)) = (self.entry_of(*entry), self.inode_of(*inode)) else { return };
                let p = self.intern_inode(*parent, stamp);
                self.touch(i);
                if let Some(due) = due.filter(|_| make.is_some()) {
                    // Made anew as it stands, but for what the new life hides.
                    self.inodes[i].set(ATTR_DUE, due);
                    self.look_for_old_xattrs(i);
                }
                if make.is_some() && !self.on_disk(i) {
                    self.set_held(i, Stamp::ZERO, None);
                    // The disk has what it was made with; what came before from elsewhere is still due.
                    let due = self.inodes[i].has(XATTRS) || self.disk_attrs_differ(i, stamp);
                    self.inodes[i].set(ATTR_DUE, due);
                }
                self.set_seat(e, Some(Seat::At(p, name.clone())));
                self.inodes[i].witness = witness;
            }
            OpBody::Remove { entry, .. } => {
                self.integrate_unsettled(stamp, body);
                if let Some(e) = self.entry_of(*entry) {
                    let i = self.entries[e].inode;
                    self.touch(i);
                    self.set_seat(e, None);
                    if self.on_disk(i) {
                        self.inodes[i].witness = witness;
                    }
                }
            }
            OpBody::SetAttr { inode, attr } => {
                let i = self.intern_inode(*inode, stamp);
                self.touch(i);
                self.set_attr(i, stamp, attr);
                self.inodes[i].witness = witness;
            }
            OpBody::SetContent { inode, .. } => {
                let due = self.inode_of(*inode).is_some_and(|i| self.inodes[i].has(ATTR_DUE));
                self.integrate_unsettled(stamp, body);
                if let Some(i) = self.inode_of(*inode) {
                    self.touch(i);
                    self.set_held(i, stamp, None);
                    self.inodes[i].set(ATTR_DUE, due);
                    self.inodes[i].witness = witness;
                }
            }
        }
        self.settle();
    }

    /// Some group of attributes has a later stamp than the creation that is on disk.
    fn disk_attrs_differ(&self, i: u32, made: Stamp) -> bool {
        let n = &self.inodes[i];
        [n.mode_at, n.owner_at, n.times_at, n.content].into_iter().any(|s| self.stamp(s) > made)
    }

    fn op_place(
        &mut self,
        stamp: Stamp,
        entry: EntryId,
        inode: InodeId,
        parent: InodeId,
        name: &Name,
        make: Option<&Make>,
    ) {
        if inode == InodeId::ROOT
            || self.entry_of(entry).is_some_and(|e| self.inodes[self.entries[e].inode].id() != inode)
        {
            return; // Cannot come from a sound replica: ids are derived.
        }
        let i = self.intern_inode(inode, stamp);
        self.touch(i);
        let e = self.intern_entry(entry, i);
        self.settle_early(e);
        if let Some(make) = make.filter(|_| self.entries[e].has(FIRST)) {
            self.entries[e].set(FORGOTTEN, false);
            self.set_make(i, stamp, &make.kind);
            self.set_attrs(i, stamp, &make.attrs);
        }
        let p = self.intern_inode(parent, stamp);
        self.put(e, Place { stamp, parent: p, name: name.clone() });
    }

    /// The creation of an inode.
    pub(super) fn set_make(&mut self, i: u32, stamp: Stamp, kind: &Kind) {
        let Some(short) = self.replicas.shorten(stamp) else { return };
        if self.stamp(self.inodes[i].make) < stamp {
            self.inodes[i].make = short;
            self.look_for_old_xattrs(i);
        }
        if self.inodes[i].tag == Tag::Unknown {
            let tag = Tag::of(kind);
            self.inodes[i].tag = tag;
            if matches!(tag, Tag::Symlink | Tag::Char | Tag::Block) {
                self.details.insert(i, kind.clone());
            }
            let e = self.inodes[i].entry;
            if tag != Tag::Dir && e != super::NONE && self.entries[e].has(LOGGED) {
                self.leave_log(e);
            }
        }
    }

    fn set_attrs(&mut self, i: u32, stamp: Stamp, a: &Attrs) {
        let set = [
            Attr::Mode(a.mode),
            Attr::Owner { uid: a.uid, gid: a.gid },
            Attr::Times { atime: a.atime, mtime: a.mtime },
        ];
        let mut won = false;
        for attr in &set {
            won |= self.set_attr(i, stamp, attr);
        }
        if won && self.shows(i) {
            self.inodes[i].set(ATTR_DUE, true);
        }
    }

    /// One group of attributes, if it is later than what is known. The inode is touched already.
    pub(super) fn set_attr(&mut self, i: u32, stamp: Stamp, attr: &Attr) -> bool {
        match attr {
            Attr::Mode(mode) => self.set_mode(i, stamp, *mode),
            Attr::Owner { uid, gid } => self.set_owner(i, stamp, *uid, *gid),
            Attr::Times { atime, mtime } => self.set_times(i, stamp, *atime, *mtime),
            Attr::Xattr { name, value } => self.set_xattr(i, stamp, name, value.as_ref().map(|v| v.to_vec())),
        }
    }

    pub(super) fn set_mode(&mut self, i: u32, stamp: Stamp, mode: u32) -> bool {
        let Some(short) = self.replicas.shorten(stamp) else { return false };
        let later = stamp > self.stamp(self.inodes[i].mode_at);
        if later {
            let n = &mut self.inodes[i];
            n.mode_at = short;
            n.mode = (mode & 0o7777) as u16;
        }
        later
    }

    pub(super) fn set_owner(&mut self, i: u32, stamp: Stamp, uid: u32, gid: u32) -> bool {
        let Some(short) = self.replicas.shorten(stamp) else { return false };
        let later = stamp > self.stamp(self.inodes[i].owner_at);
        if later {
            let n = &mut self.inodes[i];
            (n.owner_at, n.uid, n.gid) = (short, uid, gid);
        }
        later
    }

    pub(super) fn set_times(&mut self, i: u32, stamp: Stamp, atime: UnixTime, mtime: UnixTime) -> bool {
        let Some(short) = self.replicas.shorten(stamp) else { return false };
        let content = self.stamp(self.inodes[i].content);
        let later = stamp > self.stamp(self.inodes[i].times_at);
        if later {
            let n = &mut self.inodes[i];
            n.times_at = short;
            n.set_atime(atime);
            if stamp > content {
                n.set_mtime(mtime);
            }
        }
        later
    }

    pub(super) fn set_xattr(&mut self, i: u32, stamp: Stamp, name: &[u8], value: Option<Vec<u8>>) -> bool {
        let key = (i, Box::from(name));
        if self.xattrs.get(&key).is_some_and(|x| x.stamp >= stamp)
            || value.as_ref().is_some_and(|v| v.len() > limits::XATTR_VALUE_MAX_BYTES)
        {
            return false;
        }
        if value.is_none() {
            self.xattr_graves.insert((stamp, i));
        }
        self.xattrs.insert(key, Xattr { stamp, value });
        self.inodes[i].set(XATTRS, true);
        true
    }

    fn op_remove(&mut self, entry: EntryId, removal: Removal) {
        match self.entry_of(entry) {
            Some(e) => {
                self.touch(self.entries[e].inode);
                self.add_removal(e, removal);
            }
            None => {
                self.touch(super::ROOT);
                let early = self.early.entry(entry).or_default();
                if !early.iter().any(|r| r.at == removal.at) {
                    early.push(removal);
                    early.sort_unstable();
                }
            }
        }
    }

    /// Deletions that came before the entry they are about.
    pub(super) fn settle_early(&mut self, e: u32) {
        let id = self.entries[e].id();
        if self.early.contains_key(&id) {
            self.touch(super::ROOT);
            for r in self.early.remove(&id).unwrap_or_default() {
                self.add_removal(e, r);
            }
        }
    }

    /// The inode is touched already.
    pub(super) fn add_removal(&mut self, e: u32, removal: Removal) {
        let list = self.removed.entry(e).or_default();
        match list.binary_search_by_key(&removal.at, |r| r.at) {
            Ok(_) => {}
            Err(at) => list.insert(at, removal),
        }
        self.entries[e].set(REMOVED, true);
        self.bury(e);
        self.look_for_old_xattrs(self.entries[e].inode);
    }

    /// If a new life began, extended attributes of the old one must go from disk.
    fn look_for_old_xattrs(&mut self, i: u32) {
        if self.inodes[i].has(XATTRS) && self.floor(i).is_some() && self.shows(i) {
            self.inodes[i].set(ATTR_DUE, true);
        }
    }

    /// Disk has its attributes, or an action that brings them there is in flight.
    pub(super) fn shows(&self, i: u32) -> bool {
        self.on_disk(i) || self.work.is_busy(i)
    }

    /// What the inode is, if its creation is known.
    pub(super) fn kind(&self, i: u32) -> Option<Kind> {
        Some(match self.inodes[i].tag {
            Tag::Unknown => return None,
            Tag::File => Kind::File,
            Tag::Dir => Kind::Dir,
            Tag::Fifo => Kind::Fifo,
            Tag::Socket => Kind::Socket,
            Tag::Symlink | Tag::Char | Tag::Block => return self.details.get(&i).cloned(),
        })
    }

    /// Its newest attributes.
    pub(super) fn attrs(&self, i: u32) -> Attrs {
        let n = &self.inodes[i];
        Attrs { mode: u32::from(n.mode), uid: n.uid, gid: n.gid, atime: n.atime(), mtime: n.mtime() }
    }

    /// Its extended attributes, removed ones included, without those of an earlier life.
    pub(super) fn xattrs_of(&self, i: u32) -> Vec<(&[u8], &Xattr)> {
        if !self.inodes[i].has(XATTRS) {
            return Vec::new();
        }
        let after = self.floor(i).map_or(Stamp::ZERO, |(at, _)| at);
        let from = (i, Box::from(&b""[..]));
        let mine = self.xattrs.range(from..).take_while(|((n, _), _)| *n == i);
        mine.filter(|(_, x)| x.stamp > after).map(|((_, name), x)| (&**name, x)).collect()
    }
}
