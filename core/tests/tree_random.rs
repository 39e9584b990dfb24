//! Random concurrent changes on three replicas, delivered in any order: they must converge, and no bytes may be lost.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment chooses the seeds")]

mod tree_support;

use ice_core::event::IoError;
use ice_core::op::{Attr, Kind};
use ice_core::rng::{Rng, Seed};
use tree_support::Cluster;

struct Mix {
    deliver: u64,
    land: u64,
    cut: u64,
    restart: u64,
    fail: u32,
}

fn pick<'a>(rng: &mut Rng, all: &'a [String]) -> &'a str {
    &all[rng.below(all.len() as u64) as usize]
}

/// A path that may or may not exist.
fn any_path(rng: &mut Rng, c: &Cluster, r: usize) -> String {
    let mut dirs: Vec<String> = vec![String::new()];
    dirs.extend(c.paths(r).into_iter().map(|p| p + "/"));
    let dir = pick(rng, &dirs).to_string();
    let names = ["a", "b", "c", "d"].map(String::from);
    dir + pick(rng, &names)
}

fn change(rng: &mut Rng, c: &mut Cluster, r: usize, bytes: &mut u64) {
    let paths = c.paths(r);
    let fresh = any_path(rng, c, r);
    let old = if paths.is_empty() { fresh.clone() } else { pick(rng, &paths).to_string() };
    *bytes += 1;
    // Now and then two write the same bytes.
    let content = if rng.chance(150) { 1 + rng.below(3) } else { 100 + *bytes };
    match rng.below(20) {
        0..=3 => {
            if c.create(r, &fresh, Kind::File) && rng.chance(700) {
                c.write(r, &fresh, content);
            }
        }
        4..=5 => drop(c.create(r, &fresh, Kind::Dir)),
        6 => drop(c.create(r, &fresh, Kind::Symlink((*b"target").into()))),
        7..=10 => drop(c.write(r, &old, content)),
        11..=12 => drop(c.remove(r, &old)),
        13..=15 => drop(c.rename(r, &old, &fresh, false)),
        16 => {
            let other = if paths.is_empty() { fresh } else { pick(rng, &paths).to_string() };
            c.rename(r, &old, &other, rng.chance(500));
        }
        17 => drop(c.link(r, &old, &fresh)),
        18 => drop(c.attr(r, &old, Attr::Mode(0o600 + rng.below(64) as u32))),
        _ => {
            let value = rng.chance(700).then(|| serde_bytes::ByteBuf::from(format!("{}", rng.below(9)).into_bytes()));
            c.attr(r, &old, Attr::Xattr { name: (*b"user.x").into(), value });
        }
    }
}

fn run(seed: u64, steps: u64, mix: &Mix) {
    let mut rng = Rng::new(Seed(seed));
    let mut c = Cluster::new(3);
    c.authors_keep = true;
    let mut bytes = 0;
    for _ in 0..steps {
        let r = rng.below(3) as usize;
        let what = rng.below(10 + mix.deliver + mix.land + mix.cut + mix.restart);
        if what < 10 {
            change(&mut rng, &mut c, r, &mut bytes);
        } else if what < 10 + mix.deliver {
            let all = if rng.chance(100) { c.ops.keys().copied().collect() } else { c.missing(r) };
            let n = rng.below(6);
            for _ in 0..n {
                if !all.is_empty() {
                    let s = all[rng.below(all.len() as u64) as usize];
                    c.deliver(r, s);
                }
            }
        } else if what < 10 + mix.deliver + mix.land {
            c.plan(r, 1 + rng.below(4) as usize);
            for _ in 0..rng.below(4) {
                let error = rng.chance(mix.fail).then(|| match rng.below(3) {
                    0 => IoError::Changed,
                    1 => IoError::Busy,
                    _ => IoError::NoSpace,
                });
                c.land(r, rng.below(9) as usize, error);
            }
            if rng.chance(600) {
                c.fetch(r, rng.below(9) as usize);
            }
            if mix.fail > 0 && rng.chance(100) {
                c.nodes[r].tree.retry();
            }
        } else if what < 10 + mix.deliver + mix.land + mix.cut {
            c.cut_all();
        } else if rng.chance(500) {
            let page = 1 + rng.below(5) as usize;
            c.nodes[r].checkpoint(page);
        } else {
            c.nodes[r].restart();
            c.check(r);
        }
    }
    if mix.fail > 0 {
        for n in &mut c.nodes {
            n.tree.retry();
        }
    }
    c.heal();
    c.judge();
    for _ in 0..3 {
        c.cut_all();
    }
    c.heal();
    c.judge();
}

fn seeds() -> std::ops::Range<u64> {
    let var = |k: &str, d| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let first = var("TREE_SEED", 1);
    first..first + var("TREE_SEEDS", 40)
}

fn run_all(steps: u64, mix: &Mix) {
    for seed in seeds() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, steps, mix)));
        if let Err(e) = result {
            eprintln!("repeat with TREE_SEED={seed} TREE_SEEDS=1");
            std::panic::resume_unwind(e);
        }
    }
}

#[test]
fn replicas_converge() {
    run_all(60, &Mix { deliver: 10, land: 10, cut: 0, restart: 0, fail: 0 });
}

#[test]
fn replicas_converge_after_long_partitions() {
    run_all(120, &Mix { deliver: 1, land: 6, cut: 0, restart: 0, fail: 0 });
}

#[test]
fn replicas_converge_while_they_forget() {
    run_all(120, &Mix { deliver: 12, land: 12, cut: 3, restart: 0, fail: 0 });
}

#[test]
fn replicas_converge_over_restarts() {
    run_all(100, &Mix { deliver: 10, land: 10, cut: 2, restart: 3, fail: 0 });
}

#[test]
fn replicas_converge_over_failures() {
    run_all(100, &Mix { deliver: 10, land: 12, cut: 2, restart: 1, fail: 250 });
}
