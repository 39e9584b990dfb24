//! Plans: what users do and what goes wrong, line by line, as text. A seed draws a plan; a scenario is a plan written by hand.
//!
//! A line is `[@SECONDS] COMMAND`. Without a time a command follows the one before it at once. `docs/simulator.md` lists
//! the commands; [`Command`] is their meaning.

use crate::plane::PlaneRequest;
use ice_core::config::Ending;
use ice_core::event::Ack;
use ice_core::time::{Instant, Span};
use std::fmt;

/// What a user does on one node's mount, or behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UserOp {
    /// Creates a directory.
    Mkdir(String),
    /// Creates or truncates a file, writes, closes.
    Write(String, String, Option<u64>),
    /// The same on a file that must exist.
    Edit(String, String, Option<u64>),
    /// Opens a file (creating it), writes, and leaves it open.
    Open(String, String, Option<u64>),
    /// Closes what `open` opened.
    Close(String),
    /// Creates a symbolic link with this target.
    Symlink(String, String),
    /// Creates a named pipe.
    Fifo(String),
    /// A further name for a file.
    Link(String, String),
    /// `rename(2)`.
    Rename(String, String),
    /// `RENAME_EXCHANGE`.
    Exchange(String, String),
    /// `unlink(2)`.
    Rm(String),
    /// `rmdir(2)`.
    Rmdir(String),
    /// `rm -r`.
    Rmtree(String),
    /// Sets the permission bits (octal).
    Chmod(String, u32),
    /// Sets the owner and group.
    Chown(String, u32, u32),
    /// Sets the modification time (seconds).
    Times(String, i64),
    /// Sets an extended attribute; an empty value removes it.
    Xattr(String, String, String),
    /// `fsync(2)` under a policy.
    Fsync(String, Ack),
}

/// What a scenario expects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Every node that is up shows the same tree, and it stands on its disk.
    Same,
    /// The file has one of these contents (words), on these nodes (all if empty).
    Content(Vec<usize>, String, Vec<String>),
    /// Something stands there.
    There(Vec<usize>, String),
    /// Nothing stands there.
    Gone(Vec<usize>, String),
    /// Permission bits.
    Mode(Vec<usize>, String, u32),
    /// A symbolic link's target.
    Target(Vec<usize>, String, String),
    /// Both names show one file.
    SameFile(Vec<usize>, String, String),
    /// So many names in a directory.
    Count(Vec<usize>, String, usize),
    /// So many conflict copies beside this file's name, everywhere.
    Copies(String, usize),
    /// The word is somewhere in every tree.
    Kept(String),
    /// The word is nowhere in any tree.
    Lost(String),
    /// How the last `fsync` on that node ended: `ok` (with at least so many copies), `refused`, `waiting`.
    Fsync(usize, String),
    /// A state was reached at least once (see `sometimes`).
    Saw(String),
    /// The first node thinks of the second as `up`, `suspect`, `down` or `unknown`.
    Peer(usize, usize, String),
    /// A key of the store is this on these nodes; `-` is nothing.
    Key(Vec<usize>, String, String),
    /// A node gives a reason with this text in its status.
    Reason(usize, String),
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A user acts on a node. `direct`: behind the mount, in `backing`; the node learns of it by a scan.
    User {
        /// The node, from 0.
        node: usize,
        /// Behind the mount.
        direct: bool,
        /// What.
        op: UserOp,
    },
    /// A user asks a node's control plane for something.
    Plane {
        /// The node, from 0.
        node: usize,
        /// What.
        request: PlaneRequest,
    },
    /// The node compares its disk with what it believes.
    Scan(usize),
    /// The node stops in order, or its process or machine dies.
    Stop(usize, Ending),
    /// The machine or process dies in the middle of the disk action this many actions from now (0: the next one), after
    /// this many of its steps.
    StopAt(usize, Ending, u64, u64),
    /// The node starts.
    Start(usize),
    /// The process is stopped for a while (`SIGSTOP`).
    Pause(usize),
    /// It goes on.
    Resume(usize),
    /// The node's disk is replaced by an empty one; it starts as a new replica.
    Replace(usize),
    /// The next `fsync` that is acknowledged on this node is the last thing that happens before all machines lose power. With
    /// `true` this one's disk is lost for good, too: it will start as a new replica.
    Blackout(usize, bool),
    /// A new node joins.
    Join,
    /// A node leaves for good: it stops, and another is told.
    Leave(usize),
    /// Groups that cannot talk to each other. Nodes in no group talk to everybody.
    Partition(Vec<Vec<usize>>),
    /// Messages from the first to the second are lost.
    OneWay(usize, usize),
    /// All connections between two nodes break.
    Cut(usize, usize),
    /// All roads to and from a node take so many bytes per second.
    Rate(usize, u64),
    /// Loss, repetition and reordering in a thousand.
    Mischief(u32, u32, u32),
    /// Disk condition.
    Disk(usize, DiskState),
    /// The wall clock is moved by so many milliseconds.
    Clock(usize, i64),
    /// Everything works again; stopped nodes start.
    Heal,
    /// Time passes.
    Wait(Span),
    /// Runs until all nodes agree and nothing is left to do, this long at most; a failure otherwise.
    Settle(Span),
    /// Something must be so.
    Expect(Expect),
}

