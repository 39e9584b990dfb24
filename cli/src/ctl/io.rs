//! Between futures-io streams and hyper, with an eye on whether anything moves.

use futures::future::{Either, select};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// When something moved last on a connection. Ends waits that last longer than the limit.
pub struct Activity {
    limit: Duration,
    state: Mutex<State>,
}

struct State {
    last: Instant,
    paused: bool,
}

impl Activity {
    /// `limit` zero: never ends a wait.
    pub fn new(limit: Duration) -> Arc<Activity> {
        Arc::new(Activity { limit, state: Mutex::new(State { last: Instant::now(), paused: false }) })
    }

    fn set(&self, paused: Option<bool>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last = Instant::now();
        state.paused = paused.unwrap_or(state.paused);
    }

    /// Something moved.
    pub fn moved(&self) {
        self.set(None);
    }

    /// It is our turn: the peer is not late.
    pub fn pause(&self) {
        self.set(Some(true));
    }

    /// It is the peer's turn again, from now on.
    pub fn resume(&self) {
        self.set(Some(false));
    }

    async fn expired(&self) {
        if self.limit.is_zero() {
            return futures::future::pending().await;
        }
        loop {
            let due = {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let due = if state.paused { now } else { state.last } + self.limit;
                if due <= now {
                    return;
                }
                due
            };
            smol::Timer::at(due).await;
        }
    }

    /// `work`, or `TimedOut` once nothing has moved for the limit.
    pub async fn guard<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        match select(pin!(work), pin!(self.expired())).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                let message = format!("nothing moved for {:?} (see -timeout)", self.limit);
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }
}

/// A futures-io stream as hyper wants it. Reads go through a buffer of our own, which costs one copy and no `unsafe`.
pub struct HyperIo<S> {
    stream: S,
    buffer: Box<[u8]>,
    activity: Arc<Activity>,
}

impl<S> HyperIo<S> {
    /// Wraps `stream`; its progress is reported to `activity`.
    pub fn new(stream: S, activity: Arc<Activity>) -> HyperIo<S> {
        HyperIo { stream, buffer: vec![0; 64 * 1024].into_boxed_slice(), activity }
    }
}

impl<S: futures::io::AsyncRead + Unpin> hyper::rt::Read for HyperIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let HyperIo { stream, buffer, activity } = &mut *self;
        let room = into.remaining().min(buffer.len());
        let n = ready!(Pin::new(stream).poll_read(cx, &mut buffer[..room]))?;
        into.put_slice(&buffer[..n]);
        activity.moved();
        Poll::Ready(Ok(()))
    }
}

impl<S: futures::io::AsyncWrite + Unpin> hyper::rt::Write for HyperIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.activity.moved();
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_only_when_nothing_moves_and_it_is_the_peers_turn() {
        let never = || futures::future::pending::<io::Result<()>>();
        let activity = Activity::new(Duration::from_millis(20));
        let error = smol::block_on(activity.guard(never())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        activity.pause();
        let ours = async {
            smol::Timer::after(Duration::from_millis(80)).await;
            Ok(7)
        };
        assert_eq!(smol::block_on(activity.guard(ours)).unwrap(), 7);
    }
}
