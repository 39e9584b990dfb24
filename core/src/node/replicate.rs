//! Operations and acknowledgements between nodes.

use super::Node;
use crate::action::{LogRecord, Reply, Send};
use crate::bug::Bug;
use crate::ids::{LinkId, ReplicaId};
use crate::message::{Frontier, Held, Mark, Message};
use crate::mirror::syncs::Copy;
use crate::op::{Op, OpBody};
use crate::status::PeerState;
use crate::time::{Hlc, Span};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// Operations that were asked for are asked for again after this.
const ASK_AGAIN: Span = Span::ms(1000);

/// Operations, or a state that stands for them.
fn brings_changes(message: &Message) -> bool {
    matches!(message, Message::Ops { .. } | Message::Cut(_) | Message::StateDigests { .. } | Message::State { .. })
}

impl Node {
    pub(super) fn message(&mut self, link: LinkId, message: Message) {
        let mut fx = Vec::new();
        self.members.heard(link, self.now);
        let peer = match &message {
            Message::Hello(hello) => {
                let known: Frontier = hello.known.clone();
                self.members.hello(link, hello, self.now, &mut fx);
                if self.members.peer_of(link) == Some(hello.member.replica) {
                    // What the other has comes first: the connection starts behind it.
                    self.start_held(hello.member.replica, known.clone());
                    self.effects(fx);
                    self.meets(hello.control);
                    self.consider(hello.member.replica, link, &known);
                } else {
                    self.effects(fx);
                }
                return;
            }
            Message::Refuse { why } => {
                self.members.refused(link, why, &mut fx);
                return self.effects(fx);
            }
            _ => match self.members.peer_of(link) {
                Some(peer) => peer,
                None => return self.refuse_payloads(&message),
            },
        };
        if self.holds_out() && brings_changes(&message) && !self.gives_back(&message) {
            return self.refuse_payloads(&message);
        }
        match message {
            Message::Beat(beat) => {
                self.members.beat(link, &beat, self.clock.wall_ns, self.now, &mut fx);
                let log = beat.held.log.clone();
                self.on_held(peer, beat.held);
                self.consider(peer, link, &log);
            }
            Message::Ops { origin, after, ops, urgent } => self.on_ops(peer, link, origin, after, ops, urgent),
            Message::Held(held) => self.on_held(peer, held),
            Message::Want { origin, from } => {
                let (life, last) = (self.life(), self.last_own());
                if let Some(o) = self.outgoing.get_mut(&peer) {
                    o.want(origin, from, life, last);
                }
            }
            Message::Members(infos) => self.members.members(link, infos, self.now, &mut fx),
            Message::Cut(mark) => self.on_cut(peer, link, mark),
            Message::StateDigests { round, level, buckets, context } => {
                self.on_digests(peer, link, round, level, buckets, context);
            }
            Message::StateWant { round, level, buckets } => self.on_state_want(peer, round, level, buckets),
            Message::State { round, level, bucket, after, records, last, context } => {
                self.on_state(peer, link, round, level, bucket, after, records, last, context);
            }
            Message::Bye => self.members.bye(link, self.now, &mut fx),
            Message::Control(m) => self.with_control(|c, now, fx| c.message(now, peer, *m, fx)),
            Message::Hello(_) | Message::Refuse { .. } => {}
        }
        self.effects(fx);
    }

    /// After the end of the process the log explains whatever the disk holds. Later changes by others would hide that: what they
    /// renamed or removed would look like somebody's new work. So nothing is taken from them before the scan has ended; it is
    /// all asked for again then. After the end of the machine it is the other way round: the log may have lost what the others
    /// know, and what they tell explains more.
    fn holds_out(&mut self) -> bool {
        self.unproven.is_none() && self.scan_is_awaited() && !self.config.has(Bug::HearBeforeScan)
    }

    /// Operations of this node itself that its log has lost: they tell what the disk holds, and are heard before the scan.
    fn gives_back(&self, message: &Message) -> bool {
        matches!(message, Message::Ops { origin, .. } if self.lives.contains(origin))
    }

    /// The scan after a crash has ended, or takes too long: what came meanwhile and was not taken is asked for.
    pub(super) fn ask_for_missed(&mut self) {
        self.asked.clear();
        let links: Vec<(ReplicaId, LinkId)> = self.members.connected().collect();
        for (replica, link) in links {
            let Some(life) = self.members.peers.get(&replica).map(|p| p.info.life) else { continue };
            let known = self.history.known(life).0;
            self.ask(link, life, known + 1);
        }
    }

    fn refuse_payloads(&mut self, message: &Message) {
        if let Message::Ops { ops, .. } = message {
            for p in ops.iter().filter_map(|op| op.payload) {
                self.handles.refuse(p.id);
            }
        }
    }

