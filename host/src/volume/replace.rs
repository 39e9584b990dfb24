//! Putting a finished file in place: for uploads, which become visible whole or not at all, here and on the other nodes.

use super::meta::{self, Raw};
use super::opens::{Handle, base_ino};
use super::publish::Told;
use super::resolve::{component, is_hidden, refused};
use super::{Ns, Shared};
use crate::vfs::{Result, Stale, Stat};
use bytes::Bytes;
use ice_core::action::Spot;
use ice_core::event::Change;
use ice_core::ids::{InodeId, Name};
use ice_core::limits::INLINE_CONTENT_MAX_BYTES;
use ice_core::op::{Attr, ContentDigest, Payload};
use ice_core::tree::InodeInfo;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Instant;

impl Shared {
    /// See [`crate::vfs::Vfs::install`].
    pub(crate) fn do_install(&self, fh: u64, parent: u64, name: &OsStr, digest: ContentDigest) -> Result<Stat> {
        let handle = self.opens.handle(fh)?;
        let (dir, name) = (self.inode(parent)?, component(name)?);
        if is_hidden(dir, name.as_bytes()) {
            return Err(Errno::PERM);
        }
        let replaced = {
            let ns = self.lock_ns();
            let fd = self.dir(dir)?;
            match self.stat_at(&fd, name.as_bytes()) {
                Err(Errno::NOENT) if handle.node.state().inode.is_none() => {
                    return self.install_new(&ns, &handle, (dir, &fd, name), digest);
                }
                Err(Errno::NOENT) => None,
                Err(e) => return Err(e),
                Ok(st) => match meta::file_type(&st) {
                    FileType::RegularFile => Some(self.replace(&ns, &handle.file, (dir, &fd, &name), &st, digest)?),
                    FileType::Directory => return Err(Errno::ISDIR),
                    _ => return Err(Errno::PERM),
                },
            }
        };
        if let Some((stat, stale)) = replaced {
            self.stale.push(stale);
            return Ok(stat);
        }
        let stat = self.do_link(handle.node.ino, parent, OsStr::new(&OsString::from_vec(name.as_bytes().to_vec())))?;
        // The bytes become an operation before this returns, so that whoever waits for operations waits for them too.
        match self.publish_now(&handle.node) {
            Ok(Told::Yes | Told::Nameless) => Ok(stat),
            Ok(Told::Later) => Err(Errno::IO),
            Err(e) => Err(e),
        }
    }

    /// Gives a nameless file its first name. Name and bytes are told together, so that other nodes never have one without the other.
    fn install_new(
        &self,
        ns: &Ns<'_>,
        handle: &Handle,
        (dir, fd, name): (InodeId, &OwnedFd, Name),
        digest: ContentDigest,
    ) -> Result<Stat> {
        let open = &handle.node;
        super::sys::link(&handle.file, fd, name.as_bytes())?;
        let (inode, st) = self.tell_named(ns, open, &handle.file, (dir, fd, name))?;
        if let Err(e) = self.tell_bytes(&handle.file, inode, &st, digest) {
            // Told later, as what any program wrote.
            if open.state().mark_whole(Instant::now()) {
                self.opens.note_dirty(open);
            }
            self.publish_soon(open);
            return Err(e);
        }
        open.state().told();
        self.opens.settle(open);
        self.opens.refer(open.ino);
        Ok(self.shown_stat(&st, open.ino))
    }

