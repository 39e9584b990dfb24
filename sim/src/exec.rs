//! Carries out what a core wants of its disk, with the preconditions that `ice_core::action` states.

use crate::content::Content;
use crate::disk::Staged;
use crate::fs::{FsError, FsOp, Ino, ROOT, SCRATCH, WORK};
use crate::host::Power;
use crate::world::{Ev, World};
use ice_core::action::{Apply, Io, Over, Source, Spot};
use ice_core::config::Ending;
use ice_core::event::{IoError, IoResult, Witness};
use ice_core::ids::{EntryId, InodeId, Name, ReplicaId};
use ice_core::op::{Attr, Attrs, ContentDigest};
use ice_core::time::{Span, Stamp};

/// Why an action stopped.
enum Halt {
    /// The machine died in the middle.
    Crash,
    /// An answer to the core.
    Io(IoError),
}

impl From<IoError> for Halt {
    fn from(e: IoError) -> Halt {
        Halt::Io(e)
    }
}

/// How many more steps are made before the machine dies.
type Budget = Option<u64>;

pub(crate) fn limbo_name(entry: EntryId) -> Name {
    Name::new(format!("{:032x}", entry.0).as_bytes()).expect("hex digits are a name")
}

impl World {
    pub(crate) fn action(&mut self, n: usize, slot: u64) {
        let Some(io) = self.process(n).pending.remove(&slot) else { return };
        let mut budget: Budget = None;
        let mut ending = Ending::ProcessCrash;
        if let Some(stop) = &mut self.hosts[n].stop_at {
            if stop.actions == 0 {
                (budget, ending) = (Some(stop.steps), stop.ending);
                self.hosts[n].stop_at = None;
            } else {
                stop.actions -= 1;
            }
        }
        let (token, result) = match io {
            Io::Store { token, puts, commit } => (token, self.store(n, puts, commit)),
            Io::Apply { token, apply } => {
                self.tell(|| format!("n{} applies {}", n + 1, crate::show::apply(&apply)));
                self.hosts[n].disk.write_out();
                let result = self.apply(n, apply, &mut budget);
                if let Err(Halt::Io(IoError::Changed)) = &result {
                    self.sometimes.saw("apply failed: changed");
                    self.scan_soon(n);
                }
                if let Err(Halt::Io(IoError::Busy)) = &result {
                    self.sometimes.saw("apply failed: busy");
                }
                if result.is_ok() {
                    self.sometimes.saw("remote change applied");
                }
                (token, result.map(IoResult::Applied))
            }
            Io::Fetch { token, from, inode, version, size, digest } => {
                let wanted = (inode, version);
                match self.fetch(n, from, wanted, Content { token: 0, size }, digest) {
                    Some(r) => (token, r.map(|()| IoResult::Fetched).map_err(Halt::Io)),
                    None => {
                        // No answer: a time-out ends it.
                        let epoch = self.hosts[n].epoch;
                        let p = self.process(n);
                        p.pending.insert(slot, Io::Fetch { token, from, inode, version, size, digest });
                        let time = Span::ms(self.rngs.host.range(100, 10_000));
                        return self.queue.put(self.now.after(time), Ev::GiveUpFetch(n, epoch, slot));
                    }
                }
            }
            Io::Stage { token, payload, inode, version } => {
                let content = self.process(n).pool.get(payload.id);
                let result = match content {
                    _ if self.hosts[n].disk.full => Err(Halt::Io(IoError::NoSpace)),
                    Some(content) => {
                        self.hosts[n].disk.staged.insert((inode, version), Staged { content, durable: false });
                        Ok(IoResult::Fetched)
                    }
                    None => {
                        let text = format!("n{} stages {:?}, which it has released", n + 1, payload.id);
                        return self.fail("payload balance", text);
                    }
                };
                (token, result)
            }
            Io::Log { .. } | Io::LogSync { .. } | Io::Unstage { .. } | Io::Rescan { .. } => return,
        };
        match result {
            Err(Halt::Crash) => {
                self.sometimes.saw("crash inside an action");
                self.stop(n, ending);
            }
            _ if budget.is_some() => {
                self.sometimes.saw("crash between an action and its completion");
                self.stop(n, ending);
            }
            Ok(result) => self.complete(n, token, result),
            Err(Halt::Io(e)) => self.complete(n, token, IoResult::Failed(e)),
        }
    }

