//! The faults of the original icecluster that this release must not repeat, by their numbers in the inventory. Each test
//! runs real nodes with real mounts.

mod cluster;

use cluster::{Cluster, PATIENCE, fuse_or_skip, request};
use ice_host::config::Config;
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

fn read(path: impl AsRef<std::path::Path>) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| format!("<{e}>"))
}

#[test]
fn fault_01_a_peer_going_down_does_not_stop_the_survivors() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(3);
    c.nodes[2].kill9();
    c.nodes[0].wait("told that a peer is down", |n| n.status().contains("\"state\":\"down\""));
    let at = Instant::now();
    for i in 0..50 {
        fs::write(c.nodes[0].mount().join(format!("f{i}")), "x").expect("write while a peer is down");
    }
    assert!(at.elapsed() < PATIENCE);
    assert_eq!(c.nodes[0].http("GET", "/v1/peers", &[], b"").expect("peers").status, 200);
    c.wait_equal();
    c.nodes[2].restart();
    c.wait_connected();
    c.wait_equal();
}

#[test]
fn fault_02_appending_works() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let path = c.nodes[0].mount().join("log");
    for i in 0..20 {
        let mut f = fs::OpenOptions::new().append(true).create(true).open(&path).expect("open");
        writeln!(f, "line {i}").expect("append");
    }
    assert_eq!(read(&path).lines().count(), 20);
    c.wait_equal();
    assert_eq!(read(c.nodes[1].mount().join("log")).lines().count(), 20);
}

#[test]
fn fault_03_closing_keeps_mode_inode_and_links() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let (a, b) = (c.nodes[0].mount().join("a"), c.nodes[0].mount().join("b"));
    let mut f = fs::OpenOptions::new().create_new(true).write(true).mode(0o751).open(&a).expect("create");
    fs::hard_link(&a, &b).expect("link");
    f.write_all(b"one").expect("write");
    drop(f);
    let before = fs::metadata(&a).expect("stat");
    fs::OpenOptions::new()
        .append(true)
        .open(&b)
        .and_then(|mut f| f.write_all(b" two"))
        .expect("write through the link");
    let after = fs::metadata(&a).expect("stat");
    assert_eq!((before.ino(), before.mode()), (after.ino(), after.mode()));
    assert_eq!(after.mode() & 0o777, 0o751);
    assert_eq!(read(&a), "one two");
    c.wait_equal();
    let m = c.nodes[1].mount();
    let (x, y) = (fs::metadata(m.join("a")).expect("stat"), fs::metadata(m.join("b")).expect("stat"));
    assert_eq!((x.ino(), x.nlink(), x.mode() & 0o777), (y.ino(), 2, 0o751));
    assert_eq!(read(m.join("a")), "one two");
}

#[test]
fn fault_04_renames_directories_and_attributes_travel() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let (m, n) = (c.nodes[0].mount(), c.nodes[1].mount());
    fs::create_dir_all(m.join("d/e")).expect("mkdir");
    fs::create_dir(m.join("empty")).expect("mkdir");
    fs::write(m.join("d/e/f"), "data").expect("write");
    symlink("d/e/f", m.join("link")).expect("symlink");
    c.wait_equal();
    fs::rename(m.join("d"), m.join("moved")).expect("rename");
    fs::set_permissions(m.join("moved/e/f"), fs::Permissions::from_mode(0o600)).expect("chmod");
    std::os::unix::fs::chown(m.join("moved/e/f"), Some(1234), Some(4321)).expect("chown");
    fs::remove_dir(m.join("empty")).expect("rmdir");
    rustix::fs::setxattr(m.join("moved/e/f"), "user.note", b"hello", rustix::fs::XattrFlags::empty())
        .expect("setxattr");
    c.wait_equal();
    assert!(!n.join("d").exists() && !n.join("empty").exists());
    let f = fs::metadata(n.join("moved/e/f")).expect("stat");
    assert_eq!((f.mode() & 0o777, f.uid(), f.gid()), (0o600, 1234, 4321));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(n.join("moved/e/f"), "user.note", &mut value[..]).expect("getxattr");
    assert_eq!(&value[..len], b"hello");
    assert_eq!(fs::read_link(n.join("link")).expect("readlink").to_str(), Some("d/e/f"));
}

