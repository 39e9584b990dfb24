//! The `Vfs` vocabulary and fuser's, one into the other.

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use ice_host::vfs::{SetTime, Stat};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An error for the kernel.
pub(crate) fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

/// `st_mode`'s type.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// `d_type`; what is unknown is shown as a file, and the kernel learns the truth at the first lookup.
pub(crate) fn kind_of_dtype(dtype: u8) -> FileType {
    match dtype {
        libc::DT_DIR => FileType::Directory,
        libc::DT_LNK => FileType::Symlink,
        libc::DT_FIFO => FileType::NamedPipe,
        libc::DT_SOCK => FileType::Socket,
        libc::DT_CHR => FileType::CharDevice,
        libc::DT_BLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// A point in time, clamped to what `SystemTime` can hold.
pub(crate) fn to_system_time((secs, nanos): (i64, u32)) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(nanos.min(999_999_999)));
    let base = if secs >= 0 {
        UNIX_EPOCH.checked_add(Duration::from_secs(secs.unsigned_abs()))
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(secs.unsigned_abs()))
    };
    base.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time that fuser read from a request. fuser 0.18 subtracts the nanoseconds of a time before 1970 instead of adding them;
/// as it does so to both parts alike, the distance from 1970 still holds the two numbers that the kernel sent.
pub(crate) fn to_set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => match t.duration_since(UNIX_EPOCH) {
            Ok(after) => SetTime::At(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            Err(before) => {
                let d = before.duration();
                SetTime::At(0i64.checked_sub_unsigned(d.as_secs()).unwrap_or(i64::MIN), d.subsec_nanos())
            }
        },
    }
}

/// Attributes for the kernel, or `None` where the type is none that exists.
pub(crate) fn file_attr(st: &Stat) -> Option<FileAttr> {
    Some(FileAttr {
        ino: INodeNo(st.ino),
        size: st.size,
        blocks: st.blocks,
        atime: to_system_time(st.atime),
        mtime: to_system_time(st.mtime),
        ctime: to_system_time(st.ctime),
        crtime: UNIX_EPOCH,
        kind: kind_of_mode(st.mode)?,
        perm: (st.mode & 0o7777) as u16,
        nlink: st.nlink,
        uid: st.uid,
        gid: st.gid,
        // The low half of glibc's dev_t is the kernel's 32-bit encoding.
        rdev: st.rdev as u32,
        blksize: st.blksize,
        flags: 0,
    })
}

/// What stands for "no such name": inode 0, which the kernel caches as such.
pub(crate) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The mode after an unprivileged write, or `None` if it stays.
pub(crate) fn without_suid(mode: u32) -> Option<u32> {
    let mut m = mode & 0o7777;
    m &= !libc::S_ISUID;
    // Set-group-ID without group execution once meant mandatory locking and stays.
    if mode & libc::S_IXGRP != 0 {
        m &= !libc::S_ISGID;
    }
    (m != mode & 0o7777 && mode & libc::S_IFMT == libc::S_IFREG).then_some(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fractions() {
        let back = |t: (i64, u32)| {
            // What fuser makes of the kernel's pair.
            let t = if t.0 >= 0 {
                UNIX_EPOCH + Duration::new(t.0 as u64, t.1)
            } else {
                UNIX_EPOCH - Duration::new(t.0.unsigned_abs(), t.1)
            };
            to_set_time(TimeOrNow::SpecificTime(t))
        };
        for t in [(0, 0), (5, 1), (-1, 0), (-2, 800_000_000), (i64::from(i32::MIN), 999_999_999)] {
            assert_eq!(back(t), SetTime::At(t.0, t.1));
        }
        assert_eq!(to_system_time((-2, 800_000_000)), UNIX_EPOCH - Duration::from_millis(1200));
        // Out of range of any clock, but no panic.
        to_system_time((i64::MIN, 999_999_999));
        to_system_time((i64::MAX, u32::MAX));
    }

    #[test]
    fn suid_goes_as_the_kernel_would_do_it() {
        assert_eq!(without_suid(libc::S_IFREG | 0o4755), Some(0o755));
        assert_eq!(without_suid(libc::S_IFREG | 0o2755), Some(0o755));
        assert_eq!(without_suid(libc::S_IFREG | 0o2745), None);
        assert_eq!(without_suid(libc::S_IFREG | 0o0644), None);
        assert_eq!(without_suid(libc::S_IFDIR | 0o2775), None);
    }
}
