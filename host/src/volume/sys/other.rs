//! Other systems.

use super::Line;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Entries of one read from a directory. Each read begins anew, so there are many.
const READ_ENTRIES: usize = 8192;
/// Bytes copied at once.
const COPY_BYTES: usize = 256 * 1024;

/// No such extended attribute: there are none.
#[cfg(target_os = "linux")]
pub(crate) const NO_ATTR: Errno = Errno::NODATA;
/// No such extended attribute: there are none.
#[cfg(not(target_os = "linux"))]
pub(crate) const NO_ATTR: Errno = Errno::NOATTR;
/// There are no files without a name.
pub(crate) const TMPFILE: Option<OFlags> = None;

/// It has to be walked.
pub(crate) fn open_beneath(_: BorrowedFd<'_>, _: &[u8]) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// Not known here.
pub(crate) fn rename_new(_: (BorrowedFd<'_>, &[u8]), _: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

/// By way of a third name: others may see one of the two missing for a moment.
pub(crate) fn rename_exchange(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    // Both must be there: a name that is missing must not be met half-way.
    rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut random = [0; 8];
    crate::identity::random(&mut random).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let aside = format!(".exchanging-{:016x}", u64::from_le_bytes(random)).into_bytes();
    rustix::fs::renameat(from.0, from.1, from.0, &*aside)?;
    let back = |e| {
        rustix::fs::renameat(from.0, &*aside, from.0, from.1)?;
        Err(e)
    };
    if let Err(e) = rustix::fs::renameat(to.0, to.1, from.0, from.1) {
        return back(e);
    }
    if let Err(e) = rustix::fs::renameat(from.0, &*aside, to.0, to.1) {
        rustix::fs::renameat(from.0, from.1, to.0, to.1)?;
        return back(e);
    }
    Ok(())
}

/// Makes everything durable.
pub(crate) fn sync_fs(_: impl AsFd) -> Result<(), Errno> {
    rustix::fs::sync();
    Ok(())
}

/// Copies bytes from one file to another. 0 at the end of `from`.
pub(crate) fn copy_range(from: impl AsFd, from_at: u64, to: impl AsFd, to_at: u64, len: usize) -> Result<usize, Errno> {
    let mut buf = vec![0; len.min(COPY_BYTES)];
    let read = rustix::io::pread(from, &mut buf, from_at)?;
    // Fewer may be written, as the system call may copy fewer.
    rustix::io::retry_on_intr(|| rustix::io::pwrite(&to, &buf[..read], to_at))
}

/// Room is taken when bytes come.
pub(crate) fn reserve(_: impl AsFd, _: u64, _: u64) -> Result<(), Errno> {
    Ok(())
}

/// Not for users here.
pub(crate) fn fallocate(_: impl AsFd, _: i32, _: u64, _: u64) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// There are no such calls.
pub(crate) fn moves_bytes(_: i32) -> bool {
    false
}

/// Nobody tells.
pub(crate) fn has_foreign_writer(_: BorrowedFd<'_>, _: &[u8]) -> bool {
    false
}

/// Nobody tells.
pub(crate) fn has_no_other_opener(_: &OwnedFd) -> bool {
    false
}

/// The next entries of a directory from a place on, which is a number of entries; none at the end.
pub(crate) fn read_dir(fd: &OwnedFd, at: u64) -> Result<Vec<Line>, Errno> {
    // A descriptor with a position of its own.
    let again = rustix::fs::openat(fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut lines = Vec::new();
    for (n, entry) in (1u64..).zip(rustix::fs::Dir::new(again)?).skip(usize::try_from(at).unwrap_or(usize::MAX)) {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        lines.push(Line { name, disk: entry.ino(), kind: entry.file_type(), next: n });
        if lines.len() >= READ_ENTRIES {
            break;
        }
    }
    Ok(lines)
}

/// There are none.
pub(crate) fn get_xattr(_: BorrowedFd<'_>, _: &[u8], _: &mut [u8]) -> Result<usize, Errno> {
    Err(NO_ATTR)
}

/// There are none.
pub(crate) fn list_xattrs(_: BorrowedFd<'_>, _: &mut [u8]) -> Result<usize, Errno> {
    Ok(0)
}

/// Not here.
pub(crate) fn set_xattr(_: BorrowedFd<'_>, _: &[u8], _: &[u8], _: i32) -> Result<(), Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Not here.
pub(crate) fn remove_xattr(_: BorrowedFd<'_>, _: &[u8]) -> Result<(), Errno> {
    Err(NO_ATTR)
}
