//! The runtime-free part of the peer transport: framing, queues, addresses, counters, and the contract between the node's
//! engine and whatever carries its messages.

pub mod counters;
pub mod frame;
pub mod queue;
pub mod url;

use crate::digest::{BLOCK_BYTES, Blocks};
use ice_core::action::Send as NetSend;
use ice_core::event::Event;
use ice_core::ids::{InodeId, IoToken, ReplicaId};
use ice_core::op::ContentDigest;
use ice_core::time::Stamp;
use std::io;
use std::ops::Range;

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
    /// Opens a version for reading; `None` if this node does not hold exactly those bytes any more; an
    /// error of the kind `WouldBlock` if it does not know yet.
    fn open_version(&self, inode: InodeId, version: Stamp) -> io::Result<Option<Box<dyn VersionReader>>>;
}

/// A version on its way into the staging area. Dropped unfinished, it can be gone on with later.
pub trait Staged: Send + Sync {
    /// Where to go on: bytes before this are there already. [`Fetch::size`]: nothing is missing.
    fn have(&self) -> u64;
    /// Another version of the file is here, so that [`Staged::reuse`] may save a transfer.
    fn has_base(&self) -> bool;
    /// Takes what another version here has in common with the one of these block hashes; blocks of zeros become holes. The
    /// ranges that are still missing, in order; neither empty, touching nor overlapping.
    fn reuse(&mut self, blocks: &Blocks) -> io::Result<Vec<Range<u64>>>;
    /// Takes the room for these missing ranges, so that a full disk is met now and not in the middle.
    fn reserve(&mut self, missing: &[Range<u64>]) -> io::Result<()> {
        let _ = missing;
        Ok(())
    }
    /// Writes bytes within the missing ranges, in order.
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
    /// A good part of it is holes: its blocks of zeros had better not be sent.
    fn is_sparse(&self) -> bool {
        false
    }
    /// Hashes of its blocks. Reads all of it but the holes.
    fn blocks(&self) -> io::Result<Blocks>;
    /// True if the bytes read so far were those of the version: asked after the last read, because the file may have
    /// changed meanwhile.
    fn still_valid(&self) -> bool;
}

/// The ranges of a version that another one does not have: those blocks whose hashes differ from that of the same place.
pub fn differing(wanted: &Blocks, base: &Blocks) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (i, hash) in wanted.hashes().iter().enumerate() {
        if base.hashes().get(i) == Some(hash) {
            continue;
        }
        let start = i as u64 * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(wanted.len());
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

    use super::*;

    #[test]
    fn only_blocks_that_differ_are_missing() {
        let block = |n: u8| [n; 32];
        let of =
            |hashes: &[u8], len: u64| Blocks::from_hashes(hashes.iter().map(|n| block(*n)).collect(), len).unwrap();
        let b = BLOCK_BYTES;
        let base = of(&[1, 2, 3, 4], 4 * b);
        assert_eq!(differing(&of(&[1, 2, 3, 4], 4 * b), &base), []);
        assert_eq!(differing(&of(&[1, 9, 9, 4], 4 * b), &base), [b..3 * b]);
        assert_eq!(differing(&of(&[9, 2, 9, 4, 5], 4 * b + 7), &base), [0..b, 2 * b..3 * b, 4 * b..4 * b + 7]);
        assert_eq!(differing(&of(&[1], b), &base), []);
        assert_eq!(differing(&of(&[1, 2], b + 1), &of(&[], 0)), [0..b + 1]);
        assert!(Blocks::from_hashes(vec![block(1)], b + 1).is_none());
    }
}
