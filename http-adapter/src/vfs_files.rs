//! Files of a volume by path, over [`Vfs`]: what a mount would do, without a mount.

use crate::api::path::RelPath;
use crate::files::{FileKind, FileService, Meta, OpenFile, Result, Upload};
use ice_core::ids::Name;
use ice_host::digest::{self, Hasher};
use ice_host::vfs::{Caller, DirEntry, Opened, ROOT_INO, SetStat, Stat, Vfs};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Symbolic links followed on one path, as in Linux.
const LINKS_MAX: usize = 40;
/// A file whose digest nobody knows is read for its entity tag up to this size.
const DIGEST_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Tags that are remembered.
const TAGS_MAX: usize = 4096;
/// Entries of a directory that are read at once.
const ENTRIES_AT_ONCE: usize = 512;
/// Mode of a new file and of a missing parent directory.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// `st_mode` bits.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIR: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

fn kind(stat: &Stat) -> FileKind {
    match stat.mode & TYPE_MASK {
        TYPE_FILE => FileKind::File,
        TYPE_DIR => FileKind::Dir,
        TYPE_LINK => FileKind::Link,
        _ => FileKind::Other,
    }
}

/// What tells whether a file may have changed since it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

impl Seen {
    fn of(stat: &Stat) -> Seen {
        Seen { size: stat.size, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// A [`FileService`] over a volume.
pub struct VfsFiles(Arc<Inner>);

struct Inner {
    vfs: Arc<dyn Vfs>,
    caller: Caller,
    /// Makes check and change of a conditional request one step, among those that come through here.
    order: Mutex<()>,
    tags: Mutex<HashMap<u64, (Seen, String)>>,
    names: AtomicU64,
}

impl VfsFiles {
    /// Acts as the user that the process runs as.
    pub fn new(vfs: Arc<dyn Vfs>) -> VfsFiles {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let caller = Caller { uid, gid, pid: 0 };
        VfsFiles(Arc::new(Inner {
            vfs,
            caller,
            order: Mutex::new(()),
            tags: Mutex::default(),
            names: AtomicU64::new(0),
        }))
    }
}

/// References that a walk took, given back at its end.
struct Refs<'a> {
    vfs: &'a dyn Vfs,
    taken: Vec<u64>,
}

impl Drop for Refs<'_> {
    fn drop(&mut self) {
        for ino in &self.taken {
            self.vfs.forget(*ino, 1);
        }
    }
}

/// Where a path leads.
struct Place<'a> {
    /// The directory that the last component stands in.
    parent: u64,
    /// The last component; none if the path ends at a directory by way of a link's `..`.
    name: Option<OsString>,
    /// What stands there.
    found: Option<Stat>,
    _refs: Refs<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Follow,
    Keep,
}

