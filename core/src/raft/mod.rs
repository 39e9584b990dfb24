//! Consensus: Raft as a sub-machine of the node, without clock, randomness or I/O of its own.
//!
//! Start reading at [`Raft`]. What is done with the commands of the log is the store's business; who may talk to whom, and how
//! messages travel, is the node's.

pub mod autopilot;
mod election;
mod entry;
mod follower;
mod io;
mod leader;
mod log;
mod members;
mod message;
mod progress;
mod snapshot;

pub use entry::{Base, Bytes, Content, Damage, Entry, Hard, INDEX_MAX, Index, Persisted, Record, TERM_MAX, Term};
pub use io::{Effect, Input, Lane, Reason, Refused, Role};
pub use members::{BadChange, Leave, Membership, Step};
pub use message::{Body, Message};

use crate::bug::Bug;
use crate::ids::ReplicaId;
use crate::limits::{RAFT_PORTION_MAX_BYTES, RAFT_PORTION_MAX_ENTRIES, RAFT_WRITE_MAX_BYTES, RAFT_WRITES_MAX};
use crate::rng::{Rng, Seed};
use crate::time::{Deadline, Instant, Span, Wake};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use follower::Owes;
use leader::Leading;
use log::{Disk, Log};
use serde::{Deserialize, Serialize};
use snapshot::Receiving;

/// Settings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// This replica. One that lost its disk comes back as another, so that what it promised is never asked of it again.
    pub me: ReplicaId,
    /// Between two signs of life of a leader.
    pub heartbeat: Span,
    /// Without a sign of life for as long as this, a follower may want another leader, and a leader that hears from no
    /// majority gives up. Several heartbeats, and more than the longest wait for the log disk.
    pub election: Span,
    /// Up to as much longer, by chance, so that not all followers stand for election at once.
    pub jitter: Span,
    /// Entries that are kept for followers that lag, though the store no longer needs them.
    pub keep_entries: u64,
    /// Bytes of entries that are kept for them.
    pub keep_bytes: u64,
    /// Entries in one message, at most [`crate::limits::RAFT_ENTRIES_PER_MESSAGE_MAX`].
    pub message_entries: usize,
    /// Planted bug, for tests of the tests.
    pub bug: Option<Bug>,
}

