//! The member table.

use super::phi::Phi;
use crate::action::{Notice, Send};
use crate::config::Config;
use crate::ids::{LinkId, ReplicaId};
use crate::limits::{MEMBERS_MAX, NODE_NAME_MAX_BYTES, URL_MAX_BYTES, URLS_PER_MEMBER_MAX};
use crate::message::{Beat, Hello, MemberInfo, Message};
use crate::status::PeerState;
use crate::time::{Deadline, Instant, Span, Wake};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// First wait before an address is tried again.
const REDIAL_FIRST: Span = Span::ms(100);
/// A dial that the host has not answered by then counts as failed.
const DIAL_LOST: Span = Span::s(60);
/// A connection whose other side does not introduce itself by then is closed.
const HELLO_WAIT: Span = Span::s(10);
/// Somebody whom this node refused is worth a word as long as he comes back within this time.
const REFUSAL_LASTS: Span = Span::s(15);
/// Refused ones that are remembered.
const REFUSALS_MAX: usize = 16;

/// Of the words with which another node refuses a connection so much is kept.
const REFUSAL_CHARS_MAX: usize = 500;

/// What the table wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(Send),
    Notice(Notice),
    /// Remember this durably.
    Remember(MemberInfo),
    /// Introduce ourselves on this link.
    SayHello {
        link: LinkId,
        called: Option<String>,
    },
    /// Say that we live.
    SayBeat {
        link: LinkId,
        number: u64,
        answer: bool,
    },
    /// A member has a (new) link and its introduction was accepted.
    Connected {
        replica: ReplicaId,
    },
    /// A member has no link any more.
    Disconnected {
        replica: ReplicaId,
    },
}

/// One other member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) info: MemberInfo,
    pub(crate) link: Option<LinkId>,
    pub(crate) state: PeerState,
    pub(crate) why: String,
    /// Since when it is up (or only suspected), or down.
    pub(crate) since: Instant,
    pub(crate) skew_ns: Option<i64>,
    /// It said that it does not want this node, in its words; until it shows otherwise.
    refusal: String,
    phi: Phi,
    lost_at: Instant,
    failed_dials: u32,
    next_url: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Link {
    dialled: Option<String>,
    peer: Option<ReplicaId>,
    up_at: Instant,
    next_beat: Instant,
    beat: u64,
    beat_at: Instant,
    /// The other side refused this node, and why.
    refused: Option<String>,
}

/// One whom this node refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Refusal {
    words: String,
    times: u32,
    last: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Way {
    Idle,
    Dialling(Instant),
    Linked,
    Own,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Address {
    way: Way,
    next: Instant,
    backoff: Span,
    /// Dialled whether or not a member is known to live there: named by the operator.
    always: bool,
    /// Who answered there last.
    lives: Option<ReplicaId>,
    /// Why the last try led to nobody.
    why: String,
}

impl Peer {
    fn is_down(&mut self, now: Instant) {
        if self.state != PeerState::Down {
            self.since = now;
        }
        self.state = PeerState::Down;
    }
}

/// The table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Members {
    pub(crate) me: MemberInfo,
    pub(crate) peers: BTreeMap<ReplicaId, Peer>,
    links: BTreeMap<LinkId, Link>,
    addresses: BTreeMap<String, Address>,
    heartbeat: Span,
    phi_down: u64,
    redial: Span,
    dial_failures: u32,
    refusals: BTreeMap<ReplicaId, Refusal>,
    stopping: bool,
    /// We were told that we are no member any more.
    pub(crate) expelled: bool,
    /// Planted: what is newer is not asked.
    mixes_starts: bool,
    /// Something changed since the last tick; otherwise nothing is due before `next`.
    changed: bool,
    next: Option<Deadline>,
}

/// `http://host:port` without path and trailing slash.
fn tidy(url: &str) -> Option<String> {
    let url = url.trim();
    let url = if url.contains("://") { url.to_string() } else { format!("http://{url}") };
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next().unwrap_or("");
    let ok = (scheme == "http" || scheme == "https") && !authority.is_empty() && url.len() <= URL_MAX_BYTES;
    ok.then(|| format!("{scheme}://{authority}"))
}

