//! Starts after a crash: `backing` and the log do not tell the same story. What the crash explains is put right, and nothing
//! of it becomes an operation of today.

mod volume_support;

use bytes::Bytes;
use ice_core::action::{Io, LogRecord, Notice, Send as NetSend};
use ice_core::config::{Config, Ending, Recovered};
use ice_core::event::{Ack, IoError, IoResult};
use ice_core::ids::{Incarnation, InodeId, IoToken};
use ice_core::op::OpBody;
use ice_core::rng::Seed;
use ice_host::engine::{Actions, Engine};
use ice_host::payload::PayloadPool;
use ice_host::vfs::Vfs;
use ice_host::volume::{Options, Volume};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use volume_support::{REPLICA, ROOT, mark};

/// Records with the bytes that they carry.
type Log = Vec<(u64, LogRecord, Option<Bytes>)>;

/// A log in memory; everything else succeeds at once.
struct Lanes {
    volume: Volume,
    engine: OnceLock<Weak<Engine>>,
    done: Mutex<Sender<(IoToken, IoResult)>>,
    log: Arc<Mutex<Log>>,
    /// While it is locked the operating system does not take the log.
    disk: Arc<Mutex<()>>,
}

impl Actions for Lanes {
    fn send(&self, _: NetSend) {}
    fn io(&self, io: Io) {
        let done = |token, result| self.done.lock().unwrap().send((token, result)).unwrap();
        match self.volume.submit(io).map_err(|other| *other) {
            Ok(()) => {}
            Err(Io::Log { index, record }) => {
                let engine = self.engine.get().and_then(Weak::upgrade);
                let bytes = match (&record, engine) {
                    (LogRecord::Op { op, .. }, Some(engine)) => op.payload.and_then(|p| engine.payloads().get(p.id)),
                    _ => None,
                };
                self.log.lock().unwrap().push((index, record, bytes));
            }
            Err(Io::LogSync { token }) => done(token, IoResult::LogSynced),
            Err(Io::Store { token, .. }) => done(token, IoResult::Failed(IoError::NoSpace)), // The log keeps everything.
            Err(Io::Fetch { token, .. }) => done(token, IoResult::Failed(IoError::Gone)),
            Err(other) => panic!("{other:?} is the volume's"),
        }
    }
    fn notice(&self, _: Notice) {}
    fn logged(&self) {
        drop(self.disk.lock().unwrap());
    }
}

struct Node {
    volume: Volume,
    engine: Arc<Engine>,
    log: Arc<Mutex<Log>>,
}

impl Node {
    fn start(dir: &Place, incarnation: u64, log: Log, ending: Ending) -> Node {
        let node = Node::start_on(dir, incarnation, log, ending, Arc::default());
        node.quiet();
        node
    }

    fn start_on(dir: &Place, incarnation: u64, log: Log, ending: Ending, disk_of_log: Arc<Mutex<()>>) -> Node {
        let mut options = Options::new(&dir.backing, REPLICA);
        (options.ack, options.ack_timeout) = (Ack::Auto, Duration::from_secs(10));
        let pool = Arc::new(PayloadPool::new(1 << 26));
        let mut disk = Recovered { ending, ..Recovered::default() };
        let mut named = BTreeSet::new();
        for (index, mut record, bytes) in log {
            if let LogRecord::Op { op, .. } = &mut record {
                if let (Some(p), Some(bytes)) = (&mut op.payload, bytes) {
                    p.id = pool.insert_unbounded(bytes);
                }
                if let OpBody::Place { inode, .. } | OpBody::SetContent { inode, .. } | OpBody::SetAttr { inode, .. } =
                    &op.body
                {
                    named.insert(*inode);
                }
            }
            disk.log.push((index, record));
        }
        if ending == Ending::MachineCrash {
            (options.lost, options.suspects) = (true, named);
        }
        let volume = Volume::open(options).unwrap();
        disk.staged = volume.staged();
        let mut config = Config::new(REPLICA, "alone");
        config.incarnation = Incarnation(incarnation);
        let engine = Arc::new(Engine::new(config, Seed(incarnation), disk, pool, None));
        let (tx, rx) = channel();
        let log = Arc::new(Mutex::new(Log::new()));
        let lanes = Lanes {
            volume: volume.clone(),
            engine: OnceLock::new(),
            done: Mutex::new(tx),
            log: Arc::clone(&log),
            disk: disk_of_log,
        };
        lanes.engine.set(Arc::downgrade(&engine)).unwrap();
        let completer = Arc::downgrade(&engine);
        std::thread::spawn(move || {
            while let Ok((token, result)) = rx.recv() {
                let Some(engine) = completer.upgrade() else { return };
                engine.complete(token, result);
            }
        });
        engine.start(Arc::new(lanes)).unwrap();
        volume.start(engine.clone()).unwrap();
        Node { volume, engine, log }
    }

