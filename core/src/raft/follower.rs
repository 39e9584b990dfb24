//! What arrives, and what a follower does with a leader's entries.

use super::entry::{Content, Entry, INDEX_MAX, Index, TERM_MAX, Term};
use super::io::{Effect, Role};
use super::message::{Body, Message};
use super::{Bug, Raft, ReplicaId};
use crate::limits::RAFT_ENTRIES_PER_MESSAGE_MAX;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What is said once it is durable.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Owes {
    /// To the candidate.
    pub(super) vote: Option<ReplicaId>,
    /// To the leader: how far the log is its own.
    ack: bool,
    /// What was said last.
    acked: Index,
    /// To the leader: the answer to a heartbeat.
    beat: Option<u64>,
}

impl Raft {
    /// Any message, from anybody.
    pub(super) fn receive(&mut self, m: Message, fx: &mut Vec<Effect>) {
        if self.broken.is_some() {
            self.refused.broken += 1;
            return;
        }
        if m.to != self.config.me || m.from == self.config.me {
            self.refused.misrouted += 1;
            return;
        }
        if !is_sound(&m) {
            self.refused.malformed += 1;
            return;
        }
        if m.cluster != self.hard.cluster {
            // A replica without a past belongs to the first cluster that takes it for a member.
            let blank = self.hard.cluster == 0 && self.log.last() == 0;
            let for_members = m.body.is_leaders() || matches!(m.body, Body::PreVote { .. } | Body::Vote { .. });
            if !blank || m.cluster == 0 || !for_members {
                self.refused.foreign += 1;
                return;
            }
            self.hard.cluster = m.cluster;
            self.disk.hard_dirty = true;
        }
        if let Body::PreVote { last } = m.body {
            return self.on_pre_vote(m.from, m.term, last, fx);
        }
        if m.term > self.hard.term {
            if let Body::Vote { handover, .. } = m.body
                && self.shields(handover)
            {
                self.refused.protected += 1;
                return;
            }
            self.follow(m.term, None, fx);
        } else if m.term < self.hard.term {
            match m.body {
                Body::Vote { .. } => self.send(m.from, Body::VoteReply { granted: false }, fx),
                // A leader of the past learns that it is one; the others will.
                _ if m.body.is_leaders() => self.send(m.from, Body::NewerTerm, fx),
                // It has not heard of this term, and would vote in the next.
                Body::PreVoteReply { asked, granted } => self.on_pre_vote_reply(m.from, asked, granted, fx),
                _ => (),
            }
            return;
        }
        if m.body.is_leaders() {
            if self.role == Role::Leader || self.leader.is_some_and(|l| l != m.from) {
                self.refused.second_leader += 1;
                return;
            }
            self.follow(m.term, Some(m.from), fx);
        }
        match m.body {
            Body::Vote { last, .. } => self.on_vote(m.from, last, fx),
            Body::VoteReply { granted } => self.on_vote_reply(m.from, granted, fx),
            Body::PreVoteReply { asked, granted } => self.on_pre_vote_reply(m.from, asked, granted, fx),
            Body::Append { prev, entries, commit } => self.on_append(prev, entries, commit, fx),
            Body::Heartbeat { commit, round } => {
                self.learn_commit(commit.min(self.log.last()));
                self.owes.beat = Some(self.owes.beat.map_or(round, |b| b.max(round)));
            }
            Body::Snapshot { transfer, base, piece, data, last } => {
                self.on_snapshot((m.from, m.term, transfer), base, piece, data, last, fx);
            }
            Body::TimeoutNow => {
                if self.can_campaign() && !self.leaves_it_to_others() {
                    self.campaign(true, fx);
                }
            }
            Body::Appended { matched } => self.on_appended(m.from, matched, fx),
            Body::Conflict { prev, hint } => self.on_conflict(m.from, prev, hint),
            Body::HeartbeatReply { round } => self.on_heartbeat_reply(m.from, round, fx),
            Body::SnapshotReply { transfer, next } => self.on_snapshot_reply(m.from, transfer, next, fx),
            Body::PreVote { .. } | Body::NewerTerm => (),
        }
    }

    pub(super) fn learn_commit(&mut self, commit: Index) {
        self.commit = self.commit.max(commit);
    }

    /// The leader's log and ours are the same up to `agreed`: it is told so, when that is durable.
    pub(super) fn agree(&mut self, agreed: Index) {
        self.agreed = self.agreed.max(agreed);
        self.owes.ack = true;
    }

