//! Several replicas, each a tree with a model of its `backing`, and a network that delivers in any order.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the environment chooses how much to tell")]
#![allow(dead_code)] // Each test file uses a part.

pub mod disk;

use disk::{Disk, ROOT};
use ice_core::action::{Apply, LogRecord, Refused, Source};
use ice_core::event::{Change, IoError, Witness};
use ice_core::ids::{InodeId, Name, ReplicaId};
use ice_core::op::{Attr, Attrs, ContentDigest, Kind, Op, OpBody};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::{LocalOp, LocalOutcome, Step, Ticket, Tree};
use std::collections::{BTreeMap, BTreeSet};

pub fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).expect("a name")
}

/// Bytes by number: 0 is empty, otherwise `n` names the bytes.
pub fn bytes(n: u64) -> (u64, ContentDigest) {
    if n == 0 {
        return (0, ContentDigest::EMPTY);
    }
    let mut d = [0u8; 32];
    d[..8].copy_from_slice(&n.to_le_bytes());
    d[31] = 1;
    (n, ContentDigest(d))
}

/// Something durable, in the order in which it was written.
pub type Log = Vec<LogRecord>;

pub struct Replica {
    pub id: ReplicaId,
    pub tree: Tree,
    pub disk: Disk,
    pub clock: u64,
    pub known: BTreeSet<Stamp>,
    pub staged: BTreeMap<(InodeId, Stamp), (u64, ContentDigest)>,
    pub wanted: Vec<(InodeId, Stamp, (u64, ContentDigest))>,
    /// With the number of local changes at the time of planning.
    pub flights: Vec<(Ticket, Apply, u64)>,
    pub changes: u64,
    /// Some bytes were nowhere to be had when they were asked for.
    pub hungry: bool,
    pub log: Log,
    pub pages: BTreeMap<Vec<u8>, Vec<u8>>,
    seq: u64,
}

impl Replica {
    pub fn new(id: u64) -> Replica {
        Replica {
            id: ReplicaId(id),
            tree: Tree::new(),
            disk: Disk::new(),
            clock: 0,
            known: BTreeSet::new(),
            staged: BTreeMap::new(),
            wanted: Vec::new(),
            flights: Vec::new(),
            changes: 0,
            hungry: false,
            log: Vec::new(),
            pages: BTreeMap::new(),
            seq: 0,
        }
    }

    /// Begins over from what is durable: pages and log. What was in flight is not done.
    pub fn restart(&mut self) {
        trace(|| format!("{:?} restarts", self.id));
        let mut tree = Tree::new();
        for (k, v) in &self.pages {
            tree.load(k, v).expect("sound pages");
        }
        tree.finish_load();
        assert!(tree.sums_are_sound());
        for r in &self.log {
            tree.replay(r);
        }
        assert!(tree.sums_are_sound());
        self.tree = tree;
        self.flights.clear();
        self.wanted.clear();
    }

    /// Writes a checkpoint in pages of `page` records.
    pub fn checkpoint(&mut self, page: usize) {
        loop {
            let puts = self.tree.take_dirty(page);
            let last = puts.len() < page;
            for (k, v) in puts {
                match v {
                    Some(v) => self.pages.insert(k.into(), v.into()),
                    None => self.pages.remove(&*k),
                };
            }
            if last {
                break;
            }
        }
        self.log.clear();
    }
}

pub struct Cluster {
    pub nodes: Vec<Replica>,
    /// Every operation ever issued, by stamp.
    pub ops: BTreeMap<Stamp, OpBody>,
    /// What the issuer of each knew.
    pub context: BTreeMap<Stamp, BTreeSet<Stamp>>,
    pub cut: Stamp,
    /// Authors keep the bytes that they wrote, as a log with small contents does.
    pub authors_keep: bool,
}

impl Cluster {
    pub fn new(n: usize) -> Cluster {
        let nodes = (0..n).map(|i| Replica::new(0xa + i as u64)).collect();
        Cluster { nodes, ops: BTreeMap::new(), context: BTreeMap::new(), cut: Stamp::ZERO, authors_keep: false }
    }

