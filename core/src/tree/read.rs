//! Reading.

use super::model::*;
use super::{Child, InodeInfo, Listed, ROOT, Tree};
use crate::action::Spot;
use crate::ids::{EntryId, InodeId, Name};
use crate::op::ContentDigest;
use crate::time::{Stamp, UnixTime};
use alloc::boxed::Box;
use alloc::vec::Vec;

impl Tree {
    /// What stands on disk in a directory under a name.
    pub fn child(&self, dir: InodeId, name: &Name) -> Option<InodeId> {
        let e = self.disk_child(self.inode_of(dir)?, name)?;
        Some(self.id_of(self.entries[e].inode))
    }

    /// Where an inode stands below the root of `backing` (empty for the root itself); of a file its first name. `None` if it
    /// does not stand there, also if it stands in limbo or below something in limbo.
    pub fn path(&self, inode: InodeId) -> Option<Vec<Name>> {
        let (limbo, path) = self.locate(inode)?;
        limbo.is_none().then_some(path)
    }

    /// Like [`Tree::path`], but finds also what is set aside: then the path begins in limbo, at the given entry.
    pub fn locate(&self, inode: InodeId) -> Option<(Option<EntryId>, Vec<Name>)> {
        let mut at = self.inode_of(inode)?;
        let mut path = Vec::new();
        for _ in 0..=self.inodes.len() {
            if at == ROOT {
                path.reverse();
                return Some((None, path));
            }
            let seats = self.seats(at);
            let (e, seat) = seats.iter().find(|(_, s)| *s != Seat::Limbo).or(seats.first())?;
            match seat {
                Seat::At(p, name) => {
                    path.push(name.clone());
                    at = *p;
                }
                Seat::Limbo => {
                    path.reverse();
                    return Some((Some(self.entries[*e].id()), path));
                }
            }
        }
        None
    }

    /// Everything that stands in limbo: entry and what it names. For hosts that put a disk right after a crash.
    pub fn limbo(&self) -> Vec<(EntryId, InodeId)> {
        let aside = self.spots.iter().filter(|(_, s)| **s == Seat::Limbo).map(|(e, _)| &self.entries[*e]);
        aside.map(|n| (n.id(), self.id_of(n.inode))).collect()
    }

    /// All names of an inode on disk.
    pub fn spots(&self, inode: InodeId) -> Vec<Spot> {
        let seats = self.inode_of(inode).map(|i| self.seats(i)).unwrap_or_default();
        seats.iter().map(|(e, s)| self.spot_of(s, *e)).collect()
    }

    /// What is known of an inode; `None` also while its creation is not known.
    pub fn info(&self, inode: InodeId) -> Option<InodeInfo> {
        let i = self.inode_of(inode)?;
        let (version, size, digest) = self.winner(i);
        Some(InodeInfo {
            kind: self.kind(i)?,
            attrs: self.attrs(i),
            held: self.held(i).stamp,
            version,
            size,
            digest,
            held_content: self.held(i).bytes,
            // What is in flight does not stand there yet.
            attrs_held: !self.inodes[i].has(ATTR_DUE) && !self.work.is_busy(i),
            witness: self.inodes[i].witness,
            nlink: self.entries_of(i).into_iter().filter(|e| self.is_seated(*e)).count() as u32,
        })
    }

    /// Length and digest of a version: of the newest one, or of one that not everybody knows yet. `None`: it is neither.
    pub fn version(&self, inode: InodeId, version: Stamp) -> Option<(u64, ContentDigest)> {
        let i = self.inode_of(inode)?;
        match self.winner(i) {
            (stamp, size, digest) if stamp == version => Some((size, digest)),
            _ => self.versions.get(&(i, version)).map(|v| (v.size, v.digest)),
        }
    }

