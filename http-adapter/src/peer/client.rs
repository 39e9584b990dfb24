//! Requests to other nodes, every wait of them bounded.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, StatusCode, header, upgrade};
use ice_host::runtime::BoxStream;
use ice_host::transport::url::BaseUrl;
use ice_serve::HyperIo;
use ice_serve::Rt;
use ice_serve::TlsClient;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From a name to a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// From a connection to the head of the answer, each step.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A request that the other side takes nothing of.
const WRITE_STALL: Duration = Duration::from_secs(15);
/// Idle connections are kept this long (less than the other side keeps them), and this many per address.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
const IDLE_PER_URL: usize = 8;
/// Bytes of an error's text that are read.
const REASON_MAX_BYTES: usize = 4096;
/// A read buffer's limit: content comes in large pieces.
const BUFFER_MAX_BYTES: usize = 1024 * 1024;

type Sender = SendRequest<Empty<Bytes>>;

/// A connection that speaks the peers' protocol from here on.
pub(crate) struct Upgraded {
    pub(crate) stream: BoxStream,
    /// What has already arrived on it.
    pub(crate) early: Bytes,
    /// Which version of the program the other side says it is.
    pub(crate) version: Option<String>,
}

/// Speaks HTTP to peers.
pub(crate) struct Client {
    rt: Rt,
    token: Option<String>,
    tls: Option<TlsClient>,
    https_only: bool,
    idle: Mutex<HashMap<BaseUrl, Vec<(Sender, Instant)>>>,
}

impl Client {
    pub(crate) fn new(rt: Rt, token: Option<String>, tls: Option<TlsClient>, https_only: bool) -> Client {
        Client { rt, token, tls, https_only, idle: Mutex::new(HashMap::new()) }
    }

    async fn connect(&self, url: &BaseUrl) -> Result<Sender, String> {
        if self.https_only && !url.tls() {
            return Err(super::clear_text(url));
        }
        let stream = self
            .rt
            .timeout(CONNECT_LIMIT, self.rt.connect(&url.connect_to()))
            .await
            .and_then(|r| r)
            .map_err(|e| format!("cannot connect: {e}"))?;
        let stream = self.secure(url, stream).await?;
        let io = HyperIo::new(stream, !url.tls(), self.rt.clone(), WRITE_STALL);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX_BYTES)
            .handshake(io)
            .await
            .map_err(|e| format!("cannot speak HTTP: {e}"))?;
        self.rt.spawn(async move {
            // The request that it belongs to reports the error.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    async fn secure(&self, url: &BaseUrl, stream: BoxStream) -> Result<BoxStream, String> {
        if !url.tls() {
            return Ok(stream);
        }
        let tls = self.tls.as_ref().ok_or("https needs a list of trusted authorities: set cacert")?;
        let secured = self.rt.timeout(ANSWER_LIMIT, tls.connect(url.host(), stream)).await.and_then(|r| r);
        secured.map_err(|e| format!("TLS: {e}"))
    }

    /// A GET request to a path of the other node. Only called with addresses that the operator configured or that an
    /// authenticated peer named (see [`super::Net`]): the token goes with it, and no redirect is followed.
    fn get(&self, url: &BaseUrl, path: &str) -> http::request::Builder {
        let request = Request::get(path).header(header::HOST, url.authority());
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn send(
        &self,
        sender: &mut Sender,
        request: Request<Empty<Bytes>>,
        limit: Duration,
    ) -> Result<Response<Incoming>, String> {
        match self.rt.timeout(limit, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(format!("no answer: {e}")),
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }

    /// Asks for something, or for some of its bytes. The connection is given back with [`Client::keep`] when the body was
    /// read to its end.
    pub(crate) async fn get_range(
        &self,
        url: &BaseUrl,
        path: &str,
        range: Option<&Range<u64>>,
        limit: Duration,
    ) -> Result<(Sender, Response<Incoming>), String> {
        let request = || {
            let mut request = self.get(url, path);
            if let Some(range) = range {
                request =
                    request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
            }
            request.body(Empty::new()).map_err(|e| format!("bad request: {e}"))
        };
        // A kept connection may have been closed meanwhile: then a new one decides.
        if let Some(mut sender) = self.kept(url)
            && let Ok(response) = self.send(&mut sender, request()?, limit).await
        {
            return Ok((sender, response));
        }
        let mut sender = self.connect(url).await?;
        let response = self.send(&mut sender, request()?, limit).await?;
        Ok((sender, response))
    }

    fn kept(&self, url: &BaseUrl) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        idle.retain(|_, kept| {
            kept.retain(|(sender, since)| !sender.is_closed() && now.duration_since(*since) < IDLE_LIMIT);
            !kept.is_empty()
        });
        let kept = idle.get_mut(url)?;
        let at = kept.iter().position(|(sender, _)| sender.is_ready())?;
        Some(kept.swap_remove(at).0)
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(&self, url: &BaseUrl, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.entry(url.clone()).or_default();
        if kept.len() < IDLE_PER_URL && !sender.is_closed() {
            kept.push((sender, Instant::now()));
        }
    }

    /// Closes idle connections.
    pub(crate) fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Opens a peer connection.
    pub(crate) async fn upgrade(&self, url: &BaseUrl) -> Result<Upgraded, String> {
        let nonce = super::nonce().map_err(|e| e.to_string())?;
        let request = self
            .get(url, super::PEER_PATH)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, super::PROTOCOL)
            .header(super::NONCE_HEADER, &nonce)
            .header(super::VERSION_HEADER, ice_host::VERSION)
            .body(Empty::new())
            .map_err(|e| format!("bad request: {e}"))?;
        let mut sender = self.connect(url).await?;
        let response = self.send(&mut sender, request, ANSWER_LIMIT).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.reason(response).await);
        }
        if let Some(token) = &self.token {
            let given = response.headers().get(super::PROOF_HEADER).map_or(&b""[..], |v| v.as_bytes());
            if !super::same_secret(given, super::proof(token, &nonce).as_bytes()) {
                return Err("it cannot prove that it knows the token: not a node of this cluster".into());
            }
        }
        let version = super::version_in(response.headers());
        let upgraded = self.rt.timeout(ANSWER_LIMIT, upgrade::on(response)).await;
        let upgraded = upgraded.map_err(|e| e.to_string())?.map_err(|e| format!("upgrade failed: {e}"))?;
        let parts = upgraded.downcast::<HyperIo>().map_err(|_| "upgraded to a foreign stream".to_owned())?;
        Ok(Upgraded { stream: parts.io.into_stream(), early: parts.read_buf, version })
    }

    /// The words of an answer that is not the hoped-for one.
    async fn reason(&self, response: Response<Incoming>) -> String {
        let status = response.status();
        let body = Limited::new(response.into_body(), REASON_MAX_BYTES).collect();
        let text = match self.rt.timeout(ANSWER_LIMIT, body).await {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
            _ => String::new(),
        };
        let message = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|v| v.get("message").and_then(|m| m.as_str()).map(str::to_owned))
            .unwrap_or(text);
        // It is shown in logs and status: one line, no surprises.
        let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
        if message.is_empty() { status.to_string() } else { format!("{status}: {message}") }
    }
}
