//! The control plane of one node: consensus, the replicated store, its watchers and leases, put together.
//!
//! Start reading at [`Control`]. What consensus is made of is in [`crate::raft`], what the store is made of in [`crate::kv`]; here
//! is what lies between: commands find their way into the leader's log exactly once, reads find out how far the store must be,
//! whoever asked is answered, and what has to survive goes to the log and into the checkpoint.
//!
//! # How a command gets into the log once
//!
//! A node gathers the commands that it was asked for into numbered [`Proposal`]s and hands them to the leader, itself or another. It
//! says for which **term** a proposal is meant; only whoever leads in that term takes it, and remembers for as long as it leads
//! which numbers it took. So a proposal can be sent again in the same term as often as it takes. It is not sent for another
//! term before an entry of a later term has been applied here: terms never go down along the log, so if the proposal has not
//! been seen by then, it never will be. A leader commits an entry of its own term as soon as it can, so this takes no longer than
//! the election. Only a snapshot hides what became of a proposal; its outcome is then reported as unknown.
//!
//! A node's proposals are taken in their order: none before the one before it is in the log of the same term, or settled. So what a node
//! asks for later never overtakes what it asked for first, and a lock cannot be given back before it was asked for.
//!
//! What only a leader may decide (that a lease has ended, that a member is down) it decides for its own term: where it has not come
//! into the log by then, it is forgotten together with the office.

mod apply;
mod ask;
mod call;
mod config;
mod durable;
mod lock;
mod propose;
mod standing;
mod transfer;

pub use ask::{Answer, Ask, Call, CallAnswer, Head, Message, Proposal, Refused, Standing, Watching};
pub use config::Config;
pub(crate) use durable::ROW;

use crate::bug::Bug;
use crate::ids::{Incarnation, OpToken, ReplicaId};
use crate::kv::command::{Action, Command};
use crate::kv::lessor::Lessor;
use crate::kv::lock::{LockAction, WaitId};
use crate::kv::watch::{self, Hub};
use crate::kv::{Store, rows};
use crate::limits::{REQUESTS_IN_FLIGHT_MAX, WATCH_RECORDS_PER_STEP};
use crate::raft::{self, Base, Index, Input, Persisted, Raft, Record, Role, Term, autopilot};
use crate::rng::{Rng, Seed};
use crate::time::{Deadline, Instant, Span, Wake};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use call::Calling;
use durable::{Committing, Install};
use lock::Wait;
use propose::{Batch, For, Taken};
use serde::{Deserialize, Serialize};
use transfer::{Receiving, Sending};

/// What was not answered is asked again after this, and what was refused is tried again.
const ASK_AGAIN: Span = Span::ms(200);
/// Between two looks at who should have a say, and at who is down.
const AUTOPILOT_EVERY: Span = Span::s(1);

/// What a call to [`Control`] wants done.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// For other members. May be lost.
    pub(crate) send: Vec<(ReplicaId, Message)>,
    /// For the log lane, in this order. [`Control::persists`] is told under which number.
    pub(crate) persist: Vec<(u64, Record)>,
    /// Answers.
    pub(crate) reply: Vec<(OpToken, Answer)>,
    /// For watchers.
    pub(crate) told: Vec<watch::Message>,
    /// For the operator.
    pub(crate) words: Vec<String>,
    /// There is more to do.
    pub(crate) again: bool,
    /// A checkpoint is wanted.
    pub(crate) checkpoint: bool,
}

/// A request that was not answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Open {
    until: Instant,
    at: Place,
}

/// Where it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Place {
    /// For a place in a proposal.
    Queue,
    /// For what becomes of the proposal with this number.
    Batch(u64),
    /// For a linearizable read to be asked for.
    Reads,
    /// For the leader's answer to the call with this number.
    Call(u64),
    /// For the store to have applied this entry.
    Ready(Index),
    /// For a lock.
    Lock(WaitId),
    /// For the end of a transfer of leadership.
    Transfer,
}

