//! `icecluster dev` as a user runs it: real processes, real mounts where this machine has them.

use ice_host::volume::HIDDEN_NAME;
use ice_testing::{Process, mounts_below, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A cluster of these tests lives no longer.
const CLUSTER_LIMIT: Duration = Duration::from_secs(10 * 60);

struct Dev {
    process: Process,
    dir: PathBuf,
    nodes: Vec<Value>,
    /// Nodes started again by hand.
    others: Vec<Process>,
    /// What the cluster says, and what the others say.
    said: PathBuf,
}

fn icecluster() -> Command {
    let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icecluster"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ICECLUSTER_")) {
        command.env_remove(name);
    }
    command
}

impl Dev {
    /// Starts a cluster in `dir` and waits until it says that all nodes serve.
    fn start(dir: &Path, port: u16, args: &[&str]) -> Dev {
        let said = ice_testing::tempdir().keep().join("said");
        let file = fs::File::create(&said).unwrap();
        let mut command = icecluster();
        command.args(["dev", "-port", &port.to_string(), "-dir"]).arg(dir).args(args);
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let process = Process::spawn_for(&mut command, CLUSTER_LIMIT);
        until("the cluster serves", || {
            let text = fs::read_to_string(&said).unwrap();
            assert_eq!(process.ended(), None, "it did not start:\n{text}");
            text.contains("Ctrl-C stops")
        });
        let text = fs::read_to_string(dir.join("cluster.json")).unwrap();
        let summary: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(summary["pid"], process.id());
        let nodes = summary["nodes"].as_array().unwrap().clone();
        if std::env::var_os("CI").is_some() && !args.contains(&"-no-mount") {
            let text = fs::read_to_string(&said).unwrap();
            assert!(nodes.iter().all(|n| n["mount"].is_string()), "CI needs mounts:\n{text}");
        }
        Dev { process, dir: dir.to_owned(), nodes, others: vec![], said }
    }

    fn text(&self, i: usize, key: &str) -> &str {
        self.nodes[i][key].as_str().unwrap_or_default()
    }

    /// Where a user works on node `i`.
    fn at(&self, i: usize) -> PathBuf {
        self.nodes[i]["mount"].as_str().unwrap_or(self.text(i, "backing")).into()
    }

    fn pid(&self, i: usize) -> Pid {
        Pid::from_raw(self.nodes[i]["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    fn kill(&self, i: usize) {
        kill_process(self.pid(i), Signal::KILL).unwrap();
        // The dying process holds its lock until it is gone: starting it again before that is refused.
        until("the killed node is gone", || is_gone(self.pid(i)));
    }

    fn restart(&mut self, i: usize) {
        let mut command = icecluster();
        command.arg("-config").arg(self.text(i, "config"));
        self.others.push(Process::spawn_for(&mut command, CLUSTER_LIMIT));
    }

    fn icectl(&self, i: usize, args: &[&str]) -> Output {
        let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
        ice_testing::output(command.args(["-base", self.text(i, "url")]).args(args))
    }

    /// Ends it as a terminal would, and looks at what is left.
    fn stop(mut self) {
        self.process.signal(Signal::INT);
        let status = self.process.wait_for(ice_testing::PATIENCE);
        assert!(status.success(), "{status}\n{}", self.logs());
        for other in &mut self.others {
            until("a node that was started by hand ends, too", || other.ended().is_some());
        }
        self.nothing_is_left();
    }

    fn nothing_is_left(&self) {
        assert_eq!(mounts_below(&self.dir), 0, "mounts are left\n{}", self.logs());
        for i in 0..self.nodes.len() {
            assert!(is_gone(self.pid(i)), "process {:?} is left", self.pid(i));
        }
    }

    fn logs(&self) -> String {
        let log = |n: &Value| ice_testing::tail(Path::new(n["log"].as_str().unwrap_or_default()), 40);
        let nodes: String = self.nodes.iter().map(|n| format!("--- {}\n{}\n", n["name"], log(n))).collect();
        format!("{}\n{nodes}", ice_testing::tail(&self.said, 40))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.process.ended().is_some() {
            return;
        }
        eprintln!("{}", self.logs());
        // It ends its nodes, and those started by hand; the guardian ends it if that takes too long.
        self.process.signal(Signal::TERM);
        let ended = std::time::Instant::now() + Duration::from_secs(30);
        while self.process.ended().is_none() && std::time::Instant::now() < ended {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Ended, even if nobody has taken notice of it yet.
fn is_gone(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).map_or(true, |s| s.contains(") Z "))
}

/// Everything about a tree that replicas must agree on: path to type, mode, time, links and content.
fn tree(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at)? {
            let path = entry?.path();
            // The node's own, where backing is looked at directly.
            if path.file_name() == Some(HIDDEN_NAME.as_ref()) {
                continue;
            }
            let meta = path.symlink_metadata()?;
            let what = if meta.is_dir() {
                todo.push(path.clone());
                "directory".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path)?.display())
            } else {
                let data = fs::read(&path)?;
                format!("{} {}.{:09} {} {:?}", meta.len(), meta.mtime(), meta.mtime_nsec(), meta.nlink(), data)
            };
            let name = path.strip_prefix(dir).unwrap().to_owned();
            found.insert(name, format!("{:o} {what}", meta.permissions().mode()));
        }
    }
    Ok(found)
}

