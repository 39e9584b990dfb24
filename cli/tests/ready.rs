//! A node does not call itself ready, or in sync, before it has heard what there is to know.

mod cluster;

use cluster::{Cluster, Node, fuse_or_skip};
use std::fs;

fn ready(node: &Node) -> bool {
    node.http("GET", "/ready", &[], b"").is_ok_and(|a| a.status == 200)
}

fn in_sync(node: &Node) -> bool {
    node.status().contains("\"in_sync\":true")
}

#[test]
fn a_node_that_reaches_nobody_of_the_cluster_it_should_join_says_so() {
    let mut c = Cluster::prepare(2, "");
    c.nodes[0].write_config();
    c.nodes[0].spawn();
    let other = format!("{} was never reached", c.nodes[1].url());
    c.nodes[0].wait("a reason that names the address", |n| n.status().contains(&other));
    assert!(!ready(&c.nodes[0]) && !in_sync(&c.nodes[0]), "{}", c.nodes[0].status());
    c.nodes[1].write_config();
    c.nodes[1].spawn();
    for node in &c.nodes {
        node.wait("ready and in sync", |n| ready(n) && in_sync(n));
        assert!(!node.status().contains("was never reached"), "{}", node.status());
    }
}

#[test]
fn a_node_that_comes_back_is_in_sync_when_it_has_what_it_missed() {
    if !fuse_or_skip() {
        return;
    }
    const FILES: usize = 400;
    let mut c = Cluster::start(2);
    for round in 0..4 {
        assert_eq!(c.nodes[1].stop(), Some(0));
        let dir = c.nodes[0].mount().join(format!("d{round}"));
        fs::create_dir(&dir).expect("mkdir");
        for i in 0..FILES {
            fs::write(dir.join(format!("f{i}")), format!("{round} {i}")).expect("write");
        }
        c.nodes[1].spawn();
        let there = c.nodes[1].backing().join(format!("d{round}"));
        let complete = || (0..FILES).all(|i| fs::read(there.join(format!("f{i}"))).is_ok_and(|b| !b.is_empty()));
        // Whatever it says first must be true at that moment.
        let word = if round % 2 == 0 { ready } else { in_sync };
        c.nodes[1].wait("its word", word);
        assert!(complete(), "round {round}: said too early: {}", c.nodes[1].status());
    }
    c.wait_equal();
}
