//! Who should have a say: a pure function from what is known to the next change of membership.
//!
//! * A cluster begins with one voter ([`super::Persisted::found`]); whoever joins becomes a learner.
//! * A learner that has caught up and has been up for a while becomes a voter, but so that the number of voters stays odd: of one
//!   and two learners all three become voters at once. With two members the first stays the only voter.
//! * A voter that is gone for long, or has left, is replaced as soon as a learner can take its place. While none can, it stays: a
//!   smaller majority would be no safer. Only when members have left for good does the number of voters go down.
//! * Members that have left are removed.
//!
//! The leader asks for the next change when the one before is done, and proposes it with [`super::Leave::Auto`].

use super::entry::Index;
use super::members::{Membership, Step};
use super::{Follower, Raft};
use crate::ids::ReplicaId;
use crate::limits::{MEMBERS_MAX, RAFT_AUTOPILOT_VOTERS_MAX};
use crate::time::{Instant, Span};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A learner that lacks no more than this many committed entries has caught up.
pub const CAUGHT_UP_ENTRIES: u64 = 256;

/// How it decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Voters at most; an even number counts as the odd one below.
    pub voters_max: usize,
    /// A voter that is down for longer is replaced.
    pub dead_after: Span,
    /// A learner that is up for less is not promoted yet.
    pub settle: Span,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { voters_max: RAFT_AUTOPILOT_VOTERS_MAX, dead_after: Span::s(300), settle: Span::s(5) }
    }
}

/// What the cluster's member table says of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// It is up, else down.
    pub up: bool,
    /// For how long.
    pub since: Instant,
    /// It left for good, or its data is lost.
    pub left: bool,
}

/// What there is to decide from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The leader.
    pub me: ReplicaId,
    /// The configuration that holds; committed.
    pub membership: &'a Membership,
    /// The member table, the leader included. Whoever is not in it is forgotten: it has left.
    pub members: &'a BTreeMap<ReplicaId, Member>,
    /// What the leader knows of the others.
    pub followers: &'a [(ReplicaId, Follower)],
    /// The leader's commit index.
    pub commit: Index,
    /// Now.
    pub now: Instant,
}

/// [`next`] for a leader that may change the membership now.
pub fn next_of(
    raft: &Raft,
    members: &BTreeMap<ReplicaId, Member>,
    settings: &Settings,
    now: Instant,
) -> Option<Vec<Step>> {
    if raft.change_blocked().is_some() {
        return None;
    }
    let (me, membership, commit) = (raft.me(), raft.membership().1, raft.commit());
    let followers = raft.followers();
    next(&Situation { me, membership, members, followers: &followers, commit, now }, settings)
}

/// The next change, if one is called for.
pub fn next(s: &Situation<'_>, settings: &Settings) -> Option<Vec<Step>> {
    if s.membership.is_joint() {
        return None;
    }
    let steps = voters(s, settings);
    let steps = if steps.is_empty() { learners(s) } else { steps };
    (!steps.is_empty()).then_some(steps)
}

impl Situation<'_> {
    fn left(&self, id: ReplicaId) -> bool {
        self.members.get(&id).is_none_or(|m| m.left)
    }

    fn gone(&self, id: ReplicaId, settings: &Settings) -> bool {
        let long = |m: &Member| !m.up && self.now.since(m.since) >= settings.dead_after;
        id != self.me && self.members.get(&id).is_none_or(long)
    }

    /// Learners that can become voters, those that are up for longest first.
    fn fit(&self, settings: &Settings) -> Vec<ReplicaId> {
        let caught_up = |id: &ReplicaId| {
            let f = self.followers.iter().find(|(f, _)| f == id).map(|(_, f)| f);
            f.is_some_and(|f| f.replicating && f.matched + CAUGHT_UP_ENTRIES >= self.commit)
        };
        let mut fit: Vec<(Instant, ReplicaId)> = Vec::new();
        for id in self.membership.learners.iter().filter(|id| caught_up(id)) {
            if let Some(m) = self.members.get(id)
                && m.up
                && !m.left
                && self.now.since(m.since) >= settings.settle
            {
                fit.push((m.since, *id));
            }
        }
        fit.sort_unstable();
        fit.into_iter().map(|(_, id)| id).collect()
    }
}

