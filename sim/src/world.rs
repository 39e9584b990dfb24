//! The world: machines, network and time, and the loop that lets things happen.

use crate::content::Words;
use crate::host::{Ask, Host, LastSync, Power, Process};
use crate::ledger::Ledger;
use crate::net::{Fate, Flight, Net};
use crate::plan::Setup;
use crate::plane::Plane;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::reference::Reference;
use crate::rng::Stream;
use crate::sometimes::Sometimes;
use ice_core::action::{Io, LogRecord, Notice, Outbox, Reply, Send};
use ice_core::config::{Config, Ending};
use ice_core::event::{Ack, Admin, Batch, Event, IoError, IoResult, LinkEvent, Request};
use ice_core::ids::{Incarnation, IoToken, OpToken, ReplicaId};
use ice_core::limits::EVENTS_PER_STEP_MAX;
use ice_core::message::Message;
use ice_core::node::Node;
use ice_core::op::Payload;
use ice_core::rng::Seed;
use ice_core::time::{Instant, Span};
use ice_core::trace::{FORMAT, Frame, Start, outbox_digest};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Something that will happen.
pub enum Ev {
    /// Step a node.
    Step(usize, u32),
    /// The node asked for it.
    Wake(usize, u32),
    /// Tell the wall clock.
    Wall(usize, u32),
    /// A message arrives at end `1` of link `0`.
    Deliver(usize, usize, Box<Flight>),
    /// A dialled address answers, or does not.
    Dialled(usize, u32, String),
    /// An end of a connection learns that it is gone.
    Down(usize, usize, &'static str),
    /// The log is synced up to the mark.
    LogSync(usize, u32, IoToken, u64),
    /// A disk action is carried out.
    Action(usize, u32, u64),
    /// A transfer that could not be begun is given up.
    GiveUpFetch(usize, u32, u64),
    /// Compare the disk with the tree.
    Scan(usize, u32),
    /// The process ends in order.
    Finish(usize, u32),
    /// A watcher has taken what it was told.
    Taken(usize, u32, Box<ice_core::control::Watching>),
}

/// A judge's verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which judge.
    pub judge: &'static str,
    /// When, in virtual time.
    pub at: Instant,
    /// What is wrong.
    pub text: String,
}

/// Speeds of the simulated hardware.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Longest time of a disk action, in nanoseconds.
    pub disk_ns: u64,
}

/// Random streams, one per concern.
pub struct Rngs {
    /// Order of completions and outboxes.
    pub order: Stream,
    /// Duration of disk actions.
    pub disk: Stream,
    /// What a crash takes.
    pub crash: Stream,
    /// Everything that hosts choose.
    pub host: Stream,
    /// When the scan after a start begins, and what else was carried out when a process was killed.
    pub late: Stream,
    /// What concerns the control plane only.
    pub plane: Stream,
}

/// See the module.
pub struct World {
    /// Virtual time.
    pub now: Instant,
    pub(crate) queue: Queue<Ev>,
    pub(crate) net: Net,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What contents stand for.
    pub words: Words,
    pub(crate) ledger: Ledger,
    /// States reached.
    pub sometimes: Sometimes,
    pub(crate) rngs: Rngs,
    pub(crate) speed: Speed,
    pub(crate) retained: usize,
    pub(crate) checkpoint: Span,
    /// The scan after a start begins so long after it at the latest.
    pub(crate) scan_late: Span,
    pub(crate) setup: Setup,
    pub(crate) reference: Option<Reference>,
    /// Events handled.
    pub events: u64,
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// What happened, line by line, if somebody wants to know.
    pub story: Option<String>,
    /// Check purity with a twin of each node.
    pub twins: bool,
    /// Record frames.
    pub tapes: bool,
    /// Finished tapes, by node name and start.
    pub recorded: Vec<(String, Vec<Frame>)>,
    /// Stamped into every outbox and digest, to compare two runs.
    pub fingerprint: u64,
    /// Work is checked for order only in the debug build or on request.
    pub(crate) digest_every: u64,
    pub(crate) phase_over: bool,
    pub(crate) answers: BTreeMap<(usize, OpToken), Reply>,
    pub(crate) plane: Plane,
    pub(crate) limits: Limits,
    /// A blackout is due now: who was told that his `fsync` is good, and whether his disk is lost.
    pub(crate) dark: Option<(usize, bool)>,
}

/// Limits of the control plane: small ones bring out what happens at them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    keep: u64,
    dead: Span,
    piece: usize,
    settle: Span,
}

impl Limits {
    fn draw(setup: &Setup) -> Limits {
        let mut rng = Stream::new(setup.seed, "limits");
        let keep = *rng.pick(&[0, 3, 20, 10_000]);
        let dead = *rng.pick(&[Span::s(3), Span::s(8), Span::s(25), Span::s(300)]);
        let piece = *rng.pick(&[1_500, 10_000, 1_000_000]);
        let settle = *rng.pick(&[Span::s(0), Span::s(2), Span::s(5)]);
        Limits { keep: setup.keep.unwrap_or(keep), dead: setup.dead.unwrap_or(dead), piece, settle }
    }
    fn config(&self, found: bool) -> ice_core::control::Config {
        let mut c = ice_core::control::Config { found, keep_entries: self.keep, ..Default::default() };
        c.piece_bytes = self.piece;
        c.autopilot.dead_after = self.dead;
        c.autopilot.settle = self.settle;
        c
    }
}

