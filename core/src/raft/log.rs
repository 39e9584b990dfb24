//! The tail of the log that is in memory, and how much of it is durable.

use super::entry::{Base, Content, Entry, Index, Term};
use super::members::Membership;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Log {
    base: Base,
    entries: VecDeque<Entry>,
    /// The configurations among the entries.
    configs: Vec<(Index, Membership)>,
    bytes: u64,
}

impl Log {
    pub(crate) fn new(base: Base, entries: Vec<Entry>) -> Log {
        let mut log = Log { base, entries: VecDeque::new(), configs: Vec::new(), bytes: 0 };
        for e in entries {
            log.append(e);
        }
        log
    }

    pub(crate) fn base(&self) -> &Base {
        &self.base
    }
    pub(crate) fn last(&self) -> Index {
        self.base.index + self.entries.len() as u64
    }
    pub(crate) fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base.term, |e| e.term)
    }
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn at(&self, index: Index) -> Option<&Entry> {
        let k = index.checked_sub(self.base.index + 1)?;
        self.entries.get(usize::try_from(k).ok()?)
    }

    /// The term of an entry, if it is known.
    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.index { Some(self.base.term) } else { self.at(index).map(|e| e.term) }
    }

    pub(crate) fn append(&mut self, e: Entry) {
        assert_eq!(e.index, self.last() + 1, "the log has no gaps");
        if let Content::Config(m) = &e.content {
            self.configs.push((e.index, m.clone()));
        }
        self.bytes += e.size();
        self.entries.push_back(e);
    }

    /// Drops everything from `from` on.
    pub(crate) fn truncate(&mut self, from: Index) {
        while self.last() >= from {
            let Some(e) = self.entries.pop_back() else { break };
            self.bytes -= e.size();
        }
        self.configs.retain(|(i, _)| *i < from);
    }

    /// Drops everything up to and with `upto`. `forget`: with a planted bug, configurations among it are lost.
    pub(crate) fn compact(&mut self, upto: Index, forget: bool) {
        let Some(term) = self.term(upto) else { return };
        let membership = if forget { self.base.membership.clone() } else { self.membership_at(upto).clone() };
        while self.base.index < upto {
            let Some(e) = self.entries.pop_front() else { break };
            self.bytes -= e.size();
            self.base.index += 1;
        }
        self.base = Base { index: upto, term, membership };
        self.configs.retain(|(i, _)| *i > upto);
    }

    /// Nothing is left but this.
    pub(crate) fn reset(&mut self, base: Base) {
        *self = Log::new(base, Vec::new());
    }

    /// The configuration that holds, and the place of its entry.
    pub(crate) fn membership(&self) -> (Index, &Membership) {
        self.configs.last().map_or((self.base.index, &self.base.membership), |(i, m)| (*i, m))
    }

    pub(crate) fn membership_at(&self, index: Index) -> &Membership {
        self.configs.iter().rev().find(|(i, _)| *i <= index).map_or(&self.base.membership, |(_, m)| m)
    }

    /// Entries from `from` on: as many as fit, at least one if there is one. Up to and with `upto`.
    pub(crate) fn slice(&self, from: Index, upto: Index, count: usize, bytes: u64) -> Vec<Entry> {
        let mut out = Vec::new();
        let mut sum = 0;
        let mut k = from;
        while k <= upto && out.len() < count {
            let Some(e) = self.at(k) else { break };
            sum += e.size();
            if sum > bytes && !out.is_empty() {
                break;
            }
            out.push(e.clone());
            k += 1;
        }
        out
    }

    pub(crate) fn sizes(&self, from: Index, upto: Index) -> u64 {
        (from..=upto).filter_map(|i| self.at(i)).map(Entry::size).sum()
    }

    /// The last place not after `index` whose term is not later than `term`: where two logs may still agree. Terms never go
    /// down along a log, so everything between here and `index` is of later terms.
    pub(crate) fn not_later(&self, index: Index, term: Term) -> (Index, Term) {
        let n = self.entries.partition_point(|e| e.term <= term) as u64;
        let place = (self.base.index + n).min(index);
        (place, self.term(place).unwrap_or(0))
    }
}

/// A write that was asked for and not answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Flight {
    ticket: u64,
    /// The last entry that is durable once it is. Goes down when entries are replaced meanwhile: the answer to the old write
    /// says nothing about what took their place, however alike the two look.
    upto: Index,
}

/// What of the log is on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Disk {
    flights: VecDeque<Flight>,
    next: u64,
    /// Everything up to this ticket is durable.
    done: u64,
    /// Entries up to here are durable.
    stable: Index,
    /// Entries up to here were handed out to be written.
    written: Index,
    /// The ticket with the current term and vote.
    hard: u64,
    /// Term or vote changed since.
    pub(crate) hard_dirty: bool,
    /// The log begins elsewhere, and this was not handed out.
    pub(crate) base_dirty: bool,
}

impl Disk {
    pub(crate) fn new(stable: Index) -> Disk {
        Disk { stable, written: stable, ..Disk::default() }
    }
    pub(crate) fn stable(&self) -> Index {
        self.stable
    }
    /// Entries after this have to be written.
    pub(crate) fn written(&self) -> Index {
        self.written
    }
    pub(crate) fn pending(&self) -> usize {
        self.flights.len()
    }
    /// Term and vote, as they are now, are durable.
    pub(crate) fn hard_durable(&self) -> bool {
        !self.hard_dirty && self.done >= self.hard
    }

    /// A write leaves that makes everything up to `last` durable.
    pub(crate) fn leaves(&mut self, last: Index) -> u64 {
        self.next += 1;
        if self.hard_dirty {
            self.hard = self.next;
        }
        self.hard_dirty = false;
        self.base_dirty = false;
        self.written = last;
        self.flights.push_back(Flight { ticket: self.next, upto: last });
        self.next
    }

    /// All writes up to `ticket` are durable. False if it was never handed out, or is known.
    pub(crate) fn landed(&mut self, ticket: u64) -> bool {
        if ticket > self.next || ticket <= self.done {
            return false;
        }
        while let Some(f) = self.flights.front().copied()
            && f.ticket <= ticket
        {
            self.stable = self.stable.max(f.upto);
            self.flights.pop_front();
        }
        self.done = ticket;
        true
    }

    /// Entries from `from` on are replaced. `stale`: with a planted bug, writes in flight count for what replaces them.
    pub(crate) fn replaced(&mut self, from: Index, stale: bool) {
        let keep = from.saturating_sub(1);
        self.stable = self.stable.min(keep);
        self.written = self.written.min(keep);
        if stale {
            return;
        }
        for f in &mut self.flights {
            f.upto = f.upto.min(keep);
        }
    }

    /// Nothing is left of the log but its new beginning, which is not durable yet.
    pub(crate) fn reset(&mut self, base: Index) {
        self.replaced(0, false);
        self.written = base;
        self.base_dirty = true;
    }

    /// Writes in flight will not be answered: whatever they carried has to be written again.
    pub(crate) fn forget_flights(&mut self, base: Index) {
        if self.done < self.hard {
            self.hard_dirty = true;
        }
        self.flights.clear();
        self.base_dirty = true;
        self.written = self.stable.max(base);
    }
}
