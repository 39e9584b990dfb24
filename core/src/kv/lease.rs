//! Leases: the part that every replica has. Who notices that a time is over is [`super::lessor::Lessor`], on the leader.

use super::error::Error;
use super::rows::RowKey;
use super::txn::Write;
use super::{Effect, Store};
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Names a lease. Signed, as clients see it; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Lease {
    pub(super) ttl_s: u64,
    /// What the last checkpoint said; 0 is the full time.
    pub(super) remaining_s: u64,
    /// Slots of the keys under it.
    pub(super) keys: BTreeSet<u32>,
    /// Named locks that are held or waited for under it.
    pub(super) locks: BTreeSet<Box<[u8]>>,
}

/// What a page says of a lease: keys and locks name their lease themselves.
#[derive(Serialize, Deserialize)]
pub(super) struct LeasePage {
    pub(super) ttl_s: u64,
    pub(super) remaining_s: u64,
}

impl Lease {
    /// How long it lasts without a sign of life, in seconds.
    pub fn ttl_s(&self) -> u64 {
        self.ttl_s
    }

    /// What of it was left when it was last written down, in seconds.
    pub fn remaining_s(&self) -> u64 {
        if self.remaining_s == 0 { self.ttl_s } else { self.remaining_s.min(self.ttl_s) }
    }

    pub(super) fn page(&self) -> Vec<u8> {
        crate::wire::encode(&LeasePage { ttl_s: self.ttl_s, remaining_s: self.remaining_s })
    }
}

impl Store {
    /// A lease that is there.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases from `after` on (not included), by id.
    pub fn leases_after(&self, after: Option<LeaseId>) -> impl Iterator<Item = (LeaseId, &Lease)> {
        use core::ops::Bound::{Excluded, Unbounded};
        self.leases.range((after.map_or(Unbounded, Excluded), Unbounded)).map(|(id, l)| (*id, l))
    }

    /// All leases, by id.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, l)| (*id, l))
    }

    /// The keys under a lease, in no particular order.
    pub fn lease_keys(&self, id: LeaseId) -> impl Iterator<Item = &[u8]> {
        self.leases.get(&id).into_iter().flat_map(|l| &l.keys).map(|slot| self.index.key(*slot))
    }

    pub(super) fn lease_grant(&mut self, id: LeaseId, ttl_s: u64, effects: &mut Vec<Effect>) -> Result<(), Error> {
        if id.0 == 0 {
            return Err(Error::LeaseNotFound { id });
        }
        if ttl_s > limits::LEASE_TTL_MAX_S {
            return Err(Error::LeaseTooLong);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExists { id });
        }
        if self.leases.len() >= limits::LEASES_MAX {
            return Err(Error::TooManyLeases);
        }
        self.rows.touch(RowKey::Lease(id), || None);
        self.leases.insert(id, Lease { ttl_s: ttl_s.max(1), ..Lease::default() });
        effects.push(Effect::LeaseGranted { id });
        Ok(())
    }

    /// Ends a lease. All its keys go at once, in one revision.
    pub(super) fn lease_end(&mut self, id: LeaseId, effects: &mut Vec<Effect>) -> Result<(), Error> {
        let Some(lease) = self.leases.get(&id) else { return Err(Error::LeaseNotFound { id }) };
        self.rows.touch(RowKey::Lease(id), || Some(lease.page()));
        let mut keys: Vec<u32> = lease.keys.iter().copied().collect();
        let locks = lease.locks.clone();
        // Slots are this replica's own; keys are everybody's.
        keys.sort_by(|a, b| self.index.key(*a).cmp(self.index.key(*b)));
        let mut write = Write::new(self);
        for slot in keys {
            self.delete_slot(slot, &mut write);
        }
        write.end(self);
        self.leases.remove(&id);
        let fence = &mut self.fence;
        self.locks.lease_ended(id, locks, fence, &mut self.rows, effects);
        effects.push(Effect::LeaseEnded { id });
        Ok(())
    }

    pub(super) fn lease_checkpoint(&mut self, id: LeaseId, remaining_s: u64, effects: &mut Vec<Effect>) {
        // A lease that was revoked meanwhile needs none.
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if lease.remaining_s != remaining_s {
            self.rows.touch(RowKey::Lease(id), || Some(lease.page()));
            lease.remaining_s = remaining_s;
        }
        effects.push(Effect::LeaseCheckpointed { id });
    }

    /// The key in `slot` is now under `new` instead of `old`.
    pub(super) fn move_lease(&mut self, slot: u32, old: LeaseId, new: LeaseId) {
        if old == new {
            return;
        }
        if let Some(l) = self.leases.get_mut(&old) {
            l.keys.remove(&slot);
        }
        if let Some(l) = self.leases.get_mut(&new) {
            l.keys.insert(slot);
        }
    }
}
