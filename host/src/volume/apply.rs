//! Carrying out the core's changes of `backing`.
//!
//! New objects are made aside, without a lock; then, under the namespace lock, the preconditions are checked, the change is
//! one rename (or link, or unlink), and its completion is handed in, so that nobody who holds the lock later sees a disk and
//! a tree that differ.

use super::hints::Hints;
use super::make::{Made, Xattrs};
use super::meta::{self, Raw};
use super::opens::base_ino;
use super::resolve::is_hidden;
use super::settle::Expect;
use super::{Ns, Shared};
use crate::digest;
use crate::vfs::Stale;
use ice_core::action::{Apply, Io, Over, Source, Spot};
use ice_core::event::{IoError, IoResult, Witness};
use ice_core::ids::{InodeId, IoToken};
use ice_core::op::{Attrs, Kind};
use ice_core::time::Stamp;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// Objects found where one was to be made are compared byte by byte up to this size; larger ones are left to the scan.
const COMPARE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Actions that a worker takes at once.
pub(crate) const APPLY_BATCH: usize = 32;
/// Changes made under the namespace lock before somebody else gets it.
const APPLY_LOCKED: usize = 8;

/// What a change came to.
struct Done {
    witness: Witness,
    stale: Vec<Stale>,
    places: Vec<(Spot, Expect)>,
}

type Outcome = Result<Done, IoError>;

fn os(e: Errno) -> IoError {
    meta::io_error(e)
}

fn stale_entry(spot: &Spot, child: Option<InodeId>) -> Option<Stale> {
    match spot {
        Spot::At { parent, name } => Some(Stale::Entry {
            parent: base_ino(*parent),
            name: OsString::from_vec(name.as_bytes().to_vec()),
            child: child.map(base_ino),
        }),
        Spot::Limbo(_) => None,
    }
}

/// A rename that never replaces.
pub(crate) fn rename_new(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    match super::sys::rename_new(from, to) {
        // Not every file system knows the flag. All other changes by us wait for the namespace lock.
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rustix::fs::renameat(from.0, from.1, to.0, to.1),
            Ok(_) => Err(Errno::EXIST),
            Err(e) => Err(e),
        },
        r => r,
    }
}

impl Shared {
    /// A worker's life.
    pub(crate) fn run_jobs(&self) {
        let mut jobs = Vec::new();
        while self.jobs.pop(&mut jobs) {
            let (mut applies, mut others) = (Vec::new(), Vec::new());
            for io in jobs.drain(..) {
                match io {
                    Io::Apply { token, apply } => applies.push((token, apply)),
                    // Staging waits for the disk: what is seen by users goes first.
                    other => others.push(other),
                }
            }
            self.apply_all(applies);
            for io in others {
                match io {
                    Io::Stage { token, payload, inode, version } => {
                        let result = match self.stage(&payload, inode, version) {
                            Ok(()) => IoResult::Fetched,
                            Err(e) => IoResult::Failed(e),
                        };
                        if let Ok(port) = self.port() {
                            port.complete(token, result);
                        }
                    }
                    Io::Unstage { inode, version } => self.unstage(inode, version),
                    // `submit` lets nothing else in.
                    other => tracing::error!(?other, "not an action of the volume"),
                }
            }
        }
    }

