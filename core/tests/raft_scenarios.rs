//! Consensus as readable stories: `scenarios/raft/*.txt`.
//!
//! A line that begins with `>` is a command, the lines below it are what comes of it; `#` begins a comment. Replicas are called
//! by one letter. With `ICE_ACCEPT=1` in the environment the files are written anew: commit only what you can explain.
//!
//! ```text
//! nodes a b c [learners d]      a cluster whose members all know of each other; nobody leads
//! founder a                     a cluster of one       blank d       a replica without a past
//! a campaigns [by force]        a times out            pass 300ms [quietly]
//! deliver [quietly]             deliver a b            all messages and what they lead to; those between two, once
//! drop [a b]                    repeat a b             cut a b | cut a       heal
//! a proposes x y                a proposes 3 of 1000 bytes                   a reads
//! a changes +b ~c -d [explicit] a leaves joint         voter, learner, none
//! a hands over [to b]           a stops                a unreachable b       a reachable b
//! a holds writes                a writes at once       a syncs [n]           a lane slow|failed|fine
//! a holds pieces                a goes on              of snapshots
//! a crashes [keeping n]         a restarts             a checkpoints         a rescues
//! a pilots                      a leaves for good      what the autopilot wants, one change at a time
//! keep N                        entries that the log keeps for others; before the first replica
//! status                        log a
//! ```
//! What comes of a command: messages as they are delivered (not when `quietly`), and what the replicas want their nodes to know.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "only the core itself must not look around")]

mod raft_support;

use ice_core::ids::ReplicaId;
use ice_core::raft::autopilot::{self, Member};
use ice_core::raft::{
    Base, Body, Bytes, Config, Content, Effect, Entry, Input, Lane, Leave, Membership, Message, Persisted, Step,
};
use ice_core::time::{Instant, Span};
use raft_support::{World, config, founded};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

fn id(s: &str) -> ReplicaId {
    match s.as_bytes() {
        [c @ b'a'..=b'z'] => ReplicaId(u64::from(c - b'a') + 1),
        _ => panic!("{s:?} is no replica"),
    }
}

fn name(id: ReplicaId) -> char {
    char::from(b'a' + (id.0 as u8) - 1)
}

fn names(all: &BTreeSet<ReplicaId>) -> String {
    all.iter().map(|i| name(*i)).collect()
}

fn membership(m: &Membership) -> String {
    if m.voters.is_empty() {
        return "no voters".into();
    }
    let mut s = format!("voters {}", names(&m.voters));
    for (what, ids) in [("outgoing", &m.outgoing), ("learners", &m.learners), ("learners next", &m.learners_next)] {
        if !ids.is_empty() {
            write!(s, ", {what} {}", names(ids)).expect("text");
        }
    }
    if m.is_joint() && !m.auto_leave {
        s += ", until told";
    }
    s
}

fn text(c: &Bytes) -> String {
    if c.len() <= 12 { String::from_utf8_lossy(c).into_owned() } else { format!("{} bytes", c.len()) }
}

fn entry(e: &Entry) -> String {
    let what = match &e.content {
        Content::Noop => "-".into(),
        Content::Config(m) => format!("({})", membership(m)),
        Content::Command(c) => text(c),
    };
    format!("{}/{} {what}", e.index, e.term)
}

fn entries(all: &[Entry]) -> String {
    match all {
        [] => "nothing".into(),
        [a, b, c, .., z] => format!("{}, {}, {} ... {} ({})", entry(a), entry(b), entry(c), entry(z), all.len()),
        few => few.iter().map(entry).collect::<Vec<_>>().join(", "),
    }
}

fn base(b: &Base) -> String {
    format!("{}/{} ({})", b.index, b.term, membership(&b.membership))
}