fn valid(info: &MemberInfo) -> bool {
    info.urls.len().max(info.clients.len()) <= URLS_PER_MEMBER_MAX
        && info.urls.iter().chain(&info.clients).all(|u| u.len() <= URL_MAX_BYTES)
        && !info.name.is_empty()
        && info.name.len() <= NODE_NAME_MAX_BYTES
}

impl Members {
    pub(crate) fn new(config: &Config, life: ReplicaId, known: Vec<MemberInfo>, now: Instant) -> Members {
        let me = MemberInfo {
            replica: config.replica,
            life,
            incarnation: config.incarnation,
            name: config.name.clone(),
            urls: config.urls.iter().take(URLS_PER_MEMBER_MAX).cloned().collect(),
            clients: config.clients.iter().take(URLS_PER_MEMBER_MAX).cloned().collect(),
            left: false,
            revision: 0,
        };
        let mut m = Members {
            me,
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            heartbeat: config.heartbeat,
            phi_down: u64::from(config.phi_down.max(1)),
            redial: config.redial,
            dial_failures: config.dial_failures.max(1),
            refusals: BTreeMap::new(),
            stopping: false,
            expelled: false,
            mixes_starts: config.has(crate::bug::Bug::IgnoreIncarnation),
            changed: true,
            next: None,
        };
        for info in known {
            if info.replica != m.me.replica && m.peers.len() < MEMBERS_MAX {
                m.insert(info, now);
            }
        }
        for url in &config.join {
            m.address(url, now, true);
        }
        m
    }

    fn insert(&mut self, info: MemberInfo, now: Instant) {
        for url in &info.urls {
            self.address(url, now, false);
        }
        let peer = Peer {
            phi: Phi::new(now, self.heartbeat),
            info: info.clone(),
            link: None,
            state: PeerState::Unknown,
            why: "not heard of yet".to_string(),
            since: now,
            skew_ns: None,
            refusal: String::new(),
            lost_at: now,
            failed_dials: 0,
            next_url: 0,
        };
        self.peers.insert(info.replica, peer);
    }

    fn address(&mut self, url: &str, now: Instant, always: bool) -> Option<String> {
        let url = tidy(url)?;
        if !self.addresses.contains_key(&url) && self.addresses.len() >= MEMBERS_MAX * URLS_PER_MEMBER_MAX {
            return None;
        }
        let a = self.addresses.entry(url.clone()).or_insert(Address {
            way: Way::Idle,
            next: now,
            backoff: REDIAL_FIRST,
            always: false,
            lives: None,
            why: String::new(),
        });
        a.always |= always;
        Some(url)
    }

    /// Members that count: those that have not left, this node included.
    pub(crate) fn count(&self) -> usize {
        1 + self.peers.values().filter(|p| !p.info.left).count()
    }

    /// The member on a link, if its introduction was accepted and this is still its link.
    pub(crate) fn peer_of(&self, link: LinkId) -> Option<ReplicaId> {
        self.links.get(&link).and_then(|l| l.peer).filter(|r| self.peers.get(r).is_some_and(|p| p.link == Some(link)))
    }

