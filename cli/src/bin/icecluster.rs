//! A node of an icecluster.

fn main() -> std::process::ExitCode {
    ice_cli::program::main(ice_cli::start::start)
}
