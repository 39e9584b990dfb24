//! A node's part of the control plane, as its network faces see it: [`ControlPlane`] over the engine.

mod kept;
mod members;
mod spool;
mod watch;

pub use spool::load;
pub use watch::{PlaneWatches, Router};

use crate::control::{
    Applied, ControlPlane, Follower, Freshness, Head, Ids, LeaseTime, Member, MemberChange, Refused, Result, Snapshot,
    Status,
};
use crate::engine::Engine;
use crate::snapshots::Snapshots;
use futures::future::{BoxFuture, Either, select};
use ice_core::control::{Answer, Ask, Control, Refused as Why};
use ice_core::ids::ReplicaId;
use ice_core::kv::command::{Action, AlarmKind, Command, SnapshotRecord};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::{Grant, LockAction, LockAnswer, WaitId};
use ice_core::kv::{self, Store};
use ice_core::raft::{Reason, Role};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A request that needs a quorum is answered after this at the latest.
pub const REQUEST_MAX: Duration = Duration::from_secs(7);
/// Nobody waits longer for a lock.
const PATIENCE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A member that was not heard for so long is not connected.
const CONNECTED: Duration = Duration::from_millis(1200);

/// What a plane is made of.
pub struct Parts {
    /// The node.
    pub engine: Arc<Engine>,
    /// Where what watchers are told arrives; the same that the lanes were given.
    pub router: Arc<Router>,
    /// The node's name.
    pub name: String,
    /// The node's data directory: snapshots are written there before they are sent.
    pub data: PathBuf,
    /// The checkpoint's file.
    pub store: PathBuf,
    /// Snapshots that are kept.
    pub snapshots: Arc<Snapshots>,
    /// Ends after so long: the runtime's.
    pub pause: Pause,
}

/// Waits for so long.
pub type Pause = Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// See the module.
pub struct Plane {
    parts: Parts,
    me: ReplicaId,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("me", &self.me).finish_non_exhaustive()
    }
}

/// What the core refuses, in the words of the faces.
pub(crate) fn refused(why: Why) -> Refused {
    match why {
        Why::Store(e) => Refused::Store(e),
        Why::NoLeader => Refused::NoLeader,
        Why::NotLeader => Refused::NotLeader,
        Why::Timeout | Why::Interrupted => Refused::Timeout,
        Why::Busy => Refused::Busy,
        Why::TooLarge => Refused::TooLarge,
        Why::Stopping => Refused::Stopping,
        Why::Off => Refused::Unsupported("this node has no part in the control plane"),
        Why::Broken(damage) => Refused::Failed(format!(
            "this replica takes no part in the control plane, because its log is damaged ({damage:?}): start it without its data"
        )),
        Why::Consensus(Reason::NoTarget) => Refused::BadTransferee,
        Why::Consensus(Reason::NotLeader) => Refused::NotLeader,
        Why::Consensus(Reason::Busy | Reason::TooEarly | Reason::ChangeUnderWay | Reason::Transferring) => {
            Refused::Busy
        }
        Why::Consensus(Reason::Size) => Refused::TooLarge,
        Why::Consensus(other) => Refused::Failed(format!("{other:?}")),
    }
}

/// An answer that does not belong to its question: a mistake of this program, told instead of hidden.
pub(crate) fn odd(answer: &Answer) -> Refused {
    Refused::Failed(format!("an unexpected answer: {answer:?}"))
}

impl Plane {
    /// Over a node whose configuration has the control plane switched on.
    pub fn new(parts: Parts) -> Arc<Plane> {
        let me = parts.engine.view(|v| v.control().map(|c| c.raft().me())).unwrap_or(ReplicaId(0));
        Arc::new(Plane { parts, me })
    }

    /// Looks at the store as it is here, without asking anybody.
    pub fn look_now<T>(&self, look: impl FnOnce(&Store) -> T) -> Result<(T, Head)> {
        self.store(look)
    }

    async fn ask(&self, ask: Ask) -> Result<Answer> {
        match self.parts.engine.control(ask, REQUEST_MAX).await {
            Answer::Refused(why) => Err(refused(why)),
            answer => Ok(answer),
        }
    }

