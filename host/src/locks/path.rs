//! The one form in which paths are names of locks.

use ice_core::limits::LOCK_NAME_MAX_BYTES;
use std::fmt;

/// A path inside the volume as the name of a lock: `/`, and the components below it, each behind one slash. `a`, `/a`, `//a/` and
/// `./a` are the same lock. The path need not exist.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockPath(Box<[u8]>);

impl LockPath {
    /// Brings a path into its form. `None` if it is empty, too long, has a component `..` or a NUL.
    pub fn parse(path: &[u8]) -> Option<LockPath> {
        if path.is_empty() || path.contains(&0) {
            return None;
        }
        LockPath::below(path.split(|b| *b == b'/'))
    }

    /// From components, outermost first; empty ones and `.` are left out.
    pub fn below<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> Option<LockPath> {
        let mut out = Vec::new();
        for c in components.into_iter().filter(|c| !c.is_empty() && *c != b".") {
            if c == b".." {
                return None;
            }
            out.push(b'/');
            out.extend_from_slice(c);
        }
        if out.is_empty() {
            out.push(b'/');
        }
        (out.len() <= LOCK_NAME_MAX_BYTES).then(|| LockPath(out.into()))
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A name that stands in the store already.
    pub(super) fn stored(name: &[u8]) -> LockPath {
        LockPath(name.into())
    }
}

impl fmt::Display for LockPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
impl fmt::Debug for LockPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_one_name() {
        for (path, name) in [
            (&b"a"[..], &b"/a"[..]),
            (b"/a", b"/a"),
            (b"//a/./b/", b"/a/b"),
            (b"./a..b/...", b"/a..b/..."),
            (b"/", b"/"),
            (b".", b"/"),
            (b"\xff/x", b"/\xff/x"),
        ] {
            assert_eq!(LockPath::parse(path).unwrap().as_bytes(), name, "{path:?}");
        }
        let long = b"a/".repeat(LOCK_NAME_MAX_BYTES);
        for path in [&b""[..], b"..", b"a/../b", b"a\0b", &long] {
            assert_eq!(LockPath::parse(path), None, "{path:?}");
        }
        assert_eq!(LockPath::parse(&vec![b'a'; LOCK_NAME_MAX_BYTES]), None, "with its slash it is too long");
    }
}
