//! Watches of clients: what the core tells a stream finds its way to whoever asked.

use crate::control::{Refused, Result, WatchNews, WatchRequest, Watches};
use crate::engine::Engine;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use ice_core::control::{Answer, Ask, Watching};
use ice_core::event::Event;
use ice_core::kv::watch::{Message, StreamId, Told, WatchId, WatchSpec};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a watcher has taken is told to the core in portions of about this size: far less than it lets be under way.
const TAKEN_BYTES: usize = 128 * 1024;
/// The core answers at once; this is for a node that cannot.
const CREATE_MAX: Duration = Duration::from_secs(5);

/// Where streams are found by their numbers.
#[derive(Default)]
pub struct Router {
    // What is under way to a stream is limited by the core: a watcher that takes nothing is told nothing more.
    streams: Mutex<HashMap<StreamId, UnboundedSender<Message>>>,
    next: AtomicU64,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    /// Without streams.
    pub fn new() -> Arc<Router> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, UnboundedSender<Message>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out what the core tells. Called with the engine's lock held.
    pub fn told(&self, messages: Vec<Message>) {
        let streams = self.lock();
        for m in messages {
            if let Some(to) = streams.get(&m.stream) {
                // A stream that is just being dropped does not listen any more.
                drop(to.unbounded_send(m));
            }
        }
    }

    /// A new stream.
    pub(super) fn stream(self: &Arc<Router>, engine: &Arc<Engine>) -> PlaneWatches {
        let id = StreamId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let (to, from) = unbounded();
        self.lock().insert(id, to);
        PlaneWatches {
            engine: Arc::clone(engine),
            router: Arc::clone(self),
            stream: id,
            from,
            next: 0,
            own: HashMap::new(),
            clients: HashMap::new(),
        }
    }
}

/// The watches of one client.
pub struct PlaneWatches {
    engine: Arc<Engine>,
    router: Arc<Router>,
    stream: StreamId,
    from: UnboundedReceiver<Message>,
    /// Ids towards the core are never used twice, so that what is still under way for a watch that was cancelled is not taken
    /// for that of one with the same name.
    next: i64,
    /// By our id: the client's, and what was taken and not told yet.
    own: HashMap<i64, (i64, usize)>,
    clients: HashMap<i64, i64>,
}

impl PlaneWatches {
    fn taken(&mut self, own: i64, bytes: usize) {
        let Some((_, sum)) = self.own.get_mut(&own) else { return };
        *sum += bytes;
        if *sum >= TAKEN_BYTES {
            let who = WatchId { stream: self.stream, id: own };
            let bytes = std::mem::take(sum);
            self.engine.event(Event::Watching(Watching::Taken(who, bytes)));
        }
    }

    /// What the client is told of this, if anything.
    fn news(&mut self, told: Told) -> Option<WatchNews> {
        match told {
            Told::Created { id, revision } => {
                let (client, _) = self.own.get(&id)?;
                Some(WatchNews::Created { id: *client, revision })
            }
            Told::Events { id, revision, events, bytes, .. } => {
                let (client, _) = *self.own.get(&id)?;
                self.taken(id, bytes);
                let events = events.iter().map(ice_core::kv::watch::Shared::event).collect();
                Some(WatchNews::Events { id: client, revision, events })
            }
            Told::Progress { id: None, revision } => Some(WatchNews::AllCurrent { revision }),
            Told::Progress { id: Some(_), .. } => None,
            Told::Cancelled { id, compacted, .. } => {
                let (client, _) = self.own.remove(&id)?;
                self.clients.remove(&client);
                Some(WatchNews::Compacted { id: client, compacted: compacted.unwrap_or(0) })
            }
        }
    }
}

impl Watches for PlaneWatches {
    fn create(&mut self, request: WatchRequest) -> Result<()> {
        if self.clients.contains_key(&request.id) {
            return Err(Refused::Store(ice_core::kv::Error::DuplicateKey));
        }
        self.next += 1;
        let (own, client) = (self.next, request.id);
        let spec = WatchSpec {
            key: request.key,
            end: request.end,
            start: request.start,
            no_put: request.no_put,
            no_delete: request.no_delete,
            prev_kv: request.prev_kv,
            progress: false,
            fragment: false,
        };
        self.own.insert(own, (client, 0));
        self.clients.insert(client, own);
        let ask = Ask::Watch { stream: self.stream, id: own, spec };
        let why = match self.engine.control_now(ask, CREATE_MAX) {
            Answer::Done => return Ok(()),
            Answer::Refused(why) => super::refused(why),
            other => super::odd(&other),
        };
        self.own.remove(&own);
        self.clients.remove(&client);
        Err(why)
    }

    fn cancel(&mut self, id: i64) -> bool {
        let Some(own) = self.clients.remove(&id) else { return false };
        self.own.remove(&own);
        let who = WatchId { stream: self.stream, id: own };
        self.engine.event(Event::Watching(Watching::Cancel(who)));
        true
    }

    fn progress(&mut self) {
        self.engine.event(Event::Watching(Watching::Progress(self.stream)));
    }

    async fn next(&mut self) -> Result<WatchNews> {
        loop {
            let m = self.from.next().await.ok_or(Refused::Stopping)?;
            if let Some(news) = self.news(m.told) {
                return Ok(news);
            }
        }
    }
}

impl Drop for PlaneWatches {
    fn drop(&mut self) {
        self.router.lock().remove(&self.stream);
        self.engine.event(Event::Watching(Watching::Close(self.stream)));
    }
}
