//! Carries out the commands of a plan that are not users' doing.

use crate::disk::Disk;
use crate::fs::Fs;
use crate::host::{Host, LastSync, Power, StopAt};
use crate::judge;
use crate::plan::{Command, DiskState, Line};
use crate::world::{Ev, World};
use ice_core::config::Ending;
use ice_core::event::{Admin, Event};
use ice_core::ids::{Incarnation, ReplicaId};
use ice_core::time::{Hlc, Instant, Span};

/// Between two looks at whether everybody agrees.
const LOOK_EVERY: Span = Span::ms(250);
/// Agreement must last this long.
const AGREE_FOR: Span = Span::s(3);

impl World {
    /// Starts all nodes, then does what the lines say.
    pub fn run(&mut self, lines: &[Line]) {
        for n in 0..self.hosts.len() {
            self.start(n);
        }
        for line in lines {
            if let Some(at) = line.at.filter(|at| *at > self.now) {
                self.run_until(at);
            }
            if self.failure.is_some() {
                return;
            }
            self.command(&line.command);
        }
        if self.failure.is_none() && self.phase_over {
            judge::promises_at_end(self);
        }
    }

    /// Carries out one command.
    pub fn command(&mut self, command: &Command) {
        if let Some(n) = node_of(command)
            && n >= self.hosts.len()
        {
            // A plan that was cut down may speak of a node that never joined.
            return;
        }
        if !matches!(command, Command::User { .. } | Command::Plane { .. } | Command::Expect(_)) {
            self.tell(|| format!("== {command}"));
        }
        match command {
            Command::User { node, direct, op } => self.user(*node, *direct, op),
            Command::Plane { node, request } => self.plane_user(*node, request),
            Command::Scan(n) => {
                if self.hosts[*n].is_up() {
                    self.scan(*n);
                }
            }
            Command::Stop(n, Ending::Clean) => self.ask_to_stop(*n),
            Command::Stop(n, ending) => {
                if matches!(self.hosts[*n].power, Power::Up | Power::Paused) {
                    self.stop(*n, *ending);
                }
            }
            Command::StopAt(n, ending, actions, steps) => {
                self.hosts[*n].stop_at = Some(StopAt { ending: *ending, actions: *actions, steps: *steps });
            }
            Command::Start(n) => self.start(*n),
            Command::Pause(n) => {
                if self.hosts[*n].is_up() {
                    self.in_doubt(*n);
                    self.hosts[*n].power = Power::Paused;
                }
            }
            Command::Resume(n) => self.resume(*n),
            Command::Replace(n) => self.replace(*n),
            Command::Blackout(n, lost) => self.hosts[*n].blackout = Some(*lost),
            Command::Join => self.join(),
            Command::Leave(n) => self.leave(*n),
            Command::Partition(groups) => self.partition(groups),
            Command::OneWay(a, b) => self.net.road_mut(*a, *b).blocked = true,
            Command::Cut(a, b) => self.cut(*a, *b),
            Command::Rate(n, rate) => {
                for other in 0..self.hosts.len() {
                    self.net.road_mut(*n, other).rate = *rate;
                    self.net.road_mut(other, *n).rate = *rate;
                }
            }
            Command::Mischief(loss, repeat, reorder) => {
                let m = &mut self.net.mischief;
                (m.loss, m.repeat, m.reorder) = (*loss, *repeat, *reorder);
            }
            Command::Disk(n, state) => self.disk_state(*n, *state),
            Command::Clock(n, ms) => self.hosts[*n].clock_ns += ms * 1_000_000,
            Command::Heal => self.heal(),
            Command::Wait(span) => self.run_until(self.now.after(*span)),
            Command::Settle(limit) => self.settle(*limit),
            Command::Expect(e) => crate::expect::check(self, e),
        }
        self.go_dark();
    }

    fn resume(&mut self, n: usize) {
        if self.hosts[n].power != Power::Paused {
            return;
        }
        self.hosts[n].power = Power::Up;
        self.in_doubt(n);
        let epoch = self.hosts[n].epoch;
        self.process(n).step_queued = true;
        // A process that slept is not to blame for answers that are late.
        let now = self.now;
        for ask in self.process(n).asks.values_mut() {
            ask.due = ask.due.max(now.after(Span::s(2)));
        }
        self.queue.put(now, Ev::Step(n, epoch));
    }