#[test]
fn fault_05_modification_times_are_carried_and_nothing_is_fetched_twice() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let f = c.nodes[0].mount().join("f");
    fs::write(&f, "x").expect("write");
    let when = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::options().write(true).open(&f).and_then(|f| f.set_modified(when)).expect("utimes");
    c.wait_equal();
    let m = fs::metadata(c.nodes[1].mount().join("f")).expect("stat");
    assert_eq!((m.mtime(), m.mtime_nsec()), (1_000_000_000, 123_456_789));
    // Content that came over the network is a new object in `backing`: it comes once, whatever happens to its name and attributes.
    fs::write(c.nodes[0].mount().join("large"), vec![3; 2 << 20]).expect("write");
    c.wait_equal();
    let object = |name: &str| fs::metadata(c.nodes[1].backing().join(name)).expect("stat").ino();
    let fetched = object("large");
    let large = c.nodes[0].mount().join("large");
    fs::File::options().write(true).open(&large).and_then(|f| f.set_modified(when)).expect("utimes");
    fs::set_permissions(&large, fs::Permissions::from_mode(0o640)).expect("chmod");
    fs::rename(&large, c.nodes[0].mount().join("moved")).expect("rename");
    c.wait_equal();
    assert_eq!(object("moved"), fetched);
}

#[test]
fn fault_06_a_missed_delete_is_not_undone() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(3);
    fs::write(c.nodes[0].mount().join("gone"), "x").expect("write");
    fs::write(c.nodes[0].mount().join("stays"), "x").expect("write");
    c.wait_equal();
    c.nodes[2].kill9();
    fs::remove_file(c.nodes[0].mount().join("gone")).expect("unlink");
    c.nodes[2].restart();
    c.wait_connected();
    c.wait_equal();
    for n in &c.nodes {
        assert!(!n.mount().join("gone").exists(), "{} brought it back", n.name);
        assert!(n.mount().join("stays").exists());
    }
}

#[test]
fn fault_07_the_newest_version_wins_not_the_first_peer() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(3);
    fs::write(c.nodes[0].mount().join("f"), "old").expect("write");
    c.wait_equal();
    c.nodes[0].stop();
    fs::write(c.nodes[2].mount().join("f"), "new").expect("write");
    c.wait_equal();
    c.nodes[0].restart();
    c.wait_connected();
    c.wait_equal();
    for n in &c.nodes {
        assert_eq!(read(n.mount().join("f")), "new", "{}", n.name);
    }
}

/// Whoever only reads a file and closes it leaves the lock of another alone.
#[test]
fn fault_08_closing_a_reader_does_not_free_the_lock_of_a_writer() {
    use rustix::fs::{FlockOperation, flock};
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(1);
    let path = c.nodes[0].mount().join("f");
    let mut writer = fs::File::create(&path).expect("create");
    // From another process: 0 if it gets the lock at once.
    let tries = |call: &str| {
        let program = format!("import fcntl, sys\ntry: {call}\nexcept OSError: sys.exit(1)");
        let mut command = ice_testing::command("python3");
        let opened = fs::File::options().read(true).write(true).open(&path).expect("open");
        ice_testing::output(command.args(["-c", &program]).stdin(opened)).status.code()
    };
    let reads = || {
        let mut cat = ice_testing::command("cat");
        assert!(ice_testing::output(cat.arg(&path)).status.success());
    };
    flock(&writer, FlockOperation::LockExclusive).expect("flock");
    drop(fs::File::open(&path).expect("open"));
    reads();
    assert_eq!(tries("fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"), Some(1), "it is still held");
    writer.write_all(b"text").expect("write");
    flock(&writer, FlockOperation::Unlock).expect("unlock");
    assert_eq!(tries("fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"), Some(0));
    // Of the other kind, which ends when its own process closes the file, whichever way that had opened it.
    rustix::fs::fcntl_lock(&writer, FlockOperation::LockExclusive).expect("fcntl");
    reads();
    assert_eq!(tries("fcntl.lockf(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"), Some(1), "it is still held");
    drop(writer);
    assert_eq!(tries("fcntl.lockf(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"), Some(0));
}

#[test]
fn fault_11_changes_made_while_a_peer_is_away_reach_it() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(2);
    c.nodes[1].stop();
    for i in 0..100 {
        fs::write(c.nodes[0].mount().join(format!("f{i}")), format!("{i}")).expect("write");
    }
    fs::write(c.nodes[0].mount().join("big"), vec![7u8; 3 << 20]).expect("write");
    c.nodes[1].restart();
    c.wait_connected();
    c.wait_equal();
    assert_eq!(read(c.nodes[1].mount().join("f99")), "99");
    assert_eq!(fs::metadata(c.nodes[1].mount().join("big")).expect("stat").len(), 3 << 20);
}

