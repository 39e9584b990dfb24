//! Bringing content here: by range from one of a member's addresses, resumed after a break, every wait bounded. Of a large
//! file of which another version is here only the blocks that differ are transferred.

use super::client::ANSWER_LIMIT;
use super::net::Inner;
use crate::pump::{Pump, PumpError};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Response, StatusCode, header};
use ice_core::event::{IoError, IoResult};
use ice_host::digest::{BLOCK_BYTES, Blocks};
use ice_host::transport::url::BaseUrl;
use ice_host::transport::{Fetch, Staged};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Longest pause within a body.
const PAUSE_LIMIT: Duration = Duration::from_secs(15);
/// Breaks in a row without a byte of progress that are put up with.
const BREAKS_MAX: u32 = 3;
/// Before the first try again; doubles.
const BREAK_PAUSE: Duration = Duration::from_millis(50);
/// Smaller files are transferred whole: asking for their blocks costs as much.
const REUSE_MIN_BYTES: u64 = 4 * BLOCK_BYTES;
/// How long the other node may take to hash all blocks of a file.
const BLOCKS_LIMIT: Duration = Duration::from_secs(60);

/// Why it came to nothing, for the core and in words.
type Failed = (IoError, String);

/// Why one attempt at one address ended.
enum Attempt {
    /// The range is there.
    Complete,
    /// The node does not have that version any more.
    Gone,
    /// The network failed; what has arrived is kept.
    Broke(String),
    /// This node's disk failed.
    Disk(Failed),
    /// Other bytes than asked for.
    Wrong(String),
}

/// What an error of this node's disk means for a transfer.
fn io_error(e: &io::Error) -> IoError {
    match Errno::from_io_error(e) {
        Some(Errno::NOSPC | Errno::DQUOT) => IoError::NoSpace,
        // Somebody else receives the same version: it is to be asked for again.
        Some(Errno::AGAIN) => IoError::Unreachable,
        Some(Errno::IO | Errno::ROFS) | None => IoError::Broken,
        Some(Errno::ACCESS | Errno::PERM) => IoError::Denied,
        Some(other) => IoError::Os(other.raw_os_error()),
    }
}

fn disk(e: &io::Error) -> Failed {
    (io_error(e), format!("staging area: {e}"))
}

fn pump_failed(e: PumpError<io::Error>) -> Failed {
    match e {
        PumpError::Work(e) | PumpError::Runtime(e) => disk(&e),
    }
}

/// Carries out one fetch.
pub(super) async fn run(net: &Arc<Inner>, fetch: Fetch) -> IoResult {
    match fetch_all(net, fetch).await {
        Ok(()) => IoResult::Fetched,
        Err((error, why)) => {
            tracing::debug!(inode = %fetch.inode, version = %fetch.version, ?error, why, "content was not fetched");
            IoResult::Failed(error)
        }
    }
}

/// Work on the staging area, off the runtime's threads.
async fn on_disk<T: Send + 'static>(
    net: &Inner,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failed> {
    net.rt.blocking(work).await.and_then(|done| done).map_err(|e| disk(&e))
}

async fn fetch_all(net: &Arc<Inner>, fetch: Fetch) -> Result<(), Failed> {
    match fetch_once(net, fetch, true).await {
        // What was here was not what it seemed (it changed while it was reused, or a crash tore it), and has been thrown
        // away: the next try relies on nothing.
        Ok(Outcome { relied: true, right: false }) => fetch_once(net, fetch, false).await,
        other => other,
    }
    .and_then(|outcome| {
        if outcome.right { Ok(()) } else { Err((IoError::Mismatch, "the bytes do not match the digest".into())) }
    })
}

struct Outcome {
    /// Some of the bytes were here before.
    relied: bool,
    /// They are the right bytes, and durable.
    right: bool,
}

async fn fetch_once(net: &Arc<Inner>, fetch: Fetch, may_reuse: bool) -> Result<Outcome, Failed> {
    let store = net.store.clone();
    let mut staged = on_disk(net, move || store.stage(&fetch)).await?;
    let mut relied = staged.have() > 0;
    if staged.have() < fetch.size {
        let reused;
        (staged, reused) = transfer(net, &fetch, staged, may_reuse).await?;
        relied |= reused;
    }
    let right = on_disk(net, move || staged.finish()).await?;
    Ok(Outcome { relied, right })
}

/// The query that names a version.
fn query(fetch: &Fetch) -> String {
    let Fetch { inode, version, .. } = fetch;
    format!("inode={:x}&version={}-{:x}", inode.0, version.time.0, version.replica.0)
}

