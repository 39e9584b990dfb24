//! Locks that hold in the whole cluster, where there is a control plane.
//!
//! `flock` and `fcntl` locks are asked for in the control plane, in tasks of its runtime: whoever waits for one occupies no thread. The
//! watcher of module `park` sees whether somebody who waits wants to leave. Both kinds are kept apart, as Linux does; which one a
//! request is of, the system call tells in which its caller waits (module `syscalls`). Where that cannot be seen, the lock is taken in
//! both kinds, which excludes more than it had to.
//!
//! What a program wrote is told to the volume before its lock is given back.

use crate::park::{Interrupt, Parking, Refuse, Slot};
use crate::syscalls;
use fuser::{Errno, ReplyEmpty, ReplyLock};
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt, Shared};
use ice_core::kv::Error;
use ice_host::locks::{FileLock, Grant, Kind, LockPath, Locking, Locks, Mode, Refused, Session, Span, WriteLock};
use rustix::io::Errno as Sys;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::debug;

/// So long somebody who is called off waits for word of what became of his lock.
const GRACE: Duration = Duration::from_millis(250);
/// Longest wait for the end of the session in the control plane.
const END_MAX: Duration = Duration::from_secs(2);
/// The kernel's last byte of a file.
const OFFSET_MAX: u64 = i64::MAX as u64;

const BOTH: &[Kind] = &[Kind::Posix, Kind::Flock];

/// The locks of a mount.
pub(crate) struct MountLocks {
    locking: Locking,
    session: Arc<dyn Session>,
    /// Of the files that are open for writing, where there is one writer at a time.
    writers: Mutex<HashMap<u64, WriteLock>>,
}

/// A request that waits in the control plane.
struct Waiting<R> {
    slot: Arc<Slot<R>>,
    tid: u32,
    locks: Arc<dyn Locks>,
    give_up: Mutex<Option<oneshot::Sender<()>>>,
    called_off: AtomicBool,
    /// For a lock: any signal that is caught ends the wait, and who leaves waits a moment for word of what became of it.
    for_lock: bool,
}

type GiveUp = Shared<BoxFuture<'static, ()>>;

impl<R: Refuse> Waiting<R> {
    fn new(tid: u32, slot: Arc<Slot<R>>, locks: &Arc<dyn Locks>, for_lock: bool) -> (Arc<Waiting<R>>, GiveUp) {
        let (tell, told) = oneshot::channel();
        let give_up = Mutex::new(Some(tell));
        let called_off = AtomicBool::new(false);
        let waiting = Waiting { slot, tid, locks: locks.clone(), give_up, called_off, for_lock };
        // Told, or dropped with the request.
        (Arc::new(waiting), told.map(|_| ()).boxed().shared())
    }
}

impl<R: Refuse> Interrupt for Waiting<R> {
    fn tid(&self) -> u32 {
        self.tid
    }
    fn by_every_signal(&self) -> bool {
        self.for_lock
    }
    fn interrupt(&self) {
        self.called_off.store(true, Ordering::SeqCst);
        drop(self.give_up.lock().unwrap_or_else(PoisonError::into_inner).take());
        if !self.for_lock {
            return self.slot.interrupt();
        }
        let (slot, grace) = (self.slot.clone(), self.locks.sleep(GRACE));
        self.locks.spawn(Box::pin(async move {
            grace.await;
            slot.interrupt();
        }));
    }
}

/// A lock that cannot be had, as errno.
fn errno(e: &Refused, called_off: bool) -> Errno {
    match e {
        Refused::Timeout if called_off => Errno::EINTR,
        Refused::Store(Error::Locked) => Errno::EAGAIN,
        Refused::Store(Error::Deadlock) => Errno::EDEADLK,
        Refused::Store(Error::InvalidLock) => Errno::EINVAL,
        e => {
            debug!("a lock cannot be had: {e}");
            Errno::ENOLCK
        }
    }
}

/// A write lock that cannot be had, as errno.
fn write_errno(e: &Refused) -> Errno {
    match e {
        Refused::Store(Error::Locked) => Errno::EBUSY,
        e => {
            debug!("a file cannot be locked for writing: {e}");
            Errno::ENOLCK
        }
    }
}

