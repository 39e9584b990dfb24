//! `icectl`: asks and commands nodes over HTTP.
//!
//! Output on standard output, warnings and errors on standard error. Exit code 0: done, and the answer is yes; 1: transport
//! error, refusal (any status but 2xx) or an answer that is no; 2: the command line is wrong.

mod client;
mod compare;
mod io;
mod locks;
mod repair;
mod show;
mod transfer;

pub use client::{Base, Client};

use crate::args;
use anyhow::{Context, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand, ValueEnum};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Talks to icecluster nodes over HTTP.
///
/// Long flags may be written with one dash or two: -path=x, --path x.
#[derive(Parser, Debug)]
#[command(name = "icectl", version, disable_help_subcommand = true, arg_required_else_help = true)]
struct Args {
    /// Base URL of the node to ask
    #[arg(long, global = true, value_name = "URL", env = "ICECLUSTER_BASE", default_value = "http://localhost:9000")]
    base: String,
    /// Longest wait without any progress, as in 300ms, 10s, 2m30s; 0 waits for ever. `put` waits twice as long, because the
    /// node waits for other nodes (`ack_timeout`)
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
    timeout: Duration,
    /// Bearer token (better in the environment or in a file: command lines can be seen by others)
    #[arg(long, global = true, env = "ICECLUSTER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File whose first line is the bearer token
    #[arg(long, global = true, value_name = "FILE", env = "ICECLUSTER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Trust the certificate authorities in this PEM file instead of the system's
    #[arg(long, global = true, value_name = "FILE", env = "ICECLUSTER_CACERT")]
    cacert: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    /// After `stats`: set the counters to zero
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = clap::ArgAction::Set, hide_possible_values = true)]
    reset_stats: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print the version of this program
    Version,
    /// List the base URLs of all live nodes
    Peers,
    /// Ask whether the node is alive
    Health,
    /// The node's state: peers, lag, conflicts, disk, and what is wrong in words
    Status,
    /// List the conflict copies that wait for somebody to look at them
    Conflicts,
    /// List a directory
    Ls {
        /// Directory; the root if not given
        #[arg(long, default_value = "/")]
        path: OsString,
    },
    /// Write a file to standard output
    Get {
        /// Path of the file in the cluster
        #[arg(long)]
        path: OsString,
    },
    /// Write standard input to a file, for the whole cluster
    Put {
        /// Path of the file in the cluster
        #[arg(long)]
        path: OsString,
        /// How many nodes must hold it durably before this returns: local, one, quorum or all
        #[arg(long)]
        ack: Option<String>,
    },
    /// Delete a file or an empty directory, for the whole cluster
    Del {
        /// Path in the cluster
        #[arg(long)]
        path: OsString,
    },
    /// Take the lock on a path, for the whole cluster; the same holder gets it again
    Lock {
        /// Path in the cluster; it need not exist
        #[arg(long)]
        path: OsString,
        /// Who wants it
        #[arg(long)]
        holder: OsString,
        /// Queue for so long if somebody else has it, as in 30s; without it that is a refusal at once
        #[arg(long, value_name = "DURATION", value_parser = args::duration)]
        wait: Option<Duration>,
        /// It ends by itself unless it is taken again by the same holder within so long
        #[arg(long, value_name = "DURATION", value_parser = args::duration)]
        ttl: Option<Duration>,
    },
    /// Give the lock on a path back; only its holder can
    Unlock {
        /// Path in the cluster
        #[arg(long)]
        path: OsString,
        /// Who has it
        #[arg(long)]
        holder: OsString,
    },
    /// List all locks: path, holder, and for how long it has been held
    Locks,
    /// Show what was sent to each peer
    Stats,
    /// Compare the files of all nodes; exit code 1 if they differ
    Consistency,
    /// Make nodes equal where they differ: from the newest copy, or from one node
    Repair {
        /// latest: the newest copy of each file wins; force-from: the node in -source is right, also about deletions
        #[arg(long, value_enum, default_value_t = repair::Mode::Latest)]
        mode: repair::Mode,
        /// Base URL of the node that is right, as `peers` shows it
        #[arg(long, value_name = "URL")]
        source: Option<String>,
    },
}

