//! The transport of a node: its peer connections and content transfers.

use super::client::{Client, Upgraded};
use super::fetch;
use super::link;
use crate::server::Stopped;
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{Either, select};
use ice_core::action::Send as NetSend;
use ice_core::event::{Event, IoError, IoResult, LinkEvent};
use ice_core::ids::{LinkId, ReplicaId};
use ice_core::limits::{FETCHES_IN_FLIGHT_MAX, MEMBERS_MAX, URLS_PER_MEMBER_MAX};
use ice_core::message::{MemberInfo, Message};
use ice_host::payload::PayloadPool;
use ice_host::runtime::Runtime;
use ice_host::transport::counters::Counters;
use ice_host::transport::frame;
use ice_host::transport::queue::{Outgoing, Queue};
use ice_host::transport::url::BaseUrl;
use ice_host::transport::{ContentStore, Fetch, Sink, Transport};
use ice_serve::Rt;
use ice_serve::TlsClient;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Peer connections at once, dialled and accepted: each member may hold some while duplicates are sorted out.
const LINKS_MAX: usize = 4 * MEMBERS_MAX;
/// Dials in flight.
const DIALS_MAX: usize = 2 * MEMBERS_MAX;
/// A dial as a whole.
const DIAL_LIMIT: Duration = Duration::from_secs(15);
/// Transfers that wait for a place.
const FETCHES_WAITING_MAX: usize = 1024;

/// Settings of the transport.
#[derive(Clone, Debug, Default)]
pub struct NetConfig {
    /// The cluster's bearer token.
    pub token: Option<String>,
    /// For `https` peers.
    pub tls: Option<TlsClient>,
    /// Nothing is sent to an `http` address: neither the token nor anything else travels in clear text.
    pub https_only: bool,
    /// How long a peer may be silent before it is declared down (zero: not known): its connection is kept for as long.
    pub silence: Duration,
}

/// A node's transport. Cheap to clone.
///
/// The token goes to every address that is dialled or fetched from. Those are, by construction, only addresses that the
/// operator configured or entered through the authenticated API, and addresses that a member named on a connection whose
/// both ends had proved that they know the token; no redirect is followed and nothing else is ever contacted.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

pub(super) struct Inner {
    pub(super) rt: Rt,
    pub(super) client: Client,
    pub(super) token: Option<String>,
    https_only: bool,
    pub(super) silence: Duration,
    pub(super) payloads: Arc<PayloadPool>,
    pub(super) store: Arc<dyn ContentStore>,
    pub(super) counters: Counters,
    sink: OnceLock<Arc<dyn Sink>>,
    links: Mutex<HashMap<LinkId, Arc<Queue>>>,
    next_link: AtomicU64,
    dials: AtomicUsize,
    fetches: Mutex<Fetches>,
    directory: Mutex<Directory>,
    /// Which version of the program each member last said it is, by the member's number as status shows it.
    versions: Mutex<BTreeMap<String, String>>,
    stopped: Stopped,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Content requests being served.
    pub(super) serving: AtomicUsize,
}

#[derive(Default)]
struct Fetches {
    running: usize,
    waiting: VecDeque<Fetch>,
}

/// Addresses by member, newest information wins.
#[derive(Default)]
struct Directory(BTreeMap<ReplicaId, (MemberAge, Vec<String>)>);

type MemberAge = (u64, u64);

impl Directory {
    fn learn(&mut self, member: &MemberInfo, best: Option<&str>) {
        let age = (member.incarnation.0, member.revision);
        if !self.0.contains_key(&member.replica) && self.0.len() >= MEMBERS_MAX {
            return;
        }
        let entry = self.0.entry(member.replica).or_default();
        if age < entry.0 && !entry.1.is_empty() {
            return;
        }
        entry.0 = age;
        let mut urls: Vec<String> = best.into_iter().map(str::to_owned).collect();
        urls.extend(member.urls.iter().filter(|u| Some(u.as_str()) != best).cloned());
        // A dialled address that worked stays the best one when the member is only talked about.
        if best.is_none()
            && let Some(i) = entry.1.first().and_then(|old| urls.iter().position(|u| u == old))
        {
            urls.swap(0, i);
        }
        urls.truncate(URLS_PER_MEMBER_MAX);
        entry.1 = urls;
    }
}

