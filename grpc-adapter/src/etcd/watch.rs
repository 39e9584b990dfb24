//! Watches: any number of them on one stream.
//!
//! Nothing is taken from the store before the client has room for it: a response is made when the stream is asked for one.

use super::convert::{kv, natural, wide};
use super::{Shared, errors};
use crate::pb::{etcdserverpb as pb, mvccpb};
use futures::future::{BoxFuture, Either, select};
use futures::{Stream, StreamExt};
use ice_core::kv::command::By;
use ice_core::kv::keys::KeyRange;
use ice_core::limits;
use ice_host::control::{ControlPlane, Event, Head, Refused, WatchNews, WatchRequest, Watches};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) struct Watch<C>(pub(crate) Arc<Shared<C>>);

/// What no watch is called.
const NO_WATCH: i64 = -1;
/// A response to a client that asked for fragments has no more bytes of events than this, unless a single one has.
const FRAGMENT_BYTES: usize = limits::KV_REQUEST_MAX_BYTES;

#[tonic::async_trait]
impl<C: ControlPlane> pb::watch_server::Watch for Watch<C> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let by = self.0.who(&request).await?;
        let session = Session {
            by,
            incoming: request.into_inner(),
            watches: self.0.plane.watches(),
            ready: VecDeque::new(),
            known: BTreeMap::new(),
            next_id: 0,
            asked: false,
            tick: self.0.rt.sleep(self.0.options.progress),
            shared: self.0.clone(),
        };
        let responses = futures::stream::try_unfold(session, |mut session| async move {
            Ok(session.next().await?.map(|response| (response, session)))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// What has to be remembered of a watch.
struct Known {
    fragment: bool,
    /// Wants to be kept current.
    progress: bool,
    /// It was told something since the last tick.
    told: bool,
}

struct Session<C: ControlPlane> {
    shared: Arc<Shared<C>>,
    by: By,
    incoming: Streaming<pb::WatchRequest>,
    watches: C::Watches,
    /// Answers to what was asked or told last: bounded by what one request or one piece of news makes.
    ready: VecDeque<pb::WatchResponse>,
    known: BTreeMap<i64, Known>,
    next_id: i64,
    /// The client waits for a progress response.
    asked: bool,
    tick: BoxFuture<'static, ()>,
}

enum Happened {
    Asked(Option<Result<pb::WatchRequest, Status>>),
    News(Result<WatchNews, Refused>),
    Tick,
    Stop,
}

impl<C: ControlPlane> Session<C> {
    /// The next response; `None` when the client has no more requests, which ends its watches.
    async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(Some(response));
            }
            match self.happens().await {
                Happened::Asked(None) => return Ok(None),
                Happened::Asked(Some(request)) => self.asked(request?).await?,
                Happened::News(news) => self.tell(news.map_err(errors::refused)?),
                Happened::Tick => {
                    self.tick = self.shared.rt.sleep(self.shared.options.progress);
                    if self.known.values().any(|k| k.progress) {
                        self.watches.progress();
                    }
                }
                Happened::Stop => return Err(errors::refused(Refused::Stopping)),
            }
        }
    }

    async fn happens(&mut self) -> Happened {
        let stop = self.shared.stopped.wait();
        let asked = self.incoming.next();
        let news = std::pin::pin!(self.watches.next());
        match select(select(asked, news), select(&mut self.tick, stop)).await {
            Either::Left((Either::Left((request, _)), _)) => Happened::Asked(request),
            Either::Left((Either::Right((news, _)), _)) => Happened::News(news),
            Either::Right((Either::Left(_), _)) => Happened::Tick,
            Either::Right((Either::Right(_), _)) => Happened::Stop,
        }
    }

    fn header(&self, revision: u64) -> Option<pb::ResponseHeader> {
        let term = self.shared.plane.head().term;
        self.shared.header(Head { revision, term })
    }

    fn response(&self, id: i64, revision: u64) -> pb::WatchResponse {
        pb::WatchResponse { header: self.header(revision), watch_id: id, ..pb::WatchResponse::default() }
    }

    async fn asked(&mut self, request: pb::WatchRequest) -> Result<(), Status> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                if let Err((id, reason)) = self.create(create).await {
                    let mut no = self.response(id, self.shared.plane.head().revision);
                    (no.created, no.canceled, no.cancel_reason) = (true, true, reason);
                    self.ready.push_back(no);
                }
            }
            Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })) => self.cancel(watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                self.asked = true;
                self.watches.progress();
            }
            // A request of a later version.
            None => {}
        }
        Ok(())
    }

    /// Ends a watch; one that there is not gets no answer.
    fn cancel(&mut self, id: i64) {
        if self.known.remove(&id).is_some() && self.watches.cancel(id) {
            let mut over = self.response(id, self.shared.plane.head().revision);
            over.canceled = true;
            self.ready.push_back(over);
        }
    }

    /// Starts a watch, or says for which watch it does not, and why.
    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), (i64, String)> {
        let id = match create.watch_id {
            0 => {
                while self.known.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id if id < 0 || self.known.contains_key(&id) => {
                return Err((NO_WATCH, "etcdserver: mvcc: duplicate watch ID provided on the WatchStream".to_owned()));
            }
            id => id,
        };
        // No key at all is the first one there can be.
        let key = if create.key.is_empty() { vec![0] } else { create.key.to_vec() };
        let end = create.range_end.to_vec();
        let refuse = |e: Status| (NO_WATCH, format!("rpc error: code = {} desc = {}", go_name(e.code()), e.message()));
        if KeyRange::new(&key, &end).is_empty() {
            return Err((NO_WATCH, "etcdserver: mvcc: watcher range is empty".to_owned()));
        }
        self.shared.may_read(&self.by, &key, &end).await.map_err(refuse)?;
        let filter = |kind: FilterType| create.filters.contains(&kind.into());
        let request = WatchRequest {
            id,
            key,
            end,
            start: natural(create.start_revision),
            no_put: filter(FilterType::Noput),
            no_delete: filter(FilterType::Nodelete),
            prev_kv: create.prev_kv,
        };
        self.watches.create(request).map_err(|e| refuse(errors::refused(e)))?;
        self.known.insert(id, Known { fragment: create.fragment, progress: create.progress_notify, told: false });
        Ok(())
    }

    fn tell(&mut self, news: WatchNews) {
        match news {
            WatchNews::Created { id, revision } => {
                let mut created = self.response(id, revision);
                created.created = true;
                self.ready.push_back(created);
            }
            WatchNews::Events { id, revision, events } => {
                let Some(known) = self.known.get_mut(&id) else { return };
                known.told = true;
                let most = if known.fragment { FRAGMENT_BYTES } else { usize::MAX };
                let mut parts = parts(events, most).peekable();
                while let Some(events) = parts.next() {
                    let mut response = self.response(id, revision);
                    (response.events, response.fragment) = (events, parts.peek().is_some());
                    self.ready.push_back(response);
                }
            }
            WatchNews::AllCurrent { revision } => {
                if std::mem::take(&mut self.asked) {
                    self.ready.push_back(self.response(NO_WATCH, revision));
                    return;
                }
                let mut quiet = vec![];
                for (id, known) in self.known.iter_mut().filter(|(_, k)| k.progress) {
                    if !std::mem::take(&mut known.told) {
                        quiet.push(*id);
                    }
                }
                for id in quiet {
                    self.ready.push_back(self.response(id, revision));
                }
            }
            WatchNews::Compacted { id, compacted } => {
                self.known.remove(&id);
                let mut over = self.response(id, self.shared.plane.head().revision);
                (over.canceled, over.compact_revision) = (true, wide(compacted));
                self.ready.push_back(over);
            }
        }
    }
}

/// Events in parts of at most so many bytes, or of one event.
fn parts(events: Vec<Arc<Event>>, most: usize) -> impl Iterator<Item = Vec<mvccpb::Event>> {
    let mut events = events.into_iter().map(event).peekable();
    std::iter::from_fn(move || {
        let mut part = vec![events.next()?];
        let mut bytes = part[0].encoded_len();
        while let Some(next) = events.next_if(|e| bytes + e.encoded_len() <= most) {
            bytes += next.encoded_len();
            part.push(next);
        }
        Some(part)
    })
}

fn event(e: Arc<Event>) -> mvccpb::Event {
    let e = Arc::unwrap_or_clone(e);
    let r#type = if e.deleted { mvccpb::event::EventType::Delete } else { mvccpb::event::EventType::Put };
    mvccpb::Event { r#type: r#type.into(), kv: Some(kv(e.kv)), prev_kv: e.prev.map(kv) }
}

/// The names of codes that Go's clients print and look for in a reason.
fn go_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
