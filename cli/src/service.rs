//! What the HTTP API asks of a node, answered from the engine, the volume and the machine.

use ice_core::action::Refused;
use ice_core::event::{Ack, Admin};
use ice_core::status::PeerState;
use ice_host::config::Config;
use ice_host::engine::Engine;
use ice_host::volume::Volume;
use ice_http::Cluster;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What does not change while the node runs, and what happened at its start.
pub struct Facts {
    /// Told to the others.
    pub urls: Vec<String>,
    node_id: String,
    backing: PathBuf,
    mount: Option<PathBuf>,
    ready_require_peer: bool,
    ready_require_sync: bool,
    clock_skew_max: Duration,
    words: Mutex<Vec<String>>,
}

impl Facts {
    /// From the configuration; `damage` was found at the start.
    pub fn new(config: &Config, urls: Vec<String>, damage: Vec<String>) -> Facts {
        Facts {
            urls,
            node_id: config.node_id.clone(),
            backing: config.backing.clone(),
            mount: config.mount.clone(),
            ready_require_peer: config.ready_require_peer,
            ready_require_sync: config.ready_require_sync,
            clock_skew_max: config.clock_skew_max,
            words: Mutex::new(damage),
        }
    }

    /// The mount did not come about.
    pub fn no_mount(&self, words: String) {
        tracing::error!("{words}");
        self.words().push(words);
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct Service {
    engine: Arc<Engine>,
    volume: Volume,
    facts: Arc<Facts>,
}

impl Service {
    /// For a running node.
    pub fn new(engine: Arc<Engine>, volume: Volume, facts: Arc<Facts>) -> Service {
        Service { engine, volume, facts }
    }
}

impl Cluster for Service {
    fn node_id(&self) -> String {
        self.facts.node_id.clone()
    }

    fn ready(&self) -> bool {
        if !self.facts.ready_require_peer && !self.facts.ready_require_sync {
            return true;
        }
        // The first look at `backing` is part of the start: before its end a listing may be incomplete.
        let scanned = !self.facts.ready_require_sync || !self.volume.status().scanning;
        let peer = !self.facts.ready_require_peer
            || self.engine.view(|v| v.status().peers.iter().any(|p| p.state == PeerState::Up));
        scanned && peer
    }

    fn peers(&self) -> Vec<String> {
        let mut urls: Vec<String> = self.engine.view(|v| {
            let status = v.status();
            let up = status.peers.iter().filter(|p| !p.left && p.state != PeerState::Down);
            up.filter_map(|p| p.urls.first().cloned()).chain(status.urls.first().cloned()).collect()
        });
        urls.sort();
        urls.dedup();
        urls
    }

    fn admin(&self, order: Admin) {
        self.engine.admin(order);
    }

    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused> {
        self.engine.sync(ack, timeout)
    }

    fn status(&self) -> Value {
        let core = self.engine.view(|v| v.status());
        let volume = self.volume.status();
        let mut reasons = core.reasons.clone();
        reasons.extend(volume.troubles.iter().cloned());
        reasons.extend(self.facts.words().iter().cloned());
        let limit = self.facts.clock_skew_max.as_nanos() as i128;
        let peers: Vec<Value> = core
            .peers
            .iter()
            .map(|p| {
                if let Some(skew) = p.clock_skew_ns.filter(|s| i128::from(*s).abs() > limit) {
                    reasons.push(format!("the clock of {} differs by {} ms", p.name, skew / 1_000_000));
                }
                json!({
                    "id": p.name, "replica": p.replica.to_string(), "urls": p.urls, "state": p.state, "why": p.why,
                    "lag_ops": p.lag_ops, "lag_bytes": p.lag_bytes, "clock_skew_ns": p.clock_skew_ns, "left": p.left,
                })
            })
            .collect();
        let state = if reasons.is_empty() { "ok" } else { "degraded" };
        json!({
            "id": core.name, "replica": core.replica.to_string(), "incarnation": core.incarnation.0,
            "state": state, "version": ice_host::VERSION, "urls": core.urls, "peers": peers,
            "inodes": core.inodes, "pending": core.pending, "pending_bytes": core.pending_bytes,
            "dirty_files": volume.dirty_files, "open_files": volume.open_files, "scanning": volume.scanning,
            "conflicts": core.conflicts, "in_sync": core.in_sync && volume.dirty_files == 0 && !volume.scanning,
            "disk": disk(&self.facts.backing), "backing": self.facts.backing, "mount": self.facts.mount,
            "reasons": reasons,
        })
    }

    fn conflicts(&self) -> Value {
        let list = self.engine.tree(|tree| {
            let path = |inode| {
                tree.path(inode).map(|names| {
                    names.iter().map(|n| String::from_utf8_lossy(n.as_bytes()).into_owned()).collect::<Vec<_>>().join("/")
                })
            };
            let conflict = |c: ice_core::tree::Conflict| (path(c.inode), path(c.copy), c.lost);
            tree.conflicts().into_iter().take(10_000).map(conflict).collect::<Vec<_>>()
        });
        let names: Vec<(String, String)> = self.engine.view(|v| {
            let s = v.status();
            let me = std::iter::once((s.replica.to_string(), s.name.clone()));
            me.chain(s.peers.iter().map(|p| (p.replica.to_string(), p.name.clone()))).collect()
        });
        let by = |replica: String| names.iter().find(|(r, _)| *r == replica).map(|(_, n)| n.clone());
        Value::Array(
            list.into_iter()
                .filter(|(_, copy, _)| copy.is_some())
                .map(|(path, copy, lost)| {
                    json!({"path": path, "copy": copy, "by": by(lost.replica.to_string()), "time_ns": lost.time.0})
                })
                .collect(),
        )
    }
}

/// Space below `backing`; `null` where it cannot be told.
fn disk(backing: &std::path::Path) -> Value {
    match rustix::fs::statvfs(backing) {
        Ok(s) => json!({"bytes": s.f_blocks * s.f_frsize, "free": s.f_bavail * s.f_frsize, "files_free": s.f_favail}),
        Err(_) => Value::Null,
    }
}
