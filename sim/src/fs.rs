//! A simulated local file system: what `backing` lives on.
//!
//! Every change is one [`FsOp`]. Changes are ordered and become durable together at [`Fs::sync`]; a machine crash keeps a
//! prefix of those made since, and of the kept ones some writes lose their bytes (delayed allocation). A process crash
//! loses nothing. Change times are a counter that only grows.

use crate::content::Content;
use crate::rng::Stream;
use ice_core::event::Witness;
use ice_core::ids::Name;
use ice_core::op::{Attr, Attrs, Kind};
use ice_core::time::UnixTime;
use std::collections::{BTreeMap, BTreeSet};

/// An inode number on the simulated disk.
pub type Ino = u64;
/// The directory `backing` itself.
pub const ROOT: Ino = 1;
/// The hidden working directory beside it.
pub const WORK: Ino = 2;

/// Names of unfinished files in [`WORK`] begin like this.
pub const SCRATCH: &[u8] = b"tmp-";

/// An object on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Mode, owner and times.
    pub attrs: Attrs,
    /// Extended attributes.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Bytes of a regular file.
    pub content: Content,
    /// Change time: the number of the change that touched it last.
    pub ctime: u64,
    /// Names.
    pub links: u32,
    /// What is in a directory.
    pub children: BTreeMap<Name, Ino>,
}

/// Why a change was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsError {
    /// `ENOENT`
    Missing,
    /// `EEXIST`
    Exists,
    /// `ENOTDIR`
    NotDir,
    /// `EISDIR`
    IsDir,
    /// `ENOTEMPTY`
    NotEmpty,
    /// `EINVAL`: a directory moved below itself.
    Cycle,
    /// `ENOSPC`
    NoSpace,
}

/// One change.
#[derive(Clone, Debug)]
pub enum FsOp {
    /// A new object at a free name.
    Make {
        /// Directory.
        parent: Ino,
        /// Free name.
        name: Name,
        /// What.
        kind: Kind,
        /// Attributes.
        attrs: Attrs,
        /// Extended attributes.
        xattrs: Vec<(Box<[u8]>, Box<[u8]>)>,
        /// Bytes.
        content: Content,
        /// The bytes are durable already (a staged file that is renamed).
        flushed: bool,
    },
    /// A further name.
    Link {
        /// File.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Free name.
        name: Name,
    },
    /// `rename(2)`: replaces a file, or an empty directory by a directory.
    Rename {
        /// From here,
        parent: Ino,
        /// this name,
        name: Name,
        /// to here,
        new_parent: Ino,
        /// under this name.
        new_name: Name,
        /// `RENAME_EXCHANGE`.
        exchange: bool,
    },
    /// `unlink(2)` or `rmdir(2)`.
    Remove {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Name,
    },
    /// Attributes.
    Attr {
        /// Of this object.
        ino: Ino,
        /// To this.
        attr: Attr,
    },
    /// Replaces the bytes.
    Write {
        /// Of this file.
        ino: Ino,
        /// By these.
        content: Content,
        /// Modification time.
        mtime: UnixTime,
    },
}

/// All objects.
#[derive(Clone, Debug)]
struct State {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    clock: u64,
}

/// The file system of one node.
#[derive(Clone, Debug)]
pub struct Fs {
    live: State,
    durable: State,
    since: Vec<FsOp>,
    /// Files whose newest bytes are not durable, though their names may be.
    dirty: BTreeSet<Ino>,
    /// No room for new bytes or names.
    pub full: bool,
}

impl State {
    fn new() -> State {
        let dir = || Inode {
            kind: Kind::Dir,
            attrs: Attrs { mode: 0o755, ..Attrs::default() },
            xattrs: BTreeMap::new(),
            content: Content::EMPTY,
            ctime: 0,
            links: 1,
            children: BTreeMap::new(),
        };
        State { inodes: BTreeMap::from([(ROOT, dir()), (WORK, dir())]), next: 3, clock: 1 }
    }
    fn dir(&self, ino: Ino) -> Result<&Inode, FsError> {
        let d = self.inodes.get(&ino).ok_or(FsError::Missing)?;
        if d.kind.is_dir() { Ok(d) } else { Err(FsError::NotDir) }
    }
    fn child(&self, parent: Ino, name: &Name) -> Result<Ino, FsError> {
        self.dir(parent)?.children.get(name).copied().ok_or(FsError::Missing)
    }
    fn free(&self, parent: Ino, name: &Name) -> Result<(), FsError> {
        if self.dir(parent)?.children.contains_key(name) { Err(FsError::Exists) } else { Ok(()) }
    }
    fn touch(&mut self, ino: Ino) {
        self.clock += 1;
        if let Some(i) = self.inodes.get_mut(&ino) {
            i.ctime = self.clock;
        }
    }
    fn put(&mut self, parent: Ino, name: Name, ino: Ino) {
        if let Some(d) = self.inodes.get_mut(&parent) {
            d.children.insert(name, ino);
        }
    }
    fn drop_name(&mut self, parent: Ino, name: &Name) {
        let Some(ino) = self.inodes.get_mut(&parent).and_then(|d| d.children.remove(name)) else { return };
        self.touch(ino);
        if let Some(i) = self.inodes.get_mut(&ino) {
            i.links -= 1;
            if i.links == 0 {
                self.inodes.remove(&ino);
            }
        }
    }
    fn is_below(&self, ino: Ino, top: Ino) -> bool {
        ino == top
            || self
                .inodes
                .get(&top)
                .is_some_and(|d| d.children.values().any(|c| self.inodes[c].kind.is_dir() && self.is_below(ino, *c)))
    }

