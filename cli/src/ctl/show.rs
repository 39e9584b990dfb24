//! Commands that ask and print.

use super::Session;
use super::client::{Upload, status_line};
use super::{compare, with_path};
use crate::args;
use anyhow::Result;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// Text from the cluster made fit for one line of a terminal: control characters are escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect())
}

/// `version`
pub fn version(s: &mut Session<'_>) -> Result<u8> {
    let version = ice_host::VERSION;
    if s.json {
        writeln!(s.out, "{}", json!({ "version": version }))?;
    } else {
        writeln!(s.out, "{version}")?;
    }
    Ok(args::OK)
}

/// `peers`
pub fn peers(s: &mut Session<'_>) -> Result<u8> {
    let peers: Value = s.client.json(&s.base, "/v1/peers")?;
    writeln!(s.out, "{peers:#}")?;
    Ok(args::OK)
}

/// `health`: prints the status line whatever it is; the exit code tells whether it is a good one.
pub fn health(s: &mut Session<'_>) -> Result<u8> {
    let status = s.client.request(Method::GET, &s.base, "/health", &[], Upload::Nothing)?.status;
    if s.json {
        writeln!(s.out, "{}", json!({ "status": status.as_u16(), "healthy": status.is_success() }))?;
    } else {
        writeln!(s.out, "{}", status_line(status))?;
    }
    Ok(if status.is_success() { args::OK } else { args::FAILED })
}

#[derive(Deserialize)]
struct PeerStats {
    total: u64,
    #[serde(default)]
    ops: BTreeMap<String, OpStats>,
}

#[derive(Deserialize)]
struct OpStats {
    requests: u64,
    success: u64,
    fail: u64,
    avg_ms: f64,
    last_ms: f64,
}

/// `stats`, and with `-reset-stats` a reset after it.
pub fn stats(s: &mut Session<'_>, reset: bool) -> Result<u8> {
    let all: Value = s.client.json(&s.base, "/v1/stats")?;
    if s.json {
        writeln!(s.out, "{all:#}")?;
    } else {
        for (peer, stats) in BTreeMap::<String, PeerStats>::deserialize(all)? {
            writeln!(s.out, "{} total={}", printable(&peer), stats.total)?;
            for (name, o) in stats.ops {
                writeln!(
                    s.out,
                    "  {:<4} req={} ok={} fail={} avg={:.2}ms last={:.2}ms",
                    printable(&name),
                    o.requests,
                    o.success,
                    o.fail,
                    o.avg_ms,
                    o.last_ms
                )?;
            }
        }
    }
    if reset {
        s.client.request(Method::POST, &s.base, "/v1/stats/reset", &[], Upload::Nothing)?.ok()?;
    }
    Ok(args::OK)
}

/// A field's text, `-` where there is none.
fn text<'a>(value: &'a Value, key: &str) -> Cow<'a, str> {
    match value.get(key) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string().into(),
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Bytes for people: `0 B`, `1.5 MiB`.
fn bytes(n: u64) -> impl std::fmt::Display {
    indicatif::BinaryBytes(n)
}

