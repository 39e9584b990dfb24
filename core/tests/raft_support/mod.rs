//! Clusters of consensus machines with disks, stores and a network that the test moves by hand, and the judge that looks on.
#![allow(dead_code, reason = "each test uses its part")]

pub mod judge;

use ice_core::bug::Bug;
use ice_core::digest;
use ice_core::ids::ReplicaId;
use ice_core::raft::{Base, Body, Bytes, Config, Content, Effect, Entry, Index, Input, Lane, Membership, Message};
use ice_core::raft::{Hard, Persisted, Raft, Record, Role, Term};
use ice_core::rng::Seed;
use ice_core::time::{Deadline, Instant, Span};
use judge::Judge;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The planted bugs that the exploration finds, in its order; the random walk finds the others.
pub const EXPLORED: [Bug; 9] = [
    Bug::VoteTwice,
    Bug::RaftAckBeforeDurable,
    Bug::StaleTicket,
    Bug::StaleRead,
    Bug::VoteForShorter,
    Bug::CommitOldTerm,
    Bug::ChangeTooEarly,
    Bug::SkipJoint,
    Bug::IgnoreOutgoing,
];

/// The log lane: what is durable, and what was written and not synced.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Disk {
    pub synced: Persisted,
    pub unsynced: VecDeque<(u64, Record)>,
}

/// A state machine that remembers what it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub base: Base,
    pub items: Vec<(Index, Vec<u8>)>,
}

/// One replica, its disk and its store.
#[derive(Clone, Serialize)]
pub struct Host {
    pub id: ReplicaId,
    pub config: Config,
    pub raft: Option<Raft>,
    pub disk: Disk,
    pub store: Store,
    /// What a restart finds of it.
    pub durable: Store,
    /// Pieces that came in.
    staged: Vec<u8>,
    /// Snapshots going out.
    sessions: BTreeMap<u64, (Index, Vec<Vec<u8>>)>,
    /// Writes are durable at once.
    pub auto_sync: bool,
    /// Snapshot pieces are not given or taken.
    pub hold_pieces: bool,
    pub held: Vec<Effect>,
    pub lane: Lane,
    pub starts: u64,
    /// Reads under way: what was committed anywhere when they came.
    reads: BTreeMap<u64, Index>,
    #[serde(skip)]
    pub now: Instant,
    #[serde(skip)]
    pub wake: Option<Deadline>,
    /// What happened since somebody looked.
    #[serde(skip)]
    pub seen: Vec<Effect>,
}

#[derive(Clone)]
pub struct World {
    pub hosts: BTreeMap<ReplicaId, Host>,
    pub net: Vec<Message>,
    pub judge: Judge,
    /// Bytes of one piece of a snapshot.
    pub piece: usize,
    /// Messages between these are lost.
    pub cut: BTreeSet<(ReplicaId, ReplicaId)>,
    pub requests: u64,
    pub seed: u64,
    /// What led here.
    pub note: String,
}

pub fn config(id: ReplicaId) -> Config {
    Config { election: Span::s(1), jitter: Span::s(1), keep_entries: 0, ..Config::new(id) }
}

/// What all members of a new cluster have on disk.
pub fn founded(membership: Membership) -> Persisted {
    let first = Entry { term: 1, index: 1, content: Content::Config(membership) };
    Persisted { hard: Hard { cluster: 7, term: 1, vote: None, commit: 0 }, base: Base::default(), entries: vec![first] }
}

impl World {
    pub fn new(seed: u64) -> World {
        World {
            hosts: BTreeMap::new(),
            net: Vec::new(),
            judge: Judge::default(),
            piece: 64,
            cut: BTreeSet::new(),
            requests: 0,
            seed,
            note: String::new(),
        }
    }

    /// One more machine, not started.
    pub fn add(&mut self, config: Config, disk: Persisted) {
        let id = config.me;
        let host = Host {
            id,
            config,
            raft: None,
            disk: Disk { synced: disk, unsynced: VecDeque::new() },
            store: Store::default(),
            durable: Store::default(),
            staged: Vec::new(),
            sessions: BTreeMap::new(),
            auto_sync: true,
            hold_pieces: false,
            held: Vec::new(),
            lane: Lane::Fine,
            starts: 0,
            reads: BTreeMap::new(),
            now: self.hosts.values().map(|h| h.now).max().unwrap_or_default(),
            wake: None,
            seen: Vec::new(),
        };
        self.hosts.insert(id, host);
    }

    pub fn host(&self, id: ReplicaId) -> &Host {
        &self.hosts[&id]
    }

    pub fn host_mut(&mut self, id: ReplicaId) -> &mut Host {
        self.hosts.get_mut(&id).expect("a known replica")
    }

    pub fn raft(&self, id: ReplicaId) -> Option<&Raft> {
        self.hosts.get(&id)?.raft.as_ref()
    }

