//! What events do: requests, links, completions, orders.

use super::{Flight, Node};
use crate::action::{Io, LogRecord, Refused, Reply, Send, Sighting, Spot};
use crate::event::{Admin, Change, Found, IoError, IoResult, LinkEvent, Request};
use crate::ids::{InodeId, IoToken, LinkId, OpToken};
use crate::limits::REQUESTS_IN_FLIGHT_MAX;
use crate::member::Effect;
use crate::message::{Beat, Hello, Message};
use crate::mirror::content::Verdict;
use crate::mirror::outgoing::Outgoing;
use crate::op::{Op, OpBody, Payload};
use crate::time::{Span, Stamp};
use crate::tree::{Bygone, LocalOp};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Actions that failed for a lasting reason are tried again after this.
pub(super) const RETRY: Span = Span::s(2);
/// Times that every member says that a version is gone before its author, who has not got it either, gives it up.
const ABANDON_OWN_ROUNDS: u32 = 10;
/// The same for somebody else's, so that its author comes first.
const ABANDON_FOREIGN_ROUNDS: u32 = 30;

impl Node {
    pub(super) fn request(&mut self, token: OpToken, op: Request) {
        let fresh = self.open.insert(token);
        debug_assert!(fresh, "{token} is in use");
        if self.stopping && !matches!(op, Request::Change(_) | Request::Found(_)) {
            return self.reply(token, Reply::Failed(Refused::Stopping));
        }
        match op {
            Request::Change(changes) => {
                let mut results = Vec::with_capacity(changes.len());
                for c in changes {
                    results.push(self.change(&c));
                }
                self.reply(token, Reply::Changed(results));
            }
            Request::Found(found) => {
                let mut results = Vec::with_capacity(found.len());
                for f in found {
                    results.push(self.found(&f));
                }
                self.reply(token, Reply::Found(results));
            }
            Request::Sync { ack, timeout } => {
                if self.syncs.len() >= REQUESTS_IN_FLIGHT_MAX {
                    return self.reply(token, Reply::Failed(Refused::Busy));
                }
                if self.journal.broken {
                    return self.reply(token, Reply::Failed(Refused::LogBroken));
                }
                let last = self.last_own();
                self.syncs.add(token, last, ack, self.now, timeout);
                self.journal.wanted = true;
            }
            Request::Control { ask, timeout } => self.ask_control(token, *ask, timeout),
            Request::Released { inode } => {
                self.tree.released(inode);
                self.reply(token, Reply::Done);
            }
        }
    }

    fn change(&mut self, change: &Change) -> Result<InodeId, Refused> {
        let mut payload = if let Change::Content { payload, .. } = change { *payload } else { None };
        let handle = payload;
        let clock = &mut self.clock;
        let result = match self.tree.local(change, &mut || clock.mint()) {
            Ok(outcome) => {
                self.issue(outcome.ops, &mut payload);
                for record in outcome.records {
                    self.log(record);
                }
                self.settle(outcome.inode);
                Ok(outcome.inode)
            }
            Err(why) => Err(why),
        };
        if let Some(p) = handle {
            self.handles.refuse(p.id);
        }
        result
    }

    fn found(&mut self, found: &Found) -> Result<Sighting, Refused> {
        if found.thing.is_none() && self.awaits_scan.is_none() && matches!(found.at, Spot::At { .. }) {
            return Ok(Sighting::Unknown); // No crash can have taken it.
        }
        let (lost, removed) = match &self.unproven {
            Some(u) => (true, Bygone { removed: &u.removed, replaced: &u.replaced }),
            None => (false, Bygone::default()),
        };
        let seen = self.tree.found(found, lost, &removed)?;
        for record in seen.records {
            self.log(record);
        }
        if let Sighting::Known(inode) = seen.sighting {
            self.settle(inode);
        }
        Ok(seen.sighting)
    }

    /// Makes operations of what was done here: logs them and keeps them for the others.
    pub(super) fn issue(&mut self, ops: Vec<LocalOp>, payload: &mut Option<Payload>) {
        for LocalOp { stamp, body, here } in ops {
            let content = matches!(body, OpBody::SetContent { .. });
            let op = Op {
                origin: stamp.replica,
                seq: self.last_own() + 1,
                time: stamp.time,
                body,
                payload: if content { payload.take() } else { None },
            };
            self.log(LogRecord::Op { op: op.clone(), here });
            let missing = match &op.body {
                OpBody::SetContent { inode, size: 1.., .. } if here.is_none() && op.payload.is_none() => Some(*inode),
                _ => None,
            };
            let (origin, seq) = (op.origin, op.seq);
            self.history.push(op, &mut self.handles);
            if let Some(inode) = missing {
                self.history.miss(origin, seq, inode, stamp);
            }
        }
    }

