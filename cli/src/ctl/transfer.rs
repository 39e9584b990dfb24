//! `get`, `put`, `del`: one file each, streamed.

use super::client::{Upload, status_line};
use super::{Session, with_path};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use smol::io::AsyncReadExt;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

/// Bytes read from standard input at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Writes a file to standard output.
pub fn get(s: &mut Session<'_>, path: &OsStr) -> Result<u8> {
    let mut answer = s.client.get(&s.base, &with_path("/v1/file", path))?;
    // A terminal cannot show both the file and the bar.
    let bar = bar(answer.length(), !io::stdout().is_terminal());
    let mut copy = || -> Result<()> {
        while let Some(data) = smol::block_on(answer.chunk()).context("the transfer broke off")? {
            s.out.write_all(&data)?;
            bar.inc(data.len() as u64);
        }
        Ok(s.out.flush()?)
    };
    let done = copy();
    bar.finish_and_clear();
    done.map(|()| crate::args::OK)
}

/// Writes standard input to a file.
pub fn put(s: &mut Session<'_>, path: &OsStr, ack: Option<&str>) -> Result<u8> {
    let mut target = with_path("/v1/file", path);
    if let Some(ack) = ack {
        target = format!("{target}&ack={}", percent_encoding::utf8_percent_encode(ack, super::QUERY));
    }
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().context("standard input")?);
    // What can be known of the length helps the bar only: a pipe has none, and a file may still grow.
    let length = input.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
    let bar = bar(length, !input.is_terminal());
    // The node waits for others as long as its own limit says, which by default is as long as ours. It then gives the reason.
    s.client.timeout = s.client.timeout.saturating_mul(2);
    let sent = s.client.request(Method::PUT, &s.base, &target, &[], Upload::Stream(chunks(input, bar.clone())));
    bar.finish_and_clear();
    report(s, sent?)
}

/// Deletes a file or an empty directory.
pub fn del(s: &mut Session<'_>, path: &OsStr) -> Result<u8> {
    let answer = s.client.request(Method::DELETE, &s.base, &with_path("/v1/file", path), &[], Upload::Nothing)?;
    report(s, answer)
}

/// Prints the status line, or fails with it.
fn report(s: &mut Session<'_>, answer: super::client::Response) -> Result<u8> {
    let status = answer.ok()?.status;
    if s.json {
        writeln!(s.out, "{}", serde_json::json!({ "status": status.as_u16() }))?;
    } else {
        writeln!(s.out, "{}", status_line(status))?;
    }
    Ok(crate::args::OK)
}

/// Reads a file on a thread of its own, a bounded number of bytes ahead.
fn chunks(input: File, bar: ProgressBar) -> BoxStream<'static, io::Result<Bytes>> {
    let input = smol::Unblock::with_capacity(CHUNK_BYTES, input);
    futures::stream::unfold((input, bar, false), |(mut input, bar, ended)| async move {
        if ended {
            return None;
        }
        let mut data = vec![0; CHUNK_BYTES];
        match input.read(&mut data).await {
            Ok(0) => None,
            Ok(n) => {
                data.truncate(n);
                bar.inc(n as u64);
                Some((Ok(Bytes::from(data)), (input, bar, false)))
            }
            Err(error) => {
                let error = io::Error::new(error.kind(), format!("cannot read standard input: {error}"));
                Some((Err(error), (input, bar, true)))
            }
        }
    })
    .boxed()
}

/// A progress bar on standard error, where that is a terminal.
fn bar(length: Option<u64>, wanted: bool) -> ProgressBar {
    let shown = wanted && io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let (bar, template) = match length {
        Some(n) => (
            ProgressBar::with_draw_target(Some(n), target),
            "{bytes:>10} / {total_bytes} {wide_bar} {bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::with_draw_target(None, target), "{spinner} {bytes:>10} {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
