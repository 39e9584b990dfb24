//! Settling what a scan found: moves first, then what is new, then what is gone.

use super::found::UNDIGESTED;
use super::hidden::{limbo_name, list};
use super::meta::{self, Raw};
use super::resolve::refused;
use super::{Ns, Shared};
use crate::vfs::{Result, Stale};
use ice_core::event::{Change, Witness};
use ice_core::ids::{InodeId, Name};
use ice_core::op::{ContentDigest, Kind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Entries below a missing directory that are looked through for something that was moved out of it.
const EXPANDED_MAX: usize = 256 * 1024;

/// New names gathered before they are settled, even if a move may be missed by that.
const FRESH_MAX: usize = 64 * 1024;

/// Where objects stand now, by their number in `backing`.
type Places = HashMap<u64, (InodeId, Name)>;

/// An entry of the tree at whose name its object does not stand any more.
pub(crate) struct Gone {
    pub(crate) inode: InodeId,
    pub(crate) dir: InodeId,
    pub(crate) name: Name,
    pub(crate) is_dir: bool,
}

/// A name on disk with an object that the tree does not show there.
pub(crate) struct Fresh {
    pub(crate) dir: InodeId,
    pub(crate) name: Name,
    pub(crate) disk: u64,
}

/// What one scan found and did not settle yet.
#[derive(Default)]
pub(crate) struct Pass {
    /// By the object's number in `backing`.
    gone: HashMap<u64, Gone>,
    /// Without a number that could be found again.
    vanished: Vec<Gone>,
    fresh: VecDeque<Fresh>,
    /// Directories to be listed.
    pub(crate) todo: Vec<InodeId>,
    /// Inodes about which the core waits for an answer.
    pub(crate) forced: HashSet<InodeId>,
    pub(crate) stale: Vec<Stale>,
    /// For a caller that waits: nothing is removed.
    inline: bool,
    /// Digests of new files by their number, and how they looked then. `None`: they cannot be read.
    digests: HashMap<u64, (Witness, Option<ContentDigest>)>,
    /// New files whose digest is asked for and not known.
    asked: HashSet<u64>,
    /// Something was found since the fresh names were compared with the gone ones.
    news: bool,
    expanded: bool,
}

impl Pass {
    pub(crate) fn telling() -> Pass {
        Pass::default()
    }
    pub(crate) fn inline() -> Pass {
        Pass { inline: true, ..Pass::default() }
    }
    pub(crate) fn fresh(&mut self, fresh: Fresh) {
        self.news = true;
        self.fresh.push_back(fresh);
    }
    /// What is missing at its name.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Gone> {
        self.gone.values().chain(&self.vanished)
    }
    /// What is settled next.
    pub(crate) fn next_fresh(&self, most: usize) -> impl Iterator<Item = &Fresh> {
        self.fresh.iter().take(most)
    }
    /// What waits for its digest.
    pub(crate) fn asked_fresh(&self) -> impl Iterator<Item = &Fresh> {
        let some = if self.asked.is_empty() { 0 } else { self.fresh.len() };
        self.fresh.iter().take(some).filter(|f| self.is_asked(f.disk))
    }
    pub(crate) fn is_inline(&self) -> bool {
        self.inline
    }
    pub(crate) fn ask(&mut self, disk: u64) {
        self.asked.insert(disk);
    }
    pub(crate) fn nothing_asked(&mut self) {
        self.asked.clear();
    }
    pub(crate) fn is_asked(&self, disk: u64) -> bool {
        self.asked.contains(&disk)
    }
    pub(crate) fn digested(&mut self, disk: u64, seen: Witness, digest: Option<ContentDigest>) {
        self.asked.remove(&disk);
        self.digests.insert(disk, (seen, digest));
    }
    pub(crate) fn undigested(&mut self, disk: u64) {
        self.asked.remove(&disk);
        self.digests.remove(&disk);
    }
    pub(crate) fn is_digested(&self, disk: u64) -> bool {
        self.digests.contains_key(&disk)
    }
    pub(crate) fn digest_of(&self, disk: u64) -> Option<(Witness, Option<ContentDigest>)> {
        self.digests.get(&disk).copied()
    }
    /// So much was found that it should be settled before more is looked for.
    pub(crate) fn is_full(&self) -> bool {
        self.fresh.len() >= FRESH_MAX
    }
    pub(crate) fn gone(&mut self, disk: u64, gone: Gone) {
        self.news = true;
        if disk == 0 {
            self.vanished.push(gone);
        } else {
            self.gone.insert(disk, gone);
        }
    }
}

