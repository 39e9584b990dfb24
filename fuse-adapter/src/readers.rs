//! Which of a mount's threads wait for the kernel's next request.
//!
//! Each request wakes one thread that waits for it, another one each time, and sleeping and waking cost more than most requests
//! are work. So as few as possible wait: whoever is done with a request looks for the next one for a moment before it sleeps, as
//! a program that asks one thing after the other sends it at once; and if somebody else waits already, it stands by.
//!
//! Another thread is called when a request is going to take long, when more of them wait than are being read, and by a watcher
//! when for a while nobody read any. So a request never waits longer for a thread than [`STUCK`], as long as one is free.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// So long a thread looks for the next request before it sleeps.
const LOOK: Duration = Duration::from_micros(20);
/// Requests that nobody reads for about so long make the watcher call another thread.
const STUCK: Duration = Duration::from_millis(2);
/// Without any request for so long the watcher sleeps.
const LINGER: Duration = Duration::from_millis(100);
/// How often it looks then whether the session has ended.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Bench {
    /// Threads that stand by.
    waiting: usize,
    /// How many of them are called and have not left yet.
    called: usize,
    /// Nobody stands by any more.
    closed: bool,
}

/// See the module.
pub(crate) struct Readers {
    /// A copy of the session's channel.
    channel: OwnedFd,
    look: Duration,
    bench: Mutex<Bench>,
    call: Condvar,
    /// Threads that read the next request, or are about to.
    reading: AtomicUsize,
    /// Requests that were begun.
    begun: AtomicU64,
    asleep: AtomicBool,
    watch: Mutex<()>,
    kick: Condvar,
}

/// A request that is being answered.
pub(crate) struct Busy<'t>(&'t Readers);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Readers {
    /// For a session with so many threads, all of which read at first.
    ///
    /// # Errors
    /// The watcher's thread cannot be started.
    pub(crate) fn start(channel: OwnedFd, threads: usize) -> io::Result<Arc<Readers>> {
        let alone = std::thread::available_parallelism().is_ok_and(|n| n.get() == 1);
        let readers = Arc::new(Readers {
            channel,
            // Where there is one processor only, nothing comes while we look.
            look: if alone { Duration::ZERO } else { LOOK },
            bench: Mutex::default(),
            call: Condvar::new(),
            reading: AtomicUsize::new(threads),
            begun: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            watch: Mutex::new(()),
            kick: Condvar::new(),
        });
        if threads > 1 {
            let weak = Arc::downgrade(&readers);
            std::thread::Builder::new().name("ice-fuse-reads".into()).spawn(move || watch(&weak))?;
        }
        Ok(readers)
    }

    fn bench(&self) -> MutexGuard<'_, Bench> {
        self.bench.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the channel has: `IN`, a request; `ERR`, the session has ended.
    fn state(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    /// This thread has read a request. `long`: answering it takes a while.
    pub(crate) fn begin(&self, long: bool) -> Busy<'_> {
        let last = self.reading.fetch_sub(1, Ordering::SeqCst) == 1;
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.wake_watcher();
        if last && (long || self.state().contains(PollFlags::IN)) {
            self.call_one();
        }
        Busy(self)
    }

    fn end(&self) {
        if self.reading.load(Ordering::SeqCst) == 0 {
            let since = Instant::now();
            loop {
                if !self.state().is_empty() || since.elapsed() >= self.look {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        let mut bench = self.bench();
        if self.reading.load(Ordering::SeqCst) == 0 || bench.closed || !self.state().is_empty() {
            self.reading.fetch_add(1, Ordering::SeqCst);
            return;
        }
        bench.waiting += 1;
        let mut bench =
            self.call.wait_while(bench, |b| b.called == 0 && !b.closed).unwrap_or_else(PoisonError::into_inner);
        bench.waiting -= 1;
        if bench.called > 0 {
            // Who called has counted this thread among the readers.
            bench.called -= 1;
        } else {
            self.reading.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn call_one(&self) {
        let mut bench = self.bench();
        if bench.waiting > bench.called {
            bench.called += 1;
            self.reading.fetch_add(1, Ordering::SeqCst);
            drop(bench);
            self.call.notify_one();
        }
    }

    /// All threads read from now on, so that each sees the end of the session.
    pub(crate) fn close(&self) {
        self.bench().closed = true;
        self.call.notify_all();
        self.wake_watcher();
    }

    fn wake_watcher(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It looks again under this lock before it sleeps.
            drop(self.watch.lock().unwrap_or_else(PoisonError::into_inner));
            self.kick.notify_one();
        }
    }
}

/// The watcher's life.
fn watch(readers: &Weak<Readers>) {
    let (mut seen, mut since) = (0, Instant::now());
    while let Some(readers) = readers.upgrade() {
        let begun = readers.begun.load(Ordering::SeqCst);
        let quiet = begun == seen;
        if !quiet {
            (seen, since) = (begun, Instant::now());
        }
        let read = readers.reading.load(Ordering::SeqCst) > 0;
        if quiet && !read {
            readers.call_one();
        }
        let guard = readers.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.bench().closed {
            return;
        }
        if since.elapsed() < LINGER || !read {
            drop(guard);
            drop(readers);
            std::thread::sleep(STUCK);
            continue;
        }
        readers.asleep.store(true, Ordering::SeqCst);
        if readers.begun.load(Ordering::SeqCst) == seen {
            drop(
                readers
                    .kick
                    .wait_timeout_while(guard, IDLE, |()| readers.asleep.load(Ordering::SeqCst))
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        readers.asleep.store(false, Ordering::SeqCst);
        if readers.state().intersects(PollFlags::ERR | PollFlags::HUP) {
            readers.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn who_is_stuck_holds_up_nobody_and_the_end_is_seen_by_all() {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let readers = Readers::start(theirs.try_clone().unwrap(), 2).unwrap();
        let (tell, seen) = channel();
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (readers, tell, gate, theirs) =
                    (Arc::clone(&readers), tell.clone(), Arc::clone(&gate), theirs.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut request = [0];
                    while rustix::net::recv(&theirs, &mut request, RecvFlags::empty()).unwrap().0 > 0 {
                        let _busy = readers.begin(false);
                        tell.send(request[0]).unwrap();
                        if request[0] == 0 {
                            gate.lock().unwrap().recv_timeout(LONG).unwrap();
                        }
                    }
                })
            })
            .collect();
        let ask = |n: u8| assert_eq!(rustix::net::send(&ours, &[n], SendFlags::empty()), Ok(1));
        for round in 0..20 {
            for n in 1..50 {
                ask(n);
                assert_eq!(seen.recv_timeout(LONG), Ok(n));
            }
            if round % 4 == 3 {
                // Long enough for the watcher to sleep.
                std::thread::sleep(LINGER * 2);
            }
            ice_testing::until("one stands by", || readers.bench().waiting == 1);
            ask(0);
            assert_eq!(seen.recv_timeout(LONG), Ok(0), "one is stuck from here on");
            ask(1);
            assert_eq!(seen.recv_timeout(LONG), Ok(1), "the other was called");
            go.send(()).unwrap();
        }
        // The one that waits ends by itself. Nobody tells the other one but the watcher, which sees the channel's end.
        drop(ours);
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
