//! Changes that stand in `backing` and were reported to the core, but that its tree may not show yet: the core takes the
//! events of a batch step by step. A scan must not take them for direct edits.

use super::Shared;
use ice_core::action::Spot;
use ice_core::ids::{InodeId, Name};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this the tree has the last word whatever was expected.
const EXPECTED_FOR: Duration = Duration::from_secs(30);

/// What the tree will show at a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// This inode.
    Is(InodeId),
    /// Anything but this inode.
    Not(InodeId),
    /// Whatever: the core chooses the inode itself.
    Taken,
}

#[derive(Default)]
pub(crate) struct Unsettled {
    map: Mutex<HashMap<(InodeId, Name), (Expect, Instant)>>,
    len: AtomicUsize,
}

impl Shared {
    /// Called with the namespace lock held, after a completion was handed in: remembers those names at which the tree
    /// does not show it yet.
    pub(crate) fn note_unsettled(&self, places: &[(Spot, Expect)]) {
        let Ok(port) = self.port() else { return };
        let mut map = self.unsettled.map.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        port.look(|names| {
            let lags = |dir: InodeId, name: &Name, e: Expect| match e {
                Expect::Is(i) => names.child(dir, name) != Some(i),
                Expect::Not(i) => names.child(dir, name) == Some(i),
                Expect::Taken => names.child(dir, name).is_none(),
            };
            for (spot, e) in places {
                if let Spot::At { parent, name } = spot {
                    let key = (*parent, name.clone());
                    if lags(*parent, name, *e) {
                        map.insert(key, (*e, now));
                    } else {
                        map.remove(&key);
                    }
                }
            }
            // The tree catches up soon: what it shows by now can go.
            if map.len() > 256 {
                map.retain(|(dir, name), (e, at)| lags(*dir, name, *e) && now.duration_since(*at) < EXPECTED_FOR);
            }
        });
        self.unsettled.len.store(map.len(), Ordering::Relaxed);
    }

    /// True while the tree lags behind a completed action at this name. `child` is what the tree shows.
    pub(crate) fn is_unsettled(&self, dir: InodeId, name: &Name, child: Option<InodeId>) -> bool {
        if self.unsettled.len.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut map = self.unsettled.map.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (dir, name.clone());
        let lags = match map.get(&key) {
            None => return false,
            Some((_, at)) if at.elapsed() >= EXPECTED_FOR => false,
            Some((Expect::Is(i), _)) => child != Some(*i),
            Some((Expect::Not(i), _)) => child == Some(*i),
            Some((Expect::Taken, _)) => child.is_none(),
        };
        if !lags {
            map.remove(&key);
            self.unsettled.len.store(map.len(), Ordering::Relaxed);
        }
        lags
    }
}
