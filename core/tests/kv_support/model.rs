//! A store that cannot be wrong: a list of everything that ever happened.

use super::parse;
use ice_core::kv::Error;
use ice_core::kv::command::{Action, Command, Delete, Put};
use ice_core::kv::keys::KeyRange;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::{KeyValue, RangeAnswer, RangeRequest, SortOrder, SortTarget};
use ice_core::kv::txn::{Compare, DeleteAnswer, Is, Op, OpAnswer, PutAnswer, Target, Txn, TxnAnswer};
use ice_core::kv::{Answer, Outcome};
use ice_core::rng::Rng;
use std::collections::BTreeMap;

/// One change. A deletion has version 0.
pub type Version = KeyValue;

#[derive(Clone)]
pub struct Model {
    pub all: Vec<Version>,
    pub revision: u64,
    pub compacted: u64,
    pub leases: BTreeMap<LeaseId, u64>,
}

impl Default for Model {
    fn default() -> Model {
        Model { all: Vec::new(), revision: 1, compacted: 0, leases: BTreeMap::new() }
    }
}

impl Model {
    /// All keys as they were.
    pub fn at(&self, revision: u64) -> BTreeMap<Vec<u8>, Version> {
        let mut out = BTreeMap::new();
        for v in self.all.iter().filter(|v| v.modified <= revision) {
            if v.version == 0 {
                out.remove(&v.key);
            } else {
                out.insert(v.key.clone(), v.clone());
            }
        }
        out
    }

    fn found(&self, revision: u64, range: KeyRange<'_>) -> Vec<Version> {
        self.at(revision).into_values().filter(|v| range.contains(&v.key)).collect()
    }

    pub fn range(&self, r: &RangeRequest, current: u64) -> Result<RangeAnswer, Error> {
        let at = match r.revision {
            0 => current,
            n if n > current => return Err(Error::FutureRevision { current: self.revision }),
            n if n < self.compacted => return Err(Error::Compacted { compacted: self.compacted }),
            n => n,
        };
        let mut kvs = self.found(at, KeyRange::new(&r.key, &r.end));
        let count = kvs.len() as u64;
        if r.count_only {
            return Ok(RangeAnswer { revision: current, count, ..RangeAnswer::default() });
        }
        let filters = r.min_modified + r.max_modified + r.min_create + r.max_create > 0;
        let cut_first = r.order == SortOrder::None && !filters && r.limit > 0;
        let mut more = false;
        if cut_first {
            more = kvs.len() as u64 > r.limit;
            kvs.truncate(r.limit as usize);
        }
        let inside = |n: u64, min: u64, max: u64| n >= min && (max == 0 || n <= max);
        kvs.retain(|v| {
            inside(v.modified, r.min_modified, r.max_modified) && inside(v.create, r.min_create, r.max_create)
        });
        let number = |v: &Version| match r.target {
            SortTarget::Version => v.version,
            SortTarget::Create => v.create,
            SortTarget::Modified => v.modified,
            SortTarget::Key | SortTarget::Value => 0,
        };
        match (r.target, r.order) {
            (SortTarget::Key, SortOrder::Descend) => kvs.reverse(),
            (SortTarget::Key, _) => {}
            (SortTarget::Value, SortOrder::Descend) => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
            (SortTarget::Value, _) => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
            (_, SortOrder::Descend) => kvs.sort_by_key(|v| std::cmp::Reverse(number(v))),
            _ => kvs.sort_by_key(number),
        }
        if !cut_first && r.limit > 0 {
            more = kvs.len() as u64 > r.limit;
            kvs.truncate(r.limit as usize);
        }
        if r.keys_only {
            kvs.iter_mut().for_each(|v| v.value.clear());
        }
        Ok(RangeAnswer { revision: current, kvs, more, count })
    }

    fn holds(&self, c: &Compare) -> bool {
        let found = self.found(self.revision, KeyRange::new(&c.key, &c.end));
        let none = Version::default();
        let all: Vec<&Version> = if found.is_empty() { vec![&none] } else { found.iter().collect() };
        all.into_iter().all(|v| {
            let order = match &c.target {
                Target::Version(n) => (v.version as i64).cmp(n),
                Target::Create(n) => (v.create as i64).cmp(n),
                Target::Modified(n) => (v.modified as i64).cmp(n),
                Target::Lease(l) => v.lease.cmp(l),
                Target::Value(_) if v.version == 0 => return false,
                Target::Value(x) => v.value[..].cmp(&x[..]),
            };
            match c.is {
                Is::Equal => order.is_eq(),
                Is::NotEqual => order.is_ne(),
                Is::Less => order.is_lt(),
                Is::Greater => order.is_gt(),
            }
        })
    }

    fn refuses(&self, p: &Put) -> Option<Error> {
        let there = self.at(self.revision).contains_key(&p.key);
        if (p.ignore_value || p.ignore_lease) && !there {
            return Some(Error::KeyNotFound);
        }
        (p.lease.0 != 0 && !self.leases.contains_key(&p.lease)).then_some(Error::LeaseNotFound { id: p.lease })
    }

