//! DeCube's API over a [`ControlPlane`]: pods, leases and snapshots, by REST and by gRPC, on the same data that etcd's clients
//! see.

mod cors;
mod grpc;
mod leases;
mod metrics;
mod page;
mod pods;
mod problem;
mod rest;
mod snapshots;
mod status;
mod time;

use crate::jwt::{Denied, Gate};
use crate::listen::Stopped;
use axum::Router;
use ice_core::kv::command::{Action, Command};
use ice_core::kv::txn::{Txn, TxnAnswer};
use ice_core::kv::{Answer, Error, Store};
use ice_host::control::{ControlPlane, Freshness};
use ice_serve::Rt;
use metrics::Metrics;
use problem::Problem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use crate::etcd::now_s;

/// Largest body of a request, and message.
pub(crate) const BODY_MAX_BYTES: usize = 1 << 20;

/// What can be chosen.
#[derive(Debug)]
pub struct Options {
    /// Who may come in.
    pub gate: Gate,
    /// Pages of which origins a browser lets call; `*` is all.
    pub cors_origins: Vec<String>,
    /// The file system whose space is shown; `None`: none is.
    pub data: Option<PathBuf>,
    /// Longest time for one request.
    pub request: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { gate: Gate::Open, cors_origins: vec![], data: None, request: Duration::from_secs(15) }
    }
}

/// DeCube's API. One for both listeners, so that both count into the same metrics.
pub struct App<C> {
    pub(crate) plane: Arc<C>,
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
}

impl<C: ControlPlane> App<C> {
    /// The API over `plane`.
    pub fn new(plane: Arc<C>, options: Options) -> Arc<App<C>> {
        let metrics = Metrics::new();
        Arc::new(App { plane, options, metrics })
    }

    /// What the REST listener serves.
    pub fn rest(self: &Arc<Self>, rt: &Rt) -> Router {
        rest::router(self.clone(), rt)
    }

    /// What the gRPC listener serves.
    pub fn grpc(self: &Arc<Self>, rt: &Rt, stopped: &Stopped) -> Router {
        grpc::router(self.clone(), rt, stopped)
    }

    pub(crate) fn admit(&self, authorization: Option<&str>) -> Result<(), Denied> {
        self.options.gate.check(authorization, now_s())
    }

    /// Has something done on the cluster's own behalf: this API lets in whom it knows by its own means, and it writes only where
    /// its own records are.
    pub(crate) async fn propose(&self, action: Action) -> Result<(Answer, u64), Problem> {
        let command = Command::node(action);
        command.check()?;
        let begin = Instant::now();
        let applied = self.plane.propose(command).await;
        self.metrics.proposed(begin.elapsed(), applied.is_ok());
        let applied = applied?;
        Ok((applied.answer, applied.head.revision))
    }

    /// Reads what was acknowledged to anybody.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        self.metrics.read();
        let (found, _) = self.plane.read(Freshness::Linearizable, look).await?;
        Ok(found?)
    }

    /// A transaction, and the revision after it.
    pub(crate) async fn txn(&self, txn: Txn) -> Result<(TxnAnswer, u64), Problem> {
        match self.propose(Action::Txn(txn)).await? {
            (Answer::Txn(answer), revision) => Ok((answer, revision)),
            _ => Err(Problem::internal("a transaction answered something else")),
        }
    }
}
