//! `/v1/file`: reading with validators and ranges, atomic writing, removing.

use super::conditional::{self, Current, Verdict};
use super::error::Failure;
use super::locks::{deletable, writing};
use super::path::{RelPath, path_param, text_param};
use super::range::{self, Ranges};
use super::{App, Shared};
use crate::files::{FileKind, Meta, OpenFile, Upload};
use crate::pump::{Pump, PumpError, ReadAt, ReadStream};
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use ice_core::event::Ack;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Requests that wait for other nodes at once. Each takes a thread, of which others need some: reading, and content for peers.
pub(super) const WAITING_MAX: usize = 64;
/// Bytes that tell text from other content.
const SNIFF_BYTES: usize = 512;

fn current(meta: &Meta) -> Current {
    Current { etag: meta.etag.clone(), modified: meta.mtime.0 }
}

fn quoted(etag: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(&format!("\"{etag}\"")).map_err(Failure::internal)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

struct Reading(Arc<dyn OpenFile>);

impl ReadAt for Reading {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.read_at(offset, buf)?)
    }
    fn still_valid(&self) -> bool {
        self.0.unchanged()
    }
}

/// Text or bytes. Nothing that a browser would run: a stored page must not act in this origin's name.
fn content_type(head: &[u8], whole: bool) -> &'static str {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => head.len(),
        // A character may be cut off at the end of what was looked at.
        Err(e) if e.error_len().is_none() && !whole => e.valid_up_to(),
        Err(_) => return "application/octet-stream",
    };
    let control = |b: &u8| *b < 0x20 && !matches!(b, b'\t' | b'\n' | 0x0c | b'\r' | 0x1b);
    if head[..valid].iter().any(control) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

pub(super) async fn read(
    State(app): State<Shared>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Failure> {
    let path = path_param(query.as_deref())?;
    let files = app.files.clone();
    let opened = app.rt.blocking(move || {
        let file = files.open(&path)?;
        let mut head = vec![0; SNIFF_BYTES.min(file.meta().size as usize)];
        let n = file.read_at(0, &mut head)?;
        head.truncate(n);
        Ok::<_, Errno>((file, head))
    });
    let (file, head) = opened.await.map_err(Failure::internal)??;
    let meta = file.meta().clone();
    let validators = current(&meta);
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, quoted(&meta.etag)?);
    if let Some(date) = conditional::date(meta.mtime.0).and_then(|d| HeaderValue::from_str(&d).ok()) {
        headers.insert(header::LAST_MODIFIED, date);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    match conditional::evaluate(request.headers(), Some(&validators), true) {
        Verdict::Go => {}
        Verdict::NotModified => return Ok((StatusCode::NOT_MODIFIED, headers).into_response()),
        Verdict::Failed => return Err(precondition_failed()),
    }
    let just_head = request.method() == Method::HEAD;
    let ranges = match request.headers().get(header::RANGE) {
        // Ranges are defined for GET only (RFC 9110, section 14.2).
        Some(range) if !just_head && conditional::range_holds(request.headers(), &validators, now()) => {
            range::parse(Some(range.as_bytes()), meta.size)
        }
        _ => Ranges::Whole,
    };
    let kind = content_type(&head, head.len() as u64 == meta.size);
    let file = Arc::new(Reading(file));
    let part = |from, to| ReadStream::new(&app.rt, file.clone(), from, to);
    let (status, length, body) = match ranges {
        Ranges::Whole => (StatusCode::OK, meta.size, Body::from_stream(part(0, meta.size))),
        Ranges::Unsatisfiable => {
            let all = HeaderValue::from_str(&format!("bytes */{}", meta.size)).map_err(Failure::internal)?;
            let none = Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "no such bytes in this file");
            return Err(none.with_header(header::CONTENT_RANGE, all));
        }
        Ranges::Parts(parts) if parts.len() == 1 => {
            let (from, to) = parts[0];
            let range = format!("bytes {from}-{}/{}", to - 1, meta.size);
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).map_err(Failure::internal)?);
            (StatusCode::PARTIAL_CONTENT, to - from, Body::from_stream(part(from, to)))
        }
        Ranges::Parts(parts) => {
            let several = Several::new(&parts, &meta, kind)?;
            let (length, boundary) = (several.length, several.content_type.clone());
            headers.insert(header::CONTENT_TYPE, boundary);
            let body = several.into_stream(&app, &file);
            (StatusCode::PARTIAL_CONTENT, length, Body::from_stream(body))
        }
    };
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let body = if just_head { Body::empty() } else { body };
    Ok((status, headers, body).into_response())
}

