//! Between `stat` and the core's vocabulary.

use crate::vfs::{SetTime, Stat};
use ice_core::event::{IoError, Witness};
use ice_core::op::{Attrs, Kind};
use ice_core::time::UnixTime;
use rustix::fs::{Dev, FileType, Gid, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// What the operating system says of an object.
pub(crate) type Raw = rustix::fs::Stat;

/// Permission bits with set-user-ID, set-group-ID and sticky.
pub(crate) const MODE_BITS: u32 = 0o7777;
const SET_ID_BITS: u32 = 0o6000;

/// Seconds and nanoseconds of the last modification.
pub(crate) fn mtime(st: &Raw) -> (i64, u32) {
    (st.st_mtime as i64, st.st_mtime_nsec as u32)
}
/// Length in bytes.
pub(crate) fn size(st: &Raw) -> u64 {
    u64::try_from(st.st_size).unwrap_or(0)
}
/// Inode number in `backing`.
pub(crate) fn disk(st: &Raw) -> u64 {
    st.st_ino as u64
}
/// The type in `st_mode`.
pub(crate) fn file_type(st: &Raw) -> FileType {
    super::sys::type_of(super::sys::mode_of(st))
}

/// The witness of an object whose bytes are known now. Of anything but a regular file only identity, mode and owner count:
/// a directory's times change with every entry.
pub(crate) fn witness(st: &Raw) -> Witness {
    let mut h = blake3::Hasher::new();
    h.update(&disk(st).to_le_bytes());
    if file_type(st) == FileType::RegularFile {
        h.update(&size(st).to_le_bytes());
        for (sec, nsec) in [mtime(st), (st.st_ctime as i64, st.st_ctime_nsec as u32)] {
            h.update(&sec.to_le_bytes());
            h.update(&nsec.to_le_bytes());
        }
    } else {
        for n in [super::sys::mode_of(st), st.st_uid, st.st_gid] {
            h.update(&n.to_le_bytes());
        }
    }
    let mut b = [0; 8];
    b.copy_from_slice(&h.finalize().as_bytes()[..8]);
    // 0 means unknown.
    Witness { disk: disk(st), sum: u64::from_le_bytes(b).max(1) }
}

/// The witness of an object whose bytes may have changed unseen: it matches nothing.
pub(crate) fn unknown_bytes(st: &Raw) -> Witness {
    Witness { disk: disk(st), sum: 0 }
}

/// As adapters see it.
pub(crate) fn to_stat(st: &Raw, ino: u64) -> Stat {
    Stat {
        ino,
        mode: super::sys::mode_of(st),
        nlink: u32::try_from(st.st_nlink).unwrap_or(u32::MAX),
        uid: st.st_uid,
        gid: st.st_gid,
        rdev: st.st_rdev as u64,
        size: size(st),
        blocks: st.st_blocks as u64,
        blksize: st.st_blksize as u32,
        atime: (st.st_atime as i64, st.st_atime_nsec as u32),
        mtime: mtime(st),
        ctime: (st.st_ctime as i64, st.st_ctime_nsec as u32),
    }
}

/// The replicated attributes.
pub(crate) fn attrs(st: &Raw) -> Attrs {
    Attrs {
        mode: super::sys::mode_of(st) & MODE_BITS,
        uid: st.st_uid,
        gid: st.st_gid,
        atime: UnixTime { sec: st.st_atime as i64, nsec: st.st_atime_nsec as u32 },
        mtime: unix_mtime(st),
    }
}

/// The modification time in the core's words.
pub(crate) fn unix_mtime(st: &Raw) -> UnixTime {
    UnixTime { sec: st.st_mtime as i64, nsec: st.st_mtime_nsec as u32 }
}

/// What the object is. Reads a symbolic link's target from `dir`/`name`.
pub(crate) fn kind(dir: BorrowedFd<'_>, name: &[u8], st: &Raw) -> Result<Kind, Errno> {
    Ok(match file_type(st) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => {
            Kind::Symlink(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes().into_boxed_slice())
        }
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char(st.st_rdev as u64),
        FileType::BlockDevice => Kind::Block(st.st_rdev as u64),
        FileType::Unknown => return Err(Errno::NOTSUP),
    })
}

