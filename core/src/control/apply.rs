//! What consensus says: entries to apply, records to write, answers.

use super::propose::For;
use super::{Answer, Asked, CallAnswer, Control, Effects, Message, Proposal, Refused};
use crate::kv;
use crate::kv::lock::LockAnswer;
use crate::raft::{BadChange, Content, Effect, Entry, Index, Input, Reason, Role, Term};
use crate::time::{Instant, Span};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

/// Beyond the longest election: what the clocks of two nodes may differ in running meanwhile.
const GRACE_BEYOND: Span = Span::s(1);

impl Control {
    pub(super) fn tell_raft(&mut self, now: Instant, input: Input, fx: &mut Effects) {
        let mut raft_fx = Vec::new();
        self.raft.handle(now, input, &mut raft_fx);
        self.effects(now, raft_fx, fx);
    }

    /// Carries out what consensus wants, and what that leads to.
    pub(super) fn effects(&mut self, now: Instant, first: Vec<Effect>, fx: &mut Effects) {
        let mut todo = VecDeque::from(first);
        while let Some(effect) = todo.pop_front() {
            let mut more = Vec::new();
            self.effect(now, effect, &mut more, fx);
            todo.extend(more);
        }
    }

    fn effect(&mut self, now: Instant, effect: Effect, more: &mut Vec<Effect>, fx: &mut Effects) {
        match effect {
            Effect::Send(m) => fx.send.push((m.to, Message::Raft(m))),
            Effect::Persist { ticket, record } => fx.persist.push((ticket, record)),
            Effect::Committed { entries } => {
                let Some(last) = entries.last().map(|e| e.index) else { return };
                for e in entries {
                    self.apply(now, e, fx);
                }
                self.raft.handle(now, Input::Applied { index: last }, more);
                self.ready(fx);
            }
            Effect::Accepted { request, term, index, .. } => self.request_accepted(request, term, index, fx),
            Effect::Rejected { request, why, .. } => self.request_rejected(request, why, fx),
            Effect::ReadReady { request, index } => {
                if let Some(Asked::Read { from, number }) = self.requests.remove(&request) {
                    self.reply(from, number, Ok(CallAnswer::ReadAt(index)), fx);
                }
            }
            Effect::Role { role, .. } => {
                if role == Role::Leader {
                    self.autopilot_at = now;
                } else {
                    self.deposed();
                }
                // A new leader is asked at once.
                fx.again = true;
            }
            Effect::Members { .. } => {}
            Effect::SnapshotWanted { to, transfer, after } => self.piece_wanted(now, (to, transfer), after, more),
            Effect::SnapshotDone { transfer } => self.transfer_done(transfer),
            Effect::SnapshotPiece { ticket, base, piece, data, last } => {
                self.piece_came(now, ticket, (base, last), (piece, data), more, fx);
            }
            Effect::TransferEnded { request, done } => {
                if let Some(Asked::Transfer(token)) = self.requests.remove(&request) {
                    self.answer(token, if done { Answer::Done } else { Answer::Refused(Refused::Timeout) }, fx);
                }
            }
            Effect::Broken(damage) => {
                fx.words.push(format!(
                    "this replica takes no part in the control plane, because its log is damaged ({damage:?}): \
                     start it without its data"
                ));
                self.fail_all(&Refused::Broken(damage), fx);
            }
        }
    }

    fn fail_all(&mut self, why: &Refused, fx: &mut Effects) {
        let all: Vec<_> = self.open.keys().copied().collect();
        for token in all {
            self.answer(token, Answer::Refused(why.clone()), fx);
        }
        self.queue.clear();
        self.batches.clear();
        self.calls.clear();
        self.reads.clear();
        self.ready.clear();
        self.waits.clear();
    }

    fn request_accepted(&mut self, request: u64, term: Term, index: Index, fx: &mut Effects) {
        match self.requests.remove(&request) {
            Some(Asked::Proposal { from, number }) => self.accepted(from, number, term, fx),
            Some(Asked::Change { from, number }) => self.changing.push((index, term, from, number)),
            Some(Asked::Autopilot | Asked::Read { .. } | Asked::Transfer(_)) | None => {}
        }
    }

