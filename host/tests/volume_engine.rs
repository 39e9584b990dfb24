//! The volume on the real engine, one node alone: the log is memory, everything else is as in production.

mod volume_support;

use ice_core::action::{Io, Notice, Send as NetSend};
use ice_core::config::{Config, Recovered};
use ice_core::event::{Ack, IoError, IoResult};
use ice_core::ids::{InodeId, IoToken};
use ice_core::rng::Seed;
use ice_host::engine::{Actions, Engine};
use ice_host::payload::PayloadPool;
use ice_host::vfs::Vfs;
use ice_host::volume::{Options, Volume};
use std::ffi::OsStr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use volume_support::{REPLICA, ROOT, mark};

/// Log and checkpoint that succeed at once, from a thread of their own as the contract asks.
struct Lanes {
    volume: Volume,
    done: Mutex<Sender<(IoToken, IoResult)>>,
}

impl Actions for Lanes {
    fn send(&self, _: NetSend) {}
    fn io(&self, io: Io) {
        let done = |token, result| self.done.lock().unwrap().send((token, result)).unwrap();
        match self.volume.submit(io).map_err(|other| *other) {
            Ok(()) | Err(Io::Log { .. }) => {}
            Err(Io::LogSync { token }) => done(token, IoResult::LogSynced),
            Err(Io::Store { token, .. }) => done(token, IoResult::Stored),
            Err(Io::Fetch { token, .. }) => done(token, IoResult::Failed(IoError::Gone)),
            Err(other) => panic!("{other:?} is the volume's"),
        }
    }
    fn notice(&self, _: Notice) {}
}

struct Node {
    _dir: tempfile::TempDir,
    volume: Volume,
    engine: Arc<Engine>,
}

impl Node {
    fn start(dir: tempfile::TempDir) -> Node {
        mark(dir.path());
        let mut options = Options::new(dir.path(), REPLICA);
        options.ack = Ack::Auto;
        options.ack_timeout = Duration::from_secs(10);
        let volume = Volume::open(options).unwrap();
        let pool = Arc::new(PayloadPool::new(1 << 26));
        let engine = Arc::new(Engine::new(Config::new(REPLICA, "alone"), Seed(1), Recovered::default(), pool, None));
        let (tx, rx) = channel();
        let lanes = Lanes { volume: volume.clone(), done: Mutex::new(tx) };
        let completer = Arc::downgrade(&engine);
        std::thread::spawn(move || {
            while let Ok((token, result)) = rx.recv() {
                let Some(engine) = completer.upgrade() else { return };
                engine.complete(token, result);
            }
        });
        engine.start(Arc::new(lanes)).unwrap();
        volume.start(engine.clone()).unwrap();
        let node = Node { _dir: dir, volume, engine };
        node.quiet();
        node
    }

