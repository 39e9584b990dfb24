//! File locks of a mount.
//!
//! A session remembers which owner may hold something on which file, so that closing a file on which nobody did costs nothing, and
//! gives it all back in the end. Nothing is asked for on behalf of an owner and a file while something of theirs is being given
//! back, or a wait of theirs withdrawn: it could undo what was granted after it.

use super::service::{Inner, now_ms, out_of_reach, until_done};
use super::{Answer, Grant, Kind, Mode, Options, Span};
use crate::control::{ControlPlane, Freshness, Refused, Result};
use crate::runtime::Runtime;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, Shared, select};
use ice_core::ids::{InodeId, ReplicaId};
use ice_core::kv::Error;
use ice_core::kv::lock::files::{File, Lock};
use ice_core::kv::lock::{FileKey, LockAction, Owner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// As long as it takes: who waits is called off by signals only.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A request for a file lock, or a question about one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileLock {
    /// Which kind.
    pub kind: Kind,
    /// The file's inode number, the same on every node.
    pub ino: u64,
    /// The open file through which it is asked for; unique among those of the session that are open.
    pub handle: u64,
    /// Who asks, as the kernel calls him.
    pub owner: u64,
    /// His process, as he will be named to other processes of this node.
    pub pid: u32,
    /// How.
    pub mode: Mode,
    /// Which bytes.
    pub span: Span,
    /// Wait for those who stand before it.
    pub wait: bool,
}

/// What stands against a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// How it is held.
    pub mode: Mode,
    /// Which bytes.
    pub span: Span,
    /// The process that holds it, if it is one of this session; else 0.
    pub pid: u32,
}

/// File locks of a mount: they end with it.
pub trait Session: Send + Sync + 'static {
    /// Whether an owner may hold something on a file.
    fn holds(&self, ino: u64, owner: u64) -> bool;
    /// Takes a lock; `tell` is called with the outcome, and answers whether anybody heard it: what nobody heard of is given back.
    /// When `give_up` ends, a wait ends with `Timeout`, unless it was granted before. Errors: `Store(Error::Locked)` where it may
    /// not wait, `Store(Error::Deadlock)`, and others of [`Refused`].
    fn lock(&self, ask: FileLock, give_up: BoxFuture<'static, ()>, tell: Box<dyn FnOnce(Result<Grant>) -> bool + Send>);
    /// Gives a range back; returns when that is done, or will be done in the background. `None`: the owner holds nothing there.
    fn unlock(&self, kind: Kind, ino: u64, owner: u64, span: Span) -> Option<BoxFuture<'static, ()>>;
    /// A process closed a descriptor of a file: all its locks of the kind `fcntl` on it end. As [`Session::unlock`].
    fn flushed(&self, ino: u64, owner: u64) -> Option<BoxFuture<'static, ()>>;
    /// An open file is closed for good: what was asked for through it only ends. As [`Session::unlock`].
    fn released(&self, handle: u64) -> Option<BoxFuture<'static, ()>>;
    /// What stands against a lock, if anything does.
    fn test(&self, ask: FileLock) -> Answer<Option<Conflict>>;
    /// Everything ends. As [`Session::unlock`]; nothing may be asked for after it.
    fn end(&self) -> BoxFuture<'static, ()>;
}

/// On what, and whose.
type Place = (Kind, u64, u64);

#[derive(Default)]
struct Entry {
    /// Open files through which something was asked for.
    handles: BTreeSet<u64>,
    pid: u32,
    /// Something may be held.
    held: bool,
    /// Counts what was granted.
    grants: u64,
    /// Requests whose outcome is not known yet.
    asked: usize,
    /// Withdrawals and returns under way.
    settling: usize,
    /// Who waits for the end of those.
    then: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Place, Entry>,
    by_handle: BTreeMap<u64, BTreeSet<Place>>,
    ended: bool,
}

