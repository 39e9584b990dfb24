//! From what was found on disk to a running node.

use super::clock::Clock;
use super::journal::Journal;
use super::{Node, ScanDue, Unproven, small_state};
use crate::action::LogRecord;
use crate::bug::Bug;
use crate::config::{Config, Ending, Recovered};
use crate::ids::{Incarnation, InodeId, ReplicaId};
use crate::member::Members;
use crate::message::{Frontier, MemberInfo, covers};
use crate::mirror::content::Content;
use crate::mirror::handles::Handles;
use crate::mirror::history::History;
use crate::mirror::syncs::Syncs;
use crate::op::{Op, OpBody};
use crate::rng::{Rng, Seed};
use crate::time::{Hlc, Instant, Stamp};
use crate::tree::{Carried, Tree};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Damaged pages that are told of in words.
const DAMAGE_SAID_MAX: usize = 3;

/// What a checkpoint holds besides the tree.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Operations that the tree's pages cover.
    pub known: Frontier,
    /// Origins under which this node issued operations, the last one last.
    pub lives: Vec<ReplicaId>,
    /// The hybrid clock.
    pub clock: Hlc,
    /// Everybody else.
    pub members: Vec<MemberInfo>,
    /// Number of the next log record when this was written.
    pub next_record: u64,
}

/// A checkpoint on its way into memory, page by page in any order. So a host that reads a large one need not hold it twice.
#[derive(Default)]
pub struct Loading {
    tree: Tree,
    meta: Meta,
    control: crate::control::Found,
    /// Pages that could not be read.
    damaged: usize,
    /// The first of them, in words.
    damage: Vec<alloc::string::String>,
}

impl core::fmt::Debug for Loading {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Loading").field("inodes", &self.tree.len()).finish_non_exhaustive()
    }
}

impl Loading {
    /// Takes in a page. One that is damaged is left out.
    pub fn page(&mut self, key: &[u8], value: &[u8]) {
        let words = match key.split_first() {
            Some((b't', rest)) => self.tree.load(rest, value).err().map(|why| format!("{why}")),
            Some((b'm', _)) => match crate::wire::decode::<Meta>(value) {
                Ok(meta) => {
                    self.meta = meta;
                    None
                }
                Err(why) => Some(format!("the checkpoint's description: {why}")),
            },
            Some((b'S', _)) => match self.control.store.row(key, value) {
                Ok(()) => None,
                Err(why) => {
                    self.control.damaged = true;
                    Some(format!("the control plane's store: {why}"))
                }
            },
            Some((&crate::control::ROW, _)) => {
                self.control.row = Some(value.into());
                None
            }
            _ => Some("an unknown page in the checkpoint".into()),
        };
        if let Some(words) = words {
            self.damaged += 1;
            if self.damage.len() < DAMAGE_SAID_MAX {
                self.damage.push(words);
            }
        }
    }
}

/// The origin of operations issued by start `incarnation` of `replica`, if it needs one of its own.
fn life_of(replica: ReplicaId, incarnation: Incarnation) -> ReplicaId {
    let mut h = blake3::Hasher::new();
    h.update(b"icecluster life 1");
    h.update(&replica.0.to_le_bytes());
    h.update(&incarnation.0.to_le_bytes());
    let mut b = [0u8; 8];
    b.copy_from_slice(&h.finalize().as_bytes()[..8]);
    ReplicaId(u64::from_le_bytes(b))
}

impl Node {
    /// Starts a node from what its host found on disk. Damaged pages are left out and said in a notice of the first step:
    /// the node then asks its peers for what they hold.
    pub fn recover(config: Config, seed: Seed, disk: Recovered) -> Node {
        Node::recover_loaded(config, seed, disk, Loading::default())
    }