/// What came of trying a move.
enum Moved {
    Yes {
        /// Two entries changed places.
        exchange: bool,
    },
    /// The entry that stands at the new name has to move away first.
    Blocked,
    /// It is not as it was found.
    No,
}

impl Shared {
    /// Settles some of what was found. `true`: there is more. Removals wait until every directory was listed.
    pub(crate) fn settle_some(&self, ns: &Ns<'_>, pass: &mut Pass, most: usize) -> bool {
        if std::mem::take(&mut pass.news) {
            self.settle_moves(ns, pass);
        }
        if pass.news {
            // Bytes have to be digested first.
            return true;
        }
        // What seems new may be missing in a directory that was not listed yet.
        if !pass.todo.is_empty() && !pass.inline && !pass.is_full() {
            return true;
        }
        if !pass.fresh.is_empty() && !pass.gone.is_empty() && !pass.expanded && !pass.inline {
            pass.expanded = true;
            self.expand_gone(pass);
            self.settle_moves(ns, pass);
            if pass.news {
                return true;
            }
        }
        if !pass.fresh.is_empty() {
            let some: Vec<Fresh> = pass.fresh.drain(..most.min(pass.fresh.len())).collect();
            self.adopt(ns, pass, some);
            return !(pass.fresh.is_empty() && pass.gone.is_empty() && pass.vanished.is_empty());
        }
        if !pass.todo.is_empty() && !pass.inline {
            return true;
        }
        let next = pass.gone.keys().next().copied();
        let Some(gone) = next.and_then(|d| pass.gone.remove(&d)).or_else(|| pass.vanished.pop()) else { return false };
        if pass.inline {
            self.hints.name(gone.dir, gone.name);
        } else {
            self.settle_gone(ns, pass, &gone);
        }
        !pass.gone.is_empty() || !pass.vanished.is_empty()
    }

    fn settle_moves(&self, ns: &Ns<'_>, pass: &mut Pass) {
        let mut insist = false;
        while !pass.gone.is_empty() && !pass.fresh.is_empty() {
            // Where the objects of occupied names are now.
            let places: Places = pass.fresh.iter().map(|f| (f.disk, (f.dir, f.name.clone()))).collect();
            let mut exchanged: HashSet<(InodeId, Name)> = HashSet::new();
            let (mut progress, mut blocked, mut undigested) = (false, false, false);
            for fresh in std::mem::take(&mut pass.fresh) {
                if exchanged.contains(&(fresh.dir, fresh.name.clone())) {
                    continue;
                }
                let Some(gone) = pass.gone.remove(&fresh.disk) else {
                    pass.fresh.push_back(fresh);
                    continue;
                };
                match self.try_move(ns, pass, &fresh, &gone, &places, insist) {
                    Ok(Moved::Yes { exchange }) => {
                        pass.undigested(fresh.disk);
                        progress = true;
                        if exchange {
                            exchanged.insert((gone.dir, gone.name));
                        }
                    }
                    Ok(Moved::Blocked) => {
                        blocked = true;
                        pass.gone.insert(fresh.disk, gone);
                        pass.fresh.push_back(fresh);
                    }
                    Err(UNDIGESTED) => {
                        undigested = true;
                        pass.gone.insert(fresh.disk, gone);
                        pass.fresh.push_back(fresh);
                    }
                    Ok(Moved::No) | Err(_) => {
                        self.hints.later_name(gone.dir, gone.name);
                        self.hints.later_name(fresh.dir, fresh.name);
                    }
                }
            }
            if undigested {
                pass.news = true;
                return;
            }
            if progress {
                insist = false;
            } else if blocked && !insist {
                insist = true;
            } else {
                break;
            }
        }
        pass.news = false;
    }

