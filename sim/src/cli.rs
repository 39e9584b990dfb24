//! The command line of `icesim`.

use crate::plan::Plan;
use crate::profile::{self, Profile};
use crate::run::{Options, Outcome, catch_assertions, run};
use crate::sometimes::Sometimes;
use crate::{bugs, draw, replay, shrink};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

// A closed output ends the talking, not the run.
macro_rules! say {
    ($($t:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($t)*);
    }};
}
macro_rules! say_raw {
    ($($t:tt)*) => {{
        let _ = write!(std::io::stdout(), $($t)*);
    }};
}

/// Simulates whole icecluster clusters, one seed at a time.
#[derive(Parser)]
#[command(name = "icesim", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Run seeds of a profile.
    Run(RunArgs),
    /// Run a recorded trace again and stop at the first difference.
    Replay {
        /// A recording of a node, simulated or real.
        trace: PathBuf,
    },
    /// Make a failing seed or plan small.
    Shrink {
        /// A seed, or a file with a plan.
        what: String,
        /// Profile of the seed.
        #[arg(long, default_value = "default")]
        profile: String,
        /// Write the result here instead of standard output.
        #[arg(long, short)]
        out: Option<PathBuf>,
        /// Planted bug that the seed shall be run with.
        #[arg(long)]
        bug: Option<String>,
        /// Give up after so many runs.
        #[arg(long, default_value_t = 2000)]
        runs: usize,
    },
    /// Tell what happened: who did what to whom, when, and why each node woke.
    Show {
        /// A recording of a node, a file with a plan, or a seed.
        what: String,
        /// Profile of the seed.
        #[arg(long, default_value = "default")]
        profile: String,
        /// Planted bug that the seed shall be run with.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Print the plan that a seed draws.
    Plan {
        /// The seed.
        seed: u64,
        /// Its profile.
        #[arg(long, default_value = "default")]
        profile: String,
    },
    /// Plant each bug and count the seeds until it is found.
    Bugs {
        /// Only this one.
        bug: Option<String>,
        /// First seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
    /// List the profiles.
    Profiles,
}

#[derive(Args)]
struct RunArgs {
    /// How many seeds.
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<u64>,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// The first of many seeds.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// A built-in profile or a file.
    #[arg(long, default_value = "default")]
    profile: String,
    /// A file with a plan instead of seeds.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    plan: Option<PathBuf>,
    /// Go on after failures and list them.
    #[arg(long)]
    all: bool,
    /// Every node has a twin that must do exactly the same.
    #[arg(long)]
    twins: bool,
    /// Print a fingerprint of all states of each seed.
    #[arg(long)]
    fingerprint: bool,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<String>,
    /// Nodes have a control plane, whatever the profile says.
    #[arg(long)]
    control: bool,
    /// Record every node's frames into this directory (one seed only).
    #[arg(long, requires = "seed")]
    record: Option<PathBuf>,
}

/// Runs `icesim` with these arguments, the program's name first. Prints to standard output and standard error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let code = u8::try_from(e.exit_code()).unwrap_or(2);
            // Nothing can be done about a closed output.
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    catch_assertions();
    let done = match cli.command {
        Commands::Run(args) => run_seeds(&args),
        Commands::Replay { trace } => replay_trace(&trace),
        Commands::Shrink { what, profile, out, bug, runs } => shrink_plan(&what, &profile, out, bug.as_deref(), runs),
        Commands::Show { what, profile, bug } => show(&what, &profile, bug.as_deref()),
        Commands::Plan { seed, profile } => Profile::load(&profile).map(|p| {
            say_raw!("{}", draw::plan(&p, &profile, seed));
            true
        }),
        Commands::Bugs { bug, from } => hunt(bug.as_deref(), from),
        Commands::Profiles => profiles(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("icesim: {text}");
            ExitCode::from(2)
        }
    }
}

fn bug_named(name: Option<&str>) -> Result<Option<ice_core::bug::Bug>, String> {
    let Some(name) = name else { return Ok(None) };
    if !cfg!(feature = "planted-bugs") {
        return Err("this build has no planted bugs: build with --features planted-bugs".into());
    }
    let all: Vec<ice_core::bug::Bug> = ice_core::bug::Bug::all().collect();
    let found = all.iter().find(|b| format!("{b:?}").eq_ignore_ascii_case(name));
    let known = || all.iter().map(|b| format!("{b:?}")).collect::<Vec<_>>().join(", ");
    found.copied().map(Some).ok_or_else(|| format!("{name:?} is not a planted bug; there are {}", known()))
}

