//! Base URLs of nodes: `http://host:port` or `https://host:port`.

use ice_core::limits::URL_MAX_BYTES;
use std::fmt;

/// A node's address, in its one normal form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BaseUrl {
    /// `https`.
    tls: bool,
    /// `host`, `host:port` or `[v6]:port`, in lower case, the scheme's own port left out.
    authority: String,
}

/// Why text is not a node's address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{url:?} is not a node's address: {why}")]
pub struct UrlError {
    url: String,
    why: &'static str,
}

impl BaseUrl {
    /// Reads an address. A missing scheme means `http`; a path, query or fragment is cut off; names are case-insensitive.
    pub fn parse(text: &str) -> Result<BaseUrl, UrlError> {
        let fail = |why| Err(UrlError { url: text.chars().take(80).collect(), why });
        let trimmed = text.trim();
        if trimmed.len() > URL_MAX_BYTES {
            return fail("too long");
        }
        let (tls, rest) = match trimmed.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return fail("only http and https are spoken"),
            None => (false, trimmed),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = rest[..end].to_ascii_lowercase();
        if authority.contains('@') {
            return fail("user names and passwords do not belong there");
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority.as_str(), None),
        };
        if host.is_empty() {
            return fail("no host");
        }
        let inside = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        match inside {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_err() => return fail("not an IPv6 address"),
            Some(_) => {}
            None if host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) => {}
            None => return fail("not a host name"),
        }
        let authority = match port {
            None => host.to_owned(),
            Some(port) => match port.parse::<u16>() {
                Ok(0) | Err(_) => return fail("not a port number"),
                Ok(number) if number == default_port(tls) => host.to_owned(),
                Ok(number) => format!("{host}:{number}"),
            },
        };
        Ok(BaseUrl { tls, authority })
    }

    /// `https`.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// `host`, or `host:port` where the port is not the scheme's own: for the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `host:port`, for connecting.
    pub fn connect_to(&self) -> String {
        let has_port = self.authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        if has_port { self.authority.clone() } else { format!("{}:{}", self.authority, default_port(self.tls)) }
    }

    /// The host without port and brackets, for the check of certificates.
    pub fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_normal_form() {
        for (text, normal, connect, host) in [
            ("node1:9000", "http://node1:9000", "node1:9000", "node1"),
            ("HTTP://Node1:9000/v1/x?y#z", "http://node1:9000", "node1:9000", "node1"),
            ("https://a.example", "https://a.example", "a.example:443", "a.example"),
            ("https://a.example:443/", "https://a.example", "a.example:443", "a.example"),
            ("http://[::1]:9000", "http://[::1]:9000", "[::1]:9000", "::1"),
            ("[::1]", "http://[::1]", "[::1]:80", "::1"),
            (" 10.0.0.1 ", "http://10.0.0.1", "10.0.0.1:80", "10.0.0.1"),
        ] {
            let url = BaseUrl::parse(text).unwrap();
            assert_eq!((url.to_string().as_str(), url.connect_to().as_str(), url.host()), (normal, connect, host));
            assert_eq!(BaseUrl::parse(&url.to_string()).unwrap(), url);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = "a".repeat(URL_MAX_BYTES + 1);
        for text in [
            "",
            "http://",
            "ftp://a",
            "http://a b",
            "a:99999",
            "a:0",
            "a:x",
            "user@a",
            "::1",
            "[::g]",
            "a\r\nb",
            "é",
            &long,
        ] {
            assert!(BaseUrl::parse(text).is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        /// No text panics, and what is understood is understood again as the same, also by the configuration.
        #[test]
        fn no_text_panics_and_the_normal_form_stays(text in "(http|https|ftp|HTTP|://|:|/|@|\\[|\\]|::1|\\.|-|é|%| |\\?|#|[a-z0-9]{1,6}|65535|65536|0){0,12}") {
            if let Ok(url) = BaseUrl::parse(&text) {
                let shown = url.to_string();
                proptest::prop_assert_eq!(BaseUrl::parse(&shown), Ok(url.clone()));
                proptest::prop_assert!(shown.is_ascii() && shown.len() <= URL_MAX_BYTES + "https://".len());
                proptest::prop_assert!(!url.host().is_empty() && !url.host().contains(['[', ']', '/', '@']));
                let (_, port) = url.connect_to().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
                proptest::prop_assert!(port.parse::<u16>().is_ok_and(|p| p > 0));
            }
            if let Ok(url) = crate::config::normalize_url(&text, false) {
                proptest::prop_assert_eq!(crate::config::normalize_url(&url, true), Ok(url.clone()));
                // What the configuration lets through can be dialled.
                proptest::prop_assert!(BaseUrl::parse(&url).is_ok(), "{}", url);
            }
            if let Ok(bind) = crate::config::BindAddr::parse(&text) {
                proptest::prop_assert_eq!(crate::config::BindAddr::parse(&bind.to_string()), Ok(bind));
            }
        }
    }
}
