//! Tokens of authenticated users. Signed with a secret that all members share, so that each knows those of the others and
//! none has to remember any.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ice_core::kv::command::By;
use ring::hmac;

/// How long a token is good for, in seconds. A client authenticates again by itself.
pub const LIFE_S: u64 = 3600;
const VERSION: u8 = 1;
const TAG_BYTES: usize = 32;
/// Version, end and revision stand before the name.
const HEAD_BYTES: usize = 1 + 8 + 8;

/// Issues and knows tokens.
pub(crate) struct Tokens(hmac::Key);

impl Tokens {
    pub(crate) fn new(secret: &[u8; 32]) -> Tokens {
        Tokens(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A token for `user`, authenticated while users and roles were at `revision`.
    pub(crate) fn issue(&self, user: &str, revision: u64, now_s: u64) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&now_s.saturating_add(LIFE_S).to_be_bytes());
        bytes.extend_from_slice(&revision.to_be_bytes());
        bytes.extend_from_slice(user.as_bytes());
        let tag = hmac::sign(&self.0, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whose token this is; `None` if it is none of ours, or none any more.
    pub(crate) fn check(&self, token: &str, now_s: u64) -> Option<By> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let at = bytes.len().checked_sub(TAG_BYTES).filter(|n| *n >= HEAD_BYTES)?;
        let (said, tag) = bytes.split_at(at);
        hmac::verify(&self.0, said, tag).ok()?;
        let number = |at: usize| said.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if said[0] != VERSION || number(1)? <= now_s {
            return None;
        }
        let name = String::from_utf8(said[HEAD_BYTES..].to_vec()).ok()?;
        Some(By::User { name, revision: number(9)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_user_for_a_while() {
        let tokens = Tokens::new(&[1; 32]);
        let token = tokens.issue("alice", 7, 1000);
        let alice = By::User { name: "alice".into(), revision: 7 };
        assert_eq!(tokens.check(&token, 1000), Some(alice.clone()));
        assert_eq!(tokens.check(&token, 1000 + LIFE_S - 1), Some(alice));
        assert_eq!(tokens.check(&token, 1000 + LIFE_S), None);
        assert_eq!(Tokens::new(&[2; 32]).check(&token, 1000), None);
    }

    #[test]
    fn no_changed_token_is_known() {
        let tokens = Tokens::new(&[1; 32]);
        let token = BASE64_URL_SAFE_NO_PAD.decode(tokens.issue("alice", 7, 1000)).unwrap();
        for i in 0..token.len() {
            let mut other = token.clone();
            other[i] ^= 1;
            assert_eq!(tokens.check(&BASE64_URL_SAFE_NO_PAD.encode(&other), 1000), None, "byte {i}");
        }
        for n in 0..token.len() {
            assert_eq!(tokens.check(&BASE64_URL_SAFE_NO_PAD.encode(&token[..n]), 1000), None, "{n} bytes");
        }
        assert_eq!(tokens.check("not a token", 1000), None);
    }
}
