//! `/v1/lock` and what belongs to it: named locks.

use super::error::Failure;
use super::path::{param, text_param};
use super::{App, Shared};
use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ice_core::kv::Error;
use ice_core::limits::LOCK_NAME_MAX_BYTES;
use ice_host::duration::GoDuration;
use ice_host::locks::{Ask, Listed, LockPath, Locking, Locks, Refused};
use ice_host::time::rfc3339;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Locks in one portion of the list.
const PORTION: usize = 1000;
/// Longest `wait`.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Longest `ttl`.
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

const FENCING_TOKEN: HeaderName = HeaderName::from_static("fencing-token");
const LOCK_SINCE: HeaderName = HeaderName::from_static("lock-since");

/// A refusal of the control plane.
pub(super) fn refused(why: &Refused) -> Failure {
    let (status, code) = match why {
        Refused::Store(Error::Locked) => (StatusCode::CONFLICT, "locked"),
        Refused::Store(Error::TooManyLocks | Error::TooManyLeases | Error::NoSpace) => {
            (StatusCode::INSUFFICIENT_STORAGE, "limit")
        }
        Refused::Store(Error::InvalidLock | Error::LeaseTooLong) => (StatusCode::BAD_REQUEST, "invalid_lock"),
        // Released by somebody else, or over, before it was there.
        Refused::Store(Error::NotLocked | Error::LeaseNotFound { .. }) => (StatusCode::CONFLICT, "withdrawn"),
        Refused::Store(_) | Refused::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no_control_plane"),
    };
    match why {
        Refused::Store(Error::Locked) => Failure::new(status, code, "locked by another holder"),
        why => Failure::new(status, code, why.to_string()),
    }
}

fn locks(app: &App) -> Result<Arc<dyn Locks>, Failure> {
    let none = || {
        let why = "this node has no control plane: it has no locks for the whole cluster";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no_control_plane", why)
    };
    app.locking.as_ref().map(|l| l.locks.clone()).ok_or_else(none)
}

fn path_of(query: Option<&str>) -> Result<LockPath, Failure> {
    let path = param(query, "path").filter(|p| !p.is_empty());
    let path = path.ok_or_else(|| Failure::bad_request("missing_path", "missing path"))?;
    LockPath::parse(&path).ok_or_else(|| Failure::bad_request("invalid_path", "invalid path"))
}

fn holder_of(query: Option<&str>) -> Result<String, Failure> {
    let holder = text_param(query, "holder").ok_or_else(|| Failure::bad_request("missing_holder", "missing holder"))?;
    if holder.len() > LOCK_NAME_MAX_BYTES {
        return Err(Failure::bad_request(
            "invalid_holder",
            format!("a holder has at most {LOCK_NAME_MAX_BYTES} bytes"),
        ));
    }
    Ok(holder)
}

/// A length of time, if it is given.
fn span_of(query: Option<&str>, name: &'static str, most: Duration) -> Result<Option<Duration>, Failure> {
    let Some(text) = text_param(query, name) else { return Ok(None) };
    let invalid = |why: String| Failure::bad_request("invalid_duration", format!("{name}: {why}"));
    let span: GoDuration = text.parse().map_err(|e: ice_host::duration::DurationError| invalid(e.to_string()))?;
    if span < GoDuration::ZERO || span.std() > most {
        return Err(invalid(format!("{text} is not between 0 and {}", GoDuration::from_std(most))));
    }
    Ok(Some(span.std()))
}

