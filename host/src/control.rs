//! What the network face of the control plane may ask of a node: the replicated store behind a few calls.
//!
//! The store's own vocabulary is [`ice_core::kv`]. Every call ends: a node that cannot reach a quorum says so within its own
//! limits of time. Dropping a future gives up the wait, not what was proposed.

use ice_core::ids::ReplicaId;
use ice_core::kv::command::{Command, SnapshotRecord};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::{Grant, LockAction};
use ice_core::kv::{Answer, Error, Store};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Who answers. The cluster is 0 until the node belongs to one; a node that had founded one of its own and gives way changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ids {
    /// The cluster.
    pub cluster: u64,
    /// This member of it.
    pub member: u64,
}

/// Where the store stood when something was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// The store's revision.
    pub revision: u64,
    /// The term of consensus.
    pub term: u64,
}

/// Why a node does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refused {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("there is no leader")]
    NoLeader,
    #[error("the leader changed meanwhile; whether it was done is not known")]
    LeaderChanged,
    #[error("this member is not the leader")]
    NotLeader,
    #[error("no answer in time; whether it was done is not known")]
    Timeout,
    #[error("the node is stopping")]
    Stopping,
    #[error("too much is waiting already")]
    Busy,
    #[error("the request is too large")]
    TooLarge,
    #[error("this member is a learner")]
    Learner,
    #[error("there is no such member")]
    MemberNotFound,
    #[error("there is such a member already")]
    MemberExists,
    #[error("another member has this address")]
    MemberUrlExists,
    #[error("not addresses of a member")]
    MemberUrlInvalid,
    #[error("this member is not a learner")]
    MemberNotLearner,
    #[error("this learner has not caught up")]
    LearnerNotReady,
    #[error("too many learners")]
    TooManyLearners,
    #[error("too few members would be left that are up")]
    QuorumAtRisk,
    #[error("this member cannot become the leader")]
    BadTransferee,
    /// What was asked does not exist here, and why.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A disk, or something else of this node, failed.
    #[error("{0}")]
    Failed(String),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Refused>;

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    /// Everything that was acknowledged to anybody before the read began.
    Linearizable,
    /// What this member has applied.
    Local,
}

/// What was proposed has been applied here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// What it did.
    pub answer: Answer,
    /// The store right after it.
    pub head: Head,
}

/// A lease's time, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseTime {
    /// Until it ends, if nobody keeps it alive.
    pub remaining_s: u64,
    /// What each sign of life gives it.
    pub granted_s: u64,
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Never used again for another.
    pub id: u64,
    /// Empty until it has started.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// Has no vote.
    pub learner: bool,
}

/// A change of the members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// A new one; it is told apart by its addresses until it has started.
    Add {
        /// Where its peers will reach it.
        peer_urls: Vec<String>,
        /// Without a vote.
        learner: bool,
    },
    /// One less.
    Remove(u64),
    /// Other addresses.
    Update {
        /// Whose.
        id: u64,
        /// Where its peers reach it from now on.
        peer_urls: Vec<String>,
    },
    /// A learner gets its vote.
    Promote(u64),
}

/// How a member is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The software's version.
    pub version: String,
    /// The member that it takes for the leader; 0 if there is none.
    pub leader: u64,
    /// The term of consensus.
    pub term: u64,
    /// Index of the last entry that is committed.
    pub committed: u64,
    /// Index of the last entry that is applied here.
    pub applied: u64,
    /// Bytes that the store takes on disk.
    pub db_bytes: u64,
    /// Bytes of those that are in use.
    pub db_used_bytes: u64,
    /// Bytes that the store may take; 0 is no limit.
    pub quota_bytes: u64,
    /// Has no vote.
    pub learner: bool,
    /// What an operator has to see to, in words.
    pub errors: Vec<String>,
}