#[test]
fn fault_12_put_and_delete_over_http_act_on_the_cluster() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(3);
    let r = c.nodes[0].http("PUT", "/v1/file?path=dir/a.txt", &[], b"hello").expect("put");
    assert_eq!(r.status, 204, "{}", r.text());
    c.wait_equal();
    for n in &c.nodes {
        assert_eq!(read(n.mount().join("dir/a.txt")), "hello", "{}", n.name);
    }
    let r = c.nodes[2].http("DELETE", "/v1/file?path=dir/a.txt", &[], b"").expect("delete");
    assert_eq!(r.status, 204, "{}", r.text());
    c.wait_equal();
    assert!(!c.nodes[0].mount().join("dir/a.txt").exists());
}

#[test]
fn fault_13_a_hung_peer_does_not_block_close() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    c.nodes[1].signal(Signal::STOP);
    let at = Instant::now();
    for i in 0..20 {
        fs::write(c.nodes[0].mount().join(format!("f{i}")), vec![1u8; 100_000]).expect("write");
    }
    let took = at.elapsed();
    c.nodes[1].signal(Signal::CONT);
    assert!(took < PATIENCE, "closing took {took:?}");
    c.wait_connected();
    c.wait_equal();
}

/// Nodes that speak TLS find each other, and nobody is told an address that only its own machine understands.
#[test]
fn fault_14_nodes_with_tls_form_a_cluster_and_tell_others_usable_addresses() {
    for bind in [":9000", "0.0.0.0:9000", "[::]:9000"] {
        let text = format!("bind: '{bind}'\ntls_cert: /c\ntls_key: /k\n");
        let config = Config::from_text(&text, "test", &|_| None).expect("configuration");
        // Where the machine has no name at all, it says that `advertise` is needed.
        if let Ok(urls) = config.advertised(9000) {
            assert!(urls[0].starts_with("https://") && !urls[0].contains("localhost"), "{urls:?}");
        }
    }
    if !fuse_or_skip() {
        return;
    }
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("a certificate");
    let files = ice_testing::tempdir();
    let at = |name: &str| files.path().join(name).display().to_string();
    fs::write(at("cert"), made.cert.pem()).expect("write");
    fs::write(at("key"), made.signing_key.serialize_pem()).expect("write");
    let extra = format!("tls_cert: {}\ntls_key: {}\ncacert: {}\n", at("cert"), at("key"), at("cert"));
    let mut c = Cluster::prepare(2, &extra);
    for n in &mut c.nodes {
        n.spawn();
    }
    let icectl = |node: &cluster::Node, args: &[&str]| {
        let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
        ice_testing::output(command.args(["-base", &node.url(), "-cacert", &at("cert")]).args(args))
    };
    for n in &c.nodes {
        n.wait("in sync with the other", |n| {
            let status = String::from_utf8(icectl(n, &["-json", "status"]).stdout).expect("text");
            status.contains("\"in_sync\": true") && status.contains("\"state\": \"up\"")
        });
    }
    fs::write(c.nodes[0].mount().join("small"), "through TLS").expect("write");
    fs::write(c.nodes[0].mount().join("large"), vec![5; 3 << 20]).expect("write");
    c.nodes[1].wait("told of both files", |n| {
        fs::metadata(n.mount().join("large")).is_ok_and(|m| m.len() == 3 << 20) && n.mount().join("small").exists()
    });
    assert!(fs::read(c.nodes[1].mount().join("large")).expect("read") == vec![5; 3 << 20]);
    let peers = String::from_utf8(icectl(&c.nodes[1], &["peers"]).stdout).expect("text");
    assert_eq!(peers.matches("https://127.0.0.1:").count(), 2, "{peers}");
    // Without the authority's certificate nobody is talked into it.
    let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
    let out = ice_testing::output(command.args(["-base", &c.nodes[0].url(), "peers"]));
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn fault_15_a_remote_change_is_seen_as_soon_as_it_is_applied() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let (a, b) = (c.nodes[0].mount().join("f"), c.nodes[1].mount().join("f"));
    assert!(!b.exists(), "a negative answer is in the kernel's cache now");
    for i in 0..20 {
        let text = "x".repeat(i + 1);
        fs::write(&a, &text).expect("write");
        let end = Instant::now() + PATIENCE;
        while fs::metadata(&b).map(|m| m.len()).unwrap_or(0) != text.len() as u64 {
            assert!(Instant::now() < end, "the size stays stale");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(read(&b), text);
    }
}

#[test]
fn fault_16_owners_are_real_and_working_files_are_hidden() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let m = c.nodes[0].mount();
    fs::set_permissions(&m, fs::Permissions::from_mode(0o777)).expect("chmod");
    let mut made = ice_testing::command("setpriv");
    made.args(["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c"])
        .arg("echo hi > mine && mkdir sub && ! cat secret")
        .current_dir(&m)
        .env("PATH", "/usr/bin:/bin");
    fs::write(m.join("secret"), "x").expect("write");
    fs::set_permissions(m.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let made = ice_testing::output(&mut made);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    c.wait_equal();
    for n in &c.nodes {
        let f = fs::metadata(n.mount().join("mine")).expect("stat");
        assert_eq!((f.uid(), f.gid(), f.nlink()), (1000, 1000, 1));
        let names: Vec<_> = fs::read_dir(n.mount()).expect("list").map(|e| e.expect("entry").file_name()).collect();
        assert!(names.iter().all(|x| !x.to_string_lossy().starts_with(".ice")), "{names:?}");
        assert!(!n.http("GET", "/v1/index", &[], b"").expect("index").text().contains(".icecluster"));
        assert!(fs::File::create(n.mount().join(".icecluster")).is_err());
    }
}

/// Nor does a crash in the middle of transfers and writes leave anything beside the files.
#[test]
fn fault_16_a_crash_leaves_no_working_files_among_the_files() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::start(2);
    let mut expected: Vec<String> = (0..40).map(|i| format!("f{i:02}")).collect();
    for (i, name) in expected.iter().enumerate() {
        fs::write(c.nodes[0].mount().join(name), vec![i as u8; 300_000]).expect("write");
        match i {
            10 | 30 => c.nodes[1].kill9(),
            20 => c.nodes[1].restart(),
            _ => {}
        }
    }
    c.nodes[0].kill9();
    for n in &mut c.nodes {
        n.spawn();
    }
    for n in &c.nodes {
        n.wait_ready();
    }
    c.wait_connected();
    c.wait_equal();
    expected.push(".icecluster".into());
    expected.sort();
    for n in &c.nodes {
        let list = |dir: std::path::PathBuf| {
            let names =
                fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name().into_string().expect("text"));
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        assert_eq!(list(n.backing()), expected, "{}", n.name);
        assert_eq!(list(n.mount()), expected[1..], "{}", n.name);
    }
}

