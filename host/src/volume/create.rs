//! Calls that make new objects.

use super::meta::{self, Raw};
use super::resolve::{component, is_hidden};
use super::{Ns, Shared};
use crate::vfs::{Caller, Opened, Result, Stat};
use ice_core::event::Change;
use ice_core::ids::{InodeId, Name};
use ice_core::op::{Attr, Kind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

impl Shared {
    /// Makes an object by `make`, gives it to the caller, and tells the core.
    fn new_object(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: Option<u32>,
        make: impl FnOnce(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<Stat> {
        let (dir, name) = (self.inode(parent)?, component(name)?);
        if is_hidden(dir, name.as_bytes()) {
            return Err(Errno::PERM);
        }
        let ns = self.lock_ns();
        let fd = self.dir(dir)?;
        make(&fd, name.as_bytes())?;
        let directory = mode.is_some_and(|m| super::sys::type_of(m) == FileType::Directory);
        let made = self.give(caller, &fd, &name, mode).and_then(|st| {
            let create = Change::Create {
                parent: dir,
                name: name.clone(),
                kind: meta::kind(fd.as_fd(), name.as_bytes(), &st)?,
                attrs: meta::attrs(&st),
                witness: meta::witness(&st),
            };
            Ok((self.tell_one(&ns, create)?, st))
        });
        let (inode, st) = made.inspect_err(|_| drop_new(&fd, &name, directory))?;
        if directory && let Some(watch) = &self.watch {
            self.watch_new(watch, inode, &fd, &name);
        }
        Ok(self.show(inode, &st))
    }

    /// Owner and mode of a new object. The kernel has let a set-group-ID directory pass on its group already.
    fn give(&self, caller: Caller, dir: &OwnedFd, name: &Name, mode: Option<u32>) -> Result<Raw> {
        let st = self.stat_at(dir, name.as_bytes())?;
        let parent = if st.st_gid == caller.gid { None } else { Some(rustix::fs::fstat(dir)?) };
        let inherits = parent.is_some_and(|p| super::sys::mode_of(&p) & super::sys::S_ISGID != 0);
        let uid = (st.st_uid != caller.uid).then_some(caller.uid).and_then(meta::uid);
        let gid = (st.st_gid != caller.gid && !inherits).then_some(caller.gid).and_then(meta::gid);
        let chown = uid.is_some() || gid.is_some();
        if chown {
            match rustix::fs::chownat(dir, name.as_bytes(), uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::PERM) if !self.privileged => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(mode) = mode {
            // A new directory below a set-group-ID one has that bit from the kernel.
            let keep = if meta::file_type(&st) == FileType::Directory {
                super::sys::mode_of(&st) & super::sys::S_ISGID
            } else {
                0
            };
            let want = mode & meta::MODE_BITS | keep;
            if chown || super::sys::mode_of(&st) & meta::MODE_BITS != want {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty())?;
                super::sys::chmod(&fd, want)?;
                return rustix::fs::fstat(&fd);
            }
        }
        if chown { self.stat_at(dir, name.as_bytes()) } else { Ok(st) }
    }

    /// The mode to create with: nothing for others until the owner is right.
    fn first_mode(&self, caller: Caller, mode: u32) -> Mode {
        let ours =
            caller.uid == rustix::process::geteuid().as_raw() && caller.gid == rustix::process::getegid().as_raw();
        super::sys::mode(if ours { mode & meta::MODE_BITS } else { mode & 0o700 })
    }

    pub(crate) fn do_mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Stat> {
        let kind = match super::sys::type_of(mode) {
            // No type means a regular file, as in mknod(2).
            FileType::Unknown if mode & super::sys::S_IFMT == 0 => FileType::RegularFile,
            FileType::Directory | FileType::Symlink | FileType::Unknown => return Err(Errno::INVAL),
            kind => kind,
        };
        self.new_object(caller, parent, name, Some(mode), |dir, name| {
            rustix::fs::mknodat(dir, name, kind, self.first_mode(caller, mode), meta::dev(rdev))
        })
    }

    pub(crate) fn do_mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Stat> {
        let typed = mode & meta::MODE_BITS | super::sys::S_IFDIR;
        self.new_object(caller, parent, name, Some(typed), |dir, name| {
            rustix::fs::mkdirat(dir, name, self.first_mode(caller, mode))
        })
    }

    pub(crate) fn do_symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Stat> {
        if target.as_bytes().is_empty() {
            return Err(Errno::NOENT);
        }
        self.new_object(caller, parent, name, None, |dir, name| rustix::fs::symlinkat(target.as_bytes(), dir, name))
    }

    pub(crate) fn do_create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Stat, Opened)> {
        let (dir, component) = (self.inode(parent)?, component(name)?);
        if is_hidden(dir, component.as_bytes()) {
            return Err(Errno::PERM);
        }
        let how = super::data::how(flags)?;
        let ns = self.lock_ns();
        let fd = self.dir(dir)?;
        let open = super::data::backing_flags(how) | OFlags::CREATE | OFlags::EXCL;
        let file = match rustix::fs::openat(&*fd, component.as_bytes(), open, self.first_mode(caller, mode)) {
            Err(Errno::EXIST) if flags & libc::O_EXCL == 0 => {
                drop(ns);
                let (inode, st) = self.find(dir, &component)?;
                let stat = self.show(inode, &st);
                let opened = self.do_open(stat.ino, flags).inspect_err(|_| self.opens.forget(stat.ino, 1))?;
                return Ok((stat, opened));
            }
            file => Arc::new(file?),
        };
        let made = self.give_file(caller, &fd, &file, mode).and_then(|st| {
            let create = Change::Create {
                parent: dir,
                name: component.clone(),
                kind: Kind::File,
                attrs: meta::attrs(&st),
                witness: meta::witness(&st),
            };
            Ok((self.tell_one(&ns, create)?, st))
        });
        let (inode, st) = made.inspect_err(|_| drop_new(&fd, &component, false))?;
        let stat = self.show(inode, &st);
        let handle = self.opens.enter(stat.ino, Some(inode), &st, file, how)?;
        Ok((stat, Opened { fh: handle.fh, file: Arc::clone(&handle.file), shared: true }))
    }

    /// Owner and mode of a new regular file, through its descriptor.
    fn give_file(&self, caller: Caller, dir: &OwnedFd, file: &OwnedFd, mode: u32) -> Result<Raw> {
        let st = rustix::fs::fstat(file)?;
        let inherits =
            st.st_gid != caller.gid && super::sys::mode_of(&rustix::fs::fstat(dir)?) & super::sys::S_ISGID != 0;
        let uid = (st.st_uid != caller.uid).then_some(caller.uid).and_then(meta::uid);
        let gid = (st.st_gid != caller.gid && !inherits).then_some(caller.gid).and_then(meta::gid);
        let chown = uid.is_some() || gid.is_some();
        if chown {
            match rustix::fs::fchown(file, uid, gid) {
                Ok(()) => {}
                Err(Errno::PERM) if !self.privileged => {}
                Err(e) => return Err(e),
            }
        }
        let want = mode & meta::MODE_BITS;
        if chown || super::sys::mode_of(&st) & meta::MODE_BITS != want {
            rustix::fs::fchmod(file, super::sys::mode(want))?;
            return rustix::fs::fstat(file);
        }
        Ok(st)
    }

    pub(crate) fn do_tmpfile(&self, caller: Caller, parent: u64, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        let dir = self.inode(parent)?;
        let how = super::data::how(flags)?;
        if !how.write {
            return Err(Errno::INVAL);
        }
        let fd = self.dir(dir)?;
        // `O_EXCL` here means that it can never get a name.
        let never = if flags & libc::O_EXCL != 0 { OFlags::EXCL } else { OFlags::empty() };
        let nameless = super::sys::TMPFILE.ok_or(Errno::OPNOTSUPP)?;
        let open = (super::data::backing_flags(how) - OFlags::NOFOLLOW) | nameless | never;
        let file = Arc::new(rustix::fs::openat(&*fd, c".", open, self.first_mode(caller, mode))?);
        let st = self.give_file(caller, &fd, &file, mode)?;
        let ino = self.opens.nameless(meta::disk(&st));
        self.opens.refer(ino);
        let handle = self.opens.enter(ino, None, &st, file, how)?;
        Ok((meta::to_stat(&st, ino), Opened { fh: handle.fh, file: Arc::clone(&handle.file), shared: true }))
    }

    /// Tells of all extended attributes of an object that the core just learned of.
    pub(crate) fn tell_all_xattrs(&self, ns: &Ns<'_>, inode: InodeId, fd: &OwnedFd, st: &Raw) -> Result<()> {
        let witness = if meta::file_type(st) == FileType::RegularFile && meta::size(st) > 0 {
            meta::unknown_bytes(st)
        } else {
            meta::witness(st)
        };
        let changes = self
            .read_xattrs(fd.as_fd())?
            .into_iter()
            .map(|(name, value)| {
                let attr =
                    Attr::Xattr { name: name.into_boxed_slice(), value: Some(serde_bytes::ByteBuf::from(value)) };
                Change::Attr { inode, attr, witness }
            })
            .collect();
        self.tell(ns, changes)?;
        Ok(())
    }

    /// Watches a directory that was just made.
    pub(crate) fn watch_new(&self, watch: &super::watch::Watch, inode: InodeId, dir: &OwnedFd, name: &Name) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty()) {
            let fd = Arc::new(fd);
            self.watch_dir(watch, inode, &fd);
            self.dirs.keep(inode, fd);
        }
    }
}

/// Takes back an object that could not be completed.
pub(crate) fn drop_new(dir: &OwnedFd, name: &Name, directory: bool) {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    if let Err(e) = rustix::fs::unlinkat(dir, name.as_bytes(), flags)
        && e != Errno::NOENT
    {
        tracing::warn!(%name, error = %e, "a half-made object stays; the scan will take it in");
    }
}
