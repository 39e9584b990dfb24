//! The node's state machine behind one mutex: any thread hands in events and has the resulting actions dispatched.

use crate::payload::PayloadPool;
use crate::tape::Recorder;
use futures::channel::oneshot;
use ice_core::action::{Io, Notice, Outbox, Refused, Reply, Send as NetSend, Sighting};
use ice_core::config::{Config, Recovered};
use ice_core::control::{self, Answer, Ask};
use ice_core::event::{Ack, Admin, Batch, Change, Event, Found, IoResult, LinkEvent, Request};
use ice_core::ids::{InodeId, IoToken, LinkId, OpToken};
use ice_core::kv::watch;
use ice_core::limits::EVENTS_PER_STEP_MAX;
use ice_core::message::Message;
use ice_core::node::{Loading, Node, View};
use ice_core::rng::Seed;
use ice_core::time::{Deadline, Instant, Span};
use ice_core::trace::{FORMAT, Frame, Key, Start, outbox_digest};
use ice_core::tree::Tree;
use ice_core::wire;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Carries out what the core wants. Every method is called with the node's lock held and in the outbox's order: it must
/// only enqueue, and never call back into the engine.
pub trait Actions: Send + Sync {
    /// For the network.
    fn send(&self, send: NetSend);
    /// For the disk.
    fn io(&self, io: Io);
    /// For hooks and logs.
    fn notice(&self, notice: Notice);
    /// For watchers of the control plane's store, in each stream's order.
    fn told(&self, messages: Vec<watch::Message>) {
        drop(messages);
    }
    /// Waits until the operating system has all log records emitted so far. Unlike the other methods called without the node's
    /// lock, by threads that may wait.
    fn logged(&self) {}
}

/// How the disk of the log keeps up with the changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pressure {
    /// It does.
    None,
    /// More waits for it in memory than should: local changes are slowed down.
    Over,
    /// Much more: local changes are refused before they are made.
    Full,
}

/// A state digest is recorded after this many steps.
const DIGEST_EVERY_STEPS: u64 = 256;
/// How often and how long a change waits for the log's disk.
const PAUSES_MAX: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);
/// The driver looks at the clock at least so often: the wall clock may have been set.
const DRIVER_IDLE: Span = Span::ms(500);
/// Steps that one caller drives before the driver thread takes over.
const STEPS_PER_CALL: usize = 4;

struct Inner {
    node: Node,
    /// What happened and no step has taken yet.
    events: Batch,
    /// What the next step is given.
    batch: Batch,
    out: Outbox,
    wake: Option<Deadline>,
    again: bool,
    waiting: HashMap<OpToken, Waiter>,
    tape: Option<Recorder>,
    steps: u64,
    wall_ns: u64,
    last: Instant,
    /// Until when the driver thread sleeps.
    driver_until: Instant,
}

/// Who waits for a reply.
enum Waiter {
    Thread(SyncSender<Reply>),
    Task(oneshot::Sender<Answer>),
}

impl Waiter {
    /// Whoever went away is not told.
    fn tell(self, reply: Reply) {
        match self {
            Waiter::Thread(to) => drop(to.try_send(reply)),
            Waiter::Task(to) => {
                let answer = match reply {
                    Reply::Control(answer) => *answer,
                    Reply::Failed(Refused::Stopping) => Answer::Refused(control::Refused::Stopping),
                    _ => Answer::Refused(control::Refused::Interrupted),
                };
                drop(to.send(answer));
            }
        }
    }
}

/// Gives a request up when whoever waits for it goes away.
struct GivesUp<'a> {
    engine: &'a Engine,
    token: Option<OpToken>,
}

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.engine.lock().waiting.remove(&token);
            self.engine.event(Event::Cancel { token });
        }
    }
}

