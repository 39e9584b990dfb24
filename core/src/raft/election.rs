//! Elections: who asks, who votes, who is protected from being replaced.

use super::entry::{Index, TERM_MAX, Term};
use super::io::{Effect, Lane, Role};
use super::members::Poll;
use super::message::Body;
use super::{Bug, Raft, ReplicaId};
use crate::time::Span;
use alloc::vec::Vec;

/// How many election timeouts a replica with a slow disk leaves to others. Where all disks are slow, one must lead all the same.
const SLOW_PATIENCE: u64 = 4;

impl Raft {
    /// Nobody else has a say.
    pub(super) fn is_alone(&self) -> bool {
        let m = self.log.membership().1;
        m.outgoing.iter().chain(&m.voters).all(|v| *v == self.config.me) && m.is_voter(self.config.me)
    }

    pub(super) fn can_campaign(&self) -> bool {
        self.lane != Lane::Failed
            && !self.stopping
            && self.broken.is_none()
            && self.installing.is_none()
            && self.hard.term < TERM_MAX
            && self.may_lead()
    }

    /// A voter of the configuration that holds; or, until that is committed, of the one before: it may be that nobody else has the
    /// entry that the others need to be elected (Ongaro, 2014, section 4.2.2).
    fn may_lead(&self) -> bool {
        let (index, membership) = self.log.membership();
        let me = self.config.me;
        membership.is_voter(me) || (index > self.commit && self.log.membership_at(index - 1).is_voter(me))
    }

    /// Its disk is slow, and there are others. It leads only if none of them wants to.
    pub(super) fn leaves_it_to_others(&self) -> bool {
        self.lane == Lane::Slow && !self.is_alone()
    }

    /// Waits for a leader, for a while.
    pub(super) fn rest(&mut self) {
        let jitter = if self.config.jitter.0 > 0 { self.rng.below(self.config.jitter.0) } else { 0 };
        let patience = if self.leaves_it_to_others() { SLOW_PATIENCE } else { 1 };
        self.election_at = self.now.after(Span(self.config.election.0.saturating_mul(patience).saturating_add(jitter)));
    }

    /// A leader was heard a moment ago (or this is one): it is not to be replaced.
    fn protected(&self) -> bool {
        match self.role {
            Role::Leader => true,
            _ => self.leader.is_some() && self.heard.is_some_and(|h| self.now < h.after(self.config.election)),
        }
    }

    pub(super) fn times_out(&mut self, fx: &mut Vec<Effect>) {
        if self.config.has(Bug::SkipPreVote) {
            return self.campaign(false, fx);
        }
        self.role = Role::PreCandidate;
        self.leader = None;
        self.handover = false;
        self.votes.clear();
        self.votes.insert(self.config.me, true);
        self.rest();
        if self.poll() == Poll::Won {
            return self.campaign(false, fx);
        }
        let last = (self.log.last(), self.log.last_term());
        self.ask(&Body::PreVote { last }, fx);
    }

    fn ask(&self, body: &Body, fx: &mut Vec<Effect>) {
        let m = self.log.membership().1;
        for v in m.voters.union(&m.outgoing).filter(|v| **v != self.config.me) {
            self.send(*v, body.clone(), fx);
        }
    }

    fn poll(&self) -> Poll {
        self.log.membership().1.poll(self.half(), |id| self.votes.get(&id).copied())
    }

    /// Stands for election in a new term. The votes are asked for when our own is durable.
    pub(super) fn campaign(&mut self, handover: bool, fx: &mut Vec<Effect>) {
        self.new_term(self.hard.term + 1, fx);
        self.hard.vote = Some(self.config.me);
        self.role = Role::Candidate;
        self.handover = handover;
        self.rest();
    }

