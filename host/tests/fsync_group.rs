//! Many programs that call `fsync` at once share the log's syncs.

mod volume_support;

use ice_core::action::{Io, Notice};
use ice_core::config::{Config, Recovered};
use ice_core::event::{IoError, IoResult};
use ice_core::ids::IoToken;
use ice_core::rng::Seed;
use ice_host::engine::{Actions, Engine, Pressure};
use ice_host::log::{Fault, LogLane, Options as LogOptions};
use ice_host::node::{FileActions, Lanes};
use ice_host::payload::PayloadPool;
use ice_host::store::Store;
use ice_host::transport::{Fetch, Transport};
use ice_host::vfs::Vfs;
use ice_host::volume::{Options, Port, Volume};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;
use volume_support::{REPLICA, ROOT, mark};

const THREADS: usize = 16;
const EACH: usize = 40;

/// A node alone has nobody to talk to.
struct Nobody;

impl Transport for Nobody {
    fn send(&self, _: ice_core::action::Send) {}
    fn fetch(&self, _: Fetch) {}
}

/// The node's own lanes, with a checkpoint that fails when it is asked to.
struct Failing {
    lanes: Arc<Lanes>,
    fail: Arc<AtomicBool>,
    done: Mutex<Sender<IoToken>>,
}

impl Actions for Failing {
    fn send(&self, send: ice_core::action::Send) {
        self.lanes.send(send);
    }
    fn io(&self, io: Io) {
        match io {
            Io::Store { token, .. } if self.fail.load(Ordering::SeqCst) => {
                self.done.lock().unwrap().send(token).unwrap()
            }
            io => self.lanes.io(io),
        }
    }
    fn notice(&self, notice: Notice) {
        self.lanes.notice(notice);
    }
}

/// A node whose log's syncs take as long as a disk's, and fail on request.
struct Node {
    _dir: tempfile::TempDir,
    volume: Volume,
    engine: Arc<Engine>,
    lanes: Arc<Lanes>,
    log: Arc<LogLane>,
    syncs: Arc<AtomicUsize>,
    fail: Arc<AtomicBool>,
}

impl Node {
    fn start(backlog_max_bytes: usize) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (backing, data) = (dir.path().join("backing"), dir.path().join("data"));
        std::fs::create_dir_all(data.join("log")).unwrap();
        std::fs::create_dir(&backing).unwrap();
        mark(&backing);
        let syncs = Arc::new(AtomicUsize::new(0));
        let fail = Arc::new(AtomicBool::new(false));
        let (count, failing) = (Arc::clone(&syncs), Arc::clone(&fail));
        let fault = move |what| {
            if failing.load(Ordering::SeqCst) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            if what == Fault::Sync {
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let options = LogOptions { backlog_max_bytes, fault: Some(Arc::new(fault)), ..LogOptions::default() };
        let log = Arc::new(LogLane::open(&data.join("log"), options).unwrap());
        let volume = Volume::open(Options { ack_timeout: Duration::from_secs(60), ..Options::new(&backing, REPLICA) });
        let volume = volume.unwrap();
        let pool = Arc::new(PayloadPool::new(1 << 26));
        let engine = Arc::new(Engine::new(Config::new(REPLICA, "alone"), Seed(1), Recovered::default(), pool, None));
        let lane = Arc::clone(&log);
        engine.feel_pressure(Box::new(move || match lane.backlog() {
            b if b.full => Pressure::Full,
            b if b.over => Pressure::Over,
            _ => Pressure::None,
        }));
        let store = Store::open(&data.join("tree.redb")).unwrap();
        let root = std::fs::File::open(&backing).unwrap().into();
        let files: Arc<dyn FileActions> = Arc::new(volume.clone());
        let lanes = Arc::new(
            Lanes::new(&engine, Arc::clone(&log), store, root, files, Arc::new(Nobody), ice_host::plane::Router::new())
                .unwrap(),
        );
        let (done, failed) = channel();
        let completer = Arc::downgrade(&engine);
        std::thread::spawn(move || {
            while let (Ok(token), Some(engine)) = (failed.recv(), completer.upgrade()) {
                engine.complete(token, IoResult::Failed(IoError::NoSpace));
            }
        });
        let failing = Failing { lanes: Arc::clone(&lanes), fail: Arc::clone(&fail), done: Mutex::new(done) };
        engine.start(Arc::new(failing)).unwrap();
        volume.start(Arc::clone(&engine) as Arc<dyn Port>).unwrap();
        Node { _dir: dir, volume, engine, lanes, log, syncs, fail }
    }

    fn write(&self, name: &str, bytes: &[u8], sync: bool) -> Result<(), rustix::io::Errno> {
        let v = &self.volume;
        let (_, file) = v.create(ROOT, 1, OsStr::new(name), 0o644, libc::O_WRONLY)?;
        let done = v.write(file.fh, 0, bytes).and_then(|_| if sync { v.fsync(file.fh, false) } else { Ok(()) });
        let flushed = v.flush(file.fh);
        v.release(file.fh);
        done.and(flushed)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fail.store(false, Ordering::SeqCst);
        self.volume.stop();
        self.engine.stop();
        self.lanes.close();
    }
}

#[test]
fn many_who_call_fsync_share_few_syncs_of_the_log() {
    let node = Node::start(64 << 20);
    let begin = Barrier::new(THREADS);
    let before = node.syncs.load(Ordering::SeqCst);
    std::thread::scope(|s| {
        for t in 0..THREADS {
            let (node, begin) = (&node, &begin);
            s.spawn(move || {
                begin.wait();
                for i in 0..EACH {
                    node.write(&format!("{t}-{i}"), b"small", true).unwrap();
                }
            });
        }
    });
    let syncs = node.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs > 0 && syncs < THREADS * EACH / 3, "{syncs} syncs for {} calls of fsync", THREADS * EACH);
    assert_eq!(node.log.backlog().records, 0, "all of it is durable");
}

#[test]
fn a_log_that_cannot_be_written_for_long_takes_no_more_than_its_limit() {
    let limit = 60_000;
    let node = Node::start(limit);
    node.write("before", b"x", true).unwrap();
    node.fail.store(true, Ordering::SeqCst);
    let bytes = vec![7; 60_000];
    // Without fsync writing goes on, until there is no room to remember it.
    let refused = (0..100).find_map(|i| node.write(&format!("f{i}"), &bytes, false).err());
    assert_eq!(refused, Some(rustix::io::Errno::NOSPC));
    let held = node.log.backlog().bytes;
    assert!(held > limit && held < (ice_host::log::FULL + 2) * limit, "{held} bytes wait");
    node.volume.unlink(1, OsStr::new("before")).unwrap();
    node.fail.store(false, Ordering::SeqCst);
    ice_testing::until("writing again", || node.write("after", b"x", true).is_ok());
    assert_eq!(node.log.backlog().records, 0);
}
