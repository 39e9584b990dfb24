//! How segments and records look on disk. All numbers are little endian.
//!
//! | header at | bytes | |
//! |---|---|---|
//! | 0 | 8 | `ICELOG\r\n` |
//! | 8 | 4 | version of the format, and of the records' encoding: 3 (postcard) |
//! | 12 | 4 | salt: seed of the CRC of this segment's records |
//! | 16 | 8 | number of the segment |
//! | 24 | 8 | index of the first record |
//! | 32 | 4 | CRC-32C of the above |
//!
//! Records begin at 4096 and are aligned to 8 bytes:
//!
//! | record at | bytes | |
//! |---|---|---|
//! | 0 | 4 | CRC-32C, seeded with the salt, of everything below |
//! | 4 | 4 | length of the body: record and payload |
//! | 8 | 4 | length of the record |
//! | 12 | 4 | 1 if a payload follows the record (it may be empty), else 0 |
//! | 16 | 8 | index |
//! | 24 | 8 | index up to which all records were durable when this one was written |
//! | 32 | | the record (postcard), then the payload's bytes |
//!
//! Behind the last record stands a frame of zeros, cut short only by the end of the file.

use ice_core::action::LogRecord;

/// Version of the format.
pub const VERSION: u32 = 3;
/// Where records begin. A block of its own, so that writing records never touches the header.
pub const HEADER_BYTES: usize = 4096;
/// What stands before each record.
pub const FRAME_BYTES: usize = 32;
/// Largest record with its payload. The core's limits stay far below it.
pub const BODY_MAX_BYTES: usize = 16 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"ICELOG\r\n";
const HEADER_USED: usize = 36;

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Seed of the records' CRC.
    pub salt: u32,
    /// Number of the segment; a higher one is newer and supersedes records with the same index.
    pub number: u64,
    /// Index of the first record. All records below it are durable, or not needed, when the segment exists.
    pub first: u64,
}

impl Header {
    /// The header block.
    pub fn encode(&self) -> Box<[u8]> {
        let mut b = vec![0; HEADER_BYTES].into_boxed_slice();
        b[0..8].copy_from_slice(MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.salt.to_le_bytes());
        b[16..24].copy_from_slice(&self.number.to_le_bytes());
        b[24..32].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c::crc32c(&b[..32]);
        b[32..36].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a header, or says in words why it is none.
    pub fn decode(block: &[u8]) -> Result<Header, String> {
        if block.len() < HEADER_USED {
            return Err("the file is too short to have a header".into());
        }
        if &block[0..8] != MAGIC {
            return Err("the header is damaged, or this is no log segment".into());
        }
        if u32_at(block, 32) != crc32c::crc32c(&block[..32]) {
            return Err("the header is damaged".into());
        }
        match u32_at(block, 8) {
            VERSION if u64_at(block, 24) == 0 => Err("the header is damaged".into()),
            VERSION => Ok(Header { salt: u32_at(block, 12), number: u64_at(block, 16), first: u64_at(block, 24) }),
            other => Err(format!("it has format {other}, and this program reads format {VERSION}")),
        }
    }
}

/// A record as it stands in a segment.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its index.
    pub index: u64,
    /// All records up to this index were durable when it was written.
    pub durable: u64,
    /// The encoded record.
    pub record: &'a [u8],
    /// The payload's bytes.
    pub payload: Option<&'a [u8]>,
    /// Where the next record begins.
    pub end: usize,
}

/// Bytes that a record with a body of this length takes.
pub fn framed_len(body: usize) -> usize {
    (FRAME_BYTES + body).next_multiple_of(8)
}

