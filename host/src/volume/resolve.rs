//! From numbers and names to objects of `backing`, and the way in which the core is told.

use super::hidden::{HIDDEN_NAME, limbo_name};
use super::meta::{self, Raw};
use super::opens::{Open, base_ino};
use super::{Ns, Shared};
use crate::vfs::{ROOT_INO, Result};
use ice_core::action::{Refused, Spot};
use ice_core::event::{Change, Witness};
use ice_core::ids::{InodeId, Name};
use ice_core::tree::InodeInfo;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Where an inode can be reached.
pub(crate) struct Place {
    pub(crate) inode: InodeId,
    /// One of its names; `None` for the root.
    pub(crate) spot: Option<Spot>,
    pub(crate) info: InodeInfo,
}

/// An object held by a descriptor (any kind of it) together with its state before a change.
pub(crate) struct Object {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) before: Raw,
    /// What the tree knows of it; `None`: it has no name any more, or not yet.
    pub(crate) known: Option<(InodeId, InodeInfo)>,
    /// Its entry among the open files.
    pub(crate) open: Option<Arc<Open>>,
}

/// A refusal as errno.
pub(crate) fn refused(why: Refused) -> Errno {
    match why {
        Refused::Busy => Errno::AGAIN,
        Refused::Unknown => Errno::STALE,
        Refused::NotAcknowledged | Refused::LogBroken => Errno::IO,
        Refused::Interrupted => Errno::INTR,
        Refused::Stopping => Errno::SHUTDOWN,
        Refused::Limit => Errno::NOSPC,
    }
}

/// A component of a path, as the adapters hand it in.
pub(crate) fn component(name: &OsStr) -> Result<Name> {
    let bytes = name.as_bytes();
    if bytes.len() > Name::MAX_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    Name::new(bytes).ok_or(Errno::INVAL)
}

/// True for the working directory.
pub(crate) fn is_hidden(dir: InodeId, name: &[u8]) -> bool {
    dir == InodeId::ROOT && name == HIDDEN_NAME.as_bytes()
}

impl Shared {
    /// The inode behind a number. `ESTALE`: nothing is known under it.
    pub(crate) fn inode(&self, ino: u64) -> Result<InodeId> {
        if ino == ROOT_INO {
            return Ok(InodeId::ROOT);
        }
        if let Some(alias) = self.opens.aliased(ino) {
            return alias.ok_or(Errno::NOENT);
        }
        self.port()?.look(|names| names.by_prefix(ino)).filter(|i| base_ino(*i) == ino).ok_or(Errno::STALE)
    }

    /// Where the inode behind a number stands.
    pub(crate) fn place(&self, ino: u64) -> Result<Place> {
        let inode = self.inode(ino)?;
        self.place_of(inode)
    }

    /// Where an inode stands in `backing`; a visible name is preferred. `ESTALE`: nowhere.
    pub(crate) fn place_of(&self, inode: InodeId) -> Result<Place> {
        self.port()?.look(|names| {
            let info = names.info(inode).ok_or(Errno::STALE)?;
            if inode == InodeId::ROOT {
                return Ok(Place { inode, spot: None, info });
            }
            let mut spots = names.spots(inode);
            let best = spots.iter().position(|s| matches!(s, Spot::At { .. })).unwrap_or(0);
            if spots.is_empty() {
                return Err(Errno::STALE);
            }
            Ok(Place { inode, spot: Some(spots.swap_remove(best)), info })
        })
    }

    /// Where an inode stands, as adapters see it. `ENOENT`: it has no name any more, or is set aside.
    pub(crate) fn path(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let path = self.port()?.look(|names| {
            if inode == InodeId::ROOT {
                return Some(Vec::new());
            }
            let spot = names.spots(inode).into_iter().find(|s| matches!(s, Spot::At { .. }))?;
            let Spot::At { parent, name } = spot else { return None };
            let (aside, mut path) = names.locate(parent)?;
            path.push(name);
            aside.is_none().then_some(path)
        });
        let path = path.ok_or(Errno::NOENT)?;
        Ok(path.iter().map(|n| n.as_bytes()).collect::<Vec<_>>().join(&b'/'))
    }

