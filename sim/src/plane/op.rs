//! What users ask of the control plane, as text.

use crate::plan::span;
use ice_core::time::Span;
use std::fmt;

/// One request, as a client makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlaneOp {
    /// Writes a key; with a size: the value is so long; with a lease: under it.
    Put(String, String, usize, Option<u32>),
    /// Reads it, linearizable.
    Get(String),
    /// Reads it as it stands on this node.
    Look(String),
    /// Deletes it.
    Del(String),
    /// Writes the new value if the old one is there; `-` is none.
    Cas(String, String, String),
    /// Appends to a list: reads it, and writes it back if it is still the same, as often as it takes.
    Append(String, String),
    /// Makes a lease of so many seconds.
    Grant(u32, u64),
    /// Keeps it alive.
    Keep(u32),
    /// Ends it.
    Revoke(u32),
    /// Takes a named lock for a holder on this node, perhaps under a lease.
    Lock(String, String, Option<u32>),
    /// Gives it back.
    Unlock(String, String),
    /// Watches a key, or `all`, from so many revisions ago. A slow one takes what it is told only after a while.
    Watch(String, u64, bool),
    /// Compacts what is older than so many revisions.
    Compact(u64),
    /// Hands the leadership to this node.
    Lead(usize),
}

/// A request and how long its asker waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What.
    pub op: PlaneOp,
    /// How long.
    pub limit: Span,
}

/// How long users wait where a plan does not say.
pub const LIMIT: Span = Span::s(5);

impl Request {
    /// From the words after `kv`.
    pub fn parse(words: &[&str]) -> Result<Request, String> {
        let (words, limit) = match words {
            [rest @ .., "for", time] => (rest, span(time)?),
            all => (all, LIMIT),
        };
        let own = |w: &&str| (*w).to_owned();
        let lease = |w: &str| -> Result<u32, String> {
            let n = w.strip_prefix('l').and_then(|n| n.parse().ok());
            n.filter(|n| *n > 0).ok_or_else(|| format!("{w:?} is not a lease (l1, l2, ...)"))
        };
        let number = |w: &str| w.parse::<u64>().map_err(|_| format!("{w:?} is not a number"));
        let op = match words {
            ["put", k, v] => PlaneOp::Put(own(k), own(v), 0, None),
            ["put", k, v, "size", n] => PlaneOp::Put(own(k), own(v), number(n)? as usize, None),
            ["put", k, v, "under", l] => PlaneOp::Put(own(k), own(v), 0, Some(lease(l)?)),
            ["get", k] => PlaneOp::Get(own(k)),
            ["look", k] => PlaneOp::Look(own(k)),
            ["del", k] => PlaneOp::Del(own(k)),
            ["cas", k, a, b] => PlaneOp::Cas(own(k), own(a), own(b)),
            ["append", k, w] => PlaneOp::Append(own(k), own(w)),
            ["grant", l, ttl] => PlaneOp::Grant(lease(l)?, number(ttl)?),
            ["keep", l] => PlaneOp::Keep(lease(l)?),
            ["revoke", l] => PlaneOp::Revoke(lease(l)?),
            ["lock", name, holder] => PlaneOp::Lock(own(name), own(holder), None),
            ["lock", name, holder, "under", l] => PlaneOp::Lock(own(name), own(holder), Some(lease(l)?)),
            ["unlock", name, holder] => PlaneOp::Unlock(own(name), own(holder)),
            ["watch", k, back] => PlaneOp::Watch(own(k), number(back)?, false),
            ["watch", k, back, "slowly"] => PlaneOp::Watch(own(k), number(back)?, true),
            ["compact", back] => PlaneOp::Compact(number(back)?),
            ["lead", n] => {
                let n = n.strip_prefix('n').and_then(|n| n.parse::<usize>().ok()).and_then(|n| n.checked_sub(1));
                PlaneOp::Lead(n.ok_or("lead: a node (n1, n2, ...) is missing")?)
            }
            _ => return Err(format!("kv {}: not known", words.join(" "))),
        };
        Ok(Request { op, limit })
    }
}

impl fmt::Display for PlaneOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlaneOp::Put(k, v, 0, None) => write!(f, "put {k} {v}"),
            PlaneOp::Put(k, v, _, Some(l)) => write!(f, "put {k} {v} under l{l}"),
            PlaneOp::Put(k, v, n, None) => write!(f, "put {k} {v} size {n}"),
            PlaneOp::Get(k) => write!(f, "get {k}"),
            PlaneOp::Look(k) => write!(f, "look {k}"),
            PlaneOp::Del(k) => write!(f, "del {k}"),
            PlaneOp::Cas(k, a, b) => write!(f, "cas {k} {a} {b}"),
            PlaneOp::Append(k, w) => write!(f, "append {k} {w}"),
            PlaneOp::Grant(l, ttl) => write!(f, "grant l{l} {ttl}"),
            PlaneOp::Keep(l) => write!(f, "keep l{l}"),
            PlaneOp::Revoke(l) => write!(f, "revoke l{l}"),
            PlaneOp::Lock(n, h, None) => write!(f, "lock {n} {h}"),
            PlaneOp::Lock(n, h, Some(l)) => write!(f, "lock {n} {h} under l{l}"),
            PlaneOp::Unlock(n, h) => write!(f, "unlock {n} {h}"),
            PlaneOp::Watch(k, back, slow) => write!(f, "watch {k} {back}{}", if *slow { " slowly" } else { "" }),
            PlaneOp::Compact(back) => write!(f, "compact {back}"),
            PlaneOp::Lead(n) => write!(f, "lead n{}", n + 1),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if self.limit == LIMIT { Ok(()) } else { write!(f, " for {}ms", self.limit.0 / 1_000_000) }
    }
}
