//! The store as readable stories: `scenarios/kv/*.txt`.
//!
//! A command stands at the beginning of a line, what it is answered below it, indented. lines that begin with `#` are comments. Keys are named as
//! `KEY`, `PREFIX*`, `FROM..TO` (without TO), `FROM..`, or `*` for all.
//!
//! ```text
//! put KEY VALUE [lease=ID] [prev] [ignore_value] [ignore_lease]         del KEYS [prev]
//! get KEYS [rev=N] [limit=N] [sort=key|version|create|mod|value:asc|desc|none] [keys] [count] [min_mod= max_mod= min_create= max_create=]
//! txn if COMPARE .. then OP ; OP .. else OP ; OP ..                     compact REV     sweep      hash [REV]
//! lease grant ID TTL | revoke ID | expire ID.. | checkpoint ID SECONDS | show
//! auth enable|disable   user add|del|passwd|grant|revoke ..   role add|del|grant|revoke ..   as USER[@REV] COMMAND   node COMMAND
//! alarm raise|disarm nospace|corrupt MEMBER | show                      quota BYTES COMMAND
//! lock NAME HOLDER [wait=ID] [lease=ID] [node=N] [at=MS]                unlock [NAME] HOLDER [token=N]     locks
//! flock [KIND:]FILE OWNER shared|exclusive [FIRST-LAST] [wait=ID] [blind]      funlock FILE OWNER [FIRST-LAST]
//! getlk FILE OWNER MODE [FIRST-LAST]   file FILE   cancel ID   end session NODE SESSION   end node NODE
//! snapshot put ID REV | del ID | begin | chunk | tamper | restore | end
//! watch STREAM KEYS [id=N] [start=REV] [prev] [noput] [nodelete] [progress] [fragment]     unwatch STREAM.ID     close STREAM
//! events        what the streams are told, and nobody takes it        take STREAM   it takes what it was sent
//! progress STREAM       at SECONDS   it is so late now
//! lessor promote | demote | pump         keepalive ID         left ID
//! ```
//! A value written as `x*N` is N letters. Proposals of the lessor are applied at once; its grace is 2 s.
//!
//! Beside the store of the story there is another replica that hears the same commands but sweeps at other times, is
//! checkpointed and started anew after each, and must always be equal.
//!
//! With `KV_SCENARIOS=write` the files are written anew with what was answered; look at every line of the difference.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only the core itself must not look around")]

mod kv_support;

use ice_core::kv::command::{Action, By, Command};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lessor::{KeepAlive, Lessor};
use ice_core::kv::lock::{Grant, LockAnswer};
use ice_core::kv::range::{KeyValue, RangeAnswer};
use ice_core::kv::snapshot::{Chunk, Restore, SnapshotCursor, SnapshotId};
use ice_core::kv::txn::{DeleteAnswer, OpAnswer, PutAnswer, TxnAnswer};
use ice_core::kv::watch::{Hub, Message, StreamId, Told, WatchId, WatchSpec};
use ice_core::kv::{Answer, Effect, Error, Outcome, Store};
use ice_core::time::{Instant, Span};
use kv_support::{Replica, parse, text};
use std::fmt::Write as _;
use std::path::Path;

#[derive(Default)]
struct Story {
    store: Store,
    twin: Replica,
    index: u64,
    snapshot: Option<(SnapshotId, SnapshotCursor, Vec<Chunk>)>,
    hub: Hub,
    untaken: Vec<(WatchId, usize)>,
    lessor: Lessor,
    now: Instant,
}

fn value(b: &[u8]) -> String {
    if b.len() > 40 { format!("({} bytes)", b.len()) } else { text(b) }
}

fn kv(kv: &KeyValue) -> String {
    let mut s = format!("{}={}", text(&kv.key), value(&kv.value));
    let _ = write!(s, " create={} mod={} version={}", kv.create, kv.modified, kv.version);
    if kv.lease.0 != 0 {
        let _ = write!(s, " lease={}", kv.lease.0);
    }
    s
}

fn put_lines(a: &PutAnswer, out: &mut Vec<String>, pad: &str) {
    out.push(format!("{pad}put revision {}", a.revision));
    out.extend(a.prev.iter().map(|p| format!("{pad}was {}", kv(p))));
}

fn delete_lines(a: &DeleteAnswer, out: &mut Vec<String>, pad: &str) {
    out.push(format!("{pad}deleted {} revision {}", a.deleted, a.revision));
    out.extend(a.prev.iter().map(|p| format!("{pad}was {}", kv(p))));
}

