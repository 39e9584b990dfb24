//! Locks on files, across nodes.

use super::table::{FileLocks, Wait};
use super::{Goal, Grant, Held, LockAnswer, Locks, Mode, Owner, Scene, Span, WaitId};
use crate::ids::InodeId;
use crate::kv::Effect;
use crate::kv::error::Error;
use crate::kv::rows::{RowKey, Rows};
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What is locked. Kinds do not know of each other, as in Linux: `flock` does not stop `fcntl`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FileKey {
    /// Which kind of lock.
    pub kind: Kind,
    /// Which file.
    pub file: File,
}

/// Kinds of file locks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// `fcntl`: ranges, owned by a process.
    Posix,
    /// `flock`: the whole file, owned by an open file.
    Flock,
    /// Being the one writer, where a volume allows only one at a time.
    Write,
}

/// A file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum File {
    /// By what it is: survives renames.
    Inode(InodeId),
    /// By its canonical path.
    Path(#[serde(with = "serde_bytes")] Box<[u8]>),
}

impl FileKey {
    pub(super) fn is_valid(&self) -> bool {
        match &self.file {
            File::Inode(_) => true,
            File::Path(p) => !p.is_empty() && p.len() <= limits::LOCK_NAME_MAX_BYTES,
        }
    }
}

/// Takes a range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// The file.
    pub file: FileKey,
    /// For whom.
    pub owner: Owner,
    /// How.
    pub mode: Mode,
    /// Which bytes.
    pub span: Span,
    /// Now, in milliseconds since 1970.
    pub at_ms: u64,
    /// Wait for those who stand before it; otherwise that is an error.
    pub wait: Option<WaitId>,
    /// Refuse to wait if that would never end (`fcntl`; `flock` never asked for it).
    pub detect: bool,
}

impl Locks {
    /// Who holds what stands against such a lock: `F_GETLK`.
    pub fn test(&self, file: &FileKey, owner: Owner, mode: Mode, span: Span) -> Option<&Held> {
        self.files.get(file)?.holder_against(owner, mode, span)
    }

    /// What is held on a file.
    pub fn file(&self, file: &FileKey) -> &[Held] {
        self.files.get(file).map_or(&[], |f| &f.held)
    }

