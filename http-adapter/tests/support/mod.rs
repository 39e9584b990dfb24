//! What the tests share: a file service over a directory, a cluster that remembers, a sink that can be waited for, and an
//! HTTP client on bare sockets.
#![allow(dead_code)]

pub mod client;
pub mod dir_files;

use bytes::Bytes;
use dir_files::DirFiles;
use ice_core::action::Refused;
use ice_core::event::{Ack, Admin, Event};
use ice_core::ids::InodeId;
use ice_core::time::Stamp;
use ice_host::digest::{BLOCK_BYTES, Blocks};
use ice_host::locks::Locking;
use ice_host::payload::PayloadPool;
use ice_host::runtime::Runtime;
use ice_host::transport::{ContentStore, Fetch, Sink, Staged, VersionReader, differing};
use ice_http::{ApiConfig, Bound, Limits, Net, NetConfig, Rt, Server, TlsServer, router_with_locks};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Nothing in these tests takes that long; a wait this long has failed.
pub const PATIENCE: Duration = ice_testing::PATIENCE;

pub fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls").join(name)
}

/// Remembers events.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Sink for Recorder {
    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.more.notify_all();
    }
}

impl Recorder {
    /// The first event that `pick` wants, waited for, and taken out.
    pub fn wait<T>(&self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events.lock().unwrap();
        loop {
            let found = events.iter().enumerate().find_map(|(i, e)| pick(e).map(|t| (i, t)));
            if let Some((i, t)) = found {
                events.remove(i);
                return t;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} in {events:?}");
            events = self.more.wait_timeout(events, left).unwrap().0;
        }
    }