/// Condition of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskState {
    /// As it should be.
    Ok,
    /// No room left.
    Full,
    /// Everything takes a hundred times as long.
    Slow,
    /// The next log sync fails.
    FailSync,
    /// The next commit of a checkpoint finds no room.
    FailCommit,
    /// Bytes in the staging area are damaged.
    Rot,
}

/// A command and its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Not before this.
    pub at: Option<Instant>,
    /// What.
    pub command: Command,
}

/// How a run starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Nodes at the start.
    pub nodes: usize,
    /// Everything not written in the plan (delays, losses, order of completions) is drawn from this.
    pub seed: u64,
    /// The profile that it was drawn from, or that sets the speed of network and disks.
    pub profile: String,
    /// Planted bug.
    pub bug: Option<ice_core::bug::Bug>,
    /// Operations that nodes keep for others; drawn from the seed if not given.
    pub retained: Option<usize>,
    /// Time between checkpoints; drawn from the seed if not given.
    pub checkpoint: Option<Span>,
    /// How long after a start the scan begins; drawn from the seed if not given.
    pub scan: Option<Span>,
    /// Pages of a checkpoint before they are committed.
    pub pages: Option<usize>,
    /// Nodes have a control plane; the first one founds it.
    pub control: bool,
    /// Entries that its log keeps; drawn from the seed if not given.
    pub keep: Option<u64>,
    /// How long a voter may be down before it is replaced; drawn from the seed if not given.
    pub dead: Option<Span>,
    /// Exactly one user writes: a simple model must agree.
    pub single_writer: bool,
    /// Known to fail; why.
    pub open: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            nodes: 3,
            seed: 1,
            profile: "default".into(),
            bug: None,
            retained: None,
            checkpoint: None,
            scan: None,
            pages: None,
            control: false,
            keep: None,
            dead: None,
            single_writer: false,
            open: None,
        }
    }
}

/// A whole run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Comment lines at the top.
    pub story: Vec<String>,
    /// How it starts.
    pub setup: Setup,
    /// What happens.
    pub lines: Vec<Line>,
}

struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self, what: &str) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| format!("{what} is missing"))
    }
    fn owned(&mut self, what: &str) -> Result<String, String> {
        self.word(what).map(str::to_owned)
    }
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        let w = self.word(what)?;
        w.parse().map_err(|_| format!("{what}: {w:?} is not a number"))
    }
    fn octal(&mut self) -> Result<u32, String> {
        let w = self.word("mode")?;
        u32::from_str_radix(w, 8).map_err(|_| format!("mode: {w:?} is not octal"))
    }
    fn size(&mut self) -> Result<Option<u64>, String> {
        match self.0.next() {
            None => Ok(None),
            Some(w) => w.parse().map(Some).map_err(|_| format!("size: {w:?} is not a number")),
        }
    }
    fn node(&mut self) -> Result<usize, String> {
        node(self.word("node")?)
    }
    fn nodes(&mut self) -> Result<Vec<usize>, String> {
        let w = self.word("nodes")?;
        if w == "all" { Ok(Vec::new()) } else { w.split(',').map(node).collect() }
    }
    fn span(&mut self, default: Option<Span>) -> Result<Span, String> {
        match (self.0.next(), default) {
            (Some(w), _) => span(w),
            (None, Some(d)) => Ok(d),
            (None, None) => Err("a time is missing".into()),
        }
    }
    fn end(mut self) -> Result<(), String> {
        self.0.next().map_or(Ok(()), |w| Err(format!("{w:?} is too much")))
    }
}

