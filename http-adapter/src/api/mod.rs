//! The public API: the routes of icecluster, and what is common to all of them.

mod conditional;
pub(crate) mod error;
mod file;
mod guard;
mod locks;
pub(crate) mod node;
pub(crate) mod path;
mod range;

use crate::files::FileService;
use crate::peer::{self, Net};
use crate::server::Limits;
use axum::Router;
use axum::http::Method;
use axum::middleware;
use axum::routing::{any, delete, get, post};
use error::Failure;
use ice_core::action::Refused;
use ice_core::event::{Ack, Admin};
use ice_host::locks::Locking;
use ice_serve::Rt;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// What the API asks of the node. Calls may block for a short while, `sync` for its timeout.
pub trait Cluster: Send + Sync + 'static {
    /// `node_id`.
    fn node_id(&self) -> String;
    /// The node serves.
    fn ready(&self) -> bool;
    /// Base URLs of the members that are not down, this node's own included, sorted.
    fn peers(&self) -> Vec<String>;
    /// An order of the operator.
    fn admin(&self, order: Admin);
    /// Waits until everything written so far is held durably as `ack` asks; how many hold it.
    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused>;
    /// `/v1/status`.
    fn status(&self) -> Value;
    /// `/v1/conflicts`.
    fn conflicts(&self) -> Value;
}

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// `api_token`: needed for everything below `/v1/` but `/v1/ready`.
    pub token: Option<String>,
    /// Names of this node, in small letters: where there is no token, a browser's request must be for one of them, an address or
    /// `localhost`.
    pub names: Vec<String>,
    /// What status says beside the reasons: nothing that is wrong, but what somebody should know.
    pub notes: Vec<String>,
    /// How long a `PUT` with `ack=` waits.
    pub ack_timeout: Duration,
    /// Limits of requests.
    pub limits: Limits,
}

pub(crate) struct App {
    rt: Rt,
    files: Arc<dyn FileService>,
    cluster: Arc<dyn Cluster>,
    net: Net,
    locking: Option<Locking>,
    config: ApiConfig,
    /// Requests that wait for other nodes.
    waiting: Arc<AtomicUsize>,
}

type Shared = Arc<App>;

/// All routes of a node without a control plane. `net` contributes the peers' ones and the counters.
pub fn router(rt: Rt, files: Arc<dyn FileService>, cluster: Arc<dyn Cluster>, net: Net, config: ApiConfig) -> Router {
    router_with_locks(rt, files, cluster, net, config, None)
}

/// All routes. Without `locking` there are no locks: those who ask for one are told why.
pub fn router_with_locks(
    rt: Rt,
    files: Arc<dyn FileService>,
    cluster: Arc<dyn Cluster>,
    net: Net,
    config: ApiConfig,
    locking: Option<Locking>,
) -> Router {
    let app = Arc::new(App { rt, files, cluster, net, locking, config, waiting: Arc::default() });
    Router::new()
        .route("/health", any(node::health))
        .route("/ready", any(node::ready))
        .route("/v1/ready", any(node::ready_json))
        .route("/v1/time", get(node::time).fallback(only_get))
        .route("/v1/version", get(node::version).fallback(only_get))
        .route("/v1/node", get(node::node).fallback(only_get))
        .route("/v1/status", get(node::status).fallback(only_get))
        .route("/v1/conflicts", get(node::conflicts).fallback(only_get))
        .route("/v1/index", get(node::index).fallback(only_get))
        .route("/v1/list", get(node::list).fallback(only_get))
        .route("/v1/peers", get(node::peers).fallback(only_get))
        .route("/v1/peers/register", post(node::register).put(node::register).fallback(only_post_or_put))
        .route(
            "/v1/peers/unregister",
            post(node::unregister).merge(delete(node::unregister)).fallback(only_post_or_delete),
        )
        .route("/v1/stats", get(node::stats).fallback(only_get))
        .route("/v1/stats/reset", post(node::stats_reset).fallback(only_post))
        .route("/v1/lock", post(locks::lock).put(locks::lock).fallback(only_post_or_put))
        .route("/v1/unlock", post(locks::unlock).merge(delete(locks::unlock)).fallback(only_post_or_delete))
        .route("/v1/locks", get(locks::list).fallback(only_get))
        .route(
            "/v1/locks/release_by_holder",
            post(locks::release_by_holder).merge(delete(locks::release_by_holder)).fallback(only_post_or_delete),
        )
        .route("/v1/file", get(file::read).put(file::write).delete(file::remove).fallback(only_file))
        .with_state(app.clone())
        .merge(peer::routes(&app.net))
        .fallback(nowhere)
        .layer(middleware::from_fn_with_state(app, guard::guard))
}

async fn nowhere() -> Failure {
    Failure::new(http::StatusCode::NOT_FOUND, "not_found", "no such route")
}
async fn only_get() -> Failure {
    Failure::method_not_allowed("GET, HEAD")
}
async fn only_post() -> Failure {
    Failure::method_not_allowed("POST")
}
async fn only_post_or_put() -> Failure {
    Failure::method_not_allowed("POST, PUT")
}
async fn only_post_or_delete() -> Failure {
    Failure::method_not_allowed("POST, DELETE")
}
async fn only_file() -> Failure {
    Failure::method_not_allowed("GET, HEAD, PUT, DELETE")
}

/// True for methods that must not change anything.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}
