//! Says, in status and once in the log, when a disk that the node writes to has no room left.

use anyhow::{Context, Result};
use ice_host::config::Config;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Between two looks for the log's sake. Status looks when it is asked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Less is as good as nothing: what is written next does not fit. Of a small disk, a part of it.
const RESERVE_BYTES: u64 = 16 << 20;
const RESERVE_PART: u64 = 64;

/// The watch; it ends when this is dropped.
pub struct Disks {
    places: Vec<(&'static str, PathBuf)>,
    _stop: SyncSender<()>,
}

impl Disks {
    /// Watches the disks of `backing` and `data` (which may be one) of a configuration.
    pub fn watch(config: &Config) -> Result<Disks> {
        let mut places = vec![("backing", config.backing.clone())];
        let device = |path: &Path| rustix::fs::stat(path).map(|s| s.st_dev).ok();
        if device(&config.data) != device(&config.backing) {
            places.push(("data", config.data.clone()));
        }
        let (stop, stopped) = sync_channel(0);
        let watched = places.clone();
        let watch = move || {
            let mut known = BTreeSet::new();
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                for (key, path) in &watched {
                    match full(key, path) {
                        Some(words) if known.insert(*key) => tracing::warn!("{words}"),
                        None if known.remove(key) => tracing::info!("the disk of `{key}` has room again"),
                        _ => {}
                    }
                }
            }
        };
        std::thread::Builder::new().name("disks".into()).spawn(watch).context("disk thread")?;
        Ok(Disks { places, _stop: stop })
    }

    /// Looks now: what is full, in words.
    pub fn look(&self) -> impl Fn() -> Vec<String> + Send + Sync + use<> {
        let places = self.places.clone();
        move || places.iter().filter_map(|(key, path)| full(key, path)).collect()
    }
}

fn full(key: &str, path: &Path) -> Option<String> {
    // A disk that does not answer such a question is told of by those who write to it.
    let fs = rustix::fs::statvfs(path).ok()?;
    let (free, total) = (fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_blocks.saturating_mul(fs.f_frsize));
    if fs.f_files > 0 && fs.f_favail == 0 {
        return Some(format!("the disk of `{key}` ({}) is full: it has no inode left", path.display()));
    }
    let low = total > 0 && free < RESERVE_BYTES.min(total / RESERVE_PART);
    low.then(|| {
        format!("the disk of `{key}` ({}) is full: {} KiB free, writes fail or wait", path.display(), free >> 10)
    })
}