    fn on_append(&mut self, prev: (Index, Term), entries: Vec<Entry>, commit: Index, fx: &mut Vec<Effect>) {
        let end = prev.0 + entries.len() as u64;
        if end < self.commit || prev.0 < self.log.base().index && end <= self.commit {
            // Of long ago. What is committed here is in the log of every leader.
            return self.agree(self.commit);
        }
        if self.log_full() && !entries.is_empty() {
            self.refused.full += 1;
            return;
        }
        let blind = self.config.has(Bug::SkipMatch) && prev.0 <= self.log.last();
        let fits = prev.0 < self.log.base().index || self.log.term(prev.0) == Some(prev.1);
        if !fits && !blind {
            let hint = self.log.not_later(prev.0.min(self.log.last()), prev.1);
            let leader = self.leader.unwrap_or(self.config.me);
            return self.send(leader, Body::Conflict { prev: prev.0, hint }, fx);
        }
        for e in entries {
            match self.log.term(e.index) {
                _ if e.index <= self.log.base().index => continue,
                Some(t) if t == e.term => continue,
                Some(_) if self.config.has(Bug::KeepConflict) => continue,
                Some(_) if e.index <= self.commit => {
                    self.refused.against_committed += 1;
                    return;
                }
                Some(_) => {
                    self.log.truncate(e.index);
                    self.disk.replaced(e.index, self.config.has(Bug::StaleTicket));
                }
                None => (),
            }
            self.log.append(e);
        }
        // The leader knows as much: an answer before anything of this is durable would tell it nothing.
        self.owes.acked = self.owes.acked.max(prev.0);
        self.agree(end);
        self.learn_commit(commit.min(end));
    }

    /// Says what is owed, as far as it is durable. Nothing that counts is said in a term that this replica could forget: having
    /// acknowledged an entry to its leader, it might help an earlier leader into office that replaces it.
    pub(super) fn pay(&mut self, fx: &mut Vec<Effect>) {
        let early = self.config.has(Bug::RaftAckBeforeDurable);
        if !self.disk.hard_durable() && !early {
            return;
        }
        if let Some(to) = self.owes.vote.take() {
            self.send(to, Body::VoteReply { granted: true }, fx);
        }
        let Some(leader) = self.leader.filter(|l| *l != self.config.me) else { return };
        if let Some(round) = self.owes.beat.take() {
            self.send(leader, Body::HeartbeatReply { round }, fx);
        }
        if self.owes.ack {
            let stable = if early { self.log.last() } else { self.disk.stable() };
            let matched = stable.min(self.agreed);
            let whole = matched == self.agreed;
            if whole || matched > self.owes.acked {
                self.owes.ack = !whole;
                self.owes.acked = matched;
                self.send(leader, Body::Appended { matched }, fx);
            }
        }
    }

    pub(super) fn reachable(&mut self, id: ReplicaId, yes: bool) {
        if let Some(lead) = &mut self.lead {
            lead.reachable(id, yes);
        }
        if !yes && self.leader == Some(id) && self.role == Role::Follower && self.heard.is_some() {
            // Perhaps it died. Nobody is disturbed by asking soon: whoever still hears it says no.
            self.heard = None;
            let soon = crate::time::Span(self.rng.below(self.config.heartbeat.0.saturating_mul(2).max(1)));
            self.election_at = self.election_at.min(self.now.after(self.config.heartbeat).after(soon));
        }
    }
}

/// Within the limits, and not in contradiction with itself.
fn is_sound(m: &Message) -> bool {
    let place = |(index, term): (Index, Term)| index <= INDEX_MAX && term <= m.term && (index > 0 || term == 0);
    m.term <= TERM_MAX
        && match &m.body {
            Body::PreVote { last } | Body::Vote { last, .. } => place(*last),
            Body::Append { prev, entries, commit } => {
                let (mut index, mut term) = *prev;
                let follow = entries.iter().all(|e| {
                    let ok = e.index == index.wrapping_add(1) && e.term >= term && e.term > 0 && e.is_sound();
                    (index, term) = (e.index, e.term);
                    ok && !matches!(&e.content, Content::Config(c) if c.voters.is_empty())
                });
                place(*prev)
                    && follow
                    && term <= m.term
                    && *commit <= INDEX_MAX
                    && entries.len() <= RAFT_ENTRIES_PER_MESSAGE_MAX
            }
            Body::Snapshot { base, piece, data, .. } => {
                place((base.index, base.term))
                    && base.index > 0
                    && base.membership.is_sound()
                    && !base.membership.voters.is_empty()
                    && data.len() <= crate::limits::RAFT_PIECE_MAX_BYTES
                    && *piece < crate::limits::RAFT_PIECES_MAX
            }
            Body::Conflict { prev, hint } => *prev <= INDEX_MAX && hint.0 <= *prev,
            Body::Appended { matched } => *matched <= INDEX_MAX,
            _ => true,
        }
}