/// Events that a stopped process may have waiting; a real host's sockets would hold back the rest.
const INBOX_MAX: usize = 20_000;
/// Steps at one point in time after which a node is said never to end.
const STEPS_AT_ONCE_MAX: u64 = 20_000;
/// A transfer that takes longer is given up.
const FETCH_MAX: Span = Span::s(30);
/// A request without a give-up time of its own must be answered within this.
pub(crate) const ANSWER_MAX: Span = Span::s(60);

impl World {
    /// All machines, switched off.
    pub fn new(setup: &Setup, profile: &Profile) -> World {
        let seed = setup.seed;
        let mut rng = Stream::new(seed, "world");
        let delay = Span(rng.range(profile.delay_us.0, profile.delay_us.1) * 1000);
        let jitter = Span(rng.range(profile.jitter_us.0, profile.jitter_us.1) * 1000);
        let mut world = World {
            now: Instant(0),
            queue: Queue::default(),
            net: Net::new(setup.nodes, delay, jitter, Stream::new(seed, "net")),
            hosts: Vec::new(),
            words: Words::default(),
            ledger: Ledger::default(),
            sometimes: Sometimes::default(),
            rngs: Rngs {
                order: Stream::new(seed, "order"),
                disk: Stream::new(seed, "disk"),
                crash: Stream::new(seed, "crash"),
                host: Stream::new(seed, "host"),
                late: Stream::new(seed, "late"),
                plane: Stream::new(seed, "plane"),
            },
            speed: Speed { disk_ns: profile.disk_us * 1000 },
            retained: usize::MAX,
            checkpoint: Span::s(60),
            scan_late: Span::ms(profile.scan_ms),
            setup: setup.clone(),
            reference: setup.single_writer.then(Reference::default),
            events: 0,
            failure: None,
            story: None,
            twins: false,
            tapes: false,
            recorded: Vec::new(),
            fingerprint: 0,
            digest_every: 64,
            phase_over: false,
            answers: BTreeMap::new(),
            dark: None,
            plane: Plane::default(),
            limits: Limits::draw(setup),
        };
        // Small limits bring out what happens at them.
        let retained = *rng.pick(&[usize::MAX, 200_000, 40, 8]);
        world.retained = setup.retained.unwrap_or(retained);
        let checkpoint = *rng.pick(&[Span::s(60), Span::s(10), Span::s(2), Span::ms(300)]);
        world.checkpoint = setup.checkpoint.unwrap_or(checkpoint);
        let everybody = rng.chance(500);
        for n in 0..setup.nodes {
            let mut host = Host::new(n, ReplicaId(rng.u64() | 1));
            host.clock_ns = rng.range(0, 2 * profile.skew_ms) as i64 * 1_000_000 - profile.skew_ms as i64 * 1_000_000;
            host.drift_ppm = if profile.skew_ms > 0 { rng.range(0, 200) as i64 - 100 } else { 0 };
            for other in 0..setup.nodes {
                if other != n && (everybody || other == 0 || (n == 0 && other == 1)) {
                    host.join.push(format!("http://n{}:9000", other + 1));
                }
            }
            if rng.chance(100) {
                // The operator also wrote the node's own address, under another name.
                host.join.insert(0, format!("http://alias-n{}:9000", n + 1));
            }
            world.hosts.push(host);
        }
        world
    }

    // ---- telling --------------------------------------------------------------------------------------------------