    /// The same, with what was loaded already of the checkpoint; `disk.pages` holds the rest.
    pub fn recover_loaded(config: Config, seed: Seed, mut disk: Recovered, mut loading: Loading) -> Node {
        for (key, value) in core::mem::take(&mut disk.pages) {
            loading.page(&key, &value);
        }
        let Loading { mut tree, meta, mut control, damaged, damage: words } = loading;
        tree.plant(config.bug);
        tree.finish_load();

        let mut unproven = (disk.ending == Ending::MachineCrash).then(Unproven::default);
        let mut history = History::keeping(config.retained_ops);
        let mut handles = Handles::default();
        let mut content = Content::default();
        history.restore(&meta.known);
        let mut lives: BTreeSet<ReplicaId> = meta.lives.iter().copied().collect();
        let mut last_life = meta.lives.last().copied();
        let mut members: BTreeMap<ReplicaId, MemberInfo> = meta.members.into_iter().map(|m| (m.replica, m)).collect();
        let mut clock = meta.clock;
        let mut next = meta.next_record.max(1);
        let mut touched: BTreeSet<InodeId> = BTreeSet::new();
        let crashed = disk.ending != Ending::Clean;
        let mut carried = Carried::default();
        for (index, record) in &disk.log {
            if let LogRecord::Op { op, here: None } = record
                && crashed
            {
                match &op.body {
                    OpBody::SetContent { inode, size: size @ 1.., digest, .. } => {
                        carried.bytes.entry((*size, *digest)).or_default().push((*inode, op.stamp()));
                    }
                    OpBody::Place { inode, parent, name, make: Some(_), .. } => {
                        carried.made.entry((*parent, name.clone())).or_default().push(*inode);
                    }
                    _ => {}
                }
            }
            next = next.max(index + 1);
            if let Some(u) = unproven.as_mut() {
                let gone = match record {
                    LogRecord::Op { op, here: Some(_) } => match &op.body {
                        OpBody::Remove { entry, .. } => Some(*entry),
                        _ => None,
                    },
                    LogRecord::Stands { entry, spot: None } => Some(*entry),
                    _ => None,
                };
                if let LogRecord::Holds { inode, witness, .. } = record {
                    u.replaced.extend(tree.outdated(*inode, witness.disk));
                }
                u.removed.extend(gone.and_then(|e| tree.leaving(e)).filter(|r| r.witness.disk != 0));
            }
            tree.replay(record);
            match record {
                LogRecord::State { records, context } => {
                    let known = history.frontier();
                    for r in records {
                        clock = r.stamps().fold(clock, |c, s| c.max(s.time));
                        tree.merge(r, &|s| covers(context, s), &|s| covers(&known, s));
                    }
                }
                LogRecord::Absent { inodes, context } => {
                    for inode in inodes {
                        tree.absent(*inode, &|s| covers(context, s));
                    }
                }
                LogRecord::Op { op, .. } => {
                    clock = clock.max(op.time);
                    replay_op(op, &mut history, &mut content, &mut handles, &mut touched);
                }
                LogRecord::Life(life) => {
                    lives.insert(*life);
                    last_life = Some(*life);
                }
                LogRecord::Member(info) => {
                    members.insert(info.replica, info.clone());
                }
                LogRecord::Raft(record) => control.log.push(record.clone()),
                LogRecord::Alone => control.forget(),
                LogRecord::Holds { .. } | LogRecord::Stands { .. } | LogRecord::Kept { .. } => {}
            }
        }
        tree.finish_replay();
        for m in history.frontier() {
            clock = clock.max(m.time);
            history.set_durable(m.origin, (m.seq, m.time));
        }

        // Operations may have reached others that this log lost: after a crash their numbers must not be used again.
        let fresh = last_life.is_none() || (disk.ending != Ending::Clean && !config.has(Bug::ReuseLife));
        let life = match last_life {
            Some(life) if !fresh => life,
            _ => life_of(config.replica, config.incarnation),
        };
        lives.insert(life);
        if let Some(u) = unproven.as_mut() {
            u.versions.extend(touched.iter().flat_map(|i| content.of(*i).into_iter().map(|v| (*i, v))));
            u.versions.extend(disk.staged.iter().copied());
        }
        if crashed {
            tree.crashed(carried);
        }
        let rng = Rng::new(seed);
        let mut node = Node {
            members: Members::new(&config, life, members.into_values().collect(), Instant(0)),
            rng: rng.fork(1),
            now: Instant(0),
            clock: Clock::new(life, clock),
            tree,
            history,
            journal: Journal::new(
                next,
                next.min(disk.log.first().map_or(next, |(i, _)| *i)),
                (config.checkpoint_records, config.checkpoint_after),
            ),
            content,
            handles,
            syncs: Syncs::default(),
            outgoing: BTreeMap::new(),
            held: BTreeMap::new(),
            lives,
            urgent: BTreeMap::new(),
            tell_held: BTreeSet::new(),
            asked: BTreeMap::new(),
            state_missing: BTreeSet::new(),
            content_cap: BTreeMap::new(),
            round: None,
            serving: Vec::new(),
            unproven,
            awaits_scan: (disk.ending != Ending::Clean).then_some(ScanDue::Unknown),
            settled_upto: None,
            flights: BTreeMap::new(),
            next_io: 0,
            rounds: config.incarnation.0 << 32,
            open: BTreeSet::new(),
            trim_at: Instant(0),
            horizon: Hlc(0),
            retry_at: None,
            apply_flights: 0,
            last_failure: None,
            stopping: false,
            outdated: false,
            first_io: Vec::new(),
            first_life: None,
            first_words: None,
            control: None,
            first_raft: None,
            out: crate::action::Outbox::default(),
            config,
        };
        for (inode, version) in disk.staged {
            if node.unproven.is_some() || node.tree.wants(inode, version) {
                node.content.put_staged(inode, version, &mut node.handles);
            } else {
                node.first_io.push(crate::action::Io::Unstage { inode, version });
            }
        }
        for inode in touched {
            node.settle(inode);
        }
        node.note_lacking();
        node.first_io.append(&mut node.out.io);
        node.first_life = fresh.then_some(life);
        node.recover_control(Seed(rng.fork(2).next_u64()), control);
        if damaged > 0 {
            node.first_words = Some(format!("{damaged} damaged parts in the checkpoint: {}", words.join("; ")));
        }
        node
    }

