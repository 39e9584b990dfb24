//! What goes into a step: requests, peer messages, completions, news.

use crate::action::Spot;
use crate::control::{Ask, Watching};
use crate::ids::{InodeId, IoToken, LinkId, Name, OpToken};
use crate::message::Message;
use crate::op::{Attr, Attrs, ContentDigest, Kind, Payload};
use crate::time::{Span, UnixTime};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The events of one step, oldest first. A step that runs out of budget leaves the rest in place and sets `again`.
pub type Batch = VecDeque<Event>;

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// An adapter asks for something. Answered by exactly one reply with the same token.
    Op {
        /// Chosen by the host.
        token: OpToken,
        /// What is asked.
        op: Request,
    },
    /// The asker no longer waits. The request is answered all the same (with `Interrupted` if it had not ended).
    Cancel {
        /// Of the request.
        token: OpToken,
    },
    /// A message arrived.
    Peer {
        /// On this connection.
        link: LinkId,
        /// Decoded, its payloads already in the pool.
        message: Message,
    },
    /// A connection came or went.
    Link(LinkEvent),
    /// A disk action or transfer ended. Exactly one for each token.
    Io {
        /// Of the action.
        token: IoToken,
        /// How it ended.
        result: IoResult,
    },
    /// What the wall clock says, in nanoseconds since 1970. Handed in with every batch that holds a request, and at least
    /// once a second. May jump either way.
    Wall {
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// What watchers do that needs no answer.
    Watching(Watching),
    /// Orders from the operator.
    Admin(Admin),
}

/// News about connections.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LinkEvent {
    /// A connection stands, authenticated by the transport.
    Up {
        /// Its number.
        link: LinkId,
        /// The address if we dialled it, `None` if the other side did.
        dialled: Option<String>,
    },
    /// It is gone; nothing more arrives on it.
    Down {
        /// Its number.
        link: LinkId,
        /// In words, for status.
        why: String,
    },
    /// Dialling did not lead to a connection.
    DialFailed {
        /// The address.
        url: String,
        /// In words, for status.
        why: String,
    },
}

/// Orders from the operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Admin {
    /// Another address to dial (`POST /v1/peers/register`).
    AddPeer {
        /// Base URL.
        url: String,
    },
    /// The member at this address leaves for good (`POST /v1/peers/unregister`). It no longer counts for majorities.
    RemovePeer {
        /// Base URL.
        url: String,
    },
    /// After a start that followed a crash: all of `backing` has been compared with the tree, and the differences have been
    /// reported. Until then (and [`crate::limits::SCAN_MAX`] at most) nothing is applied to `backing`, so that what
    /// is found there is what the crash left. After a machine crash the log and what it holds are kept until then, too,
    /// because only they may still have bytes that `backing` has lost.
    Scanned,
    /// Another node shall lead the control plane, if this one does: it is about to stop.
    Resign,
    /// Tell the others that we stop, and stop dialling. Not the same as leaving the cluster.
    Stop,
}

/// What an adapter may ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Changes that were just made in `backing`, in the order in which they were made. The host holds its namespace lock
    /// from the system call to the end of the step. Answered in the same step by [`crate::action::Reply::Changed`], one
    /// result for each change; a change that the tree does not understand fails alone and is left to the scan.
    Change(Vec<Change>),
    /// Wait until everything this node issued so far is durable on as many nodes as `ack` asks.
    /// Answered by `Synced`, or by an error after `timeout`: it never lies.
    Sync {
        /// How many must hold it.
        ack: Ack,
        /// Give-up time from now.
        timeout: Span,
    },
    /// Nobody writes this inode any more: an installation that was answered `Busy` may be tried again. Answered `Done`.
    Released {
        /// The inode.
        inode: InodeId,
    },
    /// What a scan found, before anything of it is reported as a change: what can be explained by what is known (an action
    /// that was carried out and not recorded, or recorded and undone by a crash) is taken for that, without an
    /// operation. The host holds its namespace lock from the look to the end of the step. Answered in the same step by
    /// [`crate::action::Reply::Found`], one result for each.
    Found(Vec<Found>),
    /// Something of the control plane. Answered by [`crate::action::Reply::Control`].
    Control {
        /// What.
        ask: Box<Ask>,
        /// Give-up time from now.
        timeout: Span,
    },
}

/// What stands at a spot of `backing`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Where: in a directory that the tree believes to stand, or in limbo.
    pub at: Spot,
    /// What is there; `None`: nothing, and what the tree believes there is nowhere else either.
    pub thing: Option<Thing>,
}

