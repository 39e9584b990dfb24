//! Finding out what the bytes of a changed file are, and telling the core.
//!
//! A digest is told only if it is that of bytes that stood still: the last look is taken while writers of this file wait,
//! and a file that changes behind our back (through a mapping, or directly in `backing`) is tried again later. Blocks that
//! did not change since the last time are not read again, nor those whose bytes all passed through us in order.
//!
//! Stores through a mapping do not reach us. The first one into a clean page moves the modification time, so a file whose
//! time is not the one our own last write left is *mapped*: from then on its pages are cleaned (`fdatasync`) before each
//! look, so that the next store moves the time again, and all of it is read.

use super::data::reopen;
use super::extents::Extents;
use super::meta::{self, Raw};
use super::opens::Open;
use super::resolve::refused;
use super::{Ns, Shared};
use crate::digest::{self, Blocks, Known};
use crate::vfs::Result;
use bytes::Bytes;
use ice_core::event::{Ack, Change};
use ice_core::ids::{InodeId, Name};
use ice_core::limits::INLINE_CONTENT_MAX_BYTES;
use ice_core::op::{Attr, ContentDigest, Payload};
use ice_core::tree::InodeInfo;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More bytes than this are digested by a worker, not by the thread that closes the file.
const INLINE_WORK_BYTES: u64 = 4 * 1024 * 1024;
/// Less than this may be digested while writers wait.
const STILL_WORK_BYTES: u64 = 16 * 1024 * 1024;
/// Read between two looks at whether the volume stops.
const STRIDE_BYTES: u64 = 64 * 1024 * 1024;
/// A dirty file that nobody has open is told after this time without a change.
const IDLE_CLOSED: Duration = Duration::from_millis(200);
/// One that is open.
const IDLE_OPEN: Duration = Duration::from_secs(1);
/// One that changes all the time.
const DIRTY_MAX: Duration = Duration::from_secs(5);
/// How often files that may be mapped are looked at.
const MAPPED_LOOK: Duration = Duration::from_secs(5);
/// How often the list of dirty files is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Between two tries for a file that cannot be read.
const BROKEN_RETRY: Duration = Duration::from_secs(10);
/// How often an installation is tried over a file that a process outside writes.
const OUTSIDE_RETRY: Duration = Duration::from_secs(1);
/// Looks without success before it is left for later.
const ROUNDS_MAX: usize = 4;

/// What came of a try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// The core knows the bytes.
    Yes,
    /// The file has no name: there is nothing to tell.
    Nameless,
    /// It would not stand still.
    Later,
}

/// What is known after the look without locks.
struct Draft {
    blocks: Option<Blocks>,
    /// The state in which the blocks were read, and the count of writes then.
    seen: Raw,
    writes: u64,
}

/// A file that is renamed or linked is told first if no more than this has to be read: about a second's work.
const NAMED_WORK_BYTES: u64 = 1 << 30;

impl Shared {
    /// Tells the core what the bytes of a file are, if it does not know.
    pub(crate) fn publish(&self, open: &Arc<Open>) -> Result<Told> {
        self.slow_down();
        let _one = open.publisher();
        let told = self.try_publish(open);
        match &told {
            Ok(Told::Yes | Told::Nameless) => {
                self.trouble_over(&trouble_key(open));
                self.opens.settle(open);
            }
            Ok(Told::Later) => {
                if let Some(d) = open.state().dirty.as_mut() {
                    d.not_before = Some(Instant::now() + IDLE_OPEN);
                }
                self.opens.settle(open);
            }
            Err(e) => {
                let wait = if *e == Errno::AGAIN { IDLE_OPEN } else { BROKEN_RETRY };
                let at = Instant::now() + wait;
                let broken = *e != Errno::AGAIN && *e != Errno::SHUTDOWN;
                if let Some(d) = open.state().dirty.as_mut() {
                    d.not_before = Some(at);
                    d.broken = broken;
                }
                if broken {
                    let name = open.state().inode.map_or("a file without a name".to_owned(), |i| self.called(i));
                    let what = format!("the changed bytes of {name:?} cannot be read or told: {e}");
                    self.trouble(&trouble_key(open), what);
                }
            }
        }
        told
    }

