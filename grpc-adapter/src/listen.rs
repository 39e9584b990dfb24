//! A listener of the control plane: HTTP/1.1 and HTTP/2 on one port, in the clear or under TLS, on either runtime.

use crate::authority::Mended;
use axum::Router;
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, Either, FutureExt, Shared, select};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use ice_host::runtime::{BoxStream, Runtime};
use ice_serve::{AnyListener, HyperExecutor, HyperIo, HyperTimer, Rt, TlsServer};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::ServiceExt;

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones are closed.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Bytes of a request's headers.
    pub head_bytes: u32,
    /// Longest time for a TLS handshake, and for the head of an HTTP/1.1 request.
    pub head: Duration,
    /// How often a silent HTTP/2 connection is asked whether somebody is there, and how long the answer may take.
    pub ping: Duration,
    /// Longest time in which a client takes nothing of its answer.
    pub write_stall: Duration,
    /// How long requests may go on after a stop was asked for.
    pub grace: Duration,
    /// Longest time for one unary request, whatever the client asks for.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 4096,
            streams: 4096,
            head_bytes: 64 * 1024,
            head: Duration::from_secs(20),
            ping: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            request: Duration::from_secs(60),
        }
    }
}

/// A stop that many wait for.
#[derive(Clone)]
pub struct Stopped(Shared<BoxFuture<'static, ()>>);

impl Stopped {
    /// Ends when the sender sends or is dropped.
    pub fn new() -> (oneshot::Sender<()>, Stopped) {
        let (stop, stopped) = oneshot::channel();
        (stop, Stopped(stopped.map(|_| ()).boxed().shared()))
    }

    /// Ends with the stop.
    pub fn wait(&self) -> Shared<BoxFuture<'static, ()>> {
        self.0.clone()
    }
}

/// A bound socket that does not serve yet.
pub struct Bound {
    rt: Rt,
    listener: Box<dyn AnyListener>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    stopped: Stopped,
}

impl Bound {
    /// Binds `addr` (`host:port`; an empty host means all addresses).
    pub async fn new(runtime: impl Runtime, addr: &str) -> io::Result<Bound> {
        let rt = Rt::new(runtime);
        let listener =
            rt.listen(addr).await.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}")))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = Stopped::new();
        Ok(Bound { rt, listener, address, stop, stopped })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The runtime it was bound on.
    pub fn rt(&self) -> &Rt {
        &self.rt
    }

    /// What long streams wait for besides their own work, so that they end with the listener.
    pub fn stopped(&self) -> Stopped {
        self.stopped.clone()
    }

    /// Serves `router` in the background until the returned handle stops it.
    pub fn serve(self, router: Router, tls: Option<TlsServer>, limits: Limits) -> Server {
        let (ended_tx, ended) = oneshot::channel();
        let shared = Arc::new(Serving {
            rt: self.rt.clone(),
            router,
            tls,
            limits,
            stopped: self.stopped,
            live: AtomicUsize::new(0),
        });
        let listener = self.listener;
        self.rt.spawn(async move {
            accept_all(listener, shared).await;
            // Fails only if nobody waits for the end.
            let _ = ended_tx.send(());
        });
        Server { address: self.address, stop: Some(self.stop), ended }
    }
}

/// A listener at work. Dropping it stops it too, without waiting.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
}

impl Server {
    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, lets requests end within the grace time, and returns when all connections are closed.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only if the listener has ended already.
            let _ = stop.send(());
        }
        let _ = self.ended.await;
    }
}

struct Serving {
    rt: Rt,
    router: Router,
    tls: Option<TlsServer>,
    limits: Limits,
    stopped: Stopped,
    live: AtomicUsize,
}

