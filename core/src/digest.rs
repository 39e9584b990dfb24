//! Stable digests of values, for traces and checks.

use serde::Serialize;

/// 128 bits of BLAKE3 over the value's encoding.
pub fn of<T: Serialize>(value: &T) -> u128 {
    let h = blake3::hash(&crate::wire::encode(value));
    let mut b = [0u8; 16];
    b.copy_from_slice(&h.as_bytes()[..16]);
    u128::from_le_bytes(b)
}