    fn try_publish(&self, open: &Arc<Open>) -> Result<Told> {
        let Some((inode, info)) = self.published_as(open)? else {
            self.drop_dirt(open);
            return Ok(Told::Nameless);
        };
        let file = match self.reading_fd(open, inode) {
            Ok(file) => file,
            Err(Errno::STALE | Errno::NOENT) if open.state().files.is_empty() => {
                // Another file stands there: the look at the names that was asked for finds out.
                self.drop_dirt(open);
                return Ok(Told::Later);
            }
            Err(e) => return Err(e),
        };
        if open.state().mapped {
            rustix::fs::fdatasync(&file)?;
        }
        {
            let st = rustix::fs::fstat(&file)?;
            let mut state = open.state();
            state.notice(&st);
            if state.dirty.is_none() && !state.whole && meta::witness(&st) == info.witness {
                return Ok(Told::Yes);
            }
            if state.dirty.is_none() && state.extents.is_empty() {
                // No write of ours: all of it has to be looked at.
                state.distrust();
            }
        }
        for _ in 0..ROUNDS_MAX {
            let draft = self.draft(open, &file)?;
            match self.last_look(open, inode, &file, draft) {
                Ok(Told::Later) => {}
                r => return r,
            }
            if self.stopping() {
                break;
            }
        }
        Ok(Told::Later)
    }

    /// The inode as which the file is known; `None`: it has no name (any more).
    fn published_as(&self, open: &Open) -> Result<Option<(InodeId, InodeInfo)>> {
        let Some(inode) = open.state().inode else { return Ok(None) };
        let info = self.port()?.look(|names| names.info(inode)).filter(|i| i.nlink > 0);
        // Replaced from afar while it was open for reading only, or directly: what stands there now is not this file.
        Ok(info.filter(|i| i.witness.disk == 0 || i.witness.disk == open.disk).map(|i| (inode, i)))
    }

    /// Nothing to tell any more.
    fn drop_dirt(&self, open: &Open) {
        let mut state = open.state();
        state.distrust();
        state.dirty = None;
        state.whole = false;
        state.extents = Extents::default();
    }