    fn put(&mut self, p: &Put) -> PutAnswer {
        let main = self.revision + 1;
        // What happened in the same revision counts.
        let before = self.at(main).remove(&p.key);
        let old = before.clone().unwrap_or_default();
        self.all.push(Version {
            key: p.key.clone(),
            value: if p.ignore_value { old.value } else { p.value.clone() },
            create: if old.version == 0 { main } else { old.create },
            modified: main,
            version: old.version + 1,
            lease: if p.ignore_lease { old.lease } else { p.lease },
        });
        PutAnswer { revision: main, prev: before.filter(|_| p.prev_kv) }
    }

    fn delete(&mut self, d: &Delete) -> DeleteAnswer {
        let main = self.revision + 1;
        let gone = self.found(main, KeyRange::new(&d.key, &d.end));
        for v in &gone {
            self.all.push(Version { key: v.key.clone(), modified: main, ..Version::default() });
        }
        let revision = self.now();
        DeleteAnswer { revision, deleted: gone.len() as u64, prev: if d.prev_kv { gone } else { vec![] } }
    }

    /// The newest revision, within a command that may have made one.
    fn now(&self) -> u64 {
        self.all.last().map_or(self.revision, |v| v.modified.max(self.revision))
    }

    /// Which lists are done is decided before anything is done.
    fn plan(&self, t: &Txn) -> Txn {
        let holds = t.compare.iter().all(|c| self.holds(c));
        let list = if holds { &t.success } else { &t.failure };
        let plan = |op: &Op| match op {
            Op::Txn(t) => Op::Txn(Box::new(self.plan(t))),
            op => op.clone(),
        };
        let list: Vec<Op> = list.iter().map(plan).collect();
        // Said by an empty comparison, or one that never holds.
        if holds {
            Txn { success: list, ..Txn::default() }
        } else {
            Txn { failure: list, compare: vec![NEVER.clone()], ..Txn::default() }
        }
    }

    fn plan_refuses(&self, t: &Txn) -> Option<Error> {
        t.success.iter().chain(&t.failure).find_map(|op| match op {
            Op::Put(p) => self.refuses(p),
            Op::Range(r) => self.range(r, self.revision).err(),
            Op::Txn(t) => self.plan_refuses(t),
            Op::Delete(_) => None,
        })
    }

    fn act(&mut self, t: &Txn) -> TxnAnswer {
        let succeeded = t.compare.is_empty();
        let list = if succeeded { &t.success } else { &t.failure };
        let answers = list.iter().map(|op| match op {
            Op::Put(p) => OpAnswer::Put(self.put(p)),
            Op::Delete(d) => OpAnswer::Delete(self.delete(d)),
            Op::Range(r) => OpAnswer::Range(self.range(r, self.now()).expect("planned")),
            Op::Txn(t) => OpAnswer::Txn(self.act(t)),
        });
        TxnAnswer { succeeded, answers: answers.collect() }
    }

    fn end_lease(&mut self, id: LeaseId) -> bool {
        if self.leases.remove(&id).is_none() {
            return false;
        }
        let keys: Vec<Vec<u8>> =
            self.at(self.revision).into_values().filter(|v| v.lease == id).map(|v| v.key).collect();
        for key in keys {
            self.delete(&Delete { key, ..Delete::default() });
        }
        self.revision = self.now();
        true
    }

    /// What a command is answered.
    pub fn apply(&mut self, c: &Command) -> Result<Answer, Error> {
        c.check()?;
        let answer = match &c.action {
            Action::Put(p) => match self.refuses(p) {
                Some(e) => return Err(e),
                None => Answer::Put(self.put(p)),
            },
            Action::Delete(d) => Answer::Delete(self.delete(d)),
            Action::Txn(t) => {
                let plan = self.plan(t);
                match self.plan_refuses(&plan) {
                    Some(e) => return Err(e),
                    None => Answer::Txn(self.act(&plan)),
                }
            }
            Action::Compact { revision } if *revision <= self.compacted => {
                return Err(Error::Compacted { compacted: self.compacted });
            }
            Action::Compact { revision } if *revision > self.revision => {
                return Err(Error::FutureRevision { current: self.revision });
            }
            Action::Compact { revision } => {
                self.compacted = *revision;
                Answer::Done
            }
            Action::LeaseGrant { id, .. } if self.leases.contains_key(id) => {
                return Err(Error::LeaseExists { id: *id });
            }
            Action::LeaseGrant { id, ttl_s } => {
                self.leases.insert(*id, *ttl_s);
                Answer::Lease { id: *id, ttl_s: *ttl_s }
            }
            Action::LeaseRevoke { id } => match self.end_lease(*id) {
                true => Answer::Done,
                false => return Err(Error::LeaseNotFound { id: *id }),
            },
            Action::LeaseExpire { ids } => {
                Answer::Expired(ids.iter().copied().filter(|id| self.end_lease(*id)).collect())
            }
            other => panic!("not in the model: {other:?}"),
        };
        self.revision = self.now();
        Ok(answer)
    }

