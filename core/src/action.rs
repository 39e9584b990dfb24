//! What comes out of a step. Nothing in an outbox relies on its neighbour, except that log records keep their order.

use crate::event::Witness;
use crate::ids::{EntryId, InodeId, IoToken, LinkId, Name, OpToken, PayloadId, ReplicaId};
use crate::message::{Frontier, MemberInfo, Message};
use crate::op::{Attrs, ContentDigest, Kind, Op, Payload};
use crate::time::{Deadline, Stamp};
use crate::tree::StateRecord;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Everything one step wants done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Outbox {
    /// For the network.
    pub send: Vec<Send>,
    /// For the disk.
    pub io: Vec<Io>,
    /// For those who asked.
    pub reply: Vec<(OpToken, Reply)>,
    /// For whoever listens.
    pub notice: Vec<Notice>,
    /// For watchers of the store, in the order of each stream's numbers.
    pub told: Vec<crate::kv::watch::Message>,
    /// Payloads that the core no longer needs. Each handle once.
    pub release: Vec<PayloadId>,
    /// When to step again at the latest. Replaces the previous value; `None`: only when something happens.
    pub wake: Option<Deadline>,
    /// There is work left: step again soon, with or without events.
    pub again: bool,
}

/// For the network. Messages may be lost, repeated, delayed, reordered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Send {
    /// Send on an established connection; dropped silently if it is gone.
    Message {
        /// The connection.
        link: LinkId,
        /// Payload handles in it stay valid until the host has encoded it: `release` comes in a later step at the earliest.
        message: Message,
    },
    /// Open a connection. Answered by `LinkEvent::Up` or `DialFailed`.
    Dial {
        /// Base URL of the other node.
        url: String,
    },
    /// Close a connection. Answered by `LinkEvent::Down`.
    Hangup {
        /// The connection.
        link: LinkId,
        /// Told to the other side and the log.
        why: String,
    },
}

/// For the disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Io {
    /// Append to the log: the one FIFO. Has no completion of its own.
    Log {
        /// Its number: 1, 2, 3 ... over the life of the replica.
        index: u64,
        /// The record; the host writes the payload's bytes with it.
        record: LogRecord,
    },
    /// Make all log records emitted before this durable.
    LogSync {
        /// Answered `LogSynced` or `Failed`.
        token: IoToken,
    },
    /// Write pages of the checkpoint: all of them and `commit` become visible at once, when `commit` is given.
    Store {
        /// Answered `Stored` or `Failed`.
        token: IoToken,
        /// Key and new value (`None`: delete).
        puts: Vec<(Box<[u8]>, Option<Box<[u8]>>)>,
        /// Make `backing` and the staging area durable (`syncfs`), then commit durably; log records with an index below this are then dropped.
        commit: Option<u64>,
    },
    /// Change `backing`. Actions in flight never touch the same entry or inode, and a directory is made before and removed
    /// after what is in it. Before it is carried out, all log records emitted so far are handed to the operating system (not
    /// synced): a process that dies never leaves a change in `backing` whose operation its log does not know.
    Apply {
        /// Answered `Applied` or `Failed`.
        token: IoToken,
        /// What to change.
        apply: Apply,
    },
    /// Bring the bytes of a version into the staging area, verified and durable. If they are already there, just say so.
    Fetch {
        /// Answered `Fetched` or `Failed`.
        token: IoToken,
        /// From this member.
        from: ReplicaId,
        /// Of this file.
        inode: InodeId,
        /// This version.
        version: Stamp,
        /// Its length.
        size: u64,
        /// Its digest.
        digest: ContentDigest,
    },
    /// Write an inline payload into the staging area. It is durable with the next commit at the latest: a checkpoint waits for
    /// this before the log is dropped that has the bytes too. Answered `Fetched`.
    Stage {
        /// Answered `Fetched` or `Failed`.
        token: IoToken,
        /// The bytes.
        payload: Payload,
        /// Of this file.
        inode: InodeId,
        /// This version.
        version: Stamp,
    },
    /// Forget staged bytes, if there are any. No completion.
    Unstage {
        /// Of this file.
        inode: InodeId,
        /// This version.
        version: Stamp,
    },
    /// Look at this inode on disk again: what is there is not what was believed. The host answers with `Request::Change`.
    Rescan {
        /// The inode.
        inode: InodeId,
    },
}

/// Where an entry stands in `backing`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Spot {
    /// In a directory.
    At {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// Set aside in the hidden working directory, while its name is taken by another.
    Limbo(EntryId),
}