fn load(what: &str, profile: &str, bug: Option<&str>) -> Result<(Plan, String), String> {
    let bug_arg = bug.map_or(String::new(), |b| format!(" --bug {b}"));
    if let Ok(seed) = what.parse::<u64>() {
        let mut plan = draw::plan(&Profile::load(profile)?, profile, seed);
        plan.setup.bug = bug_named(bug)?;
        return Ok((plan, format!("icesim run --seed {seed} --profile {profile}{bug_arg}")));
    }
    let text = std::fs::read_to_string(what).map_err(|e| format!("{what}: {e}"))?;
    let mut plan = Plan::parse(&text).map_err(|e| format!("{what}: {e}"))?;
    if bug.is_some() {
        plan.setup.bug = bug_named(bug)?;
    }
    Ok((plan, format!("icesim run --plan {what}")))
}

struct Total {
    events: u64,
    virtual_ns: u64,
    began: Instant,
}

impl Total {
    fn new() -> Total {
        Total { events: 0, virtual_ns: 0, began: Instant::now() }
    }
    fn add(&mut self, o: &Outcome) {
        self.events += o.events;
        self.virtual_ns += o.time.0;
    }
    fn speed(&self) -> String {
        let real = self.began.elapsed().as_secs_f64().max(1e-9);
        let simulated = self.virtual_ns as f64 / 1e9;
        format!(
            "{} events, {:.0} events/s; {simulated:.0} s simulated in {real:.1} s, {:.0} times real time",
            self.events,
            self.events as f64 / real,
            simulated / real
        )
    }
}

fn run_seeds(args: &RunArgs) -> Result<bool, String> {
    let options =
        Options { twins: args.twins, fingerprint: args.fingerprint, tapes: args.record.is_some(), story: false };
    let mut extra = String::new();
    if args.twins {
        extra.push_str(" --twins");
    }
    if let Some(b) = &args.bug {
        extra.push_str(&format!(" --bug {b}"));
    }
    if args.control {
        extra.push_str(" --control");
    }
    if let Some(path) = &args.plan {
        let (mut plan, repeat) = load(&path.to_string_lossy(), &args.profile, args.bug.as_deref())?;
        plan.setup.control |= args.control;
        return one(&plan, options, &format!("{repeat}{extra}"), None);
    }
    let profile = Profile::load(&args.profile)?;
    let bug = bug_named(args.bug.as_deref())?;
    if let Some(seed) = args.seed {
        let mut plan = draw::plan(&profile, &args.profile, seed);
        plan.setup.bug = bug;
        plan.setup.control |= args.control;
        let repeat = format!("icesim run --seed {seed} --profile {}{extra}", args.profile);
        return one(&plan, options, &repeat, args.record.as_deref());
    }
    let count = args.seeds.unwrap_or(100);
    let repeat = format!("icesim run --seeds {count} --from {} --profile {}{extra}", args.from, args.profile);
    say!("{repeat}");
    let mut total = Total::new();
    let mut sometimes = Sometimes::default();
    let mut failed: Vec<(u64, String)> = Vec::new();
    for seed in args.from..args.from.saturating_add(count) {
        let mut plan = draw::plan(&profile, &args.profile, seed);
        plan.setup.bug = bug;
        plan.setup.control |= args.control;
        let once = format!("icesim run --seed {seed} --profile {}{extra}", args.profile);
        let outcome = run(&plan, options, &once)?;
        total.add(&outcome);
        sometimes.add(&outcome.sometimes);
        if args.fingerprint {
            say!("seed {seed}: {:016x}", outcome.fingerprint);
        }
        if let Some(f) = outcome.failure {
            say!("seed {seed} FAILED at {:.3} s: {}: {}", f.at.0 as f64 / 1e9, f.judge, f.text);
            say!("  repeat with: {once}");
            failed.push((seed, f.judge.to_owned()));
            if !args.all {
                break;
            }
        }
    }
    say!("{}", total.speed());
    for (name, n) in sometimes.all() {
        say!("  {n:>8}  {name}");
    }
    let mut good = failed.is_empty();
    if good {
        say!("{count} seeds passed");
        // Too few seeds need not reach everything.
        for name in profile.sometimes.iter().filter(|n| sometimes.count(n) == 0) {
            say!("{}: {name:?} never happened", if count >= 200 { "FAILED" } else { "note" });
            good &= count < 200;
        }
    } else {
        let list: Vec<String> = failed.iter().map(|(s, j)| format!("{s} ({j})")).collect();
        say!("{} failed: {}", failed.len(), list.join(", "));
    }
    say!("{repeat}");
    Ok(good)
}

