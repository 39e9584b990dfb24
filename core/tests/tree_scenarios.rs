//! Conflict rules as readable stories: `scenarios/tree/*.txt`.
//!
//! One command a line; `#` begins a comment. `a`, `b`, `c` are replicas, apart from each other until told otherwise.
//!
//! ```text
//! a mkdir PATH | a file PATH [BYTES] | a write PATH BYTES | a rm PATH | a mv PATH PATH | a swap PATH PATH | a ln PATH PATH
//! a symlink PATH TARGET | a chmod PATH OCTAL | a setx PATH NAME VALUE
//! a -> b          b learns of what a knows and its disk follows      a => b       b learns of it, its disk does not follow
//! a -> b last     b learns only of the newest operation of a          a does       a's disk follows what it knows
//! heal            everybody learns of everything, twice              forget       what everybody knows is forgotten
//! restart a       a begins again from its log                        checkpoint a
//! ```
//! `shows` (or `a shows`) is followed by the expected listing, one path a line and `end`: `PATH dir|file BYTES|link TARGET`,
//! with `= PATH` for a further name of a file and `mode OCTAL`, `NAME=VALUE` where they were set. `*` in a path stands for
//! the rest of a name.
#![allow(clippy::disallowed_methods, reason = "only the core itself must not look around")]

mod tree_support;

use ice_core::op::{Attr, Kind};
use ice_core::tree::Listed;
use std::path::Path;
use tree_support::Cluster;

fn replica(s: &str) -> usize {
    match s {
        "a" => 0,
        "b" => 1,
        "c" => 2,
        other => panic!("no replica {other}"),
    }
}

fn listing(all: &[Listed]) -> Vec<String> {
    let path = |l: &Listed| l.path.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("/");
    let mut seen: Vec<&Listed> = Vec::new();
    let mut out = Vec::new();
    for l in all {
        let mut s = path(l);
        if let Some(first) = seen.iter().find(|o| o.inode == l.inode) {
            s += &format!(" = {}", path(first));
        } else {
            match &l.kind {
                Kind::Dir => s += " dir",
                Kind::File => s += &format!(" file {}", l.size),
                Kind::Symlink(t) => s += &format!(" link {}", String::from_utf8_lossy(t)),
                other => s += &format!(" {other:?}"),
            }
            if l.attrs.mode != 0o644 {
                s += &format!(" mode {:o}", l.attrs.mode);
            }
            for (k, v) in &l.xattrs {
                s += &format!(" {}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v));
            }
            seen.push(l);
        }
        out.push(s);
    }
    out
}

/// `*` in `pattern` stands for any characters but `/` and blanks.
fn fits(line: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => line == pattern,
        Some((head, tail)) => line.strip_prefix(head).is_some_and(|rest| {
            let end = rest.find(['/', ' ']).unwrap_or(rest.len());
            (0..=end).any(|k| rest.is_char_boundary(k) && fits(&rest[k..], tail))
        }),
    }
}

fn expect(found: &[String], wanted: &[String], place: &str) {
    let mut left: Vec<&String> = found.iter().collect();
    let mut missing = Vec::new();
    for w in wanted {
        match left.iter().position(|l| fits(l, w)) {
            Some(k) => drop(left.remove(k)),
            None => missing.push(w),
        }
    }
    assert!(
        missing.is_empty() && left.is_empty(),
        "{place}:\nshown:  {found:#?}\nmissing: {missing:#?}\ntoo much: {left:#?}"
    );
}

