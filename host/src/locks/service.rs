//! The service itself: what its parts share.

use super::files::{OneSession, Session};
use super::turns::Turns;
use super::{Answer, Ask, Grant, Listed, LockPath, Locks, WriteLock};
use crate::control::{Applied, ControlPlane, Refused, Result};
use crate::runtime::Runtime;
use futures::future::BoxFuture;
use ice_core::kv::command::{Action, Command};
use ice_core::kv::lock::{LockAction, LockAnswer};
use ice_core::kv::{Answer as Said, Error};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest pause between two attempts of what is done in the background.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// `node_id`: the holder of this node's write locks.
    pub node: String,
    /// `lock_timeout`: how long to wait for a lock, and for the control plane to come within reach.
    pub timeout: Duration,
    /// `lock_retry`: time between two attempts to reach it.
    pub retry: Duration,
}

/// [`Locks`] over a control plane. Cheap to clone.
pub struct LockService<P, R>(pub(super) Arc<Inner<P, R>>);

impl<P, R> Clone for LockService<P, R> {
    fn clone(&self) -> Self {
        LockService(self.0.clone())
    }
}

pub(super) struct Inner<P, R> {
    pub(super) plane: Arc<P>,
    pub(super) runtime: R,
    pub(super) options: Options,
    pub(super) writers: Turns,
}

/// Whether it may be different in a moment. What was asked for may have been done, or not.
pub(super) fn out_of_reach(e: &Refused) -> bool {
    use Refused::{Busy, LeaderChanged, NoLeader, NotLeader, Timeout};
    matches!(e, NoLeader | LeaderChanged | NotLeader | Timeout | Busy)
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// An answer to a command that is not one to such a command.
pub(super) fn unexpected(answer: &Said) -> Refused {
    Refused::Failed(format!("the store answered something else than was asked: {answer:?}"))
}

impl<P: ControlPlane, R: Runtime> LockService<P, R> {
    /// On this control plane. Nothing happens by itself.
    pub fn new(plane: Arc<P>, runtime: R, options: Options) -> Self {
        LockService(Arc::new(Inner { plane, runtime, options, writers: Turns::default() }))
    }
}

impl<P: ControlPlane, R: Runtime> Inner<P, R> {
    pub(super) async fn sleep(&self, span: Duration) {
        self.runtime.sleep_until(Instant::now() + span).await;
    }

    pub(super) async fn propose(&self, action: LockAction) -> Result<LockAnswer> {
        let Applied { answer, .. } = self.plane.propose(Command::node(Action::Lock(action))).await?;
        match answer {
            Said::Lock(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Does something again and again while the control plane is out of reach, as long as there is time.
    pub(super) async fn persist<T, F: Future<Output = Result<T>>>(&self, mut once: impl FnMut() -> F) -> Result<T> {
        let until = Instant::now() + self.options.timeout;
        loop {
            match once().await {
                Err(e) if out_of_reach(&e) && Instant::now() + self.options.retry < until => {
                    self.sleep(self.options.retry).await;
                }
                other => return other,
            }
        }
    }
}

/// Proposes what must be done at some time, until it is done or the service is gone.
pub(super) async fn until_done<P: ControlPlane, R: Runtime>(inner: Weak<Inner<P, R>>, action: LockAction) {
    let mut pause = Duration::ZERO;
    while let Some(inner) = inner.upgrade() {
        match inner.propose(action.clone()).await {
            Err(e) if out_of_reach(&e) => {
                pause = (pause + inner.options.retry).min(RETRY_MAX);
                let wait = inner.runtime.sleep_until(Instant::now() + pause);
                // Waiting keeps nobody alive.
                drop(inner);
                wait.await;
            }
            Err(Refused::Store(Error::NotLocked)) | Ok(_) => return,
            Err(e) => {
                tracing::warn!("a lock cannot be given back: {e}");
                return;
            }
        }
    }
}

impl<P: ControlPlane, R: Runtime> Locks for LockService<P, R> {
    fn acquire(&self, ask: Ask) -> Answer<Grant> {
        let inner = self.0.clone();
        Box::pin(async move { inner.acquire(&ask).await })
    }
    fn release(&self, path: LockPath, holder: String) -> Answer<bool> {
        let inner = self.0.clone();
        Box::pin(async move { inner.release(&path, &holder).await })
    }
    fn release_by_holder(&self, holder: String) -> Answer<u64> {
        let inner = self.0.clone();
        Box::pin(async move { inner.release_by_holder(&holder).await })
    }
    fn list(&self, after: Option<LockPath>, most: usize) -> Answer<Vec<Listed>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.list(after, most).await })
    }
    fn foreign_holder(&self, path: LockPath) -> Answer<Option<String>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.foreign_holder(path).await })
    }
    fn write(&self, path: LockPath, give_up: BoxFuture<'static, ()>) -> Answer<WriteLock> {
        let inner = self.0.clone();
        Box::pin(async move { inner.write(path, give_up).await })
    }
    fn session(&self) -> Arc<dyn Session> {
        Arc::new(OneSession::new(&self.0))
    }
    fn timeout(&self) -> Duration {
        self.0.options.timeout
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.runtime.spawn(task);
    }
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        let inner = self.0.clone();
        Box::pin(async move { inner.sleep(span).await })
    }
}
