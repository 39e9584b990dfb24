//! A runtime without its type: everything in this crate is compiled once, whatever the runtime.

use futures::channel::oneshot;
use futures::future::{BoxFuture, Either, select};
use ice_host::runtime::{BoxStream, Listener, Runtime};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

trait AnyRuntime: Send + Sync {
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;
    fn spawn(&self, task: BoxFuture<'static, ()>);
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>>;
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<BoxStream>>;
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn AnyListener>>>;
}

/// A listening socket of any runtime.
pub trait AnyListener: Send {
    /// The next connection, as [`Listener::accept`].
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>>;
    /// The address it is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl<L: Listener> AnyListener for L {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(Listener::accept(self))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Listener::local_addr(self)
    }
}

struct Erased<R>(R);

impl<R: Runtime> AnyRuntime for Erased<R> {
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        Box::pin(self.0.sleep_until(deadline))
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(self.0.blocking(work))
    }
    fn connect<'a>(&'a self, authority: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(self.0.connect(authority))
    }
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn AnyListener>>> {
        Box::pin(async move { Ok(Box::new(self.0.listen(addr).await?) as Box<dyn AnyListener>) })
    }
}

/// A runtime of any kind. Cheap to clone.
#[derive(Clone)]
pub struct Rt(Arc<dyn AnyRuntime>);

impl std::fmt::Debug for Rt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rt")
    }
}

impl Rt {
    /// Forgets the type of `runtime`.
    pub fn new(runtime: impl Runtime) -> Rt {
        Rt(Arc::new(Erased(runtime)))
    }

    /// Ends at `deadline` or a little later.
    pub fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        self.0.sleep_until(deadline)
    }

    /// Ends after `span` or a little later.
    pub fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep_until(Instant::now() + span)
    }

    /// Runs a task in the background.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(task));
    }

    /// Starts `work` at once on a thread where it may block.
    pub fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        let (done, result) = oneshot::channel();
        let running = self.0.blocking(Box::new(move || {
            // Fails only if nobody waits any more.
            let _ = done.send(work());
        }));
        Box::pin(async move {
            running.await?;
            result.await.map_err(io::Error::other)
        })
    }

    /// Connects to `host:port`.
    pub async fn connect(&self, authority: &str) -> io::Result<BoxStream> {
        self.0.connect(authority).await
    }

    /// Binds `host:port`.
    pub async fn listen(&self, addr: &str) -> io::Result<Box<dyn AnyListener>> {
        self.0.listen(addr).await
    }

    /// `work`, or `TimedOut` after `limit`.
    pub async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> io::Result<T> {
        match select(std::pin::pin!(work), self.sleep(limit)).await {
            Either::Left((v, _)) => Ok(v),
            Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