    /// Everything was looked at and nothing is left to do in `backing`.
    fn quiet(&self) {
        let until = Instant::now() + ice_testing::PATIENCE;
        let mut calm = 0;
        while calm < 20 {
            let status = self.volume.status();
            let looked = !status.scanning && status.dirty_files == 0 && status.looks_due == 0;
            let done = self.engine.tree(|t| t.pending()) == 0;
            calm = if looked && done { calm + 1 } else { 0 };
            assert!(Instant::now() < until, "{status:?}, {} pending", self.engine.tree(|t| t.pending()));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let v = &self.volume;
        let flags = libc::O_RDWR | libc::O_TRUNC;
        let fh = match v.lookup(1, OsStr::new(name)) {
            Ok(st) => v.open(ROOT, st.ino, flags).unwrap().fh,
            Err(_) => v.create(ROOT, 1, OsStr::new(name), 0o644, flags).unwrap().1.fh,
        };
        v.write(fh, 0, bytes).unwrap();
        v.fsync(fh, false).unwrap();
        v.flush(fh).unwrap();
        v.release(fh);
    }

    /// The end, without a word.
    fn crash(self) -> Log {
        self.quiet();
        self.volume.stop();
        self.engine.stop();
        self.log.lock().unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        self.engine.tree(|t| {
            t.listing()
                .into_iter()
                .map(|l| l.path.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("/"))
                .collect()
        })
    }

    fn operations(&self) -> Vec<OpBody> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter_map(|(_, r, _)| if let LogRecord::Op { op, .. } = r { Some(op.body.clone()) } else { None })
            .collect()
    }

    #[track_caller]
    fn told_nothing(&self) {
        assert_eq!(self.operations(), [], "a crash is nobody's edit");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.volume.stop();
        self.engine.stop();
    }
}

struct Place {
    _dir: tempfile::TempDir,
    backing: PathBuf,
    /// On the same file system, outside the volume.
    aside: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (backing, aside) = (dir.path().join("backing"), dir.path().join("aside"));
        fs::create_dir(&backing).unwrap();
        fs::create_dir(&aside).unwrap();
        mark(&backing);
        Place { _dir: dir, backing, aside }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.backing.join(name)
    }
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
    fn first(&self) -> Node {
        Node::start(self, 1, Log::new(), Ending::Clean)
    }
}

/// From the record that holds operation `n` (from the end, 1: the last) on, the operations are another node's: known, and not
/// made here.
fn as_remote(log: Log, n: usize) -> Log {
    let ops: Vec<usize> =
        log.iter().enumerate().filter(|(_, (_, r, _))| matches!(r, LogRecord::Op { .. })).map(|(i, _)| i).collect();
    let from = ops[ops.len() - n];
    let mut out: Log = Vec::new();
    for (i, (index, record, bytes)) in log.into_iter().enumerate() {
        match record {
            LogRecord::Op { op, .. } if i >= from => out.push((index, LogRecord::Op { op, here: None }, bytes)),
            LogRecord::Holds { .. } | LogRecord::Stands { .. } if i >= from => {}
            record => out.push((index, record, bytes)),
        }
    }
    out
}

