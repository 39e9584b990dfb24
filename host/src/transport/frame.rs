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
    let message: Message = wire::decode_foreign(&body[4..end])?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use ice_core::ids::{InodeId, ReplicaId};
    use ice_core::op::{ContentDigest, Op, OpBody};
    use ice_core::time::{Hlc, Stamp, UnixTime};
    use proptest::prelude::*;

    fn with_payloads(contents: &[Bytes]) -> Message {
        let ops = contents.iter().enumerate().map(|(i, content)| Op {
            origin: ReplicaId(1),
            seq: i as u64 + 1,
            time: Hlc(i as u64 + 1),
            body: OpBody::SetContent {
                inode: InodeId(1),
                base: Stamp::ZERO,
                size: content.len() as u64,
                digest: ContentDigest::EMPTY,
                mtime: UnixTime::default(),
            },
            payload: Some(Payload { id: PayloadId(7), len: content.len() as u32, digest: digest::of_bytes(content) }),
        });
        Message::Ops { origin: ReplicaId(1), after: (0, Hlc(0)), ops: ops.collect(), urgent: true }
    }

    /// The layout on the wire. It changes only together with the name of the protocol.
    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        encode(&Message::Bye, &[], &mut out).unwrap();
        let body = wire::encode(&Message::Bye);
        assert_eq!(out[..4], (4 + body.len() as u32).to_le_bytes());
        assert_eq!(out[8..12], (body.len() as u32).to_le_bytes());
        assert_eq!(out[12..], body);
        assert_eq!(out[4..8], crc32c::crc32c(&out[8..]).to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_together_is_not_sent() {
        let content = Bytes::from_static(b"abc");
        let message = with_payloads(std::slice::from_ref(&content));
        let mut out = vec![1, 2, 3];
        for wrong in [vec![], vec![Bytes::from_static(b"ab")], vec![content.clone(), Bytes::new()]] {
            assert!(matches!(encode(&message, &wrong, &mut out), Err(FrameError::PayloadLength { .. })));
        }
        let why = "x".repeat(limits::MESSAGE_MAX_BYTES + 1);
        assert!(matches!(encode(&Message::Refuse { why }, &[], &mut out), Err(FrameError::Length(_))));
        assert_eq!(out, [1, 2, 3]);
        encode(&message, &[content], &mut out).unwrap();
    }

    #[test]
    fn lengths_are_refused_before_the_bytes_come() {
        for (length, ok) in [(0, false), (3, false), (4, true), (BODY_MAX_BYTES, true), (BODY_MAX_BYTES + 1, false)] {
            let mut header = (length as u32).to_le_bytes().to_vec();
            header.extend_from_slice(&[0; 4]);
            assert_eq!(peek(&header).is_ok(), ok, "{length}");
        }
    }

    #[test]
    fn a_full_pool_takes_nothing() {
        let contents = [Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")];
        let mut out = Vec::new();
        encode(&with_payloads(&contents), &contents, &mut out).unwrap();
        let received = decode(&mut BytesMut::from(&out[..])).unwrap().unwrap();
        assert_eq!(received.payload_bytes(), 6);
        let (mut next, mut released) = (10, Vec::new());
        let refused = received.admit(
            |_| {
                next += 1;
                if next < 13 { Ok(PayloadId(next)) } else { Err("full") }
            },
            |id| released.push(id),
        );
        assert_eq!((refused, released), (Err("full"), vec![PayloadId(11), PayloadId(12)]));
    }

    fn contents() -> impl Strategy<Value = Vec<Bytes>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from), 0..6)
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(contents in contents(), cut in 0usize..400) {
            let message = with_payloads(&contents);
            let mut out = Vec::new();
            encode(&message, &contents, &mut out).unwrap();
            encode(&Message::Bye, &[], &mut out).unwrap();
            // In two pieces, wherever the cut is.
            let cut = cut.min(out.len());
            let mut buffer = BytesMut::from(&out[..cut]);
            let mut got = Vec::new();
            while let Some(received) = decode(&mut buffer).unwrap() {
                got.push(received);
            }
            buffer.extend_from_slice(&out[cut..]);
            while let Some(received) = decode(&mut buffer).unwrap() {
                got.push(received);
            }
            prop_assert_eq!(got.len(), 2);
            let mut arrived = Vec::new();
            let first = got.remove(0).admit(|b| { arrived.push(b); Ok::<_, ()>(PayloadId(7)) }, |_| ());
            prop_assert_eq!(first, Ok(message));
            prop_assert_eq!(arrived, contents);
        }

        #[test]
        fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&mut BytesMut::from(&noise[..]));
            // And with header and checksum in order.
            let mut framed = (noise.len() as u32).to_le_bytes().to_vec();
            framed.extend_from_slice(&crc32c::crc32c(&noise).to_le_bytes());
            framed.extend_from_slice(&noise);
            let _ = decode(&mut BytesMut::from(&framed[..]));
            // And with the length of the message in order.
            let mut body = (noise.len() as u32).to_le_bytes().to_vec();
            body.extend_from_slice(&noise);
            let _ = decode_body(&Bytes::from(body));
        }

        /// Messages that are almost right, behind a right checksum.
        #[test]
        fn no_changed_message_panics(
            contents in contents(),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..6),
        ) {
            let mut out = Vec::new();
            encode(&with_payloads(&contents), &contents, &mut out).unwrap();
            let mut body = out.split_off(HEADER_BYTES);
            for (at, how, byte) in hits {
                let at = at.index(body.len());
                match how {
                    0 => body[at] = byte,
                    1 => body.insert(at, byte),
                    2 if body.len() > 4 => drop(body.remove(at)),
                    // A length or a variant that takes several bytes.
                    _ => drop(body.splice(at..at, [0xff, 0xff, 0xff, byte & 0x7f])),
                }
            }
            let mut framed = (body.len() as u32).to_le_bytes().to_vec();
            framed.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
            framed.extend_from_slice(&body);
            if let Ok(Some(received)) = decode(&mut BytesMut::from(&framed[..])) {
                // What was taken for a message holds no more than what came.
                prop_assert!(received.payload_bytes() <= body.len() as u64);
                let admitted = received.admit(|_| Ok::<_, ()>(PayloadId(1)), |_| ());
                prop_assert!(admitted.is_ok());
            }
        }

        #[test]
        fn every_flipped_bit_is_noticed(contents in contents(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut out = Vec::new();
            encode(&with_payloads(&contents), &contents, &mut out).unwrap();
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            // A longer length waits for bytes that never come; anything else is an error.
            prop_assert!(!matches!(decode(&mut BytesMut::from(&out[..])), Ok(Some(_))));
        }
    }
}
