//! Wires a node: disk, state machine, network, HTTP and mount. The only place that picks a runtime.

use crate::daemon::{Handle, Running};
use crate::disks::Disks;
use crate::faces::{Faces, Serving};
use anyhow::{Context, Result};
use ice_core::event::Admin;
use ice_core::rng::Seed;
use ice_fuse::{Mount, MountOptions, Passthrough};
use ice_host::config::{Config, RuntimeKind};
use ice_host::engine::{Engine, Pressure};
use ice_host::identity::DataDir;
use ice_host::locks::{LockService, Locking, Options as LockOptions};
use ice_host::log::{LogLane, Options as LogOptions};
use ice_host::node::{FileActions, Lanes, core_config, log_dir, recover};
use ice_host::payload::PayloadPool;
use ice_host::plane::{Parts, Plane, Router};
use ice_host::runtime::Runtime;
use ice_host::snapshots::{Chores, Schedule, Snapshots};
use ice_host::tape::{Recorder, Ring};
use ice_host::transport::Transport;
use ice_host::transport::url::BaseUrl;
use ice_host::vfs::Vfs;
use ice_host::volume::{Options as VolumeOptions, Volume};
use ice_http::{
    ApiConfig, Bound, EngineCluster, Limits, Net, NetConfig, ReadyWhen, Rt, Server, TlsClient, TlsServer, VfsFiles,
    router_with_locks,
};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads of the async runtime. Disk work has threads of its own.
const RUNTIME_THREADS: usize = 2;
/// How long a node that stops waits for another to lead the control plane.
const RESIGN_LIMIT: Duration = Duration::from_secs(1);
/// After so long a node should have found the cluster of the control plane.
const CLUSTER_LIMIT: Duration = Duration::from_secs(60);

/// A node at work.
struct Node<R> {
    engine: Arc<Engine>,
    driver: JoinHandle<()>,
    lanes: Arc<Lanes>,
    log: Arc<LogLane>,
    volume: Volume,
    net: Net,
    server: Option<Server>,
    mount: Option<Mount>,
    cluster: Arc<EngineCluster>,
    data: Arc<Mutex<DataDir>>,
    ring: Option<Arc<Ring>>,
    plane: Arc<Plane>,
    faces: Option<Serving>,
    _disks: Disks,
    runtime: R,
}

/// Starts a node on the runtime that its configuration names.
pub fn start(config: &Config, _handle: Handle) -> Result<Box<dyn Running>> {
    match config.runtime {
        RuntimeKind::Tokio => {
            start_on(config, ice_tokio::Tokio::new(RUNTIME_THREADS).context("cannot start the tokio runtime")?)
        }
        RuntimeKind::Smol => {
            start_on(config, ice_smol::Smol::new(RUNTIME_THREADS).context("cannot start the smol runtime")?)
        }
    }
}

