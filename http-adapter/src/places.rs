//! Who may hold a connection, when there are more than there is room for.
//!
//! Anybody can connect, and a connection costs nothing to whoever holds it idle: without an order among them strangers could
//! keep the peers of the cluster out. So idle connections make room for new ones, first those on which nobody has shown that he
//! belongs here; and while all others are at work, the last places are for peers alone.

use crate::api::error::Failure;
use crate::peer::PEER_PATH;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::channel::oneshot;
use http::{HeaderValue, StatusCode, header};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tower::ServiceExt;

/// A path that only peers ask for.
pub(crate) fn is_peers(path: &str) -> bool {
    path.strip_prefix(PEER_PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All connections of a listener.
#[derive(Clone)]
pub(crate) struct Places(Arc<Mutex<Held>>);

struct Held {
    most: usize,
    for_peers: usize,
    /// Counts everything that happens, instead of a clock.
    now: u64,
    seats: BTreeMap<u64, Seated>,
}

struct Seated {
    /// Requests that are being answered.
    running: usize,
    /// When the last one ended, or when it came.
    idle_since: u64,
    /// Somebody who belongs here has used it.
    known: bool,
    /// Only a peer may use it.
    for_peers: bool,
    /// Dropping this ends the connection.
    _hold: oneshot::Sender<()>,
}

/// A connection's place, given back when it is dropped.
pub(crate) struct Place(Seat);

/// The same, for the requests on it.
#[derive(Clone)]
pub(crate) struct Seat {
    places: Places,
    number: u64,
}

/// A request at work, until its answer has been sent.
struct Running(Seat);

impl Places {
    pub(crate) fn new(most: usize, for_peers: usize) -> Places {
        let for_peers = for_peers.min(most.saturating_sub(1));
        Places(Arc::new(Mutex::new(Held { most, for_peers, now: 0, seats: BTreeMap::new() })))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // No code that may panic runs while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, and what ends when it has to be given up. `None`: all are taken, and everybody is at work.
    pub(crate) fn take(&self) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut held = self.held();
        if held.seats.len() >= held.most && !held.make_room() {
            return None;
        }
        let at_work = || held.seats.values().filter(|s| s.running > 0 && !s.for_peers).count();
        let full = held.seats.len() + held.for_peers >= held.most && at_work() + held.for_peers >= held.most;
        held.now += 1;
        let number = held.now;
        let (hold, given_up) = oneshot::channel();
        let seated = Seated { running: 0, idle_since: number, known: false, for_peers: full, _hold: hold };
        held.seats.insert(number, seated);
        Some((Place(Seat { places: self.clone(), number }), given_up))
    }
}

impl Held {
    /// Ends the connection that is missed least, if there is one that is not at work.
    fn make_room(&mut self) -> bool {
        let idle = self.seats.iter().filter(|(_, seated)| seated.running == 0);
        match idle.min_by_key(|(_, seated)| (seated.known, seated.idle_since)).map(|(number, _)| *number) {
            Some(number) => self.seats.remove(&number).is_some(),
            None => false,
        }
    }
}

impl Place {
    pub(crate) fn seat(&self) -> Seat {
        self.0.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.held().seats.remove(&self.0.number);
    }
}

impl Seat {
    /// Answers a request, and keeps the place for as long as that takes.
    pub(crate) async fn serve(self, router: Router, mut request: Request<Incoming>) -> Response {
        let running = {
            let mut held = self.places.held();
            if let Some(seated) = held.seats.get_mut(&self.number) {
                if seated.for_peers && !is_peers(request.uri().path()) {
                    drop(held);
                    let busy = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many connections at once");
                    let mut response = busy.into_response();
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    return response;
                }
                seated.running += 1;
            }
            Running(self.clone())
        };
        request.extensions_mut().insert(self);
        let response = match router.oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        response.map(|body| Body::new(Counted { body, _running: running }))
    }

    /// Whoever uses this connection belongs here.
    pub(crate) fn known(&self) {
        if let Some(seated) = self.places.held().seats.get_mut(&self.number) {
            seated.known = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut held = self.0.places.held();
        held.now += 1;
        let now = held.now;
        if let Some(seated) = held.seats.get_mut(&self.0.number) {
            seated.running = seated.running.saturating_sub(1);
            seated.idle_since = now;
        }
    }
}

/// An answer's body that ends the request when it has been sent.
struct Counted {
    body: Body,
    _running: Running,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works(place: &Place) -> Running {
        let seat = place.seat();
        if let Some(seated) = seat.places.held().seats.get_mut(&seat.number) {
            seated.running += 1;
        }
        Running(seat)
    }

    fn is_over(end: &mut oneshot::Receiver<()>) -> bool {
        end.try_recv().is_err()
    }

    #[test]
    fn strangers_and_those_that_wait_for_longest_make_room() {
        let places = Places::new(3, 1);
        let (a, mut a_end) = places.take().unwrap();
        let (b, mut b_end) = places.take().unwrap();
        let (_c, mut c_end) = places.take().unwrap();
        a.seat().known();
        drop(works(&b));
        // `c` never said a word, and came before `b` fell silent.
        let (_d, mut d_end) = places.take().unwrap();
        assert!(is_over(&mut c_end) && !is_over(&mut a_end) && !is_over(&mut b_end));
        let (_e, _e_end) = places.take().unwrap();
        assert!(is_over(&mut b_end) && !is_over(&mut a_end) && !is_over(&mut d_end));
        let (_f, _f_end) = places.take().unwrap();
        assert!(is_over(&mut d_end) && !is_over(&mut a_end));
    }

    #[test]
    fn who_is_at_work_is_not_disturbed_and_the_last_places_are_for_peers() {
        let places = Places::new(3, 1);
        let (a, mut a_end) = places.take().unwrap();
        let (b, mut b_end) = places.take().unwrap();
        let (_at_a, at_b) = (works(&a), works(&b));
        let (c, c_end) = places.take().unwrap();
        assert!(places.held().seats[&c.0.number].for_peers);
        let at_c = works(&c);
        assert!(places.take().is_none());
        assert!(!is_over(&mut a_end) && !is_over(&mut b_end));
        drop((at_c, c, c_end));
        drop(at_b);
        let (d, _d_end) = places.take().unwrap();
        assert!(!places.held().seats[&d.0.number].for_peers);
        assert_eq!(places.held().seats.len(), 3);
    }

    #[test]
    fn one_place_is_for_anybody() {
        let places = Places::new(1, 5);
        let (a, _) = places.take().unwrap();
        assert!(!places.held().seats[&a.0.number].for_peers);
    }
}
