//! etcd's v3 API over a [`ControlPlane`]: what its clients send, and what they expect to hear.

mod auth;
mod cluster;
mod convert;
mod election;
mod errors;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
pub mod snapshot;
mod token;
mod watch;

use crate::deadline;
use crate::health::Health;
use crate::listen::Stopped;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::reflection::{self, Reflection};
use axum::Router;
use ice_core::kv::command::{Action, By, Command};
use ice_core::kv::keys::KeyRange;
use ice_core::kv::{Answer, Error, Store};
use ice_core::limits;
use ice_host::control::{Applied, ControlPlane, Freshness, Head, Refused};
use ice_serve::Rt;
use prost::Message;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use token::Tokens;
use tonic::service::Routes;
use tonic::{Request, Status};

/// The version of etcd's API that is spoken, as clients ask for it: they choose what they do by it.
pub const API_VERSION: &str = "3.5.0";

/// How many bytes more than a request may have a message may have, so that the words are etcd's and not the transport's.
const MESSAGE_SLACK_BYTES: usize = 512 * 1024;
/// Passwords that are checked at once: each keeps a processor busy for a part of a second.
const LOGINS_AT_ONCE: usize = 2;
/// Passwords that may wait to be checked.
const LOGINS_WAITING: usize = 64;

/// What can be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often watches that asked for it are told how far they have come.
    pub progress: Duration,
    /// Longest time for one unary request, whatever the client asks for; locks and elections wait longer.
    pub request: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { progress: Duration::from_secs(600), request: Duration::from_secs(60) }
    }
}

/// What all services share.
pub(crate) struct Shared<C> {
    pub(crate) plane: Arc<C>,
    pub(crate) rt: Rt,
    pub(crate) stopped: Stopped,
    pub(crate) options: Options,
    tokens: OnceLock<Tokens>,
    logins: crate::gate::Turns,
}

/// The services of etcd's client port, and what stands beside them there: health, reflection, `/health` and `/version`.
pub fn router<C: ControlPlane>(plane: Arc<C>, rt: &Rt, stopped: Stopped, options: Options) -> Router {
    let shared = Arc::new(Shared {
        plane: plane.clone(),
        rt: rt.clone(),
        stopped: stopped.clone(),
        options,
        tokens: OnceLock::new(),
        logins: crate::gate::Turns::new(LOGINS_AT_ONCE, LOGINS_WAITING),
    });
    let most = limits::KV_REQUEST_MAX_BYTES + MESSAGE_SLACK_BYTES;
    macro_rules! sized {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(most).max_encoding_message_size(usize::MAX)
        };
    }
    let reflection = Reflection::of(&["etcdserverpb", "v3lockpb", "v3electionpb", "grpc.health", "grpc.reflection"]);
    let services = Routes::new(sized!(KvServer, kv::Kv(shared.clone())))
        .add_service(sized!(WatchServer, watch::Watch(shared.clone())))
        .add_service(sized!(LeaseServer, lease::Lease(shared.clone())))
        .add_service(sized!(ClusterServer, cluster::Cluster(shared.clone())))
        .add_service(sized!(MaintenanceServer, maintenance::Maintenance(shared.clone())))
        .add_service(sized!(AuthServer, auth::Auth(shared.clone())))
        .add_service(sized!(LockServer, lock::Lock(shared.clone())))
        .add_service(sized!(ElectionServer, election::Election(shared)))
        .add_service(Health::server(plane.clone(), rt, &stopped, &HEALTH_OF))
        .add_service(reflection::v1::server(reflection.clone()))
        .add_service(reflection::v1alpha::server(reflection))
        .into_axum_router();
    // Locks and elections wait for others.
    let waits = |path: &str| path.starts_with("/v3lockpb.Lock/") || path.starts_with("/v3electionpb.Election/");
    let services = deadline::limited(services, rt, move |path| (!waits(path)).then_some(options.request));
    let (health, version) = (plane.clone(), plane);
    Router::new()
        .route("/health", axum::routing::get(move || http_health(health.clone())))
        .route("/version", axum::routing::get(move || http_version(version.clone())))
        .fallback_service(services)
}

const HEALTH_OF: [&str; 8] = [
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
];

