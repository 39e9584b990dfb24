//! The form in which etcd's clients keep a snapshot: they refuse what is not a multiple of 512 bytes and a SHA-256 after it.
//!
//! Behind the bytes of the snapshot stand zeros, so many that with the eight bytes of the length (big endian) the whole is a
//! multiple of 512; then the SHA-256 of all that.

use super::errors;
use crate::listen::Stopped;
use bytes::Bytes;
use futures::future::{Either, select};
use futures::{Stream, StreamExt};
use ice_host::control::{Refused, Snapshot};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use tonic::Status;

const BLOCK: u64 = 512;
const LENGTH: u64 = 8;

/// Bytes of zeros behind a snapshot of so many bytes.
fn zeros(bytes: u64) -> u64 {
    (BLOCK - (bytes + LENGTH) % BLOCK) % BLOCK
}

/// The snapshot in what a client has kept; `None` if it is not whole.
pub fn contents(file: &[u8]) -> Option<&[u8]> {
    let (body, sum) = file.split_at_checked(file.len().checked_sub(SHA256_OUTPUT_LEN)?)?;
    if body.is_empty() || digest(&SHA256, body).as_ref() != sum {
        return None;
    }
    let (rest, length) = body.split_last_chunk::<{ LENGTH as usize }>()?;
    let length = u64::from_be_bytes(*length);
    let whole = length.checked_add(zeros(length))? == rest.len() as u64;
    if whole { rest.get(..usize::try_from(length).ok()?) } else { None }
}

/// The pieces of such a file, each with the number of bytes that follow it.
pub(crate) fn pieces(snapshot: Snapshot, stopped: Stopped) -> impl Stream<Item = Result<(Bytes, u64), Status>> + Send {
    let tail = zeros(snapshot.bytes) + LENGTH + SHA256_OUTPUT_LEN as u64;
    let state = State { sum: Context::new(&SHA256), chunks: snapshot.chunks, bytes: snapshot.bytes, sent: 0, stopped };
    futures::stream::try_unfold(Some(state), move |state| async move {
        let Some(mut s) = state else { return Ok(None) };
        // A stop ends the stream with an error: nobody takes a part for the whole.
        let next = match select(s.chunks.next(), s.stopped.wait()).await {
            Either::Left((next, _)) => next.transpose().map_err(errors::refused)?,
            Either::Right(_) => return Err(errors::refused(Refused::Stopping)),
        };
        if let Some(chunk) = next {
            s.sum.update(&chunk);
            s.sent += chunk.len() as u64;
            if s.sent > s.bytes {
                return Err(Status::data_loss("etcdserver: a snapshot is longer than it said"));
            }
            let left = s.bytes - s.sent + tail;
            return Ok(Some(((chunk, left), Some(s))));
        }
        if s.sent < s.bytes {
            return Err(Status::data_loss("etcdserver: a snapshot is shorter than it said"));
        }
        let mut last = vec![0; zeros(s.bytes) as usize];
        last.extend_from_slice(&s.bytes.to_be_bytes());
        s.sum.update(&last);
        last.extend_from_slice(s.sum.finish().as_ref());
        Ok(Some(((Bytes::from(last), 0), None)))
    })
}

struct State {
    sum: Context,
    chunks: ice_host::control::Chunks,
    bytes: u64,
    sent: u64,
    stopped: Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, TryStreamExt};

    fn file(content: &[u8], said: u64) -> Result<Vec<u8>, Status> {
        let chunks: Vec<_> = content.chunks(100).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let (_stop, stopped) = Stopped::new();
        let snapshot = Snapshot { bytes: said, chunks: futures::stream::iter(chunks).boxed() };
        let pieces: Vec<(Bytes, u64)> = pieces(snapshot, stopped).try_collect().now_or_never().unwrap()?;
        let total: usize = pieces.iter().map(|(b, _)| b.len()).sum();
        let mut sent = 0;
        for (bytes, left) in &pieces {
            sent += bytes.len();
            assert_eq!(*left, (total - sent) as u64);
        }
        Ok(pieces.into_iter().flat_map(|(b, _)| b).collect())
    }

    #[test]
    fn what_is_kept_can_be_opened_and_nothing_else() {
        for n in [0, 1, 31, 503, 504, 505, 511, 512, 1000, 1016] {
            let content: Vec<u8> = (0..n).map(|i| i as u8).collect();
            let mut file = file(&content, n).unwrap();
            assert_eq!(file.len() % 512, 32);
            assert_eq!(contents(&file), Some(&content[..]), "{n} bytes");
            assert_eq!(contents(&file[..file.len() - 1]), None);
            for i in [0, file.len() / 2, file.len() - 1] {
                file[i] ^= 1;
                assert_eq!(contents(&file), None, "{n} bytes, byte {i} changed");
                file[i] ^= 1;
            }
        }
        assert_eq!(contents(b""), None);
        assert_eq!(contents(&[0; 32]), None);
        assert_eq!(contents(digest(&SHA256, b"").as_ref()), None);
    }

    #[test]
    fn a_snapshot_that_breaks_off_is_no_snapshot() {
        assert!(file(&[1; 250], 251).is_err());
        assert!(file(&[1; 250], 249).is_err());
    }
}