    fn note(&mut self, r: usize, ops: Vec<LocalOp>, records: Vec<LogRecord>) {
        let n = &mut self.nodes[r];
        for LocalOp { stamp, body, here } in ops {
            trace(|| format!("{r} issues {stamp:?} {body:?} {here:?}"));
            self.context.insert(stamp, n.known.clone());
            assert!(n.known.insert(stamp));
            if let OpBody::SetContent { inode, size, digest, .. } = &body
                && self.authors_keep
            {
                n.staged.insert((*inode, stamp), (*size, *digest));
            }
            n.seq += 1;
            let op = Op { origin: n.id, seq: n.seq, time: stamp.time, body: body.clone(), payload: None };
            n.log.push(LogRecord::Op { op, here });
            assert!(self.ops.insert(stamp, body).is_none());
        }
        n.log.extend(records);
    }

    /// A change that was made on disk: told to the tree.
    pub fn tell(&mut self, r: usize, change: &Change) -> Result<InodeId, Refused> {
        let n = &mut self.nodes[r];
        n.changes += 1;
        trace(|| format!("{r} user {change:?}"));
        let (clock, id) = (&mut n.clock, n.id);
        let mut mint = || {
            *clock += 1;
            Stamp { time: Hlc(*clock), replica: id }
        };
        let LocalOutcome { inode, ops, records } = n.tree.local(change, &mut mint)?;
        self.note(r, ops, records);
        self.check(r);
        Ok(inode)
    }

    /// Delivers one operation.
    pub fn deliver(&mut self, r: usize, stamp: Stamp) {
        let body = self.ops[&stamp].clone();
        trace(|| format!("{r} hears {stamp:?} {body:?}"));
        let n = &mut self.nodes[r];
        n.clock = n.clock.max(stamp.time.0);
        n.tree.integrate(stamp, &body);
        if n.known.insert(stamp) {
            let op = Op { origin: stamp.replica, seq: 0, time: stamp.time, body, payload: None };
            n.log.push(LogRecord::Op { op, here: None });
        }
        self.check(r);
    }

    pub fn missing(&self, r: usize) -> Vec<Stamp> {
        self.ops.keys().filter(|s| !self.nodes[r].known.contains(s)).copied().collect()
    }

    /// Delivers everything from `from` to `to`.
    pub fn sync(&mut self, from: usize, to: usize) {
        let all: Vec<Stamp> = self.nodes[from].known.difference(&self.nodes[to].known).copied().collect();
        for s in all {
            self.deliver(to, s);
        }
    }

    fn own_ops(&mut self, r: usize) {
        loop {
            let n = &mut self.nodes[r];
            let (clock, id) = (&mut n.clock, n.id);
            let mut mint = || {
                *clock += 1;
                Stamp { time: Hlc(*clock), replica: id }
            };
            let staged = &n.staged;
            let have =
                |inode, version| staged.contains_key(&(inode, version)).then_some(Source::Staged { inode, version });
            let outcomes = n.tree.own_ops(&have, &mut mint, 2);
            let more = outcomes.len() == 2;
            for o in outcomes {
                self.note(r, o.ops, o.records);
            }
            if !more {
                break;
            }
        }
        self.check(r);
    }

    /// Takes up to `max` steps: they are in flight afterwards. True: there was something to do.
    pub fn plan(&mut self, r: usize, max: usize) -> bool {
        self.own_ops(r);
        let n = &mut self.nodes[r];
        let staged = &n.staged;
        let have = |inode, version| staged.contains_key(&(inode, version)).then_some(Source::Staged { inode, version });
        let steps = n.tree.plan(&have, max);
        let any = !steps.is_empty();
        for s in steps {
            match s {
                Step::Apply { ticket, apply } => n.flights.push((ticket, apply, n.changes)),
                Step::Need { inode, version, size, digest } => n.wanted.push((inode, version, (size, digest))),
            }
        }
        any
    }

