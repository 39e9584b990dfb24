//! Times of directories in which changes from elsewhere are made.
//!
//! A change of names moves the modification time of its directory, here as where it was made first, and so it should: programs
//! look at that time to see whether to look again. Two things do not move it there and must not here: new bytes of a file, which
//! come to stand by a rename, and what comes late, after somebody set the time (as programs do that copy a tree with its times).

use super::Shared;
use super::meta;
use crate::vfs::SetTime;
use ice_core::action::{Apply, Spot};
use ice_core::ids::InodeId;
use rustix::fs::Timestamps;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The directories that a change touches, with the times they are to have afterwards as far as that is settled before.
pub(crate) struct DirTimes {
    inode: InodeId,
    dirs: Vec<(InodeId, Arc<OwnedFd>, Option<Timestamps>)>,
}

impl Shared {
    /// To be called before a change is made, with the namespace lock held.
    pub(crate) fn dir_times(&self, apply: &Apply) -> DirTimes {
        let (inode, spots, kept): (InodeId, Vec<&Spot>, bool) = match apply {
            Apply::Make { inode, at, .. } | Apply::Remove { inode, at, .. } => (*inode, vec![at], false),
            Apply::Link { inode, to, .. } => (*inode, vec![to], false),
            Apply::Move { inode, from, to, .. } => (*inode, vec![from, to], false),
            Apply::Install { inode, at, .. } => (*inode, at.iter().collect(), true),
            Apply::Attr { inode, .. } => (*inode, Vec::new(), false),
        };
        let mut dirs: Vec<(InodeId, Arc<OwnedFd>, Option<Timestamps>)> = Vec::new();
        for spot in spots {
            let Spot::At { parent, .. } = spot else { continue };
            // One that cannot be reached fails the change itself.
            let Ok(fd) = self.dir(*parent) else { continue };
            let as_it_is = || {
                let (sec, nsec) = meta::mtime(&rustix::fs::fstat(&*fd).ok()?);
                Some(meta::timestamps(None, Some(SetTime::At(sec, nsec))))
            };
            let times = if kept { as_it_is() } else { None };
            dirs.push((*parent, fd, times));
        }
        DirTimes { inode, dirs }
    }

    /// To be called after the change was made, under the same lock.
    pub(crate) fn keep_dir_times(&self, before: DirTimes) {
        let Ok(port) = self.port() else { return };
        for (dir, fd, times) in before.dirs {
            let set_later = || {
                let (atime, mtime) = port.look(|names| names.times_set_after(dir, before.inode))?;
                let at = |t: ice_core::time::UnixTime| Some(SetTime::At(t.sec, t.nsec));
                Some(meta::timestamps(at(atime), at(mtime)))
            };
            let Some(times) = times.or_else(set_later) else { continue };
            if let Err(e) = super::sys::set_times(fd.as_fd(), &times) {
                // An unprivileged daemon in somebody else's directory. The change itself stands.
                tracing::debug!(%dir, error = %e, "a directory's times cannot be kept");
            }
        }
    }
}
