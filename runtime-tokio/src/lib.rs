//! icecluster on tokio: a multi-threaded runtime behind [`ice_host::runtime::Runtime`].
#![warn(missing_docs)]
#![forbid(unsafe_code)]

use futures::io::{AsyncRead, AsyncWrite};
use ice_host::runtime::{BoxStream, CONNECT_NEXT_AFTER, Listener, Runtime, bind, guarded};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// Threads that may run blocking work at once; further work queues.
const BLOCKING_THREADS_MAX: usize = 256;

/// A tokio runtime. Clones share it; when the last one goes, its threads end.
#[derive(Clone)]
pub struct Tokio(Arc<Owned>);

struct Owned(Option<tokio::runtime::Runtime>);

impl Owned {
    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.0.as_ref().expect("the runtime is only taken out when this is dropped")
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The last clone may live in one of the runtime's own tasks, where waiting for its threads would panic.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Tokio {
    /// Starts `threads` worker threads (at least one).
    pub fn new(threads: usize) -> io::Result<Tokio> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("ice-tokio")
            .enable_all()
            .build()?;
        Ok(Tokio(Arc::new(Owned(Some(runtime)))))
    }
}

impl Runtime for Tokio {
    type Listener = TokioListener;

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + Send + 'static {
        // Enter the runtime, so that a timer may be made on any thread.
        let _inside = self.0.runtime().enter();
        tokio::time::sleep_until(deadline.into())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime().spawn(guarded(task));
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send + 'static {
        let running = self.0.runtime().spawn_blocking(work);
        async move { running.await.map_err(io::Error::other) }
    }

    async fn connect(&self, authority: &str) -> io::Result<BoxStream> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(authority).await?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{authority:?} has no address"));
        for (i, address) in addresses.iter().enumerate() {
            let connecting = TcpStream::connect(address);
            let outcome = if i + 1 < addresses.len() {
                self.timeout(CONNECT_NEXT_AFTER, connecting).await.and_then(|r| r)
            } else {
                connecting.await
            };
            match outcome {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Box::new(Tcp(stream)));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn listen(&self, addr: &str) -> io::Result<TokioListener> {
        let addr = addr.to_owned();
        let socket = self.blocking(move || bind(&addr)).await??;
        let _inside = self.0.runtime().enter();
        Ok(TokioListener(TcpListener::from_std(socket)?))
    }

    fn block_on<T>(&self, main: impl Future<Output = T>) -> T {
        self.0.runtime().block_on(main)
    }

    async fn timeout<T: Send>(&self, limit: Duration, work: impl Future<Output = T> + Send) -> io::Result<T> {
        tokio::time::timeout(limit, work).await.map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

/// A listening TCP socket.
pub struct TokioListener(TcpListener);

impl Listener for TokioListener {
    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(Tcp(stream)), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// tokio's TCP stream with the traits of `futures::io`.
struct Tcp(TcpStream);

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        Pin::new(&mut self.0).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
