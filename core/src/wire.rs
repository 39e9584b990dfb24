//! The codec of everything that leaves a node: a version byte, then postcard. Integrity is the framing's business.

use alloc::vec::Vec;
use core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this build writes and the only one that it reads.
pub const VERSION: u8 = 1;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// Written by another version of the protocol.
    Version(u8),
    /// Not an encoding of the expected type, or followed by something else.
    Damaged,
    /// Nothing at all.
    Empty,
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

/// Decodes what [`encode`] wrote. Any bytes may be given.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != VERSION {
        return Err(WireError::Version(*version));
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(|_| WireError::Damaged)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::Damaged) }
}
