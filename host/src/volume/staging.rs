//! The staging area: bytes of versions that arrive or wait for their place, and serving versions to peers.

use super::data::reopen;
use super::hidden::{list, parse_staged, staged_name};
use super::meta;
use super::{Shared, Volume};
use crate::digest::{self, BlockStream, Blocks, Known};
use crate::transport::{ContentStore, Fetch, Staged, VersionReader, differing};
use ice_core::event::{IoError, Witness};
use ice_core::ids::InodeId;
use ice_core::op::{ContentDigest, Payload};
use ice_core::time::Stamp;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Partial content is resumed from a multiple of this.
const RESUME_BYTES: u64 = digest::BLOCK_BYTES;

/// A version that arrives. Dropped unfinished, it can be resumed.
struct Arriving {
    s: Arc<Shared>,
    fetch: Fetch,
    /// `None`: it is staged already.
    file: Option<File>,
    /// Whatever version of the file stands in `backing`.
    base: Option<File>,
    have: u64,
    /// Hashes of the blocks that passed through here in order: they are not read again at the end.
    known: Known,
    stream: BlockStream,
}

impl Staged for Arriving {
    fn have(&self) -> u64 {
        self.have
    }

    fn has_base(&self) -> bool {
        self.base.is_some()
    }

    fn reuse(&mut self, blocks: &Blocks) -> io::Result<Vec<Range<u64>>> {
        if self.file.is_none() {
            return Ok(Vec::new());
        }
        let filled = differing(blocks, &Blocks::of_zeros(self.fetch.size));
        let Some(base) = self.base.take() else { return Ok(filled) };
        let here = match self.s.spares.here(self.fetch.inode, &rustix::fs::fstat(&base)?) {
            Some(here) => here,
            None => match Blocks::of_file(&base, base.metadata()?.len()) {
                // It is being cut.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(filled),
                here => here?,
            },
        };
        if let Some(missing) = self.recycle(blocks, &base, &here)? {
            return Ok(missing);
        }
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let missing = common(&filled, &differing(blocks, &here));
        // What is neither missing nor a hole is in the other version.
        let mut lacks = missing.iter().cloned().peekable();
        for range in &filled {
            let mut at = range.start;
            while at < range.end {
                let next = lacks.next_if(|r| r.start < range.end);
                let upto = next.as_ref().map_or(range.end, |r| r.start);
                if copy_range(&base, file, at..upto)? < upto - at {
                    return Ok(filled);
                }
                at = next.map_or(range.end, |r| r.end);
            }
        }
        Ok(missing)
    }