    pub fn agrees(&self, o: &Outcome, expected: &Result<Answer, Error>, what: &dyn std::fmt::Debug) {
        assert_eq!(&o.result, expected, "{what:?}");
        assert_eq!(o.revision, self.revision, "{what:?}");
    }
}

static NEVER: std::sync::LazyLock<Compare> =
    std::sync::LazyLock::new(|| Compare { key: b"x".to_vec(), end: vec![], is: Is::Less, target: Target::Version(0) });

/// Draws commands over a few keys.
pub struct Draw<'a>(pub &'a mut Rng);

impl Draw<'_> {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn key(&mut self) -> Vec<u8> {
        let words = ["a", "b", "b/1", "b/2", "b/22", "c", "d\u{ff}", "e"];
        words[self.below(words.len() as u64) as usize].as_bytes().to_vec()
    }

    pub fn keys(&mut self) -> (Vec<u8>, Vec<u8>) {
        match self.below(6) {
            0 => parse::range("b*"),
            1 => parse::range("*"),
            2 => (self.key(), vec![0]),
            3 => (self.key(), self.key()),
            _ => (self.key(), vec![]),
        }
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId(self.below(5) as i64)
    }

    pub fn put(&mut self) -> Put {
        let value = self.below(30).to_string().into_bytes();
        let lease = if self.one_in(3) { self.lease() } else { LeaseId(0) };
        let mut p = Put { key: self.key(), value, lease, prev_kv: self.one_in(2), ..Put::default() };
        if self.one_in(6) {
            p.ignore_value = true;
            p.value.clear();
        }
        if self.one_in(6) {
            p.ignore_lease = true;
            p.lease = LeaseId(0);
        }
        p
    }

    pub fn delete(&mut self) -> Delete {
        let (key, end) = self.keys();
        Delete { key, end, prev_kv: self.one_in(2) }
    }

    pub fn range(&mut self, revision: u64) -> RangeRequest {
        let (key, end) = self.keys();
        let mut filter = || if self.0.below(5) == 0 { self.0.below(revision + 2) } else { 0 };
        let (min_modified, max_modified, min_create, max_create) = (filter(), filter(), filter(), filter());
        let at = filter();
        RangeRequest {
            key,
            end,
            limit: if self.one_in(2) { self.below(5) } else { 0 },
            revision: at,
            order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.below(3) as usize],
            target: [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Modified, SortTarget::Value]
                [self.below(5) as usize],
            keys_only: self.one_in(5),
            count_only: self.one_in(5),
            min_modified,
            max_modified,
            min_create,
            max_create,
        }
    }

    pub fn txn(&mut self, revision: u64, depth: u64) -> Txn {
        let n = |d: &mut Self| (0..d.below(4)).collect::<Vec<_>>();
        let ops = |d: &mut Self| {
            let op = |d: &mut Self| match d.below(8) {
                0..=2 => Op::Put(d.put()),
                3 => Op::Delete(d.delete()),
                4 if depth > 0 => Op::Txn(Box::new(d.txn(revision, depth - 1))),
                _ => Op::Range(d.range(revision)),
            };
            n(d).iter().map(|_| op(d)).collect::<Vec<Op>>()
        };
        let compare = |d: &mut Self| {
            let (key, end) = d.keys();
            let is = [Is::Equal, Is::Greater, Is::Less, Is::NotEqual][d.below(4) as usize];
            let m = d.below(revision + 2) as i64;
            let target = match d.below(5) {
                0 => Target::Version(m % 5),
                1 => Target::Create(m),
                2 => Target::Modified(m),
                3 => Target::Lease(d.lease()),
                _ => Target::Value(d.below(30).to_string().into_bytes().into()),
            };
            Compare { key, end, is, target }
        };
        let compare = if self.one_in(2) { n(self).iter().map(|_| compare(self)).collect() } else { vec![] };
        Txn { compare, success: ops(self), failure: ops(self) }
    }

    pub fn action(&mut self, revision: u64) -> Action {
        match self.below(20) {
            0..=7 => Action::Put(self.put()),
            8..=9 => Action::Delete(self.delete()),
            10..=14 => Action::Txn(self.txn(revision, 2)),
            15 => Action::Compact { revision: self.below(revision + 2) },
            16..=17 => Action::LeaseGrant { id: LeaseId(1 + self.below(4) as i64), ttl_s: 10 },
            18 => Action::LeaseRevoke { id: LeaseId(1 + self.below(4) as i64) },
            _ => Action::LeaseExpire { ids: vec![LeaseId(1), LeaseId(1 + self.below(4) as i64)] },
        }
    }
}
