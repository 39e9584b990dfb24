//! What a request to the store may be answered instead of what it asked for.

use super::lease::LeaseId;
use core::fmt;
use serde::{Deserialize, Serialize};

/// A refusal. Each has exactly one counterpart among etcd's errors, so that an adapter maps it without looking at anything
/// else; the numbers of gRPC codes are the adapter's business.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Error {
    /// The revision asked for was compacted; `compacted` is the oldest one that can be read.
    Compacted {
        /// Oldest revision that is still whole.
        compacted: u64,
    },
    /// The revision asked for has not happened yet.
    FutureRevision {
        /// Newest revision.
        current: u64,
    },
    /// No key was given.
    EmptyKey,
    /// The key is longer than [`crate::limits::KV_KEY_MAX_BYTES`].
    KeyTooLong,
    /// Key, value and all other operations of the request together are too large.
    TooLarge,
    /// `ignore_value` or `ignore_lease` of a key that is not there.
    KeyNotFound,
    /// `ignore_value` together with a value.
    ValueProvided,
    /// `ignore_lease` together with a lease.
    LeaseProvided,
    /// A transaction has too many operations or is nested too deeply.
    TooManyOperations,
    /// A transaction changes a key twice.
    DuplicateKey,
    /// The lease is not there (any more).
    LeaseNotFound {
        /// Which.
        id: LeaseId,
    },
    /// The lease is there already.
    LeaseExists {
        /// Which.
        id: LeaseId,
    },
    /// A lease may not last that long.
    LeaseTooLong,
    /// There are as many leases as there may be.
    TooManyLeases,
    /// The space quota is used up; only deletions and compaction are possible until the alarm is disarmed.
    NoSpace,
    /// Copies of the store were found to differ: nothing is written until an operator has decided.
    Corrupt,
    /// The user may not do this.
    PermissionDenied,
    /// No user was named, but authentication is enabled.
    UserEmpty,
    /// The user's word is older than the last change of users and roles: authenticate again.
    AuthOldRevision,
    /// Authentication is not enabled.
    AuthNotEnabled,
    /// Name or password are wrong.
    AuthFailed,
    /// Would make the store unmanageable (removing root, an empty range of keys).
    InvalidAuthManagement,
    /// Authentication needs a user `root` first.
    RootUserMissing,
    /// The user `root` needs the role `root` first.
    RootRoleMissing,
    /// There is such a user.
    UserExists,
    /// There is no such user.
    UserNotFound,
    /// A role needs a name.
    RoleEmpty,
    /// There is such a role.
    RoleExists,
    /// There is no such role.
    RoleNotFound,
    /// The user does not have the role.
    RoleNotGranted,
    /// The role does not have the permission.
    PermissionNotGranted,
    /// Users, roles or permissions are as many as there may be.
    TooManyAuthRecords,
    /// Held by another owner.
    Locked,
    /// The owner does not hold it.
    NotLocked,
    /// Waiting would never end: the holders wait, directly or not, for this owner (`EDEADLK`).
    Deadlock,
    /// Locks or waiters are as many as there may be (`ENOLCK`).
    TooManyLocks,
    /// Not a range of bytes, or a name that is too long.
    InvalidLock,
    /// There is no such snapshot record.
    SnapshotNotFound,
    /// Snapshot records are as many as there may be, or one is too large.
    TooManySnapshots,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Error::Compacted { compacted } => return write!(f, "revision was compacted, the oldest is {compacted}"),
            Error::FutureRevision { current } => {
                return write!(f, "revision is in the future, the newest is {current}");
            }
            Error::LeaseNotFound { id } => return write!(f, "there is no lease {id}"),
            Error::LeaseExists { id } => return write!(f, "lease {id} exists already"),
            Error::EmptyKey => "no key was given",
            Error::KeyTooLong => "the key is too long",
            Error::TooLarge => "the request is too large",
            Error::KeyNotFound => "the key is not there",
            Error::ValueProvided => "a value was given that is to be ignored",
            Error::LeaseProvided => "a lease was given that is to be ignored",
            Error::TooManyOperations => "too many operations in a transaction",
            Error::DuplicateKey => "a transaction changes a key twice",
            Error::LeaseTooLong => "a lease may not last that long",
            Error::TooManyLeases => "too many leases",
            Error::NoSpace => "the space quota is used up",
            Error::Corrupt => "copies of the store differ",
            Error::PermissionDenied => "permission denied",
            Error::UserEmpty => "no user was named",
            Error::AuthOldRevision => "users or roles changed: authenticate again",
            Error::AuthNotEnabled => "authentication is not enabled",
            Error::AuthFailed => "wrong user name or password",
            Error::InvalidAuthManagement => "not a valid change of users or roles",
            Error::RootUserMissing => "there is no user root",
            Error::RootRoleMissing => "user root does not have the role root",
            Error::UserExists => "the user exists already",
            Error::UserNotFound => "there is no such user",
            Error::RoleEmpty => "a role needs a name",
            Error::RoleExists => "the role exists already",
            Error::RoleNotFound => "there is no such role",
            Error::RoleNotGranted => "the user does not have the role",
            Error::PermissionNotGranted => "the role does not have the permission",
            Error::TooManyAuthRecords => "too many users, roles or permissions",
            Error::Locked => "held by another owner",
            Error::NotLocked => "not held by this owner",
            Error::Deadlock => "waiting would never end",
            Error::TooManyLocks => "too many locks",
            Error::InvalidLock => "not a valid lock",
            Error::SnapshotNotFound => "there is no such snapshot",
            Error::TooManySnapshots => "too many snapshots",
        };
        f.write_str(words)
    }
}

impl core::error::Error for Error {}