/// See the module.
pub struct Engine {
    inner: Mutex<Inner>,
    poke: Condvar,
    actions: OnceLock<Arc<dyn Actions>>,
    /// How the disk of the log keeps up.
    pressure: OnceLock<Box<dyn Fn() -> Pressure + Send + Sync>>,
    scanned: OnceLock<Box<dyn Fn() + Send + Sync>>,
    payloads: Arc<PayloadPool>,
    origin: std::time::Instant,
    tokens: AtomicU64,
    stopping: AtomicBool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// All of a node's state, as a frame.
fn key(node: &Node) -> Frame {
    let key = Key { format: FORMAT, software: crate::VERSION.to_owned(), node: node.keyframe(), digest: node.digest() };
    Frame::Key(Box::new(key))
}

fn wall_ns() -> u64 {
    // A clock before 1970 counts as 1970: the hybrid clock then only counts.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().min(u128::from(u64::MAX)) as u64)
}

impl Engine {
    /// Recovers the node. Nothing happens before [`Engine::start`].
    pub fn new(
        config: Config,
        seed: Seed,
        disk: Recovered,
        payloads: Arc<PayloadPool>,
        tape: Option<Recorder>,
    ) -> Engine {
        Engine::loaded(config, seed, disk, Loading::default(), payloads, tape)
    }

    /// The same, with what was loaded already of the checkpoint. A recording into a file can only be replayed if that is nothing
    /// and `disk` holds all pages.
    pub fn loaded(
        config: Config,
        seed: Seed,
        disk: Recovered,
        loading: Loading,
        payloads: Arc<PayloadPool>,
        mut tape: Option<Recorder>,
    ) -> Engine {
        let copy = tape.as_ref().is_some_and(Recorder::wants_start).then(|| (config.clone(), disk.clone()));
        let node = Node::recover_loaded(config, seed, disk, loading);
        if let (Some(t), Some((config, disk))) = (tape.as_mut(), copy) {
            let start = Start {
                format: FORMAT,
                software: crate::VERSION.to_owned(),
                config,
                seed,
                disk,
                digest: node.digest(),
            };
            t.push_file(&wire::encode(&Frame::Start(Box::new(start))));
        }
        Engine {
            inner: Mutex::new(Inner {
                node,
                events: Batch::new(),
                batch: Batch::new(),
                out: Outbox::default(),
                wake: None,
                again: true,
                waiting: HashMap::new(),
                tape,
                steps: 0,
                wall_ns: 0,
                last: Instant(0),
                driver_until: Instant(0),
            }),
            poke: Condvar::new(),
            actions: OnceLock::new(),
            pressure: OnceLock::new(),
            scanned: OnceLock::new(),
            payloads,
            origin: std::time::Instant::now(),
            tokens: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        }
    }

    /// Connects the outside and starts the driver thread, which steps the node when time or unfinished work ask for it.
    pub fn start(self: &Arc<Self>, actions: Arc<dyn Actions>) -> std::io::Result<std::thread::JoinHandle<()>> {
        if self.actions.set(actions).is_err() {
            return Err(std::io::Error::other("the engine was started twice"));
        }
        let me = Arc::clone(self);
        std::thread::Builder::new().name("ice-core".into()).spawn(move || me.drive())
    }

    /// Local changes are slowed down, and refused by [`Engine::room`], as `pressure` says. Set it before the start.
    pub fn feel_pressure(&self, pressure: Box<dyn Fn() -> Pressure + Send + Sync>) {
        if self.pressure.set(pressure).is_err() {
            tracing::error!("feel_pressure was called twice; the first call counts");
        }
    }

    /// True if one more change may be made. Waits for a bounded time for the log's disk to catch up: to be asked without locks,
    /// before a change is made.
    pub fn room(&self) -> bool {
        self.pauses(Pressure::Over);
        self.pauses(Pressure::Full)
    }