    /// Links of members, in order of member.
    pub(crate) fn connected(&self) -> impl Iterator<Item = (ReplicaId, LinkId)> + '_ {
        self.peers.iter().filter_map(|(r, p)| p.link.map(|l| (*r, l)))
    }

    /// All that is known, this node first.
    pub(crate) fn all(&self) -> Vec<MemberInfo> {
        core::iter::once(self.me.clone()).chain(self.peers.values().map(|p| p.info.clone())).collect()
    }

    pub(crate) fn add_url(&mut self, url: &str, now: Instant) {
        self.changed = true;
        if let Some(url) = self.address(url, now, true)
            && let Some(a) = self.addresses.get_mut(&url)
            && a.way == Way::Idle
        {
            a.next = now;
            a.backoff = REDIAL_FIRST;
        }
    }

    pub(crate) fn remove_url(&mut self, url: &str, fx: &mut Vec<Effect>) {
        self.changed = true;
        let Some(url) = tidy(url) else { return };
        let Some(replica) = self
            .peers
            .iter()
            .find(|(_, p)| !p.info.left && p.info.urls.iter().any(|u| tidy(u).as_ref() == Some(&url)))
            .map(|(r, _)| *r)
        else {
            self.addresses.remove(&url);
            return;
        };
        self.mark_left(replica, fx);
        self.gossip(None, fx);
        if let Some(link) = self.peers.get(&replica).and_then(|p| p.link) {
            fx.push(Effect::Send(Send::Hangup { link, why: "removed from the cluster by the operator".into() }));
        }
    }

    /// Addresses that the operator named and where no member ever answered, and why the last try failed.
    pub(crate) fn silent_addresses(&self) -> impl Iterator<Item = (&str, &str)> {
        let known =
            |url: &str| self.peers.values().any(|p| p.info.urls.iter().any(|u| tidy(u).as_deref() == Some(url)));
        let silent = self.addresses.iter().filter(move |(url, a)| {
            a.always && a.lives.is_none() && a.way != Way::Own && !a.why.is_empty() && !known(url)
        });
        silent.map(|(url, a)| (url.as_str(), a.why.as_str()))
    }

    /// The operator named addresses of a cluster, and nobody of it was met yet.
    pub(crate) fn joining(&self) -> bool {
        self.peers.is_empty() && self.addresses.values().any(|a| a.always && a.way != Way::Own)
    }

    fn mark_left(&mut self, replica: ReplicaId, fx: &mut Vec<Effect>) {
        if let Some(p) = self.peers.get_mut(&replica) {
            p.info.left = true;
            p.info.revision += 1;
            fx.push(Effect::Remember(p.info.clone()));
            fx.push(Effect::Notice(Notice::PeerLeave(p.info.clone())));
            for url in p.info.urls.clone() {
                self.addresses.remove(&url);
            }
        }
    }

    fn gossip(&self, except: Option<LinkId>, fx: &mut Vec<Effect>) {
        for (_, link) in self.connected() {
            if Some(link) != except {
                fx.push(Effect::Send(Send::Message { link, message: Message::Members(self.all()) }));
            }
        }
    }

    pub(crate) fn link_up(&mut self, link: LinkId, dialled: Option<String>, now: Instant, fx: &mut Vec<Effect>) {
        self.changed = true;
        if let Some(a) = dialled.as_ref().and_then(|u| self.addresses.get_mut(u)) {
            a.way = Way::Linked;
        }
        if self.links.len() >= 4 * MEMBERS_MAX {
            fx.push(Effect::Send(Send::Hangup { link, why: "too many connections".into() }));
        }
        fx.push(Effect::SayHello { link, called: dialled.clone() });
        let l = Link {
            dialled,
            peer: None,
            up_at: now,
            next_beat: now.after(self.heartbeat),
            beat: 0,
            beat_at: now,
            refused: None,
        };
        self.links.insert(link, l);
    }

    pub(crate) fn link_down(&mut self, link: LinkId, why: &str, now: Instant, fx: &mut Vec<Effect>) {
        self.changed = true;
        let Some(l) = self.links.remove(&link) else { return };
        // That it was closed says less than why.
        let why = l.refused.as_deref().unwrap_or(why);
        if let Some(a) = l.dialled.as_ref().and_then(|u| self.addresses.get_mut(u)) {
            if a.way == Way::Linked {
                a.way = Way::Idle;
            }
            // One that ends right after it began must not be dialled in a tight loop.
            let short = now.since(l.up_at) < Span::s(5);
            a.backoff = if short { Span((a.backoff.0 * 2).min(self.redial.0)) } else { REDIAL_FIRST };
            a.next = now.after(a.backoff);
            if l.peer.is_none() {
                a.why = why.to_string();
            }
        }
        let Some(replica) = l.peer else { return };
        if let Some(p) = self.peers.get_mut(&replica)
            && p.link == Some(link)
        {
            p.link = None;
            p.lost_at = now;
            p.failed_dials = 0;
            p.why = why.to_string();
            if p.state == PeerState::Up {
                p.state = PeerState::Suspect;
            }
            fx.push(Effect::Disconnected { replica });
        }
    }

    pub(crate) fn dial_failed(&mut self, url: &str, why: &str, now: Instant) {
        self.changed = true;
        let Some(url) = tidy(url) else { return };
        let redial = self.redial;
        if let Some(a) = self.addresses.get_mut(&url) {
            a.way = Way::Idle;
            a.next = now.after(a.backoff);
            a.backoff = Span((a.backoff.0 * 2).min(redial.0));
            a.why = why.to_string();
        }
        for p in self.peers.values_mut() {
            if p.link.is_none() && p.info.urls.iter().any(|u| tidy(u).as_ref() == Some(&url)) {
                p.failed_dials = p.failed_dials.saturating_add(1);
                p.why = why.to_string();
            }
        }
    }

    /// The other side introduced itself.
    pub(crate) fn hello(&mut self, link: LinkId, hello: &Hello, now: Instant, fx: &mut Vec<Effect>) {
        self.changed = true;
        let Some(l) = self.links.get(&link) else { return };
        let dialled = l.dialled.clone();
        let them = &hello.member;
        if them.replica == self.me.replica {
            // This node, under another of its names.
            if let Some(a) = dialled.as_ref().and_then(|u| self.addresses.get_mut(u)) {
                a.way = Way::Own;
            }
            fx.push(Effect::Send(Send::Hangup { link, why: "this address is the node's own".into() }));
            return;
        }
        if let Some(why) = self.refuses(hello) {
            self.note_refusal(them, &why, now, fx);
            fx.push(Effect::Send(Send::Message { link, message: Message::Refuse { why: why.clone() } }));
            fx.push(Effect::Send(Send::Hangup { link, why }));
            return;
        }
        // A connection to an earlier start of it is dead, whether that has been noticed or not.
        let same_start = self.peers.get(&them.replica).is_some_and(|p| p.info.incarnation == them.incarnation);
        self.learn(them.clone(), now, fx);
        self.replaces_twins(them, fx);
        if let Some(a) = dialled.as_ref().and_then(|u| self.addresses.get_mut(u)) {
            a.lives = Some(them.replica);
            a.why.clear();
        }
        let preferred_is_mine = self.me.replica < them.replica;
        let replica = them.replica;
        let Some(p) = self.peers.get_mut(&replica) else { return };
        if let Some(old) = p.link
            && old != link
        {
            let old_mine = self.links.get(&old).is_some_and(|l| l.dialled.is_some());
            let new_mine = dialled.is_some();
            let keep_old = old_mine != new_mine && old_mine == preferred_is_mine && same_start;
            let (loser, why) =
                if keep_old { (link, "a second connection") } else { (old, "replaced by a newer connection") };
            fx.push(Effect::Send(Send::Hangup { link: loser, why: why.into() }));
            if keep_old {
                return;
            }
        }
        p.link = Some(link);
        p.phi = Phi::new(now, self.heartbeat);
        p.failed_dials = 0;
        // It may be about to refuse this node once more.
        p.why.clone_from(&p.refusal);
        p.skew_ns = None;
        if let Some(l) = self.links.get_mut(&link) {
            l.peer = Some(replica);
        }
        let before = core::mem::replace(&mut p.state, PeerState::Up);
        if !matches!(before, PeerState::Up | PeerState::Suspect) {
            p.since = now;
        }
        if before == PeerState::Down {
            fx.push(Effect::Notice(Notice::PeerRecover(p.info.clone())));
        }
        fx.push(Effect::Connected { replica });
        fx.push(Effect::Send(Send::Message { link, message: Message::Members(self.all()) }));
    }

    /// The other side does not want this node, and says why.
    pub(crate) fn refused(&mut self, link: LinkId, why: &str, fx: &mut Vec<Effect>) {
        let why: String = why.chars().take(REFUSAL_CHARS_MAX).collect();
        let words = format!("it refuses this node: {why}");
        let Some(l) = self.links.get_mut(&link) else { return };
        let name = l.peer.and_then(|r| self.peers.get_mut(&r)).map(|p| {
            let known = core::mem::replace(&mut p.refusal, words.clone()) == words;
            (!known).then(|| p.info.name.clone())
        });
        // Once, not at each of its tries.
        if let Some(Some(name)) = name {
            fx.push(Effect::Notice(Notice::Trouble(format!("{name}: {words}"))));
        }
        l.refused = Some(words);
        fx.push(Effect::Send(Send::Hangup { link, why }));
    }

    fn note_refusal(&mut self, them: &MemberInfo, why: &str, now: Instant, fx: &mut Vec<Effect>) {
        self.refusals.retain(|_, r| now.since(r.last) <= REFUSAL_LASTS);
        if self.refusals.len() >= REFUSALS_MAX && !self.refusals.contains_key(&them.replica) {
            return;
        }
        let from = them.urls.first().map_or(String::new(), |u| format!(" at {u}"));
        let words = format!("a node{from} is refused: {why}");
        let entry = Refusal { words: String::new(), times: 0, last: now };
        let refusal = self.refusals.entry(them.replica).or_insert(entry);
        if refusal.words != words {
            *refusal = Refusal { words, times: 0, last: now };
        }
        refusal.times = refusal.times.saturating_add(1);
        refusal.last = now;
        // The first time may be the late end of an earlier start.
        if refusal.times == 2 {
            fx.push(Effect::Notice(Notice::Trouble(refusal.words.clone())));
        }
    }

    /// Whom this node keeps refusing, in words.
    pub(crate) fn refusing(&self, now: Instant) -> impl Iterator<Item = &str> {
        self.refusals
            .values()
            .filter(move |r| r.times > 1 && now.since(r.last) <= REFUSAL_LASTS)
            .map(|r| r.words.as_str())
    }

    fn refuses(&self, hello: &Hello) -> Option<String> {
        let them = &hello.member;
        if !valid(them) {
            return Some("the introduction breaks a limit".into());
        }
        if let Some(p) = self.peers.get(&them.replica) {
            if them.incarnation < p.info.incarnation {
                return Some(format!(
                    "start {} of {} is over, start {} was seen",
                    them.incarnation, them.name, p.info.incarnation
                ));
            }
            if p.info.left && them.incarnation == p.info.incarnation {
                return Some(format!("{} was removed from the cluster; restart it to join again", them.name));
            }
        } else if self.count() >= MEMBERS_MAX {
            return Some(format!("a cluster has at most {MEMBERS_MAX} members"));
        }
        let twin = self
            .peers
            .values()
            .find(|p| p.info.name == them.name && p.info.replica != them.replica && p.link.is_some());
        if twin.is_some() || them.name == self.me.name {
            return Some(format!("another node is already called {}: node_id must be unique", them.name));
        }
        None
    }

    /// Takes in what is newer. Returns whether anything was.
    fn learn(&mut self, info: MemberInfo, now: Instant, fx: &mut Vec<Effect>) -> bool {
        self.changed = true;
        if !valid(&info) {
            return false;
        }
        if info.replica == self.me.replica {
            if info.left && info.incarnation == self.me.incarnation && !self.expelled {
                self.expelled = true;
                fx.push(Effect::Notice(Notice::Trouble(
                    "this node was removed from the cluster; restart it to join again".into(),
                )));
            }
            return false;
        }
        let full = self.peers.len() >= MEMBERS_MAX;
        match self.peers.get_mut(&info.replica) {
            Some(p) if self.mixes_starts && info == p.info => return false,
            Some(p)
                if !self.mixes_starts && (info.incarnation, info.revision) <= (p.info.incarnation, p.info.revision) =>
            {
                return false;
            }
            Some(p) => {
                let left = info.left && !p.info.left;
                p.info = info.clone();
                if left {
                    fx.push(Effect::Notice(Notice::PeerLeave(info.clone())));
                }
            }
            None if full => {
                // Those that left long ago make room.
                let Some(gone) = self.peers.iter().find(|(_, p)| p.info.left && p.link.is_none()).map(|(r, _)| *r)
                else {
                    return false;
                };
                self.peers.remove(&gone);
                self.insert(info.clone(), now);
            }
            None => {
                self.insert(info.clone(), now);
                if !info.left {
                    fx.push(Effect::Notice(Notice::PeerJoin(info.clone())));
                }
            }
        }
        for url in &info.urls {
            self.address(url, now, false);
        }
        fx.push(Effect::Remember(info.clone()));
        true
    }

    /// A node that lost its disk comes back under its old name with new data: the old data is gone for good. Only who introduces
    /// himself is sure to be the newer one: a third that tells of both does not say which came first.
    fn replaces_twins(&mut self, info: &MemberInfo, fx: &mut Vec<Effect>) {
        let twins: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(r, p)| {
                **r != info.replica
                    && p.info.name == info.name
                    && !p.info.left
                    && !info.left
                    && p.link.is_none()
                    && p.info.urls.iter().any(|u| info.urls.contains(u))
            })
            .map(|(r, _)| *r)
            .collect();
        for old in twins {
            self.mark_left(old, fx);
        }
    }

    pub(crate) fn members(&mut self, link: LinkId, infos: Vec<MemberInfo>, now: Instant, fx: &mut Vec<Effect>) {
        self.changed = true;
        let mut news = false;
        for info in infos.into_iter().take(2 * MEMBERS_MAX) {
            news |= self.learn(info, now, fx);
        }
        if news {
            self.gossip(Some(link), fx);
        }
    }

    /// Anything arrived on this link.
    pub(crate) fn heard(&mut self, link: LinkId, now: Instant) {
        if let Some(p) = self.peer_of(link).and_then(|r| self.peers.get_mut(&r)) {
            p.phi.heard(now);
            if p.state == PeerState::Suspect {
                p.state = PeerState::Up;
                p.why.clone_from(&p.refusal);
            }
        }
    }

    pub(crate) fn beat(&mut self, link: LinkId, beat: &Beat, wall_ns: u64, now: Instant, fx: &mut Vec<Effect>) {
        if !beat.answer {
            fx.push(Effect::SayBeat { link, number: beat.number, answer: true });
            return;
        }
        let Some(l) = self.links.get(&link).filter(|l| l.beat == beat.number) else { return };
        let half = now.since(l.beat_at).0 / 2;
        let skew = i128::from(beat.wall_ns) + i128::from(half) - i128::from(wall_ns);
        if let Some(p) = l.peer.and_then(|r| self.peers.get_mut(&r)) {
            // Who answers has accepted this node.
            if !p.refusal.is_empty() {
                p.refusal.clear();
                p.why.clear();
            }
            p.skew_ns = Some(skew.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64);
        }
    }

    /// The peer stops on purpose.
    pub(crate) fn bye(&mut self, link: LinkId, now: Instant, fx: &mut Vec<Effect>) {
        self.changed = true;
        if let Some(p) = self.peer_of(link).and_then(|r| self.peers.get_mut(&r)) {
            p.is_down(now);
            p.why = "stopped".into();
            fx.push(Effect::Notice(Notice::PeerDown { member: p.info.clone(), why: p.why.clone() }));
        }
    }

    pub(crate) fn stop(&mut self, fx: &mut Vec<Effect>) {
        self.changed = true;
        self.stopping = true;
        for (_, link) in self.connected() {
            fx.push(Effect::Send(Send::Message { link, message: Message::Bye }));
        }
    }

    /// Does what is due and says when the next thing will be.
    pub(crate) fn tick(&mut self, now: Instant, fx: &mut Vec<Effect>) -> Option<Deadline> {
        if self.changed || self.next.is_some_and(|d| d.at <= now) {
            self.changed = false;
            self.next = self.do_tick(now, fx);
        }
        self.next
    }

    fn do_tick(&mut self, now: Instant, fx: &mut Vec<Effect>) -> Option<Deadline> {
        let mut next: Option<Deadline> = None;
        let mut at = |when: Instant, why: Wake| {
            let d = Deadline { at: when, why };
            next = Some(next.map_or(d, |n| n.min(d)));
        };
        for (link, l) in &mut self.links {
            match l.peer {
                Some(_) => {
                    if l.next_beat <= now {
                        l.beat += 1;
                        l.beat_at = now;
                        l.next_beat = now.after(self.heartbeat);
                        fx.push(Effect::SayBeat { link: *link, number: l.beat, answer: false });
                    }
                    at(l.next_beat, Wake::Heartbeat);
                }
                None => {
                    let end = l.up_at.after(HELLO_WAIT);
                    if end <= now {
                        l.up_at = now;
                        fx.push(Effect::Send(Send::Hangup { link: *link, why: "no introduction".into() }));
                    }
                    at(l.up_at.after(HELLO_WAIT), Wake::Suspect);
                }
            }
        }
        for p in self.peers.values_mut() {
            if p.info.left {
                continue;
            }
            if let Some(link) = p.link {
                let (suspect, down) = (p.phi.reaches(self.phi_down * 3, 8), p.phi.reaches(self.phi_down, 1));
                if down <= now {
                    let silent = now.since(p.phi.last()).0 / 1_000_000;
                    p.is_down(now);
                    p.why = format!("silent for {silent} ms");
                    fx.push(Effect::Notice(Notice::PeerDown { member: p.info.clone(), why: p.why.clone() }));
                    fx.push(Effect::Send(Send::Hangup { link, why: p.why.clone() }));
                    p.phi.heard(now); // the host's answer to the hang-up ends the link; do not ask twice at once
                } else if suspect <= now {
                    if p.state == PeerState::Up {
                        p.state = PeerState::Suspect;
                        p.why = "silent".into();
                    }
                    at(down, Wake::Suspect);
                } else {
                    at(suspect, Wake::Suspect);
                }
            } else if p.state == PeerState::Suspect || p.state == PeerState::Unknown {
                let tried = p.failed_dials >= self.dial_failures && now.since(p.lost_at) >= self.heartbeat;
                let end = p.lost_at.after(Span(self.heartbeat.0.saturating_mul(4)));
                if tried || end <= now {
                    p.is_down(now);
                    fx.push(Effect::Notice(Notice::PeerDown { member: p.info.clone(), why: p.why.clone() }));
                } else {
                    at(end.min(p.lost_at.after(self.heartbeat)).max(Instant(now.0 + 1_000_000)), Wake::Suspect);
                }
            }
        }
        if !self.stopping {
            self.dial(now, fx, &mut at);
        }
        next
    }

    fn dial(&mut self, now: Instant, fx: &mut Vec<Effect>, at: &mut dyn FnMut(Instant, Wake)) {
        for a in self.addresses.values_mut() {
            if let Way::Dialling(since) = a.way
                && now.since(since) > DIAL_LOST
            {
                a.way = Way::Idle;
            }
        }
        // Members without a link: one address at a time, in turn.
        let mut wanted: Vec<String> = Vec::new();
        for p in self.peers.values_mut().filter(|p| p.link.is_none() && !p.info.left) {
            let urls: Vec<String> = p.info.urls.iter().filter_map(|u| tidy(u)).collect();
            if urls.is_empty()
                || urls.iter().any(|u| self.addresses.get(u).is_some_and(|a| matches!(a.way, Way::Dialling(_))))
            {
                continue;
            }
            for k in 0..urls.len() {
                let i = (p.next_url + k) % urls.len();
                if let Some(a) = self.addresses.get(&urls[i])
                    && a.way == Way::Idle
                {
                    if a.next <= now {
                        p.next_url = i + 1;
                        wanted.push(urls[i].clone());
                        break;
                    }
                    at(a.next, Wake::Dial);
                }
            }
        }
        // Addresses the operator named, unless a member that lives there is connected.
        let served: Vec<String> = self
            .peers
            .values()
            .filter(|p| p.link.is_some() || p.info.left)
            .flat_map(|p| p.info.urls.iter().filter_map(|u| tidy(u)))
            .collect();
        let peers = &self.peers;
        let reached =
            |a: &Address| a.lives.and_then(|r| peers.get(&r)).is_some_and(|p| p.link.is_some() || p.info.left);
        let open = |u: &String, a: &Address| a.always && a.way == Way::Idle && !reached(a) && !served.contains(u);
        for (url, a) in self.addresses.iter().filter(|(u, a)| open(u, a)) {
            if a.next <= now {
                wanted.push(url.clone());
            } else {
                at(a.next, Wake::Dial);
            }
        }
        for url in wanted {
            if let Some(a) = self.addresses.get_mut(&url)
                && a.way == Way::Idle
            {
                a.way = Way::Dialling(now);
                at(now.after(DIAL_LOST), Wake::Dial);
                fx.push(Effect::Send(Send::Dial { url }));
            }
        }
    }
}
