//! The table of keys.

use super::decube::Decube;
use super::{
    BindAddr, Config, HTTP_CONNECTIONS_MIN, PAYLOAD_MEMORY_MAX_BYTES, PAYLOAD_MEMORY_MIN_BYTES, RuntimeKind, Secret,
    TRACE_RING_MAX_BYTES, TRACE_RING_MIN_BYTES, TlsFiles, merge,
};
use crate::duration::GoDuration;
use ice_core::event::Ack;
use ice_core::limits;
use serde_yaml::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Limits of `keepalive`.
const KEEPALIVE_MIN: GoDuration = GoDuration::ms(100);
const KEEPALIVE_MAX: GoDuration = GoDuration::s(3600);
/// Longest `lock_timeout`.
const LOCK_TIMEOUT_MAX: GoDuration = GoDuration::s(3600);
/// Limits of `lock_retry`.
const LOCK_RETRY_MIN: GoDuration = GoDuration::ms(10);
const LOCK_RETRY_MAX: GoDuration = GoDuration::s(60);
/// Limits of `autopilot_dead_after`.
const DEAD_AFTER_MIN: GoDuration = GoDuration::s(1);
const DEAD_AFTER_MAX: GoDuration = GoDuration::s(7 * 24 * 3600);

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct KeyInfo {
    /// As in the file; in the environment in capitals behind `ICECLUSTER_`.
    pub name: &'static str,
    /// Its default, as one would write it.
    pub default: &'static str,
    set: fn(&mut Draft, &Value) -> Result<(), String>,
}

/// All keys, in the order in which the example file explains them.
pub fn known_keys() -> &'static [KeyInfo] {
    KEYS
}

macro_rules! keys {
    ($($name:literal, $default:literal, $set:expr;)*) => {
        &[$(KeyInfo { name: $name, default: $default, set: $set }),*]
    };
}

