//! Making an object aside, whole, before it gets its place.

use super::Shared;
use super::hidden::staged_name;
use super::meta::{self, Raw};
use ice_core::action::Source;
use ice_core::event::IoError;
use ice_core::op::{Attrs, Kind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Extended attributes of a new object.
pub(crate) type Xattrs = [(Box<[u8]>, Box<[u8]>)];

/// An object in `tmp`, finished but for its name.
pub(crate) struct Made {
    /// Its name in `tmp`.
    pub(crate) name: String,
    /// It is staged content: stays there when it is not used.
    staged: bool,
    /// A descriptor of any kind.
    pub(crate) fd: Arc<OwnedFd>,
}

impl Made {
    pub(crate) fn stat(&self) -> Result<Raw, IoError> {
        rustix::fs::fstat(&*self.fd).map_err(meta::io_error)
    }
}

impl Shared {
    /// Makes an object with its bytes and attributes. Takes no lock.
    pub(crate) fn make_aside(
        &self,
        kind: &Kind,
        attrs: &Attrs,
        xattrs: &Xattrs,
        source: &Source,
    ) -> Result<Made, IoError> {
        let made = match (kind, source) {
            (Kind::File, Source::Staged { inode, version }) => {
                match self.prove_known(*inode, *version) {
                    Ok(true) => {}
                    Ok(false) => return Err(IoError::Mismatch),
                    // The tree has gone on meanwhile, and wants something else.
                    Err(Errno::STALE) => return Err(IoError::Changed),
                    Err(e) => return Err(meta::io_error(e)),
                }
                let name = staged_name(true, *inode, *version);
                let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = match rustix::fs::openat(self.hidden.tmp(), &*name, flags, Mode::empty()) {
                    // The core believes that we have it: it has to be brought again.
                    Err(Errno::NOENT) => return Err(IoError::Gone),
                    fd => fd.map_err(meta::io_error)?,
                };
                Made { name, staged: true, fd: Arc::new(fd) }
            }
            (Kind::File, _) => self.new_file(source, attrs)?,
            (kind, _) => self.new_special(kind)?,
        };
        if let Err(e) = self.dress(&made, attrs, xattrs) {
            self.drop_made(&made);
            return Err(e);
        }
        Ok(made)
    }

    /// Throws away what got no place.
    pub(crate) fn drop_made(&self, made: &Made) {
        if made.staged {
            return;
        }
        let tmp = self.hidden.tmp();
        let gone = match rustix::fs::unlinkat(tmp, &*made.name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(tmp, &*made.name, AtFlags::REMOVEDIR),
            r => r,
        };
        if let Err(e) = gone
            && e != Errno::NOENT
        {
            tracing::warn!(name = made.name, error = %e, "a leftover stays in the staging area until the next start");
        }
    }

    fn new_file(&self, source: &Source, attrs: &Attrs) -> Result<Made, IoError> {
        let name = self.hidden.fresh_name();
        // Mostly right at once: nobody else can reach it here. What the umask took is given later.
        let mode = super::sys::mode(attrs.mode & 0o777 | 0o600);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.hidden.tmp(), &*name, flags, mode).map_err(meta::io_error)?;
        let made = Made { name, staged: false, fd: Arc::new(fd) };
        if let Source::Payload(payload) = source {
            let written = self
                .payload_bytes(payload.id)
                .and_then(|bytes| write_all(made.fd.as_fd(), &bytes).map_err(meta::io_error));
            if let Err(e) = written {
                self.drop_made(&made);
                return Err(e);
            }
        }
        Ok(made)
    }

    /// Bytes from the pool.
    pub(crate) fn payload_bytes(&self, id: ice_core::ids::PayloadId) -> Result<bytes::Bytes, IoError> {
        let port = self.port().map_err(meta::io_error)?;
        port.payloads().get(id).ok_or(IoError::Gone)
    }

    fn new_special(&self, kind: &Kind) -> Result<Made, IoError> {
        let (tmp, name) = (self.hidden.tmp(), self.hidden.fresh_name());
        let mode = Mode::RWXU;
        let done = match kind {
            Kind::File => Ok(()),
            Kind::Dir => rustix::fs::mkdirat(tmp, &*name, mode),
            Kind::Symlink(target) => rustix::fs::symlinkat(&**target, tmp, &*name),
            Kind::Fifo => rustix::fs::mknodat(tmp, &*name, FileType::Fifo, mode, 0),
            Kind::Socket => rustix::fs::mknodat(tmp, &*name, FileType::Socket, mode, 0),
            Kind::Char(rdev) => rustix::fs::mknodat(tmp, &*name, FileType::CharacterDevice, mode, meta::dev(*rdev)),
            Kind::Block(rdev) => rustix::fs::mknodat(tmp, &*name, FileType::BlockDevice, mode, meta::dev(*rdev)),
        };
        if done == Err(Errno::PERM) && matches!(kind, Kind::Char(_) | Kind::Block(_)) {
            let words = "device files from other nodes cannot be made here: the daemon lacks the privilege";
            self.trouble("devices", words.to_owned());
        }
        done.map_err(meta::io_error)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(tmp, &*name, flags, Mode::empty()).map_err(meta::io_error)?;
        Ok(Made { name, staged: false, fd: Arc::new(fd) })
    }

    fn dress(&self, made: &Made, attrs: &Attrs, xattrs: &Xattrs) -> Result<(), IoError> {
        let fd = made.fd.as_fd();
        for (name, value) in xattrs {
            self.put_xattr(fd, name, Some(value))?;
        }
        let now = made.stat()?;
        // Owner before mode, and times last: each of the former changes what comes after.
        meta::dress(fd, &now, attrs, self.privileged, true).map_err(meta::io_error)
    }

    /// Sets or removes an extended attribute. Where the file system or the privilege does not allow it, that is reported
    /// and the attribute is left out here.
    pub(crate) fn put_xattr(&self, fd: BorrowedFd<'_>, name: &[u8], value: Option<&[u8]>) -> Result<(), IoError> {
        if !meta::xattr_travels(name) {
            return Ok(());
        }
        let done = match value {
            Some(value) => super::sys::set_xattr(fd, name, value, 0),
            None => super::sys::remove_xattr(fd, name),
        };
        match done {
            Ok(()) | Err(super::sys::NO_ATTR) => Ok(()),
            Err(e @ (Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::TOOBIG | Errno::RANGE)) => {
                let space = String::from_utf8_lossy(name.split(|b| *b == b'.').next().unwrap_or(b"")).into_owned();
                let words = format!("some extended attributes of the namespace {space} cannot be set in backing: {e}");
                self.trouble(&format!("xattr {space}"), words);
                Ok(())
            }
            Err(e) => Err(meta::io_error(e)),
        }
    }
}

/// Writes from the start.
pub(crate) fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
