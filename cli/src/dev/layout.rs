//! Files of a cluster on this machine: `DIR/nodeN/{config.yml,log,data,backing,mount}` and `DIR/cluster.json`.

use super::Options;
use crate::daemon;
use anyhow::{Context, Result, bail};
use ice_host::config::{BindAddr, Config};
use ice_host::volume::HIDDEN_NAME;
use rustix::process::Pid;
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

/// What the control plane's listeners are called.
const FACES: [&str; 3] = ["etcd", "rest", "grpc"];

/// Which runtimes the nodes use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Runtime {
    /// tokio on all nodes.
    Tokio,
    /// smol on all nodes.
    Smol,
    /// tokio on the first, smol on the second, and so on.
    Mixed,
}

/// Where things of one node are.
pub struct NodeFiles {
    /// `node1` and so on.
    pub name: String,
    /// Base URL.
    pub url: String,
    /// Where the control plane is served, by what it is called; nothing that is switched off.
    pub faces: Vec<(&'static str, BindAddr)>,
    /// Configuration file.
    pub config: PathBuf,
    /// Its output.
    pub log: PathBuf,
    /// The node's own records.
    pub data: PathBuf,
    /// The files.
    pub backing: PathBuf,
    /// Where they are mounted, if they are.
    pub mount: Option<PathBuf>,
}

impl NodeFiles {
    /// Where a user works.
    pub fn directory(&self) -> &Path {
        self.mount.as_deref().unwrap_or(&self.backing)
    }

    /// The process that runs this node now, if one does.
    pub fn owner(&self) -> Option<Pid> {
        daemon::owner(&self.data)
    }

    /// The process that last said it runs this node, if it lives. Unlike [`NodeFiles::owner`] this does not touch the lock, for
    /// which a process that starts just now would have to wait.
    pub fn noted(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.data.join("lock")).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        rustix::process::test_kill_process(pid).is_ok().then_some(pid)
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// A whole cluster's files.
pub struct Layout {
    /// The directory that holds all of them.
    pub dir: PathBuf,
    /// In order.
    pub nodes: Vec<NodeFiles>,
    /// It was made by us, and nobody asked for it by name.
    temporary: bool,
}

impl Layout {
    /// Makes directories and configuration files, or finds those that are there.
    pub fn prepare(options: &Options, mount: bool) -> Result<Layout> {
        let (dir, temporary) = match &options.dir {
            Some(dir) => {
                crate::start::make_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                let ours = dir.join("cluster.json").exists() || dir.join("node1/config.yml").exists();
                let mut entries = dir.read_dir().with_context(|| dir.display().to_string())?;
                if !ours && entries.next().is_some() {
                    bail!("{} is not empty, and no cluster of this program: name another directory", dir.display());
                }
                (dir.canonicalize().with_context(|| dir.display().to_string())?, false)
            }
            None => (fresh_dir()?, true),
        };
        let mut taken = vec![];
        let mut nodes = vec![];
        for i in 1..=options.nodes {
            let name = format!("node{i}");
            let home = dir.join(&name);
            let config = home.join("config.yml");
            if config.exists() {
                nodes.push(existing(&name, &home, config)?);
            } else {
                let url = format!("http://127.0.0.1:{}", free_port(options.port, &mut taken)?);
                nodes.push(NodeFiles {
                    name,
                    url,
                    faces: vec![],
                    config,
                    log: home.join("log"),
                    data: home.join("data"),
                    backing: home.join("backing"),
                    mount: mount.then(|| home.join("mount")),
                });
            }
        }
        // All HTTP ports first, so that they follow each other.
        for node in nodes.iter_mut().filter(|n| !n.config.exists()) {
            for what in FACES {
                let port = free_port(options.port, &mut taken)?;
                node.faces.push((what, BindAddr { host: Ipv4Addr::LOCALHOST.to_string(), port }));
            }
        }
        for (i, node) in nodes.iter().enumerate().filter(|(_, n)| !n.config.exists()) {
            for part in [Some(&node.data), Some(&node.backing), node.mount.as_ref()].into_iter().flatten() {
                crate::start::make_dir(part).with_context(|| format!("cannot create {}", part.display()))?;
            }
            let runtime = match options.runtime {
                Runtime::Tokio => "tokio",
                Runtime::Smol => "smol",
                Runtime::Mixed => ["tokio", "smol"][i % 2],
            };
            let others = nodes.iter().filter(|n| n.name != node.name).map(|n| n.url.as_str());
            let text = config_text(node, runtime, &others.collect::<Vec<_>>().join(","))?;
            std::fs::write(&node.config, text).with_context(|| node.config.display().to_string())?;
        }
        Ok(Layout { dir, nodes, temporary })
    }