impl Config {
    /// The product's defaults.
    pub fn new(me: ReplicaId) -> Config {
        Config {
            me,
            heartbeat: Span::ms(100),
            election: Span::ms(600),
            jitter: Span::ms(600),
            keep_entries: 10_000,
            keep_bytes: 32 * 1024 * 1024,
            message_entries: crate::limits::RAFT_ENTRIES_PER_MESSAGE_MAX,
            bug: None,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }
}

/// One replica's part in the consensus.
///
/// # Contract
///
/// The node makes it with [`Raft::recover`] from what is on disk, hands in whatever happens with [`Raft::handle`], and calls
/// [`Raft::tick`] once at the end of each of its steps: only there does the machine write, send entries, hand out what is
/// committed, and say when it wants to be called again at the latest. What comes in between two ticks thus shares one write and
/// one message for each follower.
///
/// What it promises:
///
/// 1. **At most one leader in a term**; a leader's log has everything that was committed; two logs with the same entry at one
///    place are the same up to there; all replicas are handed the same entries in the same order, once each, and what was
///    committed stays so. As long as a majority of the voters keeps what was reported as durable.
/// 2. **Durability is a message with a completion.** A vote, an acknowledgement, and an answer to a heartbeat leave after
///    `Persisted` for the term they are given in and for what they promise; a candidate asks for votes after its own is durable; a
///    leader counts its own copy when it is. Entries are handed to the store after they are durable here. An answer to one
///    write says nothing about a later one at the same place.
/// 3. **Nothing in one list of effects relies on its neighbour**, except that `Persist` keeps the order of its tickets.
/// 4. **Every request is answered** once: `Accepted`, `Rejected`, `ReadReady` or `TransferEnded`. Reads and transfers end when the leadership
///    does, and that ends within an election timeout without a majority. What became of an accepted proposal shows in what is committed.
/// 5. **Pure and bounded.** Same start, seed and inputs give the same effects. Everything has a limit in [`crate::limits`].
/// 6. **No message and no disk state makes it panic.** What cannot be right is refused and counted ([`Raft::refused`]). A log that this
///    replica cannot have written makes it take no part ([`Raft::broken`]). Assertions are for mistakes of the node.
/// 7. **A replica that hears from a leader does not help to replace it**, unless the leader asks for that; and whoever wants to replace
///    it asks first whether that would succeed. So a replica that comes back from a partition disturbs nobody.
///
/// What the node promises: tickets are written in their order, and `Persisted` is said when the medium says so; entries are applied
/// in their order; `from` of a message is who it says; `SnapshotInstalled` is said when the store is durably in its new state.
///
/// Configurations hold from the moment they are in the log. One is changed at a time, after the one before and an entry of the leader's
/// own term are committed; by one voter at once, or by any number through a joint configuration.
#[derive(Clone, Serialize, Deserialize)]
pub struct Raft {
    config: Config,
    rng: Rng,
    now: Instant,
    hard: Hard,
    log: Log,
    disk: Disk,
    lane: Lane,
    /// Known to be committed.
    commit: Index,
    /// Handed to the store.
    handed: Index,
    /// Applied by it.
    applied: Index,
    role: Role,
    leader: Option<ReplicaId>,
    /// When the leader was last heard.
    heard: Option<Instant>,
    /// When to want another leader.
    election_at: Instant,
    /// Of the election under way.
    votes: BTreeMap<ReplicaId, bool>,
    /// The votes were asked for: our own is durable.
    asked: bool,
    /// The leader asked for this election.
    handover: bool,
    /// While leading.
    lead: Option<Box<Leading>>,
    /// The log is the current leader's up to here.
    agreed: Index,
    owes: Owes,
    receiving: Option<Receiving>,
    /// The store is putting this into place.
    installing: Option<(u64, Base)>,
    /// How many pieces of snapshots were handed to the store.
    pieces: u64,
    started: bool,
    stopping: bool,
    broken: Option<Damage>,
    refused: Refused,
    told_role: Option<(Role, Term, Option<ReplicaId>)>,
    told_members: Option<(Index, Membership)>,
    told_broken: bool,
}

impl core::fmt::Debug for Raft {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Raft")
            .field("me", &self.config.me)
            .field("term", &self.hard.term)
            .field("role", &self.role)
            .field("log", &(self.log.base().index, self.log.last()))
            .field("commit", &self.commit)
            .finish_non_exhaustive()
    }
}

/// What a leader knows of a member, for status and for the [`autopilot`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Follower {
    /// It holds the log up to here, durably.
    pub matched: Index,
    /// It gets entries without waiting: it is near the end of the log or on its way there.
    pub replicating: bool,
    /// It gets a snapshot.
    pub snapshot: bool,
    /// Messages with entries that it has not acknowledged.
    pub in_flight: usize,
    /// When it last answered.
    pub heard: Instant,
}

impl Raft {
    /// A replica as its disk remembers it. `store`: what the store's durable state stands for.
    ///
    /// Never fails: what cannot be right makes it [broken](Raft::broken).
    pub fn recover(config: Config, seed: Seed, mut persisted: Persisted, store: Base) -> Raft {
        let broken = damage(&persisted, &store);
        if broken.is_some() {
            persisted.entries.clear();
        }
        // An installed snapshot is the store's state before the log knows of it.
        let known = store.index == persisted.base.index
            || persisted.entries.iter().any(|e| e.index == store.index && e.term == store.term);
        let reset = broken.is_none() && !known;
        if reset {
            persisted.cut(store.clone());
        }
        let commit = persisted.hard.commit.max(store.index).max(persisted.base.index);
        let again = config.has(Bug::RaftApplyTwice);
        let applied = if again { persisted.base.index } else { store.index };
        let log = Log::new(persisted.base, persisted.entries);
        let mut disk = Disk::new(log.last());
        if reset {
            disk.reset(log.base().index);
        }
        Raft {
            rng: Rng::new(seed).fork(0x7261_6674),
            now: Instant(0),
            hard: persisted.hard,
            disk,
            lane: Lane::Fine,
            commit: commit.min(log.last()),
            handed: applied,
            applied,
            log,
            role: Role::Follower,
            leader: None,
            heard: None,
            election_at: Instant(0),
            votes: BTreeMap::new(),
            asked: false,
            handover: false,
            lead: None,
            agreed: 0,
            owes: Owes::default(),
            receiving: None,
            installing: None,
            pieces: 0,
            started: false,
            stopping: false,
            broken,
            refused: Refused::default(),
            told_role: None,
            told_members: None,
            told_broken: false,
            config,
        }
    }