/// Appends a framed record to `buf`.
pub fn push_frame(buf: &mut Vec<u8>, salt: u32, index: u64, durable: u64, record: &[u8], payload: Option<&[u8]>) {
    let start = buf.len();
    let bytes = payload.unwrap_or_default();
    buf.extend_from_slice(&[0; 4]);
    buf.extend_from_slice(&((record.len() + bytes.len()) as u32).to_le_bytes());
    buf.extend_from_slice(&(record.len() as u32).to_le_bytes());
    buf.extend_from_slice(&u32::from(payload.is_some()).to_le_bytes());
    buf.extend_from_slice(&index.to_le_bytes());
    buf.extend_from_slice(&durable.to_le_bytes());
    buf.extend_from_slice(record);
    buf.extend_from_slice(bytes);
    let crc = crc32c::crc32c_append(salt, &buf[start + 4..]);
    buf[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    buf.resize(start + framed_len(record.len() + bytes.len()), 0);
}

/// The record at `at`, if a valid one stands there.
pub fn frame_at(segment: &[u8], at: usize, salt: u32) -> Option<Frame<'_>> {
    let head = segment.get(at..at.checked_add(FRAME_BYTES)?)?;
    let (len, split, flag) = (u32_at(head, 4) as usize, u32_at(head, 8) as usize, u32_at(head, 12));
    let index = u64_at(head, 16);
    if len > BODY_MAX_BYTES || split > len || split == 0 || flag > 1 || (flag == 0 && split != len) || index == 0 {
        return None;
    }
    let body = segment.get(at + FRAME_BYTES..at + FRAME_BYTES + len)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &head[4..]), body);
    if crc != u32_at(head, 0) {
        return None;
    }
    Some(Frame {
        index,
        durable: u64_at(head, 24),
        record: &body[..split],
        payload: (flag == 1).then_some(&body[split..]),
        end: at + framed_len(len),
    })
}

/// The first valid record at or after `at` whose index is above `above` and not absurdly so.
pub fn next_frame(segment: &[u8], at: usize, salt: u32, above: u64) -> Option<(usize, Frame<'_>)> {
    (at.next_multiple_of(8)..segment.len().saturating_sub(FRAME_BYTES - 1)).step_by(8).find_map(|p| {
        // Look at the index first: it rules out nearly every offset without computing a checksum.
        let index = u64_at(segment, p + 16);
        let near = index > above && index - above < 1 << 40;
        near.then(|| frame_at(segment, p, salt)).flatten().map(|f| (p, f))
    })
}

/// Encodes a record.
pub fn encode_record(record: &LogRecord) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(record)
}

/// Decodes a record; all bytes must belong to it.
pub fn decode_record(bytes: &[u8]) -> Result<LogRecord, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((record, [])) => Ok(record),
        Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
        Err(e) => Err(e.to_string()),
    }
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_header() {
        let h = Header { salt: 0x1122_3344, number: 7, first: 0x0102_0304_0506_0708 };
        let b = h.encode();
        assert_eq!(b.len(), HEADER_BYTES);
        let hex: String = b[..36].iter().map(|x| format!("{x:02x}")).collect();
        assert_eq!(hex, "4943454c4f470d0a03000000443322110700000000000000080706050403020113c77d88");
        assert_eq!(Header::decode(&b), Ok(h));
        for at in 0..36 {
            let mut d = b.clone();
            d[at] ^= 0x40;
            assert!(Header::decode(&d).is_err(), "byte {at}");
        }
        assert!(Header::decode(&b[..35]).is_err());
    }

    #[test]
    fn frames_come_back() {
        let mut buf = vec![];
        push_frame(&mut buf, 5, 1, 0, b"record", None);
        push_frame(&mut buf, 5, 2, 1, b"other", Some(b""));
        push_frame(&mut buf, 5, 3, 1, b"third", Some(b"payload"));
        assert_eq!(buf.len() % 8, 0);
        let a = frame_at(&buf, 0, 5).unwrap();
        assert_eq!((a.index, a.durable, a.record, a.payload), (1, 0, &b"record"[..], None));
        let b = frame_at(&buf, a.end, 5).unwrap();
        assert_eq!((b.index, b.durable, b.record, b.payload), (2, 1, &b"other"[..], Some(&b""[..])));
        let c = frame_at(&buf, b.end, 5).unwrap();
        assert_eq!((c.index, c.record, c.payload, c.end), (3, &b"third"[..], Some(&b"payload"[..]), buf.len()));
        assert!(frame_at(&buf, 0, 6).is_none(), "another salt");
        assert_eq!(next_frame(&buf, 1, 5, 0).map(|(p, f)| (p, f.index)), Some((a.end, 2)));
        assert_eq!(next_frame(&buf, 0, 5, 2).map(|(_, f)| f.index), Some(3));
        assert!(next_frame(&buf, 0, 5, 3).is_none());
        for at in 0..buf.len() {
            let _ = frame_at(&buf, at, 5);
        }
    }
}