/// `status`. Exit code 1 if the node gives a reason why its service is not complete.
pub fn status(s: &mut Session<'_>) -> Result<u8> {
    let status: Value = s.client.json(&s.base, "/v1/status")?;
    let reasons = list(&status, "reasons");
    let code = if reasons.is_empty() { args::OK } else { args::FAILED };
    if s.json {
        writeln!(s.out, "{status:#}")?;
        return Ok(code);
    }
    let in_sync = status.get("in_sync").and_then(Value::as_bool);
    let word = match in_sync {
        Some(true) => "in sync",
        Some(false) => "not in sync",
        None => "-",
    };
    writeln!(s.out, "node       {}\t{word}\tversion {}", text(&status, "name"), text(&status, "version"))?;
    let urls: Vec<Cow<'_, str>> = list(&status, "urls").iter().filter_map(Value::as_str).map(printable).collect();
    writeln!(s.out, "urls       {}", urls.join(" "))?;
    writeln!(s.out, "inodes     {}", number(&status, "inodes"))?;
    let (pending, pending_bytes) = (number(&status, "pending"), number(&status, "pending_bytes"));
    writeln!(s.out, "pending    {pending} changes, {}", bytes(pending_bytes))?;
    writeln!(s.out, "conflicts  {}", number(&status, "conflicts"))?;
    if let Some(disk) = status.get("disk").filter(|d| d.is_object()) {
        let (free, total) = (number(disk, "free_bytes"), number(disk, "total_bytes"));
        writeln!(s.out, "disk       {} free of {}", bytes(free), bytes(total))?;
    }
    for reason in reasons.iter().filter_map(Value::as_str) {
        writeln!(s.out, "REASON     {}", printable(reason))?;
    }
    for wait in list(&status, "waits").iter().filter_map(Value::as_str) {
        writeln!(s.out, "waits      {}", printable(wait))?;
    }
    for note in list(&status, "notes").iter().filter_map(Value::as_str) {
        writeln!(s.out, "note       {}", printable(note))?;
    }
    for peer in list(&status, "peers") {
        let urls: Vec<Cow<'_, str>> = list(peer, "urls").iter().filter_map(Value::as_str).map(printable).collect();
        let (ops, behind) = (number(peer, "lag_ops"), number(peer, "lag_bytes"));
        let left = if peer.get("left").and_then(Value::as_bool) == Some(true) { "\tleft" } else { "" };
        let why = text(peer, "why");
        let why = if why.is_empty() || why == "-" { String::new() } else { format!("\t({why})") };
        let version = text(peer, "version");
        let version = if version == "-" { String::new() } else { format!("\tversion {version}") };
        let (name, state) = (text(peer, "name"), text(peer, "state"));
        let (urls, behind) = (urls.join(" "), bytes(behind));
        writeln!(s.out, "peer       {name}\t{state}\tlag {ops} operations, {behind}{left}{version}\t{urls}{why}")?;
    }
    Ok(code)
}

#[derive(Deserialize)]
struct Conflict {
    path: Option<String>,
    original: Option<String>,
    node: String,
    time_ns: i64,
}

/// `conflicts`: one line each: the copy, the file it belongs to, whose version it keeps, and of when.
pub fn conflicts(s: &mut Session<'_>) -> Result<u8> {
    if s.json {
        let all: Value = s.client.json(&s.base, "/v1/conflicts")?;
        writeln!(s.out, "{all:#}")?;
        return Ok(args::OK);
    }
    let mut count = 0_u64;
    s.client.array(&s.base, "/v1/conflicts", |c: Conflict| {
        count += 1;
        let shown = |path: Option<String>| path.map_or("(deleted)".to_owned(), |p| printable(&p).into_owned());
        let (copy, original, node) = (shown(c.path), shown(c.original), printable(&c.node));
        Ok(writeln!(s.out, "{copy}\tof {original}\tfrom {node}\t{}", utc(c.time_ns))?)
    })?;
    if count == 0 {
        writeln!(s.out, "No conflicts.")?;
    }
    Ok(args::OK)
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    kind: String,
    size: u64,
    mtime: i64,
    #[serde(default)]
    raw: Option<String>,
}

/// `ls`, by name.
pub fn ls(s: &mut Session<'_>, path: &OsStr) -> Result<u8> {
    let mut found = BTreeMap::new();
    s.client.array(&s.base, &with_path("/v1/list", path), |entry: Listed| {
        let Listed { name, kind, size, mtime, raw } = entry;
        found.insert(compare::name_bytes(name, raw), (kind, size, mtime));
        Ok(())
    })?;
    let mut json = vec![];
    for (name, (kind, size, mtime)) in found {
        let name = String::from_utf8_lossy(&name);
        if s.json {
            json.push(json!({ "name": name, "kind": kind, "size": size, "mtime": mtime }));
            continue;
        }
        let sign = match kind.as_str() {
            "dir" => "/",
            "link" => "@",
            _ => "",
        };
        writeln!(s.out, "{size:>14}  {}  {}{sign}", utc(mtime), printable(&name))?;
    }
    if s.json {
        writeln!(s.out, "{:#}", Value::Array(json))?;
    }
    Ok(args::OK)
}

/// Nanoseconds since 1970 as `2026-01-31T12:34:56Z`.
pub fn utc(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, sec) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{sec:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_790_000_000_999_999_999), "2026-09-21T14:13:20Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn nothing_from_the_cluster_reaches_the_terminal_unescaped() {
        assert_eq!(printable("žluť a.txt"), "žluť a.txt");
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
    }
}
