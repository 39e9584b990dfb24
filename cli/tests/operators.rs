//! What somebody who runs nodes does wrong, or must be told: a real node says it in status and log, and does no harm.

mod cluster;

use cluster::{Cluster, Node, PATIENCE, fuse_or_skip};
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

fn log(n: &Node) -> String {
    fs::read_to_string(n.dir.join("log")).unwrap_or_default()
}

fn wait_status(n: &Node, words: &str) {
    n.wait(&format!("saying `{words}`"), |n| n.status().contains(words));
}

#[test]
fn a_second_node_of_one_name_is_told_why_it_stays_out_and_so_are_the_others() {
    let mut c = Cluster::prepare(3, "mount: ''");
    c.nodes[2].name = "n1".into();
    for n in &mut c.nodes {
        n.spawn();
    }
    // Which of the two is in depends on who met n2 first; both are told.
    let told = |n: &Node| n.status().contains("node_id must be unique");
    c.nodes[0].wait("told that it has a twin", told);
    c.nodes[2].wait("told that it has a twin", told);
    for n in [&c.nodes[0], &c.nodes[2]] {
        n.wait("writing it into the log", |n| log(n).contains("node_id must be unique"));
    }
    // Its own name solves it.
    c.nodes[2].stop();
    c.nodes[2].name = "n3".into();
    c.nodes[2].spawn();
    c.wait_connected();
    for n in &c.nodes {
        n.wait("content with all", |n| n.status().contains("\"reasons\":[]"));
    }
}

