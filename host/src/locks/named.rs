//! Named locks and write locks.

use super::service::{Inner, now_ms, out_of_reach, unexpected, until_done};
use super::turns::Turn;
use super::{Ask, Grant, Listed, LockPath, WriteLock};
use crate::control::{ControlPlane, Freshness, Refused, Result};
use crate::runtime::Runtime;
use futures::future::{BoxFuture, Either, FutureExt, pending, select};
use ice_core::ids::ReplicaId;
use ice_core::kv::command::{Action, Command};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::named::Acquire;
use ice_core::kv::lock::{LockAction, LockAnswer};
use ice_core::kv::{Answer as Said, Error, Store};
use ice_core::limits;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The node of holders that are no nodes: none is declared down by this number.
const NO_NODE: ReplicaId = ReplicaId(0);

/// The token that stands for any: nobody else on this node asks for the lock under its name while it is our turn.
const WHICHEVER: u64 = 0;

/// What is known of a lock.
struct Seen {
    holder: String,
    lease: LeaseId,
    ttl_s: Option<u64>,
}

fn look(store: &Store, name: &[u8]) -> Option<Seen> {
    let lock = store.locks().get(name)?;
    let ttl_s = store.lease(lock.lease).map(|l| l.ttl_s());
    Some(Seen { holder: lock.holder.clone(), lease: lock.lease, ttl_s })
}

impl<P: ControlPlane, R: Runtime> Inner<P, R> {
    async fn seen(&self, freshness: Freshness, path: &LockPath) -> Result<Option<Seen>> {
        let path = path.clone();
        Ok(self.plane.read(freshness, move |store| look(store, path.as_bytes())).await?.0)
    }

