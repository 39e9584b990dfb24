//! What a leader does: replicate, commit, answer reads, change the membership, hand over.

use super::entry::{Bytes, Content, Entry, Index, Term};
use super::io::{Effect, Lane, Reason, Role};
use super::members::{Leave, Membership, Step};
use super::message::Body;
use super::progress::{Mode, Progress};
use super::{Bug, Follower, Raft, ReplicaId};
use crate::limits::{
    RAFT_COMMAND_MAX_BYTES, RAFT_ENTRIES_PER_MESSAGE_MAX, RAFT_MESSAGE_MAX_BYTES, RAFT_PROPOSAL_MAX_COMMANDS,
    RAFT_READS_MAX, RAFT_UNCOMMITTED_MAX_BYTES,
};
use crate::time::{Deadline, Instant, Wake};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What only a leader has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Leading {
    pub(super) progress: BTreeMap<ReplicaId, Progress>,
    heartbeat_at: Instant,
    /// When a majority was last heard.
    quorum_heard: Instant,
    /// Its first entry.
    own_from: Index,
    uncommitted: u64,
    reads: Reads,
    transfer: Option<Transfer>,
    /// Number of the latest snapshot transfer.
    pub(super) transfers: u64,
}

/// Reads are answered when a majority has answered a question that was asked after they came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reads {
    /// The latest question.
    round: u64,
    /// Those that it is asked for.
    asked: Vec<u64>,
    /// What was committed when it was asked.
    index: Index,
    /// Those that the next is asked for.
    waiting: Vec<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Transfer {
    request: Option<u64>,
    to: ReplicaId,
    until: Instant,
    sent: bool,
    /// Leadership ends in any case.
    quit: bool,
}

impl Leading {
    pub(super) fn deadline(&self, raft: &Raft) -> Deadline {
        let mut first = Deadline { at: self.heartbeat_at, why: Wake::Heartbeat };
        if self.quorum_heard < raft.now {
            let at = self.quorum_heard.after(raft.config.election);
            first = first.min(Deadline { at, why: Wake::Election });
        }
        if let Some(t) = &self.transfer {
            first = first.min(Deadline { at: t.until, why: Wake::GiveUp });
        }
        first
    }

    pub(super) fn reachable(&mut self, id: ReplicaId, yes: bool) {
        let Some(p) = self.progress.get_mut(&id) else { return };
        p.reachable = yes;
        if !yes && p.mode == Mode::Replicate {
            p.probe();
        }
    }

    pub(super) fn followers(&self) -> Vec<(ReplicaId, Follower)> {
        let one = |p: &Progress| Follower {
            matched: p.matched,
            replicating: p.mode == Mode::Replicate,
            snapshot: matches!(p.mode, Mode::Snapshot(_)),
            in_flight: p.in_flight(),
            heard: p.heard,
        };
        self.progress.iter().map(|(id, p)| (*id, one(p))).collect()
    }
}

/// Becoming and ceasing to be one.
impl Raft {
    pub(super) fn win(&mut self, fx: &mut Vec<Effect>) {
        self.role = Role::Leader;
        self.leader = Some(self.config.me);
        self.votes.clear();
        self.receiving = None;
        let uncommitted = self.log.sizes(self.commit + 1, self.log.last());
        self.lead = Some(Box::new(Leading {
            progress: BTreeMap::new(),
            heartbeat_at: self.now.after(self.config.heartbeat),
            quorum_heard: self.now,
            own_from: self.log.last() + 1,
            uncommitted,
            reads: Reads::default(),
            transfer: None,
            transfers: 0,
        }));
        self.serve_members(fx);
        self.append_own(Content::Noop, fx);
    }

    pub(super) fn end_leading(&mut self, fx: &mut Vec<Effect>) {
        let Some(lead) = self.lead.take() else { return };
        for request in lead.reads.asked.iter().chain(&lead.reads.waiting) {
            fx.push(Effect::Rejected { request: *request, why: Reason::NotLeader, leader: None });
        }
        if let Some(Transfer { request: Some(request), .. }) = lead.transfer {
            fx.push(Effect::TransferEnded { request, done: true });
        }
        for transfer in lead.progress.values().filter_map(Progress::transfer) {
            fx.push(Effect::SnapshotDone { transfer });
        }
    }