    /// Something happened. Cheap: what it leads to is done by the next [`Raft::tick`].
    pub fn handle(&mut self, now: Instant, input: Input, fx: &mut Vec<Effect>) {
        self.clock(now);
        match input {
            Input::Message(m) => self.receive(m, fx),
            Input::Propose { request, commands } => self.propose(request, commands, fx),
            Input::Read { request } => self.read(request, fx),
            Input::Change { request, steps, leave } => self.change(request, &steps, leave, fx),
            Input::LeaveJoint { request } => self.leave_joint(request, fx),
            Input::Transfer { request, to } => self.transfer(request, to, fx),
            Input::Stop => self.stop(fx),
            Input::Campaign { handover } => {
                if self.can_campaign() && self.role != Role::Leader {
                    self.campaign(handover, fx);
                }
            }
            Input::Persisted { ticket } => {
                self.disk.landed(ticket);
            }
            Input::Disk(lane) => self.disk_is(lane, fx),
            Input::Applied { index } => {
                assert!(index <= self.handed, "only what was handed out can be applied");
                self.applied = self.applied.max(index);
            }
            Input::Compact { index } => self.compact(index),
            Input::Unreachable(id) => self.reachable(id, false),
            Input::Reachable(id) => self.reachable(id, true),
            Input::SnapshotPiece { transfer, index, data, cursor } => {
                self.snapshot_piece(transfer, index, data, cursor, fx);
            }
            Input::SnapshotFailed { transfer } => self.snapshot_failed(transfer, fx),
            Input::PieceTaken { ticket } => self.piece_taken(ticket, fx),
            Input::SnapshotInstalled { ticket } => self.snapshot_installed(ticket),
            Input::SnapshotRefused { ticket } => self.snapshot_refused(ticket, fx),
        }
    }

    /// Does what is due and what the inputs since the last call lead to. Says when to call again at the latest.
    pub fn tick(&mut self, now: Instant, fx: &mut Vec<Effect>) -> Option<Deadline> {
        self.clock(now);
        if let Some(why) = self.broken {
            if !self.told_broken {
                self.told_broken = true;
                fx.push(Effect::Broken(why));
            }
            return None;
        }
        if self.role != Role::Leader && self.election_at <= self.now && self.can_campaign() {
            self.times_out(fx);
        }
        self.count_own_vote(fx);
        if self.role == Role::Leader {
            self.lead_on(fx);
        }
        self.write(fx);
        self.pay(fx);
        self.hand_out(fx);
        self.tell(fx);
        self.deadline()
    }

    fn clock(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if !self.started {
            self.started = true;
            // Whoever is alone need not wait for others.
            if !self.is_alone() {
                self.rest();
            }
        }
    }

    /// Changes of the log and of term and vote go to disk.
    fn write(&mut self, fx: &mut Vec<Effect>) {
        let last = self.log.last();
        let news = self.disk.hard_dirty || self.disk.base_dirty || self.disk.written() < last;
        if !news || self.lane == Lane::Failed || self.disk.pending() >= RAFT_WRITES_MAX {
            return;
        }
        let base = self.disk.base_dirty.then(|| self.log.base().clone());
        let append = self.log.slice(self.disk.written() + 1, last, usize::MAX, RAFT_WRITE_MAX_BYTES);
        let last = append.last().map_or(last, |e| e.index);
        // What is not written with this or before is not promised to be there.
        self.hard.commit = self.commit.min(last);
        let mut hard = self.hard;
        if self.config.has(Bug::VoteTwice) {
            hard.vote = None;
        }
        let ticket = self.disk.leaves(last);
        fx.push(Effect::Persist { ticket, record: Record { hard, base, append } });
    }

