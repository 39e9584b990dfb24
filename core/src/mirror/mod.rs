//! Mirror volumes: every node has every file, changes go to all, nobody has to ask.
//!
//! * [`history`]: the operations of each origin, how far they are known and durable, kept until every member has them.
//! * [`outgoing`]: what each connected member still has to be sent.
//! * [`content`]: bytes that travel beside the operations.
//! * [`syncs`]: who waits for how many copies.
//! * [`state`]: catching up by comparing digests when operations were cut.
//! * [`handles`]: payload handles are released exactly once.

pub(crate) mod content;
pub(crate) mod handles;
pub(crate) mod history;
pub(crate) mod outgoing;
pub(crate) mod state;
pub(crate) mod syncs;

use crate::ids::InodeId;
use crate::time::{Hlc, Stamp};
use alloc::collections::BTreeMap;
use core::ops::Bound;

/// The inode of the first key behind `after` in a map of versions.
pub(crate) fn first_behind<T>(map: &BTreeMap<(InodeId, Stamp), T>, after: Option<InodeId>) -> Option<InodeId> {
    let end = Stamp { time: Hlc(u64::MAX), replica: crate::ids::ReplicaId(u64::MAX) };
    let start = after.map_or(Bound::Unbounded, |i| Bound::Excluded((i, end)));
    map.range((start, Bound::Unbounded)).next().map(|((i, _), _)| *i)
}
