//! What a step does besides its events: timers, disk work, messages, each within a budget.

use super::events::RETRY;
use super::{Flight, Node, ScanDue, sooner};
use crate::action::{Io, LogRecord, Refused, Reply, Send};
use crate::bug::Bug;
use crate::ids::{InodeId, ReplicaId};
use crate::limits::APPLIES_IN_FLIGHT_MAX;
use crate::message::Message;
use crate::time::{Deadline, Hlc, Span, Stamp, Wake};
use crate::tree::Step;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Messages with operations in one step, all peers together.
const OPS_MESSAGES_PER_STEP: usize = 8;
/// Checkpoint keys in one page.
const PAGE_KEYS: usize = 512;
/// Inodes whose content is looked at again in one step.
const SETTLED_PER_STEP: usize = 8;
/// Between two looks at what every member has.
const TRIM_EVERY: Span = Span::ms(500);
/// Operations and tree nodes let go at once.
const TRIM_BUDGET: usize = 4096;
/// Payloads that are written into the staging area at the same time.
const STAGES_IN_FLIGHT_MAX: usize = 16;

impl Node {
    pub(super) fn pump(&mut self) -> Option<Deadline> {
        let mut fx = Vec::new();
        let mut wake = self.members.tick(self.now, &mut fx);
        self.effects(fx);
        self.give_up();
        self.pump_tree();
        self.pump_settled();
        self.pump_fetches();
        let control = self.pump_control();
        self.pump_log();
        self.pump_checkpoint();
        self.pump_ops();
        self.pump_state();
        self.pump_held();
        self.pump_trim();
        for (at, why) in self.due() {
            wake = sooner(wake, at, why);
        }
        wake.into_iter().chain(control).min()
    }

    fn due(&self) -> impl Iterator<Item = (crate::time::Instant, Wake)> {
        let mut v = Vec::new();
        v.extend(self.syncs.next().map(|t| (t, Wake::GiveUp)));
        v.extend(self.content.next(self.now).map(|t| (t, Wake::Retry)));
        v.extend(self.retry_at.map(|t| (t, Wake::Retry)));
        v.extend(self.awaits_scan.and_then(|s| if let ScanDue::At(t) = s { Some((t, Wake::Retry)) } else { None }));
        v.extend(self.journal.next_due(self.now).map(|t| (t, Wake::Batch)));
        v.extend(self.outgoing.values().filter_map(|o| o.resend_at()).min().map(|t| (t, Wake::Resend)));
        v.extend(self.outgoing.values().filter_map(|o| o.gathered_at()).min().map(|t| (t, Wake::Batch)));
        v.extend(self.round.as_ref().map(|r| (r.stalls_at(), Wake::Resend)));
        v.into_iter()
    }

    fn give_up(&mut self) {
        if self.config.has(Bug::WaitForever) {
            return;
        }
        for token in self.syncs.late(self.now) {
            self.reply(token, Reply::Failed(Refused::NotAcknowledged));
        }
        // A member that is declared down changes what `auto` asks.
        self.check_syncs();
    }

    fn pump_tree(&mut self) {
        if self.retry_at.is_some_and(|t| t <= self.now) {
            self.retry_at = None;
            self.tree.retry();
        }
        let content = &self.content;
        let have = |inode, version| content.source(inode, version);
        let clock = &mut self.clock;
        let own = self.tree.own_ops(&have, &mut || clock.mint(), 16);
        self.out.again |= own.len() == 16;
        for outcome in own {
            // A copy made of small bytes that came inside an operation takes them along: they may be in no file for long.
            let mut lost = outcome.records.iter().find_map(|r| match r {
                LogRecord::Kept { inode, lost, .. } => self.content.inline(*inode, *lost),
                _ => None,
            });
            self.issue(outcome.ops, &mut lost);
            for record in outcome.records {
                if let LogRecord::Kept { inode, lost, copy } = record {
                    self.conflict_noticed(inode, lost, copy);
                }
                self.log(record);
            }
            self.settle(outcome.inode);
        }
        let room = APPLIES_IN_FLIGHT_MAX.saturating_sub(self.apply_flights);
        if room == 0 || self.scan_is_awaited() {
            return;
        }
        let content = &self.content;
        let have = |inode, version| content.source(inode, version);
        let steps = self.tree.plan(&have, room);
        self.out.again |= self.tree.has_ready() || self.tree.has_own_ops();
        for step in steps {
            match step {
                Step::Apply { ticket, apply } => {
                    self.apply_flights += 1;
                    let inode = apply.inode();
                    let token = self.token(Flight::Apply { ticket, inode, staged: apply.staged() });
                    self.out.io.push(Io::Apply { token, apply });
                }
                Step::Need { inode, version, size, digest } => {
                    self.content.need(inode, version, size, digest, self.now)
                }
            }
        }
    }

