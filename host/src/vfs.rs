//! What a file-system adapter (FUSE, HTTP) may ask of a volume. Blocking calls, from any thread.
//!
//! Inode numbers are 64-bit, stable over restarts and the same on every node. Errors are errno values.

use ice_core::op::ContentDigest;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The result of a file-system call.
pub type Result<T> = std::result::Result<T, Errno>;

/// The root directory's inode number, as FUSE wants it.
pub const ROOT_INO: u64 = 1;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process (thread) id, 0 if unknown.
    pub pid: u32,
}

/// What `stat` shows, taken from the file in `backing` except for `ino`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Inode number.
    pub ino: u64,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O.
    pub blksize: u32,
    /// (seconds, nanoseconds) of the last access.
    pub atime: (i64, u32),
    /// Of the last modification.
    pub mtime: (i64, u32),
    /// Of the last change of attributes.
    pub ctime: (i64, u32),
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// (seconds, nanoseconds) since 1970.
    At(i64, u32),
}

/// Attributes to be set; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetStat {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Names it in later calls.
    pub fh: u64,
    /// The file in `backing`, for kernel passthrough.
    pub file: Arc<OwnedFd>,
    /// Every open file of this inode number shares this backing file.
    pub shared: bool,
}

/// One line of a directory listing, with full attributes if they were asked for.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Pass this to `readdir` to go on after this entry. Stable while the directory is open.
    pub cookie: u64,
    /// Inode number.
    pub ino: u64,
    /// `DT_...` as in `dirent.h`.
    pub kind: u8,
    /// Name.
    pub name: OsString,
    /// With `plus`.
    pub stat: Option<Stat>,
}

/// `statfs`.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStat {
    /// Unit of the block counts, in bytes.
    pub bsize: u32,
    /// Total.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Free for users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name.
    pub namelen: u32,
}

/// What an adapter's cache must forget, because a remote or direct change was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Attributes and data of an inode.
    Inode(u64),
    /// A name in a directory (also if it did not exist). `child` is the inode that stood there, if one did.
    Entry {
        /// Directory.
        parent: u64,
        /// Name.
        name: OsString,
        /// What stood there.
        child: Option<u64>,
    },
}

/// A volume as a file system.
///
/// Unless said otherwise a call follows the Linux system call of its name. The caller's permissions are checked by the
/// kernel (`default_permissions`); ownership of new objects follows `caller` and a set-group-ID parent.
pub trait Vfs: Send + Sync + 'static {
    /// Finds `name` in a directory. Counts one reference for [`Vfs::forget`].
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Stat>;
    /// Drops `n` references.
    fn forget(&self, ino: u64, n: u64);
    /// `fstat` if `fh` is given.
    fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Stat>;
    /// Sets attributes.
    fn setattr(&self, caller: Caller, ino: u64, fh: Option<u64>, set: SetStat) -> Result<Stat>;
    /// Where a file stands: the way from the root to one of its names, its components behind one another with `/` between them;
    /// empty for the root itself. `NOSYS`: files have no paths here.
    fn path(&self, ino: u64) -> Result<Vec<u8>> {
        let _ = ino;
        Err(Errno::NOSYS)
    }
    /// A symbolic link's target.
    fn readlink(&self, ino: u64) -> Result<OsString>;
    /// Creates a file, device, pipe or socket. Counts a reference.
    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Stat>;
    /// Creates a directory. Counts a reference.
    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Stat>;
    /// Creates a symbolic link. Counts a reference.
    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Stat>;
    /// Creates a hard link. Counts a reference.
    fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Stat>;
    /// Removes a file's name.
    fn unlink(&self, parent: u64, name: &OsStr) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()>;
    /// `renameat2` with `RENAME_NOREPLACE` and `RENAME_EXCHANGE` in `flags`.
    fn rename(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr, flags: u32) -> Result<()>;
    /// Opens a file with `O_...` flags. `EAGAIN`: its first bytes are on their way from another node, so that it is empty here
    /// only; may be asked again. (Not with `O_TRUNC`.)
    fn open(&self, caller: Caller, ino: u64, flags: i32) -> Result<Opened>;
    /// The adapter's kernel does not map the backing file of this handle: stores into maps come as [`Vfs::write`], before
    /// [`Vfs::fsync`] and [`Vfs::release`] at the latest, so that nobody has to look for changes that did not.
    fn stores_are_writes(&self, fh: u64) {
        let _ = fh;
    }
    /// Creates and opens a file. Counts a reference. `mode` has the umask applied.
    fn create(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(Stat, Opened)>;
    /// Creates an unnamed file in a directory and opens it (`O_TMPFILE`). Counts a reference.
    fn tmpfile(&self, caller: Caller, parent: u64, mode: u32, flags: i32) -> Result<(Stat, Opened)>;
    /// Reads into `buf`; short only at the end of the file.
    fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Writes all of `data`; with `O_APPEND` at the end, whatever `offset`.
    fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize>;
    /// A descriptor is closed: changes become an operation; waits as `close_ack` asks.
    fn flush(&self, fh: u64) -> Result<()>;
    /// Durable as `ack` asks.
    fn fsync(&self, fh: u64, data_only: bool) -> Result<()>;
    /// The last descriptor is closed.
    fn release(&self, fh: u64);
    /// Opens a directory.
    fn opendir(&self, ino: u64) -> Result<u64>;
    /// Lists entries after `cookie` (0: from the start, `.` and `..` included) until `sink` returns `false`. With `plus`,
    /// attributes are given and each entry but `.` and `..` that `sink` took counts one reference.
    fn readdir(&self, fh: u64, cookie: u64, plus: bool, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()>;
    /// Durable as `ack` asks.
    fn fsyncdir(&self, fh: u64) -> Result<()>;
    /// Closes a directory.
    fn releasedir(&self, fh: u64);
    /// Space.
    fn statfs(&self) -> Result<FsStat>;
    /// Reads an extended attribute.
    fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>>;
    /// Names of the extended attributes, each ended by NUL.
    fn listxattr(&self, ino: u64) -> Result<Vec<u8>>;
    /// Sets one; `flags` as in `setxattr(2)`.
    fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()>;
    /// Removes one.
    fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()>;
    /// `fallocate` with `mode`.
    fn fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()>;
    /// `SEEK_DATA` and `SEEK_HOLE`.
    fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64>;
    /// `copy_file_range`.
    fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<usize>;
    /// Gives the unnamed file behind `fh` (of [`Vfs::tmpfile`], written to its end) a name, at once and with all its bytes:
    /// as a new file, or as the new bytes of the regular file of that name, which stays the same file to others (other names,
    /// mode, owner, extended attributes). Counts a reference. `digest` is that of its bytes. `BUSY`: the file there is open
    /// for writing; `NOSYS`: there is no such call, use `link` and `rename`.
    fn install(&self, fh: u64, parent: u64, name: &OsStr, digest: ContentDigest) -> Result<Stat> {
        let _ = (fh, parent, name, digest);
        Err(Errno::NOSYS)
    }
    /// The digest of a file's bytes, if it is known without reading them and they stand on disk unchanged.
    fn content(&self, ino: u64) -> Option<ContentDigest> {
        let _ = ino;
        None
    }
    /// Where to send news for the adapter's cache. Called from threads that hold no lock of the volume.
    fn on_stale(&self, sink: Box<dyn Fn(&[Stale]) + Send + Sync>);
}
