//! Everything but files: health, identity, members, counters, the index.

use super::error::Failure;
use super::path::{dir_param, text_param};
use super::{App, Shared};
use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::channel::mpsc;
use futures::executor::block_on;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use ice_core::event::Admin;
use ice_host::transport::url::BaseUrl;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a list that are gathered before they are sent.
const ARRAY_PIECE_BYTES: usize = 64 * 1024;
/// Pieces of a list that wait for a slow client.
const ARRAY_PIECES: usize = 2;

pub(super) async fn health() -> &'static str {
    "ok"
}

async fn is_ready(app: Shared) -> bool {
    let cluster = app.cluster.clone();
    app.rt.blocking(move || cluster.ready()).await.unwrap_or(false)
}

pub(super) async fn ready(State(app): State<Shared>) -> (StatusCode, &'static str) {
    if is_ready(app).await { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") }
}

pub(super) async fn ready_json(State(app): State<Shared>) -> (StatusCode, Json<Value>) {
    let ready = is_ready(app).await;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready })))
}

/// Nanoseconds, despite the name.
pub(super) async fn time() -> Json<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    Json(json!({ "unix": u64::try_from(now).unwrap_or(u64::MAX) }))
}

pub(super) async fn version() -> &'static str {
    ice_host::VERSION
}

pub(super) async fn node(State(app): State<Shared>) -> Json<Value> {
    Json(json!({ "id": app.cluster.node_id() }))
}

pub(super) async fn status(State(app): State<Shared>) -> Result<Json<Value>, Failure> {
    let cluster = app.cluster.clone();
    let mut status = app.rt.blocking(move || cluster.status()).await.map_err(Failure::internal)?;
    if let Some(peers) = status.get_mut("peers").and_then(Value::as_array_mut) {
        let versions = app.net.versions();
        for peer in peers {
            let version = peer["replica"].as_str().and_then(|replica| versions.get(replica));
            peer["version"] = version.cloned().into();
        }
    }
    if status.is_object() {
        status["notes"] = json!(app.config.notes);
    }
    Ok(Json(status))
}

pub(super) async fn conflicts(State(app): State<Shared>) -> Result<Json<Value>, Failure> {
    let cluster = app.cluster.clone();
    app.rt.blocking(move || cluster.conflicts()).await.map(Json).map_err(Failure::internal)
}

pub(super) async fn peers(State(app): State<Shared>) -> Result<Json<Vec<String>>, Failure> {
    let cluster = app.cluster.clone();
    app.rt.blocking(move || cluster.peers()).await.map(Json).map_err(Failure::internal)
}

fn url_param(query: Option<&str>) -> Result<String, Failure> {
    let url = text_param(query, "url").ok_or_else(|| Failure::bad_request("missing_url", "missing url"))?;
    let url = BaseUrl::parse(&url).map_err(|e| Failure::bad_request("invalid_url", e.to_string()))?;
    Ok(url.to_string())
}

pub(super) async fn register(
    State(app): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<String>>, Failure> {
    let url = url_param(query.as_deref())?;
    if let Some(why) = BaseUrl::parse(&url).ok().and_then(|url| app.net.refuses(&url)) {
        return Err(Failure::bad_request("clear_text", why));
    }
    let cluster = app.cluster.clone();
    let peers = app.rt.blocking(move || {
        cluster.admin(Admin::AddPeer { url });
        cluster.peers()
    });
    peers.await.map(Json).map_err(Failure::internal)
}

pub(super) async fn unregister(State(app): State<Shared>, RawQuery(query): RawQuery) -> Result<StatusCode, Failure> {
    let url = url_param(query.as_deref())?;
    let cluster = app.cluster.clone();
    app.rt.blocking(move || cluster.admin(Admin::RemovePeer { url })).await.map_err(Failure::internal)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn stats(State(app): State<Shared>) -> Json<Value> {
    Json(app.net.counters().to_json())
}

pub(super) async fn stats_reset(State(app): State<Shared>) -> StatusCode {
    app.net.counters().reset();
    StatusCode::NO_CONTENT
}

/// A name or path in JSON. What is not UTF-8 is shown as well as possible, with its bytes percent-encoded in `raw`.
pub(super) fn named(key: &str, bytes: &[u8], mut entry: Value) -> Value {
    entry[key] = String::from_utf8_lossy(bytes).into();
    if std::str::from_utf8(bytes).is_err() {
        entry["raw"] = percent_encode(bytes, NON_ALPHANUMERIC).to_string().into();
    }
    entry
}

/// All regular files of the volume; each with its digest, if that is known without reading it.
pub(super) async fn index(State(app): State<Shared>) -> Result<Response, Failure> {
    let files = app.files.clone();
    stream_array(&app, move |add| {
        files.walk(&mut |path, meta| {
            let mut line = json!({"size": meta.size, "mtime": meta.mtime_ns()});
            if !meta.etag.is_empty() {
                line["digest"] = meta.etag.as_str().into();
            }
            add(named("path", path, line))
        })
    })
    .await
}

/// What is in one directory: `path`, or without it the root.
pub(super) async fn list(State(app): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let dir = dir_param(query.as_deref())?;
    let files = app.files.clone();
    stream_array(&app, move |add| {
        files.list(dir.as_ref(), &mut |name, meta| {
            let kind = meta.kind.word();
            add(named("name", name, json!({"kind": kind, "size": meta.size, "mtime": meta.mtime_ns()})))
        })
    })
    .await
}

/// Streams a JSON array, in memory that does not depend on its length. `produce` hands its elements to the function that
/// it is given, until that says `false`.
async fn stream_array<P>(app: &App, produce: P) -> Result<Response, Failure>
where
    P: FnOnce(&mut dyn FnMut(Value) -> bool) -> Result<(), Errno> + Send + 'static,
{
    let (mut pieces, mut body) = mpsc::channel::<Result<Bytes, Errno>>(ARRAY_PIECES);
    let producing = app.rt.blocking(move || {
        let mut piece = vec![b'['];
        let mut first = true;
        let mut listening = true;
        let outcome = produce(&mut |element| {
            if !first {
                piece.push(b',');
            }
            first = false;
            piece.extend_from_slice(element.to_string().as_bytes());
            if piece.len() >= ARRAY_PIECE_BYTES {
                // A client that reads nothing loses its connection, and with it the receiver, after a while.
                listening = block_on(pieces.send(Ok(std::mem::take(&mut piece).into()))).is_ok();
            }
            listening
        });
        if listening {
            piece.push(b']');
            // If nobody listens any more, there is nobody to tell.
            let _ = block_on(pieces.send(outcome.map(|()| piece.into())));
        }
    });
    // It runs on; its results come through the channel.
    drop(producing);
    // The first piece decides the status: an error after it can only break the connection.
    let first = match body.next().await {
        Some(first) => first?,
        None => return Err(Failure::internal("the list ended without a word")),
    };
    let body = futures::stream::once(async move { Ok(first) }).chain(body).map(|piece| piece.map_err(io::Error::from));
    let mut response = Body::from_stream(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
