//! State transfer: see [`crate::mirror::state`].

use super::Node;
use crate::action::{LogRecord, Send};
use crate::ids::{InodeId, LinkId, ReplicaId};
use crate::limits::{STATE_IN_FLIGHT_BYTES, STATE_MESSAGE_BYTES, STATE_RECORDS_PER_MESSAGE_MAX};
use crate::message::{Frontier, Mark, Message, covers};
use crate::mirror::state::{BUCKETS_PER_WANT, Round, Serving};
use crate::tree::StateRecord;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Transfers served at once.
const SERVING_MAX: usize = 16;

impl Node {
    /// Operations that we lack were cut by this peer.
    pub(super) fn on_cut(&mut self, peer: ReplicaId, link: LinkId, mark: Mark) {
        if self.history.known(mark.origin).0 >= mark.seq {
            return;
        }
        let busy = self.round.as_ref().is_some_and(|r| r.stalls_at() > self.now);
        if !busy {
            self.begin_round(peer, link);
        }
    }

    fn begin_round(&mut self, peer: ReplicaId, link: LinkId) {
        self.rounds += 1;
        self.round = Some(Round::new(self.rounds, peer, self.now));
        let buckets = (0..64).map(|b| (b, self.tree.bucket_digest(1, b))).collect();
        let context = self.history.frontier();
        let message = Message::StateDigests { round: self.rounds, level: 1, buckets, context };
        self.send(Send::Message { link, message });
    }

    pub(super) fn on_digests(
        &mut self,
        peer: ReplicaId,
        link: LinkId,
        round: u64,
        level: u8,
        buckets: Vec<(u32, u128)>,
        context: Frontier,
    ) {
        if level == 1 {
            let mut parts = Vec::new();
            for (b, digest) in buckets.into_iter().take(64) {
                if b < 64 && self.tree.bucket_digest(1, b) != digest {
                    parts.extend((b * 64..b * 64 + 64).map(|p| (p, self.tree.bucket_digest(2, p))));
                }
            }
            let context = self.history.frontier();
            self.send(Send::Message {
                link,
                message: Message::StateDigests { round, level: 2, buckets: parts, context },
            });
            return;
        }
        let Some(r) = self.round.as_mut().filter(|r| r.number == round && r.from == peer && r.context.is_none()) else {
            return;
        };
        r.context = Some(context);
        r.progress = self.now;
        let tree = &self.tree;
        let differs = |(b, d): &(u32, u128)| *b < 4096 && tree.bucket_digest(2, *b) != *d;
        r.todo = buckets.iter().filter(|x| differs(x)).map(|(b, _)| *b).collect();
        r.todo.reverse();
        self.go_on(link);
    }

    /// Asks for the next buckets, or ends the round.
    fn go_on(&mut self, link: LinkId) {
        let synced = self.journal.synced;
        let Some(r) = &mut self.round else { return };
        if r.todo.is_empty() {
            return self.end_round();
        }
        if r.unsynced.1 <= synced {
            r.unsynced.0 = 0;
        }
        r.waits = r.unsynced.0 > STATE_IN_FLIGHT_BYTES;
        if r.waits {
            self.journal.wanted = true;
            return;
        }
        let buckets: Vec<u32> = r.todo.iter().rev().take(r.next_want()).copied().collect();
        r.asked = buckets.len();
        let round = r.number;
        self.send(Send::Message { link, message: Message::StateWant { round, level: 2, buckets } });
    }

    pub(super) fn on_state_want(&mut self, peer: ReplicaId, round: u64, level: u8, buckets: Vec<u32>) {
        let buckets: Vec<u32> = buckets.into_iter().filter(|b| *b < 4096).take(BUCKETS_PER_WANT).collect();
        self.serving.retain(|s| s.to != peer);
        if level == 2 && self.serving.len() < SERVING_MAX {
            self.serving.push(Serving { to: peer, round, level, buckets, after: None });
        }
    }