impl Inner {
    /// Walks a path. Links are followed inside the volume; with `make`, missing directories on the way are made.
    fn locate(&self, path: &RelPath, last: Last, make: bool) -> Result<Place<'_>> {
        let vfs = self.vfs.as_ref();
        let mut refs = Refs { vfs, taken: Vec::new() };
        let mut dirs = vec![ROOT_INO];
        let mut todo: VecDeque<OsString> = path.names().iter().map(os).collect();
        let mut links = 0;
        let mut end = None;
        while let Some(name) = todo.pop_front() {
            let parent = dirs[dirs.len() - 1];
            if name == ".." {
                // The root stays in the list: above it there is nothing.
                if dirs.len() == 1 {
                    return Err(Errno::XDEV);
                }
                dirs.pop();
                end = None;
                continue;
            }
            let stat = match vfs.lookup(parent, &name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) if todo.is_empty() => {
                    return Ok(Place { parent, name: Some(name), found: None, _refs: refs });
                }
                Err(Errno::NOENT) if make => self.make_dir(parent, &name)?,
                Err(e) => return Err(e),
            };
            refs.taken.push(stat.ino);
            if stat.mode & TYPE_MASK == TYPE_LINK && (last == Last::Follow || !todo.is_empty()) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                for part in components(&vfs.readlink(stat.ino)?)?.into_iter().rev() {
                    todo.push_front(part);
                }
                end = None;
            } else if kind(&stat) == FileKind::Dir && !todo.is_empty() {
                dirs.push(stat.ino);
            } else if todo.is_empty() {
                end = Some((parent, name, stat));
            } else {
                return Err(Errno::NOTDIR);
            }
        }
        match end {
            Some((parent, name, stat)) => Ok(Place { parent, name: Some(name), found: Some(stat), _refs: refs }),
            // The path ended with a link to a directory above.
            None => {
                let dir = dirs[dirs.len() - 1];
                Ok(Place { parent: dir, name: None, found: Some(vfs.getattr(dir, None)?), _refs: refs })
            }
        }
    }

    fn make_dir(&self, parent: u64, name: &OsStr) -> Result<Stat> {
        match self.vfs.mkdir(self.caller, parent, name, DIR_MODE) {
            // Somebody was faster.
            Err(Errno::EXIST) => self.vfs.lookup(parent, name),
            other => other,
        }
    }

    fn meta(&self, stat: &Stat) -> Meta {
        let etag = if kind(stat) == FileKind::File { self.tag(stat) } else { String::new() };
        Meta { kind: kind(stat), size: stat.size, mtime: stat.mtime, etag }
    }

    /// The digest of the bytes: the same on every node, and the same again for the same bytes. A large file that was just
    /// changed, whose digest is not known yet, has a tag of its inode and times for that while.
    fn tag(&self, stat: &Stat) -> String {
        let seen = Seen::of(stat);
        {
            let tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, tag)) = tags.get(&stat.ino).filter(|(at, _)| *at == seen) {
                return tag.clone();
            }
        }
        if let Some(digest) = self.vfs.content(stat.ino) {
            return hex(&digest.0);
        }
        if stat.size <= DIGEST_MAX_BYTES
            && let Ok(Some(tag)) = self.digest_now(stat)
        {
            self.remember(stat, tag.clone());
            return tag;
        }
        let mut h = blake3::Hasher::new();
        for n in
            [stat.ino, stat.size, stat.mtime.0 as u64, stat.mtime.1.into(), stat.ctime.0 as u64, stat.ctime.1.into()]
        {
            h.update(&n.to_le_bytes());
        }
        format!("t{}", hex(h.finalize().as_bytes()))
    }

    /// Reads a small file. `None`: it changed meanwhile.
    fn digest_now(&self, stat: &Stat) -> Result<Option<String>> {
        let file = self.open_ino(stat.ino)?;
        let mut bytes = vec![0; stat.size as usize];
        let n = file.vfs.read(file.opened.fh, 0, &mut bytes)?;
        let after = self.vfs.getattr(stat.ino, Some(file.opened.fh))?;
        let same = n as u64 == stat.size && Seen::of(&after) == Seen::of(stat);
        Ok(same.then(|| hex(&digest::of_bytes(&bytes).0)))
    }

    fn remember(&self, stat: &Stat, tag: String) {
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if tags.len() >= TAGS_MAX && !tags.contains_key(&stat.ino) {
            // Any will do: a forgotten tag is only computed again.
            if let Some(ino) = tags.keys().next().copied() {
                tags.remove(&ino);
            }
        }
        tags.insert(stat.ino, (Seen::of(stat), tag));
    }

    fn open_ino(&self, ino: u64) -> Result<Handle> {
        let opened = self.vfs.open(self.caller, ino, (OFlags::RDONLY | OFlags::NOFOLLOW).bits() as i32)?;
        Ok(Handle { vfs: self.vfs.clone(), opened })
    }
}

/// An open file, released when dropped.
struct Handle {
    vfs: Arc<dyn Vfs>,
    opened: Opened,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.vfs.release(self.opened.fh);
    }
}

fn os(name: &Name) -> OsString {
    OsString::from_vec(name.as_bytes().to_vec())
}

/// Components of a link's target. An absolute one names a place on the machine, not in the volume.
fn components(target: &OsStr) -> Result<Vec<OsString>> {
    let bytes = target.as_bytes();
    if bytes.is_empty() {
        return Err(Errno::NOENT);
    }
    if bytes[0] == b'/' {
        return Err(Errno::XDEV);
    }
    let parts = bytes.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".");
    Ok(parts.map(|c| OsStr::from_bytes(c).to_owned()).collect())
}

/// Half a digest: 128 bits are enough to tell versions apart.
fn hex(bytes: &[u8; 32]) -> String {
    bytes[..16].iter().map(|b| format!("{b:02x}")).collect()
}

struct Reading {
    handle: Handle,
    ino: u64,
    meta: Meta,
}

impl OpenFile for Reading {
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.handle.vfs.read(self.handle.opened.fh, offset, buf)
    }
    fn unchanged(&self) -> bool {
        let now = self.handle.vfs.getattr(self.ino, Some(self.handle.opened.fh));
        now.is_ok_and(|now| now.size == self.meta.size && now.mtime == self.meta.mtime)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.handle.vfs.forget(self.ino, 1);
    }
}