    /// All files on which something is held, from `after` on (not included).
    pub fn files_after<'a>(&'a self, after: Option<&'a FileKey>) -> impl Iterator<Item = (&'a FileKey, &'a [Held])> {
        use core::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.files.range((from, Unbounded)).map(|(k, f)| (k, &f.held[..]))
    }

    fn touch_file(&self, file: &FileKey, rows: &mut Rows) {
        rows.touch(RowKey::File(file.clone()), || self.files.get(file).map(crate::wire::encode));
    }

    pub(super) fn lock(&mut self, l: &Lock, scene: &mut Scene<'_>) -> Result<LockAnswer, Error> {
        if l.wait.is_some_and(|w| self.waits.contains_key(&w)) {
            // The log may say it twice.
            return Ok(LockAnswer::Waiting);
        }
        let none = FileLocks::default();
        let here = self.files.get(&l.file).unwrap_or(&none);
        let blockers = here.blockers(l.owner, l.mode, l.span, here.waiting.len());
        if self.full() || !here.has_room() {
            return Err(Error::TooManyLocks);
        }
        if blockers.is_empty() {
            self.touch_file(&l.file, scene.rows);
            let token = scene.token();
            self.set(&l.file, l.owner, l.span, Some((l.mode, token, l.at_ms)));
            // A downgrade may let others in.
            self.serve(&l.file, scene);
            return Ok(LockAnswer::Granted(Grant { token, since_ms: l.at_ms }));
        }
        let Some(id) = l.wait else { return Err(Error::Locked) };
        if here.waiting.len() >= limits::LOCK_WAITERS_MAX {
            return Err(Error::TooManyLocks);
        }
        if l.detect && self.closes_circle(l.owner, blockers) {
            return Err(Error::Deadlock);
        }
        self.touch_file(&l.file, scene.rows);
        let wait = Wait { id, owner: l.owner, mode: l.mode, span: l.span, since_ms: l.at_ms };
        self.files.entry(l.file.clone()).or_default().waiting.push_back(wait);
        self.waits.insert(id, Goal::File(l.file.clone()));
        self.owned.entry(l.owner).or_default().insert(l.file.clone());
        self.owner_waits.entry(l.owner).or_default().insert(id);
        Ok(LockAnswer::Waiting)
    }

    fn set(&mut self, file: &FileKey, owner: Owner, span: Span, held: Option<(Mode, u64, u64)>) {
        let f = self.files.entry(file.clone()).or_default();
        let before = f.held.len();
        f.set(owner, span, held);
        self.ranges = self.ranges + f.held.len() - before;
        self.tidy(file, owner);
    }

    /// Keeps the lists by owner true, and forgets a file on which nothing is left.
    fn tidy(&mut self, file: &FileKey, owner: Owner) {
        let Some(f) = self.files.get(file) else { return };
        if f.concerns(owner) {
            self.owned.entry(owner).or_default().insert(file.clone());
        } else if let Some(files) = self.owned.get_mut(&owner) {
            files.remove(file);
            if files.is_empty() {
                self.owned.remove(&owner);
            }
        }
        if f.is_empty() {
            self.files.remove(file);
        }
    }

    pub(super) fn unlock(&mut self, file: &FileKey, owner: Owner, span: Span, scene: &mut Scene<'_>) -> LockAnswer {
        let held = |l: &Locks| l.files.get(file).is_some_and(|f| f.held.iter().any(|h| h.owner == owner));
        // Giving back what one does not have is no error: POSIX says so.
        if !held(self) {
            return LockAnswer::Released { count: 0 };
        }
        self.touch_file(file, scene.rows);
        self.set(file, owner, span, None);
        self.serve(file, scene);
        LockAnswer::Released { count: 1 }
    }

    /// Grants whatever can be granted now, in the order of asking.
    fn serve(&mut self, file: &FileKey, scene: &mut Scene<'_>) {
        while let Some(f) = self.files.get_mut(file)
            && let Some(w) = f.next_grant().and_then(|n| f.waiting.remove(n))
        {
            let token = scene.token();
            self.forget_wait(w.owner, w.id);
            self.set(file, w.owner, w.span, Some((w.mode, token, w.since_ms)));
            let grant = Grant { token, since_ms: w.since_ms };
            scene.effects.push(Effect::LockGranted { wait: w.id, grant });
            if scene.double_grant
                && let Some(f) = self.files.get_mut(file)
                && let Some(second) = f.waiting.pop_front()
            {
                self.forget_wait(second.owner, second.id);
                scene.effects.push(Effect::LockGranted { wait: second.id, grant });
            }
        }
    }

    fn forget_wait(&mut self, owner: Owner, id: WaitId) {
        self.waits.remove(&id);
        if let Some(waits) = self.owner_waits.get_mut(&owner) {
            waits.remove(&id);
            if waits.is_empty() {
                self.owner_waits.remove(&owner);
            }
        }
    }

    pub(super) fn cancel_file(&mut self, file: &FileKey, id: WaitId, scene: &mut Scene<'_>) -> bool {
        self.touch_file(file, scene.rows);
        let Some(f) = self.files.get_mut(file) else { return false };
        let Some(n) = f.waiting.iter().position(|w| w.id == id) else { return false };
        let Some(w) = f.waiting.remove(n) else { return false };
        self.forget_wait(w.owner, id);
        self.tidy(file, w.owner);
        // Others may have stood behind it.
        self.serve(file, scene);
        true
    }

    /// Everything of these owners goes. Answers on how many files something was held.
    pub(super) fn end_owners(&mut self, from: Owner, to: Owner, scene: &mut Scene<'_>) -> u64 {
        let owners: Vec<(Owner, BTreeSet<FileKey>)> =
            self.owned.range(from..=to).map(|(o, f)| (*o, f.clone())).collect();
        // First all of them stop waiting: none of them is to be served by what another one gives back.
        for (owner, files) in &owners {
            for file in files {
                self.touch_file(file, scene.rows);
                let Some(f) = self.files.get_mut(file) else { continue };
                let mut gone = Vec::new();
                f.waiting.retain(|w| {
                    let stays = w.owner != *owner;
                    if !stays {
                        gone.push(w.id);
                    }
                    stays
                });
                for id in gone {
                    self.forget_wait(*owner, id);
                    scene.effects.push(Effect::LockRefused { wait: id, error: Error::NotLocked });
                }
            }
        }
        let mut count = 0;
        for (owner, files) in &owners {
            for file in files {
                let Some(f) = self.files.get(file) else { continue };
                count += u64::from(f.held.iter().any(|h| h.owner == *owner));
                self.set(file, *owner, Span::ALL, None);
            }
        }
        let files: BTreeSet<&FileKey> = owners.iter().flat_map(|(_, f)| f).collect();
        for file in files {
            self.serve(file, scene);
        }
        count
    }

    /// Whether somebody for whom `owner` would wait waits, directly or not, for `owner`. A search that takes more than
    /// [`limits::LOCK_DEADLOCK_STEPS_MAX`] is given up, and the wait allowed: it can be cancelled.
    fn closes_circle(&self, owner: Owner, blockers: BTreeSet<Owner>) -> bool {
        let mut seen = blockers.clone();
        let mut todo: Vec<Owner> = blockers.into_iter().collect();
        let mut steps = 0;
        while let Some(at) = todo.pop() {
            for id in self.owner_waits.get(&at).into_iter().flatten() {
                steps += 1;
                if steps > limits::LOCK_DEADLOCK_STEPS_MAX {
                    return false;
                }
                let Some(Goal::File(file)) = self.waits.get(id) else { continue };
                let Some(f) = self.files.get(file) else { continue };
                let Some(n) = f.waiting.iter().position(|w| w.id == *id) else { continue };
                let w = &f.waiting[n];
                for next in f.blockers(w.owner, w.mode, w.span, n) {
                    if next == owner {
                        return true;
                    }
                    if seen.insert(next) {
                        todo.push(next);
                    }
                }
            }
        }
        false
    }

    /// After the rows were read: the lists that follow from them.
    pub(in crate::kv) fn relist(&mut self) {
        let mut waits: Vec<(WaitId, Goal, Option<Owner>)> = Vec::new();
        for (name, lock) in &self.named {
            waits.extend(lock.queue.iter().map(|w| (w.wait, Goal::Named(name.clone()), None)));
        }
        self.ranges = 0;
        for (key, f) in &self.files {
            self.ranges += f.held.len();
            waits.extend(f.waiting.iter().map(|w| (w.id, Goal::File(key.clone()), Some(w.owner))));
            for owner in f.held.iter().map(|h| h.owner).chain(f.waiting.iter().map(|w| w.owner)) {
                self.owned.entry(owner).or_default().insert(key.clone());
            }
        }
        for (id, goal, owner) in waits {
            self.waits.insert(id, goal);
            if let Some(owner) = owner {
                self.owner_waits.entry(owner).or_default().insert(id);
            }
        }
    }
}
