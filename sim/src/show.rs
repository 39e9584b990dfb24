//! Things in a few words, for stories.

use ice_core::action::{Apply, LogRecord, Notice, Over, Source, Spot};
use ice_core::message::{Frontier, Message};
use ice_core::op::{Op, OpBody};
use ice_core::tree::{EntryRecord, StateRecord};

fn short<T: std::fmt::Debug>(v: &T) -> String {
    // Long ids say as much by their first digits.
    let text = format!("{v:?}");
    text.chars().take(9).collect()
}

fn frontier(f: &Frontier) -> String {
    let marks: Vec<String> = f.iter().map(|m| format!("{}:{}", short(&m.origin), m.seq)).collect();
    format!("[{}]", marks.join(" "))
}

/// An operation.
pub fn op(op: &Op) -> String {
    let body = match &op.body {
        OpBody::Place { entry, inode, parent, name, make } => {
            let what = make.as_ref().map_or("place", |_| "create");
            format!("{what} {} {} as {}/{name}", short(entry), short(inode), short(parent))
        }
        OpBody::Remove { entry, saw, last } => {
            let other = if *last { "" } else { ", not the last name" };
            format!("remove {} which saw {}{other}", short(entry), saw.time.0)
        }
        OpBody::SetAttr { inode, attr } => format!("attr {} {attr:?}", short(inode)),
        OpBody::SetContent { inode, base, size, digest, .. } => {
            format!("content {} {size} bytes {digest:?} on {}", short(inode), base.time.0)
        }
    };
    format!("{}#{}@{} {body}", short(&op.origin), op.seq, op.time.0)
}

/// What a peer knows of an inode.
fn state(r: &StateRecord) -> String {
    let entry = |e: &EntryRecord| {
        let places = e.places.iter().map(|p| format!("{}/{}@{}", short(&p.parent), p.name, p.stamp.time.0));
        let removed = e.removed.iter().map(|r| format!("removed@{} which saw {}", r.at.time.0, r.saw.time.0));
        format!("{} {}", short(&e.id), places.chain(removed).collect::<Vec<_>>().join(", "))
    };
    let entries: Vec<String> = r.entries.iter().map(entry).collect();
    format!("of {} content {} [{}]", short(&r.inode), r.content.0.time.0, entries.join("; "))
}

/// A log record.
pub fn record(r: &LogRecord) -> String {
    match r {
        LogRecord::Op { op: o, here } => format!("{}{}", op(o), if here.is_some() { " (here)" } else { "" }),
        LogRecord::Holds { inode, version, .. } => format!("holds {} {}", short(inode), version.time.0),
        LogRecord::Stands { entry, spot: s } => {
            format!("stands {} {}", short(entry), s.as_ref().map_or("nowhere".into(), spot))
        }
        LogRecord::Life(l) => format!("life {l:?}"),
        LogRecord::Alone => "consensus: forgotten".into(),
        LogRecord::Raft(r) => format!(
            "consensus: term {} vote {:?} commit {}, {} entries{}",
            r.hard.term,
            r.hard.vote,
            r.hard.commit,
            r.append.len(),
            if r.base.is_some() { ", a new beginning" } else { "" }
        ),
        LogRecord::Member(m) => format!("member {} {:?} left {}", m.name, m.incarnation, m.left),
        LogRecord::State { records, .. } => {
            let all: Vec<String> = records.iter().map(state).collect();
            format!("state {}", all.join("; "))
        }
        LogRecord::Absent { inodes, .. } => {
            format!("absent {}", inodes.iter().map(short).collect::<Vec<_>>().join(" "))
        }
        LogRecord::Kept { inode, lost, copy } => format!("kept {} {} as {}", short(inode), lost.time.0, short(copy)),
    }
}

/// A spot.
pub fn spot(s: &Spot) -> String {
    match s {
        Spot::At { parent, name } => format!("{}/{name}", short(parent)),
        Spot::Limbo(e) => format!("limbo/{}", short(e)),
    }
}