fn until_equal(dev: &Dev, nodes: &[usize]) {
    until("all trees are equal", || {
        let trees: Vec<_> = nodes.iter().map(|i| tree(&dev.at(*i)).ok()).collect();
        trees[0].is_some() && trees.iter().all(|t| *t == trees[0])
    });
}

fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    for i in 0..50 {
        fs::write(dir.join(format!("a/file{i}")), vec![i; usize::from(i) * 3000]).unwrap();
    }
    fs::write(dir.join("a/b/žluť \u{1f9ca}"), "ice").unwrap();
    fs::set_permissions(dir.join("a/file7"), fs::Permissions::from_mode(0o741)).unwrap();
    symlink("../a/file9", dir.join("a/link")).unwrap();
}

#[test]
fn a_tree_appears_everywhere_and_a_killed_node_catches_up() {
    let home = ice_testing::tempdir();
    let dir = home.path().canonicalize().unwrap().join("cluster");
    let mut dev = Dev::start(&dir, 21000, &[]);
    let said = fs::read_to_string(&dev.said).unwrap();
    for (i, what) in [0, 1, 2].iter().flat_map(|i| ["etcd", "rest", "grpc"].map(|what| (*i, what))) {
        let address = dev.text(i, what);
        assert!(said.contains(&format!("{what:<9}{address}\n")), "{what} of node {i}: {said}");
        std::net::TcpStream::connect(address).unwrap_or_else(|e| panic!("{what} of node {i} at {address}: {e}"));
    }
    fill(&dev.at(0));
    fs::hard_link(dev.at(0).join("a/file8"), dev.at(0).join("a/b/same")).unwrap();
    until_equal(&dev, &[0, 1, 2]);
    assert_eq!(tree(&dev.at(2)).unwrap().len(), 56);

    dev.kill(2);
    fs::rename(dev.at(0).join("a"), dev.at(0).join("moved")).unwrap();
    fs::remove_file(dev.at(0).join("moved/file1")).unwrap();
    fs::write(dev.at(1).join("news"), "written while one was away").unwrap();
    until_equal(&dev, &[0, 1]);
    let status = dev.icectl(0, &["-json", "status"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["in_sync"], false);

    dev.restart(2);
    until("the node is back", || fs::read(dev.at(2).join("news")).is_ok());
    until("it is told", || fs::read_to_string(&dev.said).unwrap().contains("node3 is back: pid "));
    until_equal(&dev, &[0, 1, 2]);
    until("the nodes say that they are equal", || dev.icectl(1, &["consistency"]).status.success());
    dev.stop();
}

#[test]
fn a_stopped_cluster_starts_again_with_its_files_and_a_busy_one_is_refused() {
    let home = ice_testing::tempdir();
    let dir = home.path().canonicalize().unwrap();
    let dev = Dev::start(&dir, 21100, &["-nodes", "2", "-runtime", "mixed"]);
    let refused = ice_testing::output(icecluster().args(["dev", "-dir"]).arg(&dir));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is in use"));
    fill(&dev.at(1));
    until_equal(&dev, &[0, 1]);
    let before = tree(&dev.at(0)).unwrap();
    dev.stop();

    let dev = Dev::start(&dir, 21100, &["-nodes", "2"]);
    assert_eq!(tree(&dev.at(0)).unwrap(), before);
    fs::remove_dir_all(dev.at(0).join("a")).unwrap();
    until_equal(&dev, &[0, 1]);
    dev.stop();
}

#[test]
fn without_mounts_changes_in_backing_are_noticed_and_http_serves_the_cluster() {
    let home = ice_testing::tempdir();
    let dir = home.path().canonicalize().unwrap();
    let dev = Dev::start(&dir, 21200, &["-no-mount", "-runtime", "smol"]);
    fill(&dev.at(0));
    until_equal(&dev, &[0, 1, 2]);
    let mut put = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
    put.args(["-base", dev.text(1, "url"), "put", "-path", "/x/y"])
        .stdin(fs::File::open(dev.at(0).join("a/file9")).unwrap());
    assert!(ice_testing::output(&mut put).status.success());
    until("the file is on another node", || dev.icectl(2, &["get", "-path", "x/y"]).stdout == vec![9; 27000]);
    assert!(dev.icectl(2, &["del", "-path", "x/y"]).status.success());
    until("it is gone", || !dev.at(0).join("x/y").exists());
    dev.stop();
}

#[test]
fn nodes_and_mounts_go_with_a_dev_process_that_is_killed() {
    let home = ice_testing::tempdir();
    let dir = home.path().canonicalize().unwrap();
    let dev = Dev::start(&dir, 21300, &["-nodes", "2"]);
    fs::write(dev.at(0).join("f"), "kept").unwrap();
    until_equal(&dev, &[0, 1]);
    dev.process.kill();
    until("the nodes end", || (0..2).all(|i| is_gone(dev.pid(i))));
    dev.nothing_is_left();
    assert_eq!(fs::read(Path::new(dev.text(1, "backing")).join("f")).unwrap(), b"kept");
}
