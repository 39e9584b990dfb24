//! Transactions: compare, then do one list of operations or the other.

use super::command::{Delete, Put, check_key};
use super::error::Error;
use super::history::Record;
use super::keys::KeyRange;
use super::lease::LeaseId;
use super::range::{KeyValue, RangeAnswer, RangeRequest};
use super::{Store, bounded};
use crate::limits;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// All of `compare` true: `success`, otherwise `failure`. Comparisons of the whole tree of transactions are made before
/// anything is done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Flat>", into = "Vec<Flat>")]
pub struct Txn {
    /// What must hold.
    pub compare: Vec<Compare>,
    /// Done if it holds.
    pub success: Vec<Op>,
    /// Done if it does not.
    pub failure: Vec<Op>,
}

/// A comparison. Of several keys, it must be true of each. A key that is not there has version 0, revisions 0 and no lease; it
/// has no value, and comparing it is false.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Compare {
    /// The first key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// See [`KeyRange::new`].
    #[serde(with = "serde_bytes")]
    pub end: Vec<u8>,
    /// How what is there is to compare with what is given.
    pub is: Is,
    /// What is compared, and with what.
    pub target: Target,
}

/// How two things compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Is {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What is compared. Numbers are signed, as clients send them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Target {
    Version(i64),
    Create(i64),
    Modified(i64),
    Value(serde_bytes::ByteBuf),
    Lease(LeaseId),
}

/// An operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    Range(RangeRequest),
    Put(Put),
    Delete(Delete),
    Txn(Box<Txn>),
}

/// What a transaction did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TxnAnswer {
    /// The comparisons held.
    pub succeeded: bool,
    /// One answer for each operation of the list that was done.
    pub answers: Vec<OpAnswer>,
}

/// What an operation did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum OpAnswer {
    Range(RangeAnswer),
    Put(PutAnswer),
    Delete(DeleteAnswer),
    Txn(TxnAnswer),
}

/// What a put did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PutAnswer {
    /// The revision that it made.
    pub revision: u64,
    /// What was there, if it was asked for.
    pub prev: Option<KeyValue>,
}

/// What a deletion did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DeleteAnswer {
    /// The revision that it made; the current one if there was nothing to delete.
    pub revision: u64,
    /// Keys that went.
    pub deleted: u64,
    /// What they were, if it was asked for.
    pub prev: Vec<KeyValue>,
}

/// A transaction on its way: one of a list, in which operations name nested ones by their number. Decoding is thus never
/// deeper than the list, whatever the bytes say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Flat {
    compare: Vec<Compare>,
    #[serde(deserialize_with = "bounded::vec::<_, _, { limits::TXN_OPS_MAX }>")]
    success: Vec<FlatOp>,
    #[serde(deserialize_with = "bounded::vec::<_, _, { limits::TXN_OPS_MAX }>")]
    failure: Vec<FlatOp>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum FlatOp {
    Range(RangeRequest),
    Put(Put),
    Delete(Delete),
    /// Higher than the number of the transaction that it is in.
    Txn(u32),
}

impl From<Txn> for Vec<Flat> {
    fn from(txn: Txn) -> Vec<Flat> {
        fn flatten(ops: Vec<Op>, waiting: &mut Vec<Txn>, done: usize) -> Vec<FlatOp> {
            let flat = |op| match op {
                Op::Range(r) => FlatOp::Range(r),
                Op::Put(p) => FlatOp::Put(p),
                Op::Delete(d) => FlatOp::Delete(d),
                Op::Txn(t) => {
                    waiting.push(*t);
                    FlatOp::Txn((done + waiting.len()) as u32)
                }
            };
            ops.into_iter().map(flat).collect()
        }
        // Breadth first: `waiting` are those that come after the ones in `out` and the one at hand.
        let mut out: Vec<Flat> = Vec::new();
        let mut level = alloc::vec![txn];
        while !level.is_empty() {
            let mut waiting = Vec::new();
            let base = out.len() + level.len() - 1;
            for t in level {
                let success = flatten(t.success, &mut waiting, base);
                let failure = flatten(t.failure, &mut waiting, base);
                out.push(Flat { compare: t.compare, success, failure });
            }
            level = waiting;
        }
        out
    }
}

impl TryFrom<Vec<Flat>> for Txn {
    type Error = &'static str;

