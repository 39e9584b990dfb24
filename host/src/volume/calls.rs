//! Calls about names and attributes.

use super::create::drop_new;
use super::meta::{self, Raw};
use super::opens::Open;
use super::resolve::{Object, component, is_hidden};
use super::scan::with_times;
use super::{Ns, Shared};
use crate::vfs::{FsStat, ROOT_INO, Result, SetStat, Stat};
use ice_core::action::Spot;
use ice_core::event::Change;
use ice_core::ids::{InodeId, Name};
use ice_core::op::Attr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

/// `rename` never replaces. As the kernel's FUSE requests have it, on every system.
const RENAME_NOREPLACE: u32 = 1;
/// Two names change places.
const RENAME_EXCHANGE: u32 = 2;

impl Shared {
    /// What stands under a name, on disk and in the tree alike. What is on disk only is taken in first.
    pub(crate) fn find(&self, dir: InodeId, name: &Name) -> Result<(InodeId, Raw)> {
        if is_hidden(dir, name.as_bytes()) {
            return Err(Errno::NOENT);
        }
        let port = self.port()?;
        for look in [true, true, false] {
            let fd = self.dir(dir)?;
            let st = self.stat_at(&fd, name.as_bytes());
            let known = port.look(|names| {
                let inode = names.child(dir, name)?;
                Some((inode, names.info(inode).map_or(0, |i| i.witness.disk)))
            });
            match (st, known) {
                (Ok(st), Some((inode, disk))) if disk == meta::disk(&st) => return Ok((inode, st)),
                (Ok(st), _) if st.st_dev as u64 != self.dirs.dev() => return Err(Errno::XDEV),
                (Err(Errno::NOENT), known) => {
                    if known.is_some() {
                        self.hints.name(dir, name.clone());
                    }
                    return Err(Errno::NOENT);
                }
                (Err(e), _) => return Err(e),
                // They differ: a change is under way, or somebody edited `backing` directly.
                (Ok(_), _) if look => self.look_at(dir, name),
                (Ok(_), _) => {}
            }
        }
        Err(Errno::STALE)
    }

    /// Counts a reference and shows the object.
    pub(crate) fn show(&self, inode: InodeId, st: &Raw) -> Stat {
        let ino = self.opens.shown(inode, meta::disk(st));
        self.opens.refer(ino);
        self.shown_stat(st, ino)
    }

    pub(crate) fn do_lookup(&self, parent: u64, name: &OsStr) -> Result<Stat> {
        let dir = self.inode(parent)?;
        let name = component(name)?;
        let (inode, st) = self.find(dir, &name)?;
        Ok(self.show(inode, &st))
    }

    pub(crate) fn do_getattr(&self, ino: u64, fh: Option<u64>) -> Result<Stat> {
        match self.attributes(ino, fh) {
            // A directory that was removed while somebody has it open.
            Err(Errno::STALE) => match self.open_dir(ino) {
                Some(dir) => Ok(self.shown_stat(&dir.stat()?, ino)),
                None => Err(Errno::STALE),
            },
            r => r,
        }
    }

    fn attributes(&self, ino: u64, fh: Option<u64>) -> Result<Stat> {
        // The common case without opening anything.
        if fh.is_none() && self.opens.get(ino).is_none_or(|o| o.state().files.is_empty()) {
            let place = self.place(ino)?;
            let st = match &place.spot {
                None => Some(rustix::fs::fstat(self.dirs.root())?),
                Some(_) if place.info.kind.is_dir() => Some(rustix::fs::fstat(self.dir(place.inode)?)?),
                Some(spot) => {
                    let (dir, name) = self.spot(spot)?;
                    self.stat_at(&dir, &name).ok()
                }
            };
            if let Some(st) = st.filter(|st| place.spot.is_none() || meta::disk(st) == place.info.witness.disk) {
                return Ok(self.shown_stat(&st, ino));
            }
        }
        let object = self.object(ino, fh)?;
        Ok(self.shown_stat(&object.before, ino))
    }

