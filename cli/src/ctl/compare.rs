//! `consistency`: compares the indexes of all nodes.

use super::client::Base;
use super::{Session, show::printable};
use anyhow::{Context, Result, bail};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a node says about one of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime: i64,
    /// Digest of the content, where the node knows it.
    pub digest: Option<Box<str>>,
}

impl Copy {
    /// Whether two copies have the same content, as far as can be told: by digest where both have one, else by size and
    /// time of modification.
    pub fn same(&self, other: &Copy) -> bool {
        self.size == other.size
            && match (&self.digest, &other.digest) {
                (Some(mine), Some(theirs)) => mine == theirs,
                _ => self.mtime == other.mtime,
            }
    }
}

/// The indexes of all nodes that answered.
pub struct Indexes {
    /// The nodes, in the order of `files`.
    pub peers: Vec<Base>,
    /// Per path (bytes, without leading slash) what each of `peers` has.
    pub files: BTreeMap<Vec<u8>, Vec<Option<Copy>>>,
    /// Nodes that did not answer.
    pub missing: Vec<Base>,
}

impl Indexes {
    /// The paths on which the nodes differ.
    pub fn differences(&self) -> impl Iterator<Item = (&Vec<u8>, &Vec<Option<Copy>>)> {
        self.files.iter().filter(|(_, copies)| {
            let mut all = copies.iter();
            match all.next().and_then(Option::as_ref) {
                None => true,
                Some(first) => !all.all(|c| c.as_ref().is_some_and(|c| c.same(first))),
            }
        })
    }
}

/// Asks the base node for its peers, and every one of them for its index. A peer that does not answer is skipped with a
/// warning; all of them not answering is an error.
pub fn load(s: &Session<'_>) -> Result<Indexes> {
    let listed: Vec<String> = s.client.json(&s.base, "/v1/peers")?;
    let mut all = Indexes { peers: vec![], files: BTreeMap::new(), missing: vec![] };
    for url in listed {
        let peer = Base::parse(&url).context("the list of peers")?;
        let read = load_one(s, &peer, &mut all.files, all.peers.len());
        match read {
            Ok(()) => all.peers.push(peer),
            Err(error) => {
                eprintln!("warn: index {peer}: {error:#}");
                // A list that broke off in the middle would look like missing files.
                let known = all.peers.len();
                all.files.retain(|_, copies| {
                    copies.truncate(known);
                    copies.iter().any(Option::is_some)
                });
                all.missing.push(peer);
            }
        }
    }
    if all.peers.is_empty() {
        bail!("no peers");
    }
    let nodes = all.peers.len();
    all.files.values_mut().for_each(|copies| copies.resize(nodes, None));
    Ok(all)
}

/// Members that are down: they are not in the list of peers, and may well differ.
fn down(s: &Session<'_>) -> Result<Vec<Base>> {
    let status: serde_json::Value = s.client.json(&s.base, "/v1/status").unwrap_or_else(|error| {
        eprintln!("warn: which nodes are down is not known: {error:#}");
        serde_json::Value::Null
    });
    let mut found = vec![];
    for member in status["peers"].as_array().into_iter().flatten() {
        let url = member["urls"][0].as_str().unwrap_or_default();
        if member["state"] == "down" && member["left"] != true && !url.is_empty() {
            eprintln!("warn: index {url}: {} is down", member["name"].as_str().unwrap_or("the node"));
            found.push(Base::parse(url).context("the status of the cluster")?);
        }
    }
    Ok(found)
}

fn load_one(
    s: &Session<'_>,
    peer: &Base,
    files: &mut BTreeMap<Vec<u8>, Vec<Option<Copy>>>,
    position: usize,
) -> Result<()> {
    s.client.array(peer, "/v1/index", |Line { path, size, mtime, digest, raw }: Line| {
        let copies = files.entry(name_bytes(path, raw)).or_default();
        copies.resize(position, None);
        copies.push(Some(Copy { size, mtime, digest: digest.filter(|d| !d.is_empty()) }));
        Ok(())
    })
}

