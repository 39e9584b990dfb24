//! What DeCube's sections say of things that have a key of their own, too.

use super::address::{self, BindAddr, normalize_url};
use super::decube::Decube;
use super::{Config, keys};
use std::path::PathBuf;

/// Takes over what `decube` says. `said` tells of a key of the top level whether it has a value of its own; the two must not
/// contradict each other.
pub(super) fn merged(mut config: Config, mut decube: Decube, said: &dyn Fn(&str) -> bool) -> Result<Config, String> {
    if let Some(id) = decube.node_id.take() {
        let id = keys::node_name(&id).map_err(|e| format!("`node.id`: {e}"))?;
        config.node_id = one("node_id", config.node_id, "node.id", id, said)?;
    }
    if let Some(data) = decube.data.take() {
        config.data = one_path("data", Some(config.data), "node.data_dir", data, said)?;
    }
    if let Some(file) = decube.log_file.take() {
        config.log_file = Some(one_path("log_file", config.log_file, "logging.output", file, said)?);
    }
    config.log_verbose |= std::mem::take(&mut decube.log_debug);
    let peers = std::mem::take(&mut decube.peers);
    if !peers.is_empty() {
        if said("join") {
            return Err("`join` and `node.peer_addresses` are both set: name the members in one of them".into());
        }
        members(&mut config, peers, said)?;
    }
    config.decube = decube;
    Ok(config)
}

/// The section's value, unless the key has another one.
fn one<T: PartialEq + std::fmt::Display>(
    key: &str,
    own: T,
    section_key: &str,
    value: T,
    said: &dyn Fn(&str) -> bool,
) -> Result<T, String> {
    if said(key) && own != value {
        return Err(format!("`{key}` is {own} and `{section_key}` is {value}: only one can be right"));
    }
    Ok(value)
}

fn one_path(
    key: &str,
    own: Option<PathBuf>,
    section_key: &str,
    value: PathBuf,
    said: &dyn Fn(&str) -> bool,
) -> Result<PathBuf, String> {
    let own = own.unwrap_or_default().display().to_string();
    one(key, own, section_key, value.display().to_string(), said)?;
    Ok(value)
}

/// `node.peer_addresses` names all members, this one included: the address whose host is this node's name is its own, and says
/// where it listens unless `bind` and `advertise` do.
fn members(config: &mut Config, peers: Vec<String>, said: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let tls = config.tls.is_some();
    let mut own = vec![];
    for peer in &peers {
        let url = normalize_url(peer, tls).map_err(|e| format!("`node.peer_addresses`: {e}"))?;
        let (host, port) = address::parts(&url).ok_or_else(|| format!("`node.peer_addresses`: {url}"))?;
        if is_name(&host, &config.node_id) {
            own.push((url, port));
        }
    }
    match &own[..] {
        [] => {}
        [(url, port)] => {
            if !said("advertise") {
                config.advertise = vec![url.clone()];
            }
            if !said("bind") {
                config.bind = BindAddr { host: String::new(), port: *port };
            }
        }
        _ if said("bind") || said("advertise") => {}
        several => {
            let urls: Vec<&str> = several.iter().map(|(u, _)| u.as_str()).collect();
            return Err(format!(
                "`node.peer_addresses`: {} are all at {}: say which is this node's in `advertise` and `bind`",
                urls.join(" and "),
                config.node_id
            ));
        }
    }
    config.join = peers;
    Ok(())
}

/// A host is a node's: it is its name, or that with a domain.
fn is_name(host: &str, node_id: &str) -> bool {
    let id = node_id.to_ascii_lowercase();
    host.strip_prefix(id.as_str()).is_some_and(|rest| !id.is_empty() && (rest.is_empty() || rest.starts_with('.')))
}
