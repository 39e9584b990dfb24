//! Commands on their way into the leader's log: see the module above for why each gets there once.

use super::{ASK_AGAIN, Asked, Control, Effects, Message, Place, Proposal, Refused};
use crate::bug::Bug;
use crate::ids::{OpToken, ReplicaId};
use crate::kv::command::{Action, AlarmKind, By, Command, Entry};
use crate::kv::error::Error;
use crate::kv::lock::{LockAction, WaitId};
use crate::limits::{KV_BATCH_MAX_COMMANDS, PROPOSAL_MAX_BYTES, PROPOSALS_IN_FLIGHT_MAX, RAFT_COMMAND_MAX_BYTES};
use crate::raft::{Bytes, Input, Role, Term};
use crate::time::Instant;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Who waits for what a command does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum For {
    /// A request.
    Token(OpToken),
    /// A request for a lock.
    Lock(WaitId),
    /// This wait is withdrawn.
    Withdrawal(WaitId),
    /// Somebody whose lease lasts for so many seconds once this is applied.
    Kept { from: ReplicaId, number: u64, ttl_s: u64 },
    /// Nobody: a leader decided it, as long as it leads.
    Office,
    /// Nobody; it has to happen all the same.
    Nobody,
}

impl For {
    /// It means something only in the term in which it was decided.
    fn of_office(&self) -> bool {
        matches!(self, For::Kept { .. } | For::Office)
    }
}

/// A proposal that has not been seen in what is committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Batch {
    bytes: Bytes,
    pub(super) waiting: Vec<For>,
    /// The term for which it was sent, if it may be in the log.
    pub(super) sent: Option<Term>,
    /// The leader of that term has it.
    pub(super) taken: bool,
    again_at: Instant,
}

impl Batch {
    fn commands(&self) -> Vec<Command> {
        let proposal = crate::wire::decode::<Proposal>(&self.bytes);
        debug_assert!(proposal.is_ok(), "it was made here");
        proposal.map(|p| p.entry.commands).unwrap_or_default()
    }
}

/// What a leader took of a member's proposals in its term.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Nothing below this is taken any more.
    low: u64,
    numbers: BTreeSet<u64>,
}

/// About how many bytes a command takes in the log.
fn size(command: &Command) -> usize {
    let by = if let By::User { name, .. } = &command.by { name.len() } else { 0 };
    64 + by
        + match &command.action {
            Action::Put(p) => p.key.len() + p.value.len(),
            Action::Delete(d) => d.key.len() + d.end.len(),
            Action::LeaseRevoke { .. } | Action::LeaseGrant { .. } | Action::Compact { .. } => 0,
            other => crate::wire::encode(other).len(),
        }
}

impl Control {
    /// A client's command may be proposed.
    pub(super) fn admit(&mut self, command: &Command) -> Result<(), Refused> {
        command.check().map_err(Refused::Store)?;
        if size(command) + 1024 > RAFT_COMMAND_MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        let quota = self.config.quota_bytes;
        if quota > 0 && self.store.over_quota(command, quota) {
            let mine = (AlarmKind::NoSpace, self.me.0);
            if !self.store.alarms().any(|a| a == mine) {
                let raise = Action::Alarm { kind: mine.0, member: mine.1, raise: true };
                let raise = (Command::node(raise), For::Nobody);
                if !self.queue.contains(&raise) {
                    self.queue.push_back(raise);
                }
            }
            return Err(Refused::Store(Error::NoSpace));
        }
        Ok(())
    }

    /// The shortest time of a lease, in seconds: an election must not be mistaken for the end of its holder.
    pub fn lease_min_s(&self) -> u64 {
        let longest = self.config.election.0.saturating_add(self.config.jitter.0);
        (longest + longest / 2).div_ceil(1_000_000_000).max(1)
    }

    /// What a proposer does to a command.
    pub(super) fn dressed(&self, mut command: Command) -> Command {
        if let Action::LeaseGrant { ttl_s, .. } = &mut command.action {
            *ttl_s = (*ttl_s).max(self.lease_min_s());
        }
        command
    }

