//! Commands in words; what they mean is told in `kv_scenarios.rs`.

use ice_core::ids::{InodeId, ReplicaId};
use ice_core::kv::command::{Action, AlarmKind, AuthAction, Delete, Permission, Put, SnapshotRecord};
use ice_core::kv::keys::prefix_end;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::files::{File, Kind, Lock};
use ice_core::kv::lock::named::Acquire;
use ice_core::kv::lock::{FileKey, LockAction, Mode, Owner, Span, WaitId};
use ice_core::kv::range::{RangeRequest, SortOrder, SortTarget};
use ice_core::kv::txn::{Compare, Is, Op, Target, Txn};

pub struct Words<'a> {
    pub words: Vec<&'a str>,
}

type Range = (Vec<u8>, Vec<u8>);

/// `KEY`, `PREFIX*`, `FROM..TO`, `FROM..`, `*`; `-` is no key at all.
pub fn range(s: &str) -> Range {
    let b = |s: &str| s.as_bytes().to_vec();
    if s == "-" {
        return (vec![], vec![]);
    }
    if s == "*" {
        return (vec![0], vec![0]);
    }
    if let Some(prefix) = s.strip_suffix('*') {
        return (b(prefix), prefix_end(prefix.as_bytes()));
    }
    match s.split_once("..") {
        Some((from, "")) => (b(from), vec![0]),
        Some((from, to)) => (b(from), b(to)),
        None => (b(s), vec![]),
    }
}

fn number<T: std::str::FromStr>(s: &str) -> T {
    s.parse().unwrap_or_else(|_| panic!("a number: {s}"))
}

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Words<'a> {
        Words { words: line.split_whitespace().collect() }
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.words.iter().position(|w| *w == name);
        at.map(|n| self.words.remove(n)).is_some()
    }

    pub fn option(&mut self, name: &str) -> Option<&'a str> {
        let at = self.words.iter().position(|w| w.strip_prefix(name).is_some_and(|r| r.starts_with('=')))?;
        self.words.remove(at).split_once('=').map(|(_, v)| v)
    }

    pub fn number<T: std::str::FromStr + Default>(&mut self, name: &str) -> T {
        self.option(name).map(number).unwrap_or_default()
    }
}

pub fn put(w: &mut Words<'_>) -> Option<Put> {
    let lease = LeaseId(w.number("lease"));
    let (prev_kv, ignore_value, ignore_lease) = (w.flag("prev"), w.flag("ignore_value"), w.flag("ignore_lease"));
    let bytes = |s: &str| match s.split_once('*') {
        _ if s == "-" => vec![],
        Some((letter, n)) => letter.as_bytes().repeat(number(n)),
        None => s.as_bytes().to_vec(),
    };
    let value = match w.words[..] {
        ["put", _, v] => bytes(v),
        ["put", _] => vec![],
        _ => return None,
    };
    Some(Put { key: bytes(w.words[1]), value, lease, prev_kv, ignore_value, ignore_lease })
}

pub fn get(w: &mut Words<'_>) -> Option<RangeRequest> {
    let (order, target) = match w.option("sort").map(|s| s.split_once(':').unwrap_or((s, "asc"))) {
        None => (SortOrder::None, SortTarget::Key),
        Some((target, order)) => {
            let target = match target {
                "key" => SortTarget::Key,
                "version" => SortTarget::Version,
                "create" => SortTarget::Create,
                "mod" => SortTarget::Modified,
                "value" => SortTarget::Value,
                other => panic!("sort by {other}"),
            };
            let order = match order {
                "asc" => SortOrder::Ascend,
                "desc" => SortOrder::Descend,
                "none" => SortOrder::None,
                other => panic!("order {other}"),
            };
            (order, target)
        }
    };
    let mut r = RangeRequest {
        order,
        target,
        limit: w.number("limit"),
        revision: w.number("rev"),
        keys_only: w.flag("keys"),
        count_only: w.flag("count"),
        min_modified: w.number("min_mod"),
        max_modified: w.number("max_mod"),
        min_create: w.number("min_create"),
        max_create: w.number("max_create"),
        ..RangeRequest::default()
    };
    let ["get", keys] = w.words[..] else { return None };
    (r.key, r.end) = range(keys);
    Some(r)
}

pub fn delete(w: &mut Words<'_>) -> Option<Delete> {
    let prev_kv = w.flag("prev");
    let ["del", keys] = w.words[..] else { return None };
    let (key, end) = range(keys);
    Some(Delete { key, end, prev_kv })
}

