//! The node: composition and routing. Sub-machines never call each other; they return what should happen, and the node
//! passes it on.

mod clock;
mod control;
mod events;
mod journal;
mod keyframe;
mod pump;
mod recover;
mod replicate;
mod transfer;
mod view;

use crate::action::{Io, LogRecord, Notice, Outbox, Refused, Reply, Send};
use crate::bug::Bug;
use crate::config::Config;
use crate::control::Control;
use crate::event::{Batch, Credits, Event};
use crate::ids::{InodeId, IoToken, OpToken, PayloadId, ReplicaId};
use crate::limits::{EVENTS_PER_STEP_MAX, REQUESTS_IN_FLIGHT_MAX, SCAN_MAX};
use crate::member::Members;
use crate::message::{Held, Message};
use crate::mirror::content::Content;
use crate::mirror::handles::Handles;
use crate::mirror::history::History;
use crate::mirror::outgoing::Outgoing;
use crate::mirror::state::{Round, Serving};
use crate::mirror::syncs::Syncs;
use crate::rng::Rng;
use crate::time::{Deadline, Hlc, Instant, Stamp, Wake};
use crate::tree::{Removed, Ticket, Tree};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use clock::Clock;
use journal::Journal;
use serde::{Deserialize, Serialize};

pub use recover::{Loading, Meta};
pub use view::View;

/// One node of a cluster, without anything that touches the world.
///
/// # Contract
///
/// A host creates a node with [`Node::recover`] from what it finds on disk, and from then on only calls [`Node::step`]
/// with the events that happened, and carries out the [`Outbox`] that comes back. Four families of methods:
///
/// * **life**: `recover`;
/// * **change**: `step`, the only mutator;
/// * **pressure**: `credits`, how much more work the adapters may hand in;
/// * **reading**: `view`, `digest`.
///
/// What a node promises, and what checks it (in debug builds, and in the simulator for every seed):
///
/// 1. **Pure.** The same start, seed and events give the same outboxes and digests, on every runtime and platform.
///    (Checked by running a second node on the same tape.)
/// 2. **Bounded.** A step never fails and never works beyond its budget: at most [`EVENTS_PER_STEP_MAX`] events and a
///    fixed number of messages, disk actions and checkpoint pages; what is left sets `again`.
/// 3. **No order inside an outbox.** Nothing in an outbox relies on its neighbour. What must wait for durability is
///    emitted in a later step, after the `Io` completion. (The simulator shuffles outboxes.)
/// 4. **One FIFO.** The log lane ([`Io::Log`], [`Io::LogSync`]) keeps its order; everything else may complete in any.
/// 5. **Exactly one reply** for each request and one completion for each I/O token, also when the node stops.
/// 6. **Every request ends.** Each has a give-up time.
/// 7. **Payloads balance.** Bulk bytes never enter the core; every handle that comes in is released once.
/// 8. **The network may lose, repeat, delay, reorder.** Framing drops what is damaged.
/// 9. **Time does not run backwards**, and all events of a batch share one `now`.
///
/// What the host promises in return: log records are written in order of their `index`; `LogSynced`, `Stored` (of a
/// commit) and `Fetched` are only said when the medium says so; an action that answers `Failed` changed nothing; a
/// `Request::Change` describes what already stands in `backing`, and no other change of `backing` came between.
///
/// Three kinds of errors: a [`Refused`] is an answer to a caller; an [`crate::event::IoError`] or a broken link is news from the
/// environment; an assertion is our own bug: the node stops, and its trace holds the tape.
#[derive(Serialize, Deserialize)]
pub struct Node {
    config: Config,
    now: Instant,
    rng: Rng,
    clock: Clock,
    tree: Tree,
    members: Members,
    history: History,
    journal: Journal,
    content: Content,
    handles: Handles,
    syncs: Syncs,
    outgoing: BTreeMap<ReplicaId, Outgoing>,
    /// What each member is known to hold. Kept when its connection breaks.
    held: BTreeMap<ReplicaId, Held>,
    /// Origins under which this node issued operations, the current one included.
    lives: BTreeSet<ReplicaId>,
    /// Members that wait for an acknowledgement: up to this number of theirs.
    urgent: BTreeMap<ReplicaId, u64>,
    /// Members that should hear what became durable, when there is time.
    tell_held: BTreeSet<ReplicaId>,
    /// Operations asked for: origin -> when.
    asked: BTreeMap<ReplicaId, Instant>,
    /// Content of records that came by state and is not here yet.
    state_missing: BTreeSet<(InodeId, Stamp)>,
    /// Until `state_missing` is empty, content of these origins counts as held only up to here.
    content_cap: BTreeMap<ReplicaId, u64>,
    round: Option<Round>,
    serving: Vec<Serving>,
    /// After a machine crash, until the host has compared its disk with the tree.
    unproven: Option<Unproven>,
    /// After a crash, until the host has compared its disk with the tree: how long that may take at the latest.
    awaits_scan: Option<ScanDue>,
    /// Where the look at what content is still wanted goes on.
    settled_upto: Option<InodeId>,
    flights: BTreeMap<IoToken, Flight>,
    next_io: u64,
    rounds: u64,
    open: BTreeSet<OpToken>,
    trim_at: Instant,
    /// Every member has every operation up to here, and none at or below it will come.
    horizon: Hlc,
    retry_at: Option<Instant>,
    apply_flights: usize,
    /// Why the disk refused the last change or transfer, until one succeeds.
    last_failure: Option<crate::event::IoError>,
    stopping: bool,
    /// Others know operations of ours that we do not.
    outdated: bool,
    /// For the first step: what recovery wants done and said.
    first_io: Vec<Io>,
    first_life: Option<ReplicaId>,
    first_words: Option<alloc::string::String>,
    control: Option<Box<Control>>,
    first_raft: Option<crate::raft::Record>,
    out: Outbox,
}

