//! Users of the control plane: they ask nodes for things, and what they were told is kept for the judges.

mod judge;
pub mod linear;
pub mod op;
mod watch;

pub use judge::{at_end, unsettled};
pub use op::{PlaneOp, Request as PlaneRequest};

use crate::host::{Ask as Waits, Power};
use crate::world::World;
use ice_core::action::Reply;
use ice_core::control::{Answer, Ask, Refused, Watching};
use ice_core::event::{Event, Request};
use ice_core::ids::{OpToken, ReplicaId};
use ice_core::kv::command::{Action, By, Command, Delete, Put};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::named::Acquire;
use ice_core::kv::lock::{LockAction, LockAnswer};
use ice_core::kv::txn::{Compare, Is, Op, Target, Txn};
use ice_core::kv::watch::{StreamId, WatchSpec};
use ice_core::kv::{self, Store};
use ice_core::time::{Instant, Span};
use std::collections::{BTreeMap, BTreeSet};
use watch::{Truth, Watcher};

/// Tries of an append that finds the list changed.
const APPEND_TRIES: u32 = 8;

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It has not.
    Open,
    /// Nobody knows whether it was, or will be, done.
    Unknown,
    /// It was not done.
    Not,
    /// It was done.
    Done(Saw),
}

/// What the asker saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Saw {
    /// Nothing in particular.
    Nothing,
    /// A value, or none.
    Value(Option<String>),
    /// A swap happened, or not.
    Swapped(bool),
    /// A lease lasts so many seconds.
    Time(u64),
    /// A lock with this fencing token.
    Token(u64),
}

/// A request in the history.
#[derive(Clone, Debug)]
pub struct Deed {
    /// Whom it was asked.
    pub node: usize,
    /// Which start of it.
    pub epoch: u32,
    /// What.
    pub op: PlaneOp,
    /// Place in the history when it was asked.
    pub from: u64,
    /// When that was.
    pub asked: Instant,
    /// Place in the history when it was answered.
    pub to: Option<u64>,
    /// When that was.
    pub told: Instant,
    /// How.
    pub end: End,
    /// The greatest revision that anybody had been told before it was asked.
    floor: u64,
    /// When it is given up.
    until: Instant,
    tries: u32,
}

/// What is known of a lease.
#[derive(Clone, Debug, Default)]
struct LeaseLife {
    /// Whoever was told that it lasts may believe in it until then.
    until: Instant,
    /// The last that anybody may have done to make it last.
    hoped: Instant,
    /// Somebody asked to end it.
    revoked: bool,
    /// Some store had it.
    seen: bool,
    /// Some store that had it has it no more.
    gone: Option<(Instant, usize)>,
}

/// A lock as its holder sees it.
#[derive(Clone, Debug)]
struct Held {
    name: String,
    holder: String,
    node: usize,
    epoch: u32,
    token: u64,
    leased: bool,
    /// The request.
    from: u64,
    /// Given back at this place in the history at the earliest.
    back: Option<u64>,
}

/// Users of the control plane and what they know.
#[derive(Default)]
pub struct Plane {
    /// Places in the history.
    clock: u64,
    /// Everything that was asked.
    pub deeds: Vec<Deed>,
    waiting: BTreeMap<(usize, u32, OpToken), usize>,
    /// The greatest revision that anybody was told.
    head: u64,
    /// By node and start: the greatest revision told in a step, and in earlier steps.
    heads: BTreeMap<(usize, u32), (Instant, u64, u64)>,
    leases: BTreeMap<u32, LeaseLife>,
    held: Vec<Held>,
    /// Somebody believed or could have believed that a node is gone, last at this place in the history.
    doubt: BTreeMap<usize, u64>,
    /// Who believes that of whom now.
    doubting: BTreeSet<(usize, usize)>,
    truth: Truth,
    watchers: BTreeMap<StreamId, Watcher>,
    streams: u64,
    /// What each store had applied when it was last looked at.
    looked: BTreeMap<(usize, u32), u64>,
}