    /// Followers are those of the configuration.
    fn serve_members(&mut self, fx: &mut Vec<Effect>) {
        let members = self.log.membership().1.members();
        let (me, next, now) = (self.config.me, self.log.last() + 1, self.now);
        let Some(lead) = &mut self.lead else { return };
        let gone: Vec<ReplicaId> = lead.progress.keys().filter(|id| !members.contains(id)).copied().collect();
        for id in gone {
            if let Some(transfer) = lead.progress.remove(&id).as_ref().and_then(Progress::transfer) {
                fx.push(Effect::SnapshotDone { transfer });
            }
        }
        for id in members.into_iter().filter(|id| *id != me) {
            lead.progress.entry(id).or_insert_with(|| Progress::new(next, now));
        }
    }

    fn append_own(&mut self, content: Content, fx: &mut Vec<Effect>) -> Index {
        let entry = Entry { term: self.hard.term, index: self.log.last() + 1, content };
        if let Some(lead) = &mut self.lead {
            lead.uncommitted += entry.size();
        }
        let config = matches!(entry.content, Content::Config(_));
        self.log.append(entry);
        if config {
            self.serve_members(fx);
        }
        self.log.last()
    }
}

/// Requests.
impl Raft {
    pub(super) fn propose(&mut self, request: u64, commands: Vec<Bytes>, fx: &mut Vec<Effect>) {
        let Some(lead) = &self.lead else { return self.reject(request, Reason::NotLeader, fx) };
        if lead.transfer.is_some() {
            return self.reject(request, Reason::Transferring, fx);
        }
        let large = commands.iter().any(|c| c.len() > RAFT_COMMAND_MAX_BYTES);
        if commands.is_empty() || commands.len() > RAFT_PROPOSAL_MAX_COMMANDS || large {
            return self.reject(request, Reason::Size, fx);
        }
        let bytes: u64 = commands.iter().map(|c| 32 + c.len() as u64).sum();
        if self.log_full() || (lead.uncommitted > 0 && lead.uncommitted + bytes > RAFT_UNCOMMITTED_MAX_BYTES) {
            return self.reject(request, Reason::Busy, fx);
        }
        let (term, index, count) = (self.hard.term, self.log.last() + 1, commands.len() as u64);
        for c in commands {
            self.append_own(Content::Command(c), fx);
        }
        fx.push(Effect::Accepted { request, term, index, count });
    }

    pub(super) fn read(&mut self, request: u64, fx: &mut Vec<Effect>) {
        let commit = self.commit;
        let stale = self.config.has(Bug::StaleRead);
        match &mut self.lead {
            None => self.reject(request, Reason::NotLeader, fx),
            Some(l) if stale && commit >= l.own_from => fx.push(Effect::ReadReady { request, index: commit }),
            Some(l) if l.reads.waiting.len() + l.reads.asked.len() < RAFT_READS_MAX => l.reads.waiting.push(request),
            Some(_) => self.reject(request, Reason::Busy, fx),
        }
    }

    /// What keeps the membership from being changed now.
    fn change_waits(&self) -> Option<Reason> {
        let Some(lead) = &self.lead else { return Some(Reason::NotLeader) };
        if lead.transfer.is_some() {
            return Some(Reason::Transferring);
        }
        // Without an entry of its own term two leaders could commit changes that know nothing of each other (Ongaro, 2015).
        if self.commit < lead.own_from && !self.config.has(Bug::ChangeTooEarly) {
            return Some(Reason::TooEarly);
        }
        (self.log.membership().0 > self.commit).then_some(Reason::ChangeUnderWay)
    }

    fn append_config(&mut self, request: u64, membership: Membership, fx: &mut Vec<Effect>) {
        let index = self.append_own(Content::Config(membership), fx);
        fx.push(Effect::Accepted { request, term: self.hard.term, index, count: 1 });
    }

    pub(super) fn change(&mut self, request: u64, steps: &[Step], leave: Leave, fx: &mut Vec<Effect>) {
        if let Some(why) = self.change_waits() {
            return self.reject(request, why, fx);
        }
        let now = self.log.membership().1;
        if now.is_joint() {
            return self.reject(request, Reason::ChangeUnderWay, fx);
        }
        match now.changed(steps, leave) {
            Ok(next) if next.is_joint() && self.config.has(Bug::SkipJoint) => {
                let next = next.left().unwrap_or_default();
                self.append_config(request, next, fx);
            }
            Ok(next) => self.append_config(request, next, fx),
            Err(why) => self.reject(request, Reason::BadChange(why), fx),
        }
    }

