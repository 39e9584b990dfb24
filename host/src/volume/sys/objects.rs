//! Calls on an object that is held by a descriptor of any kind, `O_PATH` included, and on nothing else: whatever stands under its
//! name by now.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The path of an open descriptor, which leads to the object itself and never further.
#[cfg(target_os = "linux")]
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> String {
    use std::fmt::Write as _;
    use std::os::fd::AsRawFd;
    let mut s = String::with_capacity(24);
    let _ = write!(s, "/proc/self/fd/{}", fd.as_raw_fd());
    s
}

/// Opens the object once more.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    #[cfg(target_os = "linux")]
    return rustix::fs::open(fd_path(fd), flags, Mode::empty());
    #[cfg(not(target_os = "linux"))]
    rustix::fs::openat(fd, c"", flags | EMPTY_PATH, Mode::empty())
}

/// `O_EMPTY_PATH`.
#[cfg(target_os = "freebsd")]
const EMPTY_PATH: OFlags = OFlags::from_bits_retain(libc::O_EMPTY_PATH as u32);
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
const EMPTY_PATH: OFlags = OFlags::empty();

/// Sets owner and group.
pub(crate) fn chown(fd: impl AsFd, uid: Option<Uid>, gid: Option<Gid>) -> Result<(), Errno> {
    match rustix::fs::fchown(&fd, uid, gid) {
        // `O_PATH`.
        Err(Errno::BADF) => rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        r => r,
    }
}

/// Sets the permission bits.
pub(crate) fn chmod(fd: impl AsFd, bits: u32) -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    return match rustix::fs::fchmod(&fd, super::mode(bits)) {
        // `O_PATH`.
        Err(Errno::BADF) => rustix::fs::chmod(fd_path(fd.as_fd()), super::mode(bits)),
        r => r,
    };
    #[cfg(not(target_os = "linux"))]
    rustix::fs::chmodat(fd, c"", super::mode(bits), AtFlags::EMPTY_PATH)
}

/// Sets the times.
pub(crate) fn set_times(fd: impl AsFd, times: &Timestamps) -> Result<(), Errno> {
    match rustix::fs::futimens(&fd, times) {
        // `O_PATH`.
        Err(Errno::BADF) => {}
        r => return r,
    }
    match rustix::fs::utimensat(&fd, c"", times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8 the flag is not known.
        #[cfg(target_os = "linux")]
        Err(Errno::INVAL | Errno::NOENT) => rustix::fs::utimensat(CWD, fd_path(fd.as_fd()), times, AtFlags::empty()),
        r => r,
    }
}

/// Gives the object a further name.
pub(crate) fn link(fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    return rustix::fs::linkat(CWD, fd_path(fd.as_fd()), dir, name, AtFlags::SYMLINK_FOLLOW);
    #[cfg(not(target_os = "linux"))]
    rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH)
}

#[cfg(not(target_os = "linux"))]
const _: fn() -> BorrowedFd<'static> = || CWD;
