//! A tiny model of `backing`: executes the steps of a tree exactly as they are documented and refuses what a disk would.

use ice_core::action::{Apply, Over, Source, Spot};
use ice_core::event::{IoError, Witness};
use ice_core::ids::{EntryId, InodeId, Name};
use ice_core::op::{Attr, Attrs, ContentDigest, Kind};
use ice_core::time::Stamp;
use ice_core::tree::Tree;
use std::collections::BTreeMap;

pub const ROOT: u64 = 1;

/// An object on disk.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub attrs: Attrs,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub bytes: (u64, ContentDigest),
    /// Counts changes of the bytes.
    pub edits: u64,
    /// Of a directory.
    pub names: BTreeMap<Name, u64>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub objects: BTreeMap<u64, Object>,
    pub limbo: BTreeMap<EntryId, u64>,
    next: u64,
}

impl Disk {
    pub fn new() -> Disk {
        let mut d = Disk { objects: BTreeMap::new(), limbo: BTreeMap::new(), next: ROOT };
        d.add(Kind::Dir, Attrs::default());
        d
    }

    pub fn add(&mut self, kind: Kind, attrs: Attrs) -> u64 {
        let n = self.next;
        self.next += 1;
        let bytes = (0, ContentDigest::EMPTY);
        self.objects
            .insert(n, Object { kind, attrs, xattrs: BTreeMap::new(), bytes, edits: 1, names: BTreeMap::new() });
        n
    }

    pub fn witness(&self, n: u64) -> Witness {
        Witness { disk: n, sum: self.objects[&n].edits }
    }

    pub fn obj(&mut self, n: u64) -> &mut Object {
        self.objects.get_mut(&n).expect("object")
    }

    /// How many names an object has.
    pub fn links(&self, n: u64) -> usize {
        let named = self.objects.values().flat_map(|o| o.names.values()).filter(|x| **x == n).count();
        named + self.limbo.values().filter(|x| **x == n).count()
    }

    /// Forgets objects without a name.
    pub fn sweep(&mut self) {
        let dead: Vec<u64> = self.objects.keys().copied().filter(|n| *n != ROOT && self.links(*n) == 0).collect();
        for n in dead {
            let o = self.objects.remove(&n).expect("object");
            assert!(o.names.is_empty(), "a directory vanished with something in it");
        }
    }

    /// The object of a directory, found through the materialised tree as a host does.
    pub fn dir(&self, tree: &Tree, inode: InodeId) -> Option<u64> {
        let (limbo, path) = tree.locate(inode)?;
        let mut at = match limbo {
            Some(e) => *self.limbo.get(&e)?,
            None => ROOT,
        };
        for name in &path {
            at = *self.objects.get(&at)?.names.get(name)?;
        }
        Some(at)
    }

    pub fn look(&self, tree: &Tree, spot: &Spot) -> Option<u64> {
        match spot {
            Spot::At { parent, name } => self.objects[&self.dir(tree, *parent)?].names.get(name).copied(),
            Spot::Limbo(e) => self.limbo.get(e).copied(),
        }
    }

    /// Puts a name; the name must be free and its directory there.
    fn put(&mut self, tree: &Tree, spot: &Spot, n: u64) {
        match spot {
            Spot::At { parent, name } => {
                let d = self.dir(tree, *parent).unwrap_or_else(|| panic!("no directory for {spot:?}"));
                let o = self.obj(d);
                assert_eq!(o.kind, Kind::Dir, "not a directory: {spot:?}");
                let old = o.names.insert(name.clone(), n);
                assert_eq!(old, None, "the name is taken: {spot:?}");
            }
            Spot::Limbo(e) => assert_eq!(self.limbo.insert(*e, n), None, "limbo is taken"),
        }
    }

    fn take(&mut self, tree: &Tree, spot: &Spot) -> u64 {
        let n = match spot {
            Spot::At { parent, name } => {
                let d = self.dir(tree, *parent).expect("directory");
                self.obj(d).names.remove(name)
            }
            Spot::Limbo(e) => self.limbo.remove(e),
        };
        n.unwrap_or_else(|| panic!("nothing stands at {spot:?}"))
    }

    fn is_below(&self, n: u64, top: u64) -> bool {
        n == top || self.objects[&top].names.values().any(|k| self.is_below(n, *k))
    }

    /// What a host checks before it acts: names to be taken are free, and what is to be touched stands where it should.
    pub fn possible(&self, tree: &Tree, apply: &Apply) -> bool {
        let free = |s: &Spot| match s {
            Spot::At { parent, .. } => self.dir(tree, *parent).is_some() && self.look(tree, s).is_none(),
            Spot::Limbo(_) => self.look(tree, s).is_none(),
        };
        let there = |s: &Spot, inode: InodeId| {
            let known = match s {
                Spot::At { parent, name } => tree.child(*parent, name) == Some(inode),
                Spot::Limbo(_) => true,
            };
            known && self.look(tree, s).is_some()
        };
        let replaces = |over: &Option<Over>, at: &Spot| match over {
            Some(o) => there(at, o.inode) && self.look(tree, at).is_some_and(|n| self.links(n) == 1),
            None => free(at),
        };
        match apply {
            Apply::Make { at, over, .. } => replaces(over, at),
            Apply::Link { inode, from, to } => there(from, *inode) && free(to),
            Apply::Move { inode, from, to, over } => {
                let into = match to {
                    Spot::At { parent, .. } => self.dir(tree, *parent),
                    Spot::Limbo(_) => None,
                };
                let itself = |n: u64| into.is_some_and(|d| self.is_below(d, n));
                there(from, *inode) && replaces(over, to) && !self.look(tree, from).is_some_and(itself)
            }
            Apply::Remove { inode, at, dir, .. } => {
                let empty = |n| !*dir || self.objects[&n].names.is_empty();
                there(at, *inode) && self.look(tree, at).is_some_and(empty)
            }
            Apply::Attr { inode, at, .. } => there(at, *inode),
            Apply::Install { inode, at, keep, .. } => {
                let all = self.look(tree, &at[0]).is_some_and(|n| self.links(n) == at.len());
                at.iter().all(|s| there(s, *inode)) && all && keep.as_ref().is_none_or(free)
            }
        }
    }