#[test]
fn a_lost_data_directory_is_replaced_the_way_the_messages_say() {
    let mut c = Cluster::start_with(2, "mount: ''");
    let file = |n: &Node, name: &str| fs::read_to_string(n.backing().join(name)).unwrap_or_default();
    fs::create_dir(c.nodes[0].backing().join("dir")).expect("mkdir");
    fs::write(c.nodes[0].backing().join("dir/f"), "text").expect("write");
    c.nodes[1].wait("told of the file", |n| file(n, "dir/f") == "text");
    assert_eq!(c.nodes[0].stop(), Some(0));
    fs::rename(c.nodes[0].dir.join("data"), c.nodes[0].dir.join("lost")).expect("rename");
    c.nodes[0].spawn();
    let marker = c.nodes[0].backing().join(".icecluster/replica");
    c.nodes[0].wait("refused", |n| fs::read_to_string(n.dir.join("stderr")).is_ok_and(|e| e.contains("cannot start")));
    let said = fs::read_to_string(c.nodes[0].dir.join("stderr")).expect("read");
    assert!(said.contains(&format!("delete {}", marker.display())), "{said}");
    let end = Instant::now() + PATIENCE;
    while c.nodes[0].alive() {
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(marker).expect("delete the marker");
    c.nodes[0].restart();
    c.wait_connected();
    for n in &c.nodes {
        n.wait("in sync again", |n| n.status().contains("\"in_sync\":true"));
        assert_eq!(file(n, "dir/f"), "text");
        assert!(n.status().contains("\"conflicts\":0"), "{}", n.status());
        assert_eq!(fs::read_dir(n.backing().join("dir")).expect("list").count(), 1);
    }
}

#[test]
fn the_log_names_the_copy_of_a_conflict_and_who_wrote_it() {
    let mut c = Cluster::start_with(2, "mount: ''");
    c.nodes[1].stop();
    fs::create_dir(c.nodes[0].backing().join("d")).expect("mkdir");
    fs::write(c.nodes[0].backing().join("d/f"), "one").expect("write");
    c.nodes[0]
        .wait("told of its own file", |n| n.http("GET", "/v1/file?path=d/f", &[], b"").is_ok_and(|r| r.body == b"one"));
    c.nodes[0].stop();
    c.nodes[1].restart();
    fs::create_dir(c.nodes[1].backing().join("d")).expect("mkdir");
    fs::write(c.nodes[1].backing().join("d/f"), "other").expect("write");
    c.nodes[1].wait("told of its own file", |n| {
        n.http("GET", "/v1/file?path=d/f", &[], b"").is_ok_and(|r| r.body == b"other")
    });
    c.nodes[0].restart();
    c.wait_connected();
    for n in &c.nodes {
        n.wait("showing the conflict", |n| n.status().contains("\"conflicts\":1"));
    }
    let lines: Vec<String> =
        c.nodes.iter().flat_map(|n| log(n).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let told = lines.iter().find(|l| l.contains("conflict at")).unwrap_or_else(|| panic!("{lines:#?}"));
    assert!(
        told.contains("conflict at d/f") && (told.contains("what n1 wrote") || told.contains("what n2 wrote")),
        "{told}"
    );
}

#[test]
fn a_node_that_is_open_to_all_says_so_and_one_with_a_token_does_not() {
    for (token, open) in [("", true), ("\napi_token: s3cret", false)] {
        let mut c = Cluster::prepare(1, &format!("mount: ''{token}"));
        let bind = format!("ICECLUSTER_BIND=0.0.0.0:{}", c.nodes[0].port);
        c.nodes[0].spawn_through(&["env", &bind, "ICECLUSTER_BAKCING=x", "ICECLUSTER_ADVERTISE=http://127.0.0.1:9"]);
        c.nodes[0].wait_ready();
        let n = &c.nodes[0];
        assert!(log(n).contains("ICECLUSTER_BAKCING is no setting"), "{}", log(n));
        if token.is_empty() {
            assert!(
                n.status().contains("no api_token is set") && n.status().contains("\"reasons\":[]"),
                "{}",
                n.status()
            );
        }
        assert_eq!(log(n).contains("no api_token is set"), open, "{}", log(n));
    }
}

#[test]
fn a_node_mounts_over_what_was_written_while_it_was_away_and_says_so() {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(1, "");
    // At its first start what is there may be what was meant to be shared.
    fs::write(c.nodes[0].mount().join("precious"), "x").expect("write");
    c.nodes[0].restart();
    wait_status(&c.nodes[0], "is not empty");
    assert!(c.nodes[0].status().contains("move it into `backing`"), "{}", c.nodes[0].status());
    c.nodes[0].stop();
    c.nodes[0].restart();
    wait_status(&c.nodes[0], "is not empty");
    c.nodes[0].stop();
    fs::rename(c.nodes[0].mount().join("precious"), c.nodes[0].backing().join("precious")).expect("rename");
    c.nodes[0].restart();
    let (mount, backing) = (c.nodes[0].mount(), c.nodes[0].backing());
    assert_eq!(fs::read_to_string(mount.join("precious")).expect("read"), "x");
    c.nodes[0].stop();
    // Later it is what a program wrote that was started too early.
    fs::write(mount.join("early"), "y").expect("write");
    c.nodes[0].restart();
    assert!(!mount.join("early").exists() && mount.join("precious").exists());
    fs::write(mount.join("new"), "z").expect("write");
    assert!(backing.join("new").exists());
    let said = "(early)";
    assert!(c.nodes[0].status().contains(said) && log(&c.nodes[0]).contains(said), "{}", c.nodes[0].log_tail());
    c.nodes[0].stop();
    assert_eq!(fs::read_to_string(mount.join("early")).expect("it is still there"), "y");
    // Who does not want that says so.
    c.nodes[0].set_extra("mount_over: false");
    c.nodes[0].restart();
    wait_status(&c.nodes[0], "is not empty");
    assert!(!mount.join("new").exists());
}

/// A node with TLS says nothing to an address without: its token would be read by anybody on the way.
#[test]
fn a_node_with_tls_refuses_addresses_without() {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("a certificate");
    let files = ice_testing::tempdir();
    let at = |name: &str| files.path().join(name).display().to_string();
    fs::write(at("cert"), made.cert.pem()).expect("write");
    fs::write(at("key"), made.signing_key.serialize_pem()).expect("write");
    let deaf = TcpListener::bind("127.0.0.1:0").expect("listen");
    deaf.set_nonblocking(true).expect("nonblocking");
    let plain = format!("http://{}", deaf.local_addr().expect("address"));
    let extra = format!(
        "mount: ''\napi_token: s3cret\ntls_cert: {}\ntls_key: {}\ncacert: {}\njoin: {plain}\n",
        at("cert"),
        at("key"),
        at("cert")
    );
    let mut c = Cluster::prepare(1, &extra);
    c.nodes[0].spawn();
    let icectl = |args: &[&str]| {
        let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
        let out = ice_testing::output(
            command.args(["-base", &c.nodes[0].url(), "-cacert", &at("cert"), "-token", "s3cret"]).args(args),
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    c.nodes[0].wait("saying why", |_| icectl(&["status"]).contains("travels in clear text"));
    assert!(deaf.accept().is_err(), "it was dialled all the same");
}
