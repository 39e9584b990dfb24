//! Snapshots of the control plane's store that are kept: files in a directory of the node, each complete or not there.
//!
//! A file says by itself what it is, so that the directory is all that is needed: one that is put there while the node is down is
//! found at its next start. The work on the disk is done by threads of its own, for a moment each, whatever the runtime.

mod chores;
mod file;

pub use chores::{Chores, Schedule};

use crate::control::{Refused, Result, Snapshot};
use bytes::Bytes;
use file::{Blocks, Draft, End, Reader};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::lock::Mutex;
use ice_core::kv::command::SnapshotRecord;
use ice_core::kv::{Error, Store};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest id.
pub const ID_MAX_BYTES: usize = 128;
/// Snapshots that are made, or wait to be made, at once.
const KEEPS_MAX: usize = 4;
/// Snapshots that are read at once.
const READERS_MAX: usize = 8;
/// Bytes that are handed to the disk, and taken from it, at a time.
const PORTION_BYTES: usize = 2 << 20;
const EXTENSION: &str = "snap";

/// What is written down of a snapshot before it is made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// Unique; also the file's name: see [`is_id`].
    pub id: String,
    /// As the user called it.
    pub name: String,
    /// The cluster whose store it is.
    pub cluster: u64,
    /// The store's revision in it.
    pub revision: u64,
    /// Seconds since 1970.
    pub created_s: u64,
    /// Whatever the user wants to be remembered.
    pub metadata: Vec<(String, String)>,
}

/// A snapshot that is complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// What it is.
    pub about: About,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// The BLAKE3 of them, in hexadecimal digits.
    pub checksum: String,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Kept {
    /// What the store remembers of it. `size_bytes` is that of the file.
    pub fn record(&self, holder: u64) -> SnapshotRecord {
        let about = self.about.clone();
        SnapshotRecord {
            id: about.id,
            name: about.name,
            revision: about.revision,
            size_bytes: self.file_bytes,
            checksum: self.checksum.clone(),
            created_s: about.created_s,
            holders: vec![holder],
            metadata: about.metadata,
        }
    }
}

/// An id can be the name of a file: letters, digits, `-`, `_` and `.`, not at the beginning.
pub fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_MAX_BYTES
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A directory of snapshots. One for a node.
#[derive(Debug)]
pub struct Snapshots {
    dir: PathBuf,
    compress: bool,
    /// One is made at a time.
    keeping: Mutex<()>,
    keeps: AtomicUsize,
    readers: Arc<AtomicUsize>,
}

/// Counts somebody for as long as it lives.
struct Counted<A: std::ops::Deref<Target = AtomicUsize>>(A);

impl<A: std::ops::Deref<Target = AtomicUsize>> Counted<A> {
    fn enter(counter: A, most: usize) -> Result<Counted<A>> {
        let before = counter.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(counter);
        if before >= most { Err(Refused::Busy) } else { Ok(counted) }
    }
}

impl<A: std::ops::Deref<Target = AtomicUsize>> Drop for Counted<A> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn failed(path: &Path, e: &io::Error) -> Refused {
    Refused::Failed(format!("{}: {e}", path.display()))
}

/// Runs what may wait for the disk on a thread of its own.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (tx, rx) = oneshot::channel();
    let run = move || {
        // Whoever asked may be gone.
        drop(tx.send(work()));
    };
    let started = std::thread::Builder::new().name("ice-snapshots".into()).spawn(run);
    started.map_err(|e| Refused::Failed(format!("no thread for a snapshot: {e}")))?;
    rx.await.map_err(|_| Refused::Failed("the thread of a snapshot ended".into()))
}