#[test]
fn an_older_version_that_a_machine_crash_brought_back_is_not_an_edit() {
    let place = Place::new();
    let node = place.first();
    node.write("f", b"first");
    node.write("f", b"second, acknowledged");
    let log = node.crash();
    fs::write(place.path("f"), "first").unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    assert_eq!((place.read("f").as_str(), node.names()), ("second, acknowledged", vec!["f".to_owned()]));
    node.told_nothing();
}

#[test]
fn a_rename_that_a_machine_crash_undid_is_made_again() {
    let place = Place::new();
    let node = place.first();
    node.write("a", b"bytes");
    node.volume.mkdir(ROOT, 1, OsStr::new("d"), 0o755).unwrap();
    node.volume.rename(1, OsStr::new("a"), 1, OsStr::new("b"), 0).unwrap();
    node.volume.rename(1, OsStr::new("d"), 1, OsStr::new("e"), 0).unwrap();
    let log = node.crash();
    fs::rename(place.path("b"), place.path("a")).unwrap();
    fs::rename(place.path("e"), place.path("d")).unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    assert_eq!(node.names(), ["b", "e"]);
    assert_eq!(place.read("b"), "bytes");
    assert!(place.path("e").is_dir() && !place.path("a").exists() && !place.path("d").exists());
    node.told_nothing();
}

#[test]
fn a_removal_that_a_machine_crash_undid_is_made_again() {
    let place = Place::new();
    let node = place.first();
    node.write("f", b"to go");
    fs::hard_link(place.path("f"), place.aside.join("f")).unwrap();
    node.quiet();
    let f = node.volume.lookup(1, OsStr::new("f")).unwrap();
    node.volume.link(f.ino, 1, OsStr::new("g")).unwrap();
    node.volume.unlink(1, OsStr::new("f")).unwrap();
    let log = node.crash();
    fs::hard_link(place.aside.join("f"), place.path("f")).unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    assert_eq!(
        (node.names(), place.path("f").exists(), place.read("g").as_str()),
        (vec!["g".to_owned()], false, "to go")
    );
    node.told_nothing();
}

#[test]
fn a_directory_that_a_machine_crash_brought_back_goes_again_and_its_bytes_are_kept() {
    let place = Place::new();
    let node = place.first();
    node.volume.mkdir(ROOT, 1, OsStr::new("d"), 0o755).unwrap();
    fs::create_dir(place.path("d/e")).unwrap();
    fs::write(place.path("d/e/f"), "once there").unwrap();
    node.quiet();
    assert_eq!(node.names(), ["d", "d/e", "d/e/f"]);
    // Removed as a whole, as far as the node can see, and still there to be brought back with its numbers.
    fs::rename(place.path("d"), place.aside.join("d")).unwrap();
    node.quiet();
    assert!(node.names().is_empty());
    let log = node.crash();
    fs::rename(place.aside.join("d"), place.path("d")).unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    assert!(node.names().is_empty() && !place.path("d").exists(), "{:?}", node.names());
    let torn = place.path(".icecluster/torn");
    let kept: Vec<String> =
        fs::read_dir(torn).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect();
    assert_eq!(kept, ["once there"]);
    node.told_nothing();
}

#[test]
fn attributes_that_a_machine_crash_took_back_are_set_again() {
    let place = Place::new();
    let node = place.first();
    node.write("f", b"x");
    let f = node.volume.lookup(1, OsStr::new("f")).unwrap();
    node.volume.setxattr(f.ino, OsStr::new("user.k"), b"v", 0).unwrap();
    let set = ice_host::vfs::SetStat { mode: Some(0o600), ..Default::default() };
    node.volume.setattr(ROOT, f.ino, None, set).unwrap();
    let log = node.crash();
    fs::set_permissions(place.path("f"), fs::Permissions::from_mode(0o644)).unwrap();
    rustix::fs::removexattr(place.path("f"), "user.k").unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    let mut value = [0u8; 8];
    let n = rustix::fs::getxattr(place.path("f"), "user.k", &mut value[..]).unwrap();
    let mode = fs::metadata(place.path("f")).unwrap().mode() & 0o777;
    assert_eq!((mode, &value[..n]), (0o600, &b"v"[..]));
    node.told_nothing();
}