/// What consensus was asked, and on whose behalf.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Asked {
    /// To take a proposal: of this node, with its number.
    Proposal { from: ReplicaId, number: u64 },
    /// When a read is linearizable.
    Read { from: ReplicaId, number: u64 },
    /// To change the membership.
    Change { from: ReplicaId, number: u64 },
    /// The same, by the autopilot.
    Autopilot,
    /// To hand over.
    Transfer(OpToken),
}

/// See the module.
#[derive(Serialize, Deserialize)]
pub struct Control {
    config: Config,
    me: ReplicaId,
    raft: Raft,
    store: Store,
    hub: Hub,
    lessor: Lessor,
    /// The next number of this node for proposals, calls and waits; never used again, across restarts.
    next: u64,
    /// The first of them since this node started.
    born: u64,
    /// The next number for what consensus is asked.
    next_request: u64,
    open: BTreeMap<OpToken, Open>,
    limits: BTreeSet<(Instant, OpToken)>,
    queue: VecDeque<(Command, For)>,
    batches: BTreeMap<u64, Batch>,
    /// As a leader: whose proposals were taken in this term.
    taken: BTreeMap<ReplicaId, Taken>,
    /// The term of the last entry that was applied.
    applied_term: Term,
    reads: Vec<OpToken>,
    calls: BTreeMap<u64, Calling>,
    ready: BTreeMap<Index, Vec<OpToken>>,
    requests: BTreeMap<u64, Asked>,
    /// Changes of the membership that are in the log: entry, term, for whom.
    changing: Vec<(Index, Term, ReplicaId, u64)>,
    waits: BTreeMap<WaitId, Wait>,
    /// As a leader: members whose locks were told to end, while they are down.
    ended: BTreeSet<ReplicaId>,
    autopilot_at: Instant,
    /// Records of the log lane that are not durable: their number, the ticket of consensus.
    persists: VecDeque<(u64, u64)>,
    lane: raft::Lane,
    /// What consensus had in the log when the checkpoint was begun.
    cut: Option<Persisted>,
    /// Bytes of entries that were applied since the last checkpoint.
    applied_bytes: u64,
    committing: Option<Committing>,
    install: Option<Install>,
    sending: BTreeMap<u64, Sending>,
    receiving: Option<Receiving>,
    stopping: bool,
    bug: Option<Bug>,
    rng: Rng,
}

fn settings(config: &Config, me: ReplicaId, bug: Option<Bug>) -> raft::Config {
    raft::Config {
        heartbeat: config.heartbeat,
        election: config.election,
        jitter: config.jitter,
        keep_entries: config.keep_entries,
        bug,
        ..raft::Config::new(me)
    }
}

impl core::fmt::Debug for Control {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Control")
            .field("raft", &self.raft)
            .field("applied", &self.store.applied())
            .finish_non_exhaustive()
    }
}

/// What a start finds of the control plane.
#[derive(Default)]
pub(crate) struct Found {
    /// The checkpoint's row of consensus.
    pub(crate) row: Option<Vec<u8>>,
    /// The checkpoint's rows of the store.
    pub(crate) store: rows::Loader,
    /// A row of the store was damaged.
    pub(crate) damaged: bool,
    /// Records from the log, in order.
    pub(crate) log: Vec<Record>,
    /// The store was forgotten after the checkpoint.
    pub(crate) forgotten: bool,
}

/// A node's control plane at its start.
pub(crate) struct Recovered {
    pub(crate) control: Control,
    /// To be written to the log in the first step.
    pub(crate) first: Option<Record>,
    /// For the operator.
    pub(crate) words: Vec<String>,
}