    /// Waits while the pressure is as high as this, for a bounded time. `false`: it still is.
    fn pauses(&self, high: Pressure) -> bool {
        for _ in 0..PAUSES_MAX {
            if self.pressure.get().is_none_or(|p| p() < high) || self.stopping.load(Ordering::SeqCst) {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    /// Ends the driver thread, and the tape. Requests still waiting are answered with `Stopping`.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut inner = self.lock();
        for (_, waiter) in inner.waiting.drain() {
            waiter.tell(Reply::Failed(Refused::Stopping));
        }
        // Others may still hold the engine when the process ends: what the recording held back is written now.
        inner.tape = None;
        drop(inner);
        self.poke.notify_all();
    }

    /// The pool that holds the bytes behind payload handles.
    pub fn payloads(&self) -> &Arc<PayloadPool> {
        &self.payloads
    }

    /// Hands in one event.
    pub fn event(&self, event: Event) {
        self.events([event]);
    }

    /// Hands in events, in this order.
    pub fn events(&self, events: impl IntoIterator<Item = Event>) {
        let mut inner = self.lock();
        inner.events.extend(events);
        self.run(&mut inner, STEPS_PER_CALL);
    }

    /// A disk action ended.
    pub fn complete(&self, token: IoToken, result: IoResult) {
        self.event(Event::Io { token, result });
    }

    /// A message arrived.
    pub fn message(&self, link: LinkId, message: Message) {
        self.event(Event::Peer { link, message });
    }

    /// A connection came or went.
    pub fn link(&self, event: LinkEvent) {
        self.event(Event::Link(event));
    }

    /// The operator wants something.
    pub fn admin(&self, admin: Admin) {
        self.event(Event::Admin(admin));
    }

    /// Changes that were just made in `backing`. The caller holds the namespace lock. One result per change.
    pub fn change(&self, changes: Vec<Change>) -> Result<Vec<Result<InodeId, Refused>>, Refused> {
        match self.request(Request::Change(changes), Duration::from_secs(10)) {
            Reply::Changed(results) => Ok(results),
            Reply::Failed(why) => Err(why),
            Reply::Synced { .. } | Reply::Done | Reply::Found(_) | Reply::Control(_) => Err(Refused::Unknown),
        }
    }

    /// Shows the core what a scan found, before anything of it is reported as a change. The caller holds the volume's namespace
    /// lock.
    pub fn found(&self, found: Vec<Found>) -> Result<Vec<Result<Sighting, Refused>>, Refused> {
        match self.request(Request::Found(found), Duration::from_secs(10)) {
            Reply::Found(results) => Ok(results),
            Reply::Failed(why) => Err(why),
            Reply::Changed(_) | Reply::Synced { .. } | Reply::Done | Reply::Control(_) => Err(Refused::Unknown),
        }
    }

    /// Waits until the operating system has all log records emitted so far (see [`ice_core::action::Io::Apply`]).
    pub fn logged(&self) {
        // The outbox of a step that is under way is complete when its lock is free.
        drop(self.lock());
        if let Some(actions) = self.actions.get() {
            actions.logged();
        }
    }

    /// Told once, when everything was compared after a start.
    pub fn on_scanned(&self, told: Box<dyn Fn() + Send + Sync>) {
        if self.scanned.set(told).is_err() {
            tracing::error!("on_scanned was called twice; the first call counts");
        }
    }

    /// Everything was compared with `backing` after a start.
    pub fn scanned(&self) {
        self.admin(Admin::Scanned);
        if let Some(told) = self.scanned.get() {
            told();
        }
    }

    /// Waits until everything issued so far is durable as `ack` asks, `timeout` at most.
    pub fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused> {
        self.sync_begin(ack, timeout)()
    }

    /// Has the log synced and the members asked, and returns at once. The result waits for what [`Engine::sync`] waits for.
    pub fn sync_begin(&self, ack: Ack, timeout: Duration) -> Box<dyn FnOnce() -> Result<u32, Refused> + '_> {
        let span = Span(timeout.as_nanos().min(u128::from(u64::MAX)) as u64);
        let asked = self.ask(Request::Sync { ack, timeout: span });
        Box::new(move || match self.answer(asked, timeout + Duration::from_secs(5)) {
            Reply::Synced { copies } => Ok(copies),
            Reply::Failed(why) => Err(why),
            Reply::Changed(_) | Reply::Done | Reply::Found(_) | Reply::Control(_) => Err(Refused::Unknown),
        })
    }

    /// Nobody writes this inode any more.
    pub fn released(&self, inode: InodeId) {
        self.request(Request::Released { inode }, Duration::from_secs(10));
    }

    /// Asks the control plane. Answered after `timeout` at the latest; dropping the future gives the request up.
    pub async fn control(&self, ask: Ask, timeout: Duration) -> Answer {
        if self.stopping.load(Ordering::SeqCst) {
            return Answer::Refused(control::Refused::Stopping);
        }
        let token = OpToken(self.tokens.fetch_add(1, Ordering::Relaxed));
        let timeout = Span(timeout.as_nanos().min(u128::from(u64::MAX)) as u64);
        let (tx, rx) = oneshot::channel();
        {
            let mut inner = self.lock();
            inner.waiting.insert(token, Waiter::Task(tx));
            inner.events.push_back(Event::Op { token, op: Request::Control { ask: Box::new(ask), timeout } });
            self.run(&mut inner, STEPS_PER_CALL);
        }
        let mut gives_up = GivesUp { engine: self, token: Some(token) };
        let answer = rx.await;
        gives_up.token = None;
        answer.unwrap_or(Answer::Refused(control::Refused::Stopping))
    }

    /// [`Engine::control`] for what the core answers at once, by a thread that may wait for a moment.
    pub fn control_now(&self, ask: Ask, timeout: Duration) -> Answer {
        let span = Span(timeout.as_nanos().min(u128::from(u64::MAX)) as u64);
        match self.request(Request::Control { ask: Box::new(ask), timeout: span }, timeout + Duration::from_secs(1)) {
            Reply::Control(answer) => *answer,
            Reply::Failed(Refused::Stopping) => Answer::Refused(control::Refused::Stopping),
            _ => Answer::Refused(control::Refused::Timeout),
        }
    }

    /// The core's clock.
    pub fn clock(&self) -> Instant {
        self.now()
    }

    /// Reads the namespace. Keep it short: it holds the node's lock.
    pub fn tree<R>(&self, f: impl FnOnce(&Tree) -> R) -> R {
        f(self.lock().node.view().tree())
    }

    /// Reads anything. Keep it short: it holds the node's lock.
    pub fn view<R>(&self, f: impl FnOnce(View<'_>) -> R) -> R {
        f(self.lock().node.view())
    }

    fn request(&self, op: Request, limit: Duration) -> Reply {
        self.answer(self.ask(op), limit)
    }

    /// Hands a request in. `None`: the node stops.
    fn ask(&self, op: Request) -> Option<(OpToken, Receiver<Reply>)> {
        if self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let token = OpToken(self.tokens.fetch_add(1, Ordering::Relaxed));
        let (tx, rx) = sync_channel(1);
        let mut inner = self.lock();
        inner.waiting.insert(token, Waiter::Thread(tx));
        inner.events.push_back(Event::Op { token, op });
        self.run(&mut inner, STEPS_PER_CALL);
        Some((token, rx))
    }

    fn answer(&self, asked: Option<(OpToken, Receiver<Reply>)>, limit: Duration) -> Reply {
        let Some((token, rx)) = asked else { return Reply::Failed(Refused::Stopping) };
        match rx.recv_timeout(limit) {
            Ok(reply) => reply,
            Err(_) => {
                // The core answers every request by its give-up time; this is the belt to its braces.
                self.lock().waiting.remove(&token);
                self.event(Event::Cancel { token });
                Reply::Failed(Refused::NotAcknowledged)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under this lock means that the state machine's own assertion failed: nothing after it can be trusted.
        self.inner.lock().unwrap_or_else(|_| std::process::abort())
    }

    fn now(&self) -> Instant {
        Instant(self.origin.elapsed().as_nanos().min(u128::from(u64::MAX)) as u64)
    }

    /// Steps until the batch is empty or `most` steps were made; what is left is the driver's.
    fn run(&self, inner: &mut Inner, most: usize) {
        let Some(actions) = self.actions.get() else { return };
        let mut steps = 0;
        while (!inner.events.is_empty() || inner.again) && steps < most {
            steps += 1;
            self.step(inner, actions.as_ref());
        }
        if inner.again || !inner.events.is_empty() {
            self.poke.notify_one();
        }
    }

    fn step(&self, inner: &mut Inner, actions: &dyn Actions) {
        let now = self.now().max(inner.last);
        inner.last = now;
        let wall = wall_ns();
        let Inner { node, events, batch, out, tape, .. } = inner;
        if !events.is_empty() || wall.abs_diff(inner.wall_ns) > 500_000_000 {
            inner.wall_ns = wall;
            batch.push_back(Event::Wall { unix_ns: wall });
        }
        // No more than one step takes, so that a frame is written before its step and says exactly what was in it.
        let room = (EVENTS_PER_STEP_MAX - batch.len()).min(events.len());
        batch.extend(events.drain(..room));
        if let Some(tape) = tape {
            let frame = Frame::Step { now, events: std::mem::take(batch) };
            let bytes = wire::encode(&frame);
            let Frame::Step { events, .. } = frame else { unreachable!("it was made above") };
            *batch = events;
            if tape.wants_key(bytes.len()) {
                tape.turn(tape.admits_key(node.keyframe_estimate()).then(|| key(node)).as_ref());
            }
            tape.push(&bytes);
        }
        node.step(now, batch, out);
        debug_assert!(batch.is_empty(), "a step takes what it is given");
        if let Some(tape) = tape {
            tape.push(&wire::encode(&Frame::Answer { outbox: outbox_digest(out) }));
            inner.steps += 1;
            if inner.steps.is_multiple_of(DIGEST_EVERY_STEPS) {
                tape.push(&wire::encode(&Frame::State { digest: node.digest() }));
            }
        }
        inner.wake = inner.out.wake;
        inner.again = inner.out.again || !inner.events.is_empty();
        self.poke_if_earlier(inner);
        let out = &mut inner.out;
        for io in out.io.drain(..) {
            actions.io(io);
        }
        for send in out.send.drain(..) {
            actions.send(send);
        }
        for notice in out.notice.drain(..) {
            actions.notice(notice);
        }
        if !out.told.is_empty() {
            actions.told(std::mem::take(&mut out.told));
        }
        for id in out.release.drain(..) {
            self.payloads.release(id);
        }
        for (token, reply) in out.reply.drain(..) {
            if let Some(waiter) = inner.waiting.remove(&token) {
                waiter.tell(reply);
            }
        }
    }

    /// Waking the driver costs a context switch: only when it would oversleep.
    fn poke_if_earlier(&self, inner: &Inner) {
        if inner.wake.is_some_and(|w| w.at < inner.driver_until) {
            self.poke.notify_one();
        }
    }

    fn drive(&self) {
        let mut inner = self.lock();
        while !self.stopping.load(Ordering::SeqCst) {
            if inner.again || !inner.events.is_empty() || inner.wake.is_some_and(|w| w.at <= self.now()) {
                if let Some(actions) = self.actions.get() {
                    self.step(&mut inner, actions.as_ref());
                }
                // Let the threads of the adapters in between.
                drop(inner);
                inner = self.lock();
                continue;
            }
            // Exactly the deadline: a step that finds the same one again must not wake the driver for it.
            let now = self.now();
            let until = inner.wake.map_or(now.after(DRIVER_IDLE), |w| w.at.min(now.after(DRIVER_IDLE)));
            let wait = Duration::from_nanos(until.since(now).0);
            inner.driver_until = until;
            inner = match self.poke.wait_timeout(inner, wait) {
                Ok((guard, _)) => guard,
                Err(_) => std::process::abort(),
            };
            inner.driver_until = Instant(0);
            if inner.wall_ns.abs_diff(wall_ns()) > 1_000_000_000 {
                inner.again = true;
            }
        }
    }
}
