//! The log thread: takes what was appended, writes it, syncs it, and begins anew when the disk fails.

use super::format::{self, HEADER_BYTES, Header, framed_len};
use super::lane::{Fault, LaneStats, Options, Queued, Shared, SyncDone};
use super::segments::{self, SPARES_MAX};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// However the thread ends, nobody waits for it afterwards.
pub(super) struct EndGuard(pub(super) Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let (syncs, reopen) = {
            let mut state = self.0.lock();
            state.ended = true;
            self.0.moved.notify_all();
            (std::mem::take(&mut state.syncs), std::mem::take(&mut state.reopen))
        };
        for done in syncs {
            done(Err(io::Error::other("the log is closed")));
        }
        drop(reopen);
    }
}

pub(super) struct OldSegment {
    pub(super) path: PathBuf,
    pub(super) first: u64,
}

struct Current {
    file: File,
    path: PathBuf,
    first: u64,
    salt: u32,
    at: u64,
    capacity: u64,
}

struct Broken {
    why: String,
    kind: io::ErrorKind,
    retry_at: Instant,
}

pub(super) struct Writer {
    dir: PathBuf,
    options: Options,
    shared: Arc<Shared>,
    number: u64,
    old: VecDeque<OldSegment>,
    current: Option<Current>,
    /// Everything since the last successful sync; the first `written` of them were handed to the current segment.
    unsynced: VecDeque<Queued>,
    written: usize,
    unsynced_bytes: usize,
    unsynced_since: Option<Instant>,
    /// Index up to which everything is durable.
    durable: u64,
    buf: Vec<u8>,
    broken: Option<Broken>,
    stats: LaneStats,
    want_spare: mpsc::SyncSender<u64>,
}

struct Work {
    syncs: Vec<SyncDone>,
    reopen: Vec<mpsc::Sender<io::Result<()>>>,
    cut: Option<u64>,
    hopeless: Option<String>,
    stop: bool,
}

impl Writer {
    pub(super) fn new(
        dir: &Path,
        options: Options,
        shared: Arc<Shared>,
        highest: u64,
        old: VecDeque<OldSegment>,
        want_spare: mpsc::SyncSender<u64>,
    ) -> Writer {
        let mut writer = Writer {
            dir: dir.to_path_buf(),
            options,
            shared,
            number: highest,
            old,
            current: None,
            unsynced: VecDeque::new(),
            written: 0,
            unsynced_bytes: 0,
            unsynced_since: None,
            durable: 0,
            buf: Vec::new(),
            broken: None,
            stats: LaneStats::default(),
            want_spare,
        };
        writer.order_spare();
        writer
    }

    /// Until the lane is stopped.
    pub(super) fn run(&mut self) {
        loop {
            let work = self.take_work();
            let mend = !work.reopen.is_empty() || work.stop || (work.cut.is_some() && self.broken.is_some());
            if let Some(below) = work.cut {
                self.forget_below(below);
            }
            let failed = match &work.hopeless {
                Some(why) => Some((io::ErrorKind::InvalidData, why.clone())),
                None => self.attend(!work.syncs.is_empty() || work.stop, mend),
            };
            let outcome = || match &failed {
                None => Ok(()),
                Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
            };
            self.publish();
            work.syncs.into_iter().for_each(|done| done(outcome()));
            for waiter in work.reopen {
                // Who asked may have gone.
                let _ = waiter.send(outcome());
            }
            if let Some(below) = work.cut {
                self.cut(below);
            }
            if work.stop {
                return;
            }
        }
    }

