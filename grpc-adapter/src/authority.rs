//! Go's etcd clients (up to 3.4, in `endpoint status`, `move-leader` and others) call a server by its whole URL: the header
//! `:authority` says `http://host:port` where HTTP/2 wants `host:port`. Go's servers do not mind, but the HTTP/2 implementation
//! here refuses such requests. So the scheme is taken out before it sees them.
//!
//! What a client sends is looked at until its first request; if that one is in order, nothing is looked at any more.
//! Otherwise frames with headers are changed for as long as the connection lives. The value stays in the compression's
//! table of the server shorter than in that of the client: the server thus forgets entries later than the client, which does not
//! refer to what it has forgotten itself.

use futures::{AsyncRead, AsyncWrite};
use ice_host::runtime::BoxStream;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// No frame is larger unless we say that it may be, which we do not.
const FRAME_MAX: usize = 16_384;
const READ_BYTES: usize = 16 * 1024;

/// How what can stand in an authority is compressed (RFC 7541, appendix B): so many bits, the first code, and the characters in
/// the order of their codes.
const CODES: [(u32, u32, &[u8]); 5] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (13, 0x1ffa, b"@[]~"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No request has been seen.
    Looking,
    /// The client is one of those.
    Mending,
    /// The client is in order.
    Off,
}

/// A client's stream, behind the connection preface.
pub(crate) struct Mended {
    stream: BoxStream,
    state: State,
    /// Read and not looked at.
    raw: Vec<u8>,
    /// To be handed on, from `done` on.
    ready: Vec<u8>,
    done: usize,
    /// Bytes of the present frame that are handed on as they are.
    left: usize,
}

impl Mended {
    pub(crate) fn new(stream: BoxStream) -> Mended {
        Mended { stream, state: State::Looking, raw: vec![], ready: vec![], done: 0, left: 0 }
    }

    /// Moves what can be judged from `raw` to `ready`.
    fn judge(&mut self) {
        let mut at = 0;
        while self.state != State::Off && at < self.raw.len() {
            let rest = &self.raw[at..];
            if self.left > 0 {
                let n = self.left.min(rest.len());
                self.ready.extend_from_slice(&rest[..n]);
                (self.left, at) = (self.left - n, at + n);
                continue;
            }
            let Some(head) = rest.get(..FRAME_HEAD) else { break };
            let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if len > FRAME_MAX {
                // An error, as the HTTP/2 implementation will find.
                self.state = State::Off;
                break;
            }
            if head[3] != HEADERS {
                self.ready.extend_from_slice(head);
                (self.left, at) = (len, at + FRAME_HEAD);
                continue;
            }
            let Some(frame) = rest.get(..FRAME_HEAD + len) else { break };
            let mended = mend(frame);
            if self.state == State::Looking {
                self.state = if mended.is_some() { State::Mending } else { State::Off };
            }
            self.ready.extend_from_slice(mended.as_deref().unwrap_or(frame));
            at += FRAME_HEAD + len;
        }
        if self.state == State::Off {
            self.ready.extend_from_slice(&self.raw[at..]);
            self.raw = vec![];
        } else {
            self.raw.drain(..at);
        }
    }
}

impl AsyncRead for Mended {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let this = &mut *self;
            let rest = &this.ready[this.done..];
            if !rest.is_empty() {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                this.done += n;
                if this.done == this.ready.len() {
                    (this.done, this.ready) = (0, vec![]);
                }
                return Poll::Ready(Ok(n));
            }
            if this.state == State::Off {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut more = [0; READ_BYTES];
            let n = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut more))?;
            if n == 0 {
                this.state = State::Off;
            }
            this.raw.extend_from_slice(&more[..n]);
            this.judge();
        }
    }
}

