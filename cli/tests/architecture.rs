//! The arrows between the workspace's crates, and the list of what they need from outside.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

struct Dependency {
    from: String,
    to: String,
    ours: bool,
    for_tests: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn dependencies() -> Vec<Dependency> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = ice_testing::command(cargo);
    command.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root());
    let out = ice_testing::output(&mut command);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut all = vec![];
    for package in metadata["packages"].as_array().unwrap() {
        for d in package["dependencies"].as_array().unwrap() {
            all.push(Dependency {
                from: package["name"].as_str().unwrap().to_owned(),
                to: d["name"].as_str().unwrap().to_owned(),
                ours: d["path"].is_string(),
                for_tests: d["kind"] == "dev",
            });
        }
    }
    all
}

/// What each crate may use of the others. The program crate wires everything and is not limited.
fn allowed(from: &str) -> Option<&'static [&'static str]> {
    Some(match from {
        "ice-core" | "ice-testing" => &[],
        "ice-host" => &["ice-core"],
        "ice-tokio" | "ice-smol" | "ice-fuse" | "ice-sim" => &["ice-core", "ice-host"],
        "ice-serve" => &["ice-host"],
        "ice-http" | "ice-grpc" => &["ice-core", "ice-host", "ice-serve"],
        "icecluster" => return None,
        other => panic!("{other} is new: say here what it may use"),
    })
}

#[test]
fn arrows_point_one_way() {
    let mut ours = 0;
    for d in dependencies().iter().filter(|d| d.ours) {
        ours += 1;
        let Some(allowed) = allowed(&d.from) else { continue };
        // A test may run an adapter on a real runtime.
        let in_test =
            d.for_tests && matches!(d.to.as_str(), "ice-tokio" | "ice-smol" | "ice-testing") && d.from != "ice-core";
        assert!(allowed.contains(&d.to.as_str()) || in_test, "{} must not depend on {}", d.from, d.to);
    }
    assert!(ours > 10, "the workspace's own dependencies were not recognised");
}

#[test]
fn the_core_uses_nothing_but_serialisation_and_hashing() {
    let known = BTreeSet::from(["blake3", "postcard", "serde", "serde_bytes"]);
    for d in dependencies().iter().filter(|d| d.from == "ice-core" && !d.for_tests) {
        assert!(known.contains(d.to.as_str()), "{} in ice-core: is it no_std and deterministic?", d.to);
    }
}

#[test]
fn every_direct_dependency_is_explained_and_no_other() {
    let text = std::fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let explained: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)).collect();
    let all = dependencies();
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for d in all.iter().filter(|d| !d.ours) {
        used.entry(d.to.as_str()).or_default().insert(d.from.as_str());
    }
    let missing: Vec<_> = used.iter().filter(|(name, _)| !explained.contains(*name)).collect();
    assert!(missing.is_empty(), "not in docs/dependencies.md: {missing:?}");
    let surplus: Vec<_> = explained.iter().filter(|name| !used.contains_key(*name)).collect();
    assert!(surplus.is_empty(), "in docs/dependencies.md, but not used: {surplus:?}");
}
