//! Users: they change `backing` as the mount would, and the host tells its core in the same step.

use crate::content::Content;
use crate::fs::{FsError, FsOp, Ino, ROOT};
use crate::host::LastSync;
use crate::plan::UserOp;
use crate::world::World;
use ice_core::action::{Refused, Reply};
use ice_core::event::{Ack, Change, Request, Witness};
use ice_core::ids::{InodeId, Name};
use ice_core::limits::INLINE_CONTENT_MAX_BYTES;
use ice_core::op::{Attr, Attrs, Kind};
use ice_core::time::{Span, UnixTime};
use std::collections::BTreeSet;

/// How long users wait for `fsync`.
const FSYNC_TIMEOUT: Span = Span::s(20);

/// A path as names.
pub fn split(path: &str) -> Vec<Name> {
    path.split('/').filter_map(|part| Name::new(part.as_bytes())).collect()
}

/// Where a user points to.
struct Target {
    dir: Ino,
    name: Name,
    ino: Option<Ino>,
}

impl World {
    /// A user does something. What the operating system refuses just does not happen.
    pub fn user(&mut self, n: usize, direct: bool, op: &UserOp) {
        let host = &self.hosts[n];
        let usable =
            if direct { host.ending != ice_core::config::Ending::MachineCrash || host.is_up() } else { host.is_up() };
        if !usable
            || host.recovering
            || host.power == crate::host::Power::Paused
            || host.power == crate::host::Power::Left
        {
            return;
        }
        if !crate::judge::user_resumes(self) {
            return;
        }
        let host = &self.hosts[n];
        if let Some(p) = &host.process
            && !direct
            && p.node.credits().requests < 4
        {
            return self.sometimes.saw("user refused: busy");
        }
        self.tell(|| format!("n{} user{}: {op}", n + 1, if direct { " (direct)" } else { "" }));
        let done = self.user_op(n, direct, op);
        match done {
            Ok(()) => {
                if direct {
                    self.scan_soon(n);
                }
                if let Some(mut reference) = self.reference.take() {
                    reference.user(n, op, &mut self.words);
                    self.reference = Some(reference);
                }
            }
            Err(e) => self.tell(|| format!("n{} user: {e:?}", n + 1)),
        }
    }

    fn user_op(&mut self, n: usize, direct: bool, op: &UserOp) -> Result<(), FsError> {
        match op {
            UserOp::Mkdir(p) => self.make(n, direct, p, Kind::Dir, 0o755).map(drop),
            UserOp::Symlink(p, t) => self.make(n, direct, p, Kind::Symlink(t.as_bytes().into()), 0o777).map(drop),
            UserOp::Fifo(p) => self.make(n, direct, p, Kind::Fifo, 0o644).map(drop),
            UserOp::Write(p, w, size) => {
                let ino = self.open(n, direct, p, true)?;
                self.write(n, direct, ino, w, *size)?;
                self.close(n, direct, ino, p);
                Ok(())
            }
            UserOp::Edit(p, w, size) => {
                let ino = self.open(n, direct, p, false)?;
                self.write(n, direct, ino, w, *size)?;
                self.close(n, direct, ino, p);
                Ok(())
            }
            UserOp::Open(p, w, size) => {
                if self.hosts[n].process.as_ref().is_none_or(|q| q.opened.contains_key(p)) {
                    return Err(FsError::Exists);
                }
                let ino = self.open(n, direct, p, true)?;
                self.process(n).opened.insert(p.clone(), ino);
                if let Err(e) = self.write(n, direct, ino, w, *size) {
                    self.process(n).opened.remove(p);
                    self.close(n, direct, ino, p);
                    return Err(e);
                }
                Ok(())
            }
            UserOp::Close(p) => {
                let ino = self.process(n).opened.remove(p).ok_or(FsError::Missing)?;
                self.close(n, direct, ino, p);
                Ok(())
            }
            UserOp::Link(p, q) => self.link(n, direct, p, q),
            UserOp::Rename(p, q) => self.rename(n, direct, p, q, false),
            UserOp::Exchange(p, q) => self.rename(n, direct, p, q, true),
            UserOp::Rm(p) => {
                let t = self.target(n, p)?;
                let ino = t.ino.ok_or(FsError::Missing)?;
                if self.hosts[n].fs.get(ino).is_some_and(|i| i.kind.is_dir()) {
                    return Err(FsError::IsDir);
                }
                self.remove(n, direct, t.dir, &t.name)
            }
            UserOp::Rmdir(p) => {
                let t = self.target(n, p)?;
                let ino = t.ino.ok_or(FsError::Missing)?;
                if !self.hosts[n].fs.get(ino).is_some_and(|i| i.kind.is_dir()) {
                    return Err(FsError::NotDir);
                }
                self.remove(n, direct, t.dir, &t.name)
            }
            UserOp::Rmtree(p) => {
                let t = self.target(n, p)?;
                let top = t.ino.ok_or(FsError::Missing)?;
                let below = self.hosts[n].fs.list(top);
                for (path, _) in below.iter().rev() {
                    let Some((name, dirs)) = path.split_last() else { continue };
                    if let Some(dir) = self.hosts[n].fs.walk(top, dirs) {
                        self.remove(n, direct, dir, name)?;
                    }
                }
                self.remove(n, direct, t.dir, &t.name)
            }
            UserOp::Chmod(p, mode) => self.attr(n, direct, p, Attr::Mode(*mode)),
            UserOp::Chown(p, uid, gid) => self.attr(n, direct, p, Attr::Owner { uid: *uid, gid: *gid }),
            UserOp::Times(p, sec) => {
                let t = UnixTime { sec: *sec, nsec: 0 };
                self.attr(n, direct, p, Attr::Times { atime: t, mtime: t })
            }
            UserOp::Xattr(p, name, value) => {
                let value = (!value.is_empty()).then(|| serde_bytes::ByteBuf::from(value.as_bytes()));
                self.attr(n, direct, p, Attr::Xattr { name: name.as_bytes().into(), value })
            }
            UserOp::Fsync(p, ack) => self.fsync(n, p, *ack),
        }
    }

