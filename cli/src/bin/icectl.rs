//! Talks to icecluster nodes over HTTP.

fn main() -> std::process::ExitCode {
    ice_cli::ctl::main()
}