    fn try_from(flat: Vec<Flat>) -> Result<Txn, &'static str> {
        // From the last to the first: what is nested in one stands behind it. Depth counts from the innermost.
        let mut made: Vec<Option<(Txn, usize)>> = Vec::new();
        made.resize_with(flat.len(), || None);
        for (n, f) in flat.into_iter().enumerate().rev() {
            let mut depth = 0;
            let mut lift = |ops: Vec<FlatOp>| -> Result<Vec<Op>, &'static str> {
                ops.into_iter()
                    .map(|op| {
                        Ok(match op {
                            FlatOp::Range(r) => Op::Range(r),
                            FlatOp::Put(p) => Op::Put(p),
                            FlatOp::Delete(d) => Op::Delete(d),
                            FlatOp::Txn(k) if k as usize <= n => return Err("a transaction within itself"),
                            FlatOp::Txn(k) => {
                                let inner = made.get_mut(k as usize).and_then(Option::take);
                                let (inner, d) = inner.ok_or("a transaction that is not there")?;
                                depth = depth.max(d + 1);
                                Op::Txn(Box::new(inner))
                            }
                        })
                    })
                    .collect()
            };
            let (success, failure) = (lift(f.success)?, lift(f.failure)?);
            if depth >= limits::TXN_DEPTH_MAX {
                return Err("nested too deeply");
            }
            made[n] = Some((Txn { compare: f.compare, success, failure }, depth));
        }
        let mut made = made.into_iter();
        let (txn, _) = made.next().flatten().ok_or("no transaction")?;
        if made.any(|t| t.is_some()) {
            return Err("a transaction that belongs to none");
        }
        Ok(txn)
    }
}

impl Compare {
    /// The keys meant.
    pub fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.end)
    }

    fn holds(&self, r: Option<&Record>) -> bool {
        let number = |n: Option<u64>| i64::try_from(n.unwrap_or(0)).unwrap_or(i64::MAX);
        let found = match &self.target {
            Target::Version(n) => number(r.map(|r| r.version)).cmp(n),
            Target::Create(n) => number(r.map(|r| r.create)).cmp(n),
            Target::Modified(n) => number(r.map(|r| r.rev.main())).cmp(n),
            Target::Lease(l) => r.map_or(LeaseId(0), |r| r.lease).cmp(l),
            Target::Value(v) => match r {
                Some(r) => r.value[..].cmp(&v[..]),
                None => return false,
            },
        };
        match self.is {
            Is::Equal => found.is_eq(),
            Is::Greater => found.is_gt(),
            Is::Less => found.is_lt(),
            Is::NotEqual => found.is_ne(),
        }
    }
}

impl Txn {
    /// Rules that need no store: number of operations, keys, no key changed twice.
    pub fn check(&self) -> Result<(), Error> {
        self.check_ops(limits::TXN_OPS_MAX, limits::TXN_DEPTH_MAX)?;
        intervals(&self.success)?;
        intervals(&self.failure)?;
        Ok(())
    }

    // The operations of a level are taken from what those below may have, as etcd does.
    fn check_ops(&self, allowed: usize, depth: usize) -> Result<(), Error> {
        let ops = self.compare.len().max(self.success.len()).max(self.failure.len());
        if ops > allowed || depth == 0 {
            return Err(Error::TooManyOperations);
        }
        for c in &self.compare {
            check_key(&c.key)?;
        }
        for op in self.ops() {
            match op {
                Op::Range(r) => r.check()?,
                Op::Put(p) => p.check()?,
                Op::Delete(d) => check_key(&d.key)?,
                Op::Txn(t) => t.check_ops(allowed - ops, depth - 1)?,
            }
        }
        Ok(())
    }

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.success.iter().chain(&self.failure)
    }

    /// Whether it writes values, whichever list is done.
    pub fn writes_values(&self) -> bool {
        self.ops().any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(t) => t.writes_values(),
            _ => false,
        })
    }

    /// Whether it changes nothing, whichever list is done: then it need not go through the log.
    pub fn is_read_only(&self) -> bool {
        self.ops().all(|op| match op {
            Op::Range(_) => true,
            Op::Txn(t) => t.is_read_only(),
            _ => false,
        })
    }

    pub(super) fn cost_bytes(&self) -> u64 {
        let list = |ops: &[Op]| -> u64 {
            ops.iter()
                .map(|op| match op {
                    Op::Put(p) => super::history::cost(p.key.len(), p.value.len()),
                    Op::Txn(t) => t.cost_bytes(),
                    _ => 0,
                })
                .sum()
        };
        list(&self.success).max(list(&self.failure))
    }
}

/// Keys that a list of operations puts, and ranges that it deletes.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deletes<'a>,
}

/// Ranges that are deleted, as a union of ranges that do not touch.
#[derive(Default)]
struct Deletes<'a>(alloc::collections::BTreeMap<&'a [u8], Upto<'a>>);

/// An end that can be compared: including, excluding, or none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Upto<'a> {
    /// The key and whether it belongs to it.
    Key(&'a [u8], bool),
    All,
}

