//! Who has a say: voters, learners, and the two halves of a joint configuration.

use crate::ids::ReplicaId;
use crate::limits::{MEMBERS_MAX, RAFT_VOTERS_MAX};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// A configuration. It holds from the moment its entry is appended, whether or not it is committed (Ongaro,
/// *Consensus: bridging theory and practice*, section 4.1).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    /// Have a say in elections and commits.
    pub voters: BTreeSet<ReplicaId>,
    /// The voters before a joint change. While there are any, everything needs a majority of these, too.
    pub outgoing: BTreeSet<ReplicaId>,
    /// Get the log and have no say.
    pub learners: BTreeSet<ReplicaId>,
    /// Voters of `outgoing` that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<ReplicaId>,
    /// The leader leaves the joint configuration by itself once it is committed.
    pub auto_leave: bool,
}

/// One wish of a change of membership.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Make it a voter, whether or not it is a member now.
    Voter(ReplicaId),
    /// Make it a learner, whether or not it is a member now.
    Learner(ReplicaId),
    /// Remove it.
    Remove(ReplicaId),
}

/// How a joint configuration ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Leave {
    /// A change of one voter is made at once; a larger one goes through a joint configuration that the leader ends.
    #[default]
    Auto,
    /// Always through a joint configuration, which stays until somebody asks for its end.
    Explicit,
}

/// Why a change of membership makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BadChange {
    /// Nothing would change.
    Nothing,
    /// One replica is named twice.
    Twice,
    /// No voter would be left.
    NoVoters,
    /// More members or voters than a cluster may have.
    TooMany,
    /// There is no joint configuration to leave.
    NotJoint,
}

/// Of an election.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Poll {
    Won,
    Lost,
    Open,
}

impl Membership {
    /// Nobody but these voters.
    pub fn of<I: IntoIterator<Item = ReplicaId>>(voters: I) -> Membership {
        Membership { voters: voters.into_iter().collect(), ..Membership::default() }
    }

    /// Two configurations at once.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Has a say now.
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Is served with the log.
    pub fn is_member(&self, id: ReplicaId) -> bool {
        self.is_voter(id) || self.learners.contains(&id) || self.learners_next.contains(&id)
    }

    /// Everybody who is served with the log, in order.
    pub fn members(&self) -> BTreeSet<ReplicaId> {
        let mut all = self.voters.clone();
        all.extend(&self.outgoing);
        all.extend(&self.learners);
        all.extend(&self.learners_next);
        all
    }

    /// Within the limits, and of one mind about everybody. What comes from a peer or from disk is checked with this.
    pub fn is_sound(&self) -> bool {
        let next_were_voters = self.learners_next.iter().all(|l| self.outgoing.contains(l));
        let apart = self.learners.iter().all(|l| !self.is_voter(*l))
            && self.learners_next.iter().all(|l| !self.voters.contains(l) && !self.learners.contains(l));
        let empty = self.outgoing.is_empty() && self.learners.is_empty();
        (!self.voters.is_empty() || empty)
            && next_were_voters
            && apart
            && self.voters.len() <= RAFT_VOTERS_MAX
            && self.outgoing.len() <= RAFT_VOTERS_MAX
            && self.members().len() <= MEMBERS_MAX
    }

    /// The configuration that `steps` lead to: the next one itself, or the joint one on the way to it.
    ///
    /// # Errors
    /// Where the steps contradict each other, or lead nowhere.
    pub fn changed(&self, steps: &[Step], leave: Leave) -> Result<Membership, BadChange> {
        let mut next =
            Membership { voters: self.voters.clone(), learners: self.learners.clone(), ..Default::default() };
        let mut named = BTreeSet::new();
        for step in steps {
            let (Step::Voter(id) | Step::Learner(id) | Step::Remove(id)) = *step;
            if !named.insert(id) {
                return Err(BadChange::Twice);
            }
            next.voters.remove(&id);
            next.learners.remove(&id);
            match step {
                Step::Voter(id) => drop(next.voters.insert(*id)),
                Step::Learner(id) => drop(next.learners.insert(*id)),
                Step::Remove(_) => (),
            }
        }
        if next.voters == self.voters && next.learners == self.learners && leave == Leave::Auto {
            return Err(BadChange::Nothing);
        }
        if next.voters.is_empty() {
            return Err(BadChange::NoVoters);
        }
        if next.voters.len() > RAFT_VOTERS_MAX || next.members().len() > MEMBERS_MAX {
            return Err(BadChange::TooMany);
        }
        if leave == Leave::Auto && self.voters.symmetric_difference(&next.voters).count() <= 1 {
            return Ok(next);
        }
        next.outgoing = self.voters.clone();
        next.learners_next = next.learners.intersection(&next.outgoing).copied().collect();
        next.learners = next.learners.difference(&next.outgoing).copied().collect();
        next.auto_leave = leave == Leave::Auto;
        if next.members().len() > MEMBERS_MAX {
            return Err(BadChange::TooMany);
        }
        Ok(next)
    }

    /// What a joint configuration leads to.
    ///
    /// # Errors
    /// If this is none.
    pub fn left(&self) -> Result<Membership, BadChange> {
        if !self.is_joint() {
            return Err(BadChange::NotJoint);
        }
        let learners = self.learners.union(&self.learners_next).copied().collect();
        Ok(Membership { voters: self.voters.clone(), learners, ..Membership::default() })
    }

