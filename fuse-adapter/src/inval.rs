//! Tells the kernel what to forget.
//!
//! The kernel may have to wait for a directory's or a page's lock until a request is answered, so this is never done by a
//! thread that answers requests. A few threads work on a queue in which equal news are one; while one of them waits for a
//! directory's lock, that directory's further news wait, too, and the others go on. A queue that overflows is replaced by
//! forgetting everything at once.

use crate::device;
use crate::opens::OpenTable;
use fuser::{INodeNo, Notifier};
use ice_host::vfs::{ROOT_INO, Vfs};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Most news that wait.
const CAPACITY: usize = 1 << 17;
/// Threads that tell the kernel.
const THREADS: usize = 3;
/// When to repeat an invalidation that may have come before its inode was known (see module `stale`).
pub(crate) const AGAIN: Duration = Duration::from_millis(200);

/// One thing to forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    /// Attributes, and with `data` the cached pages or listing.
    Inode { ino: u64, data: bool },
    /// A name, and what stood there.
    Entry { parent: u64, name: OsString, child: Option<u64> },
}

/// Where to tell it.
pub(crate) trait Kernel: Send + Sync + 'static {
    fn inode(&self, ino: u64, data: bool);
    fn entry(&self, parent: u64, name: &OsStr, child: Option<u64>);
    fn everything(&self);
}

enum Task {
    Item(Arc<Item>),
    Everything,
}

#[derive(Default)]
struct State {
    order: VecDeque<Arc<Item>>,
    /// All that wait, in `order` or in `held`.
    waiting: HashSet<Arc<Item>>,
    /// Directories a thread is busy with, and their further news.
    held: HashMap<u64, Vec<Arc<Item>>>,
    again: VecDeque<(Instant, u64)>,
    everything: bool,
    closed: bool,
}

impl State {
    fn push(&mut self, item: Item) {
        if self.everything {
            return;
        }
        if self.waiting.len() >= CAPACITY || self.again.len() >= CAPACITY {
            warn!("too many changes at once: the kernel's cache of the mount is dropped as a whole");
            self.order.clear();
            self.waiting.clear();
            self.again.clear();
            self.held.values_mut().for_each(Vec::clear);
            self.everything = true;
            return;
        }
        let item = Arc::new(item);
        if self.waiting.insert(Arc::clone(&item)) {
            self.order.push_back(item);
        }
    }

    fn next(&mut self, now: Instant) -> Option<Task> {
        if std::mem::take(&mut self.everything) {
            return Some(Task::Everything);
        }
        while let Some(item) = self.order.pop_front() {
            if let Item::Entry { parent, .. } = &*item {
                if let Some(held) = self.held.get_mut(parent) {
                    held.push(item);
                    continue;
                }
                self.held.insert(*parent, Vec::new());
            }
            self.waiting.remove(&item);
            return Some(Task::Item(item));
        }
        let (due, ino) = *self.again.front()?;
        if due > now {
            return None;
        }
        self.again.pop_front();
        Some(Task::Item(Arc::new(Item::Inode { ino, data: false })))
    }

    /// A thread is done with a directory.
    fn unhold(&mut self, parent: u64) -> bool {
        let mut some = false;
        for item in self.held.remove(&parent).unwrap_or_default() {
            // Forgotten meanwhile if the queue overflowed.
            if self.waiting.contains(&item) {
                self.order.push_back(item);
                some = true;
            }
        }
        some
    }
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
}

impl Queue {
    /// Adds news; with `again`, inodes are repeated after a while. Never waits.
    pub(crate) fn push(&self, items: impl Iterator<Item = Item>, again: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return;
        }
        let due = Instant::now() + AGAIN;
        for item in items {
            if let (true, Item::Inode { ino, .. }) = (again, &item)
                && state.again.back().is_none_or(|last| last.1 != *ino)
            {
                state.again.push_back((due, *ino));
            }
            state.push(item);
        }
        drop(state);
        self.work.notify_one();
    }

    /// Drops what waits and ends the threads.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { closed: true, ..State::default() };
        drop(state);
        self.work.notify_all();
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(self: &Arc<Self>, kernel: &Arc<dyn Kernel>) -> io::Result<()> {
        for _ in 0..THREADS {
            let (queue, kernel) = (Arc::clone(self), Arc::clone(kernel));
            std::thread::Builder::new().name("ice-fuse-inval".into()).spawn(move || queue.run(&*kernel))?;
        }
        Ok(())
    }

    fn run(&self, kernel: &dyn Kernel) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            let now = Instant::now();
            let Some(task) = state.next(now) else {
                let due = state.again.front().map(|(due, _)| due.saturating_duration_since(now));
                state = match due {
                    Some(d) => self.work.wait_timeout(state, d).unwrap_or_else(PoisonError::into_inner).0,
                    None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
                continue;
            };
            let more = !state.order.is_empty();
            drop(state);
            if more {
                self.work.notify_one();
            }
            match &task {
                Task::Everything => kernel.everything(),
                Task::Item(item) => match &**item {
                    Item::Inode { ino, data } => kernel.inode(*ino, *data),
                    Item::Entry { parent, name, child } => kernel.entry(*parent, name, *child),
                },
            }
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Task::Item(item) = &task
                && let Item::Entry { parent, .. } = &**item
                && state.unhold(*parent)
            {
                self.work.notify_one();
            }
        }
    }
}

/// The kernel behind a mount.
pub(crate) struct Driver {
    pub(crate) notifier: Notifier,
    /// A second descriptor of the session's channel.
    pub(crate) channel: OwnedFd,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) opens: Arc<OpenTable>,
    pub(crate) mountpoint: PathBuf,
    pub(crate) mount_id: u64,
    pub(crate) read_only: bool,
}