    fn try_move(
        &self,
        ns: &Ns<'_>,
        pass: &mut Pass,
        to: &Fresh,
        from: &Gone,
        places: &Places,
        insist: bool,
    ) -> Result<Moved> {
        let (from_dir, to_dir) = (self.dir(from.dir), self.dir(to.dir)?);
        let st = self.stat_at(&to_dir, to.name.as_bytes())?;
        let is_dir = meta::file_type(&st) == FileType::Directory;
        // A directory that is gone itself has nothing at the old name.
        let left = from_dir.and_then(|d| self.stat_at(&d, from.name.as_bytes())).ok();
        if meta::disk(&st) != to.disk
            || is_dir != from.is_dir
            || left.is_some_and(|l| meta::disk(&l) == to.disk)
            || self.known_at(from.dir, &from.name)? != Some(from.inode)
        {
            return Ok(Moved::No);
        }
        let occupant = self.known_at(to.dir, &to.name)?;
        if self.moved_as_known(pass, to, from, &to_dir, &st)? {
            // What stood there is found elsewhere, or missed in the end.
            if is_dir {
                self.dirs.forget(from.inode);
            }
            pass.stale.push(Self::stale_name(from.dir, &from.name, Some(from.inode)));
            pass.stale.push(Self::stale_name(to.dir, &to.name, occupant));
            self.check_name(ns, pass, to.dir, &to.name, true);
            return Ok(Moved::Yes { exchange: false });
        }
        let mut exchange = false;
        if let Some(other) = occupant {
            let Some(info) = self.port()?.look(|names| names.info(other)) else { return Ok(Moved::No) };
            let disk = info.witness.disk;
            let moved_on = places.get(&disk).filter(|_| pass.gone.contains_key(&disk));
            if moved_on.is_some() && !insist {
                return Ok(Moved::Blocked);
            }
            exchange = moved_on.is_some_and(|(dir, name)| *dir == from.dir && *name == from.name);
            // It has changed places, or the move replaced it.
            pass.gone.remove(&disk);
            pass.vanished.retain(|g| g.inode != other || g.dir != to.dir || g.name != to.name);
            if info.kind.is_dir() && !exchange {
                // With all that was in it.
                let gone = Gone { inode: other, dir: to.dir, name: to.name.clone(), is_dir: true };
                self.remove_known(ns, pass, &gone);
            }
        }
        let rename = Change::Rename {
            parent: from.dir,
            name: from.name.clone(),
            new_parent: to.dir,
            new_name: to.name.clone(),
            exchange,
        };
        self.tell_one(ns, rename)?;
        pass.stale.push(Self::stale_name(from.dir, &from.name, Some(from.inode)));
        pass.stale.push(Self::stale_name(to.dir, &to.name, occupant));
        // A move changes the change time, and perhaps it was not all that changed.
        self.check_name(ns, pass, to.dir, &to.name, true);
        if exchange {
            self.check_name(ns, pass, from.dir, &from.name, true);
        }
        Ok(Moved::Yes { exchange })
    }

