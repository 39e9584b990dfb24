//! Materialisation: which changes of `backing` are due and possible now.
//!
//! Work is found by what changed, never by looking at everything: an entry or inode whose disk state differs is *ready*;
//! what must wait for something is *waiting* for an inode (a directory that is to be made, a name in it, an action in
//! flight) and made ready when that changes; what failed is *parked* until there is news about it.

mod desk;
mod entry;
mod finish;
mod inode;

pub(super) use desk::{Desk, Kept, Work};

use super::{Have, Step, Tree};
use alloc::vec::Vec;
use desk::{NEEDS_MAX, Park};

/// What came of looking at a piece of work.
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never stored")]
enum Next {
    /// Nothing is left to do.
    Done,
    /// It was begun.
    Begun,
    /// It waits for this inode. `hard`: not only for actions in flight, so that it might wait for itself in the end.
    Later { key: u32, hard: bool },
    /// Its bytes are not at hand.
    Bytes(Step),
}

impl Next {
    fn soon(key: u32) -> Next {
        Next::Later { key, hard: false }
    }
    fn stuck(key: u32) -> Next {
        Next::Later { key, hard: true }
    }
}

impl Tree {
    /// Up to `max` steps that can be taken now, side by side: actions in flight never touch the same inode or depend on each
    /// other. Bounded work. `have` is asked for the bytes that are needed, also those of losing versions.
    pub fn plan(&mut self, have: &Have<'_>, max: usize) -> Vec<Step> {
        let mut out = Vec::new();
        let mut looks = 16 * max + 64;
        while out.len() < max && looks > 0 {
            looks -= 1;
            let Some(work) = self.work.take() else { break };
            let before = out.len();
            let next = match work {
                Work::Entry(e) => self.entry_work(e, have, &mut alloc::vec![e], &mut out),
                Work::Inode(i) => self.inode_work(i, have, &mut out),
                Work::Head(..) => Next::Done,
            };
            debug_assert!(out.len() <= before + 1);
            match next {
                Next::Done | Next::Begun => {}
                Next::Later { key, .. } => self.work.wait(key, work),
                Next::Bytes(step) => {
                    if self.work.park_for_bytes(work) {
                        out.push(step);
                    }
                }
            }
        }
        while out.len() < max && self.work.needs() < NEEDS_MAX {
            let Some((i, version)) = self.heads_needed.pop_first() else { break };
            let Some(v) = self.versions.get(&(i, version)).filter(|_| self.heads.contains(&(i, version))) else {
                continue;
            };
            self.work.park(Work::Head(i, version), Park::Bytes);
            out.push(Step::Need { inode: self.id_of(i), version, size: v.size, digest: v.digest });
        }
        out
    }

    /// Things that `backing` still lacks or that are being looked at; 0 exactly when it shows the logical tree.
    pub fn pending(&self) -> usize {
        self.work.len() + self.kept.len() + self.heads_needed.len() + self.heads_due.len() + self.rebirths.len()
    }

    /// A piece of work can be looked at right away, so `plan` should be called again: it returns fewer steps than asked for
    /// also when it has looked at enough for one call.
    pub fn has_ready(&self) -> bool {
        self.work.has_ready() || (!self.heads_needed.is_empty() && self.work.needs() < NEEDS_MAX)
    }

    /// `own_ops` has something to do.
    pub fn has_own_ops(&self) -> bool {
        !(self.kept.is_empty() && self.heads_due.is_empty() && self.rebirths.is_empty())
    }
}
