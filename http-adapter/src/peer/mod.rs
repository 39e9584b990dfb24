//! Peers: one upgraded connection per pair carries framed messages; content moves beside it over plain HTTP.

mod client;
mod fetch;
mod link;
mod net;
mod serve;

pub use net::{Net, NetConfig};
pub(crate) use serve::routes;

use std::io;

/// Where peers upgrade.
pub(crate) const PEER_PATH: &str = "/v1/peer";
/// Where peers get content.
pub(crate) const CONTENT_PATH: &str = "/v1/peer/content";
/// Where peers get the hashes of a version's blocks.
pub(crate) const BLOCKS_PATH: &str = "/v1/peer/blocks";
/// In the query for blocks: answer with none if the version has no holes to speak of.
pub(crate) const ONLY_SPARSE: &str = "&only=sparse";
/// Larger versions are transferred whole: 32 bytes for each block of 256 KiB must fit into memory.
pub(crate) const BLOCKS_OF_MAX_BYTES: u64 = 64 << 30;
/// The only protocol spoken after an upgrade. The number changes with the framing; messages carry their own version.
pub(crate) const PROTOCOL: &str = "icecluster/1";
/// 32 random bytes in hex, from the dialler.
pub(crate) const NONCE_HEADER: &str = "icecluster-nonce";
/// The answerer's proof that it knows the token too.
pub(crate) const PROOF_HEADER: &str = "icecluster-proof";

/// The version of the program that speaks, both ways. For people only: nothing depends on it.
pub(crate) const VERSION_HEADER: &str = "icecluster-version";
/// Longest version that is shown.
const VERSION_MAX_BYTES: usize = 64;

/// The version that the other side says it has, if it looks like one.
pub(crate) fn version_in(headers: &http::HeaderMap) -> Option<String> {
    let text = headers.get(VERSION_HEADER)?.to_str().ok()?;
    let fits = (1..=VERSION_MAX_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

/// What only somebody who knows `token` can answer to `nonce`: BLAKE3 in keyed mode, under a key derived from the token.
/// Without it a dialler would take orders from whoever answers at the address of a peer.
pub(crate) fn proof(token: &str, nonce: &str) -> String {
    let key = blake3::derive_key("icecluster peer proof 1", token.as_bytes());
    blake3::keyed_hash(&key, nonce.as_bytes()).to_hex().to_string()
}

/// Compares secrets in a time that does not tell where they differ.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    // Hashes have one length, and blake3 compares them in constant time.
    blake3::hash(a) == blake3::hash(b)
}

/// Why an `http` address is not used by a node that has TLS.
pub(crate) fn clear_text(url: &ice_host::transport::url::BaseUrl) -> String {
    format!(
        "{url} is not used: this node has TLS, and nothing of it travels in clear text; write https://{}",
        url.authority()
    )
}

/// A fresh nonce.
pub(crate) fn nonce() -> io::Result<String> {
    let mut bytes = [0; 32];
    ice_serve::random(&mut bytes)?;
    Ok(blake3::Hash::from_bytes(bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    #[test]
    fn proofs_belong_to_one_token_and_one_nonce() {
        let proof_of = proof("token", "nonce");
        assert!(same_secret(proof_of.as_bytes(), proof("token", "nonce").as_bytes()));
        for (token, nonce) in [("token", "nonce2"), ("token2", "nonce"), ("", "nonce"), ("token", "")] {
            assert!(!same_secret(proof_of.as_bytes(), proof(token, nonce).as_bytes()), "{token} {nonce}");
        }
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }

    proptest! {
        #[test]
        fn versions_are_short_and_printable(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(VERSION_HEADER, value);
            }
            let shown = version_in(&headers);
            let printable = |v: &String| (1..=64).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_graphic());
            prop_assert!(shown.as_ref().is_none_or(printable));
            let fits = (1..=64).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
            prop_assert_eq!(shown.is_some(), fits);
        }
    }
}
