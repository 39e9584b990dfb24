//! The reading side: what a start finds.

use super::format::{self, HEADER_BYTES, Header};
use super::segments::{self, Listed};
use bytes::Bytes;
use ice_core::action::LogRecord;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Larger files are not ours: a segment holds at least one record and at most one that exceeds its normal size.
const SEGMENT_MAX_BYTES: u64 = 1 << 30;

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index.
    pub index: u64,
    /// The record. Payload ids in it belong to the process that wrote it and mean nothing now.
    pub record: LogRecord,
    /// The payload's bytes.
    pub payload: Option<Bytes>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Index of the last record that was handed out, 0 if none was.
    pub last: u64,
    /// How many were handed out.
    pub records: u64,
    /// A torn tail was cut off: bytes that were written but never made durable, as a crash leaves them. No loss.
    pub torn: Option<String>,
    /// Records that had been durable cannot be read, in words. Everything before them was handed out, nothing after them.
    pub damage: Option<String>,
    /// Files that hold what was not used because of damage.
    pub kept: Vec<PathBuf>,
}

/// Reads all records with an index of at least `from` (the checkpoint's cut) in order, and leaves the directory so that a lane
/// can go on behind the last one. Makes the directory if there is none.
///
/// - An incomplete tail that no sync had covered is cut off.
/// - Where a record that had been durable is unreadable or missing, reading ends there with [`Recovered::damage`]; the damaged
///   file is copied aside and later ones are renamed, as `*.damaged`.
/// - Damage among records below `from` does no harm and is passed over.
///
/// An `Err` means that the disk could not be read or changed; whatever bytes the files hold, there is no panic.
pub fn recover(dir: &Path, from: u64, sink: &mut dyn FnMut(Entry)) -> io::Result<Recovered> {
    if !dir.exists() {
        fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            segments::sync_dir(parent)?;
        }
    }
    let listing = segments::list(dir)?;
    let mut reader = Reader { next: 0, from: from.max(1), sink, out: Recovered::default() };
    let mut headers = vec![];
    for segment in &listing.segments {
        headers.push(match segments::read_header(&segment.path)? {
            // A crash came between the reuse of a dropped segment's file and its renaming.
            Ok(h) if h.number != segment.number => Err(format!("it belongs to segment {:016x}", h.number)),
            other => other,
        });
    }
    for (i, segment) in listing.segments.iter().enumerate() {
        let later = &listing.segments[i + 1..];
        // Everything below the first index of any later segment was durable when that one was begun.
        let limit = headers[i + 1..].iter().flatten().map(|h| h.first).min();
        let end = match &headers[i] {
            Ok(header) => reader.segment(segment, header, limit, headers.get(i + 1).map(Result::is_ok))?,
            Err(why) => match limit {
                Some(limit) if limit <= reader.needed() => {
                    // It held nothing that is still needed.
                    tracing::warn!(path = %segment.path.display(), why, "an old log segment is unreadable");
                    reader.out.kept.push(set_aside(&segment.path, false)?);
                    End::Whole
                }
                _ => End::Damaged { at: None, why: why.clone() },
            },
        };
        match end {
            End::Whole => {}
            End::Torn { at, whole } => {
                let index = reader.needed();
                let also = if whole > 0 { format!(" with {whole} complete ones behind it") } else { String::new() };
                reader.out.torn =
                    Some(format!("record {index} was incomplete and never durable; it was cut off{also}"));
                cut_off(&segment.path, at)?;
            }
            End::Damaged { at, why } => {
                let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
                reader.out.damage = Some(format!("log segment {name}: {why}"));
                // The later ones first: if we are interrupted, the next start sees the same damage again.
                for l in later.iter().rev() {
                    reader.out.kept.push(set_aside(&l.path, false)?);
                }
                match at {
                    None => reader.out.kept.push(set_aside(&segment.path, false)?),
                    Some(at) => {
                        reader.out.kept.push(set_aside(&segment.path, true)?);
                        cut_off(&segment.path, at)?;
                    }
                }
                reader.out.kept.reverse();
                break;
            }
        }
    }
    // After the end of the process alone, records may have been read that only the page cache holds. What is handed out counts
    // as durable from here on.
    if let Some(last) = segments::list(dir)?.segments.last() {
        File::open(&last.path)?.sync_all()?;
    }
    segments::sync_dir(dir)?;
    Ok(reader.out)
}

enum End {
    Whole,
    Torn {
        at: usize,
        whole: u64,
    },
    /// `at`: the good part's length; `None`: nothing of the segment is good.
    Damaged {
        at: Option<usize>,
        why: String,
    },
}

struct Reader<'a> {
    /// The index that must come next, 0 before the first record.
    next: u64,
    from: u64,
    sink: &'a mut dyn FnMut(Entry),
    out: Recovered,
}