impl<'a> Deletes<'a> {
    fn insert(&mut self, start: &'a [u8], mut end: Upto<'a>) {
        let mut start = start;
        // Everything that begins before the new end, and ends after the new start, becomes one with it.
        while let Some((s, e)) = self.0.range(..=start).next_back().map(|(s, e)| (*s, *e)) {
            if e < Upto::Key(start, false) {
                break;
            }
            self.0.remove(s);
            start = s;
            end = end.max(e);
        }
        while let Some((s, e)) = self.0.range(start..).next().map(|(s, e)| (*s, *e)) {
            if Upto::Key(s, false) > end {
                break;
            }
            self.0.remove(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.0.range(..=key).next_back().is_some_and(|(_, e)| match e {
            Upto::Key(k, including) => key < *k || (*including && key == *k),
            Upto::All => true,
        })
    }
}

/// No key may be put twice, nor put and deleted, by operations that can happen together. (A put in an earlier nested
/// transaction and a deletion in a later one pass, as with etcd.)
fn intervals(ops: &[Op]) -> Result<Touched<'_>, Error> {
    use super::keys::RangeEnd;
    let mut t = Touched::default();
    for op in ops {
        let Op::Delete(d) = op else { continue };
        let range = d.range();
        if range.is_empty() {
            continue;
        }
        let end = match range.end {
            RangeEnd::Single => Upto::Key(range.start, true),
            RangeEnd::Before(end) => Upto::Key(end, false),
            RangeEnd::Open => Upto::All,
        };
        t.deletes.insert(range.start, end);
    }
    for op in ops {
        let Op::Txn(inner) = op else { continue };
        let (then, otherwise) = (intervals(&inner.success)?, intervals(&inner.failure)?);
        let both = then.puts.union(&otherwise.puts);
        // One of the two lists is done, so they may put the same key.
        for key in both {
            if t.deletes.contains(key) || !t.puts.insert(key) {
                return Err(Error::DuplicateKey);
            }
        }
        for (start, end) in then.deletes.0.into_iter().chain(otherwise.deletes.0) {
            t.deletes.insert(start, end);
        }
    }
    for op in ops {
        let Op::Put(p) = op else { continue };
        if t.deletes.contains(&p.key) || !t.puts.insert(&p.key) {
            return Err(Error::DuplicateKey);
        }
    }
    Ok(t)
}

/// Which list is done, of a transaction and of those nested in that list.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Store {
    /// A transaction that only reads, at the newest revision.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnAnswer, Error> {
        txn.check()?;
        if !txn.is_read_only() {
            return Err(Error::PermissionDenied);
        }
        let path = self.compare(txn);
        self.check_path(txn, &path)?;
        self.read_path(txn, &path)
    }

    fn read_path(&self, txn: &Txn, path: &Path) -> Result<TxnAnswer, Error> {
        let mut nested = path.nested.iter();
        let mut answer = TxnAnswer { succeeded: path.succeeded, answers: Vec::new() };
        for op in txn.list(path) {
            answer.answers.push(match op {
                Op::Range(r) => OpAnswer::Range(self.range(r)?),
                Op::Txn(t) => OpAnswer::Txn(match nested.next() {
                    Some(p) => self.read_path(t, p)?,
                    None => TxnAnswer::default(),
                }),
                Op::Put(_) | Op::Delete(_) => return Err(Error::PermissionDenied),
            });
        }
        Ok(answer)
    }

    /// Does a transaction, wholly or not at all.
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnAnswer, Error> {
        let path = self.compare(txn);
        self.check_path(txn, &path)?;
        let mut write = Write::new(self);
        let answer = self.do_path(txn, &path, &mut write);
        write.end(self);
        Ok(answer)
    }

    fn compare(&self, txn: &Txn) -> Path {
        let succeeded = txn.compare.iter().all(|c| {
            let mut some = false;
            for slot in self.index.range(c.range()) {
                let Some(rev) = self.index.rev_at(slot, self.revision).filter(|r| !r.is_tombstone()) else { continue };
                some = true;
                if !c.holds(Some(self.record(rev))) {
                    return false;
                }
            }
            some || c.holds(None)
        });
        let list = if succeeded { &txn.success } else { &txn.failure };
        let nested = list.iter().filter_map(|op| match op {
            Op::Txn(t) => Some(self.compare(t)),
            _ => None,
        });
        Path { succeeded, nested: nested.collect() }
    }

    /// Everything that could fail is asked before anything is done.
    fn check_path(&self, txn: &Txn, path: &Path) -> Result<(), Error> {
        let mut nested = path.nested.iter();
        for op in txn.list(path) {
            match op {
                Op::Range(r) => drop(self.readable(r.revision, self.revision)?),
                Op::Put(p) => self.check_put(p)?,
                Op::Delete(_) => {}
                Op::Txn(t) => {
                    if let Some(p) = nested.next() {
                        self.check_path(t, p)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn do_path(&mut self, txn: &Txn, path: &Path, write: &mut Write) -> TxnAnswer {
        let mut nested = path.nested.iter();
        let mut answer = TxnAnswer { succeeded: path.succeeded, answers: Vec::new() };
        for op in txn.list(path) {
            answer.answers.push(match op {
                // Checked before: it cannot fail.
                Op::Range(r) => OpAnswer::Range(self.range_in(r, write.revision()).unwrap_or_default()),
                Op::Put(p) => OpAnswer::Put(self.put_in(p, write)),
                Op::Delete(d) => OpAnswer::Delete(self.delete_in(d.range(), d.prev_kv, write)),
                Op::Txn(t) => OpAnswer::Txn(match nested.next() {
                    Some(p) => self.do_path(t, p, write),
                    None => TxnAnswer::default(),
                }),
            });
        }
        answer
    }
}

impl Txn {
    fn list(&self, path: &Path) -> &[Op] {
        if path.succeeded { &self.success } else { &self.failure }
    }
}

/// The revision that is being made.
pub(super) struct Write {
    before: u64,
    changes: u32,
}

impl Write {
    pub(super) fn new(store: &Store) -> Write {
        Write { before: store.revision, changes: 0 }
    }

    /// What is the newest revision within.
    pub(super) fn revision(&self) -> u64 {
        self.before + u64::from(self.changes > 0)
    }

    /// Main and sub revision of the next change.
    pub(super) fn next(&mut self) -> (u64, u32) {
        let sub = self.changes;
        self.changes += 1;
        (self.before + 1, sub)
    }

    pub(super) fn end(self, store: &mut Store) {
        store.revision = self.revision();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn put(key: &str) -> Op {
        Op::Put(Put { key: key.as_bytes().to_vec(), ..Put::default() })
    }
    fn del(key: &str, end: &str) -> Op {
        Op::Delete(Delete { key: key.as_bytes().to_vec(), end: end.as_bytes().to_vec(), prev_kv: false })
    }
    fn nest(success: Vec<Op>, failure: Vec<Op>) -> Op {
        Op::Txn(Box::new(Txn { compare: Vec::new(), success, failure }))
    }

    #[test]
    fn nested_transactions_survive_the_wire() {
        let deep = nest(vec![nest(vec![put("a")], vec![nest(vec![put("b")], vec![])]), put("c")], vec![]);
        let t = Txn {
            compare: Vec::new(),
            success: vec![deep.clone(), put("d"), nest(vec![], vec![put("e")])],
            failure: vec![del("a", "z"), nest(vec![put("f")], vec![])],
        };
        let bytes = crate::wire::encode(&t);
        assert_eq!(crate::wire::decode::<Txn>(&bytes), Ok(t));
    }

    #[test]
    fn depth_is_bounded_on_the_wire_and_before() {
        let of_depth = |n: usize| {
            let mut t = Txn::default();
            for _ in 1..n {
                t = Txn { success: vec![Op::Txn(Box::new(t))], ..Txn::default() };
            }
            t
        };
        let most = of_depth(limits::TXN_DEPTH_MAX);
        assert_eq!(most.check(), Ok(()));
        assert_eq!(crate::wire::decode::<Txn>(&crate::wire::encode(&most)), Ok(most));
        let more = of_depth(limits::TXN_DEPTH_MAX + 1);
        assert_eq!(more.check(), Err(Error::TooManyOperations));
        assert!(crate::wire::decode::<Txn>(&crate::wire::encode(&more)).is_err());
    }

    #[test]
    fn no_key_is_changed_twice() {
        let check = |success: Vec<Op>| Txn { success, ..Txn::default() }.check();
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put("a"), del("a", "")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put("a"), del("b", "\0")]), Ok(()));
        assert_eq!(check(vec![put("c"), del("b", "\0")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put("b"), del("a", "b")]), Ok(()));
        assert_eq!(check(vec![del("a", "d"), del("b", "c"), put("c")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![del("a", "b"), del("b", ""), put("b")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![nest(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(check(vec![nest(vec![put("a")], vec![put("b")]), put("b")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![nest(vec![put("a")], vec![]), nest(vec![put("a")], vec![])]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![nest(vec![del("a", "c")], vec![]), put("b")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![del("z", "a"), put("b")]), Ok(()));
    }
}