impl Net {
    /// A transport that waits for [`Net::start`]. `store` holds content, `payloads` the bytes of messages.
    pub fn new(
        runtime: impl Runtime,
        config: NetConfig,
        payloads: Arc<PayloadPool>,
        store: Arc<dyn ContentStore>,
    ) -> Net {
        let rt = Rt::new(runtime);
        let (stop, stopped) = Stopped::new();
        Net(Arc::new(Inner {
            client: Client::new(rt.clone(), config.token.clone(), config.tls, config.https_only),
            https_only: config.https_only,
            silence: config.silence,
            rt,
            token: config.token,
            payloads,
            store,
            counters: Counters::new(),
            sink: OnceLock::new(),
            links: Mutex::default(),
            next_link: AtomicU64::new(1),
            dials: AtomicUsize::new(0),
            fetches: Mutex::default(),
            directory: Mutex::default(),
            versions: Mutex::default(),
            stopped,
            stop: Mutex::new(Some(stop)),
            serving: AtomicUsize::new(0),
        }))
    }

    /// Where news go. Call it once, before the node steps for the first time; peers are turned away until then.
    pub fn start(&self, sink: Arc<dyn Sink>) {
        if self.0.sink.set(sink).is_err() {
            tracing::error!("the transport was started twice; the first start counts");
        }
    }

    /// Ends dials and transfers and closes all connections, after what was sent before. Connections report `Down`.
    pub fn stop(&self) {
        // Dropping the sender is the signal.
        lock(&self.0.stop).take();
        for queue in lock(&self.0.links).values() {
            queue.close("this node stops");
        }
        self.0.client.forget_idle();
    }