    fn on_ops(
        &mut self,
        peer: ReplicaId,
        link: LinkId,
        origin: ReplicaId,
        after: (u64, Hlc),
        ops: Vec<Op>,
        urgent: bool,
    ) {
        let handles: Vec<_> = ops.iter().filter_map(|op| op.payload.map(|p| p.id)).collect();
        let upto = ops.last().map_or(after.0, |op| op.seq);
        if self.lives.contains(&origin) && origin == self.life() {
            self.trouble("a peer sends operations under this node's own origin: is its data directory a copy of ours?");
        } else {
            self.take_ops(peer, link, origin, after, ops);
        }
        for id in handles {
            self.handles.refuse(id);
        }
        if urgent {
            let u = self.urgent.entry(peer).or_insert(0);
            *u = (*u).max(upto);
            self.journal.wanted = true;
            self.tell_held.insert(peer);
        }
    }

    fn take_ops(&mut self, peer: ReplicaId, link: LinkId, origin: ReplicaId, after: (u64, Hlc), ops: Vec<Op>) {
        let known = self.history.known(origin);
        if !self.history.admits(origin) {
            return self.refuse_link(link, "too many origins");
        }
        if after.0 > known.0 && !self.config.has(Bug::ApplyOutOfOrder) {
            return self.ask(link, origin, known.0 + 1);
        }
        let mut last = after;
        for op in ops {
            let in_order = op.seq == last.0 + 1 && op.time > last.1 && op.origin == origin;
            if !in_order {
                return self.refuse_link(link, "operations out of order");
            }
            last = (op.seq, op.time);
            let known = self.history.known(origin);
            if op.seq <= known.0 {
                continue;
            }
            if !self.clock.observe(op.time) {
                self.trouble(format!(
                    "operations of {origin} are stamped more than a day ahead of this node's clock: refused"
                ));
                return self.refuse_link(link, "your operations are stamped more than a day ahead: check the clocks");
            }
            if self.tree.is_cut(op.stamp()) && !self.config.has(Bug::TakeStrangersForRepeats) {
                // This node was cut off from its issuer (alone with a new disk, or removed from the cluster) and has
                // forgotten what every member known then had up to a later stamp. The operation can no longer be slotted in; its
                // effect is merged with all that the peer knows.
                return self.on_cut(peer, link, Mark { origin, seq: op.seq, time: op.time });
            }
            if op.seq != known.0 + 1 {
                // Only with the planted bug: pretend that there was no gap.
                self.history.adopt(&[Mark { origin, seq: op.seq - 1, time: last.1 }], &mut self.handles);
            }
            self.accept(op);
        }
        self.asked.remove(&origin);
    }

    /// The next operation of its origin, not ours.
    fn accept(&mut self, op: Op) {
        let inode = match &op.body {
            OpBody::Place { inode, .. } | OpBody::SetAttr { inode, .. } | OpBody::SetContent { inode, .. } => {
                Some(*inode)
            }
            OpBody::Remove { .. } => None,
        };
        self.tree.integrate(op.stamp(), &op.body);
        self.log(LogRecord::Op { op: op.clone(), here: None });
        let version = op.stamp();
        let (origin, seq, payload) = (op.origin, op.seq, op.payload);
        let size = if let OpBody::SetContent { size, .. } = op.body { Some(size) } else { None };
        self.history.push(op, &mut self.handles);
        if let (Some(inode), Some(size)) = (inode, size) {
            match payload {
                Some(p) => {
                    self.content.put_payload(inode, version, p, &mut self.handles);
                    self.tree.came(inode);
                }
                None if size > 0 => self.history.miss(origin, seq, inode, version),
                None => {}
            }
        }
        if let Some(inode) = inode {
            self.settle(inode);
        }
    }

    /// Compares what somebody else has with what we have, and asks for what we lack.
    fn consider(&mut self, peer: ReplicaId, link: LinkId, theirs: &Frontier) {
        let holds_out = self.holds_out();
        let pushes: BTreeMap<ReplicaId, ReplicaId> = self
            .members
            .peers
            .iter()
            .filter(|(_, p)| p.state == PeerState::Up)
            .map(|(r, p)| (p.info.life, *r))
            .collect();
        for m in theirs {
            let known = self.history.known(m.origin).0;
            if m.seq <= known {
                continue;
            }
            if m.origin == self.life() {
                // Nothing of ours is sent before it is in the log, and after a crash the origin is another one.
                if !self.outdated {
                    self.outdated = true;
                    self.trouble(
                        "this data is an older copy of itself: others know more of what this node did than it does",
                    );
                }
                continue;
            }
            if holds_out && !self.lives.contains(&m.origin) {
                continue;
            }
            // A member that is up sends its own operations by itself; the others are asked for.
            let waits = self.asked.entry(m.origin).or_insert(if pushes.contains_key(&m.origin) {
                self.now
            } else {
                crate::time::Instant(0)
            });
            let due = waits.0 == 0 || self.now.since(*waits) >= ASK_AGAIN;
            let _ = peer;
            if due {
                self.ask(link, m.origin, known + 1);
            }
        }
    }

