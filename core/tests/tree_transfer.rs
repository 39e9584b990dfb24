//! Catching up by state: a replica that was away takes over records instead of operations.

mod tree_support;

use ice_core::event::Change;
use ice_core::ids::InodeId;
use ice_core::op::{Attr, Kind};
use ice_core::rng::{Rng, Seed};
use ice_core::time::{Hlc, Stamp};
use ice_core::tree::StateRecord;
use std::collections::BTreeSet;
use tree_support::{Cluster, name, no_witness};

fn stamps(r: &StateRecord) -> Vec<Stamp> {
    let mut v = vec![r.mode.0, r.owner.0, r.times.0, r.content.0];
    v.extend(r.make.iter().map(|m| m.0));
    v.extend(r.versions.iter().map(|x| x.stamp));
    v.extend(r.xattrs.iter().map(|x| x.stamp));
    for e in &r.entries {
        v.extend(e.places.iter().map(|p| p.stamp));
        v.extend(e.removed.iter().map(|x| x.at));
    }
    v.retain(|s| !s.is_zero());
    v
}

/// `to` takes over everything that `from` has and that differs, in pages, as two nodes do. Returns how many records went.
fn transfer(c: &mut Cluster, from: usize, to: usize) -> usize {
    let (a, b) = if from < to {
        let (x, y) = c.nodes.split_at_mut(to);
        (&x[from], &mut y[0])
    } else {
        let (x, y) = c.nodes.split_at_mut(from);
        (&y[0], &mut x[to])
    };
    let mut sent = 0;
    if a.tree.bucket_digest(0, 0) == b.tree.bucket_digest(0, 0) {
        assert_eq!(a.tree.digest(), b.tree.digest());
        return 0;
    }
    let upper: Vec<u32> = (0..64).filter(|k| a.tree.bucket_digest(1, *k) != b.tree.bucket_digest(1, *k)).collect();
    for bucket in upper.into_iter().flat_map(|k| k * 64..k * 64 + 64) {
        if a.tree.bucket_digest(2, bucket) == b.tree.bucket_digest(2, bucket) {
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut after = None;
        loop {
            let page = a.tree.records(2, bucket, after, 2);
            for r in &page {
                assert!(Some(r.inode) > after);
                after = Some(r.inode);
                seen.insert(r.inode);
                sent += 1;
                for s in stamps(r) {
                    b.clock = b.clock.max(s.time.0);
                }
                b.tree.merge(r, &|s| a.known.contains(&s), &|s| b.known.contains(&s));
                assert!(b.tree.sums_are_sound());
            }
            if page.len() < 2 {
                break;
            }
        }
        for r in b.tree.records(2, bucket, None, usize::MAX) {
            if !seen.contains(&r.inode) {
                let all = r.inode != InodeId::ROOT && stamps(&r).iter().all(|s| a.known.contains(s));
                let gone = b.tree.absent(r.inode, &|s| s.is_zero() || a.known.contains(&s));
                assert_eq!(gone, all, "what the other did not know of is not forgotten");
                assert!(b.tree.sums_are_sound());
            }
        }
    }
    let known = a.known.clone();
    b.clock = b.clock.max(a.clock);
    b.known.extend(known);
    b.checkpoint(1000);
    sent
}

#[test]
fn a_new_replica_takes_over_a_tree() {
    let mut c = Cluster::new(3);
    c.authors_keep = true;
    assert!(c.create(0, "d", Kind::Dir));
    assert!(c.create(0, "d/f", Kind::File) && c.write(0, "d/f", 5));
    assert!(c.attr(
        0,
        "d/f",
        Attr::Xattr { name: (*b"user.x").into(), value: Some(serde_bytes::ByteBuf::from(*b"1")) }
    ));
    assert!(c.create(0, "gone", Kind::File) && c.remove(0, "gone"));
    assert!(c.link(0, "d/f", "g"));
    assert!(c.rename(0, "d", "e", false));
    assert!(transfer(&mut c, 0, 1) > 0);
    assert_eq!(c.nodes[1].tree.bucket_digest(0, 0), c.nodes[0].tree.bucket_digest(0, 0));
    c.heal();
    c.judge();
    assert_eq!(transfer(&mut c, 0, 2), 0);
}

#[test]
fn what_the_others_forgot_goes_and_what_is_ours_stays() {
    let mut c = Cluster::new(3);
    c.authors_keep = true;
    for f in ["old", "both"] {
        assert!(c.create(0, f, Kind::Dir));
    }
    assert!(c.create(0, "file", Kind::File) && c.write(0, "file", 5));
    c.heal();
    // The third one is cut off; the others delete, and forget, what it still has.
    assert!(c.remove(0, "old") && c.remove(0, "both") && c.remove(0, "file"));
    c.sync(0, 1);
    c.rest(1);
    let all = Stamp { time: Hlc(c.nodes[0].clock), ..Stamp::MAX };
    c.cut_one(0, all);
    c.cut_one(1, all);
    assert_eq!(c.nodes[0].tree.len(), 1, "forgotten");
    c.nodes[2].clock = 100;
    assert!(c.create(2, "both/mine", Kind::File) && c.write(2, "both/mine", 7));
    transfer(&mut c, 0, 2);
    assert_eq!(c.nodes[2].tree.info(InodeId::ROOT).expect("root").kind, Kind::Dir);
    c.heal();
    c.judge();
    let shown: Vec<String> = c.tree_lines(1).iter().map(|l| l.split(' ').next().expect("path").into()).collect();
    assert_eq!(shown, ["both", "both/mine"]);
}

#[test]
fn catching_up_by_state_is_catching_up_by_operations() {
    for seed in 1..=20 {
        let mut rng = Rng::new(Seed(seed));
        let mut c = Cluster::new(3);
        c.authors_keep = true;
        let mut bytes = 10;
        for round in 0..4 {
            for _ in 0..25 {
                // The third one is away in odd rounds and makes few changes of its own.
                let r = if rng.chance(100) { 2 } else { rng.below(2) as usize };
                bytes += 1;
                let paths = c.paths(r);
                let names = ["a", "b", "c", "d"];
                let dirs: Vec<&String> = paths.iter().collect();
                let fresh = match rng.below(dirs.len() as u64 + 1) as usize {
                    0 => names[rng.below(4) as usize].to_string(),
                    k => format!("{}/{}", dirs[k - 1], names[rng.below(4) as usize]),
                };
                let old = paths.get(rng.below(paths.len().max(1) as u64) as usize).cloned().unwrap_or("a".into());
                match rng.below(9) {
                    0..=1 => drop(c.create(r, &fresh, Kind::File) && c.write(r, &fresh, bytes)),
                    2 => drop(c.create(r, &fresh, Kind::Dir)),
                    3..=4 => drop(c.write(r, &old, bytes)),
                    5 => drop(c.remove(r, &old)),
                    6..=7 => drop(c.rename(r, &old, &fresh, false)),
                    _ => drop(c.link(r, &old, &fresh)),
                }
                if rng.chance(300) {
                    c.sync(r, (r + 1) % 2);
                    c.rest((r + 1) % 2);
                }
            }
            if round % 2 == 1 {
                c.sync(0, 1);
                c.sync(1, 0);
                transfer(&mut c, 0, 2);
                c.rest(2);
            } else {
                c.heal();
                c.cut_all();
            }
        }
        c.heal();
        c.judge();
    }
}

#[test]
fn unknown_names_and_inodes_are_refused() {
    let mut c = Cluster::new(1);
    let nowhere = InodeId(77);
    let refused = [
        Change::Remove { parent: InodeId::ROOT, name: name("x") },
        Change::Remove { parent: nowhere, name: name("x") },
        Change::Touch { inode: nowhere, witness: no_witness() },
        Change::Attr { inode: nowhere, attr: Attr::Mode(0o600), witness: no_witness() },
        Change::Link { inode: InodeId::ROOT, parent: InodeId::ROOT, name: name("l"), witness: no_witness() },
    ];
    let before = c.nodes[0].tree.bucket_digest(0, 0);
    for change in refused {
        assert_eq!(c.tell(0, &change), Err(ice_core::action::Refused::Unknown), "{change:?}");
    }
    assert_eq!(c.nodes[0].tree.bucket_digest(0, 0), before);
    assert!(c.ops.is_empty());
}
