//! A node of an icecluster.

fn main() -> std::process::ExitCode {
    ice_cli::program::main(|_, _| anyhow::bail!("this build has no node"))
}
