//! Requests that wait.
//!
//! Their answer lies in a [`Slot`] from which either the finished work or the watcher takes it. The watcher looks at the
//! signals of the threads that wait (module `signals`) and answers `EINTR` for those that should leave; the work goes on.

use crate::pool::{Job, Pool};
use crate::signals;
use fuser::{Errno, ReplyCreate, ReplyEmpty, ReplyOpen, ReplyWrite};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(50);
/// With nothing to watch for this long it sleeps until called.
const LINGER: Duration = Duration::from_secs(1);

/// An answer that can be an error.
pub(crate) trait Refuse: Send + 'static {
    fn refuse(self, e: Errno);
}

impl Refuse for ReplyEmpty {
    fn refuse(self, e: Errno) {
        self.error(e);
    }
}
impl Refuse for ReplyOpen {
    fn refuse(self, e: Errno) {
        self.error(e);
    }
}
impl Refuse for ReplyCreate {
    fn refuse(self, e: Errno) {
        self.error(e);
    }
}
impl Refuse for ReplyWrite {
    fn refuse(self, e: Errno) {
        self.error(e);
    }
}

/// Holds the answer of a request that waits.
pub(crate) struct Slot<R> {
    tid: u32,
    reply: Mutex<Option<R>>,
}

impl<R: Refuse> Slot<R> {
    pub(crate) fn new(tid: u32, reply: R) -> Arc<Slot<R>> {
        Arc::new(Slot { tid, reply: Mutex::new(Some(reply)) })
    }

    /// Nobody has answered yet.
    pub(crate) fn waits(&self) -> bool {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The answer, unless the caller was sent away meanwhile.
    pub(crate) fn take(&self) -> Option<R> {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Somebody who waits and can be sent away.
pub(crate) trait Interrupt: Send + Sync {
    /// The thread that waits.
    fn tid(&self) -> u32;
    /// Every signal that it catches ends its wait; otherwise only those by which it is asked to end.
    fn by_every_signal(&self) -> bool {
        false
    }
    /// Sends it away.
    fn interrupt(&self);
}

impl<R: Refuse> Interrupt for Slot<R> {
    fn tid(&self) -> u32 {
        self.tid
    }
    fn interrupt(&self) {
        if let Some(reply) = self.take() {
            reply.refuse(Errno::EINTR);
        }
    }
}

struct Parked {
    slot: Arc<dyn Interrupt>,
    since: Instant,
    /// A signal to the whole process was pending at the last look.
    shared: bool,
}

#[derive(Default)]
struct Watched {
    parked: HashMap<u64, Parked>,
    next: u64,
    asleep: bool,
    closed: bool,
}

#[derive(Default)]
struct Watch {
    state: Mutex<Watched>,
    call: Condvar,
}

impl Watch {
    fn run(&self) {
        let mut quiet = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            if !state.parked.is_empty() {
                quiet = Instant::now();
            }
            if quiet.elapsed() > LINGER {
                state.asleep = true;
                state = self.call.wait_while(state, |s| s.asleep && !s.closed).unwrap_or_else(PoisonError::into_inner);
                quiet = Instant::now();
                continue;
            }
            state = self.call.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            let now = Instant::now();
            let waiting: Vec<(u64, u32, bool, bool)> = state
                .parked
                .iter()
                .filter(|(_, p)| now.duration_since(p.since) >= TICK)
                .map(|(id, p)| (*id, p.slot.tid(), p.slot.by_every_signal(), p.shared))
                .collect();
            if waiting.is_empty() {
                continue;
            }
            drop(state);
            let seen: Vec<(u64, bool, bool)> = waiting
                .into_iter()
                .map(|(id, tid, every, before)| {
                    let wanted = signals::look(tid, every);
                    // One look is not enough for a signal that another thread may take.
                    (id, wanted.thread || (wanted.shared && before), wanted.shared)
                })
                .collect();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, leave, shared) in seen {
                if leave {
                    if let Some(parked) = state.parked.remove(&id) {
                        parked.slot.interrupt();
                    }
                } else if let Some(parked) = state.parked.get_mut(&id) {
                    parked.shared = shared;
                }
            }
        }
    }

    fn add(&self, slot: Arc<dyn Interrupt>) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let id = state.next;
        state.next += 1;
        state.parked.insert(id, Parked { slot, since: Instant::now(), shared: false });
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.call.notify_one();
        }
        id
    }

    fn remove(&self, id: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).parked.remove(&id);
    }
}

