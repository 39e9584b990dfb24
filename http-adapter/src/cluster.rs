//! The API's view of a node, over its engine.

use crate::api::Cluster;
use ice_core::action::Refused;
use ice_core::event::{Ack, Admin};
use ice_core::ids::Name;
use ice_core::node::View;
use ice_core::status::{PeerState, Status};
use ice_host::engine::Engine;
use ice_host::vfs::{FsStat, Vfs};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Conflicts in one answer; status has the number of all.
const CONFLICTS_MAX: usize = 10_000;

/// When a node calls itself ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadyWhen {
    /// `ready_require_sync`: once nothing that it knows of was missing in `backing`.
    pub synced: bool,
    /// `ready_require_peer`: while another member is up.
    pub peer: bool,
}

/// Further reasons for status, in words: troubles of the volume, of the log, of the mount. Empty: all is well.
pub type Troubles = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// A [`Cluster`] over the engine.
pub struct EngineCluster {
    engine: Arc<Engine>,
    vfs: Arc<dyn Vfs>,
    when: ReadyWhen,
    troubles: Troubles,
    /// Nothing was missing at some time since the start.
    synced: AtomicBool,
    /// Everything that belongs to the service has been started.
    open: AtomicBool,
}

impl EngineCluster {
    /// Not ready before [`EngineCluster::open`].
    pub fn new(engine: Arc<Engine>, vfs: Arc<dyn Vfs>, when: ReadyWhen, troubles: Troubles) -> EngineCluster {
        EngineCluster { engine, vfs, when, troubles, synced: AtomicBool::new(false), open: AtomicBool::new(false) }
    }

    /// All parts of the node are started (`true`), or it begins to stop (`false`).
    pub fn open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }

    fn core(&self) -> Status {
        self.engine.view(|view| view.status())
    }
}

fn is_synced(status: &Status) -> bool {
    // A member that never answered may know more than we do; one that is down must not keep a survivor from serving.
    let complete = status.pending == 0 && status.missing_ops == 0 && !status.joining;
    complete && !status.peers.iter().any(|p| !p.left && p.state == PeerState::Unknown)
}

impl Cluster for EngineCluster {
    fn node_id(&self) -> String {
        self.core().name
    }

    fn ready(&self) -> bool {
        if !self.open.load(Ordering::SeqCst) {
            return false;
        }
        if self.when == ReadyWhen::default() {
            return true;
        }
        let status = self.core();
        if is_synced(&status) {
            self.synced.store(true, Ordering::SeqCst);
        }
        (!self.when.synced || self.synced.load(Ordering::SeqCst))
            && (!self.when.peer || status.peers.iter().any(|p| p.state == PeerState::Up))
    }

    fn peers(&self) -> Vec<String> {
        let status = self.core();
        let others = status.peers.iter().filter(|p| !p.left && p.state != PeerState::Down);
        let all: BTreeSet<&String> = others.filter_map(|p| p.urls.first()).chain(status.urls.first()).collect();
        all.into_iter().cloned().collect()
    }

    fn admin(&self, order: Admin) {
        self.engine.admin(order);
    }

    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused> {
        self.engine.sync(ack, timeout)
    }

    fn status(&self) -> Value {
        status_json(&self.core(), self.vfs.statfs().ok(), self.ready(), (self.troubles)())
    }

    fn conflicts(&self) -> Value {
        self.engine.view(|view| conflicts_json(&view))
    }
}

/// `/v1/status`: the core's own words, and what only the host knows.
fn status_json(status: &Status, disk: Option<FsStat>, ready: bool, troubles: Vec<String>) -> Value {
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|p| {
            json!({
                "id": p.name,
                "name": p.name,
                "replica": p.replica.to_string(),
                "state": p.state,
                "left": p.left,
                "why": p.why,
                "urls": p.urls,
                "lag_ops": p.lag_ops,
                "lag_bytes": p.lag_bytes,
                "clock_skew_ns": p.clock_skew_ns,
            })
        })
        .collect();
    let mut reasons = status.reasons.clone();
    reasons.extend(troubles);
    let disk = disk.map(|d| {
        let unit = u64::from(d.bsize);
        json!({
            "total_bytes": d.blocks.saturating_mul(unit),
            "free_bytes": d.bavail.saturating_mul(unit),
            "inodes": d.files,
            "inodes_free": d.ffree,
        })
    });
    json!({
        "id": status.name,
        "name": status.name,
        "replica": status.replica.to_string(),
        "incarnation": status.incarnation.0,
        "state": if reasons.is_empty() { "ok" } else { "degraded" },
        "ready": ready,
        "version": ice_host::VERSION,
        "urls": status.urls,
        "peers": peers,
        "inodes": status.inodes,
        "pending": status.pending,
        "pending_bytes": status.pending_bytes,
        "missing_ops": status.missing_ops,
        "in_sync": status.in_sync,
        "conflicts": status.conflicts,
        "disk": disk,
        "reasons": reasons,
        "waits": status.waits,
    })
}

/// A path for people.
fn words(path: &[Name]) -> String {
    let parts: Vec<String> = path.iter().map(|n| n.to_string()).collect();
    parts.join("/")
}

/// `/v1/conflicts`: for each kept copy where it is, and whose version of which file it keeps.
fn conflicts_json(view: &View<'_>) -> Value {
    let tree = view.tree();
    let all = tree.conflicts().into_iter().take(CONFLICTS_MAX).map(|conflict| {
        let by = view.author(conflict.lost.replica);
        json!({
            "path": tree.path(conflict.copy).map(|p| words(&p)),
            "original": conflict.inode.and_then(|i| tree.path(i)).map(|p| words(&p)),
            "node": by.map_or_else(|| conflict.lost.replica.to_string(), |m| m.name.clone()),
            "time_ns": conflict.lost.time.0,
        })
    });
    Value::Array(all.collect())
}