/// True if the object is of this kind, apart from a link's target.
pub(crate) fn is_kind(st: &Raw, kind: &Kind) -> bool {
    match (file_type(st), kind) {
        (FileType::RegularFile, Kind::File)
        | (FileType::Directory, Kind::Dir)
        | (FileType::Symlink, Kind::Symlink(_))
        | (FileType::Fifo, Kind::Fifo)
        | (FileType::Socket, Kind::Socket) => true,
        (FileType::CharacterDevice, Kind::Char(r)) | (FileType::BlockDevice, Kind::Block(r)) => st.st_rdev as u64 == *r,
        _ => false,
    }
}

/// `DT_...` of a type.
pub(crate) fn dirent_kind(t: FileType) -> u8 {
    match t {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    }
}

/// Why a disk action failed.
pub(crate) fn io_error(e: Errno) -> IoError {
    match e {
        Errno::NOSPC | Errno::DQUOT => IoError::NoSpace,
        Errno::IO | Errno::ROFS => IoError::Broken,
        Errno::ACCESS | Errno::PERM => IoError::Denied,
        // What should be there is not, or something stands where nothing should.
        Errno::NOENT
        | Errno::EXIST
        | Errno::NOTEMPTY
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::LOOP
        | Errno::STALE
        | Errno::XDEV => IoError::Changed,
        e => IoError::Os(e.raw_os_error()),
    }
}

/// An `io::Error` as errno; one without a number counts as a failed medium.
pub(crate) fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

fn timespec(t: (i64, u32)) -> Timespec {
    Timespec { tv_sec: t.0, tv_nsec: t.1.into() }
}

/// Times for `utimensat`; `None` leaves one alone.
pub(crate) fn timestamps(atime: Option<SetTime>, mtime: Option<SetTime>) -> Timestamps {
    let one = |t: Option<SetTime>| match t {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At(s, n)) => timespec((s, n)),
    };
    Timestamps { last_access: one(atime), last_modification: one(mtime) }
}

/// Both times of `attrs`.
pub(crate) fn times_of(attrs: &Attrs) -> Timestamps {
    Timestamps {
        last_access: timespec((attrs.atime.sec, attrs.atime.nsec)),
        last_modification: timespec((attrs.mtime.sec, attrs.mtime.nsec)),
    }
}

/// A user id for a call; `None` where the number means "leave alone".
pub(crate) fn uid(id: u32) -> Option<Uid> {
    (id != u32::MAX).then(|| Uid::from_raw(id))
}
/// A group id for a call; `None` where the number means "leave alone".
pub(crate) fn gid(id: u32) -> Option<Gid> {
    (id != u32::MAX).then(|| Gid::from_raw(id))
}

/// Sets owner, mode and times of an object held by an `O_PATH` descriptor. Without privilege an owner that cannot be set
/// is left, and set-ID bits with it: they would lend the wrong identity.
pub(crate) fn dress(fd: BorrowedFd<'_>, now: &Raw, attrs: &Attrs, privileged: bool, times: bool) -> Result<(), Errno> {
    let mut mode = attrs.mode & MODE_BITS;
    let chown = (now.st_uid, now.st_gid) != (attrs.uid, attrs.gid);
    if chown {
        match super::sys::chown(fd, uid(attrs.uid), gid(attrs.gid)) {
            Ok(()) => {}
            Err(Errno::PERM) if !privileged => mode &= !SET_ID_BITS,
            Err(e) => return Err(e),
        }
    }
    // Also after an equal mode: chown may have cleared bits.
    if file_type(now) != FileType::Symlink && (chown || super::sys::mode_of(now) & MODE_BITS != mode) {
        super::sys::chmod(fd, mode)?;
    }
    if times {
        super::sys::set_times(fd, &times_of(attrs))?;
    }
    Ok(())
}

/// A device number for `mknodat`.
pub(crate) fn dev(rdev: u64) -> Dev {
    rdev as Dev
}

/// True for the namespaces of extended attributes that are replicated.
pub(crate) fn xattr_travels(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|p| name.starts_with(p) && name.len() > p.len())
}