    pub(super) async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        let start = Instant::now();
        let until = start + ask.patience;
        // To reach the control plane at all there is time also for those who do not want to wait for others.
        let reach = start + ask.patience.max(self.options.timeout);
        let mut lease_ended = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let e = match self.acquire_once(ask, left).await {
                Ok(grant) => return Ok(grant),
                Err(e) => e,
            };
            let time = Instant::now();
            match e {
                // It was about to end when it was renewed.
                Refused::Store(Error::LeaseNotFound { .. }) if !lease_ended => lease_ended = true,
                // The wait was over; or the node could not ask.
                Refused::Timeout if time >= until && self.is_held_by_another(ask).await => {
                    return Err(Error::Locked.into());
                }
                e if out_of_reach(&e) && time + self.options.retry < reach => self.sleep(self.options.retry).await,
                e => return Err(e),
            }
        }
    }

    async fn is_held_by_another(&self, ask: &Ask) -> bool {
        let seen = self.seen(Freshness::Local, &ask.path).await;
        matches!(seen, Ok(Some(seen)) if seen.holder != ask.holder)
    }

    async fn acquire_once(&self, ask: &Ask, patience: Duration) -> Result<Grant> {
        let (lease, new) = match ask.ttl_s {
            None => (LeaseId(0), false),
            Some(ttl_s) => self.lease_for(ask, ttl_s).await?,
        };
        let action = LockAction::Acquire(Acquire {
            name: ask.path.as_bytes().to_vec(),
            holder: ask.holder.clone(),
            replica: self.plane.replica_of(&ask.holder).unwrap_or(NO_NODE),
            lease,
            at_ms: now_ms(),
            wait: None,
        });
        let locking = self.plane.lock(action, patience, pending());
        let outcome = match ask.ttl_s {
            None => locking.await,
            Some(ttl_s) => self.kept_alive(locking, lease, ttl_s).await,
        };
        if outcome.is_err() && new {
            // With it goes what may have been granted nevertheless.
            self.end_lease(lease);
        }
        outcome
    }

    /// The lease under which a lock with a time to live is taken: the one it has, renewed, or a new one.
    async fn lease_for(&self, ask: &Ask, ttl_s: u64) -> Result<(LeaseId, bool)> {
        let seen = self.seen(Freshness::Local, &ask.path).await?;
        if let Some(own) = seen.filter(|s| s.holder == ask.holder && s.ttl_s == Some(ttl_s)) {
            match self.plane.keep_alive(own.lease).await {
                Ok(_) => return Ok((own.lease, false)),
                Err(Refused::Store(Error::LeaseNotFound { .. })) => {}
                Err(e) => return Err(e),
            }
        }
        let id = LeaseId(self.plane.new_id() as i64);
        match self.plane.propose(Command::node(Action::LeaseGrant { id, ttl_s })).await?.answer {
            Said::Lease { id, .. } => Ok((id, true)),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits, and keeps the lease alive meanwhile, so that it has its full time when the lock is there.
    async fn kept_alive(
        &self,
        locking: impl Future<Output = Result<Grant>> + Send,
        lease: LeaseId,
        ttl_s: u64,
    ) -> Result<Grant> {
        let mut locking = pin!(locking);
        let mut waited = false;
        let grant = loop {
            let renewal = async {
                self.sleep(Duration::from_millis(ttl_s.max(1).saturating_mul(300))).await;
                self.plane.keep_alive(lease).await
            };
            match select(locking.as_mut(), pin!(renewal)).await {
                Either::Left((outcome, _)) => break outcome?,
                // If it has ended, the store ends the wait.
                Either::Right(_) => waited = true,
            }
        };
        if waited {
            self.plane.keep_alive(lease).await?;
        }
        Ok(grant)
    }

    /// In the background; if that fails it ends by itself.
    fn end_lease(&self, id: LeaseId) {
        let plane = self.plane.clone();
        self.runtime.spawn(async move {
            if let Err(e) = plane.propose(Command::node(Action::LeaseRevoke { id })).await {
                tracing::debug!("a lock's lease is left to end by itself: {e}");
            }
        });
    }

    pub(super) async fn release(&self, path: &LockPath, holder: &str) -> Result<bool> {
        let seen = self.seen(Freshness::Local, path).await?;
        let mut tried = false;
        let released = self.persist(|| {
            let (name, holder) = (path.as_bytes().to_vec().into(), holder.to_owned());
            let again = std::mem::replace(&mut tried, true);
            async move {
                match self.propose(LockAction::Release { name, holder, token: 0 }).await {
                    Ok(_) => Ok(true),
                    // The first attempt may have done it.
                    Err(Refused::Store(Error::NotLocked)) if again => Ok(true),
                    Err(Refused::Store(Error::NotLocked)) => Ok(false),
                    Err(e) => Err(e),
                }
            }
        });
        if released.await? {
            if let Some(own) = seen.filter(|s| s.holder == holder && s.lease.0 != 0) {
                self.end_lease(own.lease);
            }
            return Ok(true);
        }
        let seen = self.persist(|| self.seen(Freshness::Linearizable, path)).await?;
        match seen {
            Some(seen) if seen.holder != holder => Err(Error::Locked.into()),
            // Given back by another request meanwhile, or taken again by one.
            _ => Ok(false),
        }
    }

    pub(super) async fn release_by_holder(&self, holder: &str) -> Result<u64> {
        let all = || self.propose(LockAction::ReleaseHolder { holder: holder.to_owned() });
        match self.persist(all).await? {
            LockAnswer::Released { count } => Ok(count),
            other => Err(unexpected(&Said::Lock(other))),
        }
    }

    pub(super) async fn list(&self, after: Option<LockPath>, most: usize) -> Result<Vec<Listed>> {
        let freshness = if after.is_none() { Freshness::Linearizable } else { Freshness::Local };
        let portion = || {
            let after = after.clone();
            self.plane.read(freshness, move |store| {
                let from = after.as_ref().map_or(&b""[..], LockPath::as_bytes);
                let line = |(name, lock): (&[u8], &ice_core::kv::lock::NamedLock)| Listed {
                    path: LockPath::stored(name),
                    holder: lock.holder.clone(),
                    since_ms: lock.since_ms,
                    token: lock.token,
                    ttl_s: store.lease(lock.lease).map(|l| l.ttl_s()),
                    waiting: lock.queue.len(),
                };
                store.locks().named_after(from).take(most).map(line).collect()
            })
        };
        Ok(self.persist(portion).await?.0)
    }

    pub(super) async fn foreign_holder(&self, path: LockPath) -> Result<Option<String>> {
        let seen = self.seen(Freshness::Local, &path).await?;
        Ok(seen.map(|s| s.holder).filter(|h| *h != self.options.node))
    }

    pub(super) async fn write(self: &Arc<Self>, path: LockPath, give_up: BoxFuture<'static, ()>) -> Result<WriteLock> {
        let start = Instant::now();
        let until = start + self.options.timeout;
        let give_up = give_up.shared();
        let turn = {
            let over = select(give_up.clone(), self.sleep(self.options.timeout).boxed());
            match select(pin!(self.writers.take(&path, limits::LOCK_WAITERS_MAX)), over).await {
                Either::Left((turn, _)) => turn.ok_or(Error::TooManyLocks)?,
                Either::Right(_) => return Err(Error::Locked.into()),
            }
        };
        let service = Arc::downgrade(self);
        let node = self.options.node.clone();
        let mut held = Held { service, path, node, token: WHICHEVER, granted: false, turn: Some(turn) };
        loop {
            let action = LockAction::Acquire(Acquire {
                name: held.path.as_bytes().to_vec(),
                holder: held.node.clone(),
                replica: self.plane.replica(),
                lease: LeaseId(0),
                at_ms: now_ms(),
                wait: None,
            });
            let left = until.saturating_duration_since(Instant::now());
            match self.plane.lock(action, left, give_up.clone()).await {
                Ok(grant) => {
                    (held.token, held.granted) = (grant.token, true);
                    return Ok(WriteLock(Box::new(held)));
                }
                // Withdrawn.
                Err(Refused::Timeout) if Instant::now() >= until || give_up.peek().is_some() => {
                    return Err(Error::Locked.into());
                }
                Err(e) if out_of_reach(&e) => {
                    // It may have been granted.
                    held.granted = true;
                    if Instant::now() + self.options.retry >= until {
                        return Err(e);
                    }
                    let pause = self.sleep(self.options.retry).boxed();
                    if let Either::Left(_) = select(give_up.clone(), pause).await {
                        return Err(Error::Locked.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// A write lock, and the turn on this node.
struct Held<P: ControlPlane, R: Runtime> {
    service: Weak<Inner<P, R>>,
    path: LockPath,
    node: String,
    token: u64,
    /// It is held, or may be.
    granted: bool,
    turn: Option<Turn>,
}

impl<P: ControlPlane, R: Runtime> Drop for Held<P, R> {
    fn drop(&mut self) {
        let Some(service) = self.service.upgrade().filter(|_| self.granted) else { return };
        let (name, holder) = (self.path.as_bytes().to_vec().into(), std::mem::take(&mut self.node));
        let action = LockAction::Release { name, holder, token: self.token };
        let (weak, turn) = (self.service.clone(), self.turn.take());
        service.runtime.spawn(async move {
            until_done(weak, action).await;
            // Only now it is the next one's turn on this node: nodes that wait were served before.
            drop(turn);
        });
    }
}