    /// What stood below missing directories may have been moved out of them.
    fn expand_gone(&self, pass: &mut Pass) {
        let Ok(port) = self.port() else { return };
        let mut dirs: Vec<InodeId> = pass.gone.values().filter(|g| g.is_dir).map(|g| g.inode).collect();
        let mut left = EXPANDED_MAX;
        let wanted: HashSet<u64> = pass.fresh.iter().map(|f| f.disk).collect();
        while let Some(dir) = dirs.pop() {
            let mut after: Option<Name> = None;
            while left > 0 {
                let page = port.look(|names| {
                    let children = names.children(dir, after.as_ref(), 256);
                    let disk = |i| names.info(i).map_or(0, |i| i.witness.disk);
                    children.into_iter().map(|c| (disk(c.inode), c)).collect::<Vec<_>>()
                });
                left = left.saturating_sub(page.len());
                after = page.last().map(|(_, c)| c.name.clone()).filter(|_| page.len() == 256);
                for (disk, child) in page {
                    if child.dir {
                        dirs.push(child.inode);
                    }
                    if wanted.contains(&disk) {
                        let gone = Gone { inode: child.inode, dir, name: child.name, is_dir: child.dir };
                        pass.gone.entry(disk).or_insert(gone);
                    }
                }
                if after.is_none() {
                    break;
                }
            }
        }
    }

    /// Takes new objects in.
    fn adopt(&self, ns: &Ns<'_>, pass: &mut Pass, mut some: Vec<Fresh>) {
        let mut new = Vec::new();
        // A listing and a hint may both have found a name.
        let mut names = HashSet::new();
        some.retain(|f| names.insert((f.dir, f.name.clone())));
        for fresh in some {
            match self.adopt_known(ns, pass, &fresh) {
                Ok(Some(st)) => {
                    pass.undigested(fresh.disk);
                    new.push((fresh, st));
                }
                Ok(None) => pass.undigested(fresh.disk),
                // Digested without the lock, then looked at again.
                Err(UNDIGESTED) => {
                    pass.fresh.push_back(fresh);
                    continue;
                }
                Err(e) => {
                    if ![Errno::NOENT, Errno::STALE, Errno::AGAIN].contains(&e) {
                        self.trouble("adopt", format!("backing: {} cannot be taken in: {e}", fresh.name));
                    }
                    pass.undigested(fresh.disk);
                    self.hints.later_name(fresh.dir, fresh.name);
                }
            }
        }
        if let Err(e) = self.create_all(ns, pass, new) {
            tracing::debug!(error = %e, "new objects could not be told; they are found again");
        }
    }

    /// Handles a new object that is a known inode after all: a replaced file, or a further name. `Some`: it is really new.
    fn adopt_known(&self, ns: &Ns<'_>, pass: &mut Pass, fresh: &Fresh) -> Result<Option<Raw>> {
        let dir = self.dir(fresh.dir)?;
        let st = self.stat_at(&dir, fresh.name.as_bytes())?;
        let several = st.st_nlink > 1 && meta::file_type(&st) != FileType::Directory;
        let linked = if several { self.linked_inode(&st, pass.inline) } else { None };
        if self.explain(ns, pass, &dir, fresh, &st, linked)? {
            let (dir, name) = (fresh.dir, &fresh.name);
            let shown = self.known_at(dir, name)?;
            pass.gone.retain(|_, g| g.dir != dir || g.name != *name || Some(g.inode) == shown);
            pass.vanished.retain(|g| g.dir != dir || g.name != *name || Some(g.inode) == shown);
            return Ok(None);
        }
        if let Some(inode) = self.known_at(fresh.dir, &fresh.name)? {
            let Some(info) = self.port()?.look(|names| names.info(inode)) else { return Err(Errno::STALE) };
            pass.gone.retain(|_, g| g.inode != inode || g.dir != fresh.dir || g.name != fresh.name);
            pass.vanished.retain(|g| g.inode != inode || g.dir != fresh.dir || g.name != fresh.name);
            let same = self.is_same_kind(&dir, &fresh.name, &st, &info.kind);
            if same && info.witness.disk == meta::disk(&st) {
                // Found twice, and settled the first time.
                return Ok(None);
            }
            if same && (info.kind.is_dir() || info.kind.is_file() && info.nlink <= 1) {
                // As an editor does that writes a new file and renames it over the old one: the file lives on.
                if info.kind.is_dir() {
                    self.dirs.forget(inode);
                    self.tell_one(ns, Change::Touch { inode, witness: meta::unknown_bytes(&st) })?;
                    pass.todo.push(inode);
                    let info = ice_core::tree::InodeInfo { witness: meta::unknown_bytes(&st), ..info };
                    self.refresh(ns, pass, (&dir, fresh.name.as_bytes()), inode, &st, &info);
                } else {
                    self.refresh(ns, pass, (&dir, fresh.name.as_bytes()), inode, &st, &info);
                    pass.stale.push(Self::stale_name(fresh.dir, &fresh.name, Some(inode)));
                }
                return Ok(None);
            }
            let gone = Gone { inode, dir: fresh.dir, name: fresh.name.clone(), is_dir: info.kind.is_dir() };
            self.remove_known(ns, pass, &gone);
            if self.known_at(fresh.dir, &fresh.name)?.is_some() {
                return Err(Errno::STALE);
            }
        }
        if self.back_to_limbo(fresh)? {
            return Ok(None);
        }
        if let Some(inode) = linked {
            let file = meta::file_type(&st) == FileType::RegularFile;
            let witness = if file { meta::unknown_bytes(&st) } else { meta::witness(&st) };
            self.tell_one(ns, Change::Link { inode, parent: fresh.dir, name: fresh.name.clone(), witness })?;
            pass.stale.push(Self::stale_name(fresh.dir, &fresh.name, None));
            self.check_name(ns, pass, fresh.dir, &fresh.name, false);
            return Ok(None);
        }
        Ok(Some(st))
    }