    /// What may succeed later is asked again by whoever waits for it.
    fn request_rejected(&mut self, request: u64, why: Reason, fx: &mut Effects) {
        match self.requests.remove(&request) {
            Some(Asked::Change { from, number }) => match why {
                Reason::BadChange(BadChange::Nothing) => self.reply(from, number, Ok(CallAnswer::Done), fx),
                Reason::BadChange(_) => self.reply(from, number, Err(Refused::Consensus(why)), fx),
                _ => {}
            },
            Some(Asked::Transfer(token)) => {
                let why = if why == Reason::NotLeader { Refused::NotLeader } else { Refused::Consensus(why) };
                self.answer(token, Answer::Refused(why), fx);
            }
            Some(Asked::Proposal { .. } | Asked::Read { .. } | Asked::Autopilot) | None => {}
        }
    }

    fn apply(&mut self, now: Instant, entry: Entry, fx: &mut Effects) {
        self.term_applied(entry.term, now);
        self.applied_bytes += entry.size();
        match &entry.content {
            Content::Noop | Content::Config(_) => self.store.advance(entry.index),
            Content::Command(bytes) => self.command(now, entry.index, bytes, fx),
        }
        // Before an entry of its own term is applied, a leader's store may lag behind what others were told.
        if self.raft.role() == Role::Leader && entry.term == self.raft.term() && !self.lessor.leads() {
            let longest = self.config.election.0.saturating_add(self.config.jitter.0);
            self.lessor.promote(Span(longest.saturating_add(GRACE_BEYOND.0)));
        }
        if !self.changing.is_empty() {
            let (done, left) = core::mem::take(&mut self.changing).into_iter().partition(|c| c.0 <= entry.index);
            self.changing = left;
            let done: Vec<_> = done;
            for (_, _, from, number) in done.into_iter().filter(|c| (c.0, c.1) == (entry.index, entry.term)) {
                self.reply(from, number, Ok(CallAnswer::Done), fx);
            }
        }
    }

    fn command(&mut self, now: Instant, index: Index, bytes: &[u8], fx: &mut Effects) {
        let proposal = match crate::wire::decode::<Proposal>(bytes) {
            Ok(p) => p,
            Err(why) => {
                // A leader takes only what it can read: this is of another version. All replicas of this one pass over it alike.
                fx.words.push(format!("entry {index} of the replicated log cannot be read and is passed over: {why}"));
                return self.store.advance(index);
            }
        };
        let outcomes = self.store.apply_all(index, &proposal.entry.commands);
        let mine = proposal.origin == self.me && proposal.number >= self.born;
        let batch = if mine { self.batches.remove(&proposal.number) } else { None };
        let waiting = match batch {
            Some(b) => b.waiting,
            // It was given up when a snapshot came. A lock that nobody waits for any more is given back.
            None if mine => proposal.entry.commands.iter().map(|c| self.forsaken(c)).collect(),
            None => Vec::new(),
        };
        let mut waiting = waiting.into_iter();
        let term = self.raft.term();
        for outcome in outcomes {
            self.lessor.effects(&self.store, &outcome.effects, now);
            let who = waiting.next().unwrap_or(For::Nobody);
            let head = super::Head { revision: outcome.revision, term };
            match who {
                For::Token(token) => self.answer(token, Answer::Applied { answer: outcome.result, head }, fx),
                For::Lock(wait) => self.lock_asked(wait, outcome.result, fx),
                For::Withdrawal(wait) => {
                    debug_assert!(
                        outcome.result.is_err()
                            || matches!(outcome.result, Ok(kv::Answer::Lock(LockAnswer::Cancelled { .. }))),
                        "that is how a withdrawal is answered"
                    );
                    self.withdrawn(wait);
                }
                For::Kept { from, number, ttl_s } if outcome.result.is_ok() => {
                    self.reply(from, number, Ok(CallAnswer::Kept(ttl_s)), fx);
                }
                For::Kept { .. } | For::Office | For::Nobody => {}
            }
            for effect in outcome.effects {
                match effect {
                    kv::Effect::LockGranted { wait, grant } if wait.replica == self.me => {
                        self.lock_granted(wait, grant, fx);
                    }
                    kv::Effect::LockRefused { wait, error } if wait.replica == self.me => {
                        self.lock_refused(wait, error, fx);
                    }
                    _ => {}
                }
            }
        }
    }
}
