//! The listener: accepts connections, serves the router on them with hyper, and stops gracefully.

use crate::places::{Place, Places};
use axum::Router;
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, Either, FutureExt, Shared, select};
use futures::{AsyncWriteExt, StreamExt};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, server::conn};
use ice_host::runtime::{BoxStream, Runtime};
use ice_serve::TlsServer;
use ice_serve::{AnyListener, Rt};
use ice_serve::{HyperExecutor, HyperIo, HyperTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. When there are that many, the one that has been idle for longest makes room, those that never
    /// showed the token first; where none is idle a further one is answered 503 and closed. Upgraded ones (peers) do not count
    /// here.
    pub connections: usize,
    /// Of those, places that only peers may take while all others are at work.
    pub peer_places: usize,
    /// From the start of a connection or the end of a request until the next request's head is complete; also the longest
    /// a TLS handshake may take.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header lines.
    pub headers: usize,
    /// Longest pause within a request's body.
    pub body_pause: Duration,
    /// Longest time in which a client takes nothing of its answer.
    pub write_stall: Duration,
    /// How long requests may go on after a stop was asked for.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            peer_places: 128,
            head: Duration::from_secs(20),
            head_bytes: 256 * 1024,
            headers: 100,
            body_pause: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// A stop that many can wait for.
#[derive(Clone)]
pub(crate) struct Stopped(Shared<BoxFuture<'static, ()>>);

impl Stopped {
    /// Ends when the sender sends or is dropped.
    pub(crate) fn new() -> (oneshot::Sender<()>, Stopped) {
        let (tx, rx) = oneshot::channel();
        (tx, Stopped(rx.map(|_| ()).boxed().shared()))
    }
    pub(crate) fn wait(&self) -> Shared<BoxFuture<'static, ()>> {
        self.0.clone()
    }
}

/// A bound socket that does not serve yet: so that a node knows its address before it has a router.
pub struct Bound {
    rt: Rt,
    listener: Box<dyn AnyListener>,
    address: SocketAddr,
}

impl Bound {
    /// Binds `addr` (`host:port`; an empty host means all addresses).
    pub async fn new(runtime: impl Runtime, addr: &str) -> io::Result<Bound> {
        let rt = Rt::new(runtime);
        let listener =
            rt.listen(addr).await.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}")))?;
        let address = listener.local_addr()?;
        Ok(Bound { rt, listener, address })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` in the background until the returned handle stops it.
    pub fn serve(self, router: Router, tls: Option<TlsServer>, limits: Limits) -> Server {
        let (stop, stopped) = Stopped::new();
        let (ended_tx, ended) = oneshot::channel();
        let places = Places::new(limits.connections, limits.peer_places);
        let shared = Arc::new(Serving { rt: self.rt.clone(), router, tls, limits, stopped, places });
        let listener = self.listener;
        self.rt.spawn(async move {
            accept_all(listener, shared).await;
            // Fails only if nobody waits for the end.
            let _ = ended_tx.send(());
        });
        Server { address: self.address, stop: Some(stop), ended }
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
    places: Places,
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
                // Out of descriptors, or the client went away: neither is a reason to stop, and a short pause keeps the
                // first from becoming a busy loop.
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

async fn serve_counted(mut stream: BoxStream, from: SocketAddr, shared: &Serving) {
    let Some((place, given_up)) = shared.places.take() else {
        tracing::warn!(%from, "too many connections: refused");
        if shared.tls.is_none() {
            let full = async {
                stream.write_all(FULL.as_bytes()).await?;
                stream.close().await
            };
            // It is refused, whether it hears so or not.
            let _ = shared.rt.timeout(Duration::from_secs(1), full).await;
        }
        return;
    };
    let serving = pin!(serve_one(stream, shared, &place));
    match select(serving, given_up).await {
        Either::Left((Err(e), _)) => tracing::debug!(%from, "connection ended: {e}"),
        Either::Left((Ok(()), _)) => {}
        Either::Right(_) => tracing::debug!(%from, "an idle connection made room for another"),
    }
}

/// What somebody for whom there is no place is told, before anything was read of what he says.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: application/json\r\n\
    Content-Length: 57\r\n\r\n{\"error\":\"busy\",\"message\":\"too many connections at once\"}";

async fn serve_one(
    stream: BoxStream,
    shared: &Serving,
    place: &Place,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let limits = &shared.limits;
    let (stream, vectored, h2) = match &shared.tls {
        None => (stream, true, false),
        Some(tls) => {
            let (stream, h2) = shared.rt.timeout(limits.head, tls.accept(stream)).await??;
            (stream, false, h2)
        }
    };
    let io = HyperIo::new(stream, vectored, shared.rt.clone(), limits.write_stall);
    let router = shared.router.clone();
    let seat = place.seat();
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, seat) = (router.clone(), seat.clone());
        async move { Ok::<_, Infallible>(seat.serve(router, request).await) }
    });
    let timer = HyperTimer(shared.rt.clone());
    if h2 {
        let mut serving = pin!(
            conn::http2::Builder::new(HyperExecutor(shared.rt.clone()))
                .timer(timer)
                .max_concurrent_streams(64)
                .max_header_list_size(limits.head_bytes.min(64 * 1024) as u32)
                .keep_alive_interval(limits.head)
                .keep_alive_timeout(limits.head)
                .serve_connection(io, service)
        );
        if let Either::Left((outcome, _)) = select(serving.as_mut(), shared.stopped.wait()).await {
            return Ok(outcome?);
        }
        serving.as_mut().graceful_shutdown();
        return Ok(shared.rt.timeout(limits.grace, serving).await??);
    }
    let mut serving = pin!(
        conn::http1::Builder::new()
            .timer(timer)
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            .max_buf_size(limits.head_bytes)
            .half_close(true)
            .serve_connection(io, service)
            .with_upgrades()
    );
    if let Either::Left((outcome, _)) = select(serving.as_mut(), shared.stopped.wait()).await {
        return Ok(outcome?);
    }
    serving.as_mut().graceful_shutdown();
    Ok(shared.rt.timeout(limits.grace, serving).await??)
}