async fn http_health<C: ControlPlane>(plane: Arc<C>) -> (http::StatusCode, axum::Json<serde_json::Value>) {
    match crate::health::well(&*plane).await {
        Ok(()) => (http::StatusCode::OK, axum::Json(serde_json::json!({"health": "true", "reason": ""}))),
        Err(why) => (
            http::StatusCode::SERVICE_UNAVAILABLE,
            axum::Json(serde_json::json!({"health": "false", "reason": why.to_string()})),
        ),
    }
}

async fn http_version<C: ControlPlane>(plane: Arc<C>) -> axum::Json<serde_json::Value> {
    let version = plane.status().version;
    axum::Json(serde_json::json!({"etcdserver": API_VERSION, "etcdcluster": API_VERSION, "icecluster": version}))
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl<C: ControlPlane> Shared<C> {
    async fn tokens(&self) -> Result<&Tokens, Status> {
        if let Some(tokens) = self.tokens.get() {
            return Ok(tokens);
        }
        let secret = self.plane.token_secret().await.map_err(errors::refused)?;
        Ok(self.tokens.get_or_init(|| Tokens::new(&secret)))
    }

    /// Who asks, by the token in the metadata. Also refuses to serve a client that wants a leader where there is none.
    pub(crate) async fn who<T>(&self, request: &Request<T>) -> Result<By, Status> {
        let metadata = request.metadata();
        if metadata.get("hasleader").is_some_and(|v| v == "true") && self.plane.status().leader == 0 {
            return Err(errors::refused(Refused::NoLeader));
        }
        let Some(token) = metadata.get("token").or_else(|| metadata.get("authorization")) else {
            return Ok(By::Nobody);
        };
        let token = token.to_str().map_err(|_| errors::invalid_token())?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        match self.tokens().await?.check(token, now_s()) {
            Some(by) => Ok(by),
            // A client that still has a token from before authentication was disabled is nobody, and is served.
            None if !self.look(|s| s.auth().enabled()).await?.0 => Ok(By::Nobody),
            None => Err(errors::invalid_token()),
        }
    }

    /// Looks into the store as this member knows it.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<(T, Head), Status> {
        self.plane.read(Freshness::Local, look).await.map_err(errors::refused)
    }

    /// Reads what `by` may read.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        freshness: Freshness,
        look: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Head), Status> {
        let (found, head) = self.plane.read(freshness, look).await.map_err(errors::refused)?;
        Ok((found.map_err(|e| errors::store(&e))?, head))
    }

    /// Who asks, if he must say so and has.
    pub(crate) async fn known<T>(&self, request: &Request<T>) -> Result<By, Status> {
        let by = self.who(request).await?;
        let asked = by.clone();
        let known = move |s: &Store| match asked {
            By::Nobody if s.auth().enabled() => Err(Error::UserEmpty),
            By::User { revision, .. } if s.auth().enabled() && revision < s.auth().revision() => {
                Err(Error::AuthOldRevision)
            }
            _ => Ok(()),
        };
        self.read(Freshness::Local, known).await?;
        Ok(by)
    }

    /// Refuses who may not read these keys.
    pub(crate) async fn may_read(&self, by: &By, key: &[u8], end: &[u8]) -> Result<(), Status> {
        let (by, key, end) = (by.clone(), key.to_vec(), end.to_vec());
        self.read(Freshness::Local, move |s| s.auth().may_read(&by, KeyRange::new(&key, &end))).await.map(|_| ())
    }

    /// Proposes what `by` wants done.
    pub(crate) async fn propose(&self, by: By, action: Action) -> Result<Applied, Status> {
        let command = Command { by, action };
        command.check().map_err(|e| errors::store(&e))?;
        self.plane.propose(command).await.map_err(errors::refused)
    }

    /// The header of an answer.
    pub(crate) fn header(&self, head: Head) -> Option<pb::ResponseHeader> {
        convert::header(self.plane.ids(), head)
    }
}

/// etcd limits requests by their size on the wire.
pub(crate) fn check_size(message: &impl Message) -> Result<(), Status> {
    if message.encoded_len() > limits::KV_REQUEST_MAX_BYTES {
        return Err(errors::refused(Refused::TooLarge));
    }
    Ok(())
}

/// An answer of another kind than was asked for: a bug, which must not end the process.
pub(crate) fn unexpected(answer: &Answer) -> Status {
    tracing::error!(?answer, "the store answered something else than it was asked");
    Status::internal("etcdserver: unexpected answer")
}
