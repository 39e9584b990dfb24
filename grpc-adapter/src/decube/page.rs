//! Lists in pages: a token says where the next page begins, and of which revision.

use super::problem::Problem;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Entries of a page unless asked otherwise.
pub(crate) const DEFAULT: usize = 500;
/// Entries of a page at most.
pub(crate) const MOST: usize = 1000;
/// Longest token.
const TOKEN_MAX_BYTES: usize = 4096;

/// Where a list goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Next {
    /// What list it is: a token of another one, or of another filter, is refused.
    pub(crate) of: String,
    /// All pages show the store as it was at this revision.
    pub(crate) revision: u64,
    /// After this one.
    pub(crate) after: String,
}

impl Next {
    pub(crate) fn token(&self) -> String {
        // A struct of texts and a number can always be written.
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// What a token says; `None` for the first page.
    pub(crate) fn parse(token: &str, of: &str) -> Result<Option<Next>, Problem> {
        if token.is_empty() {
            return Ok(None);
        }
        let bad = || Problem::invalid("Invalid continuation token");
        if token.len() > TOKEN_MAX_BYTES {
            return Err(bad());
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let next: Next = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        if next.of == of { Ok(Some(next)) } else { Err(bad()) }
    }
}

/// How many entries a page has, of what was asked for.
pub(crate) fn size(limit: i64) -> Result<usize, Problem> {
    match usize::try_from(limit) {
        Ok(0) => Ok(DEFAULT),
        Ok(n) => Ok(n.min(MOST)),
        Err(_) => Err(Problem::invalid("Limit must not be negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_list() {
        let next = Next { of: "pods default a=b".into(), revision: 7, after: "web-1".into() };
        assert_eq!(Next::parse(&next.token(), "pods default a=b").unwrap(), Some(next.clone()));
        assert!(Next::parse(&next.token(), "pods default").is_err());
        assert_eq!(Next::parse("", "anything").unwrap(), None);
        for bad in ["x", "e30", "####", &"A".repeat(5000)] {
            assert!(Next::parse(bad, "pods").is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_have_a_size() {
        assert_eq!(size(0).unwrap(), DEFAULT);
        assert_eq!(size(7).unwrap(), 7);
        assert_eq!(size(i64::from(i32::MAX)).unwrap(), MOST);
        assert!(size(-1).is_err());
    }
}