const KEYS: &[KeyInfo] = keys! {
    "node_id", "", |d, v| put(&mut d.config.node_id, name(v)?);
    "bind", ":9000", |d, v| put(&mut d.config.bind, BindAddr::parse(&text(v)?)?);
    "join", "", |d, v| put(&mut d.config.join, list(v)?);
    "advertise", "", |d, v| put(&mut d.config.advertise, list(v)?);
    "data", "/var/lib/icecluster", |d, v| put(&mut d.config.data, path(v)?.ok_or("it must not be empty")?);
    "backing", "/opt/icewarp/config-local", |d, v| put(&mut d.config.backing, path(v)?.ok_or("it must not be empty")?);
    "mount", "/opt/icewarp/config", |d, v| put(&mut d.config.mount, path(v)?);
    "keepalive", "1m", |d, v| put(&mut d.config.keepalive, within(KEEPALIVE_MIN, KEEPALIVE_MAX, positive(v, GoDuration::s(60))?)?.std());
    "keepalive_failures", "1", |d, v| put(&mut d.config.keepalive_failures, match count(v, 1_000)? {
        0 => Config::default().keepalive_failures,
        n => n,
    });
    "clock_skew_max", "1s", |d, v| put(&mut d.config.clock_skew_max, positive(v, GoDuration::s(1))?.std());
    "sync_mode", "latest", |_, v| only(v, "latest", &["force"], "joining by force");
    "consistency_interval", "0", |d, v| {
        let every = not_negative(v)?;
        put(&mut d.config.scan_interval, (every > GoDuration::ZERO).then(|| every.std()))
    };
    "consistency_mode", "report", |_, v| only(v, "report", &["latest", "force"], "repair by the scan (replicas converge without it)");
    "ack", "auto", |d, v| put(&mut d.config.ack, ack(v)?);
    "close_ack", "local", |d, v| put(&mut d.config.close_ack, ack(v)?);
    "ack_timeout", "10s", |d, v| put(&mut d.config.ack_timeout, positive(v, GoDuration::s(10))?.std());
    "lock_timeout", "5s", |d, v| put(&mut d.config.lock_timeout, within(GoDuration::ZERO, LOCK_TIMEOUT_MAX, not_negative(v)?)?.std());
    "lock_retry", "300ms", |d, v| put(&mut d.config.lock_retry, within(LOCK_RETRY_MIN, LOCK_RETRY_MAX, positive(v, GoDuration::ms(300))?)?.std());
    "lock_on_write", "false", |d, v| put(&mut d.config.lock_on_write, boolean(v)?);
    "allow_delete_while_locked", "false", |d, v| put(&mut d.config.delete_while_locked, boolean(v)?);
    "log_file", "", |d, v| put(&mut d.config.log_file, path(v)?);
    "log_verbose", "false", |d, v| put(&mut d.config.log_verbose, boolean(v)?);
    "ready_require_sync", "true", |d, v| put(&mut d.config.ready_require_sync, boolean(v)?);
    "ready_require_peer", "false", |d, v| put(&mut d.config.ready_require_peer, boolean(v)?);
    "api_token", "", |d, v| put(&mut d.config.api_token, token(v)?);
    "tls_cert", "", |d, v| put(&mut d.tls_cert, path(v)?);
    "tls_key", "", |d, v| put(&mut d.tls_key, path(v)?);
    "cacert", "", |d, v| put(&mut d.config.cacert, path(v)?);
    "jwt_key", "", |d, v| put(&mut d.config.jwt_key, path(v)?);
    "jwt_issuer", "", |d, v| put(&mut d.config.jwt_issuer, some(v)?);
    "jwt_audience", "", |d, v| put(&mut d.config.jwt_audience, some(v)?);
    "autopilot_dead_after", "5m", |d, v| put(&mut d.config.autopilot_dead_after, within(DEAD_AFTER_MIN, DEAD_AFTER_MAX, positive(v, GoDuration::s(300))?)?.std());
    "hooks_dir", "", |_, v| unbuilt(text(v)?.is_empty(), "hooks");
    "hooks_timeout", "2s", |_, v| unbuilt(duration(v)? == GoDuration::s(2), "hooks");
    "hooks_log_file", "", |_, v| unbuilt(text(v)?.is_empty(), "hooks");
    "runtime", "tokio", |d, v| put(&mut d.config.runtime, match choice(v)?.as_str() {
        "tokio" => RuntimeKind::Tokio,
        "smol" => RuntimeKind::Smol,
        other => return Err(format!("`{other}` is no runtime: use tokio or smol")),
    });
    "fuse_threads", "0", |d, v| put(&mut d.config.fuse_threads, count(v, 64)? as usize);
    "mount_over", "true", |d, v| put(&mut d.config.mount_over, boolean(v)?);
    "fuse_passthrough", "auto", |d, v| put(&mut d.config.fuse_passthrough, match choice(v)?.as_str() {
        "auto" => true,
        "off" => false,
        other => return Err(format!("`{other}` is not known: use auto or off")),
    });
    "http_connections", "1024", |d, v| put(&mut d.config.http_connections, at_least(HTTP_CONNECTIONS_MIN, count(v, 65_536)?)? as usize);
    "payload_memory", "256MiB", |d, v| put(&mut d.config.payload_memory, payloads(v)?);
    "trace", "", |d, v| put(&mut d.config.trace, path(v)?);
    "trace_ring", "16MiB", |d, v| put(&mut d.config.trace_ring, ring(v)?);
};

/// A configuration that is being put together.
#[derive(Default)]
pub(super) struct Draft {
    config: Config,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    /// Keys with a value of their own.
    said: BTreeSet<&'static str>,
}

impl Draft {
    /// Sets a key. A key without a value keeps its default.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let known = KEYS.iter().find(|k| k.name == key).ok_or("unknown key")?;
        if value.is_null() {
            return Ok(());
        }
        (known.set)(self, value)?;
        if value.as_str() == Some("") {
            self.said.remove(known.name);
        } else {
            self.said.insert(known.name);
        }
        Ok(())
    }

    /// The whole, with what DeCube's sections say.
    pub fn finish(self, decube: Decube) -> Result<Config, String> {
        let mut config = self.config;
        config.tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => return Err("`tls_cert` is set, but `tls_key` is not: HTTPS needs both".into()),
            (None, Some(_)) => return Err("`tls_key` is set, but `tls_cert` is not: HTTPS needs both".into()),
        };
        merge::merged(config, decube, &|key| self.said.contains(key))
    }
}