    /// What stands in `backing` is left as the crash left it until it has been compared, for a bounded time.
    pub(super) fn scan_is_awaited(&mut self) -> bool {
        let Some(ScanDue::At(until)) = self.awaits_scan else { return self.awaits_scan.is_some() };
        if until > self.now {
            return true;
        }
        self.awaits_scan = None;
        self.trouble("the comparison of backing with the tree takes long: changes are applied before it has ended");
        self.ask_for_missed();
        false
    }

    /// The tree settles which versions are wanted while it plans, and does not say of which: a few inodes of which content
    /// is here or missing are looked at in each step, in turn.
    fn pump_settled(&mut self) {
        for _ in 0..SETTLED_PER_STEP {
            let after = self.settled_upto;
            let from = after.map_or(InodeId(0), |a| InodeId(a.0.saturating_add(1)));
            let state = self.state_missing.range((from, Stamp::ZERO)..).next().map(|(i, _)| *i);
            let next =
                self.history.missing_behind(after).into_iter().chain(self.content.behind(after)).chain(state).min();
            self.settled_upto = next;
            let Some(inode) = next else { break };
            self.settle(inode);
        }
    }

    fn pump_fetches(&mut self) {
        let peers: Vec<(ReplicaId, ReplicaId)> = self
            .members
            .connected()
            .filter_map(|(r, _)| self.members.peers.get(&r).map(|p| (r, p.info.life)))
            .collect();
        let up = |version: Stamp| {
            // The author has it most likely.
            let mut v: Vec<ReplicaId> =
                peers.iter().filter(|(_, life)| *life == version.replica).map(|(r, _)| *r).collect();
            v.extend(peers.iter().filter(|(_, life)| *life != version.replica).map(|(r, _)| *r));
            v
        };
        while let Some(start) = self.content.next_fetch(self.now, &up) {
            let token = self.token(Flight::Fetch { inode: start.inode, version: start.version });
            self.content.started(&start, token);
            self.out.io.push(Io::Fetch {
                token,
                from: start.from,
                inode: start.inode,
                version: start.version,
                size: start.size,
                digest: start.digest,
            });
        }
    }

    fn pump_log(&mut self) {
        if self.journal.sync_due(self.now) {
            self.journal.sync_started(self.now);
            if self.config.has(Bug::SkipSync) {
                let done = self.journal.sync_ended();
                return self.became_durable(done);
            }
            let token = self.token(Flight::LogSync);
            self.out.io.push(Io::LogSync { token });
        } else if self.journal.syncing.is_none() && self.journal.synced + 1 == self.journal.next {
            self.journal.wanted = false;
            self.journal.dirty_since = None;
        }
    }

    fn pump_checkpoint(&mut self) {
        let kept = self.unproven.is_some() && !self.journal.overlong();
        if !kept && self.journal.checkpoint_due(self.now) {
            let known = self.history.frontier();
            let bare =
                if self.config.has(Bug::CutBytes) { BTreeSet::new() } else { self.content.only_logged().collect() };
            self.journal.checkpoint_begin(known, bare);
            if let Some(c) = &mut self.control {
                c.checkpoint_begin();
            }
        }
        if !self.bytes_are_staged() {
            return;
        }
        let Some((cut, _)) = self.journal.checkpoint.begun else { return };
        if self.journal.checkpoint.busy {
            return;
        }
        if let Some(mark) = self.journal.checkpoint.hold {
            if self.journal.synced >= mark {
                self.journal.checkpoint.hold = None;
                self.journal.checkpoint.busy = true;
                // Kept until they are committed: a store that fails drops all that it was given since the last commit.
                let pages = self.journal.checkpoint.pages.len();
                let (token, commit) =
                    (self.token(Flight::Store { last: false, pages }), Some(self.journal.checkpoint.last_cut));
                self.out.io.push(Io::Store { token, puts: Vec::new(), commit });
                return;
            }
            if !self.journal.broken {
                self.journal.wanted = true;
                return;
            }
        }
        let mut puts = core::mem::take(&mut self.journal.checkpoint.again);
        let most = self.config.checkpoint_pages.max(1);
        let room = PAGE_KEYS.min(most).saturating_sub(puts.len());
        let tree = self.tree.take_dirty(room);
        let tree_done = tree.len() < room;
        puts.extend(tree.into_iter().map(|(k, v)| {
            let mut key = Vec::with_capacity(k.len() + 1);
            key.push(b't');
            key.extend_from_slice(&k);
            (key.into_boxed_slice(), v)
        }));
        self.journal.checkpoint.pages.extend(puts.iter().cloned());
        let last = tree_done && self.take_rows(&mut puts);
        let commit = if last {
            self.journal.checkpoint.clock = self.clock.last();
            // The pages hold all that is known now, also what came after the beginning, whose log records may be lost yet.
            let known = self.history.frontier();
            puts.push((Box::from(&b"m"[..]), Some(self.meta(known).into_boxed_slice())));
            let next = self.journal.next;
            Some(if self.config.has(Bug::CutEarly) { next + 64 } else { cut })
        } else if !tree_done && self.journal.checkpoint.rows.is_empty() && self.journal.checkpoint.pages.len() >= most {
            // Without its description such a commit must not tell of operations that the log may lose.
            self.journal.checkpoint.hold = Some(self.journal.next - 1);
            None
        } else {
            None
        };
        self.journal.checkpoint.busy = true;
        let token = self.token(Flight::Store { last, pages: 0 });
        self.out.io.push(Io::Store { token, puts, commit });
    }

