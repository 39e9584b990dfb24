//! A perfect world for a few nodes: every message arrives after a millisecond, every disk is fast and never fails. What goes
//! wrong is the simulator's business; here the tests pull single threads.

#![allow(dead_code, reason = "each test binary uses its part")]

use ice_core::action::{Io, Notice, Outbox, Reply, Send};
use ice_core::config::{Config, Recovered};
use ice_core::event::{Ack, Admin, Batch, Change, Event, IoResult, LinkEvent, Request, Witness};
use ice_core::ids::{Incarnation, InodeId, LinkId, Name, OpToken, ReplicaId};
use ice_core::message::Message;
use ice_core::node::Node;
use ice_core::op::{Attrs, Kind};
use ice_core::rng::Seed;
use ice_core::status::PeerState;
use ice_core::time::{Instant, Span};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub struct Host {
    pub node: Node,
    pub url: String,
    pub up: bool,
    pub events: Batch,
    pub out: Outbox,
    pub wake: Option<Instant>,
    pub replies: Vec<(OpToken, Reply)>,
    pub notices: Vec<Notice>,
    /// LogSync and Store are answered only while this is set.
    pub disk: bool,
    held_back: Vec<Event>,
    next_token: u64,
}

#[derive(Default)]
pub struct World {
    pub now: u64,
    pub hosts: Vec<Host>,
    /// link number -> (node here, node there, number there)
    links: BTreeMap<(usize, LinkId), (usize, LinkId)>,
    next_link: u64,
    queue: VecDeque<(u64, usize, Event)>,
    /// Pairs that do not reach each other, in either direction.
    pub cut: BTreeSet<(usize, usize)>,
    /// Messages sent, by kind.
    pub sent: BTreeMap<&'static str, u64>,
    /// Pages of a state sent, and about how many bytes of records in them.
    pub pages: (u64, usize),
    /// The next page that is not the first of its bucket is lost.
    pub lose_page: bool,
}

pub fn config(i: usize) -> Config {
    let mut c = Config::new(ReplicaId(i as u64 + 1), &format!("n{}", i + 1));
    c.urls = vec![format!("http://n{}:9000", i + 1)];
    c
}

impl World {
    /// `n` nodes that join the first one.
    pub fn new(n: usize) -> World {
        let mut w = World { now: 1_000_000, ..World::default() };
        for i in 0..n {
            let mut c = config(i);
            if i > 0 {
                c.join = vec!["http://n1:9000".into()];
            }
            w.add(c, Recovered::default());
        }
        w
    }

    pub fn add(&mut self, config: Config, disk: Recovered) -> usize {
        let url = config.urls[0].clone();
        self.hosts.push(Host {
            node: Node::recover(config, Seed(7), disk),
            url,
            up: true,
            events: Batch::new(),
            out: Outbox::default(),
            wake: Some(Instant(0)),
            replies: Vec::new(),
            notices: Vec::new(),
            disk: true,
            held_back: Vec::new(),
            next_token: 1,
        });
        self.hosts.len() - 1
    }

    fn later(&mut self, ns: u64, host: usize, event: Event) {
        self.queue.push_back((self.now + ns, host, event));
    }

    /// Lets `span` pass.
    pub fn run(&mut self, span: Span) {
        let end = self.now + span.0;
        while self.now < end {
            self.now += 500_000;
            let now = self.now;
            let mut due: Vec<(usize, Event)> = Vec::new();
            self.queue.retain(|(at, h, e)| {
                let yes = *at <= now;
                if yes {
                    due.push((*h, e.clone()));
                }
                !yes
            });
            for (h, e) in due {
                if self.hosts[h].up {
                    self.hosts[h].events.push_back(e);
                }
            }
            for h in 0..self.hosts.len() {
                self.step(h);
            }
        }
    }

    fn step(&mut self, h: usize) {
        let mut turns = 0;
        while self.turn(h) {
            turns += 1;
            assert!(turns < 10_000, "a node never comes to rest");
        }
    }