fn one(plan: &Plan, options: Options, repeat: &str, record: Option<&std::path::Path>) -> Result<bool, String> {
    say!("{repeat}");
    let mut total = Total::new();
    let outcome = run(plan, options, repeat)?;
    total.add(&outcome);
    if let Some(dir) = record {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for (name, frames) in &outcome.tapes {
            replay::record(&dir.join(format!("{name}.trace")), frames)?;
        }
        say!("{} recordings in {}", outcome.tapes.len(), dir.display());
    }
    if options.fingerprint {
        say!("fingerprint {:016x}", outcome.fingerprint);
    }
    say!("{}", total.speed());
    match &outcome.failure {
        None => say!("passed"),
        Some(f) => say!("FAILED at {:.3} s: {}: {}", f.at.0 as f64 / 1e9, f.judge, f.text),
    }
    say!("{repeat}");
    Ok(outcome.failure.is_none())
}

fn replay_trace(path: &std::path::Path) -> Result<bool, String> {
    let repeat = format!("icesim replay {}", path.display());
    say!("{repeat}");
    let began = Instant::now();
    let done = replay::replay(path, None)?;
    let real = began.elapsed().as_secs_f64();
    say!(
        "{} steps, {} events and {} states are the same; {:.3} s of a node's life in {real:.3} s",
        done.steps,
        done.events,
        done.states,
        done.span_ns as f64 / 1e9
    );
    if done.skipped > 0 {
        say!("{} steps before the first recorded state were passed over", done.skipped);
    }
    if let Some(given) = &done.unanswered {
        say!("the last step has no answer on the tape, the process ended in it: {given}");
    }
    if let Some(why) = &done.cut {
        say!("the recording ends early: {why}");
    }
    if let Some(d) = &done.difference {
        say!("DIFFERENT: {d}");
    }
    say!("{repeat}");
    Ok(done.difference.is_none())
}

fn shrink_plan(
    what: &str,
    profile: &str,
    out: Option<PathBuf>,
    bug: Option<&str>,
    runs: usize,
) -> Result<bool, String> {
    let (plan, repeat) = load(what, profile, bug)?;
    eprintln!("{repeat}");
    let shrunk = shrink::shrink(&plan, runs, |lines, runs| eprintln!("{lines} lines after {runs} runs"))?;
    let mut plan = shrunk.plan;
    plan.story = vec![
        format!("Shrunk from `{repeat}` in {} runs.", shrunk.runs),
        format!("{}: {}", shrunk.failure.judge, shrunk.failure.text.lines().next().unwrap_or("")),
    ];
    match out {
        None => say_raw!("{plan}"),
        Some(path) => {
            std::fs::write(&path, plan.to_string()).map_err(|e| format!("{}: {e}", path.display()))?;
            say!("icesim run --plan {}", path.display());
        }
    }
    Ok(true)
}

fn show(what: &str, profile: &str, bug: Option<&str>) -> Result<bool, String> {
    let path = std::path::Path::new(what);
    let is_trace = std::fs::File::open(path).is_ok_and(|mut f| {
        let mut magic = [0; 8];
        std::io::Read::read_exact(&mut f, &mut magic).is_ok() && &magic == b"ICETRACE"
    });
    if is_trace {
        let done = replay::replay(path, Some(&mut |line| say!("{line}")))?;
        if let Some(d) = &done.difference {
            say!("DIFFERENT: {d}");
        }
        return Ok(done.difference.is_none());
    }
    let (plan, repeat) = load(what, profile, bug)?;
    say!("{repeat}");
    let outcome = run(&plan, Options { story: true, ..Options::default() }, &repeat)?;
    say_raw!("{}", outcome.story.unwrap_or_default());
    say!("{repeat}");
    Ok(outcome.failure.is_none())
}

fn hunt(bug: Option<&str>, from: u64) -> Result<bool, String> {
    if !cfg!(feature = "planted-bugs") {
        return Err("this build has no planted bugs: build with --features planted-bugs".into());
    }
    let only = bug_named(bug)?;
    let mut good = true;
    for h in bugs::HUNTS.iter().filter(|h| only.is_none_or(|b| b == h.bug)) {
        match bugs::find(*h, from)? {
            Some(f) => say!(
                "{:<24} found {} with {} (seed {}): {}: {}",
                format!("{:?}", h.bug),
                h.place,
                f.seeds,
                f.seed,
                f.failure.judge,
                f.failure.text.lines().next().unwrap_or("")
            ),
            None => {
                good = false;
                say!("{:<24} NOT FOUND {}", format!("{:?}", h.bug), h.place);
            }
        }
    }
    Ok(good)
}

fn profiles() -> Result<bool, String> {
    for name in profile::names() {
        say!("{name:<14} {}", Profile::load(name)?.about);
    }
    Ok(true)
}
