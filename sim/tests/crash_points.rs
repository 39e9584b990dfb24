//! A node dies at every step of applying remote changes: before, inside and after each disk action, as a process and as a
//! machine. It must come back to the same tree as the others, without losing a byte.

use ice_sim::plan::Plan;
use ice_sim::run::{Options, catch_assertions, run};

/// Every kind of remote change arrives at n2, which dies at the given point and comes back.
fn story(ending: &str, action: u64, step: u64) -> String {
    format!(
        "nodes 2
         profile quiet
         checkpoint 2s
         wait 3s
         n1: mkdir d
         n1: write d/a one
         n1: write d/b two 100000
         n1: write c three
         n1: link c d/c
         n1: write gone soon
         n1: write over old 100000
         n1: write other older
         n1: write kept ten
         n2: write mine local
         settle
         stop-at n2 {ending} {action} {step}
         n1: mkdir d/e
         n1: write d/e/f four 100000
         n1: write d/a five
         n1: write c six
         n1: chmod d/b 600
         n1: rename d/b moved
         n1: rm gone
         n1: rename d dd
         n1: exchange moved c
         n1: symlink s c
         n1: write over.new eight 100000
         n1: rename over.new over
         n1: rename kept other
         wait 3s
         n1: write after seven
         wait 10s
         heal
         settle
         expect content all dd/a five
         expect content all moved six
         expect samefile all moved dd/c
         expect content all c two
         expect content all dd/e/f four
         expect content all mine local
         expect content all after seven
         expect content all over eight
         expect content all other ten
         expect gone all over.new
         expect gone all kept
         expect gone all gone
         expect gone all d
         expect copies dd/a 0
         expect copies moved 0
         expect copies over 0
         expect copies other 0
         expect count all / 8"
    )
}

fn all_points(ending: &str) {
    catch_assertions();
    let mut bad = Vec::new();
    for action in 0..20 {
        for step in 0..5 {
            let plan = Plan::parse(&story(ending, action, step)).expect("parses");
            let outcome = run(&plan, Options::default(), "the crash_points test").expect("runs");
            if let Some(f) = outcome.failure {
                bad.push(format!("{ending}, action {action}, step {step}: {}: {}", f.judge, f.text));
            }
        }
    }
    assert!(bad.is_empty(), "{} points\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn a_process_dies_at_every_step() {
    all_points("process");
}

#[test]
fn a_machine_dies_at_every_step() {
    all_points("machine");
}
