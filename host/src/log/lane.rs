//! The writing side: a bounded buffer and one thread that empties it.

use super::format::{self, BODY_MAX_BYTES};
use super::segments::{self, SPARES_MAX};
use super::writer::{EndGuard, OldSegment, Writer};
use bytes::Bytes;
use ice_core::action::LogRecord;
use std::collections::VecDeque;
use std::fs;
use std::io;
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

/// So many times the limit of what waits in memory is more than can be borne: the disk has failed or is full, for long.
pub const FULL: usize = 4;

/// What the lane holds in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// Bytes of records and payloads that are not durable yet.
    pub bytes: usize,
    /// How many records that are.
    pub records: usize,
    /// The limit is exceeded: take no more work that appends to the log until it is not.
    pub over: bool,
    /// It is exceeded [`FULL`] times: refuse such work.
    pub full: bool,
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

pub(super) struct Queued {
    pub(super) index: u64,
    pub(super) record: Vec<u8>,
    pub(super) payload: Option<Bytes>,
}

impl Queued {
    pub(super) fn body_len(&self) -> usize {
        self.record.len() + self.payload.as_ref().map_or(0, Bytes::len)
    }
    /// With what keeping it costs.
    pub(super) fn cost(&self) -> usize {
        self.body_len() + 96
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: Vec<Queued>,
    pub(super) syncs: Vec<SyncDone>,
    pub(super) reopen: Vec<mpsc::Sender<io::Result<()>>>,
    pub(super) cut: Option<u64>,
    /// Bytes and records in `queue` and in the thread's `unsynced`.
    pub(super) bytes: usize,
    pub(super) records: usize,
    pub(super) last_index: u64,
    /// Records up to this one were handed to the operating system.
    pub(super) written: u64,
    /// Somebody waits for that.
    pub(super) hurry: bool,
    pub(super) broken: Option<String>,
    /// Set once and for good: a record that cannot be written at all.
    pub(super) hopeless: Option<String>,
    pub(super) stop: bool,
    /// The thread has ended.
    pub(super) ended: bool,
    pub(super) stats: LaneStats,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    /// `written` moved, or it will not for now.
    pub(super) moved: Condvar,
    pub(super) spares: Mutex<Vec<PathBuf>>,
}

impl Shared {
    // State is only assigned, never left half-changed by code that could panic.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn spares(&self) -> MutexGuard<'_, Vec<PathBuf>> {
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
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            moved: Condvar::new(),
            spares: Mutex::new(spares),
        });
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
        let mut writer = Writer::new(dir, options, Arc::clone(&shared), listing.highest, old, want_spare);
        let ended = EndGuard(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("ice-log".into()).spawn(move || {
            let _ended = ended;
            writer.run();
            // Nobody orders spares any more, which ends the preparer.
            drop(writer);
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

    /// Waits until all that was appended before is handed to the operating system: from then on the end of the process cannot
    /// take it. False: the lane is broken or closed, or the disk has not answered for `limit`.
    pub fn written(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        let upto = state.last_index;
        while state.written < upto {
            if state.ended || state.broken.is_some() || state.hopeless.is_some() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if !std::mem::replace(&mut state.hurry, true) {
                self.shared.wake.notify_one();
            }
            state = self.shared.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What is in memory and not durable.
    pub fn backlog(&self) -> Backlog {
        let state = self.shared.lock();
        Backlog {
            bytes: state.bytes,
            records: state.records,
            over: state.bytes > self.backlog_max,
            full: state.bytes > self.backlog_max.saturating_mul(FULL),
        }
    }

    /// Segments that hold only records below `below` are dropped, soon. Call it when a checkpoint that covers them is durable.
    /// A broken lane forgets such records and tries at once to become whole.
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