    /// Executes a step. `fetch` yields the bytes of a staged version.
    pub fn apply(
        &mut self,
        tree: &Tree,
        apply: &Apply,
        fetch: &dyn Fn(InodeId, Stamp) -> (u64, ContentDigest),
    ) -> Result<Witness, IoError> {
        let bytes = |s: &Source| match s {
            Source::Empty => (0, ContentDigest::EMPTY),
            Source::Staged { inode, version } => fetch(*inode, *version),
            Source::Payload(_) => panic!("this model stages everything"),
        };
        if let Apply::Make { over: Some(over), at: to, .. } | Apply::Move { over: Some(over), to, .. } = apply
            && let Some(n) = self.look(tree, to)
        {
            assert_ne!(self.objects[&n].kind, Kind::Dir);
            if self.witness(n) != over.expect {
                return Err(IoError::Changed);
            }
            self.take(tree, to);
            self.sweep();
        }
        match apply {
            Apply::Make { at, kind, attrs, xattrs, source, .. } => {
                let n = self.add(kind.clone(), *attrs);
                let b = bytes(source);
                let o = self.obj(n);
                o.bytes = b;
                o.xattrs = xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                self.put(tree, at, n);
                Ok(self.witness(n))
            }
            Apply::Link { from, to, .. } => {
                let n = self.look(tree, from).expect("link source");
                assert_ne!(self.objects[&n].kind, Kind::Dir);
                self.put(tree, to, n);
                Ok(self.witness(n))
            }
            Apply::Move { from, to, .. } => {
                let n = self.look(tree, from).unwrap_or_else(|| panic!("nothing to move at {from:?}"));
                if let Spot::At { parent, .. } = to {
                    let d = self.dir(tree, *parent).unwrap_or_else(|| panic!("no directory {to:?}"));
                    assert!(!self.is_below(d, n), "a directory into itself");
                }
                self.put(tree, to, n);
                let taken = self.take(tree, from);
                assert_eq!(taken, n);
                Ok(self.witness(n))
            }
            Apply::Remove { at, dir, expect, .. } => {
                let n = self.look(tree, at).unwrap_or_else(|| panic!("nothing to remove at {at:?}"));
                if *dir {
                    assert!(self.objects[&n].names.is_empty(), "removing a directory that is not empty");
                } else if self.witness(n) != *expect {
                    return Err(IoError::Changed);
                }
                self.take(tree, at);
                let w = self.witness(n);
                self.sweep();
                Ok(w)
            }
            Apply::Attr { at, attrs, xattrs, .. } => {
                let n = self.look(tree, at).unwrap_or_else(|| panic!("nothing at {at:?}"));
                let o = self.obj(n);
                o.attrs = *attrs;
                for (k, v) in xattrs {
                    match v {
                        Some(v) => o.xattrs.insert(k.to_vec(), v.to_vec()),
                        None => o.xattrs.remove(&k.to_vec()),
                    };
                }
                Ok(self.witness(n))
            }
            Apply::Install { at, source, attrs, xattrs, expect, keep, .. } => {
                let n = self.look(tree, &at[0]).unwrap_or_else(|| panic!("nothing at {at:?}"));
                if self.witness(n) != *expect {
                    return Err(IoError::Changed);
                }
                for spot in at {
                    assert_eq!(self.look(tree, spot), Some(n), "all names of the file");
                }
                assert_eq!(self.links(n), at.len(), "all names of the file");
                let new = self.add(Kind::File, *attrs);
                let b = bytes(source);
                let o = self.obj(new);
                o.bytes = b;
                o.xattrs = xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                if let Some(keep) = keep {
                    self.put(tree, keep, n);
                }
                for spot in at {
                    self.take(tree, spot);
                    self.put(tree, spot, new);
                }
                self.sweep();
                Ok(self.witness(new))
            }
        }
    }

    pub fn set_attr(&mut self, n: u64, attr: &Attr) {
        let o = self.obj(n);
        match attr {
            Attr::Mode(m) => o.attrs.mode = *m,
            Attr::Owner { uid, gid } => (o.attrs.uid, o.attrs.gid) = (*uid, *gid),
            Attr::Times { atime, mtime } => (o.attrs.atime, o.attrs.mtime) = (*atime, *mtime),
            Attr::Xattr { name, value: Some(v) } => {
                o.xattrs.insert(name.to_vec(), v.to_vec());
            }
            Attr::Xattr { name, value: None } => {
                o.xattrs.remove(&name.to_vec());
            }
        }
    }
}
