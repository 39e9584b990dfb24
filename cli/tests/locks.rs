//! Locks between the mounts of real nodes, through the death and the sleep of those that hold them.

mod cluster;

use cluster::{Cluster, free_port, fuse_or_skip};
use ice_testing::{Process, output, until};
use rustix::fs::FlockOperation::{
    NonBlockingLockExclusive as TryExclusive, NonBlockingLockShared as TryShared, Unlock,
};
use rustix::fs::{fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::PathBuf;

/// Three nodes, all of which have a vote, and a file.
fn three() -> Option<Cluster> {
    if !fuse_or_skip() {
        return None;
    }
    let mut c = Cluster::prepare(3, "");
    let ports: Vec<u16> = c.nodes.iter().map(|_| free_port()).collect();
    for (node, port) in c.nodes.iter_mut().zip(&ports) {
        node.set_extra(&format!("node: {{listen_address: '127.0.0.1:{port}'}}\n"));
        node.spawn();
    }
    c.nodes.iter().for_each(cluster::Node::wait_ready);
    c.wait_connected();
    let voters = || {
        let mut list = ice_testing::command("etcdctl");
        list.env("ETCDCTL_API", "3").args(["--endpoints", &format!("http://127.0.0.1:{}", ports[0]), "member", "list"]);
        let list = String::from_utf8_lossy(&output(&mut list).stdout).into_owned();
        list.lines().filter(|l| l.contains(" started,") && l.ends_with(", false")).count()
    };
    until("all three have a vote", || voters() == 3);
    fs::write(c.nodes[0].mount().join("f"), "text").expect("write");
    c.wait_equal();
    Some(c)
}

fn open(c: &Cluster, node: usize) -> File {
    File::options().read(true).write(true).open(c.nodes[node].mount().join("f")).expect("open")
}

/// Outside of the mounts, where programs tell each other something.
fn outside(c: &Cluster, name: &str) -> PathBuf {
    c.nodes[0].dir.join(name)
}

/// A program with `f`, as a node shows it, as `fd`.
fn program(c: &Cluster, node: usize, code: &str) -> Process {
    let code = format!(
        "import fcntl, os, sys, time\nfd = os.open('f', os.O_RDWR)\nout = '{}/'\n\
         def say(word): open(out + word, 'x').close()\n\
         def wait(word):\n  while not os.path.exists(out + word): time.sleep(0.01)\n{code}",
        c.nodes[0].dir.display()
    );
    Process::spawn(ice_testing::command("python3").args(["-c", &code]).current_dir(c.nodes[node].mount()))
}

const NO: Result<(), Errno> = Err(Errno::WOULDBLOCK);

#[test]
fn both_kinds_exclude_between_nodes_and_nothing_is_counted_twice() {
    let Some(c) = three() else { return };
    let files: Vec<File> = (0..3).map(|n| open(&c, n)).collect();
    flock(&files[0], TryExclusive).expect("flock");
    fcntl_lock(&files[1], TryExclusive).expect("fcntl");
    for n in [1, 2] {
        assert_eq!(flock(&files[n], TryShared), NO, "{n}");
    }
    for n in [0, 2] {
        assert_eq!(fcntl_lock(&files[n], TryShared), NO, "{n}");
    }
    flock(&files[0], Unlock).expect("unlock");
    flock(&files[2], TryExclusive).expect("it is free");
    drop(files);
    // A counter that nobody else protects.
    let code = "for i in range(50):\n  fcntl.flock(fd, fcntl.LOCK_EX)\n  c = os.open(out + 'count', os.O_RDWR | os.O_CREAT)\n  \
        n = int(os.read(c, 20) or b'0') + 1\n  os.pwrite(c, str(n).encode(), 0)\n  os.close(c)\n  fcntl.flock(fd, fcntl.LOCK_UN)";
    let counting: Vec<Process> = (0..6).map(|n| program(&c, n % 3, code)).collect();
    assert!(counting.iter().all(|p| p.wait().success()));
    assert_eq!(fs::read_to_string(outside(&c, "count")).expect("count"), "300");
}

/// A program on the third node that takes both kinds and gives them back when it is told to.
fn holds(c: &Cluster) -> Process {
    let code = "fcntl.flock(fd, fcntl.LOCK_EX)\nfcntl.lockf(fd, fcntl.LOCK_EX)\nsay('holds')\nwait('go')\n\
        fcntl.flock(fd, fcntl.LOCK_UN)\nfcntl.lockf(fd, fcntl.LOCK_UN)";
    let program = program(c, 2, code);
    until("it holds both", || outside(c, "holds").exists());
    program
}

/// Fault 10 of the original: whoever held something when he was gone held it for ever, or two held it.
#[test]
fn fault_10_a_node_that_sleeps_loses_its_locks_and_takes_nobodys() {
    let Some(c) = three() else { return };
    let (first, second) = (open(&c, 0), open(&c, 1));
    let sleeper = holds(&c);
    assert_eq!((flock(&first, TryExclusive), fcntl_lock(&second, TryShared)), (NO, NO));
    c.nodes[2].signal(Signal::STOP);
    until("it was declared down", || flock(&first, TryExclusive).is_ok());
    until("it was declared down", || fcntl_lock(&second, TryExclusive).is_ok());
    c.nodes[2].signal(Signal::CONT);
    // What it gives back now is not its own any more.
    fs::write(outside(&c, "go"), "").expect("go");
    assert!(sleeper.wait().success());
    assert_eq!((flock(&second, TryShared), fcntl_lock(&first, TryShared)), (NO, NO));
    flock(&first, Unlock).expect("unlock");
    flock(&second, TryShared).expect("it is free");
}

#[test]
fn fault_10_a_node_that_dies_loses_its_locks() {
    let Some(mut c) = three() else { return };
    let (first, second) = (open(&c, 0), open(&c, 1));
    let _dies = holds(&c);
    assert_eq!((flock(&first, TryExclusive), fcntl_lock(&second, TryShared)), (NO, NO));
    c.nodes[2].kill9();
    until("it was declared down", || flock(&first, TryExclusive).is_ok());
    until("it was declared down", || fcntl_lock(&second, TryExclusive).is_ok());
}
