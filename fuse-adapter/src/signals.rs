//! Which processes that wait for an answer want to leave.
//!
//! fuser does not serve the kernel's interrupt requests, and a thread that waits for a request this process has read sleeps
//! uninterruptibly, even if it is to be killed. Its pending signals can be seen, though, in `/proc/<tid>/status`.

use std::io::Read;

/// Signals that end the wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Sent to this thread, or fatal to all threads.
    pub thread: bool,
    /// Sent to the process, where another thread may still take it.
    pub shared: bool,
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that stop a process: the wait goes on, as a system call restarted after `SIGCONT` would.
const STOP: u64 = bit(libc::SIGSTOP) | bit(libc::SIGTSTP) | bit(libc::SIGTTIN) | bit(libc::SIGTTOU);
/// Signals that do nothing by default.
const HARMLESS: u64 = bit(libc::SIGCHLD) | bit(libc::SIGCONT) | bit(libc::SIGURG) | bit(libc::SIGWINCH);
/// Caught signals that interrupt: those by which a person asks a program to end. Others (timers of progress displays and
/// profilers, the preemption signals of language runtimes) would make `fsync` and `close` fail in programs that rightly
/// expect them not to, since whether a handler asked for restart cannot be seen from outside.
const CAUGHT: u64 = bit(libc::SIGHUP) | bit(libc::SIGINT) | bit(libc::SIGQUIT) | bit(libc::SIGTERM);

/// Looks at a thread. One that cannot be seen wants nothing. With `every`, every signal that is caught ends its wait.
pub(crate) fn look(tid: u32, every: bool) -> Wanted {
    if tid == 0 {
        return Wanted::default();
    }
    let mut text = String::with_capacity(2048);
    let Ok(file) = std::fs::File::open(format!("/proc/{tid}/status")) else { return Wanted::default() };
    match file.take(64 << 10).read_to_string(&mut text) {
        Ok(_) => judge(&text, every),
        Err(_) => Wanted::default(),
    }
}

fn judge(status: &str, every: bool) -> Wanted {
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let (Some(own), Some(shared), Some(blocked), Some(ignored), Some(caught)) =
        (field("SigPnd"), field("ShdPnd"), field("SigBlk"), field("SigIgn"), field("SigCgt"))
    else {
        return Wanted::default();
    };
    let fatal = !(caught | ignored | HARMLESS | STOP);
    let interrupting = (fatal | (caught & if every { u64::MAX } else { CAUGHT })) & !blocked | bit(libc::SIGKILL);
    Wanted { thread: own & interrupting != 0, shared: shared & interrupting != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(own: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> Wanted {
        status_of(own, shared, blocked, ignored, caught, false)
    }

    fn status_of(own: u64, shared: u64, blocked: u64, ignored: u64, caught: u64, every: bool) -> Wanted {
        let text = format!(
            "Name:\tx\nState:\tD (disk sleep)\nSigQ:\t1/9\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        );
        judge(&text, every)
    }

    #[test]
    fn only_signals_that_should_end_a_wait_do() {
        let (int, kill, alrm, stop) = (bit(libc::SIGINT), bit(libc::SIGKILL), bit(libc::SIGALRM), bit(libc::SIGSTOP));
        let thread = Wanted { thread: true, shared: false };
        let shared = Wanted { thread: false, shared: true };
        assert_eq!(status(kill, 0, 0, 0, 0), thread);
        assert_eq!(status(kill, 0, u64::MAX, 0, 0), thread, "nobody blocks SIGKILL");
        assert_eq!(status(0, int, 0, 0, 0), shared, "fatal by default");
        assert_eq!(status(0, int, 0, 0, int), shared, "caught");
        assert_eq!(status(0, int, int, 0, int), Wanted::default(), "blocked");
        assert_eq!(status(0, alrm, 0, 0, alrm), Wanted::default(), "a timer's handler");
        assert_eq!(status_of(0, alrm, 0, 0, alrm, true), shared, "a timer's handler, where it may interrupt");
        assert_eq!(status_of(0, alrm, alrm, 0, alrm, true), Wanted::default(), "blocked all the same");
        assert_eq!(status(0, alrm, 0, 0, 0), shared, "a timer that kills");
        assert_eq!(status(stop, stop, 0, 0, 0), Wanted::default());
        assert_eq!(status(0, bit(libc::SIGURG), 0, 0, bit(libc::SIGURG)), Wanted::default());
        assert_eq!(judge("Name:\tx\n", true), Wanted::default());
        assert_eq!(look(std::process::id(), true), Wanted::default());
        assert_eq!(look(0, false), Wanted::default());
    }
}