    pub fn all(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

/// Versions in memory.
#[derive(Default)]
pub struct MemStore {
    pub versions: Mutex<HashMap<(InodeId, Stamp), Arc<Vec<u8>>>>,
    pub staged: Mutex<HashMap<(InodeId, Stamp), Vec<u8>>>,
    /// The next reuse takes other bytes than it should.
    pub spoil_reuse: Mutex<bool>,
    /// Another version that is here.
    pub base: Mutex<Option<Vec<u8>>>,
    /// What went over the network.
    pub written: Mutex<Vec<Range<u64>>>,
    pub fail_write: Mutex<Option<i32>>,
    /// Of the reads to come, the one from this offset on fails.
    pub break_read_at: Mutex<Option<u64>>,
}

fn blocks_of(bytes: &[u8]) -> Blocks {
    let hashes = bytes.chunks(BLOCK_BYTES as usize).map(|b| *blake3::hash(b).as_bytes()).collect();
    Blocks::from_hashes(hashes, bytes.len() as u64).unwrap()
}

struct MemReader {
    store: Arc<MemStore>,
    bytes: Arc<Vec<u8>>,
}

impl VersionReader for MemReader {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut break_at = self.store.break_read_at.lock().unwrap();
        if break_at.is_some_and(|at| offset >= at) {
            *break_at = None;
            return Err(io::Error::other("the reader breaks once"));
        }
        let rest = &self.bytes[(offset as usize).min(self.bytes.len())..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn blocks(&self) -> io::Result<Blocks> {
        Ok(blocks_of(&self.bytes))
    }
    fn still_valid(&self) -> bool {
        true
    }
}

struct MemStaged {
    store: Arc<MemStore>,
    fetch: Fetch,
    have: u64,
    missing: Vec<Range<u64>>,
}

impl Staged for MemStaged {
    fn have(&self) -> u64 {
        self.have
    }
    fn has_base(&self) -> bool {
        self.store.base.lock().unwrap().is_some()
    }
    fn reuse(&mut self, blocks: &Blocks) -> io::Result<Vec<Range<u64>>> {
        let base = self.store.base.lock().unwrap().clone().unwrap();
        self.missing = differing(blocks, &blocks_of(&base));
        let mut all = vec![0; blocks.len() as usize];
        let n = all.len().min(base.len());
        all[..n].copy_from_slice(&base[..n]);
        for range in &self.missing {
            all[range.start as usize..range.end as usize].fill(0);
        }
        if std::mem::take(&mut *self.store.spoil_reuse.lock().unwrap()) {
            all.fill(7);
        }
        self.store.staged.lock().unwrap().insert((self.fetch.inode, self.fetch.version), all);
        Ok(self.missing.clone())
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(errno) = *self.store.fail_write.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let range = offset..offset + bytes.len() as u64;
        let missing = self.missing.first_mut().expect("nothing more is missing");
        assert!(missing.start == range.start && range.end <= missing.end, "in order, without gaps");
        missing.start = range.end;
        if missing.is_empty() {
            self.missing.remove(0);
        }
        let mut staged = self.store.staged.lock().unwrap();
        let to = staged.entry((self.fetch.inode, self.fetch.version)).or_default();
        to.resize(to.len().max(range.end as usize), 0);
        to[range.start as usize..range.end as usize].copy_from_slice(bytes);
        self.store.written.lock().unwrap().push(range);
        Ok(())
    }
    fn finish(self: Box<Self>) -> io::Result<bool> {
        let key = (self.fetch.inode, self.fetch.version);
        let mut staged = self.store.staged.lock().unwrap();
        let bytes = staged.get(&key).cloned().unwrap_or_default();
        if ice_host::digest::of_bytes(&bytes) == self.fetch.digest {
            return Ok(true);
        }
        staged.remove(&key);
        Ok(false)
    }
}

/// The store as the transport takes it.
pub struct Store(pub Arc<MemStore>);

impl ContentStore for Store {
    fn stage(&self, fetch: &Fetch) -> io::Result<Box<dyn Staged>> {
        let have = self.0.staged.lock().unwrap().get(&(fetch.inode, fetch.version)).map_or(0, |v| v.len() as u64);
        let missing = std::iter::once(have..fetch.size).filter(|r| !r.is_empty()).collect();
        Ok(Box::new(MemStaged { store: self.0.clone(), fetch: *fetch, have, missing }))
    }
    fn open_version(&self, inode: InodeId, version: Stamp) -> io::Result<Option<Box<dyn VersionReader>>> {
        let found = self.0.versions.lock().unwrap().get(&(inode, version)).cloned();
        Ok(found.map(|bytes| Box::new(MemReader { store: self.0.clone(), bytes }) as Box<dyn VersionReader>))
    }
}

/// A cluster that remembers orders and answers what it is told to.
pub struct FakeCluster {
    pub ready: Mutex<bool>,
    pub sync: Mutex<Result<u32, Refused>>,
    pub orders: Mutex<Vec<Admin>>,
    pub syncs: Mutex<Vec<Ack>>,
}

impl Default for FakeCluster {
    fn default() -> Self {
        FakeCluster {
            ready: Mutex::new(true),
            sync: Mutex::new(Ok(1)),
            orders: Mutex::default(),
            syncs: Mutex::default(),
        }
    }
}

impl ice_http::Cluster for FakeCluster {
    fn node_id(&self) -> String {
        "node-1".into()
    }
    fn ready(&self) -> bool {
        *self.ready.lock().unwrap()
    }
    fn peers(&self) -> Vec<String> {
        vec!["http://a:9000".into(), "http://b:9000".into()]
    }
    fn admin(&self, order: Admin) {
        self.orders.lock().unwrap().push(order);
    }
    fn sync(&self, ack: Ack, _: Duration) -> Result<u32, Refused> {
        self.syncs.lock().unwrap().push(ack);
        *self.sync.lock().unwrap()
    }
    fn status(&self) -> Value {
        json!({"id": "node-1", "state": "ok"})
    }
    fn conflicts(&self) -> Value {
        json!([])
    }
}

/// How a test node differs from the plain one.
#[derive(Default)]
pub struct Setup {
    pub token: Option<&'static str>,
    pub tls: bool,
    /// As a node with TLS is.
    pub https_only: bool,
    pub limits: Limits,
    pub locking: Option<Locking>,
}

/// A whole HTTP side of a node, over a temporary directory.
pub struct Node<R: Runtime> {
    pub runtime: R,
    pub dir: tempfile::TempDir,
    pub cluster: Arc<FakeCluster>,
    pub store: Arc<MemStore>,
    pub payloads: Arc<PayloadPool>,
    pub events: Arc<Recorder>,
    pub net: Net,
    pub server: Option<Server>,
    pub address: SocketAddr,
    pub url: String,
}

impl<R: Runtime> Node<R> {
    pub fn start(runtime: R, setup: Setup) -> Node<R> {
        let dir = tempfile::tempdir().unwrap();
        let (store, payloads) = (Arc::new(MemStore::default()), Arc::new(PayloadPool::new(64 << 20)));
        let token = setup.token.map(str::to_owned);
        let tls = setup.tls.then(|| ice_http::TlsClient::from_file(Some(&tls_file("ca.pem"))).unwrap());
        let config = NetConfig { token: token.clone(), tls, https_only: setup.https_only, ..NetConfig::default() };
        let net = Net::new(runtime.clone(), config, payloads.clone(), Arc::new(Store(store.clone())));
        let events = Arc::new(Recorder::default());
        net.start(events.clone());
        let cluster = Arc::new(FakeCluster::default());
        let files = Arc::new(DirFiles::new(dir.path()));
        let api = ApiConfig {
            token,
            names: vec![],
            notes: vec![],
            ack_timeout: Duration::from_secs(1),
            limits: setup.limits,
        };
        let rt = Rt::new(runtime.clone());
        let routes = router_with_locks(rt, files, cluster.clone(), net.clone(), api, setup.locking);
        let bound = runtime.block_on(Bound::new(runtime.clone(), "127.0.0.1:0")).unwrap();
        let address = bound.local_addr();
        let certificate =
            setup.tls.then(|| TlsServer::from_files(&tls_file("node.pem"), &tls_file("node.key")).unwrap());
        let server = bound.serve(routes, certificate, setup.limits);
        let url = format!("{}://{address}", if setup.tls { "https" } else { "http" });
        Node { runtime, dir, cluster, store, payloads, events, net, server: Some(server), address, url }
    }

    pub fn stop(&mut self) {
        self.net.stop();
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}

pub fn bytes(n: usize, seed: u8) -> Bytes {
    let mut state = u64::from(seed) + 1;
    let next = move || {
        // Knuth's MMIX generator: enough to tell one place from another.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(n).collect::<Vec<u8>>().into()
}
