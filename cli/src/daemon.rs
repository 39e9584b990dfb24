//! The life of the daemon around its node: log, signals, orderly end.
//!
//! SIGTERM and SIGINT stop the node in order, within a deadline; a second one ends the process at once. SIGHUP reopens
//! the log file, SIGUSR1 writes what the node recorded of its last steps. A panic anywhere is a bug in this program: it is logged and aborts the process, for a node whose state can no longer be
//! trusted must not go on answering.

use crate::args;
use crate::logging::LogTarget;
use anyhow::{Context, Result};
use ice_host::config::Config;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long an orderly stop may take.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a start waits for a predecessor on the same data directory to end.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);
/// Names the process that must outlive this one (`icecluster dev`): its end is taken as SIGTERM.
pub const PARENT_VARIABLE: &str = "ICECLUSTER_PARENT";

/// A node at work, as the daemon needs it.
pub trait Running {
    /// Ends its work in order, by `deadline` at the latest: no new requests, running ones answered, everything durable,
    /// the mount gone, the peers told.
    fn stop(self: Box<Self>, deadline: Instant) -> Result<()>;

    /// Writes the recording of the last steps into a file, and says which.
    fn dump(&self) -> Result<PathBuf>;
}

/// Starts a node. It may keep the handle to end the daemon when it cannot go on.
pub type Start = fn(&Config, Handle) -> Result<Box<dyn Running>>;

/// What the main thread waits for.
enum Event {
    Stop(&'static str),
    Reopen,
    Dump,
    Failed(anyhow::Error),
}

/// Lets the node end the daemon.
#[derive(Clone)]
pub struct Handle(SyncSender<Event>);

impl Handle {
    /// The node cannot go on: the daemon logs why, stops it and exits with 1.
    pub fn fail(&self, why: anyhow::Error) {
        // A full queue means that the end has been asked for already.
        let _ = self.0.try_send(Event::Failed(why));
    }
}

/// Runs a node until a signal or a failure ends it; the code to exit with.
pub fn run(config: &Config, start: Start) -> u8 {
    match run_inner(config, start) {
        Ok(()) => args::OK,
        Err(error) => {
            let why = words(&error);
            let (log_shown, terminal) =
                (config.log_file.is_none() && std::io::stdout().is_terminal(), std::io::stderr());
            if LOGGING.get().is_some() && !(log_shown && terminal.is_terminal()) {
                // On a terminal it would stand there twice.
                tracing::error!("{why}");
            }
            eprintln!("icecluster: {why}");
            args::FAILED
        }
    }
}

/// An error with its reasons in one line. Some errors name their reason themselves: it is not repeated.
pub fn words(error: &anyhow::Error) -> String {
    let mut out = error.to_string();
    for reason in error.chain().skip(1).map(ToString::to_string) {
        if !out.ends_with(&reason) {
            out.push_str(": ");
            out.push_str(&reason);
        }
    }
    out
}

/// Set once log lines go where they should.
static LOGGING: OnceLock<()> = OnceLock::new();

fn run_inner(config: &Config, start: Start) -> Result<()> {
    follow_parent()?;
    let log = LogTarget::new(config.log_file.as_deref())?;
    log.install(config.log_verbose, config.decube.log_format)?;
    let _ = LOGGING.set(());
    abort_on_panic();
    tracing::info!("icecluster version: {}, pid {}", env!("CARGO_PKG_VERSION"), std::process::id());

    if config.force_new_cluster {
        let words = "-force-new-cluster: this node's copy of the control plane's store becomes a new cluster, of which it is the only \
                     member. What the others acknowledged and this copy does not hold is gone; they are refused until they start with \
                     empty `data` and `backing`. Start this node without the flag from now on";
        tracing::warn!("{words}");
        eprintln!("icecluster: {words}");
    }
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for strange in ice_host::config::unknown_variables(variables) {
        tracing::warn!("the environment: {strange}");
    }
    raise_descriptor_limit();
    let (events, inbox) = sync_channel(16);
    watch_signals(events.clone())?;
    await_predecessor(&config.data);
    let node = start(config, Handle(events)).context("cannot start")?;
    let reason = wait(&inbox, &log, node.as_ref());
    match &reason {
        Ok(signal) => tracing::info!("{signal}: stopping"),
        Err(error) => tracing::error!("stopping: {error:#}"),
    }
    arm_watchdog(STOP_LIMIT + Duration::from_secs(2))?;
    let stopped = node.stop(Instant::now() + STOP_LIMIT).context("did not stop in order");
    reason?;
    stopped?;
    tracing::info!("stopped");
    Ok(())
}

/// Which signal asks for the end, or why the node failed.
fn wait(inbox: &Receiver<Event>, log: &LogTarget, node: &dyn Running) -> Result<&'static str> {
    loop {
        match inbox.recv().context("the signal thread has ended")? {
            Event::Stop(signal) => return Ok(signal),
            Event::Failed(error) => return Err(error),
            Event::Reopen => match log.reopen() {
                Ok(()) => tracing::info!("SIGHUP: log reopened"),
                Err(error) => tracing::error!("SIGHUP: {error:#}"),
            },
            Event::Dump => match node.dump() {
                Ok(path) => tracing::info!("SIGUSR1: tape of the last steps: {}", path.display()),
                Err(error) => tracing::error!("SIGUSR1: {error:#}"),
            },
        }
    }
}

