//! The scan: compares `backing` with what the tree believes to stand there and reports the differences as changes.
//!
//! Runs after direct edits, after failed preconditions, and after every start that follows a crash. After a machine crash
//! nothing that is missing counts as deleted and no bytes count as written (`Lost`, `Torn`).

use crate::exec::limbo_name;
use crate::found::spot;
use crate::fs::{FsOp, Ino, ROOT, WORK};
use crate::world::World;
use ice_core::action::{Refused, Spot};
use ice_core::config::Ending;
use ice_core::event::{Admin, Change, Event, Witness};
use ice_core::ids::{InodeId, Name};
use ice_core::op::{Attr, Kind};
use ice_core::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};

/// Rounds after which a scan waits for another time.
const ROUNDS_MAX: usize = 200;

/// A name on disk or in the tree.
pub(crate) type Place = (InodeId, Name);

#[derive(Default)]
pub(crate) struct Compared {
    /// In the tree, not on disk; deepest last.
    pub(crate) missing: Vec<(Place, InodeId)>,
    /// On disk, not in the tree, with the directory on disk.
    pub(crate) extra: Vec<(Place, Ino, Ino)>,
    /// In both.
    pub(crate) both: Vec<(Place, InodeId, Ino)>,
    /// Which inode the tree believes to be which object, with all its spots.
    pub(crate) known: BTreeMap<Ino, (InodeId, Vec<Spot>)>,
}

impl Compared {
    fn stands_elsewhere(&self, inode: InodeId) -> bool {
        self.extra.iter().any(|(_, _, ino)| self.known.get(ino).is_some_and(|(i, _)| *i == inode))
    }
}

impl World {
    /// Compares and reports until nothing differs.
    pub(crate) fn scan(&mut self, n: usize) {
        let recovering = self.hosts[n].recovering;
        let after_machine_crash = recovering && self.hosts[n].ending == Ending::MachineCrash;
        if after_machine_crash {
            self.remove_again(n);
        }
        // What was changed directly while a node was stopped in order is what it looks like.
        if !recovering || self.hosts[n].ending != Ending::Clean {
            self.show_found(n);
        }
        let mut done: BTreeSet<(InodeId, Ino)> = BTreeSet::new();
        let mut refused: BTreeSet<Place> = BTreeSet::new();
        for round in 0..ROUNDS_MAX {
            if self.failure.is_some() || !self.hosts[n].is_up() {
                return;
            }
            let found = self.compare(n);
            if self.one_round(n, &found, after_machine_crash, &mut done, &mut refused) {
                if round + 1 == ROUNDS_MAX {
                    self.scan_soon(n);
                }
                continue;
            }
            break;
        }
        if std::mem::take(&mut self.hosts[n].recovering) && self.hosts[n].ending != Ending::Clean {
            self.hand(n, Event::Admin(Admin::Scanned));
            if after_machine_crash {
                self.hosts[n].scars = Some(self.hosts[n].disk.mark());
            }
        }
    }