fn range_lines(a: &RangeAnswer, out: &mut Vec<String>, pad: &str) {
    out.extend(a.kvs.iter().map(|k| format!("{pad}{}", kv(k))));
    let more = if a.more { ", there is more" } else { "" };
    out.push(format!("{pad}count {} revision {}{more}", a.count, a.revision));
}

fn txn_lines(a: &TxnAnswer, out: &mut Vec<String>, pad: &str) {
    out.push(format!("{pad}{}", if a.succeeded { "succeeded" } else { "failed" }));
    let pad = &format!("{pad}. ");
    for a in &a.answers {
        match a {
            OpAnswer::Range(a) => range_lines(a, out, pad),
            OpAnswer::Put(a) => put_lines(a, out, pad),
            OpAnswer::Delete(a) => delete_lines(a, out, pad),
            OpAnswer::Txn(a) => txn_lines(a, out, pad),
        }
    }
}

fn grant(g: &Grant) -> String {
    format!("token {} since {}", g.token, g.since_ms)
}

fn outcome(o: &Outcome) -> Vec<String> {
    let mut out = Vec::new();
    match &o.result {
        Err(e) => out.push(format!("error {e:?}")),
        Ok(Answer::Repeated) => out.push("repeated".into()),
        Ok(Answer::Done) => out.push(format!("done, revision {}", o.revision)),
        Ok(Answer::Put(a)) => put_lines(a, &mut out, ""),
        Ok(Answer::Delete(a)) => delete_lines(a, &mut out, ""),
        Ok(Answer::Txn(a)) => {
            txn_lines(a, &mut out, "");
            out.push(format!("revision {}", o.revision));
        }
        Ok(Answer::Lease { id, ttl_s }) => out.push(format!("lease {} for {ttl_s} s", id.0)),
        Ok(Answer::Expired(ids)) => out.push(format!("expired {ids:?}, revision {}", o.revision)),
        Ok(Answer::Alarm { changed }) => out.push(if *changed { "changed".into() } else { "as it was".into() }),
        Ok(Answer::Lock(LockAnswer::Granted(g))) => out.push(format!("granted {}", grant(g))),
        Ok(Answer::Lock(LockAnswer::Waiting)) => out.push("waits".into()),
        Ok(Answer::Lock(LockAnswer::Released { count })) => out.push(format!("released {count}")),
        Ok(Answer::Lock(LockAnswer::Cancelled { found })) => out.push(format!("cancelled: {found}")),
    }
    for e in &o.effects {
        match e {
            Effect::LockGranted { wait, grant: g } => {
                out.push(format!("-> wait {}.{} granted {}", wait.replica.0, wait.number, grant(g)));
            }
            Effect::LockRefused { wait, error } => {
                out.push(format!("-> wait {}.{} refused {error:?}", wait.replica.0, wait.number));
            }
            _ => {}
        }
    }
    out
}

impl Story {
    fn command(&mut self, by: By, action: Action) -> Vec<String> {
        let command = Command { by, action };
        self.index += 1;
        let o = self.store.apply(self.index, &command);
        let twin = self.twin.apply(self.index, std::slice::from_ref(&command));
        assert_eq!(twin, vec![o.clone()], "replicas differ");
        // Said again, it is nothing.
        assert_eq!(self.store.apply(self.index, &command).result, Ok(Answer::Repeated));
        while self.twin.store.sweep() {}
        self.twin.checkpoint(1 + self.index as usize % 3);
        self.twin.restart();
        assert_eq!(self.twin.store.digest(), self.store.digest(), "replicas differ");
        assert_eq!(self.twin.store.hash(0), self.store.hash(0));
        self.lessor.effects(&self.store, &o.effects, self.now);
        outcome(&o)
    }

    fn watch(&mut self, w: &mut parse::Words<'_>) -> Option<Vec<String>> {
        let start = w.number("start");
        let id = w.option("id").map(|n| n.parse().expect("an id"));
        let (prev_kv, no_put, no_delete) = (w.flag("prev"), w.flag("noput"), w.flag("nodelete"));
        let (progress, fragment) = (w.flag("progress"), w.flag("fragment"));
        let ["watch", stream, keys] = w.words[..] else { return None };
        let stream = StreamId(stream.parse().expect("a stream"));
        let (key, end) = parse::range(keys);
        let spec = WatchSpec { key, end, start, no_put, no_delete, prev_kv, progress, fragment };
        let mut out = Vec::new();
        Some(match self.hub.create(&self.store, self.now, stream, id, spec, &mut out) {
            Err(e) => vec![format!("error {e:?}")],
            Ok(_) => self.messages(out),
        })
    }