impl Plane {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

fn lease_id(n: u32) -> LeaseId {
    LeaseId(i64::from(n))
}

fn holder_of(node: usize, holder: &str) -> String {
    format!("n{}/{holder}", node + 1)
}

fn text_of(store: &Store, key: &str) -> Option<String> {
    store.get(key.as_bytes()).map(|kv| word(&kv.value))
}

/// Values that were made long end with `#` and what fills them.
fn word(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == b'#').unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn put(key: &str, value: &str, size: usize, lease: Option<u32>) -> Put {
    let mut value = value.as_bytes().to_vec();
    if size > value.len() {
        value.resize(size, b'#');
    }
    Put { key: key.into(), value, lease: lease.map_or(LeaseId(0), lease_id), ..Put::default() }
}

fn compare(key: &str, target: Target) -> Compare {
    Compare { key: key.into(), end: Vec::new(), is: Is::Equal, target }
}

fn client(action: Action) -> Ask {
    Ask::Propose(Command { by: By::Nobody, action })
}

impl World {
    /// A user of a node's control plane asks for something.
    pub fn plane_user(&mut self, n: usize, request: &PlaneRequest) {
        if !self.setup.control || !self.hosts[n].is_up() {
            return;
        }
        if self.process(n).stopping {
            return;
        }
        self.tell(|| format!("n{} user: kv {request}", n + 1));
        let from = self.plane.tick();
        let (epoch, asked) = (self.hosts[n].epoch, self.now);
        let deed = Deed {
            node: n,
            epoch,
            op: request.op.clone(),
            from,
            asked,
            to: None,
            told: Instant(0),
            end: End::Open,
            floor: self.plane.head,
            until: asked.after(request.limit),
            tries: 0,
        };
        let id = self.plane.deeds.len();
        self.plane.deeds.push(deed);
        let Some(ask) = self.first_ask(n, &request.op) else {
            self.plane.deeds[id].end = End::Not;
            return;
        };
        self.plane_ask(n, id, ask, request.limit);
    }

    fn first_ask(&mut self, n: usize, op: &PlaneOp) -> Option<Ask> {
        let from = self.plane.clock;
        let store = self.hosts[n].process.as_ref()?.node.view().control()?.store();
        let revision = store.revision();
        Some(match op {
            PlaneOp::Put(k, v, size, lease) => client(Action::Put(put(k, v, *size, *lease))),
            PlaneOp::Get(_) | PlaneOp::Append(..) => Ask::Read,
            PlaneOp::Look(k) => {
                let saw = text_of(store, k);
                self.look_is_true(n, k, revision, saw.as_deref());
                return None;
            }
            PlaneOp::Del(k) => {
                client(Action::Delete(Delete { key: k.as_bytes().to_vec(), end: Vec::new(), prev_kv: false }))
            }
            PlaneOp::Cas(k, old, new) => {
                let is = match old.as_str() {
                    "-" => compare(k, Target::Create(0)),
                    old => compare(k, Target::Value(old.as_bytes().to_vec().into())),
                };
                let success = vec![Op::Put(put(k, new, 0, None))];
                client(Action::Txn(Txn { compare: vec![is], success, failure: Vec::new() }))
            }
            PlaneOp::Grant(l, ttl_s) => {
                self.plane.leases.entry(*l).or_default();
                client(Action::LeaseGrant { id: lease_id(*l), ttl_s: *ttl_s })
            }
            PlaneOp::Keep(l) => {
                let now = self.now;
                let life = self.plane.leases.get_mut(l)?;
                life.hoped = life.hoped.max(now);
                Ask::KeepAlive(lease_id(*l))
            }
            PlaneOp::Revoke(l) => {
                self.plane.leases.get_mut(l)?.revoked = true;
                client(Action::LeaseRevoke { id: lease_id(*l) })
            }
            PlaneOp::Lock(name, holder, lease) => Ask::Lock(LockAction::Acquire(Acquire {
                name: name.as_bytes().to_vec(),
                holder: holder_of(n, holder),
                replica: self.hosts[n].replica,
                lease: lease.map_or(LeaseId(0), lease_id),
                at_ms: self.hosts[n].wall(self.now) / 1_000_000,
                wait: None,
            })),
            PlaneOp::Unlock(name, holder) => {
                let holder = holder_of(n, holder);
                let epoch = self.hosts[n].epoch;
                let mine = |h: &&mut Held| h.name == *name && h.holder == holder && (h.node, h.epoch) == (n, epoch);
                let mut token = None;
                for held in self.plane.held.iter_mut().filter(mine).filter(|h| h.back.is_none()) {
                    held.back = Some(from);
                    token = Some(held.token);
                }
                let (name, token) = (name.as_bytes().to_vec().into(), token?);
                Ask::Propose(Command::node(Action::Lock(LockAction::Release { name, holder, token })))
            }
            PlaneOp::Watch(k, back, slow) => {
                self.plane.streams += 1;
                let stream = StreamId(self.plane.streams);
                let start = if *back == 0 { 0 } else { (revision + 1).saturating_sub(*back).max(1) };
                let (key, end) =
                    if k == "all" { (Vec::new(), b"\0".to_vec()) } else { (k.clone().into_bytes(), vec![]) };
                let spec = WatchSpec { key, end, start, ..WatchSpec::default() };
                let watcher = Watcher::new(n, self.hosts[n].epoch, k, start, *slow);
                self.plane.watchers.insert(stream, watcher);
                Ask::Watch { stream, id: 7, spec }
            }
            PlaneOp::Compact(back) => {
                // What is dropped has been seen by then.
                let at = revision.min(self.plane.truth.revision).saturating_sub(*back);
                if at <= store.compacted() {
                    return None;
                }
                client(Action::Compact { revision: at })
            }
            PlaneOp::Lead(to) => Ask::Transfer(self.hosts.get(*to)?.replica),
        })
    }

