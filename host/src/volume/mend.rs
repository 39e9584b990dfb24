//! After a failed sync.
//!
//! The kernel says once that it could not bring bytes to the disk, and then forgets them: they stay in its cache as if they stood
//! on the disk, until they are dropped and the old bytes come back. So a file whose sync failed is not believed until its bytes
//! have been handed to the kernel once more and have been synced: those that the core knows by their digest, if they can still
//! be read. If they cannot, they are lost here, and the core brings them back from a member that has them.

use super::Shared;
use super::data::reopen;
use super::meta;
use super::opens::Open;
use super::publish::Told;
use crate::digest::Blocks;
use crate::vfs::Result;
use ice_core::ids::InodeId;
use rustix::fs::{OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two tries.
const EVERY: Duration = Duration::from_secs(3);
/// Files remembered. Of more at once, the rest is looked after by the next comparison of everything.
pub(super) const LOST_MAX: usize = 4096;
/// Bytes handed to the kernel while writers wait.
const PART_BYTES: usize = 1 << 20;

/// What came of a try.
enum Mended {
    Yes,
    /// The disk still fails, or somebody writes the file.
    NotYet,
    /// The file is gone, or the bytes are: there is nothing to mend.
    Nothing,
}

impl Shared {
    /// A sync of this file failed: nothing that says otherwise later is believed until it is mended.
    pub(crate) fn sync_has_failed(&self, open: &Open, error: Errno) {
        let inode = {
            let mut state = open.state();
            state.sync_failed = true;
            state.inode
        };
        let name = inode.map_or("a file without a name".to_owned(), |i| self.called(i));
        let words = format!("backing: a sync failed: {error}: {name:?} may not be on the disk as it was written");
        self.trouble("sync", words);
        if let Some(inode) = inode {
            let mut lost = self.lost();
            if lost.len() < LOST_MAX {
                lost.insert(inode);
            } else {
                // So many: this disk is not to be believed any more, whatever the file.
                self.all_lost.store(true, Ordering::SeqCst);
            }
        }
    }

    /// A sync of this file failed, and its bytes are not certain to be on the disk yet.
    pub(crate) fn is_to_mend(&self, inode: InodeId) -> bool {
        self.all_lost.load(Ordering::SeqCst) || self.lost().contains(&inode)
    }

    /// There is no such file.
    pub(crate) fn all_mended(&self) -> bool {
        !self.all_lost.load(Ordering::SeqCst) && self.lost().is_empty()
    }

    fn lost(&self) -> MutexGuard<'_, std::collections::BTreeSet<InodeId>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again and again, as long as there is anything to mend.
    pub(crate) fn run_mender(&self) {
        let mut next = Instant::now() + EVERY;
        while !self.stopping() {
            std::thread::sleep(Duration::from_millis(200));
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + EVERY;
            let lost: Vec<InodeId> = self.lost().iter().copied().collect();
            for inode in lost {
                match self.mend(inode) {
                    Ok(Mended::NotYet) => {}
                    Ok(Mended::Yes) => {
                        tracing::info!(%inode, "the bytes of a failed sync are on the disk now");
                        self.lost().remove(&inode);
                    }
                    Ok(Mended::Nothing) | Err(Errno::STALE | Errno::NOENT) => {
                        self.lost().remove(&inode);
                    }
                    Err(e) => tracing::debug!(%inode, error = %e, "not mended yet"),
                }
            }
            if self.lost().is_empty() {
                self.trouble_over("sync");
            }
        }
    }

    fn mend(&self, inode: InodeId) -> Result<Mended> {
        let place = self.place_of(inode)?;
        let (fd, st) = self.object_at(&place)?;
        let file = File::from(reopen(fd.as_fd(), OFlags::RDWR | OFlags::NONBLOCK)?);
        let open = self.opens.kept(self.opens.shown(inode, meta::disk(&st)), inode, meta::disk(&st));
        let mended = self.mend_open(inode, &open, &file);
        self.opens.settle(&open);
        mended
    }

    fn mend_open(&self, inode: InodeId, open: &Arc<Open>, file: &File) -> Result<Mended> {
        if open.state().mappers > 0 {
            // A store could come between reading and writing.
            return Ok(Mended::NotYet);
        }
        let dirty = open.state().dirty.is_some();
        if dirty && self.publish(open)? != Told::Yes {
            return Ok(Mended::NotYet);
        }
        let Some((size, digest)) = self.place_of(inode)?.info.held_content else { return Ok(Mended::NotYet) };
        let writes = open.state().writes;
        let whole = match Blocks::of_file(file, size) {
            Ok(blocks) => blocks.root() == digest,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(meta::errno(&e)),
        };
        if open.state().writes != writes {
            return Ok(Mended::NotYet);
        }
        if !whole {
            return self.give_up_lost(inode, open);
        }
        let look = || rustix::fs::fstat(file).map(|st| (meta::mtime(&st), meta::size(&st)));
        let before = look()?.0;
        let mut last = (before, size);
        let mut buf = vec![0; PART_BYTES];
        let mut at = 0;
        while at < size {
            let _still = open.still();
            if open.state().writes != writes || open.state().mappers > 0 {
                return Ok(Mended::NotYet);
            }
            // Holes have nothing to lose.
            let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                Err(_) => at,
                Ok(data) => data,
            };
            let want = PART_BYTES.min(usize::try_from(size.saturating_sub(data)).unwrap_or(PART_BYTES));
            let read = file.read_at(&mut buf[..want], data).map_err(|e| meta::errno(&e))?;
            if read == 0 {
                break;
            }
            if look()? != last {
                // Somebody writes it behind the mount: what was read is not to be written over that.
                return Ok(Mended::NotYet);
            }
            file.write_all_at(&buf[..read], data).map_err(|e| meta::errno(&e))?;
            last = look()?;
            at = data + read as u64;
        }
        rustix::fs::fsync(file)?;
        let _still = open.still();
        let mut state = open.state();
        if state.writes != writes {
            return Ok(Mended::NotYet);
        }
        let (sec, nsec) = before;
        let keep = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = Timestamps { last_access: keep, last_modification: Timespec { tv_sec: sec, tv_nsec: nsec.into() } };
        rustix::fs::futimens(file, &times)?;
        state.sync_failed = false;
        if state.expected.is_some() {
            state.expected = Some(before);
        }
        // It looks different on the disk now: the core is told so when it has been compared.
        let fresh = state.mark_whole(Instant::now());
        drop(state);
        if fresh {
            self.opens.note_dirty(open);
        }
        Ok(Mended::Yes)
    }

    /// Other bytes than were written are what can be read.
    fn give_up_lost(&self, inode: InodeId, open: &Arc<Open>) -> Result<Mended> {
        self.suspects().insert(inode);
        let fresh = {
            let mut state = open.state();
            state.verify = true;
            state.sync_failed = false;
            state.mark_whole(Instant::now())
        };
        if fresh {
            self.opens.note_dirty(open);
        }
        let told = self.publish(open);
        self.suspects().remove(&inode);
        match told {
            Ok(Told::Yes | Told::Nameless) => Ok(Mended::Nothing),
            Ok(Told::Later) => Ok(Mended::NotYet),
            Err(e) => Err(e),
        }
    }
}
