//! From a seed to a plan.

use crate::plan::{Command, DiskState, Line, Plan, Setup, UserOp};
use crate::plane::{PlaneOp, PlaneRequest};
use crate::profile::{FaultKind, PlaneKind, Profile, UserKind};
use crate::rng::Stream;
use ice_core::config::Ending;
use ice_core::event::Ack;
use ice_core::limits::INLINE_CONTENT_MAX_BYTES;
use ice_core::time::{Instant, Span};
use std::collections::BTreeMap;

/// Few names, so that users get in each other's way.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Nodes are given this long to find each other before anything goes wrong, in half of the runs.
const QUIET_START: Span = Span::s(3);

struct Draw<'a> {
    profile: &'a Profile,
    rng: Stream,
    lines: Vec<Line>,
    nodes: usize,
    gone: Vec<usize>,
    replaced: usize,
    words: u32,
    end: Instant,
}

/// The plan of one seed: the same every time.
pub fn plan(profile: &Profile, name: &str, seed: u64) -> Plan {
    let mut rng = Stream::new(seed, "plan");
    let nodes = rng.range(profile.nodes.0, profile.nodes.1) as usize;
    let length = Span::s(rng.range(profile.seconds.0, profile.seconds.1));
    let start = if rng.chance(500) { QUIET_START } else { Span(0) };
    let end = Instant(0).after(start).after(length);
    let mut d = Draw { profile, rng, lines: Vec::new(), nodes, gone: Vec::new(), replaced: 0, words: 0, end };
    d.faults(start, length);
    d.users(start, length);
    d.rng = Stream::new(seed, "asks");
    d.asks(start, length);
    let mut lines = d.lines;
    lines.sort_by_key(|l| l.at);
    lines.push(Line { at: Some(end), command: Command::Heal });
    lines.push(Line { at: None, command: Command::Settle(crate::plan::SETTLE) });
    let setup = Setup { nodes, seed, profile: name.into(), single_writer: profile.single_writer, ..Setup::default() };
    let setup = Setup { control: profile.control, ..setup };
    Plan { story: vec![format!("Drawn from seed {seed} of profile {name}.")], setup, lines }
}

/// A different mix each run: some kinds are left out, the others keep their weight.
fn swarm<K: Copy + Ord>(weights: &BTreeMap<K, u32>, rng: &mut Stream) -> (Vec<K>, Vec<u32>) {
    let all = rng.chance(150);
    let chosen: Vec<(K, u32)> = weights.iter().filter(|_| all || rng.chance(600)).map(|(k, w)| (*k, *w)).collect();
    let chosen = if chosen.is_empty() { weights.iter().map(|(k, w)| (*k, *w)).collect() } else { chosen };
    chosen.into_iter().unzip()
}