fn start_on<R: Runtime>(config: &Config, runtime: R) -> Result<Box<dyn Running>> {
    make_dir(&config.backing).with_context(|| format!("cannot create backing {}", config.backing.display()))?;
    let payloads = Arc::new(PayloadPool::new(config.payload_memory));
    let mut found = recover(config, &payloads)?;
    for words in &found.damage {
        tracing::error!("{words}");
    }
    let volume = Volume::open(VolumeOptions {
        ack: config.ack,
        close_ack: config.close_ack,
        ack_timeout: config.ack_timeout,
        suspects: found.suspects.iter().copied().collect(),
        lost: found.disk.ending == ice_core::config::Ending::MachineCrash,
        rescan: config.scan_interval,
        ..VolumeOptions::new(&config.backing, found.data.replica())
    })?;
    found.disk.staged = volume.staged();

    let bound = runtime.block_on(Bound::new(runtime.clone(), &config.bind.to_string()))?;
    let address = bound.local_addr();
    let urls = config.advertised(address.port())?;
    let faces = runtime.block_on(Faces::bind(&runtime, config))?;
    let mut protocol = core_config(config, &found.data, urls.clone());
    protocol.clients = faces.client_urls(config, &urls);
    if config.tls.is_some() {
        let (usable, plain): (Vec<String>, Vec<String>) =
            protocol.join.into_iter().partition(|u| u.starts_with("https:"));
        protocol.join = usable;
        for url in plain {
            let why = format!("`join`: {url} is not used: this node has TLS, and nothing of it travels in clear text");
            tracing::error!("{why}");
            found.damage.push(why);
        }
    }
    let ring = (config.trace_ring > 0).then(|| Ring::new(config.trace_ring, config.data.join("tapes")));
    if let Some(ring) = &ring {
        ring.dump_on_panic();
    }
    let tape = match (&config.trace, &ring) {
        (None, None) => None,
        (path, ring) => Some(Recorder::new(ring.clone(), path.as_deref()).context("trace")?),
    };
    let seed = Seed(protocol.replica.0 ^ protocol.incarnation.0.rotate_left(32));
    let engine = Arc::new(Engine::loaded(protocol, seed, found.disk, found.loading, Arc::clone(&payloads), tape));
    ice_host::memory::give_back();

    let log = Arc::new(LogLane::open(&log_dir(&config.data), LogOptions::default()).context("cannot open the log")?);
    let token = (!config.api_token.is_empty()).then(|| config.api_token.expose().to_owned());
    let tls_server = match &config.tls {
        Some(files) => Some(TlsServer::from_files(&files.cert, &files.key).context("tls_cert, tls_key")?),
        None => None,
    };
    let wants_tls =
        config.tls.is_some() || config.cacert.is_some() || config.join.iter().any(|u| u.starts_with("https:"));
    let tls = if wants_tls { Some(TlsClient::from_file(config.cacert.as_deref()).context("cacert")?) } else { None };
    let lane = Arc::clone(&log);
    engine.feel_pressure(Box::new(move || match lane.backlog() {
        b if b.full => Pressure::Full,
        b if b.over => Pressure::Over,
        _ => Pressure::None,
    }));
    let net_config =
        NetConfig { token: token.clone(), tls, https_only: config.tls.is_some(), silence: config.silence() };
    let net = Net::new(runtime.clone(), net_config, payloads, Arc::new(volume.clone()));
    let backing = std::fs::File::open(&config.backing).context("cannot open backing")?.into();
    let files: Arc<dyn FileActions> = Arc::new(volume.clone());
    let transport: Arc<dyn Transport> = Arc::new(net.clone());
    let watchers = Router::new();
    let lanes = Arc::new(
        Lanes::new(&engine, Arc::clone(&log), found.store, backing, files, transport, Arc::clone(&watchers))
            .context("cannot start the disk lanes")?,
    );
    let data = Arc::new(Mutex::new(found.data));
    engine.on_scanned(compared(&log, &data));
    net.start(Arc::clone(&engine) as Arc<dyn ice_host::transport::Sink>);
    let driver = engine.start(Arc::clone(&lanes) as Arc<dyn ice_host::engine::Actions>)?;
    volume.start(Arc::clone(&engine) as Arc<dyn ice_host::volume::Port>).context("cannot start the volume")?;

    let mut words = found.damage;
    let mut notes = vec![];
    let snapshots = Snapshots::open(config.data.join("snapshots"), config.decube.snapshot_compression)
        .context("cannot use the directory of snapshots")?;
    let (snapshots, pause) = (Arc::new(snapshots), runtime.clone());
    let plane = Plane::new(Parts {
        engine: Arc::clone(&engine),
        router: watchers,
        name: config.node_id.clone(),
        data: config.data.clone(),
        store: config.data.join("tree.redb"),
        snapshots: Arc::clone(&snapshots),
        pause: Box::new(move |span| Box::pin(pause.sleep_until(pause.now() + span))),
    });
    let chores = Chores {
        schedule: config.decube.snapshot_every.map(|every| Schedule { every, kept: config.decube.snapshots_kept }),
        history: config.decube.history,
    };
    runtime.spawn(chores.run(runtime.clone(), Arc::downgrade(&plane), snapshots));
    let options = LockOptions { node: config.node_id.clone(), timeout: config.lock_timeout, retry: config.lock_retry };
    let locking = Locking {
        locks: Arc::new(LockService::new(Arc::clone(&plane), runtime.clone(), options)),
        on_write: config.lock_on_write,
        delete_while_locked: config.delete_while_locked,
    };
    let mount = match mount(config, &volume, locking.clone(), &mut notes) {
        Ok(mount) => mount,
        Err(why) => {
            // A mount that fails does not end the node: it serves over HTTP, and says why there is no mount.
            tracing::error!("{why}");
            words.push(why);
            None
        }
    };
    for open in faces.notes(config) {
        tracing::warn!("{open}");
        notes.push(open);
    }
    let outside: Arc<dyn Vfs> = Arc::new(volume.outside());
    let when = ReadyWhen { synced: config.ready_require_sync, peer: config.ready_require_peer };
    let disks = Disks::watch(config).context("cannot watch the disks")?;
    let troubles = troubles(Arc::clone(&engine), volume.clone(), words, config.clock_skew_max, disks.look());
    if token.is_none() && !address.ip().is_loopback() {
        let open = format!(
            "{address} is open to everybody who reaches it, for reading, writing and deleting: no api_token is set"
        );
        tracing::warn!("{open}");
        notes.push(open);
    }
    let cluster = Arc::new(EngineCluster::new(Arc::clone(&engine), Arc::clone(&outside), when, troubles));
    let connections = config.http_connections;
    let limits = Limits { connections, peer_places: connections / 8, ..Limits::default() };
    let api = ApiConfig { token, names: names(config, &urls), notes, ack_timeout: config.ack_timeout, limits };
    let files = Arc::new(VfsFiles::new(outside));
    let rt = Rt::new(runtime.clone());
    let routes = router_with_locks(rt, files, Arc::clone(&cluster) as _, net.clone(), api, Some(locking));
    let server = bound.serve(routes, tls_server, limits);
    let faces = faces.serve(&runtime, &plane, config);
    cluster.open(true);
    tracing::info!("http listening on {}", server.local_addr());
    tracing::info!("advertised as {}", urls.join(", "));
    tracing::info!("peers: [{}]", config.join.join(", "));
    Ok(Box::new(Node {
        engine,
        driver,
        lanes,
        log,
        volume,
        net,
        server: Some(server),
        mount,
        cluster,
        data,
        ring,
        plane,
        faces: Some(faces),
        _disks: disks,
        runtime,
    }))
}

