//! Locks, granted by the log.
//!
//! Two kinds, and a third that needs nothing of its own:
//!
//! * **Named locks** ([`named`]): exclusive, by name, with a holder whom users see, the time since when, and optionally a lease
//!   that ends them. Whoever waits is served in the order of asking. What `icectl lock` uses.
//! * **File locks** ([`files`]): shared and exclusive ranges of bytes with the rules of POSIX (a newer lock of the same owner
//!   replaces the older where they overlap: upgrade, downgrade, split, merge), served in the order of asking, so that nobody
//!   starves; a wait that could never end is refused. What `flock` and `fcntl` on the mount use, across nodes.
//! * etcd's **Lock and Election services** are keys under leases and need no table here: Lock puts `prefix/<lease>` in a
//!   transaction that creates it (`create revision == 0`) and waits, by a watch, until no key with that prefix has a lower create
//!   revision; its fencing token is that create revision. Election does the same and keeps the leader's proclamation as the
//!   value. Resigning or losing the lease deletes the key.
//!
//! Every grant has a **fencing token**: higher than that of any grant before it in the whole store. Storage that remembers the
//! highest token it has seen refuses writes of a holder that lost its lock without noticing.
//!
//! A lock goes when its owner releases it, when its lease ends (named), when the owner's session ends (the process died), or
//! when the owner's node is declared down. Whatever the reason, those who wait are served in the same command, and told by
//! effects.

pub mod files;
pub mod named;
mod table;

use super::Effect;
use super::error::Error;
use super::lease::LeaseId;
use super::rows::Rows;
use crate::ids::ReplicaId;
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
pub use files::FileKey;
pub use named::NamedLock;
use serde::{Deserialize, Serialize};
pub use table::{Held, Mode, Span};

/// Names a request that may have to wait. Chosen by the proposer, who never uses one twice, across its restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct WaitId {
    /// The node that asks.
    pub replica: ReplicaId,
    /// Its number for it.
    pub number: u64,
}

/// Who owns a file lock. The same owner's locks never conflict.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Its node.
    pub replica: ReplicaId,
    /// What ends as a whole: a mount, or a process.
    pub session: u64,
    /// The kernel's lock owner within the session.
    pub id: u64,
}

/// What can be done with locks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockAction {
    /// Takes a named lock. The same holder gets it again and keeps `since`.
    Acquire(named::Acquire),
    /// Gives a named lock back.
    Release {
        /// Its name.
        name: serde_bytes::ByteBuf,
        /// Who holds it.
        holder: String,
        /// Only this grant of it; 0 is whichever.
        token: u64,
    },
    /// Gives back all named locks of a holder, and takes back what it waits for.
    ReleaseHolder {
        /// Who holds them.
        holder: String,
    },
    /// Takes a range of a file.
    Lock(files::Lock),
    /// Gives a range of a file back.
    Unlock {
        /// The file.
        file: FileKey,
        /// Whose.
        owner: Owner,
        /// Which bytes.
        span: Span,
    },
    /// Somebody does not want to wait any more. Answered with whether it was still waiting.
    Cancel {
        /// Who.
        wait: WaitId,
    },
    /// A process died, or a mount ended: all its file locks and waits go.
    EndSession {
        /// Its node.
        replica: ReplicaId,
        /// Which session.
        session: u64,
    },
    /// A node was declared down, or has started anew: all its locks and waits go.
    EndReplica {
        /// Which.
        replica: ReplicaId,
    },
}

impl LockAction {
    /// What gives a lock back that was granted to somebody who does not wait any more. `None`: there is nothing to give back, for
    /// the holder had the lock before, or this is no request for one.
    pub fn give_back(&self, grant: &Grant) -> Option<LockAction> {
        match self {
            // A holder who asks again keeps the time since when he has it.
            LockAction::Acquire(a) if a.at_ms == grant.since_ms => {
                Some(LockAction::Release { name: a.name.clone().into(), holder: a.holder.clone(), token: grant.token })
            }
            LockAction::Lock(l) => Some(LockAction::Unlock { file: l.file.clone(), owner: l.owner, span: l.span }),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let text = |holder: &str| holder.is_empty() || holder.len() > limits::LOCK_NAME_MAX_BYTES;
        let bad = match self {
            LockAction::Acquire(a) => {
                text(&a.holder) || a.name.is_empty() || a.name.len() > limits::LOCK_NAME_MAX_BYTES
            }
            LockAction::Lock(l) => l.span.first > l.span.last || !l.file.is_valid(),
            LockAction::Unlock { span, file, .. } => span.first > span.last || !file.is_valid(),
            LockAction::ReleaseHolder { holder } => text(holder),
            _ => false,
        };
        if bad { Err(Error::InvalidLock) } else { Ok(()) }
    }
}

/// What a lock command is answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockAnswer {
    /// It is held now.
    Granted(Grant),
    /// It will be granted later, or refused: an effect with the request's [`WaitId`] says so.
    Waiting,
    /// Given back; how many locks went.
    Released {
        /// Named locks, or files on which something was held.
        count: u64,
    },
    /// Whether the wait was still there.
    Cancelled {
        /// If not, it was granted before, or never there.
        found: bool,
    },
}