#[test]
fn fault_17_an_unreachable_peer_does_not_stop_the_start() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(1, "");
    c.nodes[0].set_joins(vec![1, 2]);
    c.nodes[0].spawn();
    // It serves, and does not claim to have what others may have.
    c.nodes[0].wait("saying whom it does not reach", |n| {
        n.status().matches("was never reached").count() == 2 && n.status().contains("\"ready\":false")
    });
    fs::write(c.nodes[0].mount().join("f"), "x").expect("write");
    assert_eq!(read(c.nodes[0].backing().join("f")), "x");
}

#[test]
fn fault_18_a_mount_that_fails_does_not_end_the_node() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(1, "");
    // A mountpoint that is a file cannot be mounted on.
    fs::remove_dir(c.nodes[0].mount()).expect("rmdir");
    fs::write(c.nodes[0].mount(), "not a directory").expect("write");
    c.nodes[0].spawn();
    c.nodes[0].wait("serving", |n| n.http("GET", "/health", &[], b"").is_ok_and(|r| r.status == 200));
    c.nodes[0].wait("saying why", |n| n.status().contains("mount"));
    let r = c.nodes[0].http("PUT", "/v1/file?path=f", &[], b"x").expect("put");
    assert_eq!(r.status, 204);
    assert!(c.nodes[0].alive());
}

#[test]
fn fault_19_links_do_not_lead_out_and_get_changes_nothing() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start_with(2, "api_token: \"s3cret\"");
    let n = &c.nodes[0];
    symlink("/etc", n.mount().join("out")).expect("symlink");
    let r = n.http("GET", "/v1/file?path=out/passwd", &[], b"").expect("get");
    assert!(r.status >= 400 && !r.text().contains("root:"), "{} {}", r.status, r.text());
    let r = n.http("GET", "/v1/file?path=../../etc/passwd", &[], b"").expect("get");
    assert_eq!(r.status, 400);
    for target in
        ["/v1/peers/register?url=http://127.0.0.1:1", "/v1/peers/unregister?url=http://127.0.0.1:1", "/v1/stats/reset"]
    {
        assert_eq!(n.http("GET", target, &[], b"").expect("get").status, 405, "{target}");
    }
    let cross = [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")];
    assert_eq!(n.http("PUT", "/v1/file?path=x", &cross, b"x").expect("put").status, 403);
}