    /// `cluster.json`: everything that is printed, for scripts.
    pub fn write_summary(&self, pids: &[Option<u32>]) -> Result<()> {
        let nodes: Vec<_> = std::iter::zip(&self.nodes, pids)
            .map(|(n, pid)| {
                let mut node = json!({
                    "name": n.name, "pid": pid, "url": n.url, "config": n.config, "log": n.log, "data": n.data,
                    "backing": n.backing, "mount": n.mount,
                });
                for (what, at) in &n.faces {
                    node[*what] = at.to_string().into();
                }
                node
            })
            .collect();
        let path = self.dir.join("cluster.json");
        let text = format!("{:#}\n", json!({ "pid": std::process::id(), "nodes": nodes }));
        // Readers that poll for the file see it whole or not at all.
        let draft = self.dir.join("cluster.json.new");
        std::fs::write(&draft, text).with_context(|| draft.display().to_string())?;
        std::fs::rename(&draft, &path).with_context(|| path.display().to_string())
    }

    /// Removes a temporary directory into which no file was put; says where everything is otherwise.
    pub fn finish(&self) -> Result<()> {
        if self.temporary && self.nodes.iter().all(|n| is_empty(&n.backing)) {
            return std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()));
        }
        say!("Everything is kept; start it again with: icecluster dev --dir {}", self.dir.display());
        Ok(())
    }
}

/// No user's file. What cannot be read counts as something.
fn is_empty(dir: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(dir) else { return !dir.exists() };
    entries.all(|e| e.is_ok_and(|e| e.file_name() == HIDDEN_NAME))
}

fn fresh_dir() -> Result<PathBuf> {
    let made = tempfile::Builder::new().prefix("icecluster-dev-").tempdir();
    let dir = made.context("cannot create a temporary directory")?.keep();
    dir.canonicalize().with_context(|| dir.display().to_string())
}

fn free_port(first: u16, taken: &mut Vec<u16>) -> Result<u16> {
    let candidates = (first..=u16::MAX).take(1000).filter(|p| !taken.contains(p));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    match candidates.into_iter().find(free) {
        Some(port) => {
            taken.push(port);
            Ok(port)
        }
        None => bail!("no free port from {first} on"),
    }
}

fn config_text(node: &NodeFiles, runtime: &str, join: &str) -> Result<String> {
    let mut value = json!({
        "node_id": node.name,
        "bind": node.url.trim_start_matches("http://"),
        "advertise": node.url,
        "join": join,
        "data": node.data,
        "backing": node.backing,
        "mount": node.mount.clone().unwrap_or_default(),
        "runtime": runtime,
        // Everything is on one machine: who is away is looked for often.
        "keepalive": "1s",
        "keepalive_failures": 9,
    });
    for (what, at) in &node.faces {
        let at = at.to_string();
        match *what {
            "etcd" => value["node"] = json!({ "listen_address": at }),
            face => value["api"][face] = json!({ "enabled": true, "address": at }),
        }
    }
    let text = serde_yaml::to_string(&value).context("configuration")?;
    Ok(format!("# Written by `icecluster dev`, which keeps it as it is when it starts this directory again.\n{text}"))
}

fn existing(name: &str, home: &Path, config: PathBuf) -> Result<NodeFiles> {
    let parsed = Config::load(&config)?;
    let urls = parsed.advertised(parsed.bind.port)?;
    let Some(url) = urls.into_iter().next() else { bail!("{}: no address to reach it by", config.display()) };
    let decube = &parsed.decube;
    let faces = std::iter::zip(FACES, [&decube.etcd, &decube.rest, &decube.grpc]);
    Ok(NodeFiles {
        name: name.to_owned(),
        url,
        faces: faces.filter_map(|(what, at)| Some((what, at.clone()?))).collect(),
        log: home.join("log"),
        data: parsed.data,
        backing: parsed.backing,
        mount: parsed.mount,
        config,
    })
}