    pub(crate) fn do_setattr(&self, ino: u64, fh: Option<u64>, set: SetStat) -> Result<Stat> {
        let ns = self.lock_ns();
        let object = self.object(ino, fh)?;
        let before = &object.before;
        if let Some(size) = set.size {
            self.truncate(ino, fh, &object, size)?;
        }
        let fd = object.fd.as_fd();
        let (uid, gid) = (set.uid.and_then(meta::uid), set.gid.and_then(meta::gid));
        if uid.is_some() || gid.is_some() {
            match super::sys::chown(fd, uid, gid) {
                Ok(()) => {}
                // An unprivileged daemon serves its own user only; setting what is there already is no change.
                Err(Errno::PERM) if !self.privileged && self.is_owner(before, set) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(mode) = set.mode {
            if meta::file_type(before) == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            super::sys::chmod(fd, mode & meta::MODE_BITS)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            super::sys::set_times(fd, &meta::timestamps(set.atime, set.mtime))?;
        }
        let after = rustix::fs::fstat(fd)?;
        self.tell_attrs(&ns, &object, &after, set)?;
        Ok(self.shown_stat(&after, ino))
    }

    fn is_owner(&self, st: &Raw, set: SetStat) -> bool {
        set.uid.is_none_or(|u| u == st.st_uid) && set.gid.is_none_or(|g| g == st.st_gid)
    }

    /// Tells what `setattr` changed.
    fn tell_attrs(&self, ns: &Ns<'_>, object: &Object, after: &Raw, set: SetStat) -> Result<()> {
        let before = &object.before;
        if let Some(open) = &object.open {
            let mut state = open.state();
            // Changing attributes other than size and times does not move the modification time: if it moved, something else did.
            if state.expected.is_some() && (set.mtime.is_some() || set.size.is_some()) {
                state.expected = Some(meta::mtime(after));
            }
        }
        let Some((inode, _)) = object.known else { return Ok(()) };
        let witness = self.witness_after(object, after);
        let mut changed = Vec::new();
        if set.uid.is_some() || set.gid.is_some() {
            changed.push(Attr::Owner { uid: after.st_uid, gid: after.st_gid });
        }
        let mode = super::sys::mode_of(after) & meta::MODE_BITS;
        // A change of owner may clear bits.
        if set.mode.is_some() || mode != super::sys::mode_of(before) & meta::MODE_BITS {
            changed.push(Attr::Mode(mode));
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let a = meta::attrs(after);
            changed.push(Attr::Times { atime: a.atime, mtime: a.mtime });
        }
        with_times(&mut changed, after);
        let changes = changed.into_iter().map(|attr| Change::Attr { inode, attr, witness }).collect();
        for result in self.tell(ns, changes)? {
            result.map_err(super::resolve::refused)?;
        }
        Ok(())
    }

    pub(crate) fn do_readlink(&self, ino: u64) -> Result<OsString> {
        let object = self.object(ino, None)?;
        if meta::file_type(&object.before) != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(OsString::from_vec(rustix::fs::readlinkat(&*object.fd, c"", Vec::new())?.into_bytes()))
    }

    pub(crate) fn do_link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Stat> {
        let (dir, name) = (self.inode(parent)?, component(name)?);
        if is_hidden(dir, name.as_bytes()) {
            return Err(Errno::PERM);
        }
        if let Some(open) = self.opens.get(ino) {
            self.tell_closed(&open);
        }
        let ns = self.lock_ns();
        let object = self.object(ino, None)?;
        let fd = self.dir(dir)?;
        match &object.known {
            Some((inode, info)) => {
                let place = self.place_of(*inode)?;
                let Some(spot) = place.spot else { return Err(Errno::PERM) };
                if info.kind.is_dir() {
                    return Err(Errno::PERM);
                }
                let (from, from_name) = self.spot(&spot)?;
                rustix::fs::linkat(&*from, from_name.as_slice(), &*fd, name.as_bytes(), AtFlags::empty())?;
                let after = self.stat_at(&fd, name.as_bytes())?;
                let witness = self.witness_after(&object, &after);
                self.tell_one(&ns, Change::Link { inode: *inode, parent: dir, name, witness })?;
                self.remember_links(&after, *inode);
                Ok(self.show(*inode, &after))
            }
            // A file without a name gets its first. One whose names are all gone does not come back (`ENOENT`).
            None => self.link_nameless(&ns, ino, &object, dir, &fd, name),
        }
    }

    fn link_nameless(
        &self,
        ns: &Ns<'_>,
        ino: u64,
        object: &Object,
        dir: InodeId,
        fd: &OwnedFd,
        name: Name,
    ) -> Result<Stat> {
        let Some(open) = object.open.as_ref().filter(|o| o.state().inode.is_none()) else { return Err(Errno::NOENT) };
        super::sys::link(&*object.fd, fd, name.as_bytes())?;
        let (_, st) = self.tell_named(ns, open, &object.fd, (dir, fd, name))?;
        if open.state().mark_whole(Instant::now()) {
            self.opens.note_dirty(open);
        }
        self.opens.refer(ino);
        Ok(self.shown_stat(&st, ino))
    }

    /// Tells of the first name of a file that had none, without its bytes. Takes the name away again if it cannot be told.
    pub(crate) fn tell_named(
        &self,
        ns: &Ns<'_>,
        open: &Open,
        file: &OwnedFd,
        (dir, fd, name): (InodeId, &OwnedFd, Name),
    ) -> Result<(InodeId, Raw)> {
        let st = self.stat_at(fd, name.as_bytes())?;
        let create = Change::Create {
            parent: dir,
            name: name.clone(),
            kind: ice_core::op::Kind::File,
            attrs: meta::attrs(&st),
            witness: meta::unknown_bytes(&st),
        };
        let inode = self.tell_one(ns, create).inspect_err(|_| drop_new(fd, &name, false))?;
        self.opens.named(open, inode);
        self.tell_all_xattrs(ns, inode, file, &st)?;
        Ok((inode, st))
    }

    pub(crate) fn do_remove(&self, parent: u64, name: &OsStr, directory: bool) -> Result<()> {
        let (dir, name) = (self.inode(parent)?, component(name)?);
        if is_hidden(dir, name.as_bytes()) {
            return Err(Errno::NOENT);
        }
        let ns = self.lock_ns();
        let fd = self.dir(dir)?;
        let before = self.stat_at(&fd, name.as_bytes())?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&*fd, name.as_bytes(), flags)?;
        // What the core was never told of is simply gone.
        let Some(inode) = self.known_at(dir, &name)? else { return Ok(()) };
        let mut changes = vec![Change::Remove { parent: dir, name }];
        if directory {
            self.dirs.forget(inode);
        } else if before.st_nlink > 1 {
            changes.extend(self.touch_other_name(inode, &before));
        }
        self.tell(&ns, changes)?;
        Ok(())
    }

    /// What the tree shows under a name.
    pub(crate) fn known_at(&self, dir: InodeId, name: &Name) -> Result<Option<InodeId>> {
        Ok(self.port()?.look(|names| names.child(dir, name)))
    }

    /// After one name of a file was removed or replaced, its change time differs: the witness to tell, if its bytes were
    /// known before.
    fn touch_other_name(&self, inode: InodeId, before: &Raw) -> Option<Change> {
        let port = self.port().ok()?;
        let (info, spots) = port.look(|names| Some((names.info(inode)?, names.spots(inode))))?;
        let quiet = self.opens.of(inode).is_none_or(|o| {
            let state = o.state();
            state.writers == 0 && state.dirty.is_none()
        });
        if !quiet || info.witness != meta::witness(before) {
            return None;
        }
        spots.iter().find_map(|spot| {
            let (fd, name) = self.spot(spot).ok()?;
            let st = self.stat_at(&fd, &name).ok().filter(|st| meta::disk(st) == meta::disk(before))?;
            Some(Change::Touch { inode, witness: meta::witness(&st) })
        })
    }

    pub(crate) fn do_rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let (from, to) = (self.inode(parent)?, self.inode(new_parent)?);
        let (name, new_name) = (component(name)?, component(new_name)?);
        if is_hidden(from, name.as_bytes()) {
            return Err(Errno::NOENT);
        }
        if is_hidden(to, new_name.as_bytes()) {
            return Err(Errno::PERM);
        }
        let exchange = match flags {
            0 | RENAME_NOREPLACE => false,
            RENAME_EXCHANGE => true,
            _ => return Err(Errno::INVAL),
        };
        self.tell_bytes_first(from, &name);
        let ns = self.lock_ns();
        let (from_fd, to_fd) = (self.dir(from)?, self.dir(to)?);
        // What is not taken in yet must be, so that the core knows what moves.
        for (dir, n, moves) in [(from, &name, true), (to, &new_name, exchange)] {
            if moves && self.known_at(dir, n)?.is_none() {
                self.look_at_locked(&ns, dir, n);
            }
        }
        let moved_before = self.stat_at(&from_fd, name.as_bytes())?;
        let target_before = self.stat_at(&to_fd, new_name.as_bytes()).ok();
        let (moved, target) = (self.known_at(from, &name)?, self.known_at(to, &new_name)?);
        let (a, b) = ((from_fd.as_fd(), name.as_bytes()), (to_fd.as_fd(), new_name.as_bytes()));
        match flags {
            RENAME_EXCHANGE => super::sys::rename_exchange(a, b)?,
            RENAME_NOREPLACE => super::apply::rename_new(a, b)?,
            _ => rustix::fs::renameat(a.0, a.1, b.0, b.1)?,
        }
        if target_before.as_ref().is_some_and(|t| meta::disk(t) == meta::disk(&moved_before)) && !exchange {
            // Two names of one file: the call does nothing.
            return Ok(());
        }
        let mut changes = vec![Change::Rename {
            parent: from,
            name: name.clone(),
            new_parent: to,
            new_name: new_name.clone(),
            exchange,
        }];
        if let Some(inode) = moved {
            changes.extend(self.touch_moved(inode, &moved_before, &to_fd, &new_name)?);
        }
        if let (Some(inode), Some(before)) = (target, &target_before) {
            if exchange {
                changes.extend(self.touch_moved(inode, before, &from_fd, &name)?);
            } else if meta::file_type(before) == FileType::Directory {
                self.dirs.forget(inode);
            } else if before.st_nlink > 1 {
                changes.extend(self.touch_other_name(inode, before));
            }
        }
        self.tell(&ns, changes)?;
        Ok(())
    }