/// A handle for which work may still be going on when its caller is gone: files, and directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Handle {
    File(u64),
    Dir(u64),
}

/// A thread of the session may wait. Given back when dropped.
pub(crate) struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs work that may wait, watched.
pub(crate) struct Parking {
    /// For what waits for other nodes.
    pool: Pool,
    /// For what waits for the disk.
    disk: Pool,
    watch: Arc<Watch>,
    /// Kernel threads that may wait by themselves, so that at least one never does.
    inline_limit: usize,
    inline: AtomicUsize,
    /// Work in progress per handle, and whether the handle is to be released after it.
    busy: Mutex<HashMap<Handle, (u32, bool)>>,
}

impl Parking {
    /// For a session with this many threads.
    ///
    /// # Errors
    /// The watcher's thread cannot be started.
    pub(crate) fn new(threads: usize) -> std::io::Result<Parking> {
        let watch = Arc::<Watch>::default();
        let for_thread = Arc::clone(&watch);
        std::thread::Builder::new().name("ice-fuse-watch".into()).spawn(move || for_thread.run())?;
        Ok(Parking {
            pool: Pool::default(),
            disk: Pool::default(),
            watch,
            inline_limit: threads.saturating_sub(1),
            inline: AtomicUsize::new(0),
            busy: Mutex::default(),
        })
    }

    /// Leave for this thread to wait: given as long as another one stays free to answer the kernel.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        let turn = Turn(&self.inline);
        (self.inline.fetch_add(1, Ordering::SeqCst) < self.inline_limit).then_some(turn)
    }

    /// Work that usually ends at once: done by this thread as long as enough others are free to answer the kernel.
    pub(crate) fn short<R: Refuse>(self: &Arc<Self>, slot: &Arc<Slot<R>>, work: impl FnOnce() + Send + 'static) {
        match self.turn() {
            Some(_turn) => {
                let id = self.watch.add(Arc::clone(slot) as Arc<dyn Interrupt>);
                work();
                self.watch.remove(id);
            }
            None => self.long(slot, work),
        }
    }

    /// Work that may wait for the disk, and cannot be given up: done by this thread as long as enough others are free.
    pub(crate) fn disk(&self, work: impl FnOnce() + Send + 'static) {
        match self.turn() {
            Some(_turn) => work(),
            None => self.hand_over(work),
        }
    }

    /// [`Parking::disk`] for work that was given no turn: done by another thread, or by this one if too much is waiting already.
    pub(crate) fn hand_over(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(job) = self.disk.submit(Box::new(work)) {
            job();
        }
    }

    /// Somebody waits whose work is done elsewhere: watched until [`Parking::forget`].
    pub(crate) fn watch(&self, slot: Arc<dyn Interrupt>) -> u64 {
        self.watch.add(slot)
    }

    /// Somebody who was watched has his answer.
    pub(crate) fn forget(&self, id: u64) {
        self.watch.remove(id);
    }

    /// Work that usually waits: done by another thread, or by this one if too much is waiting already.
    pub(crate) fn long<R: Refuse>(self: &Arc<Self>, slot: &Arc<Slot<R>>, work: impl FnOnce() + Send + 'static) {
        let id = self.watch.add(Arc::clone(slot) as Arc<dyn Interrupt>);
        let watch = Arc::clone(&self.watch);
        let job: Job = Box::new(move || {
            work();
            watch.remove(id);
        });
        if let Err(job) = self.pool.submit(job) {
            job();
        }
    }

    /// Work on a handle begins.
    pub(crate) fn begin(&self, handle: Handle) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).entry(handle).or_insert((0, false)).0 += 1;
    }

    /// Work on a handle ended. True: release the handle now.
    pub(crate) fn end(&self, handle: Handle) -> bool {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        match busy.get_mut(&handle) {
            Some((n, _)) if *n > 1 => {
                *n -= 1;
                false
            }
            Some(_) => busy.remove(&handle).is_some_and(|(_, release)| release),
            None => false,
        }
    }

    /// The kernel released a handle. True: release it now; else [`Parking::end`] will say so.
    pub(crate) fn release(&self, handle: Handle) -> bool {
        match self.busy.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&handle) {
            Some((_, release)) => {
                *release = true;
                false
            }
            None => true,
        }
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        self.watch.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.watch.call.notify_one();
    }
}
