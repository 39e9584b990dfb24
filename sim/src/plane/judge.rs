//! What the users of the control plane were promised.

use super::linear::{self, Act, Verdict};
use super::{Deed, End, PlaneOp, Saw};
use crate::host::Power;
use crate::world::World;
use ice_core::control::Control;
use ice_core::raft::Role;
use ice_core::time::Span;
use std::collections::BTreeMap;

/// Places that the search for an order may go to, for one key.
const SEARCH_MAX: usize = 300_000;
/// Voters that a cluster has at most.
const VOTERS_MAX: usize = 5;

fn planes(world: &World) -> impl Iterator<Item = (usize, Option<&Control>)> {
    let up = world.hosts.iter().enumerate().filter(|(_, h)| !matches!(h.power, Power::Left | Power::Down));
    up.map(|(n, h)| (n, h.process.as_ref().and_then(|p| p.node.view().control())))
}

/// Why the control planes of all nodes are not done yet. `None`: they agree.
pub fn unsettled(world: &World) -> Option<String> {
    if !world.setup.control {
        return None;
    }
    let mut leader = None;
    let mut first: Option<(usize, &Control)> = None;
    for (n, c) in planes(world) {
        let Some(c) = c else { return Some(format!("n{} has no control plane", n + 1)) };
        if let Some(why) = c.raft().broken() {
            return Some(format!("n{}: its log is broken: {why:?}", n + 1));
        }
        if !c.quiet() {
            return Some(format!(
                "n{}: the control plane has work left: {:?}, {} wait, applied {} of {:?}, committed {}",
                n + 1,
                c.unfinished(),
                c.waiting(),
                c.raft().applied(),
                c.raft().last(),
                c.raft().commit()
            ));
        }
        if c.raft().role() == Role::Leader {
            if leader.is_some() {
                return Some("two lead".into());
            }
            leader = Some((n, c));
        }
        let f = *first.get_or_insert((n, c));
        if c.store().applied() != f.1.store().applied() || c.raft().leader() != f.1.raft().leader() {
            return Some(format!("n{} is not as far as n{}", n + 1, f.0 + 1));
        }
    }
    let (_, leader) = match leader {
        Some(l) => l,
        None => return Some("nobody leads".into()),
    };
    let up = planes(world).count();
    let wanted = (up.min(VOTERS_MAX) - 1) / 2 * 2 + 1;
    let members = leader.raft().membership().1;
    let live = |r: &ice_core::ids::ReplicaId| world.hosts.iter().any(|h| h.replica == *r && h.power == Power::Up);
    // Whoever is gone is not replaced before his time, and stays where nobody can take his place. A majority lives in any case.
    let patient = leader.config().autopilot.dead_after >= Span::s(60);
    let living = members.voters.iter().filter(|v| live(v)).count();
    let good = living == members.voters.len() && living == wanted;
    let spent = living > members.voters.len() / 2 && (patient || living == up);
    if members.is_joint() || members.voters.len() % 2 == 0 || !good && !spent {
        return Some(format!("with {up} nodes the members are {members}"));
    }
    if let Some((l, _)) = leader.store().leases().next() {
        return Some(format!("lease {l} is still there"));
    }
    if leader.store().locks().waiting() > 0 {
        let waits = leader.store().locks().named_after(b"").flat_map(|(n, l)| {
            l.queue.iter().map(move |w| format!("{} of {:?} for {}", w.holder, w.wait, String::from_utf8_lossy(n)))
        });
        let all: Vec<String> = waits.collect();
        return Some(format!("nobody asks for whom waits: {}", all.join(", ")));
    }
    None
}

/// When everything has settled: one state everywhere, and a history that can be explained.
pub fn at_end(world: &mut World) {
    if !world.setup.control {
        return;
    }
    let verdict = equal(world)
        .and_then(|()| locks(world))
        .and_then(|()| watches(world))
        .and_then(|()| leases(world))
        .and_then(|()| lists(world));
    if let Err((judge, text)) = verdict {
        return world.fail(judge, text);
    }
    registers(world);
}