/// Where bytes come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// Length 0 (and all that is not a regular file).
    Empty,
    /// From the pool.
    Payload(Payload),
    /// From the staging area.
    Staged {
        /// Of this file.
        inode: InodeId,
        /// This version.
        version: Stamp,
    },
}

/// What loses its name in the same rename that gives it to another: there is no moment at which the name is missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Over {
    /// Not a directory, and without another name.
    pub inode: InodeId,
    /// What must still be there, as for [`Apply::Remove`]. If nothing is there any more that is fine.
    pub expect: Witness,
}

/// One atomic change of `backing`. The host resolves directories through the materialised tree
/// ([`crate::node::View::path`]) at the moment it acts, under its namespace lock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Apply {
    /// Create an object, whole (bytes and attributes included), at a free name or that of `over`.
    Make {
        /// The inode.
        inode: InodeId,
        /// Where.
        at: Spot,
        /// What.
        kind: Kind,
        /// Its attributes.
        attrs: Attrs,
        /// Its extended attributes.
        xattrs: Vec<(Box<[u8]>, Box<[u8]>)>,
        /// Its bytes.
        source: Source,
        /// What it replaces. Never with a directory.
        over: Option<Over>,
    },
    /// Give a file a further, free name.
    Link {
        /// The file.
        inode: InodeId,
        /// A name it has.
        from: Spot,
        /// The new one.
        to: Spot,
    },
    /// Move an entry to a free name or that of `over`.
    Move {
        /// What it names.
        inode: InodeId,
        /// From.
        from: Spot,
        /// To.
        to: Spot,
        /// What it replaces. Never with a directory.
        over: Option<Over>,
    },
    /// Remove a name. A file whose bytes are not the ones seen in `expect` stays (`Changed`), and so does a directory that
    /// is not empty.
    Remove {
        /// What it names.
        inode: InodeId,
        /// Where.
        at: Spot,
        /// A directory.
        dir: bool,
        /// What must still be there.
        expect: Witness,
    },
    /// Set attributes.
    Attr {
        /// Of this inode.
        inode: InodeId,
        /// A name it has.
        at: Spot,
        /// All of them.
        attrs: Attrs,
        /// These extended ones (`None`: remove).
        xattrs: Vec<(Box<[u8]>, Option<Box<[u8]>>)>,
    },
    /// Replace the bytes of a file, atomically: written aside, then renamed over every name it has. A file whose bytes are
    /// not the ones seen in `expect` stays (`Changed`); one that is open for writing too (`Busy`).
    Install {
        /// The file.
        inode: InodeId,
        /// All its names.
        at: Vec<Spot>,
        /// The new bytes.
        source: Source,
        /// Its attributes.
        attrs: Attrs,
        /// Its extended attributes.
        xattrs: Vec<(Box<[u8]>, Box<[u8]>)>,
        /// What must still be there.
        expect: Witness,
        /// The bytes that are replaced lost a conflict: give them this free name (a hard link made before the renames), so
        /// that they are never without a name. The answer's witness is that of the new bytes.
        keep: Option<Spot>,
    },
}

impl Apply {
    /// The payload that its bytes come from.
    pub fn payload(&self) -> Option<Payload> {
        match self {
            Apply::Make { source: Source::Payload(p), .. } | Apply::Install { source: Source::Payload(p), .. } => {
                Some(*p)
            }
            _ => None,
        }
    }

    /// The version in the staging area that its bytes come from.
    pub fn staged(&self) -> Option<(InodeId, Stamp)> {
        match self {
            Apply::Make { source: Source::Staged { inode, version }, .. }
            | Apply::Install { source: Source::Staged { inode, version }, .. } => Some((*inode, *version)),
            _ => None,
        }
    }

    /// The inode that the change is about.
    pub fn inode(&self) -> InodeId {
        match self {
            Apply::Make { inode, .. }
            | Apply::Link { inode, .. }
            | Apply::Move { inode, .. }
            | Apply::Remove { inode, .. }
            | Apply::Attr { inode, .. }
            | Apply::Install { inode, .. } => *inode,
        }
    }
}

