//! From a directory's inode to a descriptor of it, below `backing` and never through a symbolic link.

use super::meta;
use ice_core::ids::{InodeId, Name};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Descriptors of directories that are kept open.
const CACHED_MAX: usize = 256;
/// Bytes of one path handed to the kernel (`PATH_MAX` less some room).
const PATH_BYTES_MAX: usize = 4000;

/// Opens directories by their path in the tree. Descriptors are `O_PATH`: they name the directory itself, so a rename of
/// it or of what is above does not make them wrong.
pub(crate) struct Dirs {
    root: Arc<OwnedFd>,
    dev: u64,
    openat2: AtomicBool,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    held: HashMap<InodeId, Held>,
    clock: u64,
}

struct Held {
    fd: Arc<OwnedFd>,
    used: u64,
}

impl Dirs {
    /// Opens `backing`.
    pub(crate) fn open(backing: &Path) -> Result<Dirs, Errno> {
        let root = rustix::fs::open(backing, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let dev = rustix::fs::fstat(&root)?.st_dev as u64;
        Ok(Dirs { root: Arc::new(root), dev, openat2: AtomicBool::new(true), cache: Mutex::default() })
    }

    /// `backing` itself.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The device that holds `backing`. Objects on another one (something is mounted there) are not part of the volume.
    pub(crate) fn dev(&self) -> u64 {
        self.dev
    }

    /// The directory if it is held already.
    pub(crate) fn cached(&self, dir: InodeId) -> Option<Arc<OwnedFd>> {
        if dir == InodeId::ROOT {
            return Some(Arc::clone(&self.root));
        }
        let mut cache = self.cache();
        cache.clock += 1;
        let now = cache.clock;
        cache.held.get_mut(&dir).map(|h| {
            h.used = now;
            Arc::clone(&h.fd)
        })
    }

    /// Opens the directory at `path` below `from` (`None`: the root) and keeps it. `disk` is its expected inode number in
    /// `backing` (0: any): another one is `ESTALE`.
    pub(crate) fn resolve(
        &self,
        dir: InodeId,
        from: Option<BorrowedFd<'_>>,
        path: &[Name],
        disk: u64,
    ) -> Result<Arc<OwnedFd>, Errno> {
        let fd = self.walk(from.unwrap_or(self.root.as_fd()), path)?;
        if disk != 0 && meta::disk(&rustix::fs::fstat(&fd)?) != disk {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(fd);
        self.keep(dir, Arc::clone(&fd));
        Ok(fd)
    }

    /// Keeps a descriptor of a directory.
    pub(crate) fn keep(&self, dir: InodeId, fd: Arc<OwnedFd>) {
        let mut cache = self.cache();
        cache.clock += 1;
        let used = cache.clock;
        cache.held.insert(dir, Held { fd, used });
        if cache.held.len() > CACHED_MAX {
            // Drops the older half at once, so that the cost of looking for it is spread over many calls.
            let mut ages: Vec<u64> = cache.held.values().map(|h| h.used).collect();
            let middle = ages.len() / 2;
            let cut = *ages.select_nth_unstable(middle).1;
            cache.held.retain(|_, h| h.used >= cut);
        }
    }

    /// The directory is gone, or another one stands in its place.
    pub(crate) fn forget(&self, dir: InodeId) {
        self.cache().held.remove(&dir);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walk(&self, base: BorrowedFd<'_>, path: &[Name]) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = path;
        while !rest.is_empty() {
            let from = at.as_ref().map_or(base, AsFd::as_fd);
            let (next, used) = if self.openat2.load(Ordering::Relaxed) {
                match long_step(from, rest) {
                    Err(Errno::NOSYS) => {
                        self.openat2.store(false, Ordering::Relaxed);
                        continue;
                    }
                    // A rename ran into the resolution.
                    Err(Errno::AGAIN) => continue,
                    r => r?,
                }
            } else {
                (short_step(from, &rest[0], self.dev)?, 1)
            };
            at = Some(next);
            rest = &rest[used..];
        }
        match at {
            Some(fd) => Ok(fd),
            None => rustix::io::fcntl_dupfd_cloexec(base, 0),
        }
    }
}

/// As many components as fit into one path. Returns how many that were.
fn long_step(from: BorrowedFd<'_>, path: &[Name]) -> Result<(OwnedFd, usize), Errno> {
    let mut joined: Vec<u8> = Vec::with_capacity(128);
    let mut used = 0;
    for name in path {
        if used > 0 && joined.len() + 1 + name.as_bytes().len() > PATH_BYTES_MAX {
            break;
        }
        if used > 0 {
            joined.push(b'/');
        }
        joined.extend_from_slice(name.as_bytes());
        used += 1;
    }
    Ok((super::sys::open_beneath(from, &joined)?, used))
}

/// One component, for kernels before 5.6. A [`Name`] is never `..`, and `O_NOFOLLOW` refuses links.
fn short_step(from: BorrowedFd<'_>, name: &Name, dev: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(from, name.as_bytes(), flags, Mode::empty())?;
    if rustix::fs::fstat(&fd)?.st_dev as u64 != dev {
        return Err(Errno::XDEV);
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<Name> {
        path.split('/').filter_map(|p| Name::new(p.as_bytes())).collect()
    }

    #[test]
    fn both_ways_refuse_links_and_reach_deep_directories() {
        let dir = tempfile::tempdir().unwrap();
        let deep = vec!["d".repeat(200); 30].join("/");
        // Deeper than one path may be long: made step by step.
        let mut at = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        for part in deep.split('/') {
            rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)).unwrap();
            at = rustix::fs::openat(&at, part, OFlags::PATH, Mode::empty()).unwrap();
        }
        let last = meta::disk(&rustix::fs::fstat(&at).unwrap());
        std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("in/up")).unwrap();

        for modern in [true, false] {
            let dirs = Dirs::open(dir.path()).unwrap();
            dirs.openat2.store(modern, Ordering::Relaxed);
            let fd = dirs.resolve(InodeId(7), None, &names(&deep), last).unwrap();
            assert_eq!(meta::disk(&rustix::fs::fstat(&fd).unwrap()), last);
            assert!(dirs.cached(InodeId(7)).is_some());
            assert_eq!(dirs.resolve(InodeId(8), None, &names("in"), last).unwrap_err(), Errno::STALE);
            for bad in ["out", "out/etc", "in/up", "in/up/in"] {
                assert!(dirs.resolve(InodeId(9), None, &names(bad), 0).is_err(), "{bad} must not be followed");
            }
        }
    }

    #[test]
    fn the_number_of_held_descriptors_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let dirs = Dirs::open(dir.path()).unwrap();
        for i in 1..2000u128 {
            dirs.resolve(InodeId(i), None, &names("d"), 0).unwrap();
            assert!(dirs.cache().held.len() <= CACHED_MAX);
            assert!(dirs.cached(InodeId(i)).is_some(), "the newest stays");
        }
    }
}
