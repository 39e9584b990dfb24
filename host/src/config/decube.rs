//! DeCube's sections of the configuration (`node`, `etcd`, `api`, `replication`, `snapshot`, `logging`, `security`), as its own
//! files have them, with `DECUBE_<SECTION>_<KEY>` over them. Each key does what it says, or is refused with the reason; one that
//! can have a single value here is accepted with DeCube's default and refused with any other.

use super::address::BindAddr;
use super::keys::{boolean, duration, list, text};
use super::{LogFormat, TlsFiles};
use crate::duration::GoDuration;
use serde_yaml::{Mapping, Value};
use std::path::PathBuf;
use std::time::Duration;

/// Sections that belong to DeCube.
pub const SECTIONS: [&str; 7] = ["node", "etcd", "api", "replication", "snapshot", "logging", "security"];
/// Longest election timeout.
const ELECTION_MAX_MS: u64 = 50_000;

/// What the sections say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decube {
    /// `node.id`, or `etcd.name`.
    pub node_id: Option<String>,
    /// `node.data_dir`.
    pub data: Option<PathBuf>,
    /// `node.listen_address`: where etcd's clients are served; `None`: nowhere.
    pub etcd: Option<BindAddr>,
    /// `node.peer_addresses`: members to join.
    pub peers: Vec<String>,
    /// `etcd.heartbeat_interval`; `None`: the default.
    pub heartbeat: Option<Duration>,
    /// `etcd.election_timeout`; `None`: the default.
    pub election: Option<Duration>,
    /// `etcd.auto_compaction_retention`: how long history is kept; `None`: for ever.
    pub history: Option<Duration>,
    /// `etcd.quota_backend_bytes`; 0: the default.
    pub quota_bytes: u64,
    /// `api.rest.address`, if that is enabled.
    pub rest: Option<BindAddr>,
    /// `api.rest.cors_origins`.
    pub cors_origins: Vec<String>,
    /// `api.grpc.address`, if that is enabled.
    pub grpc: Option<BindAddr>,
    /// `snapshot.interval`, if that is enabled.
    pub snapshot_every: Option<Duration>,
    /// `snapshot.retention_count`: snapshots of the schedule that are kept.
    pub snapshots_kept: u32,
    /// `snapshot.compression`.
    pub snapshot_compression: bool,
    /// `logging.level`: anything from `debug` on is written.
    pub log_debug: bool,
    /// `logging.format`.
    pub log_format: LogFormat,
    /// `logging.output`; `None`: standard output.
    pub log_file: Option<PathBuf>,
    /// `security.cert_file` and `key_file`, if TLS is enabled.
    pub tls: Option<TlsFiles>,
    /// `security.ca_file`: only clients with its certificates are served.
    pub client_ca: Option<PathBuf>,
}

impl Default for Decube {
    fn default() -> Decube {
        Decube {
            node_id: None,
            data: None,
            etcd: None,
            peers: vec![],
            heartbeat: None,
            election: None,
            history: Some(Duration::from_secs(3600)),
            quota_bytes: 0,
            rest: None,
            cors_origins: vec![],
            grpc: None,
            snapshot_every: None,
            snapshots_kept: 10,
            snapshot_compression: true,
            log_debug: false,
            log_format: LogFormat::Text,
            log_file: None,
            tls: None,
            client_ca: None,
        }
    }
}