/// The kernel's range.
fn span(start: u64, end: u64) -> Option<Span> {
    (start <= end).then_some(Span { first: start, last: if end >= OFFSET_MAX { u64::MAX } else { end } })
}

fn kinds(tid: u32, span: Span) -> &'static [Kind] {
    // Only the whole of a file can be locked by `flock`.
    if span != Span::ALL {
        return &[Kind::Posix];
    }
    match syscalls::of(tid) {
        Some(libc::SYS_flock) => &[Kind::Flock],
        Some(libc::SYS_fcntl) => &[Kind::Posix],
        _ => BOTH,
    }
}

/// What the kernel says of a lock.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) tid: u32,
    pub(crate) pid: u32,
    pub(crate) ino: u64,
    pub(crate) fh: u64,
    pub(crate) owner: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) typ: i32,
    pub(crate) wait: bool,
}

impl Asked {
    /// `None`: not a lock.
    fn lock(&self) -> Option<FileLock> {
        let mode = match self.typ {
            libc::F_RDLCK => Mode::Shared,
            libc::F_WRLCK => Mode::Exclusive,
            _ => return None,
        };
        let (ino, handle, owner, pid, wait) = (self.ino, self.fh, self.owner, self.pid, self.wait);
        let span = span(self.start, self.end)?;
        Some(FileLock { kind: Kind::Posix, ino, handle, owner, pid, mode, span, wait })
    }
}

/// A range that is given back.
#[derive(Clone, Copy)]
pub(crate) struct Back {
    ino: u64,
    owner: u64,
    span: Span,
    kinds: &'static [Kind],
}

/// A lock that is being taken, kind by kind.
struct Taking {
    waiting: Arc<Waiting<ReplyEmpty>>,
    watched: u64,
    parking: Arc<Parking>,
    give_up: GiveUp,
    ask: FileLock,
    kinds: &'static [Kind],
}

impl MountLocks {
    pub(crate) fn new(locking: Locking) -> Arc<MountLocks> {
        let session = locking.locks.session();
        Arc::new(MountLocks { locking, session, writers: Mutex::default() })
    }

    /// `F_SETLK`, `F_SETLKW`, `flock`: all but giving back.
    pub(crate) fn lock(self: &Arc<Self>, parking: &Arc<Parking>, asked: Asked, reply: ReplyEmpty) {
        let Some(ask) = asked.lock() else { return reply.error(Errno::EINVAL) };
        let (waiting, give_up) = Waiting::new(asked.tid, Slot::new(asked.tid, reply), &self.locking.locks, true);
        let watched = parking.watch(waiting.clone());
        let kinds = kinds(asked.tid, ask.span);
        self.take(Taking { waiting, watched, parking: parking.clone(), give_up, ask, kinds }, 0);
    }

    /// Takes the lock in the kinds from this one on.
    fn take(self: &Arc<Self>, taking: Taking, at: usize) {
        let ask = FileLock { kind: taking.kinds[at], ..taking.ask };
        let (me, give_up) = (self.clone(), taking.give_up.clone().boxed());
        let tell = move |outcome: Result<Grant, Refused>| {
            if outcome.is_ok() && at + 1 < taking.kinds.len() && taking.waiting.slot.waits() {
                me.take(taking, at + 1);
                return true;
            }
            taking.parking.forget(taking.watched);
            let called_off = taking.waiting.called_off.load(Ordering::SeqCst);
            let reply = taking.waiting.slot.take();
            let heard = reply.is_some();
            if outcome.is_err() || !heard {
                for kind in &taking.kinds[..at] {
                    // Nobody waits for it.
                    drop(me.session.unlock(*kind, ask.ino, ask.owner, ask.span));
                }
            }
            match (reply, outcome) {
                (Some(reply), Ok(_)) => reply.ok(),
                (Some(reply), Err(e)) => reply.error(errno(&e, called_off)),
                (None, _) => {}
            }
            heard
        };
        self.session.lock(ask, give_up, Box::new(tell));
    }

