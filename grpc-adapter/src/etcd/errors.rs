//! etcd's error codes and words, by which its clients decide what to do next.

use super::convert::Malformed;
use ice_core::kv::Error;
use ice_host::control::Refused;
use tonic::{Code, Status};

pub(crate) fn store(e: &Error) -> Status {
    use Code::{
        AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, PermissionDenied,
        ResourceExhausted,
    };
    let (code, words) = match e {
        Error::Compacted { .. } => (OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        Error::FutureRevision { .. } => (OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
        Error::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
        Error::KeyTooLong | Error::TooLarge => (InvalidArgument, "etcdserver: request is too large"),
        Error::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
        Error::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Error::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Error::TooManyOperations => (InvalidArgument, "etcdserver: too many operations in txn request"),
        Error::DuplicateKey => (InvalidArgument, "etcdserver: duplicate key given in txn request"),
        Error::LeaseNotFound { .. } => (NotFound, "etcdserver: requested lease not found"),
        Error::LeaseExists { .. } => (FailedPrecondition, "etcdserver: lease already exists"),
        Error::LeaseTooLong => (OutOfRange, "etcdserver: too large lease TTL"),
        Error::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Error::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
        Error::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
        Error::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        // At these words, and not at those about an old revision, clients of all versions log in anew.
        Error::AuthOldRevision => return invalid_token(),
        Error::AuthNotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
        Error::AuthFailed => (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        Error::InvalidAuthManagement => (InvalidArgument, "etcdserver: invalid auth management"),
        Error::RootUserMissing => (FailedPrecondition, "etcdserver: root user does not exist"),
        Error::RootRoleMissing => (FailedPrecondition, "etcdserver: root user does not have root role"),
        Error::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
        Error::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        Error::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        Error::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
        Error::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        Error::RoleNotGranted => (FailedPrecondition, "etcdserver: role is not granted to the user"),
        Error::PermissionNotGranted => (FailedPrecondition, "etcdserver: permission is not granted to the role"),
        // Limits and locks of our own, for which etcd has no words.
        Error::TooManyLeases | Error::TooManyAuthRecords | Error::TooManyLocks | Error::TooManySnapshots => {
            return Status::new(ResourceExhausted, format!("etcdserver: {e}"));
        }
        Error::Locked => return Status::new(AlreadyExists, format!("etcdserver: {e}")),
        Error::NotLocked | Error::Deadlock => return Status::new(FailedPrecondition, format!("etcdserver: {e}")),
        Error::InvalidLock => return Status::new(InvalidArgument, format!("etcdserver: {e}")),
        Error::SnapshotNotFound => return Status::new(NotFound, format!("etcdserver: {e}")),
    };
    Status::new(code, words)
}

pub(crate) fn refused(e: Refused) -> Status {
    use Code::{FailedPrecondition, Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable};
    let (code, words) = match e {
        Refused::Store(e) => return store(&e),
        Refused::NoLeader => (Unavailable, "etcdserver: no leader"),
        Refused::LeaderChanged => (Unavailable, "etcdserver: leader changed"),
        Refused::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
        Refused::Timeout => (Unavailable, "etcdserver: request timed out"),
        Refused::Stopping => (Unavailable, "etcdserver: server stopped"),
        Refused::Busy => (ResourceExhausted, "etcdserver: too many requests"),
        Refused::TooLarge => (InvalidArgument, "etcdserver: request is too large"),
        Refused::Learner => (FailedPrecondition, "etcdserver: rpc not supported for learner"),
        Refused::MemberNotFound => (NotFound, "etcdserver: member not found"),
        Refused::MemberExists => (FailedPrecondition, "etcdserver: member ID already exist"),
        Refused::MemberUrlExists => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
        Refused::MemberUrlInvalid => (InvalidArgument, "etcdserver: given member URLs are invalid"),
        Refused::MemberNotLearner => (FailedPrecondition, "etcdserver: can only promote a learner member"),
        Refused::LearnerNotReady => {
            (FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
        }
        Refused::TooManyLearners => (FailedPrecondition, "etcdserver: too many learner members in cluster"),
        Refused::QuorumAtRisk => {
            (FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members")
        }
        Refused::BadTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
        Refused::Unsupported(what) => return Status::new(Code::Unimplemented, what),
        Refused::Failed(why) => return Status::new(Internal, why),
    };
    Status::new(code, words)
}

pub(crate) fn malformed(e: Malformed) -> Status {
    match e {
        Malformed::Sort => Status::invalid_argument("etcdserver: invalid sort option"),
        Malformed::Operation => Status::invalid_argument("etcdserver: key not found"),
        Malformed::Store(e) => store(&e),
    }
}

pub(crate) fn invalid_token() -> Status {
    Status::unauthenticated("etcdserver: invalid auth token")
}