    /// Something waits that can be proposed now.
    pub(super) fn can_propose(&self) -> bool {
        !self.queue.is_empty()
            && self.batches.len() < PROPOSALS_IN_FLIGHT_MAX
            && self.raft.leader().is_some()
            && self.raft.broken().is_none()
    }

    /// Makes proposals of what waits, and hands over what the leader has not got.
    pub(super) fn propose(&mut self, now: Instant, fx: &mut Effects) {
        while self.can_propose() {
            let (number, mut bytes) = (self.number(), 0);
            let (mut commands, mut waiting) = (Vec::new(), Vec::new());
            while let Some((command, who)) = self.queue.pop_front() {
                bytes += size(&command);
                if !commands.is_empty() && bytes > PROPOSAL_MAX_BYTES {
                    self.queue.push_front((command, who));
                    break;
                }
                if let For::Token(token) = &who {
                    self.moves(*token, Place::Batch(number));
                }
                commands.push(command);
                waiting.push(who);
                if commands.len() == KV_BATCH_MAX_COMMANDS {
                    break;
                }
            }
            let proposal = Proposal { origin: self.me, number, entry: Entry { commands } };
            let bytes = Bytes::from(crate::wire::encode(&proposal));
            self.batches.insert(number, Batch { bytes, waiting, sent: None, taken: false, again_at: now });
        }
        let Some(leader) = self.raft.leader() else { return };
        let term = self.raft.term();
        let numbers: Vec<u64> = self.batches.keys().copied().collect();
        let low = numbers.first().copied().unwrap_or(0);
        let (again, overtakes) = (self.has(Bug::ProposeAgainEarly), self.has(Bug::OvertakeProposals));
        let mut after = 0;
        for number in numbers {
            let Some(b) = self.batches.get_mut(&number) else { continue };
            if again && b.sent.is_some_and(|t| t != term) {
                (b.sent, b.taken, b.again_at) = (None, false, now);
            }
            // What may be in the log of an earlier leader holds up what comes after it.
            if b.sent.is_some_and(|t| t != term) {
                if overtakes {
                    continue;
                }
                break;
            }
            if b.taken || b.again_at > now {
                if !b.taken && leader == self.me {
                    break;
                }
                after = number;
                continue;
            }
            b.again_at = now.after(ASK_AGAIN);
            let proposal = b.bytes.clone();
            if leader == self.me {
                let request = self.request(Asked::Proposal { from: self.me, number });
                self.tell_raft(now, Input::Propose { request, commands: alloc::vec![proposal] }, fx);
                if !self.batches.get(&number).is_some_and(|b| b.taken) {
                    break;
                }
            } else {
                // From now on it may be in that leader's log.
                b.sent = Some(term);
                fx.send.push((leader, Message::Propose { term, low, after, number, proposal }));
            }
            after = number;
        }
    }