    /// Operations that a checkpoint covers, or that came by state, do not say whether their content is here: what is not must
    /// be had before whoever issued it hears of an acknowledgement again.
    fn note_lacking(&mut self) {
        for (inode, version) in self.tree.lacking() {
            if !self.content.has(inode, version) && !self.history.missing_of(inode).contains(&version) {
                self.lacks(inode, version);
                // The bytes of a copy were written by whoever lost the conflict.
                if let Some((of, lost)) = self.tree.copied_from(inode) {
                    self.lacks(of, lost);
                }
            }
        }
    }

    /// Bytes that counted as held are not here. Until they are, or are not wanted any more, content of their origin counts as
    /// held up to the operation before them only. That of others is not concerned: its author may be away for long.
    pub(super) fn lacks(&mut self, inode: InodeId, version: Stamp) {
        self.state_missing.insert((inode, version));
        let upto = self.history.number_of(version).map_or(0, |seq| seq.saturating_sub(1));
        let cap = self.content_cap.entry(version.replica).or_insert(upto);
        *cap = upto.min(*cap);
    }

    /// What the checkpoint should say, given what its pages cover.
    pub(super) fn meta(&self, known: Frontier) -> Vec<u8> {
        let mut lives: Vec<ReplicaId> = self.lives.iter().copied().filter(|l| *l != self.life()).collect();
        lives.push(self.life());
        let members = self.members.peers.values().map(|p| p.info.clone()).collect();
        crate::wire::encode(&Meta { known, lives, clock: self.clock.last(), members, next_record: self.journal.next })
    }

    /// Stable hash of the whole state.
    pub fn digest(&self) -> u128 {
        let mut all = small_state(self);
        all.push(self.tree.digest());
        crate::digest::of(&all)
    }
}

fn replay_op(
    op: &Op,
    history: &mut History,
    content: &mut Content,
    handles: &mut Handles,
    touched: &mut BTreeSet<InodeId>,
) {
    let known = history.known(op.origin);
    let next = op.seq == known.0 + 1;
    if next {
        history.push(op.clone(), handles);
    }
    if let OpBody::SetContent { inode, size, .. } = op.body {
        touched.insert(inode);
        let version: Stamp = op.stamp();
        match op.payload {
            Some(p) => content.put_payload(inode, version, p, handles),
            None if size > 0 && next => history.miss(op.origin, op.seq, inode, version),
            None => {}
        }
    } else if let Some(p) = op.payload {
        handles.refuse(p.id);
    }
}
