//! Kill -9 of any node at any moment: what `fsync` acknowledged is there, on all, and the trees are equal.

mod cluster;

use cluster::{Cluster, fuse_or_skip};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Deterministic, so that a failure can be told apart from another.
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

fn write_synced(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let mut f = File::create(path)?;
    f.write_all(data)?;
    f.sync_all()
}

/// Writes files with fsync into the first node's mount until told to stop. What was acknowledged goes into the book.
///
/// While `restarting` is held it waits: between the dead mount's removal and the new mount its files would land in the
/// directory below.
fn writer(
    dir: std::path::PathBuf,
    stop: Arc<AtomicBool>,
    restarting: Arc<Mutex<()>>,
    book: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
) {
    let mut rng = Rng(1);
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let no_restart = restarting.lock().expect("restarting");
        let name = format!("f{:03}", rng.next(200));
        let size = if rng.next(10) == 0 { 300_000 } else { rng.next(5000) } as usize;
        let data: Vec<u8> = format!("{n}:").into_bytes().into_iter().cycle().take(size.max(8)).collect();
        // Overwritten content is not acknowledged any more from the moment the file is truncated.
        book.lock().expect("book").remove(&name);
        match write_synced(&dir.join(&name), &data) {
            Ok(()) => {
                book.lock().expect("book").insert(name, data);
            }
            // The node under us was killed, or a majority is away: nothing was acknowledged.
            Err(_) => {
                drop(no_restart);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn what_fsync_acknowledged_survives_kill_9_of_any_node() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start_with(3, "ack_timeout: 5s");
    let stop = Arc::new(AtomicBool::new(false));
    let book = Arc::new(Mutex::new(BTreeMap::new()));
    let restarting = Arc::new(Mutex::new(()));
    let thread = {
        let (dir, stop, book) = (c.nodes[0].mount(), Arc::clone(&stop), Arc::clone(&book));
        let restarting = Arc::clone(&restarting);
        std::thread::spawn(move || writer(dir, stop, restarting, book))
    };
    let mut rng = Rng(7);
    for round in 0..9 {
        std::thread::sleep(Duration::from_millis(200 + rng.next(600)));
        let victim = round % 3;
        c.nodes[victim].kill9();
        std::thread::sleep(Duration::from_millis(rng.next(800)));
        {
            let _waits = (victim == 0).then(|| restarting.lock().expect("restarting"));
            c.nodes[victim].restart();
        }
        c.wait_connected();
    }
    stop.store(true, Ordering::SeqCst);
    thread.join().expect("the writer");
    c.wait_connected();
    c.wait_equal();
    let book = book.lock().expect("book");
    assert!(book.len() > 20, "only {} files were acknowledged", book.len());
    for n in &c.nodes {
        for (name, data) in book.iter() {
            let found = fs::read(n.mount().join(name)).unwrap_or_else(|e| panic!("{}: {name} is lost: {e}", n.name));
            assert!(found == *data, "{}: {name} has other bytes", n.name);
        }
    }
}

/// Saves as editors do: a new file is written aside and takes the name. Or the old one is removed first.
fn save(dir: &Path, name: &str, data: &[u8], by_rename: bool) -> std::io::Result<()> {
    let place = dir.join(name);
    if by_rename {
        let aside = dir.join(format!("{name}.tmp"));
        write_synced(&aside, data)?;
        fs::rename(&aside, &place)?;
    } else {
        match fs::remove_file(&place) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => write_synced(&place, data)?,
        }
    }
    File::open(dir)?.sync_all()
}

#[test]
fn a_node_that_dies_while_names_change_hands_brings_nothing_old_back() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(3);
    let mut rng = Rng(3);
    for round in 0..6 {
        let dir = c.nodes[0].mount().join(format!("d{round}"));
        fs::create_dir(&dir).expect("mkdir");
        let (by_rename, die_at) = (round % 2 == 0, 30 + rng.next(60));
        let mut saved = BTreeMap::new();
        let mut n = 0;
        // What the dead node had begun is overtaken twice by the time it comes back.
        while n < die_at + 24 {
            let name = format!("f{}", n % 12);
            let size = [0, 10, 4096, 20_000, 300_000][rng.next(5) as usize];
            let data: Vec<u8> = format!("{n}:").into_bytes().into_iter().cycle().take(size + 4).collect();
            save(&dir, &name, &data, by_rename).expect("saving with two of three nodes");
            saved.insert(name, data);
            n += 1;
            if n == die_at {
                let pid = rustix::process::Pid::from_raw(c.nodes[1].pid() as i32).expect("a process");
                let delay = Duration::from_millis(rng.next(4));
                std::thread::spawn(move || {
                    // In the midst of the next save.
                    std::thread::sleep(delay);
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                });
            }
        }
        c.nodes[1].kill9();
        c.nodes[1].restart();
        c.wait_connected();
        c.wait_equal();
        for node in &c.nodes {
            let dir = node.mount().join(format!("d{round}"));
            let names: Vec<String> = fs::read_dir(&dir)
                .expect("list")
                .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
                .collect();
            assert_eq!(names.len(), saved.len(), "{}, round {round}: {names:?}", node.name);
            for (name, data) in &saved {
                let found = fs::read(dir.join(name)).expect("read");
                assert!(found == *data, "{}, round {round}: {name} is older than what was saved last", node.name);
            }
        }
    }
}

