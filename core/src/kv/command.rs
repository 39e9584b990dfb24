//! What the log says to the store.
//!
//! A command carries everything that replicas need in order to do the same: ids and times are stamped into it by whoever
//! proposes it. [`Command::check`] is what an adapter asks before it proposes, and what the store asks once more.

use super::error::Error;
use super::keys::KeyRange;
use super::lease::LeaseId;
use super::lock::LockAction;
use super::txn::Txn;
use crate::limits;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What one entry of the log holds: commands that were proposed together. Each is applied for itself, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// At most [`limits::KV_BATCH_MAX_COMMANDS`].
    #[serde(deserialize_with = "super::bounded::vec::<_, _, { limits::KV_BATCH_MAX_COMMANDS }>")]
    pub commands: Vec<Command>,
}

/// One change of the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// On whose behalf.
    pub by: By,
    /// What is to be done.
    pub action: Action,
}

/// On whose behalf a command is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum By {
    /// The cluster's own: expiry of leases, alarms, compaction by schedule, file-system locks. Never refused for lack of
    /// permission. An adapter must not let a client choose it.
    Node,
    /// Somebody who did not say who he is.
    Nobody,
    /// An authenticated user.
    User {
        /// His name.
        name: String,
        /// The revision of users and roles ([`super::auth::Auth::revision`]) at which he was authenticated.
        revision: u64,
    },
}

/// Kinds of commands. Variants are appended only: the log outlives the program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Writes a key.
    Put(Put),
    /// Deletes keys.
    Delete(Delete),
    /// Several operations at once, depending on what is there.
    Txn(Txn),
    /// Forgets what was before `revision` and is not needed to read at it.
    Compact {
        /// Oldest revision that stays whole.
        revision: u64,
    },
    /// Makes a lease.
    LeaseGrant {
        /// Chosen by the client, or by the proposer where the client gave 0.
        id: LeaseId,
        /// How long it lasts without a sign of life, in seconds. The proposer has raised it to the shortest time allowed.
        ttl_s: u64,
    },
    /// Ends a lease: keys and locks under it go.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// Ends leases whose time is over. Those that are gone already are passed over.
    LeaseExpire {
        /// At most [`limits::LEASE_EXPIRE_PER_COMMAND_MAX`].
        ids: Vec<LeaseId>,
    },
    /// Remembers how much of their time leases have left, so that a new leader does not start from the full time. Zero means
    /// the full time again.
    LeaseCheckpoint {
        /// Lease and seconds; at most [`limits::LEASE_CHECKPOINTS_PER_COMMAND_MAX`].
        remaining: Vec<(LeaseId, u64)>,
    },
    /// Raises or disarms an alarm.
    Alarm {
        /// Which.
        kind: AlarmKind,
        /// Of which member; 0 with `raise: false` disarms it of all.
        member: u64,
        /// Raised, or disarmed.
        raise: bool,
    },
    /// Users and roles.
    Auth(AuthAction),
    /// Locks.
    Lock(LockAction),
    /// Remembers a snapshot, or changes what is remembered of it.
    SnapshotPut(SnapshotRecord),
    /// Forgets a snapshot.
    SnapshotDelete {
        /// Which.
        id: String,
    },
    /// A secret that all members share, drawn by whoever needs it first; later ones are passed over. No request of a client reads it.
    Secret([u8; 32]),
}

/// Writes a key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Put {
    /// 1 to [`limits::KV_KEY_MAX_BYTES`] bytes.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// The new value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The key goes when this lease ends; 0 is none.
    pub lease: LeaseId,
    /// Answer with what was there before.
    pub prev_kv: bool,
    /// Keep the value, of a key that must be there.
    pub ignore_value: bool,
    /// Keep the lease, of a key that must be there.
    pub ignore_lease: bool,
}

/// Deletes keys.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Delete {
    /// The first key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// See [`KeyRange::new`].
    #[serde(with = "serde_bytes")]
    pub end: Vec<u8>,
    /// Answer with what was there before.
    pub prev_kv: bool,
}

/// Something an operator has to see to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum AlarmKind {
    /// A member's space quota is used up. While it stands nothing is written.
    NoSpace,
    /// A member's copy of the store differs. While it stands nothing is changed at all.
    Corrupt,
}

