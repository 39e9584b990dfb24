//! Which directory listings the kernel may keep.
//!
//! The kernel caches the entries it read through a handle that was opened with leave to do so, and drops them when a directory
//! changes through the mount. For changes from elsewhere this table decides at each `opendir` whether the cache may still be
//! used. A handle that was open when such a change came may still put old entries into the cache; while one exists, nobody
//! uses it.

use fuser::FopenFlags;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Directories remembered while they are not open. Above it, all are forgotten (and read again).
const REMEMBERED: usize = 1 << 18;

#[derive(Default)]
struct Dir {
    /// Handles open.
    opens: u32,
    /// The kernel's listing is good, or is being read.
    cached: bool,
    /// News came while handles were open.
    tainted: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct DirCache {
    dirs: Mutex<HashMap<u64, Dir>>,
}

impl DirCache {
    /// A handle is opened with these flags.
    pub(crate) fn open(&self, ino: u64) -> FopenFlags {
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if dirs.len() >= REMEMBERED && !dirs.contains_key(&ino) {
            dirs.retain(|_, d| d.opens > 0);
        }
        let dir = dirs.entry(ino).or_default();
        dir.opens += 1;
        if dir.tainted {
            // Without FOPEN_KEEP_CACHE the kernel drops what it has.
            return FopenFlags::empty();
        }
        if std::mem::replace(&mut dir.cached, true) {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_CACHE_DIR
        }
    }

    /// A handle is closed.
    pub(crate) fn close(&self, ino: u64) {
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = dirs.get_mut(&ino) {
            dir.opens = dir.opens.saturating_sub(1);
            if dir.opens == 0 && dir.tainted {
                dirs.remove(&ino);
            }
        }
    }

    /// The directory changed behind the kernel's back.
    pub(crate) fn changed(&self, ino: u64) {
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = dirs.get_mut(&ino) {
            if dir.opens > 0 {
                dir.tainted = true;
                dir.cached = false;
            } else {
                dirs.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_kept_until_the_directory_changes() {
        let (fresh, keep) = (FopenFlags::FOPEN_CACHE_DIR, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        let c = DirCache::default();
        assert_eq!(c.open(5), fresh);
        assert_eq!(c.open(5), keep, "beside the first");
        c.close(5);
        c.close(5);
        assert_eq!(c.open(5), keep);
        c.changed(5);
        assert_eq!(c.open(5), FopenFlags::empty(), "the other handle may still fill in old entries");
        c.close(5);
        c.close(5);
        assert_eq!(c.open(5), fresh);
        c.close(5);
        c.changed(5);
        assert_eq!(c.open(5), fresh);
    }
}
