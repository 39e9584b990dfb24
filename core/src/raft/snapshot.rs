//! State for those that need more than the log has: in pieces, one after the other, from the leader's store to theirs.

use super::entry::{Base, Bytes, Index, Term};
use super::io::Effect;
use super::leader::Leading;
use super::message::Body;
use super::progress::{Mode, Progress, Sending};
use super::{Bug, Raft, ReplicaId};
use crate::limits::{RAFT_PIECE_MAX_BYTES, RAFT_PIECES_MAX, RAFT_SNAPSHOTS_SENDING_MAX};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A snapshot on its way in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Receiving {
    /// Who sends it, in which term, and its number.
    key: (ReplicaId, Term, u64),
    base: Base,
    /// The next piece that is wanted.
    next: u32,
    /// The ticket of the one that the store has not taken yet.
    busy: Option<u64>,
}

impl Progress {
    /// The number of the transfer under way.
    pub(super) fn transfer(&self) -> Option<u64> {
        match &self.mode {
            Mode::Snapshot(s) if s.transfer > 0 => Some(s.transfer),
            _ => None,
        }
    }
}

impl Leading {
    /// Entries after this are needed when a snapshot has arrived.
    pub(super) fn snapshots_from(&self) -> Option<Index> {
        let base = |p: &Progress| match &p.mode {
            Mode::Snapshot(s) => s.base.as_ref().map(|b| b.index),
            _ => None,
        };
        self.progress.values().filter_map(base).min()
    }

    fn sending(&mut self, transfer: u64) -> Option<(ReplicaId, &mut Sending)> {
        self.progress.iter_mut().find_map(|(id, p)| match &mut p.mode {
            Mode::Snapshot(s) if s.transfer == transfer && transfer > 0 => Some((*id, s)),
            _ => None,
        })
    }

    fn sending_to(&mut self, to: ReplicaId) -> Option<&mut Sending> {
        match &mut self.progress.get_mut(&to)?.mode {
            Mode::Snapshot(s) => Some(s),
            _ => None,
        }
    }
}

/// Sending.
impl Raft {
    pub(super) fn begin_snapshot(&mut self, to: ReplicaId, fx: &mut Vec<Effect>) {
        let now = self.now;
        let Some(lead) = &mut self.lead else { return };
        let busy = lead.progress.values().filter(|p| p.transfer().is_some()).count() >= RAFT_SNAPSHOTS_SENDING_MAX;
        let Some(p) = lead.progress.get_mut(&to) else { return };
        let mut s = Sending { transfer: 0, base: None, piece: 0, held: None, at: now };
        if !busy {
            lead.transfers += 1;
            s.transfer = lead.transfers;
            fx.push(Effect::SnapshotWanted { to, transfer: s.transfer, after: None });
        }
        p.probe();
        p.mode = Mode::Snapshot(s);
    }

    /// Nothing is sent besides the pieces; a follower that had to wait may have its turn.
    pub(super) fn send_snapshot(&mut self, to: ReplicaId, fx: &mut Vec<Effect>) {
        let now = self.now;
        let patience = self.config.heartbeat;
        let Some(lead) = &mut self.lead else { return };
        if lead.sending_to(to).is_some_and(|s| s.transfer == 0 && now >= s.at.after(patience)) {
            // By now the log may reach it again.
            let reaches = lead.progress.get(&to).is_some_and(|p| self.log.term(p.matched).is_some() && p.matched > 0);
            if reaches {
                if let Some(p) = lead.progress.get_mut(&to) {
                    p.probe();
                }
                return self.replicate(to, false, fx);
            }
            self.begin_snapshot(to, fx);
        }
    }

    fn send_piece(&self, to: ReplicaId, s: &Sending, fx: &mut Vec<Effect>) {
        if let (Some((data, cursor)), Some(base)) = (&s.held, &s.base) {
            let (transfer, base, piece, data, last) =
                (s.transfer, base.clone(), s.piece, data.clone(), cursor.is_none());
            self.send(to, Body::Snapshot { transfer, base, piece, data, last }, fx);
        }
    }

    pub(super) fn resend_snapshot(&mut self, to: ReplicaId, fx: &mut Vec<Effect>) {
        let (now, patience) = (self.now, self.config.heartbeat);
        let Some(s) = self.lead.as_mut().and_then(|l| l.sending_to(to)) else { return };
        if s.held.is_some() && now >= s.at.after(patience) {
            s.at = now;
            let s = s.clone();
            self.send_piece(to, &s, fx);
        }
    }

    pub(super) fn snapshot_piece(
        &mut self,
        transfer: u64,
        index: Index,
        data: Bytes,
        cursor: Option<Bytes>,
        fx: &mut Vec<Effect>,
    ) {
        assert!(data.len() <= RAFT_PIECE_MAX_BYTES, "a piece has a limit");
        // The log must go on where the snapshot ends.
        let base = self.base_at(index).filter(|_| index <= self.commit && index > 0);
        let now = self.now;
        let Some((to, s)) = self.lead.as_mut().and_then(|l| l.sending(transfer)) else { return };
        if s.held.is_some() {
            return;
        }
        let fits = s.base.as_ref().map_or(base.is_some(), |b| b.index == index && base.is_some());
        if !fits || s.piece >= RAFT_PIECES_MAX {
            return self.snapshot_failed(transfer, fx);
        }
        if s.base.is_none() {
            s.base = base;
        }
        s.held = Some((data, cursor));
        s.at = now;
        let s = s.clone();
        self.send_piece(to, &s, fx);
    }

