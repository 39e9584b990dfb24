//! The writing side: a bounded buffer and one thread that empties it.

use super::format::{self, BODY_MAX_BYTES, HEADER_BYTES, Header, framed_len};
use super::segments::{self, SPARES_MAX};
use bytes::Bytes;
use ice_core::action::LogRecord;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Told, on the log thread, how a sync ended. Must be short and must not wait for the lane.
pub type SyncDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What the disk is about to be asked, for [`Options::fault`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Begin a segment.
    Create,
    /// Write this many bytes.
    Write(usize),
    /// `fdatasync`.
    Sync,
}

/// How a lane behaves.
#[derive(Clone)]
pub struct Options {
    /// Size of a segment. A record that needs more gets a segment of its own size.
    pub segment_bytes: u64,
    /// Above this many bytes in memory [`Backlog::over`] is set.
    pub backlog_max_bytes: usize,
    /// How long an append without a sync may wait for company before it is written.
    pub linger: Duration,
    /// The lane syncs by itself when this many bytes were written since the last sync: they are kept in memory until then.
    pub unsynced_max_bytes: usize,
    /// And when this much time passed: what the end of the whole machine can take from records that nobody waits for.
    pub unsynced_max_age: Duration,
    /// How often a broken lane tries by itself to become whole.
    pub retry: Duration,
    /// Asked before each disk access; an error it returns is taken as the disk's. For tests of what follows.
    pub fault: Option<Arc<dyn Fn(Fault) -> io::Result<()> + Send + Sync>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 16 << 20,
            backlog_max_bytes: 64 << 20,
            linger: Duration::from_millis(1),
            unsynced_max_bytes: 8 << 20,
            unsynced_max_age: Duration::from_secs(1),
            retry: Duration::from_secs(1),
            fault: None,
        }
    }
}

/// What the lane holds in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// Bytes of records and payloads that are not durable yet.
    pub bytes: usize,
    /// How many records that are.
    pub records: usize,
    /// The limit is exceeded: take no more work that appends to the log until it is not.
    pub over: bool,
}

/// Counters since the lane was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneStats {
    /// Records written.
    pub records: u64,
    /// Bytes written, framing included.
    pub bytes: u64,
    /// `fdatasync` calls that succeeded.
    pub syncs: u64,
    /// Syncs asked for.
    pub syncs_asked: u64,
    /// Time spent in `fdatasync`, in nanoseconds.
    pub sync_ns: u64,
    /// Times the lane became broken.
    pub failures: u64,
    /// Segments begun.
    pub segments: u64,
}

struct Queued {
    index: u64,
    record: Vec<u8>,
    payload: Option<Bytes>,
}

impl Queued {
    fn body_len(&self) -> usize {
        self.record.len() + self.payload.as_ref().map_or(0, Bytes::len)
    }
    /// With what keeping it costs.
    fn cost(&self) -> usize {
        self.body_len() + 96
    }
}

#[derive(Default)]
struct State {
    queue: Vec<Queued>,
    syncs: Vec<SyncDone>,
    reopen: Vec<mpsc::Sender<io::Result<()>>>,
    cut: Option<u64>,
    /// Bytes and records in `queue` and in the thread's `unsynced`.
    bytes: usize,
    records: usize,
    last_index: u64,
    broken: Option<String>,
    /// Set once and for good: a record that cannot be written at all.
    hopeless: Option<String>,
    stop: bool,
    /// The thread has ended.
    ended: bool,
    stats: LaneStats,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    spares: Mutex<Vec<PathBuf>>,
}

