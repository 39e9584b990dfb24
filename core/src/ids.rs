//! Identities. All are plain numbers with a type each, ordered, and cheap to copy.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, $fmt, self.0) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, $fmt, self.0) }
        }
    };
}

number! {
    /// One replica's data, for as long as that data lives. Drawn at random when a node first starts on an empty `data`
    /// directory and kept there. A node that lost its disk comes back as another replica, even under its old name, so
    /// its operation numbers can never collide with those it issued before.
    ReplicaId(u64), "r{:x}"
}
number! {
    /// Counts the starts of one replica. Durable before the node says a word to anybody; higher means newer.
    Incarnation(u64), "i{}"
}
number! {
    /// One transport connection, numbered by the host. Never used twice within an incarnation.
    LinkId(u64), "l{}"
}
number! {
    /// A request handed in by an adapter. Chosen by the host, unique among the requests in flight.
    OpToken(u64), "op{}"
}
number! {
    /// A disk action in flight. Chosen by the core, never used twice within an incarnation.
    IoToken(u64), "io{}"
}
number! {
    /// An inode: what a file *is*, apart from where it stands. Derived from the entry that created it.
    InodeId(u128), "n{:x}"
}
number! {
    /// A directory entry: a place in the tree that survives renames. Derived, see [`EntryId::derive`].
    EntryId(u128), "e{:x}"
}
number! {
    /// Bulk bytes that the host keeps in memory on the core's behalf.
    PayloadId(u64), "p{}"
}

impl InodeId {
    /// The root directory of the volume, the same on every node.
    pub const ROOT: InodeId = InodeId(0);
}

impl EntryId {
    /// The id of the `generation`-th entry (from 0) that was ever created as `name` of kind `kind` (with its immutable
    /// detail, such as a link's target) below `parent`.
    ///
    /// Two nodes that adopt the same existing tree, or create the same path at once, derive the same id and thus speak
    /// of the same entry: directories merge by themselves and files become a content conflict, not a name clash.
    pub fn derive(parent: InodeId, name: &Name, kind: &crate::op::Kind, generation: u32) -> EntryId {
        let mut h = blake3::Hasher::new();
        h.update(b"icecluster entry 1");
        h.update(&parent.0.to_le_bytes());
        h.update(&[name.as_bytes().len() as u8]);
        h.update(name.as_bytes());
        kind.hash_into(&mut h);
        h.update(&generation.to_le_bytes());
        EntryId(low128(&h))
    }

    /// The id of the `generation`-th hard link to `inode` that was ever made as `name` below `parent`. Kept apart from
    /// [`EntryId::derive`], so that an entry names the same inode for ever: a link and a new file of one name that are made
    /// at once are two entries.
    pub fn derive_link(parent: InodeId, name: &Name, inode: InodeId, generation: u32) -> EntryId {
        let mut h = blake3::Hasher::new();
        h.update(b"icecluster link 1");
        h.update(&parent.0.to_le_bytes());
        h.update(&[name.as_bytes().len() as u8]);
        h.update(name.as_bytes());
        h.update(&inode.0.to_le_bytes());
        h.update(&generation.to_le_bytes());
        EntryId(low128(&h))
    }

    /// The id of the conflict copy that keeps the losing version `lost` of `inode`: the same on every node that saves it.
    pub fn derive_conflict(inode: InodeId, lost: crate::time::Stamp) -> EntryId {
        let mut h = blake3::Hasher::new();
        h.update(b"icecluster conflict 1");
        h.update(&inode.0.to_le_bytes());
        h.update(&lost.time.0.to_le_bytes());
        h.update(&lost.replica.0.to_le_bytes());
        EntryId(low128(&h))
    }

    /// The inode that the creation of this entry makes.
    pub fn first_inode(self) -> InodeId {
        let mut h = blake3::Hasher::new();
        h.update(b"icecluster inode 1");
        h.update(&self.0.to_le_bytes());
        InodeId(low128(&h))
    }
}

fn low128(h: &blake3::Hasher) -> u128 {
    let mut b = [0u8; 16];
    b.copy_from_slice(&h.finalize().as_bytes()[..16]);
    u128::from_le_bytes(b)
}

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, not `.` and not `..`. Not necessarily UTF-8.
#[derive(Clone)]
pub struct Name(Bytes);

/// Most names fit into what a pointer and its allocation would cost.
const SHORT_NAME_BYTES: usize = 22;

#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT_NAME_BYTES] },
    Long(Box<[u8]>),
}

impl Name {
    /// Longest name in bytes, as in every Linux file system.
    pub const MAX_BYTES: usize = 255;

    /// Checks `bytes`. `None` if they are not a component of a path.
    pub fn new(bytes: &[u8]) -> Option<Name> {
        let ok = !bytes.is_empty()
            && bytes.len() <= Self::MAX_BYTES
            && bytes != b"."
            && bytes != b".."
            && !bytes.iter().any(|b| *b == b'/' || *b == 0);
        if !ok {
            return None;
        }
        let mut short = [0; SHORT_NAME_BYTES];
        Some(Name(match short.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Bytes::Short { len: bytes.len() as u8, bytes: short }
            }
            None => Bytes::Long(bytes.into()),
        }))
    }

    /// The bytes as they stand on disk.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for Name {}
impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}
impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(self.as_bytes())
    }
}

// Names come from the network and from disk: decoding applies the same rule as `new`.
impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // From a buffer in memory nothing is allocated for a short name.
        let b: Cow<'_, [u8]> = serde_bytes::deserialize(d)?;
        Name::new(&b).ok_or_else(|| serde::de::Error::custom("not a path component"))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}