    /// The log that a checkpoint drops may be the only place where bytes stand that wait for theirs in `backing`. They are
    /// written into the staging area first; the commit makes them durable. True if none are left.
    fn bytes_are_staged(&mut self) -> bool {
        while self.journal.checkpoint.staging < STAGES_IN_FLIGHT_MAX {
            let Some((inode, version)) = self.journal.checkpoint.unstaged.pop_first() else { break };
            // What came to stand in `backing` meanwhile is made durable by the commit, too.
            let Some(payload) = self.content.payload(inode, version) else { continue };
            self.journal.checkpoint.staging += 1;
            self.handles.keep(payload.id);
            let token = self.token(Flight::Stage { inode, version, payload: payload.id });
            self.out.io.push(Io::Stage { token, payload, inode, version });
        }
        self.journal.checkpoint.staging == 0 && self.journal.checkpoint.unstaged.is_empty()
    }

    fn pump_ops(&mut self) {
        let life = self.life();
        let waited = self.syncs.waited_remote();
        let mut budget = OPS_MESSAGES_PER_STEP;
        let links: Vec<_> = self.members.connected().collect();
        for (replica, link) in links {
            let Some(o) = self.outgoing.get_mut(&replica) else { continue };
            if o.resend_at().is_some_and(|t| t <= self.now) && !self.config.has(Bug::NoResend) {
                o.resend(self.now);
            }
            while budget > 0 {
                let Some(message) = o.next(life, waited, &self.history, self.now) else { break };
                budget -= 1;
                self.out.send.push(Send::Message { link, message });
            }
        }
        self.out.again |= budget == 0;
    }

    fn pump_held(&mut self) {
        if self.tell_held.is_empty() {
            return;
        }
        let held = self.holds();
        for replica in core::mem::take(&mut self.tell_held) {
            let Some(p) = self.members.peers.get(&replica) else { continue };
            let Some(link) = p.link else { continue };
            let life = p.info.life;
            if let Some(upto) = self.urgent.get(&replica)
                && held.content.iter().any(|m| m.origin == life && m.seq >= *upto)
            {
                self.urgent.remove(&replica);
            }
            self.out.send.push(Send::Message { link, message: Message::Held(held.clone()) });
        }
    }

    /// Lets go what every member has.
    fn pump_trim(&mut self) {
        if self.trim_at > self.now {
            return;
        }
        self.trim_at = self.now.after(TRIM_EVERY);
        let members: Vec<ReplicaId> =
            self.members.peers.iter().filter(|(_, p)| !p.info.left).map(|(r, _)| *r).collect();
        let mut stable: BTreeMap<ReplicaId, u64> = BTreeMap::new();
        let mut horizon = self.holds().clock;
        for m in self.history.durable_frontier() {
            let known = self.history.known(m.origin);
            if known.0 > m.seq {
                horizon = horizon.min(m.time);
            }
            let mut seq = m.seq;
            for r in &members {
                let held = self.held.get(r);
                let mark = held.and_then(|h| h.log.iter().find(|x| x.origin == m.origin));
                seq = seq.min(mark.map_or(0, |x| x.seq));
                if mark.is_none_or(|x| x.seq < known.0) {
                    horizon = horizon.min(mark.map_or(Hlc(0), |x| x.time));
                }
            }
            stable.insert(m.origin, seq);
        }
        for r in &members {
            horizon = horizon.min(self.held.get(r).map_or(Hlc(0), |h| h.clock));
            // What a member holds and we do not know yet may have been issued before its issuer knew what we are about to
            // forget: its word counts only when all that came before it has come here too (see the guarantees of `tree`).
            if let Some(h) = self.held.get(r) {
                for m in &h.log {
                    let known = self.history.known(m.origin);
                    if m.seq > known.0 {
                        horizon = Hlc(0);
                    }
                }
            }
        }
        self.history.trim(&stable, TRIM_BUDGET, &mut self.handles);
        if horizon > self.horizon {
            self.horizon = horizon;
        }
        if self.tree.cut(Stamp { time: self.horizon, replica: ReplicaId(0) }, TRIM_BUDGET) {
            self.trim_at = self.now;
            self.out.again = true;
        }
    }

    /// After a lasting failure everything is tried again in a while.
    pub(super) fn retry_later(&mut self) {
        let at = self.now.after(RETRY);
        self.retry_at.get_or_insert(at);
    }
}