    fn reserve(&mut self, missing: &[Range<u64>]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        for range in missing {
            if let Err(e) = super::sys::reserve(file, range.start, range.end - range.start) {
                // Whoever else needs the room may have it until then.
                rustix::fs::ftruncate(file, self.have)?;
                return Err(e.into());
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|e| *e <= self.fetch.size);
        let (Some(file), Some(end)) = (&self.file, end) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than were announced"));
        };
        file.write_all_at(bytes, offset)?;
        if self.stream.at() != offset {
            self.stream.unfinished(&mut self.known);
            self.stream = BlockStream::new(offset);
        }
        self.stream.push(bytes, &mut self.known);
        if offset <= self.have {
            self.have = self.have.max(end);
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<bool> {
        let Fetch { inode, version, size, digest, .. } = self.fetch;
        let Some(file) = &self.file else { return Ok(self.s.prove(inode, version, Some((size, digest)))?) };
        self.stream.unfinished(&mut self.known);
        if file.metadata()?.len() < size {
            // It ends with a hole.
            rustix::fs::ftruncate(file, size)?;
        }
        let mut blocks = Blocks::new();
        let right = match blocks.update_knowing(file, size, [], &self.known) {
            Ok(()) => blocks.root() == digest,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(e),
        };
        let (tmp, part) = (self.s.hidden.tmp(), staged_name(false, inode, version));
        if !right {
            rustix::fs::unlinkat(tmp, &*part, AtFlags::empty())?;
            return Ok(false);
        }
        rustix::fs::fdatasync(file)?;
        rustix::fs::renameat(tmp, &*part, tmp, &*staged_name(true, inode, version))?;
        rustix::fs::fsync(tmp)?;
        self.s.spares.staged(inode, version, blocks);
        Ok(true)
    }
}

impl Arriving {
    /// Goes on in the file that the last version replaced, if it is at hand: what it lacks and `base` has is copied, the rest is
    /// missing.
    fn recycle(&mut self, wanted: &Blocks, base: &File, here: &Blocks) -> io::Result<Option<Vec<Range<u64>>>> {
        let Fetch { inode, version, size, .. } = self.fetch;
        let Some((spare, has)) = self.s.take_spare(inode, &staged_name(false, inode, version)) else { return Ok(None) };
        // From here on this is the file, whatever happens; the end is judged by the digest.
        let file = self.file.insert(spare);
        rustix::fs::ftruncate(&*file, size)?;
        let lacks = differing(wanted, &has);
        let missing = common(&lacks, &differing(wanted, here));
        let mut changed = lacks.iter().flat_map(|r| r.start / RESUME_BYTES..r.end.div_ceil(RESUME_BYTES)).peekable();
        for (index, hash) in (0u64..).zip(wanted.hashes()) {
            if changed.next_if_eq(&index).is_none() {
                self.known.insert(index, (RESUME_BYTES.min(size - index * RESUME_BYTES), *hash));
            }
        }
        let mut gaps = missing.iter().peekable();
        for range in &lacks {
            let mut at = range.start;
            while at < range.end {
                let next = gaps.next_if(|r| r.start < range.end);
                let upto = next.map_or(range.end, |r| r.start);
                if copy_range(base, file, at..upto)? < upto - at {
                    return Ok(Some(lacks));
                }
                at = next.map_or(range.end, |r| r.end);
            }
        }
        Ok(Some(missing))
    }
}

/// What is in both lists of ranges; each is in order.
fn common(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut both = Vec::new();
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let (start, end) = (x.start.max(y.start), x.end.min(y.end));
        if start < end {
            both.push(start..end);
        }
        if x.end <= y.end {
            a.next()
        } else {
            b.next()
        };
    }
    both
}

/// Copies the same range from one file to another, sharing blocks where the file system can. Short at the end of `from`.
fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<u64> {
    let mut at = range.start;
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(1 << 30);
        let n = match super::sys::copy_range(from, at, to, at, want) {
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut buf = vec![0; want.min(1 << 20)];
                let n = from.read_at(&mut buf, at)?;
                to.write_all_at(&buf[..n], at)?;
                n
            }
            n => n?,
        };
        if n == 0 {
            break;
        }
        at += n as u64;
    }
    Ok(at - range.start)
}

/// A version that is served.
struct Served {
    s: Arc<Shared>,
    inode: InodeId,
    version: Stamp,
    file: File,
    size: u64,
    /// How the file looked when it was opened; `None` for staged content, which never changes.
    seen: Option<Witness>,
}

impl Served {
    /// The hashes of its blocks, if they are known from its writing or its arrival.
    fn remembered(&self) -> Option<Blocks> {
        let written = self.s.opens.of(self.inode).and_then(|open| open.state().blocks.clone());
        let arrived = || self.s.spares.here(self.inode, &rustix::fs::fstat(&self.file).ok()?);
        let blocks = written.or_else(arrived)?;
        let info = self.s.port().ok()?.look(|names| names.info(self.inode))?;
        // They may be those of another version by now: the digest tells.
        let right = info.held == self.version && info.held_content == Some((self.size, blocks.root()));
        right.then_some(blocks)
    }
}

impl VersionReader for Served {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn is_sparse(&self) -> bool {
        // Blocks of the file system beyond the end, for what is appended next, may make up for holes: then it is not said.
        let held = self.file.metadata().map_or(u64::MAX, |m| m.blocks().saturating_mul(512));
        held.saturating_add(digest::BLOCK_BYTES) <= self.size
    }

    fn blocks(&self) -> io::Result<Blocks> {
        match self.remembered() {
            Some(blocks) => Ok(blocks),
            None => Blocks::of_file(&self.file, self.size),
        }
    }

    fn still_valid(&self) -> bool {
        let Some(seen) = self.seen else { return true };
        let now = rustix::fs::fstat(&self.file).map(|st| meta::witness(&st));
        // A change of attributes alone moves the witness; the core's word then counts.
        now.is_ok_and(|w| w == seen) || self.s.holds(self.inode, self.version)
    }
}

impl ContentStore for Volume {
    fn stage(&self, fetch: &Fetch) -> io::Result<Box<dyn Staged>> {
        let (file, have) = match self.s.begin_staging(fetch.inode, fetch.version, fetch.size)? {
            Some((file, have)) => (Some(file), have),
            None => (None, fetch.size),
        };
        let base = if file.is_some() { self.s.open_base(fetch.inode) } else { None };
        let (known, stream) = (Known::new(), BlockStream::new(have));
        Ok(Box::new(Arriving { s: Arc::clone(&self.s), fetch: *fetch, file, base, have, known, stream }))
    }