/// What is needed to judge keys together.
#[derive(Default)]
struct Draft {
    out: Decube,
    name: Option<String>,
    etcd_dir: Option<PathBuf>,
    wal_dir: Option<PathBuf>,
    rest: (Option<bool>, Option<BindAddr>),
    grpc: (Option<bool>, Option<BindAddr>),
    replication: Option<bool>,
    snapshots: (Option<bool>, Option<Duration>),
    tls: bool,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

type Set = fn(&mut Draft, &Value) -> Result<(), String>;

/// Every key, by its path.
const KEYS: &[(&str, Set)] = &[
    ("node.id", |d, v| put(&mut d.out.node_id, some(v)?)),
    ("node.data_dir", |d, v| put(&mut d.out.data, path(v)?)),
    ("node.listen_address", |d, v| put(&mut d.out.etcd, address(v)?)),
    ("node.peer_addresses", |d, v| put(&mut d.out.peers, list(v)?)),
    ("etcd.name", |d, v| put(&mut d.name, some(v)?)),
    ("etcd.data_dir", |d, v| put(&mut d.etcd_dir, path(v)?)),
    ("etcd.wal_dir", |d, v| put(&mut d.wal_dir, path(v)?)),
    ("etcd.snapshot_count", |_, v| {
        fixed(between(v, 0, u64::MAX)? == 10_000, "each checkpoint of the node cuts the log")
    }),
    ("etcd.heartbeat_interval", |d, v| put(&mut d.out.heartbeat, Some(millis(v, 10_000)?))),
    ("etcd.election_timeout", |d, v| put(&mut d.out.election, Some(millis(v, ELECTION_MAX_MS)?))),
    ("etcd.max_snapshots", |_, v| fixed(between(v, 0, u64::MAX)? == 5, "the store keeps what it needs by itself")),
    ("etcd.max_wals", |_, v| fixed(between(v, 0, u64::MAX)? == 5, "the log keeps what it needs by itself")),
    ("etcd.auto_compaction_retention", |d, v| put(&mut d.out.history, retention(v)?)),
    ("etcd.quota_backend_bytes", |d, v| put(&mut d.out.quota_bytes, between(v, 0, 1 << 44)?)),
    ("api.rest.enabled", |d, v| put(&mut d.rest.0, Some(boolean(v)?))),
    ("api.rest.address", |d, v| put(&mut d.rest.1, address(v)?)),
    ("api.rest.cors_origins", |d, v| put(&mut d.out.cors_origins, list(v)?)),
    ("api.grpc.enabled", |d, v| put(&mut d.grpc.0, Some(boolean(v)?))),
    ("api.grpc.address", |d, v| put(&mut d.grpc.1, address(v)?)),
    ("replication.enabled", |d, v| put(&mut d.replication, Some(boolean(v)?))),
    ("replication.peer_timeout", |_, v| fixed(duration(v)? == GoDuration::s(5), FOLLOWED)),
    ("replication.retry_interval", |_, v| fixed(duration(v)? == GoDuration::s(1), FOLLOWED)),
    ("replication.max_retries", |_, v| fixed(between(v, 0, u64::MAX)? == 3, "replication never gives up")),
    ("snapshot.enabled", |d, v| put(&mut d.snapshots.0, Some(boolean(v)?))),
    ("snapshot.interval", |d, v| put(&mut d.snapshots.1, Some(positive(v)?))),
    ("snapshot.retention_count", |d, v| put(&mut d.out.snapshots_kept, between(v, 1, 1000)? as u32)),
    ("snapshot.compression", |d, v| put(&mut d.out.snapshot_compression, boolean(v)?)),
    ("logging.level", |d, v| match &text(v)?.to_ascii_lowercase()[..] {
        "debug" => put(&mut d.out.log_debug, true),
        "info" => put(&mut d.out.log_debug, false),
        "warn" | "error" => {
            Err("what is not all right is always written, together with what is: use debug or info".into())
        }
        other => Err(format!("`{other}` is not known: use debug or info")),
    }),
    ("logging.format", |d, v| match &text(v)?.to_ascii_lowercase()[..] {
        "json" => put(&mut d.out.log_format, LogFormat::Json),
        "text" => put(&mut d.out.log_format, LogFormat::Text),
        other => Err(format!("`{other}` is not known: use json or text")),
    }),
    ("logging.output", |d, v| match &text(v)?[..] {
        "" | "stdout" => put(&mut d.out.log_file, None),
        "stderr" => Err("the log goes to standard output or to a file".into()),
        file => put(&mut d.out.log_file, Some(file.into())),
    }),
    ("logging.max_size", |_, v| fixed(between(v, 0, u64::MAX)? == 100, ROTATED)),
    ("logging.max_backups", |_, v| fixed(between(v, 0, u64::MAX)? == 3, ROTATED)),
    ("logging.max_age", |_, v| fixed(between(v, 0, u64::MAX)? == 28, ROTATED)),
    ("security.tls_enabled", |d, v| put(&mut d.tls, boolean(v)?)),
    ("security.cert_file", |d, v| put(&mut d.cert, path(v)?)),
    ("security.key_file", |d, v| put(&mut d.key, path(v)?)),
    ("security.ca_file", |d, v| put(&mut d.out.client_ca, path(v)?)),
];

const FOLLOWED: &str = "replication goes at the pace of heartbeats and answers: nothing to be set";
const ROTATED: &str = "a log file is opened anew at SIGHUP: let logrotate cut it";

fn put<T>(place: &mut T, value: T) -> Result<(), String> {
    *place = value;
    Ok(())
}

fn fixed(is_default: bool, why: &str) -> Result<(), String> {
    if is_default { Ok(()) } else { Err(format!("{why}; leave the key at its default")) }
}

fn some(v: &Value) -> Result<Option<String>, String> {
    Ok(Some(text(v)?).filter(|t| !t.is_empty()))
}

fn path(v: &Value) -> Result<Option<PathBuf>, String> {
    Ok(some(v)?.map(PathBuf::from))
}

fn address(v: &Value) -> Result<Option<BindAddr>, String> {
    some(v)?.map(|t| BindAddr::parse(&t)).transpose()
}

fn between(v: &Value, least: u64, most: u64) -> Result<u64, String> {
    let n = match v {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    n.filter(|n| (least..=most).contains(n)).ok_or_else(|| format!("a whole number from {least} to {most} is expected"))
}

fn millis(v: &Value, most: u64) -> Result<Duration, String> {
    between(v, 1, most).map(Duration::from_millis).map_err(|e| format!("{e} (milliseconds)"))
}

fn positive(v: &Value) -> Result<Duration, String> {
    let d = duration(v)?;
    if d > GoDuration::ZERO { Ok(d.std()) } else { Err("it must be more than nothing".into()) }
}

/// As etcd has it: a duration, or a number of hours; nothing, or 0, is no compaction.
fn retention(v: &Value) -> Result<Option<Duration>, String> {
    let hours = match v {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.trim().parse::<u64>().ok(),
        _ => None,
    };
    if let Some(hours) = hours {
        let seconds = hours.checked_mul(3600).ok_or_else(|| format!("{hours} hours are too many"))?;
        return Ok((hours > 0).then(|| Duration::from_secs(seconds)));
    }
    if text(v)?.trim().is_empty() {
        return Ok(None);
    }
    let d = duration(v)?;
    Ok((d > GoDuration::ZERO).then(|| d.std()))
}

/// The value at a path like `api.rest.address`.
fn find<'a>(sections: &'a Mapping, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let mut at = sections.get(parts.next()?)?;
    for part in parts {
        at = at.as_mapping()?.get(part)?;
    }
    Some(at)
}

/// Paths of everything that is said.
fn said(prefix: &str, value: &Value, out: &mut Vec<String>) -> Result<(), String> {
    let inner = |path: &str| KEYS.iter().any(|(k, _)| k.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')));
    match value {
        Value::Mapping(map) => {
            for (k, v) in map {
                let k = k.as_str().ok_or_else(|| format!("`{prefix}`: a key must be a text"))?;
                said(&format!("{prefix}.{k}"), v, out)?;
            }
        }
        // A section with nothing in it.
        Value::Null if inner(prefix) => {}
        _ if inner(prefix) => return Err(format!("`{prefix}`: a map of keys is expected")),
        _ => out.push(prefix.to_owned()),
    }
    Ok(())
}

impl Decube {
    /// What these sections say, with `env` in place of the environment. `sections` holds only those of [`SECTIONS`].
    pub fn parse(sections: &Mapping, env: &dyn Fn(&str) -> Option<String>) -> Result<Decube, String> {
        let mut paths = vec![];
        for (name, section) in sections {
            let name = name.as_str().filter(|n| SECTIONS.contains(n)).ok_or("not a section of DeCube")?;
            said(name, section, &mut paths)?;
        }
        if let Some(unknown) = paths.iter().find(|p| KEYS.iter().all(|(k, _)| k != p)) {
            return Err(format!("`{unknown}`: unknown key"));
        }
        let mut draft = Draft::default();
        for (key, set) in KEYS {
            // A key without a value keeps its default.
            if let Some(value) = find(sections, key).filter(|v| !v.is_null()) {
                set(&mut draft, value).map_err(|e| format!("`{key}`: {e}"))?;
            }
            let name = variable(key);
            if let Some(value) = env(&name) {
                set(&mut draft, &Value::String(value)).map_err(|e| format!("{name}: {e}"))?;
            }
        }
        draft.finish()
    }
}

/// The variable of the environment that overrides a key.
fn variable(key: &str) -> String {
    format!("DECUBE_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The names of all variables of the environment that are looked at.
pub fn variables() -> impl Iterator<Item = String> {
    KEYS.iter().map(|(key, _)| variable(key))
}

/// A listener with DeCube's default address, unless it is switched off or nothing at all is said of it.
fn listener((enabled, address): (Option<bool>, Option<BindAddr>), port: u16) -> Option<BindAddr> {
    match (enabled, address) {
        (Some(false), _) | (None, None) => None,
        (_, Some(address)) => Some(address),
        (Some(true), None) => Some(BindAddr { host: "0.0.0.0".into(), port }),
    }
}

impl Draft {
    fn finish(self) -> Result<Decube, String> {
        let mut out = self.out;
        match (&out.node_id, self.name) {
            (Some(id), Some(name)) if *id != name => {
                return Err(format!("`etcd.name` is {name} and `node.id` is {id}: a node has one name"));
            }
            (None, name) => out.node_id = name,
            _ => {}
        }
        for (key, dir) in [("etcd.data_dir", &self.etcd_dir), ("etcd.wal_dir", &self.wal_dir)] {
            let Some(dir) = dir else { continue };
            if !out.data.as_ref().is_some_and(|data| dir.starts_with(data)) {
                return Err(format!("`{key}`: everything lies in `node.data_dir`: it must be below that"));
            }
        }
        let defaults = ice_core::control::Config::default();
        let (heartbeat, election) = (
            out.heartbeat.unwrap_or(Duration::from_nanos(defaults.heartbeat.0)),
            out.election.unwrap_or(Duration::from_nanos(defaults.election.0)),
        );
        if election < 5 * heartbeat {
            return Err(format!(
                "`etcd.election_timeout` ({election:?}) must be at least five times `etcd.heartbeat_interval` ({heartbeat:?})"
            ));
        }
        if self.replication == Some(false) && !out.peers.is_empty() {
            return Err("`replication.enabled` is false, but there are `node.peer_addresses`: members replicate".into());
        }
        out.rest = listener(self.rest, 8080);
        out.grpc = listener(self.grpc, 9090);
        out.snapshot_every = match self.snapshots {
            (Some(false), _) | (None, None) => None,
            (_, every) => Some(every.unwrap_or(Duration::from_secs(3600))),
        };
        out.tls = match (self.tls, self.cert, self.key) {
            (true, Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (true, ..) => {
                return Err("`security.tls_enabled` needs `security.cert_file` and `security.key_file`".into());
            }
            // Files at hand that are not used, as the original's example has them.
            (false, ..) => None,
        };
        if out.tls.is_none() {
            out.client_ca = None;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str, env: &[(&str, &str)]) -> Result<Decube, String> {
        let sections: Mapping = serde_yaml::from_str(yaml).unwrap();
        Decube::parse(&sections, &|name| env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    /// All of the original's keys, with its defaults.
    const ORIGINAL: &str = r#"
node: {id: node-1, data_dir: /var/lib/decube, listen_address: "0.0.0.0:2379", peer_addresses: ["node-1:2380", "node-2:2380", "node-3:2380"]}
etcd:
  name: node-1
  data_dir: /var/lib/decube/etcd
  wal_dir: /var/lib/decube/etcd/wal
  snapshot_count: 10000
  heartbeat_interval: 100
  election_timeout: 1000
  max_snapshots: 5
  max_wals: 5
  auto_compaction_retention: "1h"
  quota_backend_bytes: 4294967296
api:
  rest: {enabled: true, address: "0.0.0.0:8080", cors_origins: ["*"]}
  grpc: {enabled: true, address: "0.0.0.0:9090"}
replication: {enabled: true, peer_timeout: 5s, retry_interval: 1s, max_retries: 3}
snapshot: {enabled: true, interval: 1h, retention_count: 10, compression: true}
logging: {level: info, format: json, output: stdout, max_size: 100, max_backups: 3, max_age: 28}
security: {tls_enabled: false, cert_file: "", key_file: "", ca_file: ""}
"#;

    fn at(host: &str, port: u16) -> Option<BindAddr> {
        Some(BindAddr { host: host.into(), port })
    }

    #[test]
    fn the_originals_file_is_accepted_as_it_stands() {
        let d = parse(ORIGINAL, &[]).unwrap();
        assert_eq!(d.node_id.as_deref(), Some("node-1"));
        assert_eq!((&d.etcd, &d.rest, &d.grpc), (&at("0.0.0.0", 2379), &at("0.0.0.0", 8080), &at("0.0.0.0", 9090)));
        assert_eq!(d.peers.len(), 3);
        assert_eq!((d.history, d.quota_bytes), (Some(Duration::from_secs(3600)), 4 << 30));
        assert_eq!((d.snapshot_every, d.snapshots_kept), (Some(Duration::from_secs(3600)), 10));
        assert_eq!((d.log_format, d.log_file, d.tls), (LogFormat::Json, None, None));
        // Every key is in that file: none is known that the original does not have.
        let sections: Mapping = serde_yaml::from_str(ORIGINAL).unwrap();
        for (key, _) in KEYS {
            assert!(find(&sections, key).is_some(), "{key}");
        }
    }

    #[test]
    fn nothing_listens_unless_it_is_asked_to() {
        let d = parse("{}", &[]).unwrap();
        assert_eq!(d, Decube::default());
        assert_eq!((d.etcd, d.rest, d.grpc, d.snapshot_every), (None, None, None, None));
        let d = parse("api: {rest: {enabled: true}, grpc: {enabled: false, address: \":9090\"}}", &[]).unwrap();
        assert_eq!((d.rest, d.grpc), (at("0.0.0.0", 8080), None));
        assert!(parse("api:\nnode:\n", &[]).is_ok());
    }

    #[test]
    fn the_environment_has_the_last_word() {
        let env = [
            ("DECUBE_NODE_ID", "n7"),
            ("DECUBE_ETCD_NAME", "n7"),
            ("DECUBE_API_REST_ADDRESS", "127.0.0.1:1"),
            ("DECUBE_NODE_LISTEN_ADDRESS", "127.0.0.1:2"),
            ("DECUBE_NODE_PEER_ADDRESSES", "a:1, b:2"),
            ("DECUBE_API_GRPC_ENABLED", "false"),
            ("DECUBE_ETCD_ELECTION_TIMEOUT", "2000"),
            ("DECUBE_SNAPSHOT_INTERVAL", "5m"),
        ];
        let d = parse(ORIGINAL, &env).unwrap();
        assert_eq!((&d.node_id.unwrap()[..], d.peers), ("n7", vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert_eq!((d.rest, d.etcd, d.grpc), (at("127.0.0.1", 1), at("127.0.0.1", 2), None));
        assert_eq!((d.election, d.snapshot_every), (Some(Duration::from_secs(2)), Some(Duration::from_secs(300))));
        let bad = parse("{}", &[("DECUBE_ETCD_ELECTION_TIMEOUT", "soon")]).unwrap_err();
        assert!(bad.starts_with("DECUBE_ETCD_ELECTION_TIMEOUT: "), "{bad}");
    }

    #[test]
    fn what_does_not_work_is_refused_with_a_reason() {
        for (yaml, words) in [
            ("node: {port: 1}", "`node.port`: unknown key"),
            ("node: 7", "`node`: a map of keys is expected"),
            ("api: {rest: [1]}", "`api.rest`: a map of keys is expected"),
            ("api: {rest: {address: 8080}}", "`api.rest.address`: "),
            ("etcd: {name: a}\nnode: {id: b}", "a node has one name"),
            ("etcd: {wal_dir: /fast}", "`etcd.wal_dir`: everything lies in `node.data_dir`"),
            ("etcd: {max_wals: 6}", "the log keeps what it needs"),
            ("etcd: {snapshot_count: 5}", "each checkpoint of the node cuts the log"),
            ("etcd: {heartbeat_interval: 300}", "at least five times"),
            ("etcd: {election_timeout: 0}", "a whole number from 1 to 50000"),
            ("etcd: {auto_compaction_retention: often}", "`etcd.auto_compaction_retention`: "),
            ("replication: {max_retries: 9}", "replication never gives up"),
            ("replication: {enabled: false}\nnode: {peer_addresses: a:1}", "members replicate"),
            ("snapshot: {interval: 0}", "`snapshot.interval`: it must be more than nothing"),
            ("logging: {level: error}", "use debug or info"),
            ("logging: {max_size: 5}", "logrotate"),
            ("security: {tls_enabled: true}", "needs `security.cert_file` and `security.key_file`"),
        ] {
            let refused = parse(yaml, &[]).unwrap_err();
            assert!(refused.contains(words), "{yaml}: {refused}");
        }
        let tls = "security: {tls_enabled: true, cert_file: /c, key_file: /k, ca_file: /ca}";
        let d = parse(tls, &[]).unwrap();
        assert!(d.tls.is_some() && d.client_ca.is_some());
    }

    #[test]
    fn history_is_kept_for_a_time_as_etcd_writes_it() {
        for (text, want) in
            [("\"8\"", Some(8 * 3600)), ("2", Some(7200)), ("30m", Some(1800)), ("0", None), ("\"\"", None)]
        {
            let d = parse(&format!("etcd: {{auto_compaction_retention: {text}}}"), &[]).unwrap();
            assert_eq!(d.history, want.map(Duration::from_secs), "{text}");
        }
    }
}
