//! Named locks.

use super::{Goal, Grant, LockAnswer, Locks, Scene, WaitId};
use crate::ids::ReplicaId;
use crate::kv::Effect;
use crate::kv::error::Error;
use crate::kv::lease::LeaseId;
use crate::kv::rows::{RowKey, Rows};
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Takes a named lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Acquire {
    /// Its name; for files the canonical path. 1 to [`limits::LOCK_NAME_MAX_BYTES`] bytes.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Who wants it, as users see it.
    pub holder: String,
    /// The node on whose behalf: if it is declared down, the lock goes.
    pub replica: ReplicaId,
    /// The lock goes when this lease ends; 0 is none. A lock with a time to live has a lease of its own, which the proposer
    /// grants in the command before and keeps alive as long as the holder renews.
    pub lease: LeaseId,
    /// Now, in milliseconds since 1970.
    pub at_ms: u64,
    /// Wait if somebody else has it; otherwise that is an error.
    pub wait: Option<WaitId>,
}

/// A named lock that is held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedLock {
    /// Who has it.
    pub holder: String,
    /// On which node.
    pub replica: ReplicaId,
    /// Under which lease.
    pub lease: LeaseId,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Fencing token of the grant.
    pub token: u64,
    /// Who waits, in the order in which they will be served.
    pub queue: VecDeque<Waiting>,
}

/// Somebody who waits for a named lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// The request.
    pub wait: WaitId,
    /// Who wants it.
    pub holder: String,
    /// On which node.
    pub replica: ReplicaId,
    /// Under which lease.
    pub lease: LeaseId,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

impl Locks {
    /// A named lock, if it is held.
    pub fn get(&self, name: &[u8]) -> Option<&NamedLock> {
        self.named.get(name)
    }

    /// All named locks from `after` on (not included), by name.
    pub fn named_after(&self, after: &[u8]) -> impl Iterator<Item = (&[u8], &NamedLock)> {
        use core::ops::Bound::{Excluded, Unbounded};
        self.named.range::<[u8], _>((Excluded(after), Unbounded)).map(|(n, l)| (&n[..], l))
    }

    fn touch_named(&self, name: &[u8], rows: &mut Rows) {
        rows.touch(RowKey::Named(name.into()), || self.named.get(name).map(crate::wire::encode));
    }

    pub(super) fn acquire(&mut self, a: &Acquire, scene: &mut Scene<'_>) -> Result<LockAnswer, Error> {
        if let Some(lock) = self.named.get_mut(&a.name[..]) {
            if lock.holder == a.holder {
                // The same grant: who asks again may have missed the answer. It now lives under the newest lease.
                let grant = Grant { token: lock.token, since_ms: lock.since_ms };
                if (lock.lease, lock.replica) != (a.lease, a.replica) {
                    let old = lock.lease;
                    self.touch_named(&a.name, scene.rows);
                    if let Some(lock) = self.named.get_mut(&a.name[..]) {
                        (lock.lease, lock.replica) = (a.lease, a.replica);
                    }
                    scene.effects.push(Effect::LockLease { name: a.name.clone().into(), old, new: a.lease });
                }
                return Ok(LockAnswer::Granted(grant));
            }
            let Some(wait) = a.wait else { return Err(Error::Locked) };
            // The log may say it twice.
            if self.waits.contains_key(&wait) {
                return Ok(LockAnswer::Waiting);
            }
            if lock.queue.len() >= limits::LOCK_WAITERS_MAX || self.full() {
                return Err(Error::TooManyLocks);
            }
            self.touch_named(&a.name, scene.rows);
            let name: Box<[u8]> = a.name.clone().into();
            if let Some(lock) = self.named.get_mut(&name) {
                let (holder, replica) = (a.holder.clone(), a.replica);
                lock.queue.push_back(Waiting { wait, holder, replica, lease: a.lease, since_ms: a.at_ms });
            }
            scene.effects.push(Effect::LockLease { name: name.clone(), old: LeaseId(0), new: a.lease });
            self.waits.insert(wait, Goal::Named(name));
            return Ok(LockAnswer::Waiting);
        }
        if self.full() {
            return Err(Error::TooManyLocks);
        }
        self.touch_named(&a.name, scene.rows);
        let token = scene.token();
        let (holder, replica) = (a.holder.clone(), a.replica);
        let lock = NamedLock { holder, replica, lease: a.lease, since_ms: a.at_ms, token, queue: VecDeque::new() };
        self.named.insert(a.name.clone().into(), lock);
        scene.effects.push(Effect::LockLease { name: a.name.clone().into(), old: LeaseId(0), new: a.lease });
        Ok(LockAnswer::Granted(Grant { token, since_ms: a.at_ms }))
    }