    pub(super) fn link(&mut self, event: LinkEvent) {
        let mut fx = Vec::new();
        match event {
            LinkEvent::Up { link, dialled } => self.members.link_up(link, dialled, self.now, &mut fx),
            LinkEvent::Down { link, why } => self.members.link_down(link, &why, self.now, &mut fx),
            LinkEvent::DialFailed { url, why } => self.members.dial_failed(&url, &why, self.now),
        }
        self.effects(fx);
    }

    pub(super) fn admin(&mut self, admin: Admin) {
        let mut fx = Vec::new();
        match admin {
            Admin::AddPeer { url } => self.members.add_url(&url, self.now),
            Admin::RemovePeer { url } => self.members.remove_url(&url, &mut fx),
            Admin::Scanned => {
                self.unproven = None;
                self.tree.scanned();
                if self.awaits_scan.take().is_some() {
                    self.ask_for_missed();
                }
            }
            Admin::Resign => self.with_control(|c, now, fx| c.resign(now, fx)),
            Admin::Stop => {
                self.stopping = true;
                self.with_control(|c, _, fx| c.stop(fx));
                self.members.stop(&mut fx);
                for token in self.syncs.drain() {
                    self.reply(token, Reply::Failed(Refused::Stopping));
                }
                self.journal.wanted = true;
            }
        }
        self.effects(fx);
    }

    pub(super) fn effects(&mut self, fx: Vec<Effect>) {
        for e in fx {
            match e {
                Effect::Send(s) => self.send(s),
                Effect::Notice(n) => {
                    if let crate::action::Notice::PeerJoin(_) = &n {
                        // What it has was not known when the horizon was found: nothing is forgotten before it was heard.
                        self.horizon = crate::time::Hlc(0);
                    }
                    self.out.notice.push(n);
                }
                Effect::Remember(info) => {
                    self.log(LogRecord::Member(info));
                }
                Effect::SayHello { link, called } => {
                    let hello = self.hello(called);
                    self.send(Send::Message { link, message: Message::Hello(Box::new(hello)) });
                }
                Effect::SayBeat { link, number, answer } => {
                    let beat = Beat { number, answer, wall_ns: self.clock.wall_ns, held: self.holds() };
                    self.send(Send::Message { link, message: Message::Beat(beat) });
                }
                Effect::Connected { replica } => {
                    let known = self.held.get(&replica).and_then(|h| h.log.iter().find(|m| m.origin == self.life()));
                    let known = known.map_or(0, |m| m.seq);
                    self.outgoing.insert(replica, Outgoing::new(known, self.now));
                    self.content.wake(self.now);
                    self.with_control(|c, now, fx| c.reaches(now, replica, true, fx));
                }
                Effect::Disconnected { replica } => {
                    self.outgoing.remove(&replica);
                    self.urgent.remove(&replica);
                    self.serving.retain(|s| s.to != replica);
                    if self.round.as_ref().is_some_and(|r| r.from == replica) {
                        self.round = None;
                    }
                    self.with_control(|c, now, fx| c.reaches(now, replica, false, fx));
                }
            }
        }
    }

    fn hello(&self, called: Option<String>) -> Hello {
        Hello {
            member: self.members.me.clone(),
            called,
            wall_ns: self.clock.wall_ns,
            known: self.history.durable_frontier(),
            cut: self.history.cut_frontier(),
            control: self.control.as_ref().map(|c| c.standing()).unwrap_or_default(),
        }
    }

    /// A disk action ended.
    pub(super) fn completed(&mut self, token: IoToken, result: IoResult) {
        let Some(flight) = self.flights.remove(&token) else {
            debug_assert!(false, "{token} completed twice or never started");
            return;
        };
        match flight {
            Flight::LogSync => self.log_synced(result),
            Flight::Store { last, pages } => self.stored(last, pages, result),
            Flight::Apply { ticket, inode, staged } => {
                if let (IoResult::Failed(IoError::Gone | IoError::Mismatch), Some((of, version))) = (&result, staged) {
                    self.spoiled(of, version);
                }
                self.applied(ticket, inode, result);
            }
            Flight::Fetch { inode, version } => self.fetched(inode, version, result),
            Flight::Stage { inode, version, payload } => {
                self.handles.drop(payload);
                self.staged(inode, version, result);
            }
        }
    }