fn source(s: &Source) -> String {
    match s {
        Source::Empty => "empty".into(),
        Source::Payload(p) => format!("payload {} {} bytes", p.id, p.len),
        Source::Staged { version, .. } => format!("staged {}", version.time.0),
    }
}

fn instead(over: &Option<Over>) -> String {
    over.as_ref().map_or(String::new(), |o| format!(" instead of {}", short(&o.inode)))
}

/// A change of `backing`.
pub fn apply(a: &Apply) -> String {
    match a {
        Apply::Make { inode, at, kind, source: s, over, .. } => {
            format!("make {kind:?} {} at {} from {}{}", short(inode), spot(at), source(s), instead(over))
        }
        Apply::Link { inode, from, to } => format!("link {} {} to {}", short(inode), spot(from), spot(to)),
        Apply::Move { inode, from, to, over } => {
            format!("move {} {} to {}{}", short(inode), spot(from), spot(to), instead(over))
        }
        Apply::Remove { inode, at, .. } => format!("remove {} {}", short(inode), spot(at)),
        Apply::Attr { inode, at, .. } => format!("attr {} {}", short(inode), spot(at)),
        Apply::Install { inode, at, source: s, keep, .. } => {
            let names: Vec<String> = at.iter().map(spot).collect();
            let kept = keep.as_ref().map_or(String::new(), |k| format!(", keeping the old as {}", spot(k)));
            format!("install {} at {} from {}{kept}", short(inode), names.join(", "), source(s))
        }
    }
}

/// A message.
pub fn message(m: &Message) -> String {
    match m {
        Message::Hello(h) => format!("hello {} {:?} knows {}", h.member.name, h.member.incarnation, frontier(&h.known)),
        Message::Beat(b) => {
            format!(
                "beat {}{} log {} content {}",
                b.number,
                if b.answer { " answer" } else { "" },
                frontier(&b.held.log),
                frontier(&b.held.content)
            )
        }
        Message::Ops { ops, urgent, .. } => {
            let list: Vec<String> = ops.iter().take(4).map(op).collect();
            let more = if ops.len() > 4 { format!(" and {} more", ops.len() - 4) } else { String::new() };
            format!("ops{} {}{more}", if *urgent { " (urgent)" } else { "" }, list.join("; "))
        }
        Message::Held(h) => format!("held log {} content {}", frontier(&h.log), frontier(&h.content)),
        Message::Want { origin, from } => format!("want {} from {from}", short(origin)),
        Message::Members(m) => {
            let names: Vec<String> =
                m.iter().map(|i| format!("{}{}", i.name, if i.left { " (left)" } else { "" })).collect();
            format!("members {}", names.join(", "))
        }
        Message::StateDigests { round, level, buckets, .. } => {
            format!("state digests round {round} level {level}: {} buckets", buckets.len())
        }
        Message::StateWant { round, level, buckets } => {
            format!("state want round {round} level {level}: {} buckets", buckets.len())
        }
        Message::State { round, bucket, records, last, .. } => {
            format!(
                "state round {round} bucket {bucket}: {} records{}",
                records.len(),
                if *last { ", last" } else { "" }
            )
        }
        Message::Control(m) => {
            let text = format!("{m:?}");
            text.chars().take(300).collect()
        }
        other => format!("{other:?}"),
    }
}

/// A notice.
pub fn notice(n: &Notice) -> String {
    match n {
        Notice::PeerJoin(m) => format!("{} joined", m.name),
        Notice::PeerLeave(m) => format!("{} left", m.name),
        Notice::PeerDown { member, why } => format!("{} is down: {why}", member.name),
        Notice::PeerRecover(m) => format!("{} is back", m.name),
        Notice::Conflict { inode, lost, copy, .. } => {
            format!("conflict on {}: {} kept as {}", short(inode), lost.time.0, short(copy))
        }
        Notice::Trouble(text) => format!("trouble: {text}"),
        other => format!("{other:?}"),
    }
}