impl FileService for VfsFiles {
    fn stat(&self, path: &RelPath) -> Result<Meta> {
        let place = self.0.locate(path, Last::Follow, false)?;
        place.found.map(|stat| self.0.meta(&stat)).ok_or(Errno::NOENT)
    }

    fn open(&self, path: &RelPath) -> Result<Arc<dyn OpenFile>> {
        let mut place = self.0.locate(path, Last::Follow, false)?;
        let stat = place.found.ok_or(Errno::NOENT)?;
        match kind(&stat) {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::ISDIR),
            FileKind::Link | FileKind::Other => return Err(Errno::ACCESS),
        }
        let handle = self.0.open_ino(stat.ino)?;
        // What was opened, not what was found: it may have been replaced in between.
        let stat = self.0.vfs.getattr(stat.ino, Some(handle.opened.fh))?;
        let meta = self.0.meta(&stat);
        // The reader keeps the last reference of the walk.
        let kept = place._refs.taken.iter().rposition(|ino| *ino == stat.ino).ok_or(Errno::STALE)?;
        place._refs.taken.swap_remove(kept);
        Ok(Arc::new(Reading { handle, ino: stat.ino, meta }))
    }

    fn upload(&self, path: &RelPath) -> Result<Box<dyn Upload>> {
        let inner = self.0.clone();
        let flags = (OFlags::RDWR | OFlags::NOFOLLOW).bits() as i32;
        let (stat, opened) = inner.vfs.tmpfile(inner.caller, ROOT_INO, FILE_MODE, flags)?;
        let handle = Handle { vfs: inner.vfs.clone(), opened };
        Ok(Box::new(Writing { inner, path: path.clone(), handle, ino: stat.ino, at: 0, hasher: Hasher::new() }))
    }

    fn remove(&self, path: &RelPath, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<bool> {
        let _order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match self.0.locate(path, Last::Keep, false) {
            Ok(place) => place,
            // Nothing there, not even its directory.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(allowed(None)),
            Err(e) => return Err(e),
        };
        let meta = place.found.as_ref().map(|stat| self.0.meta(stat));
        if !allowed(meta.as_ref()) {
            return Ok(false);
        }
        let (Some(meta), Some(name)) = (meta, &place.name) else { return Ok(true) };
        let outcome = match meta.kind {
            FileKind::Dir => self.0.vfs.rmdir(place.parent, name),
            FileKind::File | FileKind::Link | FileKind::Other => self.0.vfs.unlink(place.parent, name),
        };
        match outcome {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn list(&self, dir: Option<&RelPath>, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()> {
        let place = dir.map(|path| self.0.locate(path, Last::Follow, false)).transpose()?;
        let ino = match &place {
            None => ROOT_INO,
            Some(place) => place.found.ok_or(Errno::NOENT)?.ino,
        };
        self.0.entries(ino, &mut |name, stat| {
            sink(name, &Meta { kind: kind(stat), size: stat.size, mtime: stat.mtime, etag: String::new() })
        })?;
        Ok(())
    }

    fn walk(&self, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()> {
        let mut todo: Vec<(u64, Vec<u8>)> = vec![(ROOT_INO, Vec::new())];
        while let Some((dir, path)) = todo.pop() {
            let listed = self.0.entries(dir, &mut |name, stat| {
                let mut full = path.clone();
                if !full.is_empty() {
                    full.push(b'/');
                }
                full.extend_from_slice(name);
                match kind(stat) {
                    FileKind::Dir => todo.push((stat.ino, full)),
                    FileKind::File => {
                        let (size, mtime) = (stat.size, stat.mtime);
                        let etag = self.0.vfs.content(stat.ino).map_or_else(String::new, |d| hex(&d.0));
                        return sink(&full, &Meta { kind: FileKind::File, size, mtime, etag });
                    }
                    FileKind::Link | FileKind::Other => {}
                }
                true
            });
            match listed {
                Ok(true) => {}
                Ok(false) => break,
                // Removed since it was listed.
                Err(Errno::NOENT | Errno::STALE) if dir != ROOT_INO => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// An open directory, closed when dropped.
struct DirHandle<'a> {
    vfs: &'a dyn Vfs,
    fh: u64,
}

impl Drop for DirHandle<'_> {
    fn drop(&mut self) {
        self.vfs.releasedir(self.fh);
    }
}

impl Inner {
    /// Calls `sink` with everything in a directory but `.` and `..`, until it says `false`; whether it never did.
    fn entries(&self, dir: u64, sink: &mut dyn FnMut(&[u8], &Stat) -> bool) -> Result<bool> {
        let handle = DirHandle { vfs: self.vfs.as_ref(), fh: self.vfs.opendir(dir)? };
        let mut cookie = 0;
        loop {
            let mut entries: Vec<DirEntry> = Vec::new();
            self.vfs.readdir(handle.fh, cookie, true, &mut |entry| {
                let room = entries.len() < ENTRIES_AT_ONCE;
                if room {
                    entries.push(entry);
                }
                room
            })?;
            let Some(last) = entries.last() else { return Ok(true) };
            cookie = last.cookie;
            // References first: the sink may end the listing.
            let real: Vec<_> = entries.into_iter().filter(|e| e.name != "." && e.name != "..").collect();
            for entry in &real {
                self.vfs.forget(entry.ino, 1);
            }
            for entry in &real {
                if let Some(stat) = &entry.stat
                    && !sink(entry.name.as_bytes(), stat)
                {
                    return Ok(false);
                }
            }
        }
    }
}

/// A new version in an unnamed file.
struct Writing {
    inner: Arc<Inner>,
    path: RelPath,
    handle: Handle,
    ino: u64,
    at: u64,
    hasher: Hasher,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.inner.vfs.forget(self.ino, 1);
    }
}

impl Writing {
    /// Gives the unnamed file its name, in place of what stands there.
    fn place(&self, before: Option<&Stat>, place: &Place<'_>) -> Result<Stat> {
        let vfs = self.inner.vfs.as_ref();
        let name = place.name.as_deref().ok_or(Errno::ISDIR)?;
        let digest = self.hasher.clone().finalize();
        match vfs.install(self.handle.opened.fh, place.parent, name, digest) {
            // Somebody writes there: like any program that replaces a file, this one leaves it to them.
            Err(Errno::NOSYS | Errno::BUSY) => {}
            other => return self.linked(other),
        }
        if let Some(old) = before {
            let (mode, uid, gid) = (Some(old.mode & 0o7777), Some(old.uid), Some(old.gid));
            let set = SetStat { mode, uid, gid, ..SetStat::default() };
            vfs.setattr(self.inner.caller, self.ino, Some(self.handle.opened.fh), set)?;
        } else {
            match vfs.link(self.ino, place.parent, name) {
                Err(Errno::EXIST) => {}
                other => return self.linked(other),
            }
        }
        let number = self.inner.names.fetch_add(1, Ordering::Relaxed);
        let temporary = OsString::from(format!(".icecluster-put-{}-{number}", std::process::id()));
        let stat = self.linked(vfs.link(self.ino, place.parent, &temporary))?;
        if let Err(e) = vfs.rename(place.parent, &temporary, place.parent, name, 0) {
            // The first error is the one to report.
            let _ = vfs.unlink(place.parent, &temporary);
            return Err(e);
        }
        vfs.flush(self.handle.opened.fh)?;
        Ok(stat)
    }

    /// A link counts a reference, which nobody needs.
    fn linked(&self, outcome: Result<Stat>) -> Result<Stat> {
        if let Ok(stat) = &outcome {
            self.inner.vfs.forget(stat.ino, 1);
        }
        outcome
    }
}

impl Upload for Writing {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.inner.vfs.write(self.handle.opened.fh, self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn commit(self: Box<Self>, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<Option<Meta>> {
        // Before it gets its name: whoever sees the new version after a crash sees all of it.
        rustix::fs::fdatasync(self.handle.opened.file.as_ref())?;
        let _order = self.inner.order.lock().unwrap_or_else(PoisonError::into_inner);
        // It holds the reference that makes the inode's number valid.
        let found = match self.inner.locate(&self.path, Last::Follow, false) {
            Ok(place) => Some(place),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        let before = found.as_ref().and_then(|place| place.found);
        match before.as_ref().map(kind) {
            Some(FileKind::Dir) => return Err(Errno::ISDIR),
            Some(FileKind::Link | FileKind::Other) => return Err(Errno::ACCESS),
            Some(FileKind::File) | None => {}
        }
        if !allowed(before.as_ref().map(|stat| self.inner.meta(stat)).as_ref()) {
            return Ok(None);
        }
        let place = self.inner.locate(&self.path, Last::Follow, true)?;
        let stat = self.place(before.as_ref(), &place)?;
        // The name, too: an answer may promise that it is durable.
        rustix::fs::fsync(self.handle.opened.file.as_ref())?;
        // A rename moved its change time.
        let now = self.inner.vfs.getattr(stat.ino, None).unwrap_or(stat);
        self.inner.remember(&now, hex(&self.hasher.clone().finalize().0));
        Ok(Some(self.inner.meta(&now)))
    }
}