    /// An inline payload was written into the staging area, for a checkpoint.
    fn staged(&mut self, inode: InodeId, version: Stamp, result: IoResult) {
        self.journal.checkpoint.staging -= 1;
        match result {
            IoResult::Fetched if self.content.now_staged(inode, version) => {
                // Another source: what failed with the other may go now.
                self.tree.came(inode);
                self.settle(inode);
            }
            IoResult::Fetched => self.out.io.push(Io::Unstage { inode, version }),
            IoResult::Failed(why) => {
                if !self.journal.checkpoint.failing {
                    self.trouble(alloc::format!("bytes cannot be staged for the checkpoint: {why:?}"));
                }
                self.checkpoint_failed();
            }
            other => debug_assert!(false, "staging was answered {other:?}"),
        }
    }

    fn log_synced(&mut self, result: IoResult) {
        if let IoResult::Failed(why) = result {
            self.journal.syncing = None;
            self.journal.broken = true;
            self.trouble(alloc::format!("the log cannot be made durable: {why:?}; a checkpoint is tried instead"));
            for token in self.syncs.drain() {
                self.reply(token, Reply::Failed(Refused::LogBroken));
            }
            self.log_lane();
            return;
        }
        let done = self.journal.sync_ended();
        self.became_durable(done);
    }

    fn stored(&mut self, last: bool, pages: usize, result: IoResult) {
        self.journal.checkpoint.busy = false;
        if let IoResult::Failed(why) = result {
            if !self.journal.checkpoint.failing {
                self.trouble(alloc::format!("the checkpoint cannot be written: {why:?}"));
            }
            self.checkpoint_failed();
            return;
        }
        self.journal.checkpoint.pages.drain(..pages.min(self.journal.checkpoint.pages.len()));
        if last && self.journal.checkpoint.begun.is_some() {
            let (known, done) = self.journal.checkpoint_done(self.now);
            self.clock.became_durable(self.journal.checkpoint.clock);
            for m in known {
                self.history.set_durable(m.origin, (m.seq, m.time));
            }
            self.became_durable(done);
            self.log_lane();
            self.with_control(|c, now, fx| c.checkpoint_done(now, fx));
            self.tell_all();
        }
    }

    fn applied(&mut self, ticket: crate::tree::Ticket, inode: InodeId, result: IoResult) {
        self.apply_flights -= 1;
        match result {
            IoResult::Applied(witness) => {
                for record in self.tree.applied(ticket, witness) {
                    if let LogRecord::Kept { inode, lost, copy } = record {
                        self.conflict_noticed(inode, lost, copy);
                    }
                    self.log(record);
                }
                self.last_failure = None;
                self.settle(inode);
            }
            IoResult::Failed(why) => {
                self.tree.failed(ticket, why);
                match why {
                    IoError::Changed => self.out.io.push(Io::Rescan { inode }),
                    IoError::Busy => {}
                    _ => {
                        self.retry_later();
                        self.last_failure = Some(why);
                    }
                }
            }
            other => debug_assert!(false, "an apply was answered {other:?}"),
        }
    }

    /// Bytes that were in the staging area are damaged or gone: they are fetched again, and not acknowledged before.
    fn spoiled(&mut self, inode: InodeId, version: Stamp) {
        self.out.io.push(Io::Unstage { inode, version });
        if self.content.spoiled(inode, version) {
            self.trouble(alloc::format!("staged bytes of {inode} are damaged: they are fetched again"));
            self.lacks(inode, version);
        }
    }

    fn fetched(&mut self, inode: InodeId, version: Stamp, result: IoResult) {
        match result {
            IoResult::Fetched => {
                self.content.put_staged(inode, version, &mut self.handles);
                self.tree.came(inode);
                self.settle(inode);
            }
            IoResult::Failed(why) => {
                let up: Vec<_> = self.members.connected().map(|(r, _)| r).collect();
                if let Verdict::Gone(rounds) = self.content.failed(inode, version, why, &up, self.now) {
                    self.nobody_has(inode, version, rounds, &up);
                    self.settle(inode);
                }
                if matches!(why, IoError::NoSpace | IoError::Broken) {
                    self.last_failure = Some(why);
                }
            }
            other => debug_assert!(false, "a fetch was answered {other:?}"),
        }
    }

