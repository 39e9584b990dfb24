//! A control plane in memory: the store under a mutex, with clocks and histories kept in the simplest way that can be. It has one
//! member, beside which others may stand that share its store.

use bytes::Bytes;
use futures::StreamExt;
use ice_core::ids::ReplicaId;
use ice_core::kv::command::{Action, Command, SnapshotRecord};
use ice_core::kv::keys::KeyRange;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::{Grant, LockAction, LockAnswer, WaitId};
use ice_core::kv::range::{KeyValue, RangeRequest};
use ice_core::kv::{Answer, Effect, Error, Store};
use ice_host::control::{
    Applied, ControlPlane, Event, Follower, Freshness, Head, Ids, LeaseTime, Member, MemberChange, Refused, Result,
    Snapshot, Status, WatchNews, WatchRequest, Watches, give_back,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

pub const CLUSTER: u64 = 0xc1;
pub const MEMBER: u64 = 0x11;
/// A lease is never shorter.
pub const LEASE_MIN_S: u64 = 1;
/// Events in one piece of news.
const EVENTS_MAX: usize = 64;
const QUOTA_BYTES: u64 = 64 << 20;

/// The names of the nodes, the first one's replica being 1.
pub const NAMES: [&str; 3] = ["one", "two", "three"];

/// A node's view of it.
pub struct Plane(Arc<Inner>, ReplicaId);

pub struct Inner {
    state: Mutex<State>,
    ids: AtomicU64,
    /// Nobody leads: everything that needs a quorum is refused.
    pub leaderless: AtomicBool,
    /// Proposals wait for ever.
    pub stuck: AtomicBool,
    /// Signs of life of leases.
    pub keep_alives: AtomicU64,
}

struct State {
    store: Store,
    /// Requests for locks that wait, and what was said of them.
    waits: BTreeMap<WaitId, Option<std::result::Result<Grant, Error>>>,
    index: u64,
    deadlines: BTreeMap<LeaseId, Instant>,
    history: Vec<(u64, Vec<Arc<Event>>)>,
    wakers: Vec<Waker>,
    members: Vec<Member>,
    snapshots: BTreeMap<String, Vec<u8>>,
    moved_to: Option<u64>,
}

pub fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

impl Plane {
    pub fn new() -> Arc<Plane> {
        let me = Member {
            id: MEMBER,
            name: "one".into(),
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            client_urls: vec!["http://127.0.0.1:2379".into()],
            learner: false,
        };
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                store: Store::new(),
                waits: BTreeMap::new(),
                index: 0,
                deadlines: BTreeMap::new(),
                history: vec![],
                wakers: vec![],
                members: vec![me],
                snapshots: BTreeMap::new(),
                moved_to: None,
            }),
            ids: AtomicU64::new(0x7000),
            leaderless: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            keep_alives: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&inner);
        std::thread::spawn(move || expire(&weak));
        Arc::new(Plane(inner, ReplicaId(1)))
    }

    /// Another node with the same store, by its place in [`NAMES`].
    pub fn beside(&self, node: usize) -> Arc<Plane> {
        assert!(node < NAMES.len());
        Arc::new(Plane(self.0.clone(), ReplicaId(node as u64 + 1)))
    }

    /// A named lock, without asking anybody.
    pub fn take_named(&self, name: &str, holder: &str) {
        let (name, holder) = (name.as_bytes().to_vec(), holder.to_owned());
        let lease = LeaseId(0);
        let ask = ice_core::kv::lock::named::Acquire { name, holder, replica: self.1, lease, at_ms: 1, wait: None };
        self.0.lock().apply(&Command::node(Action::Lock(LockAction::Acquire(ask)))).unwrap();
    }

    /// A node is declared down, or starts anew.
    pub fn ends(&self, node: usize) {
        let replica = ReplicaId(node as u64 + 1);
        self.0.lock().apply(&Command::node(Action::Lock(LockAction::EndReplica { replica }))).unwrap();
    }

    pub fn inner(&self) -> &Inner {
        &self.0
    }

    pub fn lock(&self) -> Guard<'_> {
        Guard(self.0.lock())
    }
}

/// The state, for tests that look behind the scene.
pub struct Guard<'a>(MutexGuard<'a, State>);