    /// Counters of what each peer was sent.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Which version of the program each member last said it is, by the member's number as status shows it.
    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        lock(&self.0.versions).clone()
    }

    /// Why an address is not used, if it is not: see [`NetConfig::https_only`].
    pub(crate) fn refuses(&self, url: &BaseUrl) -> Option<String> {
        (self.0.https_only && !url.tls()).then(|| super::clear_text(url))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that may panic runs while one of these locks is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport for Net {
    fn send(&self, send: NetSend) {
        match send {
            NetSend::Message { link, message } => {
                let Some(queue) = lock(&self.0.links).get(&link).cloned() else { return };
                let payloads: Option<Vec<Bytes>> =
                    frame::payloads(&message).map(|p| self.0.payloads.get(p.id)).collect();
                match payloads {
                    Some(payloads) => {
                        queue.push(Outgoing { message, payloads });
                    }
                    None => tracing::error!(%link, "{}", frame::FrameError::PayloadGone),
                }
            }
            NetSend::Dial { url } => self.0.clone().dial(url),
            NetSend::Hangup { link, why } => {
                if let Some(queue) = lock(&self.0.links).get(&link) {
                    queue.close(&why);
                }
            }
        }
    }

    fn fetch(&self, fetch: Fetch) {
        let mut fetches = lock(&self.0.fetches);
        if fetches.running < FETCHES_IN_FLIGHT_MAX {
            fetches.running += 1;
            drop(fetches);
            self.0.clone().fetch(fetch);
        } else if fetches.waiting.len() < FETCHES_WAITING_MAX {
            fetches.waiting.push_back(fetch);
        } else {
            drop(fetches);
            let me = self.0.clone();
            // Not from here: the node's lock is held.
            self.0.rt.spawn(async move {
                me.event(Event::Io { token: fetch.token, result: IoResult::Failed(IoError::Unreachable) });
            });
        }
    }
}

impl Inner {
    pub(super) fn started(&self) -> bool {
        self.sink.get().is_some()
    }

    pub(super) fn event(&self, event: Event) {
        match self.sink.get() {
            Some(sink) => sink.event(event),
            None => tracing::error!("news before the node was started are lost: {event:?}"),
        }
    }

    pub(super) fn forget_link(&self, link: LinkId) {
        lock(&self.links).remove(&link);
    }

    /// Learns addresses from what members say. They are authenticated.
    pub(super) fn overheard(&self, message: &Message, dialled: Option<&str>, version: Option<&str>) {
        match message {
            Message::Hello(hello) => {
                lock(&self.directory).learn(&hello.member, dialled);
                let (mut versions, member) = (lock(&self.versions), hello.member.replica.to_string());
                match version {
                    Some(version) if versions.len() < MEMBERS_MAX || versions.contains_key(&member) => {
                        versions.insert(member, version.to_owned());
                    }
                    Some(_) => {}
                    // It does not say any more.
                    None => drop(versions.remove(&member)),
                }
            }
            Message::Members(members) => {
                let mut directory = lock(&self.directory);
                for member in members.iter().take(MEMBERS_MAX) {
                    directory.learn(member, None);
                }
            }
            _ => {}
        }
    }

    pub(super) fn urls_of(&self, replica: ReplicaId) -> Vec<BaseUrl> {
        let heard = lock(&self.directory).0.get(&replica).map(|(_, urls)| urls.clone()).unwrap_or_default();
        let known = self.sink.get().map(|sink| sink.urls_of(replica)).unwrap_or_default();
        let mut urls: Vec<BaseUrl> = Vec::new();
        for url in heard.iter().chain(&known).filter_map(|u| BaseUrl::parse(u).ok()) {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls
    }

    /// Room for one more connection?
    pub(super) fn links_full(&self) -> bool {
        lock(&self.links).len() >= LINKS_MAX
    }

    /// Takes a connection over, until its end.
    pub(super) async fn carry(&self, connection: Upgraded, dialled: Option<String>) {
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let queue = Arc::new(Queue::new());
        lock(&self.links).insert(link, queue.clone());
        if lock(&self.stop).is_none() {
            queue.close("this node stops");
        }
        link::run(self, link, &queue, connection, dialled).await;
    }

    fn dial(self: Arc<Inner>, url: String) {
        let place = self.dials.fetch_add(1, Ordering::Relaxed);
        self.rt.clone().spawn(async move {
            let outcome = if place >= DIALS_MAX || self.links_full() {
                Err("too many connections already".to_owned())
            } else {
                self.dial_one(&url).await
            };
            self.dials.fetch_sub(1, Ordering::Relaxed);
            match outcome {
                Ok(connection) => self.carry(connection, Some(url)).await,
                Err(why) => {
                    tracing::debug!(url, why, "dial failed");
                    self.event(Event::Link(LinkEvent::DialFailed { url, why }));
                }
            }
        });
    }

    async fn dial_one(&self, url: &str) -> Result<Upgraded, String> {
        let parsed = BaseUrl::parse(url).map_err(|e| e.to_string())?;
        let dialling = self.rt.timeout(DIAL_LIMIT, self.client.upgrade(&parsed));
        match select(pin!(dialling), self.stopped.wait()).await {
            Either::Left((Ok(outcome), _)) => outcome,
            Either::Left((Err(_), _)) => Err(format!("no connection within {DIAL_LIMIT:?}")),
            Either::Right(_) => Err("this node stops".into()),
        }
    }

    fn fetch(self: Arc<Inner>, fetch: Fetch) {
        self.rt.clone().spawn(async move {
            let mut next = Some(fetch);
            while let Some(fetch) = next {
                let working = pin!(fetch::run(&self, fetch));
                let result = match select(working, self.stopped.wait()).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => IoResult::Failed(IoError::Unreachable),
                };
                self.event(Event::Io { token: fetch.token, result });
                let mut fetches = lock(&self.fetches);
                next = fetches.waiting.pop_front();
                if next.is_none() {
                    fetches.running -= 1;
                }
            }
        });
    }
}
