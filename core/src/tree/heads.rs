//! Versions that lost a conflict, and the copies that keep their bytes.

use super::model::*;
use super::names::conflict_name;
use super::plan::{Kept, Work};
use super::{Conflict, Have, LocalOp, LocalOutcome, Mint, ROOT, Removal, Tree, Version};
use crate::action::LogRecord;
use crate::bug::Bug;
use crate::ids::{EntryId, InodeId, Name};
use crate::op::{Attr, Kind, Make, OpBody};
use crate::time::Stamp;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// What is to be done about a version that may have lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing: it was overwritten knowingly, its bytes stand elsewhere, or it was deleted by somebody who had seen it.
    Drop,
    /// An operation that decides it has not come yet.
    Wait,
    /// Its bytes must be kept.
    Keep(Version),
}

impl Tree {
    /// Somebody who had this version deleted the last name that he knew of (or did so before a new life began); or all names
    /// were deleted by those who had it.
    fn deleted_knowingly(&self, i: u32, version: Stamp) -> bool {
        let entries = self.entries_of(i);
        let made = self.stamp(self.inodes[i].make);
        let by = |e: &u32, counts: &dyn Fn(&Removal) -> bool| {
            let n = &self.entries[*e];
            let place = self.stamp(n.place);
            let holds = |at: Stamp| at > place || (n.has(FIRST) && at < made);
            let knew = |r: &Removal| r.saw == version && holds(r.at);
            self.removed.get(e).is_some_and(|r| r.iter().any(|r| knew(r) && counts(r)))
        };
        let file = entries.iter().any(|e| by(e, &|r| r.last));
        file || (!entries.is_empty() && entries.iter().all(|e| by(e, &|_| true)))
    }

    /// Somebody deleted it who had seen a version that has not come here yet, while disk holds an older one.
    pub(super) fn deleted_unseen(&self, i: u32) -> bool {
        let held = self.held(i).stamp;
        let known = |v: Stamp| {
            v <= self.agreed || v == self.stamp(self.inodes[i].content) || self.versions.contains_key(&(i, v))
        };
        let unseen = |e: &u32| self.removed.get(e).is_some_and(|r| r.iter().any(|r| r.saw > held && !known(r.saw)));
        self.inodes[i].tag == Tag::File && !held.is_zero() && self.entries_of(i).iter().any(unseen)
    }