    /// The inode of a file that has other names.
    fn linked_inode(&self, st: &Raw, search: bool) -> Option<InodeId> {
        let port = self.port().ok()?;
        let disk = meta::disk(st);
        let fits = |inode: &InodeId| {
            let info = port.look(|names| names.info(*inode));
            info.is_some_and(|i| i.nlink > 0 && i.witness.disk == disk && meta::is_kind(st, &i.kind))
        };
        let remembered = self.linked.lock().unwrap_or_else(PoisonError::into_inner).get(&disk).copied();
        if let Some(inode) = remembered.filter(fits) {
            return Some(inode);
        }
        if !search {
            return None;
        }
        // Somebody looked up a link that was made directly a moment ago. Rare enough to look through everything.
        let mut dirs = vec![InodeId::ROOT];
        while let Some(dir) = dirs.pop() {
            let mut after: Option<Name> = None;
            loop {
                let page = port.look(|names| {
                    let children = names.children(dir, after.as_ref(), 256);
                    let hit = |c: &ice_core::tree::Child| {
                        !c.dir && names.info(c.inode).is_some_and(|i| i.witness.disk == disk)
                    };
                    let found = children.iter().find(|c| hit(c)).map(|c| c.inode);
                    (children, found)
                });
                if let Some(inode) = page.1.filter(fits) {
                    return Some(inode);
                }
                dirs.extend(page.0.iter().filter(|c| c.dir).map(|c| c.inode));
                match page.0.last() {
                    Some(last) if page.0.len() == 256 => after = Some(last.name.clone()),
                    _ => break,
                }
            }
        }
        None
    }

    fn create_all(&self, ns: &Ns<'_>, pass: &mut Pass, new: Vec<(Fresh, Raw)>) -> Result<()> {
        let mut made = Vec::new();
        let mut changes = Vec::new();
        let mut first_names: HashSet<u64> = HashSet::new();
        for (fresh, st) in new {
            if st.st_nlink > 1 && meta::file_type(&st) != FileType::Directory && !first_names.insert(fresh.disk) {
                // A second name of a file whose first is being told just now.
                pass.fresh(fresh);
                continue;
            }
            let dir = self.dir(fresh.dir)?;
            let kind = match meta::kind(dir.as_fd(), fresh.name.as_bytes(), &st) {
                Ok(kind) => kind,
                Err(e) => {
                    self.trouble("adopt", format!("backing: {} cannot be taken in: {e}", fresh.name));
                    continue;
                }
            };
            let bytes = kind == Kind::File && meta::size(&st) > 0;
            changes.push(Change::Create {
                parent: fresh.dir,
                name: fresh.name.clone(),
                kind,
                attrs: meta::attrs(&st),
                witness: if bytes { meta::unknown_bytes(&st) } else { meta::witness(&st) },
            });
            made.push((fresh, dir, st, bytes));
        }
        let results = self.tell(ns, changes)?;
        for ((fresh, dir, st, bytes), result) in made.into_iter().zip(results) {
            // One that was refused was left to a later look by `tell`.
            let Ok(inode) = result.map_err(refused) else { continue };
            pass.stale.push(Self::stale_name(fresh.dir, &fresh.name, None));
            self.adopted(ns, pass, inode, (&dir, &fresh.name), &st, bytes)?;
        }
        Ok(())
    }