    /// Executes the action in flight with number `k` (and answers), or fails it.
    pub fn land(&mut self, r: usize, k: usize, error: Option<IoError>) {
        let n = &mut self.nodes[r];
        if n.flights.is_empty() {
            return;
        }
        let k = k % n.flights.len();
        let (ticket, apply, changes) = n.flights.remove(k);
        trace(|| format!("{r} acts {apply:?} {error:?}"));
        let staged = &n.staged;
        let fetch = |inode, version| *staged.get(&(inode, version)).expect("staged");
        let result = match error {
            Some(e) => Err(e),
            // A user was faster; without users nothing may stand in the way.
            None if n.changes > changes && !n.disk.possible(&n.tree, &apply) => Err(IoError::Changed),
            None => n.disk.apply(&n.tree, &apply, &fetch),
        };
        match result {
            Ok(w) => {
                let records = n.tree.applied(ticket, w);
                trace(|| format!("{r} did {records:?}"));
                n.log.extend(records);
                self.own_ops(r);
            }
            Err(e) => {
                n.tree.failed(ticket, e);
                if e == IoError::Changed && error.is_none() {
                    // The host looks at the file again.
                    let inode = apply.inode();
                    self.rescan(r, inode);
                }
            }
        }
        self.check(r);
    }

    /// Tells the tree how a file looks now.
    fn rescan(&mut self, r: usize, inode: InodeId) {
        let n = &self.nodes[r];
        let spots = n.tree.spots(inode);
        let Some(at) = spots.first().and_then(|s| n.disk.look(&n.tree, s)) else { return };
        let o = &n.disk.objects[&at];
        if o.kind.is_file() {
            let (size, digest) = o.bytes;
            let (mtime, witness) = (o.attrs.mtime, n.disk.witness(at));
            // A time that waits to be applied is no change of ours.
            let change = match n.tree.info(inode).filter(|i| i.held_content == Some((size, digest))) {
                Some(_) => Change::Touch { inode, witness },
                None => Change::Content { inode, size, digest, mtime, witness, payload: None },
            };
            let _ = self.tell(r, &change);
        }
    }

    /// Fetches the wanted bytes with number `k` from any replica that has them.
    pub fn fetch(&mut self, r: usize, k: usize) {
        if self.nodes[r].wanted.is_empty() {
            return;
        }
        let k = k % self.nodes[r].wanted.len();
        let (inode, version, content) = self.nodes[r].wanted.remove(k);
        let found = self.nodes.iter().any(|n| {
            n.staged.contains_key(&(inode, version)) || {
                let on_disk = |i: InodeId| {
                    n.tree.spots(i).first().and_then(|s| n.disk.look(&n.tree, s)).map(|o| n.disk.objects[&o].bytes)
                };
                let held = n.tree.info(inode).is_some_and(|i| i.held == version) && on_disk(inode) == Some(content);
                held || n.tree.copy_of(inode, version).and_then(on_disk) == Some(content)
            }
        });
        let n = &mut self.nodes[r];
        if found {
            n.staged.insert((inode, version), content);
            n.tree.came(inode);
        } else {
            n.hungry = true;
        }
        self.own_ops(r);
    }

    /// Everything that can happen by itself happens at one replica.
    pub fn rest(&mut self, r: usize) {
        for _ in 0..10_000 {
            let mut any = self.plan(r, 4);
            while !self.nodes[r].flights.is_empty() {
                self.land(r, 0, None);
                any = true;
            }
            while !self.nodes[r].wanted.is_empty() {
                self.fetch(r, 0);
                any = true;
            }
            if !any && !self.nodes[r].tree.has_ready() && !self.nodes[r].tree.has_own_ops() {
                return;
            }
        }
        panic!("replica {r} does not come to rest");
    }

    /// Everybody learns of everything and comes to rest.
    pub fn heal(&mut self) {
        for _ in 0..100 {
            for r in 0..self.nodes.len() {
                for s in self.missing(r) {
                    self.deliver(r, s);
                }
                if std::mem::take(&mut self.nodes[r].hungry) {
                    self.nodes[r].tree.retry();
                }
                self.rest(r);
            }
            if (0..self.nodes.len()).all(|r| self.missing(r).is_empty() && !self.nodes[r].hungry) {
                break;
            }
        }
        for r in 0..self.nodes.len() {
            assert!(self.missing(r).is_empty(), "operations without end");
        }
    }

