//! Showing the tree what is on disk, before anything of it is reported as somebody's doing: what it can explain (an action
//! that was carried out and not recorded, or undone by a crash) needs no operation.

use crate::exec::limbo_name;
use crate::fs::{FsOp, Ino, SCRATCH, WORK};
use crate::scan::{Compared, Place};
use crate::world::World;
use ice_core::action::{Reply, Sighting, Spot};
use ice_core::config::Ending;
use ice_core::event::{Change, Found, Request, Thing};
use ice_core::ids::{EntryId, InodeId, Name};
use ice_core::op::{ContentDigest, Kind};
use std::collections::BTreeSet;

/// Rounds after which the rest is left to another scan.
const ROUNDS_MAX: usize = 500;

/// A thing that was shown: asked again only after something changed.
type Key = (Spot, Ino);

impl World {
    /// Shows everything that differs, until nothing of it is understood any more.
    pub(crate) fn show_found(&mut self, n: usize) {
        let mut asked: BTreeSet<Key> = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            if self.failure.is_some() || !self.hosts[n].is_up() {
                return;
            }
            let compared = self.compare(n);
            let mut candidates = self.candidates(n, &compared);
            candidates.retain(|(key, _)| !asked.contains(key));
            let mut progress = false;
            for (key, found) in candidates {
                let extra = compared.extra.iter().any(|(place, _, _)| spot(place) == key.0);
                asked.insert(key.clone());
                if self.show(n, found, extra || matches!(key.0, Spot::Limbo(_))) {
                    progress = true;
                    break;
                }
            }
            if progress {
                asked.clear();
                continue;
            }
            if !self.show_missing(n, &compared) {
                return;
            }
            asked.clear();
        }
        self.scan_soon(n);
    }

    /// What stands where the tree does not believe it, directories first; then what looks different.
    fn candidates(&self, n: usize, compared: &Compared) -> Vec<(Key, Found)> {
        let host = &self.hosts[n];
        let mut spots: Vec<(Spot, Ino)> = compared.extra.iter().map(|(p, _, ino)| (spot(p), *ino)).collect();
        for (place, inode, ino) in &compared.both {
            let believed = host.process.as_ref().and_then(|p| p.node.view().tree().info(*inode)).map(|i| i.witness);
            let is_file = host.fs.get(*ino).is_some_and(|i| i.kind.is_file());
            if believed.is_some_and(|w| w.disk != *ino || (is_file && w != host.fs.witness(*ino))) {
                spots.push((spot(place), *ino));
            }
        }
        for (entry, ino) in self.in_limbo(n) {
            let at = Spot::Limbo(entry);
            let known = compared.known.get(&ino).filter(|(_, spots)| spots.contains(&at)).map(|(inode, _)| *inode);
            if known.is_none_or(|inode| self.looks_torn(n, inode, ino)) {
                spots.push((at, ino));
            }
        }
        let dir = |ino: &Ino| host.fs.get(*ino).is_some_and(|i| i.kind.is_dir());
        spots.sort_by_key(|(_, ino)| !dir(ino));
        spots.into_iter().filter_map(|(at, ino)| Some(((at.clone(), ino), self.thing(n, compared, at, ino)?))).collect()
    }

    /// After the end of the machine: a file that is where it should be and does not look as it was left.
    fn looks_torn(&self, n: usize, inode: InodeId, ino: Ino) -> bool {
        let host = &self.hosts[n];
        let believed = host.process.as_ref().and_then(|p| p.node.view().tree().info(inode)).map(|i| i.witness);
        let is_file = host.fs.get(ino).is_some_and(|i| i.kind.is_file());
        host.ending == Ending::MachineCrash && is_file && believed.is_some_and(|w| w != host.fs.witness(ino))
    }

    /// Objects in the working directory that are set aside under an entry's name.
    fn in_limbo(&self, n: usize) -> Vec<(EntryId, Ino)> {
        let work = self.hosts[n].fs.get(WORK);
        let names = work.into_iter().flat_map(|w| w.children.iter());
        let entry = |name: &Name| {
            let text = std::str::from_utf8(name.as_bytes()).ok()?;
            u128::from_str_radix(text, 16).ok().map(EntryId)
        };
        names
            .filter(|(name, _)| !name.as_bytes().starts_with(SCRATCH))
            .filter_map(|(name, ino)| Some((entry(name)?, *ino)))
            .collect()
    }

    /// The object that stands at a spot.
    fn at_spot(&self, n: usize, at: &Spot) -> Option<Ino> {
        let (dir, name) = self.place(n, at).ok()?;
        self.hosts[n].fs.child(dir, &name)
    }

    fn thing(&self, n: usize, compared: &Compared, at: Spot, ino: Ino) -> Option<Found> {
        let host = &self.hosts[n];
        let p = host.process.as_ref()?;
        let i = host.fs.get(ino)?;
        if p.writers.get(&ino).is_some_and(|w| w.dirty) {
            return None; // Its bytes are about to be told.
        }
        let view = p.node.view();
        let tree = view.tree();
        let here = match &at {
            Spot::At { parent, name } => tree.child(*parent, name),
            Spot::Limbo(_) => None,
        };
        let believed = here.and_then(|i| tree.info(i)).map_or(0, |i| i.witness.disk);
        let known = compared.known.get(&ino);
        // The log may have lost a rename of an edition that it does not know either: then only the bytes tell.
        let lost = host.recovering && host.ending == Ending::MachineCrash;
        let by_bytes = || {
            let same = |inode: InodeId| {
                tree.info(inode)
                    .is_some_and(|f| f.size > 0 && (f.size, f.digest) == (i.content.size, i.content.digest()))
            };
            let is_file = lost && here.is_none() && i.kind.is_file();
            compared.missing.iter().find(|(_, inode)| is_file && same(*inode))
        };
        let renamed = if known.is_none() { by_bytes() } else { None };
        let object = here.filter(|_| believed == ino).or(known.map(|(inode, _)| *inode));
        let object = object.or(renamed.map(|(_, inode)| *inode));
        let from = match (object, known) {
            (Some(_), None) if renamed.is_some() => renamed.map(|(place, _)| spot(place)),
            (Some(o), Some((inode, spots))) if o == *inode => {
                spots.iter().find(|s| **s != at && self.at_spot(n, s) != Some(ino)).cloned()
            }
            _ => None,
        };
        let twin = believed != ino
            && believed != 0
            && here.is_some_and(|i| tree.spots(i).iter().any(|s| *s != at && self.at_spot(n, s) == Some(believed)));
        let bytes = if i.kind == Kind::File { (i.content.size, i.content.digest()) } else { (0, ContentDigest::EMPTY) };
        Some(Found { at, thing: Some(Thing { kind: i.kind.clone(), bytes, disk: ino, object, from, twin }) })
    }

    fn ask_found(&mut self, n: usize, found: Found) -> Option<Sighting> {
        let token = self.ask(n, Request::Found(vec![found]), None, Vec::new());
        match self.answers.remove(&(n, token)) {
            Some(Reply::Found(r)) if r.len() == 1 => r[0].ok(),
            Some(Reply::Failed(_)) => None,
            Some(other) => {
                self.fail("one reply", format!("n{} answered a sighting with {other:?}", n + 1));
                None
            }
            None => None,
        }
    }

    /// True if something changed by it, in the tree or on disk.
    fn show(&mut self, n: usize, found: Found, elsewhere: bool) -> bool {
        let at = found.at.clone();
        let Some(thing) = found.thing.clone() else { return false };
        let sighting = self.ask_found(n, found);
        if !matches!(sighting, None | Some(Sighting::Unknown)) && elsewhere {
            self.tell(|| format!("n{} finds {at:?} ({:?}, {}): {sighting:?}", n + 1, thing.kind, thing.disk));
        }
        match sighting {
            Some(Sighting::Unknown) if matches!(at, Spot::Limbo(_)) => self.tear(n, &thing),
            None | Some(Sighting::Unknown) => false,
            Some(Sighting::Known(inode)) => {
                if matches!(at, Spot::Limbo(_)) && thing.kind == Kind::File {
                    // Nothing compares what is set aside later: this look at its bytes counts.
                    let witness = self.witness(n, thing.disk);
                    self.change(n, vec![Change::Touch { inode, witness }]);
                }
                if elsewhere {
                    self.sometimes.saw("scan explained a difference");
                }
                // A look at what stands in its place changes nothing for others, unless it is another object.
                elsewhere || thing.object.is_none()
            }
            Some(Sighting::Newer(inode)) => {
                self.sometimes.saw("installation cut short");
                self.link_anew(n, inode, &at, thing.disk)
            }
            Some(Sighting::Removed) => {
                self.sometimes.saw("removal undone by a crash");
                self.take_away(n, &at)
            }
            Some(Sighting::Aside) => {
                let file = self.hosts[n].fs.get(thing.disk).filter(|i| i.kind.is_file());
                let token = file.map(|i| i.content.token);
                self.hosts[n].aside.extend(token);
                self.take_away(n, &at)
            }
        }
    }

    /// Bytes of a file that is set aside are nobody's: under a name the comparison that follows would say so.
    fn tear(&mut self, n: usize, thing: &Thing) -> bool {
        let Some(inode) = thing.object.filter(|i| self.looks_torn(n, *i, thing.disk)) else { return false };
        let token = self.hosts[n].fs.get(thing.disk).map(|i| i.content.token);
        self.hosts[n].aside.extend(token);
        let witness = self.witness(n, thing.disk);
        self.change(n, vec![Change::Torn { inode, witness }]).iter().any(Result::is_ok)
    }

    /// Makes the names at which a file stands as an older object links to the newer one.
    fn link_anew(&mut self, n: usize, inode: InodeId, at: &Spot, newer: Ino) -> bool {
        let Some(p) = self.hosts[n].process.as_ref() else { return false };
        let view = p.node.view();
        let (spots, info) = (view.tree().spots(inode), view.tree().info(inode));
        let Some(older) = info.map(|i| i.witness.disk) else { return false };
        let mut any = false;
        for spot in spots.into_iter().filter(|s| s != at) {
            if self.at_spot(n, &spot) != Some(older) {
                continue;
            }
            let Ok((new_parent, new_name)) = self.place(n, &spot) else { continue };
            let Some(name) = Name::new(&[SCRATCH, b"join"].concat()) else { continue };
            let link = FsOp::Link { ino: newer, parent: WORK, name: name.clone() };
            let over = FsOp::Rename { parent: WORK, name, new_parent, new_name, exchange: false };
            any |= self.hosts[n].fs.apply(link).is_ok() && self.hosts[n].fs.apply(over).is_ok();
        }
        any
    }

    /// Removes a name with all that is below it; the bytes below it are kept aside.
    fn take_away(&mut self, n: usize, at: &Spot) -> bool {
        let Ok((parent, name)) = self.place(n, at) else { return false };
        let Some(ino) = self.hosts[n].fs.child(parent, &name) else { return false };
        for (path, inner) in self.hosts[n].fs.list(ino).iter().rev() {
            let file = self.hosts[n].fs.get(*inner).filter(|i| i.kind.is_file());
            let token = file.map(|i| i.content.token);
            self.hosts[n].aside.extend(token);
            if let Some((last, dirs)) = path.split_last()
                && let Some(dir) = self.hosts[n].fs.walk(ino, dirs)
            {
                let _ = self.hosts[n].fs.apply(FsOp::Remove { parent: dir, name: last.clone() });
            }
        }
        self.hosts[n].fs.apply(FsOp::Remove { parent, name }).is_ok()
    }

    /// When everything that is there has been shown: what the tree believes and what is nowhere.
    fn show_missing(&mut self, n: usize, compared: &Compared) -> bool {
        let mut spots: Vec<Spot> = compared.missing.iter().map(|(place, _)| spot(place)).collect();
        let limbo: Vec<(EntryId, InodeId)> = match self.hosts[n].process.as_ref() {
            Some(p) => p.node.view().tree().limbo(),
            None => return false,
        };
        for (entry, _) in limbo {
            if self.hosts[n].fs.child(WORK, &limbo_name(entry)).is_none() {
                spots.push(Spot::Limbo(entry));
            }
        }
        for at in spots {
            let sighting = self.ask_found(n, Found { at: at.clone(), thing: None });
            if let Some(Sighting::Known(_)) = sighting {
                self.sometimes.saw("scan explained a difference");
                self.tell(|| format!("n{} finds nothing at {at:?}, as it should be or as a crash left it", n + 1));
                return true;
            }
        }
        false
    }
}

pub(crate) fn spot(place: &Place) -> Spot {
    Spot::At { parent: place.0, name: place.1.clone() }
}
