//! Who may speak to DeCube's listeners: a bearer token, or a signed one (JSON Web Token, RFC 7519), checked on `ring`.
//!
//! The algorithm is the operator's choice by the kind of key, never the token's: a token that names another one is refused.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use serde::Deserialize;
use serde_json::Value;

/// Longest token.
pub const TOKEN_MAX_BYTES: usize = 8 * 1024;
/// How far clocks may differ when times in a token are looked at, in seconds.
pub const LEEWAY_S: u64 = 30;
/// Fewest bytes of a shared secret, so that it cannot be guessed from a token.
pub const SECRET_MIN_BYTES: usize = 32;

/// How callers prove who they are.
pub enum Gate {
    /// Nobody has to.
    Open,
    /// All by one secret word.
    Token(String),
    /// By a token signed with a shared secret (HS256).
    Hs256(hmac::Key, Claims),
    /// By a token signed with the private key of this public one (EdDSA, Ed25519).
    EdDsa(Box<[u8; 32]>, Claims),
}

/// What a signed token must say besides its times; `None`: anything.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// `iss`.
    pub issuer: Option<String>,
    /// One of `aud`.
    pub audience: Option<String>,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// No token was shown.
    #[error("a bearer token is needed")]
    Missing,
    /// It is not well formed, or not signed as it must be.
    #[error("the token is not valid")]
    Invalid,
    /// It was valid once.
    #[error("the token has expired")]
    Expired,
    /// It will be.
    #[error("the token is not valid yet")]
    Early,
    /// It is for somebody else.
    #[error("the token is not meant for this cluster")]
    Elsewhere,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Gate::Open => "Open",
            Gate::Token(_) => "Token",
            Gate::Hs256(..) => "Hs256",
            Gate::EdDsa(..) => "EdDsa",
        })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Extensions that must be understood; none is.
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Body {
    exp: Option<Number>,
    nbf: Option<Number>,
    iss: Option<String>,
    aud: Option<Audience>,
}

/// RFC 7519 allows fractions of seconds.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Fraction(f64),
}

impl Number {
    fn seconds(self) -> u64 {
        match self {
            Number::Whole(n) => n,
            // Saturates: negative times are long ago, infinite ones far away.
            Number::Fraction(f) => f as u64,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Gate {
    /// Signed tokens with a shared secret of at least [`SECRET_MIN_BYTES`].
    pub fn hs256(secret: &[u8], claims: Claims) -> Result<Gate, String> {
        if secret.len() < SECRET_MIN_BYTES {
            return Err(format!("a secret of {} bytes is too short: at least {SECRET_MIN_BYTES}", secret.len()));
        }
        Ok(Gate::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret), claims))
    }

    /// Signed tokens, by an Ed25519 public key in PEM (`BEGIN PUBLIC KEY`).
    pub fn eddsa_pem(pem: &str, claims: Claims) -> Result<Gate, String> {
        // SubjectPublicKeyInfo of Ed25519 (RFC 8410) is these twelve bytes and the key.
        const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let inner = pem
            .split_once("-----BEGIN PUBLIC KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"))
            .ok_or("no PEM block `PUBLIC KEY`")?
            .0;
        let text: String = inner.split_whitespace().collect();
        let der = base64::prelude::BASE64_STANDARD.decode(text).map_err(|e| format!("not PEM: {e}"))?;
        let key = der.strip_prefix(&SPKI).ok_or("not an Ed25519 public key")?;
        let key: [u8; 32] = key.try_into().map_err(|_| "not an Ed25519 public key")?;
        Ok(Gate::EdDsa(Box::new(key), claims))
    }

