//! Passwords of the store's users: hashed here with PBKDF2 (RFC 8018), so that the log and the store never see one.

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use ring::pbkdf2;
use std::num::NonZeroU32;

/// Rounds of HMAC-SHA-256 for a new hash: what OWASP asks for.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");
/// Rounds of a hash that somebody else made, at most, so that checking it ends.
const ROUNDS_MAX: u32 = 10_000_000;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// Longest password that is looked at.
pub const PASSWORD_MAX_BYTES: usize = 1024;

/// The hash of a password, as text: `$pbkdf2-sha256$i=ROUNDS$SALT$HASH`. Takes a good part of a second.
pub fn hash(password: &str) -> std::io::Result<String> {
    let mut salt = [0; SALT_BYTES];
    ice_serve::random(&mut salt)?;
    let mut out = [0; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password.as_bytes(), &mut out);
    let text = |bytes: &[u8]| BASE64_STANDARD_NO_PAD.encode(bytes);
    Ok(format!("$pbkdf2-sha256$i={ROUNDS}${}${}", text(&salt), text(&out)))
}

/// Whether `hash` is of this password. A hash that is none fits no password.
pub fn verify(password: &str, hash: &str) -> bool {
    parse(hash).is_some_and(|(rounds, salt, want)| {
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &want).is_ok()
    })
}

/// Whether a text can be the hash of a password.
pub fn is_hash(text: &str) -> bool {
    parse(text).is_some()
}

/// Takes as long as checking a password, for a user that is not there: so that the time does not tell who is.
pub fn waste(password: &str) {
    let mut out = [0; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &[0; SALT_BYTES], password.as_bytes(), &mut out);
    std::hint::black_box(out);
}

fn parse(text: &str) -> Option<(NonZeroU32, Vec<u8>, Vec<u8>)> {
    let mut parts = text.strip_prefix("$pbkdf2-sha256$i=")?.split('$');
    let rounds = parts.next()?.parse().ok().filter(|n: &NonZeroU32| n.get() <= ROUNDS_MAX)?;
    let salt = BASE64_STANDARD_NO_PAD.decode(parts.next()?).ok()?;
    let want = BASE64_STANDARD_NO_PAD.decode(parts.next()?).ok()?;
    (parts.next().is_none() && !salt.is_empty() && want.len() == HASH_BYTES).then_some((rounds, salt, want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_fits_its_hash_and_no_other() {
        let hash = hash("opensesame").unwrap();
        assert!(is_hash(&hash), "{hash}");
        assert!(verify("opensesame", &hash));
        assert!(!verify("opensesam", &hash));
        assert!(!verify("", &hash));
        assert!(!hash.contains("opensesame"));
    }

    #[test]
    fn a_known_hash_is_understood() {
        // PBKDF2-HMAC-SHA256, "password", "salt", 4096 rounds: a published test vector.
        let want: Vec<u8> = (0..32)
            .map(|i| {
                let hex = "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a";
                u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()
            })
            .collect();
        let text = format!(
            "$pbkdf2-sha256$i=4096${}${}",
            BASE64_STANDARD_NO_PAD.encode("salt"),
            BASE64_STANDARD_NO_PAD.encode(want)
        );
        assert!(verify("password", &text));
    }

    #[test]
    fn what_is_no_hash_fits_nothing() {
        for text in ["", "plain", "$pbkdf2-sha256$i=0$c2FsdA$AAAA", "$pbkdf2-sha256$i=99999999$c2FsdA$AAAA", "$2a$10$x"]
        {
            assert!(!is_hash(text) && !verify("", text) && !verify(text, text), "{text}");
        }
    }
}