fn node(w: &str) -> Result<usize, String> {
    let n: Option<usize> = w.strip_prefix('n').and_then(|n| n.parse().ok());
    n.and_then(|n| n.checked_sub(1)).ok_or_else(|| format!("{w:?} is not a node (n1, n2, ...)"))
}

/// `1.5s`, `20ms`, or seconds without a unit.
pub fn span(w: &str) -> Result<Span, String> {
    let (digits, unit) = match (w.strip_suffix("ms"), w.strip_suffix('s')) {
        (Some(d), _) => (d, 1_000_000),
        (None, Some(d)) => (d, 1_000_000_000),
        (None, None) => (w, 1_000_000_000u64),
    };
    let bad = || format!("{w:?} is not a time such as 1.5s or 20ms");
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let mut ns = whole.checked_mul(unit).ok_or_else(bad)?;
    let mut scale = unit;
    for c in part.chars() {
        scale /= 10;
        ns += u64::from(c.to_digit(10).ok_or_else(bad)?) * scale;
    }
    Ok(Span(ns))
}

struct Time(u64);
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn ending(w: &str) -> Result<Ending, String> {
    match w {
        "clean" => Ok(Ending::Clean),
        "process" => Ok(Ending::ProcessCrash),
        "machine" => Ok(Ending::MachineCrash),
        _ => Err(format!("{w:?} is not one of clean, process, machine")),
    }
}

fn ending_word(e: Ending) -> &'static str {
    match e {
        Ending::Clean => "clean",
        Ending::ProcessCrash => "process",
        Ending::MachineCrash => "machine",
    }
}

fn ack(w: Option<&str>) -> Result<Ack, String> {
    Ok(match w {
        None | Some("auto") => Ack::Auto,
        Some("local") => Ack::Local,
        Some("one") => Ack::One,
        Some("quorum") => Ack::Quorum,
        Some("all") => Ack::All,
        Some(w) => return Err(format!("{w:?} is not one of auto, local, one, quorum, all")),
    })
}

fn ack_word(a: Ack) -> &'static str {
    match a {
        Ack::Auto => "auto",
        Ack::Local => "local",
        Ack::One => "one",
        Ack::Quorum => "quorum",
        Ack::All => "all",
    }
}

fn user_op(verb: &str, w: &mut Words<'_>) -> Result<Option<UserOp>, String> {
    let path = |w: &mut Words<'_>| w.owned("path");
    Ok(Some(match verb {
        "mkdir" => UserOp::Mkdir(path(w)?),
        "write" => UserOp::Write(path(w)?, w.owned("word")?, w.size()?),
        "edit" => UserOp::Edit(path(w)?, w.owned("word")?, w.size()?),
        "open" => UserOp::Open(path(w)?, w.owned("word")?, w.size()?),
        "close" => UserOp::Close(path(w)?),
        "symlink" => UserOp::Symlink(path(w)?, w.owned("target")?),
        "fifo" => UserOp::Fifo(path(w)?),
        "link" => UserOp::Link(path(w)?, path(w)?),
        "rename" => UserOp::Rename(path(w)?, path(w)?),
        "exchange" => UserOp::Exchange(path(w)?, path(w)?),
        "rm" => UserOp::Rm(path(w)?),
        "rmdir" => UserOp::Rmdir(path(w)?),
        "rmtree" => UserOp::Rmtree(path(w)?),
        "chmod" => UserOp::Chmod(path(w)?, w.octal()?),
        "chown" => UserOp::Chown(path(w)?, w.number("uid")?, w.number("gid")?),
        "times" => UserOp::Times(path(w)?, w.number("seconds")?),
        "xattr" => UserOp::Xattr(path(w)?, w.owned("name")?, w.0.next().unwrap_or("").to_owned()),
        "fsync" => UserOp::Fsync(path(w)?, ack(w.0.next())?),
        _ => return Ok(None),
    }))
}