impl Table {
    fn forget(&mut self, place: Place, handles: &BTreeSet<u64>) {
        for handle in handles {
            if let Some(places) = self.by_handle.get_mut(handle) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_handle.remove(handle);
                }
            }
        }
    }

    /// Drops an entry of which nothing is left.
    fn tidy(&mut self, place: Place) {
        let idle = |e: &Entry| !e.held && e.asked == 0 && e.settling == 0;
        if self.entries.get(&place).is_some_and(idle)
            && let Some(entry) = self.entries.remove(&place)
        {
            self.forget(place, &entry.handles);
        }
    }

    fn settled(&mut self, place: Place) {
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.settling -= 1;
            if entry.settling == 0 {
                entry.then.clear();
            }
        }
        self.tidy(place);
    }
}

/// [`Session`] over a control plane.
pub(super) struct OneSession<P: ControlPlane, R: Runtime>(Arc<State<P, R>>);

struct State<P: ControlPlane, R: Runtime> {
    service: Arc<Inner<P, R>>,
    replica: ReplicaId,
    id: u64,
    table: Mutex<Table>,
}

fn key(kind: Kind, ino: u64) -> FileKey {
    // The kernel's number is the upper half of the inode's.
    FileKey { kind, file: File::Inode(InodeId(u128::from(ino) << 64)) }
}

impl<P: ControlPlane, R: Runtime> OneSession<P, R> {
    pub(super) fn new(service: &Arc<Inner<P, R>>) -> Self {
        let (replica, id) = (service.plane.replica(), service.plane.new_id());
        OneSession(Arc::new(State { service: service.clone(), replica, id, table: Mutex::default() }))
    }
}

/// Something of an owner on a file settles as long as this lives. What goes on in the background keeps no session alive.
struct Settling<P: ControlPlane, R: Runtime>(Weak<State<P, R>>, Place);

impl<P: ControlPlane, R: Runtime> Drop for Settling<P, R> {
    fn drop(&mut self) {
        if let Some(state) = self.0.upgrade() {
            state.table().settled(self.1);
        }
    }
}