#[derive(Deserialize)]
struct Line {
    path: String,
    size: u64,
    mtime: i64,
    #[serde(default)]
    digest: Option<Box<str>>,
    /// The path's bytes, percent-encoded, where they are not UTF-8.
    #[serde(default)]
    raw: Option<String>,
}

/// The bytes of a name, which are given by themselves where they are no text.
pub fn name_bytes(text: String, raw: Option<String>) -> Vec<u8> {
    raw.map_or_else(|| text.into_bytes(), |raw| percent_decode_str(&raw).collect())
}

/// Prints every path on which nodes differ. Exit code 1 if there is one, or if a node could not be asked.
pub fn consistency(s: &mut Session<'_>) -> Result<u8> {
    let mut all = load(s)?;
    all.missing.extend(down(s)?);
    let mut count = 0_u64;
    let mut json = vec![];
    for (path, copies) in all.differences() {
        count += 1;
        let path = String::from_utf8_lossy(path);
        if s.json {
            let peers: serde_json::Map<String, serde_json::Value> = std::iter::zip(&all.peers, copies)
                .map(|(peer, copy)| {
                    let copy = copy
                        .as_ref()
                        .map(|c| serde_json::json!({ "mtime": c.mtime, "size": c.size, "digest": c.digest }));
                    (peer.to_string(), copy.into())
                })
                .collect();
            json.push(serde_json::json!({ "path": path, "peers": peers }));
            continue;
        }
        writeln!(s.out, "INCONSISTENT {}", printable(&path))?;
        for (peer, copy) in std::iter::zip(&all.peers, copies) {
            match copy {
                Some(c) => writeln!(s.out, "  {peer}\tmtime={}\tsize={}", c.mtime, c.size)?,
                None => writeln!(s.out, "  {peer}\tmissing")?,
            }
        }
    }
    let complete = all.missing.is_empty();
    if s.json {
        let unreachable: Vec<String> = all.missing.iter().map(Base::to_string).collect();
        let report = serde_json::json!({
            "consistent": complete && count == 0, "inconsistent": json, "unreachable": unreachable,
        });
        writeln!(s.out, "{report:#}")?;
    } else if count > 0 {
        writeln!(s.out, "Total inconsistent files: {count}")?;
    } else if complete {
        writeln!(s.out, "All peers consistent.")?;
    } else {
        writeln!(s.out, "All reachable peers consistent; {} could not be asked.", all.missing.len())?;
    }
    Ok(if complete && count == 0 { crate::args::OK } else { crate::args::FAILED })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(size: u64, mtime: i64, digest: Option<&str>) -> Copy {
        Copy { size, mtime, digest: digest.map(Into::into) }
    }

    #[test]
    fn digests_decide_and_times_only_where_there_is_none() {
        assert!(copy(1, 5, Some("a")).same(&copy(1, 9, Some("a"))));
        assert!(!copy(1, 5, Some("a")).same(&copy(1, 5, Some("b"))));
        assert!(!copy(1, 5, Some("a")).same(&copy(2, 5, Some("a"))));
        assert!(copy(1, 5, None).same(&copy(1, 5, Some("a"))));
        assert!(!copy(1, 5, None).same(&copy(1, 6, None)));
    }

    #[test]
    fn a_difference_is_a_missing_or_another_copy() {
        let a = || Some(copy(1, 1, None));
        let files = [("all", vec![a(), a()]), ("one", vec![None, a()]), ("two", vec![a(), Some(copy(2, 1, None))])];
        let files = files.into_iter().map(|(p, c)| (p.as_bytes().to_owned(), c)).collect();
        let all = Indexes { peers: vec![], files, missing: vec![] };
        assert_eq!(all.differences().map(|(p, _)| p.as_slice()).collect::<Vec<_>>(), [b"one", b"two"]);
    }
}