fn expect(w: &mut Words<'_>) -> Result<Expect, String> {
    let what = w.word("expectation")?;
    Ok(match what {
        "same" => Expect::Same,
        "content" => {
            let (nodes, path) = (w.nodes()?, w.owned("path")?);
            let words: Vec<String> = w.0.by_ref().map(str::to_owned).collect();
            if words.is_empty() {
                return Err("a word is missing".into());
            }
            Expect::Content(nodes, path, words)
        }
        "there" => Expect::There(w.nodes()?, w.owned("path")?),
        "gone" => Expect::Gone(w.nodes()?, w.owned("path")?),
        "mode" => Expect::Mode(w.nodes()?, w.owned("path")?, w.octal()?),
        "target" => Expect::Target(w.nodes()?, w.owned("path")?, w.owned("target")?),
        "samefile" => Expect::SameFile(w.nodes()?, w.owned("path")?, w.owned("path")?),
        "count" => Expect::Count(w.nodes()?, w.owned("path")?, w.number("count")?),
        "copies" => Expect::Copies(w.owned("path")?, w.number("count")?),
        "kept" => Expect::Kept(w.owned("word")?),
        "lost" => Expect::Lost(w.owned("word")?),
        "fsync" => Expect::Fsync(w.node()?, w.owned("outcome")?),
        "saw" => Expect::Saw(w.owned("name")?),
        "peer" => Expect::Peer(w.node()?, w.node()?, w.owned("state")?),
        "key" => Expect::Key(w.nodes()?, w.owned("key")?, w.owned("value")?),
        "reason" => Expect::Reason(w.node()?, w.0.by_ref().collect::<Vec<_>>().join(" ")),
        _ => return Err(format!("expect {what}: not known")),
    })
}

fn command(text: &str) -> Result<Command, String> {
    let mut w = Words(text.split_whitespace());
    let mut verb = w.word("command")?;
    let command = if let Some(n) = verb.strip_suffix(':') {
        let node = node(n)?;
        verb = w.word("what the user does")?;
        if verb == "kv" {
            let words: Vec<&str> = w.0.by_ref().collect();
            return Ok(Command::Plane { node, request: PlaneRequest::parse(&words)? });
        }
        let direct = verb == "direct";
        if direct {
            verb = w.word("what the user does")?;
        }
        let op = user_op(verb, &mut w)?.ok_or_else(|| format!("{verb:?}: users cannot do that"))?;
        Command::User { node, direct, op }
    } else {
        match verb {
            "scan" => Command::Scan(w.node()?),
            "stop" => Command::Stop(w.node()?, w.0.next().map_or(Ok(Ending::Clean), ending)?),
            "stop-at" => {
                Command::StopAt(w.node()?, ending(w.word("ending")?)?, w.number("actions")?, w.number("steps")?)
            }
            "start" => Command::Start(w.node()?),
            "pause" => Command::Pause(w.node()?),
            "resume" => Command::Resume(w.node()?),
            "replace" => Command::Replace(w.node()?),
            "blackout" => {
                let n = w.node()?;
                match w.0.next() {
                    None => Command::Blackout(n, false),
                    Some("lost") => Command::Blackout(n, true),
                    Some(other) => return Err(format!("{other:?} is not `lost`")),
                }
            }
            "join" => Command::Join,
            "leave" => Command::Leave(w.node()?),
            "partition" => {
                let rest: Vec<&str> = w.0.by_ref().collect();
                let groups: Result<Vec<Vec<usize>>, String> =
                    rest.split(|g| *g == "/").map(|g| g.iter().map(|n| node(n)).collect()).collect();
                Command::Partition(groups?)
            }
            "oneway" => Command::OneWay(w.node()?, w.node()?),
            "cut" => Command::Cut(w.node()?, w.node()?),
            "rate" => Command::Rate(w.node()?, w.number("bytes per second")?),
            "mischief" => Command::Mischief(w.number("loss")?, w.number("repeat")?, w.number("reorder")?),
            "disk" => {
                let n = w.node()?;
                let state = match w.word("state")? {
                    "ok" => DiskState::Ok,
                    "full" => DiskState::Full,
                    "slow" => DiskState::Slow,
                    "failsync" => DiskState::FailSync,
                    "failcommit" => DiskState::FailCommit,
                    "rot" => DiskState::Rot,
                    other => return Err(format!("{other:?} is not one of ok, full, slow, failsync, failcommit, rot")),
                };
                Command::Disk(n, state)
            }
            "clock" => Command::Clock(w.node()?, w.number("milliseconds")?),
            "heal" => Command::Heal,
            "wait" => Command::Wait(w.span(None)?),
            "settle" => Command::Settle(w.span(Some(SETTLE))?),
            "expect" => Command::Expect(expect(&mut w)?),
            _ => return Err(format!("{verb:?}: not a command")),
        }
    };
    w.end()?;
    Ok(command)
}

