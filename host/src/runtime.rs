//! The six things a node needs of an async runtime. Two implementations: `ice-tokio`, `ice-smol`.

use futures::FutureExt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// A byte stream: a TCP or TLS connection. Implements `futures::io` traits, whatever the runtime.
///
/// `poll_close` ends the writing direction only (TCP `FIN`); what the other side still sends can be read.
pub trait Stream: futures::io::AsyncRead + futures::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: futures::io::AsyncRead + futures::io::AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Where a listener hands its connections.
pub trait Listener: Send + 'static {
    /// The next connection, `TCP_NODELAY` set. Dropping the future loses no connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(BoxStream, SocketAddr)>> + Send;
    /// The address it is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// An async runtime. Cheap to clone; when the last clone goes, its threads end.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// A bound listening socket.
    type Listener: Listener;

    /// Monotonic time.
    fn now(&self) -> Instant {
        Instant::now()
    }
    /// Ends at `deadline` or a little later. Must be created and polled inside a task or `block_on` of this runtime.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + Send + 'static;
    /// Runs a task in the background, from any thread. A panic in it is logged and ends the task only.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
    /// Runs blocking code on a thread where that is allowed. An error means that it panicked or the runtime is stopping.
    /// Dropping the future does not stop code that has begun.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send + 'static;
    /// Connects to `host:port`, `TCP_NODELAY` set, trying all addresses of the name.
    fn connect(&self, authority: &str) -> impl Future<Output = io::Result<BoxStream>> + Send;
    /// Binds `host:port`; an empty host means all addresses (IPv6 and IPv4).
    fn listen(&self, addr: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;
    /// Runs a future to its end on this thread, with the runtime around it.
    fn block_on<T>(&self, main: impl Future<Output = T>) -> T;

    /// `work`, or `TimedOut` after `limit`.
    fn timeout<T: Send>(
        &self,
        limit: Duration,
        work: impl Future<Output = T> + Send,
    ) -> impl Future<Output = io::Result<T>> + Send {
        async move {
            let timer = std::pin::pin!(self.sleep_until(self.now() + limit));
            match futures::future::select(std::pin::pin!(work), timer).await {
                futures::future::Either::Left((v, _)) => Ok(v),
                futures::future::Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// How long one address of several may take to answer before the next one is tried.
pub const CONNECT_NEXT_AFTER: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A background task whose panic is logged and goes no further.
pub async fn guarded(task: impl Future<Output = ()> + Send) {
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        tracing::error!("a background task panicked: {}", panic_words(&*panic));
    }
}

/// What a panic said.
pub fn panic_words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words")
}

/// A listening, non-blocking socket on `host:port`; an empty host means all addresses, IPv6 and IPv4. Port 0 takes a free
/// one. Resolves names, so it may block for a while: for start-up only.
pub fn bind(addr: &str) -> io::Result<std::net::TcpListener> {
    let (host, port) = addr
        .rsplit_once(':')
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{addr:?} is not host:port")))?;
    let port: u16 = port
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{port:?} is not a port number")))?;
    if host.is_empty() {
        return bind_one(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)))
            .or_else(|_| bind_one(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port))));
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"));
    for address in addr.to_socket_addrs()? {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
