//! The operations of each origin.
//!
//! Operations of one origin are known without gaps. They are kept in memory until every member holds them durably, so
//! that a member which missed some gets just those; beyond [`crate::limits::RETAINED_OPS_MAX`] the oldest are let go and a member that
//! still lacks them catches up by state. Inline payloads are let go earlier: their bytes can be fetched by range.

use super::handles::Handles;
use crate::ids::{InodeId, ReplicaId};
use crate::message::{Frontier, Mark};
use crate::op::{Op, OpBody};
use crate::time::{Hlc, Stamp};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Inline payloads kept for members that lag, in bytes.
const RETAINED_PAYLOAD_BYTES: u64 = 64 * 1024 * 1024;
/// Origins remembered. Each start after a crash makes one.
const ORIGINS_MAX: usize = 4096;

/// One origin's operations.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The last known one.
    pub(crate) known: (u64, Hlc),
    /// The last one in the durable log.
    pub(crate) durable: (u64, Hlc),
    /// The last one that is no longer kept.
    pub(crate) cut: (u64, Hlc),
    kept: VecDeque<Op>,
    /// Operations whose content is not held durably here.
    missing: BTreeMap<u64, (InodeId, Stamp)>,
}

/// All origins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct History {
    origins: BTreeMap<ReplicaId, Origin>,
    kept: usize,
    /// How many may be kept.
    most: usize,
    payload_bytes: u64,
    payloads: VecDeque<(ReplicaId, u64)>,
    /// (inode, version) -> the operation that is missing it.
    missing: BTreeMap<(InodeId, Stamp), (ReplicaId, u64)>,
}

impl History {
    /// No operations yet, and never more than `most` kept.
    pub(crate) fn keeping(most: usize) -> History {
        History { most, ..History::default() }
    }

    /// What is known of an origin; zeros if nothing.
    pub(crate) fn known(&self, origin: ReplicaId) -> (u64, Hlc) {
        self.origins.get(&origin).map_or((0, Hlc(0)), |o| o.known)
    }

    pub(crate) fn durable(&self, origin: ReplicaId) -> (u64, Hlc) {
        self.origins.get(&origin).map_or((0, Hlc(0)), |o| o.durable)
    }

    pub(crate) fn cut(&self, origin: ReplicaId) -> (u64, Hlc) {
        self.origins.get(&origin).map_or((0, Hlc(0)), |o| o.cut)
    }

    /// True if one more origin can be remembered, or this one is.
    pub(crate) fn admits(&self, origin: ReplicaId) -> bool {
        self.origins.len() < ORIGINS_MAX || self.origins.contains_key(&origin)
    }

    /// The next operation of its origin became known. Keeps its payload.
    pub(crate) fn push(&mut self, op: Op, handles: &mut Handles) {
        let o = self.origins.entry(op.origin).or_default();
        debug_assert_eq!(op.seq, o.known.0 + 1, "operations of an origin have no gaps");
        o.known = (op.seq, op.time);
        if let Some(p) = &op.payload {
            handles.keep(p.id);
            self.payload_bytes += u64::from(p.len);
            self.payloads.push_back((op.origin, op.seq));
        }
        o.kept.push_back(op);
        self.kept += 1;
    }

    /// Operations from `from` on, oldest first. Empty if `from` was cut or is not known yet.
    pub(crate) fn from(&self, origin: ReplicaId, from: u64) -> impl Iterator<Item = &Op> {
        let kept = self.origins.get(&origin).map(|o| &o.kept);
        let first = kept.and_then(|k| k.front()).map_or(u64::MAX, |op| op.seq);
        let skip = if from >= first { (from - first).min(usize::MAX as u64) as usize } else { usize::MAX };
        kept.into_iter().flat_map(move |k| k.range(skip.min(k.len())..))
    }

    /// (number, time) of the operation right before `seq`.
    pub(crate) fn before(&self, origin: ReplicaId, seq: u64) -> (u64, Hlc) {
        let Some(o) = self.origins.get(&origin) else { return (0, Hlc(0)) };
        if seq <= o.cut.0 + 1 {
            return o.cut;
        }
        self.from(origin, seq - 1).next().map_or(o.cut, |op| (op.seq, op.time))
    }

    /// The content of this operation has to be had before it counts as held.
    pub(crate) fn miss(&mut self, origin: ReplicaId, seq: u64, inode: InodeId, version: Stamp) {
        if let Some(o) = self.origins.get_mut(&origin) {
            o.missing.insert(seq, (inode, version));
            self.missing.insert((inode, version), (origin, seq));
        }
    }

    /// The number of the operation with this stamp, if it is kept.
    pub(crate) fn number_of(&self, stamp: Stamp) -> Option<u64> {
        let kept = &self.origins.get(&stamp.replica)?.kept;
        kept.binary_search_by_key(&stamp.time, |op| op.time).ok().map(|i| kept[i].seq)
    }

    /// Versions of an inode whose content is missing.
    pub(crate) fn missing_of(&self, inode: InodeId) -> Vec<Stamp> {
        let end = Stamp { time: Hlc(u64::MAX), replica: ReplicaId(u64::MAX) };
        self.missing.range((inode, Stamp::ZERO)..=(inode, end)).map(|((_, v), _)| *v).collect()
    }

    /// The first inode behind `after` with missing content.
    pub(crate) fn missing_behind(&self, after: Option<InodeId>) -> Option<InodeId> {
        super::first_behind(&self.missing, after)
    }

