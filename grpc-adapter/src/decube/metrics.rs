//! What is counted and measured, under DeCube's names, in a registry of its own: several nodes may live in one process.

use super::App;
use ice_core::kv::Store;
use ice_host::control::{ControlPlane, Freshness};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The type of what [`App::scrape`] returns.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

type Fraction = Gauge<f64, AtomicU64>;

/// Of an answered request. All values come from short lists: what a client says is none of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Request {
    method: String,
    path: String,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Peer {
    peer: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

/// Everything that is shown at `/metrics`.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Histogram,
    operations: Family<Operation, Counter>,
    rounds: Histogram,
    round_failures: Counter,
    pub(crate) snapshots_made: Counter,
    // Looked at when they are asked for.
    applied: Gauge,
    lag: Family<Peer, Gauge>,
    snapshots: Gauge,
    snapshots_bytes: Gauge,
    snapshot_bytes: Gauge,
    entries: Gauge,
    memory: Gauge,
    memory_limit: Gauge,
    cpu: Fraction,
    disk: Gauge,
    disk_total: Gauge,
    cpu_before: Mutex<(Instant, Duration)>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let m = Metrics {
            registry: Registry::default(),
            requests: Family::default(),
            durations: Histogram::new(SECONDS),
            operations: Family::default(),
            rounds: Histogram::new(SECONDS),
            round_failures: Counter::default(),
            snapshots_made: Counter::default(),
            applied: Gauge::default(),
            lag: Family::default(),
            snapshots: Gauge::default(),
            snapshots_bytes: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            entries: Gauge::default(),
            memory: Gauge::default(),
            memory_limit: Gauge::default(),
            cpu: Fraction::default(),
            disk: Gauge::default(),
            disk_total: Gauge::default(),
            cpu_before: Mutex::new((Instant::now(), cpu_time())),
        };
        m.registered()
    }

    fn registered(mut self) -> Metrics {
        let r = &mut self.registry;
        // A counter's name gets `_total` by itself.
        r.register("decube_http_requests", "Answered requests", self.requests.clone());
        r.register("decube_http_request_duration_seconds", "Time to answer a request", self.durations.clone());
        r.register("decube_storage_operations", "Reads and writes of the store", self.operations.clone());
        r.register("decube_consensus_round_duration_seconds", "Time until a proposal is applied", self.rounds.clone());
        r.register("decube_consensus_failures", "Proposals that were not applied in time", self.round_failures.clone());
        r.register("decube_snapshot_created", "Snapshots made by this node", self.snapshots_made.clone());
        r.register("decube_consensus_operations_total", "Index of the last entry applied", self.applied.clone());
        r.register("decube_replication_lag_seconds", "Since a lagging follower was heard (leader)", self.lag.clone());
        r.register("decube_snapshots_total", "Snapshots that are kept", self.snapshots.clone());
        r.register("decube_snapshots_size_bytes", "Bytes of all snapshots that are kept", self.snapshots_bytes.clone());
        r.register("decube_snapshot_size_bytes", "Bytes of the newest snapshot", self.snapshot_bytes.clone());
        r.register("decube_catalog_entries_total", "Keys in the store", self.entries.clone());
        r.register("decube_memory_usage", "Resident bytes of the process", self.memory.clone());
        r.register("decube_memory_limit", "Bytes that it may have", self.memory_limit.clone());
        r.register("decube_cpu_usage", "Processors in use since the last look", self.cpu.clone());
        r.register("decube_disk_usage", "Bytes in use on the file system of `data`", self.disk.clone());
        r.register("decube_disk_total", "Bytes of the file system of `data`", self.disk_total.clone());
        self
    }

    /// A request was answered.
    pub(crate) fn answered(&self, method: &http::Method, path: &str, status: http::StatusCode, took: Duration) {
        let known = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"];
        let method = known.into_iter().find(|m| *m == method.as_str()).unwrap_or("other").to_owned();
        let labels = Request { method, path: path.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// A proposal was applied, or was not.
    pub(crate) fn proposed(&self, took: Duration, applied: bool) {
        self.operations.get_or_create(&Operation { operation: "write" }).inc();
        self.rounds.observe(took.as_secs_f64());
        if !applied {
            self.round_failures.inc();
        }
    }

    /// The store was read.
    pub(crate) fn read(&self) {
        self.operations.get_or_create(&Operation { operation: "read" }).inc();
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// A line like `VmRSS:   1234 kB` of a file, in bytes.
fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn memory_limit() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemTotal");
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    machine.into_iter().chain(cgroup).min()
}

/// Bytes used and there are.
fn space(path: &Path) -> Option<(u64, u64)> {
    let fs = rustix::fs::statvfs(path).ok()?;
    Some((fs.f_blocks.saturating_sub(fs.f_bfree) * fs.f_frsize, fs.f_blocks * fs.f_frsize))
}

impl<C: ControlPlane> App<C> {
    /// All of it, as text.
    pub(crate) async fn scrape(&self) -> Result<String, super::problem::Problem> {
        let m = &self.metrics;
        let look = |s: &Store| {
            let sizes: Vec<(u64, u64)> = s.snapshots().map(|r| (r.created_s, r.size_bytes)).collect();
            (s.keys(), sizes)
        };
        let ((keys, sizes), _) = self.plane.read(Freshness::Local, look).await?;
        m.entries.set(signed(keys as u64));
        m.snapshots.set(signed(sizes.len() as u64));
        m.snapshots_bytes.set(signed(sizes.iter().map(|(_, bytes)| bytes).sum()));
        m.snapshot_bytes.set(signed(sizes.iter().max().map_or(0, |(_, bytes)| *bytes)));
        m.applied.set(signed(self.plane.status().applied));
        // A follower that is gone, or a leadership that is, leaves no number behind.
        m.lag.clear();
        for f in self.plane.followers() {
            let since = super::now_s().saturating_sub(f.heard_s);
            let lag = if f.lag == 0 && f.connected { 0 } else { since };
            m.lag.get_or_create(&Peer { peer: f.address }).set(signed(lag));
        }
        m.memory.set(signed(kilobytes("/proc/self/status", "VmRSS").unwrap_or(0)));
        m.memory_limit.set(signed(memory_limit().unwrap_or(0)));
        {
            let mut before = m.cpu_before.lock().unwrap_or_else(PoisonError::into_inner);
            let now = (Instant::now(), cpu_time());
            let wall = now.0.duration_since(before.0).as_secs_f64();
            if wall > 0.0 {
                m.cpu.set(now.1.saturating_sub(before.1).as_secs_f64() / wall);
            }
            *before = now;
        }
        if let Some((used, total)) = self.options.data.as_deref().and_then(space) {
            m.disk.set(signed(used));
            m.disk_total.set(signed(total));
        }
        let mut text = String::new();
        encode(&mut text, &m.registry).map_err(|e| super::problem::Problem::internal(e.to_string()))?;
        Ok(text)
    }
}