#[test]
fn what_was_made_for_another_node_and_not_recorded_is_taken_for_that() {
    for (big, ending) in [(false, Ending::ProcessCrash), (true, Ending::ProcessCrash), (false, Ending::MachineCrash)] {
        let place = Place::new();
        let bytes = vec![b'x'; if big { 3 << 20 } else { 100 }];
        let node = place.first();
        node.write("f", &bytes);
        let log = node.crash();
        // The same, but told by another node: its file stands, and no record says so.
        let count = log.iter().filter(|(_, r, _)| matches!(r, LogRecord::Op { .. })).count();
        let node = Node::start(&place, 2, as_remote(log, count), ending);
        assert_eq!(node.names(), ["f"]);
        assert_eq!(fs::read(place.path("f")).unwrap(), bytes);
        node.told_nothing();
    }
}

#[test]
fn an_installation_cut_short_between_two_names_is_finished() {
    for ending in [Ending::ProcessCrash, Ending::MachineCrash] {
        let place = Place::new();
        let node = place.first();
        node.write("a", b"old");
        let a = node.volume.lookup(1, OsStr::new("a")).unwrap();
        node.volume.link(a.ino, 1, OsStr::new("b")).unwrap();
        fs::hard_link(place.path("a"), place.aside.join("old")).unwrap();
        node.quiet();
        node.write("b", b"newer");
        let times = fs::metadata(place.path("b")).unwrap();
        let times =
            fs::FileTimes::new().set_accessed(times.accessed().unwrap()).set_modified(times.modified().unwrap());
        let log = as_remote(node.crash(), 1);
        // `a` got the new file, `b` still is the old one.
        fs::remove_file(place.path("b")).unwrap();
        fs::write(place.aside.join("old"), "old").unwrap();
        fs::hard_link(place.aside.join("old"), place.path("b")).unwrap();
        fs::write(place.aside.join("new"), "newer").unwrap();
        // New files are dressed before they get their names.
        fs::File::options().write(true).open(place.aside.join("new")).unwrap().set_times(times).unwrap();
        fs::rename(place.aside.join("new"), place.path("a")).unwrap();
        let node = Node::start(&place, 2, log, ending);
        let ino = |name| fs::metadata(place.path(name)).unwrap().ino();
        assert_eq!((place.read("a"), place.read("b")), ("newer".into(), "newer".into()), "{ending:?}");
        assert_eq!((node.names(), ino("a")), (vec!["a".to_owned(), "b".to_owned()], ino("b")), "{ending:?}");
        node.told_nothing();
    }
}

#[test]
fn an_edit_while_the_process_was_dead_is_still_an_edit() {
    let place = Place::new();
    let node = place.first();
    node.write("f", b"before");
    node.write("gone", b"x");
    let log = node.crash();
    fs::write(place.path("f"), "somebody's edit").unwrap();
    fs::write(place.path("new"), "somebody's file").unwrap();
    fs::remove_file(place.path("gone")).unwrap();
    let node = Node::start(&place, 2, log, Ending::ProcessCrash);
    assert_eq!(node.names(), ["f", "new"]);
    assert_eq!(place.read("f"), "somebody's edit");
    let size =
        node.engine.tree(|t| t.child(InodeId::ROOT, &volume_support::name("f")).and_then(|i| t.info(i)).unwrap().size);
    assert_eq!(size, 15);
    assert!(!node.operations().is_empty());
}

#[test]
fn nothing_is_changed_in_backing_before_the_log_knows_why() {
    let place = Place::new();
    let node = place.first();
    node.write("f", b"told by another node");
    let log = node.crash();
    fs::remove_file(place.path("f")).unwrap();
    let count = log.iter().filter(|(_, r, _)| matches!(r, LogRecord::Op { .. })).count();
    let disk = Arc::new(Mutex::new(()));
    let slow = disk.lock().unwrap();
    let node = Node::start_on(&place, 2, as_remote(log, count), Ending::ProcessCrash, Arc::clone(&disk));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!place.path("f").exists());
    drop(slow);
    node.quiet();
    assert_eq!(place.read("f"), "told by another node");
}