    /// Looks at the control plane as it is here. Keep it short.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&Control) -> T) -> Option<T> {
        self.parts.engine.view(|v| v.control().map(f))
    }

    /// This node leads.
    pub fn leads(&self) -> bool {
        self.look(|c| c.raft().role() == Role::Leader).unwrap_or(false)
    }

    /// The store as it is here, with its place in time.
    fn store<T>(&self, look: impl FnOnce(&Store) -> T) -> Result<(T, Head)> {
        self.look(|c| (look(c.store()), head(c)))
            .ok_or(Refused::Unsupported("this node has no part in the control plane"))
    }
}

fn head(c: &Control) -> Head {
    let h = c.head();
    Head { revision: h.revision, term: h.term }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl ControlPlane for Plane {
    type Watches = PlaneWatches;

    fn ids(&self) -> Ids {
        Ids { cluster: self.look(|c| c.raft().cluster()).unwrap_or(0), member: self.me.0 }
    }

    fn name(&self) -> String {
        self.parts.name.clone()
    }

    fn head(&self) -> Head {
        self.look(head).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let db_bytes = std::fs::metadata(&self.parts.store).map_or(0, |m| m.len());
        let found = self.look(|c| {
            let (raft, store) = (c.raft(), c.store());
            let mut errors: Vec<String> = store
                .alarms()
                .map(|(kind, member)| {
                    let what = match kind {
                        AlarmKind::NoSpace => "NOSPACE",
                        AlarmKind::Corrupt => "CORRUPT",
                    };
                    format!("memberID:{member} alarm:{what}")
                })
                .collect();
            errors.extend(raft.broken().map(|d| format!("the replicated log is damaged: {d:?}")));
            if raft.leader().is_none() {
                errors.push("etcdserver: no leader".into());
            }
            Status {
                version: crate::VERSION.into(),
                leader: raft.leader().map_or(0, |l| l.0),
                term: raft.term(),
                committed: raft.commit(),
                applied: store.applied(),
                db_bytes: db_bytes.max(store.size_bytes()),
                db_used_bytes: store.size_bytes(),
                quota_bytes: c.config().quota_bytes,
                learner: !raft.membership().1.is_voter(self.me),
                errors,
            }
        });
        found.unwrap_or_default()
    }

    async fn propose(&self, command: Command) -> Result<Applied> {
        match self.ask(Ask::Propose(command)).await? {
            Answer::Applied { answer, head } => {
                Ok(Applied { answer: answer?, head: Head { revision: head.revision, term: head.term } })
            }
            other => Err(odd(&other)),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        freshness: Freshness,
        look: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<(T, Head)> {
        if freshness == Freshness::Linearizable {
            match self.ask(Ask::Read).await? {
                Answer::Ready(_) => {}
                other => return Err(odd(&other)),
            }
        }
        self.store(look)
    }

    fn watches(&self) -> PlaneWatches {
        self.parts.router.stream(&self.parts.engine)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<u64> {
        match self.ask(Ask::KeepAlive(lease)).await? {
            Answer::Kept(ttl_s) => Ok(ttl_s),
            other => Err(odd(&other)),
        }
    }

    async fn lease_time(&self, lease: LeaseId) -> Result<LeaseTime> {
        match self.ask(Ask::LeaseTime(lease)).await? {
            Answer::Time { remaining_s, granted_s } => Ok(LeaseTime { remaining_s, granted_s }),
            other => Err(odd(&other)),
        }
    }

    fn new_id(&self) -> u64 {
        let mut bytes = [0; 8];
        // Without randomness from the system the clock has to do: ids need to be unlike each other, not secret.
        if crate::identity::random(&mut bytes).is_err() {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            bytes.copy_from_slice(
                &blake3::hash(&[nanos.to_le_bytes(), u128::from(self.me.0).to_le_bytes()].concat()).as_bytes()[..8],
            );
        }
        (u64::from_le_bytes(bytes) >> 1).max(1)
    }

    async fn token_secret(&self) -> Result<[u8; 32]> {
        if let Some(secret) = self.look(|c| c.store().secret()).flatten() {
            return Ok(secret);
        }
        let mut drawn = [0; 32];
        crate::identity::random(&mut drawn).map_err(|e| Refused::Failed(format!("no randomness: {e}")))?;
        self.propose(Command::node(Action::Secret(drawn))).await?;
        self.look(|c| c.store().secret()).flatten().ok_or(Refused::LeaderChanged)
    }

    async fn members(&self, freshness: Freshness) -> Result<Vec<Member>> {
        if freshness == Freshness::Linearizable {
            self.ask(Ask::Read).await?;
        }
        Ok(self.known_members())
    }

    async fn change_members(&self, change: MemberChange) -> Result<Vec<Member>> {
        self.change(change).await
    }

    async fn move_leader(&self, to: u64) -> Result<()> {
        if !self.known_members().iter().any(|m| m.id == to) {
            return Err(Refused::MemberNotFound);
        }
        if to == self.me.0 && self.leads() {
            return Ok(());
        }
        self.ask(Ask::Transfer(ReplicaId(to))).await.map(drop)
    }

    fn followers(&self) -> Vec<Follower> {
        let now = self.parts.engine.clock();
        let wall = now_s();
        self.parts.engine.view(|v| {
            let Some(c) = v.control() else { return Vec::new() };
            let last = c.raft().last().0;
            let revision = c.store().revision();
            let one = |(id, f): (ReplicaId, ice_core::raft::Follower)| {
                let silent = Duration::from_nanos(now.since(f.heard).0);
                let lag = last.saturating_sub(f.matched);
                Follower {
                    id: id.0,
                    address: v.member(id).and_then(|m| m.urls.first().cloned()).unwrap_or_default(),
                    connected: silent <= CONNECTED,
                    heard_s: wall.saturating_sub(silent.as_secs()),
                    // Which revision an entry made is not remembered; what it lacks is told by its lag.
                    revision: if lag == 0 { revision } else { 0 },
                    lag,
                }
            };
            c.raft().followers().into_iter().map(one).collect()
        })
    }

    async fn defragment(&self) -> Result<()> {
        Err(Refused::Unsupported("space is used again by itself; there is nothing to defragment"))
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.spooled().await?.stream())
    }

    async fn lock<G: Future<Output = ()> + Send>(
        &self,
        mut action: LockAction,
        patience: Duration,
        give_up: G,
    ) -> Result<Grant> {
        let wait = WaitId { replica: self.me, number: self.new_id() };
        match &mut action {
            LockAction::Acquire(a) => a.wait = (!patience.is_zero()).then_some(wait),
            LockAction::Lock(l) => l.wait = (!patience.is_zero()).then_some(wait),
            _ => return Err(Refused::Store(kv::Error::InvalidLock)),
        }
        if patience.is_zero() {
            return match self.propose(Command::node(Action::Lock(action))).await?.answer {
                kv::Answer::Lock(LockAnswer::Granted(grant)) => Ok(grant),
                other => Err(Refused::Failed(format!("an unexpected answer: {other:?}"))),
            };
        }
        let patience = patience.min(PATIENCE_MAX);
        let asked = pin!(self.parts.engine.control(Ask::Lock(action), patience + REQUEST_MAX));
        let give_up = pin!(give_up);
        let over = pin!(select((self.parts.pause)(patience), give_up));
        let granted = |answer| match answer {
            Answer::Granted(grant) => Ok(grant),
            Answer::Refused(why) => Err(refused(why)),
            other => Err(odd(&other)),
        };
        match select(asked, over).await {
            Either::Left((answer, _)) => granted(answer),
            Either::Right((_, asked)) => {
                let cancel = Command::node(Action::Lock(LockAction::Cancel { wait }));
                match self.propose(cancel).await?.answer {
                    kv::Answer::Lock(LockAnswer::Cancelled { found: true }) => Err(Refused::Timeout),
                    // It was served, or refused, before: the answer is there, or on its way.
                    _ => granted(asked.await),
                }
            }
        }
    }

    fn replica_of(&self, name: &str) -> Option<ReplicaId> {
        self.parts.engine.view(|v| {
            let own = v.member(self.me).filter(|m| m.name == name).map(|m| m.replica);
            own.or_else(|| v.members().find(|m| m.name == name).map(|m| m.replica))
        })
    }

    fn replica(&self) -> ReplicaId {
        self.me
    }

    async fn snapshot_keep(&self, name: String, metadata: Vec<(String, String)>) -> Result<SnapshotRecord> {
        self.keep(name, metadata).await
    }

    async fn snapshot_open(&self, id: String) -> Result<Snapshot> {
        self.open(&id).await
    }

    async fn snapshot_restore(&self, id: String, unchecked: bool) -> Result<u64> {
        self.restore(&id, unchecked).await
    }

    async fn snapshot_forget(&self, id: String) -> Result<bool> {
        self.forget(id).await
    }
}