impl<P: ControlPlane, R: Runtime> State<P, R> {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, id: u64) -> Owner {
        Owner { replica: self.replica, session: self.id, id }
    }

    /// Waits until nothing of this owner on this file is being given back, and notes the request.
    async fn enter(&self, ask: &FileLock) -> Result<()> {
        let place = (ask.kind, ask.ino, ask.owner);
        let wait = async {
            loop {
                let waits = {
                    let mut table = self.table();
                    if table.ended {
                        return Err(Refused::Stopping);
                    }
                    let entry = table.entries.entry(place).or_default();
                    if entry.settling == 0 {
                        entry.asked += 1;
                        entry.pid = ask.pid;
                        entry.handles.insert(ask.handle);
                        table.by_handle.entry(ask.handle).or_default().insert(place);
                        return Ok(());
                    }
                    let (tell, told) = oneshot::channel();
                    entry.then.push(tell);
                    told
                };
                // It ends by being dropped.
                let _ = waits.await;
            }
        };
        let limit = self.service.sleep(self.service.options.timeout);
        match select(std::pin::pin!(wait), std::pin::pin!(limit)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(Refused::Busy),
        }
    }

    /// Begins to settle something of an owner on a file.
    fn settle(self: &Arc<Self>, place: Place) -> Settling<P, R> {
        self.table().entries.entry(place).or_default().settling += 1;
        Settling(Arc::downgrade(self), place)
    }

    async fn lock(
        self: Arc<Self>,
        ask: FileLock,
        give_up: BoxFuture<'static, ()>,
        tell: Box<dyn FnOnce(Result<Grant>) -> bool + Send>,
    ) {
        let place = (ask.kind, ask.ino, ask.owner);
        if let Err(e) = self.enter(&ask).await {
            tell(Err(e));
            return;
        }
        // From the moment on in which the wait is called off until it is known what became of it, nothing else is asked for.
        let withdrawal = Arc::new(Mutex::new(None));
        let give_up = {
            let (state, withdrawal) = (self.clone(), withdrawal.clone());
            give_up
                .map(move |()| {
                    let settling = state.settle(place);
                    *withdrawal.lock().unwrap_or_else(PoisonError::into_inner) = Some(settling);
                })
                .boxed()
                .shared()
        };
        let action = LockAction::Lock(Lock {
            file: key(ask.kind, ask.ino),
            owner: self.owner(ask.owner),
            mode: ask.mode,
            span: ask.span,
            at_ms: now_ms(),
            wait: None,
            detect: ask.kind != Kind::Flock,
        });
        let outcome = self.ask(&ask, action, give_up).await;
        let (granted, withdrawn) = (outcome.is_ok(), ask.wait && matches!(outcome, Err(Refused::Timeout)));
        let unknown = !granted && !withdrawn && !matches!(outcome, Err(Refused::Store(_)));
        let (before, grants) = self.noted(&ask, granted, unknown);
        let heard = tell(outcome);
        // Who had locks there before keeps what is not known: it ends with the others.
        if (granted && !heard) || (unknown && !before) {
            // Nobody waits for it.
            drop(self.give_back(place, ask.span));
            if !before {
                self.nothing_since(&ask, grants);
            }
        }
        drop(withdrawal.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.table().tidy(place);
    }

    /// Asks until there is an answer, or the control plane was out of reach for too long.
    async fn ask(&self, ask: &FileLock, action: LockAction, give_up: Shared<BoxFuture<'static, ()>>) -> Result<Grant> {
        let Options { timeout, retry, .. } = self.service.options;
        let until = Instant::now() + timeout;
        loop {
            let e = match self.ask_once(ask, action.clone(), give_up.clone()).await {
                Ok(grant) => return Ok(grant),
                Err(e) => e,
            };
            // Nobody's patience is for ever, but its end is nobody's wish. And who asks again gets what he got already.
            let again = ask.wait && e == Refused::Timeout || out_of_reach(&e) && Instant::now() + retry < until;
            if !again || give_up.peek().is_some() {
                return Err(e);
            }
            select(give_up.clone(), self.service.sleep(retry).boxed()).await;
        }
    }

    async fn ask_once(
        &self,
        ask: &FileLock,
        action: LockAction,
        give_up: Shared<BoxFuture<'static, ()>>,
    ) -> Result<Grant> {
        let plane = &self.service.plane;
        if !ask.wait {
            return plane.lock(action, Duration::ZERO, give_up).await;
        }
        if ask.kind == Kind::Flock && self.table().entries.get(&(ask.kind, ask.ino, ask.owner)).is_some_and(|e| e.held)
        {
            // Who has one of this kind in another mode gives it up before he waits: two who wait for each other would never end,
            // and nobody looks for that here.
            match plane.lock(action.clone(), Duration::ZERO, give_up.clone()).await {
                Err(Refused::Store(Error::Locked)) => {}
                outcome => return outcome,
            }
            let (file, owner) = (key(ask.kind, ask.ino), self.owner(ask.owner));
            let unlock = || self.service.propose(LockAction::Unlock { file: file.clone(), owner, span: Span::ALL });
            self.service.persist(unlock).await?;
        }
        plane.lock(action, FOR_EVER, give_up).await
    }

    /// Remembers the outcome of a request. Returns whether its owner may have held something there before, and how much had been
    /// granted to him up to this request.
    fn noted(&self, ask: &FileLock, granted: bool, unknown: bool) -> (bool, u64) {
        let place = (ask.kind, ask.ino, ask.owner);
        let mut table = self.table();
        let entry = table.entries.entry(place).or_default();
        let before = entry.held;
        entry.asked -= 1;
        entry.held |= granted || unknown;
        entry.grants += u64::from(granted);
        let grants = entry.grants;
        if granted {
            // A return of everything that was under way meanwhile has forgotten it.
            entry.handles.insert(ask.handle);
            table.by_handle.entry(ask.handle).or_default().insert(place);
        }
        (before, grants)
    }

    /// Nobody heard of what was granted, and it was all that the owner had: unless more was granted since then.
    fn nothing_since(&self, ask: &FileLock, grants: u64) {
        let place = (ask.kind, ask.ino, ask.owner);
        let mut table = self.table();
        if let Some(entry) = table.entries.get_mut(&place).filter(|e| e.grants == grants) {
            entry.held = false;
            entry.handles.remove(&ask.handle);
            table.forget(place, &BTreeSet::from([ask.handle]));
        }
    }

    /// Gives a range back in the background; the returned future ends with that, or after the time that one waits for locks.
    fn give_back(self: &Arc<Self>, place: Place, span: Span) -> BoxFuture<'static, ()> {
        let (kind, ino, owner) = place;
        let settling = self.settle(place);
        let action = LockAction::Unlock { file: key(kind, ino), owner: self.owner(owner), span };
        if span == Span::ALL {
            let mut table = self.table();
            if let Some(entry) = table.entries.get_mut(&place) {
                // What is asked for from now on comes after it.
                entry.held = false;
                let handles = std::mem::take(&mut entry.handles);
                table.forget(place, &handles);
            }
        }
        self.done_or_late(action, Some(settling))
    }

    /// Proposes what must be done at some time. The future ends when it is, or after the time that one waits for locks.
    fn done_or_late(&self, action: LockAction, settling: Option<Settling<P, R>>) -> BoxFuture<'static, ()> {
        let (weak, (done, is_done)) = (Arc::downgrade(&self.service), oneshot::channel());
        self.service.runtime.spawn(async move {
            until_done(weak, action).await;
            drop(settling);
            // Nobody may wait for it.
            let _ = done.send(());
        });
        let service = self.service.clone();
        Box::pin(async move {
            let limit = service.sleep(service.options.timeout);
            select(is_done, std::pin::pin!(limit)).await;
        })
    }
}

