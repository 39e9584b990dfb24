//! `repair`: makes nodes equal where their indexes differ.
//!
//! A change made through one node reaches all of them, so a difference is either news that is still on its way, or damage.
//! Each path is therefore looked at again before it is touched, and a write names the version it replaces: what changed
//! in the meantime is left alone, with a warning.

use super::client::{Base, Refused, Response, Upload};
use super::compare::{self, Copy, Indexes};
use super::{Session, show::printable, usage, with_path};
use crate::args;
use anyhow::{Context, Result};
use http::{Method, StatusCode, header};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Who is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The newest copy of each file. Nothing is deleted.
    Latest,
    /// One node, also about files that it does not have.
    ForceFrom,
}

/// Repairs all differences. Only warnings are printed; exit code 1 if a node could not be asked or a file not repaired.
pub fn repair(s: &mut Session<'_>, mode: Mode, source: Option<&str>) -> Result<u8> {
    let source = match (mode, source) {
        (Mode::ForceFrom, None) => return Err(usage("missing -source")),
        (Mode::ForceFrom, Some(url)) => Some(Base::parse(url).map_err(|e| usage(format!("-source: {e:#}")))?),
        (Mode::Latest, Some(_)) => return Err(usage("-source is for -mode force-from only")),
        (Mode::Latest, None) => None,
    };
    let all = compare::load(s)?;
    let source = match source {
        None => None,
        Some(url) if all.missing.contains(&url) => anyhow::bail!("the source {url} does not answer"),
        Some(url) => match all.peers.iter().position(|p| *p == url) {
            Some(i) => Some(i),
            None => return Err(usage(format!("source {url} is not in the list of peers"))),
        },
    };
    let mut code = if all.missing.is_empty() { args::OK } else { args::FAILED };
    let (mut repaired, mut failed) = (0_u64, 0_u64);
    for (path, copies) in all.differences() {
        match repair_one(s, &all, path, copies, source) {
            Ok(true) => repaired += 1,
            Ok(false) => {}
            Err(error) => {
                eprintln!("warn: {}: {error:#}", printable(&String::from_utf8_lossy(path)));
                failed += 1;
                code = args::FAILED;
            }
        }
    }
    if s.json {
        let unreachable: Vec<String> = all.missing.iter().map(Base::to_string).collect();
        let report = serde_json::json!({ "repaired": repaired, "failed": failed, "unreachable": unreachable });
        writeln!(s.out, "{report:#}")?;
    }
    Ok(code)
}

/// Whether anything had to be done.
fn repair_one(
    s: &Session<'_>,
    all: &Indexes,
    path: &[u8],
    copies: &[Option<Copy>],
    source: Option<usize>,
) -> Result<bool> {
    let newest = || {
        let there = copies.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?)));
        // `max_by_key` takes the last of equals; the first peer is as good and easier to explain.
        there.rev().max_by_key(|(_, c)| c.mtime).map(|(i, _)| i)
    };
    let Some(source) = source.or_else(newest) else { return Ok(false) };
    let mut changed = false;
    for (i, peer) in all.peers.iter().enumerate().filter(|(i, _)| *i != source) {
        let same = match (&copies[source], &copies[i]) {
            (Some(right), Some(other)) => right.same(other),
            (None, None) => true,
            _ => false,
        };
        if same {
            continue;
        }
        let done = if copies[source].is_some() {
            copy_to(s, path, &all.peers[source], peer)
        } else {
            delete_at(s, path, &all.peers[source], peer)
        };
        changed |= done.with_context(|| peer.to_string())?;
    }
    Ok(changed)
}

fn target(path: &[u8]) -> String {
    with_path("/v1/file", OsStr::from_bytes(path))
}

/// What a node has now: nothing, or a version.
fn version(s: &Session<'_>, peer: &Base, path: &[u8]) -> Result<Option<Response>> {
    let answer = s.client.request(Method::HEAD, peer, &target(path), &[], Upload::Nothing)?;
    if answer.status == StatusCode::NOT_FOUND { Ok(None) } else { answer.ok().map(Some) }
}

fn etag(answer: &Response) -> Option<String> {
    Some(answer.headers.get(header::ETAG)?.to_str().ok()?.to_owned())
}

/// Streams the source's file to `peer`, unless that has it by now.
fn copy_to(s: &Session<'_>, path: &[u8], source: &Base, peer: &Base) -> Result<bool> {
    let there = version(s, peer, path)?;
    let body = s.client.get(source, &target(path)).with_context(|| format!("read from {source}"))?;
    let precondition = match &there {
        None => (header::IF_NONE_MATCH, "*".to_owned()),
        Some(answer) => {
            let (old, new) = (etag(answer), etag(&body));
            if old.is_some() && old == new {
                return Ok(false);
            }
            match old {
                Some(tag) => (header::IF_MATCH, tag),
                None => (header::IF_MATCH, "*".to_owned()),
            }
        }
    };
    let sent =
        s.client.request(Method::PUT, peer, &target(path), &[precondition], Upload::Stream(body.into_stream()))?;
    finish(sent)
}

/// Deletes at `peer` what the source does not have, unless one of the two changed its mind.
fn delete_at(s: &Session<'_>, path: &[u8], source: &Base, peer: &Base) -> Result<bool> {
    let Some(there) = version(s, peer, path)? else { return Ok(false) };
    if version(s, source, path)?.is_some() {
        anyhow::bail!("{source} has it now: left alone");
    }
    let precondition = etag(&there).map(|tag| (header::IF_MATCH, tag));
    finish(s.client.request(Method::DELETE, peer, &target(path), precondition.as_slice(), Upload::Nothing)?)
}

fn finish(answer: Response) -> Result<bool> {
    match answer.ok() {
        Ok(_) => Ok(true),
        Err(error) => {
            let refused = error.downcast_ref::<Refused>();
            if refused.is_some_and(|r| r.status == StatusCode::PRECONDITION_FAILED) {
                return Err(error.context("changed meanwhile: left alone"));
            }
            let message = refused.and_then(|r| r.message.clone());
            Err(match message {
                Some(message) => error.context(message),
                None => error,
            })
        }
    }
}