/// The token goes to addresses that were named by somebody who had it, and to no others: redirects are not followed.
#[test]
fn fault_19_the_token_is_not_sent_where_an_answer_points_to() {
    use std::io::Read;
    let (named, elsewhere) = (std::net::TcpListener::bind("127.0.0.1:0"), std::net::TcpListener::bind("127.0.0.1:0"));
    let (named, elsewhere) = (named.expect("listen"), elsewhere.expect("listen"));
    named.set_nonblocking(true).expect("nonblocking");
    elsewhere.set_nonblocking(true).expect("nonblocking");
    let to = elsewhere.local_addr().expect("address");
    let mut c = Cluster::prepare(1, "mount: ''\napi_token: \"s3cret\"\nready_require_sync: false");
    c.nodes[0].set_joins(vec![named.local_addr().expect("address").port()]);
    c.nodes[0].spawn();
    for _ in 0..3 {
        let end = Instant::now() + PATIENCE;
        let mut stream = loop {
            match named.accept() {
                Ok((stream, _)) => break stream,
                Err(e) => assert!(Instant::now() < end, "it is not dialled: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false).expect("blocking");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut asked = [0; 4096];
        let n = stream.read(&mut asked).expect("a request");
        assert!(String::from_utf8_lossy(&asked[..n]).to_ascii_lowercase().contains("authorization: bearer s3cret"));
        let answer =
            format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{to}/v1/peer\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).expect("answer");
    }
    assert!(elsewhere.accept().is_err(), "it went where it was pointed to");
}

#[test]
fn fault_20_only_health_and_ready_are_open() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start_with(1, "api_token: \"s3cret\"");
    let port = c.nodes[0].port;
    for open in ["/health", "/ready", "/v1/ready"] {
        assert_eq!(request(port, "", "GET", open, &[], b"").expect("get").status, 200, "{open}");
    }
    for closed in
        ["/v1/node", "/v1/time", "/v1/version", "/v1/index", "/v1/peers", "/v1/stats", "/v1/status", "/v1/file?path=x"]
    {
        assert_eq!(request(port, "", "GET", closed, &[], b"").expect("get").status, 401, "{closed}");
        assert_eq!(request(port, "wrong", "GET", closed, &[], b"").expect("get").status, 401, "{closed}");
        assert_ne!(request(port, "s3cret", "GET", closed, &[], b"").expect("get").status, 401, "{closed}");
    }
}

fn descriptors(node: &cluster::Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("descriptors").count()
}

/// SIGHUP at any moment, and answers that are refusals, to clients and from peers: nothing breaks, nothing is left open.
#[test]
fn fault_22_reopening_the_log_under_load_is_safe_and_refusals_leak_nothing() {
    if !fuse_or_skip() {
        return;
    }
    // A "peer" that refuses everything it is asked.
    let refuser = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = refuser.local_addr().expect("address").port();
    let refused = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&refused);
    std::thread::spawn(move || {
        use std::io::Read;
        for mut stream in refuser.incoming().map_while(Result::ok) {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy");
            // Kept open, for the other side to end.
            std::mem::forget(stream);
        }
    });
    let mut c = Cluster::prepare(1, "api_token: \"s3cret\"\nready_require_sync: false");
    c.nodes[0].set_joins(vec![port]);
    c.nodes[0].spawn();
    let n = &c.nodes[0];
    n.wait("serving", |n| n.http("GET", "/health", &[], b"").is_ok_and(|r| r.status == 200));
    let round = |times: usize| {
        std::thread::scope(|s| {
            for worker in 0..4 {
                s.spawn(move || {
                    for i in 0..times {
                        let (token, method, path) = match (worker + i) % 4 {
                            0 => ("s3cret", "GET", "/v1/file?path=missing"),
                            1 => ("wrong", "GET", "/v1/peers"),
                            2 => ("s3cret", "PUT", "/v1/file?path=.."),
                            _ => ("s3cret", "POST", "/v1/index"),
                        };
                        let answer = request(n.port, token, method, path, &[], b"some text").expect("an answer");
                        assert!(answer.status >= 400, "{path}: {}", answer.status);
                    }
                });
            }
            for _ in 0..times {
                n.signal(Signal::HUP);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    };
    round(25);
    let (before, dialled) = (descriptors(n), refused.load(std::sync::atomic::Ordering::SeqCst));
    round(150);
    n.wait("dialling the one that refuses", |_| refused.load(std::sync::atomic::Ordering::SeqCst) > dialled + 2);
    n.wait("without more open descriptors than before", |n| descriptors(n) <= before + 4);
    assert!(c.nodes[0].alive());
    assert_eq!(c.nodes[0].stop(), Some(0));
    let log = fs::read_to_string(c.nodes[0].dir.join("log")).expect("log");
    assert!(log.contains("log reopened") && log.trim_end().ends_with("stopped"), "{}", c.nodes[0].log_tail());
}