/// Changes of users and roles.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AuthAction {
    /// From now on every request needs a user.
    Enable,
    /// From now on none does.
    Disable,
    /// The password's hash is opaque here; `None` for users who cannot log in by password (certificates).
    UserAdd {
        name: String,
        password_hash: Option<String>,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        password_hash: Option<String>,
    },
    UserGrantRole {
        name: String,
        role: String,
    },
    UserRevokeRole {
        name: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    RoleGrantPermission {
        name: String,
        permission: Permission,
    },
    RoleRevokePermission {
        name: String,
        key: serde_bytes::ByteBuf,
        end: serde_bytes::ByteBuf,
    },
}

/// What a role may do with a range of keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Permission {
    /// May read.
    pub read: bool,
    /// May write and delete.
    pub write: bool,
    /// The first key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// See [`KeyRange::new`].
    #[serde(with = "serde_bytes")]
    pub end: Vec<u8>,
}

/// What is remembered of a snapshot; its bytes are files of the nodes that hold them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Unique.
    pub id: String,
    /// As the user called it.
    pub name: String,
    /// The store's revision in it.
    pub revision: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Of the file; opaque here.
    pub checksum: String,
    /// Seconds since 1970, stamped by the proposer.
    pub created_s: u64,
    /// Members that hold it.
    pub holders: Vec<u64>,
    /// Whatever the user wants to be remembered.
    pub metadata: Vec<(String, String)>,
}

impl SnapshotRecord {
    /// Bytes of all texts in it.
    pub(super) fn text_bytes(&self) -> usize {
        let pairs: usize = self.metadata.iter().map(|(k, v)| k.len() + v.len() + 16).sum();
        self.id.len() + self.name.len() + self.checksum.len() + self.holders.len() * 8 + pairs
    }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Error> {
    match key.len() {
        0 => Err(Error::EmptyKey),
        n if n > limits::KV_KEY_MAX_BYTES => Err(Error::KeyTooLong),
        _ => Ok(()),
    }
}

impl Put {
    /// Rules that need no store.
    pub fn check(&self) -> Result<(), Error> {
        check_key(&self.key)?;
        if self.ignore_value && !self.value.is_empty() {
            return Err(Error::ValueProvided);
        }
        if self.ignore_lease && self.lease.0 != 0 {
            return Err(Error::LeaseProvided);
        }
        if self.key.len() + self.value.len() > limits::KV_REQUEST_MAX_BYTES {
            return Err(Error::TooLarge);
        }
        Ok(())
    }
}

impl Delete {
    /// The keys meant.
    pub fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.end)
    }
}

impl Command {
    /// On the cluster's own behalf.
    pub fn node(action: Action) -> Command {
        Command { by: By::Node, action }
    }

    /// Rules that need no store: everything that a client can do wrong by itself. The store asks them again, since what comes
    /// out of the log may have been proposed by another version.
    pub fn check(&self) -> Result<(), Error> {
        match &self.action {
            Action::Put(p) => p.check(),
            Action::Delete(d) => check_key(&d.key),
            Action::Txn(t) => t.check(),
            Action::LeaseExpire { ids } if ids.len() > limits::LEASE_EXPIRE_PER_COMMAND_MAX => Err(Error::TooLarge),
            Action::LeaseCheckpoint { remaining } if remaining.len() > limits::LEASE_CHECKPOINTS_PER_COMMAND_MAX => {
                Err(Error::TooLarge)
            }
            Action::Lock(l) => l.check(),
            _ => Ok(()),
        }
    }

    /// Whether the space quota forbids it while the alarm stands.
    pub fn needs_space(&self) -> bool {
        match &self.action {
            Action::Put(_) | Action::LeaseGrant { .. } => true,
            Action::Txn(t) => t.writes_values(),
            _ => false,
        }
    }

    /// Bytes that it may add to the store, from above; for the quota.
    pub fn cost_bytes(&self) -> u64 {
        match &self.action {
            Action::Put(p) => super::history::cost(p.key.len(), p.value.len()),
            Action::Txn(t) => t.cost_bytes(),
            _ => 0,
        }
    }
}

impl Entry {
    /// Encodes it for the log.
    pub fn encode(&self) -> Vec<u8> {
        crate::wire::encode(self)
    }

    /// Reads what [`Entry::encode`] wrote. Any bytes may be given: what they cost is in proportion to their number.
    pub fn decode(bytes: &[u8]) -> Result<Entry, crate::wire::WireError> {
        crate::wire::decode(bytes)
    }
}
