//! The volume, as the core's lanes and the transport want it.

use super::actions::FileActions;
use crate::transport::{ContentStore, Fetch, Staged, VersionReader};
use crate::volume::{Arriving, Volume};
use ice_core::action::Io;
use ice_core::event::IoError;
use ice_core::ids::InodeId;
use ice_core::time::Stamp;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

impl FileActions for Volume {
    fn submit(&self, io: Io) {
        if let Err(other) = Volume::submit(self, io) {
            tracing::error!("not an action of the volume: {other:?}");
        }
    }
}

fn os_error(e: IoError) -> io::Error {
    match e {
        IoError::NoSpace => Errno::NOSPC.into(),
        IoError::Denied => Errno::ACCESS.into(),
        IoError::Busy => io::ErrorKind::WouldBlock.into(),
        IoError::Gone => io::ErrorKind::NotFound.into(),
        IoError::Os(n) => io::Error::from_raw_os_error(n),
        IoError::Broken | IoError::Changed | IoError::Mismatch | IoError::Unreachable => Errno::IO.into(),
    }
}

/// A version on its way; `None` once everything is there.
struct Incoming {
    arriving: Option<Arriving>,
    size: u64,
}

impl Staged for Incoming {
    fn have(&self) -> u64 {
        self.arriving.as_ref().map_or(self.size, Arriving::offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match &mut self.arriving {
            Some(arriving) => arriving.write_at(bytes, offset),
            None => Ok(()),
        }
    }

    fn finish(self: Box<Self>) -> io::Result<bool> {
        match self.arriving.map_or(Ok(()), Arriving::finish) {
            Ok(()) => Ok(true),
            Err(IoError::Mismatch) => Ok(false),
            Err(e) => Err(os_error(e)),
        }
    }
}

/// A version that is being served.
struct Outgoing {
    file: File,
    size: u64,
    changed: (i64, i64, i64, i64),
}

fn look(file: &File) -> io::Result<(u64, (i64, i64, i64, i64))> {
    let m = file.metadata()?;
    Ok((m.size(), (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())))
}

impl VersionReader for Outgoing {
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

    fn still_valid(&self) -> bool {
        // A rename or a further link moves the change time, too: then the receiver asks once more.
        look(&self.file).is_ok_and(|(size, changed)| size == self.size && changed == self.changed)
    }
}

impl ContentStore for Volume {
    fn stage(&self, fetch: &Fetch) -> io::Result<Box<dyn Staged>> {
        let arriving = self.begin_staging(fetch.inode, fetch.version, fetch.size, fetch.digest).map_err(os_error)?;
        Ok(Box::new(Incoming { arriving, size: fetch.size }))
    }

    fn open_version(&self, inode: InodeId, version: Stamp) -> io::Result<Option<Box<dyn VersionReader>>> {
        match Volume::open_version(self, inode, version) {
            Ok(file) => {
                let (size, changed) = look(&file)?;
                Ok(Some(Box::new(Outgoing { file, size, changed })))
            }
            Err(IoError::Gone | IoError::Changed) => Ok(None),
            Err(e) => Err(os_error(e)),
        }
    }
}
