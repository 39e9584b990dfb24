//! `icesim` without the rest of the programs: `cargo run -p ice-sim --example icesim -- run --seeds 100`.
fn main() -> std::process::ExitCode {
    ice_sim::cli::main(std::env::args_os())
}
