//! Files that change again and again: what a version replaced is kept for a while and becomes the next version.
//!
//! Each version is received into a file of its own and put in place by a rename. To copy all that did not change
//! into that file would make every change of a large file as expensive as the file is long. So of a file that got its bytes
//! here from elsewhere the block hashes are remembered, and the file it replaced is kept aside. When the next version comes, only
//! those blocks are written into that one that differ from what it has: what changed in the last two versions.
//!
//! Bytes are only changed that nobody can see: the file must have no other name and nobody may have it open; and the rename
//! that took its name away must be durable, for after a power failure it could have that name again.

use super::Shared;
use super::meta::{self, Raw};
use crate::digest::Blocks;
use ice_core::event::Witness;
use ice_core::ids::InodeId;
use ice_core::time::Stamp;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Files that are remembered.
const FILES_MAX: usize = 64;
/// Versions that are staged and may be put in place soon.
const STAGED_MAX: usize = 64;
/// Smaller files are cheap to write whole.
const BYTES_MIN: u64 = 1024 * 1024;
/// Larger ones would take too much room twice.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// One that was not replaced for so long is not kept any more.
const KEEP: Duration = Duration::from_secs(10);

/// A file that got its bytes from elsewhere.
struct Hot {
    /// What stands in `backing`: its witness and the hashes of its blocks.
    here: (Witness, Blocks),
    /// What stood there before: its name in the staging area, and its hashes.
    spare: Option<(String, Blocks)>,
    last: Instant,
}

#[derive(Default)]
struct Inner {
    hot: HashMap<InodeId, Hot>,
    staged: HashMap<(InodeId, Stamp), (Blocks, Instant)>,
}

/// All of them. Lost with the process; what is left in the staging area is removed by the next start.
#[derive(Default)]
pub(crate) struct Spares {
    inner: Mutex<Inner>,
}

impl Spares {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A version was received whole, with these blocks.
    pub(crate) fn staged(&self, inode: InodeId, version: Stamp, blocks: Blocks) {
        if blocks.len() < BYTES_MIN || blocks.len() > BYTES_MAX {
            return;
        }
        let mut inner = self.inner();
        if inner.staged.len() >= STAGED_MAX {
            let oldest = inner.staged.iter().min_by_key(|(_, (_, at))| *at).map(|(k, _)| *k);
            oldest.and_then(|k| inner.staged.remove(&k));
        }
        inner.staged.insert((inode, version), (blocks, Instant::now()));
    }

    /// The block hashes of the file that stands in `backing`, if it is still as it was put there.
    pub(crate) fn here(&self, inode: InodeId, st: &Raw) -> Option<Blocks> {
        let inner = self.inner();
        let hot = inner.hot.get(&inode)?;
        (hot.here.0 == meta::witness(st)).then(|| hot.here.1.clone())
    }
}

impl Shared {
    /// To be called before a version takes the place of `dir`/`name`, which looks like `old`: keeps that file. The name under
    /// which it is kept.
    pub(crate) fn keep_spare(&self, inode: InodeId, dir: &OwnedFd, name: &[u8], old: &Raw) -> Option<String> {
        if !(BYTES_MIN..=BYTES_MAX).contains(&meta::size(old)) || self.spares.here(inode, old).is_none() {
            return None;
        }
        let kept = self.hidden.fresh_name();
        // Refused: then it is not kept.
        rustix::fs::linkat(dir, name, self.hidden.tmp(), &*kept, AtFlags::empty()).ok()?;
        Some(kept)
    }

    /// To be called after that: `st` is what stands there now, `version` which one it is if it was staged.
    pub(crate) fn replaced(&self, inode: InodeId, version: Option<Stamp>, st: &Raw, kept: Option<String>) {
        let mut drop_names = Vec::new();
        {
            let mut inner = self.spares.inner();
            let blocks = version.and_then(|v| inner.staged.remove(&(inode, v))).map(|(blocks, _)| blocks);
            let before = inner.hot.remove(&inode);
            let old = before.map(|hot| {
                drop_names.extend(hot.spare.map(|(name, _)| name));
                hot.here.1
            });
            match blocks {
                Some(blocks) => {
                    let spare = kept.zip(old);
                    if inner.hot.len() >= FILES_MAX {
                        let oldest = inner.hot.iter().min_by_key(|(_, hot)| hot.last).map(|(inode, _)| *inode);
                        let gone = oldest.and_then(|inode| inner.hot.remove(&inode));
                        drop_names.extend(gone.and_then(|hot| hot.spare).map(|(name, _)| name));
                    }
                    let here = (meta::witness(st), blocks);
                    inner.hot.insert(inode, Hot { here, spare, last: Instant::now() });
                }
                None => drop_names.extend(kept),
            }
        }
        self.drop_spares(drop_names);
    }

    /// Takes the spare of a file, to be written into: locked, and under the name `part` in the staging area.
    pub(crate) fn take_spare(&self, inode: InodeId, part: &str) -> Option<(File, Blocks)> {
        let (name, blocks) = self.spares.inner().hot.get_mut(&inode)?.spare.take()?;
        let taken = self.try_spare(&name, part);
        match taken {
            Ok(Some(file)) => return Some((file, blocks)),
            Ok(None) => {}
            Err(e) => tracing::debug!(%inode, error = %e, "a replaced file cannot be used again"),
        }
        self.drop_spares(vec![name]);
        None
    }

    fn try_spare(&self, name: &str, part: &str) -> std::io::Result<Option<File>> {
        let tmp = self.hidden.tmp();
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(tmp, name, flags, Mode::empty())?;
        let alone = rustix::fs::fstat(&fd)?.st_nlink == 1 && super::sys::has_no_other_opener(&fd);
        // Attributes of its former life would come back.
        if !alone || !self.read_xattrs(fd.as_fd())?.is_empty() {
            return Ok(None);
        }
        // The rename that took its name away came out of this directory.
        rustix::fs::fsync(tmp)?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        rustix::fs::renameat(tmp, name, tmp, part)?;
        Ok(Some(File::from(fd)))
    }

    /// Forgets what was not replaced for a while; `all`: everything.
    pub(crate) fn expire_spares(&self, all: bool) {
        let now = Instant::now();
        let mut names = Vec::new();
        {
            let mut inner = self.spares.inner();
            let old = |at: Instant| all || now.duration_since(at) >= KEEP;
            inner.staged.retain(|_, (_, at)| !old(*at));
            inner.hot.retain(|_, hot| {
                let gone = old(hot.last);
                if gone {
                    names.extend(hot.spare.take().map(|(name, _)| name));
                }
                !gone
            });
        }
        self.drop_spares(names);
    }

    /// Removes files that were kept.
    pub(crate) fn drop_spares(&self, names: Vec<String>) {
        for name in names {
            if let Err(e) = rustix::fs::unlinkat(self.hidden.tmp(), &*name, AtFlags::empty()) {
                tracing::warn!(name, error = %e, "a replaced file stays in the staging area until the next start");
            }
        }
    }
}
