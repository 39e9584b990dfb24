//! Where somebody should look again: gathered for a moment, so that the two ends of a move are looked at together.

use super::port::Port;
use ice_core::action::Spot;
use ice_core::ids::{InodeId, Name};
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long hints are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// When to look again at what could not be settled.
const LATER: Duration = Duration::from_secs(1);
/// More hints than this become a scan of everything.
const HINTS_MAX: usize = 64 * 1024;

#[derive(Default)]
pub(crate) struct Hints {
    inner: Mutex<Inner>,
    more: Condvar,
}

#[derive(Default)]
struct Inner {
    work: Work,
    since: Option<Instant>,
    later: Vec<(Instant, Later)>,
    stopped: bool,
    scanning_all: bool,
    /// Handed out and not done yet.
    looking: usize,
}

enum Later {
    Name(InodeId, Name),
    Inode(InodeId),
}

/// What to look at.
#[derive(Default)]
pub(crate) struct Work {
    /// Single names. `true`: if a directory stands there, list it as well.
    pub(crate) names: HashMap<(InodeId, Name), bool>,
    /// Directories, with all that is below.
    pub(crate) dirs: HashSet<InodeId>,
    /// Inodes, wherever they stand; the core waits for an answer about each.
    pub(crate) inodes: HashSet<InodeId>,
    /// Everything.
    pub(crate) all: bool,
}

impl Work {
    fn len(&self) -> usize {
        self.names.len() + self.inodes.len() + self.dirs.len()
    }
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.len() == 0 && !self.all
    }
}

impl Hints {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, put: impl FnOnce(&mut Work)) {
        let mut inner = self.inner();
        put(&mut inner.work);
        if inner.work.len() > HINTS_MAX {
            inner.work.names.clear();
            inner.work.dirs.clear();
            inner.work.all = true;
        }
        if inner.since.is_none() {
            inner.since = Some(Instant::now());
            self.more.notify_all();
        }
    }

    /// Look at everything.
    pub(crate) fn all(&self) {
        self.add(|w| w.all = true);
    }

    /// A look at everything is due or under way.
    pub(crate) fn all_due(&self) -> bool {
        let inner = self.inner();
        inner.work.all || inner.scanning_all
    }

    /// A scan of everything has ended.
    pub(crate) fn all_done(&self) {
        self.inner().scanning_all = false;
    }

    /// Names and inodes that wait to be looked at, or are being looked at.
    pub(crate) fn due(&self) -> usize {
        let inner = self.inner();
        inner.work.len() + inner.later.len() + inner.looking
    }

    /// Look at a name.
    pub(crate) fn name(&self, dir: InodeId, name: Name) {
        self.add(|w| {
            w.names.entry((dir, name)).or_default();
        });
    }

    /// Look at many names.
    pub(crate) fn names(&self, names: impl Iterator<Item = (InodeId, Name)>) {
        self.add(|w| {
            names.for_each(|n| {
                w.names.entry(n).or_default();
            })
        });
    }

    /// Look at many names; `true`: list a directory that stands there.
    #[cfg(all(target_os = "linux", not(feature = "portable")))]
    pub(crate) fn listed_names(&self, names: HashMap<(InodeId, Name), bool>) {
        self.add(|w| names.into_iter().for_each(|(n, list)| *w.names.entry(n).or_default() |= list));
    }

    /// Look at a place.
    pub(crate) fn spot(&self, spot: &Spot) {
        if let Spot::At { parent, name } = spot {
            self.name(*parent, name.clone());
        }
    }

    /// Look at all that is below a directory.
    pub(crate) fn dir(&self, dir: InodeId) {
        self.add(|w| {
            w.dirs.insert(dir);
        });
    }

    /// Look at an inode, and answer.
    pub(crate) fn inode(&self, inode: InodeId) {
        self.add(|w| {
            w.inodes.insert(inode);
        });
    }

    /// Look at every name on the way to a directory.
    pub(crate) fn way(&self, port: &dyn Port, dir: InodeId) {
        let way = port.look(|names| {
            let (None, path) = names.locate(dir)? else { return None };
            let mut at = InodeId::ROOT;
            let mut way = Vec::with_capacity(path.len());
            for name in path {
                let next = names.child(at, &name)?;
                way.push((at, name));
                at = next;
            }
            Some(way)
        });
        if let Some(way) = way {
            self.names(way.into_iter());
        }
    }

    /// Look at a name in a while.
    pub(crate) fn later_name(&self, dir: InodeId, name: Name) {
        self.put_off(Later::Name(dir, name));
    }

    /// Look at an inode in a while.
    pub(crate) fn later_inode(&self, inode: InodeId) {
        self.put_off(Later::Inode(inode));
    }

    fn put_off(&self, what: Later) {
        let mut inner = self.inner();
        if inner.later.len() >= HINTS_MAX {
            inner.later.clear();
            inner.work.all = true;
            inner.since.get_or_insert_with(Instant::now);
        } else {
            inner.later.push((Instant::now() + LATER, what));
        }
        self.more.notify_all();
    }

    /// Ends [`Hints::next`] soon.
    pub(crate) fn wake(&self) {
        self.inner().stopped = true;
        self.more.notify_all();
    }

    /// Waits for hints, `idle` at most, and for a moment longer to gather their like. `None`: stopped.
    pub(crate) fn next(&self, idle: Duration) -> Option<Work> {
        let until = Instant::now() + idle;
        let mut inner = self.inner();
        loop {
            if inner.stopped {
                return None;
            }
            inner.looking = 0;
            let now = Instant::now();
            let Inner { work, later, .. } = &mut *inner;
            // In the order in which they were put off.
            let due = later.iter().take_while(|(at, _)| *at <= now).count();
            for (_, what) in later.drain(..due) {
                match what {
                    Later::Name(dir, name) => {
                        work.names.entry((dir, name)).or_default();
                    }
                    Later::Inode(inode) => {
                        work.inodes.insert(inode);
                    }
                }
            }
            if due > 0 {
                inner.since.get_or_insert(now - GATHER);
            }
            let ready = inner.since.map(|s| s + GATHER);
            if ready.is_some_and(|r| r <= now) || now >= until {
                inner.since = None;
                let work = std::mem::take(&mut inner.work);
                inner.scanning_all |= work.all;
                inner.looking = work.len();
                return Some(work);
            }
            let put_off = inner.later.first().map(|(at, _)| *at);
            let wake = [ready, put_off].into_iter().flatten().fold(until, Instant::min);
            let (guard, _) = self
                .more
                .wait_timeout(inner, wake.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner);
            inner = guard;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_hints_become_one_scan() {
        let hints = Hints::default();
        for i in 0..=HINTS_MAX {
            hints.name(InodeId(1), Name::new(format!("n{i}").as_bytes()).unwrap());
        }
        let work = hints.next(Duration::from_secs(5)).unwrap();
        assert!(work.all && work.names.len() <= 1);
        assert!(hints.all_due());
        hints.all_done();
        assert!(!hints.all_due());
        assert!(hints.next(Duration::ZERO).unwrap().is_empty());
        hints.wake();
        assert!(hints.next(Duration::from_secs(5)).is_none());
    }
}
