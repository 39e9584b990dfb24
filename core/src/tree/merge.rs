//! State transfer: what is known of an inode as a record, and merging such records register by register.

use super::model::*;
use super::{EntryRecord, Knows, PlaceRecord, ROOT, Removal, StateRecord, Tree, Version, XattrRecord};
use crate::bug::Bug;
use crate::ids::InodeId;
use crate::op::OpBody;
use crate::time::Stamp;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

impl Tree {
    /// Everything known of an inode.
    pub(super) fn state_record(&self, i: u32) -> StateRecord {
        let n = &self.inodes[i];
        let made = self.stamp(n.make);
        let after = self.floor(i).map_or(Stamp::ZERO, |(at, _)| at);
        let xattrs = self.xattrs_raw(i).map(|(name, x)| XattrRecord {
            name: name.into(),
            stamp: x.stamp,
            // Of an earlier life only the name counts: disk may still have it.
            value: x.value.clone().filter(|_| x.stamp > after).map(serde_bytes::ByteBuf::from),
        });
        let entries = self.entries_of(i).into_iter().filter(|e| !self.entries[*e].has(FORGOTTEN));
        let early = if i == ROOT { &self.early } else { &BTreeMap::new() };
        StateRecord {
            inode: n.id(),
            make: self.kind(i).map(|k| (made, k)),
            mode: (self.stamp(n.mode_at), u32::from(n.mode)),
            owner: (self.stamp(n.owner_at), n.uid, n.gid),
            times: (self.stamp(n.times_at), n.atime()),
            mtime: n.mtime(),
            content: (self.stamp(n.content), n.size, n.digest),
            versions: self.versions.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, v)| *v).collect(),
            xattrs: xattrs.collect(),
            entries: entries.map(|e| self.entry_record(e)).collect(),
            early: early.iter().flat_map(|(id, r)| r.iter().map(|r| (*id, *r))).collect(),
            cut: self.cut,
        }
    }

    fn entry_record(&self, e: u32) -> EntryRecord {
        let n = &self.entries[e];
        let record =
            |p: Place, base: bool| PlaceRecord { stamp: p.stamp, parent: self.id_of(p.parent), name: p.name, base };
        let places = if n.has(LOGGED) {
            let base = self.base.get(&e).cloned().map(|b| record(b, true));
            let logged = self.moves_of(e).into_iter().filter_map(|stamp| {
                let m = self.moves.get(&stamp)?;
                Some(record(Place { stamp, parent: m.parent, name: m.name.clone() }, false))
            });
            base.into_iter().chain(logged).collect()
        } else {
            // Out of the log a directory's placement is settled; other placements need no order.
            let settled = self.inodes[n.inode].tag == Tag::Dir;
            self.placement(e).map(|p| record(p, settled)).into_iter().collect()
        };
        EntryRecord { id: n.id(), places, removed: self.removed.get(&e).cloned().unwrap_or_default() }
    }

    /// Up to `max` records of a bucket in the order of their ids, after `after`. Fewer than `max`: there are no more.
    pub fn records(&self, level: u8, bucket: u32, after: Option<InodeId>, max: usize) -> Vec<StateRecord> {
        let Some((low, high)) = Tree::bucket_range(level, bucket) else { return Vec::new() };
        let low = match after {
            Some(InodeId(u128::MAX)) => return Vec::new(),
            Some(a) => low.max(InodeId(a.0 + 1)),
            None => low,
        };
        if low > high {
            return Vec::new();
        }
        let told = self.inodes_in(low, high).filter(|i| !self.is_forgotten(*i));
        told.take(max).map(|i| self.state_record(i)).collect()
    }

    /// The cluster forgot it; it is only here because of what stands on disk.
    fn is_forgotten(&self, i: u32) -> bool {
        let entries = self.entries_of(i);
        !entries.is_empty() && entries.iter().all(|e| self.entries[*e].has(FORGOTTEN))
    }

    /// Merges what another replica knows of an inode: whatever is later wins, register by register. `theirs` is what the
    /// speaker knew when it wrote the record, `ours` what this replica knew before. Something that one side has not got
    /// although it knows every operation that ever spoke of it was deleted, and the deletion was forgotten there.
    pub fn merge(&mut self, r: &StateRecord, theirs: &Knows<'_>, ours: &Knows<'_>) {
        let gone_here = self.inode_of(r.inode).is_none_or(|i| i != ROOT && self.is_forgotten(i));
        if gone_here && r.stamps().all(ours) {
            return;
        }
        let i = self.intern_inode(r.inode, r.cut);
        self.touch(i);
        for entry in r.entries.iter().filter(|e| e.id.first_inode() == r.inode) {
            if let Some(e) = self.entry_of(entry.id) {
                self.entries[e].set(FORGOTTEN, false);
            }
        }
        if i != ROOT
            && let Some((stamp, kind)) = &r.make
        {
            self.set_make(i, *stamp, kind);
        }
        let mut won = self.set_mode(i, r.mode.0, r.mode.1);
        won |= self.set_owner(i, r.owner.0, r.owner.1, r.owner.2);
        let mtime = self.inodes[i].mtime();
        won |= self.set_times(i, r.times.0, r.times.1, r.mtime);
        for x in &r.xattrs {
            if ours(x.stamp) && !self.xattrs.contains_key(&(i, x.name.clone())) {
                continue;
            }
            won |= self.set_xattr(i, x.stamp, &x.name, x.value.clone().map(|v| v.into_vec()));
        }
        if i != ROOT {
            self.merge_content(i, r, theirs, ours);
            self.merge_entries(i, r, theirs, ours);
        } else {
            for (entry, removal) in &r.early {
                let Removal { at, saw, last } = *removal;
                self.integrate_unsettled(at, &OpBody::Remove { entry: *entry, saw, last });
            }
        }
        if (won || self.inodes[i].mtime() != mtime) && self.shows(i) {
            self.inodes[i].set(ATTR_DUE, true);
        }
        self.settle();
    }

    fn merge_content(&mut self, i: u32, r: &StateRecord, theirs: &Knows<'_>, ours: &Knows<'_>) {
        // What was settled here and forgotten is not brought up again.
        let settled_here = |t: &Tree, s: Stamp| {
            let n = &t.inodes[i];
            // Or it belonged to an earlier life.
            let later = t.stamp(n.content).max(t.stamp(n.make));
            t.is_cut(s) && ours(s) && s < later && !t.versions.contains_key(&(i, s))
        };
        for v in &r.versions {
            if settled_here(self, v.stamp) {
                continue;
            }
            let base = if v.base < v.stamp { v.base } else { Stamp::ZERO };
            self.add_version(i, Version { base, ..*v });
        }
        let (stamp, size, digest) = r.content;
        let old = self.stamp(self.inodes[i].content);
        if stamp.is_zero() || stamp == old || self.versions.contains_key(&(i, stamp)) || settled_here(self, stamp) {
            return;
        }
        // Its own base is forgotten there, and with it every earlier version that the speaker knew and does not list.
        let listed = r.versions.iter().any(|v| v.stamp == old);
        let knew = theirs(old) || (self.has_bug(Bug::SettleUnknown) && old <= r.cut);
        let settled = stamp > old && knew && !listed && !self.heads.contains(&(i, old));
        self.add_version(
            i,
            Version { stamp, base: if settled { old } else { Stamp::ZERO }, size, digest, mtime: r.mtime },
        );
    }

    fn merge_entries(&mut self, i: u32, r: &StateRecord, theirs: &Knows<'_>, ours: &Knows<'_>) {
        for e in self.entries_of(i) {
            let told = r.entries.iter().any(|x| x.id == self.entries[e].id());
            if !told && !self.entries[e].has(FORGOTTEN) && self.entry_record(e).stamps().all(theirs) {
                self.forsake(e);
            }
        }
        for entry in &r.entries {
            let here = self.entry_of(entry.id);
            let gone_here = here.is_none_or(|e| self.entries[e].has(FORGOTTEN));
            if here.is_some_and(|e| self.entries[e].inode != i) || (gone_here && entry.stamps().all(ours)) {
                continue;
            }
            let e = self.intern_entry(entry.id, i);
            self.settle_early(e);
            for p in &entry.places {
                let parent = self.intern_inode(p.parent, r.cut);
                let place = Place { stamp: p.stamp, parent, name: p.name.clone() };
                if self.replicas.shorten(p.stamp).is_none() {
                    continue;
                }
                if p.base && self.entries[e].has(FIRST) && self.inodes[i].tag == Tag::Dir {
                    self.settle_move(e, place);
                } else {
                    self.put(e, place);
                }
            }
            for removal in &entry.removed {
                self.add_removal(e, *removal);
            }
        }
    }

    /// The cluster forgot this entry. Its inode is touched already.
    fn forsake(&mut self, e: u32) {
        for s in self.moves_of(e) {
            self.forget_move(s);
        }
        if let Some(b) = self.base.remove(&e) {
            self.drop_parent(b.parent);
        }
        self.removed.remove(&e);
        self.entries[e].set(REMOVED | LOGGED, false);
        self.entries[e].set(FORGOTTEN, true);
        self.bury(e);
        let i = self.entries[e].inode;
        if self.inodes[i].tag == Tag::Dir && self.entries[e].has(LIVE) && self.inodes[i].live_kids > 0 {
            self.rebirths.insert(i);
        }
    }

    /// A replica that knows everything that was ever said about this inode no longer has it: everybody knew of its deletion.
    /// It is forgotten; what stands of it on disk is removed by the next steps (bytes that lost a conflict are kept). A
    /// directory with something of ours in it is made anew by [`Tree::own_ops`]. `theirs` is what that replica knew. False,
    /// and nothing happens, if anything is said of the inode here that it did not know: a log is also replayed on pages of
    /// the checkpoint that are later than its records.
    pub fn absent(&mut self, inode: InodeId, theirs: &Knows<'_>) -> bool {
        let Some(i) = self.inode_of(inode).filter(|i| *i != ROOT) else { return false };
        if !self.state_record(i).stamps().all(theirs) {
            return false;
        }
        self.touch(i);
        let held = self.held(i);
        let entries = self.entries_of(i);
        for e in entries {
            self.forsake(e);
        }
        let n = &mut self.inodes[i];
        (n.make, n.mode_at, n.owner_at, n.times_at) = Default::default();
        n.content = Default::default();
        (n.size, n.digest) = (0, crate::op::ContentDigest::EMPTY);
        n.set(ATTR_DUE, false);
        if self.on_disk(i) {
            self.set_held(i, held.stamp, held.bytes);
        }
        let mine: Vec<_> = self.xattrs.range((i, [].into())..).take_while(|((n, _), _)| *n == i).collect();
        let keys: Vec<_> = mine.into_iter().map(|(k, _)| k.clone()).collect();
        for key in keys {
            self.xattrs.remove(&key);
        }
        self.inodes[i].set(XATTRS, false);
        self.settle();
        true
    }
}