    /// A descriptor to read the file with.
    fn reading_fd(&self, open: &Open, inode: InodeId) -> Result<File> {
        let held = open.state().files.first().cloned();
        let fd: OwnedFd = match held {
            // All reads are at given offsets, so that sharing the descriptor's position does no harm.
            Some(file) if rustix::fs::fcntl_getfl(&*file)? & OFlags::RWMODE != OFlags::WRONLY => {
                rustix::io::fcntl_dupfd_cloexec(&*file, 0)?
            }
            // Fails for an unprivileged daemon and a file that its owner may not read.
            Some(file) => reopen(file.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?,
            None => {
                let place = self.place_of(inode)?;
                let (fd, st) = self.object_at(&place)?;
                if meta::disk(&st) != open.disk {
                    return Err(Errno::STALE);
                }
                reopen(fd.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?
            }
        };
        Ok(File::from(fd))
    }

    /// Reads what changed, without keeping anybody out. Small files are left to the last look.
    fn draft(&self, open: &Open, file: &File) -> Result<Draft> {
        let mut rounds = 0;
        loop {
            let seen = rustix::fs::fstat(file)?;
            let (size, small) = (meta::size(&seen), meta::size(&seen) <= INLINE_CONTENT_MAX_BYTES);
            let (blocks, extents, passed, writes) = {
                let mut state = open.state();
                if small {
                    state.blocks = None;
                    return Ok(Draft { blocks: None, seen, writes: state.writes });
                }
                if state.whole {
                    state.distrust();
                    state.whole = false;
                    state.extents = Extents::default();
                }
                (state.blocks.take(), std::mem::take(&mut state.extents), state.take_passed(), state.writes)
            };
            let read = self.bring_up(file, size, blocks, &extents, &passed);
            let mut state = open.state();
            match read {
                Ok(blocks) => {
                    rounds += 1;
                    // Much was written meanwhile: better read that too before writers have to wait.
                    if state.extents.bytes().min(size) > STILL_WORK_BYTES && rounds < ROUNDS_MAX {
                        state.blocks = Some(blocks);
                        continue;
                    }
                    return Ok(Draft { blocks: Some(blocks), seen, writes });
                }
                Err(e) => {
                    // Whatever was read is not used.
                    state.distrust();
                    rounds += 1;
                    // Cut while it was read.
                    if e.kind() == std::io::ErrorKind::UnexpectedEof && rounds < ROUNDS_MAX {
                        continue;
                    }
                    return Err(if e.kind() == std::io::ErrorKind::UnexpectedEof {
                        Errno::AGAIN
                    } else {
                        meta::errno(&e)
                    });
                }
            }
        }
    }

    fn bring_up(
        &self,
        file: &File,
        size: u64,
        blocks: Option<Blocks>,
        changed: &Extents,
        passed: &Known,
    ) -> std::io::Result<Blocks> {
        let Some(mut blocks) = blocks else {
            let mut blocks = Blocks::new();
            while blocks.len() < size {
                if self.stopping() {
                    return Err(Errno::SHUTDOWN.into());
                }
                blocks.update_knowing(file, size.min(blocks.len() + STRIDE_BYTES), [], passed)?;
            }
            return Ok(blocks);
        };
        blocks.update_knowing(file, size, changed.ranges(), passed)?;
        Ok(blocks)
    }

    /// Makes sure that nothing moves, finishes the digest, and tells.
    fn last_look(&self, open: &Open, inode: InodeId, file: &File, draft: Draft) -> Result<Told> {
        let ns = self.lock_ns();
        let still = open.still();
        let st = rustix::fs::fstat(file)?;
        let size = meta::size(&st);
        let passed;
        {
            let mut state = open.state();
            state.notice(&st);
            passed = state.all_passed(size);
            let quiet = state.writes == draft.writes;
            let moved = (meta::mtime(&st), size) != (meta::mtime(&draft.seen), meta::size(&draft.seen));
            if quiet && moved && draft.blocks.is_some() {
                // Not by a write of ours.
                state.distrust();
            }
            if state.whole && draft.blocks.is_some() {
                return Ok(Told::Later);
            }
            if state.extents.bytes().min(size) > STILL_WORK_BYTES && draft.blocks.is_some() {
                state.blocks = draft.blocks;
                return Ok(Told::Later);
            }
        }
        let (digest, payload, blocks) = if size <= INLINE_CONTENT_MAX_BYTES {
            match passed.map_or_else(|| read_small(file, size), |bytes| Ok(Some(bytes)))? {
                Some(bytes) => (digest::of_bytes(&bytes), Some(bytes), None),
                None => return Ok(Told::Later),
            }
        } else {
            let Some(mut blocks) = draft.blocks else { return Ok(Told::Later) };
            let (extents, passed) = {
                let mut state = open.state();
                (std::mem::take(&mut state.extents), state.take_passed())
            };
            if let Err(e) = blocks.update_knowing(file, size, extents.ranges(), &passed) {
                open.state().mark_whole(Instant::now());
                return if e.kind() == std::io::ErrorKind::UnexpectedEof {
                    Ok(Told::Later)
                } else {
                    Err(meta::errno(&e))
                };
            }
            (blocks.root(), None, Some(blocks))
        };
        let after = rustix::fs::fstat(file)?;
        if (meta::mtime(&after), meta::size(&after)) != (meta::mtime(&st), size) {
            let mut state = open.state();
            state.notice(&after);
            state.mark_whole(Instant::now());
            return Ok(Told::Later);
        }
        let told = self.tell_content(&ns, open, inode, &after, digest, payload)?;
        {
            let mut state = open.state();
            state.told();
            // Kept while the file is open: 32 bytes for each 256 KiB.
            state.blocks = blocks.filter(|_| !state.files.is_empty());
        }
        drop(still);
        Ok(told)
    }

    fn tell_content(
        &self,
        ns: &Ns<'_>,
        open: &Open,
        inode: InodeId,
        st: &Raw,
        digest: ContentDigest,
        bytes: Option<Vec<u8>>,
    ) -> Result<Told> {
        let port = self.port()?;
        let Some(info) = port.look(|names| names.info(inode)).filter(|i| i.nlink > 0) else {
            return Ok(Told::Nameless);
        };
        if info.witness.disk != 0 && info.witness.disk != open.disk {
            return Ok(Told::Nameless);
        }
        let (size, witness, mtime) = (meta::size(st), meta::witness(st), meta::unix_mtime(st));
        let same = info.held_content == Some((size, digest))
            || info.held == info.version && info.digest == digest && info.size == size;
        if same {
            // Nothing to send; perhaps a time.
            if info.witness != witness {
                let change = if info.attrs_held && info.attrs.mtime != mtime {
                    let attr = Attr::Times { atime: meta::attrs(st).atime, mtime };
                    Change::Attr { inode, attr, witness }
                } else {
                    Change::Touch { inode, witness }
                };
                self.tell_one(ns, change)?;
            }
            self.not_suspect(inode);
            return Ok(Told::Yes);
        }
        if open.state().verify {
            if self.known_bytes(inode, open.disk, (size, digest))? {
                self.not_suspect(inode);
                self.hints.later_inode(inode);
                return Ok(Told::Yes);
            }
            if self.is_suspect(inode) {
                return self.tell_torn(ns, inode, st);
            }
        }
        let payload = match bytes.filter(|b| !b.is_empty()) {
            Some(bytes) => {
                let len = bytes.len() as u32;
                let id = port.payloads().insert(Bytes::from(bytes)).map_err(|_| Errno::AGAIN)?;
                Some(Payload { id, len, digest })
            }
            None => None,
        };
        let change = Change::Content { inode, size, digest, mtime, witness, payload };
        // From here on the handle is the core's, whatever it answers.
        let mut results = port.change(vec![change]).map_err(refused)?;
        match results.pop() {
            Some(Ok(_)) => Ok(Told::Yes),
            // Unlinked meanwhile.
            Some(Err(ice_core::action::Refused::Unknown)) | None => Ok(Told::Nameless),
            Some(Err(why)) => Err(refused(why)),
        }
    }

    /// Publishes at once, or, if that means reading much, by a worker.
    pub(crate) fn publish_or_queue(&self, open: &Arc<Open>) {
        {
            let state = open.state();
            if state.dirty.is_none() && state.mappers == 0 {
                // Every write of ours is noted, and nobody can have stored through a mapping.
                return;
            }
        }
        if self.work(open) > INLINE_WORK_BYTES {
            self.queue(open);
        } else if let Err(e) = self.publish(open) {
            // It stays on the list of dirty files; status shows why.
            tracing::debug!(ino = open.ino, error = %e, "not told yet");
        }
    }

    /// Bytes to be read for the next telling.
    fn work(&self, open: &Open) -> u64 {
        let (file, inode) = {
            let state = open.state();
            (state.files.first().cloned(), state.inode)
        };
        let st = match file {
            Some(file) => rustix::fs::fstat(&*file).ok(),
            None => inode.and_then(|i| self.object_at(&self.place_of(i).ok()?).ok()).map(|(_, st)| st),
        };
        let size = st.map_or(0, |st| meta::size(&st));
        let state = open.state();
        let sure = !state.whole && !state.mapped;
        let passed = if sure { state.passed_bytes() } else { 0 };
        match (&state.dirty, &state.blocks) {
            (None, _) => 0,
            (_, Some(_)) if sure => state.extents.bytes().min(size).saturating_sub(passed),
            _ => size.saturating_sub(passed),
        }
    }

    /// Publishes by a worker, without waiting for a pause.
    pub(crate) fn publish_soon(&self, open: &Arc<Open>) {
        self.queue(open);
    }

    fn queue(&self, open: &Arc<Open>) {
        let mut state = open.state();
        if state.dirty.is_some() && !state.queued {
            state.queued = true;
            drop(state);
            self.content.push(Arc::clone(open));
        }
    }

    pub(crate) fn do_flush(&self, fh: u64) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        if !handle.write {
            return Ok(());
        }
        if self.options.close_ack == Ack::Local {
            self.publish_or_queue(&handle.node);
            return Ok(());
        }
        // Acknowledged is what a loss of power does not take.
        self.sync_file(fh, false, self.options.close_ack)
    }

    pub(crate) fn do_fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        self.sync_file(fh, data_only, self.options.ack)
    }