/// A grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// Fencing token.
    pub token: u64,
    /// Since when the holder has it, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What a wait waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Goal {
    Named(Box<[u8]>),
    File(FileKey),
}

/// All locks.
#[derive(Default, Serialize, Deserialize)]
pub struct Locks {
    pub(super) named: BTreeMap<Box<[u8]>, NamedLock>,
    pub(super) files: BTreeMap<FileKey, table::FileLocks>,
    waits: BTreeMap<WaitId, Goal>,
    /// Files on which an owner holds something, or waits.
    owned: BTreeMap<Owner, BTreeSet<FileKey>>,
    /// What an owner waits for.
    owner_waits: BTreeMap<Owner, BTreeSet<WaitId>>,
    /// Ranges held, in all files.
    ranges: usize,
}

/// What the parts of a lock command share.
pub(super) struct Scene<'a> {
    /// The last fencing token given.
    pub(super) fence: &'a mut u64,
    pub(super) rows: &'a mut Rows,
    pub(super) effects: &'a mut Vec<Effect>,
    /// Planted bug: who waits is served twice.
    pub(super) double_grant: bool,
}

impl Scene<'_> {
    fn token(&mut self) -> u64 {
        *self.fence += 1;
        *self.fence
    }
}

impl Locks {
    /// Locks of all kinds that are held or waited for.
    fn full(&self) -> bool {
        self.named.len() + self.ranges + self.waits.len() >= limits::LOCKS_MAX
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// This request waits.
    pub fn is_waiting(&self, wait: WaitId) -> bool {
        self.waits.contains_key(&wait)
    }

    /// A node holds or waits for something.
    pub fn any_of(&self, replica: ReplicaId) -> bool {
        let owner = |n| Owner { replica, session: n, id: n };
        self.owned.range(owner(0)..=owner(u64::MAX)).next().is_some()
            || self.waits.keys().any(|w| w.replica == replica)
            || self.named.values().any(|l| l.replica == replica)
    }

    /// Whoever asks this has it already: with which grant.
    pub fn held_by(&self, action: &LockAction) -> Option<Grant> {
        match action {
            LockAction::Acquire(a) => {
                let lock = self.get(&a.name).filter(|l| l.holder == a.holder && l.replica == a.replica)?;
                Some(Grant { token: lock.token, since_ms: lock.since_ms })
            }
            LockAction::Lock(l) => {
                let of = |h: &&Held| {
                    h.owner == l.owner && h.mode >= l.mode && h.span.first <= l.span.first && h.span.last >= l.span.last
                };
                let held = self.file(&l.file).iter().find(of)?;
                Some(Grant { token: held.token, since_ms: held.since_ms })
            }
            _ => None,
        }
    }

    /// Named locks and ranges of files that are held.
    pub fn held(&self) -> usize {
        self.named.len() + self.ranges
    }

    pub(super) fn apply(&mut self, action: &LockAction, scene: &mut Scene<'_>) -> Result<LockAnswer, Error> {
        match action {
            LockAction::Acquire(a) => self.acquire(a, scene),
            LockAction::Release { name, holder, token } => self.release(name, holder, *token, scene),
            LockAction::ReleaseHolder { holder } => Ok(self.release_where(|h| h == holder, |_| false, scene)),
            LockAction::Lock(l) => self.lock(l, scene),
            LockAction::Unlock { file, owner, span } => Ok(self.unlock(file, *owner, *span, scene)),
            LockAction::Cancel { wait } => Ok(LockAnswer::Cancelled { found: self.cancel(*wait, scene) }),
            LockAction::EndSession { replica, session } => {
                let owner = |id| Owner { replica: *replica, session: *session, id };
                Ok(LockAnswer::Released { count: self.end_owners(owner(0), owner(u64::MAX), scene) })
            }
            LockAction::EndReplica { replica } => {
                let owner = |n| Owner { replica: *replica, session: n, id: n };
                let files = self.end_owners(owner(0), owner(u64::MAX), scene);
                let LockAnswer::Released { count } = self.release_where(|_| false, |r| r == *replica, scene) else {
                    return Ok(LockAnswer::Released { count: files });
                };
                Ok(LockAnswer::Released { count: files + count })
            }
        }
    }

    fn cancel(&mut self, wait: WaitId, scene: &mut Scene<'_>) -> bool {
        match self.waits.remove(&wait) {
            None => false,
            Some(Goal::Named(name)) => self.cancel_named(&name, wait, scene),
            Some(Goal::File(file)) => self.cancel_file(&file, wait, scene),
        }
    }

    /// A lease ended: what was held or waited for under it.
    pub(super) fn lease_ended(
        &mut self,
        id: LeaseId,
        names: BTreeSet<Box<[u8]>>,
        fence: &mut u64,
        rows: &mut Rows,
        effects: &mut Vec<Effect>,
    ) {
        let mut scene = Scene { fence, rows, effects, double_grant: false };
        for name in names {
            self.lease_left(&name, id, &mut scene);
        }
    }
}
