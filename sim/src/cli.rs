//! The command line of `icesim`.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `icesim` with these arguments, the program's name first. Prints to standard output and standard error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = args.into_iter().collect();
    eprintln!("icesim: {} arguments given, no command is built yet", words.len().saturating_sub(1));
    ExitCode::from(2)
}
