//! What real nodes record of themselves runs again bit for bit: the whole recording, and the ring of the last steps.

mod cluster;

use cluster::{Cluster, Node, PATIENCE, fuse_or_skip};
use ice_sim::replay::{Replayed, replay};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn dumps(n: &Node) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(n.dir.join("data/tapes")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = list.map(|e| e.expect("entry").path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "trace"));
    found.sort();
    found
}

/// Has the node dump its ring, and waits for the file.
fn dump(n: &Node) -> PathBuf {
    let before = dumps(n).len();
    n.signal(rustix::process::Signal::USR1);
    let end = Instant::now() + PATIENCE;
    loop {
        let now = dumps(n);
        if now.len() > before {
            return now.last().expect("one more than before").clone();
        }
        assert!(Instant::now() < end, "{} writes no tape\n{}", n.name, n.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn replays(path: &Path) -> Replayed {
    let done = replay(path, None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(done.difference, None, "{}", path.display());
    assert!(done.unanswered.is_none(), "{}: no step broke a node", path.display());
    done
}

/// A little of everything that a mount offers.
fn work(dir: &Path, name: &str, files: usize) {
    let top = dir.join(name);
    fs::create_dir(&top).expect("mkdir");
    for i in 0..files {
        let path = top.join(format!("f{i:04}"));
        let mut f = File::create(&path).expect("create");
        f.write_all(format!("{name} {i}").as_bytes()).expect("write");
        if i % 10 == 0 {
            f.sync_all().expect("fsync");
        }
        if i % 7 == 0 {
            fs::hard_link(&path, top.join(format!("l{i:04}"))).expect("link");
        }
        if i % 11 == 0 {
            rustix::fs::setxattr(&path, "user.k", b"v", rustix::fs::XattrFlags::empty()).expect("setxattr");
        }
        if i % 3 == 0 {
            fs::remove_file(&path).expect("unlink");
        }
    }
    // Many steps that leave the tree as small as it is: a state of it fits into the ring.
    for i in 0..20 * files {
        fs::write(top.join(format!("w{:02}", i % 10)), format!("{name} again {i}")).expect("write");
    }
    fs::write(top.join("large"), vec![7; 700_000]).expect("write");
    std::os::unix::fs::symlink("large", top.join("s")).expect("symlink");
    fs::rename(&top, dir.join(format!("{name}-done"))).expect("rename");
}

fn on(runtime: &str) {
    if !fuse_or_skip() {
        return;
    }
    let mut c = Cluster::prepare(3, "");
    for n in &mut c.nodes {
        let extra = format!("runtime: {runtime}\ntrace: {}/full.trace\ntrace_ring: 1MiB\n", n.dir.display());
        n.set_extra(&extra);
        n.spawn();
    }
    for n in &c.nodes {
        n.wait_ready();
    }
    c.wait_connected();
    work(&c.nodes[0].mount(), "a", 100);
    c.nodes[2].kill9();
    work(&c.nodes[1].mount(), "b", 50);
    // Its recording begins with what a crash left behind.
    c.nodes[2].restart();
    c.wait_connected();
    work(&c.nodes[2].mount(), "c", 50);
    c.wait_equal();
    let rings: Vec<PathBuf> = c.nodes.iter().map(dump).collect();
    let texts: Vec<String> = c.nodes.iter().map(|n| fs::read_to_string(n.dir.join("log")).expect("log")).collect();
    for n in &mut c.nodes {
        assert_eq!(n.stop(), Some(0));
    }
    let mut turned = 0;
    for ((n, ring), text) in c.nodes.iter().zip(&rings).zip(&texts) {
        let full = replays(&n.dir.join("full.trace"));
        assert!(full.steps > 500 && full.states > 1 && full.cut.is_none(), "{}: {full:?}", n.name);
        let last = replays(ring);
        assert!(last.steps > 100 && last.cut.is_none(), "{}: {last:?}", n.name);
        assert_eq!(last.skipped, 0, "{}: the ring begins with a state", n.name);
        eprintln!("{}: {} steps, {} of them in the ring", n.name, full.steps, last.steps);
        turned += u32::from(last.steps + 100 < full.steps);
        assert!(text.contains("SIGUSR1: tape of the last steps"), "{text}");
        let size = fs::metadata(ring).expect("ring").len();
        assert!(size < (1 << 20) + (1 << 19), "{size} bytes");
    }
    // How many steps the same work takes depends on how busy the machine is: more of it shares a message and a step.
    assert!(turned >= 1, "the rings were not full: the test works too little");
}

#[test]
fn recordings_of_nodes_on_tokio_run_again_bit_for_bit() {
    on("tokio");
}

#[test]
fn recordings_of_nodes_on_smol_run_again_bit_for_bit() {
    on("smol");
}
