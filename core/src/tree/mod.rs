//! The namespace as a tree of operations.
//!
//! Every replica that knows the same operations shows the same tree, whatever the order in which they came and however
//! often. Basis: Kleppmann, Mulligan, Gomes, Beresford, *A highly-available move operation for replicated trees* (2021),
//! extended with content, attributes, hard links and deletion with revival.
//!
//! # Two trees
//! The **logical** tree changes at once, with each operation. The **materialised** one is what stands in `backing`; it
//! follows through the steps of [`Tree::plan`]. Local changes are made on disk first and speak of materialised names; they
//! become operations through [`Tree::local`].
//!
//! # Rules
//! - An *entry* has a placement (parent, name) and may be deleted. Of non-directories the latest placement counts. The
//!   placements of directories are replayed in the order of their stamps, and one that would make a cycle is skipped
//!   (`moves`).
//! - A deletion counts against placements with an earlier stamp. It carries the content version that the deleter had on
//!   disk: if all names of a file are deleted but newer content exists, the name that was deleted last comes back. A name
//!   alone does not come back while the file has another one: its bytes are safe there. For the same reason who deletes a
//!   name while he knows of another one does not delete the file: it is gone when somebody who had seen its content deleted
//!   the last name that he knew of, or when every name was deleted by somebody who had seen it. A deleted directory with a
//!   live entry in it is live.
//! - Live entries of one directory and name: the latest placement shows the name, the others
//!   `name.conflict-<replica>-<entry>` (`names`).
//! - Content: the latest version wins. A version that no other was made from (a *head*) and that is not the winner lost a
//!   conflict, unless its bytes are empty or equal to those of a version that won or that was overwritten knowingly, or
//!   the file was deleted by those who had seen it. Its bytes are kept as a copy (`heads`).
//! - Attributes: the latest per group. A modification time belongs to the times or to the content, whichever is later.
//! - An id is used again only after its deletion was forgotten here. Where it is not forgotten yet, a creation later than
//!   the deletion begins a new life: content that the deleters had seen and extended attributes from before the deletion
//!   are hidden. Of a file with several names all must have been deleted before.
//!
//! # What the caller guarantees
//! - Its own stamps ([`Mint`]) are later than every stamp that was integrated or given to [`Tree::cut`].
//! - [`Tree::cut`] is told a stamp `s` only when every member has all operations up to `s`, none at or below it can come any
//!   more, and *every operation that can still come was issued by somebody who had all operations up to `s`* by then. (So a
//!   member's word that it has them counts only once all its own operations from before that word have arrived here.)
//!   Otherwise somebody could still build on what is forgotten here. Operations at or below `s` that do arrive are repeats
//!   and ignored, so that nothing forgotten comes back.
//! - [`Tree::own_ops`] is called after [`Tree::applied`] and [`Tree::came`], in the same step.
//!
//! Memory is proportional to the tree, to what is deleted or in conflict and not yet known by all (until `cut`), and to
//! what disk still lacks.

mod api;
mod content;
mod cut;
mod disk;
mod found;
mod heads;
mod integrate;
mod live;
mod local;
mod merge;
mod model;
mod moves;
mod names;
mod place;
mod plan;
mod read;
pub(crate) mod slab;
mod store;
mod sum;

pub use api::{
    Child, Conflict, Damaged, EntryRecord, InodeInfo, Listed, LocalOp, LocalOutcome, PlaceRecord, Removal, StateRecord,
    Step, Ticket, Version, XattrRecord,
};

pub use found::{ByBytes, ByPlace, Bygone, Carried, Removed, Seen};

use crate::action::Source;
use crate::ids::{EntryId, InodeId};
use crate::time::Stamp;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use model::{Entry, HeldContent, Inode, Move, Place, Seat, Tag, Xattr};
use serde::{Deserialize, Serialize};
use slab::{Ids, NONE, Replicas, Slab};

/// Tells whether and from where the bytes of a version can be had now.
pub type Have<'a> = dyn Fn(InodeId, Stamp) -> Option<Source> + 'a;
/// Makes the next stamp of this replica, later than all before and than all that were integrated.
pub type Mint<'a> = dyn FnMut() -> Stamp + 'a;
/// Whether a replica knows the operation with this stamp (of [`Stamp::ZERO`]: true).
pub type Knows<'a> = dyn Fn(Stamp) -> bool + 'a;
/// A key of the checkpoint with its new value; `None` deletes it.
pub type Put = (Box<[u8]>, Option<Box<[u8]>>);

/// The slot of the root directory.
const ROOT: u32 = 0;