    /// A process is being killed: some of the changes under way are made all the same, and nobody is told.
    pub(crate) fn finish_unheard(&mut self, n: usize) {
        let Some(p) = self.hosts[n].process.as_mut() else { return };
        let mut under_way: Vec<Apply> = Vec::new();
        for io in std::mem::take(&mut p.pending).into_values() {
            if let Io::Apply { apply, .. } = io {
                under_way.push(apply);
            }
        }
        self.rngs.late.shuffle(&mut under_way);
        for apply in under_way {
            if self.rngs.late.chance(500) {
                self.tell(|| format!("n{} applies {}, and nobody hears of it", n + 1, crate::show::apply(&apply)));
                self.hosts[n].disk.write_out();
                let mut budget = self.rngs.late.chance(200).then(|| self.rngs.late.below(4));
                if self.apply(n, apply, &mut budget).is_ok() {
                    self.sometimes.saw("change made when the process was killed");
                }
            }
        }
    }

    pub(crate) fn give_up_fetch(&mut self, n: usize, slot: u64) {
        if let Some(Io::Fetch { token, .. }) = self.process(n).pending.remove(&slot) {
            self.sometimes.saw("fetch failed");
            self.complete(n, token, IoResult::Failed(IoError::Unreachable));
        }
    }

    fn store(&mut self, n: usize, puts: Vec<crate::disk::Page>, commit: Option<u64>) -> Result<IoResult, Halt> {
        let others = self.process(n).pending.values().any(|io| matches!(io, Io::Store { .. }));
        let host = &mut self.hosts[n];
        let unlucky = commit.is_some() && host.disk.fail_commits > 0;
        if host.disk.full || unlucky {
            host.disk.fail_commits -= u32::from(unlucky);
            host.disk.drop_pending();
            self.sometimes.saw("checkpoint failed");
            return Err(Halt::Io(IoError::NoSpace));
        }
        host.disk.put(puts);
        if let Some(cut) = commit {
            if others {
                let text = format!("n{} commits a checkpoint while another page is being written", n + 1);
                self.fail("no order inside an outbox", text);
                return Ok(IoResult::Stored);
            }
            host.fs.sync();
            host.disk.sync_staging();
            host.disk.commit(cut);
            host.scars = host.scars.filter(|s| *s == u64::MAX);
            self.sometimes.saw("checkpoint committed");
        }
        Ok(IoResult::Stored)
    }

    // ---- backing --------------------------------------------------------------------------------------------------

    /// The directory and name on disk of a spot.
    pub(crate) fn place(&self, n: usize, spot: &Spot) -> Result<(Ino, Name), IoError> {
        match spot {
            Spot::Limbo(e) => Ok((WORK, limbo_name(*e))),
            Spot::At { parent, name } => Ok((self.directory(n, *parent).ok_or(IoError::Changed)?, name.clone())),
        }
    }

    /// A directory on disk, found through the materialised tree.
    pub(crate) fn directory(&self, n: usize, inode: InodeId) -> Option<Ino> {
        let host = &self.hosts[n];
        let view = host.process.as_ref()?.node.view();
        let (limbo, names) = view.tree().locate(inode)?;
        let top = match limbo {
            None => ROOT,
            Some(e) => host.fs.child(WORK, &limbo_name(e))?,
        };
        let ino = host.fs.walk(top, &names)?;
        host.fs.get(ino).filter(|i| i.kind.is_dir()).map(|_| ino)
    }

    fn step_of(&mut self, n: usize, budget: &mut Budget, op: FsOp) -> Result<Ino, Halt> {
        if let Some(left) = budget {
            if *left == 0 {
                return Err(Halt::Crash);
            }
            *left -= 1;
        }
        let host = &mut self.hosts[n];
        host.fs.apply(op).map_err(|e| {
            Halt::Io(match e {
                FsError::NoSpace => IoError::NoSpace,
                // Names that are taken or gone: somebody was here before us.
                _ => IoError::Changed,
            })
        })
    }

    fn bytes(&mut self, n: usize, source: &Source) -> Result<(Content, bool), Halt> {
        match source {
            Source::Empty => Ok((Content::EMPTY, true)),
            Source::Payload(p) => match self.process(n).pool.get(p.id) {
                Some(c) => Ok((c, false)),
                None => {
                    self.fail("payload balance", format!("n{} applies {:?}, which it has released", n + 1, p.id));
                    Err(IoError::Gone.into())
                }
            },
            Source::Staged { inode, version } => {
                let staged = &mut self.hosts[n].disk.staged;
                match staged.get(&(*inode, *version)) {
                    Some(s) if s.content.is_rotten() => {
                        staged.remove(&(*inode, *version));
                        Err(IoError::Mismatch.into())
                    }
                    Some(s) => Ok((s.content, s.durable)),
                    None => Err(IoError::Gone.into()),
                }
            }
        }
    }

