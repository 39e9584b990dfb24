//! The answering side: upgrades, and content for peers.

use super::net::{Inner, Net};
use crate::api::error::Failure;
use crate::io::HyperIo;
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
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    let Some(upgraded) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Failure::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "upgrades need HTTP/1.1"));
    };
    let carrying = net.clone();
    net.rt.spawn(async move {
        match carrying.rt.timeout(UPGRADE_LIMIT, upgraded).await {
            Ok(Ok(upgraded)) => match upgraded.downcast::<HyperIo>() {
                Ok(parts) => carrying.carry(parts.io.into_stream(), parts.read_buf, None).await,
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

/// `bytes=N-`, the only form that peers use; nothing means from the start.
fn parse_from(range: Option<&HeaderValue>) -> Option<u64> {
    match range {
        None => Some(0),
        Some(v) => v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
    }
}

struct Served {
    reader: Box<dyn VersionReader>,
    net: Arc<Inner>,
}

impl ReadAt for Served {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read_at(offset, buf)
    }
    fn still_valid(&self) -> bool {
        self.reader.still_valid()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.net.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a place among those being served, if there is one.
fn enter(serving: &AtomicUsize) -> bool {
    serving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < SERVING_MAX).then_some(n + 1)).is_ok()
}

async fn content(State(net): State<Arc<Inner>>, request: Request) -> Result<Response, Failure> {
    let bad = |what| Failure::new(StatusCode::BAD_REQUEST, "bad_request", what);
    let (inode, version) =
        parse_query(request.uri().query().unwrap_or("")).ok_or(bad("inode and version are needed"))?;
    let from = parse_from(request.headers().get(header::RANGE)).ok_or(bad("only bytes=N- is understood"))?;
    let store = net.store.clone();
    let opened = net.rt.blocking(move || store.open_version(inode, version)).await.and_then(|r| r);
    let reader = match opened {
        Ok(Some(reader)) => reader,
        Ok(None) => return Err(Failure::new(StatusCode::GONE, "gone", "this version is not here any more")),
        Err(e) => {
            tracing::warn!(%inode, %version, "content cannot be served: {e}");
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "io", e.to_string()));
        }
    };
    let size = reader.size();
    if from >= size {
        return Err(Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "there are fewer bytes"));
    }
    if !enter(&net.serving) {
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many transfers at once"));
    }
    let rt = net.rt.clone();
    let file = Arc::new(Served { reader, net });
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size - from)
        .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", size - 1))
        .body(Body::from_stream(ReadStream::new(&rt, file, from, size)));
    response.map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string()))
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
        assert_eq!(parse_from(None), Some(0));
        assert_eq!(parse_from(Some(&HeaderValue::from_static("bytes=7-"))), Some(7));
        assert_eq!(parse_from(Some(&HeaderValue::from_static("bytes=7-9"))), None);
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".*", range in "[ -~]*") {
            let _ = parse_query(&query);
            let _ = parse_from(HeaderValue::from_str(&range).ok().as_ref());
        }
    }
}