/// Makes a directory and those above it. What is there and is none gets a name that tells so.
pub(crate) fn make_dir(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => rustix::io::Errno::NOTDIR.into(),
        _ => e,
    })
}

/// What is done when everything was compared after a start.
fn compared(log: &Arc<LogLane>, data: &Arc<Mutex<DataDir>>) -> Box<dyn Fn() + Send + Sync> {
    // Neither may outlive the node for the sake of this.
    let (log, data) = (Arc::downgrade(log), Arc::downgrade(data));
    Box::new(move || {
        let (Some(log), Some(data)) = (log.upgrade(), data.upgrade()) else { return };
        ice_host::memory::give_back();
        let durable = log.sync_blocking();
        let noted = durable
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(data.lock().unwrap_or_else(PoisonError::into_inner).compared()?));
        if let Err(why) = noted {
            // The next start compares once more.
            tracing::warn!("the comparison of backing with the tree cannot be noted: {why:#}");
        }
    })
}

/// The names that this node goes by, as they stand in a URL.
fn names(config: &Config, urls: &[String]) -> Vec<String> {
    let hosts = urls.iter().filter_map(|u| Some(BaseUrl::parse(u).ok()?.host().to_owned()));
    let mut names: Vec<String> = hosts.chain([config.bind.host.clone(), config.node_id.to_ascii_lowercase()]).collect();
    names.retain(|n| !n.is_empty());
    names.sort();
    names.dedup();
    names
}

/// What is said of a mount that hides something goes into `notes`.
fn mount(config: &Config, volume: &Volume, locking: Locking, notes: &mut Vec<String>) -> Result<Option<Mount>, String> {
    let Some(path) = config.mount.as_ref() else { return Ok(None) };
    // A dead mount answers ENOTCONN to everything; mounting replaces it.
    let dead = |e: &std::io::Error| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error());
    if let Err(e) = std::fs::create_dir_all(path)
        && e.kind() != std::io::ErrorKind::AlreadyExists
        && !dead(&e)
    {
        return Err(format!("no mount: cannot create {}: {e}", path.display()));
    }
    let mut options = MountOptions::new(path);
    options.threads = config.fuse_threads;
    options.locking = Some(locking);
    options.passthrough = if config.fuse_passthrough { Passthrough::Auto } else { Passthrough::Off };
    // Before the first mount what is there may be what was meant to be shared.
    let marker = config.data.join("mounted");
    let first = !marker.exists();
    options.over = config.mount_over && !first;
    let mount = Mount::start(Arc::new(volume.clone()), options).map_err(|e| {
        let hint = if first && e.kind() == std::io::ErrorKind::DirectoryNotEmpty {
            "; move it into `backing` if it is to be shared, or elsewhere, and start again"
        } else {
            ""
        };
        format!("no mount at {}: {e}{hint}", path.display())
    })?;
    if first && let Err(e) = std::fs::write(&marker, "") {
        tracing::warn!("{}: {e}: the next start does not mount over files", marker.display());
    }
    if !mount.hidden().is_empty() {
        let some: Vec<_> =
            mount.hidden().iter().take(3).map(|n| n.to_string_lossy().escape_debug().to_string()).collect();
        let more = if mount.hidden().len() > some.len() { ", ..." } else { "" };
        let hides = format!(
            "the mount hides what lies in the directory {} itself, written while nothing was mounted there ({}{more}): it is not \
             replicated; stop this node to get at it",
            path.display(),
            some.join(", ")
        );
        tracing::warn!("{hides}");
        notes.push(hides);
    }
    tracing::info!("fuse mounted: mountpoint={} backing={}", path.display(), config.backing.display());
    Ok(Some(mount))
}