    fn ask(&mut self, link: LinkId, origin: ReplicaId, from: u64) {
        self.asked.insert(origin, self.now);
        self.send(Send::Message { link, message: Message::Want { origin, from } });
    }

    /// What we hold durably.
    pub(super) fn holds(&self) -> Held {
        let log = if self.config.has(Bug::AckBeforeDurable) {
            self.history.frontier()
        } else {
            self.history.durable_frontier()
        };
        let mut content = if self.config.has(Bug::AckBeforeContent) {
            log.clone()
        } else if self.config.has(Bug::AckBeforeDurable) {
            self.history.undurable_content_frontier()
        } else {
            self.history.content_frontier()
        };
        if !self.content_cap.is_empty() {
            for m in &mut content {
                if let Some(cap) = self.content_cap.get(&m.origin) {
                    m.seq = m.seq.min(*cap);
                }
            }
        }
        let known = self.history.known(self.life());
        let durable = self.history.durable(self.life());
        let promise = self.clock.promise();
        let clock = if known.0 == durable.0 { promise } else { durable.1.min(promise) };
        Held { log, content, clock }
    }

    fn on_held(&mut self, peer: ReplicaId, held: Held) {
        let life = self.life();
        if let Some(o) = self.outgoing.get_mut(&peer) {
            o.held(&held, life, self.now);
        }
        self.note_held(peer, held);
        self.check_syncs();
    }

    /// At the start of a connection its introduction counts, even if it has less than before: its disk may have been damaged.
    fn start_held(&mut self, peer: ReplicaId, log: Frontier) {
        let mine = self.held.entry(peer).or_default();
        let has = |m: &mut Mark| {
            let now = log.iter().find(|l| l.origin == m.origin).map_or(0, |l| l.seq);
            m.seq = m.seq.min(now);
            m.seq > 0
        };
        mine.content.retain_mut(has);
        mine.log = log;
    }

    /// Acknowledgements only grow.
    fn note_held(&mut self, peer: ReplicaId, held: Held) {
        let mine = self.held.entry(peer).or_default();
        mine.clock = mine.clock.max(held.clock);
        for (old, new) in [(&mut mine.log, held.log), (&mut mine.content, held.content)] {
            for m in new {
                match old.binary_search_by_key(&m.origin, |o| o.origin) {
                    Ok(i) => old[i] = if m.seq > old[i].seq { m } else { old[i] },
                    Err(i) if old.len() < 8192 => old.insert(i, m),
                    Err(_) => {}
                }
            }
        }
    }

    pub(super) fn became_durable(&mut self, done: Vec<(ReplicaId, u64, Hlc)>) {
        let mut origins: Vec<ReplicaId> = Vec::new();
        for (origin, seq, time) in done {
            self.history.set_durable(origin, (seq, time));
            self.clock.became_durable(time);
            if origins.last() != Some(&origin) {
                origins.push(origin);
            }
        }
        for (r, p) in &self.members.peers {
            if origins.contains(&p.info.life) && p.link.is_some() {
                self.tell_held.insert(*r);
            }
        }
        self.check_syncs();
        let upto = self.journal.synced;
        self.with_control(|c, now, fx| c.durable(now, upto, fx));
    }

    /// How far the other members hold what this node issued.
    pub(super) fn copies(&self) -> Vec<Copy> {
        let life = self.life();
        let old: Vec<(ReplicaId, u64)> = self
            .lives
            .iter()
            .filter(|l| **l != life)
            .map(|l| (*l, self.history.known(*l).0))
            .filter(|(_, s)| *s > 0)
            .collect();
        let seq = |f: &Frontier, o: ReplicaId| f.iter().find(|m| m.origin == o).map_or(0, |m| m.seq);
        let copy = |r: &ReplicaId, up: bool| {
            let Some(h) = self.held.get(r) else { return Copy { held: 0, up } };
            let all_old = old.iter().all(|(o, s)| seq(&h.log, *o) >= *s && seq(&h.content, *o) >= *s);
            let held = if all_old { seq(&h.log, life).min(seq(&h.content, life)) } else { 0 };
            Copy { held, up }
        };
        self.members
            .peers
            .iter()
            .filter(|(_, p)| !p.info.left)
            .map(|(r, p)| copy(r, p.state != PeerState::Down))
            .collect()
    }

    pub(super) fn check_syncs(&mut self) {
        if self.syncs.len() == 0 {
            return;
        }
        let durable = self.history.durable(self.life()).0;
        // A node that holds nothing to be made durable holds it all.
        let durable = if self.last_own() == 0 { u64::MAX } else { durable };
        let copies = self.copies();
        for (token, copies) in self.syncs.met(durable, &copies, self.config.has(Bug::CountDownMember)) {
            self.reply(token, Reply::Synced { copies });
        }
    }
}