    fn plane_ask(&mut self, n: usize, id: usize, ask: Ask, timeout: Span) {
        let due = self.now.after(Span(timeout.0 + Span::s(1).0));
        let epoch = self.hosts[n].epoch;
        let p = self.process(n);
        p.last_ask += 1;
        let token = OpToken(p.last_ask);
        p.asks.insert(token, Waits { due, ack: None, versions: Vec::new() });
        self.plane.waiting.insert((n, epoch, token), id);
        self.hand(n, Event::Op { token, op: Request::Control { ask: Box::new(ask), timeout } });
    }

    /// True if the answer was for a user of the control plane.
    pub(crate) fn plane_answer(&mut self, n: usize, token: OpToken, reply: &Reply) -> bool {
        let epoch = self.hosts[n].epoch;
        let Some(id) = self.plane.waiting.remove(&(n, epoch, token)) else { return false };
        let op = self.plane.deeds[id].op.clone();
        self.tell(|| format!("n{} answers {op}: {reply:?}", n + 1));
        let answer = match reply {
            Reply::Control(answer) => (**answer).clone(),
            Reply::Failed(ice_core::action::Refused::Stopping) => Answer::Refused(Refused::Stopping),
            other => {
                self.fail("one reply", format!("n{} answered the control plane's user with {other:?}", n + 1));
                return true;
            }
        };
        let end = match answer {
            Answer::Refused(why) => self.refused(n, id, &why),
            good => self.answered(n, id, good),
        };
        if let Some(end) = end {
            let to = self.plane.tick();
            let now = self.now;
            let deed = &mut self.plane.deeds[id];
            (deed.to, deed.told, deed.end) = (Some(to), now, end);
            self.concluded(id);
        }
        true
    }

    fn refused(&mut self, n: usize, id: usize, why: &Refused) -> Option<End> {
        match why {
            Refused::NoLeader | Refused::Busy => self.sometimes.saw("request not taken"),
            Refused::Timeout => self.sometimes.saw("request outcome unknown"),
            _ => {}
        }
        let op = self.plane.deeds[id].op.clone();
        Some(match why {
            Refused::Timeout | Refused::Stopping | Refused::Interrupted | Refused::Broken(_) => End::Unknown,
            Refused::Off => {
                self.fail("one reply", format!("n{} has no control plane", n + 1));
                End::Not
            }
            Refused::Store(error) => {
                let natural = match &op {
                    PlaneOp::Put(_, _, _, Some(_)) | PlaneOp::Keep(_) | PlaneOp::Revoke(_) => {
                        matches!(error, kv::Error::LeaseNotFound { .. })
                    }
                    PlaneOp::Grant(..) => matches!(error, kv::Error::LeaseExists { .. }),
                    PlaneOp::Lock(_, _, lease) => {
                        matches!(error, kv::Error::NotLocked)
                            || lease.is_some() && matches!(error, kv::Error::LeaseNotFound { .. })
                    }
                    PlaneOp::Compact(_) => matches!(error, kv::Error::Compacted { .. }),
                    PlaneOp::Unlock(..) => matches!(error, kv::Error::NotLocked),
                    _ => false,
                };
                if !natural {
                    self.fail("answers", format!("n{} answered {op} with {error}", n + 1));
                }
                End::Not
            }
            _ => End::Not,
        })
    }