impl ValueEnum for repair::Mode {
    fn value_variants<'a>() -> &'a [Self] {
        &[repair::Mode::Latest, repair::Mode::ForceFrom]
    }
    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            repair::Mode::Latest => "latest",
            repair::Mode::ForceFrom => "force-from",
        }))
    }
}

/// What a command needs.
struct Session<'a> {
    client: Client,
    base: Base,
    json: bool,
    out: &'a mut dyn Write,
}

/// Runs `icectl` with the process's arguments, on its standard streams.
pub fn main() -> ExitCode {
    let args: Args = match args::parse_with(std::env::args_os(), short_usage_error) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let mut out = std::io::BufWriter::with_capacity(256 * 1024, Stdout(std::io::stdout().lock()));
    let done = run(args, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    let code = done.unwrap_or_else(|error| {
        if is_closed_output(&error) {
            // Whoever reads our output has read enough.
            return args::OK;
        }
        eprintln!("error: {error:#}");
        let message = error.downcast_ref::<client::Refused>().and_then(|r| r.message.as_deref());
        if let Some(message) = message {
            eprintln!("  {}", show::printable(message));
        }
        if error.is::<Usage>() { args::USAGE } else { args::FAILED }
    });
    // What is left in the buffer has no reader any more if flushing failed.
    drop(out.into_parts());
    ExitCode::from(code)
}

/// The original's words for the two most usual mistakes; clap's for the others.
fn short_usage_error(error: &clap::Error) -> bool {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            eprintln!("unknown command: {}", text(ContextKind::InvalidSubcommand).concat());
        }
        ErrorKind::MissingRequiredArgument => {
            for argument in text(ContextKind::InvalidArg) {
                let name = argument.split([' ', '=']).next().unwrap_or_default();
                eprintln!("missing {}", name.replacen("--", "-", 1));
            }
        }
        _ => return false,
    }
    true
}

/// The command line is wrong in a way that only the command itself can see.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

fn run(args: Args, out: &mut dyn Write) -> Result<u8> {
    let base = Base::parse(&args.base).map_err(|e| usage(format!("-base: {e:#}")))?;
    let mut client = Client::new(args.timeout);
    client.token = match (args.token, args.token_file) {
        (Some(token), _) => Some(token),
        (None, Some(file)) => Some(read_token(&file)?),
        (None, None) => None,
    }
    .filter(|token| !token.is_empty());
    client.cacert = args.cacert;
    client.token_needs_tls = base.is_tls();
    let mut session = Session { client, base, json: args.json, out };
    let s = &mut session;
    match args.command {
        Command::Version => show::version(s),
        Command::Peers => show::peers(s),
        Command::Health => show::health(s),
        Command::Status => show::status(s),
        Command::Conflicts => show::conflicts(s),
        Command::Ls { path } => show::ls(s, &path),
        Command::Get { path } => transfer::get(s, &path),
        Command::Put { path, ack } => transfer::put(s, &path, ack.as_deref()),
        Command::Del { path } => transfer::del(s, &path),
        Command::Lock { path, holder, wait, ttl } => locks::lock(s, &path, &holder, wait, ttl),
        Command::Unlock { path, holder } => locks::unlock(s, &path, &holder),
        Command::Locks => locks::locks(s),
        Command::Stats => show::stats(s, args.reset_stats),
        Command::Consistency => compare::consistency(s),
        Command::Repair { mode, source } => repair::repair(s, mode, source.as_deref()),
    }
}

fn read_token(file: &std::path::Path) -> Result<String> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read the token file {}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// `/` and what is never special stay readable; everything else is escaped, byte by byte.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `route?path=...`
fn with_path(route: &str, path: &OsStr) -> String {
    format!("{route}?path={}", percent_encode(path.as_bytes(), QUERY))
}

/// Standard output that remembers, in its error, that it was the output that was closed, and not a connection.
struct Stdout<W>(W);

#[derive(Debug)]
struct ClosedOutput;

impl std::fmt::Display for ClosedOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for ClosedOutput {}

fn mark_closed(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        kind @ std::io::ErrorKind::BrokenPipe => std::io::Error::new(kind, ClosedOutput),
        _ => error,
    }
}

impl<W: Write> Write for Stdout<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf).map_err(mark_closed)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().map_err(mark_closed)
    }
}

fn is_closed_output(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    io.and_then(|e| e.get_ref()).is_some_and(|inner| inner.is::<ClosedOutput>())
}
