//! The replicated store: keys with all their revisions, leases, locks, users and roles, alarms.
//!
//! # Contract
//!
//! [`Store::apply`] sees only the log: no clock, no randomness, no node. Two stores that applied the same entries answer the
//! same, make the same effects and have the same [`Store::digest`]. Applying an index twice is nothing. What a command needs
//! from the outside (ids, times) its proposer has stamped into it.
//!
//! Methods come in four families:
//!
//! * **commands**: [`Store::apply`], [`Store::advance`];
//! * **reads**: [`Store::range`], [`Store::read_txn`], [`Store::get`], [`Store::lease`], [`Store::auth`], [`Store::locks`]: of
//!   what has been applied here. Whether that is recent enough (linearizable), and whether the reader is permitted to
//!   ([`auth::Auth::may_read`]), is asked by the caller before;
//! * **durability**: [`Store::take_rows`] and [`rows::Loader`], [`Store::snapshot_begin`] and [`snapshot::Restore`];
//! * **upkeep**, in portions, whenever there is time: [`Store::sweep`].
//!
//!
//! Beside the store, on each node for itself: [`watch::Hub`] tells watchers what was applied; [`lessor::Lessor`], on the
//! leader, notices whose time is over.
//!
//! # The data model
//!
//! It is etcd's. The store has a **revision**, which begins at 1 and grows by one with each command that changes a key. Each
//! change of a key is kept, with the revision that made it (and its place among the changes of that revision), until it is
//! compacted: reading at an earlier revision, and watching from one, give what was there then. A key has a **version** (changes
//! since it came to be), the revision at which it came to be, and that of its last change. A deletion is a change, too, and ends
//! a key's life; the next put begins another one with version 1.
//!
//! Where etcd leaves it to chance, here it is fixed: what is equal in sorting stays in the order of keys.
//!
//! # Space
//!
//! Everything is in memory; a key costs its bytes, those of its value, and about 100 bytes (`core/tests/kv_size.rs`). The quota
//! is the host's: the proposer refuses what would exceed it ([`Store::over_quota`]) and proposes the alarm, which is in the log
//! and stops all replicas alike. Deleting and compacting go on; an operator disarms the alarm.
//!
//! What a command costs is in proportion to what it touches: a deletion of a range touches all keys in it, whatever their number,
//! as with etcd. Everything else is bounded by [`crate::limits`].

pub mod auth;
mod bounded;
pub mod command;
mod compact;
pub mod error;
mod history;
mod index;
pub mod keys;
pub mod lease;
pub mod lessor;
pub mod lock;
pub mod range;
pub mod rows;
pub mod snapshot;
pub mod txn;
pub mod watch;

use crate::bug::Bug;
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use auth::Auth;
use command::{Action, AlarmKind, Command, Put, SnapshotRecord};
pub use compact::{HashCursor, StoreHash};
use core::fmt;
pub use error::Error;
use history::{History, Record, Rev};
use index::Index;
use keys::KeyRange;
use lease::{Lease, LeaseId};
use lock::{Grant, LockAnswer, Locks, Scene, WaitId};
use rows::Rows;
use serde::{Deserialize, Serialize};
use txn::{DeleteAnswer, PutAnswer, TxnAnswer, Write};

/// What a command did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The store's revision after it.
    pub revision: u64,
    /// The answer to whoever asked.
    pub result: Result<Answer, Error>,
    /// What else happened, to others than him who asked.
    pub effects: Vec<Effect>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The entry had been applied before.
    Repeated,
    /// Done; there is nothing to say.
    Done,
    /// To [`Action::Put`].
    Put(PutAnswer),
    /// To [`Action::Delete`].
    Delete(DeleteAnswer),
    /// To [`Action::Txn`].
    Txn(TxnAnswer),
    /// To [`Action::LeaseGrant`].
    Lease {
        /// The lease.
        id: LeaseId,
        /// How long it lasts without a sign of life, in seconds.
        ttl_s: u64,
    },
    /// To [`Action::LeaseExpire`]: those that were there.
    Expired(Vec<LeaseId>),
    /// To [`Action::Alarm`]: whether anything changed.
    Alarm {
        /// It was not so before.
        changed: bool,
    },
    /// To [`Action::Lock`].
    Lock(LockAnswer),
}