    /// Forgets what everybody knows.
    pub fn cut_all(&mut self) {
        // Whatever comes from now on is later than everything up to here: everybody has heard of the newest.
        let newest = self.nodes.iter().map(|n| n.clock).max().unwrap_or(0);
        let missing: BTreeSet<Stamp> = (0..self.nodes.len()).flat_map(|r| self.missing(r)).collect();
        let mut limit = newest + 1;
        for m in &missing {
            // What is still to come was issued by somebody who knew everything up to the cut.
            let unknown = self.ops.keys().find(|s| !self.context[m].contains(s)).copied().unwrap_or(*m);
            limit = limit.min(unknown.time.0).min(m.time.0);
        }
        let stable = Stamp { time: Hlc(limit - 1), ..Stamp::MAX };
        trace(|| format!("cut {stable:?}"));
        if limit <= 1 || stable <= self.cut {
            return;
        }
        for r in 0..self.nodes.len() {
            self.nodes[r].clock = self.nodes[r].clock.max(stable.time.0);
            self.cut_one(r, stable);
        }
        self.cut = stable;
    }

    pub fn cut_one(&mut self, r: usize, stable: Stamp) {
        let n = &mut self.nodes[r];
        for _ in 0..1_000 {
            if !n.tree.cut(stable, 3) {
                break;
            }
        }
        self.check(r);
    }

    /// The materialised tree is what stands on disk.
    pub fn check(&self, r: usize) {
        let n = &self.nodes[r];
        debug_assert!(n.tree.sums_are_sound(), "sums");
        if !n.tree.has_own_ops() {
            self.check_dir(r, InodeId::ROOT, ROOT);
        }
    }

    fn check_dir(&self, r: usize, dir: InodeId, at: u64) {
        let n = &self.nodes[r];
        let mut seen = BTreeMap::new();
        let mut after: Option<Name> = None;
        loop {
            let page = n.tree.children(dir, after.as_ref(), 2);
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for c in page {
                assert_eq!(n.tree.child(dir, &c.name), Some(c.inode), "child and children");
                assert!(seen.insert(c.name.clone(), c).is_none(), "listed twice");
            }
        }
        let names: Vec<&Name> = n.disk.objects[&at].names.keys().collect();
        assert_eq!(names, seen.keys().collect::<Vec<_>>(), "replica {r}: disk and tree below {:?}", n.tree.path(dir));
        for (name, c) in seen {
            let k = n.disk.objects[&at].names[&name];
            if c.dir {
                self.check_dir(r, c.inode, k);
            }
        }
    }

    /// What stands on disk, one line an object, in the order of the paths.
    pub fn disk_lines(&self, r: usize) -> Vec<String> {
        fn walk(d: &Disk, at: u64, path: &str, out: &mut Vec<String>) {
            for (name, k) in &d.objects[&at].names {
                let o = &d.objects[k];
                let path = format!("{path}{name}");
                out.push(line(&path, &o.kind, &o.attrs, o.bytes, &o.xattrs));
                walk(d, *k, &format!("{path}/"), out);
            }
        }
        let mut out = Vec::new();
        walk(&self.nodes[r].disk, ROOT, "", &mut out);
        out.sort();
        out
    }

    /// What the logical tree shows.
    pub fn tree_lines(&self, r: usize) -> Vec<String> {
        let all = self.nodes[r].tree.listing();
        let mut out: Vec<String> = all
            .iter()
            .map(|l| {
                let path: Vec<String> = l.path.iter().map(|n| n.to_string()).collect();
                let x = l.xattrs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                line(&path.join("/"), &l.kind, &l.attrs, (l.size, l.digest), &x)
            })
            .collect();
        out.sort();
        out
    }

    /// For a failing judgement: what is known of everything that is shown anywhere, on each replica.
    fn story(&self) -> String {
        let mut s = String::from("\n");
        for (stamp, body) in &self.ops {
            s += &format!("{stamp:?} {body:?}\n");
        }
        let all: BTreeSet<InodeId> = self.nodes.iter().flat_map(|n| n.tree.listing()).map(|l| l.inode).collect();
        for i in all {
            for n in &self.nodes {
                let info = n.tree.info(i).map(|x| (x.held, x.version, x.size, x.attrs_held, x.witness));
                s += &format!("{:?} {i:?} {info:?} {:?}\n", n.id, n.tree.spots(i));
            }
        }
        for n in &self.nodes {
            s += &format!("{:?} staged {:?}\n", n.id, n.staged);
        }
        s
    }