    /// Lets somebody in, or not. `authorization`: that header's value. `now_s`: seconds since 1970.
    pub fn check(&self, authorization: Option<&str>, now_s: u64) -> Result<(), Denied> {
        if matches!(self, Gate::Open) {
            return Ok(());
        }
        let token = authorization.ok_or(Denied::Missing)?;
        let (scheme, token) = token.split_once(' ').ok_or(Denied::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::Missing);
        }
        let token = token.trim();
        if token.len() > TOKEN_MAX_BYTES {
            return Err(Denied::Invalid);
        }
        match self {
            Gate::Open => Ok(()),
            Gate::Token(secret) => same(secret.as_bytes(), token.as_bytes()),
            Gate::Hs256(key, claims) => signed(token, "HS256", claims, now_s, |message, sig| {
                hmac::verify(key, message, sig).map_err(|_| Denied::Invalid)
            }),
            Gate::EdDsa(key, claims) => signed(token, "EdDSA", claims, now_s, |message, sig| {
                signature::UnparsedPublicKey::new(&signature::ED25519, &key[..])
                    .verify(message, sig)
                    .map_err(|_| Denied::Invalid)
            }),
        }
    }
}

/// Compares by their MACs, so that the time it takes says nothing, not even of the length.
fn same(secret: &[u8], shown: &[u8]) -> Result<(), Denied> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"icecluster bearer token");
    hmac::verify(&key, shown, hmac::sign(&key, secret).as_ref()).map_err(|_| Denied::Invalid)
}

