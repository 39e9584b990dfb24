//! Directory listings.

use super::Shared;
use super::meta::{self, Raw};
use super::opens::base_ino;
use super::resolve::is_hidden;
use super::sys::Line;
use crate::vfs::{DirEntry, Result};
use ice_core::ids::{InodeId, Name};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};

/// An open directory.
pub(crate) struct DirHandle {
    inode: InodeId,
    /// Its position is moved by each listing, so one at a time.
    fd: Mutex<OwnedFd>,
}

impl DirHandle {
    pub(crate) fn stat(&self) -> Result<Raw> {
        rustix::fs::fstat(&*self.fd.lock().unwrap_or_else(PoisonError::into_inner))
    }
    pub(crate) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&*self.fd.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    pub(crate) fn do_opendir(&self, ino: u64) -> Result<u64> {
        let inode = self.inode(ino)?;
        let dir = match self.dir(inode) {
            Err(Errno::STALE) => {
                // Perhaps moved directly a moment ago: look, then once more.
                if let Ok(place) = self.place_of(inode)
                    && let Some(spot) = &place.spot
                {
                    self.look_at_spot(spot);
                }
                self.dir(inode)?
            }
            r => r?,
        };
        let fd = rustix::fs::openat(&*dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let fh = self.opens.next_fh();
        let handle = Arc::new(DirHandle { inode, fd: Mutex::new(fd) });
        self.dir_handles.write().unwrap_or_else(PoisonError::into_inner).insert(fh, handle);
        Ok(fh)
    }

    pub(crate) fn dir_handle(&self, fh: u64) -> Result<Arc<DirHandle>> {
        self.dir_handles.read().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned().ok_or(Errno::BADF)
    }

    /// An open directory by its number.
    pub(crate) fn open_dir(&self, ino: u64) -> Option<Arc<DirHandle>> {
        let handles = self.dir_handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.values().find(|h| base_ino(h.inode) == ino).cloned()
    }

    pub(crate) fn do_releasedir(&self, fh: u64) {
        self.dir_handles.write().unwrap_or_else(PoisonError::into_inner).remove(&fh);
    }

    pub(crate) fn do_readdir(
        &self,
        fh: u64,
        cookie: u64,
        plus: bool,
        sink: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        let handle = self.dir_handle(fh)?;
        let dir = handle.inode;
        let mut at = cookie;
        loop {
            let lines = {
                let fd = handle.fd.lock().unwrap_or_else(PoisonError::into_inner);
                super::sys::read_dir(&fd, at)?
            };
            let Some(last) = lines.last() else { return Ok(()) };
            at = last.next;
            let mut stats = Vec::new();
            if plus {
                let fd = handle.fd.lock().unwrap_or_else(PoisonError::into_inner);
                stats.extend(lines.iter().map(|l| self.stat_at(&fd, &l.name).ok()));
            }
            let known = self.known_lines(dir, &lines)?;
            for (i, (line, known)) in lines.into_iter().zip(known).enumerate() {
                let st = stats.get(i).copied().flatten();
                let Some(entry) = self.entry(dir, line, known, plus, st)? else { continue };
                let ino = entry.ino;
                let counted = entry.stat.is_some();
                if !sink(entry) {
                    return Ok(());
                }
                if counted {
                    self.opens.refer(ino);
                }
            }
        }
    }

    /// What the tree shows under these names, with its inode number on disk.
    fn known_lines(&self, dir: InodeId, lines: &[Line]) -> Result<Vec<Option<(InodeId, u64)>>> {
        let names: Vec<Option<Name>> = lines.iter().map(|l| Name::new(&l.name)).collect();
        Ok(self.port()?.look(|tree| {
            let known = |name: &Name| {
                let inode = tree.child(dir, name)?;
                Some((inode, tree.info(inode)?.witness.disk))
            };
            names.iter().map(|n| n.as_ref().and_then(known)).collect()
        }))
    }

    fn entry(
        &self,
        dir: InodeId,
        line: Line,
        known: Option<(InodeId, u64)>,
        plus: bool,
        st: Option<Raw>,
    ) -> Result<Option<DirEntry>> {
        if is_hidden(dir, &line.name) {
            return Ok(None);
        }
        let name = OsString::from_vec(line.name.clone());
        let entry = |ino, kind, stat| DirEntry { cookie: line.next, ino, kind, name, stat };
        match line.name.as_slice() {
            b"." => return Ok(Some(entry(base_ino(dir), libc::DT_DIR, None))),
            b".." => return Ok(Some(entry(self.parent_ino(dir), libc::DT_DIR, None))),
            _ => {}
        }
        let (inode, st) = match (known, st) {
            (Some((inode, disk)), Some(st)) if disk == meta::disk(&st) => (inode, Some(st)),
            (Some((inode, disk)), None) if disk == line.disk && !plus => (inode, None),
            // Gone meanwhile, not taken in yet, or edited directly.
            _ => {
                let Some(n) = Name::new(&line.name) else { return Ok(None) };
                match self.find(dir, &n) {
                    Ok((inode, st)) => (inode, Some(st)),
                    // One strange object must not hide the others.
                    Err(Errno::NOENT | Errno::STALE | Errno::XDEV | Errno::NOTSUP) => return Ok(None),
                    Err(e) => return Err(e),
                }
            }
        };
        Ok(Some(match st {
            None => entry(self.opens.shown(inode, line.disk), meta::dirent_kind(line.kind), None),
            Some(st) => {
                let ino = self.opens.shown(inode, meta::disk(&st));
                let kind = meta::dirent_kind(meta::file_type(&st));
                entry(ino, kind, plus.then(|| self.shown_stat(&st, ino)))
            }
        }))
    }
}