impl Control {
    /// From what is on disk. Never fails: what cannot be right makes the replica take no part, and says so.
    pub(crate) fn recover(
        config: Config,
        (me, incarnation): (ReplicaId, Incarnation),
        seed: Seed,
        bug: Option<Bug>,
        found: Found,
    ) -> Recovered {
        let mut words = Vec::new();
        let mut rng = Rng::new(seed).fork(0x6374_726c);
        let (mut persisted, base) = durable::read(found.row.as_deref(), &mut words);
        let mut store = match found.store.finish() {
            Ok(store) if !found.damaged => store,
            Ok(_) => Store::new(),
            Err(why) => {
                words.push(format!("the store of the control plane is damaged: {why}"));
                Store::new()
            }
        };
        if found.row.is_none() && store.applied() > 0 && !found.forgotten {
            words.push("the checkpoint's part of consensus is missing".into());
            persisted = durable::lost();
        }
        if found.forgotten {
            let old = core::mem::take(&mut store);
            store.replaces(&old);
        }
        store.plant(bug);
        for record in found.log {
            if !persisted.take(record) {
                words.push("the replicated log has a gap".into());
                persisted.hard.commit = raft::INDEX_MAX;
                break;
            }
        }
        let mut first = None;
        let fresh = persisted == Persisted::default();
        if fresh && config.found {
            persisted = Persisted::found(me, rng.next_u64());
            first = Some(Record { hard: persisted.hard, base: None, append: persisted.entries.clone() });
        } else if !fresh && config.rescue {
            let record = persisted.rescue(me, rng.next_u64());
            if persisted.take(record.clone()) {
                words.push(
                    "this replica goes on alone, as another cluster: the others must join it without their data".into(),
                );
                first = Some(record);
            }
        }
        let base = if store.applied() == base.index { base } else { Base::default() };
        let applied_term = base.term;
        let mut hub = Hub::new(store.revision());
        hub.plant(bug);
        let mut lessor = Lessor::default();
        lessor.plant(bug);
        let mut control = Control {
            raft: Raft::recover(settings(&config, me, bug), Seed(rng.next_u64()), persisted, base),
            me,
            hub,
            lessor,
            next: (incarnation.0 << 32) + 1,
            born: (incarnation.0 << 32) + 1,
            next_request: 1,
            open: BTreeMap::new(),
            limits: BTreeSet::new(),
            queue: VecDeque::new(),
            batches: BTreeMap::new(),
            taken: BTreeMap::new(),
            applied_term,
            reads: Vec::new(),
            calls: BTreeMap::new(),
            ready: BTreeMap::new(),
            requests: BTreeMap::new(),
            changing: Vec::new(),
            waits: BTreeMap::new(),
            ended: BTreeSet::new(),
            autopilot_at: Instant(0),
            persists: VecDeque::new(),
            lane: raft::Lane::Fine,
            cut: None,
            applied_bytes: 0,
            committing: None,
            install: None,
            sending: BTreeMap::new(),
            receiving: None,
            stopping: false,
            bug,
            rng,
            store,
            config,
        };
        // Whatever this node held before it started has gone with its process.
        control.end_own_locks();
        Recovered { control, first, words }
    }

