//! The types in which the tree speaks with its owner.

use crate::action::{Apply, LogRecord};
use crate::event::Witness;
use crate::ids::{EntryId, InodeId, Name};
use crate::op::{Attrs, ContentDigest, Kind, OpBody};
use crate::time::{Stamp, UnixTime};
use alloc::boxed::Box;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Names one change of `backing` in flight. Never used twice by one [`super::Tree`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// What [`super::Tree::plan`] wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all are of the large one, and few are there at a time")]
pub enum Step {
    /// Change `backing`. To be answered by [`super::Tree::applied`] or [`super::Tree::failed`].
    Apply {
        /// Names the change in the answer.
        ticket: Ticket,
        /// What to do.
        apply: Apply,
    },
    /// The bytes of this version are wanted. Said once, until [`super::Tree::came`] or [`super::Tree::retry`].
    Need {
        /// Of this file.
        inode: InodeId,
        /// This version.
        version: Stamp,
        /// Bytes.
        size: u64,
        /// Of all bytes.
        digest: ContentDigest,
    },
}

/// One operation that this replica issues: to be numbered, logged and sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalOp {
    /// Its place in the total order, as minted.
    pub stamp: Stamp,
    /// What it does.
    pub body: OpBody,
    /// For [`LogRecord::Op`]: set if it stands in `backing` already.
    pub here: Option<Witness>,
}

/// What a local change came to. The tree has integrated the operations already. The log takes `ops` first, then `records`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalOutcome {
    /// What the change was about.
    pub inode: InodeId,
    /// Operations, possibly none, with increasing stamps.
    pub ops: Vec<LocalOp>,
    /// To be logged behind them.
    pub records: Vec<LogRecord>,
}

/// What is known of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeInfo {
    /// What it is.
    pub kind: Kind,
    /// Its newest known attributes (disk may lag behind).
    pub attrs: Attrs,
    /// The content version on disk here; [`Stamp::ZERO`] if none.
    pub held: Stamp,
    /// The newest content version; [`Stamp::ZERO`] if it never had content.
    pub version: Stamp,
    /// Bytes in `version`.
    pub size: u64,
    /// Digest of `version`.
    pub digest: ContentDigest,
    /// Bytes in `held` and their digest; `None` if they are no longer known (then `held` is not `version`).
    pub held_content: Option<(u64, ContentDigest)>,
    /// `attrs` and all extended attributes stand on disk. Otherwise a remote change of them waits to be applied, and a
    /// difference to the disk does not mean that somebody changed the disk.
    pub attrs_held: bool,
    /// What stands on disk.
    pub witness: Witness,
    /// Names on disk here.
    pub nlink: u32,
}

/// One line of a directory as it stands on disk here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its name on disk.
    pub name: Name,
    /// What it names.
    pub inode: InodeId,
    /// Whether that is a directory.
    pub dir: bool,
}

/// One line of the logical tree, see [`super::Tree::listing`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// From the root.
    pub path: Vec<Name>,
    /// What stands there. Hard links share it.
    pub inode: InodeId,
    /// Its kind.
    pub kind: Kind,
    /// Its attributes.
    pub attrs: Attrs,
    /// Bytes.
    pub size: u64,
    /// Of all bytes; [`ContentDigest::EMPTY`] for what has none.
    pub digest: ContentDigest,
    /// Extended attributes by name.
    pub xattrs: Vec<(Box<[u8]>, Box<[u8]>)>,
}

/// A losing version that was kept; or of two things that were given one name apart, the one that is shown under another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Conflict {
    /// The file that the conflict was about; `None` if it is gone.
    pub inode: Option<InodeId>,
    /// The losing version, or when the name was given.
    pub lost: Stamp,
    /// The file that keeps its bytes, or what is shown under the conflict's name.
    pub copy: InodeId,
}

/// A content version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Its name: the stamp of its operation.
    pub stamp: Stamp,
    /// What it was made from; [`Stamp::ZERO`]: nothing.
    pub base: Stamp,
    /// Bytes.
    pub size: u64,
    /// Of all bytes.
    pub digest: ContentDigest,
    /// Modification time.
    pub mtime: UnixTime,
}