fn put<T>(place: &mut T, value: T) -> Result<(), String> {
    *place = value;
    Ok(())
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a map",
        Value::Tagged(_) => "a tagged value",
    }
}

pub(super) fn text(v: &Value) -> Result<String, String> {
    match v {
        Value::String(s) if s.contains('\0') => Err("it must not contain NUL".into()),
        Value::String(s) => Ok(s.clone()),
        Value::Number(_) | Value::Bool(_) => Err(format!("a text is expected, not {}: put it in quotes", kind(v))),
        other => Err(format!("a text is expected, not {}", kind(other))),
    }
}

fn choice(v: &Value) -> Result<String, String> {
    Ok(text(v)?.trim().to_ascii_lowercase())
}

fn path(v: &Value) -> Result<Option<PathBuf>, String> {
    let t = text(v)?;
    Ok((!t.is_empty()).then(|| PathBuf::from(t)))
}

/// Texts, as a list or separated by commas.
pub(super) fn list(v: &Value) -> Result<Vec<String>, String> {
    let parts = match v {
        Value::Sequence(items) => items.iter().map(text).collect::<Result<Vec<_>, _>>()?,
        other => text(other)?.split(',').map(str::to_owned).collect(),
    };
    let parts: Vec<String> = parts.iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect();
    if parts.len() > limits::MEMBERS_MAX {
        return Err(format!("{} addresses are too many: at most {}", parts.len(), limits::MEMBERS_MAX));
    }
    Ok(parts)
}

fn some(v: &Value) -> Result<Option<String>, String> {
    Ok(Some(text(v)?).filter(|t| !t.is_empty()))
}

fn name(v: &Value) -> Result<String, String> {
    let t = text(v)?;
    if t.is_empty() { Ok(Config::default().node_id) } else { node_name(&t) }
}

/// A name that a node can have.
pub(super) fn node_name(t: &str) -> Result<String, String> {
    if t.len() > limits::NODE_NAME_MAX_BYTES {
        return Err(format!("it has {} bytes: at most {}", t.len(), limits::NODE_NAME_MAX_BYTES));
    }
    if t.chars().any(char::is_control) || t.trim() != t {
        return Err("it must not contain control characters, nor begin or end with a space".into());
    }
    Ok(t.to_owned())
}

fn token(v: &Value) -> Result<Secret, String> {
    let t = text(v)?;
    // It travels in a header.
    if t.bytes().any(|b| !(0x21..=0x7e).contains(&b)) {
        return Err("it may only contain visible ASCII characters, without spaces".into());
    }
    Ok(Secret::new(t))
}

pub(super) fn duration(v: &Value) -> Result<GoDuration, String> {
    match v {
        Value::String(s) => s.parse().map_err(|e: crate::duration::DurationError| e.to_string()),
        Value::Number(n) if n.as_i64() == Some(0) => Ok(GoDuration::ZERO),
        Value::Number(n) => Err(format!("missing unit in duration `{n}`: write it like 300ms, 1m30s or 2h")),
        other => Err(format!("a duration like 1m30s is expected, not {}", kind(other))),
    }
}

fn not_negative(v: &Value) -> Result<GoDuration, String> {
    let d = duration(v)?;
    if d < GoDuration::ZERO { Err("a length of time must not be negative".into()) } else { Ok(d) }
}

/// Zero means the default, as the original has it.
fn positive(v: &Value, default: GoDuration) -> Result<GoDuration, String> {
    let d = not_negative(v)?;
    Ok(if d > GoDuration::ZERO { d } else { default })
}