/// `ENOENT` and the end of the session are no failures; others cannot be helped.
fn noted(what: &str, r: io::Result<()>) {
    match r.as_ref().err().and_then(Errno::from_io_error) {
        None if r.is_ok() => {}
        Some(Errno::NOENT | Errno::NOTCONN | Errno::NODEV | Errno::CONNABORTED | Errno::NOTDIR) => {}
        _ => debug!(?r, "the kernel refused to forget {what}"),
    }
}

impl Kernel for Driver {
    fn inode(&self, ino: u64, data: bool) {
        // A negative offset leaves the pages alone.
        let offset = if data { 0 } else { -1 };
        noted("an inode", self.notifier.inval_inode(INodeNo(ino), offset, 0));
    }

    fn entry(&self, parent: u64, name: &OsStr, child: Option<u64>) {
        // "Deleted" wakes inotify watchers and marks the inode as dead, a directory for good. It must not be said of what was
        // renamed, nor of what the volume merely does not know at the moment (ESTALE).
        let gone = child.filter(|c| match self.vfs.getattr(*c, None) {
            Ok(st) => st.nlink == 0,
            Err(e) => e == Errno::NOENT,
        });
        if let Some(child) = gone {
            match self.notifier.delete(INodeNo(parent), INodeNo(child), name) {
                Ok(()) => return,
                Err(e) => debug!(error = %e, "the kernel refused a deletion: the name is invalidated"),
            }
        }
        noted("a name", self.notifier.inval_entry(INodeNo(parent), name));
    }

    fn everything(&self) {
        if let Err(e) = device::new_epoch(&self.channel) {
            // Before Linux 6.16. What is in use by a process at this moment and was moved away stays visible at its old name.
            debug!(error = %e, "no epochs: dropping what is unused");
            drop_unused(&*self.vfs, &self.notifier, &self.mountpoint, self.mount_id, self.read_only);
        }
        for ino in self.opens.inodes().into_iter().chain([ROOT_INO]) {
            self.inode(ino, true);
        }
    }
}

/// Drops all names that no process holds: by a remount, and by invalidating all names of the root.
pub(crate) fn drop_unused(vfs: &dyn Vfs, notifier: &Notifier, mountpoint: &Path, mount_id: u64, read_only: bool) {
    if let Err(e) = device::remount(mountpoint, mount_id, read_only) {
        debug!(error = %e, "remount");
    }
    let mut names = Vec::new();
    let listed = vfs.opendir(ROOT_INO).and_then(|fh| {
        let r = vfs.readdir(fh, 0, false, &mut |e| {
            names.push(e.name);
            true
        });
        vfs.releasedir(fh);
        r
    });
    if let Err(e) = listed {
        debug!(error = %e, "listing the root");
    }
    for name in names.iter().filter(|n| *n != "." && *n != "..") {
        noted("a name", notifier.inval_entry(INodeNo(ROOT_INO), name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Reports each call and waits in those about directory 1 until told to go on.
    struct Fake {
        calls: Mutex<Sender<String>>,
        gate: Mutex<Receiver<()>>,
    }

    impl Fake {
        fn say(&self, s: String) {
            self.calls.lock().unwrap().send(s).unwrap();
        }
    }

    impl Kernel for Fake {
        fn inode(&self, ino: u64, data: bool) {
            self.say(format!("inode {ino} {data}"));
        }
        fn entry(&self, parent: u64, name: &OsStr, child: Option<u64>) {
            self.say(format!("entry {parent} {name:?} {child:?}"));
            if parent == 1 {
                self.gate.lock().unwrap().recv().unwrap();
            }
        }
        fn everything(&self) {
            self.say("everything".into());
        }
    }

    fn entry(parent: u64, name: &str) -> Item {
        Item::Entry { parent, name: name.into(), child: None }
    }

    #[test]
    fn a_directory_that_is_locked_holds_up_only_itself() {
        let (calls, seen) = channel();
        let (go, gate) = channel();
        let queue = Arc::<Queue>::default();
        let kernel: Arc<dyn Kernel> = Arc::new(Fake { calls: Mutex::new(calls), gate: Mutex::new(gate) });
        queue.start(&kernel).unwrap();
        let next = || seen.recv_timeout(Duration::from_secs(20)).unwrap();
        queue.push([entry(1, "a")].into_iter(), false);
        assert_eq!(next(), "entry 1 \"a\" None");
        queue.push([entry(1, "b"), entry(1, "c"), entry(1, "b"), entry(2, "d")].into_iter(), false);
        assert_eq!(next(), "entry 2 \"d\" None");
        for name in ["b", "c"] {
            go.send(()).unwrap();
            assert_eq!(next(), format!("entry 1 {name:?} None"));
        }
        go.send(()).unwrap();
        queue.push([Item::Inode { ino: 9, data: true }].into_iter(), true);
        assert_eq!([next(), next()], ["inode 9 true", "inode 9 false"], "and once more after a while");
        queue.close();
    }

    #[test]
    fn an_overflow_becomes_forgetting_everything() {
        let mut state = State::default();
        let now = Instant::now();
        state.push(entry(1, "x"));
        assert!(matches!(state.next(now), Some(Task::Item(_))));
        for ino in 0..=CAPACITY as u64 {
            state.push(Item::Inode { ino, data: true });
        }
        assert!(matches!(state.next(now), Some(Task::Everything)));
        assert!(state.next(now).is_none());
        state.push(Item::Inode { ino: 1, data: false });
        assert!(matches!(state.next(now), Some(Task::Item(_))));
        assert!(!state.unhold(1));
    }
}