/// `txn if COMPARE .. then OP ; OP .. else OP ; OP ..`; a nested one stands in brackets: `[ if .. ]`.
pub fn txn(words: &[&str]) -> Txn {
    let mut t = Txn::default();
    let mut list = 0;
    let mut depth = 0;
    let mut op: Vec<&str> = Vec::new();
    let end = |op: &mut Vec<&str>, list: usize, t: &mut Txn| {
        if op.is_empty() {
            return;
        }
        let words = std::mem::take(op);
        match list {
            0 => t.compare.extend(words.iter().map(|w| compare(w))),
            n => {
                let op = match words[..] {
                    ["[", .., "]"] => Op::Txn(Box::new(txn(&words[1..words.len() - 1]))),
                    ["put", ..] => Op::Put(put(&mut Words { words }).expect("a put")),
                    ["get", ..] => Op::Range(get(&mut Words { words }).expect("a get")),
                    ["del", ..] => Op::Delete(delete(&mut Words { words }).expect("a del")),
                    _ => panic!("not an operation: {words:?}"),
                };
                if n == 1 { t.success.push(op) } else { t.failure.push(op) }
            }
        }
    };
    for w in words {
        match *w {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        match *w {
            "if" if depth == 0 => {}
            "then" if depth == 0 => {
                end(&mut op, list, &mut t);
                list = 1;
            }
            "else" if depth == 0 => {
                end(&mut op, list, &mut t);
                list = 2;
            }
            ";" if depth == 0 => end(&mut op, list, &mut t),
            w => op.push(w),
        }
    }
    end(&mut op, list, &mut t);
    t
}

/// `version(KEYS)=3`, `value(a)!=x`, `mod(a)>4`, `create(a)<9`, `lease(a)=0`.
fn compare(w: &str) -> Compare {
    let (what, rest) = w.split_once('(').unwrap_or_else(|| panic!("a comparison: {w}"));
    let (keys, rest) = rest.split_once(')').unwrap_or_else(|| panic!("a comparison: {w}"));
    let (is, with) = match rest {
        r if r.starts_with("!=") => (Is::NotEqual, &r[2..]),
        r if r.starts_with('=') => (Is::Equal, &r[1..]),
        r if r.starts_with('>') => (Is::Greater, &r[1..]),
        r if r.starts_with('<') => (Is::Less, &r[1..]),
        _ => panic!("a comparison: {w}"),
    };
    let target = match what {
        "version" => Target::Version(number(with)),
        "create" => Target::Create(number(with)),
        "mod" => Target::Modified(number(with)),
        "lease" => Target::Lease(LeaseId(number(with))),
        "value" => Target::Value(with.as_bytes().to_vec().into()),
        _ => panic!("a comparison: {w}"),
    };
    let (key, end) = range(keys);
    Compare { key, end, is, target }
}

fn file(s: &str) -> FileKey {
    let (kind, name) = s.split_once(':').unwrap_or(("posix", s));
    let kind = match kind {
        "posix" => Kind::Posix,
        "flock" => Kind::Flock,
        "write" => Kind::Write,
        other => panic!("a kind of lock: {other}"),
    };
    let file = match name.strip_prefix('#') {
        Some(n) => File::Inode(InodeId(number(n))),
        None => File::Path(name.as_bytes().into()),
    };
    FileKey { kind, file }
}

/// `NODE.SESSION.ID` or `NODE.ID`, or just a number: node 1, session 1.
pub fn owner(s: &str) -> Owner {
    let n: Vec<u64> = s.split('.').map(number).collect();
    match n[..] {
        [id] => Owner { replica: ReplicaId(1), session: 1, id },
        [r, id] => Owner { replica: ReplicaId(r), session: 1, id },
        [r, session, id] => Owner { replica: ReplicaId(r), session, id },
        _ => panic!("an owner: {s}"),
    }
}

pub fn wait(s: &str) -> WaitId {
    match s.split_once('.') {
        Some((r, n)) => WaitId { replica: ReplicaId(number(r)), number: number(n) },
        None => WaitId { replica: ReplicaId(1), number: number(s) },
    }
}

fn span(s: &str) -> Span {
    match s.split_once('-') {
        Some((a, "")) => Span { first: number(a), last: u64::MAX },
        Some((a, b)) => Span { first: number(a), last: number(b) },
        None => Span { first: number(s), last: number(s) },
    }
}

fn mode(s: &str) -> Mode {
    match s {
        "shared" => Mode::Shared,
        "exclusive" => Mode::Exclusive,
        other => panic!("a mode: {other}"),
    }
}

fn hash(s: &str) -> Option<String> {
    (s != "-").then(|| s.to_owned())
}

fn auth(w: &[&str]) -> Option<AuthAction> {
    let s = |s: &str| s.to_owned();
    Some(match *w {
        ["auth", "enable"] => AuthAction::Enable,
        ["auth", "disable"] => AuthAction::Disable,
        ["user", "add", name, h] => AuthAction::UserAdd { name: s(name), password_hash: hash(h) },
        ["user", "del", name] => AuthAction::UserDelete { name: s(name) },
        ["user", "passwd", name, h] => AuthAction::UserChangePassword { name: s(name), password_hash: hash(h) },
        ["user", "grant", name, role] => AuthAction::UserGrantRole { name: s(name), role: s(role) },
        ["user", "revoke", name, role] => AuthAction::UserRevokeRole { name: s(name), role: s(role) },
        ["role", "add", name] => AuthAction::RoleAdd { name: s(name) },
        ["role", "del", name] => AuthAction::RoleDelete { name: s(name) },
        ["role", "grant", name, kind, keys] => {
            let (key, end) = range(keys);
            let permission = Permission { read: kind.contains('r'), write: kind.contains('w'), key, end };
            AuthAction::RoleGrantPermission { name: s(name), permission }
        }
        ["role", "revoke", name, keys] => {
            let (key, end) = range(keys);
            AuthAction::RoleRevokePermission { name: s(name), key: key.into(), end: end.into() }
        }
        _ => return None,
    })
}

fn lock(w: &mut Words<'_>) -> Option<LockAction> {
    let at_ms = w.number("at");
    let waits = w.option("wait").map(wait);
    let lease = LeaseId(w.number("lease"));
    let replica = ReplicaId(w.option("node").map_or(1, number));
    let token = w.number("token");
    let blind = w.flag("blind");
    Some(match w.words[..] {
        ["lock", name, holder] => LockAction::Acquire(Acquire {
            name: name.as_bytes().to_vec(),
            holder: holder.to_owned(),
            replica,
            lease,
            at_ms,
            wait: waits,
        }),
        ["unlock", name, holder] => {
            LockAction::Release { name: name.as_bytes().to_vec().into(), holder: holder.to_owned(), token }
        }
        ["unlock", holder] => LockAction::ReleaseHolder { holder: holder.to_owned() },
        ["flock", f, o, m] | ["flock", f, o, m, _] => LockAction::Lock(Lock {
            file: file(f),
            owner: owner(o),
            mode: mode(m),
            span: w.words.get(4).map_or(Span::ALL, |s| span(s)),
            at_ms,
            wait: waits,
            detect: !blind,
        }),
        ["funlock", f, o] | ["funlock", f, o, _] => {
            LockAction::Unlock { file: file(f), owner: owner(o), span: w.words.get(3).map_or(Span::ALL, |s| span(s)) }
        }
        ["cancel", id] => LockAction::Cancel { wait: wait(id) },
        ["end", "session", r, s] => LockAction::EndSession { replica: ReplicaId(number(r)), session: number(s) },
        ["end", "node", r] => LockAction::EndReplica { replica: ReplicaId(number(r)) },
        _ => return None,
    })
}

/// What `F_GETLK` would be asked.
pub fn test(w: &Words<'_>) -> Option<(FileKey, Owner, Mode, Span)> {
    match w.words[..] {
        ["getlk", f, o, m] => Some((file(f), owner(o), mode(m), Span::ALL)),
        ["getlk", f, o, m, s] => Some((file(f), owner(o), mode(m), span(s))),
        _ => None,
    }
}

pub fn file_key(s: &str) -> FileKey {
    file(s)
}

/// Any command of the log.
pub fn action(line: &str) -> Option<Action> {
    let mut w = Words::new(line);
    if let Some(a) = auth(&w.words) {
        return Some(Action::Auth(a));
    }
    match w.words[..] {
        ["put", ..] => put(&mut w).map(Action::Put),
        ["del", ..] => delete(&mut w).map(Action::Delete),
        ["txn", ref rest @ ..] => Some(Action::Txn(txn(rest))),
        ["compact", n] => Some(Action::Compact { revision: number(n) }),
        ["lease", "grant", id, ttl] => Some(Action::LeaseGrant { id: LeaseId(number(id)), ttl_s: number(ttl) }),
        ["lease", "revoke", id] => Some(Action::LeaseRevoke { id: LeaseId(number(id)) }),
        ["lease", "expire", ref ids @ ..] => {
            Some(Action::LeaseExpire { ids: ids.iter().map(|i| LeaseId(number(i))).collect() })
        }
        ["lease", "checkpoint", id, s] => {
            Some(Action::LeaseCheckpoint { remaining: vec![(LeaseId(number(id)), number(s))] })
        }
        ["alarm", what, kind, member] => {
            let kind = match kind {
                "nospace" => AlarmKind::NoSpace,
                "corrupt" => AlarmKind::Corrupt,
                other => panic!("an alarm: {other}"),
            };
            Some(Action::Alarm { kind, member: number(member), raise: what == "raise" })
        }
        ["snapshot", "put", id, revision] => Some(Action::SnapshotPut(SnapshotRecord {
            id: id.to_owned(),
            revision: number(revision),
            ..SnapshotRecord::default()
        })),
        ["snapshot", "del", id] => Some(Action::SnapshotDelete { id: id.to_owned() }),
        _ => lock(&mut w).map(Action::Lock),
    }
}