async fn accept_all(mut listener: Box<dyn AnyListener>, shared: Arc<Serving>) {
    // Every connection holds a sender: the receiver ends when the last one is gone.
    let (live, mut all_gone) = mpsc::channel::<()>(0);
    loop {
        match select(listener.accept(), shared.stopped.wait()).await {
            Either::Right(_) => break,
            Either::Left((Ok((stream, from)), _)) => {
                let (shared, live) = (shared.clone(), live.clone());
                shared.rt.clone().spawn(async move {
                    serve_counted(stream, from, &shared).await;
                    drop(live);
                });
            }
            Either::Left((Err(e), _)) => {
                // Out of descriptors, or the client went away: no reason to stop; the pause keeps it from being a busy loop.
                tracing::warn!("cannot accept a connection: {e}");
                shared.rt.sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    drop(live);
    // Each connection bounds its own end; this bounds the sum.
    let _ = shared.rt.timeout(shared.limits.grace * 2, all_gone.next()).await;
}

/// Counts a connection for as long as it lives, also if serving it panics.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve_counted(mut stream: BoxStream, from: SocketAddr, shared: &Serving) {
    let before = shared.live.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(&shared.live);
    if before >= shared.limits.connections {
        tracing::warn!(%from, "too many connections: refused");
        // It is refused, whether it hears so or not.
        let _ = shared.rt.timeout(Duration::from_secs(1), stream.close()).await;
        return;
    }
    if let Err(e) = serve_one(stream, shared).await {
        tracing::debug!(%from, "connection ended: {e}");
    }
}

async fn serve_one(stream: BoxStream, shared: &Serving) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let limits = &shared.limits;
    let (stream, vectored) = match &shared.tls {
        None => (stream, true),
        Some(tls) => (shared.rt.timeout(limits.head, tls.accept(stream)).await??.0, false),
    };
    let (h2, mut stream) = shared.rt.timeout(limits.head, Rewound::read_preface(stream)).await??;
    if h2 {
        stream.stream = Box::new(Mended::new(stream.stream));
    }
    let io = HyperIo::new(Box::new(stream), vectored, shared.rt.clone(), limits.write_stall);
    let router = shared.router.clone();
    let service = service_fn(move |request: Request<Incoming>| router.clone().oneshot(request));
    let timer = HyperTimer(shared.rt.clone());
    if h2 {
        let mut serving = pin!(
            http2::Builder::new(HyperExecutor(shared.rt.clone()))
                .timer(timer)
                .max_concurrent_streams(limits.streams)
                .max_header_list_size(limits.head_bytes)
                .keep_alive_interval(limits.ping)
                .keep_alive_timeout(limits.ping)
                .serve_connection(io, service)
        );
        if let Either::Left((outcome, _)) = select(serving.as_mut(), shared.stopped.wait()).await {
            return Ok(outcome?);
        }
        serving.as_mut().graceful_shutdown();
        return Ok(shared.rt.timeout(limits.grace, serving).await??);
    }
    let mut serving = pin!(
        http1::Builder::new()
            .timer(timer)
            .header_read_timeout(limits.head)
            .max_buf_size(limits.head_bytes as usize)
            .half_close(true)
            .serve_connection(io, service)
    );
    if let Either::Left((outcome, _)) = select(serving.as_mut(), shared.stopped.wait()).await {
        return Ok(outcome?);
    }
    serving.as_mut().graceful_shutdown();
    Ok(shared.rt.timeout(limits.grace, serving).await??)
}

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream of which the first bytes were read already.
struct Rewound {
    first: [u8; PREFACE.len()],
    range: Range<usize>,
    stream: BoxStream,
}

impl Rewound {
    /// Reads until it is clear which version of HTTP is spoken. `true`: HTTP/2.
    async fn read_preface(mut stream: BoxStream) -> io::Result<(bool, Rewound)> {
        let mut first = [0; PREFACE.len()];
        let mut n = 0;
        while n < first.len() && first[..n] == PREFACE[..n] {
            match stream.read(&mut first[n..]).await? {
                0 => break,
                more => n += more,
            }
        }
        Ok((first == *PREFACE, Rewound { first, range: 0..n, stream }))
    }
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let left = &self.first[self.range.clone()];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = left.len().min(buf.len());
        buf[..n].copy_from_slice(&left[..n]);
        self.range.start += n;
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
