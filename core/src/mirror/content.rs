//! Bytes that travel beside the operations: what is at hand, what is being fetched, from whom.

use super::handles::Handles;
use crate::action::Source;
use crate::event::IoError;
use crate::ids::{InodeId, IoToken, ReplicaId};
use crate::limits::FETCHES_IN_FLIGHT_MAX;
use crate::op::{ContentDigest, Payload};
use crate::time::{Hlc, Instant, Span, Stamp};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// After every member failed to deliver, they are asked again after this.
const RETRY_AFTER: Span = Span::ms(500);
/// Versions remembered as needed. More are needed again when there is room: the tree knows them.
const NEEDED_MAX: usize = 4096;

/// Where a version's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Hand {
    /// In the host's pool, and in the log until a checkpoint cuts it.
    Payload(Payload),
    Staged,
    /// In the staging area; an action in flight may still use the payload.
    Both(Payload),
}

/// A version that is wanted and not at hand.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Need {
    size: u64,
    digest: ContentDigest,
    token: Option<IoToken>,
    tried: Vec<ReplicaId>,
    gone: usize,
    /// Times in a row that every member said so.
    rounds: u32,
    next: Instant,
}

/// What a failed transfer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Somebody else will be asked, or all again later.
    Later,
    /// Every member that could be asked says that the version is gone, so many times in a row.
    Gone(u32),
}

/// A transfer to be started.
pub(crate) struct Start {
    pub(crate) inode: InodeId,
    pub(crate) version: Stamp,
    pub(crate) size: u64,
    pub(crate) digest: ContentDigest,
    pub(crate) from: ReplicaId,
}

/// The state of all content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Content {
    at_hand: BTreeMap<(InodeId, Stamp), Hand>,
    needs: BTreeMap<(InodeId, Stamp), Need>,
    in_flight: usize,
}

impl Content {
    /// The bytes as an action's source.
    pub(crate) fn source(&self, inode: InodeId, version: Stamp) -> Option<Source> {
        Some(match self.at_hand.get(&(inode, version))? {
            Hand::Payload(p) => Source::Payload(*p),
            Hand::Staged | Hand::Both(_) => Source::Staged { inode, version },
        })
    }

    pub(crate) fn has(&self, inode: InodeId, version: Stamp) -> bool {
        self.at_hand.contains_key(&(inode, version))
    }

    /// Takes in bytes that came with an operation. Keeps the handle.
    pub(crate) fn put_payload(&mut self, inode: InodeId, version: Stamp, payload: Payload, handles: &mut Handles) {
        let staged = matches!(self.at_hand.get(&(inode, version)), Some(Hand::Staged | Hand::Both(_)));
        handles.keep(payload.id);
        let hand = if staged { Hand::Both(payload) } else { Hand::Payload(payload) };
        if let Some(Hand::Payload(old) | Hand::Both(old)) = self.at_hand.insert((inode, version), hand) {
            handles.drop(old.id);
        }
        self.forget_need(inode, version);
    }

    pub(crate) fn put_staged(&mut self, inode: InodeId, version: Stamp, handles: &mut Handles) {
        if let Some(Hand::Payload(old) | Hand::Both(old)) = self.at_hand.insert((inode, version), Hand::Staged) {
            handles.drop(old.id);
        }
        self.forget_need(inode, version);
    }

    /// An inline payload was written into the staging area. False: nobody wants it any more.
    pub(crate) fn now_staged(&mut self, inode: InodeId, version: Stamp) -> bool {
        let Some(hand) = self.at_hand.get_mut(&(inode, version)) else { return false };
        if let Hand::Payload(p) = *hand {
            *hand = Hand::Both(p);
        }
        true
    }

