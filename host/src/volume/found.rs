//! Showing the core what a scan found, before anything of it is told as somebody's edit.
//!
//! After a crash `backing` may hold what was carried out and not recorded, or (after the end of the whole machine) what was
//! recorded and undone. The core explains what it can, without an operation (see [`ice_core::event::Request::Found`]); only
//! the rest is told as changes.

use super::adopt::{Fresh, Gone, Pass};
use super::hidden::{limbo_name, list};
use super::meta::{self, Raw};
use super::{Ns, Shared};
use crate::digest;
use crate::vfs::Result;
use ice_core::action::{Sighting, Spot};
use ice_core::event::{Found, Thing};
use ice_core::ids::{InodeId, Name};
use ice_core::op::{ContentDigest, Kind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Files up to this size are digested at once for a caller who waits for a name, with the namespace lock held.
const LOCKED_DIGEST_BYTES: u64 = 1024 * 1024;
/// The bytes of a file are needed that have not been digested: to be shown again when they have (see [`Shared::digest_fresh`]).
pub(crate) const UNDIGESTED: Errno = Errno::INPROGRESS;
/// Directories below one that a crash brought back, and that is removed again. (Each level holds a descriptor.)
const DEPTH_MAX: usize = 256;
/// No bytes that any version could have.
fn unknown(size: u64) -> (u64, ContentDigest) {
    (size, ContentDigest([0xff; 32]))
}

impl Shared {
    /// Whether the core knows something that may explain an object under this name. After a machine crash it may always.
    fn may_be_explained(&self, fresh: &Fresh) -> bool {
        let asked = |port: &dyn super::Port| port.look(|names| names.may_explain(fresh.dir, &fresh.name));
        self.is_lost() || self.port().is_ok_and(asked)
    }

    /// Digests what settling the next `most` of the new names will ask for, without a lock: meanwhile users go on.
    pub(crate) fn digest_fresh(&self, pass: &mut Pass, most: usize) {
        let next = pass.next_fresh(most).filter(|f| pass.is_asked(f.disk) || self.may_be_explained(f));
        let asked = pass.asked_fresh();
        let due: Vec<(InodeId, Name)> = next.chain(asked).map(|f| (f.dir, f.name.clone())).collect();
        for (dir, name) in due {
            if self.stopping() {
                return;
            }
            let Ok(dir) = self.dir(dir) else { continue };
            let Ok(st) = self.stat_at(&dir, name.as_bytes()) else { continue };
            if meta::file_type(&st) != FileType::RegularFile || pass.is_digested(meta::disk(&st)) {
                continue;
            }
            let digest = digest_at(&dir, &name, &st).inspect_err(|e| {
                // Its bytes are taken for those of no version.
                tracing::debug!(%name, error = %e, "a file that was found cannot be digested");
            });
            pass.digested(meta::disk(&st), meta::witness(&st), digest.ok());
        }
        // What is not there any more is not asked for again.
        pass.nothing_asked();
    }

    /// Length and digest of what stands at a name. `UNDIGESTED`: not known yet. `EAGAIN`: it changed since.
    fn bytes_at(&self, pass: &mut Pass, dir: &OwnedFd, name: &Name, st: &Raw) -> Result<(u64, ContentDigest)> {
        let size = meta::size(st);
        if meta::file_type(st) != FileType::RegularFile || size == 0 {
            return Ok((0, ContentDigest::EMPTY));
        }
        match pass.digest_of(meta::disk(st)) {
            Some((witness, digest)) if witness == meta::witness(st) => Ok(digest.map_or(unknown(size), |d| (size, d))),
            // Somebody writes it just now.
            Some(_) => {
                pass.undigested(meta::disk(st));
                Err(Errno::AGAIN)
            }
            None if !pass.is_inline() => {
                pass.ask(meta::disk(st));
                Err(UNDIGESTED)
            }
            None if size <= LOCKED_DIGEST_BYTES => Ok(digest_at(dir, name, st).map_or(unknown(size), |d| (size, d))),
            None => Err(Errno::AGAIN),
        }
    }

    fn ask_about(&self, at: Spot, thing: Option<Thing>) -> Result<Sighting> {
        let sighting = self.port()?.found(vec![Found { at, thing }]).map_err(super::resolve::refused)?;
        Ok(sighting.into_iter().next().and_then(std::result::Result::ok).unwrap_or(Sighting::Unknown))
    }

    /// The object number at a spot, if something stands there.
    fn disk_at(&self, spot: &Spot) -> Option<u64> {
        let (dir, name) = self.spot(spot).ok()?;
        self.stat_at(&dir, &name).ok().map(|st| meta::disk(&st))
    }

    /// A new object at a name. True: it is explained, and what is to be done about it was done.
    pub(crate) fn explain(
        &self,
        ns: &Ns<'_>,
        pass: &mut Pass,
        dir: &OwnedFd,
        fresh: &Fresh,
        st: &Raw,
        linked: Option<InodeId>,
    ) -> Result<bool> {
        let port = self.port()?;
        let disk = meta::disk(st);
        let (here, spots, object, leads) = port.look(|names| {
            let here = names.child(fresh.dir, &fresh.name).and_then(|i| Some((i, names.info(i)?)));
            let set_aside = || names.limbo().into_iter().map(|(_, i)| i);
            let limbo = set_aside().find(|i| names.info(*i).is_some_and(|i| i.witness.disk == disk));
            let object = linked.or(limbo);
            let spots = here.as_ref().map(|(i, _)| names.spots(*i)).unwrap_or_default();
            (here, spots, object, object.map(|o| names.spots(o)).unwrap_or_default())
        });
        let several = here.as_ref().is_some_and(|(_, info)| info.nlink > 1);
        if !several && object.is_none() && !self.may_be_explained(fresh) {
            return Ok(false);
        }
        let at = Spot::At { parent: fresh.dir, name: fresh.name.clone() };
        let kind = meta::kind(dir.as_fd(), fresh.name.as_bytes(), st)?;
        let believed = here.as_ref().map_or(0, |(_, info)| info.witness.disk);
        let twin =
            believed != 0 && believed != disk && spots.iter().any(|s| *s != at && self.disk_at(s) == Some(believed));
        let mut from = leads.into_iter().find(|s| *s != at && self.disk_at(s) != Some(disk));
        let bytes = self.bytes_at(pass, dir, &fresh.name, st)?;
        let mut object = object;
        if self.is_lost() && object.is_none() && here.is_none() && kind == Kind::File && bytes.0 > 0 {
            // The log may have lost a rename of an edition that it does not know either: then only the bytes tell.
            let same = |g: &&Gone| {
                let info = port.look(|names| names.info(g.inode));
                info.is_some_and(|i| i.kind == Kind::File && (i.size, i.digest) == bytes)
            };
            if let Some(gone) = pass.missing().find(same) {
                object = Some(gone.inode);
                from = Some(Spot::At { parent: gone.dir, name: gone.name.clone() });
            }
        }
        let thing = Thing { kind: kind.clone(), bytes, disk, object, from, twin };
        match self.ask_about(at.clone(), Some(thing))? {
            Sighting::Unknown => return Ok(false),
            Sighting::Known(inode) => {
                tracing::debug!(name = %fresh.name, %inode, "explained by what is known");
                self.take_known(ns, pass, inode, (dir, fresh), st, &kind)?;
            }
            Sighting::Newer(inode) => {
                self.link_anew(inode, &at, (dir, &fresh.name), believed)?;
                self.hints.name(fresh.dir, fresh.name.clone());
            }
            Sighting::Removed => self.take_away(dir, &fresh.name, st)?,
            Sighting::Aside => {
                if kind == Kind::File && meta::size(st) > 0 {
                    self.keep_aside(dir, fresh.name.as_bytes(), &kept_name(st))?;
                }
                self.take_away(dir, &fresh.name, st)?;
            }
        }
        pass.stale.push(Self::stale_name(fresh.dir, &fresh.name, here.map(|(i, _)| i)));
        Ok(true)
    }

    fn take_known(
        &self,
        ns: &Ns<'_>,
        pass: &mut Pass,
        inode: InodeId,
        (dir, fresh): (&OwnedFd, &Fresh),
        st: &Raw,
        kind: &Kind,
    ) -> Result<()> {
        self.remember_links(st, inode);
        if kind.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = Arc::new(rustix::fs::openat(dir, fresh.name.as_bytes(), flags, Mode::empty())?);
            if let Some(watch) = &self.watch {
                self.watch_dir(watch, inode, &fd);
            }
            self.dirs.keep(inode, fd);
            pass.todo.push(inode);
        }
        // What else differs of it; its other names may stand as another object.
        self.check_name(ns, pass, fresh.dir, &fresh.name, false);
        if st.st_nlink > 1 || kind.is_file() {
            for spot in self.port()?.look(|names| names.spots(inode)) {
                self.hints.spot(&spot);
            }
        }
        Ok(())
    }

    /// An installation over several names was cut short: those that still stand as the older object become links to the newer.
    fn link_anew(&self, inode: InodeId, at: &Spot, (dir, name): (&OwnedFd, &Name), older: u64) -> Result<()> {
        for spot in self.port()?.look(|names| names.spots(inode)).into_iter().filter(|s| s != at) {
            if older == 0 || self.disk_at(&spot) != Some(older) {
                continue;
            }
            let (to, to_name) = self.spot(&spot)?;
            let aside = self.hidden.fresh_name();
            rustix::fs::linkat(dir, name.as_bytes(), self.hidden.tmp(), &*aside, AtFlags::empty())?;
            rustix::fs::renameat(self.hidden.tmp(), &*aside, &*to, to_name.as_slice())?;
        }
        Ok(())
    }

    /// Removes what a crash brought back. What is in a directory came back with it, but nobody has looked at it: its bytes
    /// are kept aside.
    fn take_away(&self, dir: &OwnedFd, name: &Name, st: &Raw) -> Result<()> {
        match meta::file_type(st) {
            FileType::Directory => self.take_away_dir(dir, name.as_bytes(), 0),
            _ => unlinked(rustix::fs::unlinkat(dir, name.as_bytes(), AtFlags::empty())),
        }
    }

    fn take_away_dir(&self, dir: &OwnedFd, name: &[u8], depth: usize) -> Result<()> {
        match unlinked(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if depth < DEPTH_MAX => {}
            r => return r,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        for child in list(inner.as_fd())? {
            let st = self.stat_at(&inner, &child)?;
            match meta::file_type(&st) {
                FileType::Directory => self.take_away_dir(&inner, &child, depth + 1)?,
                kind => {
                    if kind == FileType::RegularFile && meta::size(&st) > 0 {
                        self.keep_aside(&inner, &child, &kept_name(&st))?;
                    }
                    unlinked(rustix::fs::unlinkat(&inner, child.as_slice(), AtFlags::empty()))?;
                }
            }
        }
        unlinked(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }

    /// A known object stands at another name than before. True: that is what the core wanted, or what a crash left.
    pub(crate) fn moved_as_known(
        &self,
        pass: &mut Pass,
        to: &Fresh,
        from: &Gone,
        dir: &OwnedFd,
        st: &Raw,
    ) -> Result<bool> {
        let at = Spot::At { parent: to.dir, name: to.name.clone() };
        let kind = meta::kind(dir.as_fd(), to.name.as_bytes(), st)?;
        let bytes =
            if self.may_be_explained(to) { self.bytes_at(pass, dir, &to.name, st)? } else { unknown(meta::size(st)) };
        let spot = Spot::At { parent: from.dir, name: from.name.clone() };
        let thing = Thing { kind, bytes, disk: to.disk, object: Some(from.inode), from: Some(spot), twin: false };
        Ok(matches!(self.ask_about(at, Some(thing))?, Sighting::Known(_)))
    }

    /// Nothing stands at a name any more. True: so it should be, or a crash took it.
    pub(crate) fn gone_as_known(&self, gone: &Gone) -> bool {
        let at = Spot::At { parent: gone.dir, name: gone.name.clone() };
        matches!(self.ask_about(at, None), Ok(Sighting::Known(_)))
    }

    /// The bytes of a file that was found changed. True: they are a version that the core knows.
    pub(crate) fn known_bytes(&self, inode: InodeId, disk: u64, bytes: (u64, ContentDigest)) -> Result<bool> {
        let place = self.place_of(inode)?;
        let Some(at) = place.spot else { return Ok(false) };
        let object = (place.info.witness.disk == disk).then_some(inode);
        let thing = Thing { kind: Kind::File, bytes, disk, object, from: None, twin: false };
        Ok(matches!(self.ask_about(at, Some(thing))?, Sighting::Known(i) if i == inode))
    }

    /// What the tree believes to be set aside and is nowhere: shown when everything else was looked at.
    pub(crate) fn settle_limbo(&self) {
        let Ok(port) = self.port() else { return };
        let believed = port.look(|names| names.limbo());
        for (entry, _) in believed {
            let name = limbo_name(entry);
            let there = rustix::fs::statat(self.hidden.limbo(), &*name, AtFlags::SYMLINK_NOFOLLOW);
            if there.is_err_and(|e| e == Errno::NOENT)
                && let Err(e) = self.ask_about(Spot::Limbo(entry), None)
            {
                tracing::debug!(%entry, error = %e, "not told yet");
            }
        }
    }

    /// Keeps the bytes of a file outside the volume.
    pub(crate) fn keep_aside(&self, dir: &OwnedFd, name: &[u8], kept: &str) -> Result<()> {
        match rustix::fs::linkat(dir, name, self.hidden.torn(), kept, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let path = format!("{}/torn/{kept}", super::HIDDEN_NAME);
        let words = format!("after the crash of the machine {} differs from what was written; kept in {path}", {
            String::from_utf8_lossy(name)
        });
        self.trouble(&format!("torn {kept}"), words);
        Ok(())
    }

    /// After the end of the whole machine, until everything was compared.
    pub(crate) fn is_lost(&self) -> bool {
        self.crashed.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// How bytes are called that are kept aside.
fn kept_name(st: &Raw) -> String {
    format!("{:x}-{}", st.st_dev, meta::disk(st))
}

/// That somebody else removed it is as good.
fn unlinked(outcome: std::result::Result<(), Errno>) -> Result<()> {
    match outcome {
        Err(Errno::NOENT) => Ok(()),
        r => r,
    }
}

fn digest_at(dir: &OwnedFd, name: &Name, st: &Raw) -> Result<ContentDigest> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name.as_bytes(), flags, Mode::empty())?);
    let digest = digest::of_file(&file, meta::size(st)).map_err(|e| meta::errno(&e))?;
    // Bytes that moved meanwhile belong to nobody's version.
    let after = rustix::fs::fstat(&file)?;
    if meta::witness(&after) == meta::witness(st) { Ok(digest) } else { Err(Errno::AGAIN) }
}