/// How long `settle` waits without a time.
pub const SETTLE: Span = Span::s(300);

impl Plan {
    /// Reads a plan. The error names the line.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let mut plan = Plan::default();
        for (i, raw) in text.lines().enumerate() {
            plan.line(raw.trim()).map_err(|e| format!("line {}: {e}", i + 1))?;
        }
        Ok(plan)
    }

    fn line(&mut self, raw: &str) -> Result<(), String> {
        if let Some(why) = raw.strip_prefix("# open") {
            self.setup.open = Some(why.trim_start_matches(':').trim().to_owned());
            return Ok(());
        }
        if raw.starts_with('#') || raw.is_empty() {
            if self.lines.is_empty() && !raw.is_empty() {
                self.story.push(raw.trim_start_matches('#').trim().to_owned());
            }
            return Ok(());
        }
        let raw = raw.split(" #").next().unwrap_or(raw);
        if let Some((key, value)) = raw.split_once(' ') {
            let value = value.trim();
            match key {
                "nodes" => {
                    self.setup.nodes = value.parse().map_err(|_| format!("nodes {value:?}: not a number"))?;
                    return Ok(());
                }
                "seed" => {
                    self.setup.seed = value.parse().map_err(|_| format!("seed {value:?}: not a number"))?;
                    return Ok(());
                }
                "profile" => {
                    self.setup.profile = value.to_owned();
                    return Ok(());
                }
                "writer" => {
                    self.setup.single_writer = value == "single";
                    return Ok(());
                }
                "retain" => {
                    let n = value.parse().map_err(|_| format!("retain {value:?}: not a number"))?;
                    self.setup.retained = Some(n);
                    return Ok(());
                }
                "control" => {
                    self.setup.control = value == "on";
                    return Ok(());
                }
                "keep" => {
                    let n = value.parse().map_err(|_| format!("keep {value:?}: not a number"))?;
                    self.setup.keep = Some(n);
                    return Ok(());
                }
                "dead-after" => {
                    self.setup.dead = Some(span(value)?);
                    return Ok(());
                }
                "scan-after" => {
                    self.setup.scan = Some(span(value)?);
                    return Ok(());
                }
                "checkpoint" => {
                    self.setup.checkpoint = Some(span(value)?);
                    return Ok(());
                }
                "pages" => {
                    let n = value.parse().map_err(|_| format!("pages {value:?}: not a number"))?;
                    self.setup.pages = Some(n);
                    return Ok(());
                }
                "bug" => {
                    let bug = ice_core::bug::Bug::all().find(|b| format!("{b:?}") == value);
                    self.setup.bug = Some(bug.ok_or_else(|| format!("{value:?} is not a planted bug"))?);
                    return Ok(());
                }
                _ => {}
            }
        }
        let (at, rest) = match raw.strip_prefix('@') {
            Some(r) => {
                let (time, rest) = r.split_once(' ').ok_or("a command is missing")?;
                (Some(Instant(span(time)?.0)), rest)
            }
            None => (None, raw),
        };
        self.lines.push(Line { at, command: command(rest)? });
        Ok(())
    }
}