    // ---- helpers --------------------------------------------------------------------------------------------------

    fn target(&self, n: usize, path: &str) -> Result<Target, FsError> {
        let names = split(path);
        let (name, dirs) = names.split_last().ok_or(FsError::Missing)?;
        let fs = &self.hosts[n].fs;
        let dir = fs.walk(ROOT, dirs).ok_or(FsError::Missing)?;
        if !fs.get(dir).is_some_and(|i| i.kind.is_dir()) {
            return Err(FsError::NotDir);
        }
        Ok(Target { dir, name: name.clone(), ino: fs.child(dir, name) })
    }

    /// The inode that the tree believes to be this object. `None` too if it believes another object under this name.
    pub(crate) fn inode_of(&self, n: usize, ino: Ino) -> Option<InodeId> {
        if ino == ROOT {
            return Some(InodeId::ROOT);
        }
        let (names, _) = self.hosts[n].fs.list(ROOT).into_iter().find(|(_, i)| *i == ino)?;
        let inode = self.inode_at(n, &names)?;
        let believed = self.hosts[n].process.as_ref()?.node.view().tree().info(inode)?.witness.disk;
        (believed == 0 || believed == ino).then_some(inode)
    }

    pub(crate) fn inode_at(&self, n: usize, names: &[Name]) -> Option<InodeId> {
        let p = self.hosts[n].process.as_ref()?;
        let view = p.node.view();
        names.iter().try_fold(InodeId::ROOT, |at, name| view.tree().child(at, name))
    }