    /// `None`: it goes on.
    fn answered(&mut self, n: usize, id: usize, answer: Answer) -> Option<End> {
        let op = self.plane.deeds[id].op.clone();
        let done = |saw| Some(End::Done(saw));
        match (op, answer) {
            (op, Answer::Applied { answer: Err(error), head }) => {
                self.head_is(n, id, head.revision);
                let _ = op;
                self.refused(n, id, &Refused::Store(error))
            }
            (PlaneOp::Get(key), Answer::Ready(head)) => {
                let (revision, saw) = self.read(n, &key)?;
                if revision < head.revision {
                    self.fail("answers", format!("n{} said {head:?}, its store is at {revision}", n + 1));
                }
                self.head_is(n, id, revision);
                done(Saw::Value(saw))
            }
            (PlaneOp::Append(key, word), Answer::Ready(_)) => {
                let (revision, saw) = self.read(n, &key)?;
                self.head_is(n, id, revision);
                let store = self.hosts[n].process.as_ref()?.node.view().control()?.store();
                let target = store
                    .get(key.as_bytes())
                    .map_or(Target::Create(0), |kv| Target::Modified(i64::try_from(kv.modified).unwrap_or(i64::MAX)));
                let value = saw.map_or(word.clone(), |old| format!("{old},{word}"));
                let success = vec![Op::Put(put(&key, &value, 0, None))];
                let txn = Txn { compare: vec![compare(&key, target)], success, failure: Vec::new() };
                self.go_on(n, id, client(Action::Txn(txn)))
            }
            (PlaneOp::Append(..), Answer::Applied { answer: Ok(kv::Answer::Txn(txn)), head }) => {
                self.head_is(n, id, head.revision);
                self.plane.deeds[id].tries += 1;
                if txn.succeeded {
                    return done(Saw::Nothing);
                }
                self.sometimes.saw("append tried again");
                if self.plane.deeds[id].tries >= APPEND_TRIES {
                    return Some(End::Not);
                }
                self.go_on(n, id, Ask::Read)
            }
            (PlaneOp::Cas(..), Answer::Applied { answer: Ok(kv::Answer::Txn(txn)), head }) => {
                self.head_is(n, id, head.revision);
                done(Saw::Swapped(txn.succeeded))
            }
            (PlaneOp::Grant(..), Answer::Applied { answer: Ok(kv::Answer::Lease { ttl_s, .. }), head }) => {
                self.head_is(n, id, head.revision);
                done(Saw::Time(ttl_s))
            }
            (
                PlaneOp::Unlock(..),
                Answer::Applied { answer: Ok(kv::Answer::Lock(LockAnswer::Released { .. })), .. },
            ) => done(Saw::Nothing),
            (
                PlaneOp::Put(..) | PlaneOp::Del(_) | PlaneOp::Revoke(_) | PlaneOp::Compact(_),
                Answer::Applied { answer: Ok(answer), head },
            ) => {
                if answer == kv::Answer::Repeated {
                    self.fail("answers", format!("n{} answered a command as a repeat", n + 1));
                }
                self.head_is(n, id, head.revision);
                done(Saw::Nothing)
            }
            (PlaneOp::Keep(_), Answer::Kept(ttl_s)) => done(Saw::Time(ttl_s)),
            (PlaneOp::Lock(..), Answer::Granted(grant)) => done(Saw::Token(grant.token)),
            (PlaneOp::Watch(..) | PlaneOp::Lead(_), Answer::Done) => done(Saw::Nothing),
            (op, answer) => {
                self.fail("answers", format!("n{} answered {op} with {answer:?}", n + 1));
                None
            }
        }
    }

    /// A key as it stands on a node.
    pub(crate) fn key(&self, n: usize, key: &str) -> Option<String> {
        self.read(n, key)?.1
    }

    fn read(&self, n: usize, key: &str) -> Option<(u64, Option<String>)> {
        let store = self.hosts[n].process.as_ref()?.node.view().control()?.store();
        Some((store.revision(), text_of(store, key)))
    }

