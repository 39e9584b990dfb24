//! Which pages a browser lets call the API (Cross-Origin Resource Sharing).

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type, if-match");
const SHOWN: HeaderValue = HeaderValue::from_static("etag");
/// How long a browser may remember, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// What a browser is told of a request's origin, if it may call.
pub(crate) fn allowed(origins: &[String], request: &HeaderMap) -> Option<HeaderValue> {
    let origin = request.get(header::ORIGIN)?;
    if origins.iter().any(|o| o == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    origins.iter().any(|o| o.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

/// A browser's question before the request itself.
pub(crate) fn is_preflight(method: &Method, request: &HeaderMap) -> bool {
    method == Method::OPTIONS && request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to it.
pub(crate) fn preflight<B: Default>(allowed: Option<HeaderValue>) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if allowed.is_some() {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
    mark(response.headers_mut(), allowed);
    response
}

/// Marks an answer.
pub(crate) fn mark(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    const VARY: HeaderName = header::VARY;
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, SHOWN);
    }
}
