//! What survives: records in the log, rows in the checkpoint.
//!
//! A checkpoint stands for the log up to its cut. Of consensus it holds what its records up to there come down to, without what the
//! store had applied by then; of the store all rows as of its end, and the place in the log they stand for. So a start folds the
//! records after the cut onto the former, and the store is as far as the latter: never behind the beginning of the log.

use super::{Control, Effects};
use crate::bug::Bug;
use crate::kv::rows::Put;
use crate::raft::{Base, INDEX_MAX, Index, Input, Lane, Persisted};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The key of the one row of consensus.
pub(crate) const ROW: u8 = b'R';
/// A checkpoint is asked for when so much was applied since the last one: the log in memory can only be cut by one.
const LOG_LARGE_BYTES: u64 = 64 * 1024 * 1024;

/// The row of consensus.
#[derive(Serialize, Deserialize)]
struct Row {
    persisted: Persisted,
    store: Base,
}

/// A checkpoint's last part is on its way to the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Committing {
    store: Index,
    /// The last piece of a snapshot that it makes durable.
    ticket: Option<u64>,
}

/// A snapshot that has become the store and is not durable yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Install {
    pub(super) ticket: u64,
    pub(super) base: Base,
}

/// What a replica starts from that has forgotten what it promised: it takes no part.
pub(super) fn lost() -> Persisted {
    let mut persisted = Persisted::default();
    persisted.hard.commit = INDEX_MAX;
    persisted
}

/// The row as it was found.
pub(super) fn read(row: Option<&[u8]>, words: &mut Vec<String>) -> (Persisted, Base) {
    match row.map(crate::wire::decode::<Row>) {
        None => (Persisted::default(), Base::default()),
        Some(Ok(row)) => (row.persisted, row.store),
        Some(Err(why)) => {
            words.push(format!("the checkpoint's part of consensus is damaged: {why}"));
            (lost(), Base::default())
        }
    }
}

impl Control {
    /// The log lane has the record of this ticket under this number.
    pub(crate) fn persists(&mut self, index: u64, ticket: u64) {
        self.persists.push_back((index, ticket));
    }

    /// Records up to this one are durable.
    pub(crate) fn durable(&mut self, now: Instant, upto: u64, fx: &mut Effects) {
        let mut done = None;
        while let Some((index, ticket)) = self.persists.front().copied()
            && index <= upto
        {
            self.persists.pop_front();
            done = Some(ticket);
        }
        if let Some(ticket) = done {
            self.tell_raft(now, Input::Persisted { ticket }, fx);
        }
    }

    /// How the log lane is.
    pub(crate) fn lane_is(&mut self, now: Instant, lane: Lane, fx: &mut Effects) {
        if self.lane == lane {
            return;
        }
        self.lane = lane;
        if lane == Lane::Failed {
            // What was in flight is written anew when the lane is whole again.
            self.persists.clear();
        }
        self.tell_raft(now, Input::Disk(lane), fx);
    }

    /// The log has become so large that a checkpoint should make room.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.install.is_some() || self.applied_bytes > LOG_LARGE_BYTES
    }

    /// A checkpoint begins, whose log begins with the next record.
    pub(crate) fn checkpoint_begin(&mut self) {
        let applied = self.raft.applied();
        let base = self.raft.base_at(applied).unwrap_or_else(|| self.raft.base().clone());
        let mut entries = self.raft.entries(base.index + 1, usize::MAX);
        if self.has(Bug::CutWithoutEntries) {
            entries.clear();
        }
        let hard = self.raft.hard();
        self.cut = Some(Persisted { hard, base, entries });
        self.committing = None;
    }

    /// Rows of the store that changed, and whether these were all.
    pub(crate) fn take_rows(&mut self, max_rows: usize, max_bytes: usize) -> (Vec<Put>, bool) {
        self.store.take_rows(max_rows, max_bytes)
    }

    /// The last row: what goes with all that were taken. To be called in the step in which [`Control::take_rows`] said that nothing
    /// is left.
    pub(crate) fn last_row(&mut self) -> Option<Put> {
        let persisted = self.cut.take()?;
        if self.raft.broken().is_some() {
            // It stays so: the records that show it may go with the log.
            let row = crate::wire::encode(&Row { persisted: lost(), store: Base::default() });
            return Some((Box::from(&[ROW][..]), Some(row.into_boxed_slice())));
        }
        let store = match &self.install {
            Some(i) => i.base.clone(),
            None => self.raft.base_at(self.store.applied())?,
        };
        self.applied_bytes = 0;
        self.committing = Some(Committing { store: store.index, ticket: self.install.as_ref().map(|i| i.ticket) });
        let row = crate::wire::encode(&Row { persisted, store });
        Some((Box::from(&[ROW][..]), Some(row.into_boxed_slice())))
    }

    /// The checkpoint is durable.
    pub(crate) fn checkpoint_done(&mut self, now: Instant, fx: &mut Effects) {
        let Some(c) = self.committing.take() else { return };
        if let Some(ticket) = c.ticket
            && self.install.as_ref().is_some_and(|i| i.ticket == ticket)
        {
            self.install = None;
            self.tell_raft(now, Input::SnapshotInstalled { ticket }, fx);
            self.ready(fx);
        }
        if c.store <= self.raft.applied() {
            self.tell_raft(now, Input::Compact { index: c.store }, fx);
        }
    }

    /// It could not be written, and begins anew.
    pub(crate) fn checkpoint_failed(&mut self) {
        self.cut = None;
        self.committing = None;
    }
}