    fn go_on(&mut self, n: usize, id: usize, ask: Ask) -> Option<End> {
        let left = self.plane.deeds[id].until.since(self.now);
        if left.0 == 0 {
            return Some(End::Not);
        }
        self.plane_ask(n, id, ask, left);
        None
    }

    /// What a request was told of the store's revision goes up, for each node and for everybody.
    fn head_is(&mut self, n: usize, id: usize, revision: u64) {
        let (floor, op, epoch) = {
            let d = &self.plane.deeds[id];
            (d.floor, d.op.clone(), d.epoch)
        };
        if revision < floor {
            let text = format!(
                "n{} answered {op} at revision {revision}, but revision {floor} was known before it was asked",
                n + 1
            );
            return self.fail("revisions go up", text);
        }
        let now = self.now;
        let seen = self.plane.heads.entry((n, epoch)).or_insert((now, 0, 0));
        if seen.0 < now {
            *seen = (now, seen.1, seen.1);
        }
        let before = seen.2;
        seen.1 = seen.1.max(revision);
        if revision < before {
            let text = format!("n{} answered {op} at revision {revision}, and {before} earlier", n + 1);
            return self.fail("revisions go up", text);
        }
        self.plane.head = self.plane.head.max(revision);
    }

    /// A request has ended: leases and locks depend on it.
    fn concluded(&mut self, id: usize) {
        let deed = self.plane.deeds[id].clone();
        match (&deed.op, &deed.end) {
            (PlaneOp::Grant(l, _) | PlaneOp::Keep(l), End::Done(Saw::Time(ttl_s))) => {
                self.sometimes.saw(if matches!(deed.op, PlaneOp::Keep(_)) {
                    "lease kept alive"
                } else {
                    "lease granted"
                });
                let until = deed.asked.after(Span::s(*ttl_s));
                let now = self.now;
                let Some(life) = self.plane.leases.get_mut(l) else { return };
                life.until = life.until.max(until);
                life.hoped = life.hoped.max(now.after(Span::s(*ttl_s)));
                let life = life.clone();
                self.lease_is_sound(*l, &life);
            }
            (PlaneOp::Lock(name, holder, lease), End::Done(Saw::Token(token))) => {
                let holder = holder_of(deed.node, holder);
                self.granted(&deed, name, &holder, *token, lease.is_some());
            }
            (PlaneOp::Lock(name, holder, _), End::Unknown) => {
                // Whoever gives up gives back whatever he gets later, also what he had before.
                self.sometimes.saw("lock given up");
                let holder = holder_of(deed.node, holder);
                let at = self.plane.clock;
                let mine = |h: &&mut Held| h.name == *name && h.holder == holder && h.epoch == deed.epoch;
                for h in self.plane.held.iter_mut().filter(mine) {
                    h.back.get_or_insert(at);
                }
            }
            _ => {}
        }
    }

    fn granted(&mut self, deed: &Deed, name: &str, holder: &str, token: u64, leased: bool) {
        let at = self.plane.clock;
        let mut wrong = None;
        for h in &self.plane.held {
            if h.name != name {
                if h.token == token {
                    wrong = Some(format!("token {token} of {name} is that of {}", h.name));
                }
                continue;
            }
            if h.token == token {
                if h.holder != holder {
                    wrong = Some(format!("{name} is granted to {holder} with token {token}, which {} got", h.holder));
                }
                continue;
            }
            let (first, second) = if h.token < token { (h.token, token) } else { (token, h.token) };
            if h.token > token {
                // Told late; what matters is that nobody was told before it was asked for.
                let later = self.plane.deeds.iter().any(|d| {
                    matches!(&d.end, End::Done(Saw::Token(t)) if *t == h.token) && d.to.is_some_and(|to| to < deed.from)
                });
                if later {
                    wrong = Some(format!("{name} is granted with token {token}, after {} was", h.token));
                }
                continue;
            }
            // The one before must have lost it by now.
            let gave = h.back.is_some_and(|b| b < at);
            let doubted = self.plane.doubt.get(&h.node).is_some_and(|d| *d >= h.from)
                || self.plane.doubting.iter().any(|(_, of)| *of == h.node);
            let ended = self.hosts[h.node].epoch != h.epoch;
            if !gave && !doubted && !ended && !h.leased {
                wrong = Some(format!(
                    "{name} is granted to {holder} with token {second}, but {} holds it with token {first} and did not give it \
                     back, and its node was not in doubt",
                    h.holder
                ));
            }
        }
        if let Some(text) = wrong {
            return self.fail("mutual exclusion", text);
        }
        self.sometimes.saw("lock granted");
        // Whoever gives back a grant gives back every answer that told of it.
        let leased = leased || self.plane.held.iter().any(|h| h.token == token && h.leased);
        self.plane.held.iter_mut().filter(|h| h.token == token).for_each(|h| h.leased = leased);
        let back = self.plane.held.iter().filter(|h| h.token == token).find_map(|h| h.back);
        let (name, holder) = (name.to_owned(), holder.to_owned());
        let (node, epoch, from) = (deed.node, deed.epoch, deed.from);
        self.plane.held.push(Held { name, holder, node, epoch, token, leased, from, back });
    }

