//! The judge of bytes: remembers every version that any user wrote and what may happen to it.
//!
//! A version may vanish only if somebody who saw it wrote over it or deleted it, or if a fault took it before it was
//! promised to anybody. It knows nothing of operations, stamps or trees.

use crate::content::Content;
use ice_core::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

/// What became of one version.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its bytes.
    pub content: Content,
    /// Who wrote it.
    pub node: usize,
    /// When it was closed.
    pub at: Instant,
    /// Where.
    pub path: String,
    /// Somebody who saw it wrote over it, or deleted the last name he saw it under.
    pub ended: bool,
    /// `fsync` was acknowledged with this many copies.
    pub copies: u32,
    /// Disks that were lost since, and may have held one of those copies.
    pub disks_lost: u32,
    /// A fault took it before it was promised.
    pub excused: bool,
    /// The machine on which it was written has crashed since: whoever else has it may lose it, too.
    orphan: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Ledger {
    versions: Vec<Version>,
    /// The last version of each token.
    by_token: BTreeMap<u32, Vec<usize>>,
    /// Who wrote over or deleted bytes, and when, by token.
    enders: BTreeMap<u32, Vec<(usize, Instant)>>,
    /// Names that were taken away.
    unnamed: Vec<Unnamed>,
}

/// Somebody who saw these bytes took away one of the names of their file.
#[derive(Clone)]
struct Unnamed {
    token: u32,
    node: usize,
    at: Instant,
    path: String,
    /// The names that he saw it keep.
    others: BTreeSet<String>,
}

impl Ledger {
    /// A user closed a file with these bytes.
    pub fn wrote(&mut self, content: Content, node: usize, at: Instant, path: &str) {
        if content.size == 0 || content.is_rotten() {
            return;
        }
        self.by_token.entry(content.token).or_default().push(self.versions.len());
        self.versions.push(Version {
            content,
            node,
            at,
            path: path.into(),
            ended: false,
            copies: 0,
            disks_lost: 0,
            excused: false,
            orphan: false,
        });
    }
    /// A user who saw these bytes wrote over them or deleted them.
    pub fn ended(&mut self, content: Content, node: usize, at: Instant) {
        self.enders.entry(content.token).or_default().push((node, at));
        for i in self.by_token.get(&content.token).into_iter().flatten() {
            self.versions[*i].ended = true;
        }
    }
    /// A user on `node` who saw these bytes took away the name `path`; `others` are the names that he saw them keep.
    pub fn unnamed(&mut self, content: Content, node: usize, at: Instant, path: String, others: BTreeSet<String>) {
        if others.is_empty() {
            self.ended(content, node, at);
        }
        self.unnamed.push(Unnamed { token: content.token, node, at, path, others });
    }
    /// Users took away different names of a file at once, until none was left: they deleted it together. Whoever took away
    /// a name that the first of them saw it keep did so later, on another node, and saw the same bytes under it.
    fn deleted_together(&self, v: &Version) -> bool {
        let mine = || self.unnamed.iter().filter(|u| u.token == v.content.token && u.at >= v.at);
        let later = |first: &Unnamed, path: &String| {
            mine().any(|u| u.node != first.node && u.at >= first.at && u.path == *path)
        };
        mine().any(|u| !u.others.is_empty() && u.others.iter().all(|path| later(u, path)))
    }
    /// Versions of `content` that `node` wrote and that were not ended.
    pub fn of(&self, content: Content, node: usize) -> Vec<usize> {
        let all = self.by_token.get(&content.token).into_iter().flatten().copied();
        all.filter(|i| self.versions[*i].node == node && !self.versions[*i].ended).collect()
    }
    /// `fsync` was acknowledged for this version. Whatever excused its loss before, it was there again.
    pub fn acknowledged(&mut self, version: usize, copies: u32) {
        let v = &mut self.versions[version];
        if std::mem::take(&mut v.excused) {
            (v.copies, v.disks_lost) = (0, 0);
        }
        v.copies = v.copies.max(copies);
    }
    /// What `node` wrote is excused unless it was acknowledged or somebody still holds it.
    pub fn crashed(&mut self, node: usize, held: &BTreeSet<u32>) {
        for v in &mut self.versions {
            v.orphan |= v.node == node;
            // Equal bytes in another file say nothing about this one.
            let shared = self.by_token.get(&v.content.token).is_some_and(|all| all.len() > 1);
            if v.orphan && !v.ended && v.copies == 0 && (shared || !held.contains(&v.content.token)) {
                v.excused = true;
            }
        }
    }
    /// A disk is gone for good, with whatever copy was on it.
    pub fn disk_lost(&mut self, held: &BTreeSet<u32>) {
        for v in &mut self.versions {
            v.disks_lost += 1;
            if v.copies <= v.disks_lost && !held.contains(&v.content.token) {
                v.excused = true;
            }
        }
    }
    /// Who writes bytes that were there before, after somebody else who saw them there wrote others, changed nothing.
    fn changed_nothing(&self, v: &Version) -> bool {
        let all = self.by_token.get(&v.content.token).into_iter().flatten().map(|i| &self.versions[*i]);
        let Some(before) = all.map(|w| w.at).filter(|at| *at < v.at).min() else { return false };
        let enders = self.enders.get(&v.content.token).into_iter().flatten();
        enders.into_iter().any(|(node, at)| *node != v.node && (before..=v.at).contains(at))
    }
    /// Versions that should be there but are not among `present`. What was acknowledged is there, or it was ended by
    /// somebody who saw it: nothing else is asked about it.
    pub fn missing<'a>(&'a self, present: &'a BTreeSet<u32>) -> impl Iterator<Item = &'a Version> + 'a {
        let gone = self.versions.iter().filter(|v| !v.ended && !v.excused && !present.contains(&v.content.token));
        gone.filter(|v| v.copies > 0 || !(self.changed_nothing(v) || self.deleted_together(v)))
    }
    /// True if no user could have written these bytes.
    pub fn is_foreign(&self, content: Content) -> bool {
        content.size > 0 && !self.by_token.contains_key(&content.token)
    }
}