    /// Whether there is anything to give back.
    pub(crate) fn holds(&self, ino: u64, owner: u64) -> bool {
        self.session.holds(ino, owner)
    }

    /// What a caller gives back, while he waits for it. `None`: not a range.
    pub(crate) fn given_back(&self, asked: &Asked) -> Option<Back> {
        let span = span(asked.start, asked.end)?;
        Some(Back { ino: asked.ino, owner: asked.owner, span, kinds: kinds(asked.tid, span) })
    }

    /// Gives a range back, and waits for that.
    pub(crate) fn unlock(&self, back: Back) {
        for kind in back.kinds {
            if let Some(returned) = self.session.unlock(*kind, back.ino, back.owner, back.span) {
                self.wait_for(returned);
            }
        }
    }

    /// A descriptor was closed by a process.
    pub(crate) fn flushed(&self, ino: u64, owner: u64) {
        if let Some(returned) = self.session.flushed(ino, owner) {
            self.wait_for(returned);
        }
    }

    /// An open file was closed for good.
    pub(crate) fn released(&self, fh: u64) {
        if let Some(returned) = self.session.released(fh) {
            self.locking.locks.spawn(returned);
        }
        let writer = self.writers.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh);
        drop(writer);
    }

    /// `F_GETLK`.
    pub(crate) fn test(&self, asked: &Asked, reply: ReplyLock) {
        let Some(ask) = asked.lock() else { return reply.error(Errno::EINVAL) };
        let found = self.session.test(ask);
        self.locking.locks.spawn(Box::pin(async move {
            match found.await {
                Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
                Ok(Some(c)) => {
                    let typ = if c.mode == Mode::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                    reply.locked(c.span.first, c.span.last.min(OFFSET_MAX), typ, c.pid);
                }
                Err(e) => reply.error(errno(&e, false)),
            }
        }));
    }

    /// Files have one writer at a time.
    pub(crate) fn one_writer(&self) -> bool {
        self.locking.on_write
    }

    /// Waits to be a file's only writer, and goes on with `then` in a task that must not wait; unless that is refused, or the caller
    /// leaves.
    pub(crate) fn write<R: Refuse>(
        &self,
        parking: &Arc<Parking>,
        tid: u32,
        slot: &Arc<Slot<R>>,
        path: LockPath,
        then: impl FnOnce(WriteLock) + Send + 'static,
    ) {
        let (waiting, give_up) = Waiting::new(tid, slot.clone(), &self.locking.locks, false);
        let watched = parking.watch(waiting.clone());
        let (parking, slot) = (parking.clone(), slot.clone());
        let becoming = self.locking.locks.write(path, give_up.boxed());
        self.locking.locks.spawn(Box::pin(async move {
            let outcome = becoming.await;
            parking.forget(watched);
            drop(waiting);
            match outcome {
                Ok(lock) if slot.waits() => then(lock),
                Ok(_) => {}
                Err(e) => {
                    if let Some(reply) = slot.take() {
                        reply.refuse(write_errno(&e));
                    }
                }
            }
        }));
    }

    /// The writer has opened his file.
    pub(crate) fn writes(&self, fh: u64, lock: WriteLock) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).insert(fh, lock);
    }

    /// Whether what stands at a path may be deleted, as far as is known here.
    pub(crate) fn may_delete(&self, path: impl FnOnce() -> Option<LockPath>) -> Result<(), Sys> {
        if self.locking.delete_while_locked {
            return Ok(());
        }
        let Some(path) = path() else { return Ok(()) };
        // Most often it is known at once.
        let holder = match self.locking.locks.foreign_holder(path.clone()).now_or_never() {
            Some(holder) => holder,
            None => {
                let (tell, told) = mpsc::channel();
                let asking = self.locking.locks.foreign_holder(path);
                self.locking.locks.spawn(Box::pin(async move {
                    // Somebody waits for it.
                    let _ = tell.send(asking.await);
                }));
                told.recv().map_err(|_| Sys::AGAIN)?
            }
        };
        match holder {
            Ok(None) => Ok(()),
            Ok(Some(holder)) => {
                debug!(holder, "a deletion is refused: the path is locked");
                Err(Sys::BUSY)
            }
            Err(e) => {
                debug!("a deletion is refused: {e}");
                Err(Sys::AGAIN)
            }
        }
    }

    /// The mount has ended: everything of it goes.
    pub(crate) fn end(&self) {
        let writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        drop(writers);
        let ending = self.session.end();
        let (tell, told) = mpsc::channel();
        self.locking.locks.spawn(Box::pin(async move {
            ending.await;
            // Perhaps nobody waits any more.
            let _ = tell.send(());
        }));
        if told.recv_timeout(END_MAX).is_err() {
            debug!("the locks of the mount end in the background");
        }
    }

    fn wait_for(&self, returned: BoxFuture<'static, ()>) {
        let (tell, told) = mpsc::channel();
        self.locking.locks.spawn(Box::pin(async move {
            returned.await;
            // Somebody waits for it.
            let _ = tell.send(());
        }));
        // It ends by itself; an error says that the runtime has ended, and with it the node.
        let _ = told.recv();
    }
}