    fn hand_out(&mut self, fx: &mut Vec<Effect>) {
        let upto = self.commit.min(self.disk.stable());
        let waits = self.handed - self.applied >= RAFT_PORTION_MAX_ENTRIES as u64;
        if self.installing.is_some() || self.handed >= upto || waits {
            return;
        }
        let entries = self.log.slice(self.handed + 1, upto, RAFT_PORTION_MAX_ENTRIES, RAFT_PORTION_MAX_BYTES);
        if let Some(last) = entries.last() {
            self.handed = last.index;
            fx.push(Effect::Committed { entries });
        }
    }

    fn tell(&mut self, fx: &mut Vec<Effect>) {
        let role = (self.role, self.hard.term, self.leader);
        if self.told_role != Some(role) {
            self.told_role = Some(role);
            fx.push(Effect::Role { role: role.0, term: role.1, leader: role.2 });
        }
        let (index, membership) = self.log.membership();
        if self
            .told_members
            .as_ref()
            .is_none_or(|(i, m)| (*i != index && index > self.log.base().index) || m != membership)
        {
            self.told_members = Some((index, membership.clone()));
            fx.push(Effect::Members { index, membership: membership.clone() });
        }
    }

    fn deadline(&self) -> Option<Deadline> {
        // A write has a limit; the rest goes with the next one.
        if self.disk.written() < self.log.last() && self.lane != Lane::Failed && self.disk.pending() < RAFT_WRITES_MAX {
            return Some(Deadline { at: self.now, why: Wake::Batch });
        }
        if let Some(lead) = &self.lead {
            return Some(lead.deadline(self));
        }
        self.can_campaign().then_some(Deadline { at: self.election_at, why: Wake::Election })
    }

    fn disk_is(&mut self, lane: Lane, fx: &mut Vec<Effect>) {
        let was = core::mem::replace(&mut self.lane, lane);
        if was == Lane::Failed && lane != Lane::Failed {
            self.disk.forget_flights(self.log.base().index);
        }
        if was == lane {
            return;
        }
        match self.role {
            Role::Leader if lane != Lane::Fine => self.give_up(fx),
            Role::PreCandidate | Role::Candidate if lane == Lane::Failed => self.follow(self.hard.term, None, fx),
            _ => self.rest(),
        }
    }

    fn compact(&mut self, index: Index) {
        assert!(index <= self.applied, "only what is applied can be dropped");
        let mut upto = index.min(self.log.last().saturating_sub(self.config.keep_entries));
        if self.config.keep_entries > 0 {
            // Fewer are kept where they are large.
            let first = self.log.base().index + 1;
            let mut kept = self.log.sizes(first.max(upto + 1), self.log.last());
            while kept > self.config.keep_bytes && upto < index {
                upto += 1;
                kept -= self.log.sizes(upto, upto);
            }
        }
        if let Some(needed) = self.lead.as_ref().and_then(|l| l.snapshots_from())
            && self.log.len() < crate::limits::RAFT_LOG_MAX_ENTRIES / 2
            && self.log.bytes() < crate::limits::RAFT_LOG_MAX_BYTES / 2
        {
            upto = upto.min(needed);
        }
        if upto > self.log.base().index {
            let forget = self.config.has(Bug::ForgetConfig);
            self.log.compact(upto, forget);
            self.disk.base_dirty = true;
        }
    }

    fn send(&self, to: ReplicaId, body: Body, fx: &mut Vec<Effect>) {
        let (cluster, from, term) = (self.hard.cluster, self.config.me, self.hard.term);
        fx.push(Effect::Send(Message { cluster, from, to, term, body }));
    }

    fn reject(&self, request: u64, why: Reason, fx: &mut Vec<Effect>) {
        let why = if self.broken.is_some() { Reason::Broken } else { why };
        fx.push(Effect::Rejected { request, why, leader: self.leader.filter(|l| *l != self.config.me) });
    }

    /// There is no room for more of the log in memory.
    fn log_full(&self) -> bool {
        self.log.bytes() >= crate::limits::RAFT_LOG_MAX_BYTES || self.log.len() >= crate::limits::RAFT_LOG_MAX_ENTRIES
    }

    /// With a planted bug, the old half of a joint configuration does not count.
    fn half(&self) -> bool {
        self.config.has(Bug::IgnoreOutgoing)
    }
}

