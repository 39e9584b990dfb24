//! A small blocking HTTP client: hyper over smol, one connection a request, TLS by rustls.
//!
//! Memory is bounded by hyper's and our own buffers whatever the size of a body. No wait is endless: a request fails when
//! neither side made progress for the timeout, while a long transfer that keeps moving may take as long as it needs.

use super::io::{Activity, HyperIo};
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::{BoxStream, StreamExt};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use ice_host::runtime::BoxStream as Connected;
use ice_http::TlsClient;
use serde::de::{DeserializeOwned, Deserializer as _, SeqAccess, Visitor};
use std::future::Future;
use std::io::{self, Read as _};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Most bytes of an error answer that are read for its message.
const ERROR_BODY_MAX_BYTES: u64 = 64 * 1024;

/// A node's base URL: `http://host:port`, maybe with a path in front of the API's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    tls: bool,
    authority: http::uri::Authority,
    prefix: String,
}

impl Base {
    /// Parses a base URL; `http://` is put in front where there is no scheme, and slashes at the end do not matter.
    pub fn parse(text: &str) -> Result<Base> {
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.trim_end_matches('/').parse().with_context(|| format!("invalid URL {text:?}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("invalid URL {text:?}: neither http nor https"),
        };
        let authority = uri.authority().cloned().ok_or_else(|| anyhow!("invalid URL {text:?}: no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') || uri.query().is_some() {
            bail!("invalid URL {text:?}: expected scheme, host, port and nothing else");
        }
        Ok(Base { tls, prefix: uri.path().trim_end_matches('/').to_owned(), authority })
    }

    /// Whether it is an `https` address.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.prefix)
    }
}

/// How to talk to nodes.
pub struct Client {
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// Certificate authorities to trust instead of the system's, a PEM file.
    pub cacert: Option<PathBuf>,
    /// Longest time without any progress; zero means no limit.
    pub timeout: Duration,
    /// The token is not sent unencrypted when the operator named a TLS address.
    pub token_needs_tls: bool,
    tls: OnceLock<TlsClient>,
}

/// What to send.
pub enum Upload {
    /// No body.
    Nothing,
    /// Chunks as they come; the first error ends the request and the connection, so that the node sees a broken body.
    Stream(BoxStream<'static, io::Result<Bytes>>),
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer whose body is still to be read.
pub struct Response {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    connection: Option<Connection>,
    activity: Arc<Activity>,
}

impl Client {
    /// A client without token, with the system's certificate authorities.
    pub fn new(timeout: Duration) -> Client {
        Client { token: None, cacert: None, timeout, token_needs_tls: false, tls: OnceLock::new() }
    }

    /// Sends a request. `target` is path and query, already encoded. Any status is a success here.
    pub fn request(
        &self,
        method: Method,
        base: &Base,
        target: &str,
        headers: &[(header::HeaderName, String)],
        body: Upload,
    ) -> Result<Response> {
        smol::block_on(self.send(method, base, target, headers, body))
    }

    /// `GET`; any status but 2xx is an error.
    pub fn get(&self, base: &Base, target: &str) -> Result<Response> {
        self.request(Method::GET, base, target, &[], Upload::Nothing)?.ok()
    }

    /// `GET` of a JSON document.
    pub fn json<T: DeserializeOwned>(&self, base: &Base, target: &str) -> Result<T> {
        let body = self.get(base, target)?;
        serde_json::from_reader(io::BufReader::with_capacity(64 * 1024, Reader::new(body)))
            .with_context(|| format!("unexpected answer to {target}"))
    }

    /// `GET` of a JSON array, whose elements go to `sink` one by one: a long one is never in memory as a whole.
    pub fn array<T: DeserializeOwned>(
        &self,
        base: &Base,
        target: &str,
        sink: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let body = io::BufReader::with_capacity(64 * 1024, Reader::new(self.get(base, target)?));
        let mut json = serde_json::Deserializer::from_reader(body);
        let mut failed = None;
        let elements = Elements { sink, failed: &mut failed, element: PhantomData };
        let parsed = json.deserialize_seq(elements).and_then(|()| json.end());
        match (failed, parsed) {
            (Some(error), _) => Err(error),
            (None, parsed) => parsed.with_context(|| format!("unexpected answer to {target}")),
        }
    }

    async fn send(
        &self,
        method: Method,
        base: &Base,
        target: &str,
        headers: &[(header::HeaderName, String)],
        body: Upload,
    ) -> Result<Response> {
        let activity = Activity::new(self.timeout);
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{target}", base.prefix))
            .header(header::HOST, base.authority.as_str())
            .header(header::USER_AGENT, concat!("icectl/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = self.token.as_ref().filter(|_| base.tls || !self.token_needs_tls) {
            let mut value = header::HeaderValue::from_str(&format!("Bearer {token}"))
                .context("the token has characters that HTTP does not allow")?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(upload_body(body, activity.clone())).context("invalid request")?;

        let stream = activity.guard(self.connect(base)).await.with_context(|| format!("cannot connect to {base}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(HyperIo::new(stream, activity.clone()))
            .await
            .context("cannot start HTTP")?;
        let mut connection: Connection = Box::pin(connection);
        let exchange = async {
            match select(Box::pin(sender.send_request(request)), &mut connection).await {
                Either::Left((answer, _)) => Ok((answer.map_err(transport)?, true)),
                // The connection has ended: the answer is there, or never comes.
                Either::Right((ended, answer)) => match (answer.await, ended) {
                    (Ok(answer), _) => Ok((answer, false)),
                    (Err(_), Err(error)) | (Err(error), Ok(())) => Err(transport(error)),
                },
            }
        };
        let (answer, open) = activity.guard(exchange).await.with_context(|| format!("no answer from {base}"))?;
        let (head, body) = answer.into_parts();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body,
            connection: open.then_some(connection),
            activity,
        })
    }

    async fn connect(&self, base: &Base) -> io::Result<Connected> {
        let tcp = smol::net::TcpStream::connect((base.host(), base.port())).await?;
        tcp.set_nodelay(true)?;
        if base.tls { self.tls()?.connect(base.host(), Box::new(tcp)).await } else { Ok(Box::new(tcp)) }
    }

    fn tls(&self) -> io::Result<TlsClient> {
        if let Some(ready) = self.tls.get() {
            return Ok(ready.clone());
        }
        let made = TlsClient::from_file(self.cacert.as_deref())?;
        Ok(self.tls.get_or_init(|| made).clone())
    }
}

/// Hands the elements of an array on. An error of the sink ends the parsing and is kept as it is.
struct Elements<'a, T, F> {
    sink: F,
    failed: &'a mut Option<anyhow::Error>,
    element: PhantomData<T>,
}

impl<'de, T: DeserializeOwned, F: FnMut(T) -> Result<()>> Visitor<'de> for Elements<'_, T, F> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(element) = array.next_element()? {
            if let Err(error) = (self.sink)(element) {
                *self.failed = Some(error);
                return Err(serde::de::Error::custom("ended by its reader"));
            }
        }
        Ok(())
    }
}

fn transport(error: hyper::Error) -> io::Error {
    // hyper wraps the reason: the innermost one is what helps.
    let mut reason: &dyn std::error::Error = &error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    io::Error::other(reason.to_string())
}

fn upload_body(upload: Upload, activity: Arc<Activity>) -> BoxBody<Bytes, io::Error> {
    match upload {
        Upload::Nothing => Empty::new().map_err(|never| match never {}).boxed(),
        Upload::Stream(chunks) => {
            // While we wait for our own input the node is not to blame for the silence.
            let chunks = futures::stream::unfold((chunks, activity), |(mut chunks, activity)| async move {
                activity.pause();
                let next = chunks.next().await;
                activity.resume();
                next.map(|chunk| (chunk.map(Frame::data), (chunks, activity)))
            });
            BodyExt::boxed(StreamBody::new(SyncStream(std::sync::Mutex::new(Box::pin(chunks)))))
        }
    }
}

type Frames = Pin<Box<dyn futures::Stream<Item = io::Result<Frame<Bytes>>> + Send>>;

/// `BoxBody` asks for `Sync`, which a stream that is only ever polled through `&mut` may claim.
struct SyncStream(std::sync::Mutex<Frames>);

impl futures::Stream for SyncStream {
    type Item = io::Result<Frame<Bytes>>;
    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.0.get_mut() {
            Ok(stream) => stream.as_mut().poll_next(cx),
            Err(poisoned) => poisoned.into_inner().as_mut().poll_next(cx),
        }
    }
}