    /// A request, which is answered within `limit`.
    pub(crate) fn ask(&mut self, now: Instant, token: OpToken, ask: Ask, limit: Span, fx: &mut Effects) {
        let refuse = |fx: &mut Effects, why| fx.reply.push((token, Answer::Refused(why)));
        if self.stopping {
            return refuse(fx, Refused::Stopping);
        }
        match ask {
            Ask::Watch { stream, id, spec } => {
                let made = self.hub.create(&self.store, now, stream, Some(id), spec, &mut fx.told);
                let answer = made.map_or_else(|e| Answer::Refused(Refused::Store(e)), |_| Answer::Done);
                return fx.reply.push((token, answer));
            }
            Ask::SnapshotBegin => {
                let begun = self.store.snapshot_begin();
                let answer = begun.map_or_else(
                    |e| Answer::Refused(Refused::Store(e)),
                    |(id, cursor)| Answer::Snapshot { id, cursor },
                );
                return fx.reply.push((token, answer));
            }
            Ask::SnapshotEnd(id) => {
                self.store.snapshot_end(id);
                return fx.reply.push((token, Answer::Done));
            }
            _ => {}
        }
        if let Some(damage) = self.raft.broken() {
            return refuse(fx, Refused::Broken(damage));
        }
        if self.open.len() >= REQUESTS_IN_FLIGHT_MAX {
            return refuse(fx, Refused::Busy);
        }
        let until = now.after(limit);
        let at = match ask {
            Ask::Propose(command) => {
                if let Err(why) = self.admit(&command) {
                    return refuse(fx, why);
                }
                self.queue.push_back((self.dressed(command), For::Token(token)));
                Place::Queue
            }
            Ask::Lock(action) => match self.lock(action, token) {
                Ok(wait) => Place::Lock(wait),
                Err(why) => return refuse(fx, why),
            },
            Ask::Read => {
                self.reads.push(token);
                Place::Reads
            }
            Ask::KeepAlive(id) => self.call(Call::KeepAlive(id), token),
            Ask::LeaseTime(id) => self.call(Call::LeaseTime(id), token),
            Ask::Change(step) => self.call(Call::Change(step), token),
            Ask::Transfer(to) => {
                let request = self.request(Asked::Transfer(token));
                self.open(token, Place::Transfer, until);
                return self.tell_raft(now, Input::Transfer { request, to: Some(to) }, fx);
            }
            Ask::Watch { .. } | Ask::SnapshotBegin | Ask::SnapshotEnd(_) => return,
        };
        self.open(token, at, until);
    }

    /// What watchers do.
    pub(crate) fn watching(&mut self, what: Watching, fx: &mut Effects) {
        match what {
            Watching::Taken(who, bytes) => self.hub.taken(who, bytes),
            Watching::Cancel(who) => drop(self.hub.cancel(&self.store, who, &mut fx.told)),
            Watching::Progress(stream) => self.hub.ask_progress(stream),
            Watching::Close(stream) => self.hub.close(stream),
        }
    }

    /// The asker went away. False: that request is not open here.
    pub(crate) fn cancel(&mut self, token: OpToken, fx: &mut Effects) -> bool {
        self.end(token, Some(Refused::Interrupted), fx)
    }

    /// A message of a member.
    pub(crate) fn message(&mut self, now: Instant, from: ReplicaId, message: Message, fx: &mut Effects) {
        match message {
            Message::Raft(m) => {
                if m.from == from && m.to == self.me {
                    self.tell_raft(now, Input::Message(m), fx);
                }
            }
            Message::Propose { term, low, after, number, proposal } => {
                self.take(now, from, term, (low, after, number), proposal, fx);
            }
            Message::Proposed { term, number } => {
                if let Some(b) = self.batches.get_mut(&number)
                    && b.sent == Some(term)
                {
                    b.taken = true;
                }
            }
            Message::Call { number, call } => {
                if self.raft.role() == Role::Leader && self.raft.membership().1.is_member(from) {
                    self.serve(now, from, number, call, fx);
                }
            }
            Message::Called { number, result } => self.called(number, result, fx),
        }
    }

    /// Messages to this member get through from now on, or do not.
    pub(crate) fn reaches(&mut self, now: Instant, replica: ReplicaId, yes: bool, fx: &mut Effects) {
        let input = if yes { Input::Reachable(replica) } else { Input::Unreachable(replica) };
        self.tell_raft(now, input, fx);
    }

    /// The node is about to stop: another shall lead.
    pub(crate) fn resign(&mut self, now: Instant, fx: &mut Effects) {
        self.tell_raft(now, Input::Stop, fx);
    }

    /// The node stops: nobody is kept waiting.
    pub(crate) fn stop(&mut self, fx: &mut Effects) {
        self.stopping = true;
        let all: Vec<OpToken> = self.open.keys().copied().collect();
        for token in all {
            self.end(token, Some(Refused::Stopping), fx);
        }
    }