#[test]
fn a_renamed_edition_that_the_log_lost_is_known_by_its_bytes() {
    let place = Place::new();
    let node = place.first();
    node.write("a", b"the bytes tell");
    let a = node.volume.lookup(1, OsStr::new("a")).unwrap();
    node.volume.link(a.ino, 1, OsStr::new("b")).unwrap();
    let log = node.crash();
    // Another object under another name; the other name still is the old one.
    fs::copy(place.path("a"), place.aside.join("new")).unwrap();
    let times = fs::metadata(place.path("a")).unwrap();
    let times = fs::FileTimes::new().set_accessed(times.accessed().unwrap()).set_modified(times.modified().unwrap());
    fs::File::options().write(true).open(place.aside.join("new")).unwrap().set_times(times).unwrap();
    fs::remove_file(place.path("a")).unwrap();
    fs::rename(place.aside.join("new"), place.path("c")).unwrap();
    let node = Node::start(&place, 2, log, Ending::MachineCrash);
    let ino = |name| fs::metadata(place.path(name)).unwrap().ino();
    assert_eq!((node.names(), place.path("c").exists()), (vec!["a".to_owned(), "b".to_owned()], false));
    assert_eq!((ino("a"), place.read("a").as_str()), (ino("b"), "the bytes tell"));
    node.told_nothing();
}

/// Stops whoever opens this file until it is told to let them: lines "waiting" and "opened" on standard output.
const GATE: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.fanotify_init(4 | 1, os.O_RDONLY)  # FAN_CLASS_CONTENT | FAN_CLOEXEC
libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
if fd < 0 or libc.fanotify_mark(fd, 1, 0x10000, -100, sys.argv[1].encode()) < 0:  # FAN_MARK_ADD, FAN_OPEN_PERM
    print("cannot:", os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(1)
print("waiting", flush=True)
first = True
while True:
    event = os.read(fd, 24)  # One at a time.
    opened = struct.unpack("IBBHQii", event)[5]
    if first:
        first = False
        print("opened", flush=True)
        sys.stdin.readline()
    os.write(fd, struct.pack("iI", opened, 1))  # FAN_ALLOW
    os.close(opened)
"#;

#[test]
fn users_go_on_while_new_files_are_digested_after_the_end_of_a_process() {
    use std::io::{BufRead, BufReader, Write};
    if cfg!(not(target_os = "linux")) || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root on Linux can hold up those who open a file");
        return;
    }
    let place = Place::new();
    let node = place.first();
    node.write("a", b"before");
    node.write("b", b"of another node");
    let log = as_remote(node.crash(), 1);
    // Nothing tells that this is not what the other node wrote but its bytes.
    fs::write(place.path("new"), "somebody's file").unwrap();
    let mut gate = ice_testing::command("python3");
    gate.args(["-c", GATE])
        .arg(place.path("new"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let gate = ice_testing::Process::spawn(&mut gate);
    let (mut stdin, stdout) = (gate.stdin(), BufReader::new(gate.stdout()));
    let (said, lines) = channel();
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| said.send(line).is_ok()));
    let hear = || lines.recv_timeout(ice_testing::PATIENCE).unwrap();
    assert_eq!(hear(), "waiting");
    let node = Node::start_on(&place, 2, log, Ending::ProcessCrash, Arc::default());
    assert_eq!(hear(), "opened");
    // It is being read, for as long as that may take.
    let volume = node.volume.clone();
    let (made, heard) = channel();
    std::thread::spawn(move || made.send(volume.mkdir(ROOT, 1, OsStr::new("meanwhile"), 0o755).map(|_| ())));
    let outcome = heard.recv_timeout(ice_testing::PATIENCE / 4);
    stdin.write_all(b"go on\n").unwrap();
    assert_eq!(outcome, Ok(Ok(())), "a directory is made while a file is read");
    node.quiet();
    assert_eq!(node.names(), ["a", "b", "meanwhile", "new"]);
    assert_eq!(place.read("new"), "somebody's file");
}
