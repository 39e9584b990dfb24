//! Recordings: frames of opaque bytes in a file, each with a checksum and chained to all before it.
//!
//! What the frames mean belongs to the core's trace format; this is the container. Numbers are little endian.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8 | `ICETRACE` |
//! | 8 | 4 | version of the container: 1 |
//! | 12 | 4 | CRC-32C of the above |
//!
//! Then frames: length (4), CRC-32C of length and chain and bytes (4), chain (16), the bytes. The chain is the beginning of
//! BLAKE3 over the previous frame's chain (zero at first) and the bytes: it tells a frame that is missing or was exchanged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"ICETRACE";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 24;
/// Longest frame.
pub const FRAME_MAX_BYTES: usize = 1 << 30;
/// Bytes that wait in memory at most before they are written.
const BUFFER_BYTES: usize = 256 * 1024;
/// And how long, as seen when the next frame comes.
const BUFFER_AGE: Duration = Duration::from_millis(100);

type Chain = [u8; 16];

fn next_chain(chain: &Chain, frame: &[u8]) -> Chain {
    let mut h = blake3::Hasher::new();
    h.update(chain);
    h.update(frame);
    let mut out = [0; 16];
    out.copy_from_slice(&h.finalize().as_bytes()[..16]);
    out
}

fn checksum(len: u32, chain: &Chain, frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), chain), frame)
}

fn preamble() -> [u8; 16] {
    let mut b = [0; 16];
    b[..8].copy_from_slice(MAGIC);
    b[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&b[..12]);
    b[12..].copy_from_slice(&crc.to_le_bytes());
    b
}

/// Writes a recording.
///
/// Frames are buffered: [`FrameWriter::flush`] before a step that may be the last one (and in a panic hook), or lose up to 100 ms
/// of it. Nothing is synced: a recording is a tool, not data. An error or the size limit ends the recording; a recording with a hole
/// could not be replayed.
pub struct FrameWriter<W: Write> {
    to: W,
    buf: Vec<u8>,
    oldest: Option<Instant>,
    chain: Chain,
    written: u64,
    max_bytes: u64,
    ended: Option<String>,
}

impl FrameWriter<File> {
    /// Begins a recording in a new file of at most `max_bytes`, which only its owner may read. An existing file is replaced.
    pub fn create(path: &Path, max_bytes: u64) -> io::Result<FrameWriter<File>> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        FrameWriter::new(file, max_bytes)
    }
}

impl<W: Write> FrameWriter<W> {
    /// Begins a recording of at most `max_bytes`.
    pub fn new(to: W, max_bytes: u64) -> io::Result<FrameWriter<W>> {
        let mut w =
            FrameWriter { to, buf: Vec::new(), oldest: None, chain: [0; 16], written: 0, max_bytes, ended: None };
        w.to.write_all(&preamble())?;
        w.written = preamble().len() as u64;
        Ok(w)
    }

    /// Appends a frame. `false`: the recording has ended, see [`FrameWriter::ended`].
    pub fn push(&mut self, frame: &[u8]) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let size = (HEAD_BYTES + frame.len()) as u64;
        if frame.len() > FRAME_MAX_BYTES || self.written + size > self.max_bytes {
            let why = if frame.len() > FRAME_MAX_BYTES {
                format!("a frame of {} bytes is too long", frame.len())
            } else {
                format!("the recording reached its limit of {} bytes", self.max_bytes)
            };
            if self.flush().is_ok() {
                self.ended = Some(why);
            }
            return false;
        }
        self.chain = next_chain(&self.chain, frame);
        let len = frame.len() as u32;
        self.buf.extend_from_slice(&len.to_le_bytes());
        self.buf.extend_from_slice(&checksum(len, &self.chain, frame).to_le_bytes());
        self.buf.extend_from_slice(&self.chain);
        self.buf.extend_from_slice(frame);
        self.written += size;
        let oldest = *self.oldest.get_or_insert_with(Instant::now);
        if self.buf.len() >= BUFFER_BYTES || oldest.elapsed() >= BUFFER_AGE {
            return self.flush().is_ok();
        }
        true
    }

    /// Hands everything to the operating system: it survives the end of the process.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.to.write_all(&self.buf).and_then(|()| self.to.flush());
        self.buf.clear();
        self.oldest = None;
        if let Err(e) = &result {
            self.ended.get_or_insert(format!("the recording cannot be written: {e}"));
        }
        result
    }

    /// Why nothing is recorded any more.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.written
    }

    /// Never: a recording has its preamble.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl<W: Write> Drop for FrameWriter<W> {
    fn drop(&mut self) {
        if self.ended.is_none()
            && let Err(error) = self.flush()
        {
            tracing::warn!(%error, "the end of a recording is lost");
        }
    }
}

