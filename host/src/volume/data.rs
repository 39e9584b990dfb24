//! Calls about the bytes of open files.

use super::Shared;
use super::meta;
use super::opens::{Change, How, Open};
use super::resolve::Object;
use crate::digest::Known;
use crate::vfs::{Opened, Result};
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// What `O_...` flags ask for.
pub(crate) fn how(flags: i32) -> Result<How> {
    let (read, write) = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => (true, false),
        libc::O_WRONLY => (false, true),
        libc::O_RDWR => (true, true),
        _ => return Err(Errno::INVAL),
    };
    // O_SYNC contains O_DSYNC.
    Ok(How { read, write, append: write && flags & libc::O_APPEND != 0, sync: flags & libc::O_DSYNC != 0 })
}

/// How the file in `backing` is opened. Synchronous writes are made so by us, with the core's acknowledgement; direct I/O
/// would bind the daemon's buffers.
pub(crate) fn backing_flags(how: How) -> OFlags {
    let access = match (how.read, how.write) {
        (_, false) => OFlags::RDONLY,
        // What is written must be read to be digested.
        (_, true) => OFlags::RDWR,
    };
    let append = if how.append { OFlags::APPEND } else { OFlags::empty() };
    access | append | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// Opens the object behind a descriptor once more. Leads to the very object, also without a name.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    super::sys::reopen(fd, flags)
}

