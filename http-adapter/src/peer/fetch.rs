//! Bringing content here: by range from one of a member's addresses, resumed after a break, every wait bounded.

use super::net::Inner;
use crate::pump::{Pump, PumpError};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode, header};
use ice_core::event::{IoError, IoResult};
use ice_host::transport::url::BaseUrl;
use ice_host::transport::{Fetch, Staged};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Longest pause within a body.
const PAUSE_LIMIT: Duration = Duration::from_secs(15);
/// Breaks in a row without a byte of progress that are put up with.
const BREAKS_MAX: u32 = 3;
/// Before the first try again; doubles.
const BREAK_PAUSE: Duration = Duration::from_millis(50);

/// What an errno of this node's disk means for a transfer.
pub(super) fn disk_error(e: &io::Error) -> IoError {
    use rustix::io::Errno;
    match Errno::from_io_error(e) {
        Some(Errno::NOSPC | Errno::DQUOT) => IoError::NoSpace,
        Some(Errno::IO | Errno::ROFS) => IoError::Broken,
        Some(Errno::ACCESS | Errno::PERM) => IoError::Denied,
        Some(other) => IoError::Os(other.raw_os_error()),
        None => IoError::Broken,
    }
}

/// Why one attempt at one address ended.
enum Attempt {
    /// All bytes are there.
    Complete,
    /// It does not have that version any more.
    Gone,
    /// The network failed; what has arrived is kept.
    Broke(String),
    /// This node's disk failed.
    Disk(io::Error),
    /// More bytes than announced, or other ones than asked for.
    Wrong(String),
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

async fn fetch_all(net: &Arc<Inner>, fetch: Fetch) -> Result<(), (IoError, String)> {
    let disk = |e: io::Error| (disk_error(&e), format!("staging area: {e}"));
    let store = net.store.clone();
    let mut staged = net.rt.blocking(move || store.stage(&fetch)).await.and_then(|r| r).map_err(disk)?;
    if staged.have() < fetch.size {
        staged = transfer(net, &fetch, staged).await?;
    }
    match net.rt.blocking(move || staged.finish()).await.and_then(|r| r) {
        Ok(true) => Ok(()),
        Ok(false) => Err((IoError::Mismatch, "the bytes do not match the digest".into())),
        Err(e) => Err(disk(e)),
    }
}

async fn transfer(
    net: &Arc<Inner>,
    fetch: &Fetch,
    staged: Box<dyn Staged>,
) -> Result<Box<dyn Staged>, (IoError, String)> {
    let urls = net.urls_of(fetch.from);
    if urls.is_empty() {
        return Err((IoError::Unreachable, format!("no address of {} is known", fetch.from)));
    }
    let path = format!(
        "{}?inode={:x}&version={}-{:x}",
        super::CONTENT_PATH,
        fetch.inode.0,
        fetch.version.time.0,
        fetch.version.replica.0
    );
    let mut at = staged.have();
    let mut pump = Pump::new(&net.rt, (staged, at), |(staged, at), bytes| {
        staged.write_at(*at, bytes)?;
        *at += bytes.len() as u64;
        Ok(())
    });
    let (mut breaks, mut turn, mut why) = (0, 0, String::new());
    while breaks < BREAKS_MAX.max(urls.len() as u32) {
        let before = at;
        let url = &urls[turn % urls.len()];
        match attempt(net, fetch, url, &path, &mut at, &mut pump).await {
            Attempt::Complete => {
                let (staged, _) = pump.finish().await.map_err(|e| disk_failure(&e))?;
                return Ok(staged);
            }
            Attempt::Gone => return Err((IoError::Gone, format!("{url} does not have it any more"))),
            Attempt::Wrong(why) => return Err((IoError::Mismatch, format!("{url}: {why}"))),
            Attempt::Disk(e) => return Err((disk_error(&e), format!("staging area: {e}"))),
            Attempt::Broke(e) => {
                why = format!("{url}: {e}");
                turn += 1;
                breaks = if at > before { 1 } else { breaks + 1 };
                net.rt.sleep(BREAK_PAUSE * (1 << breaks.min(6))).await;
            }
        }
    }
    Err((IoError::Unreachable, why))
}

fn disk_failure(e: &PumpError<io::Error>) -> (IoError, String) {
    match e {
        PumpError::Work(e) | PumpError::Runtime(e) => (disk_error(e), format!("staging area: {e}")),
    }
}

type StagePump<F> = Pump<(Box<dyn Staged>, u64), io::Error, F>;

async fn attempt<F>(
    net: &Arc<Inner>,
    fetch: &Fetch,
    url: &BaseUrl,
    path: &str,
    at: &mut u64,
    pump: &mut StagePump<F>,
) -> Attempt
where
    F: FnMut(&mut (Box<dyn Staged>, u64), &[u8]) -> io::Result<()> + Send + 'static,
{
    let (sender, response) = match net.client.get_range(url, path, *at).await {
        Ok(answer) => answer,
        Err(why) => return Attempt::Broke(why),
    };
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::RANGE_NOT_SATISFIABLE => return Attempt::Gone,
        other => return Attempt::Broke(other.to_string()),
    }
    let want = format!("bytes {}-{}/{}", *at, fetch.size.saturating_sub(1), fetch.size);
    if response.headers().get(header::CONTENT_RANGE).is_none_or(|v| v.as_bytes() != want.as_bytes()) {
        return Attempt::Wrong(format!("it offers another range than {want}"));
    }
    match receive(net, fetch.size, response, at, pump).await {
        Attempt::Complete => {
            net.client.keep(url, sender);
            Attempt::Complete
        }
        other => other,
    }
}

async fn receive<F>(
    net: &Arc<Inner>,
    size: u64,
    response: Response<Incoming>,
    at: &mut u64,
    pump: &mut StagePump<F>,
) -> Attempt
where
    F: FnMut(&mut (Box<dyn Staged>, u64), &[u8]) -> io::Result<()> + Send + 'static,
{
    let mut body = response.into_body();
    loop {
        let frame = match net.rt.timeout(PAUSE_LIMIT, body.frame()).await {
            Err(_) => return Attempt::Broke(format!("nothing arrived for {PAUSE_LIMIT:?}")),
            Ok(None) if *at == size => return Attempt::Complete,
            Ok(None) => return Attempt::Broke("it ended early".into()),
            Ok(Some(Err(e))) => return Attempt::Broke(e.to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(bytes) = frame.into_data() else { continue };
        *at += bytes.len() as u64;
        if *at > size {
            return Attempt::Wrong("it sends more than it announced".into());
        }
        match pump.push(bytes).await {
            Ok(()) => {}
            Err(PumpError::Work(e) | PumpError::Runtime(e)) => return Attempt::Disk(e),
        }
    }
}
