//! Who notices that a lease's time is over: the leader, and nobody else.
//!
//! Only the log ends a lease. The leader's lessor knows, for each lease, until when its holder may believe in it, and proposes to
//! end those that nobody has kept alive. It never knows better than the leader before it, so:
//!
//! * **A new leader starts from the full time again** (or from what was last written down), and adds [`Lessor::promote`]'s
//!   `grace`, at least an election timeout: until then the old leader may have answered keep-alives that the new one never
//!   heard of. No lease ends early by a change of leaders.
//! * **Long leases are written down** every [`limits::LEASE_CHECKPOINT_INTERVAL`]: otherwise a cluster that changes its leader often
//!   would never end them. While something less than the full time is written down (or on its way), a keep-alive must first
//!   write down the full time, and is answered after that: [`KeepAlive::Propose`].
//! * **A follower never proposes**: on losing leadership everything here is forgotten.
//!
//! Promote it only after an entry of the leader's own term has been applied: before that, the log may hold an end of a lease
//! that is not applied yet.

use super::command::Action;
use super::error::Error;
use super::lease::{Lease, LeaseId};
use super::{Effect, Store};
use crate::bug::Bug;
use crate::limits;
use crate::time::{Instant, Span};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The answer to a keep-alive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeepAlive {
    /// It lasts for this many seconds from now.
    Renewed {
        /// The full time.
        ttl_s: u64,
    },
    /// Propose this; once it is applied, answer with the full time. If it is not, do not answer.
    Propose {
        /// Writes down the full time.
        action: Action,
        /// The full time.
        ttl_s: u64,
    },
}