    /// Makes the change whole or not at all; returns the object it was about.
    fn apply(&mut self, op: &FsOp) -> Result<Ino, FsError> {
        match op {
            FsOp::Make { parent, name, kind, attrs, xattrs, content, .. } => {
                self.free(*parent, name)?;
                let ino = self.next;
                self.next += 1;
                let inode = Inode {
                    kind: kind.clone(),
                    attrs: *attrs,
                    xattrs: xattrs.iter().cloned().collect(),
                    content: *content,
                    ctime: 0,
                    links: 1,
                    children: BTreeMap::new(),
                };
                self.inodes.insert(ino, inode);
                self.touch(ino);
                self.put(*parent, name.clone(), ino);
                Ok(ino)
            }
            FsOp::Link { ino, parent, name } => {
                self.free(*parent, name)?;
                let i = self.inodes.get_mut(ino).ok_or(FsError::Missing)?;
                if i.kind.is_dir() {
                    return Err(FsError::IsDir);
                }
                i.links += 1;
                self.touch(*ino);
                self.put(*parent, name.clone(), *ino);
                Ok(*ino)
            }
            FsOp::Rename { parent, name, new_parent, new_name, exchange } => {
                let ino = self.child(*parent, name)?;
                self.dir(*new_parent)?;
                if self.inodes[&ino].kind.is_dir() && self.is_below(*new_parent, ino) {
                    return Err(FsError::Cycle);
                }
                let other = self.child(*new_parent, new_name).ok();
                if *exchange {
                    let other = other.ok_or(FsError::Missing)?;
                    if self.inodes[&other].kind.is_dir() && self.is_below(*parent, other) {
                        return Err(FsError::Cycle);
                    }
                    self.put(*parent, name.clone(), other);
                    self.put(*new_parent, new_name.clone(), ino);
                    self.touch(other);
                    self.touch(ino);
                    return Ok(ino);
                }
                if other == Some(ino) {
                    return Ok(ino);
                }
                if let Some(other) = other {
                    match (self.inodes[&ino].kind.is_dir(), self.inodes[&other].kind.is_dir()) {
                        (true, false) => return Err(FsError::NotDir),
                        (false, true) => return Err(FsError::IsDir),
                        (true, true) if !self.inodes[&other].children.is_empty() => return Err(FsError::NotEmpty),
                        _ => self.drop_name(*new_parent, new_name),
                    }
                }
                if let Some(d) = self.inodes.get_mut(parent) {
                    d.children.remove(name);
                }
                self.put(*new_parent, new_name.clone(), ino);
                self.touch(ino);
                Ok(ino)
            }
            FsOp::Remove { parent, name } => {
                let ino = self.child(*parent, name)?;
                if !self.inodes[&ino].children.is_empty() {
                    return Err(FsError::NotEmpty);
                }
                self.drop_name(*parent, name);
                Ok(ino)
            }
            FsOp::Attr { ino, attr } => {
                let i = self.inodes.get_mut(ino).ok_or(FsError::Missing)?;
                match attr {
                    Attr::Mode(mode) => i.attrs.mode = *mode,
                    Attr::Owner { uid, gid } => (i.attrs.uid, i.attrs.gid) = (*uid, *gid),
                    Attr::Times { atime, mtime } => (i.attrs.atime, i.attrs.mtime) = (*atime, *mtime),
                    Attr::Xattr { name, value: Some(v) } => {
                        i.xattrs.insert(name.clone(), v.to_vec().into());
                    }
                    Attr::Xattr { name, value: None } => {
                        i.xattrs.remove(name);
                    }
                }
                self.touch(*ino);
                Ok(*ino)
            }
            FsOp::Write { ino, content, mtime } => {
                let i = self.inodes.get_mut(ino).ok_or(FsError::Missing)?;
                if !i.kind.is_file() {
                    return Err(FsError::IsDir);
                }
                i.content = *content;
                i.attrs.mtime = *mtime;
                self.touch(*ino);
                Ok(*ino)
            }
        }
    }
}