    /// Adds a line to the story.
    pub(crate) fn tell(&mut self, text: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let t = self.now.0;
            let _ = writeln!(story, "{:>5}.{:06} {}", t / 1_000_000_000, t / 1000 % 1_000_000, text());
        }
    }
    /// The first failure ends the run.
    pub(crate) fn fail(&mut self, judge: &'static str, text: String) {
        if self.failure.is_none() {
            self.tell(|| format!("FAILED {judge}: {text}"));
            self.failure = Some(Failure { judge, at: self.now, text });
        }
    }

    // ---- the loop -------------------------------------------------------------------------------------------------

    /// Lets everything happen until `until`. Stops early at a failure.
    pub fn run_until(&mut self, until: Instant) {
        while self.failure.is_none() && self.queue.next_at().is_some_and(|at| at <= until) {
            let Some((at, ev)) = self.queue.take() else { break };
            self.now = self.now.max(at);
            self.events += 1;
            self.happen(ev);
            self.go_dark();
        }
        if self.failure.is_none() {
            self.now = self.now.max(until);
        }
    }

    fn happen(&mut self, ev: Ev) {
        let (n, epoch) = match &ev {
            Ev::Step(n, e) | Ev::Wake(n, e) | Ev::Wall(n, e) | Ev::Dialled(n, e, _) => (*n, *e),
            Ev::LogSync(n, e, ..) | Ev::Action(n, e, _) | Ev::GiveUpFetch(n, e, _) | Ev::Scan(n, e) => (*n, *e),
            Ev::Finish(n, e) | Ev::Taken(n, e, _) => (*n, *e),
            Ev::Deliver(link, side, _) | Ev::Down(link, side, _) => {
                let end = self.net.links[*link].ends[*side];
                (end.node, end.epoch)
            }
        };
        if self.hosts[n].epoch != epoch || self.hosts[n].process.is_none() {
            return;
        }
        if self.hosts[n].power == Power::Paused && !matches!(ev, Ev::Deliver(..)) {
            // It will be seen to when the process goes on; nothing is lost meanwhile.
            self.queue.put(self.now.after(Span::ms(50)), ev);
            return;
        }
        match ev {
            Ev::Step(..) => {
                let p = self.process(n);
                p.step_queued = false;
                if p.again && p.inbox.is_empty() {
                    self.step_once(n);
                }
                self.drive(n);
            }
            Ev::Wake(..) => {
                let now = self.now;
                let p = self.process(n);
                p.wake_queued = None;
                match p.wake {
                    Some(w) if w.at <= now => {
                        self.tell(|| format!("n{} wakes: {:?}", n + 1, w.why));
                        self.step_once(n);
                        self.drive(n);
                    }
                    Some(_) => self.queue_wake(n),
                    None => {}
                }
            }
            Ev::Wall(..) => {
                self.queue.put(self.now.after(Span::s(1)), Ev::Wall(n, epoch));
                let unix_ns = self.hosts[n].wall(self.now);
                self.hand(n, Event::Wall { unix_ns });
                self.overdue(n);
            }
            Ev::Deliver(link, side, flight) => self.deliver(n, link, side, *flight),
            Ev::Dialled(_, _, url) => self.dialled(n, url),
            Ev::Down(link, side, why) => {
                let end = &mut self.net.links[link].ends[side];
                if std::mem::take(&mut end.open) {
                    self.hand(n, Event::Link(LinkEvent::Down { link: Net::id(link, side), why: why.into() }));
                }
            }
            Ev::LogSync(_, _, token, mark) => {
                let result = if self.hosts[n].disk.sync(mark) {
                    self.hosts[n].scars = self.hosts[n].scars.filter(|s| *s > mark);
                    IoResult::LogSynced
                } else {
                    self.sometimes.saw("log sync failed");
                    let full = self.hosts[n].disk.full && !self.hosts[n].disk.log_broken;
                    IoResult::Failed(if full { IoError::NoSpace } else { IoError::Broken })
                };
                self.complete(n, token, result);
            }
            Ev::Action(_, _, slot) => self.action(n, slot),
            Ev::GiveUpFetch(_, _, slot) => self.give_up_fetch(n, slot),
            Ev::Scan(..) => {
                self.process(n).scan_queued = false;
                self.scan(n);
            }
            Ev::Finish(..) => self.stop(n, Ending::Clean),
            Ev::Taken(_, _, what) => self.plane_taken(n, *what),
        }
    }

    /// The process of a node that is known to have one.
    pub(crate) fn process(&mut self, n: usize) -> &mut Process {
        self.hosts[n].process.as_mut().expect("the caller checked that the process runs")
    }

    /// Puts an event into a node's inbox; it is stepped soon.
    pub(crate) fn hand(&mut self, n: usize, event: Event) {
        let epoch = self.hosts[n].epoch;
        let delay = if self.rngs.order.chance(200) { Span(self.rngs.order.below(200_000)) } else { Span(0) };
        let at = self.now.after(delay);
        let p = self.process(n);
        p.inbox.push_back(event);
        if !std::mem::replace(&mut p.step_queued, true) {
            self.queue.put(at, Ev::Step(n, epoch));
        }
    }

    /// A disk action ended: the node is told at once, under the namespace lock.
    pub(crate) fn complete(&mut self, n: usize, token: IoToken, result: IoResult) {
        self.tell(|| format!("n{} disk {token}: {result:?}", n + 1));
        if !self.process(n).tokens.remove(&token) {
            self.fail("simulator", format!("{token} completed twice"));
        }
        self.process(n).inbox.push_back(Event::Io { token, result });
        self.drive(n);
    }

    /// A user or the host itself asks; the node is stepped at once. The token names the answer.
    pub(crate) fn ask(&mut self, n: usize, op: Request, ack: Option<Ack>, versions: Vec<usize>) -> OpToken {
        let limit = match &op {
            Request::Sync { timeout, .. } => Span(timeout.0 + Span::s(1).0),
            _ => ANSWER_MAX,
        };
        let due = self.now.after(limit);
        let p = self.process(n);
        p.last_ask += 1;
        let token = OpToken(p.last_ask);
        p.asks.insert(token, Ask { due, ack, versions });
        p.inbox.push_back(Event::Op { token, op });
        self.drive(n);
        token
    }

    /// Steps a node until its inbox is empty.
    pub(crate) fn drive(&mut self, n: usize) {
        while self.failure.is_none() && self.hosts[n].process.as_ref().is_some_and(|p| !p.inbox.is_empty()) {
            self.step_once(n);
        }
    }

    fn step_once(&mut self, n: usize) {
        let now = self.now;
        let unix_ns = self.hosts[n].wall(now);
        let digest_every = self.digest_every;
        let p = self.process(n);
        if !p.inbox.is_empty() {
            p.inbox.push_front(Event::Wall { unix_ns });
        }
        if p.steps_now.0 == now {
            p.steps_now.1 += 1;
        } else {
            p.steps_now = (now, 1);
        }
        if p.steps_now.1 > STEPS_AT_ONCE_MAX {
            let text = format!("n{} made {STEPS_AT_ONCE_MAX} steps without an end at one point in time", n + 1);
            return self.fail("bounded", text);
        }
        let mut out = std::mem::take(&mut p.out);
        clear(&mut out);
        let given: Option<Batch> = p.twin.is_some().then(|| p.inbox.clone());
        if let Some(tape) = &mut p.tape {
            let events = p.inbox.iter().take(EVENTS_PER_STEP_MAX).cloned().collect();
            tape.push(Frame::Step { now, events });
        }
        p.node.step(now, &mut p.inbox, &mut out);
        p.steps += 1;
        let check = p.steps.is_multiple_of(digest_every);
        let mut wrong = None;
        if let Some(given) = given
            && let Some(twin) = &mut p.twin
        {
            let (mut batch, mut other) = (given, Outbox::default());
            twin.step(now, &mut batch, &mut other);
            if other != out {
                wrong = Some(format!("n{}: the same events gave another outbox:\n {out:?}\n {other:?}", n + 1));
            } else if batch != p.inbox {
                wrong = Some(format!("n{}: the same events left another batch", n + 1));
            } else if check && twin.digest() != p.node.digest() {
                wrong = Some(format!("n{}: the same events gave another state", n + 1));
            }
        }
        if let Some(tape) = &mut p.tape {
            tape.push(Frame::Answer { outbox: outbox_digest(&out) });
            if check {
                tape.push(Frame::State { digest: p.node.digest() });
            }
        }
        if let Some(text) = wrong {
            self.fail("purity", text);
        }
        if check && self.fingerprint != 0 {
            let d = self.process(n).node.digest();
            self.fingerprint = (self.fingerprint ^ d as u64).wrapping_mul(0x100_0000_01b3);
        }
        self.dispatch(n, &mut out);
        if let Some(p) = self.hosts[n].process.as_mut() {
            p.out = out;
        }
    }

    // ---- outboxes -------------------------------------------------------------------------------------------------

    fn dispatch(&mut self, n: usize, out: &mut Outbox) {
        let epoch = self.hosts[n].epoch;
        // Releases first: a handle that this very outbox still needs must not be among them.
        for id in out.release.drain(..) {
            if self.process(n).pool.release(id).is_none() {
                self.fail("payload balance", format!("n{} released {id:?}, which it does not hold", n + 1));
            }
        }
        self.shuffle_io(&mut out.io);
        self.rngs.order.shuffle(&mut out.send);
        self.rngs.order.shuffle(&mut out.reply);
        for io in out.io.drain(..) {
            self.io(n, epoch, io);
        }
        for send in out.send.drain(..) {
            self.send(n, send);
        }
        for (token, reply) in out.reply.drain(..) {
            self.reply(n, token, reply);
        }
        for notice in out.notice.drain(..) {
            self.notice(n, notice);
        }
        let mut told = std::mem::take(&mut out.told);
        if !told.is_empty() {
            self.rngs.plane.shuffle(&mut told);
        }
        self.plane_step(n, told);
        let wake = out.wake;
        let again = out.again;
        if again {
            self.sometimes.saw("step ran out of budget");
        }
        let Some(p) = self.hosts[n].process.as_mut() else { return };
        p.wake = wake;
        p.again = again;
        if again && !p.step_queued {
            p.step_queued = true;
            self.queue.put(self.now.after(Span(20_000)), Ev::Step(n, epoch));
        }
        self.queue_wake(n);
    }

    fn queue_wake(&mut self, n: usize) {
        let epoch = self.hosts[n].epoch;
        let now = self.now;
        let p = self.process(n);
        let Some(wake) = p.wake else { return };
        let at = wake.at.max(now);
        if p.wake_queued.is_none_or(|q| q > at) {
            p.wake_queued = Some(at);
            self.queue.put(at, Ev::Wake(n, epoch));
        }
    }

    /// Everything may change places, but the log lane keeps its order.
    fn shuffle_io(&mut self, io: &mut Vec<Io>) {
        if io.len() < 2 {
            return;
        }
        let mut lane: std::collections::VecDeque<Io> = std::collections::VecDeque::new();
        let mut mixed: Vec<Option<Io>> = Vec::with_capacity(io.len());
        for one in io.drain(..) {
            if matches!(one, Io::Log { .. } | Io::LogSync { .. }) {
                lane.push_back(one);
                mixed.push(None);
            } else {
                mixed.push(Some(one));
            }
        }
        self.rngs.order.shuffle(&mut mixed);
        io.extend(mixed.into_iter().filter_map(|one| one.or_else(|| lane.pop_front())));
    }

    fn disk_time(&mut self, n: usize) -> Span {
        let slow = self.hosts[n].disk.slow.max(1);
        let most = self.speed.disk_ns;
        // Most are quick, few are slow.
        let part = self.rngs.disk.below(most + 1);
        let part = if self.rngs.disk.chance(800) { part / 10 } else { part };
        Span((part + 5_000) * slow)
    }

    fn token(&mut self, n: usize, token: IoToken) {
        if !self.process(n).tokens.insert(token) {
            self.fail("one completion", format!("n{} used {token} for two actions", n + 1));
        }
    }

    fn io(&mut self, n: usize, epoch: u32, io: Io) {
        match io {
            Io::Log { index, record } => {
                self.tell(|| format!("n{} log {index}: {}", n + 1, crate::show::record(&record)));
                let Host { disk, process, replica, promised, .. } = &mut self.hosts[n];
                let Some(p) = process else { return };
                let life = p.node.view().member(*replica).map(|m| m.life);
                if let LogRecord::Op { op, .. } = &record
                    && Some(op.origin) == life
                    && op.time <= *promised
                {
                    let text = format!("n{} issues {op:?}, but promised to issue nothing before {promised:?}", n + 1);
                    return self.fail("promise of time", text);
                }
                if let Err(text) = disk.append(index, record, &p.pool, (self.now, p.log_busy)) {
                    self.fail("log lane", format!("n{}: {text}", n + 1));
                }
            }
            Io::LogSync { token } => {
                self.token(n, token);
                let mark = self.hosts[n].disk.mark();
                let time = self.disk_time(n);
                let now = self.now;
                let p = self.process(n);
                let at = p.log_busy.max(now).after(time);
                p.log_busy = at;
                self.queue.put(at, Ev::LogSync(n, epoch, token, mark));
            }
            Io::Unstage { inode, version } => {
                let disk = &mut self.hosts[n].disk;
                if let Some(s) = disk.staged.remove(&(inode, version)).filter(|s| s.durable) {
                    disk.unstaged.push(((inode, version), s));
                }
            }
            Io::Rescan { .. } => self.scan_soon(n),
            Io::Store { token, .. } | Io::Apply { token, .. } | Io::Fetch { token, .. } | Io::Stage { token, .. } => {
                self.token(n, token);
                let mut time = self.disk_time(n);
                if let Io::Fetch { from, size, .. } = &io {
                    let other = self.hosts.iter().position(|h| h.replica == *from);
                    if let Some(o) = other.filter(|o| *o != n) {
                        let (there, back) = (self.net.road(n, o), self.net.road(o, n));
                        let pipe = size.saturating_mul(1_000_000_000) / back.rate.max(1);
                        time = Span(time.0 + there.delay.0 + back.delay.0 + pipe);
                    }
                }
                let p = self.process(n);
                p.last_action += 1;
                let slot = p.last_action;
                let slow = matches!(io, Io::Fetch { .. }) && time > FETCH_MAX;
                p.pending.insert(slot, io);
                if slow {
                    self.queue.put(self.now.after(FETCH_MAX), Ev::GiveUpFetch(n, epoch, slot));
                } else {
                    self.queue.put(self.now.after(time), Ev::Action(n, epoch, slot));
                }
            }
        }
    }

    fn send(&mut self, n: usize, send: Send) {
        match send {
            Send::Message { link, mut message } => {
                let Some((l, side)) = self.net.find(link) else {
                    return self.fail("network", format!("n{} sends on {link}, which never was", n + 1));
                };
                let end = self.net.links[l].ends[side];
                if end.node != n || end.epoch != self.hosts[n].epoch {
                    return self.fail("network", format!("n{} sends on {link}, which is not its own", n + 1));
                }
                let mut contents = Vec::new();
                let mut lost = None;
                let pool = &self.process(n).pool;
                payloads(&mut message, |p| match pool.get(p.id) {
                    Some(c) => contents.push(c),
                    None => lost = Some(p.id),
                });
                if let Some(id) = lost {
                    return self.fail("payload balance", format!("n{} sends {id:?}, which it has released", n + 1));
                }
                if !end.open {
                    return;
                }
                let held = match &message {
                    Message::Held(held) => Some(held),
                    Message::Beat(beat) => Some(&beat.held),
                    _ => None,
                };
                if let Some(held) = held {
                    self.hosts[n].promised = self.hosts[n].promised.max(held.clock);
                }
                match &message {
                    Message::State { records, .. } if !records.is_empty() => self.sometimes.saw("state transfer used"),
                    Message::Want { .. } => self.sometimes.saw("operations asked for again"),
                    Message::Control(m) => {
                        if let ice_core::control::Message::Raft(m) = &**m
                            && matches!(m.body, ice_core::raft::Body::Snapshot { .. })
                        {
                            self.sometimes.saw("snapshot of the store transferred");
                        }
                    }
                    _ => {}
                }
                let to = self.net.links[l].ends[1 - side].node;
                let bytes = 200 + contents.iter().map(|c| c.size).sum::<u64>();
                let fate = self.net.travel(self.now, l, side, bytes);
                self.tell(|| {
                    let lost = if fate == Fate::Lost { "   (lost)" } else { "" };
                    format!("n{} -> n{} {}{lost}", n + 1, to + 1, crate::show::message(&message))
                });
                match fate {
                    Fate::Lost => {
                        self.sometimes.saw("message lost");
                        self.may_break(l);
                    }
                    Fate::Once(at) => {
                        self.queue.put(at, Ev::Deliver(l, 1 - side, Box::new(Flight { message, contents })));
                    }
                    Fate::Twice(at, again) => {
                        self.sometimes.saw("message repeated");
                        let flight = Flight { message, contents };
                        self.queue.put(at, Ev::Deliver(l, 1 - side, Box::new(flight.clone())));
                        self.queue.put(again, Ev::Deliver(l, 1 - side, Box::new(flight)));
                    }
                }
            }
            Send::Dial { url } => {
                self.tell(|| format!("n{} dials {url}", n + 1));
                let epoch = self.hosts[n].epoch;
                let time = match self.by_url(&url) {
                    Some(m) if m == n || self.answers(n, m) => {
                        Span(2 * self.net.road(n, m).delay.0 + self.rngs.host.below(1_000_000))
                    }
                    // Refused at once, or a time-out.
                    Some(m) if self.net.reachable(n, m) => Span::ms(self.rngs.host.range(1, 20)),
                    _ => Span::ms(self.rngs.host.range(500, 3000)),
                };
                self.queue.put(self.now.after(time), Ev::Dialled(n, epoch, url));
            }
            Send::Hangup { link, why } => {
                self.tell(|| format!("n{} hangs up {link}: {why}", n + 1));
                if let Some((l, side)) = self.net.find(link) {
                    self.queue.put(self.now, Ev::Down(l, side, "we hung up"));
                    self.part(l, 1 - side, "hung up");
                }
            }
        }
    }

    /// An end learns after a while that the other is gone, if word of it gets through.
    fn part(&mut self, link: usize, side: usize, why: &'static str) {
        let (to, from) = (self.net.links[link].ends[side].node, self.net.links[link].ends[1 - side].node);
        let road = self.net.road(from, to);
        let time = if road.blocked { Span::s(20) } else { Span(road.delay.0 + self.rngs.host.below(2_000_000)) };
        self.queue.put(self.now.after(time), Ev::Down(link, side, why));
    }

    /// A transport that cannot get through gives up in the end.
    fn may_break(&mut self, link: usize) {
        let l = &self.net.links[link];
        let (a, b) = (l.ends[0].node, l.ends[1].node);
        if l.breaking || self.net.reachable(a, b) {
            return;
        }
        self.net.links[link].breaking = true;
        for side in 0..2 {
            let time = Span::ms(self.rngs.host.range(2_000, 20_000));
            self.queue.put(self.now.after(time), Ev::Down(link, side, "time-out"));
        }
    }

    pub(crate) fn by_url(&self, url: &str) -> Option<usize> {
        let host = url.strip_prefix("http://")?.split(':').next()?;
        let host = host.strip_prefix("alias-").unwrap_or(host);
        self.hosts.iter().position(|h| h.name == host)
    }

    fn answers(&self, n: usize, m: usize) -> bool {
        self.hosts[m].is_up() && self.net.reachable(n, m)
    }

    fn dialled(&mut self, n: usize, url: String) {
        let target = self.by_url(&url).filter(|m| *m == n || self.answers(n, *m));
        let Some(m) = target else {
            let why = "no answer".to_owned();
            return self.hand(n, Event::Link(LinkEvent::DialFailed { url, why }));
        };
        let link = self.net.connect((n, self.hosts[n].epoch), (m, self.hosts[m].epoch));
        for side in 0..2 {
            self.net.links[link].ends[side].open = true;
        }
        self.hand(n, Event::Link(LinkEvent::Up { link: Net::id(link, 0), dialled: Some(url) }));
        self.hand(m, Event::Link(LinkEvent::Up { link: Net::id(link, 1), dialled: None }));
    }

    fn deliver(&mut self, n: usize, link: usize, side: usize, flight: Flight) {
        let end = self.net.links[link].ends[side];
        if !end.open || self.process(n).inbox.len() > INBOX_MAX {
            return;
        }
        let Flight { mut message, contents } = flight;
        let mut contents = contents.into_iter();
        let pool = &mut self.process(n).pool;
        payloads(&mut message, |p| {
            if let Some(c) = contents.next() {
                *p = pool.give(c);
            }
        });
        let event = Event::Peer { link: Net::id(link, side), message };
        if self.hosts[n].power == Power::Paused {
            self.process(n).inbox.push_back(event);
        } else {
            self.hand(n, event);
        }
    }

    fn reply(&mut self, n: usize, token: OpToken, reply: Reply) {
        let Some(ask) = self.process(n).asks.remove(&token) else {
            return self.fail("one reply", format!("n{} answers {token}, which nobody waits for: {reply:?}", n + 1));
        };
        if self.now > ask.due {
            self.fail(
                "every operation ends",
                format!("n{} answered {token} {:?} late", n + 1, self.now.since(ask.due)),
            );
        }
        if self.plane_answer(n, token, &reply) {
            return;
        }
        if ask.ack.is_some() {
            self.tell(|| format!("n{} fsync: {reply:?}", n + 1));
            match reply {
                Reply::Synced { copies } => {
                    self.sometimes.saw("fsync acknowledged");
                    self.hosts[n].last_sync = LastSync::Ok(copies);
                    // A disk that is lost says nothing about what was promised to be on one disk.
                    if let Some(lost) = self.hosts[n].blackout.take_if(|lost| !*lost || copies > 1) {
                        self.dark = Some((n, lost));
                    }
                    for v in ask.versions {
                        self.ledger.acknowledged(v, copies);
                    }
                }
                Reply::Failed(_) => {
                    self.sometimes.saw("fsync refused");
                    self.hosts[n].last_sync = LastSync::Refused;
                }
                other => self.fail("one reply", format!("n{} answered fsync with {other:?}", n + 1)),
            }
        } else {
            self.answers.insert((n, token), reply);
        }
    }

    fn overdue(&mut self, n: usize) {
        let now = self.now;
        let late = self.process(n).asks.iter().find(|(_, a)| a.due < now).map(|(t, a)| format!("{t} {a:?}"));
        if let Some(text) = late {
            self.fail("every operation ends", format!("n{} has not answered {text}", n + 1));
        }
    }

    fn notice(&mut self, n: usize, notice: Notice) {
        self.tell(|| format!("n{} notices: {}", n + 1, crate::show::notice(&notice)));
        match notice {
            Notice::PeerDown { member, .. } => {
                self.doubts(n, member.replica, true);
                self.sometimes.saw("member declared down");
            }
            Notice::PeerRecover(member) => {
                self.doubts(n, member.replica, false);
                self.sometimes.saw("member recovered");
            }
            Notice::Conflict { .. } => self.sometimes.saw("conflict copy made"),
            _ => {}
        }
    }

    // ---- power ----------------------------------------------------------------------------------------------------

    /// The node's process starts.
    pub fn start(&mut self, n: usize) {
        if self.hosts[n].power != Power::Down {
            return;
        }
        let bug = self.setup.bug;
        let seed = Seed(self.rngs.host.u64());
        let (twins, tapes) = (self.twins, self.tapes);
        let (retained, checkpoint) = (self.retained, self.checkpoint);
        let pages = self.setup.pages.unwrap_or(Config::new(ReplicaId(0), "").checkpoint_pages);
        let control = self.setup.control.then(|| self.limits.config(self.hosts[n].founds));
        let host = &mut self.hosts[n];
        host.incarnation = Incarnation(host.incarnation.0 + 1);
        host.epoch += 1;
        let mut config = Config::new(host.replica, &host.name);
        config.incarnation = host.incarnation;
        config.urls = vec![host.url.clone()];
        config.join.clone_from(&host.join);
        config.retained_ops = retained;
        config.checkpoint_after = checkpoint;
        config.checkpoint_pages = pages;
        config.bug = bug;
        config.control = control;
        let mut pool = crate::content::Pool::default();
        let disk = host.disk.recover(host.ending, &mut pool);
        let node = Node::recover(config.clone(), seed, disk.clone());
        let twin = twins.then(|| Node::recover(config.clone(), seed, disk.clone()));
        let tape = tapes.then(|| {
            let start = Start {
                format: FORMAT,
                software: env!("CARGO_PKG_VERSION").into(),
                config: config.clone(),
                seed,
                disk: disk.clone(),
                digest: node.digest(),
            };
            vec![Frame::Start(Box::new(start))]
        });
        host.process = Some(Box::new(Process {
            node,
            twin,
            tape,
            inbox: Batch::new(),
            out: Outbox::default(),
            wake: None,
            wake_queued: None,
            step_queued: false,
            again: false,
            pool,
            pending: BTreeMap::new(),
            last_action: 0,
            tokens: BTreeSet::new(),
            asks: BTreeMap::new(),
            last_ask: 0,
            log_busy: self.now,
            writers: BTreeMap::new(),
            opened: BTreeMap::new(),
            looks: BTreeSet::new(),
            stopping: false,
            scan_queued: false,
            steps: 0,
            steps_now: (self.now, 0),
        }));
        host.power = Power::Up;
        // What a new replica finds is taken in.
        host.recovering = host.incarnation.0 > 1 || !host.fs.list(crate::fs::ROOT).is_empty();
        host.scars = (host.ending == Ending::MachineCrash).then_some(u64::MAX);
        host.fs.clear_scratch();
        let epoch = host.epoch;
        self.tell(|| format!("n{} starts", n + 1));
        self.queue.put(self.now.after(Span::s(1)), Ev::Wall(n, epoch));
        let unix_ns = self.hosts[n].wall(self.now);
        self.process(n).inbox.push_back(Event::Wall { unix_ns });
        self.drive(n);
        if !self.hosts[n].recovering {
            return;
        }
        let late = match self.setup.scan {
            Some(span) => span,
            None if self.scan_late.0 > 0 && self.rngs.late.chance(500) => Span(self.rngs.late.below(self.scan_late.0)),
            None => Span(0),
        };
        if late.0 == 0 {
            return self.scan(n);
        }
        self.process(n).scan_queued = true;
        self.queue.put(self.now.after(late), Ev::Scan(n, epoch));
    }

    /// The node is asked to stop.
    pub fn ask_to_stop(&mut self, n: usize) {
        if !self.hosts[n].is_up() {
            return;
        }
        self.process(n).stopping = true;
        self.hand(n, Event::Admin(Admin::Stop));
        let epoch = self.hosts[n].epoch;
        self.queue.put(self.now.after(Span::ms(200)), Ev::Finish(n, epoch));
    }

    /// The node's process ends.
    pub fn stop(&mut self, n: usize, ending: Ending) {
        if ending == Ending::ProcessCrash {
            self.finish_unheard(n);
        }
        let Some(process) = self.hosts[n].process.take() else { return };
        self.plane_ended(n);
        self.tell(|| format!("n{} ends: {ending:?}", n + 1));
        if let Some(tape) = process.tape {
            let name = format!("{}-{}", self.hosts[n].name, self.hosts[n].incarnation.0);
            self.recorded.push((name, tape));
        }
        let host = &mut self.hosts[n];
        host.power = Power::Down;
        // A stop before the scan changes nothing.
        if ending == Ending::Clean && host.scars != Some(u64::MAX) {
            host.scars = None;
        }
        // Nor does it make an edit of what was not compared.
        let unseen = ending == Ending::Clean && host.recovering && host.ending == Ending::ProcessCrash;
        host.ending = match ending {
            _ if host.scars.is_some() => Ending::MachineCrash,
            _ if unseen => Ending::ProcessCrash,
            _ => ending,
        };
        host.stop_at = None;
        host.recovering = false;
        if host.last_sync == LastSync::Waiting {
            host.last_sync = LastSync::Refused;
        }
        let lost = host.disk.crash(ending, self.now, &mut self.rngs.crash);
        if lost > 0 {
            self.sometimes.saw("crash lost log records");
        }
        match ending {
            Ending::Clean => {
                host.fs.sync();
                host.disk.unstaged.clear();
            }
            Ending::ProcessCrash => {}
            Ending::MachineCrash => {
                if host.fs.machine_crash(&mut self.rngs.crash) > 0 {
                    self.sometimes.saw("crash lost changes in backing");
                }
                let held = self.held();
                self.ledger.crashed(n, &held);
                if let Some(r) = self.reference.as_mut().filter(|r| r.writer == Some(n)) {
                    r.crashed();
                }
            }
        }
        let epoch = self.hosts[n].epoch;
        for l in 0..self.net.links.len() {
            for side in 0..2 {
                let (end, other) = (self.net.links[l].ends[side], self.net.links[l].ends[1 - side]);
                if end.node == n && end.epoch == epoch {
                    self.net.links[l].ends[side].open = false;
                    if other.open && ending == Ending::MachineCrash {
                        // Nobody says goodbye: the other side finds out by itself.
                        let time = Span::ms(self.rngs.host.range(5_000, 30_000));
                        self.queue.put(self.now.after(time), Ev::Down(l, 1 - side, "time-out"));
                    } else if other.open {
                        self.part(l, 1 - side, "connection reset");
                    }
                }
            }
        }
    }

    /// Contents that are on some disk now, durable or in a log.
    pub(crate) fn held(&self) -> BTreeSet<u32> {
        let mut held = BTreeSet::new();
        for h in &self.hosts {
            held.extend(h.fs.inodes().map(|(_, i)| i.content.token));
            held.extend(h.disk.logged().map(|c| c.token));
        }
        held
    }

    /// A node compares its disk with its tree in a while.
    pub(crate) fn scan_soon(&mut self, n: usize) {
        let epoch = self.hosts[n].epoch;
        let time = Span::ms(self.rngs.host.range(5, 300));
        if let Some(p) = self.hosts[n].process.as_mut()
            && !std::mem::replace(&mut p.scan_queued, true)
        {
            self.queue.put(self.now.after(time), Ev::Scan(n, epoch));
        }
    }
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

/// Every payload in a message, in order.
pub(crate) fn payloads(message: &mut Message, mut f: impl FnMut(&mut Payload)) {
    if let Message::Ops { ops, .. } = message {
        for op in ops {
            if let Some(p) = &mut op.payload {
                f(p);
            }
        }
    }
}