    /// Makes several changes: they share the wait for the log, the namespace lock, and the step of the core that they end in.
    fn apply_all(&self, applies: Vec<(IoToken, Apply)>) {
        let Ok(port) = self.port() else { return };
        if applies.is_empty() {
            return;
        }
        let made: Vec<_> = applies
            .into_iter()
            .map(|(token, apply)| {
                // Whole before it gets its place.
                let made = match &apply {
                    Apply::Make { kind, attrs, xattrs, source, .. } => {
                        self.make_aside(kind, attrs, xattrs, source).map(Some)
                    }
                    Apply::Install { source, attrs, xattrs, .. } => {
                        self.make_aside(&Kind::File, attrs, xattrs, source).map(Some)
                    }
                    _ => Ok(None),
                };
                (token, apply, made)
            })
            .collect();
        // A process that dies must not leave a change whose operation its log does not know.
        port.logged();
        let mut made = made.into_iter().peekable();
        while made.peek().is_some() {
            let mut news = Vec::new();
            let ns = self.lock_ns();
            let (mut results, mut places) = (Vec::new(), Vec::new());
            for (token, apply, made) in made.by_ref().take(APPLY_LOCKED) {
                let (result, stale, stands) = self.apply(&ns, &apply, made);
                results.push((token, result));
                news.extend(stale);
                places.extend(stands);
            }
            port.complete_all(results);
            self.note_unsettled(&places);
            drop(ns);
            self.stale.push(news);
            // The lock is not fair: who waits for it gets a chance.
            std::thread::yield_now();
        }
    }

    fn apply(
        &self,
        _ns: &Ns<'_>,
        apply: &Apply,
        made: Result<Option<Made>, IoError>,
    ) -> (IoResult, Vec<Stale>, Vec<(Spot, Expect)>) {
        let outcome = match &made {
            Err(e) => Err(*e),
            Ok(made) => {
                let times = self.dir_times(apply);
                self.act(apply, made.as_ref()).inspect(|_| self.keep_dir_times(times))
            }
        };
        match outcome {
            Ok(done) => (IoResult::Applied(done.witness), done.stale, done.places),
            Err(e) => {
                self.apply_failed(apply, e);
                if let Ok(Some(made)) = &made {
                    self.drop_made(made);
                }
                (IoResult::Failed(e), Vec::new(), Vec::new())
            }
        }
    }

    fn apply_failed(&self, apply: &Apply, why: IoError) {
        tracing::debug!(?apply, ?why, "a change cannot be made");
        match why {
            IoError::Changed => look_again(&self.hints, apply),
            IoError::NoSpace => {
                self.expire_spares(true);
                self.trouble("space", "backing: the disk is full or over quota".to_owned());
            }
            IoError::Broken => self.trouble("medium", "backing: the medium fails or is read-only".to_owned()),
            _ => {}
        }
        if matches!(why, IoError::Changed)
            && let (Ok(port), Apply::Make { at: Spot::At { parent, .. }, .. }) = (self.port(), apply)
        {
            self.hints.way(port, *parent);
        }
    }

    fn act(&self, apply: &Apply, made: Option<&Made>) -> Outcome {
        let done = match (apply, made) {
            (Apply::Make { inode, at, kind, attrs, xattrs, source, over }, Some(made)) => {
                self.place_new(*inode, (at, over.as_ref()), kind, (attrs, xattrs), source, made)
            }
            (Apply::Install { inode, at, expect, keep, source, .. }, Some(made)) => {
                let version = match source {
                    Source::Staged { version, .. } => Some(*version),
                    _ => None,
                };
                self.install(*inode, at, *expect, keep.as_ref(), (made, version))
            }
            (Apply::Link { inode, from, to }, _) => self.link(*inode, from, to),
            (Apply::Move { inode, from, to, over }, _) => self.move_entry(*inode, from, to, over.as_ref()),
            (Apply::Remove { inode, at, dir, expect }, _) => self.remove(*inode, at, *dir, *expect),
            (Apply::Attr { inode, at, attrs, xattrs }, _) => self.set_attrs(*inode, at, attrs, xattrs),
            (Apply::Make { .. } | Apply::Install { .. }, None) => Err(IoError::Os(Errno::INVAL.raw_os_error())),
        };
        if done.is_ok() {
            self.trouble_over("space");
            self.trouble_over("medium");
        }
        done
    }