    /// A rename changes the change time of what it moves: the witness to tell, if the bytes were known before.
    fn touch_moved(&self, inode: InodeId, before: &Raw, dir: &OwnedFd, name: &Name) -> Result<Option<Change>> {
        if meta::file_type(before) != FileType::RegularFile {
            return Ok(None);
        }
        let info = self.port()?.look(|names| names.info(inode));
        let quiet = self.opens.of(inode).is_none_or(|o| {
            let state = o.state();
            state.writers == 0 && state.dirty.is_none()
        });
        if !quiet || info.is_none_or(|i| i.witness != meta::witness(before)) {
            return Ok(None);
        }
        let after = self.stat_at(dir, name.as_bytes())?;
        Ok((meta::disk(&after) == meta::disk(before)).then(|| Change::Touch { inode, witness: meta::witness(&after) }))
    }

    /// Keeps track of files with several names: a further one found on disk is recognised by its inode number.
    pub(crate) fn remember_links(&self, st: &Raw, inode: InodeId) {
        if meta::file_type(st) == FileType::Directory {
            return;
        }
        let mut linked = self.linked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if st.st_nlink > 1 {
            linked.insert(meta::disk(st), inode);
        } else if !linked.is_empty() {
            linked.remove(&meta::disk(st));
        }
    }

    pub(crate) fn do_fsyncdir(&self, fh: u64) -> Result<()> {
        let handle = self.dir_handle(fh)?;
        handle.sync()?;
        self.sync_core(self.options.ack)
    }

    /// Waits for the core's acknowledgement; an error is never hidden.
    pub(crate) fn sync_core(&self, ack: ice_core::event::Ack) -> Result<()> {
        self.port()?.sync(ack, self.options.ack_timeout).map(|_| ()).map_err(super::resolve::refused)
    }

    pub(crate) fn do_statfs(&self) -> Result<FsStat> {
        let root = rustix::fs::openat(
            self.dirs.root(),
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let st = rustix::fs::fstatvfs(root)?;
        Ok(FsStat {
            bsize: u32::try_from(st.f_frsize).unwrap_or(4096),
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            namelen: u32::try_from(st.f_namemax).unwrap_or(255),
        })
    }

    /// For an adapter that speaks of the root.
    pub(crate) fn parent_ino(&self, dir: InodeId) -> u64 {
        let parent = self.place_of(dir).ok().and_then(|p| match p.spot {
            Some(Spot::At { parent, .. }) => Some(super::opens::base_ino(parent)),
            _ => None,
        });
        parent.unwrap_or(ROOT_INO)
    }
}
