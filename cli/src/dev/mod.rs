//! `icecluster dev`: a whole cluster on this machine, one process per node, to try things out and to break them.
//!
//! The nodes are ordinary `icecluster -config` processes with generated configuration files, so that any of them can be
//! killed and started again by hand. Nothing is restarted automatically. When this process ends, by Ctrl-C, SIGTERM or otherwise,
//! all nodes end too, and no mount stays behind.

/// `println!`, but whoever does not want to read this any more (`icecluster dev | head`) does not end the cluster.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

mod layout;
mod mounts;

use crate::args;
use crate::ctl::{Base, Client};
use crate::daemon::PARENT_VARIABLE;
use crate::logging::LOG_VARIABLE;
use anyhow::{Context, Result, bail};
use layout::{Layout, NodeFiles};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How long all nodes together may take until they serve.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed. A little more than it gives itself.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks at the children.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Lines of a failed node's log that are shown.
const LOG_TAIL_LINES: usize = 12;

/// Starts a whole cluster on this machine, to try things out
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub nodes: u8,
    /// Directory for everything; if a cluster is there already it is started again, with its configuration files as they are.
    /// Without this a new one is made in the system's temporary directory, and removed at the end if no file was put into
    /// the cluster
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Runtime of the nodes; mixed alternates
    #[arg(long, value_enum, default_value_t = layout::Runtime::Tokio)]
    pub runtime: layout::Runtime,
    /// Do not mount: nodes notice changes made in their backing directories
    #[arg(long)]
    pub no_mount: bool,
    /// First port to try on 127.0.0.1
    #[arg(long, default_value_t = 9000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

/// Runs the cluster until a signal or Ctrl-C.
pub fn run(options: &Options) -> ExitCode {
    match run_inner(options) {
        Ok(()) => ExitCode::from(args::OK),
        Err(error) => {
            eprintln!("icecluster dev: {}", crate::daemon::words(&error));
            ExitCode::from(args::FAILED)
        }
    }
}

fn run_inner(options: &Options) -> Result<()> {
    let signals = watch_signals()?;
    let no_mount = if options.no_mount { None } else { mounts::unavailable() };
    let mount = !options.no_mount && no_mount.is_none();
    let layout = Layout::prepare(options, mount)?;
    if let Some(owner) = layout.nodes.iter().find_map(|n| n.owner()) {
        bail!("{} is in use: a node of it runs as process {}", layout.dir.display(), owner.as_raw_nonzero());
    }
    if let Some(why) = no_mount {
        say!("No mounts: {why}. Changes made in the backing directories are noticed.");
    }
    let mut cluster = Cluster { layout, children: vec![], strangers: vec![] };
    let done = cluster.start().and_then(|()| cluster.watch(&signals));
    let stopped = cluster.stop();
    let finished = cluster.layout.finish();
    done.and(stopped).and(finished)
}

