//! One peer connection: frames in, frames out, until one side ends it.

use super::client::Upgraded;
use super::net::Inner;
use bytes::{Bytes, BytesMut};
use futures::AsyncReadExt;
use futures::future::{Either, select};
use futures::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use ice_core::event::{Event, LinkEvent};
use ice_core::ids::LinkId;
use ice_core::message::Message;
use ice_host::runtime::BoxStream;
use ice_host::transport::counters::Follower;
use ice_host::transport::frame::{self, HEADER_BYTES};
use ice_host::transport::queue::{Outgoing, Queue, Taken};
use ice_serve::Idle;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// A connection on which nothing arrives for this long is dead: the core sends a sign of life far more often. Longer where a peer
/// may be silent for longer; then the core decides.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A connection on which nothing can be written for this long is dead.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// For the last words and the orderly end of a connection.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// Messages taken from the queue at once, and bytes written at once (a single message may be longer).
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1024 * 1024;
/// Bytes read at once.
const READ_MIN_BYTES: usize = 16 * 1024;
const READ_MAX_BYTES: usize = 256 * 1024;
/// How long a full payload pool may hold a message up before it is dropped.
const POOL_WAIT: Duration = Duration::from_secs(2);
const POOL_RETRY: Duration = Duration::from_millis(2);

type Follow<'a> = Mutex<Follower<'a>>;

fn follow<'a, 'b>(follower: &'b Follow<'a>) -> std::sync::MutexGuard<'b, Follower<'a>> {
    follower.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a connection from `Up` to `Down`.
pub(super) async fn run(net: &Inner, link: LinkId, queue: &Queue, connection: Upgraded, dialled: Option<String>) {
    net.event(Event::Link(LinkEvent::Up { link, dialled: dialled.clone() }));
    let why = converse(net, link, queue, connection, dialled.as_deref()).await;
    net.forget_link(link);
    net.event(Event::Link(LinkEvent::Down { link, why }));
}

/// Reads and writes until the end, and says why it came.
async fn converse(net: &Inner, link: LinkId, queue: &Queue, connection: Upgraded, dialled: Option<&str>) -> String {
    let peer = dialled.map_or_else(|| link.to_string(), str::to_owned);
    let follower = Mutex::new(Follower::new(&net.counters, peer));
    let (input, output) = connection.stream.split();
    let mut writing = pin!(write_all(net, queue, output, &follower));
    let reading =
        pin!(read_all(net, link, input, (connection.early, connection.version.as_deref()), &follower, dialled));
    match select(reading, writing.as_mut()).await {
        Either::Left((why, _)) => {
            if let Ended::Refused(why) = &why {
                // The other side should know what it did wrong.
                queue.push(Outgoing { message: Message::Refuse { why: why.clone() }, payloads: Vec::new() });
            }
            queue.close(why.words());
            // Whether the last words arrive or not, it is over.
            let _ = net.rt.timeout(FAREWELL_LIMIT, writing).await;
            why.words().to_owned()
        }
        Either::Right((why, _)) => why,
    }
}

/// How reading ended.
enum Ended {
    /// By the other side or the network.
    Lost(String),
    /// By us: what came was not acceptable.
    Refused(String),
}

impl Ended {
    fn words(&self) -> &str {
        match self {
            Ended::Lost(why) | Ended::Refused(why) => why,
        }
    }
}

async fn read_all(
    net: &Inner,
    link: LinkId,
    mut input: ReadHalf<BoxStream>,
    (early, version): (Bytes, Option<&str>),
    follower: &Follow<'_>,
    dialled: Option<&str>,
) -> Ended {
    let mut buffer = BytesMut::from(&early[..]);
    let mut size = READ_MIN_BYTES;
    let silence = SILENCE_LIMIT.max(net.silence.saturating_mul(2));
    let mut idle = Idle::new(&net.rt, silence);
    loop {
        loop {
            match frame::decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(received)) => {
                    let now = Instant::now();
                    net.overheard(received.message(), dialled, version);
                    {
                        let mut follower = follow(follower);
                        if let (None, Message::Hello(hello)) = (dialled, received.message())
                            && let Some(url) = hello.member.urls.first()
                        {
                            follower.named(url);
                        }
                        follower.received(received.message(), now);
                    }
                    if let Some(message) = admit(net, received).await {
                        net.event(Event::Peer { link, message });
                    }
                }
                Err(e) => return Ended::Refused(e.to_string()),
            }
        }
        let missing = match frame::peek(&buffer) {
            Ok(Some(body)) => (HEADER_BYTES + body).saturating_sub(buffer.len()),
            _ => 0,
        };
        let want = size.max(missing.min(READ_MAX_BYTES));
        let filled = buffer.len();
        buffer.resize(filled + want, 0);
        idle.restart();
        let outcome = poll_fn(|cx| {
            let outcome = Pin::new(&mut input).poll_read(cx, &mut buffer[filled..]);
            idle.watch(cx, outcome)
        })
        .await;
        let n = match outcome {
            Ok(0) => return Ended::Lost("closed by the other side".into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Ended::Lost(format!("nothing arrived for {silence:?}"));
            }
            Err(e) => return Ended::Lost(format!("broken: {e}")),
        };
        buffer.truncate(filled + n.min(want));
        size = if n == want { (size * 2).min(READ_MAX_BYTES) } else { n.next_power_of_two().max(READ_MIN_BYTES) };
    }
}

