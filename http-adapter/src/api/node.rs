//! Everything but files: health, identity, members, counters, the index.

use super::Shared;
use super::error::Failure;
use super::path::text_param;
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
use serde_json::{Value, json};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// The version as the API shows it: that of the package, marked as not released.
pub(crate) fn version_text() -> String {
    format!("{}-dev", ice_host::VERSION)
}

/// Bytes of an index that are gathered before they are sent.
const INDEX_PIECE_BYTES: usize = 64 * 1024;
/// Pieces of an index that wait for a slow client.
const INDEX_PIECES: usize = 2;

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

pub(super) async fn version() -> String {
    version_text()
}

pub(super) async fn node(State(app): State<Shared>) -> Json<Value> {
    Json(json!({ "id": app.cluster.node_id() }))
}

pub(super) async fn status(State(app): State<Shared>) -> Result<Json<Value>, Failure> {
    let cluster = app.cluster.clone();
    app.rt.blocking(move || cluster.status()).await.map(Json).map_err(Failure::internal)
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

/// One entry of the index. A path that is not UTF-8 is shown as well as possible, with its bytes percent-encoded in `raw`.
fn index_entry(path: &[u8], size: u64, mtime: i64) -> Value {
    match std::str::from_utf8(path) {
        Ok(path) => json!({"path": path, "size": size, "mtime": mtime}),
        Err(_) => json!({
            "path": String::from_utf8_lossy(path),
            "size": size,
            "mtime": mtime,
            "raw": percent_encode(path, NON_ALPHANUMERIC).to_string(),
        }),
    }
}

/// Streams, in memory that does not depend on the number of files.
pub(super) async fn index(State(app): State<Shared>) -> Result<Response, Failure> {
    let (mut pieces, body) = mpsc::channel::<io::Result<Bytes>>(INDEX_PIECES);
    let files = app.files.clone();
    let walking = app.rt.blocking(move || {
        let mut piece = vec![b'['];
        let mut first = true;
        let mut listening = true;
        let outcome = files.walk(&mut |path, meta| {
            if !first {
                piece.push(b',');
            }
            first = false;
            piece.extend_from_slice(index_entry(path, meta.size, meta.mtime_ns()).to_string().as_bytes());
            if piece.len() >= INDEX_PIECE_BYTES {
                // A client that reads nothing loses its connection, and with it the receiver, after a while.
                listening = block_on(pieces.send(Ok(std::mem::take(&mut piece).into()))).is_ok();
            }
            listening
        });
        if listening {
            piece.push(b']');
            let last = outcome.map(|()| piece.into()).map_err(io::Error::from);
            // Nobody listens any more: nothing to tell.
            let _ = block_on(pieces.send(last));
        }
    });
    drop(walking);
    // The first piece decides the status: an error after it can only break the connection.
    let mut body = body;
    let first = match body.next().await {
        Some(Ok(first)) => first,
        Some(Err(e)) => return Err(Failure::internal(e)),
        None => return Err(Failure::internal("the walk ended without a word")),
    };
    let body = futures::stream::once(async move { Ok(first) }).chain(body);
    let mut response = Body::from_stream(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
