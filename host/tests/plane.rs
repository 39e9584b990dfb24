//! The control plane over real logs and checkpoints: nodes in one process, connected by threads.

use ice_core::action::{Io, Send as NetSend};
use ice_core::config::{Config, Ending, Recovered};
use ice_core::control;
use ice_core::event::{Admin, LinkEvent};
use ice_core::ids::{Incarnation, LinkId, ReplicaId};
use ice_core::kv::command::{Action, By, Command, Put};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::RangeRequest;
use ice_core::kv::{Answer, Error};
use ice_core::node::Loading;
use ice_core::rng::Seed;
use ice_core::time::Span;
use ice_core::wire;
use ice_host::control::{ControlPlane, Freshness, Refused, WatchNews, WatchRequest, Watches};
use ice_host::engine::Engine;
use ice_host::log::{LogLane, Options as LogOptions};
use ice_host::node::{FileActions, Lanes};
use ice_host::payload::PayloadPool;
use ice_host::plane::{Parts, Plane, Router};
use ice_host::store::Store;
use ice_host::transport::{Fetch, Transport};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

struct Unpark(std::thread::Thread);
impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let end = Instant::now() + PATIENCE;
    loop {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            return done;
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// No volume: nothing of the control plane touches files.
struct NoFiles;
impl FileActions for NoFiles {
    fn submit(&self, io: Io) {
        panic!("not asked for: {io:?}");
    }
}

/// Carries messages between the nodes of a test.
#[derive(Default)]
struct Switch {
    engines: Mutex<HashMap<String, Weak<Engine>>>,
    /// Both ends of each connection.
    links: Mutex<HashMap<(String, LinkId), String>>,
    next: AtomicU64,
}

struct Port {
    to: Mutex<Sender<NetSend>>,
}

impl Transport for Port {
    fn send(&self, send: NetSend) {
        // A node that has stopped sends nothing.
        drop(self.to.lock().unwrap().send(send));
    }
    fn fetch(&self, _: Fetch) {
        panic!("there is no content");
    }
}

impl Switch {
    fn port(self: &Arc<Switch>, me: &str) -> Port {
        let (to, from) = channel();
        let (switch, me) = (Arc::clone(self), me.to_owned());
        std::thread::spawn(move || {
            while let Ok(send) = from.recv() {
                switch.carry(&me, send);
            }
        });
        Port { to: Mutex::new(to) }
    }

    fn engine(&self, name: &str) -> Option<Arc<Engine>> {
        self.engines.lock().unwrap().get(name)?.upgrade()
    }

    fn carry(&self, me: &str, send: NetSend) {
        let Some(mine) = self.engine(me) else { return };
        match send {
            NetSend::Dial { url } => {
                let name = url.trim_start_matches("http://").to_owned();
                let Some(theirs) = self.engine(&name) else {
                    return mine.link(LinkEvent::DialFailed { url, why: "nobody is there".into() });
                };
                let link = LinkId(self.next.fetch_add(1, Ordering::SeqCst) + 1);
                let mut links = self.links.lock().unwrap();
                links.insert((me.to_owned(), link), name.clone());
                links.insert((name, link), me.to_owned());
                drop(links);
                // In this order: what either says next comes after the other knows of the connection.
                mine.link(LinkEvent::Up { link, dialled: Some(url) });
                theirs.link(LinkEvent::Up { link, dialled: None });
            }
            NetSend::Message { link, message } => {
                let name = self.links.lock().unwrap().get(&(me.to_owned(), link)).cloned();
                if let Some(theirs) = name.and_then(|n| self.engine(&n)) {
                    // As it would come from the network.
                    theirs.message(link, wire::decode_foreign(&wire::encode(&message)).unwrap());
                }
            }
            NetSend::Hangup { link, why } => {
                let Some(name) = self.links.lock().unwrap().remove(&(me.to_owned(), link)) else { return };
                self.links.lock().unwrap().remove(&(name.clone(), link));
                if let Some(theirs) = self.engine(&name) {
                    theirs.link(LinkEvent::Down { link, why: why.clone() });
                }
                mine.link(LinkEvent::Down { link, why });
            }
        }
    }

    /// All connections of a node break.
    fn cut(&self, me: &str) {
        let mut links = self.links.lock().unwrap();
        let mine: Vec<_> = links.iter().filter(|((a, _), b)| a == me || *b == me).map(|(k, _)| k.clone()).collect();
        for key in mine {
            links.remove(&key);
            if let Some(engine) = self.engine(&key.0) {
                engine.link(LinkEvent::Down { link: key.1, why: "cut".into() });
            }
        }
    }
}

struct Node {
    name: String,
    engine: Arc<Engine>,
    lanes: Arc<Lanes>,
    log: Arc<LogLane>,
    plane: Arc<Plane>,
    switch: Arc<Switch>,
}

impl Node {
    /// Starts from what is in `dir`. The start after a kill is one after the end of the process.
    fn start(switch: &Arc<Switch>, dir: &Path, number: u64, start: u64, records: u64) -> Node {
        let name = format!("n{number}");
        let data = dir.join(&name);
        std::fs::create_dir_all(data.join("log")).unwrap();
        let backing = dir.join(format!("{name}-backing"));
        std::fs::create_dir_all(&backing).unwrap();
        let mut config = Config::new(ReplicaId(number), &name);
        config.incarnation = Incarnation(start);
        config.urls = vec![format!("http://{name}")];
        config.join = if number == 1 { vec![] } else { vec!["http://n1".into()] };
        config.heartbeat = Span::ms(100);
        config.redial = Span::ms(300);
        config.checkpoint_records = records;
        let autopilot = ice_core::raft::autopilot::Settings { settle: Span::ms(200), ..Default::default() };
        config.control = Some(control::Config { found: number == 1, autopilot, ..Default::default() });
        let store = Store::open(&data.join("tree.redb")).unwrap();
        let mut loading = Loading::default();
        store.load(&mut |key, value| loading.page(key, value)).unwrap();
        let ending = if start == 1 { Ending::Clean } else { Ending::ProcessCrash };
        let mut disk = Recovered { ending, ..Recovered::default() };
        let report =
            ice_host::log::recover(&data.join("log"), store.log_cut(), &mut |e| disk.log.push((e.index, e.record)));
        assert_eq!(report.unwrap().damage, None);
        let pool = Arc::new(PayloadPool::new(1 << 20));
        let engine = Arc::new(Engine::loaded(config, Seed(number * 100 + start), disk, loading, pool, None));
        let log = Arc::new(LogLane::open(&data.join("log"), LogOptions::default()).unwrap());
        let router = Router::new();
        let root = std::fs::File::open(&backing).unwrap().into();
        let net = Arc::new(switch.port(&name));
        let lanes = Lanes::new(&engine, Arc::clone(&log), store, root, Arc::new(NoFiles), net, Arc::clone(&router));
        let lanes = Arc::new(lanes.unwrap());
        switch.engines.lock().unwrap().insert(name.clone(), Arc::downgrade(&engine));
        engine.start(Arc::clone(&lanes) as _).unwrap();
        // There is nothing to compare.
        engine.scanned();
        let pause = Box::new(|d| {
            let slept = async move { std::thread::sleep(d) };
            Box::pin(slept) as futures::future::BoxFuture<'static, ()>
        });
        let parts = Parts {
            engine: Arc::clone(&engine),
            router,
            name: name.clone(),
            store: data.join("tree.redb"),
            snapshots: Arc::new(ice_host::snapshots::Snapshots::open(data.join("snapshots"), true).unwrap()),
            data,
            pause,
        };
        Node { name, plane: Plane::new(parts), engine, lanes, log, switch: Arc::clone(switch) }
    }

    fn put(&self, key: &str, value: &str) -> Result<u64, Refused> {
        let put = Put { key: key.into(), value: value.into(), ..Put::default() };
        let done = block_on(self.plane.propose(Command { by: By::Nobody, action: Action::Put(put) }))?;
        assert!(matches!(done.answer, Answer::Put(_)));
        Ok(done.head.revision)
    }

    fn get(&self, key: &str) -> Result<Option<String>, Refused> {
        let key = key.as_bytes().to_vec();
        let look = move |s: &ice_core::kv::Store| s.get(&key).map(|kv| String::from_utf8(kv.value).unwrap());
        let read = block_on(self.plane.read(Freshness::Linearizable, look));
        if read.is_err() {
            let links = self.switch.links.lock().unwrap().clone();
            eprintln!("{} {links:?} {:?}", state(std::slice::from_ref(self)), self.engine.view(|v| v.status().peers));
        }
        Ok(read?.0)
    }

    fn digest(&self) -> (u64, u128) {
        self.engine.view(|v| v.control().map(|c| (c.store().applied(), c.store().digest())).unwrap())
    }

    fn keys(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let everything = RangeRequest { key: vec![0], end: vec![0], ..RangeRequest::default() };
        let all = |s: &ice_core::kv::Store| s.range(&everything).unwrap().kvs;
        self.plane.look_now(all).unwrap().0.into_iter().map(|kv| (kv.key, kv.value)).collect()
    }

    fn voters(&self) -> usize {
        self.engine.view(|v| {
            let raft = v.control().unwrap().raft();
            let m = raft.membership().1;
            // On the way from one to three the one must not go.
            if m.is_joint() || !raft.membership_committed() { 0 } else { m.voters.len() }
        })
    }

    /// What the end of a process leaves: what was not written is gone.
    fn kill(self) {
        self.switch.engines.lock().unwrap().remove(&self.name);
        self.switch.cut(&self.name);
        self.engine.stop();
        self.lanes.close();
        drop(self.plane);
        drop(self.log);
    }
}

fn state(nodes: &[Node]) -> String {
    let one = |n: &Node| {
        n.engine.view(|v| {
            let c = v.control().unwrap();
            format!(
                "{} {:?} leader {:?} broken {:?} {c:?}\n",
                n.name,
                c.raft().role(),
                c.raft().leader(),
                c.raft().broken()
            )
        })
    };
    nodes.iter().map(one).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn three(records: u64) -> (tempfile::TempDir, Arc<Switch>, Vec<Node>) {
    let dir = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let nodes: Vec<Node> = (1..=3).map(|n| Node::start(&switch, dir.path(), n, 1, records)).collect();
    until("three voters", || nodes.iter().all(|n| n.voters() == 3));
    (dir, switch, nodes)
}

fn equal(nodes: &[Node]) {
    until("all stores are equal", || nodes.iter().all(|n| n.digest() == nodes[0].digest()));
}

#[test]
fn a_node_alone_keeps_what_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    // So few records that checkpoints come in between.
    let node = Node::start(&switch, dir.path(), 1, 1, 40);
    for i in 0..100 {
        assert_eq!(node.put(&format!("k{i}"), &format!("v{i}")).unwrap(), i + 2);
    }
    let before = node.digest();
    node.kill();
    let node = Node::start(&switch, dir.path(), 1, 2, 40);
    assert_eq!(node.get("k99").unwrap().as_deref(), Some("v99"));
    assert_eq!(node.get("k0").unwrap().as_deref(), Some("v0"));
    assert_eq!(node.get("none").unwrap(), None);
    assert!(node.digest().0 > before.0, "the new term has an entry of its own");
    assert_eq!(node.put("k0", "w").unwrap(), 102);
    node.kill();
}

#[test]
fn three_nodes_are_one_store() {
    let (_dir, _switch, nodes) = three(200);
    for (i, n) in nodes.iter().enumerate() {
        n.put("who", &n.name).unwrap();
        // From every node what any node wrote.
        for other in &nodes {
            assert_eq!(other.get("who").unwrap().as_deref(), Some(&*n.name), "{i}");
        }
    }
    std::thread::scope(|s| {
        for n in &nodes {
            s.spawn(|| (0..200).for_each(|i| assert!(n.put(&format!("{}/{i}", n.name), "x").unwrap() > 1)));
        }
    });
    equal(&nodes);
    let everything = RangeRequest { key: vec![0], end: vec![0], ..RangeRequest::default() };
    let (kvs, _) = nodes[2].plane.look_now(|s| s.range(&everything).unwrap().kvs.len()).unwrap();
    assert_eq!(kvs, 601);
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn the_leader_goes_and_comes_back() {
    let (dir, switch, mut nodes) = three(100);
    nodes[1].put("a", "1").unwrap();
    let at = nodes.iter().position(|n| n.plane.leads()).unwrap();
    let gone = nodes.remove(at);
    let number = gone.name[1..].parse().unwrap();
    gone.kill();
    // Nothing is lost, and it goes on, from both that are left.
    assert_eq!(nodes[0].get("a").unwrap().as_deref(), Some("1"));
    for i in 0..150 {
        nodes[i % 2].put("a", &i.to_string()).unwrap();
    }
    nodes.push(Node::start(&switch, dir.path(), number, 2, 100));
    assert_eq!(nodes[2].get("a").unwrap().as_deref(), Some("149"));
    equal(&nodes);
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn all_go_at_once_and_nothing_acknowledged_is_lost() {
    let (dir, switch, nodes) = three(60);
    let mut last = 0;
    for i in 0..90 {
        last = nodes[i % 3].put(&format!("k{i}"), "v").unwrap();
    }
    nodes.into_iter().for_each(Node::kill);
    let nodes: Vec<Node> = (1..=3).map(|n| Node::start(&switch, dir.path(), n, 2, 60)).collect();
    for i in 0..90 {
        assert_eq!(nodes[(i + 1) % 3].get(&format!("k{i}")).unwrap().as_deref(), Some("v"));
    }
    assert_eq!(nodes[0].put("next", "v").unwrap(), last + 1);
    equal(&nodes);
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn a_member_that_comes_late_gets_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let mut nodes = vec![Node::start(&switch, dir.path(), 1, 1, 50)];
    // More than the log keeps for those that lag.
    let value = "x".repeat(1_000_000);
    for i in 0..80 {
        nodes[0].put(&format!("k{}", i % 8), &value).unwrap();
    }
    until("the log is cut", || nodes[0].engine.view(|v| v.control().unwrap().raft().base().index > 20));
    nodes.push(Node::start(&switch, dir.path(), 2, 1, 50));
    nodes.push(Node::start(&switch, dir.path(), 3, 1, 50));
    until("three voters", || nodes.iter().all(|n| n.voters() == 3));
    assert_eq!(nodes[2].get("k7").unwrap().map(|v| v.len()), Some(1_000_000));
    equal(&nodes);
    // What came as a snapshot is as durable as what was applied.
    let late = nodes.pop().unwrap();
    late.kill();
    nodes.push(Node::start(&switch, dir.path(), 3, 2, 50));
    assert_eq!(
        nodes[2].get("k0").map_err(|e| format!("{e}: {}", state(&nodes))).unwrap().map(|v| v.len()),
        Some(1_000_000)
    );
    equal(&nodes);
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn watches_tell_everything_once_and_in_order() {
    let (_dir, _switch, nodes) = three(1000);
    let mut watches = nodes[2].plane.watches();
    let request = WatchRequest { id: 7, key: b"w/".to_vec(), end: b"w0".to_vec(), ..WatchRequest::default() };
    watches.create(request.clone()).unwrap();
    assert_eq!(watches.create(request.clone()), Err(Refused::Store(Error::DuplicateKey)));
    assert!(matches!(block_on(watches.next()).unwrap(), WatchNews::Created { id: 7, .. }));
    let revisions: Vec<u64> = (0..50).map(|i| nodes[i % 3].put(&format!("w/{i}"), "x").unwrap()).collect();
    nodes[0].put("elsewhere", "x").unwrap();
    let mut seen = vec![];
    while seen.len() < 50 {
        match block_on(watches.next()).unwrap() {
            WatchNews::Events { id: 7, events, .. } => seen.extend(events.iter().map(|e| e.kv.modified)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, revisions);
    assert!(watches.cancel(7));
    assert!(!watches.cancel(7));
    // From the past, under the same name.
    watches.create(WatchRequest { start: revisions[40], ..request }).unwrap();
    assert!(matches!(block_on(watches.next()).unwrap(), WatchNews::Created { id: 7, .. }));
    let mut seen = vec![];
    while seen.len() < 10 {
        match block_on(watches.next()).unwrap() {
            WatchNews::Events { events, .. } => seen.extend(events.iter().map(|e| e.kv.modified)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, revisions[40..]);
    watches.progress();
    assert!(matches!(block_on(watches.next()).unwrap(), WatchNews::AllCurrent { .. }));
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn a_lease_ends_when_nobody_keeps_it_alive() {
    let (_dir, _switch, nodes) = three(1000);
    let lease = LeaseId(42);
    let granted = block_on(
        nodes[1].plane.propose(Command { by: By::Nobody, action: Action::LeaseGrant { id: lease, ttl_s: 1 } }),
    );
    let Answer::Lease { ttl_s, .. } = granted.unwrap().answer else { panic!("no lease") };
    assert!(ttl_s >= 2, "an election is no reason to end a lease, {ttl_s} s");
    let put = Put { key: b"under".to_vec(), value: b"x".to_vec(), lease, ..Put::default() };
    block_on(nodes[2].plane.propose(Command { by: By::Nobody, action: Action::Put(put) })).unwrap();
    let kept = Instant::now() + Duration::from_secs(ttl_s + 1);
    while Instant::now() < kept {
        assert_eq!(block_on(nodes[2].plane.keep_alive(lease)).unwrap(), ttl_s);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(nodes[0].get("under").unwrap().as_deref(), Some("x"));
    let time = block_on(nodes[0].plane.lease_time(lease)).unwrap();
    assert!(time.remaining_s <= time.granted_s && time.granted_s == ttl_s);
    until("the key is gone", || nodes[0].get("under").unwrap().is_none());
    assert_eq!(block_on(nodes[1].plane.keep_alive(lease)), Err(Refused::Store(Error::LeaseNotFound { id: lease })));
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn a_snapshot_is_the_store() {
    use futures::StreamExt;
    let (_dir, _switch, nodes) = three(1000);
    (0..300).for_each(|i| assert!(nodes[0].put(&format!("k{i}"), &"y".repeat(5000)).unwrap() > 1));
    // It is what this node has.
    equal(&nodes);
    let snapshot = block_on(nodes[2].plane.snapshot()).unwrap();
    let bytes = block_on(snapshot.chunks.map(|c| c.unwrap()).collect::<Vec<_>>()).concat();
    assert_eq!(bytes.len() as u64, snapshot.bytes);
    let store = ice_host::plane::load(&mut &bytes[..]).unwrap();
    assert_eq!(store.get(b"k299").map(|kv| kv.value.len()), Some(5000));
    assert!(ice_host::plane::load(&mut &bytes[..bytes.len() - 9]).is_err());
    let mut bent = bytes.clone();
    bent[bytes.len() / 2] ^= 1;
    assert!(ice_host::plane::load(&mut &bent[..]).is_err());
    // Kept, and put back.
    let (digest, keep) = (nodes[1].keys(), nodes[1].plane.snapshot_keep("before".into(), vec![]));
    let kept = block_on(keep).unwrap();
    assert_eq!(kept.revision, nodes[1].plane.head().revision);
    (0..50).for_each(|i| assert!(nodes[0].put(&format!("k{i}"), "other").unwrap() > 1));
    assert!(nodes[2].put("more", "x").unwrap() > 1);
    until("it is here, too", || nodes[1].keys() != digest && nodes[1].get("more").unwrap().is_some());
    assert!(matches!(block_on(nodes[0].plane.snapshot_restore(kept.id.clone(), false)), Err(Refused::Failed(_))));
    block_on(nodes[1].plane.snapshot_restore(kept.id.clone(), false)).unwrap();
    assert_eq!(nodes[1].keys(), digest);
    assert_eq!(block_on(nodes[1].plane.snapshot_forget(kept.id.clone())), Ok(true));
    assert_eq!(block_on(nodes[1].plane.snapshot_forget(kept.id)), Ok(false));
    nodes.into_iter().for_each(Node::kill);
}

#[test]
fn leadership_moves_when_asked_and_when_a_node_resigns() {
    let (_dir, _switch, nodes) = three(1000);
    let at = nodes.iter().position(|n| n.plane.leads()).unwrap();
    let (leader, other) = (&nodes[at], &nodes[(at + 1) % 3]);
    let to = other.plane.ids().member;
    assert_eq!(block_on(other.plane.move_leader(to)), Err(Refused::NotLeader));
    assert_eq!(block_on(leader.plane.move_leader(to)), Ok(()));
    until("it leads", || other.plane.leads());
    other.put("a", "1").unwrap();
    other.engine.admin(Admin::Resign);
    until("another leads", || nodes.iter().any(|n| n.plane.leads() && n.name != other.name));
    assert_eq!(leader.get("a").unwrap().as_deref(), Some("1"));
    nodes.into_iter().for_each(Node::kill);
}