fn watch_signals() -> Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signal handlers")?;
    let (sender, receiver) = sync_channel(16);
    let watch = move || {
        for signal in signals.forever() {
            // A full queue means that the end has been asked for already.
            let _ = sender.try_send(signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).context("signal thread")?;
    Ok(receiver)
}

struct Cluster {
    layout: Layout,
    /// By node; `None` once its end has been seen.
    children: Vec<Option<Child>>,
    /// By node: the process of one that was brought back by hand.
    strangers: Vec<Option<Pid>>,
}

impl Cluster {
    fn start(&mut self) -> Result<()> {
        for node in &self.layout.nodes {
            let child = spawn(node).with_context(|| format!("cannot start {}", node.name))?;
            self.children.push(Some(child));
        }
        self.layout.write_summary(&self.pids())?;
        let deadline = Instant::now() + START_LIMIT;
        for i in 0..self.layout.nodes.len() {
            self.wait_ready(i, deadline)?;
        }
        self.print();
        Ok(())
    }

    fn pids(&self) -> Vec<Option<u32>> {
        self.children.iter().map(|c| c.as_ref().map(Child::id)).collect()
    }

    fn wait_ready(&mut self, i: usize, deadline: Instant) -> Result<()> {
        let node = &self.layout.nodes[i];
        let base = Base::parse(&node.url)?;
        let client = Client::new(Duration::from_secs(2));
        loop {
            if let Some(status) = self.children[i].as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.children[i] = None;
                bail!("{} did not start: {}\n{}", node.name, describe(status), node.log_tail(LOG_TAIL_LINES));
            }
            if client.get(&base, "/ready").is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = START_LIMIT.as_secs();
                bail!("{} is not ready after {seconds} s; its log ends:\n{}", node.name, node.log_tail(LOG_TAIL_LINES));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn print(&self) {
        let (count, dir) = (self.layout.nodes.len(), self.layout.dir.display());
        say!("{count} node{} in {dir}\n", if count == 1 { "" } else { "s" });
        for (node, child) in std::iter::zip(&self.layout.nodes, &self.children) {
            let pid = child.as_ref().map_or("-".to_owned(), |c| c.id().to_string());
            say!("{}  pid {pid}  {}", node.name, node.url);
            if let Some(mount) = &node.mount {
                say!("    mount    {}", mount.display());
            }
            say!("    backing  {}", node.backing.display());
            for (what, at) in &node.faces {
                say!("    {what:<9}{at}");
            }
            say!("    config   {}", node.config.display());
            say!("    log      {}", node.log.display());
        }
        let first = &self.layout.nodes[0];
        say!("\nTry:");
        say!("    cp -r /etc/ssl {}/       # and look into the others", first.directory().display());
        say!("    {} -base {} status", program("icectl").display(), first.url);
        if let Some((_, at)) = first.faces.iter().find(|(what, _)| *what == "etcd") {
            say!("    ETCDCTL_API=3 etcdctl --endpoints=http://{at} put greeting hello");
        }
        if let (Some(last), Some(Some(child))) = (self.layout.nodes.last(), self.children.last()) {
            say!(
                "    kill -9 {}               # {} is gone; go on working, then bring it back:",
                child.id(),
                last.name
            );
            say!("    {} -config {} &", program("icecluster").display(), last.config.display());
        }
        say!("\nCtrl-C stops all nodes.");
    }

    /// Until a signal comes. A node that ends is reported, not restarted; so is one that was brought back by hand.
    fn watch(&mut self, signals: &Receiver<i32>) -> Result<()> {
        self.strangers.resize(self.layout.nodes.len(), None);
        loop {
            match signals.recv_timeout(LOOK_EVERY) {
                Ok(_) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the signal thread has ended"),
            }
            for (node, slot) in std::iter::zip(&self.layout.nodes, &mut self.children) {
                let Some(status) = slot.as_mut().map(Child::try_wait).transpose()?.flatten() else { continue };
                *slot = None;
                say!("{} has ended: {}. To bring it back:", node.name, describe(status));
                say!("    {} -config {} &", program("icecluster").display(), node.config.display());
            }
            for (i, node) in self.layout.nodes.iter().enumerate() {
                let ours = self.children.get(i).is_some_and(Option::is_some);
                let owner = if ours { None } else { node.noted() };
                let known = std::mem::replace(&mut self.strangers[i], owner);
                match (known, owner) {
                    (None, Some(pid)) => say!("{} is back: pid {}", node.name, pid.as_raw_nonzero()),
                    (Some(_), None) => say!("{} has ended. To bring it back: as above.", node.name),
                    _ => {}
                }
            }
        }
    }

    /// Stops all nodes, also those that were restarted by hand, and removes what they left mounted.
    fn stop(&mut self) -> Result<()> {
        say!("stopping");
        let mut failed = vec![];
        for child in self.children.iter().flatten() {
            signal(Pid::from_child(child), Signal::TERM);
        }
        let mut strangers: Vec<Option<Pid>> = vec![];
        for (node, child) in std::iter::zip(&self.layout.nodes, &self.children) {
            let own = child.as_ref().map(Pid::from_child);
            let stranger = node.owner().filter(|pid| Some(*pid) != own);
            if let Some(pid) = stranger {
                signal(pid, Signal::TERM);
            }
            strangers.push(stranger);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for (i, node) in self.layout.nodes.iter().enumerate() {
            if let Some(child) = self.children.get_mut(i).and_then(Option::as_mut) {
                let mut status = child.try_wait()?;
                while status.is_none() && Instant::now() < deadline {
                    std::thread::sleep(LOOK_EVERY / 5);
                    status = child.try_wait()?;
                }
                match status {
                    Some(status) if status.success() => {}
                    Some(status) => failed.push(format!("{}: {}", node.name, describe(status))),
                    None => {
                        child.kill()?;
                        child.wait()?;
                        failed.push(format!("{} did not stop and was killed", node.name));
                    }
                }
            }
            if let Some(pid) = strangers.get(i).copied().flatten() {
                while node.owner() == Some(pid) && test_kill_process(pid).is_ok() {
                    if Instant::now() >= deadline {
                        signal(pid, Signal::KILL);
                        failed.push(format!("{} did not stop and was killed", node.name));
                        break;
                    }
                    std::thread::sleep(LOOK_EVERY / 5);
                }
            }
        }
        for mount in self.layout.nodes.iter().filter_map(|n| n.mount.as_ref()) {
            if let Err(error) = mounts::release(mount) {
                failed.push(format!("{} is still mounted: {error:#}", mount.display()));
            }
        }
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
    }
}

fn signal(pid: Pid, signal: Signal) {
    // The only expected error is that it has ended by itself, which is what we want.
    let _ = kill_process(pid, signal);
}

/// A program that was installed beside this one, as the user would call it.
fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join(name)));
    beside.filter(|p| p.exists()).unwrap_or_else(|| PathBuf::from(name))
}

fn spawn(node: &NodeFiles) -> Result<Child> {
    let log = OpenOptions::new().append(true).create(true).open(&node.log)?;
    let mut command = Command::new(std::env::current_exe()?);
    // Settings for all nodes at once, such as a data directory, could only do harm.
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        let ours = bytes.starts_with(b"ICECLUSTER_") || bytes.starts_with(b"DECUBE_");
        if ours && name != LOG_VARIABLE {
            command.env_remove(name);
        }
    }
    command
        .arg("-config")
        .arg(&node.config)
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is for us; we tell the nodes.
        .process_group(0)
        .spawn()
        .context("cannot run this program again")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "it stopped in order".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}