    /// Waits until there is something to do and takes all of it.
    fn take_work(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut lingered = false;
        loop {
            let hurry = state.hurry && !state.queue.is_empty() && self.broken.is_none();
            let urgent =
                hurry || !state.syncs.is_empty() || !state.reopen.is_empty() || state.cut.is_some() || state.stop;
            if urgent || (lingered && !state.queue.is_empty()) {
                break;
            }
            let now = Instant::now();
            let due = match (&self.broken, self.unsynced_since) {
                (Some(b), _) => Some(b.retry_at),
                (None, Some(since)) => Some(since + self.options.unsynced_max_age),
                (None, None) => None,
            };
            if due.is_some_and(|d| d <= now) {
                break;
            }
            // What is appended to a broken lane stays in the queue until there is a chance to write it.
            let linger = (!state.queue.is_empty() && self.broken.is_none()).then(|| now + self.options.linger);
            let until = [due, linger].into_iter().flatten().min();
            state = match until {
                None => shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let (state, timeout) = shared
                        .wake
                        .wait_timeout(state, until.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner);
                    lingered = timeout.timed_out() && linger.is_some();
                    state
                }
            };
        }
        let queue = std::mem::take(&mut state.queue);
        state.hurry = false;
        let work = Work {
            syncs: std::mem::take(&mut state.syncs),
            reopen: std::mem::take(&mut state.reopen),
            cut: state.cut.take(),
            hopeless: state.hopeless.clone(),
            stop: state.stop,
        };
        drop(state);
        self.unsynced_bytes += queue.iter().map(Queued::cost).sum::<usize>();
        self.unsynced.extend(queue);
        if let (0, Some(first)) = (self.durable, self.unsynced.front()) {
            // Recovery made durable what it handed out, or a checkpoint covers it.
            self.durable = first.index - 1;
        }
        work
    }

    /// Writes, syncs if that is wanted or due, mends a broken lane if it is time. Says why not everything that was wanted is
    /// done.
    fn attend(&mut self, want_sync: bool, want_reopen: bool) -> Option<(io::ErrorKind, String)> {
        if let Some(broken) = &self.broken {
            if !want_reopen && Instant::now() < broken.retry_at {
                return Some((broken.kind, broken.why.clone()));
            }
            // Nothing that was handed to the old segment since its last good sync is trusted: begin anew with all of it.
            self.written = 0;
            self.drop_current();
        }
        let mending = self.broken.is_some();
        let result = self.write_all().and_then(|()| {
            let due = self.unsynced_bytes >= self.options.unsynced_max_bytes
                || self.unsynced_since.is_some_and(|s| s.elapsed() >= self.options.unsynced_max_age);
            if mending && self.unsynced.is_empty() {
                // Nothing to write again: see whether the disk takes a segment.
                self.probe()?;
            }
            if want_sync || due || mending { self.sync() } else { Ok(()) }
        });
        match result {
            Ok(()) => {
                if self.broken.take().is_some() {
                    tracing::info!("the log is whole again");
                }
                None
            }
            Err(e) => {
                let why = format!("the log cannot be written: {e}");
                if self.broken.is_none() {
                    self.stats.failures += 1;
                    tracing::error!(error = %e, "the log is broken");
                }
                self.broken =
                    Some(Broken { why: why.clone(), kind: e.kind(), retry_at: Instant::now() + self.options.retry });
                Some((e.kind(), why))
            }
        }
    }

    fn fault(&self, what: Fault) -> io::Result<()> {
        self.options.fault.as_ref().map_or(Ok(()), |f| f(what))
    }

    /// Hands everything that was not written yet to the operating system.
    fn write_all(&mut self) -> io::Result<()> {
        const CHUNK: usize = 1 << 20;
        while self.written < self.unsynced.len() {
            let next = &self.unsynced[self.written];
            let (index, need) = (next.index, framed_len(next.body_len()) as u64);
            let full = self.current.as_ref().is_none_or(|c| c.at + need > c.capacity);
            if full {
                // A segment's existence says that everything before it is durable.
                if self.current.is_some() {
                    self.sync()?;
                }
                self.begin_segment(index, need)?;
            }
            let Some(current) = &self.current else {
                return Err(io::Error::other("no segment could be begun"));
            };
            self.buf.clear();
            let mut count = 0;
            for q in self.unsynced.range(self.written..) {
                let fits = current.at + (self.buf.len() + framed_len(q.body_len())) as u64 <= current.capacity;
                if !fits || (count > 0 && self.buf.len() >= CHUNK) {
                    break;
                }
                format::push_frame(&mut self.buf, current.salt, q.index, self.durable, &q.record, q.payload.as_deref());
                count += 1;
            }
            // The mark of the end, which the next write replaces.
            let bytes = self.buf.len() as u64;
            let mark = (current.capacity - current.at - bytes).min(format::FRAME_BYTES as u64);
            self.buf.resize((bytes + mark) as usize, 0);
            self.fault(Fault::Write(self.buf.len()))?;
            current.file.write_all_at(&self.buf, current.at)?;
            if let Some(current) = &mut self.current {
                current.at += bytes;
            }
            self.written += count;
            let last = self.unsynced[self.written - 1].index;
            self.shared.lock().written = last;
            self.shared.moved.notify_all();
            self.stats.records += count as u64;
            self.stats.bytes += bytes;
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        // One large record must not keep its memory for ever.
        if self.buf.capacity() > 4 * CHUNK {
            self.buf = Vec::new();
        }
        Ok(())
    }

    /// On a broken lane: what a checkpoint has made durable in its own way need not be written again.
    fn forget_below(&mut self, below: u64) {
        if self.broken.is_none() {
            return;
        }
        let covered = self.unsynced.iter().take_while(|q| q.index < below).count();
        self.release(covered);
        self.durable = self.durable.max(below.saturating_sub(1));
        self.written = 0;
    }

    /// Makes the written records durable and lets go of them.
    fn sync(&mut self) -> io::Result<()> {
        if self.written > 0 {
            let Some(current) = &self.current else {
                return Err(io::Error::other("records were written, but to no segment"));
            };
            self.fault(Fault::Sync)?;
            let start = Instant::now();
            current.file.sync_data()?;
            self.stats.syncs += 1;
            self.stats.sync_ns += start.elapsed().as_nanos() as u64;
        }
        self.release(self.written);
        self.written = 0;
        self.unsynced_since = None;
        Ok(())
    }

    /// Lets go of the first `count` records, which are durable.
    fn release(&mut self, count: usize) {
        let mut bytes = 0;
        for q in self.unsynced.drain(..count) {
            self.durable = self.durable.max(q.index);
            bytes += q.cost();
        }
        self.unsynced_bytes -= bytes;
        let mut state = self.shared.lock();
        state.bytes -= bytes;
        state.records -= count;
    }

    fn begin_segment(&mut self, first: u64, need: u64) -> io::Result<()> {
        self.fault(Fault::Create)?;
        self.retire_current();
        let capacity = self.options.segment_bytes.max(HEADER_BYTES as u64 + need);
        let mut salt = [0; 4];
        crate::identity::random(&mut salt)?;
        self.number += 1;
        let header = Header { salt: u32::from_le_bytes(salt), number: self.number, first };
        let spare = if capacity == self.options.segment_bytes { self.shared.spares().pop() } else { None };
        let file = segments::create(&self.dir, &header, capacity, spare)?;
        self.stats.segments += 1;
        let path = segments::segment_path(&self.dir, self.number);
        self.current = Some(Current { file, path, first, salt: header.salt, at: HEADER_BYTES as u64, capacity });
        self.order_spare();
        Ok(())
    }

    /// Whether the disk takes and keeps bytes.
    fn probe(&self) -> io::Result<()> {
        let path = self.dir.join("spare-probe.tmp");
        self.fault(Fault::Create)?;
        let file = File::create(&path)?;
        self.fault(Fault::Write(HEADER_BYTES))?;
        file.write_all_at(&[0xa5; HEADER_BYTES], 0)?;
        self.fault(Fault::Sync)?;
        file.sync_all()?;
        fs::remove_file(&path)
    }

    /// Gives up the segment that a write or sync failed on. If nothing in it is durable its file goes as well, so that a disk
    /// that fails again and again does not fill up with them.
    fn drop_current(&mut self) {
        if let Some(c) = self.current.take() {
            let worthless = c.first > self.durable;
            if !worthless || fs::remove_file(&c.path).is_err() {
                self.old.push_back(OldSegment { path: c.path, first: c.first });
            }
        }
    }

    fn retire_current(&mut self) {
        if let Some(c) = self.current.take() {
            self.old.push_back(OldSegment { path: c.path, first: c.first });
        }
    }

    fn order_spare(&mut self) {
        if self.shared.spares().is_empty() {
            // Spares have names of their own range: they are renamed when they are used. Full means one is being made.
            let _ = self.want_spare.try_send(self.number + 1);
        }
    }

    /// Drops segments that a later one shows to hold only records below `below`.
    fn cut(&mut self, below: u64) {
        loop {
            let next_first = match (self.old.get(1), &self.current) {
                (Some(next), _) => next.first,
                (None, Some(current)) => current.first,
                (None, None) => return,
            };
            if next_first > below {
                return;
            }
            let Some(gone) = self.old.pop_front() else { return };
            if let Err(error) = self.recycle(&gone.path) {
                // It costs space and is dropped at the next start's first cut.
                tracing::warn!(%error, path = %gone.path.display(), "cannot drop a log segment");
            }
        }
    }

    fn recycle(&self, path: &Path) -> io::Result<()> {
        let same_size = fs::metadata(path)?.len() == self.options.segment_bytes;
        let mut spares = self.shared.spares();
        if same_size && spares.len() < SPARES_MAX {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let spare = self.dir.join(format!("spare-r{name}"));
            fs::rename(path, &spare)?;
            spares.push(spare);
            Ok(())
        } else {
            drop(spares);
            fs::remove_file(path)
        }
    }

    fn publish(&mut self) {
        let mut state = self.shared.lock();
        let asked = state.stats.syncs_asked;
        state.stats = LaneStats { syncs_asked: asked, ..self.stats };
        state.broken = self.broken.as_ref().map(|b| b.why.clone());
        state.written = state.written.max(self.durable);
        drop(state);
        self.shared.moved.notify_all();
    }
}
