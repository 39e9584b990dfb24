//! In which system call a thread waits.
//!
//! The kernel tells with a request for a lock whether it came from `flock` or from `fcntl`, but fuser does not pass that on. The
//! caller waits for our answer, and `/proc/<tid>/syscall` shows in what.

use std::io::Read;

/// The kernel shows a thread's system call as soon as it sleeps, which it does right after it has sent its request.
const LOOKS: u32 = 200;

/// The number of the system call in which a thread sleeps; those of 32-bit programs that concern locks as the 64-bit ones.
/// `None`: it cannot be seen.
pub(crate) fn of(tid: u32) -> Option<i64> {
    #[cfg(test)]
    if tid == BLIND_TO.load(std::sync::atomic::Ordering::SeqCst) {
        return None;
    }
    if tid == 0 {
        return None;
    }
    let path = format!("/proc/{tid}/syscall");
    for _ in 0..LOOKS {
        let mut text = [0; 32];
        let n = std::fs::File::open(&path).and_then(|mut f| f.read(&mut text)).ok()?;
        match judge(&text[..n]) {
            Seen::Running => std::thread::yield_now(),
            Seen::In(number) => return Some(number),
            Seen::Nothing => return None,
        }
    }
    None
}

/// A thread that cannot be seen.
#[cfg(test)]
pub(crate) static BLIND_TO: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

enum Seen {
    Running,
    In(i64),
    Nothing,
}

fn judge(text: &[u8]) -> Seen {
    let word = text.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
    if word == b"running" {
        return Seen::Running;
    }
    let number = std::str::from_utf8(word).ok().and_then(|w| w.parse().ok());
    match number {
        // None of the calls that have these numbers in 64-bit programs takes locks.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Some(143) => Seen::In(libc::SYS_flock),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Some(55 | 221) => Seen::In(libc::SYS_fcntl),
        Some(number) if number >= 0 => Seen::In(number),
        // -1: in none.
        _ => Seen::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood() {
        let seen = |text: &str| match judge(text.as_bytes()) {
            Seen::Running => "running".to_owned(),
            Seen::In(n) => n.to_string(),
            Seen::Nothing => "nothing".to_owned(),
        };
        assert_eq!(seen("running\n"), "running");
        assert_eq!(seen("0 0x3 0x7f7a31799000"), "0");
        assert_eq!(seen("-1 0x7ffc 0x7f"), "nothing");
        assert_eq!(seen(""), "nothing");
        assert_eq!(seen("143 0x3"), libc::SYS_flock.to_string());
        assert_eq!(of(0), None);
        assert_eq!(of(u32::MAX), None);
    }

    /// A thread that waits for a lock in the kernel is seen doing so.
    #[test]
    fn a_waiting_thread_is_seen() {
        let dir = ice_testing::tempdir();
        let held = std::fs::File::create(dir.path().join("f")).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let path = dir.path().join("f");
        let waits = std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        });
        let tid = told.recv().unwrap();
        ice_testing::until("it waits in flock", || of(tid) == Some(libc::SYS_flock));
        drop(held);
        waits.join().unwrap();
    }
}