impl AsyncWrite for Mended {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// A frame of headers without the scheme in its `:authority`; `None` if there is none to take out.
fn mend(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame[4];
    let mut block = FRAME_HEAD;
    block += usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let (at, end, value) = authority(frame, block)?;
    let plain = if frame[at] & 0x80 != 0 { decompress(value)? } else { value.to_vec() };
    let short = plain.strip_prefix(b"http://").or_else(|| plain.strip_prefix(b"https://"))?;
    let mut out = frame[..at].to_vec();
    put_length(&mut out, short.len());
    out.extend_from_slice(short);
    out.extend_from_slice(&frame[end..]);
    let len = out.len() - FRAME_HEAD;
    out[..3].copy_from_slice(&[(len >> 16) as u8, (len >> 8) as u8, len as u8]);
    Some(out)
}

/// Where the length of the value of a literal `:authority` stands, where the value ends, and the value.
fn authority(frame: &[u8], mut at: usize) -> Option<(usize, usize, &[u8])> {
    /// `:authority` in the static table.
    const NAME: usize = 1;
    loop {
        let first = *frame.get(at)?;
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            // The size of the table.
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = number(frame, &mut at, bits)?;
        if !literal {
            continue;
        }
        if index == 0 {
            string(frame, &mut at)?;
        }
        let value_at = at;
        let value = string(frame, &mut at)?;
        if index == NAME {
            return Some((value_at, at, value));
        }
    }
}

/// A number with a prefix of so many bits (RFC 7541, 5.1). `None`: it does not end here, or is larger than any that counts.
fn number(frame: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1usize << bits) - 1;
    let mut n = usize::from(*frame.get(*at)?) & most;
    *at += 1;
    if n < most {
        return Some(n);
    }
    for shift in [0, 7, 14] {
        let b = usize::from(*frame.get(*at)?);
        *at += 1;
        n += (b & 0x7f) << shift;
        if b & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

fn string<'a>(frame: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let n = number(frame, at, 7)?;
    let value = frame.get(*at..at.checked_add(n)?)?;
    *at += n;
    Some(value)
}

/// Of a value that is not compressed.
fn put_length(out: &mut Vec<u8>, mut n: usize) {
    if n < 0x7f {
        return out.push(n as u8);
    }
    out.push(0x7f);
    n -= 0x7f;
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// `None`: it is not compressed as it must be, or holds what no authority does.
fn decompress(value: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut n) = (vec![], 0u32, 0u32);
    for byte in value {
        (bits, n) = (bits << 8 | u32::from(*byte), n + 8);
        // Fewer than 13 bits are left over each time, so 32 hold all there are.
        while let Some((len, c)) = CODES.iter().find_map(|(len, first, chars)| {
            let code = (bits >> n.checked_sub(*len)?) & ((1 << len) - 1);
            Some((*len, *chars.get(usize::try_from(code.checked_sub(*first)?).ok()?)?))
        }) {
            out.push(c);
            n -= len;
            bits &= (1 << n) - 1;
        }
        if n >= 13 {
            return None;
        }
    }
    // Less than a byte of ones fills what is left.
    (n < 8 && bits == (1 << n) - 1).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::AsyncReadExt;
    use futures::FutureExt;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len();
        let mut f = vec![(len >> 16) as u8, (len >> 8) as u8, len as u8, kind, flags, 0, 0, 0, 1];
        f.extend_from_slice(payload);
        f
    }

    /// `:method POST`, a literal `:authority` with incremental indexing, `:path` without.
    fn block(huffman: bool, authority: &[u8]) -> Vec<u8> {
        let mut b = vec![0x83, 0x41];
        let at = b.len();
        put_length(&mut b, authority.len());
        b[at] |= if huffman { 0x80 } else { 0 };
        b.extend_from_slice(authority);
        b.extend_from_slice(b"\x04\x02/x");
        b
    }

    fn compress(text: &str) -> Vec<u8> {
        let code = |c: u8| {
            let find = |(len, first, chars): &(u32, u32, &[u8])| {
                Some((*len as usize, first + chars.iter().position(|x| *x == c)? as u32))
            };
            CODES.iter().find_map(find).unwrap()
        };
        let bits: String = text.bytes().map(code).map(|(n, c)| format!("{c:0n$b}")).collect();
        let whole = bits.len().div_ceil(8) * 8;
        let bits = format!("{bits:1<whole$}");
        (0..whole / 8).map(|i| u8::from_str_radix(&bits[8 * i..8 * i + 8], 2).unwrap()).collect()
    }

