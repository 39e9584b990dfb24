//! What is in the log, what of it is durable, and how far the checkpoint has come.

use crate::ids::{InodeId, ReplicaId};
use crate::message::Frontier;
use crate::time::{Hlc, Instant, Span, Stamp};
use crate::tree::Put;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Operations that nobody waits for are made durable after this at the latest.
pub(crate) const LAZY_SYNC: Span = Span::ms(20);
/// A failed checkpoint is tried again after this.
const CHECKPOINT_RETRY: Span = Span::s(2);

/// The log lane as the core sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Number of the next record.
    pub(crate) next: u64,
    /// Records up to this one are durable.
    pub(crate) synced: u64,
    /// Operations in records that are not durable yet: (record, origin, number, time).
    unsynced: VecDeque<(u64, ReplicaId, u64, Hlc)>,
    /// The sync under way and the last record that it covers.
    pub(crate) syncing: Option<u64>,
    /// Since when.
    pub(crate) syncing_since: Instant,
    /// Somebody waits for a sync.
    pub(crate) wanted: bool,
    /// When the first record was written that is not durable.
    pub(crate) dirty_since: Option<Instant>,
    /// The last sync failed: nothing in the log counts until a checkpoint has made everything durable without it.
    pub(crate) broken: bool,
    pub(crate) checkpoint: Checkpoint,
    /// A checkpoint begins after so many records, or after that long if there is anything to write.
    every: (u64, Span),
}

/// Progress of the checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// The record with which the next log begins, and what was known then. `None`: no checkpoint is being written.
    pub(crate) begun: Option<(u64, Frontier)>,
    /// The hybrid clock in its description.
    pub(crate) clock: Hlc,
    /// Bytes that stand only in the log that is to be dropped: they are written into the staging area before.
    pub(crate) unstaged: BTreeSet<(InodeId, Stamp)>,
    /// Some of them are being written.
    pub(crate) staging: usize,
    /// A page is on its way to the disk.
    pub(crate) busy: bool,
    /// Pages written since the last commit, to be written again if it fails.
    pub(crate) pages: Vec<Put>,
    /// The pages written so far are committed when the log is durable up to this record.
    pub(crate) hold: Option<u64>,
    /// Rows of the store that were written since the last whole checkpoint. Unlike pages of the tree they mean something only all
    /// together: they are never part of a commit that is not the last.
    pub(crate) rows: Vec<Put>,
    /// The same of a failed checkpoint, not written again yet.
    pub(crate) rows_again: Vec<Put>,
    /// Pages of a failed checkpoint, not written again yet.
    pub(crate) again: Vec<Put>,
    /// First record after the last checkpoint.
    pub(crate) last_cut: u64,
    pub(crate) last_at: Instant,
    pub(crate) not_before: Instant,
    /// Do it now.
    pub(crate) forced: bool,
    pub(crate) failing: bool,
}

impl Journal {
    pub(crate) fn new(next: u64, cut: u64, every: (u64, Span)) -> Journal {
        Journal {
            next,
            synced: next - 1,
            unsynced: VecDeque::new(),
            syncing: None,
            syncing_since: Instant(0),
            wanted: false,
            dirty_since: None,
            broken: false,
            checkpoint: Checkpoint {
                begun: None,
                clock: Hlc(0),
                unstaged: BTreeSet::new(),
                staging: 0,
                busy: false,
                pages: Vec::new(),
                hold: None,
                rows: Vec::new(),
                rows_again: Vec::new(),
                again: Vec::new(),
                last_cut: cut,
                last_at: Instant(0),
                not_before: Instant(0),
                forced: false,
                failing: false,
            },
            every,
        }
    }

    /// Takes the next record number.
    pub(crate) fn number(&mut self, now: Instant) -> u64 {
        let n = self.next;
        self.next += 1;
        self.dirty_since.get_or_insert(now);
        n
    }

    /// Record `index` holds this operation.
    pub(crate) fn holds(&mut self, index: u64, origin: ReplicaId, seq: u64, time: Hlc) {
        self.unsynced.push_back((index, origin, seq, time));
    }