    pub(super) fn release(
        &mut self,
        name: &[u8],
        holder: &str,
        token: u64,
        scene: &mut Scene<'_>,
    ) -> Result<LockAnswer, Error> {
        let held = self.named.get(name).is_some_and(|l| l.holder == holder && (token == 0 || l.token == token));
        if !held {
            return Err(Error::NotLocked);
        }
        self.pass_on(name, scene);
        Ok(LockAnswer::Released { count: 1 })
    }

    /// Whoever has the lock has it no more; the next one in the queue does.
    fn pass_on(&mut self, name: &[u8], scene: &mut Scene<'_>) {
        self.touch_named(name, scene.rows);
        let Some(mut lock) = self.named.remove(name) else { return };
        scene.effects.push(Effect::LockLease { name: name.into(), old: lock.lease, new: LeaseId(0) });
        let Some(next) = lock.queue.pop_front() else { return };
        self.waits.remove(&next.wait);
        let token = scene.token();
        scene.effects.push(Effect::LockGranted { wait: next.wait, grant: Grant { token, since_ms: next.since_ms } });
        if scene.double_grant
            && let Some(second) = lock.queue.pop_front()
        {
            self.waits.remove(&second.wait);
            let grant = Grant { token, since_ms: second.since_ms };
            scene.effects.push(Effect::LockGranted { wait: second.wait, grant });
        }
        let Waiting { holder, replica, lease, since_ms, .. } = next;
        self.named.insert(name.into(), NamedLock { holder, replica, lease, since_ms, token, queue: lock.queue });
    }

    /// Takes those who wait out of a queue.
    fn drop_waiting(
        &mut self,
        name: &[u8],
        error: Option<Error>,
        scene: &mut Scene<'_>,
        which: impl Fn(&Waiting) -> bool,
    ) -> usize {
        if !self.named.get(name).is_some_and(|l| l.queue.iter().any(&which)) {
            return 0;
        }
        self.touch_named(name, scene.rows);
        let Some(lock) = self.named.get_mut(name) else { return 0 };
        let mut gone = 0;
        lock.queue.retain(|w| {
            if !which(w) {
                return true;
            }
            gone += 1;
            self.waits.remove(&w.wait);
            scene.effects.push(Effect::LockLease { name: name.into(), old: w.lease, new: LeaseId(0) });
            if let Some(error) = &error {
                scene.effects.push(Effect::LockRefused { wait: w.wait, error: error.clone() });
            }
            false
        });
        gone
    }

    pub(super) fn cancel_named(&mut self, name: &[u8], wait: WaitId, scene: &mut Scene<'_>) -> bool {
        self.drop_waiting(name, None, scene, |w| w.wait == wait) > 0
    }

    /// Everything of some holders, or of a node. What was held is counted.
    pub(super) fn release_where(
        &mut self,
        holder: impl Fn(&str) -> bool,
        replica: impl Fn(ReplicaId) -> bool,
        scene: &mut Scene<'_>,
    ) -> LockAnswer {
        let mut count = 0;
        let names: Vec<Box<[u8]>> = self.named.keys().cloned().collect();
        for name in names {
            self.drop_waiting(&name, Some(Error::NotLocked), scene, |w| holder(&w.holder) || replica(w.replica));
            if self.named.get(&name).is_some_and(|l| holder(&l.holder) || replica(l.replica)) {
                count += 1;
                self.pass_on(&name, scene);
            }
        }
        LockAnswer::Released { count }
    }

    pub(super) fn lease_left(&mut self, name: &[u8], id: LeaseId, scene: &mut Scene<'_>) {
        self.drop_waiting(name, Some(Error::LeaseNotFound { id }), scene, |w| w.lease == id);
        if self.named.get(name).is_some_and(|l| l.lease == id) {
            self.pass_on(name, scene);
        }
    }
}
