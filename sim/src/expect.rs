//! What scenarios expect.

use crate::fs::{Inode, ROOT};
use crate::host::{LastSync, Power};
use crate::judge;
use crate::plan::Expect;
use crate::user::split;
use crate::world::World;
use ice_core::op::Kind;
use ice_core::status::PeerState;

/// Checks one expectation on what users see on the nodes that are up.
pub fn check(world: &mut World, expect: &Expect) {
    if let Err(text) = holds(world, expect) {
        world.fail("expectation", format!("expect {expect}: {text}"));
    }
}

fn nodes(world: &World, wanted: &[usize]) -> Vec<usize> {
    let all = 0..world.hosts.len();
    all.filter(|n| if wanted.is_empty() { world.hosts[*n].power == Power::Up } else { wanted.contains(n) }).collect()
}

fn at<'a>(world: &'a World, n: usize, path: &str) -> Option<(u64, &'a Inode)> {
    let fs = &world.hosts[n].fs;
    let ino = fs.walk(ROOT, &split(path))?;
    fs.get(ino).map(|i| (ino, i))
}

fn each(world: &World, wanted: &[usize], f: impl Fn(usize) -> Result<(), String>) -> Result<(), String> {
    nodes(world, wanted).into_iter().try_for_each(|n| f(n).map_err(|e| format!("on n{}: {e}", n + 1)))
}

fn holds(world: &World, expect: &Expect) -> Result<(), String> {
    match expect {
        Expect::Same => judge::disagreement(world).map_or(Ok(()), Err),
        Expect::Content(ns, path, words) => each(world, ns, |n| match at(world, n, path) {
            Some((_, i)) if i.kind == Kind::File => {
                let text = world.words.text(i.content);
                if words.contains(&text) { Ok(()) } else { Err(format!("it holds {text}")) }
            }
            Some((_, i)) => Err(format!("it is {:?}", i.kind)),
            None => Err("it is not there".into()),
        }),
        Expect::There(ns, path) => {
            each(world, ns, |n| at(world, n, path).map(drop).ok_or_else(|| "it is not there".into()))
        }
        Expect::Gone(ns, path) => each(world, ns, |n| match at(world, n, path) {
            Some((_, i)) => Err(format!("it is there: {:?}", i.kind)),
            None => Ok(()),
        }),
        Expect::Mode(ns, path, mode) => each(world, ns, |n| match at(world, n, path) {
            Some((_, i)) if i.attrs.mode == *mode => Ok(()),
            Some((_, i)) => Err(format!("its mode is {:o}", i.attrs.mode)),
            None => Err("it is not there".into()),
        }),
        Expect::Target(ns, path, target) => each(world, ns, |n| match at(world, n, path) {
            Some((_, i)) if i.kind == Kind::Symlink(target.as_bytes().into()) => Ok(()),
            Some((_, i)) => Err(format!("it is {:?}", i.kind)),
            None => Err("it is not there".into()),
        }),
        Expect::SameFile(ns, a, b) => each(world, ns, |n| match (at(world, n, a), at(world, n, b)) {
            (Some((x, _)), Some((y, _))) if x == y => Ok(()),
            (Some(_), Some(_)) => Err("they are two files".into()),
            _ => Err("one of them is not there".into()),
        }),
        Expect::Count(ns, path, count) => each(world, ns, |n| {
            let dir = if path == "/" { world.hosts[n].fs.get(ROOT) } else { at(world, n, path).map(|(_, i)| i) };
            match dir {
                Some(i) if i.children.len() == *count => Ok(()),
                Some(i) => {
                    let names: Vec<String> = i.children.keys().map(ToString::to_string).collect();
                    Err(format!("it has {}: {}", names.len(), names.join(" ")))
                }
                None => Err("it is not there".into()),
            }
        }),
        Expect::Copies(path, count) => each(world, &[], |n| {
            let (dir, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(d, f)| (d, f));
            let dir = if dir.is_empty() { world.hosts[n].fs.get(ROOT) } else { at(world, n, dir).map(|(_, i)| i) };
            let dir = dir.ok_or("the directory is not there")?;
            let prefix = format!("{name}.conflict-");
            let copies: Vec<String> =
                dir.children.keys().map(ToString::to_string).filter(|c| c.starts_with(&prefix)).collect();
            if copies.len() == *count {
                Ok(())
            } else {
                let all: Vec<String> = dir.children.keys().map(ToString::to_string).collect();
                Err(format!("there are {}; the directory has {}", copies.len(), all.join(" ")))
            }
        }),
        Expect::Kept(word) => {
            let token = world.words.token(word).ok_or("nobody ever wrote it")?;
            each(world, &[], |n| {
                let there = judge::holds(&world.hosts[n].fs, |c| c.token == token);
                if there { Ok(()) } else { Err("no file holds it".into()) }
            })
        }
        Expect::Lost(word) => {
            let token = world.words.token(word).ok_or("nobody ever wrote it")?;
            each(world, &[], |n| {
                let there = judge::holds(&world.hosts[n].fs, |c| c.token == token);
                if there { Err("a file holds it".into()) } else { Ok(()) }
            })
        }
        Expect::Fsync(n, outcome) => {
            let last = world.hosts.get(*n).map_or(LastSync::Never, |h| h.last_sync);
            let good = match (last, outcome.as_str()) {
                (LastSync::Ok(_), "ok") | (LastSync::Refused, "refused") | (LastSync::Waiting, "waiting") => true,
                (LastSync::Ok(copies), wanted) => wanted.parse() == Ok(copies),
                _ => false,
            };
            if good { Ok(()) } else { Err(format!("it is {last:?}")) }
        }
        Expect::Saw(name) => {
            let name = name.replace('-', " ");
            let seen = world.sometimes.all().any(|(k, _)| k.replace('-', " ") == name);
            if seen { Ok(()) } else { Err("it never happened".into()) }
        }
        Expect::Peer(a, b, wanted) => {
            let replica = world.hosts.get(*b).map(|h| h.replica).ok_or("no such node")?;
            let p = world.hosts.get(*a).and_then(|h| h.process.as_ref()).ok_or("the node is down")?;
            let status = p.node.view().status();
            let peer = status.peers.iter().find(|p| p.replica == replica).ok_or("it is not known")?;
            let state = match peer.state {
                PeerState::Unknown => "unknown",
                PeerState::Up => "up",
                PeerState::Suspect => "suspect",
                PeerState::Down => "down",
            };
            if state == wanted { Ok(()) } else { Err(format!("it is {state}: {}", peer.why)) }
        }
        Expect::Key(ns, key, value) => each(world, ns, |n| {
            let is = world.key(n, key).unwrap_or_else(|| "-".into());
            if is == *value { Ok(()) } else { Err(format!("it is {is}")) }
        }),
        Expect::Reason(n, text) => {
            let p = world.hosts.get(*n).and_then(|h| h.process.as_ref()).ok_or("the node is down")?;
            let reasons = p.node.view().status().reasons;
            if reasons.iter().any(|r| r.contains(text)) { Ok(()) } else { Err(format!("its reasons are {reasons:?}")) }
        }
    }
}
