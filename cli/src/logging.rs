//! The log: standard output, or `log_file`, which is opened anew on SIGHUP so that it can be rotated by renaming it.

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use ice_host::config::LogFormat;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The environment variable with a filter for log lines.
pub const LOG_VARIABLE: &str = "ICECLUSTER_LOG";

/// Where log lines go.
#[derive(Clone, Debug)]
pub struct LogTarget {
    file: Option<(PathBuf, Arc<ArcSwap<File>>)>,
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

impl LogTarget {
    /// A file, or standard output.
    pub fn new(path: Option<&Path>) -> Result<LogTarget> {
        let Some(path) = path else { return Ok(LogTarget { file: None }) };
        let file = open(path).with_context(|| format!("cannot open log_file {}", path.display()))?;
        Ok(LogTarget { file: Some((path.to_owned(), Arc::new(ArcSwap::from_pointee(file)))) })
    }

    /// Opens the file anew. If that fails the old one stays in use, and the error says so.
    pub fn reopen(&self) -> Result<()> {
        let Some((path, current)) = &self.file else { return Ok(()) };
        let file =
            open(path).with_context(|| format!("cannot reopen log_file {}: going on in the old", path.display()))?;
        current.store(Arc::new(file));
        Ok(())
    }

    /// Sends the process's log here: `info` and above, with `verbose` also `debug`; `ICECLUSTER_LOG` (a filter in the syntax
    /// of tracing's `EnvFilter`) overrides both. May be called once in a process.
    pub fn install(&self, verbose: bool, format: LogFormat) -> Result<()> {
        let default = if verbose { "debug" } else { "info" };
        let filter = match std::env::var(LOG_VARIABLE) {
            Ok(text) => EnvFilter::try_new(text).context(LOG_VARIABLE)?,
            Err(std::env::VarError::NotPresent) => EnvFilter::new(default),
            Err(error) => return Err(error).context(LOG_VARIABLE),
        };
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(self.clone());
        let done = match format {
            LogFormat::Text => lines.try_init(),
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
        };
        done.map_err(|e| anyhow::anyhow!("logging: {e}"))
    }
}

/// One line on its way. Each line is one `write`, so that lines of several threads do not mix.
pub enum LogWriter {
    /// Standard output.
    Stdout(io::Stdout),
    /// A file in append mode.
    File(Arc<File>),
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            LogWriter::Stdout(out) => out.write(line),
            LogWriter::File(file) => (&**file).write(line),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            LogWriter::Stdout(out) => out.flush(),
            LogWriter::File(file) => (&**file).flush(),
        }
    }
}

impl<'a> MakeWriter<'a> for LogTarget {
    type Writer = LogWriter;
    fn make_writer(&'a self) -> LogWriter {
        match &self.file {
            None => LogWriter::Stdout(io::stdout()),
            Some((_, current)) => LogWriter::File(current.load_full()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_log_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let log = LogTarget::new(Some(&path)).unwrap();
        log.make_writer().write_all(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.make_writer().write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        log.make_writer().write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_an_error_and_one_that_cannot_be_reopened_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LogTarget::new(Some(&dir.path().join("no/such/dir"))).is_err());
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        let log = LogTarget::new(Some(&sub.join("log"))).unwrap();
        std::fs::rename(&sub, dir.path().join("moved")).unwrap();
        assert!(log.reopen().unwrap_err().to_string().contains("going on in the old"));
        log.make_writer().write_all(b"still\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("moved/log")).unwrap(), "still\n");
    }
}