    /// Does what is due and what came about since the last call. Says when to call again at the latest.
    pub(crate) fn tick(&mut self, now: Instant, fx: &mut Effects) -> Option<Deadline> {
        if self.raft.role() != Role::Leader && self.lessor.leads() && !self.has(Bug::OutliveOffice) {
            // What was decided in office is not proposed to the next leader.
            self.deposed();
        }
        while let Some((at, token)) = self.limits.first().copied()
            && at <= now
        {
            self.end(token, None, fx);
        }
        self.time_leases(now, fx);
        self.propose(now, fx);
        self.make_calls(now, fx);
        let mut raft_fx = Vec::new();
        let deadline = self.raft.tick(now, &mut raft_fx);
        self.effects(now, raft_fx, fx);
        self.watchers(now, fx);
        let upto = self.raft.commit().min(self.raft.durable());
        fx.again |= self.raft.applied() < upto && self.install.is_none() && self.raft.broken().is_none();
        fx.again |= self.can_propose();
        let dues = [
            self.limits.first().map(|(at, _)| (*at, Wake::GiveUp)),
            self.retry_at().map(|at| (at, Wake::Resend)),
            self.lessor.wake().map(|at| (at, Wake::GiveUp)),
            self.hub.wake().map(|at| (at, Wake::Heartbeat)),
        ];
        let dues = dues.into_iter().flatten().map(|(at, why)| Deadline { at: at.max(now), why });
        dues.chain(deadline).min()
    }

    fn time_leases(&mut self, now: Instant, fx: &mut Effects) {
        if self.lessor.wake().is_none_or(|at| at > now) {
            return;
        }
        let mut actions = Vec::new();
        fx.again |= self.lessor.pump(&self.store, now, &mut actions);
        self.queue.extend(actions.into_iter().map(|a| (Command::node(a), For::Office)));
    }

    fn watchers(&mut self, now: Instant, fx: &mut Effects) {
        if self.hub.advance(&self.store, now, &mut fx.told) {
            fx.again = true;
            return;
        }
        fx.again |= self.hub.catch_up(&self.store, now, WATCH_RECORDS_PER_STEP, &mut fx.told);
        if self.hub.wake().is_some_and(|at| at <= now) {
            self.hub.signs_of_life(now, &mut fx.told);
        }
        fx.again |= self.store.sweep();
    }

    /// Who should have a say is looked at now: [`Control::pilot`].
    pub(crate) fn pilot_due(&self, now: Instant) -> bool {
        self.raft.role() == Role::Leader && self.autopilot_at <= now
    }

    /// When that is.
    pub(crate) fn pilot_at(&self) -> Option<Instant> {
        (self.raft.role() == Role::Leader).then_some(self.autopilot_at)
    }

    /// Given who is up and down: changes the membership where that is called for, and ends locks of those that were declared down.
    pub(crate) fn pilot(
        &mut self,
        now: Instant,
        members: &BTreeMap<ReplicaId, autopilot::Member>,
        down: &BTreeSet<ReplicaId>,
        fx: &mut Effects,
    ) {
        self.autopilot_at = now.after(AUTOPILOT_EVERY);
        if let Some(steps) = autopilot::next_of(&self.raft, members, &self.config.autopilot, now) {
            let request = self.request(Asked::Autopilot);
            self.tell_raft(now, Input::Change { request, steps, leave: raft::Leave::Auto }, fx);
        }
        self.ended.retain(|r| down.contains(r));
        for replica in down {
            // What the log holds of it and is not applied yet may take locks, too.
            let first = self.ended.insert(*replica) && self.raft.membership().1.is_member(*replica);
            // At every look: it may have come and gone again in between.
            if !first && !self.store.locks().any_of(*replica) {
                continue;
            }
            let end = Command::node(Action::Lock(LockAction::EndReplica { replica: *replica }));
            if !self.queue.iter().any(|(c, _)| *c == end) {
                self.queue.push_back((end, For::Office));
                fx.again = true;
            }
        }
    }

