//! Comparing `backing` with the tree: everything at the start, single names after a hint.
//!
//! A scan only *looks* without the namespace lock; what seems different is looked at again with it, so that changes of
//! ours that are under way are never taken for edits. What is missing or new is gathered in a [`Pass`] first: only then can
//! a move be told from a removal and a creation (see `adopt`).

use super::adopt::{Fresh, Gone, Pass};
use super::hints::Work;
use super::meta::{self, Raw};
use super::opens::base_ino;
use super::resolve::is_hidden;
use super::{Ns, Shared};
use crate::vfs::{Result, Stale};
use ice_core::action::Spot;
use ice_core::event::Change;
use ice_core::ids::{InodeId, Name};
use ice_core::op::{Attr, Kind};
use ice_core::tree::InodeInfo;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Names compared with the tree under one lock.
const BATCH: usize = 256;
/// Differences settled under one namespace lock.
const LOCKED_BATCH: usize = 32;
/// Files that wait to be digested before the scanner waits.
const CONTENT_WAITING_MAX: usize = 1024;
/// Where nobody tells of direct edits, everything is compared this often.
const POLL: Duration = Duration::from_secs(5);
/// The scanner looks around this often without a hint.
const IDLE: Duration = Duration::from_secs(2);
/// While the comparison after the start goes on.
const IDLE_AT_START: Duration = Duration::from_millis(50);

/// A name as a directory lists it.
struct Line {
    name: Name,
    st: Raw,
}

impl Shared {
    pub(crate) fn run_scanner(&self) {
        let (mut last_all, mut took) = (Instant::now(), Duration::ZERO);
        let mut scanned = false;
        let mut told = false;
        // Until the first comparison is told, nothing is applied: no reason to sleep long.
        while let Some(work) = self.hints.next(if told { IDLE } else { IDLE_AT_START }) {
            let due = self.rescan_every(took).is_some_and(|every| last_all.elapsed() >= every);
            if !self.marker_stands() {
                // Nothing that is missing now counts as deleted. Look again when it is back.
                self.hints.all_done();
                self.hints.all();
                std::thread::sleep(IDLE);
                continue;
            }
            if work.all || due {
                let began = Instant::now();
                self.scan_all();
                took = began.elapsed();
                if self.stopping() {
                    // Cut short: what was not looked at may be anything.
                    return;
                }
                self.hints.all_done();
                last_all = Instant::now();
                scanned = true;
            }
            self.scan_hints(work);
            if self.stopping() {
                return;
            }
            let (broken, due): (Vec<_>, Vec<_>) = {
                let unread = self.opens.dirty().into_iter().filter(|o| o.state().verify);
                unread.partition(|o| o.state().dirty.is_some_and(|d| d.broken))
            };
            let compared = scanned && !told && due.is_empty();
            if compared && (self.suspects().is_empty() || self.content.len() == 0) {
                // Everything was compared: from now on a difference is somebody's edit, and changes may be applied. What
                // cannot be read stays suspect for itself: one bad sector must not keep the node in this state.
                let broken: BTreeSet<InodeId> = broken.iter().filter_map(|o| o.state().inode).collect();
                self.suspects().retain(|i| broken.contains(i));
                self.crashed.store(false, std::sync::atomic::Ordering::SeqCst);
                if let Ok(port) = self.port() {
                    told = true;
                    port.scanned();
                }
            }
        }
    }

    /// How often everything is compared. Where nobody tells of direct edits, often enough, but a twentieth of the time at most.
    fn rescan_every(&self, took: Duration) -> Option<Duration> {
        let blind = self.options.watch && self.watch.is_none();
        self.options.rescan.or_else(|| blind.then(|| POLL.max(took * 20)))
    }

    fn marker_stands(&self) -> bool {
        let stands = self.hidden.stands(self.dirs.root());
        if stands {
            self.trouble_over("marker");
        } else {
            let backing = self.options.backing.display();
            let words =
                format!("backing {backing} has lost its marker: is the file system mounted? Nothing is scanned");
            self.trouble("marker", words);
        }
        stands
    }