    /// What stands at a spot must be what the tree believes.
    fn standing(&self, n: usize, spot: &Spot, inode: InodeId) -> Result<(Ino, Name, Ino), IoError> {
        let (dir, name) = self.place(n, spot)?;
        let ino = self.hosts[n].fs.child(dir, &name).ok_or(IoError::Changed)?;
        let believed = self.hosts[n].process.as_ref().and_then(|p| p.node.view().tree().info(inode));
        if believed.is_some_and(|b| b.witness.disk != 0 && b.witness.disk != ino) {
            return Err(IoError::Changed);
        }
        Ok((dir, name, ino))
    }

    /// The bytes must be the ones last seen.
    fn expected(&self, n: usize, ino: Ino, expect: Witness) -> Result<(), IoError> {
        let is_file = self.hosts[n].fs.get(ino).is_some_and(|i| i.kind.is_file());
        if is_file && self.hosts[n].fs.witness(ino) != expect { Err(IoError::Changed) } else { Ok(()) }
    }

    /// True if the name at `spot` is that of what a change replaces, which is as it was last seen.
    fn replaces(&mut self, n: usize, over: Option<&Over>, spot: &Spot) -> Result<bool, IoError> {
        let Some(over) = over else { return Ok(false) };
        let (dir, name) = self.place(n, spot)?;
        if self.hosts[n].fs.child(dir, &name).is_none() {
            return Ok(false);
        }
        let (_, _, ino) = self.standing(n, spot, over.inode)?;
        self.expected(n, ino, over.expect)?;
        self.sometimes.saw("renamed over another");
        Ok(true)
    }

    fn dirty(&self, n: usize, ino: Ino) -> bool {
        self.hosts[n].process.as_ref().and_then(|p| p.writers.get(&ino)).is_some_and(|w| w.dirty)
    }

    fn apply(&mut self, n: usize, apply: Apply, budget: &mut Budget) -> Result<Witness, Halt> {
        match apply {
            Apply::Make { inode: _, at, kind, attrs, xattrs, source, over } => {
                let (parent, name) = self.place(n, &at)?;
                if parent == WORK {
                    self.sometimes.saw("entry in limbo");
                }
                let (content, flushed) = self.bytes(n, &source)?;
                let replaces = self.replaces(n, over.as_ref(), &at)?;
                let (aside, at_once) = (Name::new(SCRATCH).ok_or(IoError::Changed)?, (parent, name.clone()));
                let (parent, name) = if replaces { (WORK, aside.clone()) } else { at_once.clone() };
                let op = FsOp::Make { parent, name, kind, attrs, xattrs, content, flushed };
                let ino = self.step_of(n, budget, op)?;
                if replaces {
                    let (new_parent, new_name) = at_once;
                    let op = FsOp::Rename { parent: WORK, name: aside, new_parent, new_name, exchange: false };
                    self.step_of(n, budget, op)?;
                }
                Ok(self.hosts[n].fs.witness(ino))
            }
            Apply::Link { inode, from, to } => {
                let (_, _, ino) = self.standing(n, &from, inode)?;
                let (parent, name) = self.place(n, &to)?;
                let before = self.hosts[n].fs.witness(ino);
                self.step_of(n, budget, FsOp::Link { ino, parent, name })?;
                Ok(self.after(n, inode, ino, before))
            }
            Apply::Move { inode, from, to, over } => {
                let (parent, name, ino) = self.standing(n, &from, inode)?;
                let (new_parent, new_name) = self.place(n, &to)?;
                if new_parent == WORK {
                    self.sometimes.saw("entry in limbo");
                }
                let replaces = self.replaces(n, over.as_ref(), &to)?;
                if !replaces && self.hosts[n].fs.child(new_parent, &new_name).is_some() {
                    return Err(IoError::Changed.into());
                }
                let op = FsOp::Rename { parent, name, new_parent, new_name, exchange: false };
                let before = self.hosts[n].fs.witness(ino);
                self.step_of(n, budget, op)?;
                Ok(self.after(n, inode, ino, before))
            }
            Apply::Remove { inode, at, dir: _, expect } => {
                let (parent, name, ino) = self.standing(n, &at, inode)?;
                self.expected(n, ino, expect)?;
                self.step_of(n, budget, FsOp::Remove { parent, name })?;
                Ok(self.hosts[n].fs.witness(ino))
            }
            Apply::Attr { inode, at, attrs, xattrs } => {
                let (_, _, ino) = self.standing(n, &at, inode)?;
                let before = self.hosts[n].fs.witness(ino);
                for attr in groups(attrs, xattrs) {
                    self.step_of(n, budget, FsOp::Attr { ino, attr })?;
                }
                Ok(self.after(n, inode, ino, before))
            }
            Apply::Install { inode, at, source, attrs, xattrs, expect, keep } => {
                let mut names = Vec::new();
                for spot in &at {
                    let (dir, name, ino) = self.standing(n, spot, inode)?;
                    if self.process(n).writers.get(&ino).is_some_and(|w| w.count > 0) {
                        return Err(IoError::Busy.into());
                    }
                    self.expected(n, ino, expect)?;
                    names.push((dir, name, ino));
                }
                let Some((_, _, old)) = names.first().cloned() else { return Err(IoError::Changed.into()) };
                let (content, flushed) = self.bytes(n, &source)?;
                if let Some(keep) = &keep {
                    let (parent, name) = self.place(n, keep)?;
                    self.step_of(n, budget, FsOp::Link { ino: old, parent, name })?;
                }
                let kind = ice_core::op::Kind::File;
                let mut new = None;
                for (i, (new_parent, new_name, _)) in names.into_iter().enumerate() {
                    let name = [SCRATCH, format!("{i}").as_bytes()].concat();
                    let name = Name::new(&name).ok_or(IoError::Changed)?;
                    let (parent, kind, xattrs) = (WORK, kind.clone(), xattrs.clone());
                    let op = match new {
                        None => FsOp::Make { parent, name: name.clone(), kind, attrs, xattrs, content, flushed },
                        Some(ino) => FsOp::Link { ino, parent, name: name.clone() },
                    };
                    new = Some(self.step_of(n, budget, op)?);
                    let op = FsOp::Rename { parent, name, new_parent, new_name, exchange: false };
                    self.step_of(n, budget, op)?;
                }
                Ok(new.map_or(Witness::default(), |ino| self.hosts[n].fs.witness(ino)))
            }
        }
    }

