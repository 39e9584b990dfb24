//! Commands about locks.

use super::client::{Response, Upload};
use super::show::printable;
use super::{QUERY, Session, with_path};
use crate::args;
use anyhow::Result;
use http::Method;
use ice_host::duration::GoDuration;
use ice_host::time::parse_rfc3339;
use percent_encoding::percent_encode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn with_holder(route: &str, path: &OsStr, holder: &OsStr) -> String {
    format!("{}&holder={}", with_path(route, path), percent_encode(holder.as_bytes(), QUERY))
}

fn post(s: &Session<'_>, target: &str) -> Result<Response> {
    s.client.request(Method::POST, &s.base, target, &[], Upload::Nothing)?.ok()
}

/// `lock`
pub fn lock(
    s: &mut Session<'_>,
    path: &OsStr,
    holder: &OsStr,
    wait: Option<Duration>,
    ttl: Option<Duration>,
) -> Result<u8> {
    let mut target = with_holder("/v1/lock", path, holder);
    let mut add = |name: &str, span: Duration| {
        let text = GoDuration::from_std(span).to_string();
        target.push_str(&format!("&{name}={}", percent_encode(text.as_bytes(), QUERY)));
    };
    if let Some(ttl) = ttl {
        add("ttl", ttl);
    }
    if let Some(wait) = wait {
        add("wait", wait);
        if !s.client.timeout.is_zero() {
            // The node waits for others; nothing moves meanwhile.
            s.client.timeout = s.client.timeout.saturating_add(wait);
        }
    }
    let answer = post(s, &target)?;
    if s.json {
        let header = |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok());
        let token: Option<u64> = header("fencing-token").and_then(|t| t.parse().ok());
        let status = answer.status.as_u16();
        writeln!(s.out, "{}", json!({ "status": status, "token": token, "since": header("lock-since") }))?;
    } else {
        writeln!(s.out, "{}", answer.status_line())?;
    }
    Ok(args::OK)
}

/// `unlock`
pub fn unlock(s: &mut Session<'_>, path: &OsStr, holder: &OsStr) -> Result<u8> {
    let answer = post(s, &with_holder("/v1/unlock", path, holder))?;
    if s.json {
        writeln!(s.out, "{}", json!({ "status": answer.status.as_u16() }))?;
    } else {
        writeln!(s.out, "{}", answer.status_line())?;
    }
    Ok(args::OK)
}

#[derive(Deserialize)]
struct Line {
    path: String,
    holder: String,
    since: String,
}

/// `locks`: one line each, path, holder, and how long it has been held.
pub fn locks(s: &mut Session<'_>) -> Result<u8> {
    if s.json {
        let all: Value = s.client.json(&s.base, "/v1/locks")?;
        writeln!(s.out, "{all:#}")?;
        return Ok(args::OK);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    s.client.array(&s.base, "/v1/locks", |line: Line| {
        let since = parse_rfc3339(&line.since).map(Duration::from_millis);
        // The clock of who took it may be ahead.
        let age = since.map(|since| GoDuration::from_std(now.saturating_sub(since)).rounded_to_seconds().to_string());
        let age = age.unwrap_or_else(|| "-".to_owned());
        Ok(writeln!(s.out, "{}\t{}\t{age}", printable(&line.path), printable(&line.holder))?)
    })?;
    Ok(args::OK)
}