#[test]
fn a_dead_mount_is_replaced_by_the_next_start() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(1);
    fs::write(c.nodes[0].mount().join("f"), "x").expect("write");
    c.nodes[0].kill9();
    let dead = fs::read_dir(c.nodes[0].mount()).err().and_then(|e| e.raw_os_error());
    assert_eq!(dead, Some(rustix::io::Errno::NOTCONN.raw_os_error()), "the mount should be dead now");
    c.nodes[0].restart();
    assert_eq!(fs::read_to_string(c.nodes[0].mount().join("f")).expect("read"), "x");
    assert_eq!(c.nodes[0].stop(), Some(0));
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!table.contains(&*c.nodes[0].mount().to_string_lossy()), "the mount was left behind");
}

#[test]
fn concurrent_edits_in_a_partition_leave_equal_trees_and_a_copy_of_the_loser() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(2);
    fs::write(c.nodes[0].mount().join("f"), "base").expect("write");
    c.wait_equal();
    // One at a time: neither hears of the other's edit before both are made.
    c.nodes[1].stop();
    fs::write(c.nodes[0].mount().join("f"), "from the first").expect("write");
    c.nodes[0].stop();
    c.nodes[1].restart();
    fs::write(c.nodes[1].mount().join("f"), "from the second").expect("write");
    c.nodes[0].restart();
    c.wait_connected();
    c.wait_equal();
    for n in &c.nodes {
        let mut texts: Vec<String> = fs::read_dir(n.mount())
            .expect("list")
            .map(|e| fs::read_to_string(e.expect("entry").path()).expect("read"))
            .collect();
        texts.sort();
        assert_eq!(texts, ["from the first", "from the second"], "{}", n.name);
        assert_eq!(fs::read_to_string(n.mount().join("f")).expect("read"), "from the second", "the later one wins");
    }
    let conflicts = c.nodes[0].http("GET", "/v1/conflicts", &[], b"").expect("conflicts").text();
    assert!(conflicts.contains("f.conflict-"), "{conflicts}");
}

#[test]
fn an_existing_directory_is_adopted_and_direct_edits_are_noticed() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(2, "");
    let b = c.nodes[0].backing();
    fs::create_dir_all(b.join("old/deep")).expect("mkdir");
    fs::write(b.join("old/deep/f"), "was here before").expect("write");
    fs::hard_link(b.join("old/deep/f"), b.join("old/twin")).expect("link");
    rustix::fs::setxattr(b.join("old/twin"), "user.k", b"v", rustix::fs::XattrFlags::empty()).expect("setxattr");
    for n in &mut c.nodes {
        n.spawn();
    }
    for n in &c.nodes {
        n.wait_ready();
    }
    c.wait_connected();
    c.nodes[1].wait("told of the adopted files", |n| n.mount().join("old/twin").exists());
    c.wait_equal();
    let m = c.nodes[1].mount();
    assert_eq!(fs::read_to_string(m.join("old/twin")).expect("read"), "was here before");
    let mut value = [0u8; 8];
    let n = rustix::fs::getxattr(m.join("old/deep/f"), "user.k", &mut value[..]).expect("getxattr");
    assert_eq!(&value[..n], b"v");

    fs::write(b.join("direct"), "behind the mount").expect("write");
    fs::rename(b.join("old/deep"), b.join("renamed")).expect("rename");
    c.nodes[1].wait("told of the direct edits", |n| {
        n.mount().join("direct").exists() && n.mount().join("renamed/f").exists()
    });
    c.wait_equal();
    fs::remove_file(b.join("direct")).expect("remove");
    c.nodes[1].wait("told of the direct removal", |n| !n.mount().join("direct").exists());
    c.wait_equal();
}
