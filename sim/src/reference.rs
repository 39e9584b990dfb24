//! The reference file system: what a plain directory would hold after the same user operations. Used where one user writes.

use crate::content::{Content, Words};
use crate::fs::{Fs, ROOT};
use crate::plan::UserOp;
use ice_core::op::Kind;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Object {
    what: String,
    content: Content,
    mode: u32,
    xattrs: BTreeMap<String, String>,
}

/// See the module. Told only of operations that the operating system did not refuse.
#[derive(Default)]
pub struct Reference {
    /// The node that writes.
    pub writer: Option<usize>,
    objects: Vec<Object>,
    names: BTreeMap<String, usize>,
    /// The writer's machine died, and what the others give back of its work is not known yet: the user waits for that.
    pub waits: bool,
    /// What the directory held after each operation.
    past: Vec<BTreeMap<String, Object>>,
}

fn below<'a>(path: &'a str, top: &str) -> Option<&'a str> {
    if path == top { Some("") } else { path.strip_prefix(top).filter(|rest| rest.starts_with('/')) }
}

impl Reference {
    fn put(&mut self, path: &str, what: String, mode: u32) -> usize {
        let object = Object { what, content: Content::EMPTY, mode, xattrs: BTreeMap::new() };
        self.objects.push(object);
        self.names.insert(path.into(), self.objects.len() - 1);
        self.objects.len() - 1
    }

    fn carry(&mut self, from: &str, to: &str) -> Vec<(String, usize)> {
        let moved: Vec<(String, String)> =
            self.names.keys().filter_map(|p| below(p, from).map(|rest| (p.clone(), format!("{to}{rest}")))).collect();
        moved.into_iter().filter_map(|(old, new)| self.names.remove(&old).map(|o| (new, o))).collect()
    }

    /// A user did this on node `n`.
    pub fn user(&mut self, n: usize, op: &UserOp, words: &mut Words) {
        self.writer = Some(n);
        match op {
            UserOp::Mkdir(p) => drop(self.put(p, "dir".into(), 0o755)),
            UserOp::Symlink(p, t) => drop(self.put(p, format!("symlink to {t}"), 0o777)),
            UserOp::Fifo(p) => drop(self.put(p, "fifo".into(), 0o644)),
            UserOp::Write(p, w, size) | UserOp::Edit(p, w, size) | UserOp::Open(p, w, size) => {
                let o = match self.names.get(p) {
                    Some(o) => *o,
                    None => self.put(p, "file".into(), 0o644),
                };
                self.objects[o].content = if w == "empty" { Content::EMPTY } else { words.content(w, *size) };
            }
            UserOp::Link(p, q) => {
                if let Some(o) = self.names.get(p).copied() {
                    self.names.insert(q.clone(), o);
                }
            }
            UserOp::Rename(p, q) => {
                if p != q && self.names.get(p) != self.names.get(q) {
                    self.names.remove(q);
                    let moved = self.carry(p, q);
                    self.names.extend(moved);
                }
            }
            UserOp::Exchange(p, q) => {
                if p != q {
                    let (there, back) = (self.carry(p, q), self.carry(q, p));
                    self.names.extend(there);
                    self.names.extend(back);
                }
            }
            UserOp::Rm(p) | UserOp::Rmdir(p) | UserOp::Rmtree(p) => {
                self.names.retain(|name, _| below(name, p).is_none())
            }
            UserOp::Chmod(p, mode) => {
                if let Some(o) = self.names.get(p) {
                    self.objects[*o].mode = *mode;
                }
            }
            UserOp::Xattr(p, name, value) => {
                if let Some(o) = self.names.get(p) {
                    if value.is_empty() {
                        self.objects[*o].xattrs.remove(name);
                    } else {
                        self.objects[*o].xattrs.insert(name.clone(), value.clone());
                    }
                }
            }
            UserOp::Chown(..) | UserOp::Times(..) | UserOp::Fsync(..) | UserOp::Close(_) => return,
        }
        let now = self.names.iter().map(|(p, o)| (p.clone(), self.objects[*o].clone())).collect();
        self.past.push(now);
    }

    /// The writer's machine died. Some of its last operations may be lost.
    pub fn crashed(&mut self) {
        self.waits = true;
    }