/// How a recording ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FrameEnd {
    /// After a whole frame.
    Whole,
    /// In the middle of a frame, as the end of the process leaves it. Frames before it are good.
    Torn,
}

/// Why a recording cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It is none, or of another version.
    #[error("not a recording that can be read here: {0}")]
    NotOurs(String),
    /// Bytes were changed, or frames are missing or exchanged.
    #[error("the recording is damaged at frame {frame}, byte {at}: {why}")]
    Damaged {
        /// Number of the frame, from 0.
        frame: u64,
        /// Where it begins.
        at: u64,
        /// In words.
        why: &'static str,
    },
    /// The operating system refused.
    #[error("the recording cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads a recording, frame by frame.
pub struct FrameReader<R: Read> {
    from: R,
    chain: Chain,
    frame: u64,
    at: u64,
    end: Option<FrameEnd>,
}

impl FrameReader<io::BufReader<File>> {
    /// Of a file.
    pub fn open(path: &Path) -> Result<Self, FrameError> {
        FrameReader::new(io::BufReader::new(File::open(path)?))
    }
}

impl<R: Read> FrameReader<R> {
    /// Of any source.
    pub fn new(mut from: R) -> Result<FrameReader<R>, FrameError> {
        let mut head = [0; 16];
        let have = read_up_to(&mut from, &mut head)?;
        if have < head.len() || head[..8] != *MAGIC {
            return Err(FrameError::NotOurs("it does not begin like one".into()));
        }
        if head[12..] != crc32c::crc32c(&head[..12]).to_le_bytes() {
            return Err(FrameError::NotOurs("its head is damaged".into()));
        }
        if head != preamble() {
            let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
            return Err(FrameError::NotOurs(format!("it has version {version}, and this program reads {VERSION}")));
        }
        Ok(FrameReader { from, chain: [0; 16], frame: 0, at: 16, end: None })
    }

