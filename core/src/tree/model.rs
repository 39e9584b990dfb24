//! What the tree stores for an inode and an entry, and the small rules that need only one of them.

use super::slab::{NONE, Short};
use crate::event::Witness;
use crate::ids::{EntryId, InodeId, Name};
use crate::op::{ContentDigest, Kind};
use crate::time::{Stamp, UnixTime};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// [`Kind`] without its detail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Tag {
    /// The creation is not known yet.
    Unknown,
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

impl Tag {
    pub(super) fn of(kind: &Kind) -> Tag {
        match kind {
            Kind::File => Tag::File,
            Kind::Dir => Tag::Dir,
            Kind::Symlink(_) => Tag::Symlink,
            Kind::Fifo => Tag::Fifo,
            Kind::Socket => Tag::Socket,
            Kind::Char(_) => Tag::Char,
            Kind::Block(_) => Tag::Block,
        }
    }
}

/// Disk holds the content version of the register.
pub(super) const HELD_SAME: u8 = 1;
/// Disk lacks attributes.
pub(super) const ATTR_DUE: u8 = 2;
/// More than one entry names it: `Tree::links` lists them.
pub(super) const MULTI: u8 = 4;
/// A directory was once placed below it.
pub(super) const PARENT: u8 = 8;
/// It has extended attributes.
pub(super) const XATTRS: u8 = 16;

/// An inode: registers, each with the stamp of the operation that won it.
#[derive(Serialize, Deserialize)]
pub(super) struct Inode {
    id: [u64; 2],
    /// Of `content`.
    pub(super) digest: ContentDigest,
    pub(super) size: u64,
    pub(super) witness: Witness,
    atime_sec: i64,
    mtime_sec: i64,
    atime_nsec: u32,
    mtime_nsec: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Its first entry, or `NONE`. For a directory the one that made it.
    pub(super) entry: u32,
    /// Placements that name it as parent.
    pub(super) refs: u32,
    /// Live entries placed in it.
    pub(super) live_kids: u32,
    /// Entries that stand in it on disk.
    pub(super) disk_kids: u32,
    pub(super) make: Short,
    pub(super) mode_at: Short,
    pub(super) owner_at: Short,
    pub(super) times_at: Short,
    pub(super) content: Short,
    pub(super) mode: u16,
    pub(super) tag: Tag,
    pub(super) flags: u8,
}

impl Inode {
    pub(super) fn new(id: InodeId) -> Inode {
        Inode {
            id: [(id.0 >> 64) as u64, id.0 as u64],
            digest: ContentDigest::EMPTY,
            size: 0,
            witness: Witness::default(),
            atime_sec: 0,
            mtime_sec: 0,
            atime_nsec: 0,
            mtime_nsec: 0,
            uid: 0,
            gid: 0,
            entry: NONE,
            refs: 0,
            live_kids: 0,
            disk_kids: 0,
            make: Short::default(),
            mode_at: Short::default(),
            owner_at: Short::default(),
            times_at: Short::default(),
            content: Short::default(),
            mode: 0,
            tag: Tag::Unknown,
            flags: 0,
        }
    }
    pub(super) fn id(&self) -> InodeId {
        InodeId((u128::from(self.id[0]) << 64) | u128::from(self.id[1]))
    }
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
    pub(super) fn set(&mut self, flag: u8, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }
    pub(super) fn atime(&self) -> UnixTime {
        UnixTime { sec: self.atime_sec, nsec: self.atime_nsec }
    }
    pub(super) fn mtime(&self) -> UnixTime {
        UnixTime { sec: self.mtime_sec, nsec: self.mtime_nsec }
    }
    pub(super) fn set_atime(&mut self, t: UnixTime) {
        (self.atime_sec, self.atime_nsec) = (t.sec, t.nsec);
    }
    pub(super) fn set_mtime(&mut self, t: UnixTime) {
        (self.mtime_sec, self.mtime_nsec) = (t.sec, t.nsec);
    }
}

/// It counts as standing in the tree: the name index and its parent's `live_kids` know it.
pub(super) const LIVE: u8 = 1;
/// On disk it stands exactly where the register says. Implies `LIVE`.
pub(super) const HERE: u8 = 2;
/// On disk it stands where `Tree::spots` says.
pub(super) const ELSEWHERE: u8 = 4;
/// `Tree::removed` has deletions of it.
pub(super) const REMOVED: u8 = 8;
/// Its inode was created by it.
pub(super) const FIRST: u8 = 16;
/// The move log has placements of it, and `Tree::base` what was before them.
pub(super) const LOGGED: u8 = 32;
/// The cluster forgot it; only what stands on disk keeps it here.
pub(super) const FORGOTTEN: u8 = 64;

/// An entry. Unplaced (`name` is `None`) while only a deletion of it is known.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    id: [u64; 2],
    pub(super) name: Option<Name>,
    pub(super) inode: u32,
    pub(super) parent: u32,
    pub(super) place: Short,
    pub(super) flags: u8,
    /// Leaves values unused, so that a slot costs no more than an entry.
    _niche: bool,
}

impl Entry {
    pub(super) fn new(id: EntryId, inode: u32, first: bool) -> Entry {
        Entry {
            id: [(id.0 >> 64) as u64, id.0 as u64],
            name: None,
            inode,
            parent: NONE,
            place: Short::default(),
            flags: if first { FIRST } else { 0 },
            _niche: false,
        }
    }
    pub(super) fn id(&self) -> EntryId {
        EntryId((u128::from(self.id[0]) << 64) | u128::from(self.id[1]))
    }
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
    pub(super) fn set(&mut self, flag: u8, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }
}

/// A placement.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) stamp: Stamp,
    pub(super) parent: u32,
    pub(super) name: Name,
}

/// One placement of a directory in the move log.
#[derive(Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) entry: u32,
    pub(super) parent: u32,
    pub(super) name: Name,
    /// It would make a cycle.
    pub(super) skipped: bool,
}

/// Where an entry stands on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Seat {
    At(u32, Name),
    Limbo,
}

/// The content on disk, where it is not the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct HeldContent {
    pub(super) stamp: Stamp,
    /// Size and digest, if still known.
    pub(super) bytes: Option<(u64, ContentDigest)>,
}

/// One extended attribute.
#[derive(Serialize, Deserialize)]
pub(super) struct Xattr {
    pub(super) stamp: Stamp,
    pub(super) value: Option<Vec<u8>>,
}

/// A short hash of a name for the index: FNV-1a (Fowler, Noll, Vo).
pub(super) fn name_hash(name: &Name) -> u32 {
    name.as_bytes().iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_small() {
        // A file costs one of each; see `tests/tree_size.rs` for the whole.
        assert_eq!((size_of::<Option<Inode>>(), size_of::<Option<Entry>>()), (176, 64));
        assert_eq!(size_of::<Option<Name>>(), 24);
    }
}