    /// The witness after a change that left the bytes alone: only good if the object was as it had been seen before it.
    fn after(&self, n: usize, inode: InodeId, ino: Ino, before: Witness) -> Witness {
        let known = self.hosts[n].process.as_ref().and_then(|p| p.node.view().tree().info(inode));
        let now = self.hosts[n].fs.witness(ino);
        if self.dirty(n, ino) || known.is_none_or(|k| k.witness != before) {
            return Witness { disk: now.disk, sum: 0 };
        }
        now
    }

    // ---- transfer -------------------------------------------------------------------------------------------------

    /// `None`: no answer comes.
    fn fetch(
        &mut self,
        n: usize,
        from: ReplicaId,
        wanted: (InodeId, Stamp),
        size: Content,
        digest: ContentDigest,
    ) -> Option<Result<(), IoError>> {
        if self.hosts[n].disk.full {
            return Some(Err(IoError::NoSpace));
        }
        let here = self.hosts[n].disk.staged.get(&wanted).copied();
        let content = match here.filter(|s| s.content.digest() == digest) {
            Some(s) => s.content,
            None => {
                let other = self.hosts.iter().position(|h| h.replica == from && h.power == Power::Up)?;
                if !self.net.reachable(n, other) {
                    return None;
                }
                match self.serve(other, wanted) {
                    Some(c) if c.digest() == digest && c.size == size.size => c,
                    Some(c) if c.is_rotten() => {
                        self.sometimes.saw("fetch failed");
                        return Some(Err(IoError::Mismatch));
                    }
                    _ => {
                        self.sometimes.saw("fetch failed");
                        return Some(Err(IoError::Gone));
                    }
                }
            }
        };
        self.sometimes.saw("fetch succeeded");
        self.hosts[n].disk.staged.insert(wanted, Staged { content, durable: true });
        Some(Ok(()))
    }

    /// The bytes of a version, if this node has them.
    fn serve(&self, n: usize, (inode, version): (InodeId, Stamp)) -> Option<Content> {
        let host = &self.hosts[n];
        if let Some(s) = host.disk.staged.get(&(inode, version)) {
            return Some(s.content);
        }
        let p = host.process.as_ref()?;
        let view = p.node.view();
        let tree = view.tree();
        let holder = match tree.info(inode) {
            Some(i) if i.held == version => inode,
            _ => tree.copy_of(inode, version)?,
        };
        let (dir, name) = self.place(n, tree.spots(holder).first()?).ok()?;
        let ino = host.fs.child(dir, &name)?;
        host.fs.get(ino).map(|i| i.content)
    }
}

/// All attributes, group by group.
fn groups(attrs: Attrs, xattrs: Vec<(Box<[u8]>, Option<Box<[u8]>>)>) -> impl Iterator<Item = Attr> {
    let Attrs { mode, uid, gid, atime, mtime } = attrs;
    let plain = [Attr::Owner { uid, gid }, Attr::Mode(mode), Attr::Times { atime, mtime }];
    let extended = xattrs
        .into_iter()
        .map(|(name, value)| Attr::Xattr { name, value: value.map(|v| serde_bytes::ByteBuf::from(v.into_vec())) });
    plain.into_iter().chain(extended)
}