impl Guard<'_> {
    pub fn store(&self) -> &Store {
        &self.0.store
    }
    pub fn moved_to(&self) -> Option<u64> {
        self.0.moved_to
    }
    pub fn damage_snapshot(&mut self, id: &str) {
        self.0.snapshots.get_mut(id).unwrap()[10] ^= 1;
    }
}

fn expire(inner: &Weak<Inner>) {
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let Some(inner) = inner.upgrade() else { return };
        let mut state = inner.lock();
        // Whose patience is over looks at the clock.
        state.wakers.drain(..).for_each(Waker::wake);
        let now = Instant::now();
        let ids: Vec<LeaseId> = state.deadlines.iter().filter(|(_, t)| **t <= now).map(|(id, _)| *id).collect();
        if !ids.is_empty() {
            let _ = state.apply(&Command::node(Action::LeaseExpire { ids }));
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn led(&self) -> Result<()> {
        if self.leaderless.load(Ordering::SeqCst) { Err(Refused::NoLeader) } else { Ok(()) }
    }
}

fn all(store: &Store, revision: u64, request: RangeRequest) -> Vec<KeyValue> {
    let everything = RangeRequest { key: vec![0], end: vec![0], revision, ..request };
    store.range(&everything).map(|a| a.kvs).unwrap_or_default()
}

impl State {
    fn head(&self) -> Head {
        Head { revision: self.store.revision(), term: 2 }
    }

    fn apply(&mut self, command: &Command) -> Result<Applied> {
        if self.store.over_quota(command, QUOTA_BYTES) {
            return Err(Error::NoSpace.into());
        }
        let before = all(&self.store, 0, RangeRequest::default());
        self.index += 1;
        let outcome = self.store.apply(self.index, command);
        self.remember(&before);
        for effect in &outcome.effects {
            let (wait, said) = match effect {
                Effect::LockGranted { wait, grant } => (wait, Ok(*grant)),
                Effect::LockRefused { wait, error } => (wait, Err(error.clone())),
                _ => continue,
            };
            if let Some(place) = self.waits.get_mut(wait) {
                *place = Some(said);
            }
        }
        match (&command.action, &outcome.result) {
            (Action::LeaseGrant { .. }, Ok(Answer::Lease { id, ttl_s })) => {
                self.deadlines.insert(*id, Instant::now() + Duration::from_secs(*ttl_s));
            }
            (Action::Compact { revision }, Ok(_)) => {
                self.history.retain(|(r, _)| r > revision);
                while self.store.sweep() {}
            }
            _ => {}
        }
        let store = &self.store;
        self.deadlines.retain(|id, _| store.lease(*id).is_some());
        self.wakers.drain(..).for_each(Waker::wake);
        let answer = outcome.result?;
        Ok(Applied { answer, head: self.head() })
    }

    /// What is different now is what happened.
    fn remember(&mut self, before: &[KeyValue]) {
        let revision = self.store.revision();
        let after = all(&self.store, 0, RangeRequest::default());
        let find = |list: &[KeyValue], key: &[u8]| list.iter().find(|kv| kv.key == key).cloned();
        let mut events: Vec<Arc<Event>> = vec![];
        for kv in before.iter().filter(|kv| find(&after, &kv.key).is_none()) {
            let gone = KeyValue { key: kv.key.clone(), modified: revision, ..KeyValue::default() };
            events.push(Arc::new(Event { deleted: true, kv: gone, prev: Some(kv.clone()) }));
        }
        for kv in after.iter().filter(|kv| find(before, &kv.key).as_ref() != Some(*kv)) {
            events.push(Arc::new(Event { deleted: false, kv: kv.clone(), prev: find(before, &kv.key) }));
        }
        if !events.is_empty() {
            self.history.push((revision, events));
        }
    }
}

struct OneWatch {
    request: WatchRequest,
    /// The first revision that was not told yet; 0: it was not told that it stands.
    next: u64,
    over: bool,
}

pub struct TestWatches {
    inner: Arc<Inner>,
    list: Vec<OneWatch>,
    progress: bool,
}

impl OneWatch {
    fn wants(&self, e: &Event) -> bool {
        let range = KeyRange::new(&self.request.key, &self.request.end);
        range.contains(&e.kv.key) && !(if e.deleted { self.request.no_delete } else { self.request.no_put })
    }

    fn tell(&self, e: &Arc<Event>) -> Arc<Event> {
        if self.request.prev_kv { e.clone() } else { Arc::new(Event { prev: None, ..(**e).clone() }) }
    }

    fn news(&mut self, state: &State) -> Option<WatchNews> {
        let (id, revision) = (self.request.id, state.store.revision());
        if self.next == 0 {
            self.next = if self.request.start == 0 { revision + 1 } else { self.request.start };
            return Some(WatchNews::Created { id, revision });
        }
        if self.next < state.store.compacted() {
            self.over = true;
            return Some(WatchNews::Compacted { id, compacted: state.store.compacted() });
        }
        let mut events = vec![];
        for (r, of_revision) in &state.history {
            if *r < self.next {
                continue;
            }
            if events.len() >= EVENTS_MAX {
                break;
            }
            events.extend(of_revision.iter().filter(|e| self.wants(e)).map(|e| self.tell(e)));
            self.next = r + 1;
        }
        (!events.is_empty()).then_some(WatchNews::Events { id, revision, events })
    }
}

impl Watches for TestWatches {
    fn create(&mut self, request: WatchRequest) -> Result<()> {
        if self.list.len() >= 100 {
            return Err(Refused::Busy);
        }
        self.list.push(OneWatch { request, next: 0, over: false });
        Ok(())
    }

    fn cancel(&mut self, id: i64) -> bool {
        let before = self.list.len();
        self.list.retain(|w| w.request.id != id);
        self.list.len() < before
    }

    fn progress(&mut self) {
        self.progress = true;
    }

    async fn next(&mut self) -> Result<WatchNews> {
        std::future::poll_fn(|cx| {
            let mut state = self.inner.lock();
            for watch in &mut self.list {
                if let Some(news) = watch.news(&state) {
                    self.list.retain(|w| !w.over);
                    return Poll::Ready(Ok(news));
                }
            }
            if std::mem::take(&mut self.progress) {
                return Poll::Ready(Ok(WatchNews::AllCurrent { revision: state.store.revision() }));
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Somebody who waits for a lock. Whoever drops it leaves nothing of it behind.
struct LockWait {
    inner: Arc<Inner>,
    wait: WaitId,
    action: LockAction,
    over: bool,
}

impl LockWait {
    /// What was said meanwhile, or that nothing will be said any more.
    fn withdraw(&mut self) -> Result<Grant> {
        self.over = true;
        let mut state = self.inner.lock();
        let cancel = Command::node(Action::Lock(LockAction::Cancel { wait: self.wait }));
        // A cancellation is refused by nobody.
        let _ = state.apply(&cancel);
        match state.waits.remove(&self.wait).flatten() {
            Some(said) => Ok(said?),
            None => Err(Refused::Timeout),
        }
    }
}

impl Drop for LockWait {
    fn drop(&mut self) {
        if !self.over
            && let Ok(grant) = self.withdraw()
            && let Some(back) = give_back(&self.action, &grant)
        {
            let _ = self.inner.lock().apply(&Command::node(Action::Lock(back)));
        }
    }
}

fn checksum(bytes: &[u8]) -> String {
    format!("crc32c:{:08x}", bytes.iter().fold(0u32, |h, b| h.rotate_left(5) ^ u32::from(*b)))
}

fn chunked(bytes: Vec<u8>) -> Snapshot {
    let parts: VecDeque<Result<Bytes>> = bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Snapshot { bytes: bytes.len() as u64, chunks: futures::stream::iter(parts).boxed() }
}

impl ControlPlane for Plane {
    type Watches = TestWatches;

    fn ids(&self) -> Ids {
        Ids { cluster: CLUSTER, member: MEMBER }
    }
    fn name(&self) -> String {
        NAMES[self.1.0 as usize - 1].into()
    }
    fn replica(&self) -> ReplicaId {
        self.1
    }
    fn replica_of(&self, name: &str) -> Option<ReplicaId> {
        NAMES.iter().position(|n| *n == name).map(|at| ReplicaId(at as u64 + 1))
    }
    async fn lock<G: Future<Output = ()> + Send>(
        &self,
        mut action: LockAction,
        patience: Duration,
        give_up: G,
    ) -> Result<Grant> {
        let wait = WaitId { replica: self.1, number: self.new_id() };
        let waits = (!patience.is_zero()).then_some(wait);
        match &mut action {
            LockAction::Acquire(a) => a.wait = waits,
            LockAction::Lock(l) => l.wait = waits,
            other => panic!("not a request for a lock: {other:?}"),
        }
        self.0.lock().waits.insert(wait, None);
        let mut waiting = LockWait { inner: self.0.clone(), wait, action: action.clone(), over: false };
        match self.propose(Command::node(Action::Lock(action))).await?.answer {
            Answer::Lock(LockAnswer::Granted(grant)) => {
                waiting.over = true;
                self.0.lock().waits.remove(&wait);
                return Ok(grant);
            }
            Answer::Lock(LockAnswer::Waiting) => {}
            other => panic!("{other:?}"),
        }
        let until = Instant::now() + patience;
        let mut give_up = std::pin::pin!(give_up);
        std::future::poll_fn(|cx| {
            let over = give_up.as_mut().poll(cx).is_ready() || Instant::now() >= until;
            let mut state = self.0.lock();
            if over || state.waits.get(&wait).is_none_or(Option::is_some) {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waiting.withdraw()
    }
    fn head(&self) -> Head {
        self.0.lock().head()
    }
    fn status(&self) -> Status {
        let state = self.0.lock();
        let bytes = state.store.size_bytes();
        Status {
            version: ice_host::VERSION.into(),
            leader: if self.0.led().is_ok() { MEMBER } else { 0 },
            term: 2,
            committed: state.index,
            applied: state.index,
            db_bytes: bytes,
            db_used_bytes: bytes,
            quota_bytes: QUOTA_BYTES,
            learner: false,
            errors: vec![],
        }
    }
    async fn propose(&self, mut command: Command) -> Result<Applied> {
        self.0.led()?;
        if self.0.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if let Action::LeaseGrant { ttl_s, .. } = &mut command.action {
            *ttl_s = (*ttl_s).max(LEASE_MIN_S);
        }
        self.0.lock().apply(&command)
    }
    async fn read<T: Send + 'static>(
        &self,
        freshness: Freshness,
        look: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<(T, Head)> {
        if freshness == Freshness::Linearizable {
            self.0.led()?;
        }
        let state = self.0.lock();
        Ok((look(&state.store), state.head()))
    }
    fn watches(&self) -> TestWatches {
        TestWatches { inner: self.0.clone(), list: vec![], progress: false }
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<u64> {
        self.0.led()?;
        self.0.keep_alives.fetch_add(1, Ordering::SeqCst);
        let mut state = self.0.lock();
        let ttl_s = state.store.lease(lease).ok_or(Error::LeaseNotFound { id: lease })?.ttl_s();
        state.deadlines.insert(lease, Instant::now() + Duration::from_secs(ttl_s));
        Ok(ttl_s)
    }
    async fn lease_time(&self, lease: LeaseId) -> Result<LeaseTime> {
        self.0.led()?;
        let state = self.0.lock();
        let granted_s = state.store.lease(lease).ok_or(Error::LeaseNotFound { id: lease })?.ttl_s();
        let left = state.deadlines.get(&lease).map_or(Duration::ZERO, |t| t.saturating_duration_since(Instant::now()));
        Ok(LeaseTime { remaining_s: left.as_secs(), granted_s })
    }
    fn new_id(&self) -> u64 {
        self.0.ids.fetch_add(1, Ordering::Relaxed)
    }
    async fn token_secret(&self) -> Result<[u8; 32]> {
        Ok([7; 32])
    }
    async fn members(&self, _freshness: Freshness) -> Result<Vec<Member>> {
        Ok(self.0.lock().members.clone())
    }
    async fn change_members(&self, change: MemberChange) -> Result<Vec<Member>> {
        self.0.led()?;
        let mut state = self.0.lock();
        let members = &mut state.members;
        let at = |id: u64, list: &[Member]| list.iter().position(|m| m.id == id).ok_or(Refused::MemberNotFound);
        match change {
            MemberChange::Add { peer_urls, learner } => {
                if members.iter().any(|m| m.peer_urls.iter().any(|u| peer_urls.contains(u))) {
                    return Err(Refused::MemberUrlExists);
                }
                let id = self.new_id();
                members.push(Member { id, peer_urls, learner, ..Member::default() });
            }
            MemberChange::Remove(id) => {
                let at = at(id, members)?;
                if id == MEMBER {
                    return Err(Refused::QuorumAtRisk);
                }
                members.remove(at);
            }
            MemberChange::Update { id, peer_urls } => {
                let at = at(id, members)?;
                members[at].peer_urls = peer_urls;
            }
            MemberChange::Promote(id) => {
                let at = at(id, members)?;
                if !std::mem::take(&mut members[at].learner) {
                    return Err(Refused::MemberNotLearner);
                }
            }
        }
        Ok(members.clone())
    }
    async fn move_leader(&self, to: u64) -> Result<()> {
        let mut state = self.0.lock();
        if !state.members.iter().any(|m| m.id == to && !m.learner) {
            return Err(Refused::BadTransferee);
        }
        state.moved_to = Some(to);
        Ok(())
    }
    fn followers(&self) -> Vec<Follower> {
        let state = self.0.lock();
        let others = state.members.iter().filter(|m| m.id != MEMBER);
        others
            .map(|m| Follower {
                id: m.id,
                address: m.peer_urls[0].clone(),
                connected: false,
                heard_s: 0,
                revision: 0,
                lag: state.index,
            })
            .collect()
    }
    async fn defragment(&self) -> Result<()> {
        Ok(())
    }
    async fn snapshot(&self) -> Result<Snapshot> {
        Ok(chunked(ice_core::wire::encode(&self.0.lock().store)))
    }
    async fn snapshot_keep(&self, name: String, metadata: Vec<(String, String)>) -> Result<SnapshotRecord> {
        self.0.led()?;
        let mut state = self.0.lock();
        let bytes = ice_core::wire::encode(&state.store);
        let record = SnapshotRecord {
            id: format!("snap-{:x}", self.new_id()),
            name,
            revision: state.store.revision(),
            size_bytes: bytes.len() as u64,
            checksum: checksum(&bytes),
            created_s: now_s(),
            holders: vec![MEMBER],
            metadata,
        };
        state.snapshots.insert(record.id.clone(), bytes);
        state.apply(&Command::node(Action::SnapshotPut(record.clone())))?;
        Ok(record)
    }
    async fn snapshot_open(&self, id: String) -> Result<Snapshot> {
        let state = self.0.lock();
        Ok(chunked(state.snapshots.get(&id).ok_or(Error::SnapshotNotFound)?.clone()))
    }
    async fn snapshot_restore(&self, id: String, unchecked: bool) -> Result<u64> {
        self.0.led()?;
        let mut state = self.0.lock();
        let bytes = state.snapshots.get(&id).ok_or(Error::SnapshotNotFound)?.clone();
        let record = state.store.snapshot(&id).ok_or(Error::SnapshotNotFound)?.clone();
        if !unchecked && checksum(&bytes) != record.checksum {
            return Err(Refused::Failed("the snapshot does not have its checksum".into()));
        }
        let then: Store = ice_core::wire::decode(&bytes).map_err(|e| Refused::Failed(e.to_string()))?;
        // All keys as they were, in one revision, on top of what is there.
        let mut txn = ice_core::kv::txn::Txn::default();
        for kv in all(&state.store, 0, RangeRequest::default()) {
            if then.get(&kv.key).is_none() {
                let delete = ice_core::kv::command::Delete { key: kv.key, ..Default::default() };
                txn.success.push(ice_core::kv::txn::Op::Delete(delete));
            }
        }
        for kv in all(&then, 0, RangeRequest::default()) {
            let put = ice_core::kv::command::Put { key: kv.key, value: kv.value, ..Default::default() };
            txn.success.push(ice_core::kv::txn::Op::Put(put));
        }
        Ok(state.apply(&Command::node(Action::Txn(txn)))?.head.revision)
    }
    async fn snapshot_forget(&self, id: String) -> Result<bool> {
        self.0.led()?;
        let mut state = self.0.lock();
        if state.snapshots.remove(&id).is_none() {
            return Ok(false);
        }
        state.apply(&Command::node(Action::SnapshotDelete { id }))?;
        Ok(true)
    }
}