type Found = Result<(), (&'static str, String)>;

fn equal(world: &World) -> Found {
    let mut first: Option<(usize, u128)> = None;
    for (n, c) in planes(world) {
        let Some(c) = c else { continue };
        let digest = c.store().digest();
        let f = *first.get_or_insert((n, digest));
        if f.1 != digest {
            return Err(("equal stores", format!("the stores of n{} and n{} differ", f.0 + 1, n + 1)));
        }
    }
    Ok(())
}

/// Whatever is held, somebody was told that he holds it.
fn locks(world: &World) -> Found {
    let Some((_, Some(c))) = planes(world).next() else { return Ok(()) };
    for (name, lock) in c.store().locks().named_after(b"") {
        let name = String::from_utf8_lossy(name);
        let knows = world
            .plane
            .held
            .iter()
            .any(|h| h.token == lock.token && h.holder == lock.holder && world.hosts[h.node].epoch == h.epoch);
        if !knows {
            let text = format!("{} holds {name} with token {}, and nobody knows", lock.holder, lock.token);
            return Err(("no lock is left behind", text));
        }
    }
    Ok(())
}

fn watches(world: &World) -> Found {
    let truth = &world.plane.truth;
    for (stream, w) in &world.plane.watchers {
        if w.start == 0 {
            continue;
        }
        let live = !w.closed && w.cancelled.is_none() && world.hosts[w.node].epoch == w.epoch;
        let upto = if live { truth.revision } else { w.upto };
        let wanted = truth.all.iter().filter(|c| c.0 >= w.start && c.0 <= upto && w.wants(&c.1));
        let mut got = w.got.iter();
        let place = || format!("stream {} of n{} ({} from revision {})", stream.0, w.node + 1, w.key, w.start);
        for want in wanted {
            match got.next() {
                Some(g) if g == want => {}
                Some(g) => return Err(("watches", format!("{} was told {g:?} instead of {want:?}", place()))),
                None => return Err(("watches", format!("{} was not told {want:?}", place()))),
            }
        }
        if let Some(g) = got.next().filter(|_| live) {
            return Err(("watches", format!("{} was told {g:?}, which never was", place())));
        }
    }
    Ok(())
}

fn leases(world: &World) -> Found {
    for (l, life) in &world.plane.leases {
        if life.seen && life.gone.is_none() {
            return Err(("leases end", format!("l{l} was never seen to end")));
        }
    }
    Ok(())
}

/// What was appended is there once and in order, and whoever read the list saw a part of it.
fn lists(world: &World) -> Found {
    let mut lists: BTreeMap<&str, Vec<(&Deed, &str)>> = BTreeMap::new();
    for d in &world.plane.deeds {
        if let PlaneOp::Append(key, word) = &d.op {
            lists.entry(key).or_default().push((d, word));
        }
    }
    let judge = "lists";
    for (key, appends) in lists {
        let last = world.plane.truth.at(key, u64::MAX).unwrap_or("");
        let words: Vec<&str> = last.split(',').filter(|w| !w.is_empty()).collect();
        let place = |word: &str| words.iter().position(|w| *w == word);
        for (d, word) in &appends {
            let times = words.iter().filter(|w| *w == word).count();
            let good = match d.end {
                End::Done(_) => times == 1,
                End::Not => times == 0,
                End::Unknown | End::Open => times <= 1,
            };
            if !good {
                return Err((judge, format!("{key} holds {word} {times} times, its append ended {:?}: {last}", d.end)));
            }
            for (e, other) in &appends {
                let before = matches!((d.to, &d.end), (Some(to), End::Done(_)) if to < e.from);
                if before && place(word) > place(other) && place(other).is_some() {
                    return Err((judge, format!("{key}: {other} was appended after {word}, but stands before it")));
                }
            }
        }
        for d in &world.plane.deeds {
            let (PlaneOp::Get(k), End::Done(Saw::Value(Some(value)))) = (&d.op, &d.end) else { continue };
            if k == key && !(last == value || last.starts_with(&format!("{value},"))) {
                return Err((judge, format!("{key} was read as {value}, and is {last}")));
            }
        }
    }
    Ok(())
}

/// The history of each register can be explained by an order of what was done.
fn registers(world: &mut World) {
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let mut number = |w: &str| {
        let next = numbers.len() as u32 + 1;
        if w == "-" { 0 } else { *numbers.entry(w.to_owned()).or_insert(next) }
    };
    let mut histories: BTreeMap<&str, Vec<linear::Op>> = BTreeMap::new();
    let mut foreign: Vec<&str> = Vec::new();
    for d in &world.plane.deeds {
        let unknown = matches!(d.end, End::Unknown | End::Open);
        if d.end == End::Not {
            continue;
        }
        let (key, act) = match (&d.op, &d.end) {
            (PlaneOp::Put(k, _, _, Some(_)), _) => {
                foreign.push(k);
                continue;
            }
            (PlaneOp::Append(k, _), _) => {
                foreign.push(k);
                continue;
            }
            (PlaneOp::Put(k, v, ..), _) => (k, Act::Write(number(v))),
            (PlaneOp::Del(k), _) => (k, Act::Write(0)),
            (PlaneOp::Get(k), End::Done(Saw::Value(v))) => (k, Act::Read(v.as_deref().map_or(0, &mut number))),
            (PlaneOp::Cas(k, old, new), End::Done(Saw::Swapped(yes))) => (k, Act::Swap(number(old), number(new), *yes)),
            (PlaneOp::Cas(k, old, new), _) => (k, Act::MaybeSwap(number(old), number(new))),
            _ => continue,
        };
        let to = if unknown { None } else { d.to };
        histories.entry(key).or_default().push(linear::Op { from: d.from, to, act });
    }
    let mut wrong = None;
    let mut searched = (false, false);
    for (key, ops) in histories.iter().filter(|(k, _)| !foreign.contains(*k)) {
        match linear::check(ops, SEARCH_MAX) {
            Verdict::Yes => searched.0 = true,
            Verdict::Unknown => searched.1 = true,
            Verdict::No { most, stuck } => {
                wrong = Some(format!(
                    "there is no order of what was done with {key}: {most} of {} have a place, none of these follows: {stuck:?}; \
                     values are {numbers:?}",
                    ops.len()
                ));
                break;
            }
        }
    }
    if searched.0 {
        world.sometimes.saw("history explained");
    }
    if searched.1 {
        world.sometimes.saw("history too long to explain");
    }
    if let Some(text) = wrong {
        world.fail("linearizability", text);
    }
}
