//! Locks for adapters: what HTTP and the mount may ask, over whatever control plane there is.
//!
//! * **Named locks** are advisory locks on paths, with a holder that users see. A path has one form ([`LockPath`]). A lock stays
//!   until its holder gives it back, until somebody frees all locks of that holder, or until its time to live is over without
//!   the holder having asked for it again. The lock of a holder that is called like a node of the cluster ends with that node,
//!   too. Nobody else can give it back.
//! * **Write locks** are named locks which a node takes, under its own name, for the one program on it that has a file open for
//!   writing. Programs of one node queue for them like nodes do.
//! * **File locks** are those of `flock` and `fcntl`. They belong to a [`Session`], which a mount has for its lifetime.
//!
//! While the control plane is out of reach, requests are made again each [`Options::retry`] for [`Options::timeout`]; what has to be
//! given back is given back whenever that is possible, in the background. All futures must be polled by tasks of the runtime.

mod files;
mod named;
mod path;
mod service;
mod turns;

pub use crate::control::{Refused, Result};
pub use files::{Conflict, FileLock, Session};
pub use ice_core::kv::lock::files::Kind;
pub use ice_core::kv::lock::{Grant, Mode, Span};
pub use path::LockPath;
pub use service::{LockService, Options};

use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// An answer to come. Dropping it gives up what was asked for.
pub type Answer<T> = BoxFuture<'static, Result<T>>;

/// A request for a named lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Which.
    pub path: LockPath,
    /// For whom. 1 to [`ice_core::limits::LOCK_NAME_MAX_BYTES`] bytes. The same holder gets it again, and keeps its `since`.
    pub holder: String,
    /// In seconds: it ends by itself when the holder has not asked again for so long.
    pub ttl_s: Option<u64>,
    /// How long to wait in the queue of those who want it.
    pub patience: Duration,
}

/// A named lock that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub path: LockPath,
    /// Who has it.
    pub holder: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Fencing token: higher than that of any lock that was granted before.
    pub token: u64,
    /// In seconds; `None` if it does not end by itself.
    pub ttl_s: Option<u64>,
    /// How many wait for it.
    pub waiting: usize,
}

/// A write lock. Given back when it is dropped.
pub struct WriteLock(#[allow(dead_code, reason = "dropped with this")] Box<dyn Send + Sync>);

impl std::fmt::Debug for WriteLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriteLock")
    }
}

/// The locks of the cluster, as a node's adapters see them. Errors are those of [`Refused`].
pub trait Locks: Send + Sync + 'static {
    /// Takes a named lock. `Store(Error::Locked)`: somebody else has it, also after all patience.
    fn acquire(&self, ask: Ask) -> Answer<Grant>;
    /// Gives one back. `false`: nobody had it. `Store(Error::Locked)`: somebody else has it.
    fn release(&self, path: LockPath, holder: String) -> Answer<bool>;
    /// Gives back all named locks of a holder, and ends its waiting; how many locks it had.
    fn release_by_holder(&self, holder: String) -> Answer<u64>;
    /// At most `most` named locks by name, from `after` on (not included). The first portion holds every lock that was granted
    /// before it was asked for.
    fn list(&self, after: Option<LockPath>, most: usize) -> Answer<Vec<Listed>>;
    /// Who has a named lock, if this is somebody else than this node: as far as it is known here, without asking anybody.
    fn foreign_holder(&self, path: LockPath) -> Answer<Option<String>>;
    /// Becomes the only writer of a file, within [`Options::timeout`] and until `give_up` ends. Errors as [`Locks::acquire`].
    fn write(&self, path: LockPath, give_up: BoxFuture<'static, ()>) -> Answer<WriteLock>;
    /// A new session for file locks.
    fn session(&self) -> Arc<dyn Session>;
    /// How long to wait where nobody says so: `lock_timeout`.
    fn timeout(&self) -> Duration;
    /// Runs something in the background.
    fn spawn(&self, task: BoxFuture<'static, ()>);
    /// Ends after so long, or a little later.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()>;
}

/// What an adapter does with locks.
#[derive(Clone)]
pub struct Locking {
    /// The locks.
    pub locks: Arc<dyn Locks>,
    /// `lock_on_write`: a file has one writer at a time, in the whole cluster.
    pub on_write: bool,
    /// `allow_delete_while_locked`: also a file on whose path somebody else has a named lock can be deleted.
    pub delete_while_locked: bool,
}

impl std::fmt::Debug for Locking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Locking { on_write, delete_while_locked, .. } = self;
        let mut shown = f.debug_struct("Locking");
        shown.field("on_write", on_write).field("delete_while_locked", delete_while_locked).finish_non_exhaustive()
    }
}