    /// A sync should be started now.
    pub(crate) fn sync_due(&self, now: Instant) -> bool {
        let lazy = self.dirty_since.is_some_and(|t| t.after(LAZY_SYNC) <= now);
        self.syncing.is_none() && !self.broken && self.synced + 1 < self.next && (self.wanted || lazy)
    }

    pub(crate) fn sync_started(&mut self, now: Instant) {
        self.syncing = Some(self.next - 1);
        self.syncing_since = now;
        self.wanted = false;
        self.dirty_since = None;
    }

    /// The sync under way ended well: returns the operations that became durable.
    pub(crate) fn sync_ended(&mut self) -> Vec<(ReplicaId, u64, Hlc)> {
        let Some(upto) = self.syncing.take() else { return Vec::new() };
        self.durable_upto(upto)
    }

    /// Records up to `upto` are durable.
    pub(crate) fn durable_upto(&mut self, upto: u64) -> Vec<(ReplicaId, u64, Hlc)> {
        self.synced = self.synced.max(upto);
        let mut done = Vec::new();
        while let Some((index, origin, seq, time)) = self.unsynced.front().copied() {
            if index > upto {
                break;
            }
            self.unsynced.pop_front();
            done.push((origin, seq, time));
        }
        done
    }

    /// True if a checkpoint should begin.
    pub(crate) fn checkpoint_due(&self, now: Instant) -> bool {
        let c = &self.checkpoint;
        if c.begun.is_some() || c.not_before > now {
            return false;
        }
        let records = self.next - c.last_cut;
        c.forced || self.broken || records >= self.every.0 || (records > 0 && now.since(c.last_at) >= self.every.1)
    }

    /// The log has become so long that nothing can wait for it.
    pub(crate) fn overlong(&self) -> bool {
        self.broken || self.next - self.checkpoint.last_cut >= 4 * self.every.0
    }

    /// `only_logged`: versions whose bytes are nowhere else.
    pub(crate) fn checkpoint_begin(&mut self, known: Frontier, only_logged: BTreeSet<(InodeId, Stamp)>) {
        self.checkpoint.begun = Some((self.next, known));
        self.checkpoint.unstaged = only_logged;
        self.checkpoint.forced = false;
    }

    /// The checkpoint is durable: returns what it holds and the operations that became durable by it.
    pub(crate) fn checkpoint_done(&mut self, now: Instant) -> (Frontier, Vec<(ReplicaId, u64, Hlc)>) {
        let Some((cut, known)) = self.checkpoint.begun.take() else { return (Frontier::new(), Vec::new()) };
        self.checkpoint.last_cut = cut;
        self.checkpoint.last_at = now;
        self.checkpoint.pages.clear();
        self.checkpoint.rows.clear();
        self.checkpoint.hold = None;
        self.checkpoint.failing = false;
        self.broken = false;
        (known, self.durable_upto(cut - 1))
    }

    pub(crate) fn checkpoint_failed(&mut self, now: Instant) {
        self.checkpoint.begun = None;
        self.checkpoint.hold = None;
        self.checkpoint.unstaged.clear();
        self.checkpoint.failing = true;
        self.checkpoint.forced = true;
        self.checkpoint.not_before = now.after(CHECKPOINT_RETRY);
        // Older pages first: a key that was written again since then must win.
        let pages = core::mem::take(&mut self.checkpoint.pages);
        self.checkpoint.again.splice(0..0, pages);
        let rows = core::mem::take(&mut self.checkpoint.rows);
        self.checkpoint.rows_again.splice(0..0, rows);
    }

    /// When there is something to do.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        let lazy = self.dirty_since.filter(|_| self.syncing.is_none() && !self.broken).map(|t| t.after(LAZY_SYNC));
        let c = &self.checkpoint;
        let waits = c.begun.is_none() && self.next > c.last_cut;
        let check = waits.then(|| if c.forced || self.broken { c.not_before } else { c.last_at.after(self.every.1) });
        lazy.into_iter().chain(check.filter(|t| *t > now)).min()
    }
}
