//! Command-line habits shared by the programs: long flags with one dash (`-config x`, `-path=x`), as Go's `flag` package
//! takes them, besides the usual two; durations as Go writes them; exit codes.

use ice_host::duration::GoDuration;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::time::Duration;

/// Everything was done, and the answer is yes.
pub const OK: u8 = 0;
/// A transport error, a refusal, or an answer that is no.
pub const FAILED: u8 = 1;
/// The command line or the configuration cannot be understood.
pub const USAGE: u8 = 2;

/// Rewrites `-name` and `-name=value` to `--name...`, whether `name` is a long flag of `command` or not: of one that is unknown
/// nothing must be taken for a short flag, least of all `-holder` for `-h`. Short flags of the program, one or several behind one
/// dash, negative numbers, and what follows `--`, are left as they are.
pub fn normalise(command: &clap::Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut short = BTreeSet::new();
    collect_short(command, &mut short);
    let mut verbatim = false;
    args.into_iter()
        .enumerate()
        .map(|(i, arg)| {
            verbatim |= arg == "--";
            if i == 0 || verbatim || !is_single_dashed(&arg, &short) {
                return arg;
            }
            let mut bytes = b"-".to_vec();
            bytes.extend_from_slice(arg.as_bytes());
            OsString::from_vec(bytes)
        })
        .collect()
}

fn collect_short(command: &clap::Command, short: &mut BTreeSet<u8>) {
    let own = command.get_arguments().filter_map(|a| u8::try_from(a.get_short()?).ok());
    // Those that only print something: nobody asks for them twice, or together with others.
    short.extend(own.filter(|c| !b"hV".contains(c)));
    command.get_subcommands().for_each(|c| collect_short(c, short));
}

fn is_single_dashed(arg: &OsStr, short: &BTreeSet<u8>) -> bool {
    let Some(name) = arg.as_bytes().strip_prefix(b"-") else { return false };
    let name = name.split(|b| *b == b'=').next().unwrap_or_default();
    name.len() > 1 && name[0].is_ascii_alphabetic() && !name.iter().all(|c| short.contains(c))
}

/// Parses the command line into `T`; on a mistake, or when only help was asked for, returns the code to exit with.
pub fn parse<T: clap::CommandFactory + clap::FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<T, ExitCode> {
    parse_with(args, |_| false)
}

/// [`parse`], but `explain` may print a mistake in its own words and return `true`.
pub fn parse_with<T: clap::CommandFactory + clap::FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
    explain: impl FnOnce(&clap::Error) -> bool,
) -> Result<T, ExitCode> {
    let mut command = T::command();
    command.build();
    let args = normalise(&command, args);
    let parsed = T::command().try_get_matches_from(args).and_then(|m| T::from_arg_matches(&m));
    parsed.map_err(|error| {
        if !explain(&error) {
            // If not even standard error can be written, the exit code still tells.
            let _ = error.print();
        }
        ExitCode::from(if error.use_stderr() { USAGE } else { OK })
    })
}

/// Parses a duration as Go writes it, `300ms` or `2m30s`. Not less than zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    match text.parse::<GoDuration>() {
        Ok(d) if d < GoDuration::ZERO => Err("it must not be negative".to_owned()),
        Ok(d) => Ok(d.std()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug, PartialEq)]
    struct Sample {
        #[arg(long)]
        config: Option<String>,
        #[arg(short, long)]
        verbose: bool,
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false,
              action = clap::ArgAction::Set)]
        ro: bool,
        rest: Vec<String>,
    }

    fn sample(args: &[&str]) -> Result<Sample, clap::Error> {
        let args = std::iter::once("x").chain(args.iter().copied()).map(OsString::from);
        Sample::try_parse_from(normalise(&Sample::command(), args))
    }
    use clap::CommandFactory;

    #[test]
    fn one_dash_and_two_dashes_mean_the_same() {
        for args in [&["-config", "a", "-ro"][..], &["--config=a", "--ro"], &["-config=a", "-ro=true"]] {
            let got = sample(args).unwrap();
            assert_eq!((got.config.as_deref(), got.ro), (Some("a"), true), "{args:?}");
        }
        assert!(!sample(&["-ro=false"]).unwrap().ro);
    }

    #[test]
    fn short_flags_unknown_flags_and_what_follows_two_dashes_are_left_alone() {
        assert!(sample(&["-v"]).unwrap().verbose);
        assert!(sample(&["-confi", "a"]).is_err());
        assert!(sample(&["-vv"]).is_err_and(|e| e.kind() == clap::error::ErrorKind::ArgumentConflict));
        assert_eq!(sample(&["-5"]).unwrap_err().kind(), clap::error::ErrorKind::UnknownArgument);
        for word in ["-holder", "-Verbose", "-hx=1"] {
            let error = sample(&[word]).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument, "{word}: {error}");
        }
        assert_eq!(sample(&["--", "-config"]).unwrap().rest, ["-config"]);
        assert_eq!(sample(&["-config", ""]).unwrap().config.as_deref(), Some(""));
    }

    #[test]
    fn durations_are_not_negative() {
        assert_eq!(duration("2m30s"), Ok(Duration::from_secs(150)));
        assert!(duration("-1s").is_err() && duration("5").is_err());
    }
}
