//! One kept snapshot as a file.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `ICESNAP1` |
//! | record | the header: [`About`] in postcard |
//! | records | the bytes of the snapshot, in blocks of at most [`BLOCK_BYTES`], each compressed with LZ4 if that makes it smaller |
//! | record | the end: how many bytes they are, and their BLAKE3 |
//!
//! A record is its length (of a block: before compression; of the header: its own; of the end: 0), the length of what is stored, the
//! CRC-32C of both and of what is stored, each of 4 bytes, little endian, and what is stored. A file that breaks off has no end, so
//! no part is taken for the whole.

use super::About;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"ICESNAP1";
/// Bytes of a block, before it is compressed.
pub(super) const BLOCK_BYTES: usize = 256 * 1024;
/// Longest header.
const HEADER_MAX_BYTES: usize = 256 * 1024;
const RECORD_HEAD: usize = 12;
const END_BYTES: usize = 40;
/// What files under way are called behind their names.
pub(super) const PART: &str = "part";

/// The end of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    /// Bytes of the snapshot.
    pub(super) bytes: u64,
    /// Their BLAKE3.
    pub(super) hash: [u8; 32],
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file is damaged: {what}"))
}

fn record_head(raw: usize, stored: &[u8]) -> [u8; RECORD_HEAD] {
    let mut head = [0; RECORD_HEAD];
    // Blocks and headers are far shorter than 4 GiB.
    head[..4].copy_from_slice(&(raw as u32).to_le_bytes());
    head[4..8].copy_from_slice(&(stored.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..8]), stored);
    head[8..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// A file under way. It is removed when it is dropped before [`Draft::finish`].
pub(super) struct Draft {
    file: File,
    part: PathBuf,
    path: PathBuf,
    compress: bool,
    block: Vec<u8>,
    hash: blake3::Hasher,
    bytes: u64,
    whole: bool,
}

impl Draft {
    /// Begins `path`, which must not be there.
    pub(super) fn new(path: PathBuf, about: &About, compress: bool) -> io::Result<Draft> {
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let part = path.with_extension(PART);
        let file = File::options().write(true).create_new(true).open(&part)?;
        let block = Vec::with_capacity(BLOCK_BYTES);
        let hash = blake3::Hasher::new();
        let mut draft = Draft { file, part, path, compress, block, hash, bytes: 0, whole: false };
        let header = postcard::to_allocvec(about).map_err(io::Error::other)?;
        if header.len() > HEADER_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "what is to be remembered of it is too long"));
        }
        draft.file.write_all(MAGIC)?;
        draft.record(header.len(), &header)?;
        Ok(draft)
    }

    fn record(&mut self, raw: usize, stored: &[u8]) -> io::Result<()> {
        self.file.write_all(&record_head(raw, stored))?;
        self.file.write_all(stored)
    }

    /// More of the snapshot.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(BLOCK_BYTES - self.block.len());
            let (now, later) = bytes.split_at(n);
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if !block.is_empty() {
            self.hash.update(&block);
            self.bytes += block.len() as u64;
            let packed = self.compress.then(|| lz4_flex::block::compress(&block));
            match packed.filter(|p| p.len() < block.len()) {
                Some(packed) => self.record(block.len(), &packed)?,
                None => self.record(block.len(), &block)?,
            }
        }
        self.block = block;
        self.block.clear();
        Ok(())
    }

    /// Makes it durable under its name.
    pub(super) fn finish(mut self) -> io::Result<End> {
        self.flush()?;
        let end = End { bytes: self.bytes, hash: *self.hash.finalize().as_bytes() };
        let mut stored = [0; END_BYTES];
        stored[..8].copy_from_slice(&end.bytes.to_le_bytes());
        stored[8..].copy_from_slice(&end.hash);
        self.record(0, &stored)?;
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.path)?;
        self.whole = true;
        if let Some(dir) = self.path.parent() {
            crate::log::sync_dir(dir)?;
        }
        Ok(end)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next start.
        if !self.whole
            && let Err(e) = std::fs::remove_file(&self.part)
        {
            tracing::warn!("{}: {e}", self.part.display());
        }
    }
}