    /// The directory and name of a spot that the core chose. The working directory's name can come from another node.
    fn target(&self, spot: &Spot) -> Result<(Arc<OwnedFd>, Vec<u8>), IoError> {
        if let Spot::At { parent, name } = spot
            && is_hidden(*parent, name.as_bytes())
        {
            self.trouble(
                "name",
                "another node has a file named .icecluster in the root; it cannot stand here".to_owned(),
            );
            return Err(IoError::Denied);
        }
        self.spot(spot).map_err(os)
    }

    /// The object at a spot, if it is the one that the tree believes in.
    fn checked_at(&self, inode: InodeId, spot: &Spot) -> Result<(Arc<OwnedFd>, Vec<u8>, Raw, Witness), IoError> {
        let (dir, name) = self.target(spot)?;
        let st = self.stat_at(&dir, &name).map_err(os)?;
        let port = self.port().map_err(os)?;
        let known = port.look(|names| names.info(inode)).map(|i| i.witness).unwrap_or_default();
        if known.disk != 0 && known.disk != meta::disk(&st) {
            return Err(IoError::Changed);
        }
        Ok((dir, name, st, known))
    }

    /// The witness after a change that left the bytes alone.
    fn after(&self, inode: InodeId, known: Witness, before: &Raw, after: &Raw) -> Witness {
        let file = meta::file_type(after) == FileType::RegularFile;
        let quiet = self.opens.of(inode).is_none_or(|o| {
            let state = o.state();
            state.writers == 0 && state.dirty.is_none()
        });
        if !file || (quiet && known == meta::witness(before)) {
            return meta::witness(after);
        }
        // Somebody may have changed the bytes unseen.
        self.hints.later_inode(inode);
        meta::unknown_bytes(after)
    }

