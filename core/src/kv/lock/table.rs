//! The locks of one file: ranges that are held, and those who wait, in their order.

use super::{Owner, WaitId};
use crate::limits;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Shared locks go along with each other, an exclusive one with none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// `F_RDLCK`, `LOCK_SH`.
    Shared,
    /// `F_WRLCK`, `LOCK_EX`.
    Exclusive,
}

impl Mode {
    fn conflicts(self, other: Mode) -> bool {
        self == Mode::Exclusive || other == Mode::Exclusive
    }
}

/// Bytes, both ends included; up to `u64::MAX` is up to the end of the file, however it grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

impl Span {
    /// The whole file.
    pub const ALL: Span = Span { first: 0, last: u64::MAX };

    fn overlaps(&self, other: &Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What of it is not in `other`: before and after.
    fn without(&self, other: &Span) -> [Option<Span>; 2] {
        if !self.overlaps(other) {
            return [Some(*self), None];
        }
        let before = other.first.checked_sub(1).filter(|last| *last >= self.first);
        let after = other.last.checked_add(1).filter(|first| *first <= self.last);
        [before.map(|last| Span { first: self.first, last }), after.map(|first| Span { first, last: self.last })]
    }
}

/// A range that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// By whom.
    pub owner: Owner,
    /// How.
    pub mode: Mode,
    /// Which bytes.
    pub span: Span,
    /// Fencing token of the newest grant that it came from.
    pub token: u64,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Somebody who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Wait {
    pub(super) id: WaitId,
    pub(super) owner: Owner,
    pub(super) mode: Mode,
    pub(super) span: Span,
    pub(super) since_ms: u64,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FileLocks {
    /// By owner and first byte. Ranges of one owner do not overlap.
    pub(super) held: Vec<Held>,
    pub(super) waiting: VecDeque<Wait>,
}

impl FileLocks {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn concerns(&self, owner: Owner) -> bool {
        self.held.iter().any(|h| h.owner == owner) || self.waiting.iter().any(|w| w.owner == owner)
    }

    fn own(&self, owner: Owner) -> core::ops::Range<usize> {
        let from = self.held.partition_point(|h| h.owner < owner);
        let len = self.held[from..].partition_point(|h| h.owner == owner);
        from..from + len
    }

    /// What of a request the owner does not have yet.
    fn news(&self, owner: Owner, mode: Mode, span: Span) -> Vec<Span> {
        let mut left = alloc::vec![span];
        for h in &self.held[self.own(owner)] {
            if h.mode >= mode {
                left = left.iter().flat_map(|s| s.without(&h.span)).flatten().collect();
            }
        }
        left
    }

    /// Somebody holds what stands against it: the first in the order of bytes.
    pub(super) fn holder_against(&self, owner: Owner, mode: Mode, span: Span) -> Option<&Held> {
        let against = |h: &&Held| h.owner != owner && h.mode.conflicts(mode) && h.span.overlaps(&span);
        self.held.iter().filter(against).min_by_key(|h| h.span.first)
    }

    /// Those who stand before a request: who holds something against it, and who waits, earlier, for what it wants. But who
    /// waits for the owner himself does not stand before him: otherwise an upgrade would wait for ever.
    pub(super) fn blockers(&self, owner: Owner, mode: Mode, span: Span, earlier: usize) -> BTreeSet<Owner> {
        let mut out = BTreeSet::new();
        let news = self.news(owner, mode, span);
        let wants = |m: Mode, s: &Span| m.conflicts(mode) && news.iter().any(|n| n.overlaps(s));
        for h in &self.held {
            if h.owner != owner && wants(h.mode, &h.span) {
                out.insert(h.owner);
            }
        }
        let own = &self.held[self.own(owner)];
        for w in self.waiting.iter().take(earlier) {
            let waits_for_owner = || own.iter().any(|h| h.mode.conflicts(w.mode) && h.span.overlaps(&w.span));
            if w.owner != owner && wants(w.mode, &w.span) && !waits_for_owner() {
                out.insert(w.owner);
            }
        }
        out
    }

    /// Ranges that there would be at most after a grant.
    pub(super) fn has_room(&self) -> bool {
        self.held.len() + 2 <= limits::LOCKS_PER_FILE_MAX
    }

    /// The owner holds `span` in `mode` from now on; what he had there before is replaced. `None` gives it back.
    pub(super) fn set(&mut self, owner: Owner, span: Span, held: Option<(Mode, u64, u64)>) {
        let range = self.own(owner);
        let mut own: Vec<Held> = Vec::new();
        for h in self.held.drain(range.clone()) {
            own.extend(h.span.without(&span).into_iter().flatten().map(|span| Held { span, ..h }));
        }
        if let Some((mode, token, since_ms)) = held {
            own.push(Held { owner, mode, span, token, since_ms });
        }
        own.sort_by_key(|h| h.span.first);
        // Neighbours of one mode become one.
        let mut merged: Vec<Held> = Vec::new();
        for h in own {
            match merged.last_mut() {
                Some(l) if l.mode == h.mode && l.span.last.checked_add(1) == Some(h.span.first) => {
                    l.span.last = h.span.last;
                    l.token = l.token.max(h.token);
                    l.since_ms = l.since_ms.min(h.since_ms);
                }
                _ => merged.push(h),
            }
        }
        let at = range.start;
        self.held.splice(at..at, merged);
    }

    /// The next one who can be served: his place in the queue.
    pub(super) fn next_grant(&self) -> Option<usize> {
        (0..self.waiting.len()).find(|n| {
            let w = &self.waiting[*n];
            self.blockers(w.owner, w.mode, w.span, *n).is_empty()
        })
    }
}