/// Reasons for status beyond the protocol's own.
fn troubles(
    engine: Arc<Engine>,
    volume: Volume,
    start: Vec<String>,
    skew_max: Duration,
    disks: impl Fn() -> Vec<String> + Send + Sync + 'static,
) -> Box<dyn Fn() -> Vec<String> + Send + Sync> {
    let since = Instant::now();
    Box::new(move || {
        let mut words = start.clone();
        words.extend(volume.status().troubles);
        let clusterless = || engine.view(|v| v.control().is_some_and(|c| c.raft().cluster() == 0));
        if since.elapsed() > CLUSTER_LIMIT && clusterless() {
            words.push(
                "the control plane has not begun: no node of those that are connected has founded it (let one start without `join`, or                  let all name the same members in the same order)"
                    .into(),
            );
        }
        words.extend(disks());
        for p in engine.view(|v| v.status()).peers {
            let skew = Duration::from_nanos(p.clock_skew_ns.map_or(0, i64::unsigned_abs));
            if skew > skew_max {
                words.push(format!("the clock of {} differs by {} ms", p.name, skew.as_millis()));
            }
        }
        words
    })
}

impl<R: Runtime> Node<R> {
    /// Hands the lead of the control plane to another member, where there is one that can have it.
    fn resign(&self, limit: Duration) {
        let others = self.engine.view(|v| v.control().is_some_and(|c| c.raft().membership().1.voters.len() > 1));
        if !others || !self.plane.leads() {
            return;
        }
        self.engine.admin(Admin::Resign);
        let end = Instant::now() + limit;
        while self.plane.leads() {
            if Instant::now() >= end {
                tracing::info!("no other member took over the lead of the control plane");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl<R: Runtime> Running for Node<R> {
    fn dump(&self) -> Result<PathBuf> {
        let ring = self.ring.as_ref().context("`trace_ring` is 0: nothing is recorded")?;
        ring.dump("request").context("the tape cannot be written")
    }

    fn stop(mut self: Box<Self>, deadline: Instant) -> Result<()> {
        let left = |most: Duration| deadline.saturating_duration_since(Instant::now()).min(most);
        self.resign(left(RESIGN_LIMIT));
        if let Some(mount) = self.mount.take()
            && let Err(e) = mount.unmount(left(Duration::from_secs(4)))
        {
            tracing::warn!("unmount: {e}");
        }
        self.cluster.open(false);
        // Peers are told while the connections still stand; what the volume had not told yet goes out first.
        self.volume.stop();
        self.engine.admin(Admin::Stop);
        if let Some(server) = self.server.take() {
            let faces = self.faces.take();
            let stopping = async {
                let faces = async {
                    if let Some(faces) = faces {
                        faces.stop().await;
                    }
                };
                futures::join!(server.stop(), faces)
            };
            let limit = left(Duration::from_secs(2));
            if self.runtime.block_on(self.runtime.timeout(limit, stopping)).is_err() {
                tracing::warn!("some HTTP requests did not end in time");
            }
        }
        self.net.stop();
        self.engine.stop();
        if self.driver.join().is_err() {
            tracing::error!("the driver thread panicked");
        }
        self.lanes.close();
        let synced = self.log.sync_blocking();
        drop(self.plane);
        drop(self.engine);
        synced.context("the log could not be made durable")?;
        // What peers changed here was not synced one by one: without this a loss of power after the stop would look, at the
        // next start, as if somebody had undone it.
        match self.volume.sync_backing() {
            Ok(true) => self.data.lock().unwrap_or_else(PoisonError::into_inner).mark_clean()?,
            Ok(false) => tracing::warn!("not all of backing is on the disk: the next start is one after a crash"),
            Err(e) => tracing::warn!("backing cannot be made durable: {e}: the next start is one after a crash"),
        }
        Ok(())
    }
}