    fn place_new(
        &self,
        inode: InodeId,
        (at, over): (&Spot, Option<&Over>),
        kind: &Kind,
        dress: (&Attrs, &Xattrs),
        source: &Source,
        made: &Made,
    ) -> Outcome {
        let (dir, name) = self.target(at)?;
        let st = match self.rename_over((self.hidden.tmp(), made.name.as_bytes()), (dir.as_fd(), &name), over)? {
            Ok(()) => made.stat()?,
            // After a crash it may have been placed already; a directory may stand there and be ours as well.
            Err(Errno::EXIST) => self.take_existing(inode, &dir, &name, kind, dress, source, made)?,
            Err(e) => return Err(os(e)),
        };
        if kind.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = Arc::new(rustix::fs::openat(&*dir, name.as_slice(), flags, Mode::empty()).map_err(os)?);
            if let Some(watch) = &self.watch {
                self.watch_dir(watch, inode, &fd);
            }
            self.dirs.keep(inode, fd);
        }
        Ok(Done {
            witness: meta::witness(&st),
            stale: stale_entry(at, None).into_iter().collect(),
            places: vec![(at.clone(), Expect::Is(inode))],
        })
    }

    /// Something stands where an object is to be made. If it is what was to be made, it serves.
    #[allow(clippy::too_many_arguments)]
    fn take_existing(
        &self,
        inode: InodeId,
        dir: &OwnedFd,
        name: &[u8],
        kind: &Kind,
        (attrs, xattrs): (&Attrs, &Xattrs),
        source: &Source,
        made: &Made,
    ) -> Result<Raw, IoError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(os)?;
        let st = rustix::fs::fstat(&fd).map_err(os)?;
        let same = meta::is_kind(&st, kind)
            && match kind {
                Kind::Symlink(_) => meta::kind(dir.as_fd(), name, &st).map_err(os)? == *kind,
                Kind::File => self.same_bytes(fd.as_fd(), &st, source, made)?,
                _ => true,
            };
        if !same {
            return Err(IoError::Changed);
        }
        for (name, value) in xattrs {
            self.put_xattr(fd.as_fd(), name, Some(value))?;
        }
        meta::dress(fd.as_fd(), &st, attrs, self.privileged, true).map_err(os)?;
        self.drop_made(made);
        if kind.is_dir() {
            // What is in it is not known yet.
            self.hints.dir(inode);
        }
        rustix::fs::fstat(&fd).map_err(os)
    }

    fn same_bytes(&self, fd: BorrowedFd<'_>, st: &Raw, source: &Source, made: &Made) -> Result<bool, IoError> {
        let new = made.stat()?;
        let size = meta::size(st);
        if size != meta::size(&new) || size > COMPARE_BYTES_MAX {
            return Ok(false);
        }
        if matches!(source, Source::Empty) {
            return Ok(size == 0);
        }
        let digest_of = |fd: BorrowedFd<'_>| -> Result<_, IoError> {
            let file = File::from(super::data::reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK).map_err(os)?);
            digest::of_file(&file, size).map_err(|e| os(meta::errno(&e)))
        };
        Ok(digest_of(fd)? == digest_of(made.fd.as_fd())?)
    }

    fn link(&self, inode: InodeId, from: &Spot, to: &Spot) -> Outcome {
        let (from_dir, from_name, before, known) = self.checked_at(inode, from)?;
        let (to_dir, to_name) = self.target(to)?;
        match rustix::fs::linkat(&*from_dir, from_name.as_slice(), &*to_dir, to_name.as_slice(), AtFlags::empty()) {
            Ok(()) => {}
            // Made before a crash.
            Err(Errno::EXIST) if self.stat_at(&to_dir, &to_name).map(|s| meta::disk(&s)) == Ok(meta::disk(&before)) => {
            }
            Err(e) => return Err(os(e)),
        }
        let st = self.stat_at(&to_dir, &to_name).map_err(os)?;
        self.remember_links(&st, inode);
        let mut stale: Vec<_> = stale_entry(to, None).into_iter().collect();
        stale.push(Stale::Inode(self.opens.shown(inode, meta::disk(&st))));
        let witness = self.after(inode, known, &before, &st);
        Ok(Done { witness, stale, places: vec![(to.clone(), Expect::Is(inode))] })
    }

    /// A rename to a free name or that of `over`, if that is as it was last seen. The inner result is that of the call.
    fn rename_over(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
        over: Option<&Over>,
    ) -> Result<Result<(), Errno>, IoError> {
        let Some(over) = over else { return Ok(rename_new(from, to)) };
        match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) if over.expect.disk == 0 || over.expect.disk == meta::disk(&st) => {
                self.unchanged(over.inode, &st, over.expect)?;
                Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1))
            }
            // Gone, or something else: that is not replaced.
            Ok(_) | Err(Errno::NOENT) => Ok(rename_new(from, to)),
            Err(e) => Ok(Err(e)),
        }
    }

    /// What is about to lose its last name has no bytes that are not known.
    fn unchanged(&self, inode: InodeId, st: &Raw, expect: Witness) -> Result<(), IoError> {
        if let Some(open) = self.opens.of(inode)
            && open.disk == meta::disk(st)
            && open.state().dirty.is_some()
        {
            // What was written here and not told yet must not vanish: told first, it brings the file back.
            self.publish_soon(&open);
            return Err(IoError::Changed);
        }
        let file = meta::file_type(st) == FileType::RegularFile;
        if file && meta::witness(st) != expect { Err(IoError::Changed) } else { Ok(()) }
    }

    fn move_entry(&self, inode: InodeId, from: &Spot, to: &Spot, over: Option<&Over>) -> Outcome {
        let (to_dir, to_name) = self.target(to)?;
        let (before, known) = match self.checked_at(inode, from) {
            Ok((from_dir, from_name, before, known)) => {
                self.rename_over((from_dir.as_fd(), &from_name), (to_dir.as_fd(), &to_name), over)?.map_err(os)?;
                (before, known)
            }
            Err(IoError::Changed) => {
                // Moved before a crash?
                let (_, _, st, known) = self.checked_at(inode, to)?;
                if known.disk == 0 {
                    return Err(IoError::Changed);
                }
                (st, known)
            }
            Err(e) => return Err(e),
        };
        let st = self.stat_at(&to_dir, &to_name).map_err(os)?;
        let stale = stale_entry(from, Some(inode)).into_iter().chain(stale_entry(to, None)).collect();
        let witness = self.after(inode, known, &before, &st);
        Ok(Done { witness, stale, places: vec![(from.clone(), Expect::Not(inode)), (to.clone(), Expect::Is(inode))] })
    }

    fn remove(&self, inode: InodeId, at: &Spot, directory: bool, expect: Witness) -> Outcome {
        let (dir, name) = self.target(at)?;
        let done = |witness, shown: Option<u64>| {
            let mut stale: Vec<_> = stale_entry(at, Some(inode)).into_iter().collect();
            stale.extend(shown.map(Stale::Inode));
            Done { witness, stale, places: vec![(at.clone(), Expect::Not(inode))] }
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&*dir, name.as_slice(), flags, Mode::empty()) {
            // Done before a crash, or by somebody directly, who wanted the same.
            Err(Errno::NOENT) => return Ok(done(Witness::default(), None)),
            fd => fd.map_err(os)?,
        };
        let st = rustix::fs::fstat(&fd).map_err(os)?;
        if expect.disk != 0 && meta::disk(&st) != expect.disk {
            return Err(IoError::Changed);
        }
        if directory {
            return match rustix::fs::unlinkat(&*dir, name.as_slice(), AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.dirs.forget(inode);
                    Ok(done(Witness::default(), None))
                }
                Err(e) => {
                    if e == Errno::NOTEMPTY {
                        // Something in it is not known yet.
                        self.hints.dir(inode);
                    }
                    Err(os(e))
                }
            };
        }
        self.unchanged(inode, &st, expect)?;
        rustix::fs::unlinkat(&*dir, name.as_slice(), AtFlags::empty()).map_err(os)?;
        let left = rustix::fs::fstat(&fd).map_err(os)?;
        let shown = (left.st_nlink > 0).then(|| self.opens.shown(inode, meta::disk(&left)));
        Ok(done(meta::witness(&left), shown))
    }

    /// [`Apply::Attr`] for a scan that sets right what a crash took back.
    pub(crate) fn dress_again(
        &self,
        inode: InodeId,
        at: &Spot,
        attrs: &Attrs,
        xattrs: &[(Box<[u8]>, Option<Box<[u8]>>)],
    ) -> Result<Vec<Stale>, IoError> {
        self.set_attrs(inode, at, attrs, xattrs).map(|done| done.stale)
    }

    fn set_attrs(
        &self,
        inode: InodeId,
        at: &Spot,
        attrs: &Attrs,
        xattrs: &[(Box<[u8]>, Option<Box<[u8]>>)],
    ) -> Outcome {
        let (dir, name, before, known) = self.checked_at(inode, at)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*dir, name.as_slice(), flags, Mode::empty()).map_err(os)?;
        if rustix::fs::fstat(&fd).map(|s| meta::disk(&s)).map_err(os)? != meta::disk(&before) {
            return Err(IoError::Changed);
        }
        for (name, value) in xattrs {
            self.put_xattr(fd.as_fd(), name, value.as_deref())?;
        }
        let open = self.opens.of(inode);
        // The times of a file that is being written are its writer's.
        let times = open.as_ref().is_none_or(|o| o.state().dirty.is_none());
        meta::dress(fd.as_fd(), &before, attrs, self.privileged, times).map_err(os)?;
        let st = rustix::fs::fstat(&fd).map_err(os)?;
        if let Some(open) = open {
            let mut state = open.state();
            if state.expected == Some(meta::mtime(&before)) {
                state.expected = Some(meta::mtime(&st));
            }
        }
        let witness = self.after(inode, known, &before, &st);
        Ok(Done { witness, stale: vec![Stale::Inode(self.opens.shown(inode, meta::disk(&st)))], places: Vec::new() })
    }

    fn install(
        &self,
        inode: InodeId,
        at: &[Spot],
        expect: Witness,
        keep: Option<&Spot>,
        (made, version): (&Made, Option<Stamp>),
    ) -> Outcome {
        if let Some(open) = self.opens.of(inode) {
            let (busy, dirty) = {
                let mut state = open.state();
                let busy = state.writers > 0 || state.dirty.is_some();
                state.waited_for |= busy;
                (busy, state.dirty.is_some() && state.writers == 0)
            };
            if dirty {
                self.publish_soon(&open);
            }
            if busy {
                return Err(IoError::Busy);
            }
        }
        let places = at.iter().map(|s| self.target(s)).collect::<Result<Vec<_>, _>>()?;
        let Some(((dir, name), more)) = places.split_first() else { return Err(IoError::Changed) };
        for (dir, name) in &places {
            let st = self.stat_at(dir, name).map_err(os)?;
            if meta::witness(&st) != expect {
                return Err(IoError::Changed);
            }
        }
        if super::sys::has_foreign_writer(dir.as_fd(), name) {
            // Directly in `backing`. Nobody says when it is done: tried again after a while.
            self.retry_later(inode);
            return Err(IoError::Busy);
        }
        if let Some(keep) = keep {
            let (keep_dir, keep_name) = self.target(keep)?;
            match rustix::fs::linkat(&**dir, name.as_slice(), &*keep_dir, keep_name.as_slice(), AtFlags::empty()) {
                Ok(()) => {}
                // Kept before a crash.
                Err(Errno::EXIST) if self.stat_at(&keep_dir, &keep_name).map(|s| meta::disk(&s)) == Ok(expect.disk) => {
                }
                Err(e) => return Err(os(e)),
            }
        }
        let tmp = self.hidden.tmp();
        let old = match (keep, more) {
            (None, []) => self.stat_at(dir, name).ok().and_then(|st| self.keep_spare(inode, dir, name, &st)),
            _ => None,
        };
        if let Err(e) = rustix::fs::renameat(tmp, &*made.name, &**dir, name.as_slice()) {
            self.drop_spares(old.into_iter().collect());
            return Err(os(e));
        }
        for (other_dir, other_name) in more {
            let aside = self.hidden.fresh_name();
            rustix::fs::linkat(&**dir, name.as_slice(), tmp, &*aside, AtFlags::empty()).map_err(os)?;
            rustix::fs::renameat(tmp, &*aside, &**other_dir, other_name.as_slice()).map_err(os)?;
        }
        let st = made.stat()?;
        self.replaced(inode, version, &st, old);
        self.remember_links(&st, inode);
        // Whoever has the old bytes open keeps them, under the old number; others find the new ones under another.
        let old = base_ino(inode);
        let shown = self.opens.shown(inode, meta::disk(&st));
        let mut stale: Vec<Stale> = Vec::new();
        if shown == old {
            stale.push(Stale::Inode(old));
        } else {
            stale.extend(at.iter().filter_map(|s| stale_entry(s, Some(inode))));
        }
        stale.extend(keep.and_then(|k| stale_entry(k, None)));
        let places = keep.map(|k| (k.clone(), Expect::Taken)).into_iter().collect();
        Ok(Done { witness: meta::witness(&st), stale, places })
    }
}

/// Where to look after something was not as the core believed.
fn look_again(hints: &Hints, apply: &Apply) {
    let (inode, spots): (InodeId, Vec<&Spot>) = match apply {
        Apply::Make { inode, at, .. } => (*inode, vec![at]),
        Apply::Link { inode, from, to } | Apply::Move { inode, from, to, .. } => (*inode, vec![from, to]),
        Apply::Remove { inode, at, .. } | Apply::Attr { inode, at, .. } => (*inode, vec![at]),
        Apply::Install { inode, at, .. } => (*inode, at.iter().collect()),
    };
    spots.into_iter().for_each(|s| hints.spot(s));
    if !matches!(apply, Apply::Make { .. }) {
        hints.inode(inode);
    }
}
