//! Operations: what replicas exchange and log. See `tree` for what they mean.

use crate::ids::{EntryId, InodeId, Name, PayloadId, ReplicaId};
use crate::time::{Hlc, Stamp, UnixTime};
use alloc::boxed::Box;
use core::fmt;
use serde::{Deserialize, Serialize};

/// What an inode is. Never changes during its life.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link with its target, 1 to 4095 bytes.
    Symlink(#[serde(with = "serde_bytes")] Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A Unix socket's name.
    Socket,
    /// A character device with its `rdev`.
    Char(u64),
    /// A block device with its `rdev`.
    Block(u64),
}

impl Kind {
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Dir)
    }
    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self, Kind::File)
    }
    pub(crate) fn hash_into(&self, h: &mut blake3::Hasher) {
        let (tag, detail): (u8, &[u8]) = match self {
            Kind::File => (0, &[]),
            Kind::Dir => (1, &[]),
            Kind::Symlink(t) => (2, t),
            Kind::Fifo => (3, &[]),
            Kind::Socket => (4, &[]),
            Kind::Char(r) => (5, &r.to_le_bytes()),
            Kind::Block(r) => (6, &r.to_le_bytes()),
        };
        h.update(&[tag]);
        h.update(detail);
    }
}

/// BLAKE3-based digest of a file's bytes, as `ice_host::digest` defines it (a hash of block hashes, so that a change in a
/// large file costs the changed blocks). [`ContentDigest::EMPTY`] is a file of length 0, whatever the algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ContentDigest(pub [u8; 32]);

impl ContentDigest {
    /// No bytes.
    pub const EMPTY: ContentDigest = ContentDigest([0; 32]);
}
impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..6] {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

/// A handle to bulk bytes in the host's payload pool. The bytes never enter the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Payload {
    /// Names the bytes at this host only; set anew when a message arrives.
    pub id: PayloadId,
    /// Bytes.
    pub len: u32,
    /// Of the bytes.
    pub digest: ContentDigest,
}

/// Attributes that a new inode starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Attrs {
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last access, as set; reads are not replicated.
    pub atime: UnixTime,
    /// Time of last modification.
    pub mtime: UnixTime,
}

/// One group of attributes. Groups are merged separately: a chmod does not fight with a chown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Attr {
    /// Permission bits, 0 to 0o7777.
    Mode(u32),
    /// Owner and group.
    Owner {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// Access and modification time.
    Times {
        /// Access.
        atime: UnixTime,
        /// Modification.
        mtime: UnixTime,
    },
    /// One extended attribute; `None` removes it.
    Xattr {
        /// With its namespace, for example `user.note`; 1 to 255 bytes.
        #[serde(with = "serde_bytes")]
        name: Box<[u8]>,
        /// Up to 64 KiB.
        value: Option<serde_bytes::ByteBuf>,
    },
}

/// How an inode begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Make {
    /// What it is.
    pub kind: Kind,
    /// Its first attributes.
    pub attrs: Attrs,
}

/// One replicated operation. Operations of one replica are numbered without gaps from 1 and their times increase.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Op {
    /// Who issued it.
    pub origin: ReplicaId,
    /// Its number among the operations of `origin`.
    pub seq: u64,
    /// With `origin` its [`Stamp`].
    pub time: Hlc,
    /// What it does.
    pub body: OpBody,
    /// For a small `SetContent`: the new bytes, whole.
    pub payload: Option<Payload>,
}

impl Op {
    /// Its place in the total order.
    pub fn stamp(&self) -> Stamp {
        Stamp { time: self.time, replica: self.origin }
    }
}

/// What an operation does to the tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OpBody {
    /// The entry now stands in `parent` under `name`: creation (with `make`), hard link, rename.
    Place {
        /// The entry.
        entry: EntryId,
        /// What it names.
        inode: InodeId,
        /// The directory it stands in.
        parent: InodeId,
        /// Its name there.
        name: Name,
        /// Present when this creates the inode.
        make: Option<Box<Make>>,
    },
    /// The entry is deleted by somebody who saw version `saw` of its content ([`Stamp::ZERO`]: none).
    Remove {
        /// The entry.
        entry: EntryId,
        /// Newest content version known to the deleter. A newer one means a concurrent edit and brings the entry back.
        saw: Stamp,
        /// The deleter knew of no other name that was left: he deleted the file. Otherwise he deleted one name, and
        /// relied on the others for the bytes.
        last: bool,
    },
    /// One group of attributes changes.
    SetAttr {
        /// Of this inode.
        inode: InodeId,
        /// To this.
        attr: Attr,
    },
    /// A file has new content; the operation's stamp names the version.
    SetContent {
        /// Of this inode.
        inode: InodeId,
        /// The version it was made from; [`Stamp::ZERO`] if there was none.
        base: Stamp,
        /// Bytes.
        size: u64,
        /// Of all bytes.
        digest: ContentDigest,
        /// Modification time that belongs to this content.
        mtime: UnixTime,
    },
}