    fn lease_is_sound(&mut self, l: u32, life: &LeaseLife) {
        let Some((at, n)) = life.gone.filter(|_| !life.revoked) else { return };
        if at < life.until {
            let text = format!(
                "l{l} was gone on n{} at {:.3} s, but its holder was told that it lasts until {:.3} s",
                n + 1,
                at.0 as f64 / 1e9,
                life.until.0 as f64 / 1e9
            );
            self.fail("leases last", text);
        }
    }

    /// After each step of a node: what it tells watchers, and what its store shows.
    pub(crate) fn plane_step(&mut self, n: usize, told: Vec<kv::watch::Message>) {
        if !self.setup.control {
            return;
        }
        for message in told {
            self.plane_told(n, message);
        }
        let now = self.now;
        let epoch = self.hosts[n].epoch;
        let Some(store) = self.hosts[n].process.as_ref().and_then(|p| p.node.view().control()).map(|c| c.store())
        else {
            return;
        };
        let applied = store.applied();
        if self.plane.looked.insert((n, epoch), applied) == Some(applied) {
            return;
        }
        let mut wrong = self.plane.truth.learn(store, now).err();
        let mut gone = Vec::new();
        for (l, life) in &mut self.plane.leases {
            let there = store.lease(lease_id(*l)).is_some();
            if there && life.gone.is_none() {
                life.seen = true;
            }
            if !there && life.seen && life.gone.is_none() && self.plane.truth.applied <= applied {
                life.gone = Some((now, n));
                gone.push((*l, life.clone()));
            }
        }
        self.plane.truth.applied = self.plane.truth.applied.max(applied);
        for (l, life) in gone {
            if !life.revoked {
                self.sometimes.saw("lease expired");
            }
            self.lease_is_sound(l, &life);
        }
        if let Some(text) = wrong.take() {
            self.fail("watches", text);
        }
    }

    /// The process of a node is no more: nobody hears what became of what he asked.
    pub(crate) fn plane_ended(&mut self, n: usize) {
        let at = self.plane.tick();
        let now = self.now;
        let gone: Vec<_> = self.plane.waiting.keys().filter(|(m, ..)| *m == n).copied().collect();
        for key in gone {
            if let Some(id) = self.plane.waiting.remove(&key) {
                let deed = &mut self.plane.deeds[id];
                (deed.end, deed.to, deed.told) = (End::Unknown, Some(at), now);
            }
        }
        self.in_doubt(n);
        self.plane.watchers.values_mut().filter(|w| w.node == n).for_each(|w| w.closed = true);
        let mine: Vec<_> = self.plane.doubting.iter().filter(|(who, _)| *who == n).copied().collect();
        for (who, of) in mine {
            self.in_doubt(of);
            self.plane.doubting.remove(&(who, of));
        }
    }

    /// Others may take this node for gone.
    pub(crate) fn in_doubt(&mut self, n: usize) {
        let at = self.plane.tick();
        self.plane.doubt.insert(n, at);
    }

    /// A node says that another is down, or no more.
    pub(crate) fn doubts(&mut self, n: usize, replica: ReplicaId, down: bool) {
        let Some(of) = self.hosts.iter().position(|h| h.replica == replica) else { return };
        self.in_doubt(of);
        if down {
            self.plane.doubting.insert((n, of));
        } else {
            self.plane.doubting.remove(&(n, of));
        }
    }

    /// Whoever watches has taken what he was told.
    pub(crate) fn plane_taken(&mut self, n: usize, what: Watching) {
        if self.hosts[n].power == Power::Up {
            self.hand(n, Event::Watching(what));
        }
    }
}
