//! What the HTTP adapter asks of a volume.

use crate::api::path::RelPath;
use rustix::io::Errno;
use std::sync::Arc;

/// The result of a call; errors are errno values.
pub type Result<T> = std::result::Result<T, Errno>;

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// About a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Last modification, (seconds, nanoseconds) since 1970.
    pub mtime: (i64, u32),
    /// Strong entity tag without quotes: differs whenever the bytes differ. Only printable ASCII, no quote. In lists it is empty
    /// where the digest of the bytes is not at hand; elsewhere it is that digest.
    pub etag: String,
}

impl FileKind {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            FileKind::File => "file",
            FileKind::Dir => "dir",
            FileKind::Link => "link",
            FileKind::Other => "other",
        }
    }
}

impl Meta {
    /// Nanoseconds since 1970, within the limits of the type.
    pub fn mtime_ns(&self) -> i64 {
        self.mtime.0.saturating_mul(1_000_000_000).saturating_add(i64::from(self.mtime.1))
    }
}

/// A file open for reading. Dropping it closes it.
pub trait OpenFile: Send + Sync + 'static {
    /// As it was opened.
    fn meta(&self) -> &Meta;
    /// Reads into `buf`; short only at the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The bytes read so far are those of [`OpenFile::meta`].
    fn unchanged(&self) -> bool;
}

/// A new version of a file, not yet visible to anybody. Dropping it throws it away.
pub trait Upload: Send + 'static {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Puts it in place at once, as one change of the whole cluster, if `allowed` agrees with what stands there at that
    /// moment (`None`: nothing does); `Ok(None)` if it does not. Missing parents are made (0755), an existing file keeps
    /// mode and owner.
    fn commit(self: Box<Self>, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<Option<Meta>>;
}

/// Files of a volume by path. All calls may block, and come from any thread.
///
/// Symbolic links are followed as long as they stay inside the volume; one that leads out, or is absolute, is `XDEV`.
pub trait FileService: Send + Sync + 'static {
    /// About the file at `path`.
    fn stat(&self, path: &RelPath) -> Result<Meta>;
    /// Opens a regular file; a directory is `ISDIR`.
    fn open(&self, path: &RelPath) -> Result<Arc<dyn OpenFile>>;
    /// Begins a new version of the file at `path`.
    fn upload(&self, path: &RelPath) -> Result<Box<dyn Upload>>;
    /// Removes the file, link or empty directory at `path`, if `allowed` agrees with what stands there; `Ok(false)` if it
    /// does not. A last component that is a link is removed, not followed. What is not there needs no removing.
    fn remove(&self, path: &RelPath, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<bool>;
    /// Calls `sink` with the name and data of everything in a directory (`None`: the root), until it says `false`.
    fn list(&self, dir: Option<&RelPath>, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()>;
    /// Calls `sink` with the path (without leading slash) and data of every regular file, until it says `false`.
    fn walk(&self, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()>;
}