    fn messages(&mut self, messages: Vec<Message>) -> Vec<String> {
        let mut out = Vec::new();
        for m in messages {
            let to = m.stream.0;
            match m.told {
                Told::Created { id, revision } => out.push(format!("{to}.{id} created at revision {revision}")),
                Told::Progress { id: Some(id), revision } => out.push(format!("{to}.{id} nothing until {revision}")),
                Told::Progress { id: None, revision } => out.push(format!("{to} all told until {revision}")),
                Told::Cancelled { id, compacted: Some(c), .. } => {
                    out.push(format!("{to}.{id} cancelled, compacted {c}"));
                }
                Told::Cancelled { id, .. } => out.push(format!("{to}.{id} cancelled")),
                Told::Events { id, revision, events, fragment, bytes } => {
                    let more = if fragment { ", more of it follows" } else { "" };
                    out.push(format!("{to}.{id} until {revision}{more}"));
                    self.untaken.push((WatchId { stream: m.stream, id }, bytes));
                    for e in events {
                        let what = if e.deleted { "deleted" } else { "put" };
                        out.push(format!(". {what} {}", kv(&e.kv)));
                        out.extend(e.prev.as_ref().map(|p| format!(".   was {}", kv(p))));
                    }
                }
            }
        }
        out
    }

    fn events(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        while self.hub.advance(&self.store, self.now, &mut out) {}
        while self.hub.catch_up(&self.store, self.now, 3, &mut out) {}
        self.hub.signs_of_life(self.now, &mut out);
        let mut lines = self.messages(out);
        if self.hub.behind() > 0 {
            lines.push(format!("{} behind", self.hub.behind()));
        }
        if lines.is_empty() { vec!["none".into()] } else { lines }
    }

    fn snapshot(&mut self, what: &str) -> Vec<String> {
        match what {
            "begin" => {
                let (id, cursor) = self.store.snapshot_begin().expect("a snapshot");
                self.snapshot = Some((id, cursor, Vec::new()));
                vec![format!("begun at entry {} revision {}", self.store.applied(), self.store.revision())]
            }
            "end" => {
                let (id, ..) = self.snapshot.take().expect("a snapshot");
                assert!(self.store.snapshot_end(id));
                vec!["ended".into()]
            }
            "chunk" => {
                let (_, cursor, chunks) = self.snapshot.as_mut().expect("a snapshot");
                match self.store.snapshot_chunk(cursor, 1) {
                    Err(e) => vec![e.to_string()],
                    Ok(None) => vec!["no more".into()],
                    Ok(Some(chunk)) => {
                        let last = if chunk.last { ", the last" } else { "" };
                        let line = format!("chunk {} of {} rows{last}", chunk.number, chunk.rows.len());
                        chunks.push(chunk);
                        vec![line]
                    }
                }
            }
            "tamper" => {
                let (.., chunks) = self.snapshot.as_mut().expect("a snapshot");
                let row = chunks.iter_mut().find_map(|c| c.rows.first_mut()).expect("a row");
                row.1[0] ^= 1;
                vec!["a bit was changed".into()]
            }
            "restore" => {
                let (_, cursor, chunks) = self.snapshot.as_mut().expect("a snapshot");
                while let Ok(Some(chunk)) = self.store.snapshot_chunk(cursor, 100) {
                    chunks.push(chunk);
                }
                let mut restore = Restore::default();
                for chunk in chunks.iter() {
                    if let Err(e) = restore.chunk(chunk) {
                        return vec![format!("refused: {e}")];
                    }
                    // Repeated on the way.
                    restore.chunk(chunk).expect("known already");
                }
                match restore.finish() {
                    Err(e) => vec![format!("refused: {e}")],
                    Ok(store) => {
                        let mut out =
                            vec![format!("a store at entry {} revision {}", store.applied(), store.revision())];
                        let all = parse::get(&mut parse::Words::new("get *")).expect("all");
                        range_lines(&store.range(&all).expect("readable"), &mut out, "");
                        out
                    }
                }
            }
            _ => unreachable!("checked by the caller"),
        }
    }