    /// One step of a node, if it has anything to do now.
    fn turn(&mut self, h: usize) -> bool {
        let now = self.now;
        let host = &mut self.hosts[h];
        if !host.up {
            return false;
        }
        if host.disk {
            host.events.extend(host.held_back.drain(..));
        }
        if host.events.is_empty() && !host.out.again && host.wake.is_none_or(|w| w.0 > now) {
            return false;
        }
        host.events.push_front(Event::Wall { unix_ns: now });
        let mut out = std::mem::take(&mut host.out);
        host.node.step(Instant(now), &mut host.events, &mut out);
        host.wake = out.wake.map(|w| w.at);
        let idle = host.wake.is_none_or(|w| w.0 > now) || out.again || !host.events.is_empty();
        assert!(idle, "n{} woken for nothing at {now}: {:?}", h + 1, out.wake);
        host.replies.append(&mut out.reply);
        host.notices.append(&mut out.notice);
        let io: Vec<Io> = out.io.drain(..).collect();
        let send: Vec<Send> = out.send.drain(..).collect();
        host.out = out;
        for io in io {
            match io {
                Io::LogSync { token } => {
                    let e = Event::Io { token, result: IoResult::LogSynced };
                    if self.hosts[h].disk { self.later(100_000, h, e) } else { self.hosts[h].held_back.push(e) }
                }
                Io::Store { token, .. } => {
                    let e = Event::Io { token, result: IoResult::Stored };
                    if self.hosts[h].disk { self.later(100_000, h, e) } else { self.hosts[h].held_back.push(e) }
                }
                Io::Apply { token, .. } => {
                    let result = IoResult::Applied(Witness { disk: 1, sum: 1 });
                    self.later(100_000, h, Event::Io { token, result });
                }
                Io::Fetch { token, .. } | Io::Stage { token, .. } => {
                    self.later(100_000, h, Event::Io { token, result: IoResult::Fetched });
                }
                Io::Log { .. } | Io::Unstage { .. } | Io::Rescan { .. } => {}
            }
        }
        for s in send {
            self.send(h, s);
        }
        true
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.hosts[b].up && !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    fn send(&mut self, h: usize, send: Send) {
        match send {
            Send::Dial { url } => {
                let there = self.hosts.iter().position(|x| x.url == url || url == format!("{}1", x.url));
                match there.filter(|t| self.reaches(h, *t)) {
                    Some(t) => {
                        let (a, b) = (LinkId(self.next_link + 1), LinkId(self.next_link + 2));
                        self.next_link += 2;
                        self.links.insert((h, a), (t, b));
                        self.links.insert((t, b), (h, a));
                        self.later(1_000_000, h, Event::Link(LinkEvent::Up { link: a, dialled: Some(url) }));
                        self.later(1_000_000, t, Event::Link(LinkEvent::Up { link: b, dialled: None }));
                    }
                    None => {
                        let why = "connection refused".to_owned();
                        self.later(1_000_000, h, Event::Link(LinkEvent::DialFailed { url, why }));
                    }
                }
            }
            Send::Hangup { link, why } => self.hang_up(h, link, &why),
            Send::Message { link, message } => {
                *self.sent.entry(kind(&message)).or_insert(0) += 1;
                if let Message::State { after, .. } = message {
                    self.pages = (self.pages.0 + 1, self.pages.1 + message.weight());
                    if self.lose_page && after.is_some() {
                        self.lose_page = false;
                        return;
                    }
                }
                if let Some((t, l)) = self.links.get(&(h, link)).copied()
                    && self.reaches(h, t)
                {
                    self.later(1_000_000, t, Event::Peer { link: l, message });
                }
            }
        }
    }

    fn hang_up(&mut self, h: usize, link: LinkId, why: &str) {
        if let Some((t, l)) = self.links.remove(&(h, link)) {
            self.links.remove(&(t, l));
            self.later(1_000_000, h, Event::Link(LinkEvent::Down { link, why: why.to_owned() }));
            self.later(
                1_500_000,
                t,
                Event::Link(LinkEvent::Down { link: l, why: "closed by the other side".to_owned() }),
            );
        }
    }

    /// Ends a node at once; the others see their connections break.
    pub fn kill(&mut self, h: usize) {
        self.hosts[h].up = false;
        let links: Vec<LinkId> = self.links.keys().filter(|(a, _)| *a == h).map(|(_, l)| *l).collect();
        for l in links {
            self.hang_up(h, l, "killed");
        }
    }

    pub fn request(&mut self, h: usize, op: Request) -> OpToken {
        let token = OpToken(self.hosts[h].next_token);
        self.hosts[h].next_token += 1;
        self.hosts[h].events.push_back(Event::Op { token, op });
        token
    }

    pub fn admin(&mut self, h: usize, order: Admin) {
        self.hosts[h].events.push_back(Event::Admin(order));
    }

    /// A change on node `h`: a directory `name` in the root.
    pub fn mkdir(&mut self, h: usize, name: &str) -> OpToken {
        let change = Change::Create {
            parent: InodeId::ROOT,
            name: Name::new(name.as_bytes()).expect("a name"),
            kind: Kind::Dir,
            attrs: Attrs { mode: 0o755, ..Attrs::default() },
            witness: Witness { disk: 1, sum: 1 },
        };
        self.request(h, Request::Change(vec![change]))
    }

    pub fn sync(&mut self, h: usize, ack: Ack, timeout: Span) -> OpToken {
        self.request(h, Request::Sync { ack, timeout })
    }

    pub fn reply(&self, h: usize, token: OpToken) -> Option<&Reply> {
        let mut found = self.hosts[h].replies.iter().filter(|(t, _)| *t == token);
        let first = found.next().map(|(_, r)| r);
        assert!(found.next().is_none(), "answered twice");
        first
    }

    pub fn state(&self, h: usize, peer: &str) -> Option<PeerState> {
        self.hosts[h].node.view().status().peers.iter().find(|p| p.name == peer && !p.left).map(|p| p.state)
    }

    pub fn all_up(&self) -> bool {
        let up: Vec<usize> = (0..self.hosts.len()).filter(|h| self.hosts[*h].up).collect();
        up.iter().all(|a| {
            up.iter().filter(|b| *b != a).all(|b| {
                let name = self.hosts[*b].node.view().status().name;
                self.state(*a, &name) == Some(PeerState::Up)
            })
        })
    }
}

fn kind(m: &Message) -> &'static str {
    match m {
        Message::Hello(_) => "hello",
        Message::Refuse { .. } => "refuse",
        Message::Beat(_) => "beat",
        Message::Ops { .. } => "ops",
        Message::Held(_) => "held",
        Message::Want { .. } => "want",
        Message::Members(_) => "members",
        _ => "other",
    }
}

pub fn incarnation(mut c: Config, n: u64) -> Config {
    c.incarnation = Incarnation(n);
    c
}