fn message(m: &Message) -> String {
    let body = match &m.body {
        Body::PreVote { last } => format!("would you vote? my log ends at {}/{}", last.0, last.1),
        Body::PreVoteReply { granted, .. } => format!("{} vote", if *granted { "would" } else { "would not" }),
        Body::Vote { last, handover } => {
            format!("vote for me! my log ends at {}/{}{}", last.0, last.1, if *handover { ", asked to" } else { "" })
        }
        Body::VoteReply { granted } => (if *granted { "yes" } else { "no" }).into(),
        Body::Append { prev, entries: all, commit } => {
            format!("after {}/{}: {}, commit {commit}", prev.0, prev.1, entries(all))
        }
        Body::Appended { matched } => format!("have {matched}"),
        Body::Conflict { prev, hint } => format!("{prev} is not there, try {}/{}", hint.0, hint.1),
        Body::Heartbeat { commit, round } => format!("I lead, commit {commit}, round {round}"),
        Body::HeartbeatReply { round } => format!("I follow, round {round}"),
        Body::Snapshot { base: b, piece, last, .. } => {
            format!("snapshot {}, piece {piece}{}", base(b), if *last { ", the last" } else { "" })
        }
        Body::SnapshotReply { next: Some(n), .. } => format!("next piece {n}"),
        Body::SnapshotReply { next: None, .. } => "snapshot failed".into(),
        Body::TimeoutNow => "lead!".into(),
        Body::NewerTerm => "there is a newer term".into(),
    };
    format!("{} -> {} [{}] {body}", name(m.from), name(m.to), m.term)
}

fn effect(e: &Effect) -> Option<String> {
    Some(match e {
        Effect::Committed { entries: all } => format!("applies {}", entries(all)),
        Effect::Accepted { term, index, count: 1, .. } => format!("accepts {index}/{term}"),
        Effect::Accepted { term, index, count, .. } => format!("accepts {count} from {index}/{term}"),
        Effect::Rejected { why, leader, .. } => {
            let hint = leader.map(|l| format!(", ask {}", name(l))).unwrap_or_default();
            format!("rejects: {why:?}{hint}")
        }
        Effect::ReadReady { index, .. } => format!("reads at {index}"),
        Effect::Role { role, term, leader } => match leader {
            Some(l) => format!("{role:?} in term {term}, {} leads", name(*l)),
            None => format!("{role:?} in term {term}"),
        },
        Effect::Members { index, membership: m } => format!("{} from {index}", membership(m)),
        Effect::SnapshotWanted { to, .. } => format!("begins a snapshot for {}", name(*to)),
        Effect::SnapshotPiece { base: b, .. } => format!("installs {}", base(b)),
        Effect::SnapshotDone { .. } => "ends a snapshot".into(),
        Effect::TransferEnded { done, .. } => (if *done { "handed over" } else { "could not hand over" }).into(),
        Effect::Broken(why) => format!("takes no part: {why:?}"),
        Effect::Send(_) | Effect::Persist { .. } => return None,
    })
}

struct Story {
    w: World,
    /// Members that have left for good.
    left: BTreeSet<ReplicaId>,
    /// Since when each is up, or down.
    since: BTreeMap<ReplicaId, (bool, Instant)>,
    /// Entries that logs keep for others.
    keep: u64,
    out: String,
}