    fn line(&mut self, line: &str) -> Option<Vec<String>> {
        let mut by = By::Nobody;
        let mut w = parse::Words::new(line);
        let mut rest = line;
        match w.words[..] {
            ["as", user, ..] => {
                let (name, revision) = user.split_once('@').unwrap_or((user, ""));
                let revision = revision.parse().unwrap_or(self.store.auth().revision());
                by = By::User { name: name.to_owned(), revision };
                rest = line.split_once(user)?.1.trim();
            }
            ["node", ..] => {
                by = By::Node;
                rest = line.split_once("node")?.1.trim();
            }
            ["quota", bytes, ..] => {
                rest = line.split_once(bytes)?.1.trim();
                let command = Command::node(parse::action(rest)?);
                if self.store.over_quota(&command, bytes.parse().ok()?) {
                    return Some(vec!["refused by the proposer: NoSpace".into()]);
                }
            }
            _ => {}
        }
        if rest != line {
            w = parse::Words::new(rest);
        }
        let s = &mut self.store;
        Some(match w.words[..] {
            ["get", ..] => {
                let r = parse::get(&mut w)?;
                let mut out = Vec::new();
                match s.auth().may_read(&by, r.range()).and_then(|()| s.range(&r)) {
                    Ok(a) => range_lines(&a, &mut out, ""),
                    Err(e) => out.push(format!("error {e:?}")),
                }
                out
            }
            ["sweep"] => {
                let before = s.records();
                while s.sweep() {}
                vec![format!("{} revisions went, {} stay, of {} keys", before - s.records(), s.records(), s.keys())]
            }
            ["hash"] | ["hash", _] => {
                let revision = w.words.get(1).map_or(0, |n| n.parse().expect("a revision"));
                let twin = self.twin.store.hash(revision);
                assert_eq!(s.hash(revision), twin, "replicas differ");
                match twin {
                    Ok(h) => vec![format!("equal, at revision {} compacted {}", h.revision, h.compacted)],
                    Err(e) => vec![format!("error {e:?}")],
                }
            }
            ["lease", "show"] => {
                let mut out = Vec::new();
                for (id, l) in s.leases() {
                    let mut keys: Vec<String> = s.lease_keys(id).map(text).collect();
                    keys.sort();
                    out.push(format!("{} for {} s, left {} s: {}", id.0, l.ttl_s(), l.remaining_s(), keys.join(" ")));
                }
                if out.is_empty() { vec!["none".into()] } else { out }
            }
            ["alarm", "show"] => vec![format!("{:?}", s.alarms().collect::<Vec<_>>())],
            ["user", "show", name] => match s.auth().may_see_user(&by, name) {
                Err(e) => vec![format!("error {e:?}")],
                Ok(()) => vec![format!("{:?}", s.auth().user(name).map(|u| &u.roles))],
            },
            ["role", "show", name] => match s.auth().may_see_role(&by, name) {
                Err(e) => vec![format!("error {e:?}")],
                Ok(()) => vec![format!("{} permissions", s.auth().role(name).map_or(0, |r| r.permissions.len()))],
            },
            ["auth", "status"] => vec![format!("enabled {} revision {}", s.auth().enabled(), s.auth().revision())],
            ["locks"] => {
                let mut out: Vec<String> = s
                    .locks()
                    .named_after(b"")
                    .map(|(n, l)| {
                        let queue: Vec<&str> = l.queue.iter().map(|w| &w.holder[..]).collect();
                        let (t, since) = (l.token, l.since_ms);
                        format!("{} held by {} token {t} since {since} waiting {queue:?}", text(n), l.holder)
                    })
                    .collect();
                out.push(format!("{} held, {} wait", s.locks().held(), s.locks().waiting()));
                out
            }
            ["file", f] => {
                let last = |n: u64| if n == u64::MAX { String::new() } else { n.to_string() };
                let held = s.locks().file(&parse::file_key(f)).iter();
                let mut out: Vec<String> = held
                    .map(|h| {
                        let o = h.owner;
                        let span = format!("{}-{}", h.span.first, last(h.span.last));
                        format!("{}.{}.{} {:?} {span} token {}", o.replica.0, o.session, o.id, h.mode, h.token)
                    })
                    .collect();
                if out.is_empty() {
                    out.push("free".into());
                }
                out
            }
            ["getlk", ..] => {
                let (file, owner, mode, span) = parse::test(&w)?;
                match s.locks().test(&file, owner, mode, span) {
                    None => vec!["free".into()],
                    Some(h) => vec![format!("{:?} by {}.{}", h.mode, h.owner.replica.0, h.owner.id)],
                }
            }
            ["at", seconds] => {
                self.now = Instant(seconds.parse::<u64>().ok()? * 1_000_000_000);
                return Some(vec![]);
            }
            ["watch", ..] => self.watch(&mut w)?,
            ["unwatch", who] => {
                let (stream, id) = who.split_once('.')?;
                let who = WatchId { stream: StreamId(stream.parse().ok()?), id: id.parse().ok()? };
                let mut out = Vec::new();
                let found = self.hub.cancel(&self.store, who, &mut out);
                if found { self.messages(out) } else { vec!["there is none".into()] }
            }
            ["close", stream] => {
                self.hub.close(StreamId(stream.parse().ok()?));
                vec![format!("{} watchers are left", self.hub.len())]
            }
            ["events"] => self.events(),
            ["take", stream] => {
                let stream = StreamId(stream.parse().ok()?);
                for (who, bytes) in self.untaken.iter_mut().filter(|(w, _)| w.stream == stream) {
                    self.hub.taken(*who, std::mem::take(bytes));
                }
                return Some(vec![]);
            }
            ["progress", stream] => {
                self.hub.ask_progress(StreamId(stream.parse().ok()?));
                return Some(vec![]);
            }
            ["lessor", "promote"] => {
                self.lessor.promote(Span::s(2));
                return Some(vec![]);
            }
            ["lessor", "demote"] => {
                self.lessor.demote();
                return Some(vec![]);
            }
            ["lessor", "pump"] => {
                let mut actions = Vec::new();
                while self.lessor.pump(&self.store, self.now, &mut actions) {}
                let mut out = vec![];
                for action in actions {
                    out.push(format!("proposes {action:?}"));
                    out.extend(self.command(By::Node, action));
                }
                if out.is_empty() { vec!["proposes nothing".into()] } else { out }
            }
            ["keepalive", id] => match self.lessor.keep_alive(&self.store, LeaseId(id.parse().ok()?), self.now) {
                Ok(KeepAlive::Renewed { ttl_s }) => vec![format!("for {ttl_s} s")],
                Ok(KeepAlive::Propose { action, ttl_s }) => {
                    let mut out = vec![format!("after {action:?}")];
                    out.extend(self.command(By::Node, action));
                    out.push(format!("for {ttl_s} s"));
                    out
                }
                Err(e) => vec![format!("{e:?}")],
            },
            ["left", id] => match self.lessor.time_left_s(LeaseId(id.parse().ok()?), self.now) {
                Some(s) => vec![format!("{s} s")],
                None => vec!["unknown here".into()],
            },
            ["snapshot", what @ ("begin" | "chunk" | "tamper" | "restore" | "end")] => self.snapshot(what),
            _ => {
                // What belongs to the cluster itself is proposed by it.
                let action = parse::action(rest)?;
                let own = matches!(action, Action::LeaseExpire { .. } | Action::LeaseCheckpoint { .. });
                self.command(if own && by == By::Nobody { By::Node } else { by }, action)
            }
        })
    }
}