/// The namespace of one volume on one replica.
#[derive(Serialize, Deserialize)]
pub struct Tree {
    replicas: Replicas,
    inodes: Slab<Inode>,
    entries: Slab<Entry>,
    by_inode: Ids,
    /// Entries that did not make their inode; the others are found by what they made.
    by_entry: BTreeMap<EntryId, u32>,
    /// Live entries: (parent, hash of the name, entry).
    names: BTreeSet<(u32, u32, u32)>,
    /// What a kind says beyond its tag.
    details: BTreeMap<u32, crate::op::Kind>,
    xattrs: BTreeMap<(u32, Box<[u8]>), Xattr>,
    /// All entries of inodes that have more than one: (inode, entry).
    links: BTreeSet<(u32, u32)>,
    /// Deletions, by stamp.
    removed: BTreeMap<u32, Vec<Removal>>,
    /// Versions that not every member may know, and unsettled ones.
    versions: BTreeMap<(u32, Stamp), Version>,
    /// Versions that may have lost a conflict.
    heads: BTreeSet<(u32, Stamp)>,
    heads_due: BTreeSet<(u32, Stamp)>,
    /// Those that an operation decides which has not come yet; looked at again when the cut advances.
    heads_waiting: BTreeSet<(u32, Stamp)>,
    /// Lost, not on disk here, and their bytes are not at hand.
    heads_needed: BTreeSet<(u32, Stamp)>,
    copies: BTreeMap<(InodeId, Stamp), InodeId>,
    copy_of: BTreeMap<InodeId, (InodeId, Stamp)>,
    /// Live entries whose name may be a conflict's.
    marked: BTreeSet<u32>,
    kept: Vec<plan::Kept>,
    /// After a crash, until everything was compared: what others' operations in the log say of files' bytes.
    carried: Option<Carried>,
    /// The move log.
    moves: BTreeMap<Stamp, Move>,
    moves_of: BTreeSet<(u32, Stamp)>,
    base: BTreeMap<u32, Place>,
    /// Moves that came as settled facts but did not fit what is known so far.
    suspended: BTreeSet<Stamp>,
    /// Directories that the cluster forgot and that must be made anew.
    rebirths: BTreeSet<u32>,

    /// Deletions of entries that are not known yet.
    early: BTreeMap<EntryId, Vec<Removal>>,

    /// The highest stamp that `cut` was ever told: what is at or below it may have been forgotten.
    cut: Stamp,
    /// The one that it was told last: what is at or below it may be forgotten. Lower than `cut` after a start, and when a member
    /// became known that was not asked before.
    agreed: Stamp,
    graves: BTreeSet<(Stamp, u32)>,
    version_ages: BTreeSet<(Stamp, u32)>,
    orphans: BTreeSet<(Stamp, u32)>,
    xattr_graves: BTreeSet<(Stamp, u32)>,

    /// Entries that stand elsewhere than their register says.
    spots: BTreeMap<u32, Seat>,
    /// Those of them that stand in a directory: (parent, hash of the name, entry).
    moved: BTreeSet<(u32, u32, u32)>,
    held: BTreeMap<u32, HeldContent>,
    generations: BTreeMap<(u32, u32), u32>,

    /// Inodes under change: their hash is taken out of the sums until `settle`.
    touched: BTreeSet<u32>,
    recheck: BTreeSet<u32>,
    /// During loading and at replay nothing is planned.
    loading: bool,
    work: plan::Desk,

    dirty: BTreeSet<u32>,
    gone: BTreeSet<InodeId>,
    dirty_keys: BTreeSet<Box<[u8]>>,
    sums: sum::Sums,
    /// Planted, for tests of the tests.
    bug: Option<crate::bug::Bug>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// Plants a bug. Without the feature `planted-bugs` it has no effect.
    pub(crate) fn plant(&mut self, bug: Option<crate::bug::Bug>) {
        self.bug = bug;
    }

    fn has_bug(&self, bug: crate::bug::Bug) -> bool {
        cfg!(feature = "planted-bugs") && self.bug == Some(bug)
    }

    /// A tree that holds only the root directory.
    pub fn new() -> Tree {
        let mut t = Tree {
            replicas: Replicas::default(),
            inodes: Slab::default(),
            entries: Slab::default(),
            by_inode: Ids::default(),
            by_entry: BTreeMap::new(),
            names: BTreeSet::new(),
            details: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            links: BTreeSet::new(),
            removed: BTreeMap::new(),
            versions: BTreeMap::new(),
            heads: BTreeSet::new(),
            heads_due: BTreeSet::new(),
            heads_waiting: BTreeSet::new(),
            heads_needed: BTreeSet::new(),
            copies: BTreeMap::new(),
            copy_of: BTreeMap::new(),
            marked: BTreeSet::new(),
            kept: Vec::new(),
            carried: None,
            moves: BTreeMap::new(),
            moves_of: BTreeSet::new(),
            base: BTreeMap::new(),
            suspended: BTreeSet::new(),
            rebirths: BTreeSet::new(),
            early: BTreeMap::new(),
            cut: Stamp::ZERO,
            agreed: Stamp::ZERO,
            graves: BTreeSet::new(),
            version_ages: BTreeSet::new(),
            orphans: BTreeSet::new(),
            xattr_graves: BTreeSet::new(),
            spots: BTreeMap::new(),
            moved: BTreeSet::new(),
            held: BTreeMap::new(),
            generations: BTreeMap::new(),
            touched: BTreeSet::new(),
            recheck: BTreeSet::new(),
            loading: false,
            work: plan::Desk::default(),
            dirty: BTreeSet::new(),
            gone: BTreeSet::new(),
            dirty_keys: BTreeSet::new(),
            sums: sum::Sums::default(),
            bug: None,
        };
        let mut root = Inode::new(InodeId::ROOT);
        root.tag = Tag::Dir;
        root.mode = 0o755;
        let r = t.inodes.insert(root);
        debug_assert_eq!(r, ROOT);
        t.by_inode.insert(InodeId::ROOT.0, ROOT);
        t.sums.add(InodeId::ROOT, t.inode_hash(ROOT));
        t
    }