    pub(super) fn leave_joint(&mut self, request: u64, fx: &mut Vec<Effect>) {
        if let Some(why) = self.change_waits() {
            return self.reject(request, why, fx);
        }
        match self.log.membership().1.left() {
            Ok(next) => self.append_config(request, next, fx),
            Err(why) => self.reject(request, Reason::BadChange(why), fx),
        }
    }

    /// Who could lead soonest.
    fn heir(&self) -> Option<ReplicaId> {
        let lead = self.lead.as_ref()?;
        let voters = &self.log.membership().1.voters;
        let fit = lead.progress.iter().filter(|(id, p)| voters.contains(id) && p.reachable);
        fit.max_by_key(|(_, p)| (p.matched, p.heard)).map(|(id, _)| *id)
    }

    pub(super) fn transfer(&mut self, request: u64, to: Option<ReplicaId>, fx: &mut Vec<Effect>) {
        let Some(lead) = &self.lead else { return self.reject(request, Reason::NotLeader, fx) };
        if lead.transfer.is_some() {
            return self.reject(request, Reason::Transferring, fx);
        }
        let voters = &self.log.membership().1.voters;
        let to = match to {
            Some(id) => (id != self.config.me && voters.contains(&id)).then_some(id),
            None => self.heir(),
        };
        match to {
            Some(to) => self.begin_transfer(Some(request), to, false),
            None => self.reject(request, Reason::NoTarget, fx),
        }
    }

    fn begin_transfer(&mut self, request: Option<u64>, to: ReplicaId, quit: bool) {
        let until = self.now.after(self.config.election);
        if let Some(lead) = &mut self.lead {
            lead.transfer = Some(Transfer { request, to, until, sent: false, quit });
        }
    }

    pub(super) fn stop(&mut self, fx: &mut Vec<Effect>) {
        self.stopping = true;
        match self.role {
            Role::Leader => self.give_up(fx),
            Role::Follower => (),
            _ => self.follow(self.hard.term, None, fx),
        }
    }

    /// Another shall lead, if there is one.
    pub(super) fn give_up(&mut self, fx: &mut Vec<Effect>) {
        if self.is_alone() {
            // Nobody else can. Without a disk nothing can be promised, though.
            if self.lane == Lane::Failed {
                self.follow(self.hard.term, None, fx);
            }
            return;
        }
        let heir = self.heir();
        match (self.lead.as_mut().map(|l| &mut l.transfer), heir) {
            (Some(Some(t)), _) => t.quit = true,
            (Some(None), Some(to)) => self.begin_transfer(None, to, true),
            _ => self.follow(self.hard.term, None, fx),
        }
    }
}

/// What is due.
impl Raft {
    pub(super) fn lead_on(&mut self, fx: &mut Vec<Effect>) {
        self.check_quorum(fx);
        self.advance_commit();
        self.end_changes(fx);
        self.go_on_with_transfer(fx);
        let asks = self.ask_round();
        let Some(lead) = &mut self.lead else { return };
        let due = lead.heartbeat_at <= self.now;
        if due {
            lead.heartbeat_at = self.now.after(self.config.heartbeat);
        }
        let members: Vec<ReplicaId> = lead.progress.keys().copied().collect();
        for id in members {
            if due || asks {
                self.send_heartbeat(id, fx);
            }
            self.replicate(id, false, fx);
        }
        self.answer_reads(fx);
    }

    fn check_quorum(&mut self, fx: &mut Vec<Effect>) {
        let (me, now, half) = (self.config.me, self.now, self.half());
        let Some(lead) = &mut self.lead else { return };
        let at = |id| if id == me { now } else { lead.progress.get(&id).map_or(Instant(0), |p| p.heard) };
        lead.quorum_heard = self.log.membership().1.reached(half, at).unwrap_or(Instant(0));
        let over = lead.quorum_heard < now && lead.quorum_heard.after(self.config.election) <= now;
        if over && !self.config.has(Bug::SkipCheckQuorum) {
            self.follow(self.hard.term, None, fx);
        }
    }