impl Story {
    fn say(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// What the replicas want known.
    fn news(&mut self) {
        let mut lines = Vec::new();
        for h in self.w.hosts.values_mut() {
            for e in h.seen.drain(..) {
                lines.extend(effect(&e).map(|s| format!("{}: {s}", name(h.id))));
            }
        }
        for l in lines {
            self.say(&l);
        }
        if let Some(fault) = self.w.judge.fault.take() {
            let fault = format!("FAULT: {fault}");
            self.say(&fault);
        }
    }

    fn deliver_one(&mut self, k: usize, quietly: bool) {
        let m = self.w.net[k].clone();
        let note = if self.w.cut.contains(&(m.from, m.to)) {
            ", lost"
        } else if !self.w.is_up(m.to) {
            ", nobody there"
        } else {
            ""
        };
        if !quietly {
            let line = message(&m) + note;
            self.say(&line);
        }
        self.w.deliver(k);
        self.news();
    }

    fn deliver_all(&mut self, quietly: bool) {
        let mut n = 0;
        while !self.w.net.is_empty() {
            self.deliver_one(0, quietly);
            n += 1;
            assert!(n < 10_000, "messages without end");
        }
    }

    fn pass(&mut self, span: Span, quietly: bool) {
        let end = self.w.now().after(span);
        let mut n = 0;
        self.deliver_all(quietly);
        while let Some((at, who)) = self.w.next_wake().filter(|(at, _)| *at <= end) {
            self.w.set_now(at);
            self.w.step(who, None);
            self.news();
            self.deliver_all(quietly);
            n += 1;
            assert!(n < 100_000, "timers without end");
        }
        self.w.set_now(end);
    }

    fn status(&mut self) {
        let mut lines = Vec::new();
        for h in self.w.hosts.values() {
            let Some(r) = &h.raft else {
                lines.push(format!("{} is down", name(h.id)));
                continue;
            };
            let b = r.base().index;
            let mut s = format!("{}: {:?}, term {}, ", name(h.id), r.role(), r.term());
            match r.last().0 {
                0 => s += "no log",
                last if last == b => write!(s, "no log after {b}").expect("text"),
                last => write!(s, "log {}..{last}", b + 1).expect("text"),
            }
            write!(s, ", commit {}, applied {}", r.commit(), r.applied()).expect("text");
            if r.durable() != r.last().0 {
                write!(s, ", durable {}", r.durable()).expect("text");
            }
            write!(s, ", {}", membership(r.membership().1)).expect("text");
            for (f, p) in r.followers() {
                let how = if p.snapshot {
                    "snapshot"
                } else if p.replicating {
                    "replicates"
                } else {
                    "probed"
                };
                write!(s, "; {} has {}, {how}", name(f), p.matched).expect("text");
            }
            lines.push(s);
        }
        lines.iter().for_each(|l| self.say(l));
    }

    fn nodes(&mut self, words: &[&str]) {
        let cut = words.iter().position(|w| *w == "learners").unwrap_or(words.len());
        let voters: Vec<ReplicaId> = words[..cut].iter().map(|w| id(w)).collect();
        let learners: Vec<ReplicaId> = words[cut..].iter().skip(1).map(|w| id(w)).collect();
        let m = Membership { learners: learners.iter().copied().collect(), ..Membership::of(voters.clone()) };
        for v in voters.into_iter().chain(learners) {
            self.w.add(Config { keep_entries: self.keep, ..config(v) }, founded(m.clone()));
            self.w.start(v);
            self.w.host_mut(v).seen.clear();
        }
    }

    /// The next change that the autopilot of a leader wants.
    fn pilot(&mut self, a: ReplicaId) {
        let now = self.w.now();
        let table: BTreeMap<ReplicaId, Member> = self
            .w
            .hosts
            .values()
            .map(|h| {
                let left = self.left.contains(&h.id);
                let (up, since) = self.since.get(&h.id).copied().unwrap_or((true, Instant(0)));
                (h.id, Member { up, since, left })
            })
            .collect();
        let raft = self.w.raft(a).expect("it is up");
        let Some(steps) = autopilot::next_of(raft, &table, &autopilot::Settings::default(), now) else {
            return self.say("it is content");
        };
        let word = |s: &Step| match s {
            Step::Voter(r) => format!("+{}", name(*r)),
            Step::Learner(r) => format!("~{}", name(*r)),
            Step::Remove(r) => format!("-{}", name(*r)),
        };
        let line = format!("it wants {}", steps.iter().map(word).collect::<Vec<_>>().join(" "));
        self.say(&line);
        let request = self.w.request();
        self.w.step(a, Some(Input::Change { request, steps, leave: Leave::Auto }));
        self.news();
        self.deliver_all(true);
    }

    fn between(&self, from: &str, to: &str) -> Vec<usize> {
        let (from, to) = (id(from), id(to));
        (0..self.w.net.len()).filter(|k| self.w.net[*k].from == from && self.w.net[*k].to == to).collect()
    }

    /// The member table notices who is up.
    fn notice(&mut self) {
        let now = self.w.now();
        for h in self.w.hosts.values() {
            let up = h.raft.is_some();
            let entry = self.since.entry(h.id).or_insert((up, now));
            if entry.0 != up {
                *entry = (up, now);
            }
        }
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let quietly = words.last() == Some(&"quietly");
        let words = if quietly { &words[..words.len() - 1] } else { &words[..] };
        match *words {
            ["nodes", ..] => self.nodes(&words[1..]),
            ["founder", a] => {
                self.w.add(config(id(a)), Persisted::found(id(a), 7));
                self.w.start(id(a));
            }
            ["blank", a] => {
                self.w.add(config(id(a)), Persisted::default());
                self.w.start(id(a));
            }
            ["deliver"] => self.deliver_all(quietly),
            ["deliver", a, b] => {
                let n = self.between(a, b).len();
                for _ in 0..n {
                    let k = self.between(a, b)[0];
                    self.deliver_one(k, quietly);
                }
            }
            ["drop"] => self.w.net.clear(),
            ["drop", a, b] => {
                for k in self.between(a, b).into_iter().rev() {
                    self.w.net.remove(k);
                }
            }
            ["repeat", a, b] => {
                for k in self.between(a, b) {
                    let m = self.w.net[k].clone();
                    self.w.net.push(m);
                }
            }
            ["cut", a, b] => {
                self.w.cut.extend([(id(a), id(b)), (id(b), id(a))]);
            }
            ["cut", a] => {
                let all: Vec<ReplicaId> = self.w.hosts.keys().copied().filter(|o| *o != id(a)).collect();
                self.w.cut.extend(all.into_iter().flat_map(|o| [(id(a), o), (o, id(a))]));
            }
            ["heal"] => self.w.cut.clear(),
            ["pass", span] => self.pass(parse_span(span), quietly),
            ["keep", n] => self.keep = n.parse().expect("a number"),
            [a, "pilots"] => self.pilot(id(a)),
            [a, "leaves", "for", "good"] => drop(self.left.insert(id(a))),
            ["status"] => self.status(),
            ["log", a] => {
                let r = self.w.raft(id(a)).expect("it is up");
                let all = r.entries(1, usize::MAX).iter().map(entry).collect::<Vec<_>>().join(", ");
                self.say(&all);
            }
            [a, ref rest @ ..] => self.replica(id(a), rest),
            [] => panic!("an empty command"),
        }
        self.notice();
        self.news();
    }

    fn replica(&mut self, a: ReplicaId, words: &[&str]) {
        let request = self.w.request();
        let w = &mut self.w;
        match *words {
            ["campaigns"] => w.step(a, Some(Input::Campaign { handover: false })),
            ["campaigns", "by", "force"] => w.step(a, Some(Input::Campaign { handover: true })),
            ["times", "out"] => {
                let at = w.host(a).wake.expect("it waits for something").at;
                let h = w.host_mut(a);
                h.now = h.now.max(at);
                w.step(a, None);
            }
            ["proposes", n, "of", size, "bytes"] => {
                let (n, size): (usize, usize) = (n.parse().expect("a number"), size.parse().expect("a number"));
                let commands = (0..n).map(|_| Bytes::from(vec![b'x'; size])).collect();
                w.step(a, Some(Input::Propose { request, commands }));
            }
            ["proposes", ref all @ ..] => {
                let commands = all.iter().map(|c| Bytes::from(c.as_bytes())).collect();
                w.step(a, Some(Input::Propose { request, commands }));
            }
            ["reads"] => drop(w.read(a)),
            ["leaves", "joint"] => w.step(a, Some(Input::LeaveJoint { request })),
            ["changes", ref all @ ..] => {
                let explicit = all.last() == Some(&"explicit");
                let steps = all.iter().filter(|s| **s != "explicit").map(|s| match s.split_at(1) {
                    ("+", r) => Step::Voter(id(r)),
                    ("~", r) => Step::Learner(id(r)),
                    ("-", r) => Step::Remove(id(r)),
                    _ => panic!("{s:?} is no change"),
                });
                let leave = if explicit { Leave::Explicit } else { Leave::Auto };
                w.step(a, Some(Input::Change { request, steps: steps.collect(), leave }));
            }
            ["hands", "over"] => w.step(a, Some(Input::Transfer { request, to: None })),
            ["hands", "over", "to", b] => w.step(a, Some(Input::Transfer { request, to: Some(id(b)) })),
            ["stops"] => w.step(a, Some(Input::Stop)),
            ["unreachable", b] => w.step(a, Some(Input::Unreachable(id(b)))),
            ["reachable", b] => w.step(a, Some(Input::Reachable(id(b)))),
            ["holds", "writes"] => w.host_mut(a).auto_sync = false,
            ["writes", "at", "once"] => w.host_mut(a).auto_sync = true,
            ["syncs"] => w.sync(a, usize::MAX),
            ["syncs", n] => w.sync(a, n.parse().expect("a number")),
            ["lane", how] => {
                let lane = match how {
                    "slow" => Lane::Slow,
                    "failed" => Lane::Failed,
                    "fine" => Lane::Fine,
                    _ => panic!("{how:?} is no state of a lane"),
                };
                w.step(a, Some(Input::Disk(lane)));
            }
            ["holds", "pieces"] => w.host_mut(a).hold_pieces = true,
            ["goes", "on"] => w.release_pieces(a),
            ["crashes"] => w.crash(a, 0),
            ["crashes", "keeping", n] => w.crash(a, n.parse().expect("a number")),
            ["restarts"] => w.start(a),
            ["checkpoints"] => w.checkpoint(a),
            ["rescues"] => {
                // The offline command: what a survivor has, and nobody else.
                let p = w.host(a).disk.synced.clone();
                let record = p.rescue(a, 8);
                assert!(w.host_mut(a).disk.synced.take(record), "it follows");
                let p = w.host(a).disk.synced.clone();
                w.judge.rescued(&p);
            }
            _ => panic!("{words:?} is no command"),
        }
    }
}

fn parse_span(s: &str) -> Span {
    match (s.strip_suffix("ms"), s.strip_suffix('s')) {
        (Some(n), _) => Span::ms(n.parse().expect("a number")),
        (None, Some(n)) => Span::s(n.parse().expect("a number")),
        _ => panic!("{s:?} is no time"),
    }
}

/// The text as it should stand in the file.
fn tell(text: &str) -> String {
    let mut w = World::new(1);
    w.set_now(Instant(0));
    let mut s = Story { w, left: BTreeSet::new(), since: BTreeMap::new(), keep: 0, out: String::new() };
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            s.say(line);
            s.command(command);
        } else if line.starts_with('#') || line.is_empty() {
            s.say(line);
        }
    }
    s.out
}

#[test]
fn stories() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/raft");
    let accept = std::env::var("ICE_ACCEPT").is_ok_and(|v| v == "1");
    let mut files: Vec<_> = std::fs::read_dir(&dir).expect("scenarios").map(|f| f.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the stories are there");
    let mut wrong = Vec::new();
    for file in files {
        let stands = std::fs::read_to_string(&file).expect("text");
        let which = file.file_name().expect("a name").to_string_lossy().into_owned();
        let told =
            std::panic::catch_unwind(|| tell(&stands)).unwrap_or_else(|_| panic!("{which} cannot be told to its end"));
        assert!(!told.contains("FAULT"), "{which}: {told}");
        if told == stands {
            continue;
        }
        if accept {
            std::fs::write(&file, told).expect("written");
            continue;
        }
        let at = told.lines().zip(stands.lines()).position(|(a, b)| a != b);
        let n = at.unwrap_or_else(|| told.lines().count().min(stands.lines().count()));
        let line = |s: &str| s.lines().nth(n).unwrap_or("(end)").to_string();
        wrong.push(format!("{which}:{}: {:?}, but the story says {:?}", n + 1, line(&told), line(&stands)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
