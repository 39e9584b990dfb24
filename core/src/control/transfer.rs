//! The store's state, in pieces, to and from other members.
//!
//! The store makes chunks of whole rows; consensus carries pieces of a limited size. The chunks are laid end to end, each behind
//! its length, and cut anywhere.

use super::durable::Install;
use super::{Control, Effects};
use crate::bug::Bug;
use crate::ids::ReplicaId;
use crate::kv::snapshot::{Chunk, Progress, Restore, SnapshotCursor, SnapshotId};
use crate::limits::{KV_REQUEST_MAX_BYTES, RAFT_PIECE_MAX_BYTES};
use crate::raft::{Base, Bytes, Effect, Input};
use crate::time::Instant;
use alloc::format;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Bytes of rows in a chunk, about; one row may exceed it alone.
const CHUNK_BYTES: usize = 512 * 1024;
/// No chunk is longer than this.
const CHUNK_MAX_BYTES: usize = 2 * (CHUNK_BYTES + KV_REQUEST_MAX_BYTES);

/// A transfer to a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sending {
    id: SnapshotId,
    cursor: SnapshotCursor,
    /// The log's entry that it is the state after.
    index: u64,
    /// Chunks, each behind its length, that no piece has carried yet.
    left: Vec<u8>,
    /// No chunk follows.
    last: bool,
    /// Pieces made.
    pieces: u32,
}

/// A transfer from the leader.
#[derive(Serialize, Deserialize)]
pub(super) struct Receiving {
    restore: Restore,
    next: u32,
    left: Vec<u8>,
}

impl Control {
    /// A member needs a piece.
    pub(super) fn piece_wanted(
        &mut self,
        now: Instant,
        (_, transfer): (ReplicaId, u64),
        after: Option<Bytes>,
        more: &mut Vec<Effect>,
    ) {
        let piece = self.next_piece(transfer, after.is_none());
        let input = match piece {
            Some((index, data, cursor)) => Input::SnapshotPiece { transfer, index, data, cursor },
            None => {
                self.transfer_done(transfer);
                Input::SnapshotFailed { transfer }
            }
        };
        self.raft.handle(now, input, more);
    }

    fn next_piece(&mut self, transfer: u64, first: bool) -> Option<(u64, Bytes, Option<Bytes>)> {
        if first {
            self.transfer_done(transfer);
            let index = self.store.applied();
            let (id, cursor) = self.store.snapshot_begin().ok()?;
            let s = Sending { id, cursor, index, left: Vec::new(), last: false, pieces: 0 };
            self.sending.insert(transfer, s);
        }
        let piece = self.config.piece_bytes.clamp(1, RAFT_PIECE_MAX_BYTES);
        let s = self.sending.get_mut(&transfer)?;
        while s.left.len() < piece && !s.last {
            let chunk = self.store.snapshot_chunk(&mut s.cursor, CHUNK_BYTES).ok()??;
            s.last = chunk.last;
            let bytes = crate::wire::encode(&chunk);
            s.left.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
            s.left.extend_from_slice(&bytes);
        }
        let rest = s.left.split_off(s.left.len().min(piece));
        let data = core::mem::replace(&mut s.left, rest);
        s.pieces += 1;
        let end = s.last && s.left.is_empty();
        Some((s.index, data.into(), (!end).then(|| Bytes::from(&s.pieces.to_le_bytes()[..]))))
    }

    pub(super) fn transfer_done(&mut self, transfer: u64) {
        if let Some(s) = self.sending.remove(&transfer) {
            self.store.snapshot_end(s.id);
        }
    }

    /// A piece of the leader's state.
    pub(super) fn piece_came(
        &mut self,
        now: Instant,
        ticket: u64,
        (base, last): (Base, bool),
        (piece, data): (u32, Bytes),
        more: &mut Vec<Effect>,
        fx: &mut Effects,
    ) {
        let taken = self.take_piece((piece, &data), last, &base);
        let input = match taken {
            Ok(false) => Input::PieceTaken { ticket },
            Ok(true) => {
                if self.has(Bug::InstallEarly) {
                    self.raft.handle(now, Input::SnapshotInstalled { ticket }, more);
                    return;
                }
                // Consensus is told when a checkpoint has made it durable.
                self.install = Some(Install { ticket, base });
                let anew = self.outcomes_unknown(fx);
                self.look_up_waits(anew, fx);
                fx.checkpoint = true;
                return;
            }
            Err(why) => {
                self.receiving = None;
                fx.words.push(format!("a snapshot of the control plane's store was refused: {why}"));
                Input::SnapshotRefused { ticket }
            }
        };
        self.raft.handle(now, input, more);
    }

    /// True if the store is another one now.
    fn take_piece(&mut self, (piece, data): (u32, &[u8]), last: bool, base: &Base) -> Result<bool, &'static str> {
        if piece == 0 {
            self.receiving = Some(Receiving { restore: Restore::default(), next: 0, left: Vec::new() });
        }
        let r = self.receiving.as_mut().filter(|r| r.next == piece).ok_or("a piece is missing")?;
        r.next += 1;
        r.left.extend_from_slice(data);
        let mut whole = false;
        let mut at = 0;
        while let Some(head) = r.left.get(at..at + 4) {
            let len = head.try_into().map_or(0, u32::from_le_bytes) as usize;
            if len > CHUNK_MAX_BYTES {
                return Err("a chunk is too long");
            }
            let Some(body) = r.left.get(at + 4..at + 4 + len) else { break };
            let chunk = crate::wire::decode_foreign::<Chunk>(body).map_err(|_| "a chunk cannot be read")?;
            whole = r.restore.chunk(&chunk).map_err(|why| why.0)? == Progress::Whole;
            at += 4 + len;
        }
        r.left.drain(..at);
        if !last {
            return Ok(false);
        }
        if !whole || !r.left.is_empty() {
            return Err("it ends too early");
        }
        let r = self.receiving.take().ok_or("a piece is missing")?;
        let mut store = r.restore.finish().map_err(|why| why.0)?;
        if store.applied() != base.index {
            return Err("it is of another moment than it says");
        }
        store.plant(self.bug);
        store.replaces(&self.store);
        self.store = store;
        self.applied_term = self.applied_term.max(base.term);
        Ok(true)
    }
}
