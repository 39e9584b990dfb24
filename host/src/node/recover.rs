//! From `data` on disk to the arguments of `Node::recover`.

use crate::config::Config;
use crate::identity::{DataDir, IdentityError, LastStop};
use crate::payload::PayloadPool;
use crate::store::{Store, StoreError};
use ice_core::action::LogRecord;
use ice_core::config::{Config as CoreConfig, Ending, Recovered};
use ice_core::control::Config as ControlConfig;
use ice_core::ids::InodeId;
use ice_core::node::Loading;
use ice_core::op::OpBody;
use ice_core::time::Span;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// See there.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log cannot be read or changed.
    #[error("{path}: {source}")]
    Log {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was found.
pub struct Found {
    /// The locked data directory.
    pub data: DataDir,
    /// The checkpoint's store.
    pub store: Store,
    /// For the core; `staged` is filled in by the volume. Without pages, except where everything is recorded into a file.
    pub disk: Recovered,
    /// The other pages.
    pub loading: Loading,
    /// After the end of the whole machine: inodes that may be missing or torn on disk without anybody's will.
    pub suspects: BTreeSet<InodeId>,
    /// Damage, in words.
    pub damage: Vec<String>,
}

/// Where the log's segments are.
pub fn log_dir(data: &Path) -> PathBuf {
    data.join("log")
}

/// Reads everything. Payloads of log records go into the pool.
pub fn recover(config: &Config, payloads: &PayloadPool) -> Result<Found, RecoverError> {
    let mut data = DataDir::open(&config.data)?;
    data.claim_backing(&config.backing)?;
    let mut damage = Vec::new();
    let path = config.data.join("tree.redb");
    let mut whole = true;
    let mut disk = Recovered::default();
    let mut loading = Loading::default();
    // A recording into a file begins with all that was found.
    let keep = config.trace.is_some();
    let read = read_store(&path, &mut |key, value| {
        if keep {
            disk.pages.push((key.into(), value.into()));
        } else {
            loading.page(key, value);
        }
    });
    let store = match read {
        Ok(store) => store,
        Err(e) if e.is_damage() => {
            // The tree is rebuilt from what stands in `backing` and from the peers; the log's tail alone means nothing.
            let aside =
                crate::store::set_aside(&path).map_err(|source| RecoverError::Log { path: path.clone(), source })?;
            damage.push(format!("{e}; set aside as {}", aside.display()));
            disk.pages.clear();
            loading = Loading::default();
            whole = false;
            set_log_aside(&config.data)?;
            Store::open(&path)?
        }
        Err(e) => return Err(e.into()),
    };
    let dir = log_dir(&config.data);
    let mut log: Vec<(u64, LogRecord)> = Vec::new();
    let report = crate::log::recover(&dir, store.log_cut(), &mut |entry| {
        let mut record = entry.record;
        if let LogRecord::Op { op, .. } = &mut record
            && let Some(p) = &mut op.payload
        {
            match entry.payload {
                Some(bytes) => p.id = payloads.insert_unbounded(bytes),
                None => op.payload = None,
            }
        }
        log.push((entry.index, record));
    })
    .map_err(|source| RecoverError::Log { path: dir.clone(), source })?;
    if let Some(words) = report.torn {
        tracing::info!("log: {words}");
    }
    if let Some(words) = report.damage {
        damage.push(words);
        whole = false;
    }
    disk.ending = match data.last_stop() {
        LastStop::First | LastStop::Clean if whole => Ending::Clean,
        LastStop::ProcessCrash if whole => Ending::ProcessCrash,
        _ => Ending::MachineCrash,
    };
    let suspects = if disk.ending == Ending::MachineCrash { suspects(&log) } else { BTreeSet::new() };
    disk.log = log;
    Ok(Found { data, store, disk, loading, suspects, damage })
}

fn read_store(path: &Path, sink: &mut dyn FnMut(&[u8], &[u8])) -> Result<Store, StoreError> {
    let store = Store::open(path)?;
    store.load(sink)?;
    Ok(store)
}

fn set_log_aside(data: &Path) -> Result<(), RecoverError> {
    let dir = log_dir(data);
    if !dir.exists() {
        return Ok(());
    }
    let aside = (1..1000).map(|n| data.join(format!("log.damaged-{n}"))).find(|p| !p.exists());
    let aside = aside.unwrap_or_else(|| data.join("log.damaged-1000"));
    let renamed = std::fs::rename(&dir, &aside).and_then(|()| crate::log::sync_dir(data));
    renamed.map_err(|source| RecoverError::Log { path: dir, source })
}

/// What changed since the last checkpoint (which had synced `backing`).
fn suspects(log: &[(u64, LogRecord)]) -> BTreeSet<InodeId> {
    let mut found = BTreeSet::new();
    for (_, record) in log {
        match record {
            LogRecord::Op { op, .. } => match &op.body {
                OpBody::Place { inode, .. } | OpBody::SetAttr { inode, .. } | OpBody::SetContent { inode, .. } => {
                    found.insert(*inode);
                }
                OpBody::Remove { .. } => {}
            },
            LogRecord::Holds { inode, .. } => {
                found.insert(*inode);
            }
            LogRecord::State { records, .. } => found.extend(records.iter().map(|r| r.inode)),
            LogRecord::Stands { .. }
            | LogRecord::Absent { .. }
            | LogRecord::Member(_)
            | LogRecord::Kept { .. }
            | LogRecord::Raft(_)
            | LogRecord::Alone
            | LogRecord::Life(_) => {}
        }
    }
    found
}

fn control(config: &Config, found: bool) -> ControlConfig {
    let span = |d: std::time::Duration| Span(d.as_nanos().min(u128::from(u64::MAX)) as u64);
    let mut c = ControlConfig { found, rescue: config.force_new_cluster, ..ControlConfig::default() };
    c.heartbeat = config.decube.heartbeat.map_or(c.heartbeat, span);
    if let Some(election) = config.decube.election {
        (c.election, c.jitter) = (span(election), span(election));
    }
    if config.decube.quota_bytes > 0 {
        c.quota_bytes = config.decube.quota_bytes;
    }
    c.autopilot.dead_after = span(config.autopilot_dead_after);
    c
}

/// Whether a node without a past founds the control plane's cluster, rather than wait until it is taken in. Of nodes that are
/// told to join each other one does: the first, if each has the same list of all of them; the one with the least address, if each
/// names only the others. Should more than one begin all the same, those that hold nothing give way when they meet.
fn founds(join: &[String], own: &[String]) -> bool {
    match join.iter().position(|u| own.contains(u)) {
        Some(at) => at == 0,
        None => join.is_empty() || own.first().is_some_and(|own| join.iter().all(|u| own < u)),
    }
}

/// The protocol's settings.
pub fn core_config(config: &Config, data: &DataDir, urls: Vec<String>) -> CoreConfig {
    let nanos = |d: std::time::Duration| d.as_nanos().min(u128::from(u64::MAX)) as u64;
    let mut c = CoreConfig::new(data.replica(), &config.node_id);
    c.incarnation = data.incarnation();
    let founds = founds(&config.join, &urls);
    c.join = config.join.iter().filter(|u| !urls.contains(u)).cloned().collect();
    c.urls = urls;
    c.control = Some(control(config, founds));
    c.ack = config.ack;
    // Signs of life are cheap and far more frequent than what an operator thinks of, because they also carry acknowledgements: a peer
    // is down when eight phi of silence have passed, with signs so frequent that this is the configured time, or more phi where that
    // would be too seldom. See `ice_core`'s `member` for the 2.3026.
    let silence = nanos(config.silence());
    let heartbeat = (silence.saturating_mul(1_000) / 18_421).clamp(50_000_000, 500_000_000);
    c.heartbeat = Span(heartbeat);
    let level = (u128::from(silence) * 10_000).div_ceil(u128::from(heartbeat) * 23_026);
    c.phi_down = u32::try_from(level).unwrap_or(u32::MAX).max(1);
    c.redial = Span(nanos(config.keepalive).clamp(200_000_000, 5_000_000_000));
    // A connection that breaks and cannot be made again is no silence: the first refusal decides.
    c.dial_failures = 1;
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_those_that_join_each_other_begins() {
        let list = |urls: &[&str]| urls.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
        let all = ["http://b:1", "http://a:1", "http://c:1"];
        let founders = |join_of: &dyn Fn(&str) -> Vec<String>| {
            all.iter().filter(|own| founds(&join_of(own), &list(&[own]))).copied().collect::<Vec<_>>()
        };
        // The same list everywhere; only the others; the first alone; a chain.
        assert_eq!(founders(&|_| list(&all)), ["http://b:1"]);
        assert_eq!(founders(&|own| list(&all).into_iter().filter(|u| u != own).collect()), ["http://a:1"]);
        assert_eq!(founders(&|own| if own == "http://a:1" { vec![] } else { list(&["http://a:1"]) }), ["http://a:1"]);
        assert!(!founds(&list(&["http://a:1", "http://b:1"]), &list(&["http://x:1", "http://b:1"])));
        assert!(!founds(&list(&["http://a:1"]), &[]) && founds(&[], &list(&["http://x:1"])));
    }
}
