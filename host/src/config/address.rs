//! Addresses: where to listen, what to tell to peers, how to write a peer's address.

use super::{Config, DEFAULT_PORT};
use ice_core::limits;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// `host:port` to listen on; an empty host means all addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BindAddr {
    /// A name or an IP address (IPv6 without brackets), or empty.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
}

impl fmt::Display for BindAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.into() }
}

impl BindAddr {
    /// Reads `:9000`, `host:9000`, `10.0.0.1:9000` or `[::1]:9000`.
    pub fn parse(text: &str) -> Result<BindAddr, String> {
        let bad = || format!("`{text}` is no address to listen on: write it like :9000, 10.0.0.1:9000 or [::1]:9000");
        let (host, port) = split_port(text.trim()).ok_or_else(bad)?;
        let port = port.ok_or_else(bad)?;
        Ok(BindAddr { host: host.to_ascii_lowercase(), port })
    }

    /// Only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
    }

    /// Both cannot be listened on.
    pub fn clashes(&self, other: &BindAddr) -> bool {
        self.port != 0
            && self.port == other.port
            && (self.host == other.host || self.is_wildcard() || other.is_wildcard())
    }

    /// It stands for all addresses of the machine.
    pub fn is_wildcard(&self) -> bool {
        self.host.is_empty() || self.host.parse::<IpAddr>().is_ok_and(|a| a.is_unspecified())
    }
}

/// Host (without brackets, maybe empty) and port. `None` if it is neither.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return None,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(host.chars().all(name_ok) || host.contains(':')) || host.len() > 253 {
        return None;
    }
    let port = match port {
        Some(p) if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) => Some(p.parse().ok()?),
        Some(_) => return None,
        None => None,
    };
    Some((host, port))
}

