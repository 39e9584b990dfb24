//! Reading a node's state.

use super::Node;
use crate::event::{Ack, IoError};
use crate::ids::ReplicaId;
use crate::message::{Frontier, MemberInfo};
use crate::mirror::syncs::needed;
use crate::status::{PeerState, PeerStatus, Status};
use crate::tree::{Removed, Tree};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Read-only access to a node's state.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    node: &'a Node,
}

impl<'a> View<'a> {
    pub(super) fn new(node: &'a Node) -> View<'a> {
        View { node }
    }

    /// The namespace.
    pub fn tree(&self) -> &'a Tree {
        &self.node.tree
    }

    /// The control plane, if this node has a part in one.
    pub fn control(&self) -> Option<&'a crate::control::Control> {
        self.node.control.as_deref()
    }

    /// What is known of a member, this node included.
    pub fn member(&self, replica: ReplicaId) -> Option<&'a MemberInfo> {
        let n = self.node;
        if n.config.replica == replica { Some(&n.members.me) } else { n.members.peers.get(&replica).map(|p| &p.info) }
    }

    /// The other members that have not left, this node not included.
    pub fn members(&self) -> impl Iterator<Item = &'a MemberInfo> + use<'a> {
        self.node.members.peers.values().map(|p| &p.info).filter(|i| !i.left)
    }

    /// Who issues, or as far as is known issued, operations under this origin; this node included.
    pub fn author(&self, origin: ReplicaId) -> Option<&'a MemberInfo> {
        let n = self.node;
        if n.lives.contains(&origin) || n.config.replica == origin {
            return Some(&n.members.me);
        }
        n.members.peers.values().map(|p| &p.info).find(|i| i.life == origin || i.replica == origin)
    }

    /// Payload handles that the core holds.
    pub fn payloads_held(&self) -> usize {
        self.node.handles.len()
    }

    /// Nothing is under way: no pending change, no unsent operation, no unacknowledged one.
    pub fn quiet(&self) -> bool {
        let n = self.node;
        let last = n.last_own();
        n.tree.pending() == 0
            && n.awaits_scan.is_none()
            && n.outgoing.values().all(|o| o.acked >= last)
            && n.history.all_missing().next().is_none()
            && n.history.durable_frontier() == n.history.frontier()
            && n.round.is_none()
            && n.syncs.len() == 0
            && n.content.needed().is_empty()
    }

    /// After a start that followed a machine crash: what was removed since the last checkpoint, as it looked then. An object
    /// of this inode number and this look that is on disk all the same was removed, and the crash undid it. Empty
    /// after [`crate::event::Admin::Scanned`].
    pub fn removed_lately(&self) -> &'a [Removed] {
        self.node.unproven.as_ref().map_or(&[], |u| &u.removed)
    }

    /// What [`View::quiet`] waits for, in words.
    pub fn unfinished(&self) -> Vec<String> {
        let n = self.node;
        let last = n.last_own();
        let mut v = Vec::new();
        if n.tree.pending() > 0 {
            v.push(format!("{} changes do not stand in backing", n.tree.pending()));
        }
        for (r, o) in n.outgoing.iter().filter(|(_, o)| o.acked < last) {
            v.push(format!("{r} acknowledged {} of {last} operations", o.acked));
        }
        v.extend(n.history.all_missing().map(|(i, s)| format!("version {s} of {i} is missing")));
        v.extend(n.content.needed().iter().map(|(i, s)| format!("version {s} of {i} is needed")));
        if n.history.durable_frontier() != n.history.frontier() {
            v.push("operations are not durable".to_string());
        }
        if n.round.is_some() {
            v.push("state is compared with a peer".to_string());
        }
        if n.syncs.len() > 0 {
            v.push(format!("{} requests wait", n.syncs.len()));
        }
        v
    }

    /// What [`View::quiet`] waits for, in a few words for people.
    fn waits(&self) -> Vec<String> {
        let n = self.node;
        let last = n.last_own();
        let mut v = Vec::new();
        let mut some = |count: usize, words: &str| {
            if count > 0 {
                v.push(format!("{count} {words}"));
            }
        };
        some(n.tree.pending(), "changes do not stand in backing yet");
        some(n.content.needed().len().max(n.history.all_missing().count()), "files wait for their bytes");
        some(n.syncs.len(), "requests wait for an acknowledgement");
        for (replica, o) in n.outgoing.iter().filter(|(_, o)| o.acked < last) {
            let name = n.members.peers.get(replica).map_or("a member", |p| &p.info.name);
            v.push(format!("{name} has {} operations to acknowledge", last - o.acked));
        }
        for (replica, _) in n.members.connected() {
            let held = n.held.get(&replica).map_or(0, |h| mark(&h.content, n.life()));
            if held < last && n.outgoing.get(&replica).is_some_and(|o| o.acked >= last) {
                let name = n.members.peers.get(&replica).map_or("a member", |p| &p.info.name);
                v.push(format!("{name} has not all bytes yet"));
            }
        }
        if n.members.joining() {
            v.push("no member of the cluster was met yet".to_string());
        }
        match self.missing_ops() {
            0 => {}
            missing => v.push(format!("{missing} operations of others have not come")),
        }
        if n.awaits_scan.is_some() {
            v.push("backing is compared with the tree".to_string());
        }
        if n.round.is_some() {
            v.push("the tree is compared with that of another member".to_string());
        }
        if n.history.durable_frontier() != n.history.frontier() {
            v.push("the log is not durable up to its end".to_string());
        }
        v
    }

    /// For people.
    pub fn status(&self) -> Status {
        let n = self.node;
        let life = n.life();
        let last = n.last_own();
        let mut peers: Vec<PeerStatus> = Vec::new();
        for (r, p) in &n.members.peers {
            let acked = n.held.get(r).map_or(0, |h| mark(&h.log, life));
            peers.push(PeerStatus {
                replica: *r,
                incarnation: p.info.incarnation,
                name: p.info.name.clone(),
                urls: p.info.urls.clone(),
                state: p.state,
                why: p.why.clone(),
                lag_ops: last.saturating_sub(acked),
                lag_bytes: n.history.bytes_after(life, n.held.get(r).map_or(0, |h| mark(&h.content, life))),
                clock_skew_ns: p.skew_ns,
                left: p.info.left,
            });
        }
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let reasons = self.reasons(&peers);
        let missing_ops = self.missing_ops();
        let bytes_behind =
            n.members.connected().any(|(r, _)| n.held.get(&r).is_none_or(|h| mark(&h.content, life) < last));
        Status {
            replica: n.config.replica,
            incarnation: n.config.incarnation,
            name: n.config.name.clone(),
            urls: n.members.me.urls.clone(),
            known: n.history.frontier(),
            durable: n.history.durable_frontier(),
            inodes: n.tree.len() as u64,
            pending: n.tree.pending() as u64,
            pending_bytes: n.content.bytes_needed(),
            conflicts: n.tree.conflicts().len() as u64,
            joining: n.members.joining(),
            missing_ops,
            in_sync: reasons.is_empty() && missing_ops == 0 && !n.members.joining() && !bytes_behind && self.quiet(),
            reasons,
            waits: self.waits(),
            peers,
        }
    }

    fn missing_ops(&self) -> u64 {
        let n = self.node;
        let mut most: BTreeMap<ReplicaId, u64> = BTreeMap::new();
        for m in n.members.connected().filter_map(|(r, _)| n.held.get(&r)).flat_map(|h| &h.log) {
            let seq = most.entry(m.origin).or_default();
            *seq = m.seq.max(*seq);
        }
        most.into_iter().map(|(origin, seq)| seq.saturating_sub(n.history.known(origin).0)).sum()
    }

    fn reasons(&self, peers: &[PeerStatus]) -> Vec<String> {
        let n = self.node;
        let mut v = Vec::new();
        for p in peers.iter().filter(|p| !p.left && (p.state != PeerState::Up || !p.why.is_empty())) {
            v.push(format!("{} is {}: {}", p.name, format!("{:?}", p.state).to_lowercase(), p.why));
        }
        for (url, why) in n.members.silent_addresses() {
            v.push(format!("{url} was never reached: {why}"));
        }
        if n.outdated {
            v.push(
                "this data is an older copy of itself: other nodes know changes of this node that it does not. Stop it, move `data` \
                 away, and start it as a new replica"
                    .to_string(),
            );
        }
        v.extend(n.members.refusing(n.now).map(ToString::to_string));
        let copies = n.copies();
        let up = 1 + copies.iter().filter(|c| c.up).count();
        if up < needed(n.config.ack, &copies) {
            v.push(format!("fsync cannot be acknowledged: {up} of {} members are up", copies.len() + 1));
        } else if n.config.ack == Ack::Auto && copies.len() == 1 && up == 1 {
            v.push("degraded: one copy".to_string());
        }
        if n.journal.broken {
            v.push("the log cannot be made durable: fsync fails".to_string());
        }
        if n.journal.checkpoint.failing {
            v.push("the checkpoint cannot be written".to_string());
        }
        if !n.content_cap.is_empty() {
            let name = |origin: &ReplicaId| {
                let author = n.members.peers.values().map(|p| &p.info).find(|i| i.life == *origin);
                author.map(|i| i.name.clone()).filter(|_| !n.lives.contains(origin))
            };
            let mut names: Vec<String> = n.content_cap.keys().filter_map(name).collect();
            names.sort();
            names.dedup();
            let whose = if names.is_empty() { "earlier members".to_string() } else { names.join(", ") };
            let count = n.state_missing.len();
            v.push(format!("{count} versions are not here yet: changes of {whose} are not acknowledged by this node"));
        }
        match n.last_failure {
            Some(IoError::NoSpace) => v.push("the disk is full: changes of other nodes wait".to_string()),
            Some(why) => v.push(format!("changes of other nodes cannot be applied: {why:?}")),
            None => {}
        }
        if n.members.expelled {
            v.push("this node was removed from the cluster: restart it to join again".to_string());
        }
        v
    }
}

/// How far a frontier goes for an origin.
fn mark(frontier: &Frontier, origin: ReplicaId) -> u64 {
    frontier.iter().find(|m| m.origin == origin).map_or(0, |m| m.seq)
}