    fn scan_all(&self) {
        let start = Instant::now();
        for old in ["scan", "adopt", "mount"] {
            self.trouble_over(old);
        }
        let mut pass = Pass::telling();
        pass.todo.push(InodeId::ROOT);
        self.finish(&mut pass);
        {
            let _ns = self.lock_ns();
            self.settle_limbo();
        }
        tracing::info!(seconds = start.elapsed().as_secs_f32(), "scanned backing");
    }

    fn scan_hints(&self, work: Work) {
        let mut pass = Pass::telling();
        let names: Vec<_> = work.names.into_iter().collect();
        for some in names.chunks(LOCKED_BATCH) {
            self.slow_down();
            let ns = self.lock_ns();
            for ((dir, name), list) in some {
                self.check_name(&ns, &mut pass, *dir, name, *list);
            }
        }
        for inode in work.inodes {
            self.check_inode(&mut pass, inode);
        }
        pass.todo.extend(work.dirs);
        self.finish(&mut pass);
    }

    /// Lists what is to be listed, settles what was found, and forgets nothing.
    fn finish(&self, pass: &mut Pass) {
        while !self.stopping() {
            if let Some(dir) = pass.todo.pop() {
                self.scan_dir(pass, dir);
                self.wait_for_digests();
                if !pass.is_full() {
                    continue;
                }
            }
            self.digest_fresh(pass, LOCKED_BATCH);
            let more = {
                let ns = self.lock_ns();
                self.settle_some(&ns, pass, LOCKED_BATCH)
            };
            self.stale.push(std::mem::take(&mut pass.stale));
            self.wait_for_digests();
            if !more && pass.todo.is_empty() {
                break;
            }
        }
    }

