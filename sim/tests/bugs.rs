//! Each planted bug is found within its stated number of seeds.

use ice_core::bug::Bug;
use ice_sim::bugs::{HUNTS, find};
use ice_sim::run::catch_assertions;

#[test]
fn every_planted_bug_is_hunted() {
    for bug in Bug::ALL.into_iter().chain(Bug::CONTROL) {
        assert!(HUNTS.iter().any(|h| h.bug == bug), "{bug:?} is not hunted");
    }
}

#[test]
fn every_planted_bug_is_found() {
    catch_assertions();
    let mut missed = Vec::new();
    for hunt in HUNTS {
        match find(*hunt, 1).expect("runs") {
            Some(f) => println!("{:?}: {} seeds: {}", hunt.bug, f.seeds, f.failure.judge),
            None => missed.push(format!("{:?} was not found: {}", hunt.bug, hunt.place)),
        }
    }
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
}