/// Brings everything that is missing. `true`: some of it was taken from another version here.
async fn transfer(
    net: &Arc<Inner>,
    fetch: &Fetch,
    mut staged: Box<dyn Staged>,
    may_reuse: bool,
) -> Result<(Box<dyn Staged>, bool), Failed> {
    let urls = net.urls_of(fetch.from);
    if urls.is_empty() {
        return Err((IoError::Unreachable, format!("no address of {} is known", fetch.from)));
    }
    let whole = staged.have()..fetch.size;
    let mut missing = VecDeque::from([whole]);
    let mut reused = false;
    if may_reuse && staged.have() == 0 && fetch.size >= REUSE_MIN_BYTES {
        match blocks(net, fetch, &urls, !staged.has_base()).await {
            Ok(None) => {}
            Ok(Some(blocks)) => {
                let rest = on_disk(net, move || staged.reuse(&blocks).map(|missing| (staged, missing))).await?;
                staged = rest.0;
                missing = rest.1.into();
                reused = true;
            }
            // Nothing is lost but the saving.
            Err(why) => tracing::debug!(inode = %fetch.inode, why, "fetching all blocks"),
        }
    }
    let ranges: Vec<Range<u64>> = missing.iter().cloned().collect();
    staged = on_disk(net, move || staged.reserve(&ranges).map(|()| staged)).await?;
    let path = format!("{}?{}", super::CONTENT_PATH, query(fetch));
    let mut pump = Pump::new(&net.rt, (staged, 0), |(staged, at): &mut (Box<dyn Staged>, u64), bytes| {
        staged.write_at(*at, bytes)?;
        *at += bytes.len() as u64;
        Ok(())
    });
    let (mut breaks, mut turn) = (0, 0);
    while let Some(range) = missing.front_mut() {
        // What was pushed before is written before the place changes.
        pump.flush().await.map_err(pump_failed)?.1 = range.start;
        let before = range.start;
        let url = &urls[turn % urls.len()];
        match attempt(net, fetch, url, &path, range, &mut pump).await {
            Attempt::Complete => {
                missing.pop_front();
            }
            Attempt::Gone => return Err((IoError::Gone, format!("{url} does not have it any more"))),
            Attempt::Wrong(why) => return Err((IoError::Mismatch, format!("{url}: {why}"))),
            Attempt::Disk(failed) => return Err(failed),
            Attempt::Broke(why) => {
                turn += 1;
                breaks = if range.start > before { 1 } else { breaks + 1 };
                if breaks >= BREAKS_MAX.max(urls.len() as u32) {
                    return Err((IoError::Unreachable, format!("{url}: {why}")));
                }
                net.rt.sleep(BREAK_PAUSE * (1 << breaks.min(6))).await;
            }
        }
    }
    Ok((pump.finish().await.map_err(pump_failed)?.0, reused))
}

/// The block hashes of a version, verified by its digest. `only_sparse`: nothing unless blocks of zeros make it worth while.
async fn blocks(
    net: &Arc<Inner>,
    fetch: &Fetch,
    urls: &[BaseUrl],
    only_sparse: bool,
) -> Result<Option<Blocks>, String> {
    if fetch.size > super::BLOCKS_OF_MAX_BYTES {
        return Err("too large for a list of blocks".into());
    }
    let url = urls.first().ok_or("no address")?;
    let only = if only_sparse { super::ONLY_SPARSE } else { "" };
    let path = format!("{}?{}{only}", super::BLOCKS_PATH, query(fetch));
    let (sender, response) = net.client.get_range(url, &path, None, BLOCKS_LIMIT).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NO_CONTENT => {
            net.client.keep(url, sender);
            return Ok(None);
        }
        other => return Err(other.to_string()),
    }
    let bytes = (fetch.size.div_ceil(BLOCK_BYTES) * 32) as usize;
    let body = Limited::new(response.into_body(), bytes).collect();
    let body = net.rt.timeout(BLOCKS_LIMIT, body).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    net.client.keep(url, sender);
    let body = body.to_bytes();
    let (hashes, rest) = body.as_chunks::<32>();
    let blocks = Blocks::from_hashes(hashes.to_vec(), fetch.size).filter(|_| rest.is_empty());
    let right = blocks.filter(|b| b.root() == fetch.digest);
    right.map(Some).ok_or_else(|| "the hashes are not those of the version".into())
}

type StagePump<F> = Pump<(Box<dyn Staged>, u64), io::Error, F>;

/// Fetches `range`, whose start moves on with what has arrived.
async fn attempt<F>(
    net: &Arc<Inner>,
    fetch: &Fetch,
    url: &BaseUrl,
    path: &str,
    range: &mut Range<u64>,
    pump: &mut StagePump<F>,
) -> Attempt
where
    F: FnMut(&mut (Box<dyn Staged>, u64), &[u8]) -> io::Result<()> + Send + 'static,
{
    let (sender, response) = match net.client.get_range(url, path, Some(range), ANSWER_LIMIT).await {
        Ok(answer) => answer,
        Err(why) => return Attempt::Broke(why),
    };
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::RANGE_NOT_SATISFIABLE => return Attempt::Gone,
        other => return Attempt::Broke(other.to_string()),
    }
    let want = format!("bytes {}-{}/{}", range.start, range.end - 1, fetch.size);
    if response.headers().get(header::CONTENT_RANGE).is_none_or(|v| v.as_bytes() != want.as_bytes()) {
        return Attempt::Wrong(format!("it offers another range than {want}"));
    }
    let outcome = receive(net, response, range, pump).await;
    if matches!(outcome, Attempt::Complete) {
        net.client.keep(url, sender);
    }
    outcome
}

async fn receive<F>(
    net: &Arc<Inner>,
    response: Response<Incoming>,
    range: &mut Range<u64>,
    pump: &mut StagePump<F>,
) -> Attempt
where
    F: FnMut(&mut (Box<dyn Staged>, u64), &[u8]) -> io::Result<()> + Send + 'static,
{
    let mut body = response.into_body();
    loop {
        let frame = match net.rt.timeout(PAUSE_LIMIT, body.frame()).await {
            Err(_) => return Attempt::Broke(format!("nothing arrived for {PAUSE_LIMIT:?}")),
            Ok(None) if range.is_empty() => return Attempt::Complete,
            Ok(None) => return Attempt::Broke("it ended early".into()),
            Ok(Some(Err(e))) => return Attempt::Broke(e.to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(bytes) = frame.into_data() else { continue };
        if bytes.len() as u64 > range.end - range.start {
            return Attempt::Wrong("it sends more than it announced".into());
        }
        range.start += bytes.len() as u64;
        if let Err(e) = pump.push(bytes).await {
            return Attempt::Disk(pump_failed(e));
        }
    }
}