impl Response {
    /// `404 Not Found`, as the status line has it.
    pub fn status_line(&self) -> String {
        status_line(self.status)
    }

    /// An error for any status but 2xx.
    pub fn ok(self) -> Result<Response> {
        if self.status.is_success() {
            return Ok(self);
        }
        let status = self.status;
        Err(Refused { status, message: self.message() }.into())
    }

    /// The bytes the whole body will have, where the node said so.
    pub fn length(&self) -> Option<u64> {
        self.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The next piece of the body; `None` at its end. A body that breaks off is an error.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Response { body, connection, activity, .. } = self;
        activity.resume();
        let next = async {
            loop {
                let frame = match connection {
                    None => body.frame().await,
                    Some(running) => {
                        let ended = match select(Box::pin(body.frame()), running).await {
                            Either::Left((frame, _)) => Ok(frame),
                            Either::Right((ended, _)) => Err(ended),
                        };
                        match ended {
                            Ok(frame) => frame,
                            Err(ended) => {
                                *connection = None;
                                ended.map_err(transport)?;
                                continue;
                            }
                        }
                    }
                };
                match frame.transpose().map_err(transport)? {
                    None => return Ok(None),
                    Some(frame) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => return Ok(Some(data)),
                        // Trailers and empty frames carry nothing for us.
                        Ok(_) | Err(_) => {}
                    },
                }
            }
        };
        activity.guard(next).await
    }

    /// The body as a stream, to be sent on.
    pub fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        futures::stream::unfold(Some(self), |state| async move {
            let mut response = state?;
            match response.chunk().await {
                Ok(None) => None,
                Ok(Some(data)) => Some((Ok(data), Some(response))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// The reason in a failed answer's body: its `message` field where it is JSON, else its text.
    fn message(self) -> Option<String> {
        let mut text = Vec::new();
        io::Read::take(Reader::new(self), ERROR_BODY_MAX_BYTES).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let message = match json.as_ref().and_then(|j| j.get("message")).and_then(|m| m.as_str()) {
            Some(message) => message.to_owned(),
            None => text.trim().to_owned(),
        };
        (!message.is_empty()).then_some(message)
    }
}

/// A response's body for blocking readers.
pub struct Reader {
    response: Response,
    rest: Bytes,
}

impl Reader {
    /// Reads `response` from where it is.
    pub fn new(response: Response) -> Reader {
        Reader { response, rest: Bytes::new() }
    }
}

impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            match smol::block_on(self.response.chunk())? {
                Some(data) => self.rest = data,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

/// `404 Not Found`, as the status line has it.
pub fn status_line(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The node answered, but with something else than 2xx.
#[derive(Debug)]
pub struct Refused {
    /// Its status.
    pub status: StatusCode,
    /// Its reason, if it gave one.
    pub message: Option<String>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&status_line(self.status))
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_normalised() {
        for (text, shown) in [
            ("http://localhost:9000/", "http://localhost:9000"),
            ("localhost:9000", "http://localhost:9000"),
            ("https://[::1]:9000", "https://[::1]:9000"),
            ("http://proxy/ice/", "http://proxy/ice"),
        ] {
            assert_eq!(Base::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(Base::parse("https://[::1]").map(|b| (b.host().to_owned(), b.port())).unwrap(), ("::1".into(), 443));
        for text in ["", "ftp://x", "http://", "http://u:p@h", "http://h/?q", "http://h h"] {
            assert!(Base::parse(text).is_err(), "{text}");
        }
    }
}
