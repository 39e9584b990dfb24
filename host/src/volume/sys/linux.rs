//! Linux.

use super::Line;
use super::objects::fd_path;
use rustix::fs::{FallocateFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `F_SETSIG` of `fcntl`.
const F_SETSIG: libc::c_int = 10;
/// Bytes of one read from a directory: some hundred entries.
const READ_BYTES: usize = 32 * 1024;

/// No such extended attribute.
pub(crate) const NO_ATTR: Errno = Errno::NODATA;
/// For files without a name.
pub(crate) const TMPFILE: Option<OFlags> = Some(OFlags::TMPFILE);

/// Opens a directory below `from` and never leaves it. `NOSYS`: it has to be walked.
pub(crate) fn open_beneath(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(from, path, flags, Mode::empty(), resolve)
}

/// A rename that never replaces. `INVAL`, `NOSYS`: not known here.
pub(crate) fn rename_new(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE)
}

/// Two names change places.
pub(crate) fn rename_exchange(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE)
}

/// Makes everything in the file system durable.
pub(crate) fn sync_fs(fd: impl AsFd) -> Result<(), Errno> {
    rustix::fs::syncfs(fd)
}

/// Copies bytes from one file to another, sharing blocks where the file system can. 0 at the end of `from`.
pub(crate) fn copy_range(from: impl AsFd, from_at: u64, to: impl AsFd, to_at: u64, len: usize) -> Result<usize, Errno> {
    let (mut a, mut b) = (from_at, to_at);
    rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), len)
}

/// Takes room for bytes to come, where the file system can.
pub(crate) fn reserve(fd: impl AsFd, at: u64, len: u64) -> Result<(), Errno> {
    match rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, at, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        r => r,
    }
}

/// `fallocate` with the flags of a user.
pub(crate) fn fallocate(fd: impl AsFd, mode: i32, at: u64, len: u64) -> Result<(), Errno> {
    let flags = u32::try_from(mode).ok().and_then(FallocateFlags::from_bits).ok_or(Errno::OPNOTSUPP)?;
    rustix::fs::fallocate(fd, flags, at, len)
}

/// These flags of a user move all bytes that follow.
pub(crate) fn moves_bytes(mode: i32) -> bool {
    mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0
}

/// True if another process has the file open for writing, as far as the kernel lets us know: it grants a read lease only
/// to a file without writers.
pub(crate) fn has_foreign_writer(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return false };
    // SAFETY: plain fcntl calls on a descriptor that we own. SIGURG, which is ignored by default, takes the place of SIGIO,
    // which would end the process if somebody opened the file in the moment for which the lease is held.
    unsafe {
        libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGURG);
        let refused = libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) == -1;
        let again = refused && std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        if !refused {
            libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
        }
        again
    }
}

/// True if nobody but us has the file open, mapped files included. `false` also where the kernel does not tell.
pub(crate) fn has_no_other_opener(fd: &OwnedFd) -> bool {
    // SAFETY: as above. A write lease is granted only to the one who has the only open file description.
    unsafe {
        libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGURG);
        let granted = libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0;
        if granted {
            libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
        }
        granted
    }
}

/// The next entries of a directory from a place on; none at the end.
pub(crate) fn read_dir(fd: &OwnedFd, at: u64) -> Result<Vec<Line>, Errno> {
    rustix::fs::seek(fd, SeekFrom::Start(at))?;
    let mut buf = [MaybeUninit::<u8>::uninit(); READ_BYTES];
    let mut dir = RawDir::new(fd.as_fd(), &mut buf);
    let mut lines = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry?;
        lines.push(Line {
            name: entry.file_name().to_bytes().to_vec(),
            disk: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
        if dir.is_buffer_empty() {
            break;
        }
    }
    Ok(lines)
}

/// An extended attribute of an object held by any descriptor.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &mut [u8]) -> Result<usize, Errno> {
    match rustix::fs::fgetxattr(fd, name, &mut *value) {
        // `O_PATH`.
        Err(Errno::BADF) => rustix::fs::getxattr(fd_path(fd), name, value),
        r => r,
    }
}

/// The names of all, each followed by a zero.
pub(crate) fn list_xattrs(fd: BorrowedFd<'_>, names: &mut [u8]) -> Result<usize, Errno> {
    rustix::fs::listxattr(fd_path(fd), names)
}

/// Sets one. `flags` as in `setxattr`.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: i32) -> Result<(), Errno> {
    let flags = u32::try_from(flags).ok().and_then(XattrFlags::from_bits).ok_or(Errno::INVAL)?;
    rustix::fs::setxattr(fd_path(fd), name, value, flags)
}

/// Removes one.
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::removexattr(fd_path(fd), name)
}