    fn advance_commit(&mut self) {
        let Some(lead) = &self.lead else { return };
        let me = self.config.me;
        let own = if self.config.has(Bug::RaftAckBeforeDurable) { self.log.last() } else { self.disk.stable() };
        let at = |id| if id == me { own } else { lead.progress.get(&id).map_or(0, |p| p.matched) };
        let reached = self.log.membership().1.reached(self.half(), at).unwrap_or(0);
        // Copies of an entry of an earlier term do not commit it: another leader may still replace it.
        let own_term = self.log.term(reached) == Some(self.hard.term) || self.config.has(Bug::CommitOldTerm);
        if reached > self.commit && own_term {
            let bytes = self.log.sizes(self.commit + 1, reached);
            self.commit = reached;
            if let Some(lead) = &mut self.lead {
                lead.uncommitted = lead.uncommitted.saturating_sub(bytes);
            }
        }
    }

    fn end_changes(&mut self, fx: &mut Vec<Effect>) {
        let (index, membership) = self.log.membership();
        if self.lead.is_none() || index > self.commit {
            return;
        }
        if membership.is_joint() && membership.auto_leave {
            if let Ok(next) = membership.left() {
                self.append_own(Content::Config(next), fx);
            }
        } else if !membership.is_voter(self.config.me) {
            // Another leads from here on. It need not wait for its timer.
            if let Some(to) = self.heir() {
                self.send_heartbeat(to, fx);
                self.send(to, Body::TimeoutNow, fx);
            }
            self.follow(self.hard.term, None, fx);
        }
    }

    fn go_on_with_transfer(&mut self, fx: &mut Vec<Effect>) {
        let last = self.log.last();
        let Some(lead) = &mut self.lead else { return };
        let Some(t) = &mut lead.transfer else { return };
        let (to, quit, request) = (t.to, t.quit, t.request);
        if t.until <= self.now {
            lead.transfer = None;
            if let Some(request) = request {
                fx.push(Effect::TransferEnded { request, done: false });
            }
            if quit {
                self.follow(self.hard.term, None, fx);
            }
        } else if !t.sent && lead.progress.get(&to).is_some_and(|p| p.matched == last) {
            t.sent = true;
            self.send(to, Body::TimeoutNow, fx);
        }
    }

    /// The next question, if somebody waits for one and none is open.
    fn ask_round(&mut self) -> bool {
        let Some(lead) = &mut self.lead else { return false };
        let r = &mut lead.reads;
        // What earlier leaders committed is known only with an entry of this term.
        if r.waiting.is_empty() || !r.asked.is_empty() || self.commit < lead.own_from {
            return false;
        }
        r.round += 1;
        r.asked = core::mem::take(&mut r.waiting);
        r.index = self.commit;
        true
    }

    fn answer_reads(&mut self, fx: &mut Vec<Effect>) {
        let (me, half) = (self.config.me, self.half());
        let Some(lead) = &mut self.lead else { return };
        let round = lead.reads.round;
        let at = |id| if id == me { round } else { lead.progress.get(&id).map_or(0, |p| p.round) };
        if lead.reads.asked.is_empty() || self.log.membership().1.reached(half, at).unwrap_or(0) < round {
            return;
        }
        let index = lead.reads.index;
        for request in lead.reads.asked.drain(..) {
            fx.push(Effect::ReadReady { request, index });
        }
    }

    fn send_heartbeat(&self, to: ReplicaId, fx: &mut Vec<Effect>) {
        let Some(lead) = &self.lead else { return };
        let matched = lead.progress.get(&to).map_or(0, |p| p.matched);
        self.send(to, Body::Heartbeat { commit: matched.min(self.commit), round: lead.reads.round }, fx);
    }