    /// Reports something. False: nothing differs any more.
    fn one_round(
        &mut self,
        n: usize,
        found: &Compared,
        after_machine_crash: bool,
        done: &mut BTreeSet<(InodeId, Ino)>,
        refused: &mut BTreeSet<Place>,
    ) -> bool {
        // Renames and links first: an object that the tree knows stands elsewhere.
        for (place, _, ino) in &found.extra {
            let Some((inode, old)) = found.known.get(ino) else { continue };
            if refused.contains(place) {
                continue;
            }
            let gone = old.iter().find_map(|s| found.missing.iter().map(|(m, _)| m).find(|m| spot(m) == *s));
            let change = match gone {
                // It was shown; nobody moved it.
                Some(_) if after_machine_crash => continue,
                Some((parent, name)) => Change::Rename {
                    parent: *parent,
                    name: name.clone(),
                    new_parent: place.0,
                    new_name: place.1.clone(),
                    // What the tree has there stands elsewhere on disk: they changed places.
                    exchange: found.missing.iter().any(|(p, i)| p == place && found.stands_elsewhere(*i)),
                },
                None if self.hosts[n].fs.get(*ino).is_some_and(|i| i.kind.is_dir()) => continue,
                // A new name says nothing of the bytes: they are looked at next.
                None => Change::Link {
                    inode: *inode,
                    parent: place.0,
                    name: place.1.clone(),
                    witness: Witness { disk: *ino, sum: 0 },
                },
            };
            return self.report(n, vec![change], place, refused);
        }
        // What is gone must make room before something new takes its name.
        if let Some((place, inode)) = found.missing.iter().rev().find(|(p, _)| !refused.contains(p)) {
            let (parent, name) = place.clone();
            let change = if after_machine_crash {
                self.sometimes.saw("scan found something lost");
                Change::Lost { parent, name }
            } else {
                self.tell(|| format!("n{} scan: {inode} is gone", n + 1));
                Change::Remove { parent, name }
            };
            return self.report(n, vec![change], place, refused);
        }
        for (place, _, ino) in &found.extra {
            if refused.contains(place) || found.known.contains_key(ino) {
                continue;
            }
            let Some(i) = self.hosts[n].fs.get(*ino) else { continue };
            let (kind, attrs, witness) = (i.kind.clone(), i.attrs, self.witness(n, *ino));
            let has_bytes = i.content.size > 0;
            let xattrs: Vec<_> = i.xattrs.clone().into_iter().collect();
            // Until its bytes are told, they are not known.
            let unknown = Witness { disk: witness.disk, sum: 0 };
            let (parent, name) = place.clone();
            let create =
                Change::Create { parent, name, kind, attrs, witness: if has_bytes { unknown } else { witness } };
            let results = self.tell_found(n, vec![create], place, refused);
            let Some(Ok(inode)) = results.first().copied() else { return !results.is_empty() };
            if !xattrs.is_empty() {
                let witness = if has_bytes { unknown } else { witness };
                let changes = xattrs.into_iter().map(|(name, v)| {
                    let value = Some(serde_bytes::ByteBuf::from(v.into_vec()));
                    Change::Attr { inode, attr: Attr::Xattr { name, value }, witness }
                });
                let changes = changes.collect();
                self.change(n, changes);
            }
            if let Some(change) = self.content_change(n, inode, *ino).filter(|_| has_bytes) {
                self.change(n, vec![change]);
            }
            return true;
        }
        let mut any = false;
        for (_, inode, ino) in &found.both {
            if done.insert((*inode, *ino)) {
                any |= self.inspect(n, *inode, *ino, after_machine_crash);
            }
        }
        any
    }

    fn report(&mut self, n: usize, changes: Vec<Change>, place: &Place, refused: &mut BTreeSet<Place>) -> bool {
        !self.tell_found(n, changes, place, refused).is_empty()
    }

    fn tell_found(
        &mut self,
        n: usize,
        changes: Vec<Change>,
        place: &Place,
        refused: &mut BTreeSet<Place>,
    ) -> Vec<Result<InodeId, Refused>> {
        self.sometimes.saw("scan found a change");
        self.tell(|| format!("n{} scan: {changes:?}", n + 1));
        let results = self.change(n, changes);
        if results.is_empty() || results.iter().any(Result::is_err) {
            refused.insert(place.clone());
        }
        results
    }