impl Shared {
    // State is only assigned, never left half-changed by code that could panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn spares(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing side of the log. See the [module](super) for the rules. Dropping it writes and syncs what is left and ends
/// the thread.
pub struct LogLane {
    shared: Arc<Shared>,
    backlog_max: usize,
    thread: Option<JoinHandle<()>>,
}

impl LogLane {
    /// Begins to write behind what [`super::recover`] left in `dir` (which must have run before, also on a new directory).
    pub fn open(dir: &Path, options: Options) -> io::Result<LogLane> {
        fs::create_dir_all(dir)?;
        let listing = segments::list(dir)?;
        let mut old = VecDeque::new();
        for segment in listing.segments {
            let header = segments::read_header(&segment.path)?
                .map_err(|why| io::Error::other(format!("{}: {why}", segment.path.display())))?;
            old.push_back(OldSegment { path: segment.path, first: header.first });
        }
        let mut spares = vec![];
        for path in listing.spares {
            if spares.len() < SPARES_MAX && fs::metadata(&path)?.len() == options.segment_bytes {
                spares.push(path);
            } else {
                fs::remove_file(&path)?;
            }
        }
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), wake: Condvar::new(), spares: Mutex::new(spares) });
        let (want_spare, spare_wanted) = mpsc::sync_channel(1);
        let backlog_max = options.backlog_max_bytes;
        let preparer = {
            let (dir, shared, bytes) = (dir.to_path_buf(), Arc::clone(&shared), options.segment_bytes);
            std::thread::Builder::new().name("ice-log-spare".into()).spawn(move || {
                while let Ok(number) = spare_wanted.recv() {
                    match segments::prepare_spare(&dir, number, bytes) {
                        Ok(path) => shared.spares().push(path),
                        // Not needed to go on: the segment is then made when it is needed, and tells its own error.
                        Err(error) => tracing::debug!(%error, "cannot prepare a log segment"),
                    }
                }
            })?
        };
        let mut writer = Writer {
            dir: dir.to_path_buf(),
            options,
            shared: Arc::clone(&shared),
            number: listing.highest,
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
            want_spare: Some(want_spare),
        };
        writer.order_spare();
        let thread = std::thread::Builder::new().name("ice-log".into()).spawn(move || {
            let _end = EndGuard(Arc::clone(&writer.shared));
            writer.run();
            // Ends the preparer.
            drop(writer.want_spare.take());
            if preparer.join().is_err() {
                tracing::error!("the thread that prepares log segments panicked");
            }
        })?;
        Ok(LogLane { shared, backlog_max, thread: Some(thread) })
    }

    /// Enqueues a record; its payload is referenced until it is durable. Never waits. Indexes must increase.
    ///
    /// Callers look at [`LogLane::backlog`] before they take on work that leads here; what is appended all the same is kept.
    pub fn append(&self, index: u64, record: &LogRecord, payload: Option<Bytes>) {
        let encoded = format::encode_record(record);
        let mut state = self.shared.lock();
        debug_assert!(index > state.last_index, "log index {index} after {}", state.last_index);
        state.last_index = index;
        let record = match encoded {
            Ok(record) => record,
            Err(e) => {
                state.hopeless.get_or_insert(format!("log record {index} cannot be encoded: {e}"));
                return;
            }
        };
        let queued = Queued { index, record, payload };
        if queued.body_len() > BODY_MAX_BYTES {
            let n = queued.body_len();
            state
                .hopeless
                .get_or_insert(format!("log record {index} of {n} bytes exceeds the limit of {BODY_MAX_BYTES}"));
            return;
        }
        state.bytes += queued.cost();
        state.records += 1;
        let first = state.queue.is_empty();
        state.queue.push(queued);
        drop(state);
        // The thread takes all that has gathered; it needs to be woken only once.
        if first {
            self.shared.wake.notify_one();
        }
    }

    /// Makes all that was appended before durable, then calls `done`, exactly once. On a broken lane it fails at once.
    pub fn sync(&self, done: SyncDone) {
        let mut state = self.shared.lock();
        state.stats.syncs_asked += 1;
        if state.ended {
            drop(state);
            done(Err(io::Error::other("the log is closed")));
            return;
        }
        state.syncs.push(done);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// [`LogLane::sync`] that waits.
    pub fn sync_blocking(&self) -> io::Result<()> {
        let (tx, rx) = mpsc::channel();
        self.sync(Box::new(move |r| {
            // The receiver waits below; it cannot be gone.
            let _ = tx.send(r);
        }));
        rx.recv().map_err(|_| io::Error::other("the log thread has ended"))?
    }

    /// What is in memory and not durable.
    pub fn backlog(&self) -> Backlog {
        let state = self.shared.lock();
        Backlog { bytes: state.bytes, records: state.records, over: state.bytes > self.backlog_max }
    }

    /// Segments that hold only records below `below` are dropped, soon. Call it when a checkpoint that covers them is durable.
    pub fn cut(&self, below: u64) {
        let mut state = self.shared.lock();
        state.cut = Some(state.cut.unwrap_or(0).max(below));
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Why the lane is broken, if it is.
    pub fn broken(&self) -> Option<String> {
        let state = self.shared.lock();
        state.hopeless.clone().or_else(|| state.broken.clone())
    }

    /// Tries at once to make a broken lane whole, and waits for the outcome. Does nothing to one that is whole.
    pub fn reopen(&self) -> io::Result<()> {
        let (tx, rx) = mpsc::channel();
        {
            let mut state = self.shared.lock();
            if state.ended {
                return Err(io::Error::other("the log is closed"));
            }
            state.reopen.push(tx);
        }
        self.shared.wake.notify_one();
        rx.recv().map_err(|_| io::Error::other("the log thread has ended"))?
    }

    /// Counters.
    pub fn stats(&self) -> LaneStats {
        self.shared.lock().stats
    }

    /// Writes and syncs what is left and ends the thread. The error, if any, is why not all of it is durable.
    pub fn close(mut self) -> io::Result<()> {
        let last = self.sync_blocking();
        self.stop();
        last
    }

    fn stop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log thread panicked");
        }
    }
}

impl Drop for LogLane {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

/// However the thread ends, nobody waits for it afterwards.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let (syncs, reopen) = {
            let mut state = self.0.lock();
            state.ended = true;
            (std::mem::take(&mut state.syncs), std::mem::take(&mut state.reopen))
        };
        for done in syncs {
            done(Err(io::Error::other("the log is closed")));
        }
        drop(reopen);
    }
}

struct OldSegment {
    path: PathBuf,
    first: u64,
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

struct Writer {
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
    want_spare: Option<mpsc::SyncSender<u64>>,
}

struct Work {
    syncs: Vec<SyncDone>,
    reopen: Vec<mpsc::Sender<io::Result<()>>>,
    cut: Option<u64>,
    hopeless: Option<String>,
    stop: bool,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let work = self.take_work();
            let failed = match &work.hopeless {
                Some(why) => Some((io::ErrorKind::InvalidData, why.clone())),
                None => self.attend(!work.syncs.is_empty() || work.stop, !work.reopen.is_empty() || work.stop),
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
            let urgent = !state.syncs.is_empty() || !state.reopen.is_empty() || state.cut.is_some() || state.stop;
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
        let (mut bytes, mut records) = (0, 0);
        for q in self.unsynced.drain(..self.written) {
            self.durable = self.durable.max(q.index);
            bytes += q.cost();
            records += 1;
        }
        self.written = 0;
        self.unsynced_bytes -= bytes;
        self.unsynced_since = None;
        let mut state = self.shared.lock();
        state.bytes -= bytes;
        state.records -= records;
        Ok(())
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
        if self.shared.spares().is_empty()
            && let Some(want) = &self.want_spare
        {
            // Spares have names of their own range: they are renamed when they are used. Full means one is being made.
            let _ = want.try_send(self.number + 1);
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
    }
}
