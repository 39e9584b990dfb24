//! Paths and query parameters. Both may be any bytes, percent-encoded.

use super::error::Failure;
use ice_core::ids::Name;
use ice_core::limits::TREE_DEPTH_MAX;
use percent_encoding::percent_decode;

/// Longest path in bytes, as in Linux.
const PATH_MAX_BYTES: usize = 4096;

/// A path inside the volume: at least one component, none of them `.` or `..`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelPath(Vec<Name>);

impl RelPath {
    /// Cleans a path: leading, doubled and trailing slashes and `.` components are dropped. `None` if nothing is left, if
    /// a component is `..`, longer than a name may be or holds NUL, or if the path is too long or too deep.
    pub fn parse(path: &[u8]) -> Option<RelPath> {
        if path.len() > PATH_MAX_BYTES {
            return None;
        }
        let names: Option<Vec<Name>> =
            path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(Name::new).collect();
        names.filter(|names| !names.is_empty() && names.len() <= TREE_DEPTH_MAX).map(RelPath)
    }

    /// Its components, outermost first; never empty.
    pub fn names(&self) -> &[Name] {
        &self.0
    }

    /// The last component and those before it.
    pub fn split_last(&self) -> (&[Name], &Name) {
        match self.0.split_last() {
            Some((last, parents)) => (parents, last),
            None => unreachable!("a path has at least one component"),
        }
    }
}

/// A parameter of a query, percent-decoded, `+` meaning a space. The first one of its name counts.
pub(crate) fn param(query: Option<&str>, name: &str) -> Option<Vec<u8>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name.as_bytes()).then(|| decode(value))
    })
}

fn decode(text: &str) -> Vec<u8> {
    let spaced: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    percent_decode(&spaced).collect()
}

/// The `path` parameter.
pub(crate) fn path_param(query: Option<&str>) -> Result<RelPath, Failure> {
    let path = param(query, "path").filter(|p| !p.is_empty());
    let path = path.ok_or_else(|| Failure::bad_request("missing_path", "missing path"))?;
    RelPath::parse(&path).ok_or_else(|| Failure::bad_request("invalid_path", "invalid path"))
}

/// The `path` parameter of a directory: nothing, `/` and `.` mean the root.
pub(crate) fn dir_param(query: Option<&str>) -> Result<Option<RelPath>, Failure> {
    match param(query, "path") {
        Some(path) if path.split(|b| *b == b'/').any(|c| !c.is_empty() && c != b".") => path_param(query).map(Some),
        _ => Ok(None),
    }
}

/// A parameter that is text.
pub(crate) fn text_param(query: Option<&str>, name: &str) -> Option<String> {
    param(query, name).and_then(|v| String::from_utf8(v).ok()).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(path: &[u8]) -> Option<Vec<Vec<u8>>> {
        RelPath::parse(path).map(|p| p.names().iter().map(|n| n.as_bytes().to_vec()).collect())
    }

    #[test]
    fn paths_are_cleaned_or_refused() {
        let ok: [(&[u8], &[&[u8]]); 6] = [
            (b"a", &[b"a"]),
            (b"/a/b", &[b"a", b"b"]),
            (b"//a/./b/", &[b"a", b"b"]),
            (b"a..b/..c/d..", &[b"a..b", b"..c", b"d.."]),
            (b"\xff\xfe/x", &[b"\xff\xfe", b"x"]),
            (b"...", &[b"..."]),
        ];
        for (path, want) in ok {
            assert_eq!(names(path), Some(want.iter().map(|n| n.to_vec()).collect()), "{path:?}");
        }
        let long_name = vec![b'a'; 256];
        let long_path = b"a/".repeat(PATH_MAX_BYTES);
        for path in [&b""[..], b"/", b".", b"./.", b"..", b"a/../b", b"a/..", b"a\0b", &long_name, &long_path] {
            assert_eq!(names(path), None, "{path:?}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let query = Some("x=1&path=a%2Fb+c%ff&path=other&flag&e=");
        assert_eq!(param(query, "path"), Some(b"a/b c\xff".to_vec()));
        assert_eq!(param(query, "flag"), Some(Vec::new()));
        assert_eq!(text_param(query, "path"), None);
        assert_eq!(text_param(query, "x").as_deref(), Some("1"));
        assert_eq!((param(query, "y"), text_param(query, "e"), param(None, "x")), (None, None, None));
        assert_eq!(param(Some("%70ath=%zz%"), "path"), Some(b"%zz%".to_vec()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_climbs(path in proptest::collection::vec(any::<u8>(), 0..300), query in ".*") {
            if let Some(p) = RelPath::parse(&path) {
                for n in p.names() {
                    prop_assert!(n.as_bytes() != b".." && n.as_bytes() != b"." && !n.as_bytes().contains(&b'/'));
                }
            }
            let _ = path_param(Some(&query));
        }
    }
}