    /// The greatest value that a majority of each half reaches. `None` without voters. `half_counts`: with a planted bug, only the new one.
    pub(crate) fn reached<T: Ord + Copy>(&self, half_counts: bool, value: impl Fn(ReplicaId) -> T) -> Option<T> {
        let half = |voters: &BTreeSet<ReplicaId>| {
            let mut all: Vec<T> = voters.iter().map(|id| value(*id)).collect();
            all.sort_unstable();
            let n = all.len();
            // Of n in ascending order, a majority has at least the value at (n - 1) / 2.
            if n == 0 { None } else { Some(all[(n - 1) / 2]) }
        };
        let now = half(&self.voters)?;
        if half_counts {
            return Some(now);
        }
        Some(half(&self.outgoing).map_or(now, |old| old.min(now)))
    }

    /// How an election stands. `vote`: what is known of one voter.
    pub(crate) fn poll(&self, half_counts: bool, vote: impl Fn(ReplicaId) -> Option<bool>) -> Poll {
        // Yes is 2, unknown 1, no 0: what a majority reaches is what the majority can still become.
        let value = |id| match vote(id) {
            Some(true) => 2u8,
            None => 1,
            Some(false) => 0,
        };
        let most = |voters: &BTreeSet<ReplicaId>| {
            let need = voters.len() / 2 + 1;
            let yes = voters.iter().filter(|id| value(**id) == 2).count();
            let open = voters.iter().filter(|id| value(**id) == 1).count();
            if yes >= need {
                Poll::Won
            } else if yes + open >= need {
                Poll::Open
            } else {
                Poll::Lost
            }
        };
        if self.voters.is_empty() {
            return Poll::Lost;
        }
        let now = most(&self.voters);
        let old = if self.outgoing.is_empty() || half_counts { Poll::Won } else { most(&self.outgoing) };
        match (now, old) {
            (Poll::Lost, _) | (_, Poll::Lost) => Poll::Lost,
            (Poll::Won, Poll::Won) => Poll::Won,
            _ => Poll::Open,
        }
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, what: &str, ids: &BTreeSet<ReplicaId>| {
            if ids.is_empty() {
                return Ok(());
            }
            f.write_str(what)?;
            for (k, id) in ids.iter().enumerate() {
                write!(f, "{}{id}", if k == 0 { " " } else { "," })?;
            }
            Ok(())
        };
        list(f, "voters", &self.voters)?;
        list(f, " and of before", &self.outgoing)?;
        list(f, ", learners", &self.learners)?;
        list(f, ", learners to be", &self.learners_next)?;
        if self.is_joint() && self.auto_leave { f.write_str(", until committed") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(all: &[u64]) -> BTreeSet<ReplicaId> {
        all.iter().map(|i| ReplicaId(*i)).collect()
    }

    #[test]
    fn a_majority_of_each_half_must_reach_a_value() {
        let m = Membership { voters: ids(&[1, 2, 3]), outgoing: ids(&[3, 4, 5, 6]), ..Default::default() };
        // Of 3: the second highest; of 4: the third highest.
        assert_eq!(m.reached(false, |r| r.0), Some(2));
        assert_eq!(m.reached(false, |r| 10 - r.0), Some(5));
        assert_eq!(Membership::default().reached(false, |r| r.0), None);
        for n in 1..=9u64 {
            let m = Membership::of((1..=n).map(ReplicaId));
            // The value that n / 2 + 1 of 1..=n reach.
            assert_eq!(m.reached(false, |r| r.0), Some(n - n / 2));
        }
    }

    #[test]
    fn an_election_is_won_in_both_halves_and_lost_in_one() {
        let m = Membership { voters: ids(&[1, 2, 3]), outgoing: ids(&[4]), ..Default::default() };
        let all = |yes: &[u64], no: &[u64]| {
            let (yes, no) = (ids(yes), ids(no));
            m.poll(false, |r| yes.contains(&r).then_some(true).or(no.contains(&r).then_some(false)))
        };
        assert_eq!(all(&[1, 2], &[]), Poll::Open);
        assert_eq!(all(&[1, 2, 4], &[]), Poll::Won);
        assert_eq!(all(&[1, 2], &[4]), Poll::Lost);
        assert_eq!(all(&[4], &[1, 2]), Poll::Lost);
    }

    #[test]
    fn one_voter_more_is_a_simple_change_and_two_are_joint() {
        let m = Membership::of([ReplicaId(1)]);
        let v = |i| Step::Voter(ReplicaId(i));
        assert_eq!(m.changed(&[v(2)], Leave::Auto), Ok(Membership::of([1, 2].map(ReplicaId))));
        let joint = m.changed(&[v(2), v(3)], Leave::Auto).expect("a change");
        assert_eq!((joint.outgoing.clone(), joint.auto_leave), (ids(&[1]), true));
        assert_eq!(joint.left(), Ok(Membership::of([1, 2, 3].map(ReplicaId))));
        assert_eq!(m.changed(&[v(2), v(2)], Leave::Auto), Err(BadChange::Twice));
        assert_eq!(m.changed(&[v(1)], Leave::Auto), Err(BadChange::Nothing));
        assert_eq!(m.changed(&[Step::Remove(ReplicaId(1))], Leave::Auto), Err(BadChange::NoVoters));
        assert_eq!(m.left(), Err(BadChange::NotJoint));
    }

    #[test]
    fn a_voter_becomes_a_learner_when_the_joint_configuration_is_left() {
        let m = Membership::of([1, 2, 3].map(ReplicaId));
        let joint = m
            .changed(
                &[Step::Learner(ReplicaId(3)), Step::Voter(ReplicaId(4)), Step::Learner(ReplicaId(5))],
                Leave::Auto,
            )
            .expect("a change");
        assert!(joint.is_sound() && joint.is_voter(ReplicaId(3)));
        assert_eq!((&joint.learners, &joint.learners_next), (&ids(&[5]), &ids(&[3])));
        let after = joint.left().expect("joint");
        assert_eq!((after.voters, after.learners), (ids(&[1, 2, 4]), ids(&[3, 5])));
    }
}
