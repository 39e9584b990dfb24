//! inotify: hints that somebody edited `backing` directly. Every directory has a watch of its own, set when a scan lists it
//! or when it is made; events lead straight to the directory's inode, wherever it was moved. Our own changes cause events
//! too: a look at the name then finds disk and tree in agreement.

use super::Shared;
use ice_core::ids::{InodeId, Name};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long events may gather in the kernel's queue, which holds 16384 of them by default.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes of events read at once.
const READ_BYTES: usize = 64 * 1024;

/// The watches.
pub(crate) struct Watch {
    fd: OwnedFd,
    dirs: Mutex<HashMap<i32, InodeId>>,
}

impl Watch {
    /// `None` where there is no such thing.
    pub(crate) fn new() -> Result<Option<Watch>, Errno> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Some(Watch { fd, dirs: Mutex::default() }))
    }
}

impl Shared {
    /// Watches a directory. Watching one again is harmless.
    pub(crate) fn watch_dir(&self, watch: &Watch, dir: InodeId, fd: &OwnedFd) {
        let what = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        match inotify::add_watch(&watch.fd, super::sys::fd_path(fd.as_fd()), what) {
            Ok(wd) => {
                watch.dirs.lock().unwrap_or_else(PoisonError::into_inner).insert(wd, dir);
            }
            Err(Errno::NOSPC) => {
                let words = "not every directory of backing is watched (raise fs.inotify.max_user_watches): direct edits \
                             there are only found by scans";
                self.trouble("watch", words.to_owned());
            }
            // Removed meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => self.trouble("watch", format!("a directory of backing cannot be watched: {e}")),
        }
    }

    pub(crate) fn run_watch(&self) {
        let Some(watch) = &self.watch else { return };
        let mut buf = vec![MaybeUninit::<u8>::uninit(); READ_BYTES];
        while !self.stopping() {
            if !readable(&watch.fd) {
                continue;
            }
            // Gathering comes first: hints wait for their like anyway, and a busy volume is read in large pieces.
            std::thread::sleep(GATHER);
            let mut found = HashMap::new();
            let mut reader = inotify::Reader::new(watch.fd.as_fd(), &mut buf);
            loop {
                match reader.next() {
                    Ok(event) => self.note_event(watch, &event, &mut found),
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(e) => {
                        self.trouble("watch", format!("direct edits are only found by scans: inotify: {e}"));
                        return;
                    }
                }
            }
            if !found.is_empty() {
                self.hints.listed_names(found);
            }
        }
    }

    fn note_event(&self, watch: &Watch, event: &inotify::Event<'_>, found: &mut HashMap<(InodeId, Name), bool>) {
        let events = event.events();
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.hints.all();
            return;
        }
        let mut dirs = watch.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if events.contains(ReadFlags::IGNORED) {
            dirs.remove(&event.wd());
            return;
        }
        let Some(dir) = dirs.get(&event.wd()).copied() else { return };
        drop(dirs);
        let Some(name) = event.file_name().and_then(|n| Name::new(n.to_bytes())) else { return };
        // Under a name that was free a moment ago, a directory may be full already when its watch is set.
        let list = events.contains(ReadFlags::ISDIR) && events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        *found.entry((dir, name)).or_default() |= list;
    }
}

/// Waits until there is something to read, some 100 milliseconds at most.
fn readable(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd for the length of the call.
    unsafe { libc::poll(&mut poll, 1, 300) > 0 }
}