    #[test]
    fn the_codes_are_those_of_the_standard() {
        // RFC 7541, C.4.1 and C.6.1.
        for (bytes, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (
                &[0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae, 0x43, 0xd3],
                "https://www.example.com",
            ),
        ] {
            assert_eq!(decompress(bytes).as_deref(), Some(text.as_bytes()));
            assert_eq!(compress(text), bytes);
        }
        let all: String = CODES.iter().flat_map(|(_, _, chars)| chars.iter().map(|c| char::from(*c))).collect();
        assert_eq!(decompress(&compress(&all)), Some(all.into_bytes()));
        assert_eq!(decompress(&[0xff]), None, "a byte of nothing but filling");
        assert_eq!(decompress(&[0xff; 4]), None);
        assert_eq!(decompress(&[0]), None, "filled with zeros");
    }

    fn read_all(bytes: Vec<u8>) -> Vec<u8> {
        struct Drip(Vec<u8>);
        impl AsyncRead for Drip {
            fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                let n = 3.min(self.0.len()).min(buf.len());
                buf[..n].copy_from_slice(&self.0[..n]);
                self.0.drain(..n);
                Poll::Ready(Ok(n))
            }
        }
        impl AsyncWrite for Drip {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(buf.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let mut out = vec![];
        Mended::new(Box::new(Drip(bytes))).read_to_end(&mut out).now_or_never().unwrap().unwrap();
        out
    }

    #[test]
    fn a_scheme_is_taken_out_plain_and_compressed() {
        let names = ["127.0.0.1:2379", "[::1]:37129", "A-z_9", "9", "99", "999", "9999", "99999", "999999", "p", "pp"];
        for name in names {
            for scheme in ["http://", "https://"] {
                let long = format!("{scheme}{name}");
                let plain = frame(HEADERS, 4, &block(false, long.as_bytes()));
                assert_eq!(mend(&plain), Some(frame(HEADERS, 4, &block(false, name.as_bytes()))), "{long}");
                let packed = frame(HEADERS, 4, &block(true, &compress(&long)));
                assert_eq!(mend(&packed), Some(frame(HEADERS, 4, &block(false, name.as_bytes()))), "{long}");
            }
            assert_eq!(mend(&frame(HEADERS, 4, &block(false, name.as_bytes()))), None);
            assert_eq!(mend(&frame(HEADERS, 4, &block(true, &compress(name)))), None);
        }
        let long = "a".repeat(300);
        let with = frame(HEADERS, 4, &block(true, &compress(&format!("http://{long}"))));
        assert_eq!(mend(&with), Some(frame(HEADERS, 4, &block(false, long.as_bytes()))));
    }

    #[test]
    fn padding_and_priority_stay() {
        let payload = |name: &[u8]| [&[2, 0, 0, 0, 3, 7], &block(false, name)[..], &[0, 0]].concat();
        let flags = 4 | PADDED | PRIORITY;
        let mended = mend(&frame(HEADERS, flags, &payload(b"http://a:1")));
        assert_eq!(mended, Some(frame(HEADERS, flags, &payload(b"a:1"))));
    }

    #[test]
    fn a_stream_is_changed_where_it_must_be_and_nowhere_else() {
        let (bad, good) = (block(false, b"http://a:1"), block(false, b"a:1"));
        let settings = frame(4, 0, &[0, 3, 0, 0, 0, 9]);
        let data = frame(0, 1, b"http://a:1");
        let sent = [&settings[..], &frame(HEADERS, 4, &bad), &data, &frame(HEADERS, 4, &bad), &data].concat();
        let want = [&settings[..], &frame(HEADERS, 4, &good), &data, &frame(HEADERS, 4, &good), &data].concat();
        assert_eq!(read_all(sent), want);
        // One that begins in order is left alone.
        let fine = [&settings[..], &frame(HEADERS, 4, &good), &data, &frame(HEADERS, 4, &bad), b"\0\0"].concat();
        assert_eq!(read_all(fine.clone()), fine);
    }

    #[test]
    fn nothing_that_is_sent_is_lost_or_breaks_it() {
        // Cut anywhere, and with every byte changed: little more or less comes out.
        let whole = [frame(4, 0, &[]), frame(HEADERS, 4, &block(true, &compress("http://127.0.0.1:2379")))].concat();
        for n in 0..=whole.len() {
            let out = read_all(whole[..n].to_vec());
            assert!(out.len() == n || n == whole.len(), "cut at {n}");
            for bit in 0..8 {
                let mut other = whole[..n].to_vec();
                if let Some(last) = other.last_mut() {
                    *last ^= 1 << bit;
                }
                assert!(read_all(other).len().abs_diff(n) <= 9);
            }
        }
    }
}