/// What a command did to others. Only the node that is concerned acts on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Effect {
    /// For the [`lessor::Lessor`]: a lease begins.
    LeaseGranted {
        /// Which.
        id: LeaseId,
    },
    /// For the lessor: a lease is gone.
    LeaseEnded {
        /// Which.
        id: LeaseId,
    },
    /// For the lessor: its remaining time is written down.
    LeaseCheckpointed {
        /// Which.
        id: LeaseId,
    },
    /// Somebody who waited has the lock now.
    LockGranted {
        /// The request.
        wait: WaitId,
        /// The grant.
        grant: Grant,
    },
    /// Somebody who waited will not get it.
    LockRefused {
        /// The request.
        wait: WaitId,
        /// Why.
        error: Error,
    },
    /// A lock is held or waited for under another lease than before. Handled by the store itself.
    LockLease {
        /// The lock.
        name: Box<[u8]>,
        /// Under this no more.
        old: LeaseId,
        /// But under this.
        new: LeaseId,
    },
    /// History before this revision is gone.
    Compacted {
        /// Oldest revision that is whole.
        revision: u64,
    },
}

/// Stored rows or a snapshot are not what was written: with the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged(pub &'static str);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
impl core::error::Error for Damaged {}

/// The store. See the module.
#[derive(Serialize, Deserialize)]
pub struct Store {
    applied: u64,
    revision: u64,
    compacted: u64,
    /// The last fencing token.
    fence: u64,
    index: Index,
    history: History,
    leases: BTreeMap<LeaseId, Lease>,
    auth: Auth,
    locks: Locks,
    alarms: BTreeSet<(AlarmKind, u64)>,
    snapshots: BTreeMap<String, SnapshotRecord>,
    secret: Option<[u8; 32]>,
    // What follows is this replica's own business.
    size_bytes: u64,
    sweep_from: Option<(u64, u32)>,
    /// The last compaction of which something was taken out.
    thinned: u64,
    rows: Rows,
    bug: Option<Bug>,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            applied: 0,
            revision: 1,
            compacted: 0,
            fence: 0,
            index: Index::default(),
            history: History::default(),
            leases: BTreeMap::new(),
            auth: Auth::default(),
            locks: Locks::default(),
            alarms: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            secret: None,
            size_bytes: 0,
            sweep_from: None,
            thinned: 0,
            rows: Rows::default(),
            bug: None,
        }
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Store {
        Store::default()
    }

    /// Plants a bug, for tests of the tests. Without the feature `planted-bugs` it does nothing.
    pub fn plant(&mut self, bug: Option<Bug>) {
        self.bug = bug;
    }

    fn has(&self, bug: Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }

    /// The last entry of the log that was applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that can be read; 0 if nothing was compacted.
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Keys, deleted ones included that history still knows.
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    /// Revisions of keys in memory.
    pub fn records(&self) -> usize {
        self.history.len()
    }

    /// What keys, values and revisions take, for the quota.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Users and roles.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Locks.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// Alarms that stand, with the member that each is of.
    pub fn alarms(&self) -> impl Iterator<Item = (AlarmKind, u64)> {
        self.alarms.iter().copied()
    }

    /// Snapshot records, by id.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.snapshots.values()
    }

    /// The secret that all members share, if one was drawn.
    pub fn secret(&self) -> Option<[u8; 32]> {
        self.secret
    }

    /// A snapshot record.
    pub fn snapshot(&self, id: &str) -> Option<&SnapshotRecord> {
        self.snapshots.get(id)
    }

    /// Whether a command would exceed a quota of `quota_bytes`: the proposer refuses it with [`Error::NoSpace`], and proposes the
    /// alarm.
    pub fn over_quota(&self, command: &Command, quota_bytes: u64) -> bool {
        command.needs_space() && self.size_bytes.saturating_add(command.cost_bytes()) > quota_bytes
    }

    /// A hash of everything that the log determines. It looks at the whole store: for tests and traces.
    pub fn digest(&self) -> u128 {
        let mut h = blake3::Hasher::new();
        for r in self.history.from((0, 0)).filter(|r| self.survives(r, self.compacted)) {
            h.update(&rows::record_key(r.rev.place()));
            h.update(&self.record_page(r));
        }
        let mut at = self.row_after(None);
        while let Some(key) = at {
            h.update(&key.bytes());
            h.update(&self.row(&key).unwrap_or_default());
            at = self.row_after(Some(&key));
        }
        h.update(&crate::wire::encode(&self.meta()));
        let mut b = [0u8; 16];
        b.copy_from_slice(&h.finalize().as_bytes()[..16]);
        u128::from_le_bytes(b)
    }

    /// An entry of the log that is not for the store.
    pub fn advance(&mut self, index: u64) {
        if index > self.applied {
            self.applied = index;
            self.rows.images.applied(index);
        }
    }

    /// Applies an entry that is one command.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        let mut all = self.apply_all(index, core::slice::from_ref(command));
        // One command, one outcome.
        all.pop().unwrap_or(Outcome { revision: self.revision, result: Ok(Answer::Repeated), effects: Vec::new() })
    }

    /// Applies an entry: its commands one after the other, each for itself.
    pub fn apply_all(&mut self, index: u64, commands: &[Command]) -> Vec<Outcome> {
        if index <= self.applied && !self.has(Bug::ApplyTwice) {
            let repeated = || Outcome { revision: self.revision, result: Ok(Answer::Repeated), effects: Vec::new() };
            return commands.iter().map(|_| repeated()).collect();
        }
        self.advance(index);
        commands.iter().map(|c| self.apply_one(c)).collect()
    }

    fn apply_one(&mut self, command: &Command) -> Outcome {
        let mut effects = Vec::new();
        let result = self.answer(command, &mut effects);
        Outcome { revision: self.revision, result, effects }
    }

    fn answer(&mut self, command: &Command, effects: &mut Vec<Effect>) -> Result<Answer, Error> {
        command.check()?;
        self.alarmed(command)?;
        self.permitted(command)?;
        match &command.action {
            Action::Put(p) => self.put(p).map(Answer::Put),
            Action::Delete(d) => {
                let mut write = Write::new(self);
                let mut answer = self.delete_in(d.range(), d.prev_kv, &mut write);
                answer.revision = write.revision();
                write.end(self);
                Ok(Answer::Delete(answer))
            }
            Action::Txn(t) => self.txn(t).map(Answer::Txn),
            Action::Compact { revision } => {
                self.compact(*revision)?;
                effects.push(Effect::Compacted { revision: *revision });
                Ok(Answer::Done)
            }
            Action::LeaseGrant { id, ttl_s } => {
                self.lease_grant(*id, *ttl_s, effects)?;
                Ok(Answer::Lease { id: *id, ttl_s: (*ttl_s).max(1) })
            }
            Action::LeaseRevoke { id } => self.lease_end(*id, effects).map(|()| Answer::Done),
            Action::LeaseExpire { ids } => {
                let there = ids.iter().filter(|id| self.lease_end(**id, effects).is_ok());
                Ok(Answer::Expired(there.copied().collect()))
            }
            Action::LeaseCheckpoint { remaining } => {
                remaining.iter().for_each(|(id, s)| self.lease_checkpoint(*id, *s, effects));
                Ok(Answer::Done)
            }
            Action::Alarm { kind, member, raise } => Ok(Answer::Alarm { changed: self.alarm(*kind, *member, *raise) }),
            Action::Auth(a) => self.auth.apply(a, &mut self.rows).map(|()| Answer::Done),
            Action::Lock(l) => self.lock(l, effects).map(Answer::Lock),
            Action::SnapshotPut(record) => self.snapshot_put(record),
            Action::SnapshotDelete { id } => {
                let old = self.snapshots.get(id).ok_or(Error::SnapshotNotFound)?;
                self.rows.touch(rows::RowKey::Snapshot(id.clone()), || Some(crate::wire::encode(old)));
                self.snapshots.remove(id);
                Ok(Answer::Done)
            }
            Action::Secret(secret) => {
                self.secret.get_or_insert(*secret);
                Ok(Answer::Done)
            }
        }
    }

    /// While an alarm stands, some things cannot be done.
    fn alarmed(&self, command: &Command) -> Result<(), Error> {
        let stands = |kind: AlarmKind| self.alarms.range((kind, 0)..=(kind, u64::MAX)).next().is_some();
        if stands(AlarmKind::Corrupt) && !matches!(command.action, Action::Alarm { .. } | Action::Auth(_)) {
            return Err(Error::Corrupt);
        }
        if command.needs_space() && stands(AlarmKind::NoSpace) {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    fn alarm(&mut self, kind: AlarmKind, member: u64, raise: bool) -> bool {
        if raise {
            return self.alarms.len() < limits::ALARMS_MAX && self.alarms.insert((kind, member));
        }
        let before = self.alarms.len();
        self.alarms.retain(|(k, m)| *k != kind || (member != 0 && *m != member));
        self.alarms.len() < before
    }

    fn snapshot_put(&mut self, record: &SnapshotRecord) -> Result<Answer, Error> {
        let old = self.snapshots.get(&record.id);
        let full = old.is_none() && self.snapshots.len() >= limits::SNAPSHOT_RECORDS_MAX;
        if full || record.id.is_empty() || record.text_bytes() > limits::SNAPSHOT_RECORD_MAX_BYTES {
            return Err(Error::TooManySnapshots);
        }
        self.rows.touch(rows::RowKey::Snapshot(record.id.clone()), || old.map(crate::wire::encode));
        self.snapshots.insert(record.id.clone(), record.clone());
        Ok(Answer::Done)
    }

    fn lock(&mut self, action: &lock::LockAction, effects: &mut Vec<Effect>) -> Result<LockAnswer, Error> {
        if let lock::LockAction::Acquire(a) = action
            && a.lease.0 != 0
            && !self.leases.contains_key(&a.lease)
        {
            return Err(Error::LeaseNotFound { id: a.lease });
        }
        let double_grant = self.has(Bug::GrantLockTwice);
        let mut scene = Scene { fence: &mut self.fence, rows: &mut self.rows, effects, double_grant };
        let answer = self.locks.apply(action, &mut scene);
        self.lock_leases(effects);
        answer
    }

    /// Which locks are under which lease follows from what happened to the locks.
    fn lock_leases(&mut self, effects: &mut Vec<Effect>) {
        for e in effects.iter() {
            let Effect::LockLease { name, old, new } = e else { continue };
            let under = |id: &LeaseId| {
                let lock = self.locks.get(name);
                lock.is_some_and(|l| l.lease == *id || l.queue.iter().any(|w| w.lease == *id))
            };
            if let (false, Some(l)) = (under(old), self.leases.get_mut(old)) {
                l.locks.remove(name);
            }
            if let (true, Some(l)) = (under(new), self.leases.get_mut(new)) {
                l.locks.insert(name.clone());
            }
        }
        effects.retain(|e| !matches!(e, Effect::LockLease { .. }));
    }

    /// Everything about a put that can fail.
    fn check_put(&self, p: &Put) -> Result<(), Error> {
        if (p.ignore_value || p.ignore_lease) && self.live(&p.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        if p.lease.0 != 0 && !self.leases.contains_key(&p.lease) {
            return Err(Error::LeaseNotFound { id: p.lease });
        }
        Ok(())
    }

    fn put(&mut self, p: &Put) -> Result<PutAnswer, Error> {
        self.check_put(p)?;
        let mut write = Write::new(self);
        let answer = self.put_in(p, &mut write);
        write.end(self);
        Ok(answer)
    }

    /// A put that was checked.
    fn put_in(&mut self, p: &Put, write: &mut Write) -> PutAnswer {
        let (main, sub) = write.next();
        let rev = Rev::new(main, sub, false);
        let before = self.live(&p.key);
        let (create, version, old_lease) =
            before.map_or((main, 1, LeaseId(0)), |(_, r)| (r.create, r.version + 1, r.lease));
        let value: Box<[u8]> = match before {
            Some((_, r)) if p.ignore_value => r.value.clone(),
            _ => p.value.clone().into(),
        };
        let prev = before.filter(|_| p.prev_kv).map(|(slot, r)| self.kv(slot, r, true));
        let lease = if p.ignore_lease { old_lease } else { p.lease };
        self.size_bytes += history::cost(p.key.len(), value.len());
        let key = self.index.add(&p.key, rev);
        self.history.push(Record { rev, key, create, version, lease, value });
        self.move_lease(key, old_lease, lease);
        PutAnswer { revision: main, prev }
    }

    fn delete_in(&mut self, range: KeyRange<'_>, prev_kv: bool, write: &mut Write) -> DeleteAnswer {
        let there = |slot: &u32| self.index.revs(*slot).last().is_some_and(|r| !r.is_tombstone());
        let slots: Vec<u32> = self.index.range(range).filter(there).collect();
        let mut prev = Vec::new();
        for slot in &slots {
            if prev_kv && let Some(rev) = self.index.revs(*slot).last() {
                prev.push(self.kv(*slot, self.record(*rev), true));
            }
            self.delete_slot(*slot, write);
        }
        DeleteAnswer { revision: write.revision(), deleted: slots.len() as u64, prev }
    }

    /// Deletes a key that is there.
    fn delete_slot(&mut self, slot: u32, write: &mut Write) {
        let Some(last) = self.index.revs(slot).last().copied().filter(|r| !r.is_tombstone()) else { return };
        let lease = self.record(last).lease;
        let (main, sub) = write.next();
        let rev = Rev::new(main, sub, true);
        let key = self.index.key(slot).to_vec();
        self.size_bytes += history::cost(key.len(), 0);
        self.index.add(&key, rev);
        let none = LeaseId(0);
        self.history.push(Record { rev, key: slot, create: 0, version: 0, lease: none, value: Box::default() });
        self.move_lease(slot, lease, none);
    }
}