fn run(file: &Path) {
    let told = std::fs::read_to_string(file).expect("scenario");
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut story = Story::default();
    let mut out = String::new();
    let mut answers = 0;
    for (n, line) in told.lines().enumerate() {
        if line.starts_with(' ') {
            continue;
        }
        out += line;
        out.push('\n');
        let command = line.trim();
        if command.is_empty() || line.starts_with('#') {
            continue;
        }
        let answer = story.line(command).unwrap_or_else(|| panic!("{name}:{}: not understood: {line}", n + 1));
        answers += 1;
        for a in answer {
            out += &format!("  {a}\n");
        }
    }
    assert!(answers > 0, "{name}: tells nothing");
    if std::env::var("KV_SCENARIOS").is_ok_and(|v| v == "write") {
        std::fs::write(file, &out).expect("written");
    } else if out != told {
        let differs = out
            .lines()
            .zip(told.lines())
            .position(|(a, b)| a != b)
            .unwrap_or(out.lines().count().min(told.lines().count()));
        let at = |s: &str| s.lines().skip(differs.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
        panic!("{name}:{}: told:\n{}\n\nhappened:\n{}", differs + 1, at(&told), at(&out));
    }
}

#[test]
fn stories_end_as_told() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/kv");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("scenarios").map(|f| f.expect("scenario").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "scenarios are missing");
    for f in files {
        if let Err(e) = std::panic::catch_unwind(|| run(&f)) {
            eprintln!("in {}", f.display());
            std::panic::resume_unwind(e);
        }
    }
}

#[test]
fn a_lease_of_nobody_is_shown_as_such() {
    assert_eq!(format!("{}", LeaseId(10)), "000000000000000a");
    assert_eq!(Error::LeaseNotFound { id: LeaseId(10) }.to_string(), "there is no lease 000000000000000a");
}