impl core::fmt::Debug for Node {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Node").field("replica", &self.config.replica).field("now", &self.now).finish_non_exhaustive()
    }
}

/// What a node keeps for a host that has not yet compared its disk with the tree after a machine crash.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Unproven {
    /// Content found in the log and the staging area: `backing` may have lost it, whatever the log says.
    versions: BTreeSet<(InodeId, Stamp)>,
    /// What was removed since the last checkpoint: `backing` may show it again.
    removed: Vec<Removed>,
    /// Editions of files that were replaced by others since then.
    replaced: Vec<Removed>,
}

/// When the scan after a crash has to be over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum ScanDue {
    /// Counted from the first step.
    Unknown,
    /// Then.
    At(Instant),
}

/// A disk action in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Flight {
    LogSync,
    Store {
        last: bool,
        /// How many of the pages held in memory its success makes durable.
        pages: usize,
    },
    /// `staged`: where its bytes come from, if that is the staging area.
    Apply {
        ticket: Ticket,
        inode: InodeId,
        staged: Option<(InodeId, Stamp)>,
    },
    Fetch {
        inode: InodeId,
        version: Stamp,
    },
    Stage {
        inode: InodeId,
        version: Stamp,
        payload: PayloadId,
    },
}

impl Node {
    /// The only mutator. Takes events from the front of `events` (all, unless the budget ends), and puts into `out` what is
    /// to be done. `out` is cleared first. `now` must not be less than in the call before.
    pub fn step(&mut self, now: Instant, events: &mut Batch, out: &mut Outbox) {
        debug_assert!(now >= self.now, "time ran backwards");
        self.now = self.now.max(now);
        self.out = core::mem::take(out);
        clear(&mut self.out);
        self.first_step();
        for _ in 0..EVENTS_PER_STEP_MAX {
            let Some(event) = events.pop_front() else { break };
            self.event(event);
        }
        let wake = self.pump();
        self.out.wake = wake;
        self.out.again |= !events.is_empty();
        self.release();
        if self.config.has(Bug::MissRelease) && self.rng.chance(200) {
            self.out.release.pop();
        }
        if self.config.has(Bug::ReleaseTwice) && self.rng.chance(50) {
            let twice = self.out.release.last().copied();
            self.out.release.extend(twice);
        }
        *out = core::mem::take(&mut self.out);
    }

    /// How much more work the adapters may hand in.
    pub fn credits(&self) -> Credits {
        Credits { requests: REQUESTS_IN_FLIGHT_MAX.saturating_sub(self.syncs.len()) }
    }