impl Reader<'_> {
    /// The lowest index whose absence here would be a loss.
    fn needed(&self) -> u64 {
        self.next.max(self.from)
    }

    /// `next`: whether there is a next segment, and whether its header is readable.
    fn segment(
        &mut self,
        segment: &Listed,
        header: &Header,
        limit: Option<u64>,
        next: Option<bool>,
    ) -> io::Result<End> {
        if limit.is_some_and(|l| l <= self.needed()) {
            return Ok(End::Whole);
        }
        if header.first > self.needed() {
            return Ok(End::Damaged {
                at: None,
                why: format!("records {} to {} before it are missing", self.needed(), header.first - 1),
            });
        }
        let size = fs::metadata(&segment.path)?.len();
        if size > SEGMENT_MAX_BYTES {
            return Ok(End::Damaged { at: None, why: format!("{size} bytes are too many for a segment") });
        }
        let bytes = fs::read(&segment.path)?;
        let mut at = HEADER_BYTES;
        // A later segment supersedes our records from its first index on.
        let limit = limit.unwrap_or(u64::MAX);
        let mut last = header.first.saturating_sub(1);
        while last + 1 < limit {
            let frame = match format::frame_at(&bytes, at, header.salt) {
                Some(f) if f.index > last => f,
                _ => match self.gap(&bytes, at, header.salt, last, limit, next) {
                    Gap::Skip(to) => {
                        at = to;
                        continue;
                    }
                    Gap::End(end) => return Ok(end),
                },
            };
            if frame.index >= limit {
                break;
            }
            if frame.index > self.needed() {
                let why = format!("records {} to {} are missing", self.needed(), frame.index - 1);
                return Ok(End::Damaged { at: Some(at), why });
            }
            last = frame.index;
            if frame.index == self.needed() {
                let record = match format::decode_record(frame.record) {
                    Ok(r) => r,
                    Err(e) => {
                        let why = format!("record {} cannot be understood: {e}", frame.index);
                        return Ok(End::Damaged { at: Some(at), why });
                    }
                };
                let payload = frame.payload.map(Bytes::copy_from_slice);
                (self.sink)(Entry { index: frame.index, record, payload });
                self.out.records += 1;
                self.out.last = frame.index;
                self.next = frame.index + 1;
            }
            at = frame.end;
        }
        // With a later segment, everything below its first index was durable.
        if limit != u64::MAX && self.needed() < limit {
            let why = format!("records {} to {} are missing", self.needed(), limit - 1);
            return Ok(End::Damaged { at: Some(at), why });
        }
        Ok(End::Whole)
    }

    /// No valid record stands at `at`: the end, a torn tail, or damage?
    fn gap(&self, bytes: &[u8], at: usize, salt: u32, last: u64, limit: u64, next: Option<bool>) -> Gap {
        let mut later = 0u64;
        let mut proof = None;
        let (mut p, mut above) = (at, last);
        while let Some((q, frame)) = format::next_frame(bytes, p, salt, above) {
            if later == 0 && frame.index <= self.needed() {
                // Only records that a checkpoint covers are lost in between.
                return Gap::Skip(q);
            }
            later += 1;
            if frame.durable >= self.needed() {
                proof = Some(frame.index);
                break;
            }
            (p, above) = (frame.end, frame.index);
        }
        let lost = self.needed();
        if let Some(proof) = proof {
            let why =
                format!("record {lost} at byte {at} is damaged; it had been durable, as record {proof} after it shows");
            return Gap::End(End::Damaged { at: Some(at), why });
        }
        // Every write ends with a frame head of zeros, so that what a recycled file held before is never next.
        let head = bytes.get(at..bytes.len().min(at + format::FRAME_BYTES)).unwrap_or_default();
        let clean = later == 0 && head.iter().all(|b| *b == 0);
        Gap::End(match (next, clean) {
            (None, true) => End::Whole,
            (None, false) => End::Torn { at, whole: later },
            _ if lost >= limit => End::Whole,
            // The next one will say what is missing.
            (Some(false), true) => End::Whole,
            (Some(true), true) => {
                End::Damaged { at: Some(at), why: format!("records {lost} to {} are missing", limit - 1) }
            }
            (Some(_), false) => {
                let why =
                    format!("record {lost} at byte {at} is damaged; it had been durable, as a later segment shows");
                End::Damaged { at: Some(at), why }
            }
        })
    }
}

enum Gap {
    Skip(usize),
    End(End),
}

/// The file ends here from now on.
fn cut_off(path: &Path, at: usize) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(at as u64)?;
    file.sync_all()
}

/// Keeps a copy of the file, or the file itself, under a free name that ends in `.damaged`.
fn set_aside(path: &Path, copy: bool) -> io::Result<PathBuf> {
    let to = crate::identity::free_name(path, "damaged")?;
    if copy {
        fs::copy(path, &to)?;
        File::open(&to)?.sync_all()?;
    } else {
        fs::rename(path, &to)?;
    }
    Ok(to)
}