/// Why a keep-alive cannot be answered here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotKept {
    /// Ask the leader.
    NotLeader,
    /// There is no such lease, or its end is on its way.
    Gone(Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Timing {
    deadline: Instant,
    /// When its remaining time is to be written down.
    checkpoint: Option<Instant>,
    /// Less than the full time may be written down in the log ahead.
    checkpoint_under_way: bool,
    /// Its end was proposed then.
    ending: Option<Instant>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Office {
    grace: Span,
    leases: BTreeMap<LeaseId, Timing>,
    deadlines: BTreeSet<(Instant, LeaseId)>,
    checkpoints: BTreeSet<(Instant, LeaseId)>,
    /// Not all leases were looked at since the promotion; those up to here were.
    unseen: Option<Option<LeaseId>>,
    /// Leases of which the end was proposed, and when that is done again.
    endings: BTreeSet<(Instant, LeaseId)>,
}

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Lessor {
    office: Option<Office>,
    /// What a leader that was deposed forgot to forget (a planted bug).
    left_over: Option<Office>,
    bug: Option<Bug>,
}

impl Office {
    fn set(&mut self, id: LeaseId, lease: &Lease, deadline: Instant, now: Instant) {
        self.drop(id);
        let interval = limits::LEASE_CHECKPOINT_INTERVAL;
        let long = Span::s(lease.ttl_s()) > interval;
        let checkpoint = long.then(|| now.after(interval));
        self.deadlines.insert((deadline, id));
        self.checkpoints.extend(checkpoint.map(|at| (at, id)));
        self.leases.insert(id, Timing { deadline, checkpoint, checkpoint_under_way: false, ending: None });
    }

    fn drop(&mut self, id: LeaseId) -> Option<Timing> {
        let t = self.leases.remove(&id)?;
        self.deadlines.remove(&(t.deadline, id));
        if let Some(again) = t.ending {
            self.endings.remove(&(again, id));
        }
        if let Some(at) = t.checkpoint {
            self.checkpoints.remove(&(at, id));
        }
        Some(t)
    }

    /// The lease is timed, even if its turn since the promotion has not come yet.
    fn timing(&mut self, id: LeaseId, lease: &Lease, now: Instant) -> Option<&mut Timing> {
        if !self.leases.contains_key(&id) {
            let deadline = now.after(Span::s(lease.remaining_s())).after(self.grace);
            self.set(id, lease, deadline, now);
        }
        self.leases.get_mut(&id)
    }
}

impl Lessor {
    /// Plants a bug, for tests of the tests. Without the feature `planted-bugs` it does nothing.
    pub fn plant(&mut self, bug: Option<Bug>) {
        self.bug = bug;
    }

    fn has(&self, bug: Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }

    /// This node leads from now on. `grace` is how long an old leader may have gone on without us: at least the longest election
    /// timeout, and what clocks may differ in running.
    pub fn promote(&mut self, grace: Span) {
        let mut office = Office { grace, unseen: Some(None), ..Office::default() };
        if let Some(old) = self.left_over.take() {
            office = old;
        }
        self.office = Some(office);
    }

    /// This node does not lead any more.
    pub fn demote(&mut self) {
        if self.has(Bug::ExpireOnFollower) {
            return;
        }
        let old = self.office.take();
        if self.has(Bug::LeaseExpiresEarly) {
            self.left_over = old;
        }
    }

    /// Whether it is the leader's.
    pub fn leads(&self) -> bool {
        self.office.is_some()
    }

    /// What applied commands did to leases.
    pub fn effects(&mut self, store: &Store, effects: &[Effect], now: Instant) {
        let Some(office) = &mut self.office else { return };
        for e in effects {
            match e {
                Effect::LeaseGranted { id } => {
                    if let Some(lease) = store.lease(*id) {
                        office.set(*id, lease, now.after(Span::s(lease.ttl_s())), now);
                    }
                }
                Effect::LeaseEnded { id } => drop(office.drop(*id)),
                Effect::LeaseCheckpointed { id } => {
                    if let Some(t) = office.leases.get_mut(id) {
                        t.checkpoint_under_way = false;
                    }
                }
                _ => {}
            }
        }
    }

    /// A holder says that it lives.
    pub fn keep_alive(&mut self, store: &Store, id: LeaseId, now: Instant) -> Result<KeepAlive, NotKept> {
        let office = self.office.as_mut().ok_or(NotKept::NotLeader)?;
        let gone = NotKept::Gone(Error::LeaseNotFound { id });
        let lease = store.lease(id).ok_or(gone.clone())?;
        let t = office.timing(id, lease, now).ok_or(gone.clone())?;
        if t.ending.is_some() {
            return Err(gone);
        }
        let reset = t.checkpoint_under_way || lease.remaining_s() < lease.ttl_s();
        let ttl_s = lease.ttl_s();
        let deadline = now.after(Span::s(ttl_s)).max(t.deadline);
        office.set(id, lease, deadline, now);
        if !reset {
            return Ok(KeepAlive::Renewed { ttl_s });
        }
        // Until it is applied, what the log says is less than what the holder is about to believe.
        if let Some(t) = office.leases.get_mut(&id) {
            t.checkpoint_under_way = true;
        }
        Ok(KeepAlive::Propose { action: Action::LeaseCheckpoint { remaining: alloc::vec![(id, 0)] }, ttl_s })
    }

    /// How long a lease still lasts, in whole seconds, rounded down; as far as the leader knows.
    pub fn time_left_s(&self, id: LeaseId, now: Instant) -> Option<u64> {
        let t = self.office.as_ref()?.leases.get(&id)?;
        Some(t.deadline.since(now).0 / 1_000_000_000)
    }

    /// When [`Lessor::pump`] wants to be called again. After a promotion: at once, until it says that nothing is left.
    pub fn wake(&self) -> Option<Instant> {
        let office = self.office.as_ref()?;
        if office.unseen.is_some() {
            return Some(Instant(0));
        }
        // With too many ends under way, what is applied wakes us.
        let full = office.endings.len() >= limits::LEASE_EXPIRE_IN_FLIGHT_MAX;
        let new = office.deadlines.first().filter(|_| !full);
        let first = [new, office.endings.first(), office.checkpoints.first()];
        first.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// What is to be proposed now: ends of leases whose time is over, remaining times. In portions: true if there is more to do.
    /// A proposal may be lost: it is made again after [`limits::LEASE_RETRY`].
    pub fn pump(&mut self, store: &Store, now: Instant, out: &mut Vec<Action>) -> bool {
        let Some(office) = &mut self.office else { return false };
        // First everybody gets his time.
        if let Some(from) = office.unseen {
            let mut seen = 0;
            let mut last = None;
            for (id, lease) in store.leases_after(from).take(limits::LEASES_PER_STEP) {
                seen += 1;
                last = Some(id);
                office.timing(id, lease, now);
            }
            office.unseen = (seen == limits::LEASES_PER_STEP).then_some(last);
        }
        let mut ids = Vec::new();
        while ids.len() < limits::LEASE_EXPIRE_PER_COMMAND_MAX {
            let again = office.endings.first().filter(|(at, _)| *at <= now).copied();
            let full = office.endings.len() >= limits::LEASE_EXPIRE_IN_FLIGHT_MAX;
            let first = office.deadlines.first().filter(|(at, _)| *at <= now && !full).copied();
            let Some((at, id)) = again.or(first) else { break };
            office.endings.remove(&(at, id));
            office.deadlines.remove(&(at, id));
            if let Some(t) = office.leases.get_mut(&id) {
                let retry = now.after(limits::LEASE_RETRY);
                t.ending = Some(retry);
                office.endings.insert((retry, id));
                ids.push(id);
            }
        }
        let mut remaining = Vec::new();
        while let Some((at, id)) = office.checkpoints.first().copied()
            && at <= now
            && remaining.len() < limits::LEASE_CHECKPOINTS_PER_COMMAND_MAX
        {
            office.checkpoints.pop_first();
            let Some(t) = office.leases.get_mut(&id) else { continue };
            let next = now.after(limits::LEASE_CHECKPOINT_INTERVAL);
            t.checkpoint = Some(next);
            office.checkpoints.insert((next, id));
            if t.ending.is_none() {
                t.checkpoint_under_way = true;
                // Rounded up: nobody loses time by being written down. Zero would be the full time.
                remaining.push((id, t.deadline.since(now).0.div_ceil(1_000_000_000).max(1)));
            }
        }
        let more = office.unseen.is_some()
            || ids.len() == limits::LEASE_EXPIRE_PER_COMMAND_MAX
            || remaining.len() == limits::LEASE_CHECKPOINTS_PER_COMMAND_MAX;
        if !ids.is_empty() {
            out.push(Action::LeaseExpire { ids });
        }
        if !remaining.is_empty() {
            out.push(Action::LeaseCheckpoint { remaining });
        }
        more
    }
}
