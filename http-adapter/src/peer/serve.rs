//! The answering side: upgrades, and content for peers.

use super::client::Upgraded;
use super::net::{Inner, Net};
use crate::api::error::Failure;
use crate::pump::{ReadAt, ReadStream};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use ice_core::ids::{InodeId, ReplicaId};
use ice_core::time::{Hlc, Stamp};
use ice_host::transport::VersionReader;
use ice_serve::HyperIo;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Content requests served at once.
const SERVING_MAX: usize = 128;
/// From our answer to the end of the upgrade.
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);

/// The routes that peers use. Authorisation comes from the layer around them.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(net: &Net) -> Router<S> {
    Router::new()
        .route(super::PEER_PATH, get(upgrade))
        .route(super::CONTENT_PATH, get(content))
        .route(super::BLOCKS_PATH, get(blocks))
        .with_state(net.inner().clone())
}

async fn upgrade(State(net): State<Arc<Inner>>, mut request: Request) -> Result<Response, Failure> {
    if request.method() != Method::GET {
        return Err(Failure::method_not_allowed("GET"));
    }
    let offered = request.headers().get(header::UPGRADE).map(|v| v.to_str().unwrap_or("?").to_owned());
    let wants = request.headers().get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let wants = wants.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
    let known = offered.as_deref().is_some_and(|o| o.split(',').any(|o| o.trim() == super::PROTOCOL));
    if !wants || !known {
        let reason = format!(
            "this node speaks {} here, not {}: upgrade the older of the two",
            super::PROTOCOL,
            offered.filter(|_| wants).unwrap_or_else(|| "plain HTTP".into())
        );
        let mut response = Failure::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", reason).into_response();
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(super::PROTOCOL));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        return Ok(response);
    }
    if !net.started() || net.links_full() {
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "no further peer connection now"));
    }
    let nonce = request.headers().get(super::NONCE_HEADER).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let version = super::version_in(request.headers());
    let Some(upgraded) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Failure::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "upgrades need HTTP/1.1"));
    };
    let carrying = net.clone();
    net.rt.spawn(async move {
        match carrying.rt.timeout(UPGRADE_LIMIT, upgraded).await {
            Ok(Ok(upgraded)) => match upgraded.downcast::<HyperIo>() {
                Ok(parts) => {
                    let (stream, early) = (parts.io.into_stream(), parts.read_buf);
                    carrying.carry(Upgraded { stream, early, version }, None).await;
                }
                Err(_) => tracing::error!("a peer connection came on a foreign stream"),
            },
            Ok(Err(e)) => tracing::debug!("a peer's upgrade failed: {e}"),
            Err(e) => tracing::debug!("a peer's upgrade failed: {e}"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(super::PROTOCOL));
    headers.insert(super::VERSION_HEADER, HeaderValue::from_static(ice_host::VERSION));
    if let Some(token) = &net.token
        && let Ok(proof) = HeaderValue::from_str(&super::proof(token, &nonce))
    {
        headers.insert(super::PROOF_HEADER, proof);
    }
    Ok(response)
}

/// `inode=<hex>&version=<time>-<replica hex>`.
fn parse_query(query: &str) -> Option<(InodeId, Stamp)> {
    let (mut inode, mut version) = (None, None);
    for pair in query.split('&') {
        match pair.split_once('=')? {
            ("inode", v) => inode = u128::from_str_radix(v, 16).ok(),
            ("version", v) => {
                let (time, replica) = v.split_once('-')?;
                let replica = ReplicaId(u64::from_str_radix(replica, 16).ok()?);
                version = Some(Stamp { time: Hlc(time.parse().ok()?), replica });
            }
            _ => return None,
        }
    }
    Some((InodeId(inode?), version?))
}

/// `bytes=N-` or `bytes=N-M`, the only forms that peers use; nothing means all. The end may lie beyond the file's.
fn parse_range(range: Option<&HeaderValue>) -> Option<Range<u64>> {
    let Some(range) = range else { return Some(0..u64::MAX) };
    let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { u64::MAX } else { last.parse::<u64>().ok()?.saturating_add(1) };
    let range = first.parse().ok()?..last;
    (range.start < range.end).then_some(range)
}

async fn open(net: &Arc<Inner>, inode: InodeId, version: Stamp) -> Result<Box<dyn VersionReader>, Failure> {
    let store = net.store.clone();
    match net.rt.blocking(move || store.open_version(inode, version)).await.and_then(|r| r) {
        Ok(Some(reader)) => Ok(reader),
        Ok(None) => Err(Failure::new(StatusCode::GONE, "gone", "this version is not here any more")),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", e.to_string()))
        }
        Err(e) => {
            tracing::warn!(%inode, %version, "content cannot be served: {e}");
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "io", format!("it cannot be read: {e}")))
        }
    }
}

