//! The staging area: bytes of versions that arrive or wait for their place, and serving versions to peers.

use super::data::reopen;
use super::hidden::{list, parse_staged, staged_name};
use super::meta;
use super::{Shared, Volume};
use crate::digest;
use ice_core::event::IoError;
use ice_core::ids::InodeId;
use ice_core::op::{ContentDigest, Payload};
use ice_core::time::Stamp;
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Partial content is resumed from a multiple of this.
const RESUME_BYTES: u64 = digest::BLOCK_BYTES;

/// A version that arrives. Dropped unfinished, it can be resumed by the next [`Volume::begin_staging`] of that version.
pub struct Arriving {
    s: Arc<Shared>,
    inode: InodeId,
    version: Stamp,
    size: u64,
    digest: ContentDigest,
    file: File,
    have: u64,
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Arriving { inode, version, size, have, .. } = self;
        f.debug_struct("Arriving")
            .field("inode", inode)
            .field("version", version)
            .field("size", size)
            .field("have", have)
            .finish_non_exhaustive()
    }
}

impl Arriving {
    /// Bytes that are there already, from the start: go on from here. They are verified with the rest.
    pub fn offset(&self) -> u64 {
        self.have
    }

    /// Writes bytes anywhere within the announced length. Only what follows [`Arriving::offset`] without a gap counts for
    /// resuming. `InvalidInput` beyond the length.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|e| *e <= self.size);
        let Some(end) = end else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than were announced"));
        };
        self.file.write_all_at(bytes, offset)?;
        if offset <= self.have {
            self.have = self.have.max(end);
        }
        Ok(())
    }

    /// Takes a range from a file that is here already, without the way through the network. Short at that file's end.
    pub fn copy_from(&mut self, from: &File, from_offset: u64, offset: u64, len: u64) -> io::Result<u64> {
        let mut done = 0;
        let mut buf = Vec::new();
        while done < len {
            let (mut a, mut b) = (from_offset + done, offset + done);
            let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(1 << 30);
            if b.saturating_add(want as u64) > self.size {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than were announced"));
            }
            let n = match rustix::fs::copy_file_range(from, Some(&mut a), &self.file, Some(&mut b), want) {
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    buf.resize(want.min(1 << 20), 0);
                    let n = from.read_at(&mut buf, from_offset + done)?;
                    self.file.write_all_at(&buf[..n], offset + done)?;
                    n
                }
                n => n?,
            };
            if n == 0 {
                break;
            }
            done += n as u64;
        }
        if offset <= self.have {
            self.have = self.have.max(offset + done);
        }
        Ok(done)
    }

    /// Verifies the bytes, makes them durable and stages them. After `Mismatch` nothing of them is left.
    pub fn finish(self) -> Result<(), IoError> {
        let arrived = match digest::of_file(&self.file, self.size) {
            Ok(d) => d,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(IoError::Mismatch),
            Err(e) => return Err(meta::io_error(meta::errno(&e))),
        };
        let part = staged_name(false, self.inode, self.version);
        let tmp = self.s.hidden.tmp();
        if arrived != self.digest {
            rustix::fs::unlinkat(tmp, &*part, AtFlags::empty()).map_err(meta::io_error)?;
            return Err(IoError::Mismatch);
        }
        let whole = staged_name(true, self.inode, self.version);
        let done = || -> Result<(), Errno> {
            rustix::fs::fdatasync(&self.file)?;
            rustix::fs::renameat(tmp, &*part, tmp, &*whole)?;
            rustix::fs::fsync(tmp)
        };
        done().map_err(meta::io_error)
    }
}

impl Volume {
    /// Prepares the reception of a version. `None`: it is staged already. `Busy`: somebody else receives it.
    pub fn begin_staging(
        &self,
        inode: InodeId,
        version: Stamp,
        size: u64,
        digest: ContentDigest,
    ) -> Result<Option<Arriving>, IoError> {
        self.s.begin_staging(inode, version, size).map(|begun| {
            begun.map(|(file, have)| Arriving { s: Arc::clone(&self.s), inode, version, size, digest, file, have })
        })
    }