    /// How to call a file in words: the path of one of its names, or its id.
    pub(crate) fn called(&self, inode: InodeId) -> String {
        let path = self.port().ok().and_then(|port| {
            port.look(|names| {
                let spot = names.spots(inode).into_iter().find(|s| matches!(s, Spot::At { .. }))?;
                let Spot::At { parent, name } = spot else { return None };
                let (_, mut path) = names.locate(parent)?;
                path.push(name);
                Some(path.iter().map(|n| String::from_utf8_lossy(n.as_bytes())).collect::<Vec<_>>().join("/"))
            })
        });
        path.unwrap_or_else(|| inode.to_string())
    }

    /// A descriptor (`O_PATH`) of a directory.
    pub(crate) fn dir(&self, dir: InodeId) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.dirs.cached(dir) {
            return Ok(fd);
        }
        let found = self.port()?.look(|names| {
            let info = names.info(dir)?;
            Some((names.locate(dir)?, info))
        });
        let Some(((from, path), info)) = found else { return Err(Errno::STALE) };
        if !info.kind.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let fd = match from {
            None => self.dirs.resolve(dir, None, &path, info.witness.disk),
            Some(entry) => {
                let base = rustix::fs::openat(
                    self.hidden.limbo(),
                    limbo_name(entry),
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                self.dirs.resolve(dir, Some(base.as_fd()), &path, info.witness.disk)
            }
        };
        if matches!(fd, Err(Errno::STALE | Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) {
            // Somebody moved it directly: the names on the way have to be looked at.
            self.hints.way(self.port()?, dir);
            return Err(Errno::STALE);
        }
        fd
    }

    /// The directory and the name in it of a spot.
    pub(crate) fn spot(&self, spot: &Spot) -> Result<(Arc<OwnedFd>, Vec<u8>)> {
        match spot {
            Spot::At { parent, name } => Ok((self.dir(*parent)?, name.as_bytes().to_vec())),
            Spot::Limbo(entry) => {
                let dir = rustix::io::fcntl_dupfd_cloexec(self.hidden.limbo(), 0)?;
                Ok((Arc::new(dir), limbo_name(*entry).into_bytes()))
            }
        }
    }

    /// A descriptor of the object that stands at a place. `ESTALE` if that is another one.
    pub(crate) fn object_at(&self, place: &Place) -> Result<(Arc<OwnedFd>, Raw)> {
        let fd = match &place.spot {
            _ if place.info.kind.is_dir() => self.dir(place.inode)?,
            None => self.dir(place.inode)?,
            Some(spot) => {
                let (dir, name) = self.spot(spot)?;
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&*dir, name.as_slice(), flags, Mode::empty()) {
                    Ok(fd) => Arc::new(fd),
                    Err(Errno::NOENT | Errno::NOTDIR) => {
                        self.hints.spot(spot);
                        return Err(Errno::STALE);
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        let st = rustix::fs::fstat(&*fd)?;
        let disk = place.info.witness.disk;
        if disk != 0 && meta::disk(&st) != disk {
            if let Some(spot) = &place.spot {
                self.hints.spot(spot);
            }
            return Err(Errno::STALE);
        }
        Ok((fd, st))
    }

    /// The object behind a number or an open handle, for a look or (with the namespace lock held) for a change.
    pub(crate) fn object(&self, ino: u64, fh: Option<u64>) -> Result<Object> {
        let open = match fh {
            Some(fh) => Some(Arc::clone(&self.opens.handle(fh)?.node)),
            None => self.opens.get(ino),
        };
        let held = open.as_ref().and_then(|o| o.state().files.first().cloned());
        let (Some(open), Some(fd)) = (open, held) else {
            return self.object_by_name(ino);
        };
        let before = rustix::fs::fstat(&*fd)?;
        let inode = open.state().inode;
        // A file that was unlinked, or replaced from afar, is only reached by its descriptors now: the tree knows nothing of
        // it, or speaks of another.
        let known = match inode {
            Some(inode) => self.port()?.look(|names| {
                let info = names.info(inode)?;
                (info.nlink > 0 && info.witness.disk == meta::disk(&before)).then_some((inode, info))
            }),
            None => None,
        };
        Ok(Object { fd, before, known, open: Some(open) })
    }

    fn object_by_name(&self, ino: u64) -> Result<Object> {
        let place = self.place(ino)?;
        let (fd, before) = match self.object_at(&place) {
            Err(Errno::STALE) => {
                // Perhaps it was edited directly a moment ago: look, then once more.
                if let Some(spot) = &place.spot {
                    self.look_at_spot(spot);
                }
                let again = self.place(ino)?;
                return self.object_at(&again).map(|(fd, before)| Object {
                    fd,
                    before,
                    known: Some((again.inode, again.info)),
                    open: self.opens.get(ino),
                });
            }
            r => r?,
        };
        Ok(Object { fd, before, known: Some((place.inode, place.info)), open: self.opens.get(ino) })
    }

    /// Tells the core. Changes that it does not understand are left to the scan.
    pub(crate) fn tell(
        &self,
        _ns: &Ns<'_>,
        changes: Vec<Change>,
    ) -> Result<Vec<std::result::Result<InodeId, Refused>>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        // Kept for the case of failure only; names are small.
        let about: Vec<About> = changes.iter().flat_map(About::of).collect();
        let results = self.port()?.change(changes);
        let failed = match &results {
            Ok(r) => r.iter().any(std::result::Result::is_err),
            Err(_) => true,
        };
        if failed {
            for a in about {
                match a {
                    About::Name(dir, name) => self.hints.later_name(dir, name),
                    About::Inode(inode) => self.hints.later_inode(inode),
                }
            }
        }
        results.map_err(refused)
    }

    /// Tells the core of one change.
    pub(crate) fn tell_one(&self, ns: &Ns<'_>, change: Change) -> Result<InodeId> {
        let mut results = self.tell(ns, vec![change])?;
        results.pop().ok_or(Errno::IO)?.map_err(refused)
    }

    /// The witness to tell after a change of attributes or names that left the bytes alone.
    ///
    /// Full only if the bytes were known before the change and nobody can have changed them since.
    pub(crate) fn witness_after(&self, object: &Object, after: &Raw) -> Witness {
        let quiet = object.open.as_ref().is_none_or(|o| {
            let state = o.state();
            state.writers == 0 && state.dirty.is_none()
        });
        let known = object.known.as_ref().is_some_and(|(_, i)| i.witness == meta::witness(&object.before));
        let file = meta::file_type(after) == rustix::fs::FileType::RegularFile;
        if !file || (quiet && known) { meta::witness(after) } else { meta::unknown_bytes(after) }
    }

    /// `stat` of a name, never through a link.
    pub(crate) fn stat_at(&self, dir: &OwnedFd, name: &[u8]) -> Result<Raw> {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// As adapters see an object. The working directory does not count as a subdirectory of the root.
    pub(crate) fn shown_stat(&self, st: &Raw, ino: u64) -> crate::vfs::Stat {
        let mut stat = meta::to_stat(st, ino);
        if ino == ROOT_INO {
            stat.nlink = stat.nlink.saturating_sub(1).max(2);
        }
        stat
    }
}

enum About {
    Name(InodeId, Name),
    Inode(InodeId),
}

impl About {
    fn of(change: &Change) -> Vec<About> {
        match change {
            Change::Create { parent, name, .. }
            | Change::Link { parent, name, .. }
            | Change::Remove { parent, name }
            | Change::Lost { parent, name } => vec![About::Name(*parent, name.clone())],
            Change::Rename { parent, name, new_parent, new_name, .. } => {
                vec![About::Name(*parent, name.clone()), About::Name(*new_parent, new_name.clone())]
            }
            Change::Attr { inode, .. }
            | Change::Content { inode, .. }
            | Change::Touch { inode, .. }
            | Change::Torn { inode, .. } => vec![About::Inode(*inode)],
        }
    }
}