/// What the leader knows of another member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Follower {
    /// Which.
    pub id: u64,
    /// Where it is.
    pub address: String,
    /// It was heard within an election timeout.
    pub connected: bool,
    /// When it was heard last, in seconds since 1970; 0: never.
    pub heard_s: u64,
    /// The store's revision at the last entry of the log that it is known to have.
    pub revision: u64,
    /// Entries of the log that it lacks.
    pub lag: u64,
}

/// One watch, as a client asks for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchRequest {
    /// What the client calls it; unique among its [`Watches`].
    pub id: i64,
    /// The first key.
    pub key: Vec<u8>,
    /// See [`ice_core::kv::keys::KeyRange::new`].
    pub end: Vec<u8>,
    /// The first revision of interest; 0: what comes from now on.
    pub start: u64,
    /// No news of keys that are written.
    pub no_put: bool,
    /// No news of keys that are deleted.
    pub no_delete: bool,
    /// Say what was there before.
    pub prev_kv: bool,
}

pub use ice_core::kv::watch::Event;

/// News of one watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchNews {
    /// It stands; nothing of it came before this, and everything from its start on (or from `revision + 1` on) comes after.
    Created {
        /// Which.
        id: i64,
        /// The store's revision then.
        revision: u64,
    },
    /// Changes of one or more revisions, whole revisions, in order.
    Events {
        /// Which.
        id: i64,
        /// The store's revision when they were taken.
        revision: u64,
        /// At least one.
        events: Vec<Arc<Event>>,
    },
    /// Everything up to `revision` was told to every watch of these [`Watches`]; the answer to [`Watches::progress`].
    AllCurrent {
        /// The store's revision.
        revision: u64,
    },
    /// It is over: what it had to tell next is compacted.
    Compacted {
        /// Which.
        id: i64,
        /// The oldest revision that can be read.
        compacted: u64,
    },
}

/// Watches of one client. Dropping them ends them.
pub trait Watches: Send + 'static {
    /// Another watch. [`WatchNews::Created`] follows, or an error is returned and there is no such watch.
    fn create(&mut self, request: WatchRequest) -> Result<()>;
    /// No more of this one; no news of it come after this returns. `false`: there is none.
    fn cancel(&mut self, id: i64) -> bool;
    /// Say when everybody is current: [`WatchNews::AllCurrent`] follows in its turn, once, however often it was asked.
    fn progress(&mut self);
    /// The next news. Nothing is taken from the store's history before it is asked for, apart from a bounded portion, so a
    /// slow client costs no memory. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<WatchNews>> + Send;
}

/// A stream of bytes, in bounded portions.
pub type Chunks = Pin<Box<dyn futures::Stream<Item = Result<bytes::Bytes>> + Send>>;

/// The whole store as bytes, from which a store can be made again.
pub struct Snapshot {
    /// How many bytes follow.
    pub bytes: u64,
    /// They.
    pub chunks: Chunks,
}