struct Nodes<'a>(&'a [usize]);
impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all");
        }
        let names: Vec<String> = self.0.iter().map(|n| format!("n{}", n + 1)).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Display for UserOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sized = |f: &mut fmt::Formatter<'_>, verb: &str, p: &str, w: &str, size: &Option<u64>| {
            write!(f, "{verb} {p} {w}")?;
            size.map_or(Ok(()), |s| write!(f, " {s}"))
        };
        match self {
            UserOp::Mkdir(p) => write!(f, "mkdir {p}"),
            UserOp::Write(p, w, s) => sized(f, "write", p, w, s),
            UserOp::Edit(p, w, s) => sized(f, "edit", p, w, s),
            UserOp::Open(p, w, s) => sized(f, "open", p, w, s),
            UserOp::Close(p) => write!(f, "close {p}"),
            UserOp::Symlink(p, t) => write!(f, "symlink {p} {t}"),
            UserOp::Fifo(p) => write!(f, "fifo {p}"),
            UserOp::Link(p, q) => write!(f, "link {p} {q}"),
            UserOp::Rename(p, q) => write!(f, "rename {p} {q}"),
            UserOp::Exchange(p, q) => write!(f, "exchange {p} {q}"),
            UserOp::Rm(p) => write!(f, "rm {p}"),
            UserOp::Rmdir(p) => write!(f, "rmdir {p}"),
            UserOp::Rmtree(p) => write!(f, "rmtree {p}"),
            UserOp::Chmod(p, m) => write!(f, "chmod {p} {m:o}"),
            UserOp::Chown(p, u, g) => write!(f, "chown {p} {u} {g}"),
            UserOp::Times(p, t) => write!(f, "times {p} {t}"),
            UserOp::Xattr(p, n, v) => write!(f, "xattr {p} {n} {v}"),
            UserOp::Fsync(p, a) => write!(f, "fsync {p} {}", ack_word(*a)),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Same => f.write_str("same"),
            Expect::Content(n, p, w) => write!(f, "content {} {p} {}", Nodes(n), w.join(" ")),
            Expect::There(n, p) => write!(f, "there {} {p}", Nodes(n)),
            Expect::Gone(n, p) => write!(f, "gone {} {p}", Nodes(n)),
            Expect::Mode(n, p, m) => write!(f, "mode {} {p} {m:o}", Nodes(n)),
            Expect::Target(n, p, t) => write!(f, "target {} {p} {t}", Nodes(n)),
            Expect::SameFile(n, p, q) => write!(f, "samefile {} {p} {q}", Nodes(n)),
            Expect::Count(n, p, c) => write!(f, "count {} {p} {c}", Nodes(n)),
            Expect::Copies(p, n) => write!(f, "copies {p} {n}"),
            Expect::Kept(w) => write!(f, "kept {w}"),
            Expect::Lost(w) => write!(f, "lost {w}"),
            Expect::Fsync(n, o) => write!(f, "fsync n{} {o}", n + 1),
            Expect::Saw(s) => write!(f, "saw {s}"),
            Expect::Peer(a, b, s) => write!(f, "peer n{} n{} {s}", a + 1, b + 1),
            Expect::Key(n, k, v) => write!(f, "key {} {k} {v}", Nodes(n)),
            Expect::Reason(n, s) => write!(f, "reason n{} {s}", n + 1),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::User { node, direct: false, op } => write!(f, "n{}: {op}", node + 1),
            Command::User { node, direct: true, op } => write!(f, "n{}: direct {op}", node + 1),
            Command::Plane { node, request } => write!(f, "n{}: kv {request}", node + 1),
            Command::Scan(n) => write!(f, "scan n{}", n + 1),
            Command::Stop(n, e) => write!(f, "stop n{} {}", n + 1, ending_word(*e)),
            Command::StopAt(n, e, a, s) => write!(f, "stop-at n{} {} {a} {s}", n + 1, ending_word(*e)),
            Command::Start(n) => write!(f, "start n{}", n + 1),
            Command::Pause(n) => write!(f, "pause n{}", n + 1),
            Command::Resume(n) => write!(f, "resume n{}", n + 1),
            Command::Replace(n) => write!(f, "replace n{}", n + 1),
            Command::Blackout(n, lost) => write!(f, "blackout n{}{}", n + 1, if *lost { " lost" } else { "" }),
            Command::Join => f.write_str("join"),
            Command::Leave(n) => write!(f, "leave n{}", n + 1),
            Command::Partition(groups) => {
                let groups: Vec<String> = groups
                    .iter()
                    .map(|g| g.iter().map(|n| format!("n{}", n + 1)).collect::<Vec<_>>().join(" "))
                    .collect();
                write!(f, "partition {}", groups.join(" / "))
            }
            Command::OneWay(a, b) => write!(f, "oneway n{} n{}", a + 1, b + 1),
            Command::Cut(a, b) => write!(f, "cut n{} n{}", a + 1, b + 1),
            Command::Rate(n, r) => write!(f, "rate n{} {r}", n + 1),
            Command::Mischief(l, r, o) => write!(f, "mischief {l} {r} {o}"),
            Command::Disk(n, s) => {
                let word = match s {
                    DiskState::Ok => "ok",
                    DiskState::Full => "full",
                    DiskState::Slow => "slow",
                    DiskState::FailSync => "failsync",
                    DiskState::FailCommit => "failcommit",
                    DiskState::Rot => "rot",
                };
                write!(f, "disk n{} {word}", n + 1)
            }
            Command::Clock(n, ms) => write!(f, "clock n{} {ms}", n + 1),
            Command::Heal => f.write_str("heal"),
            Command::Wait(s) => write!(f, "wait {}s", Time(s.0)),
            Command::Settle(SETTLE) => f.write_str("settle"),
            Command::Settle(s) => write!(f, "settle {}s", Time(s.0)),
            Command::Expect(e) => write!(f, "expect {e}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.story {
            writeln!(f, "# {line}")?;
        }
        if let Some(why) = &self.setup.open {
            writeln!(f, "# open: {why}")?;
        }
        let s = &self.setup;
        writeln!(f, "nodes {}\nseed {}\nprofile {}", s.nodes, s.seed, s.profile)?;
        if s.single_writer {
            writeln!(f, "writer single")?;
        }
        if let Some(n) = s.retained {
            writeln!(f, "retain {n}")?;
        }
        if let Some(t) = s.scan {
            writeln!(f, "scan-after {}s", Time(t.0))?;
        }
        if let Some(t) = s.checkpoint {
            writeln!(f, "checkpoint {}s", Time(t.0))?;
        }
        if s.control {
            writeln!(f, "control on")?;
        }
        if let Some(n) = s.keep {
            writeln!(f, "keep {n}")?;
        }
        if let Some(t) = s.dead {
            writeln!(f, "dead-after {}s", Time(t.0))?;
        }
        if let Some(n) = s.pages {
            writeln!(f, "pages {n}")?;
        }
        if let Some(bug) = s.bug {
            writeln!(f, "bug {bug:?}")?;
        }
        writeln!(f)?;
        for line in &self.lines {
            match line.at {
                Some(at) => writeln!(f, "@{} {}", Time(at.0), line.command)?,
                None => writeln!(f, "{}", line.command)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_being_written_and_read() {
        let text = "# A story.\nnodes 2\nseed 7\nprofile quiet\nwriter single\n\n@0.25 n1: write a/b one 70000\n\
                    n2: direct rename a b\nn1: kv put a w1 under l2 for 1500ms\nn2: kv watch all 3\nstop-at n1 machine 3 1\nblackout n1\nblackout n2 lost\npartition n1 / n2\nwait 1.5s\nsettle 20s\n\
                    expect content n1,n2 a/b one two\nexpect copies a/b 1\n";
        let plan = Plan::parse(text).expect("parses");
        let again = Plan::parse(&plan.to_string()).expect("parses again");
        assert_eq!(plan, again);
        assert_eq!(plan.lines[0].at, Some(Instant(250_000_000)));
    }

    #[test]
    fn mistakes_name_their_line() {
        assert_eq!(Plan::parse("nodes 2\nn1: fly home").unwrap_err(), "line 2: \"fly\": users cannot do that");
        assert_eq!(Plan::parse("scan 1").unwrap_err(), "line 1: \"1\" is not a node (n1, n2, ...)");
        assert_eq!(Plan::parse("heal now").unwrap_err(), "line 1: \"now\" is too much");
    }
}
