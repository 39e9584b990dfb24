//! Two clusters that were founded apart meet: whoever has nothing to lose gives way.
//!
//! It happens when two nodes that were started without `join` are introduced to each other, or when a founder lost its disk and comes back.
//! A replica gives way if nobody but itself has a say in its cluster, or it has none itself, and nothing was ever written there; and if the other
//! cluster stands higher: more voters, or a later revision, or the lower number. Of two that meet one at most gives way. Where both hold something
//! neither does, and nobody says so yet: the two stay apart until the operator starts one of them without its data.

use super::{Control, Effects, Found, Refused, Standing, settings};
use crate::kv::Store;
use crate::raft::{Base, Lane, Persisted, Raft, Role};
use crate::rng::Seed;
use crate::time::Instant;
use alloc::vec::Vec;
use core::cmp::Reverse;

fn rank(s: Standing) -> (u8, u64, Reverse<u64>) {
    (s.voters, s.revision, Reverse(s.cluster))
}

impl Found {
    /// The record that says so was found: what came before does not count.
    pub(crate) fn forget(&mut self) {
        self.row = None;
        self.log.clear();
        self.forgotten = true;
    }
}

impl Control {
    /// For others.
    pub(crate) fn standing(&self) -> Standing {
        let voters = self.raft.membership().1.voters.len();
        Standing {
            cluster: self.raft.cluster(),
            voters: u8::try_from(voters).unwrap_or(u8::MAX),
            revision: self.store.revision(),
        }
    }

    /// Nothing was ever written here that anybody could miss.
    fn is_blank(&self) -> bool {
        let s = &self.store;
        s.revision() == 1
            && s.leases().next().is_none()
            && s.locks().held() + s.locks().waiting() == 0
            && s.auth().users().next().is_none()
            && s.snapshots().next().is_none()
    }

    /// Another replica is in another cluster, for which this one should leave its own.
    pub(crate) fn yields_to(&self, theirs: Standing) -> bool {
        let (_, m) = self.raft.membership();
        let alone = !m.is_voter(self.me) || (m.voters.len() == 1 && m.outgoing.is_empty());
        let mine = self.standing();
        let apart = mine.cluster != 0 && theirs.cluster != 0 && mine.cluster != theirs.cluster;
        apart && alone && self.is_blank() && rank(theirs) > rank(mine) && self.raft.broken().is_none()
    }

    /// Forgets consensus and the store: what follows is another cluster. The record of it is in the log lane already.
    pub(crate) fn starts_over(&mut self, _now: Instant, fx: &mut Effects) {
        let all: Vec<_> = self.open.keys().copied().collect();
        for token in all {
            self.end(token, Some(Refused::Timeout), fx);
        }
        let mut store = Store::new();
        store.plant(self.bug);
        store.replaces(&self.store);
        self.store = store;
        let seed = Seed(self.rng.next_u64());
        self.raft =
            Raft::recover(settings(&self.config, self.me, self.bug), seed, Persisted::default(), Base::default());
        if self.lane != Lane::Fine {
            // It is told again by the next step.
            self.lane = Lane::Fine;
        }
        debug_assert!(self.raft.role() != Role::Leader, "it has no cluster");
        self.lessor.demote();
        self.applied_term = 0;
        self.queue.clear();
        self.batches.clear();
        self.taken.clear();
        self.calls.clear();
        self.reads.clear();
        self.ready.clear();
        self.requests.clear();
        self.changing.clear();
        self.waits.clear();
        self.persists.clear();
        self.cut = None;
        self.committing = None;
        self.install = None;
        self.sending.clear();
        self.receiving = None;
        self.end_own_locks();
        fx.words.push("this node had founded a control plane of its own, in which nothing was written: it joins that of the others".into());
        fx.again = true;
    }
}