impl Default for Fs {
    fn default() -> Self {
        Fs { live: State::new(), durable: State::new(), since: Vec::new(), dirty: BTreeSet::new(), full: false }
    }
}

impl Fs {
    /// Makes one change, whole or not at all.
    pub fn apply(&mut self, op: FsOp) -> Result<Ino, FsError> {
        if self.full && matches!(op, FsOp::Make { .. } | FsOp::Link { .. } | FsOp::Write { .. }) {
            return Err(FsError::NoSpace);
        }
        let ino = self.live.apply(&op)?;
        if matches!(op, FsOp::Write { .. } | FsOp::Make { flushed: false, content: Content { size: 1.., .. }, .. }) {
            self.dirty.insert(ino);
        }
        self.since.push(op);
        Ok(ino)
    }
    /// Everything up to now is durable.
    pub fn sync(&mut self) {
        for op in self.since.drain(..) {
            let _ = self.durable.apply(&op);
        }
        self.dirty.clear();
    }
    /// The bytes of this file, and (journalling file systems commit as a whole) every change up to now, are durable.
    pub fn sync_file(&mut self, ino: Ino) {
        for op in self.since.drain(..) {
            let _ = self.durable.apply(&op);
        }
        self.dirty.remove(&ino);
    }
    /// The machine stops and comes back: a prefix of what was not synced is there, some files without their bytes.
    /// Returns how many changes were lost.
    pub fn machine_crash(&mut self, rng: &mut Stream) -> usize {
        let kept = rng.index(self.since.len() + 1);
        let lost = self.since.len() - kept;
        for op in self.since.drain(..).take(kept) {
            let _ = self.durable.apply(&op);
        }
        for ino in std::mem::take(&mut self.dirty) {
            if let Some(i) = self.durable.inodes.get_mut(&ino).filter(|_| rng.chance(400)) {
                i.content = Content::EMPTY;
            }
        }
        // Change times never repeat: a clock goes on.
        self.durable.clock = self.live.clock + 1;
        self.live = self.durable.clone();
        lost
    }
    /// Removes unfinished files from the working directory, as a starting host does.
    pub fn clear_scratch(&mut self) {
        let names: Vec<Name> = match self.get(WORK) {
            Some(w) => w.children.keys().filter(|n| n.as_bytes().starts_with(SCRATCH)).cloned().collect(),
            None => Vec::new(),
        };
        for name in names {
            let _ = self.apply(FsOp::Remove { parent: WORK, name });
        }
    }
    /// An object.
    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.live.inodes.get(&ino)
    }
    /// What stands at a name.
    pub fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.live.child(parent, name).ok()
    }
    /// Follows a path from `from`.
    pub fn walk<'a>(&self, from: Ino, path: impl IntoIterator<Item = &'a Name>) -> Option<Ino> {
        path.into_iter().try_fold(from, |at, name| self.child(at, name))
    }
    /// What the host would remember of an object.
    pub fn witness(&self, ino: Ino) -> Witness {
        match self.get(ino) {
            Some(i) => Witness { disk: ino, sum: sum(ino, i) },
            None => Witness::default(),
        }
    }
    /// Flips a byte of a file. The change time stays: the medium did it.
    pub fn rot(&mut self, ino: Ino) {
        for state in [&mut self.live, &mut self.durable] {
            if let Some(i) = state.inodes.get_mut(&ino) {
                i.content = i.content.rotten();
            }
        }
    }
    /// All objects, by number.
    pub fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.live.inodes.iter().map(|(k, v)| (*k, v))
    }
    /// Every path below `top`, parents first, in the order of names.
    pub fn list(&self, top: Ino) -> Vec<(Vec<Name>, Ino)> {
        let mut out = Vec::new();
        let mut todo = vec![(Vec::new(), top)];
        while let Some((path, ino)) = todo.pop() {
            if let Some(i) = self.get(ino) {
                for (name, c) in i.children.iter().rev() {
                    let mut p = path.clone();
                    p.push(name.clone());
                    todo.push((p, *c));
                }
            }
            if !path.is_empty() {
                out.push((path, ino));
            }
        }
        out
    }
}

fn sum(ino: Ino, i: &Inode) -> u64 {
    let mut z = 0xcbf2_9ce4_8422_2325_u64;
    for part in [ino, i.content.size, i.attrs.mtime.sec as u64, u64::from(i.attrs.mtime.nsec), i.ctime] {
        z = (z ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z ^= z >> 29;
    }
    z | 1
}