    /// What the tree believes and what the disk holds, side by side.
    pub(crate) fn compare(&self, n: usize) -> Compared {
        let mut found = Compared::default();
        let host = &self.hosts[n];
        let Some(p) = host.process.as_ref() else { return found };
        let view = p.node.view();
        let tree = view.tree();
        // Everything that the tree believes to be on disk, wherever the disk has it.
        let mut todo = vec![InodeId::ROOT];
        todo.extend(tree.limbo().into_iter().map(|(_, inode)| inode));
        while let Some(dir) = todo.pop() {
            for c in all_children(tree, dir) {
                if let Some(info) = tree.info(c.1)
                    && info.witness.disk != 0
                {
                    let known = found.known.entry(info.witness.disk).or_insert_with(|| (c.1, Vec::new()));
                    known.1.push(Spot::At { parent: dir, name: c.0.clone() });
                }
                if c.2 {
                    todo.push(c.1);
                }
            }
        }
        for (entry, inode) in tree.limbo() {
            if let Some(info) = tree.info(inode).filter(|i| i.witness.disk != 0) {
                let known = found.known.entry(info.witness.disk).or_insert_with(|| (inode, Vec::new()));
                known.1.push(Spot::Limbo(entry));
            }
        }
        let mut todo = vec![(InodeId::ROOT, Some(ROOT))];
        for (entry, inode) in tree.limbo() {
            if tree.info(inode).is_some_and(|i| i.kind.is_dir()) {
                todo.push((inode, host.fs.child(WORK, &limbo_name(entry))));
            }
        }
        let mut at = 0;
        while let Some((dir, on_disk)) = todo.get(at).copied() {
            at += 1;
            let mut names = BTreeMap::new();
            if let Some(d) = on_disk.and_then(|ino| host.fs.get(ino)) {
                names.clone_from(&d.children);
            }
            for (name, inode, is_dir) in all_children(tree, dir) {
                let here = names.get(&name).copied().and_then(|ino| Some((ino, host.fs.get(ino)?)));
                let kind = tree.info(inode).map(|i| (i.kind, i.witness.disk));
                let same = match (&here, &kind) {
                    (Some((ino, i)), Some((kind, disk))) => {
                        // A file may be replaced by another; anything else is what it is.
                        i.kind == *kind && (*ino == *disk || *disk == 0 || fits(&found, *ino, &i.kind))
                    }
                    _ => false,
                };
                match here {
                    Some((ino, _)) if same => {
                        names.remove(&name);
                        found.both.push(((dir, name), inode, ino));
                        if is_dir {
                            todo.push((inode, Some(ino)));
                        }
                    }
                    _ => {
                        found.missing.push(((dir, name), inode));
                        if is_dir {
                            todo.push((inode, None));
                        }
                    }
                }
            }
            for (name, ino) in names {
                found.extra.push(((dir, name), on_disk.unwrap_or(ROOT), ino));
            }
        }
        // An object that was moved away left its name to another, which is no edition of it.
        let moved: BTreeSet<Ino> = found.extra.iter().map(|(_, _, ino)| *ino).collect();
        let both = std::mem::take(&mut found.both);
        for (place, inode, ino) in both {
            let believed = tree.info(inode).map_or(0, |i| i.witness.disk);
            if believed != ino && moved.contains(&believed) {
                found.missing.push((place.clone(), inode));
                found.extra.push((place, ROOT, ino));
            } else {
                found.both.push((place, inode, ino));
            }
        }
        found
    }

    /// One object that the tree and the disk both have. True if something was reported.
    fn inspect(&mut self, n: usize, inode: InodeId, ino: Ino, after_machine_crash: bool) -> bool {
        let host = &self.hosts[n];
        let Some(p) = host.process.as_ref() else { return false };
        if p.writers.get(&ino).is_some_and(|w| w.dirty) {
            return false;
        }
        let view = p.node.view();
        let (Some(info), Some(i)) = (view.tree().info(inode), host.fs.get(ino)) else { return false };
        let witness = host.fs.witness(ino);
        let again = p.looks.contains(&inode);
        if (info.witness == witness && !again) || inode == InodeId::ROOT {
            return false;
        }
        let known = view.tree().xattrs(inode);
        let is_file = i.kind == Kind::File;
        let same_bytes = !is_file
            || match info.held_content {
                Some((size, digest)) => size == i.content.size && digest == i.content.digest(),
                None => info.held.is_zero() && i.content.size == 0,
            };
        let (attrs, xattrs, content) = (i.attrs, i.xattrs.clone(), i.content);
        if info.attrs_held {
            self.process(n).looks.remove(&inode);
        } else {
            // Remote attributes are about to be set: what differs then was changed here.
            self.process(n).looks.insert(inode);
            self.scan_soon(n);
        }
        let mut changes = Vec::new();
        if info.attrs_held || after_machine_crash {
            let mut differ = Vec::new();
            if attrs.mode != info.attrs.mode {
                differ.push(Attr::Mode(attrs.mode));
            }
            if (attrs.uid, attrs.gid) != (info.attrs.uid, info.attrs.gid) {
                differ.push(Attr::Owner { uid: attrs.uid, gid: attrs.gid });
            }
            if same_bytes && is_file && attrs.mtime != info.attrs.mtime {
                differ.push(Attr::Times { atime: attrs.atime, mtime: attrs.mtime });
            }
            for (name, value) in &known {
                if xattrs.get(name) != Some(value) {
                    let value = xattrs.get(name).map(|v| serde_bytes::ByteBuf::from(v.to_vec()));
                    differ.push(Attr::Xattr { name: name.clone(), value });
                }
            }
            for (name, value) in &xattrs {
                if !known.iter().any(|(k, _)| k == name) {
                    let value = Some(serde_bytes::ByteBuf::from(value.to_vec()));
                    differ.push(Attr::Xattr { name: name.clone(), value });
                }
            }
            if after_machine_crash {
                self.set_right(n, ino, info.attrs, &known, &differ);
            } else {
                changes.extend(differ.into_iter().map(|attr| Change::Attr { inode, attr, witness }));
            }
        }
        let witness = self.witness(n, ino);
        if !same_bytes && after_machine_crash {
            self.sometimes.saw("scan found something lost");
            self.hosts[n].aside.insert(content.token);
            changes.push(Change::Torn { inode, witness });
        } else if !same_bytes {
            changes.extend(self.content_change(n, inode, ino));
        } else if changes.is_empty() && info.witness != witness {
            changes.push(Change::Touch { inode, witness });
        }
        if changes.is_empty() {
            return false;
        }
        self.tell(|| format!("n{} scan: {changes:?}", n + 1));
        self.sometimes.saw("scan found a change");
        !self.change(n, changes).is_empty()
    }