    pub fn is_up(&self, id: ReplicaId) -> bool {
        self.raft(id).is_some()
    }

    /// Starts a machine with what its disk has.
    pub fn start(&mut self, id: ReplicaId) {
        let seed = self.seed;
        let host = self.host_mut(id);
        host.starts += 1;
        host.store = host.durable.clone();
        let raft = Raft::recover(
            host.config.clone(),
            Seed(seed ^ id.0 << 8 ^ host.starts),
            host.disk.synced.clone(),
            host.store.base.clone(),
        );
        host.raft = Some(raft);
        self.judge.started(id);
        self.step(id, None);
    }

    /// The machine dies. Of its unsynced writes the first `keep` reach the disk.
    pub fn crash(&mut self, id: ReplicaId, keep: usize) {
        let host = self.host_mut(id);
        host.raft = None;
        host.wake = None;
        for (_, record) in host.disk.unsynced.drain(..).take(keep) {
            assert!(host.disk.synced.take(record), "records follow each other");
        }
        host.staged.clear();
        host.sessions.clear();
        host.held.clear();
        host.reads.clear();
        host.lane = Lane::Fine;
    }

    /// The first `n` unsynced writes become durable.
    pub fn sync(&mut self, id: ReplicaId, n: usize) {
        let host = self.host_mut(id);
        let mut last = None;
        for (ticket, record) in host.disk.unsynced.drain(..n.min(host.disk.unsynced.len())).collect::<Vec<_>>() {
            assert!(host.disk.synced.take(record), "records follow each other");
            last = Some(ticket);
        }
        if let Some(ticket) = last {
            self.step(id, Some(Input::Persisted { ticket }));
        }
    }

    /// The store's state becomes durable, and the log is cut.
    pub fn checkpoint(&mut self, id: ReplicaId) {
        let host = self.host_mut(id);
        let Some(raft) = &host.raft else { return };
        let index = raft.applied();
        if index == 0 {
            return;
        }
        if let Some(base) = raft.base_at(index) {
            host.store.base = base;
        }
        host.durable = host.store.clone();
        self.step(id, Some(Input::Compact { index }));
    }

    pub fn request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// A read, judged.
    pub fn read(&mut self, id: ReplicaId) -> u64 {
        let request = self.request();
        let committed = self.judge.committed();
        self.host_mut(id).reads.insert(request, committed);
        self.step(id, Some(Input::Read { request }));
        request
    }

    /// One input, and whatever follows from it inside the machine.
    pub fn step(&mut self, id: ReplicaId, input: Option<Input>) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let Some(mut raft) = host.raft.take() else { return };
        if let Some(Input::Disk(lane)) = &input {
            if host.lane == Lane::Failed && *lane != Lane::Failed {
                host.disk.unsynced.clear();
            }
            host.lane = *lane;
        }
        let mut inputs: VecDeque<Input> = input.into_iter().collect();
        let before = self.net.len();
        loop {
            let mut fx = Vec::new();
            while let Some(i) = inputs.pop_front() {
                raft.handle(host.now, i, &mut fx);
            }
            host.wake = raft.tick(host.now, &mut fx);
            for e in fx {
                host.perform(e, &mut inputs, &mut self.net, &mut self.judge, self.piece);
            }
            if inputs.is_empty() {
                break;
            }
        }
        for m in &self.net[before..] {
            self.judge.acknowledged(m, &raft, &host.disk.synced);
        }
        host.raft = Some(raft);
        self.judge.look(id, &self.hosts);
    }

    /// The message at `k` arrives, if it can.
    pub fn deliver(&mut self, k: usize) -> Message {
        let m = self.net.remove(k);
        if !self.cut.contains(&(m.from, m.to)) {
            self.step(m.to, Some(Input::Message(m.clone())));
        }
        m
    }

    /// Pieces that were held go on.
    pub fn release_pieces(&mut self, id: ReplicaId) {
        let host = self.host_mut(id);
        host.hold_pieces = false;
        let held = std::mem::take(&mut host.held);
        let mut inputs = VecDeque::new();
        let piece = self.piece;
        for e in held {
            let host = self.hosts.get_mut(&id).expect("known");
            host.perform(e, &mut inputs, &mut self.net, &mut self.judge, piece);
        }
        for i in inputs {
            self.step(id, Some(i));
        }
    }

    /// Moves everybody's time.
    pub fn set_now(&mut self, now: Instant) {
        for h in self.hosts.values_mut() {
            h.now = h.now.max(now);
        }
    }

    pub fn now(&self) -> Instant {
        self.hosts.values().map(|h| h.now).max().unwrap_or_default()
    }

    /// The earliest deadline of anybody.
    pub fn next_wake(&self) -> Option<(Instant, ReplicaId)> {
        self.hosts.values().filter(|h| h.raft.is_some()).filter_map(|h| Some((h.wake?.at.max(h.now), h.id))).min()
    }

    pub fn leader(&self) -> Option<ReplicaId> {
        let leads = |h: &&Host| h.raft.as_ref().is_some_and(|r| r.role() == Role::Leader);
        self.hosts.values().filter(leads).max_by_key(|h| h.raft.as_ref().map(Raft::term)).map(|h| h.id)
    }

    pub fn term(&self) -> Term {
        self.hosts.values().filter_map(|h| h.raft.as_ref()).map(Raft::term).max().unwrap_or(0)
    }
}