/// Reading.
impl Raft {
    /// This replica.
    pub fn me(&self) -> ReplicaId {
        self.config.me
    }
    /// The cluster that it belongs to; 0: none yet.
    pub fn cluster(&self) -> u64 {
        self.hard.cluster
    }
    /// What must never be forgotten, as of now.
    pub fn hard(&self) -> Hard {
        Hard { commit: self.commit, ..self.hard }
    }
    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }
    /// The latest term it has seen.
    pub fn term(&self) -> Term {
        self.hard.term
    }
    /// Who leads, as far as it knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }
    /// Known to be committed up to here.
    pub fn commit(&self) -> Index {
        self.commit
    }
    /// Applied by the store up to here.
    pub fn applied(&self) -> Index {
        self.applied
    }
    /// The last entry of the log.
    pub fn last(&self) -> (Index, Term) {
        (self.log.last(), self.log.last_term())
    }
    /// The last entry that is durable here.
    pub fn durable(&self) -> Index {
        self.disk.stable()
    }
    /// What the log begins after.
    pub fn base(&self) -> &Base {
        self.log.base()
    }
    /// Size of the part of the log that is in memory: entries, bytes. A checkpoint of the store and `Compact` make it smaller.
    pub fn log_size(&self) -> (usize, u64) {
        (self.log.len(), self.log.bytes())
    }
    /// The term of an entry that is still in the log.
    pub fn term_of(&self, index: Index) -> Option<Term> {
        self.log.term(index)
    }
    /// The entries from `from` on that are in memory, at most `count`.
    pub fn entries(&self, from: Index, count: usize) -> Vec<Entry> {
        self.log.slice(from.max(self.log.base().index + 1), self.log.last(), count, u64::MAX)
    }
    /// The configuration that holds, and the place of its entry.
    pub fn membership(&self) -> (Index, &Membership) {
        self.log.membership()
    }
    /// The configuration that holds is committed.
    pub fn membership_committed(&self) -> bool {
        self.log.membership().0 <= self.commit
    }
    /// What the store's state stands for when it has applied everything up to `index`: to be kept with a checkpoint of the store, for
    /// [`Raft::recover`]. `None` if the log does not reach there.
    pub fn base_at(&self, index: Index) -> Option<Base> {
        let term = self.log.term(index)?;
        Some(Base { index, term, membership: self.log.membership_at(index).clone() })
    }
    /// Why it takes no part.
    pub fn broken(&self) -> Option<Damage> {
        self.broken
    }
    /// What was refused.
    pub fn refused(&self) -> Refused {
        self.refused
    }
    /// While it leads: what it knows of the others.
    pub fn followers(&self) -> Vec<(ReplicaId, Follower)> {
        self.lead.as_ref().map_or_else(Vec::new, |l| l.followers())
    }
    /// Stable hash of the whole state.
    pub fn digest(&self) -> u128 {
        crate::digest::of(self)
    }
}

/// What cannot have been written by a replica that kept its promises.
fn damage(p: &Persisted, store: &Base) -> Option<Damage> {
    if p.hard.term > TERM_MAX || store.term > TERM_MAX || store.index > INDEX_MAX || p.base.index > INDEX_MAX {
        return Some(Damage::Terms);
    }
    if store.index < p.base.index {
        return Some(Damage::StoreBehind);
    }
    let (mut index, mut term) = (p.base.index, p.base.term);
    for e in &p.entries {
        if e.index != index + 1 {
            return Some(Damage::Gap);
        }
        if e.term < term {
            return Some(Damage::Terms);
        }
        if !e.is_sound() {
            return Some(Damage::Unsound);
        }
        (index, term) = (e.index, e.term);
    }
    if !p.base.membership.is_sound() || !store.membership.is_sound() {
        return Some(Damage::Unsound);
    }
    if p.hard.cluster == 0 && (store.index > 0 || index > 0) {
        return Some(Damage::LogLost);
    }
    if term.max(store.term) > p.hard.term {
        return Some(Damage::TermForgotten);
    }
    if p.hard.commit > index.max(store.index) {
        return Some(Damage::TailLost);
    }
    None
}
