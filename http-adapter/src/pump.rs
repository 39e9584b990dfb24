//! Moves bytes between async tasks and blocking files: the next piece is received while the last one is written, the next
//! one read while the last one is sent. Memory is bounded by two pieces.

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use ice_serve::Rt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Bytes per piece. Large, so that changing threads for each costs little.
pub(crate) const PIECE_BYTES: usize = 512 * 1024;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum PumpError<E> {
    /// The work itself failed.
    Work(E),
    /// The work could not be done: a panic, or the runtime stops.
    Runtime(io::Error),
}

type Running<W, E, F> = BoxFuture<'static, io::Result<(W, F, Result<(), E>)>>;

enum State<W, E, F> {
    Idle(W, F),
    Working(Running<W, E, F>),
    Broken,
}

/// Writes bytes with `work`, in order, on a blocking thread.
pub(crate) struct Pump<W, E, F> {
    rt: Rt,
    state: State<W, E, F>,
    gathered: Vec<Bytes>,
    bytes: usize,
}

impl<W, E, F> Pump<W, E, F>
where
    W: Send + 'static,
    E: Send + 'static,
    F: FnMut(&mut W, &[u8]) -> Result<(), E> + Send + 'static,
{
    pub(crate) fn new(rt: &Rt, target: W, work: F) -> Pump<W, E, F> {
        Pump { rt: rt.clone(), state: State::Idle(target, work), gathered: Vec::new(), bytes: 0 }
    }

    /// Takes bytes; waits while too much is waiting to be written. After an error nothing more is written.
    pub(crate) async fn push(&mut self, bytes: Bytes) -> Result<(), PumpError<E>> {
        self.bytes += bytes.len();
        self.gathered.push(bytes);
        if self.bytes >= PIECE_BYTES { self.begin().await } else { Ok(()) }
    }

    /// Begins to write what was gathered, as soon as the previous piece is written.
    async fn begin(&mut self) -> Result<(), PumpError<E>> {
        self.settle().await?;
        let State::Idle(mut target, mut work) = std::mem::replace(&mut self.state, State::Broken) else {
            return Err(PumpError::Runtime(io::Error::other("writing failed before")));
        };
        let pieces = std::mem::take(&mut self.gathered);
        self.bytes = 0;
        self.state = State::Working(self.rt.blocking(move || {
            let outcome = pieces.iter().try_for_each(|piece| work(&mut target, piece));
            (target, work, outcome)
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), PumpError<E>> {
        let State::Working(running) = &mut self.state else { return Ok(()) };
        let outcome = running.await;
        self.state = State::Broken;
        let (target, work, outcome) = outcome.map_err(PumpError::Runtime)?;
        outcome.map_err(PumpError::Work)?;
        self.state = State::Idle(target, work);
        Ok(())
    }

    /// Writes what is left, and lets the target be looked at.
    pub(crate) async fn flush(&mut self) -> Result<&mut W, PumpError<E>> {
        if self.bytes > 0 {
            self.begin().await?;
        }
        self.settle().await?;
        match &mut self.state {
            State::Idle(target, _) => Ok(target),
            _ => Err(PumpError::Runtime(io::Error::other("writing failed before"))),
        }
    }

    /// Writes what is left and gives the target back.
    pub(crate) async fn finish(mut self) -> Result<W, PumpError<E>> {
        self.flush().await?;
        match self.state {
            State::Idle(target, _) => Ok(target),
            _ => Err(PumpError::Runtime(io::Error::other("writing failed before"))),
        }
    }
}

/// Something that can be read from at any offset, on a blocking thread.
pub(crate) trait ReadAt: Send + Sync + 'static {
    /// Reads into `buf`; short only at the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// True if what was read is of one version: asked after the last read.
    fn still_valid(&self) -> bool;
}

/// A stream of the bytes `at..end`, read one piece ahead. It ends with an error if the file is shorter or has changed.
pub(crate) struct ReadStream {
    rt: Rt,
    file: Arc<dyn ReadAt>,
    at: u64,
    end: u64,
    reading: Option<BoxFuture<'static, io::Result<io::Result<Bytes>>>>,
}

impl ReadStream {
    pub(crate) fn new(rt: &Rt, file: Arc<dyn ReadAt>, at: u64, end: u64) -> ReadStream {
        ReadStream { rt: rt.clone(), file, at, end, reading: None }
    }

    fn read_ahead(&mut self) {
        if self.at >= self.end {
            return;
        }
        let (file, at) = (self.file.clone(), self.at);
        let n = (self.end - at).min(PIECE_BYTES as u64) as usize;
        self.at += n as u64;
        let last = self.at == self.end;
        self.reading = Some(self.rt.blocking(move || {
            let mut piece = vec![0; n];
            if file.read_at(at, &mut piece)? < n {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Before the receiver has all bytes: it must not take a mixture for a version.
            if last && !file.still_valid() {
                return Err(io::Error::other("the file changed while it was read"));
            }
            Ok(Bytes::from(piece))
        }));
    }
}

impl Stream for ReadStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.reading.is_none() {
            self.read_ahead();
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let piece = ready!(reading.as_mut().poll(cx)).and_then(|r| r);
        self.reading = None;
        if piece.is_ok() {
            self.read_ahead();
        } else {
            self.at = self.end;
        }
        Poll::Ready(Some(piece))
    }
}