    fn open_version(&self, inode: InodeId, version: Stamp) -> io::Result<Option<Box<dyn VersionReader>>> {
        let Some((file, live)) = self.s.open_version(inode, version)? else {
            if self.s.is_lost() {
                // It may yet turn up: "gone" would be a last word.
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "backing is being compared after a crash"));
            }
            return Ok(None);
        };
        let st = rustix::fs::fstat(&file)?;
        let seen = live.then(|| meta::witness(&st));
        let size = meta::size(&st);
        Ok(Some(Box::new(Served { s: Arc::clone(&self.s), inode, version, file, size, seen })))
    }
}

impl Volume {
    /// The volume as peers' transfers see it.
    pub fn content_store(&self) -> Arc<dyn ContentStore> {
        Arc::new(self.clone())
    }

    /// A descriptor of `backing`, for `syncfs`.
    pub fn backing_fd(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.s.dirs.root(), c".", flags, Mode::empty())?)
    }

    /// The versions that are staged, whole. For the core's start.
    pub fn staged(&self) -> Vec<(InodeId, Stamp)> {
        match whole(self.s.hidden.tmp()) {
            Ok(staged) => staged.into_iter().collect(),
            Err(e) => {
                // What is not named is fetched again.
                self.s.trouble("staging", format!("the staging area cannot be read: {e}"));
                Vec::new()
            }
        }
    }
}

/// The versions that are staged, whole.
pub(super) fn whole(tmp: BorrowedFd<'_>) -> Result<BTreeSet<(InodeId, Stamp)>, Errno> {
    let names = list(tmp)?;
    let staged = names.iter().filter_map(|n| parse_staged(n));
    Ok(staged.filter_map(|(whole, inode, version)| whole.then_some((inode, version))).collect())
}