    /// The rest, once an object is known.
    fn adopted(
        &self,
        ns: &Ns<'_>,
        pass: &mut Pass,
        inode: InodeId,
        (dir, name): (&OwnedFd, &Name),
        st: &Raw,
        bytes: bool,
    ) -> Result<()> {
        self.remember_links(st, inode);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = Arc::new(rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty())?);
        self.tell_all_xattrs(ns, inode, &fd, st)?;
        if meta::file_type(st) == FileType::Directory {
            if let Some(watch) = &self.watch {
                self.watch_dir(watch, inode, &fd);
            }
            self.dirs.keep(inode, fd);
            pass.todo.push(inode);
        } else if bytes {
            let ino = self.opens.shown(inode, meta::disk(st));
            let open = self.opens.suspect(ino, inode, meta::disk(st), Instant::now());
            self.publish_soon(&open);
        }
        Ok(())
    }

    fn settle_gone(&self, ns: &Ns<'_>, pass: &mut Pass, gone: &Gone) {
        // Once more, with the lock: it may have been settled otherwise meanwhile.
        if self.known_at(gone.dir, &gone.name).ok().flatten() != Some(gone.inode) {
            return;
        }
        let there = self.dir(gone.dir).and_then(|d| self.stat_at(&d, gone.name.as_bytes()));
        match there {
            Err(Errno::NOENT) => {}
            _ => {
                self.hints.later_name(gone.dir, gone.name.clone());
                return;
            }
        }
        if self.back_from_limbo(gone) {
            self.check_name(ns, pass, gone.dir, &gone.name, true);
            return;
        }
        if self.gone_as_known(gone) {
            pass.stale.push(Self::stale_name(gone.dir, &gone.name, Some(gone.inode)));
            return;
        }
        if self.below_is_suspect(gone) {
            let lost = Change::Lost { parent: gone.dir, name: gone.name.clone() };
            if self.tell_one(ns, lost).is_ok() {
                pass.stale.push(Self::stale_name(gone.dir, &gone.name, Some(gone.inode)));
            }
            return;
        }
        self.remove_known(ns, pass, gone);
    }

    /// After a machine crash: something at or below this entry may not have reached the disk.
    fn below_is_suspect(&self, gone: &Gone) -> bool {
        let suspects = self.suspects().clone();
        if suspects.is_empty() {
            return false;
        }
        let Ok(port) = self.port() else { return false };
        let mut stack = vec![gone.inode];
        while let Some(inode) = stack.pop() {
            if suspects.contains(&inode) {
                return true;
            }
            let mut after: Option<Name> = None;
            loop {
                let page = port.look(|names| names.children(inode, after.as_ref(), 256));
                if page.iter().any(|c| suspects.contains(&c.inode)) {
                    return true;
                }
                stack.extend(page.iter().filter(|c| c.dir).map(|c| c.inode));
                match page.last() {
                    Some(last) if page.len() == 256 => after = Some(last.name.clone()),
                    _ => break,
                }
            }
        }
        false
    }

    /// Tells that an entry is gone with all that was below it, from the bottom up.
    fn remove_known(&self, ns: &Ns<'_>, pass: &mut Pass, gone: &Gone) {
        let Ok(port) = self.port() else { return };
        let mut stack = vec![(gone.inode, gone.dir, gone.name.clone())];
        while let Some((inode, parent, name)) = stack.last().cloned() {
            let children = if gone.is_dir { port.look(|names| names.children(inode, None, 64)) } else { Vec::new() };
            let (dirs, files): (Vec<_>, Vec<_>) = children.into_iter().partition(|c| c.dir);
            if files.is_empty()
                && let Some(dir) = dirs.into_iter().next()
            {
                stack.push((dir.inode, inode, dir.name));
                continue;
            }
            let empty = files.is_empty();
            let mut removed: Vec<_> = files.into_iter().map(|c| (inode, c.name, c.inode)).collect();
            if empty {
                removed.push((parent, name, inode));
                stack.pop();
            }
            let changes =
                removed.iter().map(|(dir, name, _)| Change::Remove { parent: *dir, name: name.clone() }).collect();
            match self.tell(ns, changes) {
                Ok(results) if results.iter().all(std::result::Result::is_ok) => {}
                // Left to a later look by `tell`.
                _ => return,
            }
            if empty && gone.is_dir {
                self.dirs.forget(inode);
            }
            pass.stale.extend(removed.iter().map(|(dir, name, child)| Self::stale_name(*dir, name, Some(*child))));
        }
    }

    /// A crash can come between a move into limbo (or out of it) and its record. `true`: what seems to be missing was found
    /// in limbo and put back to where the tree believes it; the core then sets it aside once more.
    fn back_from_limbo(&self, gone: &Gone) -> bool {
        let Ok(port) = self.port() else { return false };
        let (disk, known) = port.look(|names| {
            let disk = names.info(gone.inode).map_or(0, |i| i.witness.disk);
            (disk, names.limbo().into_iter().map(|(e, _)| limbo_name(e).into_bytes()).collect::<HashSet<_>>())
        });
        let Ok(aside) = list(self.hidden.limbo()) else { return false };
        for name in aside.into_iter().filter(|n| disk != 0 && !known.contains(n)) {
            let Ok(st) = rustix::fs::statat(self.hidden.limbo(), name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if meta::disk(&st) == disk
                && let Ok(dir) = self.dir(gone.dir)
            {
                let to = (dir.as_fd(), gone.name.as_bytes());
                return super::apply::rename_new((self.hidden.limbo(), &name), to).is_ok();
            }
        }
        false
    }

    /// The other way round: a new object is one that the tree believes in limbo, where it is not. `true`: put back there.
    fn back_to_limbo(&self, fresh: &Fresh) -> Result<bool> {
        let aside = self.port()?.look(|names| {
            let limbo = names.limbo();
            limbo.into_iter().find(|(_, i)| names.info(*i).is_some_and(|i| i.witness.disk == fresh.disk))
        });
        let Some((entry, _)) = aside else { return Ok(false) };
        let (dir, name) = (self.dir(fresh.dir)?, limbo_name(entry));
        let from = (dir.as_fd(), fresh.name.as_bytes());
        match super::apply::rename_new(from, (self.hidden.limbo(), name.as_bytes())) {
            Ok(()) => Ok(true),
            // A further name of a file that is in limbo as well.
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The bytes of a file are not the recorded ones, and a machine crash explains that. What is there is kept aside.
    pub(crate) fn tell_torn(&self, ns: &Ns<'_>, inode: InodeId, st: &Raw) -> Result<super::publish::Told> {
        let place = self.place_of(inode)?;
        if meta::size(st) > 0
            && let Some(spot) = &place.spot
        {
            let (dir, name) = self.spot(spot)?;
            self.keep_aside(&dir, &name, &format!("{:032x}-{}", inode.0, meta::disk(st)))?;
        }
        let (_, now) = self.object_at(&place)?;
        self.tell_one(ns, Change::Torn { inode, witness: meta::witness(&now) })?;
        self.not_suspect(inode);
        Ok(super::publish::Told::Yes)
    }
}