/// Puts the payloads of a message into the pool. While that is full the connection is not read, which slows the other side
/// down; if it stays full the message is dropped, which the core takes for loss.
async fn admit(net: &Inner, received: frame::Received) -> Option<Message> {
    let bytes = received.payload_bytes();
    let patience = Instant::now() + POOL_WAIT;
    while bytes > 0 && (net.payloads.room() as u64) < bytes && net.payloads.used().bytes > 0 {
        if Instant::now() >= patience {
            break;
        }
        net.rt.sleep(POOL_RETRY).await;
    }
    match received.admit(|b| net.payloads.insert(b), |id| net.payloads.release(id)) {
        Ok(message) => Some(message),
        Err(full) => {
            tracing::warn!("a message from a peer was dropped: {full}");
            None
        }
    }
}

async fn write_all(net: &Inner, queue: &Queue, mut output: WriteHalf<BoxStream>, follower: &Follow<'_>) -> String {
    let stall = STALL_LIMIT.max(net.silence.saturating_mul(2));
    let mut idle = Idle::new(&net.rt, stall);
    let mut batch: Vec<u8> = Vec::new();
    loop {
        let taken = match poll_fn(|cx| queue.poll_take(cx.waker(), BATCH_MESSAGES)).await {
            Taken::Some(taken) => taken,
            Taken::Closed(why) => {
                idle.restart();
                let closed = poll_fn(|cx| {
                    let outcome = Pin::new(&mut output).poll_close(cx);
                    idle.watch(cx, outcome)
                });
                // The connection is dropped next, closed in order or not.
                let _ = net.rt.timeout(FAREWELL_LIMIT, closed).await;
                return why;
            }
        };
        let now = Instant::now();
        let mut taken = taken.into_iter().peekable();
        while let Some(out) = taken.next() {
            match frame::encode(&out.message, &out.payloads, &mut batch) {
                Ok(()) => follow(follower).sent(&out.message, now),
                // Such a message would never get through: say so, and go on with the others.
                Err(e) => tracing::error!("a message to a peer could not be framed: {e}"),
            }
            if taken.peek().is_none() || batch.len() >= BATCH_BYTES {
                idle.restart();
                let mut at = 0;
                let written = poll_fn(|cx| {
                    let outcome = poll_batch(Pin::new(&mut output), cx, &batch, &mut at);
                    idle.watch(cx, outcome)
                });
                match written.await {
                    Ok(()) => batch.clear(),
                    Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                        return format!("the other side took nothing for {stall:?}");
                    }
                    Err(e) => return format!("broken: {e}"),
                }
            }
        }
        if batch.capacity() > 2 * BATCH_BYTES {
            batch = Vec::new();
        }
    }
}

/// Ready when all of the batch is out; `at` bytes of it are. The caller's watch sees no progress within a batch: the limit
/// is for the batch as a whole.
fn poll_batch(
    mut output: Pin<&mut WriteHalf<BoxStream>>,
    cx: &mut Context<'_>,
    batch: &[u8],
    at: &mut usize,
) -> Poll<io::Result<()>> {
    while *at < batch.len() {
        match ready!(output.as_mut().poll_write(cx, &batch[*at..]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            n => *at += n,
        }
    }
    output.poll_flush(cx)
}