    /// Its content is here, or nobody needs it any more.
    pub(crate) fn found(&mut self, inode: InodeId, version: Stamp) {
        if let Some((origin, seq)) = self.missing.remove(&(inode, version))
            && let Some(o) = self.origins.get_mut(&origin)
        {
            o.missing.remove(&seq);
        }
    }

    /// Everything whose content is missing.
    pub(crate) fn all_missing(&self) -> impl Iterator<Item = (InodeId, Stamp)> + '_ {
        self.missing.keys().copied()
    }

    /// Operations of `origin` are in the durable log up to this one.
    pub(crate) fn set_durable(&mut self, origin: ReplicaId, mark: (u64, Hlc)) {
        let o = self.origins.entry(origin).or_default();
        if mark.0 > o.durable.0 {
            o.durable = mark;
        }
    }

    /// Everything up to these marks became known by state: nothing below can be passed on as operations.
    pub(crate) fn adopt(&mut self, marks: &[Mark], handles: &mut Handles) {
        for m in marks {
            if !self.admits(m.origin) {
                continue;
            }
            let o = self.origins.entry(m.origin).or_default();
            if m.seq > o.known.0 {
                o.known = (m.seq, m.time);
                o.cut = o.known;
                let gone: Vec<Op> = o.kept.drain(..).collect();
                self.kept -= gone.len();
                for op in gone {
                    if let Some(p) = op.payload {
                        self.payload_bytes -= u64::from(p.len);
                        handles.drop(p.id);
                    }
                }
            }
        }
    }

    pub(crate) fn frontier(&self) -> Frontier {
        self.marks(|o| o.known)
    }

    pub(crate) fn durable_frontier(&self) -> Frontier {
        self.marks(|o| o.durable)
    }

    pub(crate) fn cut_frontier(&self) -> Frontier {
        self.marks(|o| o.cut)
    }

    /// Up to where content is held durably as well.
    pub(crate) fn content_frontier(&self) -> Frontier {
        self.with_content(|o| o.durable)
    }

    /// The same without regard to durability: what a node says that lies.
    pub(crate) fn undurable_content_frontier(&self) -> Frontier {
        self.with_content(|o| o.known)
    }

    fn with_content(&self, upto: impl Fn(&Origin) -> (u64, Hlc)) -> Frontier {
        self.marks(|o| match o.missing.first_key_value() {
            Some((seq, _)) if *seq <= upto(o).0 => (*seq - 1, Hlc(0)),
            _ => upto(o),
        })
    }

    fn marks(&self, f: impl Fn(&Origin) -> (u64, Hlc)) -> Frontier {
        let mark = |(r, o): (&ReplicaId, &Origin)| {
            let (seq, time) = f(o);
            Mark { origin: *r, seq, time }
        };
        self.origins.iter().map(mark).filter(|m| m.seq > 0).collect()
    }

    /// Lets go what every member has (`stable`), and what is too much anyway. At most `budget` operations a call.
    pub(crate) fn trim(&mut self, stable: &BTreeMap<ReplicaId, u64>, mut budget: usize, handles: &mut Handles) {
        for (origin, upto) in stable {
            let Some(o) = self.origins.get_mut(origin) else { continue };
            while budget > 0 && o.kept.front().is_some_and(|op| op.seq <= *upto) {
                budget -= 1;
                self.kept -= Self::drop_front(o, &mut self.payload_bytes, handles);
            }
        }
        while budget > 0 && self.kept > self.most {
            let Some(o) = self.origins.values_mut().max_by_key(|o| o.kept.len()) else { break };
            budget -= 1;
            self.kept -= Self::drop_front(o, &mut self.payload_bytes, handles);
        }
        while self.payload_bytes > RETAINED_PAYLOAD_BYTES {
            let Some((origin, seq)) = self.payloads.pop_front() else { break };
            let Some(o) = self.origins.get_mut(&origin) else { continue };
            let first = o.kept.front().map_or(u64::MAX, |op| op.seq);
            if let Some(op) = seq.checked_sub(first).and_then(|i| o.kept.get_mut(i as usize))
                && let Some(p) = op.payload.take()
            {
                self.payload_bytes -= u64::from(p.len);
                handles.drop(p.id);
            }
        }
        while self.payloads.front().is_some_and(|(r, s)| self.origins.get(r).is_none_or(|o| *s <= o.cut.0)) {
            self.payloads.pop_front();
        }
    }

    fn drop_front(o: &mut Origin, bytes: &mut u64, handles: &mut Handles) -> usize {
        let Some(op) = o.kept.pop_front() else { return 0 };
        o.cut = (op.seq, op.time);
        if let Some(p) = op.payload {
            *bytes -= u64::from(p.len);
            handles.drop(p.id);
        }
        1
    }

    /// Bytes of content behind the operations of `origin` after `seq`.
    pub(crate) fn bytes_after(&self, origin: ReplicaId, seq: u64) -> u64 {
        let size = |op: &Op| if let OpBody::SetContent { size, .. } = op.body { size } else { 0 };
        self.from(origin, seq + 1).map(size).sum()
    }

    /// Restores what a checkpoint says.
    pub(crate) fn restore(&mut self, known: &[Mark]) {
        for m in known {
            let o = self.origins.entry(m.origin).or_default();
            o.known = (m.seq, m.time);
            o.durable = o.known;
            o.cut = o.known;
        }
    }
}