    fn sync_file(&self, fh: u64, data_only: bool, ack: Ack) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        // Told first, so that the others receive it while this disk works.
        let told = if handle.write || handle.node.state().dirty.is_some() {
            self.publish_now(&handle.node)?
        } else {
            Told::Yes
        };
        // The log's sync and the file's run side by side. Either may be durable first (see docs/adr/0006).
        let port = self.port()?;
        let acknowledged = (told != Told::Nameless).then(|| port.sync_begin(ack, self.options.ack_timeout));
        let synced = if data_only { rustix::fs::fdatasync(&*handle.file) } else { rustix::fs::fsync(&*handle.file) };
        if let Err(e) = synced {
            // The kernel reports a lost write once and then forgets it: nobody may believe a later success.
            self.sync_has_failed(&handle.node, e);
        }
        let (failed, inode) = {
            let state = handle.node.state();
            (state.sync_failed, state.inode)
        };
        // Also if the file was closed since: the kernel has forgotten it, we have not.
        if failed || inode.is_some_and(|i| self.is_to_mend(i)) {
            return Err(Errno::IO);
        }
        match acknowledged {
            Some(wait) => wait().map(|_| ()).map_err(refused),
            None => Ok(()),
        }
    }

    /// Before a file gets another name: whoever writes a file, closes it, and then gives it the name under which others look for
    /// it means it to be whole there, on other nodes as well. If that cannot be, it is told later as usual, and status says why.
    pub(crate) fn tell_bytes_first(&self, dir: InodeId, name: &Name) {
        if let Ok(Some(inode)) = self.known_at(dir, name)
            && let Some(open) = self.opens.of(inode)
        {
            self.tell_closed(&open);
        }
    }

    /// The bytes of a file that nobody has open for writing, if they wait to be told and do not take long.
    pub(crate) fn tell_closed(&self, open: &Arc<Open>) {
        let waits = {
            let state = open.state();
            state.dirty.is_some() && state.writers == 0 && state.inode.is_some()
        };
        if waits
            && self.work(open) <= NAMED_WORK_BYTES
            && let Err(e) = self.publish(open)
        {
            tracing::debug!(ino = open.ino, error = %e, "not told before its new name");
        }
    }

    /// Publishes, however much there is to read; gives up after the acknowledgement's time limit.
    pub(crate) fn publish_now(&self, open: &Arc<Open>) -> Result<Told> {
        let until = Instant::now() + self.options.ack_timeout;
        loop {
            match self.publish(open) {
                Ok(Told::Later) | Err(Errno::AGAIN) => {}
                r => return r,
            }
            if Instant::now() >= until || self.stopping() {
                return Err(Errno::IO);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// If the last writer is gone, an installation that waits for that may go on.
    pub(crate) fn nobody_writes(&self, open: &Open) {
        let freed = {
            let mut state = open.state();
            let free = state.writers == 0 && state.dirty.is_none() && state.waited_for;
            if free {
                state.waited_for = false;
            }
            free.then_some(state.inode).flatten()
        };
        if let (Some(inode), Ok(port)) = (freed, self.port()) {
            port.released(inode);
        }
    }

    /// Digests large files and files found changed.
    pub(crate) fn run_content(&self) {
        let mut opens = Vec::new();
        while self.content.pop(&mut opens) {
            for open in opens.drain(..) {
                open.state().queued = false;
                if let Err(e) = self.publish(&open) {
                    tracing::debug!(ino = open.ino, error = %e, "not told yet");
                }
                self.opens.settle(&open);
                self.nobody_writes(&open);
            }
        }
    }

    /// Looks after files that are dirty for long, and after mappings.
    pub(crate) fn run_ticker(&self) {
        let (mut looked, mut retried) = (Instant::now(), Instant::now());
        while !self.stopping() {
            std::thread::sleep(TICK);
            let now = Instant::now();
            for open in self.opens.dirty() {
                let due = {
                    let state = open.state();
                    let idle = if state.files.is_empty() { IDLE_CLOSED } else { IDLE_OPEN };
                    state.dirty.is_some_and(|d| {
                        (now.duration_since(d.last) >= idle || now.duration_since(d.since) >= DIRTY_MAX)
                            && d.not_before.is_none_or(|t| t <= now)
                    })
                };
                if due {
                    self.queue(&open);
                }
            }
            if now.duration_since(retried) >= OUTSIDE_RETRY {
                retried = now;
                let waiting = std::mem::take(&mut *self.busy_outside());
                if let Ok(port) = self.port() {
                    waiting.into_iter().for_each(|inode| port.released(inode));
                }
            }
            if now.duration_since(looked) >= MAPPED_LOOK {
                looked = now;
                self.expire_spares(false);
                for open in self.opens.mappers() {
                    self.look_for_stores(&open, now);
                }
            }
        }
    }

    fn busy_outside(&self) -> MutexGuard<'_, BTreeSet<InodeId>> {
        self.busy_outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process outside writes the file: its installation is tried again in a while.
    pub(crate) fn retry_later(&self, inode: InodeId) {
        self.busy_outside().insert(inode);
    }

    fn look_for_stores(&self, open: &Arc<Open>, now: Instant) {
        let Some(file) = open.state().files.first().cloned() else { return };
        if open.state().mapped && rustix::fs::fdatasync(&*file).is_err() {
            return;
        }
        let Ok(st) = rustix::fs::fstat(&*file) else { return };
        let fresh = {
            let mut state = open.state();
            let known = state.expected;
            state.notice(&st);
            state.expected != known && state.mark_whole(now)
        };
        if fresh {
            self.opens.note_dirty(open);
        }
    }

    /// Before the end: everything small or quick is told; what is not is found by the next start's scan.
    pub(crate) fn flush_all(&self) {
        if self.port().is_err() {
            return;
        }
        let until = Instant::now() + Duration::from_secs(5);
        for open in self.opens.dirty() {
            if Instant::now() > until {
                break;
            }
            if self.work(&open) <= STRIDE_BYTES
                && let Err(e) = self.publish(&open)
            {
                tracing::debug!(ino = open.ino, error = %e, "left to the next start");
            }
        }
    }
}

fn trouble_key(open: &Open) -> String {
    format!("content {:x}", open.ino)
}

/// All bytes of a small file; `None` if its length is another by now.
fn read_small(file: &File, size: u64) -> Result<Option<Vec<u8>>> {
    // One byte more, to see that it ends there.
    let mut buf = vec![0; size as usize + 1];
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(meta::errno(&e)),
        }
    }
    buf.truncate(done);
    Ok((done as u64 == size).then_some(buf))
}