    /// Versions whose bytes are only in the pool and in the log.
    pub(crate) fn only_logged(&self) -> impl Iterator<Item = (InodeId, Stamp)> + '_ {
        self.at_hand.iter().filter(|(_, h)| matches!(h, Hand::Payload(_))).map(|(k, _)| *k)
    }

    /// The payload of a version that came inside its operation, staged since or not.
    pub(crate) fn inline(&self, inode: InodeId, version: Stamp) -> Option<Payload> {
        match self.at_hand.get(&(inode, version)) {
            Some(Hand::Payload(p) | Hand::Both(p)) => Some(*p),
            _ => None,
        }
    }

    /// The payload of a version whose bytes are only in the pool and in the log.
    pub(crate) fn payload(&self, inode: InodeId, version: Stamp) -> Option<Payload> {
        match self.at_hand.get(&(inode, version)) {
            Some(Hand::Payload(p)) => Some(*p),
            _ => None,
        }
    }

    fn forget_need(&mut self, inode: InodeId, version: Stamp) {
        if let Some(n) = self.needs.remove(&(inode, version))
            && n.token.is_some()
        {
            self.in_flight -= 1;
        }
    }

    /// The bytes are not needed any more. True if a staged file has to be forgotten.
    pub(crate) fn discard(&mut self, inode: InodeId, version: Stamp, handles: &mut Handles) -> bool {
        match self.at_hand.remove(&(inode, version)) {
            Some(Hand::Payload(p)) => {
                handles.drop(p.id);
                false
            }
            Some(Hand::Both(p)) => {
                handles.drop(p.id);
                true
            }
            Some(Hand::Staged) => true,
            None => false,
        }
    }

    /// The staged bytes are not there, or not what they should be. True if nothing is left of them.
    pub(crate) fn spoiled(&mut self, inode: InodeId, version: Stamp) -> bool {
        match self.at_hand.get_mut(&(inode, version)) {
            Some(Hand::Staged) => self.at_hand.remove(&(inode, version)).is_some(),
            Some(hand) => {
                if let Hand::Both(p) = *hand {
                    *hand = Hand::Payload(p);
                }
                false
            }
            None => false,
        }
    }

    /// Versions of an inode that are at hand or needed.
    pub(crate) fn of(&self, inode: InodeId) -> Vec<Stamp> {
        let end = Stamp { time: Hlc(u64::MAX), replica: ReplicaId(u64::MAX) };
        let range = (inode, Stamp::ZERO)..=(inode, end);
        let hand = self.at_hand.range(range.clone()).map(|((_, v), _)| *v);
        hand.chain(self.needs.range(range).map(|((_, v), _)| *v)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.at_hand.len() + self.needs.len()
    }

    /// The first inode behind `after` of which anything is here or needed.
    pub(crate) fn behind(&self, after: Option<InodeId>) -> Option<InodeId> {
        let (a, b) = (super::first_behind(&self.at_hand, after), super::first_behind(&self.needs, after));
        a.into_iter().chain(b).min()
    }

    /// Versions that are wanted.
    pub(crate) fn needed(&self) -> Vec<(InodeId, Stamp)> {
        self.needs.keys().copied().collect()
    }

    /// The tree wants a version.
    pub(crate) fn need(&mut self, inode: InodeId, version: Stamp, size: u64, digest: ContentDigest, now: Instant) {
        if self.needs.len() < NEEDED_MAX {
            self.needs.entry((inode, version)).or_insert(Need {
                size,
                digest,
                token: None,
                tried: Vec::new(),
                gone: 0,
                rounds: 0,
                next: now,
            });
        }
    }

    /// Nobody wants it any more.
    pub(crate) fn unneed(&mut self, inode: InodeId, version: Stamp) {
        if self.needs.get(&(inode, version)).is_some_and(|n| n.token.is_none()) {
            self.needs.remove(&(inode, version));
        }
    }

    /// Bytes that are still to come, as far as known.
    pub(crate) fn bytes_needed(&self) -> u64 {
        self.needs.values().map(|n| n.size).sum()
    }

    /// The next transfer to start. `up`: members with a connection, the version's author first if it is there.
    pub(crate) fn next_fetch(&self, now: Instant, up: &dyn Fn(Stamp) -> Vec<ReplicaId>) -> Option<Start> {
        if self.in_flight >= FETCHES_IN_FLIGHT_MAX {
            return None;
        }
        self.needs.iter().filter(|(_, n)| n.token.is_none() && n.next <= now).find_map(|((inode, version), n)| {
            let from = up(*version).into_iter().find(|r| !n.tried.contains(r))?;
            Some(Start { inode: *inode, version: *version, size: n.size, digest: n.digest, from })
        })
    }

    pub(crate) fn started(&mut self, start: &Start, token: IoToken) {
        if let Some(n) = self.needs.get_mut(&(start.inode, start.version)) {
            n.token = Some(token);
            n.tried.push(start.from);
            self.in_flight += 1;
        }
    }

    /// A transfer failed. `others`: connected members that were not asked yet may exist.
    pub(crate) fn failed(
        &mut self,
        inode: InodeId,
        version: Stamp,
        why: IoError,
        up: &[ReplicaId],
        now: Instant,
    ) -> Verdict {
        let Some(n) = self.needs.get_mut(&(inode, version)) else { return Verdict::Later };
        if n.token.take().is_some() {
            self.in_flight -= 1;
        }
        if why == IoError::Gone {
            n.gone += 1;
        }
        let more = up.iter().any(|r| !n.tried.contains(r));
        if more && why != IoError::NoSpace && why != IoError::Broken {
            return Verdict::Later;
        }
        let all_gone = !n.tried.is_empty() && n.gone >= n.tried.len();
        n.tried.clear();
        n.gone = 0;
        n.next = now.after(RETRY_AFTER);
        n.rounds = if all_gone { n.rounds.saturating_add(1) } else { 0 };
        if all_gone { Verdict::Gone(n.rounds) } else { Verdict::Later }
    }

    /// When something may be tried again.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.needs.values().filter(|n| n.token.is_none() && n.next > now).map(|n| n.next).min()
    }

    /// Transfers may find somebody to ask: a member came up.
    pub(crate) fn wake(&mut self, now: Instant) {
        for n in self.needs.values_mut().filter(|n| n.token.is_none()) {
            n.tried.clear();
            n.gone = 0;
            n.next = n.next.min(now);
        }
    }
}
