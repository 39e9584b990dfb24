//! The whole store as bytes. How many they are has to be said before the first one goes out, so they are written aside first.

use crate::control::{Refused, Result, Snapshot};
use crate::engine::Engine;
use bytes::Bytes;
use futures::channel::oneshot;
use ice_core::control::Ask;
use ice_core::kv::snapshot::{Chunk, Progress, Restore, SnapshotCursor, SnapshotId};
use ice_core::kv::{Damaged, Store};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of rows in a chunk, about.
const CHUNK_BYTES: usize = 512 * 1024;
/// Longest chunk that is read back.
const CHUNK_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a portion of the stream.
const PORTION_BYTES: usize = 64 * 1024;
/// First bytes of a snapshot.
const MAGIC: &[u8; 16] = b"icecluster kv 1\n";
const END_MAX: Duration = Duration::from_secs(5);

/// A snapshot that was written aside.
pub(super) struct Spooled {
    /// At its beginning.
    pub(super) file: File,
    pub(super) bytes: u64,
    /// The store's revision in it.
    pub(super) revision: u64,
}

impl Spooled {
    /// As a stream.
    pub(super) fn stream(self) -> Snapshot {
        Snapshot { bytes: self.bytes, chunks: Box::pin(portions(self.file, self.bytes)) }
    }
}

/// Reads the snapshot `id` from the beginning and ends it.
pub(super) async fn take(engine: Arc<Engine>, dir: &Path, id: SnapshotId, cursor: SnapshotCursor) -> Result<Spooled> {
    let (tx, rx) = oneshot::channel();
    let dir = dir.to_path_buf();
    let work = move || {
        let written = write(&engine, &dir, cursor);
        engine.control_now(Ask::SnapshotEnd(id), END_MAX);
        // Whoever asked may be gone.
        drop(tx.send(written));
    };
    let thread = std::thread::Builder::new().name("ice-snapshot".into()).spawn(work);
    thread.map_err(|e| Refused::Failed(format!("no thread for a snapshot: {e}")))?;
    rx.await.map_err(|_| Refused::Failed("the snapshot's thread ended".into()))?
}

fn failed(e: &io::Error) -> Refused {
    Refused::Failed(format!("a snapshot cannot be written: {e}"))
}

fn write(engine: &Engine, dir: &Path, mut cursor: SnapshotCursor) -> Result<Spooled> {
    let mut file = unnamed(dir).map_err(|e| failed(&e))?;
    let (mut bytes, mut revision) = (0, 0);
    let mut put = |part: &[u8]| {
        bytes += part.len() as u64;
        file.write_all(part).map_err(|e| failed(&e))
    };
    put(MAGIC)?;
    loop {
        let chunk = engine
            .view(|v| v.control().map(|c| c.store().snapshot_chunk(&mut cursor, CHUNK_BYTES)))
            .ok_or(Refused::Unsupported("this node has no part in the control plane"))?
            .map_err(|_| Refused::Failed("too much was changed during the snapshot: try again".into()))?;
        let Some(chunk) = chunk else { break };
        revision = chunk.revision;
        let encoded = ice_core::wire::encode(&chunk);
        put(&(encoded.len() as u64).to_le_bytes())?;
        put(&encoded)?;
    }
    file.rewind().map_err(|e| failed(&e))?;
    Ok(Spooled { file, bytes, revision })
}

/// A file without a name: it goes with its last descriptor.
fn unnamed(dir: &Path) -> io::Result<File> {
    let mut tail = [0; 8];
    crate::identity::random(&mut tail)?;
    let path = dir.join(format!("snapshot-{:016x}.tmp", u64::from_le_bytes(tail)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The file in portions. What is read is in the page cache: it was just written.
fn portions(file: File, bytes: u64) -> impl futures::Stream<Item = Result<Bytes>> + Send {
    futures::stream::try_unfold((file, bytes), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut portion = vec![0; PORTION_BYTES.min(usize::try_from(left).unwrap_or(PORTION_BYTES))];
        file.read_exact(&mut portion).map_err(|e| failed(&e))?;
        let left = left - portion.len() as u64;
        Ok(Some((Bytes::from(portion), (file, left))))
    })
}

/// The store in a snapshot. Reads it piece by piece; what is damaged is refused.
pub fn load(from: &mut dyn Read) -> std::result::Result<Store, String> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(|e| e.to_string())?;
    if &magic != MAGIC {
        return Err("this is no snapshot of a control plane's store".into());
    }
    let mut restore = Restore::default();
    loop {
        let mut len = [0; 8];
        from.read_exact(&mut len).map_err(|e| format!("the snapshot ends too early: {e}"))?;
        let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > CHUNK_MAX_BYTES {
            return Err("a part of the snapshot is too long".into());
        }
        let mut encoded = vec![0; len];
        from.read_exact(&mut encoded).map_err(|e| format!("the snapshot ends too early: {e}"))?;
        let chunk: Chunk = ice_core::wire::decode(&encoded).map_err(|e| e.to_string())?;
        if restore.chunk(&chunk).map_err(|Damaged(why)| why)? == Progress::Whole {
            return restore.finish().map_err(|Damaged(why)| why.to_owned());
        }
    }
}