    /// Sends what there is for a follower. `poke`: one message in any case, which shows whether something was lost.
    pub(super) fn replicate(&mut self, to: ReplicaId, mut poke: bool, fx: &mut Vec<Effect>) {
        loop {
            let Some(p) = self.lead.as_mut().and_then(|l| l.progress.get_mut(&to)) else { return };
            if !p.reachable {
                return;
            }
            match p.mode {
                Mode::Snapshot(_) => return self.send_snapshot(to, fx),
                Mode::Probe { sent: true } if !poke => return,
                Mode::Replicate if p.window_full() && !poke => return,
                _ => (),
            }
            let prev = p.next - 1;
            let Some(prev_term) = self.log.term(prev) else {
                self.begin_snapshot(to, fx);
                return;
            };
            let most = self.config.message_entries.clamp(1, RAFT_ENTRIES_PER_MESSAGE_MAX);
            let room = if p.window_full() { 0 } else { most };
            let entries = self.log.slice(p.next, self.log.last(), room, RAFT_MESSAGE_MAX_BYTES);
            if entries.is_empty() && p.told >= self.commit && !poke && p.mode == Mode::Replicate {
                return;
            }
            p.told = self.commit;
            let more = match &mut p.mode {
                Mode::Probe { sent } => {
                    *sent = true;
                    false
                }
                _ => {
                    if let Some(last) = entries.last() {
                        p.sent(last.index, entries.iter().map(Entry::size).sum());
                    }
                    !entries.is_empty()
                }
            };
            self.send(to, Body::Append { prev: (prev, prev_term), entries, commit: self.commit }, fx);
            if !more {
                return;
            }
            poke = false;
        }
    }
}

/// Answers.
impl Raft {
    /// The follower that answers; `None`, and counted, if it is none.
    fn answers(&mut self, from: ReplicaId) -> Option<&mut Progress> {
        let now = self.now;
        let p = self.lead.as_mut().and_then(|l| l.progress.get_mut(&from));
        match p {
            Some(p) => {
                p.heard = now;
                p.reachable = true;
                Some(p)
            }
            None => {
                self.refused.stray += 1;
                None
            }
        }
    }

    pub(super) fn on_appended(&mut self, from: ReplicaId, matched: Index, fx: &mut Vec<Effect>) {
        if matched > self.log.last() {
            self.refused.malformed += 1;
            return;
        }
        let Some(p) = self.answers(from) else { return };
        let news = p.holds(matched);
        match &p.mode {
            Mode::Probe { .. } if news || p.next == matched + 1 => p.replicate(),
            Mode::Snapshot(s) => {
                let done = s.base.as_ref().is_some_and(|b| matched >= b.index);
                let transfer = p.transfer();
                let log_reaches = self.log.term(matched).is_some();
                if done || (news && log_reaches) {
                    if let Some(transfer) = transfer {
                        fx.push(Effect::SnapshotDone { transfer });
                    }
                    if let Some(p) = self.answers(from) {
                        p.replicate();
                    }
                }
            }
            _ => (),
        }
    }

    pub(super) fn on_conflict(&mut self, from: ReplicaId, prev: Index, hint: (Index, Term)) {
        let place = self.log.not_later(hint.0.min(self.log.last()), hint.1).0;
        let below = self.log.base().index > hint.0;
        let Some(p) = self.answers(from) else { return };
        match p.mode {
            Mode::Probe { .. } if prev + 1 == p.next => {
                let place = if below { hint.0 } else { place };
                p.next = (place + 1).min(prev).max(p.matched + 1).max(1);
                p.mode = Mode::Probe { sent: false };
            }
            Mode::Replicate if prev > p.matched => p.probe(),
            // Of long ago.
            _ => (),
        }
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: ReplicaId, round: u64, fx: &mut Vec<Effect>) {
        let last = self.log.last();
        if self.lead.as_ref().is_some_and(|l| round > l.reads.round) {
            self.refused.malformed += 1;
            return;
        }
        let Some(p) = self.answers(from) else { return };
        p.round = p.round.max(round);
        match p.mode {
            Mode::Probe { .. } => {
                p.mode = Mode::Probe { sent: false };
                self.replicate(from, false, fx);
            }
            Mode::Replicate if p.matched < last => {
                if p.window_full() {
                    p.free_one();
                }
                self.replicate(from, true, fx);
            }
            Mode::Replicate => (),
            Mode::Snapshot(_) => self.resend_snapshot(from, fx),
        }
    }

    /// Why a change would be refused now, if it would be: for those who only want to propose what has a chance.
    pub fn change_blocked(&self) -> Option<Reason> {
        self.change_waits().or_else(|| self.log.membership().1.is_joint().then_some(Reason::ChangeUnderWay))
    }
}
