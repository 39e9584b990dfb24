//! What only the leader knows: linearizable reads, leases, changes of the membership.

use super::{ASK_AGAIN, Answer, Asked, Call, CallAnswer, Control, Effects, Message, Place, Refused};
use crate::bug::Bug;
use crate::ids::{OpToken, ReplicaId};
use crate::kv::command::Command;
use crate::kv::error::Error;
use crate::kv::lessor::{KeepAlive, NotKept};
use crate::raft::{Index, Input, Leave, Role};
use crate::time::Instant;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use super::propose::For;

/// Calls for reads that are under way at once: what comes meanwhile shares the next one.
const READS_UNDER_WAY_MAX: usize = 4;

/// A call that was not answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Calling {
    call: Call,
    tokens: Vec<OpToken>,
    /// Whom it was asked.
    to: Option<ReplicaId>,
    pub(super) again_at: Instant,
}

impl Control {
    pub(super) fn call(&mut self, call: Call, token: OpToken) -> Place {
        let number = self.number();
        let tokens = alloc::vec![token];
        self.calls.insert(number, Calling { call, tokens, to: None, again_at: Instant(0) });
        Place::Call(number)
    }

    /// A request no longer waits for a call.
    pub(super) fn leave_call(&mut self, number: u64, token: OpToken) {
        if let Some(c) = self.calls.get_mut(&number) {
            c.tokens.retain(|t| *t != token);
            if c.tokens.is_empty() {
                self.calls.remove(&number);
            }
        }
    }

    /// Asks the leader what has not been asked of it yet.
    pub(super) fn make_calls(&mut self, now: Instant, fx: &mut Effects) {
        let Some(leader) = self.raft.leader() else { return };
        let under_way = self.calls.values().filter(|c| c.call == Call::Read).count();
        if !self.reads.is_empty() && under_way < READS_UNDER_WAY_MAX {
            let tokens = core::mem::take(&mut self.reads);
            let number = self.number();
            for token in &tokens {
                self.moves(*token, Place::Call(number));
            }
            self.calls.insert(number, Calling { call: Call::Read, tokens, to: None, again_at: now });
        }
        let due = |c: &Calling| c.to != Some(leader) || c.again_at <= now;
        let numbers: Vec<u64> = self.calls.iter().filter(|(_, c)| due(c)).map(|(n, _)| *n).collect();
        for number in numbers {
            let Some(c) = self.calls.get_mut(&number) else { continue };
            (c.to, c.again_at) = (Some(leader), now.after(ASK_AGAIN));
            let call = c.call.clone();
            if leader == self.me {
                self.serve(now, self.me, number, call, fx);
            } else {
                fx.send.push((leader, Message::Call { number, call }));
            }
        }
    }

    /// As the leader. What cannot be answered now is not answered: it is asked again.
    pub(super) fn serve(&mut self, now: Instant, from: ReplicaId, number: u64, call: Call, fx: &mut Effects) {
        match call {
            Call::Read => {
                let request = self.request(Asked::Read { from, number });
                self.tell_raft(now, Input::Read { request }, fx);
            }
            Call::KeepAlive(id) => match self.lessor.keep_alive(&self.store, id, now) {
                Ok(KeepAlive::Renewed { ttl_s }) => self.reply(from, number, Ok(CallAnswer::Kept(ttl_s)), fx),
                Ok(KeepAlive::Propose { action, ttl_s }) => {
                    let who = For::Kept { from, number, ttl_s };
                    if !self.queue.iter().any(|(_, w)| *w == who) {
                        self.queue.push_back((Command::node(action), who));
                        fx.again = true;
                    }
                }
                Err(NotKept::Gone(why)) => self.reply(from, number, Err(Refused::Store(why)), fx),
                Err(NotKept::NotLeader) => {}
            },
            Call::LeaseTime(id) => {
                if !self.lessor.leads() {
                    return;
                }
                let time = self.store.lease(id).map(|l| {
                    let left = self.lessor.time_left_s(id, now).unwrap_or(l.remaining_s());
                    CallAnswer::Time(left, l.ttl_s())
                });
                self.reply(from, number, time.ok_or(Refused::Store(Error::LeaseNotFound { id })), fx);
            }
            Call::Change(step) => {
                if self.changing.iter().any(|(_, _, f, n)| (*f, *n) == (from, number)) {
                    return;
                }
                let request = self.request(Asked::Change { from, number });
                let steps = alloc::vec![step];
                self.tell_raft(now, Input::Change { request, steps, leave: Leave::Auto }, fx);
            }
        }
    }

    /// Answers a call, our own or a member's.
    pub(super) fn reply(&mut self, to: ReplicaId, number: u64, result: Result<CallAnswer, Refused>, fx: &mut Effects) {
        if to == self.me {
            self.called(number, result, fx);
        } else {
            fx.send.push((to, Message::Called { number, result }));
        }
    }

    /// The answer to a call of ours.
    pub(super) fn called(&mut self, number: u64, result: Result<CallAnswer, Refused>, fx: &mut Effects) {
        let Some(c) = self.calls.get(&number) else { return };
        let answer = match (&c.call, result) {
            (Call::Read, Ok(CallAnswer::ReadAt(index))) => {
                let tokens = c.tokens.clone();
                self.calls.remove(&number);
                return self.ready_at(index, tokens, fx);
            }
            (Call::KeepAlive(_), Ok(CallAnswer::Kept(ttl_s))) => Answer::Kept(ttl_s),
            (Call::LeaseTime(_), Ok(CallAnswer::Time(remaining_s, granted_s))) => {
                Answer::Time { remaining_s, granted_s }
            }
            (Call::Change(_), Ok(CallAnswer::Done)) => Answer::Done,
            // An answer to something else is none.
            (_, Ok(_)) => return,
            (_, Err(why)) => Answer::Refused(why),
        };
        let Some(c) = self.calls.remove(&number) else { return };
        for token in c.tokens {
            self.answer(token, answer.clone(), fx);
        }
    }

    fn ready_at(&mut self, index: Index, tokens: Vec<OpToken>, fx: &mut Effects) {
        let head = self.head();
        for token in tokens {
            if index <= self.store.applied() || self.has(Bug::ReadEarly) {
                self.answer(token, Answer::Ready(head), fx);
            } else if self.open.contains_key(&token) {
                self.moves(token, Place::Ready(index));
                self.ready.entry(index).or_default().push(token);
            }
        }
    }

    /// The store has come further.
    pub(super) fn ready(&mut self, fx: &mut Effects) {
        let head = self.head();
        while let Some(first) = self.ready.first_entry()
            && *first.key() <= self.store.applied()
        {
            for token in first.remove() {
                self.answer(token, Answer::Ready(head), fx);
            }
        }
    }

    /// This node leads no more: what it was asked is for another.
    pub(super) fn deposed(&mut self) {
        self.lessor.demote();
        self.taken.clear();
        self.changing.clear();
        self.ended.clear();
        self.resign_commands();
        debug_assert!(self.raft.role() != Role::Leader, "only then");
    }
}