/// One of the [`SERVING_MAX`] places.
struct Place(Arc<Inner>);

impl Place {
    fn take(net: &Arc<Inner>) -> Option<Place> {
        let enter = |n| (n < SERVING_MAX).then_some(n + 1);
        net.serving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok().map(|_| Place(net.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Served {
    reader: Box<dyn VersionReader>,
    _place: Place,
}

impl ReadAt for Served {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read_at(offset, buf)
    }
    fn still_valid(&self) -> bool {
        self.reader.still_valid()
    }
}

fn bad_request(what: &str) -> Failure {
    Failure::bad_request("bad_request", what)
}

fn busy() -> Failure {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many transfers at once")
}

async fn content(State(net): State<Arc<Inner>>, request: Request) -> Result<Response, Failure> {
    let query = request.uri().query().unwrap_or("");
    let (inode, version) = parse_query(query).ok_or(bad_request("inode and version are needed"))?;
    let range = parse_range(request.headers().get(header::RANGE));
    let range = range.ok_or(bad_request("only bytes=N- and bytes=N-M are understood"))?;
    let place = Place::take(&net).ok_or_else(busy)?;
    let reader = open(&net, inode, version).await?;
    let size = reader.size();
    if range.start >= size {
        return Err(Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "there are fewer bytes"));
    }
    let end = range.end.min(size);
    let file = Arc::new(Served { reader, _place: place });
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, end - range.start)
        .header(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, end - 1))
        .body(Body::from_stream(ReadStream::new(&net.rt, file, range.start, end)));
    response.map_err(Failure::internal)
}

/// The hashes of all blocks, one after the other.
async fn blocks(State(net): State<Arc<Inner>>, request: Request) -> Result<Response, Failure> {
    let query = request.uri().query().unwrap_or("");
    let (query, only_sparse) = query.strip_suffix(super::ONLY_SPARSE).map_or((query, false), |q| (q, true));
    let (inode, version) = parse_query(query).ok_or(bad_request("inode and version are needed"))?;
    let place = Place::take(&net).ok_or_else(busy)?;
    let reader = open(&net, inode, version).await?;
    if only_sparse && !reader.is_sparse() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if reader.size() > super::BLOCKS_OF_MAX_BYTES {
        return Err(Failure::new(StatusCode::NOT_FOUND, "too_large", "fetch it whole"));
    }
    let blocks = net.rt.blocking(move || {
        let _place = place;
        reader.blocks()
    });
    let blocks = blocks.await.and_then(|b| b).map_err(Failure::internal)?;
    Ok(blocks.hashes().concat().into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_are_read_strictly() {
        let stamp = Stamp { time: Hlc(17), replica: ReplicaId(0xab) };
        assert_eq!(parse_query("inode=1f&version=17-ab"), Some((InodeId(0x1f), stamp)));
        for bad in
            ["", "inode=1f", "version=1-1", "inode=xyz&version=1-1", "inode=1&version=1", "inode=1&version=1-1&x=2"]
        {
            assert_eq!(parse_query(bad), None, "{bad}");
        }
        assert_eq!(parse_range(None), Some(0..u64::MAX));
        for (text, range) in [
            ("bytes=7-", Some(7..u64::MAX)),
            ("bytes=7-9", Some(7..10)),
            ("bytes=7-18446744073709551615", Some(7..u64::MAX)),
            ("bytes=9-7", None),
            ("bytes=-7", None),
            ("bytes=1-2,3-4", None),
            ("7-9", None),
        ] {
            assert_eq!(parse_range(Some(&HeaderValue::from_static(text))), range, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".*", range in "[ -~]*") {
            let _ = parse_query(&query);
            let _ = parse_range(HeaderValue::from_str(&range).ok().as_ref());
        }
    }
}
