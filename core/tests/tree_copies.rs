//! A conflict's copy that is announced and takes long to be made.
#![allow(clippy::disallowed_methods, reason = "only the core itself must not look around")]

mod tree_support;

use ice_core::action::{Apply, Source};
use ice_core::ids::InodeId;
use ice_core::op::Kind;
use tree_support::{Cluster, bytes};

/// `f` was written on 0 and on 1. Replica 2 fetched the bytes that lost and announced their copy; everybody knows that, and no
/// disk followed. Returns the copy.
fn announced() -> (Cluster, InodeId) {
    let mut c = Cluster::new(3);
    assert!(c.create(0, "f", Kind::File) && c.write(0, "f", 1));
    c.heal();
    assert!(c.write(0, "f", 2));
    c.sync(1, 2);
    assert!(c.write(1, "f", 3) && c.write(1, "f", 4));
    c.sync(0, 2);
    c.sync(1, 2);
    let at = |c: &Cluster| c.nodes[2].wanted.iter().position(|(_, _, what)| *what == bytes(2));
    c.plan(2, 4);
    let losing = at(&c).expect("the losing bytes are asked for");
    let (inode, lost, _) = c.nodes[2].wanted[losing];
    c.fetch(2, losing);
    let copy = c.nodes[2].tree.copy_of(inode, lost).expect("announced");
    everybody_hears(&mut c);
    (c, copy)
}

fn everybody_hears(c: &mut Cluster) {
    for (from, to) in [(2, 0), (1, 0), (0, 1), (2, 1), (0, 2), (1, 2)] {
        c.sync(from, to);
    }
}

/// The copy is made of what replica 2 has.
fn is_made_of_staged_bytes(c: &mut Cluster, copy: InodeId) {
    while c.plan(2, 4) {}
    let asked = c.nodes[2].wanted.iter().any(|(inode, _, _)| *inode == copy);
    let made = c.nodes[2].flights.iter().any(
        |(_, apply, _)| matches!(apply, Apply::Make { inode, source: Source::Staged { .. }, .. } if *inode == copy),
    );
    assert!(made && !asked, "made: {made}, asked for: {asked}");
}

/// What it was made of is forgotten when it stands.
fn forgets_the_rest(c: &mut Cluster) {
    c.rest(2);
    assert!(c.create(0, "another", Kind::File));
    c.heal();
    c.cut_all();
    c.heal();
    c.judge();
    for n in &c.nodes {
        assert!(!n.tree.records(0, 0, None, 9).iter().any(|r| !r.versions.is_empty()), "{:?} forgot nothing", n.id);
        assert!(!n.staged.keys().any(|(i, v)| n.tree.wants(*i, *v)), "nobody asks for staged bytes any more");
    }
}

#[test]
fn when_everybody_knows_of_it_for_long() {
    let (mut c, copy) = announced();
    c.cut_all();
    is_made_of_staged_bytes(&mut c, copy);
    forgets_the_rest(&mut c);
    assert_eq!(c.nodes[2].tree.len(), 4, "root, file, copy, and another");
    for n in &c.nodes {
        assert!(!n.staged.keys().any(|(i, v)| n.tree.wants(*i, *v)), "nobody asks for staged bytes any more");
    }
}

#[test]
fn when_the_file_itself_is_deleted_and_forgotten() {
    let (mut c, copy) = announced();
    c.rest(1);
    assert!(c.remove(1, "f"));
    everybody_hears(&mut c);
    c.cut_all();
    is_made_of_staged_bytes(&mut c, copy);
    forgets_the_rest(&mut c);
    assert_eq!(c.nodes[2].tree.len(), 3, "root, copy, and another");
}