/// `multipart/byteranges`.
struct Several {
    parts: Vec<(Bytes, u64, u64)>,
    end: Bytes,
    length: u64,
    content_type: HeaderValue,
}

impl Several {
    fn new(parts: &[(u64, u64)], meta: &Meta, kind: &str) -> Result<Several, Failure> {
        // The tag depends on the bytes, so whoever writes them cannot know it; and nobody would gain by it.
        let hash = blake3::hash(meta.etag.as_bytes()).to_hex();
        let boundary = format!("ice{}", &hash[..24]);
        let mut length = 0;
        let mut list = Vec::new();
        for (from, to) in parts {
            let last = to - 1;
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: bytes {from}-{last}/{}\r\n\r\n",
                meta.size
            );
            length += head.len() as u64 + (to - from);
            list.push((Bytes::from(head), *from, *to));
        }
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        length += end.len() as u64;
        let content_type = HeaderValue::from_str(&format!("multipart/byteranges; boundary={boundary}"));
        Ok(Several { parts: list, end, length, content_type: content_type.map_err(Failure::internal)? })
    }

    fn into_stream(self, app: &App, file: &Arc<Reading>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let (rt, file) = (app.rt.clone(), file.clone());
        let parts = stream::iter(self.parts).flat_map(move |(head, from, to)| {
            let bytes = ReadStream::new(&rt, file.clone(), from, to);
            stream::once(async move { Ok(head) }).chain(bytes)
        });
        let end = self.end;
        parts.chain(stream::once(async move { Ok(end) }))
    }
}

fn precondition_failed() -> Failure {
    Failure::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", "the file is not the one expected")
}

fn allows(headers: &HeaderMap) -> impl Fn(Option<&Meta>) -> bool + Send + 'static {
    let headers = headers.clone();
    move |meta: Option<&Meta>| conditional::evaluate(&headers, meta.map(current).as_ref(), false) == Verdict::Go
}

/// `ack=`, if it is given.
fn ack_param(query: Option<&str>) -> Result<Option<Ack>, Failure> {
    let Some(word) = text_param(query, "ack") else { return Ok(None) };
    match word.as_str() {
        "auto" => Ok(Some(Ack::Auto)),
        "local" => Ok(Some(Ack::Local)),
        "one" => Ok(Some(Ack::One)),
        "quorum" => Ok(Some(Ack::Quorum)),
        "all" => Ok(Some(Ack::All)),
        _ => Err(Failure::bad_request("invalid_ack", "ack is one of auto, local, one, quorum, all")),
    }
}

/// One of the [`WAITING_MAX`] places of those who wait for other nodes.
struct Wait(Arc<AtomicUsize>);