    /// Inodes known, the root and deleted ones included.
    #[allow(clippy::len_without_is_empty)] // The root is always there.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    fn stamp(&self, s: slab::Short) -> Stamp {
        self.replicas.full(s)
    }

    fn entry_of(&self, id: EntryId) -> Option<u32> {
        self.by_entry.get(&id).copied().or_else(|| self.maker_of(id.first_inode(), id))
    }

    /// The entry `id`, if it is known, of which `made` is the inode that it makes.
    fn maker_of(&self, made: InodeId, id: EntryId) -> Option<u32> {
        let e = self.inodes[self.inode_of(made)?].entry;
        self.entries.get(e).is_some_and(|n| n.has(model::FIRST) && n.id() == id).then_some(e)
    }

    fn inode_of(&self, id: InodeId) -> Option<u32> {
        self.by_inode.get(id.0, |i| self.inodes[i].id().0)
    }

    /// The slots of the inodes with these ids, by id.
    fn inodes_in(&self, low: InodeId, high: InodeId) -> impl Iterator<Item = u32> + '_ {
        self.by_inode.range(low.0, high.0, |i| self.inodes[i].id().0)
    }

    /// The slot of an inode; a placeholder if it is new. `at`: when its existence became known.
    fn intern_inode(&mut self, id: InodeId, at: Stamp) -> u32 {
        if let Some(i) = self.inode_of(id) {
            return i;
        }
        let i = self.inodes.insert(Inode::new(id));
        self.by_inode.insert(id.0, i);
        self.gone.remove(&id);
        if !self.loading {
            self.orphans.insert((at, i));
        }
        i
    }

    /// The slot of an entry of `inode`; unplaced if it is new.
    fn intern_entry(&mut self, id: EntryId, inode: u32) -> u32 {
        let made = id.first_inode();
        if let Some(e) = self.by_entry.get(&id).copied().or_else(|| self.maker_of(made, id)) {
            return e;
        }
        let first = made == self.inodes[inode].id();
        let e = self.entries.insert(Entry::new(id, inode, first));
        if !first {
            self.by_entry.insert(id, e);
        }
        let i = &mut self.inodes[inode];
        if i.entry == NONE {
            i.entry = e;
        } else {
            let old = i.entry;
            i.set(model::MULTI, true);
            if first {
                i.entry = e;
            }
            self.links.insert((inode, old));
            self.links.insert((inode, e));
        }
        e
    }

    /// All entries of an inode, deleted ones included.
    fn entries_of(&self, i: u32) -> Vec<u32> {
        let n = &self.inodes[i];
        if n.has(model::MULTI) {
            self.links.range((i, 0)..=(i, u32::MAX)).map(|(_, e)| *e).collect()
        } else if n.entry == NONE {
            Vec::new()
        } else {
            alloc::vec![n.entry]
        }
    }

    /// Begins a change of an inode or of its entries: takes its hash out of the sums. Ends in `settle`.
    fn touch(&mut self, i: u32) {
        if self.touched.insert(i) {
            if !self.loading {
                let h = self.inode_hash(i);
                self.sums.subtract(self.inodes[i].id(), h);
            }
            self.dirty.insert(i);
        }
    }

    /// Ends all changes begun: brings liveness, work and sums in line.
    fn settle(&mut self) {
        if self.loading {
            return;
        }
        while let Some(i) = self.touched.pop_first() {
            for e in self.entries_of(i) {
                self.refresh(e);
                self.work.unpark(plan::Work::Entry(e));
                self.call_entry(e);
            }
            self.work.unpark(plan::Work::Inode(i));
            self.call_inode(i);
            self.call_heads(i);
            self.recall_lost(i);
            self.work.wake(i);
            let h = self.inode_hash(i);
            self.sums.add(self.inodes[i].id(), h);
        }
        while let Some(i) = self.recheck.pop_first() {
            if let Some(n) = self.inodes.get(i)
                && n.entry != NONE
            {
                self.refresh(n.entry);
            }
        }
    }
}
