//! The codec of everything that leaves a node: a version byte, then postcard. Integrity is the framing's business.

mod budget;

use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this build writes and the only one that it reads.
pub const VERSION: u8 = 2;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// Written by another version of the protocol.
    Version(u8),
    /// Not an encoding of the expected type, or followed by something else.
    Damaged,
    /// Nothing at all.
    Empty,
    /// It would take far more memory than its length allows: nothing that this program writes does.
    Swells,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Version(v) => {
                write!(
                    f,
                    "protocol version {v} is spoken there, this node speaks {VERSION}: upgrade the older of the two"
                )
            }
            WireError::Damaged => f.write_str("damaged encoding"),
            WireError::Empty => f.write_str("empty encoding"),
            WireError::Swells => f.write_str("an encoding that swells in memory"),
        }
    }
}
impl core::error::Error for WireError {}

/// Encodes a message, a log record or a frame.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let start = alloc::vec![VERSION];
    // postcard fails only on unsized sequences, which none of our types has.
    postcard::to_extend(value, start).unwrap_or_default()
}

fn body(bytes: &[u8]) -> Result<&[u8], WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version == VERSION { Ok(body) } else { Err(WireError::Version(*version)) }
}

/// Decodes what [`encode`] wrote. Any bytes may be given, but what others send is for [`decode_foreign`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let body = body(bytes)?;
    let (value, rest) = postcard::take_from_bytes(body).map_err(|_| WireError::Damaged)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::Damaged) }
}

/// Encodings up to this length are decoded as they are: they cannot take much.
const SMALL_BYTES: usize = 64 * 1024;
/// What the elements of sequences may take beyond [`SWELL`] times the length of the encoding.
const SWELL_FREE_BYTES: usize = 1024 * 1024;
/// How many times its own length the elements of an encoding's sequences may take. Records of a tree take two to three times as
/// much in memory; one byte can stand for an empty list of 24, or, in an operation, for nearly as many.
const SWELL: usize = 3;

/// [`decode`] for bytes from elsewhere: what they say of themselves cannot make this node allocate more than a small multiple of
/// their length.
pub fn decode_foreign<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let body = body(bytes)?;
    if body.len() <= SMALL_BYTES {
        return decode(bytes);
    }
    let left = Cell::new(Some(body.len().saturating_mul(SWELL).saturating_add(SWELL_FREE_BYTES)));
    let mut source = postcard::Deserializer::from_bytes(body);
    let value = T::deserialize(budget::Within { inner: &mut source, left: &left });
    match (value, source.finalize()) {
        (Ok(value), Ok([])) => Ok(value),
        _ if left.get().is_none() => Err(WireError::Swells),
        _ => Err(WireError::Damaged),
    }
}
