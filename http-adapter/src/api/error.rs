//! Answers that tell of a failure: a status code and `{"error": "code", "message": "words"}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use ice_core::action::Refused;
use rustix::io::Errno;
use serde_json::json;

/// A failure for the client.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Failure {
        Failure { status, code, message: message.into(), header: None }
    }

    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn internal(e: impl std::fmt::Display) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string())
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Failure {
        self.header = Some((name, value));
        self
    }

    pub(crate) fn method_not_allowed(allowed: &'static str) -> Failure {
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("allowed here: {allowed}"))
            .with_header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub(crate) fn unauthorized() -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid bearer token is needed")
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The status code.
    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = Json(json!({"error": self.code, "message": self.message}));
        let mut response = (self.status, body).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Failure {
        let (status, code) = match e {
            Errno::NOENT | Errno::NOTDIR => (StatusCode::NOT_FOUND, "not_found"),
            Errno::LOOP => (StatusCode::NOT_FOUND, "too_many_links"),
            Errno::ACCESS | Errno::PERM => (StatusCode::FORBIDDEN, "forbidden"),
            Errno::XDEV => (StatusCode::FORBIDDEN, "link_leads_out"),
            Errno::ISDIR => return Failure::bad_request("is_a_directory", "is a directory"),
            Errno::NAMETOOLONG | Errno::INVAL => (StatusCode::BAD_REQUEST, "invalid_path"),
            // As ever: a directory that is not empty is not removed, and the answer is 500.
            Errno::NOTEMPTY => (StatusCode::INTERNAL_SERVER_ERROR, "not_empty"),
            Errno::NOSPC | Errno::DQUOT => (StatusCode::INSUFFICIENT_STORAGE, "no_space"),
            Errno::FBIG => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Errno::AGAIN | Errno::BUSY | Errno::MFILE | Errno::NFILE | Errno::SHUTDOWN => {
                (StatusCode::SERVICE_UNAVAILABLE, "busy")
            }
            Errno::TIMEDOUT => (StatusCode::GATEWAY_TIMEOUT, "not_acknowledged"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        };
        Failure::new(status, code, std::io::Error::from(e).to_string())
    }
}

impl From<Refused> for Failure {
    fn from(why: Refused) -> Failure {
        let (status, code, message) = match why {
            Refused::NotAcknowledged => (
                StatusCode::GATEWAY_TIMEOUT,
                "not_acknowledged",
                "written here, but not acknowledged by enough nodes in time",
            ),
            Refused::LogBroken => (StatusCode::INSUFFICIENT_STORAGE, "log_broken", "the log cannot be written"),
            Refused::Limit => (StatusCode::INSUFFICIENT_STORAGE, "limit", "a limit would be exceeded"),
            Refused::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "too much work in flight: try again"),
            Refused::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping", "this node stops"),
            Refused::Interrupted => (StatusCode::SERVICE_UNAVAILABLE, "interrupted", "interrupted"),
            Refused::Unknown => (StatusCode::INTERNAL_SERVER_ERROR, "unknown", "the tree does not know the file"),
        };
        Failure::new(status, code, message)
    }
}
