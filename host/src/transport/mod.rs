//! The runtime-free part of the peer transport: framing, queues, addresses, counters, and the contract between the node's
//! engine and whatever carries its messages.

pub mod counters;
pub mod frame;
pub mod queue;
pub mod url;

use ice_core::action::Send as NetSend;
use ice_core::event::Event;
use ice_core::ids::{InodeId, IoToken, ReplicaId};
use ice_core::op::ContentDigest;
use ice_core::time::Stamp;
use std::io;

/// Carries messages and content between nodes. Called with the node's lock held: both methods only enqueue, never block
/// and never call back into the [`Sink`].
pub trait Transport: Send + Sync + 'static {
    /// Send, dial or hang up. Payload handles in a message are resolved before this returns.
    fn send(&self, send: NetSend);
    /// Bring content here. Answered by exactly one `Event::Io` with the fetch's token.
    fn fetch(&self, fetch: Fetch);
}

/// Where a transport hands its news: the engine, or a test. `event` may take a lock and some CPU time, but it never waits
/// for a disk or a peer.
pub trait Sink: Send + Sync + 'static {
    /// A message arrived, a connection came or went, a transfer ended.
    fn event(&self, event: Event);
    /// Addresses of a member, best first, as far as they are known from earlier runs.
    fn urls_of(&self, replica: ReplicaId) -> Vec<String> {
        let _ = replica;
        Vec::new()
    }
}

impl Sink for crate::engine::Engine {
    fn event(&self, event: Event) {
        crate::engine::Engine::event(self, event);
    }
    fn urls_of(&self, replica: ReplicaId) -> Vec<String> {
        self.view(|view| view.member(replica).map(|m| m.urls.clone()).unwrap_or_default())
    }
}

/// The transport's part of `Io::Fetch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Named in the completion.
    pub token: IoToken,
    /// From this member.
    pub from: ReplicaId,
    /// Of this file.
    pub inode: InodeId,
    /// This version.
    pub version: Stamp,
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: ContentDigest,
}

/// The volume as the transport sees it: where fetched content goes, and where served content comes from. Calls may block.
pub trait ContentStore: Send + Sync + 'static {
    /// Begins (or goes on with) bringing a version into the staging area.
    fn stage(&self, fetch: &Fetch) -> io::Result<Box<dyn Staged>>;
    /// Opens a version for reading; `None` if this node does not hold exactly those bytes any more.
    fn open_version(&self, inode: InodeId, version: Stamp) -> io::Result<Option<Box<dyn VersionReader>>>;
}

/// A version on its way into the staging area.
pub trait Staged: Send + Sync {
    /// Where to go on: bytes before this are there already. [`Fetch::size`]: nothing is missing.
    fn have(&self) -> u64;
    /// Writes bytes at `offset`. Called in order, without gaps.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// All bytes are written: verifies the digest and makes them durable. `Ok(false)`: they are not the right bytes, and
    /// have been thrown away.
    fn finish(self: Box<Self>) -> io::Result<bool>;
}

/// A version that can be read.
pub trait VersionReader: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> u64;
    /// Reads into `buf`; short only at the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// True if the bytes read so far were those of the version: asked after the last read, because the file may have
    /// changed meanwhile.
    fn still_valid(&self) -> bool;
}
