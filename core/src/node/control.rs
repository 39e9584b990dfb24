//! The control plane's place in the node: its messages, records and rows.

use super::Node;
use crate::action::{LogRecord, Reply, Send};
use crate::control::{Answer, Ask, Control, Effects, Found, Refused, Standing};
use crate::ids::{OpToken, ReplicaId};
use crate::message::Message;
use crate::raft::{Lane, autopilot};
use crate::rng::Seed;
use crate::status::PeerState;
use crate::time::{Deadline, Instant, Span, Wake};
use crate::tree::Put;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Rows of the store in one page of a checkpoint.
const PAGE_ROWS: usize = 8192;
/// Bytes of them.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// A sync of the log that takes longer makes the log lane slow, for consensus. Far more than a busy disk needs, so that a passing load
/// moves no leader.
const SLOW: Span = Span::s(3);

impl Node {
    pub(super) fn recover_control(&mut self, seed: Seed, found: Found) {
        let Some(config) = self.config.control.clone() else { return };
        let me = (self.config.replica, self.config.incarnation);
        let r = Control::recover(config, me, seed, self.config.bug, found);
        self.control = Some(Box::new(r.control));
        self.first_raft = r.first;
        if !r.words.is_empty() {
            let words = r.words.join("; ");
            let before = self.first_words.take();
            self.first_words = Some(before.map_or(words.clone(), |b| alloc::format!("{b}; {words}")));
        }
    }

    /// Has the control plane do something, if there is one, and carries out what it wants.
    pub(super) fn with_control(&mut self, f: impl FnOnce(&mut Control, Instant, &mut Effects)) {
        let now = self.now;
        let Some(control) = &mut self.control else { return };
        let mut fx = Effects::default();
        f(control, now, &mut fx);
        self.control_effects(fx);
    }

    fn control_effects(&mut self, fx: Effects) {
        for (ticket, record) in fx.persist {
            let index = self.log(LogRecord::Raft(record));
            // Whoever waits for it waits for the slowest of a majority of disks.
            self.journal.wanted = true;
            if let Some(c) = &mut self.control {
                c.persists(index, ticket);
            }
        }
        for (to, message) in fx.send {
            if let Some(link) = self.members.peers.get(&to).and_then(|p| p.link) {
                self.send(Send::Message { link, message: Message::Control(Box::new(message)) });
            }
        }
        for (token, answer) in fx.reply {
            self.reply(token, Reply::Control(Box::new(answer)));
        }
        self.out.told.extend(fx.told);
        for words in fx.words {
            self.trouble(words);
        }
        self.out.again |= fx.again;
        self.journal.checkpoint.forced |= fx.checkpoint;
    }

    pub(super) fn ask_control(&mut self, token: OpToken, ask: Ask, timeout: Span) {
        if self.control.is_none() {
            return self.reply(token, Reply::Control(Box::new(Answer::Refused(Refused::Off))));
        }
        self.with_control(|c, now, fx| c.ask(now, token, ask, timeout, fx));
    }

    /// Another replica says in which control plane it is.
    pub(super) fn meets(&mut self, theirs: Standing) {
        if self.control.as_ref().is_some_and(|c| c.yields_to(theirs)) {
            // In this order, both before anything that the replica does as a member of the other cluster.
            self.log(LogRecord::Alone);
            self.with_control(|c, now, fx| c.starts_over(now, fx));
        }
    }

    /// How the log lane is, for consensus.
    pub(super) fn log_lane(&mut self) {
        let slow = self.journal.syncing.is_some() && self.now.since(self.journal.syncing_since) >= SLOW;
        let lane = if self.journal.broken {
            Lane::Failed
        } else if slow {
            Lane::Slow
        } else {
            Lane::Fine
        };
        self.with_control(|c, now, fx| c.lane_is(now, lane, fx));
    }

    pub(super) fn pump_control(&mut self) -> Option<Deadline> {
        let control = self.control.as_ref()?;
        if control.pilot_due(self.now) {
            let (members, down) = self.voters();
            self.with_control(|c, now, fx| c.pilot(now, &members, &down, fx));
        }
        self.log_lane();
        let now = self.now;
        let control = self.control.as_mut()?;
        let mut fx = Effects::default();
        let deadline = control.tick(now, &mut fx);
        let pilot = control.pilot_at().map(|at| Deadline { at: at.max(now), why: Wake::Heartbeat });
        self.journal.checkpoint.forced |= control.wants_checkpoint() && self.journal.checkpoint.begun.is_none();
        self.control_effects(fx);
        deadline.into_iter().chain(pilot).min()
    }

    /// The member table, as the autopilot wants to know it, and who was declared down or has left. Whoever was not heard since this
    /// node started is neither up nor down.
    fn voters(&self) -> (BTreeMap<ReplicaId, autopilot::Member>, BTreeSet<ReplicaId>) {
        let me = autopilot::Member { up: true, since: Instant(0), left: false };
        let mut all = BTreeMap::from([(self.config.replica, me)]);
        let mut down = BTreeSet::new();
        for (replica, p) in &self.members.peers {
            let up = matches!(p.state, PeerState::Up | PeerState::Suspect);
            if p.info.left || p.state == PeerState::Down {
                down.insert(*replica);
            }
            all.insert(*replica, autopilot::Member { up, since: p.since, left: p.info.left });
        }
        (all, down)
    }

    /// The checkpoint begins anew, after a while.
    pub(super) fn checkpoint_failed(&mut self) {
        self.journal.checkpoint_failed(self.now);
        if let Some(c) = &mut self.control {
            c.checkpoint_failed();
        }
    }

    /// Rows of the store for the checkpoint, once all pages of the tree are written. True if these were all.
    pub(super) fn take_rows(&mut self, puts: &mut Vec<Put>) -> bool {
        let Some(control) = &mut self.control else { return true };
        let again = core::mem::take(&mut self.journal.checkpoint.rows_again);
        let (rows, done) = control.take_rows(PAGE_ROWS, PAGE_BYTES);
        let rows: Vec<Put> = again.into_iter().chain(rows).collect();
        self.journal.checkpoint.rows.extend(rows.iter().cloned());
        puts.extend(rows);
        if done {
            puts.extend(control.last_row());
        }
        done
    }
}