    /// All replicas show the same, on disk too, and no bytes are lost. To be called after `heal`.
    pub fn judge(&mut self) {
        if std::env::var("TREE_STORY").is_ok() {
            eprintln!("{}", self.story());
        }
        for r in 0..self.nodes.len() {
            let pending = self.nodes[r].tree.pending();
            assert_eq!(self.disk_lines(r), self.tree_lines(r), "replica {r}: disk is not the tree ({pending} pending)");
            assert_eq!(pending, 0, "replica {r} has work left");
            assert_eq!(self.tree_lines(r), self.tree_lines(0), "replica {r} shows another tree");
            assert_eq!(self.nodes[r].tree.digest(), self.nodes[0].tree.digest(), "replica {r} has another digest");
            assert!(self.nodes[r].tree.sums_are_sound());
            assert!(self.nodes[r].disk.limbo.is_empty(), "something stays in limbo");
        }
        self.judge_bytes();
    }

    /// Every content that was ever written was overwritten or deleted by somebody who had it, or stands somewhere.
    pub fn judge_bytes(&self) {
        let shown: BTreeSet<ContentDigest> = self.nodes[0].tree.listing().iter().map(|l| l.digest).collect();
        let mut settled = BTreeSet::new();
        for body in self.ops.values() {
            match body {
                OpBody::SetContent { base, .. } => settled.insert(*base),
                OpBody::Remove { saw, .. } => settled.insert(*saw),
                _ => false,
            };
        }
        for (stamp, body) in &self.ops {
            if let OpBody::SetContent { digest, size, .. } = body {
                let same = self.ops.iter().any(|(s, b)| {
                    matches!(b, OpBody::SetContent { digest: d, .. } if d == digest) && settled.contains(s)
                });
                assert!(
                    *size == 0 || settled.contains(stamp) || shown.contains(digest) || same,
                    "the bytes of {stamp} are lost"
                );
            }
        }
    }

    // Changes on disk, as a user of replica `r` makes them. Paths are relative to the root, `/` between names.

