//! What tests start, mount and create, ended with the test, however it ends.
//!
//! A test that leaves a process behind does not only waste memory: where that process inherited an output, whoever reads the
//! test's output waits for ever. So here no child gets the test's own input or outputs, every child has a limit and is
//! killed and awaited when it is dropped, and a guardian outside of the test process does all of this once more when the test
//! process is killed itself, or hangs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take that a test waits for and that should come by itself. Only a test that fails waits that long, so
/// it is generous: machines that build and test many things at once stand still for seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long one test process, with all its tests, may run.
const PROCESS_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The environment variable that marks what a test process started, and names its directories.
const MARK: &str = "ICE_TEST_MARK";

/// Where it works in memory.
const MEMORY: &str = "/dev/shm";

struct Guard {
    name: String,
    root: PathBuf,
}

/// The guardian of this process, started when it is first needed. A process that was started by a guarded test belongs to
/// that test's guardian.
#[allow(clippy::zombie_processes, reason = "the guardian outlives this process")]
fn guard() -> &'static Guard {
    static GUARD: OnceLock<Guard> = OnceLock::new();
    GUARD.get_or_init(|| {
        let temp = std::env::temp_dir().canonicalize().expect("the system's temporary directory");
        if let Ok(name) = std::env::var(MARK) {
            return Guard { root: temp.join(&name), name };
        }
        let root = tempfile::Builder::new().prefix("icetest-").tempdir_in(&temp).expect("a directory for tests").keep();
        let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&root, open).expect("permissions of the directory for tests");
        let name = root.file_name().expect("a name").to_str().expect("a name that is text").to_owned();
        // It finds everything in `/proc`.
        if !cfg!(target_os = "linux") {
            return Guard { name, root };
        }
        let mut command = Command::new("bash");
        command.args(["-c", include_str!("guardian.sh"), "guardian.sh"]);
        command.args([std::process::id().to_string(), format!("{MARK}={name}")]);
        command.arg(PROCESS_LIMIT.as_secs().to_string()).arg(&root).arg(Path::new(MEMORY).join(&name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Whoever watches over this process by its environment must not take the guardian for a leftover: it goes by itself.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        // What a terminal sends to the test is not for the guardian.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.current_dir("/").spawn().expect("bash, which guards tests");
        Guard { name, root }
    })
}

/// A new directory, gone when it is dropped, and at the latest when the process ends. Others may look into it.
pub fn tempdir() -> TempDir {
    new_dir(&guard().root)
}

/// As [`tempdir`], but in memory, where the system has such a place and room in it.
pub fn memory_dir() -> TempDir {
    let root = Path::new(MEMORY).join(&guard().name);
    if Path::new(MEMORY).is_dir() && std::fs::create_dir_all(&root).is_ok() { new_dir(&root) } else { tempdir() }
}

fn new_dir(root: &Path) -> TempDir {
    let dir = tempfile::Builder::new().prefix("t").tempdir_in(root).expect("a temporary directory");
    let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("permissions of a temporary directory");
    dir
}

/// A program to be started: with nothing as input and outputs, and known to the guardian.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env(MARK, &guard().name).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A child process, killed after [`PATIENCE`] (or another limit), and when it is dropped.
pub struct Process {
    child: Arc<Mutex<Child>>,
    id: u32,
    program: String,
    limit: Duration,
    /// Dropped: nobody needs to be killed any more.
    _watched: SyncSender<()>,
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts what [`command`] made.
    pub fn spawn(command: &mut Command) -> Process {
        Process::spawn_for(command, PATIENCE)
    }

    /// The same with a limit of its own.
    pub fn spawn_for(command: &mut Command, limit: Duration) -> Process {
        assert!(command.get_envs().any(|(k, _)| k == MARK), "not made by `command`: {command:?}");
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        let (watched, watch) = sync_channel::<()>(0);
        let (watching, name) = (Arc::clone(&child), program.clone());
        std::thread::spawn(move || {
            if watch.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} (process {id}) is killed: it was given {limit:?}");
                // It may have ended by itself just now.
                let _ = lock(&watching).kill();
            }
        });
        Process { child, id, program, limit, _watched: watched }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its input, if that is a pipe. Once.
    pub fn stdin(&self) -> std::process::ChildStdin {
        lock(&self.child).stdin.take().expect("an input that is a pipe, for the first time")
    }

    /// Its output, if that is a pipe. Once.
    pub fn stdout(&self) -> std::process::ChildStdout {
        lock(&self.child).stdout.take().expect("an output that is a pipe, for the first time")
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().expect("a child can be looked at")
    }

    /// Waits for its end, which comes at the latest with its limit.
    pub fn wait(&self) -> ExitStatus {
        self.wait_for(self.limit + PATIENCE)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It has not ended within `limit`.
    pub fn wait_for(&self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < limit, "{} (process {}) does not end within {limit:?}", self.program, self.id);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let mut child = lock(&self.child);
        let ended = child.try_wait().expect("a child can be looked at");
        assert_eq!(ended, None, "{} (process {}) has ended already", self.program, self.id);
        let pid = rustix::process::Pid::from_child(&child);
        // The child is not reaped before the lock is free, so its number is still its own.
        rustix::process::kill_process(pid, signal).unwrap_or_else(|e| panic!("{} ({}): {e}", self.program, self.id));
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = lock(&self.child).kill();
        self.wait_for(PATIENCE);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Already reaped is as good.
        let _ = child.kill();
        let start = Instant::now();
        // Not awaited without a limit: what waits in a hanging mount cannot even be killed. The guardian sees to it.
        while matches!(child.try_wait(), Ok(None)) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Runs a program to its end, which must come within [`PATIENCE`]. Its outputs go through files, so that it does not matter who
/// else holds them.
pub fn output(command: &mut Command) -> Output {
    let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let again = |f: &File| f.try_clone().expect("a descriptor");
    let process = Process::spawn(command.stdout(again(&out)).stderr(again(&err)));
    let status = process.wait();
    Output { status, stdout: whole(out), stderr: whole(err) }
}

fn whole(mut file: File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut all = vec![];
    file.seek(io::SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut all)).expect("what was written can be read");
    all
}

/// The last `lines` of a text file, for the message of a failure.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Waits until `condition` holds.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many file systems are mounted below a directory.
pub fn mounts_below(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let below = |line: &&str| line.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir));
    table.lines().filter(below).count()
}