/// An object on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Thing {
    /// What it is.
    pub kind: Kind,
    /// Of a file: how many bytes it has, and their digest. Otherwise none.
    pub bytes: (u64, ContentDigest),
    /// Its inode number in `backing`.
    pub disk: u64,
    /// The inode that the tree takes this object for, by its number. Of several the one that it believes here.
    pub object: Option<InodeId>,
    /// A spot where the tree believes that inode, and where this object does not stand.
    pub from: Option<Spot>,
    /// The tree believes another object here, and that one was found under another of its names.
    pub twin: bool,
}

/// How many nodes must hold a change durably before `fsync` returns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Ack {
    /// A majority of the members from three members on; with two, both while both are up and the survivor alone while the
    /// other is declared down.
    #[default]
    Auto,
    /// This node.
    Local,
    /// This node and one other.
    One,
    /// A majority of the members, this node included.
    Quorum,
    /// Every member.
    All,
}

/// A change made in `backing`. Names are the ones that stand there now (the *materialised* tree).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A new object stands in `parent` under `name`.
    Create {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
        /// What it is.
        kind: Kind,
        /// As on disk after creation.
        attrs: Attrs,
        /// As on disk after creation.
        witness: Witness,
    },
    /// A further name for a file.
    Link {
        /// The file.
        inode: InodeId,
        /// The directory of the new name.
        parent: InodeId,
        /// The new name.
        name: Name,
        /// As on disk afterwards.
        witness: Witness,
    },
    /// A rename. What stood at the target is gone, or has changed places if `exchange`.
    Rename {
        /// From this directory
        parent: InodeId,
        /// and name
        name: Name,
        /// to this directory
        new_parent: InodeId,
        /// and name.
        new_name: Name,
        /// `RENAME_EXCHANGE`.
        exchange: bool,
    },
    /// `unlink` or `rmdir`.
    Remove {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// Attributes changed.
    Attr {
        /// Of this inode.
        inode: InodeId,
        /// To this.
        attr: Attr,
        /// As on disk afterwards.
        witness: Witness,
    },
    /// The bytes of a file changed.
    Content {
        /// Of this inode.
        inode: InodeId,
        /// Bytes.
        size: u64,
        /// Of all bytes.
        digest: ContentDigest,
        /// Modification time.
        mtime: UnixTime,
        /// As on disk when the bytes were read.
        witness: Witness,
        /// The bytes, if there are at most [`crate::limits::INLINE_CONTENT_MAX_BYTES`].
        payload: Option<Payload>,
    },
    /// After a machine crash: the entry that should stand here is not on disk, and not by anybody's will. It is brought
    /// back from peers.
    Lost {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// After a machine crash: the bytes on disk are not the version that was written. They are fetched again; the host
    /// keeps what it found aside.
    Torn {
        /// The file.
        inode: InodeId,
        /// As on disk now.
        witness: Witness,
    },
    /// The inode looks different on disk, but neither attributes nor bytes that we replicate changed.
    Touch {
        /// The inode.
        inode: InodeId,
        /// As on disk now.
        witness: Witness,
    },
}

/// What the host remembers of an object on disk, to notice that somebody else changed it. Opaque to the core, which only
/// compares; never replicated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Witness {
    /// The object's inode number in `backing`; 0 if unknown.
    pub disk: u64,
    /// Hash of inode number, size, modification and change time, as of the last time the bytes were known; 0 if unknown.
    pub sum: u64,
}

/// How an action ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IoResult {
    /// All log records emitted before the `LogSync` are durable.
    LogSynced,
    /// The checkpoint page is written; durable if it was the last.
    Stored,
    /// The change stands in `backing` (durability is only promised at the next checkpoint commit).
    Applied(Witness),
    /// The bytes are in the staging area, verified and durable.
    Fetched,
    /// It failed; nothing was changed.
    Failed(IoError),
}

/// Why an action failed: news from the environment, never a bug of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum IoError {
    /// `backing` is not as the core believed (somebody edited it directly). The scan has been told.
    Changed,
    /// The file is open for writing on this node. `Request::Released` follows.
    Busy,
    /// The disk is full or over quota.
    NoSpace,
    /// The peer no longer has that version (of an action: the staging area has not).
    Gone,
    /// The bytes did not match the digest (of an action: those in the staging area).
    Mismatch,
    /// The peer did not answer in time.
    Unreachable,
    /// The medium failed (`EIO`, read-only file system, failed sync).
    Broken,
    /// Permission refused by the operating system.
    Denied,
    /// Another errno.
    Os(i32),
}

/// Adapters may hand in at most this much more before they must wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credits {
    /// Requests.
    pub requests: usize,
}

/// A boxed copy of the words, for status.
pub type Words = Box<str>;
