//! The simulated network: connections between nodes, and everything that can go wrong on the way.

use crate::content::Content;
use crate::rng::Stream;
use ice_core::ids::LinkId;
use ice_core::message::Message;
use ice_core::time::{Instant, Span};

/// A message under way, with the bytes of its payloads.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The message as sent; payload handles in it are the sender's.
    pub message: Message,
    /// Bytes of the payloads, in the order in which they occur in the message.
    pub contents: Vec<Content>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The node.
    pub node: usize,
    /// Its start: a connection does not outlive it.
    pub epoch: u32,
    /// It has been told that the connection stands, and not that it is gone.
    pub open: bool,
    /// When the last message that keeps its order arrives here.
    pub last: Instant,
    /// When the pipe towards this end is free.
    pub busy: Instant,
}

/// A connection. `ends[0]` dialled.
#[derive(Clone, Debug)]
pub struct Link {
    /// Both ends.
    pub ends: [End; 2],
    /// Its breaking has been put in the queue.
    pub breaking: bool,
}

/// How messages travel from one node to another.
#[derive(Clone, Copy, Debug)]
pub struct Road {
    /// Nothing gets through.
    pub blocked: bool,
    /// Time that every message takes.
    pub delay: Span,
    /// Bytes per second.
    pub rate: u64,
}

/// What the network does to single messages, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mischief {
    /// Lost.
    pub loss: u32,
    /// Delivered twice.
    pub repeat: u32,
    /// Delivered after messages sent later.
    pub reorder: u32,
}

/// When a sent message arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Never.
    Lost,
    /// Once.
    Once(Instant),
    /// Twice.
    Twice(Instant, Instant),
}

/// See the module.
pub struct Net {
    roads: Vec<Vec<Road>>,
    base: Road,
    /// Every connection that there ever was.
    pub links: Vec<Link>,
    /// Towards all messages.
    pub mischief: Mischief,
    /// Added to every message, up to this, at random.
    pub jitter: Span,
    rng: Stream,
}

impl Net {
    /// Nodes `0..n`, each pair with a delay around `delay`.
    pub fn new(n: usize, delay: Span, jitter: Span, rng: Stream) -> Net {
        let base = Road { blocked: false, delay, rate: 100_000_000 };
        let mut net = Net { roads: Vec::new(), base, links: Vec::new(), mischief: Mischief::default(), jitter, rng };
        net.grow(n);
        net
    }
    /// Room for nodes `0..n`.
    pub fn grow(&mut self, n: usize) {
        for row in &mut self.roads {
            while row.len() < n {
                row.push(self.base);
            }
        }
        while self.roads.len() < n {
            self.roads.push(vec![self.base; n]);
        }
    }
    /// From `a` to `b`.
    pub fn road(&self, a: usize, b: usize) -> Road {
        self.roads[a][b]
    }
    /// From `a` to `b`.
    pub fn road_mut(&mut self, a: usize, b: usize) -> &mut Road {
        &mut self.roads[a][b]
    }
    /// True if a request from `a` to `b` is answered.
    pub fn reachable(&self, a: usize, b: usize) -> bool {
        a == b || !(self.roads[a][b].blocked || self.roads[b][a].blocked)
    }
    /// All roads are good again, and messages arrive once and in order.
    pub fn heal(&mut self) {
        for row in &mut self.roads {
            row.fill(self.base);
        }
        self.mischief = Mischief::default();
    }
    /// A new connection from `a` to `b`; both ends still have to be told.
    pub fn connect(&mut self, a: (usize, u32), b: (usize, u32)) -> usize {
        let end = |(node, epoch)| End { node, epoch, open: false, last: Instant(0), busy: Instant(0) };
        self.links.push(Link { ends: [end(a), end(b)], breaking: false });
        self.links.len() - 1
    }
    /// The number by which the node at end `side` of connection `link` calls it.
    pub fn id(link: usize, side: usize) -> LinkId {
        LinkId((link * 2 + side) as u64 + 1)
    }
    /// The reverse of [`Net::id`]. `None` for a number that was never given.
    pub fn find(&self, id: LinkId) -> Option<(usize, usize)> {
        let n = usize::try_from(id.0.checked_sub(1)?).ok()?;
        (n / 2 < self.links.len()).then_some((n / 2, n % 2))
    }
    /// One message travels from end `side` of `link`, `bytes` long.
    pub fn travel(&mut self, now: Instant, link: usize, side: usize, bytes: u64) -> Fate {
        let (from, to) = (self.links[link].ends[side].node, self.links[link].ends[1 - side].node);
        let road = self.roads[from][to];
        if road.blocked || self.rng.chance(self.mischief.loss) {
            return Fate::Lost;
        }
        let jitter = Span(self.rng.below(self.jitter.0 + 1));
        let end = &mut self.links[link].ends[1 - side];
        let start = end.busy.max(now);
        end.busy = start.after(Span(bytes.saturating_mul(1_000_000_000) / road.rate.max(1)));
        let mut at = end.busy.after(road.delay).after(jitter);
        if self.rng.chance(self.mischief.reorder) {
            at = at.after(Span(self.rng.below(20 * (road.delay.0 + self.jitter.0) + 1)));
        } else {
            at = at.max(end.last);
            end.last = at;
        }
        if self.rng.chance(self.mischief.repeat) {
            let again = at.after(Span(self.rng.below(40 * (road.delay.0 + self.jitter.0) + 1)));
            return Fate::Twice(at, again);
        }
        Fate::Once(at)
    }
}