fn within(least: GoDuration, most: GoDuration, d: GoDuration) -> Result<GoDuration, String> {
    if d < least {
        Err(format!("{d} is too short: at least {least}"))
    } else if d > most {
        Err(format!("{d} is too long: at most {most}"))
    } else {
        Ok(d)
    }
}

pub(super) fn boolean(v: &Value) -> Result<bool, String> {
    match v {
        Value::Bool(b) => Ok(*b),
        Value::String(s) => match s.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" | "" => Ok(false),
            _ => Err(format!("true or false is expected, not `{s}`")),
        },
        other => Err(format!("true or false is expected, not {}", kind(other))),
    }
}

/// A whole number from 0 to `max`.
fn count(v: &Value, max: u32) -> Result<u32, String> {
    let n: i64 = match v {
        Value::Number(n) => n.as_i64().ok_or_else(|| format!("a whole number up to {max} is expected, not {n}"))?,
        Value::String(s) => s.trim().parse().map_err(|_| format!("a whole number is expected, not `{s}`"))?,
        other => return Err(format!("a whole number is expected, not {}", kind(other))),
    };
    if n < 0 {
        return Err(format!("{n} is negative: 0 to {max} are possible"));
    }
    u32::try_from(n).ok().filter(|n| *n <= max).ok_or_else(|| format!("{n} is too much: at most {max}"))
}

/// Bytes: `64KiB`, `16MiB`, `1GiB`, a bare number, or 0.
fn bytes(v: &Value) -> Result<u64, String> {
    let text = match v {
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.trim().to_owned(),
        other => return Err(format!("a size like 16MiB is expected, not {}", kind(other))),
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1u64 << 30,
        other => return Err(format!("`{other}` is no unit of size: use KiB, MiB or GiB")),
    };
    let n: u64 = digits.parse().map_err(|_| format!("a size like 16MiB is expected, not `{text}`"))?;
    n.checked_mul(unit).ok_or_else(|| format!("{text} is too much"))
}

fn ring(v: &Value) -> Result<usize, String> {
    let n = bytes(v)?;
    let (least, most) = (TRACE_RING_MIN_BYTES as u64, TRACE_RING_MAX_BYTES as u64);
    if n != 0 && !(least..=most).contains(&n) {
        return Err(format!("{n} bytes: at least {} MiB, at most {} MiB, or 0 for none", least >> 20, most >> 20));
    }
    Ok(n as usize)
}

fn at_least(least: u32, n: u32) -> Result<u32, String> {
    if n >= least { Ok(n) } else { Err(format!("{n} is too little: at least {least}")) }
}

fn payloads(v: &Value) -> Result<usize, String> {
    let n = bytes(v)?;
    let (least, most) = (PAYLOAD_MEMORY_MIN_BYTES, PAYLOAD_MEMORY_MAX_BYTES);
    if !(least..=most).contains(&n) {
        return Err(format!("{n} bytes: at least {} MiB, at most {} MiB", least >> 20, most >> 20));
    }
    usize::try_from(n).map_err(|_| format!("{n} bytes are more than this machine can address"))
}

fn ack(v: &Value) -> Result<Ack, String> {
    Ok(match choice(v)?.as_str() {
        "auto" => Ack::Auto,
        "local" => Ack::Local,
        "one" => Ack::One,
        "quorum" => Ack::Quorum,
        "all" => Ack::All,
        other => return Err(format!("`{other}` is no policy: use auto, local, one, quorum or all")),
    })
}

fn unbuilt(is_default: bool, what: &str) -> Result<(), String> {
    if is_default {
        Ok(())
    } else {
        Err(format!("this version does not have {what} yet: leave the key at its default"))
    }
}

/// A key with a single value that works so far.
fn only(v: &Value, works: &str, later: &[&str], what: &str) -> Result<(), String> {
    let v = choice(v)?;
    if v == works {
        Ok(())
    } else if later.contains(&v.as_str()) {
        Err(format!("this version does not have {what}: only `{works}` can be used"))
    } else {
        Err(format!("`{v}` is not known: use {works}"))
    }
}