    /// Every connected member says that it has not got a version. If that is all members, it is given up: a losing version at
    /// once, a winning one by whoever issued it (its bytes were lost in a crash, or it was deleted by somebody who saw it while
    /// somebody who did not moved the file), or by the first of all if it was nobody who is a member now. While its issuer
    /// lives on, the others leave it to him, and a member that is away may have it.
    fn nobody_has(&mut self, inode: InodeId, version: Stamp, rounds: u32, up: &[crate::ids::ReplicaId]) {
        let others: Vec<_> = self.members.peers.values().map(|p| &p.info).filter(|i| !i.left).collect();
        if !others.iter().all(|i| up.contains(&i.replica)) {
            return;
        }
        let present = others.iter().any(|i| i.life == version.replica);
        let mine = self.lives.contains(&version.replica);
        let first = others.iter().all(|i| self.config.replica < i.replica);
        self.tree.give_up_head(inode, version);
        if present || !(mine && rounds >= ABANDON_OWN_ROUNDS || first && rounds >= ABANDON_FOREIGN_ROUNDS) {
            return;
        }
        let clock = &mut self.clock;
        let Some(outcome) = self.tree.abandon(inode, version, &mut || clock.mint()) else { return };
        self.trouble(alloc::format!(
            "the bytes of a version of {inode} are gone: they were neither durable nor fetched when its author crashed"
        ));
        self.issue(outcome.ops, &mut None);
    }

    /// Drops content of an inode that is not wanted any more, and takes note of what is here.
    pub(super) fn settle(&mut self, inode: InodeId) {
        for version in self.history.missing_of(inode) {
            if self.content.has(inode, version) || !self.tree.wants(inode, version) {
                self.history.found(inode, version);
                self.content_moved();
            }
        }
        let end = Stamp { time: crate::time::Hlc(u64::MAX), replica: crate::ids::ReplicaId(u64::MAX) };
        let missing: Vec<_> = self.state_missing.range((inode, Stamp::ZERO)..=(inode, end)).copied().collect();
        for (i, v) in missing {
            if self.content.has(i, v) || !self.tree.wants(i, v) {
                self.state_missing.remove(&(i, v));
            }
        }
        if self.state_missing.is_empty() && !self.content_cap.is_empty() {
            self.content_cap.clear();
            self.content_moved();
        }
        for version in self.content.of(inode) {
            let proof = self.unproven.as_ref().is_some_and(|u| u.versions.contains(&(inode, version)));
            if !proof && !self.tree.wants(inode, version) {
                if self.content.discard(inode, version, &mut self.handles) {
                    self.out.io.push(Io::Unstage { inode, version });
                }
                self.content.unneed(inode, version);
            }
        }
    }

    /// Somebody who waits may want to hear that content arrived.
    fn content_moved(&mut self) {
        self.tell_held.extend(self.urgent.keys().copied());
    }

    pub(super) fn tell_all(&mut self) {
        let all: Vec<_> = self.members.connected().map(|(r, _)| r).collect();
        self.tell_held.extend(all);
    }

    /// A losing version was kept: the people behind it should hear of it.
    pub(super) fn conflict_noticed(&mut self, inode: InodeId, lost: Stamp, copy: InodeId) {
        // The copy may have no place yet; it will be beside the file.
        let path = self.tree.path(copy).or_else(|| self.tree.path(inode)).unwrap_or_default();
        let origin = lost.replica;
        let by = if self.lives.contains(&origin) || origin == self.life() {
            self.config.name.clone()
        } else {
            let mut infos = self.members.peers.values().map(|p| &p.info);
            let author = infos.find(|i| i.life == origin || i.replica == origin);
            author.map_or_else(Default::default, |i| i.name.clone())
        };
        self.out.notice.push(crate::action::Notice::Conflict { inode, lost, copy, path, by });
    }

    pub(super) fn refuse_link(&mut self, link: LinkId, why: &str) {
        self.send(Send::Message { link, message: Message::Refuse { why: why.into() } });
        self.send(Send::Hangup { link, why: why.into() });
    }
}