/// What the log holds. Encoded by the host with [`crate::wire::encode`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogRecord {
    /// An operation became known. `here`: it had been made in `backing` before (ours); the witness belongs to its inode.
    Op {
        /// The operation.
        op: Op,
        /// Set for our own.
        here: Option<Witness>,
    },
    /// `backing` now holds this version (and attributes) of an inode.
    Holds {
        /// The inode.
        inode: InodeId,
        /// Content version; zero for what has no content.
        version: Stamp,
        /// As on disk.
        witness: Witness,
        /// All attributes on disk are the newest too.
        attrs: bool,
    },
    /// An entry now stands there in `backing`, or (`None`) nowhere.
    Stands {
        /// The entry.
        entry: EntryId,
        /// Where.
        spot: Option<Spot>,
    },
    /// From here on our operations have this origin.
    Life(ReplicaId),
    /// What is known of a member.
    Member(MemberInfo),
    /// The bytes of a losing version were kept as a conflict copy.
    Kept {
        /// The file that the conflict was about.
        inode: InodeId,
        /// The losing version.
        lost: Stamp,
        /// The copy.
        copy: InodeId,
    },
    /// A peer's account of some inodes was merged, and some of it may stand in `backing` from now on. It does not count as known
    /// before a checkpoint has it.
    State {
        /// What the peer says.
        records: Vec<StateRecord>,
        /// What the peer knew when it said so.
        context: Frontier,
    },
    /// A peer that knew all about these inodes no longer had them: they were forgotten.
    Absent {
        /// Which.
        inodes: Vec<InodeId>,
        /// What the peer knew when it said so. What is said of an inode beyond that is not forgotten.
        context: Frontier,
    },
    /// What consensus must not forget.
    Raft(crate::raft::Record),
    /// All that consensus and the store had before is forgotten: this replica was alone and had nothing, and joins another cluster.
    Alone,
}

/// Answers to requests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// For `Request::Change`: for each change the inode it was about, or why it was not understood.
    Changed(Vec<Result<InodeId, Refused>>),
    /// For `Request::Sync`: held durably by this many nodes.
    Synced {
        /// Nodes, this one included.
        copies: u32,
    },
    /// Done.
    Done,
    /// Not done.
    Failed(Refused),
    /// For `Request::Found`: for each what it is. `Refused::Unknown`: its directory is not known.
    Found(Vec<Result<Sighting, Refused>>),
    /// For `Request::Control`.
    Control(Box<crate::control::Answer>),
}

/// What the tree makes of something that a scan found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Sighting {
    /// This inode (and the tree now believes it here). Its attributes have not been compared. For nothing: it is where it
    /// should be.
    Known(InodeId),
    /// The newer edition of a file, which still stands as the older object under other names: an installation was cut short.
    /// The host makes those names links to this object, and shows it again.
    Newer(InodeId),
    /// It should not stand here, and its bytes are safe: the host takes the name away.
    Removed,
    /// It should not stand here, but nobody vouches for its bytes: the host keeps them outside the volume and takes the name
    /// away.
    Aside,
    /// Nothing that is known explains it: the host reports it as a change, or after a machine crash as lost or torn.
    Unknown,
}

/// Why a request was not fulfilled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Refused {
    /// Too much work in flight: try again (`EAGAIN`, 503).
    Busy,
    /// The tree does not know this inode or name (`ESTALE`): look at the disk again.
    Unknown,
    /// The acknowledgement policy could not be met in time (`EIO` from `fsync`, 504).
    NotAcknowledged,
    /// The log cannot be written or synced (`EIO`, 507).
    LogBroken,
    /// The asker went away (`EINTR`).
    Interrupted,
    /// The node is stopping (`ESHUTDOWN`, 503).
    Stopping,
    /// A limit of `limits` would be exceeded (`ENOSPC`, 507).
    Limit,
}

/// News for hooks, logs and status. Nobody needs to act on them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Notice {
    /// A member became known.
    PeerJoin(MemberInfo),
    /// A member left for good.
    PeerLeave(MemberInfo),
    /// A member is declared down.
    PeerDown {
        /// Who.
        member: MemberInfo,
        /// In words.
        why: String,
    },
    /// It is back.
    PeerRecover(MemberInfo),
    /// A losing version was kept as a copy.
    Conflict {
        /// Of this file.
        inode: InodeId,
        /// The losing version.
        lost: Stamp,
        /// The copy.
        copy: InodeId,
        /// Where the copy is, or, where it has no place yet, the file beside which it will be; empty where neither is known.
        path: Vec<Name>,
        /// Who wrote the losing version: a member's name, empty where it is not known.
        by: String,
    },
    /// Something that an operator should know, in words.
    Trouble(String),
}
