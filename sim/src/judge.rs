//! The judges that look at a whole cluster. They know disks and listings, nothing of the protocol.

use crate::content::Content;
use crate::fs::{Fs, ROOT};
use crate::host::{Host, Power};
use crate::world::World;
use ice_core::op::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Nodes whose agreement counts.
fn members(world: &World) -> Vec<usize> {
    (0..world.hosts.len()).filter(|n| !matches!(world.hosts[*n].power, Power::Left | Power::Down)).collect()
}

/// One line for each object, as a user would see it.
fn on_disk(fs: &Fs) -> BTreeMap<String, String> {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (path, ino) in fs.list(ROOT) {
        let Some(i) = fs.get(ino) else { continue };
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        let path = path.join("/");
        let mut line = String::new();
        let _ = write!(line, "{:?} {:o} {}:{}", i.kind, i.attrs.mode, i.attrs.uid, i.attrs.gid);
        if i.kind == Kind::File {
            let _ = write!(
                line,
                " {} bytes {:?} at {}.{}",
                i.content.size,
                i.content.digest(),
                i.attrs.mtime.sec,
                i.attrs.mtime.nsec
            );
        }
        for (k, v) in &i.xattrs {
            let _ = write!(line, " {}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v));
        }
        let link = first.entry(ino).or_insert_with(|| path.clone());
        if *link != path {
            let _ = write!(line, " same as {link}");
        }
        out.insert(path, line);
    }
    out
}

/// The same from a node's logical tree.
fn in_tree(host: &Host) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let Some(p) = &host.process else { return out };
    let mut lines: Vec<_> = p.node.view().tree().listing();
    lines.sort_by(|a, b| a.path.cmp(&b.path));
    let mut first = BTreeMap::new();
    let mut named: Vec<(Vec<String>, _)> =
        lines.into_iter().map(|l| (l.path.iter().map(ToString::to_string).collect::<Vec<_>>(), l)).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, l) in named {
        let path = path.join("/");
        if path.is_empty() {
            continue;
        }
        let mut line = String::new();
        let _ = write!(line, "{:?} {:o} {}:{}", l.kind, l.attrs.mode, l.attrs.uid, l.attrs.gid);
        if l.kind == Kind::File {
            let _ = write!(line, " {} bytes {:?} at {}.{}", l.size, l.digest, l.attrs.mtime.sec, l.attrs.mtime.nsec);
        }
        let mut xattrs = l.xattrs.clone();
        xattrs.sort();
        for (k, v) in &xattrs {
            let _ = write!(line, " {}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v));
        }
        let link = first.entry(l.inode).or_insert_with(|| path.clone());
        if *link != path {
            let _ = write!(line, " same as {link}");
        }
        out.insert(path, line);
    }
    out
}