/// One deletion of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Removal {
    /// When.
    pub at: Stamp,
    /// The content version that the deleter had seen.
    pub saw: Stamp,
    /// The deleter knew of no other name of the file that was left.
    pub last: bool,
}

/// Everything known about one inode and its entries, for state transfer: each register with its stamp, so that it can be
/// merged into whatever the receiver knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StateRecord {
    /// The inode.
    pub inode: InodeId,
    /// What it is and when it was (last) created. `None`: its creation is not known to the speaker.
    pub make: Option<(Stamp, Kind)>,
    /// Permission bits.
    pub mode: (Stamp, u32),
    /// Owner and group.
    pub owner: (Stamp, u32, u32),
    /// Access time, with the stamp of the whole group.
    pub times: (Stamp, UnixTime),
    /// Modification time; its stamp is the later of `times` and `content`.
    pub mtime: UnixTime,
    /// The newest content: version, size, digest. [`Stamp::ZERO`]: none.
    pub content: (Stamp, u64, ContentDigest),
    /// Versions that not every member may know, oldest first, and older ones whose conflict is not settled.
    pub versions: Vec<Version>,
    /// Extended attributes; `None`: removed.
    pub xattrs: Vec<XattrRecord>,
    /// The entries that name it, the deleted ones included.
    pub entries: Vec<EntryRecord>,
    /// Only with the root: deletions of entries that the speaker does not know yet.
    pub early: Vec<(EntryId, Removal)>,
    /// Up to here the speaker has dropped what every member knows.
    pub cut: Stamp,
}

impl StateRecord {
    /// About how many bytes it takes, encoded or in memory.
    pub fn weight(&self) -> usize {
        let target = if let Some((_, Kind::Symlink(target))) = &self.make { target.len() } else { 0 };
        let value = |x: &XattrRecord| x.value.as_ref().map_or(0, |v| v.len());
        let xattrs: usize = self.xattrs.iter().map(|x| 64 + x.name.len() + value(x)).sum();
        let places = |e: &EntryRecord| e.places.iter().map(|p| 64 + p.name.as_bytes().len()).sum::<usize>();
        let entries: usize = self.entries.iter().map(|e| 64 + places(e) + 40 * e.removed.len()).sum();
        256 + target + xattrs + entries + 80 * self.versions.len() + 56 * self.early.len()
    }

    /// The stamps of everything that is said in it.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        let make = self.make.iter().map(|m| m.0);
        let registers = [self.mode.0, self.owner.0, self.times.0, self.content.0];
        let versions = self.versions.iter().map(|v| v.stamp);
        let xattrs = self.xattrs.iter().map(|x| x.stamp);
        make.chain(registers).chain(versions).chain(xattrs).chain(self.entries.iter().flat_map(EntryRecord::stamps))
    }
}

/// One extended attribute in a [`StateRecord`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct XattrRecord {
    /// Its name.
    #[serde(with = "serde_bytes")]
    pub name: Box<[u8]>,
    /// When it was set.
    pub stamp: Stamp,
    /// To what; `None`: removed.
    pub value: Option<serde_bytes::ByteBuf>,
}

/// One entry in a [`StateRecord`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The entry.
    pub id: EntryId,
    /// Where it was put, oldest first. For what is not a directory only the latest.
    pub places: Vec<PlaceRecord>,
    /// Its deletions, oldest first.
    pub removed: Vec<Removal>,
}

impl EntryRecord {
    /// The stamps of its placements and deletions.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        self.places.iter().map(|p| p.stamp).chain(self.removed.iter().map(|r| r.at))
    }
}

/// One placement in a [`StateRecord`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlaceRecord {
    /// When.
    pub stamp: Stamp,
    /// Below this directory.
    pub parent: InodeId,
    /// Under this name.
    pub name: Name,
    /// Every member knows it and everything before it: it holds without being checked for a cycle again.
    pub base: bool,
}

/// A stored record or key does not decode. The checkpoint cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged(pub &'static str);

impl core::fmt::Display for Damaged {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "damaged tree record: {}", self.0)
    }
}

impl core::error::Error for Damaged {}
