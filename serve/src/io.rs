//! What hyper wants of a runtime: a stream, a timer, an executor.

use crate::rt::Rt;
use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncWrite};
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use ice_host::runtime::BoxStream;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Smallest and largest read at once. It adapts, because a buffer must be cleared before it is read into.
const READ_MIN_BYTES: usize = 8 * 1024;
const READ_MAX_BYTES: usize = 512 * 1024;

/// A stream for hyper. A write that the other side does not take for `stall_limit` fails with `TimedOut`.
pub struct HyperIo {
    stream: BoxStream,
    vectored: bool,
    read_size: usize,
    rt: Rt,
    stall_limit: Duration,
    stall: Option<BoxFuture<'static, ()>>,
}

impl HyperIo {
    /// `vectored`: several slices at once are worth passing on (not so on TLS, which copies anyway).
    pub fn new(stream: BoxStream, vectored: bool, rt: Rt, stall_limit: Duration) -> HyperIo {
        HyperIo { stream, vectored, read_size: READ_MIN_BYTES, rt, stall_limit, stall: None }
    }

    /// The stream, after an upgrade.
    pub fn into_stream(self) -> BoxStream {
        self.stream
    }

    /// Passes a write's outcome on, and watches for writes that never get through.
    fn watch<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall = None;
            return outcome;
        }
        let stall = self.stall.get_or_insert_with(|| self.rt.sleep(self.stall_limit));
        ready!(stall.as_mut().poll(cx));
        self.stall = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not take what it asked for")))
    }
}

impl Read for HyperIo {
    #[allow(unsafe_code)]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let want = buf.remaining().min(self.read_size);
        // SAFETY: only zeroes and bytes that were read are written to the slice; nothing in it becomes uninitialised.
        let room: &mut [MaybeUninit<u8>] = &mut unsafe { buf.as_mut() }[..want];
        room.fill(MaybeUninit::new(0));
        // SAFETY: every byte of `room` was just initialised, and `MaybeUninit<u8>` has the layout of `u8`.
        let room = unsafe { &mut *(std::ptr::from_mut(room) as *mut [u8]) };
        let n = ready!(Pin::new(&mut self.stream).poll_read(cx, room))?;
        let n = n.min(want);
        // SAFETY: the first `want` bytes are initialised, and `n <= want`.
        unsafe { buf.advance(n) };
        if n == want && want == self.read_size {
            self.read_size = (self.read_size * 2).min(READ_MAX_BYTES);
        } else if n < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(READ_MIN_BYTES);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for HyperIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, outcome)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, outcome)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_close(cx);
        self.watch(cx, outcome)
    }
    fn is_write_vectored(&self) -> bool {
        self.vectored
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, outcome)
    }
}

/// Timers for hyper.
#[derive(Clone, Debug)]
pub struct HyperTimer(pub Rt);

/// hyper wants its sleeps `Sync`: the mutex gives that, and is never locked.
struct HyperSleep(Mutex<BoxFuture<'static, ()>>);

impl Future for HyperSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut().poll(cx)
    }
}
impl Sleep for HyperSleep {}

impl Timer for HyperTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(HyperSleep(Mutex::new(self.0.sleep(duration))))
    }
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HyperSleep(Mutex::new(self.0.sleep_until(deadline))))
    }
}

/// Background tasks for hyper.
#[derive(Clone, Debug)]
pub struct HyperExecutor(pub Rt);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for HyperExecutor {
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// Ends a wait when nothing happened for a while, without arming a timer for every read.
pub struct Idle {
    rt: Rt,
    limit: Duration,
    since: Instant,
    timer: BoxFuture<'static, ()>,
}

impl Idle {
    /// The wait begins now.
    pub fn new(rt: &Rt, limit: Duration) -> Idle {
        Idle { rt: rt.clone(), limit, since: Instant::now(), timer: rt.sleep(limit) }
    }

    /// `TimedOut` if `poll` stays pending for the limit, counted from the last call that got something done.
    pub fn watch<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.since = Instant::now();
            return outcome;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.since + self.limit;
            if due <= Instant::now() {
                self.timer = self.rt.sleep(self.limit);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer = self.rt.sleep_until(due);
        }
        Poll::Pending
    }

    /// The wait begins now.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }
}