fn difference(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Option<(String, String, String)> {
    let paths: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    paths.into_iter().find(|p| a.get(*p) != b.get(*p)).map(|p| {
        let say = |m: &BTreeMap<String, String>| m.get(p).cloned().unwrap_or_else(|| "nothing".into());
        (p.clone(), say(a), say(b))
    })
}

/// Convergence: why the cluster does not agree yet. `None`: every node shows the same tree, it stands on every disk, and
/// nothing is under way.
pub fn disagreement(world: &World) -> Option<String> {
    let members = members(world);
    for n in &members {
        let host = &world.hosts[*n];
        let Some(p) = &host.process else { return Some(format!("n{} is down", n + 1)) };
        if host.power == Power::Paused || host.recovering {
            return Some(format!("n{} does not answer", n + 1));
        }
        if let Some((token, ask)) = p.asks.iter().next() {
            return Some(format!("n{} still owes an answer to {token} ({ask:?})", n + 1));
        }
        if let Some((_, io)) = p.pending.iter().next() {
            return Some(format!("n{} still has a disk action under way: {io:?}", n + 1));
        }
        if p.scan_queued {
            return Some(format!("n{} scans again and again", n + 1));
        }
        if p.writers.values().any(|w| w.dirty) {
            return Some(format!("n{} has changes to report", n + 1));
        }
        if !p.node.view().quiet() {
            return Some(format!("n{} has work left: {:?}", n + 1, p.node.view().unfinished()));
        }
    }
    if let Some(why) = crate::plane::unsettled(world) {
        return Some(why);
    }
    for (n, m) in members.iter().flat_map(|n| members.iter().map(move |m| (*n, *m))) {
        let (host, other) = (&world.hosts[n], &world.hosts[m]);
        let known = host.process.as_ref().and_then(|p| p.node.view().member(other.replica));
        let start = known.map(|i| i.incarnation);
        if start != Some(other.incarnation) {
            return Some(format!("n{} knows of start {start:?} of n{}, not of {:?}", n + 1, m + 1, other.incarnation));
        }
    }
    let digests: Vec<u128> = members
        .iter()
        .filter_map(|n| world.hosts[*n].process.as_ref())
        .map(|p| p.node.view().tree().digest())
        .collect();
    let first = members.first()?;
    if let Some(i) = digests.iter().position(|d| *d != digests[0]) {
        let (a, b) = (in_tree(&world.hosts[*first]), in_tree(&world.hosts[members[i]]));
        let what = match difference(&a, &b) {
            Some((path, x, y)) => format!("{path} is {x} on n{}, {y} on n{}", first + 1, members[i] + 1),
            None => "only in what they remember".into(),
        };
        return Some(format!("the trees of n{} and n{} differ: {what}", first + 1, members[i] + 1));
    }
    let tree = in_tree(&world.hosts[*first]);
    for n in &members {
        let host = &world.hosts[*n];
        let own = in_tree(host);
        if let Some((path, x, y)) = difference(&tree, &own) {
            return Some(format!("equal digests, but {path} is {x} on n{}, {y} on n{}", first + 1, n + 1));
        }
        if let Some((path, x, y)) = difference(&own, &on_disk(&host.fs)) {
            return Some(format!("on n{} {path} is {x} in the tree, {y} on disk", n + 1));
        }
        if let Some(name) = host.fs.get(crate::fs::WORK).and_then(|w| w.children.keys().next().cloned()) {
            return Some(format!("n{} still has {name} in its working directory", n + 1));
        }
    }
    None
}

/// No bytes dropped without a copy, nothing acknowledged lost, nothing invented.
pub fn bytes(world: &mut World) {
    let mut verdict = None;
    for n in members(world) {
        let host = &world.hosts[n];
        let mut present: BTreeSet<u32> =
            host.fs.inodes().filter(|(_, i)| i.kind.is_file() && i.links > 0).map(|(_, i)| i.content.token).collect();
        if let Some((_, i)) = host.fs.inodes().find(|(_, i)| i.kind.is_file() && world.ledger.is_foreign(i.content)) {
            let word = world.words.text(i.content);
            verdict = Some(("bytes", format!("n{} shows {word}, which nobody ever wrote", n + 1)));
            break;
        }
        for h in &world.hosts {
            present.extend(&h.aside);
        }
        if let Some(v) = world.ledger.missing(&present).next() {
            let word = world.words.text(v.content);
            let promise =
                if v.copies > 0 { format!(", acknowledged with {} copies,", v.copies) } else { String::new() };
            let at = v.at.0 / 1_000_000;
            let text = format!("{word}, written on n{}{promise} at {at} ms is not on n{}", v.node + 1, n + 1);
            verdict = Some((if v.copies > 0 { "nothing acknowledged is lost" } else { "no bytes dropped" }, text));
            break;
        }
    }
    if let Some((judge, text)) = verdict {
        world.fail(judge, text);
    }
}

/// A user whose machine died goes on when everything was given back. False: he waits.
pub fn user_resumes(world: &mut World) -> bool {
    if world.reference.as_ref().is_none_or(|r| !r.waits) {
        return true;
    }
    if disagreement(world).is_some() {
        return false;
    }
    if let Some(mut reference) = world.reference.take() {
        let writer = reference.writer.unwrap_or(0);
        let outcome = reference.resume(&world.hosts[writer].fs, &world.words);
        world.reference = Some(reference);
        if let Err(text) = outcome {
            world.fail("reference", format!("n{}: {text}", writer + 1));
        }
    }
    true
}

/// With one writer every node must hold what a plain directory would.
pub fn reference(world: &mut World) {
    user_resumes(world);
    let Some(reference) = world.reference.take() else { return };
    for n in members(world) {
        if let Some(text) = reference.differs(&world.hosts[n].fs, &world.words) {
            world.fail("reference", format!("n{}: {text}", n + 1));
            break;
        }
    }
    world.reference = Some(reference);
}

/// After the liveness phase: payloads balance, the staging area is empty.
pub fn promises_at_end(world: &mut World) {
    let mut verdict = None;
    for n in members(world) {
        let host = &world.hosts[n];
        let Some(p) = &host.process else { continue };
        let held = p.node.view().payloads_held();
        if held != p.pool.len() {
            let text = format!(
                "n{} was given {} payloads and holds {held}, {} are not released",
                n + 1,
                p.pool.given,
                p.pool.len()
            );
            verdict = Some(("payload balance", text));
        }
        if let Some(((inode, version), _)) = host.disk.staged.iter().next() {
            let text = format!("n{} still has version {version} of {inode} in its staging area", n + 1);
            verdict = Some(("nothing grows", text));
        }
    }
    if let Some((judge, text)) = verdict {
        world.fail(judge, text);
    }
}

/// Where a word stands now, for expectations.
pub fn holds(fs: &Fs, content: impl Fn(Content) -> bool) -> bool {
    fs.list(ROOT).iter().any(|(_, ino)| fs.get(*ino).is_some_and(|i| i.kind == Kind::File && content(i.content)))
}
