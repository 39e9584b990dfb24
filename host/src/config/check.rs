//! What the keys must satisfy together.

use super::{Config, normalize_url};
use ice_core::limits;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Shorter, and the pauses of a busy machine look like its end.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// Longer, and nobody hears of it.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) fn checked(mut c: Config) -> Result<Config, String> {
    let tls = c.tls.is_some();
    for (key, urls) in [("join", &mut c.join), ("advertise", &mut c.advertise)] {
        let mut out: Vec<String> = vec![];
        for url in urls.iter() {
            let url = normalize_url(url, tls).map_err(|e| format!("`{key}`: {e}"))?;
            if !out.contains(&url) {
                out.push(url);
            }
        }
        *urls = out;
    }
    if c.advertise.len() > limits::URLS_PER_MEMBER_MAX {
        let n = c.advertise.len();
        return Err(format!("`advertise`: {n} addresses are too many: at most {}", limits::URLS_PER_MEMBER_MAX));
    }
    if let Some(url) = c.advertise.iter().find(|u| super::address::is_unspecified(u)) {
        return Err(format!("`advertise`: `{url}` stands for all addresses: name one that other nodes can reach"));
    }
    let silence = c.silence();
    if !(SILENCE_MIN..=SILENCE_MAX).contains(&silence) {
        return Err(format!(
            "`keepalive` times `keepalive_failures` is {silence:?}, after which a silent peer is declared down: at least \
             {SILENCE_MIN:?}, at most {SILENCE_MAX:?}"
        ));
    }
    for path in [&mut c.data, &mut c.backing].into_iter().chain(c.mount.as_mut()) {
        *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let files = [&mut c.log_file, &mut c.trace, &mut c.cacert, &mut c.jwt_key, &mut c.decube.client_ca];
    for path in files.into_iter().flatten() {
        *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for t in [&mut c.tls, &mut c.decube.tls].into_iter().flatten() {
        for path in [&mut t.cert, &mut t.key] {
            *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    if c.jwt_key.is_none() && (c.jwt_issuer.is_some() || c.jwt_audience.is_some()) {
        return Err("`jwt_issuer` and `jwt_audience` are looked at in signed tokens only: set `jwt_key`".into());
    }
    listeners(&c)?;
    places(&c)?;
    Ok(c)
}

fn listeners(c: &Config) -> Result<(), String> {
    let all = [
        ("bind", Some(&c.bind)),
        ("node.listen_address", c.decube.etcd.as_ref()),
        ("api.rest.address", c.decube.rest.as_ref()),
        ("api.grpc.address", c.decube.grpc.as_ref()),
    ];
    for (i, (a, at)) in all.iter().enumerate() {
        let twin = all[i + 1..].iter().find(|(_, b)| at.zip(*b).is_some_and(|(a, b)| a.clashes(b)));
        if let (Some((b, _)), Some(at)) = (twin, at) {
            return Err(format!("`{a}` and `{b}` are the same address ({at}): each listener needs its own"));
        }
    }
    Ok(())
}

fn places(c: &Config) -> Result<(), String> {
    let (data, backing) = (real(&c.data), real(&c.backing));
    let mount = c.mount.as_deref().map(real);
    let shown = |key: &str, path: &Path| format!("`{key}` ({})", path.display());

    for (key, path) in [("data", Some(&data)), ("backing", Some(&backing)), ("mount", mount.as_ref())] {
        if path.is_some_and(|p| p == Path::new("/")) {
            return Err(format!("`{key}` must not be the root directory"));
        }
    }
    if data == backing {
        return Err(format!("`data` and `backing` are the same directory ({})", data.display()));
    }
    if data.starts_with(&backing) {
        return Err(format!(
            "{} is inside {}: the replica's own state would be mirrored",
            shown("data", &c.data),
            shown("backing", &c.backing)
        ));
    }
    for own in ["log", "staging"] {
        if backing.starts_with(data.join(own)) {
            return Err(format!(
                "{} is inside `data`/{own}, which is used for other things",
                shown("backing", &c.backing)
            ));
        }
    }
    if let Some(mount) = &mount {
        let shown_mount = shown("mount", c.mount.as_deref().unwrap_or(mount));
        if *mount == backing {
            return Err(format!("`mount` and `backing` are the same directory ({})", mount.display()));
        }
        if mount.starts_with(&backing) {
            return Err(format!("{shown_mount} is inside {}: it would contain itself", shown("backing", &c.backing)));
        }
        if mount.starts_with(data.join("log")) {
            return Err(format!("{shown_mount} is inside `data`/log, which is used for other things"));
        }
        for (key, path, given) in [("backing", &backing, &c.backing), ("data", &data, &c.data)] {
            if path.starts_with(mount) {
                return Err(format!("{} is inside {shown_mount}, which would hide it", shown(key, given)));
            }
        }
    }
    // The daemon would wait for itself, or mirror what it writes about mirroring.
    for (key, path) in [("log_file", &c.log_file), ("trace", &c.trace)] {
        let Some(path) = path else { continue };
        let real = real(path);
        if mount.as_ref().is_some_and(|m| real.starts_with(m)) || real.starts_with(&backing) {
            return Err(format!("{} must not be inside `mount` or `backing`", shown(key, path)));
        }
    }
    Ok(())
}

/// Where a path really leads: symbolic links of the part that exists are followed, the rest is taken as it is written.
fn real(path: &Path) -> PathBuf {
    let mut rest: Vec<&std::ffi::OsStr> = vec![];
    let mut at = path;
    let mut out = loop {
        if let Ok(found) = at.canonicalize() {
            break found;
        }
        match (at.file_name(), at.parent()) {
            (Some(name), Some(parent)) => {
                rest.push(name);
                at = parent;
            }
            // It ends in `..` behind something that does not exist: nothing to follow.
            _ => {
                rest.clear();
                break lexical(path);
            }
        }
    };
    out.extend(rest.into_iter().rev());
    out
}

fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}