    fn wait_for_digests(&self) {
        while self.content.len() > CONTENT_WAITING_MAX && !self.stopping() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Looks at one name now, for a caller that met a difference there.
    pub(crate) fn look_at(&self, dir: InodeId, name: &Name) {
        let ns = self.lock_ns();
        self.look_at_locked(&ns, dir, name);
    }

    /// The same with the lock held. New and changed objects are taken in; what is missing, or is large, is left to the scanner.
    pub(crate) fn look_at_locked(&self, ns: &Ns<'_>, dir: InodeId, name: &Name) {
        let mut pass = Pass::inline();
        self.check_name(ns, &mut pass, dir, name, false);
        while self.settle_some(ns, &mut pass, LOCKED_BATCH) {}
        for dir in pass.todo {
            self.hints.dir(dir);
        }
        self.stale.push_now(pass.stale);
    }

    pub(crate) fn look_at_spot(&self, spot: &Spot) {
        if let Spot::At { parent, name } = spot {
            self.look_at(*parent, name);
        }
    }

    /// The core waits for an answer about this inode.
    fn check_inode(&self, pass: &mut Pass, inode: InodeId) {
        let Ok(port) = self.port() else { return };
        let spots = port.look(|names| names.spots(inode));
        pass.forced.insert(inode);
        for spot in spots {
            match spot {
                Spot::At { parent, name } => {
                    let ns = self.lock_ns();
                    self.check_name(&ns, pass, parent, &name, true);
                }
                Spot::Limbo(_) => {
                    let ns = self.lock_ns();
                    if let Ok((dir, name)) = self.spot(&spot)
                        && let Ok(st) = self.stat_at(&dir, &name)
                        && let Some(info) = port.look(|names| names.info(inode))
                    {
                        self.refresh(&ns, pass, (&dir, &name), inode, &st, &info);
                    }
                }
            }
        }
    }

    /// Compares one name, disk against tree.
    pub(crate) fn check_name(&self, ns: &Ns<'_>, pass: &mut Pass, dir: InodeId, name: &Name, list: bool) {
        if is_hidden(dir, name.as_bytes()) {
            return;
        }
        let (Ok(port), Ok(fd)) = (self.port(), self.dir(dir)) else { return };
        let st = self.stat_at(&fd, name.as_bytes());
        let known = port.look(|names| {
            let inode = names.child(dir, name)?;
            Some((inode, names.info(inode)?))
        });
        if self.is_unsettled(dir, name, known.as_ref().map(|(i, _)| *i)) {
            self.hints.later_name(dir, name.clone());
            return;
        }
        if known.is_none() && st.is_ok() && port.look(|names| names.locate(dir)).is_none() {
            // The directory itself is not known any more; what is in it is found below the one that took its place.
            self.dirs.forget(dir);
            return;
        }
        let gone = |inode, is_dir| Gone { inode, dir, name: name.clone(), is_dir };
        match (st, known) {
            (Err(Errno::NOENT), None) => {}
            (Err(Errno::NOENT), Some((inode, info))) => {
                pass.gone(info.witness.disk, gone(inode, info.kind.is_dir()));
            }
            (Err(e), _) => {
                // What cannot be read is not deleted.
                self.trouble("scan", format!("backing: {name} cannot be looked at: {e}"));
            }
            (Ok(st), _) if st.st_dev as u64 != self.dirs.dev() => {
                let words =
                    format!("another file system is mounted in backing at {name}; it is not part of the volume");
                self.trouble("mount", words);
            }
            (Ok(st), None) => pass.fresh(Fresh { dir, name: name.clone(), disk: meta::disk(&st) }),
            (Ok(st), Some((inode, info))) => {
                let (was, disk) = (info.witness.disk, meta::disk(&st));
                let same = self.is_same_kind(&fd, name, &st, &info.kind);
                if (was == 0 || was == disk) && same {
                    self.refresh(ns, pass, (&fd, name.as_bytes()), inode, &st, &info);
                    if list && info.kind.is_dir() {
                        pass.todo.push(inode);
                    }
                } else {
                    // Another object stands here. Under an equal number it can only be a newer one.
                    pass.gone(if was == disk { 0 } else { was }, gone(inode, info.kind.is_dir()));
                    pass.fresh(Fresh { dir, name: name.clone(), disk });
                }
            }
        }
    }

    /// The kind agrees, a link's target included.
    pub(crate) fn is_same_kind(&self, dir: &OwnedFd, name: &Name, st: &Raw, kind: &Kind) -> bool {
        meta::is_kind(st, kind)
            && (!matches!(kind, Kind::Symlink(_))
                || meta::kind(dir.as_fd(), name.as_bytes(), st).is_ok_and(|on_disk| on_disk == *kind))
    }

    /// The object is the known one (or takes its place as the same file): tells what changed of it.
    pub(crate) fn refresh(
        &self,
        ns: &Ns<'_>,
        pass: &mut Pass,
        (dir, name): (&OwnedFd, &[u8]),
        inode: InodeId,
        st: &Raw,
        info: &InodeInfo,
    ) {
        let file = meta::file_type(st) == FileType::RegularFile;
        let (now, forced) = (meta::witness(st), pass.forced.contains(&inode));
        self.remember_links(st, inode);
        if now == info.witness && !forced {
            return;
        }
        let busy = self.opens.of(inode).is_some_and(|o| {
            let state = o.state();
            o.disk == meta::disk(st) && (state.writers > 0 || state.dirty.is_some())
        });
        // Known bytes stay known if only the attributes are told.
        let witness = if file && now != info.witness { meta::unknown_bytes(st) } else { now };
        let mut changes = Vec::new();
        if info.attrs_held {
            for attr in self.changed_attrs(dir, name, inode, st, info) {
                changes.push(Change::Attr { inode, attr, witness });
            }
        } else {
            // Remote attributes are about to be set: a difference is not an edit.
            self.hints.later_inode(inode);
        }
        if self.is_lost() && !changes.is_empty() && self.is_suspect(inode) {
            // The crash took them back; nobody set them.
            changes = self.set_right(pass, inode, changes, info);
        }
        let look = file && now != info.witness && !busy;
        let other_object = info.witness.disk != meta::disk(st);
        if changes.is_empty() && ((other_object && file) || (!look && !busy && (forced || (!file && info.attrs_held))))
        {
            changes.push(Change::Touch { inode, witness });
        }
        if let Err(e) = self.tell(ns, changes) {
            tracing::debug!(%inode, error = %e, "a difference could not be told; it is found again");
            return;
        }
        let ino = self.opens.shown(inode, meta::disk(st));
        pass.stale.push(Stale::Inode(ino));
        if look {
            let open = self.opens.suspect(ino, inode, meta::disk(st), Instant::now());
            open.state().verify = true;
            self.publish_soon(&open);
        }
    }

    /// Attributes that a machine crash took back are set again. What cannot be set is told as it is.
    fn set_right(&self, pass: &mut Pass, inode: InodeId, changes: Vec<Change>, info: &InodeInfo) -> Vec<Change> {
        let Ok(port) = self.port() else { return changes };
        let (spot, known) = port.look(|names| (names.spots(inode).into_iter().next(), names.xattrs(inode)));
        let mut xattrs: Vec<(Box<[u8]>, Option<Box<[u8]>>)> =
            known.into_iter().map(|(name, value)| (name, Some(value))).collect();
        for change in &changes {
            if let Change::Attr { attr: Attr::Xattr { name, .. }, .. } = change
                && !xattrs.iter().any(|(n, _)| n == name)
            {
                xattrs.push((name.clone(), None));
            }
        }
        let Some(spot) = spot else { return changes };
        match self.dress_again(inode, &spot, &info.attrs, &xattrs) {
            Ok(stale) => {
                pass.stale.extend(stale);
                Vec::new()
            }
            Err(why) => {
                tracing::debug!(%inode, ?why, "attributes that a crash took back cannot be set");
                changes
            }
        }
    }

    /// Attributes that differ from the tree's. Bytes and their time are the publisher's business.
    fn changed_attrs(&self, dir: &OwnedFd, name: &[u8], inode: InodeId, st: &Raw, info: &InodeInfo) -> Vec<Attr> {
        let mut changed = Vec::new();
        // Without privilege owners differ because they cannot be set, and set-ID bits with them.
        if self.privileged && (st.st_uid, st.st_gid) != (info.attrs.uid, info.attrs.gid) {
            changed.push(Attr::Owner { uid: st.st_uid, gid: st.st_gid });
        }
        let bits = if self.privileged { meta::MODE_BITS } else { 0o1777 };
        if meta::file_type(st) != FileType::Symlink && (super::sys::mode_of(st) ^ info.attrs.mode) & bits != 0 {
            changed.push(Attr::Mode(super::sys::mode_of(st) & meta::MODE_BITS));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (Ok(fd), Ok(port)) = (rustix::fs::openat(dir, name, flags, Mode::empty()), self.port()) else {
            return changed;
        };
        let Ok(found) = self.read_xattrs(fd.as_fd()) else { return changed };
        let known = port.look(|names| names.xattrs(inode));
        for (name, value) in &found {
            if !known.iter().any(|(n, v)| **n == **name && **v == **value) {
                let value = Some(serde_bytes::ByteBuf::from(value.clone()));
                changed.push(Attr::Xattr { name: name.as_slice().into(), value });
            }
        }
        // Without privilege an attribute may be missing because it could not be set.
        for (name, _) in known.iter().filter(|(n, _)| self.privileged && !found.iter().any(|(f, _)| **f == **n)) {
            changed.push(Attr::Xattr { name: name.clone(), value: None });
        }
        with_times(&mut changed, st);
        changed
    }

    /// Compares a directory, and puts the ones in it on the list.
    fn scan_dir(&self, pass: &mut Pass, dir: InodeId) {
        self.slow_down();
        let listed = self.list_dir(pass, dir);
        match listed {
            Ok(seen) => self.find_missing(pass, dir, &seen),
            // Removed meanwhile, or moved directly: hints were left on the way to it.
            Err(Errno::STALE | Errno::NOENT) => {}
            Err(e) => self.trouble("scan", format!("backing: directory {dir} cannot be read: {e}")),
        }
    }

    fn list_dir(&self, pass: &mut Pass, dir: InodeId) -> Result<Seen> {
        let fd = self.dir(dir)?;
        // First the watch, then the look: what changes in between is noticed.
        if let Some(watch) = &self.watch {
            self.watch_dir(watch, dir, &fd);
        }
        let list = rustix::fs::openat(&*fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut seen = Seen::default();
        let mut batch: Vec<Line> = Vec::with_capacity(BATCH);
        let mut at = 0;
        let mut lines = Vec::new().into_iter();
        loop {
            let Some(entry) = lines.next() else {
                lines = super::sys::read_dir(&list, at)?.into_iter();
                match lines.as_slice().last() {
                    Some(last) => at = last.next,
                    None => break,
                }
                continue;
            };
            let Some(name) = Name::new(&entry.name) else { continue };
            if is_hidden(dir, name.as_bytes()) {
                continue;
            }
            seen.add(&name);
            match rustix::fs::statat(&*fd, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(st) => batch.push(Line { name, st }),
                // Gone meanwhile.
                Err(Errno::NOENT) => {}
                Err(e) => self.trouble("scan", format!("backing: {name} cannot be looked at: {e}")),
            }
            if batch.len() >= BATCH {
                self.compare(pass, dir, &fd, &mut batch);
            }
        }
        self.compare(pass, dir, &fd, &mut batch);
        Ok(seen)
    }

    fn compare(&self, pass: &mut Pass, dir: InodeId, fd: &OwnedFd, batch: &mut Vec<Line>) {
        let Ok(port) = self.port() else { return };
        let known: Vec<_> = port.look(|names| {
            let of = |line: &Line| {
                let inode = names.child(dir, &line.name)?;
                Some((inode, names.info(inode)?))
            };
            batch.iter().map(of).collect()
        });
        let mut different = Vec::new();
        for (line, known) in batch.drain(..).zip(known) {
            match known {
                Some((inode, info))
                    if meta::witness(&line.st) == info.witness
                        && self.is_same_kind(fd, &line.name, &line.st, &info.kind) =>
                {
                    self.remember_links(&line.st, inode);
                    if info.kind.is_dir() {
                        pass.todo.push(inode);
                    }
                }
                _ => different.push(line.name),
            }
        }
        for some in different.chunks(LOCKED_BATCH) {
            let ns = self.lock_ns();
            for name in some {
                self.check_name(&ns, pass, dir, name, true);
            }
        }
    }

    /// What the tree has in a directory and the listing had not.
    fn find_missing(&self, pass: &mut Pass, dir: InodeId, seen: &Seen) {
        let Ok(port) = self.port() else { return };
        let mut after: Option<Name> = None;
        while !self.stopping() {
            let children = port.look(|names| names.children(dir, after.as_ref(), BATCH));
            let missing: Vec<&Name> = children.iter().map(|c| &c.name).filter(|n| !seen.has(n)).collect();
            for some in missing.chunks(LOCKED_BATCH) {
                let ns = self.lock_ns();
                for name in some {
                    self.check_name(&ns, pass, dir, name, false);
                }
            }
            match children.last() {
                Some(last) if children.len() == BATCH => after = Some(last.name.clone()),
                _ => return,
            }
        }
    }

    pub(crate) fn suspects(&self) -> std::sync::MutexGuard<'_, BTreeSet<InodeId>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn is_suspect(&self, inode: InodeId) -> bool {
        self.suspects().contains(&inode)
    }
    pub(crate) fn not_suspect(&self, inode: InodeId) {
        self.suspects().remove(&inode);
    }

    /// A name that adapters must look up again.
    pub(crate) fn stale_name(dir: InodeId, name: &Name, child: Option<InodeId>) -> Stale {
        Stale::Entry {
            parent: base_ino(dir),
            name: std::ffi::OsString::from_vec(name.as_bytes().to_vec()),
            child: child.map(base_ino),
        }
    }
}

/// A change of a directory's attributes carries its times along: others set all attributes together, and would set back a
/// time that moved with every entry.
pub(crate) fn with_times(changed: &mut Vec<Attr>, st: &Raw) {
    let times = |a: &Attr| matches!(a, Attr::Times { .. });
    if meta::file_type(st) == FileType::Directory && !changed.is_empty() && !changed.iter().any(times) {
        let now = meta::attrs(st);
        changed.push(Attr::Times { atime: now.atime, mtime: now.mtime });
    }
}

/// The names of one directory, as hashes: 8 bytes each. A collision hides a missing name until the next scan, which uses
/// another hash.
#[derive(Default)]
struct Seen {
    keys: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    fn add(&mut self, name: &Name) {
        self.hashes.insert(self.keys.hash_one(name));
    }
    fn has(&self, name: &Name) -> bool {
        self.hashes.contains(&self.keys.hash_one(name))
    }
}
