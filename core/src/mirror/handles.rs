//! Reference counts of payload handles inside the core. The host sees each handle come in once and be released once.

use crate::ids::PayloadId;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// All handles that the core holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Handles {
    counts: BTreeMap<PayloadId, u32>,
    free: Vec<PayloadId>,
}

impl Handles {
    /// One more place inside the core refers to `id`.
    pub(crate) fn keep(&mut self, id: PayloadId) {
        *self.counts.entry(id).or_insert(0) += 1;
    }

    /// One place fewer.
    pub(crate) fn drop(&mut self, id: PayloadId) {
        match self.counts.get_mut(&id) {
            Some(n) if *n > 1 => *n -= 1,
            Some(_) => {
                self.counts.remove(&id);
                self.free.push(id);
            }
            None => debug_assert!(false, "payload {id} dropped more often than kept"),
        }
    }

    /// A handle that came in and is not wanted.
    pub(crate) fn refuse(&mut self, id: PayloadId) {
        if !self.counts.contains_key(&id) {
            self.free.push(id);
        }
    }

    /// Handles to be released now.
    pub(crate) fn take_free(&mut self) -> Vec<PayloadId> {
        core::mem::take(&mut self.free)
    }

    /// They can be released only with the next step. True if there are any.
    pub(crate) fn give_back(&mut self, mut later: Vec<PayloadId>) -> bool {
        self.free.append(&mut later);
        !self.free.is_empty()
    }

    /// Handles held.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }
}
