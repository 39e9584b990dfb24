//! Whose turn it is, path by path, on this node: first come, first served.

use super::LockPath;
use futures::channel::oneshot;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Lines(Mutex<BTreeMap<LockPath, VecDeque<oneshot::Sender<Turn>>>>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<LockPath, VecDeque<oneshot::Sender<Turn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All lines.
#[derive(Default)]
pub(super) struct Turns(Arc<Lines>);

/// It is somebody's turn. Passed on when dropped, also on the way to somebody who has left.
pub(super) struct Turn {
    lines: Arc<Lines>,
    path: LockPath,
}

impl Turns {
    /// Waits for a turn. At most `most` may wait: `None` if there are as many.
    pub(super) async fn take(&self, path: &LockPath, most: usize) -> Option<Turn> {
        let turn = || Turn { lines: self.0.clone(), path: path.clone() };
        let waits = {
            let mut lines = self.0.lock();
            match lines.get_mut(path) {
                None => {
                    lines.insert(path.clone(), VecDeque::new());
                    return Some(turn());
                }
                Some(line) => {
                    // Who left does not count.
                    line.retain(|w| !w.is_canceled());
                    if line.len() >= most {
                        return None;
                    }
                    let (pass, passed) = oneshot::channel();
                    line.push_back(pass);
                    passed
                }
            }
        };
        waits.await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut lines = self.lines.lock();
            let next = lines.get_mut(&self.path).and_then(VecDeque::pop_front);
            if next.is_none() {
                lines.remove(&self.path);
            }
            next
        };
        if let Some(next) = next {
            // Outside of the lock: to somebody who has left it comes back here, and goes to the one behind him.
            let turn = Turn { lines: self.lines.clone(), path: self.path.clone() };
            drop(next.send(turn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn turns_are_taken_in_order_and_those_who_left_are_passed_over() {
        let turns = Turns::default();
        let (a, b) = (LockPath::parse(b"a").unwrap(), LockPath::parse(b"b").unwrap());
        let first = turns.take(&a, 9).now_or_never().unwrap().unwrap();
        let other = turns.take(&b, 9).now_or_never().unwrap().unwrap();
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(turns.take(&a, 9))).collect();
        for w in &mut waiting {
            assert!(w.now_or_never().is_none());
        }
        let mut last = waiting.pop().unwrap();
        let mut leaves_late = waiting.pop().unwrap();
        let mut second = waiting.pop().unwrap();
        drop(waiting);
        drop(first);
        let second = (&mut second).now_or_never().expect("the one before it had left").unwrap();
        assert!((&mut leaves_late).now_or_never().is_none());
        drop(second);
        // It has got its turn, and does not look.
        drop(leaves_late);
        let last = (&mut last).now_or_never().unwrap().unwrap();
        assert!(turns.take(&a, 0).now_or_never().unwrap().is_none(), "nobody may wait");
        drop((last, other));
        assert!(turns.0.lock().is_empty());
        assert!(turns.take(&a, 0).now_or_never().unwrap().is_some());
    }
}