    fn has(&self, bug: Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }

    fn end_own_locks(&mut self) {
        if self.has(Bug::SkipEndReplica) {
            return;
        }
        let end = Action::Lock(LockAction::EndReplica { replica: self.me });
        self.queue.push_back((Command::node(end), For::Nobody));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn request(&mut self, asked: Asked) -> u64 {
        self.next_request += 1;
        self.requests.insert(self.next_request, asked);
        self.next_request
    }

    fn open(&mut self, token: OpToken, at: Place, until: Instant) {
        self.open.insert(token, Open { until, at });
        self.limits.insert((until, token));
    }

    fn moves(&mut self, token: OpToken, at: Place) {
        if let Some(o) = self.open.get_mut(&token) {
            o.at = at;
        }
    }

    fn answer(&mut self, token: OpToken, answer: Answer, fx: &mut Effects) {
        if let Some(o) = self.open.remove(&token) {
            self.limits.remove(&(o.until, token));
            fx.reply.push((token, answer));
        }
    }

    /// Ends a request: for this reason, or because its time is over. False if it is not there.
    fn end(&mut self, token: OpToken, why: Option<Refused>, fx: &mut Effects) -> bool {
        let Some(open) = self.open.get(&token) else { return false };
        let found = self.raft.leader().is_some();
        let late = match open.at {
            Place::Queue => {
                self.queue.retain(|(_, w)| *w != For::Token(token));
                if found { Refused::Busy } else { Refused::NoLeader }
            }
            Place::Batch(_) | Place::Transfer => Refused::Timeout,
            Place::Reads => {
                self.reads.retain(|t| *t != token);
                if found { Refused::Timeout } else { Refused::NoLeader }
            }
            Place::Call(number) => {
                self.leave_call(number, token);
                if found { Refused::Timeout } else { Refused::NoLeader }
            }
            Place::Ready(index) => {
                if let Some(tokens) = self.ready.get_mut(&index) {
                    tokens.retain(|t| *t != token);
                    if tokens.is_empty() {
                        self.ready.remove(&index);
                    }
                }
                Refused::Timeout
            }
            Place::Lock(wait) => {
                self.withdraw(wait);
                Refused::Timeout
            }
        };
        self.answer(token, Answer::Refused(why.unwrap_or(late)), fx);
        true
    }
}

/// Reading.
impl Control {
    /// The store, as far as it is applied here.
    pub fn store(&self) -> &Store {
        &self.store
    }
    /// Consensus.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }
    /// Where the store stands.
    pub fn head(&self) -> Head {
        Head { revision: self.store.revision(), term: self.raft.term() }
    }
    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Requests that were not answered.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }
    /// Everything that is committed is applied here, and nobody waits.
    pub fn quiet(&self) -> bool {
        self.open.is_empty()
            && self.batches.is_empty()
            && self.raft.applied() == self.raft.last().0
            && self.install.is_none()
    }
    /// What [`Control::quiet`] waits for: requests, proposals that were not seen, commands that wait for a place in one, and whether a
    /// snapshot is not durable yet.
    pub fn unfinished(&self) -> (usize, usize, usize, bool) {
        (self.open.len(), self.batches.len(), self.queue.len(), self.install.is_some())
    }
    /// What a digest of the node's state covers of this.
    pub(crate) fn small_state(&self) -> [u128; 4] {
        let (last, term) = self.raft.last();
        [
            u128::from(self.raft.term()) << 64 | u128::from(self.raft.commit()),
            u128::from(last) << 64 | u128::from(term),
            u128::from(self.store.applied()) << 64 | u128::from(self.store.revision()),
            u128::from(self.next) << 64 | self.open.len() as u128,
        ]
    }
    /// Bytes of a keyframe of this, about.
    pub(crate) fn keyframe_estimate(&self) -> usize {
        let log = self.raft.log_size().1;
        usize::try_from(self.store.size_bytes().saturating_add(log)).unwrap_or(usize::MAX)
    }
}
