//! The volume as the transport sees it: versions that arrive, and versions that peers ask for.

use super::data::reopen;
use super::{Arriving, Shared, Volume, meta};
use crate::digest::Blocks;
use crate::transport::{ContentStore, Fetch, Staged, VersionReader, differing};
use ice_core::event::IoError;
use ice_core::ids::InodeId;
use ice_core::op::ContentDigest;
use ice_core::time::Stamp;
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

impl Volume {
    /// The volume for the transport.
    pub fn content_store(&self) -> Arc<dyn ContentStore> {
        Arc::new(Content(self.clone()))
    }
}

struct Content(Volume);

impl ContentStore for Content {
    fn stage(&self, fetch: &Fetch) -> Result<Box<dyn Staged>, IoError> {
        let arriving = self.0.begin_staging(fetch.inode, fetch.version, fetch.size, fetch.digest)?;
        let base = if arriving.is_some() { self.0.s.open_base(fetch.inode) } else { None };
        Ok(Box::new(Receiving { arriving, base, size: fetch.size }))
    }

    fn open_version(&self, inode: InodeId, version: Stamp) -> Result<Box<dyn VersionReader>, IoError> {
        let file = self.0.open_version(inode, version)?;
        let size = file.metadata().map_err(|e| io_error(&e))?.len();
        Ok(Box::new(Held { file, size }))
    }
}

impl Shared {
    /// The digest of the bytes that stand in `backing`, if the core knows them and nobody changed them since.
    pub(crate) fn known_digest(&self, ino: u64) -> Option<ContentDigest> {
        let place = self.place(ino).ok().filter(|place| place.info.kind.is_file())?;
        let (_, digest) = place.info.held_content?;
        let written = self.opens.of(place.inode).is_some_and(|open| open.state().dirty.is_some());
        let (_, st) = self.object_at(&place).ok()?;
        (!written && meta::witness(&st) == place.info.witness).then_some(digest)
    }

    /// Whatever version of a file stands in `backing`.
    fn open_base(&self, inode: InodeId) -> Option<File> {
        let place = self.place_of(inode).ok().filter(|place| place.info.kind.is_file())?;
        let (fd, _) = self.object_at(&place).ok()?;
        let file = File::from(reopen(fd.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK).ok()?);
        file.metadata().is_ok_and(|m| m.len() > 0).then_some(file)
    }
}

fn io_error(e: &io::Error) -> IoError {
    meta::io_error(meta::errno(e))
}

/// `arriving`: `None` if it is staged already.
struct Receiving {
    arriving: Option<Arriving>,
    base: Option<File>,
    size: u64,
}

impl Receiving {
    /// Copies what `base` has in common. Everything is missing if the base changes meanwhile.
    fn copy_common(&mut self, base: &File, wanted: &Blocks) -> io::Result<Vec<Range<u64>>> {
        let everything = std::iter::once(0..self.size).collect();
        let Some(arriving) = &mut self.arriving else { return Ok(Vec::new()) };
        let here = match Blocks::of_file(base, base.metadata()?.len()) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(everything),
            here => here?,
        };
        let missing = differing(wanted, &here);
        let mut at = 0;
        for range in missing.iter().cloned().chain(std::iter::once(self.size..self.size)) {
            let len = range.start - at;
            if len > 0 && arriving.copy_from(base, at, at, len)? < len {
                return Ok(everything);
            }
            at = range.end;
        }
        Ok(missing)
    }
}

impl Staged for Receiving {
    fn have(&self) -> u64 {
        self.arriving.as_ref().map_or(self.size, Arriving::offset)
    }

    fn has_base(&self) -> bool {
        self.base.is_some()
    }

    fn reuse(&mut self, blocks: &Blocks) -> Result<Vec<Range<u64>>, IoError> {
        match self.base.take() {
            Some(base) => self.copy_common(&base, blocks).map_err(|e| io_error(&e)),
            None => Ok(std::iter::once(self.have()..self.size).collect()),
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        match &mut self.arriving {
            Some(arriving) => arriving.write_at(bytes, offset).map_err(|e| io_error(&e)),
            None => Err(IoError::Mismatch),
        }
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        self.arriving.map_or(Ok(()), Arriving::finish)
    }
}

/// A version in a file.
struct Held {
    file: File,
    size: u64,
}

impl VersionReader for Held {
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

    fn blocks(&self) -> io::Result<Blocks> {
        Blocks::of_file(&self.file, self.size)
    }
}