    /// The times (access, modification) of a directory, if they were set after `inode` got or lost its last name: to put it there,
    /// or to take it away, late must then leave them as they are. `None` as well where one of the two is not known.
    pub fn times_set_after(&self, dir: InodeId, inode: InodeId) -> Option<(UnixTime, UnixTime)> {
        let (d, i) = (self.inode_of(dir)?, self.inode_of(inode)?);
        let gone = |e: &u32| self.removed.get(e).and_then(|r| r.last()).map_or(Stamp::ZERO, |r| r.at);
        let last = |e: u32| self.stamp(self.entries[e].place).max(gone(&e));
        let named = self.entries_of(i).into_iter().map(last).max()?;
        let node = &self.inodes[d];
        (self.stamp(node.times_at) > named).then(|| (node.atime(), node.mtime()))
    }

    /// Its newest extended attributes, by name.
    pub fn xattrs(&self, inode: InodeId) -> Vec<(Box<[u8]>, Box<[u8]>)> {
        let all = self.inode_of(inode).map(|i| self.xattrs_of(i)).unwrap_or_default();
        all.into_iter().filter_map(|(n, x)| Some((n.into(), x.value.as_deref()?.into()))).collect()
    }

    /// Up to `max` entries that stand on disk in a directory, in the order of a hash of their names, after the name `after`.
    pub fn children(&self, dir: InodeId, after: Option<&Name>, max: usize) -> Vec<Child> {
        let Some(d) = self.inode_of(dir) else { return Vec::new() };
        let start = after.map_or(0, name_hash);
        let range = (d, start, 0)..=(d, u32::MAX, u32::MAX);
        let mut here = self.names.range(range.clone()).filter(|(_, _, e)| self.entries[*e].has(HERE)).peekable();
        let mut apart = self.moved.range(range).peekable();
        let mut out: Vec<(u32, Child)> = Vec::new();
        loop {
            let next = match (here.peek(), apart.peek()) {
                (Some(a), Some(b)) if a <= b => here.next(),
                (_, Some(_)) => apart.next(),
                (Some(_), None) => here.next(),
                (None, None) => break,
            };
            let Some((_, h, e)) = next.copied() else { break };
            // All names of one hash are taken together, so that they can be put in order.
            if out.len() >= max && out.last().is_some_and(|(last, _)| *last != h) {
                break;
            }
            if let Some(Seat::At(_, name)) = self.seat(e)
                && after.is_none_or(|a| (h, &name) > (start, a))
            {
                let i = self.entries[e].inode;
                out.push((h, Child { name, inode: self.id_of(i), dir: self.inodes[i].tag == Tag::Dir }));
            }
        }
        out.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        out.into_iter().take(max).map(|(_, c)| c).collect()
    }

    /// The first inode whose top 64 bits are `high`.
    pub fn by_prefix(&self, high: u64) -> Option<InodeId> {
        let low = u128::from(high) << 64;
        self.inodes_in(InodeId(low), InodeId(low | u128::from(u64::MAX))).next().map(|i| self.id_of(i))
    }

    /// The whole logical tree in the order of its paths, without the root. O(n).
    pub fn listing(&self) -> Vec<Listed> {
        let mut out = Vec::new();
        let mut todo: Vec<(u32, Vec<Name>)> = alloc::vec![(ROOT, Vec::new())];
        while let Some((dir, path)) = todo.pop() {
            for (_, _, e) in self.names.range((dir, 0, 0)..=(dir, u32::MAX, u32::MAX)) {
                let i = self.entries[*e].inode;
                let (Some(name), Some(kind)) = (self.shown(*e), self.kind(i)) else { continue };
                let mut path = path.clone();
                path.push(name);
                if kind.is_dir() {
                    todo.push((i, path.clone()));
                }
                let (_, size, digest) = self.winner(i);
                let (inode, attrs) = (self.id_of(i), self.attrs(i));
                out.push(Listed { path, inode, kind, attrs, size, digest, xattrs: self.xattrs(inode) });
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        out
    }
}