fn run(file: &Path) {
    let text = std::fs::read_to_string(file).expect("scenario");
    let mut c = Cluster::new(3);
    let mut lines = text.lines().enumerate().map(|(n, l)| (n + 1, l.split('#').next().unwrap_or("").trim()));
    let mut checks = 0;
    while let Some((n, line)) = lines.next() {
        let place = format!("{}:{n}", file.file_name().unwrap_or_default().to_string_lossy());
        let w: Vec<&str> = line.split_whitespace().collect();
        let number = |s: &str| s.parse::<u64>().unwrap_or_else(|_| panic!("{place}: a number"));
        let done = match w[..] {
            [] => true,
            [r, "mkdir", p] => c.create(replica(r), p, Kind::Dir),
            [r, "file", p] => c.create(replica(r), p, Kind::File),
            [r, "file", p, n] => c.create(replica(r), p, Kind::File) && c.write(replica(r), p, number(n)),
            [r, "symlink", p, t] => c.create(replica(r), p, Kind::Symlink(t.as_bytes().into())),
            [r, "write", p, n] => c.write(replica(r), p, number(n)),
            [r, "rm", p] => c.remove(replica(r), p),
            [r, "mv", p, q] => {
                let lines = listing(&c.nodes[replica(r)].tree.listing());
                let mut names = lines.iter().filter_map(|l| l.split(' ').next());
                let p = names.find(|n| fits(n, p)).unwrap_or(p).to_owned();
                c.rename(replica(r), &p, q, false)
            }
            [r, "swap", p, q] => c.rename(replica(r), p, q, true),
            [r, "ln", p, q] => c.link(replica(r), p, q),
            [r, "chmod", p, m] => {
                let mode = u32::from_str_radix(m, 8).unwrap_or_else(|_| panic!("{place}: a mode"));
                c.attr(replica(r), p, Attr::Mode(mode))
            }
            [r, "setx", p, k, v] => {
                let value = Some(serde_bytes::ByteBuf::from(v.as_bytes()));
                c.attr(replica(r), p, Attr::Xattr { name: k.as_bytes().into(), value })
            }
            [x, arrow @ ("->" | "=>"), y] => {
                c.sync(replica(x), replica(y));
                if arrow == "->" {
                    c.rest(replica(y));
                }
                true
            }
            [x, "->", y, "last"] => {
                let all = &c.nodes[replica(x)];
                let newest = all.known.iter().rfind(|s| s.replica == all.id).copied();
                c.deliver(replica(y), newest.unwrap_or_else(|| panic!("{place}: nothing was done")));
                c.rest(replica(y));
                true
            }
            [r, "does"] => {
                c.rest(replica(r));
                true
            }
            ["heal"] => {
                c.heal();
                c.judge();
                true
            }
            ["forget"] => {
                c.cut_all();
                true
            }
            ["restart", r] => {
                c.nodes[replica(r)].restart();
                c.check(replica(r));
                true
            }
            ["checkpoint", r] => {
                c.nodes[replica(r)].checkpoint(2);
                true
            }
            [r, "knows", n] => {
                assert_eq!(c.nodes[replica(r)].tree.len() as u64, number(n), "{place}: inodes known");
                checks += 1;
                true
            }
            [r, "conflicts", n] => {
                assert_eq!(c.nodes[replica(r)].tree.conflicts().len() as u64, number(n), "{place}: conflicts");
                checks += 1;
                true
            }
            ["shows"] | [_, "shows"] => {
                let mut wanted = Vec::new();
                loop {
                    let (_, line) = lines.next().unwrap_or_else(|| panic!("{place}: no end"));
                    match line {
                        "end" => break,
                        "" => {}
                        line => wanted.push(line.split_whitespace().collect::<Vec<_>>().join(" ")),
                    }
                }
                let r = if w.len() == 2 { replica(w[0]) } else { 0 };
                expect(&listing(&c.nodes[r].tree.listing()), &wanted, &place);
                checks += 1;
                true
            }
            _ => panic!("{place}: not understood: {line}"),
        };
        assert!(done, "{place}: cannot be done: {line}");
    }
    assert!(checks > 0, "{}: checks nothing", file.display());
}

#[test]
fn stories_end_as_told() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/tree");
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("scenarios").map(|f| f.expect("scenario").path()).collect();
    files.sort();
    assert!(files.len() >= 20, "scenarios are missing");
    for f in files {
        if let Err(e) = std::panic::catch_unwind(|| run(&f)) {
            eprintln!("in {}", f.display());
            std::panic::resume_unwind(e);
        }
    }
}
