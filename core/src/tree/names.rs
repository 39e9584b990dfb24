//! Names that are shown: what happens when several live entries have one name in one directory.

use super::model::*;
use super::{Conflict, Tree};
use crate::ids::{EntryId, InodeId, Name, ReplicaId};
use crate::time::Stamp;
use alloc::format;
use alloc::vec::Vec;

pub(super) const MARK: &[u8] = b".conflict-";

/// The name may be one that a conflict gave.
pub(super) fn is_marked(name: &Name) -> bool {
    name.as_bytes().windows(MARK.len()).any(|w| w == MARK)
}

/// The name that a conflict's name was made of, and whose version it stands for. `None`: it is no such name.
fn unmarked(name: &Name) -> Option<(Name, ReplicaId)> {
    let at = name.as_bytes().windows(MARK.len()).rposition(|w| w == MARK)?;
    let (own, rest) = name.as_bytes().split_at(at);
    let (by, digits) = core::str::from_utf8(&rest[MARK.len()..]).ok()?.split_once('-')?;
    let hex = |s: &str, most| !s.is_empty() && s.len() <= most && s.bytes().all(|b| b.is_ascii_hexdigit());
    let id = digits.split('-').next().unwrap_or_default();
    if !hex(by, 16) || !hex(id, 32) || id.len() < 8 {
        return None;
    }
    Some((Name::new(own)?, ReplicaId(u64::from_str_radix(by, 16).ok()?)))
}

/// `name.conflict-<replica>-<digits of id>`, cut to the length a name may have. A cut name gets all digits, so that two
/// names with one beginning stay apart.
pub(super) fn conflict_name(name: &Name, by: Stamp, id: EntryId, digits: usize) -> Name {
    let full = format!("{:032x}", id.0);
    let suffix = |d: usize| format!(".conflict-{:x}-{}", by.replica.0, &full[..d]);
    let mut s = suffix(digits);
    if name.as_bytes().len() + s.len() > Name::MAX_BYTES {
        s = suffix(32);
    }
    let keep = name.as_bytes().len().min(Name::MAX_BYTES - s.len());
    let bytes: Vec<u8> = name.as_bytes()[..keep].iter().chain(s.as_bytes()).copied().collect();
    Name::new(&bytes).expect("part of a name, then dots, letters, digits")
}

impl Tree {
    /// Live entries placed in `parent` as `name`.
    pub(super) fn group(&self, parent: u32, name: &Name) -> Vec<u32> {
        let h = name_hash(name);
        let same = self.names.range((parent, h, 0)..=(parent, h, u32::MAX));
        same.map(|(_, _, e)| *e).filter(|e| self.entries[*e].name.as_ref() == Some(name)).collect()
    }

    fn rank(&self, e: u32) -> (Stamp, EntryId) {
        (self.stamp(self.entries[e].place), self.entries[e].id())
    }

    /// The name under which a live entry is shown in its directory.
    pub(super) fn shown(&self, e: u32) -> Option<Name> {
        let n = &self.entries[e];
        let name = n.name.as_ref()?;
        let group = self.group(n.parent, name);
        let mine = self.rank(e);
        if group.len() <= 1 || group.iter().all(|o| self.rank(*o) <= mine) {
            return Some(name.clone());
        }
        let mut last = name.clone();
        for digits in [8, 16, 32] {
            last = conflict_name(name, mine.0, mine.1, digits);
            let like = |o: &u32| *o != e && conflict_name(name, self.rank(*o).0, self.rank(*o).1, digits) == last;
            if !group.iter().any(like) && self.group(n.parent, &last).is_empty() {
                return Some(last);
            }
        }
        // Somebody took even the name with all digits: count on, as long as it takes.
        for k in 1u32.. {
            let suffix = format!("-{k}");
            let keep = last.as_bytes().len().min(Name::MAX_BYTES - suffix.len());
            let bytes: Vec<u8> = last.as_bytes()[..keep].iter().chain(suffix.as_bytes()).copied().collect();
            if let Some(next) = Name::new(&bytes)
                && self.group(n.parent, &next).is_empty()
            {
                return Some(next);
            }
        }
        None
    }

    /// If a live entry has the name of a conflict copy: what it is a copy of. A copy that was given another name is the user's
    /// own file, and its conflict is over. The name counts, not only what is remembered: nodes that joined after the
    /// conflict, or were told of it by state, list it too.
    pub(super) fn kept_under(&self, e: u32) -> Option<Conflict> {
        let n = self.entries.get(e).filter(|n| n.has(LIVE))?;
        let (own, by) = unmarked(n.name.as_ref()?)?;
        let copy = self.id_of(n.inode);
        let remembered = self.copy_of.get(&copy).copied();
        let stands = |inode: &InodeId| {
            self.inode_of(*inode).is_some_and(|i| self.entries_of(i).iter().any(|o| self.entries[*o].has(LIVE)))
        };
        let beside = || self.group(n.parent, &own).first().map(|o| self.id_of(self.entries[*o].inode));
        let inode = remembered.map(|(inode, _)| inode).filter(stands).or_else(beside);
        let lost = remembered.map_or(Stamp { time: self.rank(e).0.time, replica: by }, |(_, lost)| lost);
        Some(Conflict { inode, lost, copy })
    }

    /// If a live entry has to be shown under another name than its own, as another has that: who, and since when.
    pub(super) fn clash(&self, e: u32) -> Option<Conflict> {
        let n = self.entries.get(e).filter(|n| n.has(LIVE))?;
        let name = n.name.as_ref()?;
        let first = self.group(n.parent, name).into_iter().max_by_key(|o| self.rank(*o)).filter(|o| *o != e)?;
        let (inode, copy) = (self.id_of(self.entries[first].inode), self.id_of(n.inode));
        Some(Conflict { inode: Some(inode), lost: self.rank(e).0, copy })
    }

    /// Where an entry should stand on disk; `None`: nowhere.
    pub(super) fn desired(&self, e: u32) -> Option<(u32, Name)> {
        let n = self.entries.get(e)?;
        if !n.has(LIVE) {
            return None;
        }
        Some((n.parent, self.shown(e)?))
    }

    /// Who is live under a name changed: look again at all whose shown name depends on it.
    pub(super) fn call_group(&mut self, parent: u32, name: &Name) {
        if self.loading {
            return;
        }
        for e in self.group(parent, name) {
            self.call_entry(e);
        }
        if is_marked(name) {
            // Somebody's conflict name may have been taken or set free. They all stand apart from their register.
            let apart: Vec<u32> = self.spots.keys().copied().collect();
            for e in apart {
                self.call_entry(e);
            }
        }
    }
}
