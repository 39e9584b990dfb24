//! `icecluster`: the daemon's command line.

use crate::daemon::{self, Start};
use crate::{args, dev};
use clap::{Parser, Subcommand};
use ice_host::config::{Config, ConfigError, DEFAULT_PATH};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs a node of an icecluster, until a signal stops it.
///
/// Long flags may be written with one dash or two. Every key of the configuration can be overridden from the
/// environment: ICECLUSTER_BIND, ICECLUSTER_DATA and so on.
#[derive(Parser, Debug)]
#[command(name = "icecluster", version, disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
struct Args {
    /// Configuration file; empty for built-in defaults
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: OsString,
    /// After the loss of most members for good: this node goes on alone, as a new cluster, with what its copy of the control plane's
    /// store holds. For one start, on one node only; docs/control-plane.md says how
    #[arg(long)]
    force_new_cluster: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    Dev(dev::Options),
    /// Print the version
    Version,
}

/// Runs `icecluster` with the process's arguments. `start` assembles a node.
pub fn main(start: Start) -> ExitCode {
    ice_host::memory::keep_together();
    let args: Args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match args.command {
        Some(Command::Dev(options)) => return dev::run(&options),
        Some(Command::Version) => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::from(args::OK);
        }
        None => {}
    }
    match Config::load(Path::new(&args.config)) {
        Ok(config) => {
            let config = Config { force_new_cluster: args.force_new_cluster, ..config };
            ExitCode::from(daemon::run(&config, start))
        }
        Err(error) => {
            eprintln!("icecluster: {error}");
            if matches!(&error, ConfigError::NotFound(path) if path.as_os_str() == DEFAULT_PATH) {
                eprintln!(
                    "Write one (configs/icecluster.example.yaml explains every key), or name another with -config FILE,"
                );
                eprintln!("or try a whole cluster on this machine: icecluster dev");
            }
            ExitCode::from(args::USAGE)
        }
    }
}