    /// When something that was asked or refused is to be tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.raft.leader()?;
        let term = self.raft.term();
        let settled = self.batches.values().take_while(|b| b.sent.is_none_or(|t| t == term));
        let mut batches = settled.filter(|b| !b.taken).map(|b| b.again_at);
        let mine = self.raft.leader() == Some(self.me);
        let first = if mine { batches.next() } else { batches.min() };
        first.into_iter().chain(self.calls.values().map(|c| c.again_at)).min()
    }

    /// A member's proposal.
    pub(super) fn take(
        &mut self,
        now: Instant,
        from: ReplicaId,
        term: Term,
        (low, after, number): (u64, u64, u64),
        proposal: Bytes,
        fx: &mut Effects,
    ) {
        let leads = self.raft.role() == Role::Leader && self.raft.term() == term;
        if !leads || !self.raft.membership().1.is_member(from) {
            return;
        }
        // What cannot be read, or was not made by whoever sends it, never gets into the log.
        let sound = crate::wire::decode_foreign::<Proposal>(&proposal);
        if !sound.is_ok_and(|p| p.origin == from && p.number == number) {
            return;
        }
        let overtakes = self.has(Bug::OvertakeProposals);
        let taken = self.taken.entry(from).or_default();
        taken.low = taken.low.max(low);
        taken.numbers = taken.numbers.split_off(&taken.low);
        let follows = overtakes || after == 0 || after < taken.low || taken.numbers.contains(&after);
        if !follows || number < taken.low || taken.numbers.len() >= 4 * PROPOSALS_IN_FLIGHT_MAX {
            return;
        }
        if taken.numbers.contains(&number) {
            return fx.send.push((from, Message::Proposed { term, number }));
        }
        let request = self.request(Asked::Proposal { from, number });
        self.tell_raft(now, Input::Propose { request, commands: alloc::vec![proposal] }, fx);
    }

    /// It is in our log, as the leader of this term.
    pub(super) fn accepted(&mut self, from: ReplicaId, number: u64, term: Term, fx: &mut Effects) {
        if from == self.me {
            if let Some(b) = self.batches.get_mut(&number) {
                (b.sent, b.taken) = (Some(term), true);
            }
            return;
        }
        self.taken.entry(from).or_default().numbers.insert(number);
        fx.send.push((from, Message::Proposed { term, number }));
    }

    /// An entry of this term was applied: what was meant for an earlier one and has not been seen never will be.
    pub(super) fn term_applied(&mut self, term: Term, now: Instant) {
        if term <= self.applied_term {
            return;
        }
        self.applied_term = term;
        let lost: Vec<u64> =
            self.batches.iter().filter(|(_, b)| b.sent.is_some_and(|t| t < term)).map(|(n, _)| *n).collect();
        for number in lost {
            if let Some(b) = self.batches.get_mut(&number) {
                (b.sent, b.taken, b.again_at) = (None, false, now);
            }
            self.strip(number);
        }
    }

    /// This node leads no more: what it decided as a leader and is not in its log never gets into another.
    pub(super) fn resign_commands(&mut self) {
        if self.has(Bug::OutliveOffice) {
            return;
        }
        self.queue.retain(|(_, who)| !who.of_office());
        let unsent: Vec<u64> = self.batches.iter().filter(|(_, b)| b.sent.is_none()).map(|(n, _)| *n).collect();
        for number in unsent {
            self.strip(number);
        }
    }

    /// Takes out of a proposal, which is in no log, what was decided in another term.
    fn strip(&mut self, number: u64) {
        let outlive = self.has(Bug::OutliveOffice);
        let Some(b) = self.batches.get_mut(&number) else { return };
        if outlive || !b.waiting.iter().any(For::of_office) {
            return;
        }
        let commands = b.commands();
        let kept = commands.into_iter().zip(core::mem::take(&mut b.waiting)).filter(|(_, who)| !who.of_office());
        let (commands, waiting): (Vec<Command>, Vec<For>) = kept.unzip();
        if commands.is_empty() {
            self.batches.remove(&number);
            return;
        }
        b.bytes = Bytes::from(crate::wire::encode(&Proposal { origin: self.me, number, entry: Entry { commands } }));
        b.waiting = waiting;
    }

    /// A snapshot took the place of entries that nobody here has seen. What has to happen is asked for again, which changes nothing if it
    /// has happened. True if that concerns everything that this node held before it started: then it holds nothing yet.
    pub(super) fn outcomes_unknown(&mut self, fx: &mut Effects) -> bool {
        let mut again = Vec::new();
        let gone: Vec<u64> = self.batches.iter().filter(|(_, b)| b.sent.is_some()).map(|(n, _)| *n).collect();
        for number in gone {
            let Some(b) = self.batches.remove(&number) else { continue };
            let commands = b.commands();
            for (command, who) in commands.into_iter().zip(b.waiting) {
                match who {
                    For::Token(token) => self.answer(token, super::Answer::Refused(Refused::Timeout), fx),
                    For::Nobody | For::Withdrawal(_) => again.push((command, who)),
                    // What became of locks is looked up in the store.
                    For::Lock(_) | For::Kept { .. } | For::Office => {}
                }
            }
        }
        let end = Action::Lock(LockAction::EndReplica { replica: self.me });
        let anew = again.iter().any(|(command, _)| command.action == end);
        for one in again.into_iter().rev() {
            self.queue.push_front(one);
        }
        anew
    }
}