fn signed(
    token: &str,
    algorithm: &str,
    claims: &Claims,
    now_s: u64,
    verify: impl FnOnce(&[u8], &[u8]) -> Result<(), Denied>,
) -> Result<(), Denied> {
    let (message, sig) = token.rsplit_once('.').ok_or(Denied::Invalid)?;
    let (header, body) = message.split_once('.').ok_or(Denied::Invalid)?;
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Denied::Invalid);
    let head: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Denied::Invalid)?;
    if head.alg != algorithm || head.crit.is_some() {
        return Err(Denied::Invalid);
    }
    verify(message.as_bytes(), &decode(sig)?)?;
    let body: Body = serde_json::from_slice(&decode(body)?).map_err(|_| Denied::Invalid)?;
    // A token without an end could never be taken back.
    let exp = body.exp.ok_or(Denied::Invalid)?.seconds();
    if exp.saturating_add(LEEWAY_S) <= now_s {
        return Err(Denied::Expired);
    }
    if body.nbf.is_some_and(|t| t.seconds() > now_s.saturating_add(LEEWAY_S)) {
        return Err(Denied::Early);
    }
    if claims.issuer.is_some() && claims.issuer != body.iss {
        return Err(Denied::Elsewhere);
    }
    if let Some(want) = &claims.audience {
        let ok = match &body.aud {
            None => false,
            Some(Audience::One(a)) => a == want,
            Some(Audience::Several(all)) => all.contains(want),
        };
        if !ok {
            return Err(Denied::Elsewhere);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_700_000_000;

    fn part(v: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(v)
    }

    fn hs(secret: &[u8], header: &str, body: &str) -> String {
        let message = format!("{}.{}", part(header), part(body));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
        format!("Bearer {message}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    }

    fn gate(claims: Claims) -> Gate {
        Gate::hs256(SECRET, claims).unwrap()
    }

    const HEAD: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    #[test]
    fn the_example_of_rfc_7515_is_understood() {
        // Appendix A.1: key, and token with the times of 2011.
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let token = "Bearer eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
            dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let gate = Gate::hs256(&BASE64_URL_SAFE_NO_PAD.decode(key).unwrap(), Claims::default()).unwrap();
        assert_eq!(gate.check(Some(token), 1_300_819_379), Ok(()));
        assert_eq!(gate.check(Some(token), 1_300_819_380 + LEEWAY_S), Err(Denied::Expired));
    }

    #[test]
    fn times_and_claims_are_looked_at() {
        let open = gate(Claims::default());
        let ok = format!(r#"{{"exp":{}}}"#, NOW + 10);
        assert_eq!(open.check(Some(&hs(SECRET, HEAD, &ok)), NOW), Ok(()));
        assert_eq!(open.check(Some(&hs(SECRET, HEAD, "{}")), NOW), Err(Denied::Invalid), "without an end");
        let early = format!(r#"{{"exp":{},"nbf":{}.5}}"#, NOW + 1000, NOW + 500);
        assert_eq!(open.check(Some(&hs(SECRET, HEAD, &early)), NOW), Err(Denied::Early));
        let mine = gate(Claims { issuer: Some("joe".into()), audience: Some("ice".into()) });
        for (claims, want) in [
            (r#""iss":"joe","aud":"ice""#, Ok(())),
            (r#""iss":"joe","aud":["fire","ice"]"#, Ok(())),
            (r#""iss":"joe","aud":["fire"]"#, Err(Denied::Elsewhere)),
            (r#""iss":"joe""#, Err(Denied::Elsewhere)),
            (r#""iss":"eve","aud":"ice""#, Err(Denied::Elsewhere)),
            (r#""aud":"ice""#, Err(Denied::Elsewhere)),
        ] {
            let body = format!(r#"{{"exp":{},{claims}}}"#, NOW + 10);
            assert_eq!(mine.check(Some(&hs(SECRET, HEAD, &body)), NOW), want, "{claims}");
        }
    }

    #[test]
    fn the_token_does_not_choose_the_algorithm() {
        let body = format!(r#"{{"exp":{}}}"#, NOW + 10);
        let gate = gate(Claims::default());
        for head in
            [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"EdDSA"}"#, r#"{"alg":"HS256","crit":["b64"]}"#]
        {
            assert_eq!(gate.check(Some(&hs(SECRET, head, &body)), NOW), Err(Denied::Invalid), "{head}");
        }
        let unsigned = format!("Bearer {}.{}.", part(r#"{"alg":"none"}"#), part(&body));
        assert_eq!(gate.check(Some(&unsigned), NOW), Err(Denied::Invalid));
        let other = hs(b"another secret of thirty-two bytes", HEAD, &body);
        assert_eq!(gate.check(Some(&other), NOW), Err(Denied::Invalid));
    }

    #[test]
    fn a_public_key_checks_what_its_private_key_signed() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        der.extend_from_slice(pair.public_key().as_ref());
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            base64::prelude::BASE64_STANDARD.encode(&der)
        );
        let gate = Gate::eddsa_pem(&pem, Claims::default()).unwrap();
        let message = format!("{}.{}", part(r#"{"alg":"EdDSA"}"#), part(&format!(r#"{{"exp":{}}}"#, NOW + 1)));
        let sig = BASE64_URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        assert_eq!(gate.check(Some(&format!("bearer {message}.{sig}")), NOW), Ok(()));
        // The classic: the public key as an HMAC secret.
        let forged = hs(pair.public_key().as_ref(), HEAD, &format!(r#"{{"exp":{}}}"#, NOW + 1));
        assert_eq!(gate.check(Some(&forged), NOW), Err(Denied::Invalid));
        assert!(
            Gate::eddsa_pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", Claims::default()).is_err()
        );
    }

    #[test]
    fn one_word_for_all() {
        let gate = Gate::Token("swordfish".into());
        assert_eq!(gate.check(Some("Bearer swordfish"), NOW), Ok(()));
        for wrong in [Some("Bearer swordfis"), Some("Bearer swordfishes"), Some("Bearer ")] {
            assert_eq!(gate.check(wrong, NOW), Err(Denied::Invalid), "{wrong:?}");
        }
        for none in [None, Some("swordfish"), Some("Basic swordfish")] {
            assert_eq!(gate.check(none, NOW), Err(Denied::Missing), "{none:?}");
        }
        assert_eq!(Gate::Open.check(None, NOW), Ok(()));
        assert!(Gate::hs256(b"short", Claims::default()).is_err());
    }
}
