//! A mirror volume on real files: the directory `backing` and everything that happens in it.
//!
//! - Adapters call [`Volume`] through [`crate::vfs::Vfs`]: a change is made in `backing` by the ordinary system call, then
//!   told to the core ([`Port::change`]).
//! - The core's actions are carried out by [`Volume::submit`].
//! - `backing` is scanned and watched for direct edits, which become changes as well.
//! - Changed bytes are found, digested and told by the publisher (`publish`).
//!
//! **Locks**, in the order in which they are taken: one publisher per file, the namespace lock, a file's gate (writers
//! share it), then any one of the small ones (open files, one file's state, the core's own, queues). The namespace lock makes
//! each change of a name or of attributes and its telling one step; reads and writes of data do not take it.
//!
//! **Directories** are found by their path in the tree, below `backing`, never through symbolic links (`dirs`). The working
//! directory `backing/.icecluster` is not part of the volume (`hidden`).
//!
//! **What a witness means**: a regular file whose inode number, length, modification and change time are as recorded has the
//! recorded bytes. While a file is open for writing here, or its bytes were not told yet, the recorded sum is 0: after a crash
//! the scan then looks at the bytes. Of other objects the sum covers mode and owner. On kernels before 6.13 time stamps
//! move in steps of some milliseconds: a direct edit of equal length within the step of another change of the same file is
//! not seen before the next one. A direct change of a directory's times is not replicated.

#![allow(clippy::unnecessary_cast, reason = "the types of the fields of stat differ between platforms")]

mod adopt;
mod apply;
mod calls;
mod create;
mod data;
mod dir_times;
mod dirs;
mod extents;
mod found;
mod hidden;
mod hints;
mod list;
mod make;
mod mend;
mod meta;
mod opens;
mod outside;
mod port;
mod publish;
mod queue;
mod replace;
mod resolve;
mod scan;
mod settle;
mod spare;
mod staging;
mod stale;
mod sys;
mod vfs_impl;
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
#[path = "unwatched.rs"]
mod watch;
#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod watch;
mod xattrs;

pub use hidden::{HIDDEN_NAME, OpenError};
pub use outside::Outside;
pub use port::{Names, Port};
pub(crate) use sys::sync_fs;

use crate::volume::dirs::Dirs;
use crate::volume::hidden::Hidden;
use crate::volume::hints::Hints;
use crate::volume::list::DirHandle;
use crate::volume::opens::{Open, Opens};
use crate::volume::queue::Queue;
use crate::volume::settle::Unsettled;
use crate::volume::spare::Spares;
use crate::volume::stale::StaleQueue;
use crate::volume::watch::Watch;
use ice_core::action::Io;
use ice_core::event::Ack;
use ice_core::ids::{InodeId, ReplicaId};
use ice_core::time::Stamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that carry out the core's disk actions.
const APPLY_WORKERS: usize = 2;
/// Threads that digest large files.
const CONTENT_WORKERS: usize = 2;
/// Kinds of trouble kept for status.
const TROUBLES_MAX: usize = 100;

/// Settings of a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. It must exist.
    pub backing: PathBuf,
    /// Whose it is: its marker must stand there (see [`crate::identity::DataDir::claim_backing`]), so that a file system that
    /// is not mounted is never taken for a deletion of everything.
    pub replica: ReplicaId,
    /// What `fsync` waits for.
    pub ack: Ack,
    /// What `close` waits for. [`Ack::Local`]: nothing.
    pub close_ack: Ack,
    /// After that `fsync` and `close` give up.
    pub ack_timeout: Duration,
    /// After a machine crash: inodes named in the part of the log whose effects may not have reached the disk. If they are
    /// missing or different there, that is told as `Change::Lost` and `Change::Torn`, not as somebody's edit.
    pub suspects: BTreeSet<InodeId>,
    /// The machine crashed before this start: disk may show an earlier state than the tree.
    pub lost: bool,
    /// Watch `backing` for direct edits. Without it only scans find them.
    pub watch: bool,
    /// Between two scans of everything; `None`: only at the start and on demand.
    pub rescan: Option<Duration>,
}

impl Options {
    /// The product's defaults.
    pub fn new(backing: impl Into<PathBuf>, replica: ReplicaId) -> Options {
        Options {
            backing: backing.into(),
            replica,
            ack: Ack::Auto,
            close_ack: Ack::Local,
            ack_timeout: Duration::from_secs(10),
            suspects: BTreeSet::new(),
            lost: false,
            watch: true,
            rescan: None,
        }
    }
}