#[cfg(test)]
mod tests {
    use crate::support::{DirVfs, can_mount, eventually, plane};
    use crate::syscalls::BLIND_TO;
    use crate::{Mount, MountOptions};
    use ice_host::locks::{LockService, Locking, Options};
    use rustix::fs::FlockOperation::{NonBlockingLockExclusive as Exclusive, NonBlockingLockShared as Shared, Unlock};
    use rustix::fs::{fcntl_lock, flock};
    use rustix::io::Errno;
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    /// What cannot be told apart stands against both kinds.
    #[test]
    fn a_lock_of_an_unknown_kind_is_one_of_both() {
        if !can_mount() {
            return;
        }
        let dir = ice_testing::tempdir();
        std::fs::create_dir(dir.path().join("backing")).unwrap();
        std::fs::write(dir.path().join("backing/f"), "").unwrap();
        let (plane, runtime) = (plane::Plane::new(), ice_tokio::Tokio::new(1).unwrap());
        let mounts = [0, 1].map(|n| {
            let mnt = dir.path().join(format!("mnt{n}"));
            std::fs::create_dir(&mnt).unwrap();
            let node = plane::NAMES[n].into();
            let options = Options { node, timeout: ice_testing::PATIENCE, retry: Duration::from_millis(20) };
            let locks = Arc::new(LockService::new(plane.beside(n), runtime.clone(), options));
            let locking = Some(Locking { locks, on_write: false, delete_while_locked: true });
            let vfs = Arc::new(DirVfs::new(&dir.path().join("backing")));
            Mount::start(vfs, MountOptions { locking, ..MountOptions::new(mnt) }).unwrap()
        });
        let open = |n: usize| File::options().read(true).write(true).open(mounts[n].mountpoint().join("f")).unwrap();
        let (unseen, seen) = (open(0), open(1));
        let me = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let blind = |call: &dyn Fn() -> Result<(), Errno>| {
            BLIND_TO.store(me, Ordering::SeqCst);
            let done = call();
            BLIND_TO.store(0, Ordering::SeqCst);
            done
        };
        let held = || plane.lock().store().locks().held();
        let no = Err(Errno::WOULDBLOCK);
        blind(&|| flock(&unseen, Exclusive)).unwrap();
        assert_eq!((flock(&seen, Shared), fcntl_lock(&seen, Shared), held()), (no, no, 2));
        blind(&|| flock(&unseen, Unlock)).unwrap();
        assert_eq!(held(), 0);
        // Of which one cannot be had, nothing is kept.
        flock(&seen, Shared).unwrap();
        assert_eq!(blind(&|| flock(&unseen, Exclusive)), no);
        assert_eq!(blind(&|| fcntl_lock(&unseen, Exclusive)), no);
        eventually("the other kind is free", || held() == 1);
        fcntl_lock(&seen, Exclusive).unwrap();
        drop(seen);
        eventually("free", || blind(&|| fcntl_lock(&unseen, Exclusive)).is_ok());
        drop(unseen);
        eventually("closing ends both", || held() == 0);
        for mount in mounts {
            mount.unmount(Duration::from_secs(10)).unwrap();
        }
    }
}