pub(super) async fn lock(State(app): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let query = query.as_deref();
    let (path, holder) = (path_of(query)?, holder_of(query)?);
    let ttl = span_of(query, "ttl", TTL_MAX)?.filter(|ttl| !ttl.is_zero());
    let ttl_s = ttl.map(|ttl| ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
    let locks = locks(&app)?;
    let patience = match span_of(query, "wait", WAIT_MAX)? {
        // Named, but without a length.
        None if param(query, "wait").is_some() => locks.timeout(),
        wait => wait.unwrap_or_default(),
    };
    let grant = locks.acquire(Ask { path, holder, ttl_s, patience }).await.map_err(|e| refused(&e))?;
    let mut headers = HeaderMap::new();
    headers.insert(FENCING_TOKEN, HeaderValue::from(grant.token));
    headers.insert(LOCK_SINCE, HeaderValue::from_str(&rfc3339(grant.since_ms)).map_err(Failure::internal)?);
    Ok((StatusCode::NO_CONTENT, headers).into_response())
}

pub(super) async fn unlock(State(app): State<Shared>, RawQuery(query): RawQuery) -> Result<StatusCode, Failure> {
    let (path, holder) = (path_of(query.as_deref())?, holder_of(query.as_deref())?);
    locks(&app)?.release(path, holder).await.map_err(|e| refused(&e))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn release_by_holder(
    State(app): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Failure> {
    let holder = holder_of(query.as_deref())?;
    let released = locks(&app)?.release_by_holder(holder).await.map_err(|e| refused(&e))?;
    Ok(Json(json!({ "released": released })))
}

fn line(lock: &Listed) -> Value {
    let mut line = json!({
        "holder": lock.holder,
        "since": rfc3339(lock.since_ms),
        "token": lock.token,
        "waiting": lock.waiting,
    });
    if let Some(ttl_s) = lock.ttl_s {
        line["ttl"] = GoDuration::s(i64::try_from(ttl_s).unwrap_or(i64::MAX / 1_000_000_000)).to_string().into();
    }
    super::node::named("path", lock.path.as_bytes(), line)
}

fn text(portion: &[Listed], first: bool) -> Bytes {
    let mut text = String::new();
    for (n, lock) in portion.iter().enumerate() {
        if n > 0 || !first {
            text.push(',');
        }
        text.push_str(&line(lock).to_string());
    }
    text.into()
}

/// By path. In portions: memory does not depend on how many there are.
pub(super) async fn list(State(app): State<Shared>) -> Result<Response, Failure> {
    let locks = locks(&app)?;
    // The first portion decides the status: an error after it can only break the connection.
    let first = locks.list(None, PORTION).await.map_err(|e| refused(&e))?;
    let last =
        |portion: &[Listed]| (portion.len() == PORTION).then(|| portion.last().map(|l| l.path.clone())).flatten();
    let (head, from) = (text(&first, true), last(&first));
    let rest = stream::try_unfold(from, move |from| {
        let locks = locks.clone();
        async move {
            let Some(from) = from else { return Ok(None) };
            let portion = locks.list(Some(from), PORTION).await.map_err(|e| io::Error::other(e.to_string()))?;
            Ok(Some((text(&portion, false), last(&portion))))
        }
    });
    let around =
        |text: &'static str| stream::once(async move { Ok::<_, io::Error>(Bytes::from_static(text.as_bytes())) });
    let head = stream::once(async move { Ok(head) });
    let body = Body::from_stream(around("[").chain(head).chain(rest.into_stream()).chain(around("]")));
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Refuses the deletion of what somebody else has locked, where that is not allowed. What is known here decides.
pub(super) async fn deletable(locking: Option<&Locking>, path: &super::path::RelPath) -> Result<(), Failure> {
    let Some(locking) = locking.filter(|l| !l.delete_while_locked) else { return Ok(()) };
    let Some(path) = LockPath::below(path.names().iter().map(|n| n.as_bytes())) else { return Ok(()) };
    match locking.locks.foreign_holder(path).await.map_err(|e| refused(&e))? {
        Some(_) => Err(refused(&Refused::Store(Error::Locked))),
        None => Ok(()),
    }
}

/// The write lock for a new version of a file, where files have one writer at a time.
pub(super) async fn writing(
    locking: Option<&Locking>,
    path: &super::path::RelPath,
) -> Result<Option<ice_host::locks::WriteLock>, Failure> {
    let Some(locking) = locking.filter(|l| l.on_write) else { return Ok(None) };
    let Some(path) = LockPath::below(path.names().iter().map(|n| n.as_bytes())) else { return Ok(None) };
    let lock = locking.locks.write(path, Box::pin(futures::future::pending())).await;
    lock.map(Some).map_err(|e| refused(&e))
}