impl Draw<'_> {
    fn put(&mut self, at: Instant, command: Command) {
        self.lines.push(Line { at: Some(at.min(self.end)), command });
    }
    fn moment(&mut self, start: Span, length: Span) -> Instant {
        // Whole milliseconds read better.
        Instant((start.0 + self.rng.below(length.0)) / 1_000_000 * 1_000_000)
    }
    fn node(&mut self) -> usize {
        self.rng.index(self.nodes)
    }
    fn path(&mut self) -> String {
        let depth = 1 + self.rng.weighted(&[50, 35, 15]).unwrap_or(0);
        let names: Vec<&str> = (0..depth).map(|_| *self.rng.pick(&NAMES)).collect();
        names.join("/")
    }
    fn word(&mut self) -> (String, Option<u64>) {
        self.words += 1;
        let size = self
            .rng
            .chance(self.profile.big_per_mille)
            .then(|| INLINE_CONTENT_MAX_BYTES + 1 + self.rng.below(2_000_000));
        // Now and then two users write the same.
        if self.rng.chance(30) { ("same".into(), None) } else { (format!("w{}", self.words), size) }
    }

    fn users(&mut self, start: Span, length: Span) {
        let (kinds, weights) = swarm(&self.profile.users, &mut self.rng);
        let n = self.rng.range(self.profile.operations.0, self.profile.operations.1);
        let writer = self.rng.index(self.nodes);
        // Without files nothing happens: every run begins with some.
        for _ in 0..n.min(6) {
            let at = self.moment(start, Span(length.0 / 4));
            let node = if self.profile.single_writer { writer } else { self.node() };
            let op = if self.rng.chance(400) {
                UserOp::Mkdir(self.path())
            } else {
                let (w, size) = self.word();
                UserOp::Write(self.path(), w, size)
            };
            self.put(at, Command::User { node, direct: false, op });
        }
        for _ in 0..n.saturating_sub(6) {
            let at = self.moment(start, length);
            let node = if self.profile.single_writer { writer } else { self.node() };
            let Some(i) = self.rng.weighted(&weights) else { return };
            if kinds[i] == UserKind::Save {
                self.save(node, at);
                continue;
            }
            let op = self.user(kinds[i]);
            let direct = self.rng.chance(self.profile.direct_per_mille) && kinds[i] != UserKind::Fsync;
            if let UserOp::Open(path, ..) = &op {
                let close = Command::User { node, direct: false, op: UserOp::Close(path.clone()) };
                let later = at.after(Span::ms(self.rng.range(1, 5000)));
                self.put(later, close);
            }
            let synced = match &op {
                UserOp::Write(p, ..) | UserOp::Edit(p, ..) if self.rng.chance(200) => Some(p.clone()),
                _ => None,
            };
            let direct = direct && !matches!(op, UserOp::Open(..));
            self.put(at, Command::User { node, direct, op });
            if let Some(path) = synced {
                let ack = self.ack();
                self.put(at, Command::User { node, direct: false, op: UserOp::Fsync(path, ack) });
            }
        }
    }

    /// What users ask of the control plane.
    fn asks(&mut self, start: Span, length: Span) {
        if self.profile.plane.is_empty() {
            return;
        }
        let (kinds, weights) = swarm(&self.profile.plane, &mut self.rng);
        let n = self.rng.range(self.profile.asks.0, self.profile.asks.1);
        // In half of the runs users ask one right after the other.
        let dense = self.rng.chance(500);
        let length = if dense { Span(length.0 / 4) } else { length };
        let mut leases = 0;
        for number in 0..n {
            let at = self.moment(start, length);
            let Some(i) = self.rng.weighted(&weights) else { return };
            self.asked(kinds[i], at, number, &mut leases);
        }
    }

    fn ask(&mut self, at: Instant, node: usize, op: PlaneOp) {
        let limit = Span::ms(*self.rng.pick(&[5_000, 5_000, 5_000, 1_000, 300, 15_000]));
        if at <= self.end {
            self.put(at, Command::Plane { node, request: PlaneRequest { op, limit } });
        }
    }

    fn asked(&mut self, kind: PlaneKind, at: Instant, number: u64, leases: &mut u32) {
        let node = self.node();
        let key = (*self.rng.pick(&["a", "b", "c"])).to_owned();
        let value = format!("v{number}");
        let op = match kind {
            PlaneKind::Put => PlaneOp::Put(key, value, 0, None),
            PlaneKind::Big => PlaneOp::Put("big".into(), value, self.rng.range(100_000, 600_000) as usize, None),
            PlaneKind::Get => match self.rng.below(4) {
                0 => PlaneOp::Get("list".into()),
                _ => PlaneOp::Get(key),
            },
            PlaneKind::Look => PlaneOp::Look(key),
            PlaneKind::Del => PlaneOp::Del(key),
            PlaneKind::Cas => {
                let old = if number == 0 || self.rng.chance(300) {
                    "-".into()
                } else {
                    format!("v{}", self.rng.below(number))
                };
                PlaneOp::Cas(key, old, value)
            }
            PlaneKind::Append => PlaneOp::Append("list".into(), value),
            PlaneKind::Watch => {
                let what = if self.rng.chance(500) { "all".into() } else { key };
                let back = *self.rng.pick(&[0, 1, 3, 10, 1000]);
                PlaneOp::Watch(what, back, self.rng.chance(300))
            }
            PlaneKind::Compact => PlaneOp::Compact(*self.rng.pick(&[0, 1, 5])),
            PlaneKind::Lead => PlaneOp::Lead(self.node()),
            PlaneKind::Lease => return self.lease(at, node, leases),
            PlaneKind::Lock => return self.lock(at, node, leases),
            PlaneKind::Burst => {
                for k in 0..self.rng.range(5, 40) {
                    let node = if self.rng.chance(300) { self.node() } else { node };
                    self.ask(at, node, PlaneOp::Put(format!("burst{}", k % 4), format!("{value}-{k}"), 0, None));
                }
                return;
            }
        };
        self.ask(at, node, op);
    }

    fn lease(&mut self, at: Instant, node: usize, leases: &mut u32) {
        *leases += 1;
        let l = *leases;
        let ttl = self.rng.range(1, 12);
        self.ask(at, node, PlaneOp::Grant(l, ttl));
        let mut at = at.after(Span::ms(self.rng.range(1, 500)));
        if self.rng.chance(700) {
            self.ask(at, node, PlaneOp::Put(format!("leased{}", l % 3), format!("l{l}"), 0, Some(l)));
        }
        for _ in 0..self.rng.below(8) {
            at = at.after(Span::ms(self.rng.range(100, ttl * 700)));
            let node = if self.rng.chance(300) { self.node() } else { node };
            self.ask(at, node, PlaneOp::Keep(l));
        }
        if self.rng.chance(200) {
            let later = at.after(Span::ms(self.rng.range(1, 2000)));
            self.ask(later, node, PlaneOp::Revoke(l));
        }
    }

    fn lock(&mut self, at: Instant, node: usize, leases: &mut u32) {
        let name = (*self.rng.pick(&["red", "green"])).to_owned();
        let holder = format!("h{}", self.rng.below(3));
        let lease = self.rng.chance(200).then(|| {
            *leases += 1;
            *leases
        });
        if let Some(l) = lease {
            let ttl = self.rng.range(2, 10);
            self.ask(at, node, PlaneOp::Grant(l, ttl));
        }
        let at = at.after(Span::ms(self.rng.below(300)));
        self.ask(at, node, PlaneOp::Lock(name.clone(), holder.clone(), lease));
        let later = at.after(Span::ms(self.rng.range(1, 4_000)));
        self.ask(later, node, PlaneOp::Unlock(name, holder));
    }

    fn ack(&mut self) -> Ack {
        *self.rng.pick(&[Ack::Auto, Ack::Auto, Ack::Local, Ack::One, Ack::Quorum, Ack::All])
    }

    fn user(&mut self, kind: UserKind) -> UserOp {
        let path = self.path();
        match kind {
            UserKind::Write => {
                let (w, s) = self.word();
                UserOp::Write(path, w, s)
            }
            UserKind::Edit => {
                let (w, s) = self.word();
                UserOp::Edit(path, w, s)
            }
            UserKind::Open => {
                let (w, s) = self.word();
                UserOp::Open(path, w, s)
            }
            UserKind::Mkdir => UserOp::Mkdir(path),
            UserKind::Symlink => UserOp::Symlink(path, (*self.rng.pick(&["a", "../b", "nowhere"])).into()),
            UserKind::Fifo => UserOp::Fifo(path),
            UserKind::Link => UserOp::Link(path, self.path()),
            UserKind::Rename => UserOp::Rename(path, self.path()),
            UserKind::Exchange => UserOp::Exchange(path, self.path()),
            UserKind::Rm => UserOp::Rm(path),
            UserKind::Rmdir => UserOp::Rmdir(path),
            UserKind::Rmtree => UserOp::Rmtree(path),
            UserKind::Chmod => UserOp::Chmod(path, *self.rng.pick(&[0o600, 0o644, 0o755, 0o4755])),
            UserKind::Chown => UserOp::Chown(path, self.rng.below(3) as u32, self.rng.below(3) as u32),
            UserKind::Times => UserOp::Times(path, 1_000_000_000 + self.rng.below(100) as i64),
            UserKind::Xattr => {
                let value = *self.rng.pick(&["", "x", "y"]);
                UserOp::Xattr(path, (*self.rng.pick(&["user.one", "user.two"])).into(), value.into())
            }
            UserKind::Fsync | UserKind::Save => UserOp::Fsync(path, self.ack()),
        }
    }

    /// Some files are saved, one right after the other.
    fn save(&mut self, node: usize, at: Instant) {
        let by_rename = self.rng.chance(600);
        for _ in 0..self.rng.range(1, 4) {
            let (path, (word, size)) = (self.path(), self.word());
            let ops = if by_rename {
                let aside = format!("{path}.new");
                [UserOp::Write(aside.clone(), word, size), UserOp::Rename(aside, path)]
            } else {
                [UserOp::Rm(path.clone()), UserOp::Write(path, word, size)]
            };
            for op in ops {
                self.put(at, Command::User { node, direct: false, op });
            }
        }
    }

    fn faults(&mut self, start: Span, length: Span) {
        if self.profile.trouble.is_empty() {
            return;
        }
        let (kinds, weights) = swarm(&self.profile.trouble, &mut self.rng);
        let n = self.rng.range(self.profile.faults.0, self.profile.faults.1);
        for _ in 0..n {
            let at = self.moment(start, length);
            let Some(i) = self.rng.weighted(&weights) else { return };
            self.fault(kinds[i], at);
        }
    }

    fn fault(&mut self, kind: FaultKind, at: Instant) {
        // Short and long: a third of the faults outlive the failure detector, some outlive the run.
        let span = match self.rng.below(3) {
            0 => Span::ms(self.rng.range(1, 300)),
            1 => Span::ms(self.rng.range(300, 5_000)),
            _ => Span::ms(self.rng.range(5_000, 40_000)),
        };
        let later = at.after(span);
        let node = self.node();
        let other = (node + 1 + self.rng.index(self.nodes.max(2) - 1)) % self.nodes;
        match kind {
            FaultKind::Partition => {
                let mut groups = vec![Vec::new(); if self.nodes > 2 && self.rng.chance(200) { 3 } else { 2 }];
                for n in 0..self.nodes {
                    let g = self.rng.index(groups.len());
                    groups[g].push(n);
                }
                self.put(at, Command::Partition(groups));
                self.put(later, Command::Partition(Vec::new()));
            }
            FaultKind::OneWay if node != other => {
                self.put(at, Command::OneWay(node, other));
                self.put(later, Command::Partition(Vec::new()));
            }
            FaultKind::Cut if node != other => self.put(at, Command::Cut(node, other)),
            FaultKind::Rate => {
                let rate = *self.rng.pick(&[2_000, 50_000, 1_000_000]);
                self.put(at, Command::Rate(node, rate));
                self.put(later, Command::Rate(node, 100_000_000));
            }
            FaultKind::Mischief => {
                let (l, r, o) = (self.rng.below(200), self.rng.below(200), self.rng.below(300));
                self.put(at, Command::Mischief(l as u32, r as u32, o as u32));
                self.put(later, Command::Mischief(0, 0, 0));
            }
            FaultKind::ProcessCrash => self.stop(node, Ending::ProcessCrash, at, later),
            FaultKind::MachineCrash => self.stop(node, Ending::MachineCrash, at, later),
            FaultKind::LongCrash => {
                let later = at.after(Span::ms(self.rng.range(10_000, 60_000)));
                self.stop(node, Ending::ProcessCrash, at, later);
            }
            FaultKind::CleanStop => self.stop(node, Ending::Clean, at, later),
            FaultKind::CrashInApply | FaultKind::KillInApply => {
                let machines = kind == FaultKind::CrashInApply && self.rng.chance(500);
                let ending = if machines { Ending::MachineCrash } else { Ending::ProcessCrash };
                let (action, step) = (self.rng.below(8), self.rng.below(5));
                self.put(at, Command::StopAt(node, ending, action, step));
                self.put(later, Command::Start(node));
            }
            FaultKind::Pause => {
                self.put(at, Command::Pause(node));
                self.put(later, Command::Resume(node));
            }
            FaultKind::FullDisk => self.disk(node, DiskState::Full, at, later),
            FaultKind::SlowDisk => self.disk(node, DiskState::Slow, at, later),
            FaultKind::FailSync => {
                self.put(at, Command::Disk(node, DiskState::FailSync));
                self.stop(node, Ending::Clean, later, later.after(Span::ms(500)));
            }
            FaultKind::Rot => self.put(at, Command::Disk(node, DiskState::Rot)),
            FaultKind::Clock => {
                let most = 4 * self.profile.skew_ms.max(1000);
                let ms = self.rng.range(0, 2 * most) as i64 - most as i64;
                self.put(at, Command::Clock(node, ms));
            }
            FaultKind::Scan => self.put(at, Command::Scan(node)),
            FaultKind::Join if self.nodes < 6 => {
                self.put(at, Command::Join);
                self.nodes += 1;
            }
            FaultKind::Leave if self.nodes - self.gone.len() > 2 && !self.gone.contains(&node) => {
                self.gone.push(node);
                self.put(at, Command::Leave(node));
            }
            FaultKind::Replace if 2 * (self.replaced + 1) < self.nodes - self.gone.len() => {
                self.replaced += 1;
                self.put(at, Command::Replace(node));
            }
            FaultKind::Blackout => {
                let lost = self.rng.chance(600) && 2 * (self.replaced + 1) < self.nodes - self.gone.len();
                self.replaced += usize::from(lost);
                let path = self.path();
                let (word, size) = self.word();
                let ack = *self.rng.pick(&[Ack::Quorum, Ack::Quorum, Ack::Auto, Ack::One, Ack::All]);
                if self.rng.chance(500) {
                    self.disk(other, DiskState::Slow, at, later);
                }
                self.put(at, Command::Blackout(node, lost));
                for op in [UserOp::Write(path.clone(), word, size), UserOp::Fsync(path, ack)] {
                    self.put(at, Command::User { node, direct: false, op });
                }
                // Each comes back in its own time: some are alone for a while.
                for n in 0..self.nodes {
                    let back = later.after(Span::ms(self.rng.below(10_000)));
                    self.put(back, Command::Start(n));
                    if n == node {
                        for _ in 0..self.rng.below(12) {
                            let at = back.after(Span::ms(self.rng.below(5_000)));
                            let (word, size) = self.word();
                            let op = UserOp::Write(self.path(), word, size);
                            self.put(at, Command::User { node, direct: false, op });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn stop(&mut self, node: usize, ending: Ending, at: Instant, later: Instant) {
        self.put(at, Command::Stop(node, ending));
        self.put(later, Command::Start(node));
    }
    fn disk(&mut self, node: usize, state: DiskState, at: Instant, later: Instant) {
        self.put(at, Command::Disk(node, state));
        self.put(later, Command::Disk(node, DiskState::Ok));
    }
}
