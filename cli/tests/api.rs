//! What real nodes say of themselves and of each other over HTTP, and what `icectl` makes of it.

mod cluster;

use cluster::{Cluster, Node, fuse_or_skip};
use serde_json::Value;
use std::fs;

fn json(node: &Node, path: &str) -> Value {
    let answer = node.http("GET", path, &[], b"").expect(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect(path)
}

fn icectl(node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
    let out = ice_testing::output(command.args(["-base", &node.url()]).args(args));
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn every_program_and_every_node_names_one_version() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let version = env!("CARGO_PKG_VERSION");
    for node in &c.nodes {
        assert_eq!(node.http("GET", "/v1/version", &[], b"").expect("version").text(), version);
        let status = json(node, "/v1/status");
        assert_eq!((&status["version"], &status["peers"][0]["version"]), (&version.into(), &version.into()));
        let (_, shown) = icectl(node, &["status"]);
        let line = shown.lines().find(|l| l.starts_with("peer ")).expect("a peer");
        assert!(line.contains(&format!("\tversion {version}\t")), "{line}");
    }
    assert_eq!(icectl(&c.nodes[0], &["version"]), (Some(0), format!("{version}\n")));
}

#[test]
fn nodes_are_compared_by_what_is_in_the_files() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let (a, b) = (&c.nodes[0], &c.nodes[1]);
    fs::write(a.mount().join("small"), "some text").expect("write");
    fs::write(a.mount().join("large"), vec![7; 6 << 20]).expect("write");
    c.wait_equal();
    let index = |node: &Node| {
        let mut lines = json(node, "/v1/index").as_array().expect("a list").clone();
        lines.sort_by_key(|l| l["path"].as_str().map(str::to_owned));
        lines
    };
    a.wait("told of all digests", |a| index(a).iter().chain(&index(b)).all(|l| l["digest"].is_string()));
    assert_eq!(index(a), index(b));
    assert_eq!(index(a).len(), 2);
    let tag = b.http("HEAD", "/v1/file?path=large", &[], b"").expect("head").head;
    assert!(tag.contains(&format!("\"{}\"", index(a)[0]["digest"].as_str().expect("text"))), "{tag}");
    a.wait("consistent", |a| icectl(a, &["consistency"]) == (Some(0), "All peers consistent.\n".to_owned()));
}