    /// Gives an existing file new bytes: what `Apply::Install` does for other nodes' changes, as a change of ours.
    fn replace(
        &self,
        ns: &Ns<'_>,
        file: &Arc<OwnedFd>,
        (dir, fd, name): (InodeId, &OwnedFd, &Name),
        before: &Raw,
        digest: ContentDigest,
    ) -> Result<(Stat, Vec<Stale>)> {
        if self.known_at(dir, name)?.is_none() {
            self.look_at_locked(ns, dir, name);
        }
        let inode = self.known_at(dir, name)?.ok_or(Errno::AGAIN)?;
        if let Some(open) = self.opens.of(inode) {
            let state = open.state();
            let (writers, dirty) = (state.writers > 0, state.dirty.is_some());
            drop(state);
            if dirty {
                // What was written and not told must not be lost without a version of its own.
                self.publish_soon(&open);
            }
            if writers || dirty {
                return Err(Errno::BUSY);
            }
        }
        let (info, spots) = self.port()?.look(|names| (names.info(inode), names.spots(inode)));
        let info = info.ok_or(Errno::AGAIN)?;
        self.dress_like(file, fd, name, before)?;
        let tmp = self.hidden.tmp();
        // The name that was asked for comes first: it must not fail after another one has changed.
        let here = Spot::At { parent: dir, name: name.clone() };
        for spot in std::iter::once(&here).chain(spots.iter().filter(|s| **s != here)) {
            let aside = self.hidden.fresh_name();
            super::sys::link(file, tmp, aside.as_bytes())?;
            let (to, to_name) = self.spot(spot)?;
            if let Err(e) = rustix::fs::renameat(tmp, &*aside, &*to, to_name.as_slice()) {
                let _ = rustix::fs::unlinkat(tmp, &*aside, AtFlags::empty());
                return Err(e);
            }
        }
        let st = rustix::fs::fstat(file)?;
        self.remember_links(&st, inode);
        self.tell_replaced(ns, file, inode, &info, &st, digest)?;
        let stat = self.show(inode, &st);
        let mut stale = vec![Stale::Inode(stat.ino)];
        if stat.ino != base_ino(inode) {
            // Whoever has the old bytes open keeps them, under the old number.
            stale.extend(std::iter::once(&here).chain(&spots).filter_map(|spot| match spot {
                Spot::At { parent, name } => Some(Stale::Entry {
                    parent: base_ino(*parent),
                    name: OsString::from_vec(name.as_bytes().to_vec()),
                    child: Some(base_ino(inode)),
                }),
                Spot::Limbo(_) => None,
            }));
        }
        Ok((stat, stale))
    }

    /// Mode, owner and extended attributes of the file that is replaced.
    fn dress_like(&self, file: &OwnedFd, dir: &OwnedFd, name: &Name, before: &Raw) -> Result<()> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let old = rustix::fs::openat(dir, name.as_bytes(), flags, rustix::fs::Mode::empty())?;
        for (key, value) in self.read_xattrs(old.as_fd())? {
            self.put_xattr(file.as_fd(), &key, Some(&value)).map_err(|_| Errno::IO)?;
        }
        let now = rustix::fs::fstat(file)?;
        meta::dress(file.as_fd(), &now, &meta::attrs(before), self.privileged, false)
    }

    fn tell_replaced(
        &self,
        ns: &Ns<'_>,
        file: &OwnedFd,
        inode: InodeId,
        info: &InodeInfo,
        st: &Raw,
        digest: ContentDigest,
    ) -> Result<()> {
        if info.held == info.version && info.held_content == Some((meta::size(st), digest)) {
            // The same bytes are no new version.
            let attr = Attr::Times { atime: meta::attrs(st).atime, mtime: meta::unix_mtime(st) };
            self.tell_one(ns, Change::Attr { inode, attr, witness: meta::witness(st) })?;
            return Ok(());
        }
        self.tell_bytes(file, inode, st, digest)
    }

    /// Tells of bytes whose digest is known.
    fn tell_bytes(&self, file: &OwnedFd, inode: InodeId, st: &Raw, digest: ContentDigest) -> Result<()> {
        let (size, witness, mtime) = (meta::size(st), meta::witness(st), meta::unix_mtime(st));
        let port = self.port()?;
        let mut payload = None;
        if size > 0 && size <= INLINE_CONTENT_MAX_BYTES {
            let mut bytes = vec![0; size as usize];
            if rustix::io::pread(file, &mut bytes, 0)? < bytes.len() {
                return Err(Errno::IO);
            }
            let id = port.payloads().insert(Bytes::from(bytes)).map_err(|_| Errno::AGAIN)?;
            payload = Some(Payload { id, len: size as u32, digest });
        }
        let change = Change::Content { inode, size, digest, mtime, witness, payload };
        let mut results = port.change(vec![change]).map_err(refused)?;
        match results.pop() {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(refused(why)),
            None => Err(Errno::IO),
        }
    }
}
