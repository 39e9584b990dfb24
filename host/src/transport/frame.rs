//! Frames on a peer connection.
//!
//! ```text
//! frame = length: u32 LE  (bytes of body)
//!         crc:    u32 LE  (CRC-32C of body)
//!         body
//! body  = message length: u32 LE
//!         message         (ice_core::wire encoding of ice_core::message::Message)
//!         payloads        (the bytes of the message's payload handles, in order)
//! ```
//!
//! A frame that is damaged, too long or not understood ends the connection: there is no way to find the next one.

use crate::digest;
use bytes::{Bytes, BytesMut};
use ice_core::ids::PayloadId;
use ice_core::limits;
use ice_core::message::Message;
use ice_core::op::Payload;
use ice_core::wire::{self, WireError};

/// Bytes before a body.
pub const HEADER_BYTES: usize = 8;
/// Longest body: the longest message, and payloads up to their limit, exceeded by one operation at most.
pub const BODY_MAX_BYTES: usize = 4
    + limits::MESSAGE_MAX_BYTES
    + limits::OPS_MESSAGE_PAYLOAD_BYTES as usize
    + limits::INLINE_CONTENT_MAX_BYTES as usize;

/// Why a frame was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`BODY_MAX_BYTES`], or too short to hold a message.
    #[error("frame of {0} bytes (4 to {BODY_MAX_BYTES} are allowed)")]
    Length(usize),
    /// Bits flipped on the way.
    #[error("damaged frame: its checksum differs")]
    Checksum,
    /// The message's length does not fit the body.
    #[error("damaged frame: a message of {0} bytes does not fit in it")]
    MessageLength(usize),
    /// The message was not understood.
    #[error("message not understood: {0}")]
    Message(#[from] WireError),
    /// Payloads that the message names are missing, or bytes follow the last one.
    #[error("damaged frame: {have} bytes of payloads instead of {want}")]
    PayloadLength {
        /// Bytes there.
        have: u64,
        /// Bytes that the message speaks of.
        want: u64,
    },
    /// A payload's bytes are not the ones that its handle speaks of.
    #[error("payload {0} of the message does not match its digest")]
    PayloadDigest(usize),
    /// A message to be sent names a payload that the pool does not hold any more.
    #[error("a payload of the message is gone")]
    PayloadGone,
}

/// Payload handles of a message, in order.
pub fn payloads(message: &Message) -> impl Iterator<Item = &Payload> {
    let ops: &[_] = if let Message::Ops { ops, .. } = message { ops } else { &[] };
    ops.iter().filter_map(|op| op.payload.as_ref())
}

fn payloads_mut(message: &mut Message) -> impl Iterator<Item = &mut Payload> {
    let ops: &mut [_] = if let Message::Ops { ops, .. } = message { ops } else { &mut [] };
    ops.iter_mut().filter_map(|op| op.payload.as_mut())
}

/// Appends the frame of `message` to `out`. `bytes` are those of its payloads, in order. Fails, and leaves `out` alone, if
/// they do not fit the message or the frame would be too long.
pub fn encode(message: &Message, bytes: &[Bytes], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let want: u64 = payloads(message).map(|p| u64::from(p.len)).sum();
    let have: u64 = bytes.iter().map(|b| b.len() as u64).sum();
    if want != have || payloads(message).count() != bytes.len() {
        return Err(FrameError::PayloadLength { have, want });
    }
    let encoded = wire::encode(message);
    let length = 4 + encoded.len() as u64 + have;
    if encoded.len() > limits::MESSAGE_MAX_BYTES || length > BODY_MAX_BYTES as u64 {
        return Err(FrameError::Length(length.min(usize::MAX as u64) as usize));
    }
    let message_length = (encoded.len() as u32).to_le_bytes();
    let mut crc = crc32c::crc32c(&message_length);
    crc = crc32c::crc32c_append(crc, &encoded);
    for b in bytes {
        crc = crc32c::crc32c_append(crc, b);
    }
    out.reserve(HEADER_BYTES + length as usize);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&message_length);
    out.extend_from_slice(&encoded);
    for b in bytes {
        out.extend_from_slice(b);
    }
    Ok(())
}

/// A frame that arrived whole and undamaged, its payloads not yet in the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// The message; ids of its payloads are meaningless until [`Received::admit`].
    message: Message,
    /// Bytes of its payloads, in order.
    bytes: Vec<Bytes>,
}

impl Received {
    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> u64 {
        self.bytes.iter().map(|b| b.len() as u64).sum()
    }

    /// Puts the payloads into the pool and their new ids into the message. If the pool refuses one, those already in it
    /// are taken back.
    pub fn admit<E>(
        mut self,
        mut insert: impl FnMut(Bytes) -> Result<PayloadId, E>,
        release: impl FnMut(PayloadId),
    ) -> Result<Message, E> {
        let mut inserted = Vec::new();
        for (payload, bytes) in payloads_mut(&mut self.message).zip(self.bytes) {
            match insert(bytes) {
                Ok(id) => {
                    inserted.push(id);
                    payload.id = id;
                }
                Err(e) => {
                    inserted.into_iter().for_each(release);
                    return Err(e);
                }
            }
        }
        Ok(self.message)
    }

    /// The message, for those who do not need its payloads.
    pub fn message(&self) -> &Message {
        &self.message
    }
}

/// Takes one frame from the front of `buffer`. `None`: more bytes are needed. Payloads are checked against their digests.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Received>, FrameError> {
    let Some(body_length) = peek(buffer)? else { return Ok(None) };
    if buffer.len() < HEADER_BYTES + body_length {
        return Ok(None);
    }
    let frame = buffer.split_to(HEADER_BYTES + body_length).freeze();
    let crc = le32(&frame, 4);
    let body = frame.slice(HEADER_BYTES..);
    if crc32c::crc32c(&body) != crc {
        return Err(FrameError::Checksum);
    }
    decode_body(&body).map(Some)
}

/// Length of the body of the frame at the front of `buffer`, checked against the limit before any of it has arrived.
pub fn peek(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let length = le32(buffer, 0) as usize;
    if (4..=BODY_MAX_BYTES).contains(&length) { Ok(Some(length)) } else { Err(FrameError::Length(length)) }
}

fn decode_body(body: &Bytes) -> Result<Received, FrameError> {
    let message_length = le32(body, 0) as usize;
    let end = message_length.saturating_add(4);
    if end > body.len() || message_length > limits::MESSAGE_MAX_BYTES {
        return Err(FrameError::MessageLength(message_length));
    }
    let message: Message = wire::decode(&body[4..end])?;
    let want: u64 = payloads(&message).map(|p| u64::from(p.len)).sum();
    let have = (body.len() - end) as u64;
    if have != want {
        return Err(FrameError::PayloadLength { have, want });
    }
    let mut at = end;
    let mut bytes = Vec::new();
    for (i, payload) in payloads(&message).enumerate() {
        let whole = body.slice(at..at + payload.len as usize);
        at += payload.len as usize;
        if digest::of_bytes(&whole) != payload.digest {
            return Err(FrameError::PayloadDigest(i));
        }
        // A small slice must not keep a large frame in memory.
        bytes.push(if whole.len() * 2 < body.len() { Bytes::copy_from_slice(&whole) } else { whole });
    }
    Ok(Received { message, bytes })
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}