impl Shared {
    fn unproven(&self) -> MutexGuard<'_, BTreeSet<(InodeId, Stamp)>> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Staged content is what its name says: this process has written and verified it, or does so now that it was found at the
    /// start. False: it is not, and has been removed. `content` is what it should be; if nobody knows, it is not believed
    /// (`ESTALE`), and stays.
    pub(super) fn prove(
        &self,
        inode: InodeId,
        version: Stamp,
        content: Option<(u64, ContentDigest)>,
    ) -> Result<bool, Errno> {
        if !self.unproven().contains(&(inode, version)) {
            return Ok(true);
        }
        let (size, digest) = content.ok_or(Errno::STALE)?;
        let (tmp, name) = (self.hidden.tmp(), staged_name(true, inode, version));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(tmp, &*name, flags, Mode::empty()) {
            // Whoever looks for it sees that.
            Err(Errno::NOENT) => return Ok(true),
            file => File::from(file?),
        };
        let right = meta::size(&rustix::fs::fstat(&file)?) == size
            && match digest::of_file(&file, size) {
                Ok(found) => found == digest,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof || meta::errno(&e) == Errno::IO => false,
                Err(e) => return Err(meta::errno(&e)),
            };
        if !right {
            tracing::warn!(%inode, %version, "staged bytes are damaged; they are thrown away");
            match rustix::fs::unlinkat(tmp, &*name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        self.unproven().remove(&(inode, version));
        Ok(right)
    }

    /// [`Shared::prove`] by what the tree says of the version.
    pub(super) fn prove_known(&self, inode: InodeId, version: Stamp) -> Result<bool, Errno> {
        if self.unproven().is_empty() {
            return Ok(true);
        }
        let content = self.port()?.look(|names| names.version(inode, version));
        self.prove(inode, version, content)
    }

    /// Prepares the reception of a version: a file and how much of it is there. `None`: it is staged already. `EAGAIN`:
    /// somebody else receives it.
    fn begin_staging(&self, inode: InodeId, version: Stamp, size: u64) -> Result<Option<(File, u64)>, Errno> {
        let tmp = self.hidden.tmp();
        if rustix::fs::statat(tmp, &*staged_name(true, inode, version), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(None);
        }
        let part = staged_name(false, inode, version);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(tmp, &*part, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        let have = meta::size(&rustix::fs::fstat(&fd)?);
        // A crash may have torn the end; the rest is verified with the whole.
        let have = if have > size { 0 } else { have / RESUME_BYTES * RESUME_BYTES };
        rustix::fs::ftruncate(&fd, have)?;
        Ok(Some((File::from(fd), have)))
    }

    /// Removes staged content, whole or partial, that the core does not want any more.
    pub(crate) fn keep_wanted(&self) {
        let (Ok(port), Ok(names)) = (self.port(), list(self.hidden.tmp())) else { return };
        for (_, inode, version) in names.iter().filter_map(|n| parse_staged(n)) {
            if !port.look(|names| names.wants(inode, version)) {
                self.unstage(inode, version);
            }
        }
    }

    /// Writes an inline payload into the staging area.
    pub(crate) fn stage(&self, payload: &Payload, inode: InodeId, version: Stamp) -> Result<(), IoError> {
        let tmp = self.hidden.tmp();
        let whole = staged_name(true, inode, version);
        let found = self.unproven().contains(&(inode, version));
        if !found && rustix::fs::statat(tmp, &*whole, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(());
        }
        let bytes = self.payload_bytes(payload.id)?;
        let name = self.hidden.fresh_name();
        let write = || -> Result<(), Errno> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(tmp, &*name, flags, Mode::RUSR | Mode::WUSR)?;
            super::make::write_all(fd.as_fd(), &bytes)?;
            // A name that says "whole" is believed after a crash of the machine.
            rustix::fs::fdatasync(&fd)?;
            rustix::fs::renameat(tmp, &*name, tmp, &*whole)?;
            self.unproven().remove(&(inode, version));
            Ok(())
        };
        write().map_err(|e| {
            if let Err(e) = rustix::fs::unlinkat(tmp, &*name, AtFlags::empty()) {
                tracing::debug!(name, error = %e, "nothing to clean");
            }
            meta::io_error(e)
        })
    }

    /// Forgets staged content, whole or partial.
    pub(crate) fn unstage(&self, inode: InodeId, version: Stamp) {
        for whole in [true, false] {
            let name = staged_name(whole, inode, version);
            match rustix::fs::unlinkat(self.hidden.tmp(), &*name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    tracing::warn!(name, error = %e, "staged content cannot be removed");
                    continue;
                }
            }
            if whole {
                self.unproven().remove(&(inode, version));
            }
        }
    }

    /// Whatever version of a file stands in `backing`.
    fn open_base(&self, inode: InodeId) -> Option<File> {
        let place = self.place_of(inode).ok().filter(|place| place.info.kind.is_file())?;
        let (fd, _) = self.object_at(&place).ok()?;
        let file = File::from(reopen(fd.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK).ok()?);
        file.metadata().is_ok_and(|m| m.len() > 0).then_some(file)
    }

    /// The digest of the bytes that stand in `backing`, if the core knows them and nobody changed them since.
    pub(crate) fn known_digest(&self, ino: u64) -> Option<ContentDigest> {
        let place = self.place(ino).ok().filter(|place| place.info.kind.is_file())?;
        let (_, digest) = place.info.held_content?;
        let written = self.opens.of(place.inode).is_some_and(|open| open.state().dirty.is_some());
        let (_, st) = self.object_at(&place).ok()?;
        (!written && meta::witness(&st) == place.info.witness).then_some(digest)
    }

    /// This version stands in `backing`, and nothing was written since.
    fn holds(&self, inode: InodeId, version: Stamp) -> bool {
        let held = self
            .port()
            .is_ok_and(|port| port.look(|names| names.info(inode)).is_some_and(|i| i.held == version && i.nlink > 0));
        held && self.opens.of(inode).is_none_or(|o| o.state().dirty.is_none())
    }

    /// The bytes of a version: those of the file itself (`true`) if it holds that version, else the staged copy.
    fn open_version(&self, inode: InodeId, version: Stamp) -> Result<Option<(File, bool)>, Errno> {
        if self.holds(inode, version)
            && let Ok(place) = self.place_of(inode)
            && let Ok((fd, _)) = self.object_at(&place)
        {
            let file = reopen(fd.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?;
            // Still, now that it is open: so this is the file.
            if self.holds(inode, version) {
                return Ok(Some((File::from(file), true)));
            }
        }
        match self.prove_known(inode, version) {
            Ok(true) => {}
            // Damaged, or of no use any more.
            Ok(false) | Err(Errno::STALE) => return Ok(None),
            Err(e) => return Err(e),
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.hidden.tmp(), &*staged_name(true, inode, version), flags, Mode::empty()) {
            Ok(fd) => Ok(Some((File::from(fd), false))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}
