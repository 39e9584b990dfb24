//! The kernel's mount table.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo` (see `proc(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Mount id: unique among the mounts that exist.
    pub id: u64,
    /// `major:minor` of the file system.
    pub dev: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// Type, with subtype.
    pub fstype: String,
    /// "Device".
    pub source: OsString,
}

/// All mounts of this process's namespace; later lines hide earlier ones.
pub(crate) fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that a path names: the last one exactly there.
pub(crate) fn top_at(path: &Path) -> io::Result<Option<Entry>> {
    Ok(read()?.into_iter().rfind(|e| e.mountpoint == path))
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let _parent = words.next()?;
    let dev = String::from_utf8(words.next()?.to_vec()).ok()?;
    let _root = words.next()?;
    let mountpoint = PathBuf::from(unescape(words.next()?));
    // Mount options and any number of optional fields, up to a lone dash.
    words.by_ref().find(|w| *w == b"-")?;
    let fstype = String::from_utf8_lossy(words.next()?).into_owned();
    let source = unescape(words.next()?);
    Some(Entry { id, dev, mountpoint, fstype, source })
}

/// The kernel writes space, tab, newline, backslash and `#` as three octal digits.
fn unescape(word: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&b, tail)) = rest.split_first() {
        let octal = |i: usize| tail.get(i).filter(|d| (b'0'..=b'7').contains(d)).map(|d| u32::from(d - b'0'));
        if b == b'\\'
            && let (Some(x), Some(y), Some(z)) = (octal(0), octal(1), octal(2))
        {
            out.push((x * 64 + y * 8 + z) as u8);
            rest = &tail[3..];
        } else {
            out.push(b);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// Whether the source of an entry is this name.
pub(crate) fn source_is(entry: &Entry, name: &str) -> bool {
    entry.source.as_bytes() == name.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_and_with_odd_names() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw\n\
            97 22 0:45 / /mnt/a\\040b\\134c\\012d rw,nosuid - fuse.icecluster ice\\040cluster rw,user_id=0\n\
            damaged line\n\n98 22 0:46 /";
        let t = parse(table);
        assert_eq!(t.len(), 2);
        assert_eq!((t[0].id, t[0].fstype.as_str()), (22, "ext4"));
        assert_eq!(t[1].mountpoint, Path::new("/mnt/a b\\c\nd"));
        assert_eq!((t[1].dev.as_str(), t[1].fstype.as_str()), ("0:45", "fuse.icecluster"));
        assert!(source_is(&t[1], "ice cluster"));
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(top_at(Path::new("/")).unwrap().is_some());
    }
}