/// The largest odd number up to `n`, at least 1.
fn odd(n: usize) -> usize {
    if n == 0 { 1 } else { n - (n + 1) % 2 }
}

fn voters(s: &Situation<'_>, settings: &Settings) -> Vec<Step> {
    let mut voters = s.membership.voters.clone();
    let mut fit = s.fit(settings).into_iter();
    let mut steps = BTreeMap::new();
    let out = |id: ReplicaId, voters: &mut BTreeSet<ReplicaId>, steps: &mut BTreeMap<ReplicaId, Step>| {
        voters.remove(&id);
        steps.insert(id, if s.left(id) { Step::Remove(id) } else { Step::Learner(id) });
    };
    let into = |id: ReplicaId, voters: &mut BTreeSet<ReplicaId>, steps: &mut BTreeMap<ReplicaId, Step>| {
        voters.insert(id);
        steps.insert(id, Step::Voter(id));
    };
    // First those that have left, then those that are gone for long.
    let mut bad: Vec<ReplicaId> = voters.iter().filter(|v| s.left(**v)).copied().collect();
    bad.extend(voters.iter().filter(|v| !s.left(**v) && s.gone(**v, settings)));
    let present = s.members.iter().filter(|(_, m)| !m.left).count();
    let target = odd(present.min(settings.voters_max.max(1)));
    // Fewer: nobody is left to take the places.
    let mut bad = bad.into_iter();
    while voters.len() > target {
        let other = |v: &&ReplicaId| **v != s.me;
        let Some(id) = bad.next().or_else(|| voters.iter().rev().find(other).copied()) else { break };
        if voters.contains(&id) {
            out(id, &mut voters, &mut steps);
        }
    }
    // Replacements.
    for id in bad.filter(|id| s.membership.voters.contains(id)) {
        if !voters.contains(&id) {
            continue;
        }
        let Some(new) = fit.next() else { break };
        out(id, &mut voters, &mut steps);
        into(new, &mut voters, &mut steps);
    }
    // More, as far as the number stays odd.
    let fit: Vec<ReplicaId> = fit.collect();
    let most = odd((voters.len() + fit.len()).min(target));
    let more = most.saturating_sub(voters.len());
    for id in fit.into_iter().take(more) {
        into(id, &mut voters, &mut steps);
    }
    steps.into_values().collect()
}