    /// The next frame, `None` at the end (see [`FrameReader::end`]). After an error nothing more can be trusted.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let mut head = [0; HEAD_BYTES];
        match read_up_to(&mut self.from, &mut head)? {
            0 => return Ok(self.ends(FrameEnd::Whole)),
            HEAD_BYTES => {}
            _ => return Ok(self.ends(FrameEnd::Torn)),
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let damaged = |why| FrameError::Damaged { frame: self.frame, at: self.at, why };
        if len as usize > FRAME_MAX_BYTES {
            return Err(damaged("its length is absurd"));
        }
        let mut chain = [0; 16];
        chain.copy_from_slice(&head[8..]);
        // Grows with what is really there, whatever the length says.
        let mut frame = Vec::new();
        (&mut self.from).take(u64::from(len)).read_to_end(&mut frame)?;
        if frame.len() < len as usize {
            return Ok(self.ends(FrameEnd::Torn));
        }
        if checksum(len, &chain, &frame) != crc {
            return Err(damaged("its checksum is wrong"));
        }
        if next_chain(&self.chain, &frame) != chain {
            return Err(damaged("it does not follow the one before it"));
        }
        self.chain = chain;
        self.frame += 1;
        self.at += (HEAD_BYTES + frame.len()) as u64;
        Ok(Some(frame))
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<&FrameEnd> {
        self.end.as_ref()
    }

    fn ends(&mut self, end: FrameEnd) -> Option<Vec<u8>> {
        self.end = Some(end);
        None
    }
}

fn read_up_to(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buf.len() {
        match from.read(&mut buf[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recording(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut w = FrameWriter::new(&mut out, 1 << 30).unwrap();
        for f in frames {
            assert!(w.push(f));
        }
        drop(w);
        out
    }
    fn read(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, FrameEnd), (usize, FrameError)> {
        let mut r = FrameReader::new(bytes).map_err(|e| (0, e))?;
        let mut out = vec![];
        loop {
            match r.next_frame() {
                Ok(Some(f)) => out.push(f),
                Ok(None) => return Ok((out, r.end().unwrap().clone())),
                Err(e) => return Err((out.len(), e)),
            }
        }
    }

    #[test]
    fn golden() {
        let bytes = recording(&[b"one".to_vec(), vec![]]);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "494345545241434501000000277a7486030000002fa3a860360a5f50cb716169\
             8f0f641525f223c86f6e6500000000f54230475125a402319920e361ec33db493854f0"
        );
    }

    #[test]
    fn missing_and_exchanged_frames_are_noticed() {
        let frames: Vec<Vec<u8>> = (0..4u8).map(|i| vec![i; 10]).collect();
        let bytes = recording(&frames);
        let size = HEAD_BYTES + 10;
        let part = |i: usize| bytes[16 + i * size..16 + (i + 1) * size].to_vec();
        let missing = [bytes[..16].to_vec(), part(0), part(2), part(3)].concat();
        assert!(matches!(read(&missing), Err((1, FrameError::Damaged { frame: 1, .. }))));
        let exchanged = [bytes[..16].to_vec(), part(1), part(0)].concat();
        assert!(matches!(read(&exchanged), Err((0, FrameError::Damaged { .. }))));
    }

    #[test]
    fn it_ends_at_its_limit_with_whole_frames() {
        let mut out = Vec::new();
        let mut w = FrameWriter::new(&mut out, 16 + 2 * (HEAD_BYTES as u64 + 10)).unwrap();
        assert!(w.push(&[1; 10]) && w.push(&[2; 10]));
        assert!(!w.push(&[3; 10]));
        assert!(!w.push(b""), "a smaller one that would fit makes no hole");
        assert!(w.ended().unwrap().contains("reached its limit"));
        drop(w);
        assert_eq!(read(&out).unwrap(), (vec![vec![1; 10], vec![2; 10]], FrameEnd::Whole));
    }

    #[test]
    fn a_failing_disk_ends_it() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, b: &[u8]) -> io::Result<usize> {
                if b.len() == 16 { Ok(16) } else { Err(io::ErrorKind::StorageFull.into()) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut w = FrameWriter::new(Full, 1 << 30).unwrap();
        assert!(w.push(b"frame"));
        assert!(w.flush().is_err());
        assert!(!w.push(b"frame"));
        assert!(w.ended().unwrap().contains("cannot be written"));
    }

    #[test]
    fn flushed_frames_outlive_the_writer() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("trace");
        let mut w = FrameWriter::create(&path, 1 << 20).unwrap();
        w.push(b"seen");
        w.flush().unwrap();
        w.push(b"buffered");
        std::mem::forget(w);
        let mut r = FrameReader::open(&path).unwrap();
        assert_eq!(r.next_frame().unwrap().unwrap(), b"seen");
        assert!(r.next_frame().unwrap().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_written_is_read(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20)) {
            prop_assert_eq!(read(&recording(&frames)).unwrap(), (frames, FrameEnd::Whole));
        }

        #[test]
        fn a_torn_end_keeps_what_is_before(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..10), cut in any::<prop::sample::Index>(),
        ) {
            let bytes = recording(&frames);
            let at = 16 + cut.index(bytes.len() - 16);
            let (got, _) = read(&bytes[..at]).unwrap();
            prop_assert_eq!(&got[..], &frames[..got.len()]);
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..10),
            at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let mut bytes = recording(&frames);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            // A changed length may look like a torn end; it never yields a frame that was not written.
            match read(&bytes) {
                Ok((got, end)) => {
                    prop_assert_eq!(end, FrameEnd::Torn);
                    prop_assert_eq!(&got[..], &frames[..got.len()]);
                    prop_assert!(got.len() < frames.len());
                }
                Err((good, _)) => prop_assert!(good < frames.len()),
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&[preamble().to_vec(), bytes].concat());
        }
    }
}
