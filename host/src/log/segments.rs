//! The files of the log directory: listing, making, recycling.

use super::format::{FRAME_BYTES, HEADER_BYTES, Header};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Recycled or prepared segments that wait for their use.
pub(super) const SPARES_MAX: usize = 2;

/// A segment on disk.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub path: PathBuf,
    pub number: u64,
}

/// What the directory holds.
#[derive(Default, Debug)]
pub(super) struct Listing {
    /// Oldest first.
    pub segments: Vec<Listed>,
    pub spares: Vec<PathBuf>,
    /// Highest number in any name, of damaged files too: numbers are never used again.
    pub highest: u64,
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

/// Lists the directory and removes half-made files. Names that are not ours are left alone.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut out = Listing::default();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if let Some(rest) = name.strip_prefix("spare-") {
            if rest.ends_with(".tmp") {
                fs::remove_file(&path)?;
            } else {
                out.spares.push(path);
            }
            continue;
        }
        let Some((stem, ext)) = name.split_once('.') else { continue };
        let Ok(number) = u64::from_str_radix(stem, 16) else { continue };
        if stem.len() != 16 {
            continue;
        }
        out.highest = out.highest.max(number);
        if ext == "log" {
            out.segments.push(Listed { path, number });
        }
    }
    out.segments.sort_by_key(|s| s.number);
    out.spares.sort();
    Ok(out)
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `header`'s segment of at least `bytes`, from `spare` if there is one: durable with its name when this returns.
pub(super) fn create(dir: &Path, header: &Header, bytes: u64, spare: Option<PathBuf>) -> io::Result<File> {
    let path = segment_path(dir, header.number);
    // A name of its own until the header is durable: a segment under its final name always has one.
    let from = spare.unwrap_or_else(|| dir.join(format!("spare-{:016x}.tmp", header.number)));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&from)?;
    if file.metadata()?.len() < bytes {
        file.set_len(bytes)?;
    }
    file.write_all_at(&header.encode(), 0)?;
    // The mark of the end: no record yet.
    let mark = [0; FRAME_BYTES];
    file.write_all_at(
        &mark[..FRAME_BYTES.min(bytes.saturating_sub(HEADER_BYTES as u64) as usize)],
        HEADER_BYTES as u64,
    )?;
    file.sync_all()?;
    fs::rename(&from, &path)?;
    sync_dir(dir)?;
    Ok(file)
}

/// Writes a file of zeros that can become a segment: its blocks are allocated and written, so that a later `fdatasync`
/// need not touch the file system's own journal.
pub(super) fn prepare_spare(dir: &Path, number: u64, bytes: u64) -> io::Result<PathBuf> {
    let (tmp, path) = (dir.join(format!("spare-{number:016x}-zero.tmp")), dir.join(format!("spare-{number:016x}")));
    let write = || -> io::Result<()> {
        let file = File::create(&tmp)?;
        let zeros = vec![0u8; (1 << 20).min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let n = (zeros.len() as u64).min(bytes - at);
            file.write_all_at(&zeros[..n as usize], at)?;
            at += n;
        }
        file.sync_all()?;
        fs::rename(&tmp, &path)
    };
    write().inspect_err(|_| {
        // Half a spare is of no use, and on a full disk its blocks are wanted.
        let _ = fs::remove_file(&tmp);
    })?;
    Ok(path)
}

/// The header of a segment.
pub(super) fn read_header(path: &Path) -> io::Result<Result<Header, String>> {
    let file = File::open(path)?;
    let mut block = vec![0; HEADER_BYTES];
    let mut have = 0;
    while have < block.len() {
        match file.read_at(&mut block[have..], have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    Ok(Header::decode(&block[..have]))
}