/// Signals that follow within this time of the first one are the same request to end, not impatience.
const SAME_REQUEST: Duration = Duration::from_millis(300);

fn watch_signals(events: SyncSender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signal handlers")?;
    let watch = move || {
        let mut stopping: Option<Instant> = None;
        for signal in signals.forever() {
            let event = match signal {
                SIGHUP => Event::Reopen,
                SIGUSR1 => Event::Dump,
                // The kernel tells of a parent's death once for each of its threads: that is one request.
                _ if stopping.is_some_and(|since| since.elapsed() < SAME_REQUEST) => continue,
                _ if stopping.is_some() => {
                    tracing::warn!("second signal: ending at once");
                    std::process::exit(i32::from(args::FAILED));
                }
                _ => {
                    stopping = Some(Instant::now());
                    Event::Stop(if signal == SIGTERM { "SIGTERM" } else { "SIGINT" })
                }
            };
            // While the node is still starting nobody takes events: a few requests to reopen or dump may get lost, an end may not.
            if let (Err(std::sync::mpsc::TrySendError::Full(event)), true) =
                (events.try_send(event), stopping.is_some())
            {
                let _ = events.send(event);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).context("signal thread")?;
    Ok(())
}

/// Ends the process when an orderly stop does not come to its end.
fn arm_watchdog(limit: Duration) -> Result<()> {
    let watch = move || {
        std::thread::sleep(limit);
        tracing::error!("the stop hangs: ending without it");
        eprintln!("icecluster: the stop hangs: ending without it");
        std::process::exit(i32::from(args::FAILED));
    };
    std::thread::Builder::new().name("stop-watchdog".into()).spawn(watch).context("watchdog thread")?;
    Ok(())
}

fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!("bug: {info}\n{trace}");
        eprintln!("icecluster: bug: {info}");
        std::process::abort();
    }));
}

/// A file that a program holds open in the mount is open here, too: take what the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!("open files stay limited to {current:?}: {error}");
    }
}

#[cfg(target_os = "linux")]
fn follow_parent() -> Result<()> {
    let Ok(parent) = std::env::var(PARENT_VARIABLE) else { return Ok(()) };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    // The parent may have ended before that.
    let now = rustix::process::getppid().map(|p| p.as_raw_nonzero().to_string());
    if now.as_deref() != Some(&parent) {
        anyhow::bail!("process {parent}, which started this one, has ended");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn follow_parent() -> Result<()> {
    Ok(())
}

/// The process that runs on a data directory now, if one does: it holds a lock, and its number is in the locked file.
pub fn owner(data: &Path) -> Option<Pid> {
    let mut file = File::open(data.join("lock")).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut pid = String::new();
    file.read_to_string(&mut pid).ok()?;
    Pid::from_raw(pid.trim().parse().ok()?)
}

/// A process that was killed a moment ago may still hold its lock. One that stays is named by whoever wants the lock.
fn await_predecessor(data: &Path) {
    let end = Instant::now() + PREDECESSOR_LIMIT;
    if let Some(pid) = owner(data) {
        tracing::info!("waiting for process {} to end", pid.as_raw_nonzero());
    }
    while owner(data).is_some() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ice_host::identity::DataDir;

    #[test]
    fn no_reason_is_said_twice() {
        let io = || std::io::Error::from_raw_os_error(2);
        let own = anyhow::Error::from(io()).context(format!("/x: {}", io())).context("cannot start");
        assert_eq!(words(&own), format!("cannot start: /x: {}", io()));
        assert_eq!(words(&anyhow::anyhow!("a").context("b").context("c")), "c: b: a");
    }

    #[test]
    fn the_owner_of_a_data_directory_is_seen_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert_eq!(owner(&data), None);
        let held = DataDir::open(&data).unwrap();
        assert_eq!(owner(&data).map(|p| p.as_raw_nonzero().get()), Some(std::process::id() as i32));
        drop(held);
        assert_eq!(owner(&data), None);
    }
}