/// A node's part of the control plane.
pub trait ControlPlane: Send + Sync + 'static {
    /// Watches of one client.
    type Watches: Watches;

    /// Who answers.
    fn ids(&self) -> Ids;
    /// This node's name.
    fn name(&self) -> String;
    /// The store as it is known here, without asking anybody.
    fn head(&self) -> Head;
    /// How this member is, without asking anybody.
    fn status(&self) -> Status;
    /// Proposes a command, through the leader wherever that is, and waits until it is applied here. What the store asks a
    /// proposer to do is done here: the quota is looked at, and leases that are too short are made as long as they must be.
    fn propose(&self, command: Command) -> impl Future<Output = Result<Applied>> + Send;
    /// Looks into the store, with [`Freshness::Linearizable`] after a quorum has confirmed where it must stand. The store is
    /// held meanwhile.
    fn read<T: Send + 'static>(
        &self,
        freshness: Freshness,
        look: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> impl Future<Output = Result<(T, Head)>> + Send;
    /// This node, as the owner of locks: what it owns goes when it is declared down, and when it starts anew.
    fn replica(&self) -> ReplicaId;
    /// The node of this name, this one included; `None` if no member is called so.
    fn replica_of(&self, name: &str) -> Option<ReplicaId>;
    /// Takes a lock by [`LockAction::Acquire`] or [`LockAction::Lock`], the `wait` of which is filled in here. Where others stand
    /// before it, it waits in their queue until it is served, for as long as `patience`, and until `give_up` ends.
    ///
    /// The wait survives changes of the leader, and leaves no trace: when `patience` is over or `give_up` has ended it is
    /// withdrawn, and only when the store has confirmed that, the answer is [`Refused::Timeout`]. A grant that came before the
    /// withdrawal is the answer instead. If the store cannot be asked any more, the answer is another of [`Refused`], and whether
    /// the lock is held is not known. Dropping the future withdraws the wait, too, and what is granted nevertheless is given back
    /// ([`give_back`]), some time later.
    ///
    /// Errors: [`Error::Locked`] of the store where it is held by others and `patience` is zero; [`Error::Deadlock`] and
    /// whatever else the store says; [`Refused`] as of [`ControlPlane::propose`].
    fn lock<G: Future<Output = ()> + Send>(
        &self,
        action: LockAction,
        patience: Duration,
        give_up: G,
    ) -> impl Future<Output = Result<Grant>> + Send;
    /// A new set of watches.
    fn watches(&self) -> Self::Watches;
    /// A sign of life of a lease, at the leader wherever that is: the seconds that it has now. [`Error::LeaseNotFound`] if it
    /// has ended.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<u64>> + Send;
    /// What time a lease has left, at the leader wherever that is.
    fn lease_time(&self, lease: LeaseId) -> impl Future<Output = Result<LeaseTime>> + Send;
    /// A number that nobody else draws: for ids that the proposer chooses. Positive as an `i64`.
    fn new_id(&self) -> u64;
    /// A secret that all members share and no client sees, by which one member knows the tokens of another.
    fn token_secret(&self) -> impl Future<Output = Result<[u8; 32]>> + Send;

    /// All members.
    fn members(&self, freshness: Freshness) -> impl Future<Output = Result<Vec<Member>>> + Send;
    /// Changes them, and returns all of them. For [`MemberChange::Add`] the new one is the last.
    fn change_members(&self, change: MemberChange) -> impl Future<Output = Result<Vec<Member>>> + Send;
    /// Hands leadership to a member. [`Refused::NotLeader`] if this one does not have it.
    fn move_leader(&self, to: u64) -> impl Future<Output = Result<()>> + Send;
    /// What the leader knows of the others; empty on other members.
    fn followers(&self) -> Vec<Follower>;
    /// Gives space back to the system.
    fn defragment(&self) -> impl Future<Output = Result<()>> + Send;
    /// The whole store as of now.
    fn snapshot(&self) -> impl Future<Output = Result<Snapshot>> + Send;

    /// Makes a snapshot that is kept, durable and remembered before this returns.
    fn snapshot_keep(
        &self,
        name: String,
        metadata: Vec<(String, String)>,
    ) -> impl Future<Output = Result<SnapshotRecord>> + Send;
    /// The bytes of one that is kept. [`Error::SnapshotNotFound`].
    fn snapshot_open(&self, id: String) -> impl Future<Output = Result<Snapshot>> + Send;
    /// Puts the cluster's store back to what it was; returns the revision that this made. `unchecked`: also if the bytes do
    /// not have the checksum that is remembered.
    fn snapshot_restore(&self, id: String, unchecked: bool) -> impl Future<Output = Result<u64>> + Send;
    /// Forgets one and removes its bytes. `false`: there was none.
    fn snapshot_forget(&self, id: String) -> impl Future<Output = Result<bool>> + Send;
}

/// What gives a lock back that was granted to somebody who does not wait any more. `None`: there is nothing to give back, for
/// the holder had the lock before, or this is no request for one.
pub fn give_back(action: &LockAction, grant: &Grant) -> Option<LockAction> {
    action.give_back(grant)
}