    /// Everything was given back, and the user goes on from what he finds. In words, what must not be there: operations were
    /// sent and logged in their order, so the directory is what it was after one of them, but for one that was cut short, and
    /// for bytes that nobody has any more (that nothing is missing which somebody has is for the ledger to say).
    pub fn resume(&mut self, fs: &Fs, words: &Words) -> Result<(), String> {
        let (objects, names) = read(fs);
        let here: BTreeMap<String, Object> = names.iter().map(|(p, o)| (p.clone(), objects[*o].clone())).collect();
        self.past.insert(0, BTreeMap::new());
        let mut best: Option<Vec<String>> = None;
        for m in 0..self.past.len() {
            let (before, after) = (&self.past[m], self.past.get(m + 1).unwrap_or(&self.past[m]));
            let paths: BTreeSet<&String> = here.keys().chain(before.keys()).chain(after.keys()).collect();
            let fits = |p: &String| {
                let found = here.get(p);
                [before, after].into_iter().any(|then| self.same(p, found, then.get(p)))
            };
            let odd: Vec<String> = paths.into_iter().filter(|p| !fits(p)).cloned().collect();
            if best.as_ref().is_none_or(|b| odd.len() <= b.len()) {
                best = Some(odd);
            }
        }
        self.past = vec![here.clone()];
        self.waits = false;
        (self.objects, self.names) = (objects, names);
        match best.and_then(|odd| odd.into_iter().next()) {
            None => Ok(()),
            Some(path) => {
                let say = here.get(&path).map_or("nothing".into(), |o| format!("{} {}", o.what, words.text(o.content)));
                Err(format!("after its machine's crash {path} is {say}, as it never was beside the rest"))
            }
        }
    }

    /// The same thing, or the same file with earlier bytes.
    fn same(&self, path: &String, found: Option<&Object>, then: Option<&Object>) -> bool {
        let (Some(found), Some(then)) = (found, then) else { return found == then };
        let mut earlier = self.past.iter().filter_map(|p| p.get(path)).map(|o| o.content);
        let bytes = found.content == then.content || found.content == Content::EMPTY;
        let bytes = bytes || earlier.any(|c| c == found.content);
        let Object { what, mode, xattrs, .. } = found;
        bytes && *what == then.what && *mode == then.mode && *xattrs == then.xattrs
    }

    /// How a directory differs from this, in words.
    pub fn differs(&self, fs: &Fs, words: &Words) -> Option<String> {
        let (objects, names) = read(fs);
        let paths: BTreeSet<&String> = names.keys().chain(self.names.keys()).collect();
        for path in paths {
            let here = names.get(path).map(|o| &objects[*o]);
            let there = self.names.get(path).map(|o| &self.objects[*o]);
            if here != there {
                let say = |o: Option<&Object>| match o {
                    None => "nothing".to_owned(),
                    Some(o) => format!("{} {} {:o} {:?}", o.what, words.text(o.content), o.mode, o.xattrs),
                };
                return Some(format!("{path} is {}, should be {}", say(here), say(there)));
            }
        }
        // Hard links: names that share an object must be the same sets.
        let share = |names: &BTreeMap<String, usize>| {
            let mut sets: BTreeMap<usize, Vec<String>> = BTreeMap::new();
            for (p, o) in names {
                sets.entry(*o).or_default().push(p.clone());
            }
            sets.into_values().collect::<BTreeSet<_>>()
        };
        (share(&names) != share(&self.names)).then(|| "hard links differ".to_owned())
    }
}

fn read(fs: &Fs) -> (Vec<Object>, BTreeMap<String, usize>) {
    let mut objects = Vec::new();
    let mut names = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for (path, ino) in fs.list(ROOT) {
        let Some(i) = fs.get(ino) else { continue };
        let o = *seen.entry(ino).or_insert_with(|| {
            let what = match &i.kind {
                Kind::File => "file".to_owned(),
                Kind::Dir => "dir".to_owned(),
                Kind::Symlink(t) => format!("symlink to {}", String::from_utf8_lossy(t)),
                Kind::Fifo => "fifo".to_owned(),
                other => format!("{other:?}"),
            };
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            let xattrs = i.xattrs.iter().map(|(k, v)| (text(k), text(v))).collect();
            objects.push(Object { what, content: i.content, mode: i.attrs.mode, xattrs });
            objects.len() - 1
        });
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        names.insert(path.join("/"), o);
    }
    (objects, names)
}
