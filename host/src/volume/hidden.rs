//! The working directory inside `backing`: staging area, limbo, what was found torn, and the marker that ties the
//! directory to one replica. It is not part of the volume.

use super::meta;
use ice_core::ids::{EntryId, InodeId, ReplicaId};
use ice_core::time::{Hlc, Stamp};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Its name in the root of `backing`.
pub const HIDDEN_NAME: &str = ".icecluster";
const MARKER: &str = "replica";
const MARKER_BYTES_MAX: u64 = 256;

/// Why a directory cannot serve as `backing`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("{what}: {errno}")]
    Os {
        /// What was tried.
        what: String,
        /// The answer.
        errno: Errno,
    },
    /// The marker is missing: probably something is not mounted.
    #[error(
        "backing does not carry the marker {HIDDEN_NAME}/{MARKER} of replica {replica:x}: is the right file system mounted?"
    )]
    NoMarker {
        /// Who looked.
        replica: u64,
    },
    /// The directory belongs to another replica.
    #[error("backing belongs to replica {found}, not to {replica:x}: two nodes cannot share a directory")]
    Foreign {
        /// What the marker says.
        found: String,
        /// Who looked.
        replica: u64,
    },
}

fn os(what: &str) -> impl Fn(Errno) -> OpenError + '_ {
    move |errno| OpenError::Os { what: what.to_owned(), errno }
}

/// Descriptors of the working directory.
pub(crate) struct Hidden {
    top: OwnedFd,
    tmp: OwnedFd,
    limbo: OwnedFd,
    torn: OwnedFd,
    counter: AtomicU64,
    marker: String,
}

impl Hidden {
    /// Checks the marker, which [`crate::identity::DataDir::claim_backing`] has set, and makes what is missing.
    pub(crate) fn open(root: BorrowedFd<'_>, replica: ReplicaId) -> Result<Hidden, OpenError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = match rustix::fs::openat(root, HIDDEN_NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Err(OpenError::NoMarker { replica: replica.0 }),
            top => top.map_err(os("opening the working directory in backing"))?,
        };
        let marker = format!("{:016x}", replica.0);
        match read_marker(top.as_fd())? {
            Some(found) if found == marker => {}
            Some(found) => return Err(OpenError::Foreign { found, replica: replica.0 }),
            None => return Err(OpenError::NoMarker { replica: replica.0 }),
        }
        let (tmp, limbo) = (ensure(top.as_fd(), "tmp")?, ensure(top.as_fd(), "limbo")?);
        let torn = ensure(top.as_fd(), "torn")?;
        let hidden = Hidden { top, tmp, limbo, torn, counter: AtomicU64::new(0), marker };
        hidden.clean()?;
        Ok(hidden)
    }

    /// Where files are made before they get their name.
    pub(crate) fn tmp(&self) -> BorrowedFd<'_> {
        self.tmp.as_fd()
    }
    /// Where entries are set aside.
    pub(crate) fn limbo(&self) -> BorrowedFd<'_> {
        self.limbo.as_fd()
    }
    /// Where bytes are kept that a machine crash tore.
    pub(crate) fn torn(&self) -> BorrowedFd<'_> {
        self.torn.as_fd()
    }

    /// A name in `tmp` that nobody uses.
    pub(crate) fn fresh_name(&self) -> String {
        format!("n-{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// True while `backing` still carries our marker: before that is so, nothing missing counts as deleted.
    pub(crate) fn stands(&self, root: BorrowedFd<'_>) -> bool {
        let here = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).ok();
        let named = rustix::fs::statat(root, HIDDEN_NAME, AtFlags::SYMLINK_NOFOLLOW).map(|s| (s.st_dev, s.st_ino)).ok();
        named.is_some()
            && named == here(self.top.as_fd())
            && read_marker(self.top.as_fd()).is_ok_and(|m| m.as_deref() == Some(self.marker.as_str()))
    }

    /// Removes half-made objects of a run that ended early. Staged content stays: the core says what it wants of it.
    fn clean(&self) -> Result<(), OpenError> {
        for name in list(self.tmp.as_fd()).map_err(os("reading the staging area"))? {
            if parse_staged(&name).is_none() {
                remove_tree(self.tmp.as_fd(), &name).map_err(os("cleaning the staging area"))?;
            }
        }
        Ok(())
    }
}