/// The canonical form of a node's base URL: `scheme://host[:port]`, in small letters, without path.
///
/// Without a scheme it is `https` if `tls` (this node's own use of it) is set, else `http`; without scheme and port, the port is
/// 9000. What follows the authority is dropped. User names and passwords are refused.
pub fn normalize_url(text: &str, tls: bool) -> Result<String, String> {
    let shown: String = text.chars().take(100).filter(|c| !c.is_control()).collect();
    let bad = |why: &str| format!("`{shown}` is no base URL of a node: {why}");
    let text = text.trim();
    let (scheme, rest) = match text.split_once("://") {
        Some((s, rest)) => (Some(s.to_ascii_lowercase()), rest),
        None => (None, text),
    };
    if let Some(s) = &scheme
        && s != "http"
        && s != "https"
    {
        return Err(bad("only http and https are possible"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(bad("leave out user name and password; `api_token` is the place for a secret"));
    }
    let (host, port) = split_port(authority).ok_or_else(|| bad("write it like http://host:9000"))?;
    if host.is_empty() {
        return Err(bad("it has no host"));
    }
    if port == Some(0) {
        return Err(bad("port 0 cannot be reached"));
    }
    let host = bracketed(&host.to_ascii_lowercase());
    let url = match (scheme, port) {
        (Some(s), Some(p)) => format!("{s}://{host}:{p}"),
        (Some(s), None) => format!("{s}://{host}"),
        (None, p) => format!("{}://{host}:{}", if tls { "https" } else { "http" }, p.unwrap_or(DEFAULT_PORT)),
    };
    if url.len() > limits::URL_MAX_BYTES {
        return Err(bad("it is too long"));
    }
    Ok(url)
}

/// Host (without brackets) and port of a normalised base URL.
pub(super) fn parts(url: &str) -> Option<(String, u16)> {
    let (scheme, authority) = url.split_once("://")?;
    let (host, port) = split_port(authority)?;
    Some((host.to_owned(), port.unwrap_or(if scheme == "https" { 443 } else { 80 })))
}

/// The URL's host is an address that stands for all of a machine's.
pub(super) fn is_unspecified(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    split_port(authority).is_some_and(|(host, _)| host.parse::<IpAddr>().is_ok_and(|a| a.is_unspecified()))
}

/// The host's name as the kernel has it, in small letters.
pub(super) fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    (!name.is_empty() && name != "(none)").then_some(name)
}

/// Without a usable name: the address from which this machine would reach others. Connecting a UDP socket sends nothing;
/// 192.0.2.1 is set apart for documentation (RFC 5737).
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

pub(super) fn advertised(config: &Config, port: u16) -> Result<Vec<String>, String> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    let usable = |name: &String| !name.starts_with("localhost") && matches!(split_port(name), Some((_, None)));
    let host = if !config.bind.is_wildcard() {
        config.bind.host.clone()
    } else {
        host_name()
            .filter(usable)
            .or_else(|| outward_address().map(|a| a.to_string()))
            .ok_or("this machine has no name or address that peers could use: set `advertise`")?
    };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    Ok(vec![format!("{scheme}://{}:{port}", bracketed(&host))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses() {
        for (text, host, port, shown) in [
            (":9000", "", 9000, ":9000"),
            ("0.0.0.0:80", "0.0.0.0", 80, "0.0.0.0:80"),
            ("Node-1.example:1", "node-1.example", 1, "node-1.example:1"),
            ("[::1]:0", "::1", 0, "[::1]:0"),
            ("[::]:9000", "::", 9000, "[::]:9000"),
        ] {
            let b = BindAddr::parse(text).unwrap();
            assert_eq!((b.host.as_str(), b.port, b.to_string().as_str()), (host, port, shown));
        }
        for text in [
            "",
            "9000",
            "host",
            ":",
            ":x",
            ":65536",
            ":-1",
            ":+1",
            "a b:1",
            "::1:9000",
            "[::1]",
            "[x]:1",
            "h:1:2",
            "http://h:1",
        ] {
            assert!(BindAddr::parse(text).is_err(), "{text}");
        }
        let clash = |a: &str, b: &str| BindAddr::parse(a).unwrap().clashes(&BindAddr::parse(b).unwrap());
        assert!(clash(":1", "10.0.0.1:1") && clash("a:1", "A:1") && clash("[::1]:1", "0.0.0.0:1"));
        assert!(!clash("a:1", "b:1") && !clash(":1", ":2") && !clash(":0", ":0"));
        assert!(BindAddr::parse("127.0.0.2:1").unwrap().is_loopback());
        assert!(BindAddr::parse("[::]:1").unwrap().is_wildcard());
    }

    #[test]
    fn urls() {
        for (text, tls, want) in [
            ("node2", false, "http://node2:9000"),
            ("node2", true, "https://node2:9000"),
            ("Node2:8000/", false, "http://node2:8000"),
            ("HTTP://Node2/v1/x?y#z", true, "http://node2"),
            ("https://[FE80::1]:9", false, "https://[fe80::1]:9"),
            (" 10.0.0.1:9000 ", false, "http://10.0.0.1:9000"),
        ] {
            assert_eq!(normalize_url(text, tls).as_deref(), Ok(want), "{text}");
        }
        for text in ["", "/", "http://", "ftp://h", "http://u:p@h", "h:0", "h:x", "a b", "http:/h", "h\u{e9}", "[::1"] {
            let e = normalize_url(text, false).unwrap_err();
            assert!(e.contains("is no base URL"), "{text}: {e}");
        }
        assert!(normalize_url(&"h".repeat(2000), false).is_err());
    }

    #[test]
    fn what_peers_are_told() {
        let with = |bind: &str| Config { bind: BindAddr::parse(bind).unwrap(), ..Config::default() };
        assert_eq!(with("10.1.2.3:0").advertised(77).unwrap(), ["http://10.1.2.3:77"]);
        assert_eq!(with("127.0.0.1:9000").advertised(9000).unwrap(), ["http://127.0.0.1:9000"]);
        assert_eq!(with("localhost:9000").advertised(9000).unwrap(), ["http://localhost:9000"]);
        assert_eq!(with("[::1]:9000").advertised(9000).unwrap(), ["http://[::1]:9000"]);
        for wildcard in [":9000", "0.0.0.0:9000", "[::]:9000"] {
            // A machine without any name or address is told to set it.
            match with(wildcard).advertised(9000) {
                Ok(urls) => assert!(urls[0].ends_with(":9000") && !urls[0].contains("localhost"), "{urls:?}"),
                Err(e) => assert!(e.to_string().contains("set `advertise`"), "{e}"),
            }
        }
        let mut c = with(":9000");
        c.advertise = vec!["http://a:1".into(), "http://b:2".into()];
        assert_eq!(c.advertised(9000).unwrap(), ["http://a:1", "http://b:2"]);
        let mut c = with("10.1.2.3:9000");
        c.tls = Some(super::super::TlsFiles { cert: "c".into(), key: "k".into() });
        assert_eq!(c.advertised(9000).unwrap(), ["https://10.1.2.3:9000"]);
    }
}