    /// Attributes that a machine crash took back are set again.
    fn set_right(
        &mut self,
        n: usize,
        ino: Ino,
        attrs: ice_core::op::Attrs,
        known: &[(Box<[u8]>, Box<[u8]>)],
        differ: &[Attr],
    ) {
        for attr in differ {
            let attr = match attr {
                Attr::Mode(_) => Attr::Mode(attrs.mode),
                Attr::Owner { .. } => Attr::Owner { uid: attrs.uid, gid: attrs.gid },
                Attr::Times { .. } => Attr::Times { atime: attrs.atime, mtime: attrs.mtime },
                Attr::Xattr { name, .. } => {
                    let value = known.iter().find(|(k, _)| k == name);
                    let value = value.map(|(_, v)| serde_bytes::ByteBuf::from(v.to_vec()));
                    Attr::Xattr { name: name.clone(), value }
                }
            };
            let _ = self.hosts[n].fs.apply(FsOp::Attr { ino, attr });
        }
    }

    /// Removals since the last checkpoint that the machine crash undid are made again. Directories last, if they are empty.
    fn remove_again(&mut self, n: usize) {
        let Some(p) = self.hosts[n].process.as_ref() else { return };
        let removed: BTreeMap<Ino, u64> =
            p.node.view().removed_lately().iter().map(|r| (r.witness.disk, r.witness.sum)).collect();
        if removed.is_empty() {
            return;
        }
        let found = self.compare(n);
        let known: BTreeSet<Ino> = found.known.into_keys().collect();
        for (path, ino) in self.hosts[n].fs.list(ROOT).into_iter().rev() {
            let fs = &self.hosts[n].fs;
            let Some(i) = fs.get(ino) else { continue };
            let same_look = !i.kind.is_file() || removed.get(&ino) == Some(&fs.witness(ino).sum);
            if !removed.contains_key(&ino) || known.contains(&ino) || !same_look || !i.children.is_empty() {
                continue;
            }
            if let Some((name, dirs)) = path.split_last()
                && let Some(parent) = fs.walk(ROOT, dirs)
            {
                self.sometimes.saw("removal undone by a crash");
                let _ = self.hosts[n].fs.apply(FsOp::Remove { parent, name: name.clone() });
            }
        }
    }
}

/// A file on disk under the name of another inode: taken for a new edition of that inode unless it is known elsewhere.
fn fits(found: &Compared, ino: Ino, kind: &Kind) -> bool {
    !found.known.contains_key(&ino) && matches!(kind, Kind::File)
}

fn all_children(tree: &Tree, dir: InodeId) -> Vec<(Name, InodeId, bool)> {
    let mut out: Vec<(Name, InodeId, bool)> = Vec::new();
    loop {
        let after = out.last().map(|c| c.0.clone());
        let some = tree.children(dir, after.as_ref(), 256);
        if some.is_empty() {
            return out;
        }
        out.extend(some.into_iter().map(|c| (c.name, c.inode, c.dir)));
    }
}
