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
//! ```
//! Beside the store of the story there is another replica that hears the same commands but sweeps at other times, is
//! checkpointed and started anew after each, and must always be equal.
//!
//! With `KV_SCENARIOS=write` the files are written anew with what was answered; look at every line of the difference.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only the core itself must not look around")]

mod kv_support;

use ice_core::kv::command::{Action, By, Command};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::lock::{Grant, LockAnswer};
use ice_core::kv::range::{KeyValue, RangeAnswer};
use ice_core::kv::snapshot::{Chunk, Restore, SnapshotCursor, SnapshotId};
use ice_core::kv::txn::{DeleteAnswer, OpAnswer, PutAnswer, TxnAnswer};
use ice_core::kv::{Answer, Effect, Error, Outcome, Store};
use kv_support::{Replica, parse, text};
use std::fmt::Write as _;
use std::path::Path;

#[derive(Default)]
struct Story {
    store: Store,
    twin: Replica,
    index: u64,
    snapshot: Option<(SnapshotId, SnapshotCursor, Vec<Chunk>)>,
}

fn kv(kv: &KeyValue) -> String {
    let mut s = format!("{}={}", text(&kv.key), text(&kv.value));
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
        outcome(&o)
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
