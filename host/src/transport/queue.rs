//! The bounded queue between the engine, which must never wait, and a connection's writer.

use bytes::Bytes;
use ice_core::message::Message;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Messages that wait for one connection.
pub const QUEUE_MESSAGES_MAX: usize = 4096;
/// Bytes of payloads, and of records of a state, that wait for one connection.
pub const QUEUE_PAYLOAD_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A message with the bytes of its payloads, which the pool may drop once this exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// Bytes of its payloads, in order.
    pub payloads: Vec<Bytes>,
}

impl Outgoing {
    fn payload_bytes(&self) -> u64 {
        self.payloads.iter().map(|b| b.len() as u64).sum::<u64>() + self.message.weight() as u64
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Outgoing>,
    payload_bytes: u64,
    dropped: u64,
    closed: Option<String>,
    writer: Option<Waker>,
}

/// Many may push, one writer takes. A message over the limit is dropped: the core sends again what was not acknowledged.
#[derive(Default)]
pub struct Queue(Mutex<State>);

/// What the writer got.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Messages, in order.
    Some(Vec<Outgoing>),
    /// The connection is to be closed, for this reason; everything that was pushed before has been taken.
    Closed(String),
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Queue {
        Queue::default()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every update below leaves the state whole, so a panic elsewhere does no harm to it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message. `false`: dropped, because the queue is full or closed.
    pub fn push(&self, out: Outgoing) -> bool {
        let mut state = self.state();
        let bytes = out.payload_bytes();
        let full = state.waiting.len() >= QUEUE_MESSAGES_MAX
            || (state.payload_bytes + bytes > QUEUE_PAYLOAD_BYTES_MAX && !state.waiting.is_empty());
        if full || state.closed.is_some() {
            state.dropped += 1;
            return false;
        }
        state.payload_bytes += bytes;
        state.waiting.push_back(out);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        true
    }

    /// Asks the writer to close the connection after what was pushed before. The first reason stays.
    pub fn close(&self, why: &str) {
        let mut state = self.state();
        state.closed.get_or_insert_with(|| why.to_owned());
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Everything that waits, at most `most` messages. For the one writer.
    pub fn poll_take(&self, waker: &Waker, most: usize) -> Poll<Taken> {
        let mut state = self.state();
        if !state.waiting.is_empty() {
            let n = state.waiting.len().min(most.max(1));
            let taken: Vec<_> = state.waiting.drain(..n).collect();
            state.payload_bytes -= taken.iter().map(Outgoing::payload_bytes).sum::<u64>();
            return Poll::Ready(Taken::Some(taken));
        }
        if let Some(why) = &state.closed {
            return Poll::Ready(Taken::Closed(why.clone()));
        }
        if !state.writer.as_ref().is_some_and(|w| w.will_wake(waker)) {
            state.writer = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Messages dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ice_core::limits::INLINE_CONTENT_MAX_BYTES;

    fn bye(bytes: usize) -> Outgoing {
        Outgoing { message: Message::Bye, payloads: vec![Bytes::from(vec![0; bytes])] }
    }

    #[test]
    fn is_bounded_in_messages() {
        let queue = Queue::new();
        let accepted = (0..QUEUE_MESSAGES_MAX + 10).filter(|_| queue.push(bye(0))).count();
        assert_eq!((accepted, queue.dropped()), (QUEUE_MESSAGES_MAX, 10));
        let Poll::Ready(Taken::Some(taken)) = queue.poll_take(Waker::noop(), 5) else { panic!("nothing taken") };
        assert_eq!(taken.len(), 5);
        assert!(queue.push(bye(0)));
    }

    #[test]
    fn is_bounded_in_bytes_but_never_stuck() {
        let queue = Queue::new();
        assert!(queue.push(bye(QUEUE_PAYLOAD_BYTES_MAX as usize + 1)), "a single message always fits");
        assert!(!queue.push(bye(1)));
        assert!(matches!(queue.poll_take(Waker::noop(), 9), Poll::Ready(Taken::Some(_))));
        let one = INLINE_CONTENT_MAX_BYTES as usize;
        let accepted = (0..1000).filter(|_| queue.push(bye(one))).count();
        assert_eq!(accepted as u64, QUEUE_PAYLOAD_BYTES_MAX / INLINE_CONTENT_MAX_BYTES);
    }

    #[test]
    fn closes_after_what_was_pushed_before() {
        let queue = Queue::new();
        queue.push(bye(0));
        queue.close("enough");
        queue.close("too late");
        assert!(!queue.push(bye(0)));
        assert!(matches!(queue.poll_take(Waker::noop(), 9), Poll::Ready(Taken::Some(_))));
        assert_eq!(queue.poll_take(Waker::noop(), 9), Poll::Ready(Taken::Closed("enough".into())));
    }
}
