//! Extended attributes. Those of the namespaces `user`, `trusted` and `security` are replicated; others are refused, so that
//! nobody relies on what does not travel.

use super::Shared;
use super::meta;
use super::resolve::refused;
use crate::vfs::Result;
use ice_core::event::Change;
use ice_core::limits::{XATTR_VALUE_MAX_BYTES, XATTRS_PER_INODE_MAX_BYTES};
use ice_core::op::Attr;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Longest name, as in Linux.
const NAME_MAX_BYTES: usize = 255;
/// The kernel's limit of a value and of a list of names is 64 KiB.
const VALUE_BUFFER_MAX_BYTES: usize = 128 * 1024;

impl Shared {
    fn checked<'a>(&self, name: &'a OsStr) -> Result<&'a [u8]> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return Err(Errno::RANGE);
        }
        if name.contains(&0) {
            return Err(Errno::INVAL);
        }
        if meta::xattr_travels(name) { Ok(name) } else { Err(Errno::OPNOTSUPP) }
    }

    pub(crate) fn do_getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let name = self.checked(name)?;
        let object = self.object(ino, None)?;
        get(object.fd.as_fd(), name)
    }

    pub(crate) fn do_listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        let object = self.object(ino, None)?;
        let mut out = Vec::new();
        for name in list(object.fd.as_fd())? {
            out.extend_from_slice(&name);
            out.push(0);
        }
        Ok(out)
    }

    pub(crate) fn do_setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let name = self.checked(name)?;
        if value.len() > XATTR_VALUE_MAX_BYTES {
            return Err(Errno::TOOBIG);
        }
        self.change_xattr(ino, name, Some(value), |fd| super::sys::set_xattr(fd, name, value, flags))
    }

    pub(crate) fn do_removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        let name = self.checked(name)?;
        self.change_xattr(ino, name, None, |fd| super::sys::remove_xattr(fd, name))
    }

    fn change_xattr(
        &self,
        ino: u64,
        name: &[u8],
        value: Option<&[u8]>,
        change: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let ns = self.lock_ns();
        let object = self.object(ino, None)?;
        if let (Some(value), Some((inode, _))) = (value, &object.known) {
            let others: usize = self.port()?.look(|names| {
                let xattrs = names.xattrs(*inode);
                xattrs.iter().filter(|(n, _)| **n != *name).map(|(n, v)| n.len() + v.len()).sum()
            });
            if others + name.len() + value.len() > XATTRS_PER_INODE_MAX_BYTES {
                return Err(Errno::NOSPC);
            }
        }
        change(object.fd.as_fd())?;
        let Some((inode, _)) = object.known else { return Ok(()) };
        let after = rustix::fs::fstat(&*object.fd)?;
        let value = value.map(|v| serde_bytes::ByteBuf::from(v.to_vec()));
        let mut changed = vec![Attr::Xattr { name: name.into(), value }];
        super::scan::with_times(&mut changed, &after);
        let witness = self.witness_after(&object, &after);
        let changes = changed.into_iter().map(|attr| Change::Attr { inode, attr, witness }).collect();
        for result in self.tell(&ns, changes)? {
            result.map_err(refused)?;
        }
        Ok(())
    }

    /// All replicated attributes of an object, by name.
    pub(crate) fn read_xattrs(&self, fd: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for name in list(fd)? {
            let value = match get(fd, &name) {
                // Removed meanwhile, or not ours to read.
                Err(super::sys::NO_ATTR | Errno::PERM | Errno::ACCESS) => continue,
                value => value?,
            };
            bytes += name.len() + value.len();
            if value.len() > XATTR_VALUE_MAX_BYTES || bytes > XATTRS_PER_INODE_MAX_BYTES {
                let words = "a file in backing has more extended attributes than can be replicated";
                self.trouble("xattr size", words.to_owned());
                continue;
            }
            found.push((name, value));
        }
        found.sort();
        Ok(found)
    }
}

/// Calls `read` with larger and larger buffers until the answer fits. Asking for the size first would need a second call
/// in any case, and a buffer of length 0 asks for the size only if it reaches the kernel as a null pointer.
fn grown(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match read(&mut buf) {
            Err(Errno::RANGE) if buf.len() < VALUE_BUFFER_MAX_BYTES => buf.resize(buf.len() * 8, 0),
            n => {
                buf.truncate(n?);
                return Ok(buf);
            }
        }
    }
}

fn get(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    grown(|buf| super::sys::get_xattr(fd, name, buf))
}

fn list(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let names = match grown(|buf| super::sys::list_xattrs(fd, buf)) {
        // This file system has none.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    Ok(names.split(|b| *b == 0).filter(|n| meta::xattr_travels(n)).map(<[u8]>::to_vec).collect())
}
