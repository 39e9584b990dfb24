//! Configuration: defaults, then the YAML file, then `ICECLUSTER_<KEY>` and DeCube's `DECUBE_<SECTION>_<KEY>` from the
//! environment; checked as a whole.

mod address;
mod check;
pub mod decube;
mod keys;
mod merge;
mod yaml;

pub use address::{BindAddr, normalize_url};
pub use keys::{KeyInfo, known_keys};

use decube::Decube;
use ice_core::event::Ack;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when no other file is named.
pub const DEFAULT_PATH: &str = "/opt/icewarp/icecluster/config.yml";
/// Largest configuration file.
pub const FILE_MAX_BYTES: u64 = 1_000_000;
/// Least `trace_ring` other than 0: a tape needs room for a state of a small tree and for steps.
pub const TRACE_RING_MIN_BYTES: usize = 1 << 20;
/// Largest `trace_ring`.
pub const TRACE_RING_MAX_BYTES: usize = 1 << 30;
/// Least `http_connections`: fewer leave no room for peers beside a browser or two.
pub const HTTP_CONNECTIONS_MIN: u32 = 16;
/// Least `payload_memory`: what is in flight to and from several peers at once must fit.
pub const PAYLOAD_MEMORY_MIN_BYTES: u64 = 64 << 20;
/// Largest `payload_memory`.
pub const PAYLOAD_MEMORY_MAX_BYTES: u64 = 64 << 30;
/// The port of a peer that is named without scheme and port.
pub const DEFAULT_PORT: u16 = 9000;

/// A text that is not shown in logs and messages.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(secret)" })
    }
}

/// Which async runtime carries the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RuntimeKind {
    /// tokio.
    #[default]
    Tokio,
    /// smol.
    Smol,
}

/// How a line of the log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object on each line.
    Json,
}

/// Files that turn the listener into an HTTPS one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// A checked configuration. `configs/icecluster.example.yaml` explains each key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Name of this node; the host's name by default. 1 to 255 bytes.
    pub node_id: String,
    /// Where to listen.
    pub bind: BindAddr,
    /// Base URLs of other nodes to join, normalised.
    pub join: Vec<String>,
    /// Base URLs told to peers, normalised; empty: see [`Config::advertised`].
    pub advertise: Vec<String>,
    /// The replica's own state: identity, log, tree.
    pub data: PathBuf,
    /// The plain directory that is mirrored.
    pub backing: PathBuf,
    /// Where to mount it; `None`: nowhere.
    pub mount: Option<PathBuf>,
    /// A peer that is silent for `keepalive_failures` times as long is declared down.
    pub keepalive: Duration,
    /// See `keepalive`; at least 1.
    pub keepalive_failures: u32,
    /// How far clocks may differ.
    pub clock_skew_max: Duration,
    /// Time between scans of `backing` for direct edits; `None`: only at the start.
    pub scan_interval: Option<Duration>,
    /// Where to write the log; `None`: standard output.
    pub log_file: Option<PathBuf>,
    /// More of it.
    pub log_verbose: bool,
    /// Not ready before this node has caught up with a peer.
    pub ready_require_sync: bool,
    /// Not ready without a peer.
    pub ready_require_peer: bool,
    /// Bearer token of the API and of peers; empty: none.
    pub api_token: Secret,
    /// HTTPS.
    pub tls: Option<TlsFiles>,
    /// Certificates (PEM) that are trusted for peers, in place of the system's.
    pub cacert: Option<PathBuf>,
    /// How many nodes must hold a change durably before `fsync` returns.
    pub ack: Ack,
    /// The same for `close`.
    pub close_ack: Ack,
    /// How long `fsync` and `close` wait for it before they fail.
    pub ack_timeout: Duration,
    /// Which async runtime carries the node.
    pub runtime: RuntimeKind,
    /// HTTP connections at once, those of peers' operations not counted.
    pub http_connections: usize,
    /// Bytes of small contents that are in flight, or kept for peers that lag.
    pub payload_memory: usize,
    /// Where to record everything that goes into the core; `None`: nowhere.
    pub trace: Option<PathBuf>,
    /// Bytes of memory for the recording of the last steps; 0: none.
    pub trace_ring: usize,
    /// Threads that serve the mount; 0: as many as processors, 2 to 8.
    pub fuse_threads: usize,
    /// Mount over a directory that is not empty.
    pub mount_over: bool,
    /// Let the kernel read and map backing files by itself where it can (`auto`), or never (`off`).
    pub fuse_passthrough: bool,
    /// How long to wait for a lock, and for a majority to be reached.
    pub lock_timeout: Duration,
    /// Between two attempts to reach one.
    pub lock_retry: Duration,
    /// A file has one writer at a time, in the whole cluster.
    pub lock_on_write: bool,
    /// A path may be deleted although somebody has a lock on it.
    pub delete_while_locked: bool,
    /// What bearer tokens of DeCube's listeners are signed with: a file with an Ed25519 public key (PEM), or with a shared secret.
    pub jwt_key: Option<PathBuf>,
    /// What such a token must name as its issuer.
    pub jwt_issuer: Option<String>,
    /// What it must name among its audience.
    pub jwt_audience: Option<String>,
    /// A voter of the control plane that is away for longer is replaced.
    pub autopilot_dead_after: Duration,
    /// What DeCube's sections say of the control plane. What has a key of its own has been moved there.
    pub decube: Decube,
    /// Not a key, since it is meant for one start: the control plane's quorum is lost for good, and this replica goes on alone, as
    /// another cluster.
    pub force_new_cluster: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node_id: address::host_name().unwrap_or_else(|| "node".into()),
            bind: BindAddr { host: String::new(), port: DEFAULT_PORT },
            join: vec![],
            advertise: vec![],
            data: "/var/lib/icecluster".into(),
            backing: "/opt/icewarp/config-local".into(),
            mount: Some("/opt/icewarp/config".into()),
            keepalive: Duration::from_secs(60),
            keepalive_failures: 1,
            clock_skew_max: Duration::from_secs(1),
            scan_interval: None,
            log_file: None,
            log_verbose: false,
            ready_require_sync: true,
            ready_require_peer: false,
            api_token: Secret::default(),
            tls: None,
            cacert: None,
            ack: Ack::Auto,
            close_ack: Ack::Local,
            ack_timeout: Duration::from_secs(10),
            runtime: RuntimeKind::Tokio,
            http_connections: 1024,
            payload_memory: 256 << 20,
            trace: None,
            trace_ring: 16 << 20,
            fuse_threads: 0,
            mount_over: true,
            fuse_passthrough: true,
            lock_timeout: Duration::from_secs(5),
            lock_retry: Duration::from_millis(300),
            lock_on_write: false,
            delete_while_locked: false,
            jwt_key: None,
            jwt_issuer: None,
            jwt_audience: None,
            autopilot_dead_after: Duration::from_secs(300),
            decube: Decube::default(),
            force_new_cluster: false,
        }
    }
}