/// Name of an entry that is set aside.
pub(crate) fn limbo_name(entry: EntryId) -> String {
    format!("{:032x}", entry.0)
}

/// Name of a staged version: whole (`s-`) or still arriving (`p-`).
pub(crate) fn staged_name(whole: bool, inode: InodeId, version: Stamp) -> String {
    let tag = if whole { 's' } else { 'p' };
    format!("{tag}-{:032x}-{:016x}-{:016x}", inode.0, version.time.0, version.replica.0)
}

/// The reverse of [`staged_name`].
pub(crate) fn parse_staged(name: &[u8]) -> Option<(bool, InodeId, Stamp)> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts = name.split('-');
    let whole = match parts.next()? {
        "s" => true,
        "p" => false,
        _ => return None,
    };
    let inode = InodeId(u128::from_str_radix(parts.next()?, 16).ok()?);
    let time = Hlc(u64::from_str_radix(parts.next()?, 16).ok()?);
    let replica = ReplicaId(u64::from_str_radix(parts.next()?, 16).ok()?);
    let version = Stamp { time, replica };
    // Only the one spelling that we write.
    (staged_name(whole, inode, version) == name).then_some((whole, inode, version))
}

/// All names in a directory of ours. They are bounded by what the core has in flight.
pub(crate) fn list(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let fd = rustix::fs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes an object of ours with all that is in it.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        r => return r,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for child in list(inner.as_fd())? {
        remove_tree(inner.as_fd(), &child)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn ensure(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, OpenError> {
    let what = format!("making {name} in backing");
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(os(&what)(e)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).map_err(os(&what))
}

fn read_marker(top: BorrowedFd<'_>) -> Result<Option<String>, OpenError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let what = "reading the marker in backing";
    let fd = match rustix::fs::openat(top, MARKER, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(os(what)(e)),
    };
    let mut text = Vec::new();
    std::fs::File::from(fd).take(MARKER_BYTES_MAX).read_to_end(&mut text).map_err(|e| os(what)(meta::errno(&e)))?;
    Ok(Some(String::from_utf8_lossy(&text).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(dir: &tempfile::TempDir, replica: u64) -> OwnedFd {
        let work = dir.path().join(HIDDEN_NAME);
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join(MARKER), format!("{replica:016x}\n")).unwrap();
        rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap()
    }

    #[test]
    fn the_marker_ties_a_directory_to_one_replica() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir, 1);
        let hidden = Hidden::open(root.as_fd(), ReplicaId(1)).unwrap();
        assert!(hidden.stands(root.as_fd()));
        assert!(matches!(Hidden::open(root.as_fd(), ReplicaId(2)).err(), Some(OpenError::Foreign { .. })));
        std::fs::remove_file(dir.path().join(HIDDEN_NAME).join(MARKER)).unwrap();
        assert!(!hidden.stands(root.as_fd()));
        assert!(matches!(Hidden::open(root.as_fd(), ReplicaId(1)).err(), Some(OpenError::NoMarker { .. })));
        std::fs::remove_dir_all(dir.path().join(HIDDEN_NAME)).unwrap();
        assert!(!hidden.stands(root.as_fd()));
        assert!(matches!(Hidden::open(root.as_fd(), ReplicaId(1)).err(), Some(OpenError::NoMarker { .. })));
    }

    #[test]
    fn leftovers_go_and_staged_content_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir, 1);
        Hidden::open(root.as_fd(), ReplicaId(1)).unwrap();
        let tmp = dir.path().join(HIDDEN_NAME).join("tmp");
        let version = Stamp { time: Hlc(5), replica: ReplicaId(6) };
        let whole = staged_name(true, InodeId(9), version);
        let part = staged_name(false, InodeId(9), version);
        std::fs::write(tmp.join(&whole), "x").unwrap();
        std::fs::write(tmp.join(&part), "x").unwrap();
        std::fs::write(tmp.join("n-0"), "half").unwrap();
        std::fs::create_dir_all(tmp.join("n-1/deep")).unwrap();
        std::fs::write(tmp.join("s-zz"), "not ours").unwrap();
        Hidden::open(root.as_fd(), ReplicaId(1)).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [part.as_str(), whole.as_str()]);
        assert_eq!(parse_staged(whole.as_bytes()), Some((true, InodeId(9), version)));
        assert_eq!(parse_staged(b"s-9-5-6"), None, "only our spelling");
    }
}