    pub(super) fn verdict(&self, i: u32, version: Stamp) -> Verdict {
        let Some(v) = self.versions.get(&(i, version)) else { return Verdict::Drop };
        let (winner, size, digest) = (self.stamp(self.inodes[i].content), self.inodes[i].size, self.inodes[i].digest);
        if version == winner || v.size == 0 {
            return Verdict::Drop;
        }
        let mut unknown = false;
        let all = || self.versions.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).map(|(_, v)| v);
        for x in all() {
            if x.base == version {
                return Verdict::Drop;
            }
            unknown |= x.base > version && x.base > self.agreed && !self.versions.contains_key(&(i, x.base));
        }
        if self.deleted_knowingly(i, version) {
            return Verdict::Drop;
        }
        if (size, digest) == (v.size, v.digest) && !self.deleted_knowingly(i, winner) {
            return Verdict::Drop;
        }
        for x in all() {
            let equal = x.stamp != version && (x.size, x.digest) == (v.size, v.digest);
            let safe = || x.stamp > version || all().any(|y| y.base == x.stamp);
            if equal && safe() && !self.deleted_knowingly(i, x.stamp) {
                return Verdict::Drop;
            }
        }
        let copy = EntryId::derive_conflict(self.inodes[i].id(), version);
        if let Some(e) = self.entry_of(copy) {
            return self.verdict_on_published(i, v, e);
        }
        if self.has_bug(Bug::LoseConflictCopy) {
            return Verdict::Drop;
        }
        if unknown { Verdict::Wait } else { Verdict::Keep(*v) }
    }

    /// Somebody else published the copy `e` of a losing version. His bytes may be nowhere but in his log, or on a full disk:
    /// what disk holds here becomes the copy rather than being replaced by the winner and fetched again.
    fn verdict_on_published(&self, i: u32, v: &Version, e: u32) -> Verdict {
        let (n, held) = (&self.entries[e], self.held(i).stamp == v.stamp && self.on_disk(i));
        let (_, size, digest) = self.winner(n.inode);
        if !held || !n.has(LIVE) || self.on_disk(n.inode) || (size, digest) != (v.size, v.digest) {
            return Verdict::Drop;
        }
        // An action may just be making it from other bytes: see what comes of it.
        if self.work.is_busy(n.inode) { Verdict::Wait } else { Verdict::Keep(*v) }
    }

    /// The inode of the published copy of a version, if an action is just making it.
    pub(super) fn copy_under_way(&self, i: u32, version: Stamp) -> Option<u32> {
        let e = self.entry_of(EntryId::derive_conflict(self.inodes[i].id(), version))?;
        Some(self.entries[e].inode).filter(|c| self.work.is_busy(*c))
    }

    /// A version is settled: it needs no copy (any more). Touches the inode.
    pub(super) fn settle_head(&mut self, i: u32, version: Stamp) {
        if self.heads.contains(&(i, version)) {
            self.touch(i);
            self.heads.remove(&(i, version));
            self.heads_due.remove(&(i, version));
            self.heads_waiting.remove(&(i, version));
            self.heads_needed.remove(&(i, version));
            self.work.at_rest(Work::Head(i, version));
            let id = self.inodes[i].id();
            let copy = EntryId::derive_conflict(id, version);
            if self.entry_of(copy).is_some() {
                self.note_copy(id, version, copy.first_inode());
            }
            if version <= self.cut {
                self.version_ages.insert((version, i));
            }
            for e in self.entries_of(i) {
                self.bury(e);
            }
        }
    }

    pub(super) fn note_copy(&mut self, inode: InodeId, lost: Stamp, copy: InodeId) {
        if self.copies.insert((inode, lost), copy).is_none() {
            self.copy_of.insert(copy, (inode, lost));
            self.dirty_keys.insert(super::store::copy_key(inode, lost));
        }
    }

    /// Something about the inode changed: its unsettled versions are looked at again.
    pub(super) fn call_heads(&mut self, i: u32) {
        let mine: Vec<_> = self.heads.range((i, Stamp::ZERO)..=(i, Stamp::MAX)).copied().collect();
        self.heads_due.extend(mine);
    }

    /// Nobody who can be reached has the bytes of this losing version. It is given up here: whoever still has it makes the
    /// copy. A winning version is not given up.
    pub fn give_up_head(&mut self, inode: InodeId, version: Stamp) {
        if let Some(i) = self.inode_of(inode)
            && !(self.held(i).stamp == version && self.on_disk(i))
        {
            self.settle_head(i, version);
            self.settle();
        }
    }

    /// Nobody has the bytes of this version any more, and nobody will: its author lost them in a crash before they were
    /// durable or fetched. If it is the newest, another takes its place: the one it was made from if its bytes are known by
    /// digest, an empty file otherwise. `None` if there is nothing to do.
    pub fn abandon(&mut self, inode: InodeId, version: Stamp, mint: &mut Mint<'_>) -> Option<LocalOutcome> {
        let i = self.inode_of(inode)?;
        let lost = self.stamp(self.inodes[i].content) == version;
        if !lost || (self.held(i).stamp == version && self.on_disk(i)) {
            return None;
        }
        let get = |v: Stamp| self.versions.get(&(i, v));
        let base = get(version).and_then(|v| get(v.base));
        // If that one was itself put in the place of a lost one, its bytes are gone as well.
        let again = base.and_then(|b| get(b.base)).zip(get(version)).is_some_and(|(a, v)| a.digest == v.digest);
        let known = base.filter(|_| !again);
        let (size, digest, mtime) = match known {
            Some(v) => (v.size, v.digest, v.mtime),
            None => (0, crate::op::ContentDigest::EMPTY, self.inodes[i].mtime()),
        };
        let body = OpBody::SetContent { inode, base: version, size, digest, mtime };
        let stamp = mint();
        self.integrate(stamp, &body);
        let ops = alloc::vec![LocalOp { stamp, body, here: None }];
        Some(LocalOutcome { inode, ops, records: Vec::new() })
    }

    /// Conflict copies that stand under the names that they were given, and what stands under a conflict's name because others
    /// have its own. The same on all nodes with the same tree.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let kept = self.marked.iter().filter_map(|e| self.kept_under(*e));
        kept.chain(self.spots.keys().filter_map(|e| self.clash(*e))).collect()
    }

    /// The copy that keeps version `lost` of `inode`, if one is known.
    pub fn copy_of(&self, inode: InodeId, lost: Stamp) -> Option<InodeId> {
        self.copies.get(&(inode, lost)).copied()
    }

    /// A free name on disk and in the tree for the copy of a losing version, beside `name`.
    pub(super) fn copy_name(&self, dir: u32, name: &Name, lost: Stamp, id: EntryId) -> Option<Name> {
        let free = |n: &Name| {
            self.disk_child(dir, n).is_none() && self.group(dir, n).is_empty() && !self.work.is_reserved(dir, n)
        };
        [8, 16, 32].into_iter().map(|digits| conflict_name(name, lost, id, digits)).find(free)
    }

    /// The file and the losing version whose bytes this conflict copy keeps.
    pub fn copied_from(&self, copy: InodeId) -> Option<(InodeId, Stamp)> {
        self.copy_of.get(&copy).copied()
    }

    /// Operations that the tree has to issue by itself: conflict copies of losing versions, and directories that hold
    /// something of ours although the cluster forgot them. At most `max` outcomes. Calls `have` with versions that lost.
    pub fn own_ops(&mut self, have: &Have<'_>, mint: &mut Mint<'_>, max: usize) -> Vec<LocalOutcome> {
        let mut out = Vec::new();
        while out.len() < max {
            if let Some(kept) = self.kept.pop() {
                out.push(self.publish_kept(kept, mint));
            } else if let Some(i) = self.rebirths.pop_first() {
                out.extend(self.publish_rebirth(i, mint));
            } else if let Some((i, c)) = self.heads_due.pop_first() {
                match self.verdict(i, c) {
                    Verdict::Drop => {
                        self.settle_head(i, c);
                        self.settle();
                    }
                    Verdict::Wait => {
                        self.heads_waiting.insert((i, c));
                    }
                    Verdict::Keep(_) if self.held(i).stamp == c && self.on_disk(i) => {
                        let inode = self.inodes[i].id();
                        let copy = EntryId::derive_conflict(inode, c);
                        if self.entry_of(copy).is_some() {
                            self.note_copy(inode, c, copy.first_inode());
                        }
                        // Disk has the only copy we need: it is set aside when the winner is installed.
                        self.work.call(Work::Inode(i));
                        self.work.wake(i);
                    }
                    Verdict::Keep(v) => match have(self.inodes[i].id(), c) {
                        Some(_) => out.extend(self.publish_copy(i, v, mint)),
                        None => {
                            self.heads_needed.insert((i, c));
                        }
                    },
                }
            } else {
                break;
            }
        }
        out
    }

    /// A version whose bytes are at hand but not in a file here: the copy begins as an operation and is materialised like
    /// any other file.
    fn publish_copy(&mut self, i: u32, v: Version, mint: &mut Mint<'_>) -> Option<LocalOutcome> {
        let inode = self.inodes[i].id();
        let entry = EntryId::derive_conflict(inode, v.stamp);
        let entries = self.entries_of(i);
        let live = entries.iter().find(|e| self.entries[**e].has(LIVE));
        let beside = *live.or(entries.iter().find(|e| self.entries[**e].name.is_some()))?;
        let name = self.entries[beside].name.clone()?;
        let parent = self.entries[beside].parent;
        let name = conflict_name(&name, v.stamp, entry, 8);
        let ops = self.copy_ops(i, v, entry, parent, name, mint);
        let copy = entry.first_inode();
        let mut done = Vec::new();
        for (stamp, body) in ops {
            self.integrate_unsettled(stamp, &body);
            done.push(LocalOp { stamp, body, here: None });
        }
        self.note_copy(inode, v.stamp, copy);
        self.settle_head(i, v.stamp);
        self.settle();
        let records = alloc::vec![LogRecord::Kept { inode, lost: v.stamp, copy }];
        Some(LocalOutcome { inode: copy, ops: done, records })
    }

    /// The content comes first: if a crash takes what follows, nobody takes the bytes for safe in a copy that has none.
    fn copy_ops(
        &self,
        i: u32,
        v: Version,
        entry: EntryId,
        parent: u32,
        name: Name,
        mint: &mut Mint<'_>,
    ) -> Vec<(Stamp, OpBody)> {
        let mut attrs = self.attrs(i);
        attrs.mtime = v.mtime;
        let make = Some(Box::new(Make { kind: Kind::File, attrs }));
        let inode = entry.first_inode();
        let parent = self.inodes[parent].id();
        let place = OpBody::Place { entry, inode, parent, name, make };
        let Version { size, digest, mtime, .. } = v;
        let content = OpBody::SetContent { inode, base: Stamp::ZERO, size, digest, mtime };
        let after = self.floor(i).map_or(Stamp::ZERO, |(at, _)| at);
        let xattrs = self.xattrs_raw(i).map(|(name, x)| {
            // Removed ones too: what the copy has on disk may still have them.
            let value = x.value.clone().filter(|_| x.stamp > after).map(serde_bytes::ByteBuf::from);
            let attr = Attr::Xattr { name: name.into(), value };
            OpBody::SetAttr { inode, attr }
        });
        [content, place].into_iter().chain(xattrs).map(|body| (mint(), body)).collect()
    }

    /// The bytes of a losing version were given a name of their own on disk.
    fn publish_kept(&mut self, kept: Kept, mint: &mut Mint<'_>) -> LocalOutcome {
        let Kept { inode: i, version: v, dir, name, witness, mut records } = kept;
        let inode = self.inodes[i].id();
        let entry = EntryId::derive_conflict(inode, v.stamp);
        let copy = entry.first_inode();
        let mut ops = Vec::new();
        self.work.kept(entry, dir, &name);
        if let Some(e) = self.entry_of(entry) {
            // Somebody else published it in the meantime.
            let c = self.entries[e].inode;
            if self.seat(e).is_none() {
                self.touch(c);
                let at = self.spot_of(&Seat::At(dir, name.clone()), e);
                self.set_seat(e, Some(Seat::At(dir, name)));
                let (winner, size, digest) = self.winner(c);
                let version = if (size, digest) == (v.size, v.digest) { winner } else { v.stamp };
                self.set_held(c, version, Some((v.size, v.digest)));
                self.inodes[c].witness = witness;
                records.push(LogRecord::Stands { entry, spot: Some(at) });
                records.push(LogRecord::Holds { inode: copy, version, witness, attrs: false });
                self.inodes[c].set(ATTR_DUE, true);
                // The file brought its extended attributes with it; those that the copy was not announced with go.
                let mut names: Vec<Box<[u8]>> = self.xattrs_raw(i).map(|(name, _)| name.into()).collect();
                names.retain(|n| !self.xattrs.contains_key(&(c, n.clone())));
                for name in names {
                    let body = OpBody::SetAttr { inode: copy, attr: Attr::Xattr { name, value: None } };
                    let stamp = mint();
                    self.integrate_unsettled(stamp, &body);
                    ops.push(LocalOp { stamp, body, here: None });
                }
            }
        } else {
            let mut version = Stamp::ZERO;
            for (stamp, body) in self.copy_ops(i, v, entry, dir, name, mint) {
                let here = if let OpBody::SetContent { .. } = body {
                    // There is no file yet that could hold it.
                    self.integrate(stamp, &body);
                    version = stamp;
                    None
                } else {
                    self.integrate_here(stamp, &body, witness);
                    Some(witness)
                };
                ops.push(LocalOp { stamp, body, here });
            }
            // The file's own attributes went with its bytes; those that the copy was announced with may differ.
            if let Some(c) = self.inode_of(copy) {
                self.set_held(c, version, None);
                self.inodes[c].set(ATTR_DUE, true);
                self.call_inode(c);
                records.push(self.holds_record(c));
            }
        }
        self.note_copy(inode, v.stamp, copy);
        self.settle_head(i, v.stamp);
        self.settle();
        records.push(LogRecord::Kept { inode, lost: v.stamp, copy });
        LocalOutcome { inode: copy, ops, records }
    }

    /// A directory that the cluster forgot holds something of ours: it is made anew for everybody.
    fn publish_rebirth(&mut self, i: u32, mint: &mut Mint<'_>) -> Option<LocalOutcome> {
        let n = self.inodes.get(i)?;
        if i == ROOT || n.entry == super::NONE || !self.entries[n.entry].has(FORGOTTEN) || n.live_kids == 0 {
            return None;
        }
        let e = n.entry;
        let (kind, inode) = (self.kind(i)?, n.id());
        let entry = self.entries[e].id();
        let (parent, name) = (self.id_of(self.entries[e].parent), self.entries[e].name.clone()?);
        let make = Some(Box::new(Make { kind, attrs: self.attrs(i) }));
        let body = OpBody::Place { entry, inode, parent, name, make };
        let stamp = mint();
        self.integrate_unsettled(stamp, &body);
        self.settle();
        Some(LocalOutcome { inode, ops: alloc::vec![LocalOp { stamp, body, here: None }], records: Vec::new() })
    }
}