/// Reads a file from its beginning.
pub(super) struct Reader {
    file: io::BufReader<File>,
    hash: blake3::Hasher,
    bytes: u64,
    ended: bool,
}

impl Reader {
    /// Opens it and reads its header.
    pub(super) fn open(path: &Path) -> io::Result<(Reader, About)> {
        let file = File::open(path)?;
        let mut reader = Reader { file: io::BufReader::new(file), hash: blake3::Hasher::new(), bytes: 0, ended: false };
        let mut magic = [0; MAGIC.len()];
        reader.fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("it is no snapshot"));
        }
        let (raw, header) = reader.record(HEADER_MAX_BYTES)?;
        if raw != header.len() {
            return Err(damaged("its header"));
        }
        let about = postcard::from_bytes(&header).map_err(|_| damaged("its header"))?;
        Ok((reader, about))
    }

    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it breaks off"),
            _ => e,
        })
    }

    fn record(&mut self, most: usize) -> io::Result<(usize, Vec<u8>)> {
        let mut head = [0; RECORD_HEAD];
        self.fill(&mut head)?;
        let [raw, len] = [0, 4].map(|i| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize);
        if raw > most || len > most {
            return Err(damaged("a length"));
        }
        let mut stored = vec![0; len];
        self.fill(&mut stored)?;
        if record_head(raw, &stored) != head {
            return Err(damaged("a checksum"));
        }
        Ok((raw, stored))
    }

    /// The next block; `None` at the end, if everything before was right.
    pub(super) fn block(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        let (raw, stored) = self.record(BLOCK_BYTES)?;
        if raw == 0 {
            let end = parse_end(&stored)?;
            if end != (End { bytes: self.bytes, hash: *self.hash.finalize().as_bytes() }) {
                return Err(damaged("its checksum"));
            }
            if self.file.read(&mut [0])? > 0 {
                return Err(damaged("something follows its end"));
            }
            self.ended = true;
            return Ok(None);
        }
        let block = if stored.len() == raw {
            stored
        } else {
            let unpacked = lz4_flex::block::decompress(&stored, raw).map_err(|_| damaged("a block"))?;
            if unpacked.len() != raw {
                return Err(damaged("a block"));
            }
            unpacked
        };
        self.hash.update(&block);
        self.bytes += raw as u64;
        Ok(Some(block))
    }

    /// What the end of the file says, without reading what is before it. Leaves the place where it was.
    pub(super) fn end(&mut self) -> io::Result<End> {
        let here = self.file.stream_position()?;
        let size = self.file.seek(SeekFrom::End(0))?;
        let at = size.checked_sub((RECORD_HEAD + END_BYTES) as u64).filter(|at| *at >= here);
        self.file.seek(SeekFrom::Start(at.ok_or_else(|| damaged("it breaks off"))?))?;
        let found = self.record(END_BYTES);
        self.file.seek(SeekFrom::Start(here))?;
        match found {
            Ok((0, stored)) => parse_end(&stored),
            Ok(_) => Err(damaged("it breaks off")),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged("it breaks off")),
            Err(e) => Err(e),
        }
    }
}

/// The bytes of a snapshot, one after the other. The end comes only if all of them were right.
pub(super) struct Blocks {
    reader: Reader,
    block: Vec<u8>,
    at: usize,
}

impl Blocks {
    pub(super) fn new(reader: Reader) -> Blocks {
        Blocks { reader, block: vec![], at: 0 }
    }
}

impl Read for Blocks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let Some(block) = self.reader.block()? else { return Ok(0) };
            (self.block, self.at) = (block, 0);
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fn parse_end(stored: &[u8]) -> io::Result<End> {
    let (bytes, hash) = stored.split_first_chunk::<8>().ok_or_else(|| damaged("its end"))?;
    let hash = <[u8; 32]>::try_from(hash).map_err(|_| damaged("its end"))?;
    Ok(End { bytes: u64::from_le_bytes(*bytes), hash })
}
