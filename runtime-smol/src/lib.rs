//! icecluster on smol: an executor of its own threads and async-io's reactor behind [`ice_host::runtime::Runtime`].
#![warn(missing_docs)]
#![forbid(unsafe_code)]

use async_io::Async;
use futures::io::{AsyncRead, AsyncWrite};
use ice_host::runtime::{BoxStream, CONNECT_NEXT_AFTER, Listener, Runtime, bind, guarded, panic_words};
use smol::Executor;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// An executor and its threads. Clones share it; when the last one goes, the threads end.
#[derive(Clone)]
pub struct Smol(Arc<Inner>);

struct Inner {
    executor: Arc<Executor<'static>>,
    /// Nothing is ever sent: the threads end when this is dropped.
    _stop: smol::channel::Sender<()>,
}

impl Smol {
    /// Starts `threads` worker threads (at least one).
    pub fn new(threads: usize) -> io::Result<Smol> {
        let executor = Arc::new(Executor::new());
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        for i in 0..threads.max(1) {
            let (executor, stopped) = (executor.clone(), stopped.clone());
            std::thread::Builder::new().name(format!("ice-smol-{i}")).spawn(move || {
                // Ends with an error when the sender is gone.
                let _ = async_io::block_on(executor.run(stopped.recv()));
            })?;
        }
        Ok(Smol(Arc::new(Inner { executor, _stop: stop })))
    }
}

impl Runtime for Smol {
    type Listener = SmolListener;

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + Send + 'static {
        let timer = async_io::Timer::at(deadline);
        async move {
            timer.await;
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.executor.spawn(guarded(task)).detach();
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send + 'static {
        let running = smol::unblock(move || {
            catch_unwind(AssertUnwindSafe(work)).map_err(|panic| io::Error::other(panic_words(&*panic).to_owned()))
        });
        Running(Some(running))
    }

    async fn connect(&self, authority: &str) -> io::Result<BoxStream> {
        let addresses = smol::net::resolve(authority).await?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{authority:?} has no address"));
        for (i, address) in addresses.iter().enumerate() {
            let connecting = Async::<TcpStream>::connect(*address);
            let outcome = if i + 1 < addresses.len() {
                self.timeout(CONNECT_NEXT_AFTER, connecting).await.and_then(|r| r)
            } else {
                connecting.await
            };
            match outcome {
                Ok(stream) => {
                    stream.get_ref().set_nodelay(true)?;
                    return Ok(Box::new(Tcp(stream)));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn listen(&self, addr: &str) -> io::Result<SmolListener> {
        let addr = addr.to_owned();
        let socket = self.blocking(move || bind(&addr)).await??;
        Ok(SmolListener(Async::new_nonblocking(socket)?))
    }

    fn block_on<T>(&self, main: impl Future<Output = T>) -> T {
        async_io::block_on(main)
    }
}

/// Blocking work. A dropped task would be cancelled before it began; what was asked for is to be done.
struct Running<T>(Option<smol::Task<T>>);

impl<T> Future for Running<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let task = self.0.as_mut().expect("only dropping takes the task out");
        Pin::new(task).poll(cx)
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

/// A listening TCP socket.
pub struct SmolListener(Async<TcpListener>);

impl Listener for SmolListener {
    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.get_ref().set_nodelay(true)?;
        Ok((Box::new(Tcp(stream)), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }
}

/// async-io's TCP stream. Only `poll_close` differs: it ends the writing direction at once.
struct Tcp(Async<TcpStream>);

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
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
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.get_ref().shutdown(Shutdown::Write) {
            // The other side may be gone already.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}
