//! Locks between two mounts that share a control plane: each mount is a node's.
#![cfg(target_os = "linux")]

mod support;

use ice_fuse::{Mount, MountOptions};
use ice_host::locks::{Ask, LockPath, LockService, Locking, Locks, Options};
use ice_testing::{PATIENCE, Process};
use ice_tokio::Tokio;
use rustix::fs::FlockOperation::{
    LockExclusive, LockShared, NonBlockingLockExclusive as TryExclusive, NonBlockingLockShared as TryShared, Unlock,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::plane::{self, Plane};
use support::{DirVfs, can_mount, eventually};

struct Node {
    mnt: PathBuf,
    vfs: Arc<DirVfs>,
    locks: Arc<dyn Locks>,
    mount: Option<Mount>,
}

/// Two nodes: each with a mount of the same files.
struct Pair {
    plane: Arc<Plane>,
    runtime: Tokio,
    nodes: [Node; 2],
    // Last, so that the mounts are gone when it is removed.
    _dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
struct Rules {
    timeout: Duration,
    on_write: bool,
    delete_while_locked: bool,
    threads: usize,
}

const USUAL: Rules = Rules { timeout: PATIENCE, on_write: false, delete_while_locked: true, threads: 0 };

impl Pair {
    fn new() -> Option<Pair> {
        Pair::with(USUAL)
    }

    fn with(rules: Rules) -> Option<Pair> {
        if !can_mount() {
            return None;
        }
        let dir = ice_testing::tempdir();
        let backing = dir.path().join("backing");
        fs::create_dir(&backing).unwrap();
        let (plane, runtime) = (Plane::new(), Tokio::new(2).unwrap());
        let nodes = [0, 1].map(|n| {
            let mnt = dir.path().join(format!("mnt{n}"));
            fs::create_dir(&mnt).unwrap();
            let options =
                Options { node: plane::NAMES[n].into(), timeout: rules.timeout, retry: Duration::from_millis(20) };
            let locks: Arc<dyn Locks> = Arc::new(LockService::new(plane.beside(n), runtime.clone(), options));
            let (on_write, delete_while_locked) = (rules.on_write, rules.delete_while_locked);
            let locking = Some(Locking { locks: locks.clone(), on_write, delete_while_locked });
            let vfs = Arc::new(DirVfs::new(&backing));
            let options = MountOptions { locking, threads: rules.threads, ..MountOptions::new(&mnt) };
            let mount = Some(Mount::start(Arc::clone(&vfs) as _, options).unwrap());
            Node { mnt, vfs, locks, mount }
        });
        Some(Pair { plane, runtime, nodes, _dir: dir })
    }

    /// A file through a node's mount, which may be made by that.
    fn open(&self, node: usize, name: &str) -> File {
        let path = self.nodes[node].mnt.join(name);
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// Locks that are waited for.
    fn waiting(&self) -> usize {
        self.plane.lock().store().locks().waiting()
    }

    /// File locks and named locks that are held.
    fn held(&self) -> usize {
        self.plane.lock().store().locks().held()
    }

    /// A program on a node, with `f` open as its standard input for reading and writing, and in `fd`.
    fn program(&self, node: usize, code: &str) -> Process {
        let code = format!(
            "import fcntl, os, signal, struct, sys, time\nfd = os.open('f', os.O_RDWR | os.O_CREAT)\n\
             def say(word): open('{}/' + word, 'x').close()\n{code}",
            self._dir.path().display()
        );
        Process::spawn(ice_testing::command("python3").args(["-c", &code]).current_dir(&self.nodes[node].mnt))
    }

    /// A program has said a word.
    fn said(&self, word: &str) {
        eventually(word, || self._dir.path().join(word).exists());
    }

    fn named(&self) -> Vec<(String, String)> {
        let store = self.plane.lock();
        let named = store.store().locks().named_after(b"");
        named.map(|(name, lock)| (String::from_utf8_lossy(name).into_owned(), lock.holder.clone())).collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Whatever waits for a leader ends first.
        self.plane.inner().leaderless.store(false, Ordering::SeqCst);
        for node in &mut self.nodes {
            if let Some(mount) = node.mount.take()
                && let Err(e) = mount.unmount(Duration::from_secs(5))
            {
                eprintln!("unmount: {e}");
            }
        }
    }
}

const NO: Result<(), Errno> = Err(Errno::WOULDBLOCK);

/// `fcntl` on the whole file, or on a range of it.
fn posix(file: &File, operation: FlockOperation) -> Result<(), Errno> {
    rustix::fs::fcntl_lock(file, operation)
}

#[test]
fn flock_holds_between_nodes() {
    let Some(pair) = Pair::new() else { return };
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    let other = pair.open(1, "other");
    flock(&a, LockExclusive).unwrap();
    assert_eq!(flock(&b, TryExclusive), NO);
    assert_eq!(flock(&b, TryShared), NO);
    flock(&other, TryExclusive).unwrap();
    flock(&a, Unlock).unwrap();
    flock(&b, TryShared).unwrap();
    flock(&a, TryShared).unwrap();
    assert_eq!(flock(&a, TryExclusive), NO, "both read");
    flock(&b, Unlock).unwrap();
    flock(&a, TryExclusive).unwrap();
    flock(&a, TryShared).unwrap();
    flock(&b, TryShared).unwrap();
    flock(&b, Unlock).unwrap();
    flock(&a, LockExclusive).unwrap();
    // It is the open file's: of one process, too, and until the last copy of the descriptor is closed.
    assert_eq!(flock(pair.open(0, "f"), TryShared), NO);
    let copy = a.try_clone().unwrap();
    drop(a);
    assert_eq!(flock(&b, TryExclusive), NO);
    drop(copy);
    eventually("closing gives it back", || flock(&b, TryExclusive).is_ok());
    drop((b, other));
    eventually("nothing is left", || pair.held() == 0);
}

#[test]
fn ranges_hold_between_nodes() {
    let Some(pair) = Pair::new() else { return };
    // Answers on a range: who has it (`F_GETLK`), and whether it can be had.
    let ask = |node: usize, range: &str, mode: &str| {
        let code = format!(
            "start, length = {range}\n\
             ask = struct.pack('hhqqi4x', fcntl.{mode}, os.SEEK_SET, start, length, 0)\n\
             typ, _, first, n, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, ask))\n\
             try: fcntl.fcntl(fd, fcntl.F_SETLK, ask); got = 1\n\
             except BlockingIOError: got = 0\n\
             assert (typ == fcntl.F_UNLCK) == bool(got), (typ, got)\n\
             expect = eval(sys.stdin.read() or 'None')\n\
             if not got: print(first, n, pid)\n"
        );
        let code = format!("import fcntl, os, struct, sys\nfd = os.open('f', os.O_RDWR)\n{code}");
        let mut command = ice_testing::command("python3");
        let out = ice_testing::output(command.args(["-c", &code]).current_dir(&pair.nodes[node].mnt));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let holder = pair.program(
        0,
        "fcntl.lockf(fd, fcntl.LOCK_EX, 100, 0)\n\
         fcntl.lockf(fd, fcntl.LOCK_SH, 0, 1000)\n\
         fcntl.lockf(fd, fcntl.LOCK_UN, 10, 50)\n\
         say('holds')\nsignal.pause()",
    );
    pair.said("holds");
    let pid = holder.id();
    assert_eq!(ask(1, "0, 1", "F_RDLCK"), "0 50 0", "another node's process has no number here");
    assert_eq!(ask(0, "0, 1", "F_RDLCK"), format!("0 50 {pid}"));
    assert_eq!(ask(1, "45, 10", "F_WRLCK"), "0 50 0");
    assert_eq!(ask(1, "50, 10", "F_WRLCK"), "", "that was given back");
    assert_eq!(ask(1, "60, 1", "F_RDLCK"), "60 40 0");
    assert_eq!(ask(1, "100, 900", "F_WRLCK"), "");
    assert_eq!(ask(1, "1000, 0", "F_RDLCK"), "", "both read");
    assert_eq!(ask(1, "5000, 1", "F_WRLCK"), "1000 0 0", "to the end, however far");
    holder.kill();
    eventually("who dies holds nothing", || pair.held() == 0);
    assert_eq!(ask(1, "0, 0", "F_WRLCK"), "");
}

#[test]
fn both_kinds_are_kept_apart() {
    let Some(pair) = Pair::new() else { return };
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    flock(&a, LockExclusive).unwrap();
    posix(&b, LockExclusive).unwrap();
    assert_eq!(flock(&b, TryShared), NO);
    assert_eq!(posix(&a, TryShared), NO);
    flock(&a, Unlock).unwrap();
    flock(&b, TryShared).unwrap();
    assert_eq!(posix(&a, TryShared), NO);
}

/// Also fault 8 of the original: closing any file that was open for reading gave its lock back. Here it is as POSIX has it.
#[test]
fn fault_08_closing_ends_exactly_the_locks_that_it_should() {
    let Some(pair) = Pair::new() else { return };
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    flock(&a, LockExclusive).unwrap();
    for node in [0, 1] {
        drop(File::open(pair.nodes[node].mnt.join("f")).unwrap());
    }
    assert_eq!(flock(&b, TryExclusive), NO);
    flock(&a, Unlock).unwrap();
    // Of the other kind, closing any descriptor of the process ends it, but not what other processes close.
    posix(&a, LockExclusive).unwrap();
    drop(File::open(pair.nodes[1].mnt.join("f")).unwrap());
    let cat = ice_testing::output(ice_testing::command("cat").arg(pair.nodes[0].mnt.join("f")));
    assert!(cat.status.success());
    assert_eq!(posix(&b, TryExclusive), NO);
    drop(File::open(pair.nodes[0].mnt.join("f")).unwrap());
    posix(&b, TryExclusive).unwrap();
    posix(&b, Unlock).unwrap();
    // A descriptor that can only be read, too.
    let reader = File::open(pair.nodes[0].mnt.join("f")).unwrap();
    posix(&reader, LockShared).unwrap();
    assert_eq!(posix(&b, TryExclusive), NO);
    drop(reader);
    posix(&b, TryExclusive).unwrap();
}

#[test]
fn who_waits_is_served_in_turn_and_what_was_written_is_told_before() {
    let Some(pair) = Pair::new() else { return };
    let a = pair.open(0, "f");
    for kind in ["flock", "fcntl"] {
        let call = if kind == "flock" { "fcntl.flock(fd, fcntl.LOCK_EX)" } else { "fcntl.lockf(fd, fcntl.LOCK_EX)" };
        let take = |operation| if kind == "flock" { flock(&a, operation) } else { posix(&a, operation) };
        take(LockExclusive).unwrap();
        let waiting: Vec<Process> = (0..4)
            .map(|n| {
                let code =
                    format!("{call}\nsay('{kind}{n}')\nwhile not os.path.exists('../go{kind}{n}'): time.sleep(0.01)");
                let process = pair.program(n % 2, &code);
                eventually("it waits", || pair.waiting() == n + 1);
                process
            })
            .collect();
        let spoken = |n: usize| pair._dir.path().join(format!("{kind}{n}")).exists();
        assert!((0..4).all(|n| !spoken(n)));
        (&a).write_all(b"x").unwrap();
        pair.nodes[0].vfs.take_counts();
        take(Unlock).unwrap();
        assert_eq!(pair.nodes[0].vfs.counted(&["flush"]), 1, "what was written is told first");
        for (n, process) in waiting.into_iter().enumerate() {
            pair.said(&format!("{kind}{n}"));
            assert!((n + 1..4).all(|later| !spoken(later)), "one after the other");
            fs::write(pair._dir.path().join(format!("go{kind}{n}")), "").unwrap();
            assert!(process.wait().success());
        }
        eventually("nothing is left", || pair.held() == 0 && pair.waiting() == 0);
    }
}

#[test]
fn waiting_can_be_interrupted_and_killed() {
    let Some(pair) = Pair::new() else { return };
    let a = pair.open(0, "f");
    flock(&a, LockExclusive).unwrap();
    posix(&a, LockExclusive).unwrap();
    let alarm = "def stop(*a): sys.exit(7)\nsignal.signal(signal.SIGALRM, stop)\n";
    for call in ["fcntl.flock(fd, fcntl.LOCK_SH)", "fcntl.lockf(fd, fcntl.LOCK_EX, 5, 10)"] {
        for (signal, code) in [(Signal::KILL, None), (Signal::TERM, None), (Signal::ALARM, Some(7))] {
            for node in [0, 1] {
                let program = pair.program(node, &format!("{alarm}{call}"));
                eventually("it waits", || pair.waiting() == 1);
                // Longer than one look of the watcher.
                std::thread::sleep(Duration::from_millis(120));
                program.signal(signal);
                let status = program.wait();
                assert_eq!(status.code(), code, "{call} {signal:?} {status:?}");
                assert!(code.is_some() || status.signal() == Some(signal.as_raw()));
                eventually("its wait leaves no trace", || pair.waiting() == 0);
            }
        }
    }
    assert_eq!(pair.held(), 2);
    // A handler that only returns: the wait goes on, and is served.
    let code = "signal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)\n\
        fcntl.flock(fd, fcntl.LOCK_EX)\nsay('served')\nsignal.pause()";
    let program = pair.program(1, code);
    eventually("it waits", || pair.waiting() == 1);
    std::thread::sleep(Duration::from_millis(500));
    flock(&a, Unlock).unwrap();
    pair.said("served");
    assert_eq!(flock(&a, TryShared), NO);
    program.kill();
    eventually("it is free", || flock(&a, TryShared).is_ok());
}

#[test]
fn a_circle_of_waiting_is_refused() {
    let Some(pair) = Pair::new() else { return };
    let code = "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)\nsay('one')\n\
        while not os.path.exists('../two'): time.sleep(0.01)\nfcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)";
    let first = pair.program(0, code);
    pair.said("one");
    let code = "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)\nsay('two')\n\
        while not os.path.exists('../go'): time.sleep(0.01)\n\
        try: fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)\nexcept OSError as e: sys.exit(e.errno)";
    let second = pair.program(1, code);
    pair.said("two");
    eventually("it waits", || pair.waiting() == 1);
    fs::write(pair._dir.path().join("go"), "").unwrap();
    assert_eq!(second.wait().code(), Some(libc::EDEADLK));
    assert!(first.wait().success(), "the other one goes on");
    // Two who hold a lock together and both want it alone: with `flock` who waits gives his up.
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    flock(&a, LockShared).unwrap();
    let upgrades = "fcntl.flock(fd, fcntl.LOCK_SH)\nsay('shared')\nfcntl.flock(fd, fcntl.LOCK_EX)";
    let other = pair.program(1, upgrades);
    pair.said("shared");
    eventually("it waits", || pair.waiting() == 1);
    flock(&a, LockExclusive).unwrap();
    assert_eq!(flock(&b, TryShared), NO);
    flock(&a, Unlock).unwrap();
    assert!(other.wait().success());
}

#[test]
fn a_mount_that_ends_and_a_node_that_is_down_hold_nothing() {
    let Some(mut pair) = Pair::new() else { return };
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    flock(&a, LockExclusive).unwrap();
    posix(&a, LockExclusive).unwrap();
    assert_eq!(pair.held(), 2);
    pair.plane.ends(0);
    flock(&b, TryExclusive).unwrap();
    posix(&b, TryExclusive).unwrap();
    // What it believes to hold and gives back is not another's.
    flock(&a, Unlock).unwrap();
    posix(&a, Unlock).unwrap();
    assert_eq!((flock(&a, TryShared), pair.held()), (NO, 2));
    // The mount is unmounted while files are open in it, and somebody waits there.
    let waits = pair.program(1, "fcntl.flock(fd, fcntl.LOCK_SH)");
    eventually("it waits", || pair.waiting() == 1);
    pair.nodes[1].mount.take().unwrap().unmount(Duration::from_millis(50)).unwrap();
    eventually("all of it is gone", || pair.held() == 0 && pair.waiting() == 0);
    flock(&a, TryExclusive).unwrap();
    assert!(!waits.wait().success());
}

#[test]
fn many_who_wait_do_not_stop_the_others() {
    let Some(pair) = Pair::with(Rules { threads: 2, ..USUAL }) else { return };
    let a = pair.open(0, "f");
    flock(&a, LockExclusive).unwrap();
    // More than a mount has threads for requests that wait in one.
    let code = "import threading\ndef take(n):\n  mine = os.open('f', os.O_RDWR)\n  fcntl.flock(mine, fcntl.LOCK_SH)\n  \
        os.close(mine)\n\
        all = [threading.Thread(target=take, args=(n,)) for n in range(50)]\n\
        for t in all: t.start()\nfor t in all: t.join()";
    let many = pair.program(1, code);
    eventually("all wait", || pair.waiting() == 50);
    for i in 0..20 {
        fs::create_dir(pair.nodes[1].mnt.join(format!("d{i}"))).unwrap();
        fs::write(pair.nodes[1].mnt.join(format!("d{i}/f")), "x").unwrap();
    }
    assert_eq!(pair.waiting(), 50);
    flock(&a, Unlock).unwrap();
    assert!(many.wait().success());
    eventually("nothing is left", || pair.held() == 0);
}

#[test]
fn without_a_majority_nothing_is_granted_and_nothing_is_kept() {
    let Some(pair) = Pair::with(Rules { timeout: Duration::from_millis(100), ..USUAL }) else { return };
    let (a, b) = (pair.open(0, "f"), pair.open(1, "f"));
    flock(&a, LockExclusive).unwrap();
    posix(&a, LockExclusive).unwrap();
    let leaderless = &pair.plane.inner().leaderless;
    leaderless.store(true, Ordering::SeqCst);
    assert_eq!(flock(&b, TryShared), Err(Errno::NOLCK));
    assert_eq!(posix(&b, TryShared), Err(Errno::NOLCK));
    // Giving back succeeds, and is done as soon as possible. Until then the same owner gets nothing that this would undo.
    flock(&a, Unlock).unwrap();
    assert_eq!(flock(&a, TryExclusive), Err(Errno::NOLCK));
    let start = Instant::now();
    drop(a);
    assert!(start.elapsed() < PATIENCE / 2, "closing does not wait for ever");
    assert_eq!(pair.held(), 2);
    leaderless.store(false, Ordering::SeqCst);
    eventually("given back", || pair.held() == 0);
    flock(&b, TryExclusive).unwrap();
    posix(&b, TryExclusive).unwrap();
}

/// Fault 8 of the original: two writers of one node had one lock, and the first close gave it back. And fault 10: what failed after
/// the lock was taken kept it for ever.
#[test]
fn fault_08_and_10_a_file_has_one_writer() {
    let short = Duration::from_millis(200);
    let Some(pair) = Pair::with(Rules { timeout: short, on_write: true, ..USUAL }) else { return };
    let at = |node: usize, name: &str| pair.nodes[node].mnt.join(name);
    let write = |node: usize| File::options().write(true).open(at(node, "d/f")).map_err(|e| e.raw_os_error().unwrap());
    let busy = |r: Result<File, i32>| assert_eq!(r.err(), Some(libc::EBUSY));
    fs::create_dir(at(0, "d")).unwrap();
    let writer = File::create(at(0, "d/f")).unwrap();
    assert_eq!(pair.named(), [("/d/f".into(), "one".into())]);
    busy(write(1));
    busy(write(0));
    busy(File::create(at(1, "d/f")).map_err(|e| e.raw_os_error().unwrap()));
    // Readers neither need it nor end it.
    drop(File::open(at(0, "d/f")).unwrap());
    drop(File::open(at(1, "d/f")).unwrap());
    busy(write(0));
    busy(write(1));
    drop(writer);
    let start = Instant::now();
    let second = loop {
        match write(1) {
            Ok(file) => break file,
            Err(e) => assert!(e == libc::EBUSY && start.elapsed() < PATIENCE),
        }
    };
    assert_eq!(pair.named(), [("/d/f".into(), "two".into())]);
    drop(second);
    eventually("given back", || pair.named().is_empty());
    // Whoever fails afterwards gives it back.
    fs::write(at(0, "d/gone"), "").unwrap();
    fs::remove_file(pair._dir.path().join("backing/d/gone")).unwrap();
    let gone = File::options().write(true).open(at(0, "d/gone")).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENOENT));
    eventually("given back", || pair.named().is_empty());
    // Those who have locked the path by name stand before writers, too.
    let ask = Ask { path: LockPath::parse(b"d/f").unwrap(), holder: "h".into(), ttl_s: None, patience: Duration::ZERO };
    use ice_host::runtime::Runtime;
    pair.runtime.block_on(pair.nodes[1].locks.acquire(ask.clone())).unwrap();
    busy(write(0));
    busy(write(1));
    pair.runtime.block_on(pair.nodes[1].locks.release(ask.path, "h".into())).unwrap();
    drop(write(0).unwrap());
}

#[test]
fn writers_wait_for_each_other_in_turn() {
    let Some(pair) = Pair::with(Rules { on_write: true, ..USUAL }) else { return };
    let writer = pair.open(0, "f");
    let program = |n: usize| pair.program(n % 2, "os.write(fd, b'x')\ntime.sleep(0.05)");
    let mut waiting: Vec<Process> = (0..4).map(program).collect();
    eventually("one of the other node queues", || pair.waiting() == 1);
    // One who waits can be killed.
    waiting.pop().unwrap().kill();
    drop(writer);
    for process in waiting {
        assert!(process.wait().success());
    }
    eventually("given back", || pair.named().is_empty() && pair.waiting() == 0);
}

#[test]
fn what_somebody_has_locked_is_not_deleted() {
    use ice_host::runtime::Runtime;
    let Some(pair) = Pair::with(Rules { delete_while_locked: false, ..USUAL }) else { return };
    let at = |name: &str| pair.nodes[0].mnt.join(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "").unwrap();
    let lock = |path: &str, holder: &str| {
        let path = LockPath::parse(path.as_bytes()).unwrap();
        let ask = Ask { path, holder: holder.into(), ttl_s: None, patience: Duration::ZERO };
        pair.runtime.block_on(pair.nodes[1].locks.acquire(ask)).unwrap();
    };
    lock("/d/f", "somebody");
    lock("/d", "somebody");
    assert_eq!(fs::remove_file(at("d/f")).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!(fs::remove_dir(at("d")).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    assert_eq!(pair.runtime.block_on(pair.nodes[0].locks.release_by_holder("somebody".into())).unwrap(), 2);
    // The node's own locks are no obstacle.
    lock("/d/f", "one");
    fs::remove_file(at("d/f")).unwrap();
    fs::remove_dir(at("d")).unwrap();

    let Some(lax) = Pair::with(USUAL) else { return };
    fs::write(lax.nodes[0].mnt.join("f"), "").unwrap();
    let ask = Ask { path: LockPath::parse(b"f").unwrap(), holder: "h".into(), ttl_s: None, patience: Duration::ZERO };
    lax.runtime.block_on(lax.nodes[1].locks.acquire(ask)).unwrap();
    fs::remove_file(lax.nodes[0].mnt.join("f")).unwrap();
}