fn learners(s: &Situation<'_>) -> Vec<Step> {
    let gone = s.membership.learners.iter().filter(|id| s.left(**id)).map(|id| Step::Remove(*id));
    let mut steps: Vec<Step> = gone.collect();
    let room = (MEMBERS_MAX + steps.len()).saturating_sub(s.membership.members().len());
    let new = s.members.iter().filter(|(id, m)| m.up && !m.left && !s.membership.is_member(**id));
    steps.extend(new.map(|(id, _)| Step::Learner(*id)).take(room));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;

    /// `id` up or down for so many seconds, or left.
    struct World {
        membership: Membership,
        members: BTreeMap<ReplicaId, Member>,
        followers: Vec<(ReplicaId, Follower)>,
    }

    const NOW: Instant = Instant(1_000_000_000_000);

    impl World {
        fn new(voters: &[u64], learners: &[u64]) -> World {
            let ids = |all: &[u64]| all.iter().map(|i| ReplicaId(*i)).collect();
            let membership = Membership { voters: ids(voters), learners: ids(learners), ..Default::default() };
            let mut w = World { membership, members: BTreeMap::new(), followers: Vec::new() };
            for id in voters.iter().chain(learners) {
                w.is(*id, true, 60);
                w.reached(*id, 1000);
            }
            w
        }
        fn is(&mut self, id: u64, up: bool, seconds: u64) -> &mut World {
            let since = Instant(NOW.0 - seconds * 1_000_000_000);
            self.members.insert(ReplicaId(id), Member { up, since, left: false });
            self
        }
        fn left(&mut self, id: u64) -> &mut World {
            self.members.insert(ReplicaId(id), Member { up: false, since: NOW, left: true });
            self
        }
        fn reached(&mut self, id: u64, matched: u64) -> &mut World {
            let f = Follower { matched, replicating: true, snapshot: false, in_flight: 0, heard: NOW };
            self.followers.retain(|(r, _)| r.0 != id);
            self.followers.push((ReplicaId(id), f));
            self
        }
        fn next(&self) -> String {
            let s = Situation {
                me: ReplicaId(1),
                membership: &self.membership,
                members: &self.members,
                followers: &self.followers,
                commit: 1000,
                now: NOW,
            };
            let word = |s: &Step| match s {
                Step::Voter(id) => format!("voter {}", id.0),
                Step::Learner(id) => format!("learner {}", id.0),
                Step::Remove(id) => format!("remove {}", id.0),
            };
            let steps = next(&s, &Settings::default()).unwrap_or_default();
            steps.iter().map(word).collect::<Vec<_>>().join(", ")
        }
    }

    #[test]
    fn who_joins_becomes_a_learner() {
        assert_eq!(World::new(&[1], &[]).is(2, true, 0).next(), "learner 2");
        assert_eq!(World::new(&[1], &[]).is(2, false, 0).next(), "");
    }

    #[test]
    fn of_two_the_first_stays_the_only_voter() {
        assert_eq!(World::new(&[1], &[2]).next(), "");
    }

    #[test]
    fn two_learners_become_voters_at_once() {
        assert_eq!(World::new(&[1], &[2, 3]).next(), "voter 2, voter 3");
        assert_eq!(World::new(&[1], &[2, 3]).reached(3, 10).next(), "");
        assert_eq!(World::new(&[1], &[2, 3]).is(3, true, 1).next(), "");
        assert_eq!(World::new(&[1, 2, 3], &[4]).next(), "");
        assert_eq!(World::new(&[1, 2, 3], &[4, 5]).next(), "voter 4, voter 5");
        assert_eq!(World::new(&[1, 2, 3, 4, 5], &[6, 7]).next(), "");
        assert_eq!(World::new(&[1], &[2, 3, 4, 5, 6]).next(), "voter 2, voter 3, voter 4, voter 5");
    }

    #[test]
    fn an_even_number_of_voters_is_mended() {
        assert_eq!(World::new(&[1, 2], &[3]).next(), "voter 3");
        assert_eq!(World::new(&[1, 2], &[]).next(), "learner 2");
        assert_eq!(World::new(&[1, 2, 3, 4], &[]).next(), "learner 4");
    }

    #[test]
    fn a_voter_that_is_gone_for_long_is_replaced() {
        assert_eq!(World::new(&[1, 2, 3], &[4]).is(2, false, 299).next(), "");
        assert_eq!(World::new(&[1, 2, 3], &[4]).is(2, false, 300).next(), "learner 2, voter 4");
        // Nobody can take its place: it keeps it.
        assert_eq!(World::new(&[1, 2, 3], &[]).is(2, false, 9999 / 10).next(), "");
        assert_eq!(World::new(&[1, 2, 3], &[4]).is(2, false, 300).reached(4, 0).next(), "");
    }

    #[test]
    fn a_disk_is_lost_and_its_replica_comes_back_as_another() {
        // The old one stays until the new one has caught up.
        assert_eq!(World::new(&[1, 2, 3], &[]).left(3).is(4, true, 0).next(), "learner 4");
        assert_eq!(World::new(&[1, 2, 3], &[4]).left(3).reached(4, 0).next(), "");
        assert_eq!(World::new(&[1, 2, 3], &[4]).left(3).next(), "remove 3, voter 4");
    }

    #[test]
    fn members_that_leave_take_voters_with_them() {
        assert_eq!(World::new(&[1, 2, 3], &[]).left(3).next(), "learner 2, remove 3");
        assert_eq!(World::new(&[1, 2, 3, 4, 5], &[]).left(5).next(), "learner 4, remove 5");
        assert_eq!(World::new(&[1], &[2]).left(2).next(), "remove 2");
    }

    #[test]
    fn nothing_is_changed_while_a_change_is_under_way() {
        let mut w = World::new(&[1, 2, 3], &[4, 5]);
        w.membership.outgoing.insert(ReplicaId(1));
        assert_eq!(w.next(), "");
    }
}
