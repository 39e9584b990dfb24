//! `icecluster dev` as a user runs it: real processes, real mounts where this machine has them.

use ice_host::volume::HIDDEN_NAME;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

struct Dev {
    child: Child,
    dir: PathBuf,
    nodes: Vec<Value>,
    /// Nodes started again by hand.
    others: Vec<Child>,
}

fn icecluster() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_icecluster"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ICECLUSTER_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

impl Dev {
    /// Starts a cluster in `dir` and waits until it says that all nodes serve.
    fn start(dir: &Path, port: u16, args: &[&str]) -> Dev {
        let mut command = icecluster();
        command.args(["dev", "-port", &port.to_string(), "-dir"]).arg(dir).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|l| !l.starts_with("Ctrl-C")).collect();
        // What it says later must be read by somebody.
        std::thread::spawn(move || lines.count());
        if let Some(status) = child.try_wait().unwrap() {
            panic!("it did not start: {status}\n{}", said.join("\n"));
        }
        let text = fs::read_to_string(dir.join("cluster.json")).unwrap();
        let summary: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(summary["pid"], child.id());
        let nodes = summary["nodes"].as_array().unwrap().clone();
        if std::env::var_os("CI").is_some() && !args.contains(&"-no-mount") {
            assert!(nodes.iter().all(|n| n["mount"].is_string()), "CI needs mounts:\n{}", said.join("\n"));
        }
        Dev { child, dir: dir.to_owned(), nodes, others: vec![] }
    }

    fn text(&self, i: usize, key: &str) -> &str {
        self.nodes[i][key].as_str().unwrap_or_default()
    }

    /// Where a user works on node `i`.
    fn at(&self, i: usize) -> PathBuf {
        self.nodes[i]["mount"].as_str().unwrap_or(self.text(i, "backing")).into()
    }

    fn kill(&self, i: usize) {
        let pid = self.nodes[i]["pid"].as_u64().unwrap();
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        // The dying process holds its lock until it is gone: starting it again before that is refused.
        until("the killed node is gone", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "))
        });
    }

    fn restart(&mut self, i: usize) {
        let mut command = icecluster();
        command.arg("-config").arg(self.text(i, "config")).stdout(Stdio::null()).stderr(Stdio::null());
        self.others.push(command.spawn().unwrap());
    }

    fn icectl(&self, i: usize, args: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_icectl")).args(["-base", self.text(i, "url")]).args(args).output().unwrap()
    }

    /// Ends it as a terminal would, and looks at what is left.
    fn stop(mut self) {
        assert!(Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
        let mut code = None;
        until("the cluster ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        assert!(code.unwrap().success(), "{code:?}\n{}", self.logs());
        for other in &mut self.others {
            until("a node that was started by hand ends, too", || other.try_wait().unwrap().is_some());
        }
        assert_eq!(mounts_below(&self.dir), 0);
        for node in &self.nodes {
            let pid = node["pid"].as_u64().unwrap();
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
    }

    fn logs(&self) -> String {
        let log = |n: &Value| fs::read_to_string(n["log"].as_str().unwrap_or_default()).unwrap_or_default();
        self.nodes.iter().map(|n| format!("--- {}\n{}", n["name"], log(n))).collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_some()) {
            return;
        }
        eprintln!("{}", self.logs());
        // It ends its nodes, and those started by hand.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        for other in &mut self.others {
            let _ = other.wait();
        }
    }
}

fn mounts_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = |line: &&str| line.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir));
    table.lines().filter(below).count()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "not after {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
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
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().canonicalize().unwrap().join("cluster");
    let mut dev = Dev::start(&dir, 21000, &[]);
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
    until_equal(&dev, &[0, 1, 2]);
    until("the nodes say that they are equal", || dev.icectl(1, &["consistency"]).status.success());
    dev.stop();
}

#[test]
fn a_stopped_cluster_starts_again_with_its_files_and_a_busy_one_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().canonicalize().unwrap();
    let dev = Dev::start(&dir, 21100, &["-nodes", "2", "-runtime", "mixed"]);
    let refused = icecluster().args(["dev", "-dir"]).arg(&dir).output().unwrap();
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
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().canonicalize().unwrap();
    let dev = Dev::start(&dir, 21200, &["-no-mount", "-runtime", "smol"]);
    fill(&dev.at(0));
    until_equal(&dev, &[0, 1, 2]);
    let mut put = Command::new(env!("CARGO_BIN_EXE_icectl"));
    put.args(["-base", dev.text(1, "url"), "put", "-path", "/x/y"])
        .stdin(fs::File::open(dev.at(0).join("a/file9")).unwrap());
    assert!(put.status().unwrap().success());
    until("the file is on another node", || dev.icectl(2, &["get", "-path", "x/y"]).stdout == vec![9; 27000]);
    assert!(dev.icectl(2, &["del", "-path", "x/y"]).status.success());
    until("it is gone", || !dev.at(0).join("x/y").exists());
    dev.stop();
}