    /// It is begun anew, after a while.
    pub(super) fn snapshot_failed(&mut self, transfer: u64, fx: &mut Vec<Effect>) {
        let now = self.now;
        let Some((_, s)) = self.lead.as_mut().and_then(|l| l.sending(transfer)) else { return };
        *s = Sending { transfer: 0, base: None, piece: 0, held: None, at: now };
        fx.push(Effect::SnapshotDone { transfer });
    }

    pub(super) fn on_snapshot_reply(
        &mut self,
        from: ReplicaId,
        transfer: u64,
        next: Option<u32>,
        fx: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(lead) = &mut self.lead else {
            self.refused.stray += 1;
            return;
        };
        if let Some(p) = lead.progress.get_mut(&from) {
            p.heard = now;
            p.reachable = true;
        }
        let Some(s) = lead.sending_to(from).filter(|s| s.transfer == transfer && transfer > 0) else { return };
        match next {
            None => self.snapshot_failed(transfer, fx),
            Some(n) if n == s.piece + 1 => match s.held.take() {
                Some((_, Some(cursor))) => {
                    s.piece = n;
                    s.at = now;
                    fx.push(Effect::SnapshotWanted { to: from, transfer, after: Some(cursor) });
                }
                // The last is there: what remains is the acknowledgement of the whole.
                other => s.held = other,
            },
            // It is not where we are: a repeat of an earlier answer, or it forgot what it had.
            Some(0) if s.piece > 0 => self.snapshot_failed(transfer, fx),
            Some(_) => (),
        }
    }
}

/// Receiving.
impl Raft {
    pub(super) fn on_snapshot(
        &mut self,
        key: (ReplicaId, Term, u64),
        base: Base,
        piece: u32,
        data: Bytes,
        last: bool,
        fx: &mut Vec<Effect>,
    ) {
        // A store that is ahead of the log is the sign of a snapshot, after a crash, and not of a log that was lost: for that, cluster
        // and term are durable before the store has it.
        if self.installing.is_some() || !self.disk.hard_durable() {
            return;
        }
        if base.index <= self.commit && !self.config.has(Bug::OldSnapshot) {
            // All of this is here already.
            self.receiving = None;
            return self.agree(self.commit);
        }
        let (from, _, transfer) = key;
        let fresh = self.receiving.as_ref().is_none_or(|r| r.key != key || r.base != base);
        if fresh && piece == 0 {
            self.receiving = Some(Receiving { key, base: base.clone(), next: 0, busy: None });
        }
        let Some(r) = self.receiving.as_mut().filter(|r| r.key == key && r.base == base) else {
            return self.send(from, Body::SnapshotReply { transfer, next: None }, fx);
        };
        if r.busy.is_some() {
            return;
        }
        if piece != r.next {
            let next = Some(r.next);
            return self.send(from, Body::SnapshotReply { transfer, next }, fx);
        }
        self.pieces += 1;
        let ticket = self.pieces;
        r.busy = Some(ticket);
        if last {
            self.installing = Some((ticket, base.clone()));
        }
        fx.push(Effect::SnapshotPiece { ticket, base, piece, data, last });
    }

    pub(super) fn piece_taken(&mut self, ticket: u64, fx: &mut Vec<Effect>) {
        let Some(r) = self.receiving.as_mut().filter(|r| r.busy == Some(ticket)) else { return };
        r.busy = None;
        r.next += 1;
        let ((from, term, transfer), next) = (r.key, Some(r.next));
        if term == self.hard.term {
            self.send(from, Body::SnapshotReply { transfer, next }, fx);
        }
    }

    pub(super) fn snapshot_refused(&mut self, ticket: u64, fx: &mut Vec<Effect>) {
        if self.installing.as_ref().is_some_and(|(t, _)| *t == ticket) {
            self.installing = None;
        }
        let Some(r) = self.receiving.take_if(|r| r.busy == Some(ticket)) else { return };
        let (from, term, transfer) = r.key;
        if term == self.hard.term {
            self.send(from, Body::SnapshotReply { transfer, next: None }, fx);
        }
    }

    pub(super) fn snapshot_installed(&mut self, ticket: u64) {
        let Some((expected, base)) = self.installing.take() else { return };
        assert_eq!(expected, ticket, "only what was handed out can be installed");
        self.receiving = None;
        self.applied = base.index;
        self.handed = base.index;
        self.commit = self.commit.max(base.index);
        let index = base.index;
        if self.log.term(index) != Some(base.term) {
            self.log.reset(base);
            self.disk.reset(index);
        }
        self.agree(index);
    }
}