impl<P: ControlPlane, R: Runtime> Session for OneSession<P, R> {
    fn holds(&self, ino: u64, owner: u64) -> bool {
        let table = self.0.table();
        let held = |kind| table.entries.get(&(kind, ino, owner)).is_some_and(|e| e.held || e.asked > 0);
        held(Kind::Posix) || held(Kind::Flock)
    }

    fn lock(
        &self,
        ask: FileLock,
        give_up: BoxFuture<'static, ()>,
        tell: Box<dyn FnOnce(Result<Grant>) -> bool + Send>,
    ) {
        self.0.service.runtime.spawn(self.0.clone().lock(ask, give_up, tell));
    }

    fn unlock(&self, kind: Kind, ino: u64, owner: u64, span: Span) -> Option<BoxFuture<'static, ()>> {
        let place = (kind, ino, owner);
        let there = self.0.table().entries.get(&place).is_some_and(|e| e.held || e.asked > 0);
        there.then(|| self.0.give_back(place, span))
    }

    fn flushed(&self, ino: u64, owner: u64) -> Option<BoxFuture<'static, ()>> {
        self.unlock(Kind::Posix, ino, owner, Span::ALL)
    }

    fn released(&self, handle: u64) -> Option<BoxFuture<'static, ()>> {
        let last: Vec<Place> = {
            let mut table = self.0.table();
            let places = table.by_handle.remove(&handle)?;
            let only = |place: &Place| {
                let entry = table.entries.get_mut(place);
                entry.is_some_and(|e| e.handles.remove(&handle) && e.handles.is_empty())
            };
            places.into_iter().filter(only).collect()
        };
        let returns: Vec<_> = last.into_iter().map(|place| self.0.give_back(place, Span::ALL)).collect();
        (!returns.is_empty()).then(|| futures::future::join_all(returns).map(|_| ()).boxed())
    }

    fn test(&self, ask: FileLock) -> Answer<Option<Conflict>> {
        let state = self.0.clone();
        Box::pin(async move {
            let (file, owner) = (key(ask.kind, ask.ino), state.owner(ask.owner));
            let look = || {
                let file = file.clone();
                let at =
                    move |store: &ice_core::kv::Store| store.locks().test(&file, owner, ask.mode, ask.span).copied();
                state.service.plane.read(Freshness::Linearizable, at)
            };
            let found = state.service.persist(look).await?.0;
            Ok(found.map(|held| {
                let own = (held.owner.replica, held.owner.session) == (state.replica, state.id);
                let place = (ask.kind, ask.ino, held.owner.id);
                let pid = state.table().entries.get(&place).filter(|_| own).map_or(0, |e| e.pid);
                Conflict { mode: held.mode, span: held.span, pid }
            }))
        })
    }

    fn end(&self) -> BoxFuture<'static, ()> {
        self.0.table().ended = true;
        let action = LockAction::EndSession { replica: self.0.replica, session: self.0.id };
        self.0.done_or_late(action, None)
    }
}
