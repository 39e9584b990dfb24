//! Is a history of one register linearizable? A search over the orders in which its operations may have happened, in the manner of
//! Wing and Gong (*Testing and verifying concurrent objects*, 1993), which remembers where it was as Lowe does (*Testing for
//! linearizability*, 2017). It knows nothing of the store, not even revisions.

use std::collections::HashSet;

/// What an operation did. Values are numbers; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Wrote this.
    Write(u32),
    /// Saw this.
    Read(u32),
    /// Replaced the first by the second, or did not because something else was there.
    Swap(u32, u32, bool),
    /// The same, of which nobody knows whether it happened.
    MaybeSwap(u32, u32),
}

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// When it was asked for.
    pub from: u64,
    /// When it was answered; `None`: never, and nobody knows whether it was done, or when.
    pub to: Option<u64>,
    /// What it did.
    pub act: Act,
}

/// What the search came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order.
    Yes,
    /// There is none: of those that can follow a longest one, none fits.
    No {
        /// How many operations have a place at most.
        most: usize,
        /// What does not fit after them.
        stuck: Vec<Op>,
    },
    /// The search became too long.
    Unknown,
}

fn step(state: u32, act: Act) -> Option<u32> {
    match act {
        Act::Write(v) => Some(v),
        Act::Read(v) => (v == state).then_some(state),
        Act::Swap(old, new, true) => (old == state).then_some(new),
        Act::Swap(old, _, false) => (old != state).then_some(state),
        Act::MaybeSwap(old, new) => Some(if old == state { new } else { state }),
    }
}

/// Looks for an order, in at most `limit` steps. The register begins with nothing in it.
pub fn check(ops: &[Op], limit: usize) -> Verdict {
    let must = ops.iter().filter(|o| o.to.is_some()).count();
    let words = ops.len().div_ceil(64);
    let mut seen: HashSet<(Vec<u64>, u32)> = HashSet::new();
    let mut best = (0, Vec::new());
    let mut stack = vec![(vec![0u64; words], 0u32, 0usize)];
    while let Some((done, state, count)) = stack.pop() {
        if count == must {
            return Verdict::Yes;
        }
        if seen.len() >= limit {
            return Verdict::Unknown;
        }
        let is_done = |i: usize| done[i / 64] >> (i % 64) & 1 == 1;
        // Whoever was asked after somebody was answered comes after him.
        let open = |(i, _): &(usize, &Op)| !is_done(*i);
        let end = ops.iter().enumerate().filter(open).filter_map(|(_, o)| o.to).min().unwrap_or(u64::MAX);
        let mut next = Vec::new();
        let mut stuck = Vec::new();
        for (i, o) in ops.iter().enumerate().filter(open).filter(|(_, o)| o.from < end) {
            match step(state, o.act) {
                Some(after) => {
                    let mut with = done.clone();
                    with[i / 64] |= 1 << (i % 64);
                    next.push((with, after, count + usize::from(o.to.is_some())));
                }
                None => stuck.push(*o),
            }
        }
        if count > best.0 || best.1.is_empty() {
            best = (count, stuck);
        }
        // What was answered first is tried first, what may never have happened last.
        next.sort_by_key(|(with, ..)| {
            let i = (0..ops.len()).find(|i| with[i / 64] >> (i % 64) & 1 == 1 && !is_done(*i));
            std::cmp::Reverse(i.and_then(|i| ops[i].to).unwrap_or(u64::MAX))
        });
        for n in next {
            if seen.insert((n.0.clone(), n.1)) {
                stack.push(n);
            }
        }
    }
    Verdict::No { most: best.0, stuck: best.1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(from: u64, to: u64, act: Act) -> Op {
        Op { from, to: (to > 0).then_some(to), act }
    }

    #[test]
    fn reads_see_the_last_write_before_them_or_one_beside_them() {
        let w = |a, b, v| op(a, b, Act::Write(v));
        let r = |a, b, v| op(a, b, Act::Read(v));
        assert_eq!(check(&[w(1, 2, 1), w(3, 6, 2), r(4, 5, 1), r(7, 8, 2)], 1000), Verdict::Yes);
        assert!(matches!(check(&[w(1, 2, 1), w(3, 4, 2), r(5, 6, 1)], 1000), Verdict::No { .. }));
        // Once seen, a write has happened.
        assert!(matches!(check(&[w(1, 2, 1), w(3, 9, 2), r(4, 5, 2), r(6, 7, 1)], 1000), Verdict::No { .. }));
        assert!(matches!(check(&[r(1, 2, 7)], 1000), Verdict::No { .. }));
    }

    #[test]
    fn what_was_not_answered_may_happen_late_or_never() {
        let w = |a, b, v| op(a, b, Act::Write(v));
        let r = |a, b, v| op(a, b, Act::Read(v));
        assert_eq!(check(&[w(1, 0, 1), w(2, 3, 2), r(4, 5, 2), r(6, 7, 1)], 1000), Verdict::Yes);
        assert_eq!(check(&[w(1, 0, 1), w(2, 3, 2), r(4, 5, 2)], 1000), Verdict::Yes);
        // But once.
        let twice = [w(1, 0, 1), w(2, 3, 2), r(4, 5, 1), w(6, 7, 3), r(8, 9, 1)];
        assert!(matches!(check(&twice, 1000), Verdict::No { .. }));
    }

    #[test]
    fn one_of_two_swaps_fails() {
        let s = |a, b, old, new, ok| op(a, b, Act::Swap(old, new, ok));
        let first = op(1, 2, Act::Write(1));
        assert_eq!(check(&[first, s(3, 9, 1, 2, true), s(4, 8, 1, 3, false)], 1000), Verdict::Yes);
        assert!(matches!(check(&[first, s(3, 9, 1, 2, true), s(4, 8, 1, 3, true)], 1000), Verdict::No { .. }));
        let maybe = op(3, 0, Act::MaybeSwap(1, 2));
        assert_eq!(check(&[first, maybe, op(5, 6, Act::Read(2))], 1000), Verdict::Yes);
    }
}