impl Host {
    fn perform(
        &mut self,
        e: Effect,
        inputs: &mut VecDeque<Input>,
        net: &mut Vec<Message>,
        judge: &mut Judge,
        piece_bytes: usize,
    ) {
        match e {
            Effect::Send(m) => {
                judge.sent(&m, &self.disk.synced);
                net.push(m);
            }
            Effect::Persist { ticket, record } => {
                self.disk.unsynced.push_back((ticket, record));
                if self.auto_sync && self.lane != Lane::Failed {
                    for (_, record) in self.disk.unsynced.drain(..) {
                        assert!(self.disk.synced.take(record), "records follow each other");
                    }
                    inputs.push_back(Input::Persisted { ticket });
                }
            }
            Effect::Committed { entries } => {
                for entry in &entries {
                    judge.applies(self.id, self.store.base.index, entry);
                    self.store.base.index = entry.index;
                    self.store.base.term = entry.term;
                    match &entry.content {
                        Content::Noop => (),
                        Content::Config(m) => self.store.base.membership = m.clone(),
                        Content::Command(c) => self.store.items.push((entry.index, c.to_vec())),
                    }
                    inputs.push_back(Input::Applied { index: entry.index });
                }
                self.seen.push(Effect::Committed { entries });
            }
            Effect::SnapshotWanted { .. } | Effect::SnapshotPiece { .. } if self.hold_pieces => self.held.push(e),
            Effect::SnapshotWanted { transfer, ref after, .. } => {
                let n = after.as_ref().map_or(0, |a| a[0] as usize);
                if n == 0 {
                    let bytes = ice_core::wire::encode(&self.store);
                    let pieces = bytes.chunks(piece_bytes).map(<[u8]>::to_vec).collect();
                    self.sessions.insert(transfer, (self.store.base.index, pieces));
                    self.seen.push(e);
                }
                match self.sessions.get(&transfer) {
                    Some((index, pieces)) => {
                        let cursor = (n + 1 < pieces.len()).then(|| Bytes::from(vec![(n + 1) as u8]));
                        let data = Bytes::from(pieces[n].clone());
                        inputs.push_back(Input::SnapshotPiece { transfer, index: *index, data, cursor });
                    }
                    None => inputs.push_back(Input::SnapshotFailed { transfer }),
                }
            }
            Effect::SnapshotDone { transfer } => {
                self.sessions.remove(&transfer);
                self.seen.push(e);
            }
            Effect::SnapshotPiece { ticket, base, piece, data, last } => {
                if piece == 0 {
                    self.staged.clear();
                }
                self.staged.extend_from_slice(&data);
                if !last {
                    inputs.push_back(Input::PieceTaken { ticket });
                    return;
                }
                match ice_core::wire::decode::<Store>(&self.staged) {
                    Ok(mut store) if store.base.index == base.index => {
                        judge.installs(self.id, self.store.base.index, &store);
                        store.base = base.clone();
                        self.store = store.clone();
                        self.durable = store;
                        inputs.push_back(Input::SnapshotInstalled { ticket });
                        self.seen.push(Effect::SnapshotPiece { ticket, base, piece, data: Bytes::default(), last });
                    }
                    _ => inputs.push_back(Input::SnapshotRefused { ticket }),
                }
            }
            Effect::ReadReady { request, index } => {
                judge.read(self.reads.remove(&request), index);
                self.seen.push(e);
            }
            Effect::Rejected { request, .. } => {
                self.reads.remove(&request);
                self.seen.push(e);
            }
            other => self.seen.push(other),
        }
    }
}

/// A hash of everything that matters for what can still happen, and for what the judge would say of it.
pub fn shape(w: &World, more: &impl Serialize) -> u128 {
    let mut net: Vec<Vec<u8>> = w.net.iter().map(ice_core::wire::encode).collect();
    net.sort_unstable();
    digest::of(&(&w.hosts, net, w.judge.shape(), more))
}

/// True for messages with entries.
pub fn has_entries(m: &Message) -> bool {
    matches!(&m.body, Body::Append { entries, .. } if !entries.is_empty())
}

/// Runs `f` without the words of panics that are expected.
pub fn quiet<T>(f: impl FnOnce() -> T) -> T {
    thread_local!(static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let value = f();
    QUIET.set(false);
    value
}
