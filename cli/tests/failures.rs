//! Disks that fill up, fail, are read-only or damaged: a real node says so in words, loses nothing, and goes on when the cause is
//! gone. The file systems are small ones made by the test.

mod cluster;

use cluster::{Cluster, Node, PATIENCE, fuse_or_skip};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A small file system of the test's own. Removed, lazily if need be, when it is dropped.
struct SmallFs(PathBuf);

fn run(command: &mut Command) {
    let out = ice_testing::output(command);
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl SmallFs {
    /// In memory, on `at`.
    fn memory(at: &Path, size: &str) -> SmallFs {
        fs::create_dir_all(at).expect("mount point");
        run(ice_testing::command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "icetest"])
            .arg(at));
        SmallFs(at.into())
    }

    /// An ext4 on `at` that believes to have 256 MiB, in an image on `store`, which may have less: then its disk fails. Without a
    /// journal, whose failure would end all writing for good.
    fn on_image(store: &SmallFs, at: &Path) -> SmallFs {
        fs::create_dir_all(at).expect("mount point");
        let image = store.0.join("image");
        File::create(&image).and_then(|f| f.set_len(256 << 20)).expect("image");
        run(ice_testing::command("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal"])
            .arg(&image));
        run(ice_testing::command("mount").args(["-o", "loop,errors=continue"]).arg(&image).arg(at));
        SmallFs(at.into())
    }

    fn remount(&self, options: &str) {
        run(ice_testing::command("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn reasons(n: &Node) -> String {
    let status = n.status();
    let at = status.find("\"reasons\"").unwrap_or(0);
    status[at..].split(']').next().unwrap_or_default().to_owned()
}

fn wait_reason(n: &Node, words: &str) {
    n.wait(&format!("saying `{words}`"), |n| reasons(n).contains(words));
}

fn wait_no_reason(n: &Node) {
    n.wait("free of reasons", |n| n.status().contains("\"reasons\":[]"));
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    File::create(path)?.write_all(bytes)
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut f = File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// Until `f` succeeds.
fn eventually<T>(what: &str, mut f: impl FnMut() -> std::io::Result<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match f() {
            Ok(done) => return done,
            Err(e) => assert!(Instant::now() < end, "{what}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn start(c: &mut Cluster) {
    for n in &mut c.nodes {
        n.spawn();
    }
    for n in &c.nodes {
        n.wait_ready();
    }
    c.wait_connected();
}

#[test]
fn a_full_backing_elsewhere_holds_changes_back_and_is_said() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(2, "ack_timeout: 3s");
    let small = SmallFs::memory(&c.nodes[1].backing(), "6m");
    start(&mut c);
    let (a, b) = (c.nodes[0].mount(), c.nodes[1].mount());
    write(&b.join("before"), b"was here").expect("write");
    let big: Vec<u8> = (0..12_000_000u32).map(|i| (i % 251) as u8).collect();
    assert!(write_synced(&a.join("big"), &big).is_err(), "both nodes should hold it, and one cannot");
    wait_reason(&c.nodes[1], "disk is full");
    // Small things may still fit; nothing half-made is shown, and what was there is whole.
    assert_eq!(fs::read(b.join("before")).expect("read"), b"was here");
    assert!(fs::read(b.join("big")).map_or(true, |bytes| bytes.is_empty() || bytes == big));
    // Its own writes say so as well.
    let own = write(&b.join("own"), &big);
    assert_eq!(own.map_err(|e| e.kind()), Err(std::io::ErrorKind::StorageFull));
    wait_reason(&c.nodes[1], "the disk of `backing`");
    let logged =
        |n: &Node| fs::read_to_string(n.dir.join("log")).unwrap_or_default().matches("the disk of `backing`").count();
    c.nodes[1].wait("writing it into the log", |n| logged(n) > 0);
    assert_eq!(logged(&c.nodes[1]), 1, "once");
    fs::remove_file(b.join("own")).expect("removing needs no room");
    small.remount("size=64m");
    c.wait_equal();
    assert!(fs::read(b.join("big")).expect("read") == big);
    wait_no_reason(&c.nodes[1]);
    write_synced(&a.join("after"), b"x").expect("acknowledged again");
}

#[test]
fn a_full_data_directory_stops_acknowledging_and_is_said() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(1, "ack_timeout: 3s");
    let dir = c.nodes[0].dir.clone();
    let small = SmallFs::memory(&dir.join("data"), "300m");
    start(&mut c);
    let m = c.nodes[0].mount();
    write_synced(&m.join("before"), b"safe").expect("acknowledged");
    // Others fill the disk up.
    let ballast = dir.join("data/ballast");
    let mut f = File::create(&ballast).expect("ballast");
    while f.write_all(&[1; 1 << 16]).is_ok() {}
    let mut acknowledged = 0;
    let end = Instant::now() + PATIENCE;
    let refused = loop {
        assert!(Instant::now() < end, "the log never ran out of room\n{}", c.nodes[0].log_tail());
        // Inline contents go through the log, which has its room beforehand.
        match write_synced(&m.join(format!("f{acknowledged:05}")), &vec![3; 60_000]) {
            Ok(()) => acknowledged += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{refused}");
    wait_reason(&c.nodes[0], "the log cannot be made durable");
    // Reads and writes without fsync go on.
    write(&m.join("unsynced"), b"still served").expect("write");
    assert_eq!(fs::read(m.join("unsynced")).expect("read"), b"still served");
    drop(f);
    fs::remove_file(&ballast).expect("make room");
    eventually("fsync works again", || write_synced(&m.join("after"), b"x"));
    wait_no_reason(&c.nodes[0]);
    c.nodes[0].kill9();
    c.nodes[0].restart();
    for i in 0..acknowledged {
        assert_eq!(fs::metadata(m.join(format!("f{i:05}"))).expect("it was acknowledged").len(), 60_000);
    }
    assert_eq!(fs::read(m.join("unsynced")).expect("the machine went on"), b"still served");
    drop(small);
}

#[test]
fn a_failed_sync_is_never_acknowledged_and_is_said() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(1, "ack_timeout: 3s");
    let store = SmallFs::memory(&c.nodes[0].dir.join("store"), "24m");
    let disk = SmallFs::on_image(&store, &c.nodes[0].backing());
    start(&mut c);
    let m = c.nodes[0].mount();
    write_synced(&m.join("before"), b"safe").expect("acknowledged");
    // The file system has room, the disk below it has not: writing back fails.
    let mut f = File::create(m.join("lost")).expect("create");
    let block = vec![7; 1 << 20];
    for _ in 0..48 {
        f.write_all(&block).expect("the page cache takes it");
    }
    let first = f.sync_all().expect_err("the disk did not take it");
    assert_eq!(first.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(f.sync_all().is_err(), "the kernel forgets a lost write, the node must not");
    wait_reason(&c.nodes[0], "a sync failed");
    assert_eq!(fs::read(m.join("before")).expect("read"), b"safe");
    drop(f);
    store.remount("size=400m");
    // A new file, and the same bytes once more: with a disk that works both can be relied on.
    eventually("new files are acknowledged", || write_synced(&m.join("after"), &block));
    eventually("the lost file can be written anew", || write_synced(&m.join("lost"), &block));
    wait_no_reason(&c.nodes[0]);
    assert_eq!(c.nodes[0].stop(), Some(0));
    drop(disk);
}

#[test]
fn a_read_only_backing_is_said_and_over_when_it_is() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(2, "ack_timeout: 3s");
    let small = SmallFs::memory(&c.nodes[1].backing(), "64m");
    start(&mut c);
    let (a, b) = (c.nodes[0].mount(), c.nodes[1].mount());
    write_synced(&a.join("f"), b"one").expect("acknowledged");
    c.wait_equal();
    small.remount("ro");
    let own = write(&b.join("own"), b"x").expect_err("read-only");
    assert_eq!(own.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    // Everybody else goes on.
    write(&a.join("f"), b"two").expect("write");
    let large = vec![9; 300_000];
    write(&a.join("large"), &large).expect("write");
    wait_reason(&c.nodes[1], "read-only");
    assert_eq!(fs::read(b.join("f")).expect("read"), b"one");
    small.remount("rw");
    c.wait_equal();
    assert_eq!(fs::read(b.join("f")).expect("read"), b"two");
    wait_no_reason(&c.nodes[1]);
    write_synced(&b.join("own"), b"x").expect("acknowledged");
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_go_on() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(2, "ack_timeout: 3s");
    let locked = c.nodes[0].backing().join("locked");
    write(&locked, &[5; 200_000]).expect("write");
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
    std::os::unix::fs::chown(&locked, Some(4242), Some(4242)).expect("chown");
    write(&c.nodes[0].backing().join("open"), b"readable").expect("write");
    // A daemon without the right to read everything.
    c.nodes[0].spawn_through(&["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]);
    c.nodes[1].spawn();
    for n in &c.nodes {
        n.wait_ready();
    }
    c.wait_connected();
    let (a, b) = (&c.nodes[0], c.nodes[1].mount());
    c.nodes[1].wait("told of the readable file", |n| fs::read(n.mount().join("open")).is_ok_and(|t| t == b"readable"));
    a.wait("naming the file", |n| reasons(n).contains("locked") && reasons(n).contains("Permission denied"));
    assert!(fs::read(b.join("locked")).map_or(true, |bytes| bytes.is_empty()), "nobody knows its bytes");
    assert_eq!(fs::metadata(&locked).expect("untouched").len(), 200_000);
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    c.wait_equal();
    assert_eq!(fs::read(b.join("locked")).expect("read"), [5; 200_000]);
    wait_no_reason(&c.nodes[0]);
}

/// The log's segments, oldest first.
fn segments(n: &Node) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(n.dir.join("data/log")).expect("log").map(|e| e.expect("entry").path()).collect();
    found.retain(|p| p.file_name().is_some_and(|n| !n.to_string_lossy().starts_with("spare")));
    found.sort();
    found
}

#[test]
fn a_torn_end_of_the_log_costs_nothing_that_was_acknowledged() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(1);
    let m = c.nodes[0].mount();
    for i in 0..50 {
        write_synced(&m.join(format!("f{i}")), format!("{i}").as_bytes()).expect("acknowledged");
    }
    c.nodes[0].kill9();
    // As if the last write had been under way: junk where the next record would stand.
    let last = segments(&c.nodes[0]).pop().expect("a segment");
    let bytes = fs::read(&last).expect("read");
    let end = bytes.iter().rposition(|b| *b != 0).expect("records") + 1;
    let f = File::options().write(true).open(&last).expect("open");
    f.write_all_at(&[0xa5; 13], end as u64 + 3).expect("tear");
    drop(f);
    c.nodes[0].restart();
    for i in 0..50 {
        assert_eq!(fs::read_to_string(m.join(format!("f{i}"))).expect("read"), format!("{i}"));
    }
    wait_no_reason(&c.nodes[0]);
    write_synced(&m.join("after"), b"x").expect("acknowledged");
}

#[test]
fn damage_in_the_middle_of_the_log_is_said_and_nothing_is_lost() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(3);
    let m = c.nodes[0].mount();
    for i in 0..200 {
        write_synced(&m.join(format!("f{i}")), format!("{i}").as_bytes()).expect("acknowledged");
    }
    fs::create_dir(m.join("d")).expect("mkdir");
    fs::rename(m.join("f7"), m.join("d/moved")).expect("rename");
    fs::remove_file(m.join("f8")).expect("remove");
    c.wait_equal();
    let before = cluster::describe(&m);
    let before = before.as_str();
    c.nodes[0].kill9();
    let last = segments(&c.nodes[0]).pop().expect("a segment");
    let bytes = fs::read(&last).expect("read");
    let end = bytes.iter().rposition(|b| *b != 0).expect("records");
    let f = File::options().write(true).open(&last).expect("open");
    f.write_all_at(&[bytes[end / 2] ^ 0x40], end as u64 / 2).expect("damage");
    drop(f);
    c.nodes[0].restart();
    c.wait_connected();
    wait_reason(&c.nodes[0], "log");
    c.nodes[0].wait("whole again", |n| cluster::describe(&n.mount()) == before);
    for n in &c.nodes {
        assert_eq!(cluster::describe(&n.mount()), before, "{}: nothing is lost, nothing comes back", n.name);
    }
    write_synced(&m.join("after"), b"x").expect("acknowledged");
    // The next start has nothing to say.
    assert_eq!(c.nodes[0].stop(), Some(0));
    c.nodes[0].restart();
    c.wait_connected();
    wait_no_reason(&c.nodes[0]);
}

#[test]
fn a_sparse_file_stays_sparse_everywhere_and_fits_small_disks() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(2, "ack_timeout: 20s");
    let small = SmallFs::memory(&c.nodes[1].backing(), "32m");
    start(&mut c);
    let path = c.nodes[0].mount().join("sparse");
    let f = File::create(&path).expect("create");
    f.set_len(2 << 30).expect("truncate");
    f.write_all_at(b"near the beginning", 300_000).expect("write");
    f.write_all_at(&[8; 500_000], 1 << 30).expect("write");
    f.sync_all().expect("both nodes hold it");
    let far = c.nodes[1].mount().join("sparse");
    c.nodes[1].wait("holding the file", |_| fs::metadata(&far).is_ok_and(|m| m.len() == 2 << 30));
    for n in &c.nodes {
        let meta = fs::metadata(n.backing().join("sparse")).expect("stat");
        assert!(meta.blocks() * 512 < 8 << 20, "{}: {} bytes on disk", n.name, meta.blocks() * 512);
        let f = File::open(n.mount().join("sparse")).expect("open");
        let mut buf = vec![0; 18];
        f.read_exact_at(&mut buf, 300_000).expect("read");
        assert_eq!(buf, b"near the beginning");
        f.read_exact_at(&mut buf, (1 << 30) + 499_990 - 8).expect("read");
        assert_eq!(buf, [[8; 18].as_slice()].concat());
    }
    drop(small);
}