    fn partition(&mut self, groups: &[Vec<usize>]) {
        let count = self.hosts.len();
        let group = |n: usize| groups.iter().position(|g| g.contains(&n));
        for a in 0..count {
            for b in 0..count {
                let apart = matches!((group(a), group(b)), (Some(x), Some(y)) if x != y);
                self.net.road_mut(a, b).blocked = apart;
            }
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for l in 0..self.net.links.len() {
            let ends = self.net.links[l].ends;
            if (ends[0].node, ends[1].node) == (a, b) || (ends[0].node, ends[1].node) == (b, a) {
                for side in 0..2 {
                    self.queue.put(self.now, Ev::Down(l, side, "connection reset"));
                }
            }
        }
    }

    fn disk_state(&mut self, n: usize, state: DiskState) {
        let host = &mut self.hosts[n];
        match state {
            DiskState::Ok => {
                (host.disk.full, host.fs.full) = (false, false);
                host.disk.slow = 1;
            }
            DiskState::Full => {
                (host.disk.full, host.fs.full) = (true, true);
                self.sometimes.saw("disk full");
            }
            DiskState::Slow => host.disk.slow = 100,
            DiskState::FailSync => host.disk.fail_syncs = 1,
            DiskState::FailCommit => host.disk.fail_commits = 1,
            DiskState::Rot => {
                let mut any = false;
                for s in host.disk.staged.values_mut().filter(|s| s.content.size > 0 && !s.content.is_rotten()) {
                    s.content = s.content.rotten();
                    any = true;
                }
                if any {
                    self.sometimes.saw("bytes damaged by a fault");
                }
            }
        }
    }

    /// The machine comes back with an empty disk, as another replica under the old name.
    fn replace(&mut self, n: usize) {
        if self.hosts[n].power == Power::Left || !self.may_lose(n) {
            return;
        }
        self.stop(n, Ending::MachineCrash);
        self.empty_disk(n);
        self.start(n);
    }

    /// The disk of a machine that is off is replaced by an empty one.
    fn empty_disk(&mut self, n: usize) {
        let replica = ReplicaId(self.rngs.host.u64() | 1);
        let host = &mut self.hosts[n];
        host.fs = Fs::default();
        host.disk = Disk::default();
        host.aside.clear();
        host.replica = replica;
        host.founds = false;
        host.promised = Hlc(0);
        host.incarnation = Incarnation(0);
        host.ending = Ending::Clean;
        let held = self.held();
        self.ledger.disk_lost(&held);
        self.ledger.crashed(n, &held);
        self.sometimes.saw("node replaced");
        if let Some(r) = self.reference.as_mut().filter(|r| r.writer == Some(n)) {
            r.crashed();
        }
    }

    /// An acknowledgement has armed it: all machines lose power at this instant.
    pub(crate) fn go_dark(&mut self) {
        let Some((asker, lost)) = self.dark.take() else { return };
        if self.failure.is_some() {
            return;
        }
        self.tell(|| format!("== blackout{}", if lost { ", and a disk is lost" } else { "" }));
        self.sometimes.saw("blackout after an acknowledgement");
        let spared = self.may_lose(asker);
        for n in 0..self.hosts.len() {
            self.stop(n, Ending::MachineCrash);
        }
        if lost && spared {
            self.empty_disk(asker);
        }
        // Only now is it certain what is left on any disk.
        let held = self.held();
        for n in 0..self.hosts.len() {
            self.ledger.crashed(n, &held);
        }
    }

    /// What a control plane promises ends where the disks of a majority of its voters are lost: that is left to an operator. True if
    /// it can do without this disk, whatever configuration holds.
    fn may_lose(&self, n: usize) -> bool {
        if !self.setup.control {
            return true;
        }
        let intact = |r: &ReplicaId| {
            self.hosts.iter().enumerate().any(|(m, h)| m != n && h.replica == *r && h.power != Power::Left)
        };
        let majority = |v: &std::collections::BTreeSet<ReplicaId>| {
            v.is_empty() || v.iter().filter(|r| intact(r)).count() > v.len() / 2
        };
        let mut any = false;
        for (m, h) in self.hosts.iter().enumerate().filter(|(_, h)| h.power != Power::Left) {
            // Whoever is down may believe in a configuration that is not known here.
            let Some(c) = h.process.as_ref().and_then(|p| p.node.view().control()) else {
                if m == n {
                    continue;
                }
                return false;
            };
            let members = c.raft().membership().1;
            any |= !members.voters.is_empty();
            if !majority(&members.voters) || !majority(&members.outgoing) {
                return false;
            }
        }
        any
    }

    fn join(&mut self) {
        let n = self.hosts.len();
        let mut host = Host::new(n, ReplicaId(self.rngs.host.u64() | 1));
        host.join = self.hosts.iter().filter(|h| h.power != Power::Left).map(|h| h.url.clone()).collect();
        self.hosts.push(host);
        self.net.grow(n + 1);
        self.sometimes.saw("node joined later");
        self.start(n);
    }

    fn leave(&mut self, n: usize) {
        if self.hosts[n].power == Power::Left || !self.may_lose(n) {
            return;
        }
        let url = self.hosts[n].url.clone();
        let Some(teller) = (0..self.hosts.len()).find(|m| *m != n && self.hosts[*m].is_up()) else { return };
        self.stop(n, Ending::Clean);
        self.hosts[n].power = Power::Left;
        self.hosts[n].fs = Fs::default();
        self.hosts[n].disk = Disk::default();
        self.hosts[n].last_sync = LastSync::Never;
        let held = self.held();
        self.ledger.disk_lost(&held);
        self.ledger.crashed(n, &held);
        self.sometimes.saw("node left");
        self.hand(teller, Event::Admin(Admin::RemovePeer { url }));
    }

    fn heal(&mut self) {
        self.net.heal();
        for n in 0..self.hosts.len() {
            self.disk_state(n, DiskState::Ok);
            self.hosts[n].disk.fail_syncs = 0;
            self.hosts[n].stop_at = None;
            self.hosts[n].blackout = None;
            self.resume(n);
            // Users go home.
            if let Some(p) = &self.hosts[n].process {
                let open: Vec<String> = p.opened.keys().cloned().collect();
                for path in open {
                    self.user(n, false, &crate::plan::UserOp::Close(path));
                }
            }
            if self.hosts[n].process.as_ref().is_some_and(|p| p.stopping) {
                self.stop(n, Ending::Clean);
            }
            self.start(n);
        }
    }

    /// Runs until everybody agrees and nothing is left to do.
    fn settle(&mut self, limit: Span) {
        let until = self.now.after(limit);
        let mut since: Option<Instant> = None;
        while self.failure.is_none() {
            match judge::disagreement(self) {
                None => {
                    let from = *since.get_or_insert(self.now);
                    if self.now.since(from) >= AGREE_FOR {
                        judge::bytes(self);
                        judge::reference(self);
                        crate::plane::at_end(self);
                        self.phase_over = true;
                        return;
                    }
                }
                Some(why) if self.now >= until => {
                    return self.fail("convergence", format!("after {} s: {why}", limit.0 / 1_000_000_000));
                }
                Some(_) => since = None,
            }
            self.run_until(self.now.after(LOOK_EVERY));
        }
    }
}

fn node_of(command: &Command) -> Option<usize> {
    match command {
        Command::User { node, .. } | Command::Plane { node, .. } => Some(*node),
        Command::Scan(n)
        | Command::Stop(n, _)
        | Command::StopAt(n, ..)
        | Command::Start(n)
        | Command::Pause(n)
        | Command::Resume(n)
        | Command::Replace(n)
        | Command::Blackout(n, _)
        | Command::Leave(n)
        | Command::Rate(n, _)
        | Command::Disk(n, _)
        | Command::Clock(n, _) => Some(*n),
        Command::OneWay(a, b) | Command::Cut(a, b) => Some(*a.max(b)),
        Command::Partition(groups) => groups.iter().flatten().max().copied(),
        _ => None,
    }
}
