//! The life around a node: signals, log, panics, failures. The node here is a dummy; each case is a process of its own.

use ice_cli::daemon::{self, Handle, Running};
use ice_host::config::Config;
use ice_testing::Process;
use rustix::process::Signal;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KIND: &str = "DUMMY_NODE";
const LOG: &str = "DUMMY_NODE_LOG";

struct Dummy(String);

impl Running for Dummy {
    fn stop(self: Box<Self>, deadline: Instant) -> anyhow::Result<()> {
        assert!(deadline > Instant::now());
        match self.0.as_str() {
            "hangs" => loop {
                tracing::info!("hanging");
                std::thread::sleep(Duration::from_millis(10));
            },
            "stops badly" => anyhow::bail!("the disk is gone"),
            _ => Ok(()),
        }
    }

    fn dump(&self) -> anyhow::Result<PathBuf> {
        if self.0 == "records" { Ok("/the/tape".into()) } else { anyhow::bail!("nothing is recorded") }
    }
}

fn start(_: &Config, handle: Handle) -> anyhow::Result<Box<dyn Running>> {
    let kind = std::env::var(KIND)?;
    match kind.as_str() {
        "does not start" => anyhow::bail!("no such luck"),
        "fails" => handle.fail(anyhow::anyhow!("the log is full")),
        "panics" => {
            std::thread::spawn(|| panic!("two and two are five"));
        }
        _ => {}
    }
    tracing::info!("started");
    Ok(Box::new(Dummy(kind)))
}

/// Not a test by itself: what the tests below start.
#[test]
fn process() {
    if std::env::var_os(KIND).is_none() {
        return;
    }
    let config = Config { log_file: std::env::var_os(LOG).map(PathBuf::from), ..Config::default() };
    std::process::exit(daemon::run(&config, start).into());
}

fn stderr_of(log: &Path) -> PathBuf {
    log.with_file_name(format!("{}.stderr", log.file_name().unwrap().display()))
}

fn spawn(kind: &str, log: &Path) -> Process {
    let mut command = ice_testing::command(std::env::current_exe().unwrap());
    command.args(["--exact", "process", "--nocapture"]).env(KIND, kind).env(LOG, log);
    command.env_remove("ICECLUSTER_LOG").stderr(File::create(stderr_of(log)).unwrap());
    Process::spawn(&mut command)
}

fn until_logged(log: &Path, words: &str) {
    ice_testing::until(&format!("logged: {words}"), || {
        std::fs::read_to_string(log).unwrap_or_default().contains(words)
    });
}

/// Exit code (`None`: killed by a signal), log, standard error.
fn end(child: Process, log: &Path) -> (Option<i32>, String, String) {
    let status = child.wait();
    (status.code(), std::fs::read_to_string(log).unwrap_or_default(), std::fs::read_to_string(stderr_of(log)).unwrap())
}

#[test]
fn a_signal_stops_it_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for (name, signal) in [("TERM", Signal::TERM), ("INT", Signal::INT)] {
        let log = dir.path().join(name);
        let child = spawn("well", &log);
        until_logged(&log, "started");
        child.signal(signal);
        let (code, log, _) = end(child, &log);
        assert_eq!(code, Some(0));
        assert!(log.contains(&format!("SIG{name}: stopping")) && log.trim_end().ends_with("stopped"), "{log}");
    }
}

#[test]
fn a_second_signal_ends_a_stop_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let child = spawn("hangs", &log);
    until_logged(&log, "started");
    child.signal(Signal::TERM);
    until_logged(&log, "hanging");
    // Signals that come together are one request.
    std::thread::sleep(std::time::Duration::from_millis(500));
    child.signal(Signal::INT);
    let (code, log, _) = end(child, &log);
    assert_eq!(code, Some(1));
    assert!(log.contains("second signal"), "{log}");
}

#[test]
fn sighup_opens_the_log_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (log, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
    let child = spawn("well", &log);
    until_logged(&log, "started");
    std::fs::rename(&log, &rotated).unwrap();
    child.signal(Signal::HUP);
    until_logged(&log, "log reopened");
    child.signal(Signal::TERM);
    assert_eq!(end(child, &log).0, Some(0));
    assert!(!std::fs::read_to_string(rotated).unwrap().contains("reopened"));
}

#[test]
fn sigusr1_dumps_the_tape_and_nothing_ends() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, words) in [("records", "tape of the last steps: /the/tape"), ("well", "SIGUSR1: nothing is recorded")] {
        let log = dir.path().join(kind);
        let child = spawn(kind, &log);
        until_logged(&log, "started");
        child.signal(Signal::USR1);
        until_logged(&log, words);
        child.signal(Signal::TERM);
        assert_eq!(end(child, &log).0, Some(0));
    }
}

#[test]
fn failures_are_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, words) in [("does not start", "cannot start: no such luck"), ("fails", "the log is full")] {
        let log = dir.path().join(kind);
        let (code, log, error) = end(spawn(kind, &log), &log);
        assert_eq!((code, error), (Some(1), format!("icecluster: {words}\n")));
        assert!(log.contains(words), "{log}");
    }
    let log = dir.path().join("bad");
    let child = spawn("stops badly", &log);
    until_logged(&log, "started");
    child.signal(Signal::TERM);
    let (code, _, error) = end(child, &log);
    assert_eq!((code, error.as_str()), (Some(1), "icecluster: did not stop in order: the disk is gone\n"));
}

#[test]
fn a_panic_anywhere_is_told_and_aborts() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let (code, log, error) = end(spawn("panics", &log), &log);
    assert_eq!(code, None);
    assert!(log.contains("bug:") && log.contains("two and two are five"), "{log}");
    assert!(error.contains("two and two are five"), "{error}");
}