    /// Read-only access to the state: API, UI, metrics, judges; also fast reads.
    pub fn view(&self) -> View<'_> {
        View::new(self)
    }

    fn first_step(&mut self) {
        self.out.io.append(&mut self.first_io);
        if self.awaits_scan == Some(ScanDue::Unknown) {
            self.awaits_scan = Some(ScanDue::At(self.now.after(SCAN_MAX)));
        }
        if let Some(life) = self.first_life.take() {
            self.log(LogRecord::Life(life));
        }
        if let Some(record) = self.first_raft.take() {
            self.log(LogRecord::Raft(record));
            self.journal.wanted = true;
        }
        if let Some(words) = self.first_words.take() {
            self.trouble(words);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Op { token, op } => self.request(token, op),
            Event::Cancel { token } => {
                if self.syncs.remove(token) {
                    self.reply(token, Reply::Failed(Refused::Interrupted));
                } else {
                    self.with_control(|c, _, fx| {
                        c.cancel(token, fx);
                    });
                }
            }
            Event::Peer { link, message } => self.message(link, message),
            Event::Link(e) => self.link(e),
            Event::Io { token, result } => self.completed(token, result),
            Event::Wall { unix_ns } => self.clock.wall_ns = unix_ns,
            Event::Watching(w) => self.with_control(|c, _, fx| c.watching(w, fx)),
            Event::Admin(a) => self.admin(a),
        }
    }

    /// What this very outbox still needs is let go a step later.
    fn release(&mut self) {
        let mut free = self.handles.take_free();
        if !free.is_empty() {
            let used = payloads_of(&self.out);
            let (later, now) = free.into_iter().partition(|id| used.contains(id));
            free = now;
            self.out.again |= self.handles.give_back(later);
        }
        self.out.release = free;
    }

    fn reply(&mut self, token: OpToken, reply: Reply) {
        let was_open = self.open.remove(&token);
        debug_assert!(was_open, "{token} answered twice or never asked");
        if self.config.has(Bug::ReplyTwice) && self.rng.chance(20) {
            self.out.reply.push((token, reply.clone()));
        }
        self.out.reply.push((token, reply));
    }

    fn token(&mut self, flight: Flight) -> IoToken {
        self.next_io += 1;
        let token = IoToken(self.next_io);
        self.flights.insert(token, flight);
        token
    }

    fn log(&mut self, record: LogRecord) -> u64 {
        let index = self.journal.number(self.now);
        if let LogRecord::Op { op, .. } = &record {
            self.journal.holds(index, op.origin, op.seq, op.time);
        }
        self.out.io.push(Io::Log { index, record });
        index
    }

    fn send(&mut self, send: Send) {
        self.out.send.push(send);
    }

    fn trouble(&mut self, words: impl Into<alloc::string::String>) {
        self.out.notice.push(Notice::Trouble(words.into()));
    }

    /// The origin of our operations.
    fn life(&self) -> ReplicaId {
        self.clock.life
    }

    /// The number of our last operation.
    fn last_own(&self) -> u64 {
        self.history.known(self.life()).0
    }
}

/// Handles that an outbox refers to.
fn payloads_of(out: &Outbox) -> BTreeSet<PayloadId> {
    let logged = out.io.iter().filter_map(|io| match io {
        Io::Log { record: LogRecord::Op { op, .. }, .. } => op.payload,
        Io::Stage { payload, .. } => Some(*payload),
        Io::Apply { apply, .. } => apply.payload(),
        _ => None,
    });
    let sent = out.send.iter().flat_map(|s| match s {
        Send::Message { message: Message::Ops { ops, .. }, .. } => ops.as_slice(),
        _ => &[],
    });
    logged.chain(sent.filter_map(|op| op.payload)).map(|p| p.id).collect()
}

fn clear(out: &mut Outbox) {
    out.send.clear();
    out.io.clear();
    out.reply.clear();
    out.notice.clear();
    out.told.clear();
    out.release.clear();
    out.wake = None;
    out.again = false;
}

/// The earlier of two deadlines.
fn sooner(a: Option<Deadline>, at: Instant, why: Wake) -> Option<Deadline> {
    let d = Deadline { at, why };
    Some(a.map_or(d, |x| x.min(d)))
}

/// Everything that a digest must cover besides the tree.
pub(crate) fn small_state(node: &Node) -> Vec<u128> {
    let mut all = alloc::vec![
        u128::from(node.clock.last().0),
        u128::from(node.next_io),
        u128::from(node.journal.next) << 64 | u128::from(node.journal.synced),
        crate::digest::of(&node.history.frontier()),
        crate::digest::of(&node.history.durable_frontier()),
        crate::digest::of(&node.history.content_frontier()),
        crate::digest::of(&node.members.all()),
        node.content.len() as u128,
        node.handles.len() as u128,
        node.open.len() as u128,
    ];
    if let Some(control) = &node.control {
        all.extend(control.small_state());
    }
    all
}
