//! Why something was not done, in DeCube's words.

use http::StatusCode;
use ice_core::kv::Error;
use ice_host::control::Refused;

/// What a caller is told instead of what he wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) words: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, words: impl Into<String>) -> Problem {
        Problem { status, words: words.into() }
    }

    /// The caller's fault.
    pub(crate) fn invalid(words: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, words)
    }

    pub(crate) fn not_found(what: &str) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, format!("{what} not found"))
    }

    pub(crate) fn conflict(words: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, words)
    }

    pub(crate) fn internal(words: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, words)
    }

    /// It was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

impl From<Error> for Problem {
    fn from(e: Error) -> Problem {
        let status = match e {
            Error::Compacted { .. } => {
                return Problem::new(StatusCode::GONE, "The continuation token has expired: begin again");
            }
            Error::SnapshotNotFound => return Problem::not_found("Snapshot"),
            Error::LeaseNotFound { .. } => return Problem::not_found("Lease"),
            Error::NoSpace | Error::TooManySnapshots | Error::TooManyLeases => StatusCode::INSUFFICIENT_STORAGE,
            Error::TooLarge | Error::KeyTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Error::Corrupt => StatusCode::SERVICE_UNAVAILABLE,
            Error::PermissionDenied | Error::UserEmpty | Error::AuthOldRevision => StatusCode::FORBIDDEN,
            Error::LeaseTooLong | Error::FutureRevision { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, e.to_string())
    }
}

impl From<Refused> for Problem {
    fn from(e: Refused) -> Problem {
        let status = match e {
            Refused::Store(e) => return e.into(),
            Refused::NoLeader | Refused::LeaderChanged | Refused::NotLeader | Refused::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refused::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refused::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, e.to_string())
    }
}

impl From<Problem> for tonic::Status {
    fn from(p: Problem) -> tonic::Status {
        use tonic::Code;
        let code = match p.status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::CONFLICT => Code::AlreadyExists,
            StatusCode::PRECONDITION_FAILED => Code::FailedPrecondition,
            StatusCode::GONE => Code::OutOfRange,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE | StatusCode::PAYLOAD_TOO_LARGE => {
                Code::ResourceExhausted
            }
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
            _ => Code::Internal,
        };
        tonic::Status::new(code, p.words)
    }
}