    fn resolve(&self, r: usize, path: &str) -> Option<(InodeId, u64)> {
        let n = &self.nodes[r];
        let (mut id, mut at) = (InodeId::ROOT, ROOT);
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = *n.disk.objects[&at].names.get(&name(part))?;
            id = n.tree.child(id, &name(part)).expect("what stands on disk is known");
        }
        Some((id, at))
    }

    fn split<'p>(&self, r: usize, path: &'p str) -> Option<(InodeId, u64, &'p str)> {
        let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
        let (id, at) = self.resolve(r, dir)?;
        (self.nodes[r].disk.objects[&at].kind == Kind::Dir).then_some((id, at, last))
    }

    fn time(&self, r: usize) -> UnixTime {
        UnixTime { sec: self.nodes[r].clock as i64 + 1, nsec: 0 }
    }

    /// `open(O_CREAT|O_EXCL)`, `mkdir`, `symlink`: false if it cannot be.
    pub fn create(&mut self, r: usize, path: &str, kind: Kind) -> bool {
        let Some((id, at, last)) = self.split(r, path) else { return false };
        let t = self.time(r);
        let attrs = Attrs { mode: 0o644, uid: 0, gid: 0, atime: t, mtime: t };
        let d = &mut self.nodes[r].disk;
        if d.objects[&at].names.contains_key(&name(last)) {
            return false;
        }
        let k = d.add(kind.clone(), attrs);
        d.obj(at).names.insert(name(last), k);
        let witness = d.witness(k);
        let change = Change::Create { parent: id, name: name(last), kind, attrs, witness };
        self.tell(r, &change).expect("create");
        true
    }

    /// Overwrites a file.
    pub fn write(&mut self, r: usize, path: &str, content: u64) -> bool {
        let Some((inode, at)) = self.resolve(r, path) else { return false };
        if !self.nodes[r].disk.objects[&at].kind.is_file() {
            return false;
        }
        let mtime = self.time(r);
        let o = self.nodes[r].disk.obj(at);
        o.bytes = bytes(content);
        o.edits += 1;
        o.attrs.mtime = mtime;
        let (size, digest) = bytes(content);
        let witness = self.nodes[r].disk.witness(at);
        self.tell(r, &Change::Content { inode, size, digest, mtime, witness, payload: None }).expect("write");
        true
    }

    /// `unlink` or `rmdir`.
    pub fn remove(&mut self, r: usize, path: &str) -> bool {
        let Some((parent, at, last)) = self.split(r, path) else { return false };
        let d = &mut self.nodes[r].disk;
        let Some(k) = d.objects[&at].names.get(&name(last)).copied() else { return false };
        if !d.objects[&k].names.is_empty() {
            return false;
        }
        d.obj(at).names.remove(&name(last));
        d.sweep();
        self.tell(r, &Change::Remove { parent, name: name(last) }).expect("remove");
        true
    }

    /// `rename`, or `RENAME_EXCHANGE`.
    pub fn rename(&mut self, r: usize, from: &str, to: &str, exchange: bool) -> bool {
        let (Some((p, a, x)), Some((q, b, y))) = (self.split(r, from), self.split(r, to)) else { return false };
        let d = &mut self.nodes[r].disk;
        let Some(k) = d.objects[&a].names.get(&name(x)).copied() else { return false };
        let target = d.objects[&b].names.get(&name(y)).copied();
        let below = |d: &Disk, n: u64, top: u64| {
            fn go(d: &Disk, n: u64, top: u64) -> bool {
                n == top || d.objects[&top].names.values().any(|k| go(d, n, *k))
            }
            go(d, n, top)
        };
        let dir = |d: &Disk, n: u64| d.objects[&n].kind == Kind::Dir;
        if below(d, b, k) || target == Some(k) {
            return false;
        }
        match target {
            None if exchange => return false,
            Some(t) if exchange && below(d, a, t) => return false,
            Some(t) if !exchange && (dir(d, t) != dir(d, k) || !d.objects[&t].names.is_empty()) => return false,
            _ => {}
        }
        d.obj(a).names.remove(&name(x));
        d.obj(b).names.insert(name(y), k);
        if let Some(t) = target.filter(|_| exchange) {
            d.obj(a).names.insert(name(x), t);
        }
        d.sweep();
        let change = Change::Rename { parent: p, name: name(x), new_parent: q, new_name: name(y), exchange };
        self.tell(r, &change).expect("rename");
        true
    }

    pub fn link(&mut self, r: usize, from: &str, to: &str) -> bool {
        let (Some((inode, k)), Some((parent, b, y))) = (self.resolve(r, from), self.split(r, to)) else { return false };
        let d = &mut self.nodes[r].disk;
        if d.objects[&k].kind == Kind::Dir || d.objects[&b].names.contains_key(&name(y)) {
            return false;
        }
        d.obj(b).names.insert(name(y), k);
        let witness = d.witness(k);
        self.tell(r, &Change::Link { inode, parent, name: name(y), witness }).expect("link");
        true
    }

    pub fn attr(&mut self, r: usize, path: &str, attr: Attr) -> bool {
        let Some((inode, k)) = self.resolve(r, path).filter(|(_, k)| *k != ROOT) else { return false };
        self.nodes[r].disk.set_attr(k, &attr);
        let witness = self.nodes[r].disk.witness(k);
        self.tell(r, &Change::Attr { inode, attr, witness }).expect("attr");
        true
    }

    /// All paths on disk of a replica.
    pub fn paths(&self, r: usize) -> Vec<String> {
        fn walk(d: &Disk, at: u64, path: &str, out: &mut Vec<String>) {
            for (name, k) in &d.objects[&at].names {
                let path = format!("{path}{name}");
                walk(d, *k, &format!("{path}/"), out);
                out.push(path);
            }
        }
        let mut out = Vec::new();
        walk(&self.nodes[r].disk, ROOT, "", &mut out);
        out
    }
}

/// What happens, for those who look for a mistake.
fn trace(what: impl Fn() -> String) {
    if std::env::var("TREE_TRACE").is_ok() {
        eprintln!("{}", what());
    }
}

pub fn line(
    path: &str,
    kind: &Kind,
    attrs: &Attrs,
    bytes: (u64, ContentDigest),
    xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> String {
    let what = match kind {
        Kind::File => format!("file {}", bytes.0),
        Kind::Dir => "dir".into(),
        Kind::Symlink(t) => format!("link {}", String::from_utf8_lossy(t)),
        other => format!("{other:?}"),
    };
    let mut s = format!("{path} {what} {:o} {}:{} m{}", attrs.mode, attrs.uid, attrs.gid, attrs.mtime.sec);
    for (k, v) in xattrs {
        s += &format!(" {}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v));
    }
    s
}

pub fn no_witness() -> Witness {
    Witness::default()
}
