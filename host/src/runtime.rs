//! The six things a node needs of an async runtime. Two implementations: `ice-tokio`, `ice-smol`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A byte stream: a TCP or TLS connection. Implements `futures::io` traits, whatever the runtime.
pub trait Stream: futures::io::AsyncRead + futures::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: futures::io::AsyncRead + futures::io::AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A stream of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Where a listener hands its connections.
pub trait Listener: Send + 'static {
    /// The next connection, `TCP_NODELAY` set.
    fn accept(&mut self) -> impl Future<Output = io::Result<(BoxStream, SocketAddr)>> + Send;
    /// The address it is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// An async runtime. Cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// A bound listening socket.
    type Listener: Listener;

    /// Monotonic time.
    fn now(&self) -> Instant {
        Instant::now()
    }
    /// Ends at `deadline` or a little later.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + Send;
    /// Runs a task in the background. A panic in it is logged and ends the task only.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
    /// Runs blocking code on a thread where that is allowed.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;
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