    fn mtime(&self, n: usize) -> UnixTime {
        let ns = self.hosts[n].wall(self.now);
        UnixTime { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
    }

    /// What the host remembers of an object whose bytes it knows. A file with unpublished writes has none.
    pub(crate) fn witness(&self, n: usize, ino: Ino) -> Witness {
        let w = self.hosts[n].fs.witness(ino);
        let dirty = self.hosts[n].process.as_ref().and_then(|p| p.writers.get(&ino)).is_some_and(|w| w.dirty);
        if dirty { Witness { disk: w.disk, sum: 0 } } else { w }
    }

    /// The object is as it was last seen: nobody changed it behind the mount since.
    fn as_seen(&self, n: usize, ino: Ino) -> bool {
        let inode = self.inode_of(n, ino);
        let info = inode.and_then(|i| self.hosts[n].process.as_ref()?.node.view().tree().info(i));
        info.is_some_and(|i| i.witness == self.hosts[n].fs.witness(ino))
    }

    /// What to remember of an object after a change that left its bytes alone. Whatever else happened to it before
    /// (`as_seen` is false) is left to a scan.
    fn witness_after(&mut self, n: usize, ino: Ino, as_seen: bool) -> Witness {
        let now = self.witness(n, ino);
        if as_seen {
            return now;
        }
        self.scan_soon(n);
        Witness { disk: now.disk, sum: 0 }
    }

    /// Tells the core of changes that were just made. What it does not understand is left to a scan.
    pub(crate) fn change(&mut self, n: usize, changes: Vec<Change>) -> Vec<Result<InodeId, Refused>> {
        let count = changes.len();
        if count == 0 || !self.hosts[n].is_up() {
            return Vec::new();
        }
        let token = self.ask(n, Request::Change(changes), None, Vec::new());
        let results = match self.answers.remove(&(n, token)) {
            Some(Reply::Changed(r)) if r.len() == count => r,
            Some(Reply::Failed(why)) => vec![Err(why); count],
            Some(other) => {
                self.fail("one reply", format!("n{} answered {count} changes with {other:?}", n + 1));
                return Vec::new();
            }
            None if self.failure.is_some() || !self.hosts[n].is_up() => return Vec::new(),
            None => {
                self.fail("one reply", format!("n{} did not answer a change within its step", n + 1));
                return Vec::new();
            }
        };
        if results.iter().any(Result::is_err) {
            self.sometimes.saw("user change not understood");
            self.tell(|| format!("n{} did not understand: {results:?}", n + 1));
            self.scan_soon(n);
        }
        results
    }

    /// Somebody who sees this object takes away one of its names.
    fn seen_off(&mut self, n: usize, ino: Ino, dir: Ino, name: &Name) {
        let fs = &self.hosts[n].fs;
        let Some(i) = fs.get(ino).filter(|i| i.kind.is_file()) else { return };
        let content = i.content;
        let (mut path, mut others) = (String::new(), BTreeSet::new());
        for (names, _) in fs.list(ROOT).into_iter().filter(|(_, other)| *other == ino) {
            let text: Vec<String> = names.iter().map(ToString::to_string).collect();
            let here = names.split_last().is_some_and(|(last, dirs)| last == name && fs.walk(ROOT, dirs) == Some(dir));
            if here {
                path = text.join("/");
            } else {
                others.insert(text.join("/"));
            }
        }
        self.ledger.unnamed(content, n, self.now, path, others);
    }

    // ---- operations -----------------------------------------------------------------------------------------------

    fn make(&mut self, n: usize, direct: bool, path: &str, kind: Kind, mode: u32) -> Result<Ino, FsError> {
        let t = self.target(n, path)?;
        let now = self.mtime(n);
        let attrs = Attrs { mode, uid: 0, gid: 0, atime: now, mtime: now };
        let op = FsOp::Make {
            parent: t.dir,
            name: t.name.clone(),
            kind: kind.clone(),
            attrs,
            xattrs: Vec::new(),
            content: Content::EMPTY,
            flushed: true,
        };
        let ino = self.hosts[n].fs.apply(op)?;
        if !direct {
            let witness = self.witness(n, ino);
            match self.inode_of(n, t.dir) {
                Some(parent) => {
                    self.change(n, vec![Change::Create { parent, name: t.name, kind, attrs, witness }]);
                }
                None => self.scan_soon(n),
            }
        }
        Ok(ino)
    }

    fn open(&mut self, n: usize, direct: bool, path: &str, create: bool) -> Result<Ino, FsError> {
        let t = self.target(n, path)?;
        let ino = match t.ino {
            Some(ino) if !self.hosts[n].fs.get(ino).is_some_and(|i| i.kind.is_file()) => return Err(FsError::IsDir),
            Some(ino) => ino,
            None if create => self.make(n, direct, path, Kind::File, 0o644)?,
            None => return Err(FsError::Missing),
        };
        if let Some(p) = self.hosts[n].process.as_mut().filter(|_| !direct) {
            p.writers.entry(ino).or_default().count += 1;
        }
        Ok(ino)
    }

    fn write(&mut self, n: usize, direct: bool, ino: Ino, word: &str, size: Option<u64>) -> Result<(), FsError> {
        let content = if word == "empty" { Content::EMPTY } else { self.words.content(word, size) };
        let before = self.hosts[n].fs.get(ino).map_or(Content::EMPTY, |i| i.content);
        let mtime = self.mtime(n);
        let written = self.hosts[n].fs.apply(FsOp::Write { ino, content, mtime });
        if let Err(e) = written {
            if let Some(w) = self.hosts[n].process.as_mut().and_then(|p| p.writers.get_mut(&ino)).filter(|_| !direct) {
                w.count = w.count.saturating_sub(1);
            }
            return Err(e);
        }
        // Who writes what is there already wrote nothing that could be lost.
        if content != before {
            let (now, name) = (self.now, self.hosts[n].name.clone());
            self.ledger.ended(before, n, now);
            self.ledger.wrote(content, n, now, &name);
        }
        if let Some(w) = self.hosts[n].process.as_mut().and_then(|p| p.writers.get_mut(&ino)).filter(|_| !direct) {
            w.dirty = true;
        }
        Ok(())
    }

    fn close(&mut self, n: usize, direct: bool, ino: Ino, _path: &str) {
        if direct {
            return;
        }
        self.publish(n, ino);
        let Some(p) = self.hosts[n].process.as_mut() else { return };
        let last = match p.writers.get_mut(&ino) {
            Some(w) => {
                w.count = w.count.saturating_sub(1);
                w.count == 0
            }
            None => return,
        };
        if last {
            p.writers.remove(&ino);
            if let Some(inode) = self.inode_of(n, ino) {
                let token = self.ask(n, Request::Released { inode }, None, Vec::new());
                self.answers.remove(&(n, token));
            }
        }
    }

    /// Bytes that no operation tells of yet become one.
    pub(crate) fn publish(&mut self, n: usize, ino: Ino) {
        let Some(w) = self.hosts[n].process.as_mut().and_then(|p| p.writers.get_mut(&ino)) else { return };
        if !std::mem::take(&mut w.dirty) {
            return;
        }
        match self.inode_of(n, ino) {
            Some(inode) => {
                if let Some(change) = self.content_change(n, inode, ino) {
                    self.change(n, vec![change]);
                }
            }
            // Unlinked while open, or not known yet.
            None if self.hosts[n].fs.get(ino).is_some() => self.scan_soon(n),
            None => {}
        }
    }

    pub(crate) fn content_change(&mut self, n: usize, inode: InodeId, ino: Ino) -> Option<Change> {
        let i = self.hosts[n].fs.get(ino)?;
        let (content, mtime) = (i.content, i.attrs.mtime);
        // Attributes that somebody changed behind the mount are nobody's yet.
        let witness = match self.odd_attrs(n, inode, ino) {
            true => self.witness_after(n, ino, false),
            false => self.witness(n, ino),
        };
        let inline = content.size > 0 && content.size <= INLINE_CONTENT_MAX_BYTES;
        let payload = inline.then(|| self.process(n).pool.give(content));
        Some(Change::Content { inode, size: content.size, digest: content.digest(), mtime, witness, payload })
    }

    /// The attributes on disk are not those that the tree knows, or expects to change soon.
    fn odd_attrs(&self, n: usize, inode: InodeId, ino: Ino) -> bool {
        let host = &self.hosts[n];
        let (Some(p), Some(i)) = (host.process.as_ref(), host.fs.get(ino)) else { return false };
        let view = p.node.view();
        let tree = view.tree();
        let Some(info) = tree.info(inode) else { return false };
        let same = |a: &Attrs, b: &Attrs| (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid);
        let xattrs = tree.xattrs(inode).into_iter().collect();
        !info.attrs_held || !same(&info.attrs, &i.attrs) || i.xattrs != xattrs
    }

    fn link(&mut self, n: usize, direct: bool, from: &str, to: &str) -> Result<(), FsError> {
        let ino = self.target(n, from)?.ino.ok_or(FsError::Missing)?;
        let t = self.target(n, to)?;
        let (inode, seen) = (self.inode_of(n, ino), self.as_seen(n, ino));
        self.hosts[n].fs.apply(FsOp::Link { ino, parent: t.dir, name: t.name.clone() })?;
        if !direct {
            let witness = self.witness_after(n, ino, seen);
            match (inode, self.inode_of(n, t.dir)) {
                (Some(inode), Some(parent)) => {
                    self.change(n, vec![Change::Link { inode, parent, name: t.name, witness }]);
                }
                _ => self.scan_soon(n),
            }
        }
        Ok(())
    }

    fn rename(&mut self, n: usize, direct: bool, from: &str, to: &str, exchange: bool) -> Result<(), FsError> {
        let (a, b) = (self.target(n, from)?, self.target(n, to)?);
        let moved = a.ino.ok_or(FsError::Missing)?;
        if b.ino == Some(moved) {
            return Ok(());
        }
        let known = (self.inode_of(n, a.dir), self.inode_of(n, b.dir));
        let both = [Some(moved), b.ino].into_iter().flatten();
        let inodes: Vec<(Ino, Option<InodeId>)> =
            both.filter(|ino| self.as_seen(n, *ino)).map(|ino| (ino, self.inode_of(n, ino))).collect();
        // A look before it happens, which counts only if it does.
        let ledger = self.ledger.clone();
        if let Some(ino) = b.ino.filter(|_| !exchange) {
            self.seen_off(n, ino, b.dir, &b.name);
        }
        let op =
            FsOp::Rename { parent: a.dir, name: a.name.clone(), new_parent: b.dir, new_name: b.name.clone(), exchange };
        if let Err(e) = self.hosts[n].fs.apply(op) {
            self.ledger = ledger;
            return Err(e);
        }
        if !direct {
            match known {
                (Some(parent), Some(new_parent)) => {
                    let rename = Change::Rename { parent, name: a.name, new_parent, new_name: b.name, exchange };
                    if self.change(n, vec![rename]).first().is_some_and(Result::is_ok) {
                        self.touch(n, &inodes);
                    }
                }
                _ => self.scan_soon(n),
            }
        }
        Ok(())
    }

    /// Renaming and linking move an object's change time: the host looks once more at what was as it had seen it before, so
    /// that nobody else is blamed.
    fn touch(&mut self, n: usize, inodes: &[(Ino, Option<InodeId>)]) {
        let mut changes = Vec::new();
        for (ino, inode) in inodes {
            if let (Some(inode), Some(_)) = (inode, self.hosts[n].fs.get(*ino)) {
                changes.push(Change::Touch { inode: *inode, witness: self.witness(n, *ino) });
            }
        }
        self.change(n, changes);
    }

    fn remove(&mut self, n: usize, direct: bool, dir: Ino, name: &Name) -> Result<(), FsError> {
        let ino = self.hosts[n].fs.child(dir, name).ok_or(FsError::Missing)?;
        let parent = self.inode_of(n, dir);
        let inode = self.inode_of(n, ino).filter(|_| self.as_seen(n, ino));
        if self.hosts[n].fs.get(ino).is_some_and(|i| i.children.is_empty()) {
            self.seen_off(n, ino, dir, name);
        }
        self.hosts[n].fs.apply(FsOp::Remove { parent: dir, name: name.clone() })?;
        if !direct {
            match parent {
                Some(parent) => {
                    let done = self.change(n, vec![Change::Remove { parent, name: name.clone() }]);
                    if done.first().is_some_and(Result::is_ok) {
                        self.touch(n, &[(ino, inode)]);
                    }
                }
                None => self.scan_soon(n),
            }
        }
        Ok(())
    }

    fn attr(&mut self, n: usize, direct: bool, path: &str, attr: Attr) -> Result<(), FsError> {
        let ino = self.target(n, path)?.ino.ok_or(FsError::Missing)?;
        let seen = self.as_seen(n, ino);
        self.hosts[n].fs.apply(FsOp::Attr { ino, attr: attr.clone() })?;
        if !direct {
            let witness = self.witness_after(n, ino, seen);
            match self.inode_of(n, ino) {
                Some(inode) => {
                    self.change(n, vec![Change::Attr { inode, attr, witness }]);
                }
                None => self.scan_soon(n),
            }
        }
        Ok(())
    }

    fn fsync(&mut self, n: usize, path: &str, ack: Ack) -> Result<(), FsError> {
        let ino = self.target(n, path)?.ino.ok_or(FsError::Missing)?;
        let content = self.hosts[n].fs.get(ino).map_or(Content::EMPTY, |i| i.content);
        self.publish(n, ino);
        self.hosts[n].fs.sync_file(ino);
        self.hosts[n].disk.unstaged.clear();
        // A file that the core does not know in this form cannot be promised.
        let inode = self.inode_of(n, ino);
        let known = inode
            .and_then(|i| self.hosts[n].process.as_ref()?.node.view().tree().info(i))
            .is_some_and(|i| !i.kind.is_file() || i.witness == self.hosts[n].fs.witness(ino));
        if !known {
            self.hosts[n].last_sync = LastSync::Refused;
            self.scan_soon(n);
            return Ok(());
        }
        let versions = self.ledger.of(content, n);
        self.hosts[n].last_sync = LastSync::Waiting;
        self.ask(n, Request::Sync { ack, timeout: FSYNC_TIMEOUT }, Some(ack), versions);
        Ok(())
    }
}