impl Snapshots {
    /// The directory, made if it is not there. What an earlier process left unfinished is removed.
    pub fn open(dir: impl Into<PathBuf>, compress: bool) -> io::Result<Snapshots> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == file::PART) {
                tracing::info!("{}: an unfinished snapshot is removed", path.display());
                fs::remove_file(&path)?;
            }
        }
        Ok(Snapshots {
            dir,
            compress,
            keeping: Mutex::new(()),
            keeps: AtomicUsize::new(0),
            readers: Arc::new(AtomicUsize::new(0)),
        })
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        if !is_id(id) {
            return Err(Error::SnapshotNotFound.into());
        }
        Ok(self.dir.join(format!("{id}.{EXTENSION}")))
    }

    /// Writes a snapshot. It is durable when this returns; when it fails, or the future is dropped, nothing is left.
    pub async fn keep(&self, about: About, snapshot: Snapshot) -> Result<Kept> {
        let _counted = Counted::enter(&self.keeps, KEEPS_MAX)?;
        let _turn = self.keeping.lock().await;
        let path = self.path(&about.id).map_err(|_| Refused::Failed(format!("`{}` is no id", about.id)))?;
        let (at, header, compress) = (path.clone(), about.clone(), self.compress);
        let mut draft = aside(move || Draft::new(at, &header, compress)).await?.map_err(|e| failed(&path, &e))?;
        let Snapshot { bytes: expected, mut chunks } = snapshot;
        let mut portion: Vec<Bytes> = vec![];
        let (mut waiting, mut all) = (0, 0_u64);
        loop {
            let next = chunks.next().await.transpose()?;
            let ended = next.is_none();
            if let Some(chunk) = next {
                waiting += chunk.len();
                all += chunk.len() as u64;
                portion.push(chunk);
            }
            if waiting >= PORTION_BYTES || (ended && waiting > 0) {
                let now = std::mem::take(&mut portion);
                waiting = 0;
                let write = move || now.iter().try_for_each(|c| draft.write(c)).map(|()| draft);
                draft = aside(write).await?.map_err(|e| failed(&path, &e))?;
            }
            if ended {
                break;
            }
        }
        if all != expected {
            return Err(Refused::Failed(format!("a snapshot of {expected} bytes came with {all}")));
        }
        let done = aside(move || draft.finish()).await?.map_err(|e| failed(&path, &e))?;
        let file_bytes = fs::metadata(&path).map_err(|e| failed(&path, &e))?.len();
        Ok(kept(about, done, file_bytes))
    }

    /// All of them, by id: what each is, or why it cannot be used. Looks at the beginning and the end of each file only.
    pub async fn list(&self) -> Result<Vec<(String, std::result::Result<Kept, String>)>> {
        let dir = self.dir.clone();
        aside(move || list(&dir)).await?.map_err(|e| failed(&self.dir, &e))
    }

    /// One of them. Looks at its beginning and end only.
    pub async fn get(&self, id: &str) -> Result<Kept> {
        let path = self.path(id)?;
        let at = path.clone();
        aside(move || look(&at)).await?.map_err(|e| not_found(&path, e))
    }

    /// Reads all of one, and says what it is if nothing of it is damaged.
    pub async fn verify(&self, id: &str) -> Result<Kept> {
        let _counted = Counted::enter(&*self.readers, READERS_MAX)?;
        let path = self.path(id)?;
        let at = path.clone();
        let read = move || {
            let kept = look(&at)?;
            let (mut reader, _) = Reader::open(&at)?;
            while reader.block()?.is_some() {}
            Ok(kept)
        };
        aside(read).await?.map_err(|e| not_found(&path, e))
    }

    /// The bytes of one. Where they are damaged the stream ends with an error.
    pub async fn read(&self, id: &str) -> Result<Snapshot> {
        let counted = Counted::enter(Arc::clone(&self.readers), READERS_MAX)?;
        let path = self.path(id)?;
        let at = path.clone();
        let open = move || {
            let (mut reader, _) = Reader::open(&at)?;
            let end = reader.end()?;
            Ok((reader, end))
        };
        let (reader, end) = aside(open).await?.map_err(|e| not_found(&path, e))?;
        let state = (Some(reader), counted, path);
        let portions = futures::stream::try_unfold(state, |(reader, counted, path)| async move {
            let Some(mut reader) = reader else { return Ok::<_, Refused>(None) };
            let read = move || {
                let (mut blocks, mut bytes) = (vec![], 0);
                while bytes < PORTION_BYTES {
                    let Some(block) = reader.block()? else { return Ok((blocks, None)) };
                    bytes += block.len();
                    blocks.push(Ok(Bytes::from(block)));
                }
                Ok((blocks, Some(reader)))
            };
            let (blocks, reader) = aside(read).await?.map_err(|e: io::Error| failed(&path, &e))?;
            Ok(Some((futures::stream::iter(blocks), (reader, counted, path))))
        });
        let chunks = portions.flat_map(|portion| match portion {
            Ok(blocks) => blocks.left_stream(),
            Err(e) => futures::stream::iter([Err(e)]).right_stream(),
        });
        Ok(Snapshot { bytes: end.bytes, chunks: Box::pin(chunks) })
    }

    /// The store in one. The whole file is read, and must be right.
    pub async fn load(&self, id: &str) -> Result<Store> {
        let _counted = Counted::enter(&*self.readers, READERS_MAX)?;
        let path = self.path(id)?;
        let at = path.clone();
        let load = move || {
            let (reader, _) = Reader::open(&at).map_err(|e| not_found(&at, e))?;
            let mut blocks = Blocks::new(reader);
            let bad = |why: String| Refused::Failed(format!("{}: {why}", at.display()));
            let store = crate::plane::load(&mut blocks).map_err(bad)?;
            match io::Read::read(&mut blocks, &mut [0]) {
                Ok(0) => Ok(store),
                Ok(_) => Err(bad("something follows the store".into())),
                Err(e) => Err(bad(e.to_string())),
            }
        };
        aside(load).await?
    }

    /// Removes one for good. `false`: it was not there.
    pub async fn remove(&self, id: &str) -> Result<bool> {
        let path = self.path(id)?;
        let (at, dir) = (path.clone(), self.dir.clone());
        let remove = move || match fs::remove_file(at) {
            Ok(()) => crate::log::sync_dir(&dir).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        aside(remove).await?.map_err(|e| failed(&path, &e))
    }
}

fn not_found(path: &Path, e: io::Error) -> Refused {
    if e.kind() == io::ErrorKind::NotFound { Error::SnapshotNotFound.into() } else { failed(path, &e) }
}

fn kept(about: About, end: End, file_bytes: u64) -> Kept {
    let checksum = blake3::Hash::from(end.hash).to_hex().to_string();
    Kept { about, bytes: end.bytes, checksum, file_bytes }
}

fn look(path: &Path) -> io::Result<Kept> {
    let (mut reader, about) = Reader::open(path)?;
    let end = reader.end()?;
    if path.file_stem().is_none_or(|stem| stem != about.id.as_str()) {
        let id = &about.id;
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the file is that of the snapshot `{id}`")));
    }
    Ok(kept(about, end, fs::metadata(path)?.len()))
}

fn list(dir: &Path) -> io::Result<Vec<(String, std::result::Result<Kept, String>)>> {
    let mut all = vec![];
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let id = path.file_stem().and_then(|s| s.to_str()).filter(|id| is_id(id));
        let (Some(id), true) = (id, path.extension().is_some_and(|e| e == EXTENSION)) else { continue };
        match look(&path) {
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => all.push((id.to_owned(), found.map_err(|e| e.to_string()))),
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

#[cfg(test)]
mod tests;