    /// Sends one page to everybody who is being served.
    pub(super) fn pump_state(&mut self) {
        let mut serving = core::mem::take(&mut self.serving);
        for s in &mut serving {
            let Some(link) = self.members.peers.get(&s.to).and_then(|p| p.link) else {
                s.buckets.clear();
                continue;
            };
            let Some(bucket) = s.buckets.first().copied() else { continue };
            let mut records = self.tree.records(s.level, bucket, s.after, STATE_RECORDS_PER_MESSAGE_MAX);
            let mut last = records.len() < STATE_RECORDS_PER_MESSAGE_MAX;
            let mut bytes = 0;
            let mut fits = |r: &StateRecord| {
                bytes += r.weight();
                bytes <= STATE_MESSAGE_BYTES
            };
            let fit = records.iter().take_while(|r| fits(r)).count().max(1);
            if fit < records.len() {
                records.truncate(fit);
                last = false;
            }
            let after = s.after;
            s.after = records.last().map(|r| r.inode).filter(|_| !last);
            if last {
                s.buckets.remove(0);
            }
            let (round, level, context) = (s.round, s.level, self.history.frontier());
            let message = Message::State { round, level, bucket, after, records, last, context };
            self.send(Send::Message { link, message });
        }
        serving.retain(|s| !s.buckets.is_empty());
        self.out.again |= !serving.is_empty();
        self.serving = serving;
        // A page was lost: ask once more, from a member that is there.
        if let Some(r) = &mut self.round
            && (r.waits || r.stalls_at() <= self.now)
        {
            let link = self.members.peers.get(&r.from).and_then(|p| p.link);
            let from = r.from;
            if r.waits
                && let Some(link) = link
            {
                // It is this node that is slow.
                r.progress = self.now;
                if r.unsynced.1 <= self.journal.synced {
                    self.go_on(link);
                }
                return;
            }
            self.round = None;
            if let Some(link) = link {
                self.begin_round(from, link);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_state(
        &mut self,
        peer: ReplicaId,
        link: LinkId,
        round: u64,
        _level: u8,
        bucket: u32,
        after: Option<InodeId>,
        records: Vec<StateRecord>,
        last: bool,
        context: Frontier,
    ) {
        let Some(r) = self.round.as_mut().filter(|r| r.number == round && r.from == peer) else { return };
        if r.todo.last() != Some(&bucket) || r.asked == 0 {
            return;
        }
        let (open, seen) = r.open.get_or_insert((bucket, Vec::new()));
        if *open != bucket {
            *open = bucket;
            seen.clear();
        }
        if seen.last().copied() != after {
            // A page before it was lost, and what is in it must not count as gone: the round stalls, and begins anew.
            return;
        }
        r.progress = self.now;
        seen.extend(records.iter().map(|x| x.inode));
        let whole = last.then(|| r.open.take()).flatten();
        let bytes = records.iter().map(StateRecord::weight).sum::<usize>();
        r.unsynced.0 += bytes;
        r.came.0 += bytes as u64;
        if last {
            r.todo.pop();
            r.asked -= 1;
            r.came.1 += 1;
        }
        let boundary = r.asked == 0;
        let ours = self.history.frontier();
        if !records.is_empty() {
            let index = self.log(LogRecord::State { records: records.clone(), context: context.clone() });
            if let Some(r) = &mut self.round {
                r.unsynced.1 = index;
            }
        }
        for record in &records {
            for stamp in record.stamps() {
                self.clock.observe(stamp.time);
            }
            self.tree.merge(record, &|s| covers(&context, s), &|s| covers(&ours, s));
            let losing = record.versions.iter().map(|v| (v.stamp, v.size));
            for (version, size) in losing.chain([(record.content.0, record.content.1)]) {
                if size > 0 && self.tree.wants(record.inode, version) && !self.content.has(record.inode, version) {
                    self.state_missing.insert((record.inode, version));
                }
            }
            self.settle(record.inode);
        }
        if let Some((_, seen)) = whole {
            self.drop_absent(bucket, seen, &context);
        }
        if last && boundary {
            self.go_on(link);
        }
    }

    /// What we have in this bucket and the other does not, though it knew all about it, was purged there.
    fn drop_absent(&mut self, bucket: u32, seen: Vec<InodeId>, context: &Frontier) {
        let seen: BTreeSet<InodeId> = seen.into_iter().collect();
        let mut after = None;
        let mut absent = Vec::new();
        loop {
            let page = self.tree.records(2, bucket, after, STATE_RECORDS_PER_MESSAGE_MAX);
            let Some(end) = page.last().map(|r| r.inode) else { break };
            after = Some(end);
            for record in page {
                if !seen.contains(&record.inode) && self.tree.absent(record.inode, &|s| covers(context, s)) {
                    self.settle(record.inode);
                    absent.push(record.inode);
                }
            }
        }
        if !absent.is_empty() {
            self.log(LogRecord::Absent { inodes: absent, context: context.clone() });
        }
    }

    fn end_round(&mut self) {
        let Some(r) = self.round.take() else { return };
        let Some(context) = r.context else { return };
        if !self.state_missing.is_empty() {
            for m in self.history.content_frontier() {
                self.content_cap.entry(m.origin).or_insert(m.seq);
            }
            for m in &context {
                self.content_cap.entry(m.origin).or_insert(0);
            }
        }
        let own = self.lives.clone();
        let others: Vec<Mark> =
            context.into_iter().filter(|m| !own.contains(&m.origin) || m.origin != self.life()).collect();
        for m in &others {
            self.clock.observe(m.time);
        }
        self.history.adopt(&others, &mut self.handles);
        // Nothing of this is in the log: the checkpoint makes it durable, and only then is it acknowledged.
        self.journal.checkpoint.forced = true;
    }
}
