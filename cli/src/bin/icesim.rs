//! Simulated clusters: runs, replays, shrinks and shows them.

fn main() -> std::process::ExitCode {
    ice_sim::cli::main(std::env::args_os())
}