    /// Our own vote counts, and the others are asked, once it is durable. By then everything in the log is, too: a candidate
    /// that restarts never offers less than what it was elected for.
    pub(super) fn count_own_vote(&mut self, fx: &mut Vec<Effect>) {
        if self.role != Role::Candidate || self.asked || !self.disk.hard_durable() {
            return;
        }
        self.asked = true;
        self.votes.insert(self.config.me, true);
        if self.poll() == Poll::Won {
            return self.win(fx);
        }
        let last = (self.log.last(), self.log.last_term());
        self.ask(&Body::Vote { last, handover: self.handover }, fx);
    }

    fn up_to_date(&self, last: (Index, Term)) -> bool {
        (last.1, last.0) >= (self.log.last_term(), self.log.last()) || self.config.has(Bug::VoteForShorter)
    }

    pub(super) fn on_pre_vote(&mut self, from: ReplicaId, term: Term, last: (Index, Term), fx: &mut Vec<Effect>) {
        let granted = !self.protected() && term >= self.hard.term && self.up_to_date(last) && self.lane != Lane::Failed;
        self.send(from, Body::PreVoteReply { asked: term, granted }, fx);
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: ReplicaId, asked: Term, granted: bool, fx: &mut Vec<Effect>) {
        if self.role != Role::PreCandidate || asked != self.hard.term {
            self.refused.stray += 1;
            return;
        }
        self.votes.entry(from).or_insert(granted);
        match self.poll() {
            Poll::Won => self.campaign(false, fx),
            Poll::Lost => self.follow(self.hard.term, None, fx),
            Poll::Open => (),
        }
    }

    /// True if a message that asks for a vote is not even considered.
    pub(super) fn shields(&self, handover: bool) -> bool {
        !handover && self.protected()
    }

    pub(super) fn on_vote(&mut self, from: ReplicaId, last: (Index, Term), fx: &mut Vec<Effect>) {
        let free = match self.hard.vote {
            Some(v) => v == from,
            None => self.leader.is_none() && matches!(self.role, Role::Follower | Role::PreCandidate),
        };
        if free && self.up_to_date(last) && self.lane != Lane::Failed {
            if self.hard.vote.is_none() {
                self.hard.vote = Some(from);
                self.disk.hard_dirty = true;
            }
            self.follow(self.hard.term, None, fx);
            self.owes.vote = Some(from);
            self.rest();
        } else {
            self.send(from, Body::VoteReply { granted: false }, fx);
        }
    }

    pub(super) fn on_vote_reply(&mut self, from: ReplicaId, granted: bool, fx: &mut Vec<Effect>) {
        if self.role != Role::Candidate || !self.asked {
            self.refused.stray += 1;
            return;
        }
        self.votes.entry(from).or_insert(granted);
        match self.poll() {
            Poll::Won => self.win(fx),
            Poll::Lost => self.follow(self.hard.term, None, fx),
            Poll::Open => (),
        }
    }

    /// A later term begins, without a leader.
    pub(super) fn new_term(&mut self, term: Term, fx: &mut Vec<Effect>) {
        self.end_leading(fx);
        self.hard.term = term;
        self.hard.vote = None;
        self.disk.hard_dirty = true;
        self.role = Role::Follower;
        self.leader = None;
        self.heard = None;
        self.votes.clear();
        self.asked = false;
        self.handover = false;
        self.agreed = 0;
        self.owes = Default::default();
        self.receiving = None;
    }

    /// Is a follower of `leader`, if there is one, in `term`, which is this one or later.
    pub(super) fn follow(&mut self, term: Term, leader: Option<ReplicaId>, fx: &mut Vec<Effect>) {
        if term > self.hard.term {
            self.new_term(term, fx);
            self.rest();
        } else if self.role != Role::Follower {
            self.end_leading(fx);
            self.role = Role::Follower;
            self.leader = None;
            self.votes.clear();
            self.asked = false;
            self.rest();
        }
        if leader.is_some() {
            self.leader = leader;
            self.heard = Some(self.now);
            self.rest();
        }
    }
}