impl Shared {
    pub(crate) fn do_open(&self, ino: u64, flags: i32) -> Result<Opened> {
        let how = how(flags)?;
        // With the lock an installation cannot slip between the look at the file and its entry in the table.
        let _ns = self.lock_ns();
        let object = self.object(ino, None)?;
        match meta::file_type(&object.before) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::INVAL),
        }
        let inode =
            object.known.as_ref().map(|(i, _)| *i).or_else(|| object.open.as_ref().and_then(|o| o.state().inode));
        if object.known.is_none() && inode.is_some_and(|i| self.stands(i)) {
            // Another file stands under the name by now. `ESTALE` makes the kernel look the name up again.
            return Err(Errno::STALE);
        }
        if flags & libc::O_TRUNC == 0 && self.is_arriving(&object) {
            return Err(Errno::AGAIN);
        }
        let file = match reopen(object.fd.as_fd(), backing_flags(how)) {
            // Without privilege a file may be writable only.
            Err(Errno::ACCESS) if how.write && !how.read => {
                reopen(object.fd.as_fd(), (backing_flags(how) - OFlags::RDWR) | OFlags::WRONLY)?
            }
            r => r?,
        };
        let handle = self.opens.enter(ino, inode, &object.before, Arc::new(file), how)?;
        if flags & libc::O_TRUNC != 0
            && how.write
            && let Err(e) = self.cut(&handle.node, handle.file.as_fd(), 0)
        {
            self.do_release(handle.fh);
            return Err(e);
        }
        Ok(Opened { fh: handle.fh, file: Arc::clone(&handle.file), shared: true })
    }

    /// The file is empty here only because its first bytes, which are known elsewhere, have not come yet. To read it would be to
    /// read what was never written, and to append to it a change of nothing.
    fn is_arriving(&self, object: &Object) -> bool {
        let Some((_, info)) = &object.known else { return false };
        let ours = object.open.as_ref().is_some_and(|o| {
            let state = o.state();
            state.writers > 0 || state.dirty.is_some()
        });
        info.held.is_zero() && info.size > 0 && meta::size(&object.before) == 0 && !ours
    }

    /// The inode has a name in `backing`.
    fn stands(&self, inode: ice_core::ids::InodeId) -> bool {
        self.port().is_ok_and(|p| p.look(|names| names.info(inode)).is_some_and(|i| i.nlink > 0))
    }

    pub(crate) fn do_read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let handle = self.opens.handle(fh)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match rustix::io::pread(&*handle.file, &mut buf[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // What was read before the bad spot is an answer.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    pub(crate) fn do_write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.opens.handle(fh)?;
        if !handle.write {
            return Err(Errno::BADF);
        }
        let done = {
            let _writing = handle.node.writing();
            let from = if handle.append { meta::size(&rustix::fs::fstat(&*handle.file)?) } else { offset };
            let end = from.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
            let mut change = self.begin_change(&handle.node, &handle.file, from..end, true)?;
            let done = write_all(&handle.file, offset, data, handle.append);
            let mut known = Known::new();
            if let Ok(done) = done {
                known = change.pass(&data[..done]);
            }
            let st = self.end_change(&handle.node, &handle.file, change, known)?;
            let now = meta::size(&st);
            if handle.append && now != end {
                // Others appended in between: all that is new belongs to one of us, and where ours is nobody knows.
                let more = self.begin_change(&handle.node, &handle.file, from..now.max(end), false)?;
                self.end_change(&handle.node, &handle.file, more, Known::new())?;
            }
            done?
        };
        if handle.sync {
            self.do_fsync(fh, true)?;
        }
        Ok(done)
    }

    /// Before bytes change. `whole`: all of the range is going to be written, in order.
    fn begin_change(&self, node: &Arc<Open>, file: impl AsFd, bytes: Range<u64>, whole: bool) -> Result<Change> {
        let (change, fresh) = {
            let mut state = node.state();
            if state.expected.is_some() {
                let st = rustix::fs::fstat(file)?;
                state.notice(&st);
            }
            state.begin(bytes, whole, Instant::now())
        };
        if fresh {
            self.opens.note_dirty(node);
        }
        Ok(change)
    }

    /// After bytes changed, or did not. How the file looks now.
    fn end_change(&self, node: &Open, file: impl AsFd, change: Change, known: Known) -> Result<meta::Raw> {
        let mut state = node.state();
        let st = rustix::fs::fstat(file);
        state.end(change, st.as_ref().ok(), known, Instant::now());
        st
    }

    /// `truncate` as part of `setattr`, with the namespace lock held.
    pub(crate) fn truncate(&self, ino: u64, fh: Option<u64>, object: &Object, size: u64) -> Result<()> {
        match meta::file_type(&object.before) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        if let Some(handle) = fh.map(|fh| self.opens.handle(fh)).transpose()? {
            if !handle.write {
                return Err(Errno::INVAL);
            }
            return self.cut(&handle.node, handle.file.as_fd(), size);
        }
        let file = reopen(object.fd.as_fd(), OFlags::WRONLY | OFlags::NONBLOCK)?;
        let node = match (&object.open, &object.known) {
            (Some(open), _) if open.disk == meta::disk(&object.before) => Arc::clone(open),
            (_, Some((inode, _))) => self.opens.suspect(ino, *inode, meta::disk(&object.before), Instant::now()),
            _ => return Err(Errno::STALE),
        };
        self.cut(&node, file.as_fd(), size)
    }

    fn cut(&self, node: &Arc<Open>, file: BorrowedFd<'_>, size: u64) -> Result<()> {
        let _writing = node.writing();
        let old = meta::size(&rustix::fs::fstat(file)?);
        // Also when it grows again later: what was cut off reads as zeros then.
        let bytes = size.min(old)..size.max(old).max(size.saturating_add(1));
        let change = self.begin_change(node, file, bytes, false)?;
        let done = rustix::fs::ftruncate(file, size);
        self.end_change(node, file, change, Known::new())?;
        done
    }

    pub(crate) fn do_release(&self, fh: u64) {
        let Some(handle) = self.opens.take(fh) else { return };
        if handle.write {
            // What the last flush did not see: stores through a mapping that is gone only now.
            self.publish_or_queue(&handle.node);
        }
        self.opens.leave(&handle);
        self.nobody_writes(&handle.node);
    }

    pub(crate) fn do_fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        if !handle.write {
            return Err(Errno::BADF);
        }
        let _writing = handle.node.writing();
        // Collapsing and inserting move all that follows.
        let moves = super::sys::moves_bytes(mode);
        let end = if moves { u64::MAX } else { offset.checked_add(len).ok_or(Errno::FBIG)? };
        if moves {
            handle.node.state().distrust();
        }
        let bytes = if moves { 0..1 } else { offset..end };
        let change = self.begin_change(&handle.node, &handle.file, bytes, false)?;
        let done = super::sys::fallocate(&*handle.file, mode, offset, len);
        if moves {
            handle.node.state().distrust();
        }
        self.end_change(&handle.node, &handle.file, change, Known::new())?;
        done
    }

    pub(crate) fn do_lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        let handle = self.opens.handle(fh)?;
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(at),
            libc::SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        let pos = rustix::fs::seek(&*handle.file, from)?;
        i64::try_from(pos).map_err(|_| Errno::OVERFLOW)
    }

    pub(crate) fn do_copy(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<usize> {
        let (from, to) = (self.opens.handle(from)?, self.opens.handle(to)?);
        if !to.write {
            return Err(Errno::BADF);
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let end = to_off.checked_add(len as u64).ok_or(Errno::FBIG)?;
        let done = {
            let _writing = to.node.writing();
            let change = self.begin_change(&to.node, &to.file, to_off..end, false)?;
            let done = super::sys::copy_range(&*from.file, from_off, &*to.file, to_off, len);
            self.end_change(&to.node, &to.file, change, Known::new())?;
            done?
        };
        if to.sync {
            self.do_fsync(to.fh, true)?;
        }
        Ok(done)
    }
}

fn write_all(file: &OwnedFd, offset: u64, data: &[u8], append: bool) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let wrote = if append {
            // On Linux pwrite appends on such a descriptor whatever the offset.
            rustix::io::write(file, rest)
        } else {
            rustix::io::pwrite(file, rest, offset.checked_add(done as u64).ok_or(Errno::FBIG)?)
        };
        match wrote {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // A short count; the next call meets the error.
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
