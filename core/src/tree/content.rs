//! Content versions: the register with the winner, what disk holds, and the versions that not everybody knows.

use super::model::*;
use super::{Tree, Version};
use crate::bug::Bug;
use crate::op::ContentDigest;
use crate::time::Stamp;

impl Tree {
    /// If a new life under an old id began: the last deletion before it, and the newest version that its deleters saw.
    pub(super) fn floor(&self, i: u32) -> Option<(Stamp, Stamp)> {
        let n = &self.inodes[i];
        if n.entry == super::NONE {
            return None;
        }
        let made = self.stamp(n.make);
        let later = |a: (Stamp, Stamp), b: (Stamp, Stamp)| (a.0.max(b.0), a.1.max(b.1));
        let before = |e: u32| {
            let all = self.removed.get(&e).into_iter().flatten();
            all.filter(|r| r.at < made).map(|r| (r.at, r.saw))
        };
        if !n.has(MULTI) {
            let e = &self.entries[n.entry];
            return if e.has(REMOVED) && e.has(FIRST) { before(n.entry).reduce(later) } else { None };
        }
        let mut floor = None;
        for (_, e) in self.links.range((i, 0)..=(i, u32::MAX)) {
            let n = &self.entries[*e];
            let place = self.stamp(n.place);
            if !n.has(FIRST) && place < made && !before(*e).any(|(at, _)| at > place) {
                return None; // This name stood when the file was made again: it is the same file still.
            }
            floor = before(*e).chain(floor).reduce(later);
        }
        floor
    }

    /// The content that the inode should have: version, size, digest.
    pub(super) fn winner(&self, i: u32) -> (Stamp, u64, ContentDigest) {
        let n = &self.inodes[i];
        let at = self.stamp(n.content);
        if self.floor(i).is_some_and(|(_, saw)| at <= saw) {
            return (Stamp::ZERO, 0, ContentDigest::EMPTY);
        }
        (at, n.size, n.digest)
    }

    /// The content that disk holds.
    pub(super) fn held(&self, i: u32) -> HeldContent {
        let n = &self.inodes[i];
        if n.has(HELD_SAME) {
            return HeldContent { stamp: self.stamp(n.content), bytes: Some((n.size, n.digest)) };
        }
        let nothing = HeldContent { stamp: Stamp::ZERO, bytes: Some((0, ContentDigest::EMPTY)) };
        self.held.get(&i).copied().unwrap_or(nothing)
    }

    /// Disk now holds this.
    pub(super) fn set_held(&mut self, i: u32, stamp: Stamp, bytes: Option<(u64, ContentDigest)>) {
        self.dirty.insert(i);
        self.held.remove(&i);
        let same = stamp == self.stamp(self.inodes[i].content);
        self.inodes[i].set(HELD_SAME, same && !stamp.is_zero());
        if !same && !stamp.is_zero() {
            let known = self.versions.get(&(i, stamp)).map(|v| (v.size, v.digest));
            self.held.insert(i, HeldContent { stamp, bytes: bytes.or(known) });
        }
    }

    /// The bytes on disk are nobody's version.
    pub(super) fn set_torn(&mut self, i: u32) {
        self.dirty.insert(i);
        self.inodes[i].set(HELD_SAME, false);
        self.held.insert(i, HeldContent { stamp: Stamp::ZERO, bytes: None });
    }

    /// A version becomes known. The inode is touched already.
    pub(super) fn add_version(&mut self, i: u32, v: Version) {
        let old = self.stamp(self.inodes[i].content);
        if v.stamp.is_zero() || self.versions.contains_key(&(i, v.stamp)) {
            return;
        }
        let Some(short) = self.replicas.shorten(v.stamp) else { return };
        self.versions.insert((i, v.stamp), v);
        self.version_ages.insert((v.stamp, i));
        if v.stamp == old {
            return; // Known before as a settled winner; now its base is known too.
        }
        let earlier = if self.has_bug(Bug::CompareByMtime) && !old.is_zero() {
            (v.mtime, v.stamp) < (self.inodes[i].mtime(), old)
        } else {
            v.stamp < old
        };
        if earlier {
            self.heads.insert((i, v.stamp));
            return;
        }
        if !old.is_zero() && v.base != old {
            self.heads.insert((i, old));
            if !self.versions.contains_key(&(i, old)) {
                let n = &self.inodes[i];
                let (size, digest, mtime) = (n.size, n.digest, n.mtime());
                // It is settled, so what it was made from no longer matters.
                let settled = Version { stamp: old, base: Stamp::ZERO, size, digest, mtime };
                self.versions.insert((i, old), settled);
                self.version_ages.insert((old, i));
            }
        }
        let n = &self.inodes[i];
        if n.has(HELD_SAME) {
            self.held.insert(i, HeldContent { stamp: old, bytes: Some((n.size, n.digest)) });
        }
        let times = self.stamp(self.inodes[i].times_at);
        let n = &mut self.inodes[i];
        n.set(HELD_SAME, false);
        n.content = short;
        n.size = v.size;
        n.digest = v.digest;
        if v.stamp > times {
            n.set_mtime(v.mtime);
        }
        if self.held.get(&i).is_some_and(|h| h.stamp == v.stamp) {
            self.set_held(i, v.stamp, None);
        }
    }
}