/// What status shows of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Everything that is wrong, in words. Empty: all is well.
    pub troubles: Vec<String>,
    /// Files that are open or whose bytes wait to be told.
    pub open_files: usize,
    /// Open descriptions.
    pub handles: usize,
    /// Files whose bytes wait to be told.
    pub dirty_files: usize,
    /// A scan of everything is under way or due.
    pub scanning: bool,
    /// Names and inodes that wait to be looked at.
    pub looks_due: usize,
}

/// A mirror volume. Cheap to clone; all clones are the same volume.
#[derive(Clone)]
pub struct Volume {
    s: Arc<Shared>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("backing", &self.s.options.backing).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    options: Options,
    /// May set any owner and open any file.
    privileged: bool,
    dirs: Dirs,
    hidden: Hidden,
    port: OnceLock<Arc<dyn Port>>,
    ns: Mutex<()>,
    opens: Opens,
    dir_handles: RwLock<HashMap<u64, Arc<DirHandle>>>,
    jobs: Queue<Io>,
    content: Queue<Arc<Open>>,
    hints: Hints,
    stale: StaleQueue,
    watch: Option<Watch>,
    unsettled: Unsettled,
    spares: Spares,
    /// Staged content that was there at the start and has not been compared with its digest since.
    unproven: Mutex<BTreeSet<(InodeId, Stamp)>>,
    /// Files with several names, by their number in `backing`.
    linked: Mutex<HashMap<u64, InodeId>>,
    suspects: Mutex<BTreeSet<InodeId>>,
    /// Files whose sync failed and whose bytes were not brought to the disk since.
    lost: Mutex<BTreeSet<InodeId>>,
    /// There were too many of them to remember.
    all_lost: AtomicBool,
    /// The machine crashed, and not everything was compared since.
    crashed: AtomicBool,
    /// Files that a process outside writes, and whose installation waits for that.
    busy_outside: Mutex<BTreeSet<InodeId>>,
    troubles: Mutex<BTreeMap<String, String>>,
    stopping: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Proof that the namespace lock is held.
pub(crate) struct Ns<'a> {
    _lock: MutexGuard<'a, ()>,
}

impl Volume {
    /// Opens `backing` and its working directory. Nothing else happens before [`Volume::start`].
    pub fn open(options: Options) -> Result<Volume, OpenError> {
        let backing = options.backing.display().to_string();
        let dirs = Dirs::open(&options.backing)
            .map_err(|errno| OpenError::Os { what: format!("opening backing {backing}"), errno })?;
        let hidden = Hidden::open(dirs.root(), options.replica)?;
        let mut troubles = BTreeMap::new();
        let unproven = staging::whole(hidden.tmp())
            .map_err(|errno| OpenError::Os { what: "reading the staging area".to_owned(), errno })?;
        let watch = match options.watch.then(Watch::new).transpose() {
            Ok(watch) => watch.flatten(),
            Err(e) => {
                troubles.insert("watch".to_owned(), format!("direct edits are only found by scans: inotify: {e}"));
                None
            }
        };
        let shared = Shared {
            privileged: rustix::process::geteuid().is_root(),
            dirs,
            hidden,
            port: OnceLock::new(),
            ns: Mutex::new(()),
            opens: Opens::default(),
            dir_handles: RwLock::default(),
            jobs: Queue::new(APPLY_WORKERS, apply::APPLY_BATCH),
            content: Queue::new(CONTENT_WORKERS, 1),
            hints: Hints::default(),
            stale: StaleQueue::default(),
            watch,
            unsettled: Unsettled::default(),
            spares: Spares::default(),
            unproven: Mutex::new(unproven),
            linked: Mutex::default(),
            busy_outside: Mutex::default(),
            suspects: Mutex::new(options.suspects.clone()),
            lost: Mutex::default(),
            all_lost: AtomicBool::new(false),
            crashed: AtomicBool::new(options.lost),
            troubles: Mutex::new(troubles),
            stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            options,
        };
        Ok(Volume { s: Arc::new(shared) })
    }