/// Variables of the environment that look like settings and are none, each with what may be meant: a slip there would otherwise
/// stay unnoticed for ever. Those that Kubernetes sets for a service of this name, and those of the programs themselves, are known.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    const OTHERS: [&str; 6] = ["LOG", "PARENT", "BASE", "TOKEN", "TOKEN_FILE", "CACERT"];
    let strange = names.filter_map(|name| {
        let shown: String = name.chars().take(80).filter(|c| !c.is_control()).collect();
        let service = |key: &str| {
            key.ends_with("SERVICE_HOST") || key.contains("SERVICE_PORT") || key.split('_').any(|p| p == "PORT")
        };
        if let Some(key) = name.strip_prefix("DECUBE_") {
            let known = service(key) || decube::variables().any(|v| v == name);
            return (!known).then(|| format!("{shown} is no setting and is ignored"));
        }
        let key = name.strip_prefix("ICECLUSTER_")?;
        let known = known_keys().iter().any(|k| k.name.to_ascii_uppercase() == key);
        if known || service(key) || OTHERS.contains(&key) {
            return None;
        }
        let nearest = yaml::nearest(key)?;
        Some(format!(
            "{shown} is no setting and is ignored; the nearest is ICECLUSTER_{}",
            nearest.to_ascii_uppercase()
        ))
    });
    strange.collect()
}

/// Why there is no configuration. One line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("{}: there is no such file", .0.display())]
    NotFound(PathBuf),
    /// It cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// It says something that cannot be.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file, or `the environment`.
        origin: String,
        /// In words.
        message: String,
    },
}

impl Config {
    /// Reads a file, applies `ICECLUSTER_<KEY>` and `DECUBE_<SECTION>_<KEY>` from the environment, and checks the whole. With an empty path there is no file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = if path.as_os_str().is_empty() { String::new() } else { read(path)? };
        let origin = if path.as_os_str().is_empty() { "configuration".into() } else { path.display().to_string() };
        Config::from_text(&text, &origin, &|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    /// The same from a text, with `env` in place of the environment. `origin` begins the error messages.
    pub fn from_text(text: &str, origin: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let invalid = |origin: &str, message: String| ConfigError::Invalid {
            origin: origin.into(),
            message: message.replace(['\n', '\r'], " "),
        };
        let mut draft = keys::Draft::default();
        let mut sections = serde_yaml::Mapping::new();
        for (key, value) in yaml::pairs(text).map_err(|m| invalid(origin, m))? {
            if decube::SECTIONS.contains(&key.as_str()) {
                sections.insert(key.into(), value);
                continue;
            }
            draft.set(&key, &value).map_err(|m| {
                let line = yaml::line_of(text, &key).map_or(String::new(), |l| format!(" at line {l}"));
                invalid(origin, format!("`{key}`{line}: {m}"))
            })?;
        }
        for key in known_keys() {
            let name = format!("ICECLUSTER_{}", key.name.to_ascii_uppercase());
            if let Some(value) = env(&name) {
                let value = serde_yaml::Value::String(value);
                draft.set(key.name, &value).map_err(|m| invalid("the environment", format!("{name}: {m}")))?;
            }
        }
        let decube = Decube::parse(&sections, env).map_err(|m| {
            // The environment's variables name themselves.
            invalid(if m.starts_with("DECUBE_") { "the environment" } else { origin }, m)
        })?;
        let config = draft.finish(decube).and_then(check::checked).map_err(|m| invalid(origin, m))?;
        Ok(config)
    }

    /// How long a peer may be silent before it is declared down.
    pub fn silence(&self) -> Duration {
        self.keepalive.saturating_mul(self.keepalive_failures.max(1))
    }

    /// Base URLs to tell to peers, best first, when the listener is bound to `port`: `advertise` if it is set, else derived from
    /// `bind`. A wildcard address becomes the host's name, and `localhost` is never told to others unless `bind` is a loopback
    /// address.
    pub fn advertised(&self, port: u16) -> Result<Vec<String>, ConfigError> {
        address::advertised(self, port)
            .map_err(|message| ConfigError::Invalid { origin: "configuration".into(), message })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let io = |source| ConfigError::Io { path: path.into(), source };
    let invalid = |message: String| ConfigError::Invalid { origin: path.display().to_string(), message };
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ConfigError::NotFound(path.into()),
        _ => io(e),
    })?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(invalid(format!("it is larger than {FILE_MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|e| invalid(format!("it is not UTF-8 text (byte {})", e.utf8_error().valid_up_to())))
}