    fn quiet(&self) {
        let until = Instant::now() + ice_testing::PATIENCE;
        loop {
            let status = self.volume.status();
            if !status.scanning && status.dirty_files == 0 && status.looks_due == 0 {
                return;
            }
            assert!(Instant::now() < until, "{status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn known(&self) -> Vec<(String, u64)> {
        self.engine.tree(|t| {
            let line = |l: ice_core::tree::Listed| {
                let path: Vec<_> = l.path.iter().map(|n| String::from_utf8_lossy(n.as_bytes()).into_owned()).collect();
                (path.join("/"), l.size)
            };
            t.listing().into_iter().map(line).collect()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.volume.stop();
        self.engine.stop();
    }
}

#[test]
fn a_node_alone_takes_in_what_is_there_and_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("old")).unwrap();
    for i in 0..300 {
        std::fs::write(dir.path().join(format!("old/{i:03}")), vec![1; i]).unwrap();
    }
    let node = Node::start(dir);
    assert_eq!(node.known().len(), 301);
    assert!(node.known().contains(&("old/299".to_owned(), 299)));
    let v = &node.volume;
    let old = v.lookup(1, OsStr::new("old")).unwrap();
    for i in 0..300 {
        let st = v.lookup(old.ino, OsStr::new(&format!("{i:03}"))).unwrap();
        assert_eq!(st.size, i);
    }
    v.rename(1, OsStr::new("old"), 1, OsStr::new("new"), 0).unwrap();
    v.unlink(old.ino, OsStr::new("000")).unwrap();
    assert_eq!(node.known().len(), 300);
    assert!(node.known().contains(&("new/299".to_owned(), 299)));
}

#[test]
fn writes_are_acknowledged_and_payloads_balance() {
    let node = Node::start(tempfile::tempdir().unwrap());
    let v = &node.volume;
    for i in 0..50u32 {
        let name = format!("f{i}");
        let (st, file) = v.create(ROOT, 1, OsStr::new(&name), 0o644, libc::O_RDWR).unwrap();
        v.write(file.fh, 0, format!("bytes of {i}").as_bytes()).unwrap();
        v.fsync(file.fh, false).unwrap();
        v.flush(file.fh).unwrap();
        v.release(file.fh);
        let known = node.engine.tree(|t| t.child(InodeId::ROOT, &volume_support::name(&name))).unwrap();
        assert_eq!((known.0 >> 64) as u64, st.ino);
    }
    node.quiet();
    assert_eq!(node.known().len(), 50);
    let (open, handles) = (v.status().open_files, v.status().handles);
    assert_eq!((open, handles), (0, 0));
}

#[test]
fn many_threads_at_once() {
    let node = Node::start(tempfile::tempdir().unwrap());
    let v = &node.volume;
    std::thread::scope(|s| {
        for t in 0..4 {
            s.spawn(move || {
                let dir = v.mkdir(ROOT, 1, OsStr::new(&format!("t{t}")), 0o755).unwrap();
                for i in 0..100 {
                    let name = format!("{i}");
                    let (_, file) = v.create(ROOT, dir.ino, OsStr::new(&name), 0o644, libc::O_WRONLY).unwrap();
                    v.write(file.fh, 0, &[t; 100]).unwrap();
                    v.flush(file.fh).unwrap();
                    v.release(file.fh);
                    match i % 4 {
                        0 => v.unlink(dir.ino, OsStr::new(&name)).unwrap(),
                        1 => v.rename(dir.ino, OsStr::new(&name), 1, OsStr::new(&format!("{t}-{i}")), 0).unwrap(),
                        2 => {
                            let st = v.lookup(dir.ino, OsStr::new(&name)).unwrap();
                            v.link(st.ino, dir.ino, OsStr::new(&format!("{i}-link"))).unwrap();
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    node.quiet();
    // Per thread: a directory, and of each four files one is gone and one has two names.
    assert_eq!(node.known().len(), 4 * (1 + 100));
    let mut find = ice_testing::command("find");
    let disk = ice_testing::output(find.arg(node._dir.path()).args(["-not", "-path", "*/.icecluster*"]));
    assert_eq!(disk.stdout.split(|b| *b == b'\n').count() - 2, node.known().len());
    v.rescan();
    node.quiet();
    assert_eq!(node.known().len(), 4 * (1 + 100));
}

/// Not a gate: prints what a change costs. `cargo test -p ice-host --release --test volume_engine -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn cost_of_a_create() {
    let node = Node::start(tempfile::tempdir().unwrap());
    let v = &node.volume;
    for (what, write) in [("create and close", false), ("create, write 4 KiB and close", true)] {
        let dir = v.mkdir(ROOT, 1, OsStr::new(what), 0o755).unwrap();
        let start = Instant::now();
        let n = 5000;
        for i in 0..n {
            let (_, file) = v.create(ROOT, dir.ino, OsStr::new(&format!("{i}")), 0o644, libc::O_WRONLY).unwrap();
            if write {
                v.write(file.fh, 0, &[7; 4096]).unwrap();
            }
            v.flush(file.fh).unwrap();
            v.release(file.fh);
        }
        println!("{what}: {:.1} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(n));
    }
}