    /// Connects the core and starts the threads: workers, the watcher, and the scanner, which begins with everything.
    pub fn start(&self, port: Arc<dyn Port>) -> std::io::Result<()> {
        if self.s.port.set(port).is_err() {
            return Err(std::io::Error::other("the volume was started twice"));
        }
        self.s.keep_wanted();
        self.s.hints.all();
        let mut threads = self.s.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spawn = |name: &str, work: fn(&Shared)| -> std::io::Result<()> {
            let shared = Arc::clone(&self.s);
            threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&shared))?);
            Ok(())
        };
        for _ in 0..APPLY_WORKERS {
            spawn("ice-apply", Shared::run_jobs)?;
        }
        for _ in 0..CONTENT_WORKERS {
            spawn("ice-content", Shared::run_content)?;
        }
        spawn("ice-dirty", Shared::run_ticker)?;
        spawn("ice-scan", Shared::run_scanner)?;
        spawn("ice-stale", Shared::run_stale)?;
        spawn("ice-mend", Shared::run_mender)?;
        if self.s.watch.is_some() {
            spawn("ice-watch", Shared::run_watch)?;
        }
        Ok(())
    }

    /// Tells what is still untold, then ends the threads. Calls of adapters that come later are refused by the core.
    pub fn stop(&self) {
        self.s.flush_all();
        self.s.stopping.store(true, Ordering::SeqCst);
        self.s.jobs.close();
        self.s.content.close();
        self.s.hints.wake();
        self.s.stale.close();
        let threads: Vec<_> = self.s.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the volume had panicked");
            }
        }
        self.s.expire_spares(true);
    }

    /// Makes all of `backing` durable. False: bytes of a failed sync are not mended, so that nothing can be said of them.
    pub fn sync_backing(&self) -> std::io::Result<bool> {
        sys::sync_fs(self.backing_fd()?)?;
        Ok(self.s.all_mended())
    }

    /// Enqueues an action of the core: `Apply`, `Stage`, `Unstage` and `Rescan`. Never blocks; the completion comes later,
    /// from another thread. Other actions are handed back: they are not the volume's.
    pub fn submit(&self, io: Io) -> Result<(), Box<Io>> {
        match io {
            Io::Rescan { inode } => {
                self.s.hints.inode(inode);
                Ok(())
            }
            Io::Apply { .. } | Io::Stage { .. } | Io::Unstage { .. } => {
                // After `stop` nobody waits for completions any more.
                self.s.jobs.push(io);
                Ok(())
            }
            other => Err(Box::new(other)),
        }
    }

    /// Looks at everything again, in the background.
    pub fn rescan(&self) {
        self.s.hints.all();
    }

    /// For status.
    pub fn status(&self) -> VolumeStatus {
        let (open_files, handles) = self.s.opens.counts();
        VolumeStatus {
            troubles: self.s.troubles().values().cloned().collect(),
            open_files,
            handles,
            dirty_files: self.s.opens.dirty().len(),
            scanning: self.s.hints.all_due(),
            looks_due: self.s.hints.due(),
        }
    }

    /// The same volume for adapters other than the one whose cache [`crate::vfs::Vfs::on_stale`] feeds.
    pub fn outside(&self) -> Outside {
        Outside::new(self.clone())
    }
}

impl Shared {
    pub(crate) fn port(&self) -> Result<&dyn Port, rustix::io::Errno> {
        self.port.get().map(Arc::as_ref).ok_or(rustix::io::Errno::SHUTDOWN)
    }

    pub(crate) fn lock_ns(&self) -> Ns<'_> {
        // What the lock guards is on disk and in the core: a panic elsewhere leaves nothing half-done in memory.
        Ns { _lock: self.ns.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that an operator should know. One line for each `key`; the newest words stand.
    pub(crate) fn trouble(&self, key: &str, words: String) {
        let mut troubles = self.troubles();
        if troubles.get(key) == Some(&words) {
            return;
        }
        tracing::warn!(trouble = key, "{words}");
        if troubles.len() >= TROUBLES_MAX && !troubles.contains_key(key) {
            troubles.insert("~more".to_owned(), "there is more trouble than fits here; see the log".to_owned());
            return;
        }
        troubles.insert(key.to_owned(), words);
    }

    /// It is over.
    pub(crate) fn trouble_over(&self, key: &str) {
        if self.troubles().remove(key).is_some() {
            tracing::info!(trouble = key, "is over");
        }
    }

    /// A change may be made. `ENOSPC`: it could not be remembered, because the log's disk is full or has failed, for long.
    pub(crate) fn admit(&self) -> crate::vfs::Result<()> {
        if self.port()?.room() { Ok(()) } else { Err(rustix::io::Errno::NOSPC) }
    }

    /// For changes that are made even if the log does not keep up (they make room, or have been made already): their maker is
    /// slowed down, for a bounded time. Not to be called with a lock held.
    pub(crate) fn slow_down(&self) {
        if let Ok(port) = self.port() {
            port.room();
        }
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