impl Wait {
    fn begin(waiting: &Arc<AtomicUsize>) -> Option<Wait> {
        let enter = |n| (n < WAITING_MAX).then_some(n + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok().map(|_| Wait(waiting.clone()))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn acknowledged(app: &App, ack: Option<Ack>) -> Result<(), Failure> {
    let Some(ack) = ack else { return Ok(()) };
    let Some(wait) = Wait::begin(&app.waiting) else {
        let why = "it is done here, but too many requests wait for other nodes already";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", why));
    };
    let (cluster, timeout) = (app.cluster.clone(), app.config.ack_timeout);
    let done = app.rt.blocking(move || {
        // The thread waits on when the client goes away.
        let _wait = wait;
        cluster.sync(ack, timeout)
    });
    done.await.map_err(Failure::internal)??;
    Ok(())
}

fn pump_failure(e: PumpError<Errno>) -> Failure {
    match e {
        PumpError::Work(e) => e.into(),
        PumpError::Runtime(e) => Failure::internal(e),
    }
}

pub(super) async fn write(
    State(app): State<Shared>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Failure> {
    let path = path_param(query.as_deref())?;
    let ack = ack_param(query.as_deref())?;
    if request.headers().contains_key(header::CONTENT_RANGE) {
        // A server that takes a part for the whole would destroy the file (RFC 9110, section 14.5).
        return Err(Failure::bad_request("content_range", "parts of files cannot be written"));
    }
    let allowed = allows(request.headers());
    let upload = begin(&app, path.clone(), &allowed).await?;
    let upload = receive(&app, upload, request.into_body()).await?;
    let writing = writing(app.locking.as_ref(), &path).await?;
    let commit = move || {
        let committed = upload.commit(&allowed);
        drop(writing);
        committed
    };
    let committed = app.rt.blocking(commit).await.map_err(Failure::internal)??;
    let Some(meta) = committed else { return Err(precondition_failed()) };
    acknowledged(&app, ack).await?;
    Ok((StatusCode::NO_CONTENT, [(header::ETAG, quoted(&meta.etag)?)]).into_response())
}

/// Refuses before the body is sent what would be refused after it.
async fn begin<A>(app: &App, path: RelPath, allowed: &A) -> Result<Box<dyn Upload>, Failure>
where
    A: Fn(Option<&Meta>) -> bool,
{
    let files = app.files.clone();
    let looked = app.rt.blocking(move || {
        let before = match files.stat(&path) {
            Ok(meta) if meta.kind == FileKind::Dir => return Err(Errno::ISDIR),
            Ok(meta) => Some(meta),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        Ok((before, files.upload(&path)?))
    });
    let (before, upload) = looked.await.map_err(Failure::internal)??;
    if allowed(before.as_ref()) { Ok(upload) } else { Err(precondition_failed()) }
}

async fn receive(app: &App, upload: Box<dyn Upload>, mut body: Body) -> Result<Box<dyn Upload>, Failure> {
    let mut pump = Pump::new(&app.rt, upload, |upload, bytes| upload.write(bytes));
    loop {
        match app.rt.timeout(app.config.limits.body_pause, body.frame()).await {
            Err(_) => return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body stopped coming")),
            Ok(None) => return pump.finish().await.map_err(pump_failure),
            Ok(Some(Err(e))) => return Err(Failure::bad_request("broken_body", format!("the body broke off: {e}"))),
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    pump.push(bytes).await.map_err(pump_failure)?;
                }
            }
        }
    }
}

pub(super) async fn remove(
    State(app): State<Shared>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let path = path_param(query.as_deref())?;
    let ack = ack_param(query.as_deref())?;
    deletable(app.locking.as_ref(), &path).await?;
    let (files, allowed) = (app.files.clone(), allows(&headers));
    let removed = app.rt.blocking(move || files.remove(&path, &allowed)).await.map_err(Failure::internal)??;
    if !removed {
        return Err(precondition_failed());
    }
    acknowledged(&app, ack).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_bytes() {
        for (head, whole, text) in [
            (&b"hello\n"[..], true, true),
            (b"", true, true),
            (b"<html><script>", true, true),
            ("gr\u{fc}n".as_bytes(), true, true),
            (b"cut \xc3", false, true),
            (b"cut \xc3", true, false),
            (b"\x00\x01", true, false),
            (b"\xff\xfe", false, false),
        ] {
            assert_eq!(content_type(head, whole).starts_with("text/plain"), text, "{head:?}");
        }
    }

    #[test]
    fn acks_are_words() {
        assert_eq!(ack_param(Some("ack=quorum")).unwrap(), Some(Ack::Quorum));
        assert_eq!(ack_param(Some("path=x")).unwrap(), None);
        assert_eq!(ack_param(Some("ack=2")).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }
}