    /// The versions that are staged, whole. For the core's start.
    pub fn staged(&self) -> Result<Vec<(InodeId, Stamp)>, IoError> {
        let names = list(self.s.hidden.tmp()).map_err(meta::io_error)?;
        let mut staged: Vec<_> = names
            .iter()
            .filter_map(|n| parse_staged(n))
            .filter_map(|(whole, inode, version)| whole.then_some((inode, version)))
            .collect();
        staged.sort();
        Ok(staged)
    }

    /// Removes staged content, whole or partial, that is not `wanted`. To be called once after the core has recovered.
    pub fn keep_staged(&self, wanted: impl Fn(InodeId, Stamp) -> bool) -> Result<(), IoError> {
        let tmp = self.s.hidden.tmp();
        for name in list(tmp).map_err(meta::io_error)? {
            if let Some((_, inode, version)) = parse_staged(&name)
                && !wanted(inode, version)
            {
                rustix::fs::unlinkat(tmp, name.as_slice(), AtFlags::empty()).map_err(meta::io_error)?;
            }
        }
        Ok(())
    }

    /// Opens the bytes of a version, for a peer: the file itself if it holds that version, else the staged copy. `Gone` if
    /// there is neither, or if the file was written since. A file may still change while it is read: the receiver
    /// verifies the digest.
    pub fn open_version(&self, inode: InodeId, version: Stamp) -> Result<File, IoError> {
        self.s.open_version(inode, version)
    }
}

impl Shared {
    fn begin_staging(&self, inode: InodeId, version: Stamp, size: u64) -> Result<Option<(File, u64)>, IoError> {
        let tmp = self.hidden.tmp();
        let whole = staged_name(true, inode, version);
        if rustix::fs::statat(tmp, &*whole, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(None);
        }
        let part = staged_name(false, inode, version);
        let begin = || -> Result<(File, u64), Errno> {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(tmp, &*part, flags, Mode::RUSR | Mode::WUSR)?;
            rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
            let have = meta::size(&rustix::fs::fstat(&fd)?);
            // A crash may have torn the end.
            let have = if have > size { 0 } else { have / RESUME_BYTES * RESUME_BYTES };
            rustix::fs::ftruncate(&fd, have)?;
            // A full disk is better met now than in the middle.
            match rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, size.max(1)) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(e) => return Err(e),
            }
            Ok((File::from(fd), have))
        };
        match begin() {
            Ok(begun) => Ok(Some(begun)),
            Err(Errno::AGAIN) => Err(IoError::Busy),
            Err(e) => Err(meta::io_error(e)),
        }
    }

    /// Writes an inline payload into the staging area.
    pub(crate) fn stage(&self, payload: &Payload, inode: InodeId, version: Stamp) -> Result<(), IoError> {
        let tmp = self.hidden.tmp();
        let whole = staged_name(true, inode, version);
        if rustix::fs::statat(tmp, &*whole, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(());
        }
        let bytes = self.payload_bytes(payload.id)?;
        let name = self.hidden.fresh_name();
        let write = || -> Result<(), Errno> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(tmp, &*name, flags, Mode::RUSR | Mode::WUSR)?;
            super::make::write_all(fd.as_fd(), &bytes)?;
            rustix::fs::renameat(tmp, &*name, tmp, &*whole)
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
                Err(e) => tracing::warn!(name, error = %e, "staged content cannot be removed"),
            }
        }
    }

    fn open_version(&self, inode: InodeId, version: Stamp) -> Result<File, IoError> {
        let port = self.port().map_err(meta::io_error)?;
        let holds = port.look(|names| names.info(inode)).is_some_and(|i| i.held == version && i.nlink > 0);
        let written = self.opens.of(inode).is_some_and(|o| o.state().dirty.is_some());
        if holds
            && !written
            && let Ok(place) = self.place_of(inode)
            && let Ok((fd, _)) = self.object_at(&place)
        {
            return reopen(fd.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK).map(File::from).map_err(meta::io_error);
        }
        let whole = staged_name(true, inode, version);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.hidden.tmp(), &*whole, flags, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::NOENT) => Err(IoError::Gone),
            Err(e) => Err(meta::io_error(e)),
        }
    }
}
