//! The content digest: what two nodes compare to know that they hold the same bytes. The format is part of the protocol.
//!
//! - Length 0: [`ContentDigest::EMPTY`], all zero.
//! - Otherwise the bytes are cut into blocks of 256 KiB (the last may be shorter), and each is hashed with BLAKE3.
//! - One block: its hash is the digest, so that it equals what any BLAKE3 tool prints for the file.
//! - More: BLAKE3 over the tag `icecluster content 1\n`, the block hashes in order, and the length (8 bytes, little endian).
//!
//! A change in a large file thus costs the hashing of the blocks it touched. The tag keeps a file apart from one whose
//! bytes are the hashes of another's blocks; the length stands last so that a stream of unknown length can be digested.

use ice_core::op::ContentDigest;
use rustix::fs::SeekFrom;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Bytes per block.
pub const BLOCK_BYTES: u64 = 256 * 1024;

const TAG: &[u8] = b"icecluster content 1\n";

/// Digest of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> ContentDigest {
    let mut h = Hasher::new();
    h.update(bytes);
    h.finalize()
}

/// Digest of the first `len` bytes of `file`. Holes are not read. `UnexpectedEof` if the file is shorter. May move the position of
/// the descriptor.
pub fn of_file(file: &File, len: u64) -> io::Result<ContentDigest> {
    Ok(Blocks::of_file(file, len)?.root())
}

/// The hash of `len` zeros, a block at most.
pub fn zeros(len: u64) -> [u8; 32] {
    static WHOLE: OnceLock<[u8; 32]> = OnceLock::new();
    let of = |len: u64| *blake3::hash(&vec![0; len as usize]).as_bytes();
    if len == BLOCK_BYTES { *WHOLE.get_or_init(|| of(BLOCK_BYTES)) } else { of(len.min(BLOCK_BYTES)) }
}

/// Block hashes that are known without reading: for the number of a block, its length and its hash.
pub type Known = BTreeMap<u64, (u64, [u8; 32])>;

/// Bytes from a file's beginning that are kept as they are: a file that gets no longer is hashed as a whole, once.
pub const KEPT_BYTES: usize = 64 * 1024;

/// Hashes blocks of a file while its bytes pass by in order, beginning anywhere.
#[derive(Clone)]
pub struct BlockStream {
    at: u64,
    /// `at` is in a block whose beginning did not pass.
    blind: bool,
    hasher: blake3::Hasher,
    /// All bytes from the file's beginning, up to [`KEPT_BYTES`] of them: not hashed yet. `None`: they are hashed.
    kept: Option<Vec<u8>>,
}

impl std::fmt::Debug for BlockStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStream").field("at", &self.at).finish_non_exhaustive()
    }
}

impl BlockStream {
    /// The next byte that passes is the one at `at`.
    pub fn new(at: u64) -> BlockStream {
        let kept = (at == 0).then(Vec::new);
        BlockStream { at, blind: !at.is_multiple_of(BLOCK_BYTES), hasher: blake3::Hasher::new(), kept }
    }

    /// All bytes of a file whose length is `at`, if it is short and all of them passed.
    pub fn all(&self) -> Option<&[u8]> {
        self.kept.as_deref()
    }

    /// Where the next byte belongs.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes pass. Blocks that end are put into `known`.
    pub fn push(&mut self, mut bytes: &[u8], known: &mut Known) {
        if let Some(kept) = &mut self.kept {
            if kept.len() + bytes.len() <= KEPT_BYTES {
                kept.extend_from_slice(bytes);
                self.at += bytes.len() as u64;
                return;
            }
            // Less than a block.
            self.hasher.update(kept);
            self.kept = None;
        }
        while !bytes.is_empty() {
            let index = self.at / BLOCK_BYTES;
            let left = BLOCK_BYTES - self.at % BLOCK_BYTES;
            let (part, rest) = bytes.split_at((left.min(bytes.len() as u64)) as usize);
            if !self.blind {
                self.hasher.update(part);
            }
            self.at += part.len() as u64;
            bytes = rest;
            if part.len() as u64 == left {
                if !self.blind {
                    known.insert(index, (BLOCK_BYTES, *self.hasher.finalize().as_bytes()));
                }
                self.blind = false;
                self.hasher.reset();
            }
        }
    }

    /// The block that has not ended, as far as it came.
    pub fn unfinished(&self, known: &mut Known) {
        let len = self.at % BLOCK_BYTES;
        if len > 0 && !self.blind {
            let hash = self.kept.as_ref().map_or_else(|| self.hasher.finalize(), |kept| blake3::hash(kept));
            known.insert(self.at / BLOCK_BYTES, (len, *hash.as_bytes()));
        }
    }
}

/// Tells data from holes.
struct Holes<'f> {
    file: &'f File,
    /// From the first to the second there is a hole, from there to the third data.
    seen: (u64, u64, u64),
}

impl<'f> Holes<'f> {
    fn of(file: &'f File) -> Holes<'f> {
        Holes { file, seen: (0, 0, 0) }
    }

    /// The whole range is a hole. `false` if the file system does not say.
    fn cover(&mut self, range: &Range<u64>) -> bool {
        if range.start < self.seen.0 || range.start >= self.seen.2 {
            self.seen = self.look(range.start);
        }
        range.start >= self.seen.0 && range.end <= self.seen.1
    }

    fn look(&self, at: u64) -> (u64, u64, u64) {
        match rustix::fs::seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => {
                let end = rustix::fs::seek(self.file, SeekFrom::Hole(data)).unwrap_or(u64::MAX);
                (at, data, end.max(data + 1))
            }
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => match self.file.metadata() {
                Ok(meta) => (at, meta.len().max(at), u64::MAX),
                Err(_) => (at, at, u64::MAX),
            },
            Err(_) => (at, at, u64::MAX),
        }
    }
}

/// Digests bytes as they come, in order, in constant memory.
#[derive(Clone)]
pub struct Hasher {
    // The block that is being filled, and how much of it is.
    block: blake3::Hasher,
    in_block: u64,
    // The first block's hash is the digest if no second one follows.
    first: Option<[u8; 32]>,
    root: blake3::Hasher,
    len: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher::new()
    }
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new() -> Hasher {
        let mut root = blake3::Hasher::new();
        root.update(TAG);
        Hasher { block: blake3::Hasher::new(), in_block: 0, first: None, root, len: 0 }
    }

    /// The next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.in_block == BLOCK_BYTES {
                self.end_block();
            }
            let n = (BLOCK_BYTES - self.in_block).min(bytes.len() as u64) as usize;
            let (part, rest) = bytes.split_at(n);
            self.block.update(part);
            self.in_block += n as u64;
            bytes = rest;
        }
    }

    /// How many bytes came so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No byte came so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of all bytes that came.
    pub fn finalize(mut self) -> ContentDigest {
        if self.len == 0 {
            return ContentDigest::EMPTY;
        }
        if self.first.is_none() {
            return ContentDigest(*self.block.finalize().as_bytes());
        }
        self.end_block();
        self.root.update(&self.len.to_le_bytes());
        ContentDigest(*self.root.finalize().as_bytes())
    }

    fn end_block(&mut self) {
        let hash = *self.block.finalize().as_bytes();
        self.root.update(&hash);
        self.first.get_or_insert(hash);
        self.block.reset();
        self.in_block = 0;
    }
}

/// The block hashes of one file, so that a change costs the blocks it touched. 32 bytes of memory for 256 KiB of file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blocks {
    hashes: Vec<[u8; 32]>,
    len: u64,
}

impl Blocks {
    /// Of an empty file.
    pub fn new() -> Blocks {
        Blocks::default()
    }

    /// Of the first `len` bytes of `file`. `UnexpectedEof` if the file is shorter.
    pub fn of_file(file: &File, len: u64) -> io::Result<Blocks> {
        let mut blocks = Blocks::new();
        blocks.update(file, len, std::iter::once(0..len))?;
        Ok(blocks)
    }

    /// Of a file of `len` zeros.
    pub fn of_zeros(len: u64) -> Blocks {
        let mut hashes = vec![zeros(BLOCK_BYTES.min(len)); len.div_ceil(BLOCK_BYTES) as usize];
        if let Some(last) = hashes.last_mut() {
            *last = zeros(len - (len - 1) / BLOCK_BYTES * BLOCK_BYTES);
        }
        Blocks { hashes, len }
    }

    /// Of a file of `len` bytes whose block hashes are known from elsewhere. `None` if there are not as many as it has
    /// blocks. Compare [`Blocks::root`] with the file's digest before believing them.
    pub fn from_hashes(hashes: Vec<[u8; 32]>, len: u64) -> Option<Blocks> {
        (hashes.len() as u64 == len.div_ceil(BLOCK_BYTES)).then_some(Blocks { hashes, len })
    }

    /// The file is now `len` bytes long, and bytes may have changed in the `dirty` ranges only (what a longer file gained
    /// counts as changed without being named). Reads and hashes the touched blocks, each once.
    ///
    /// A file that was cut and grew again in the meantime has zeros where it had bytes: that range must be in `dirty`.
    /// After an error nothing is changed. Holes are not read. May move the position of the descriptor.
    pub fn update(&mut self, file: &File, len: u64, dirty: impl IntoIterator<Item = Range<u64>>) -> io::Result<()> {
        self.update_knowing(file, len, dirty, &Known::new())
    }

    /// [`Blocks::update`], without reading those of the touched blocks that are known.
    pub fn update_knowing(
        &mut self,
        file: &File,
        len: u64,
        dirty: impl IntoIterator<Item = Range<u64>>,
        known: &Known,
    ) -> io::Result<()> {
        let count = len.div_ceil(BLOCK_BYTES);
        let mut touched: Vec<u64> = Vec::new();
        for range in dirty {
            let end = range.end.min(len);
            if range.start < end {
                touched.extend(range.start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
            }
        }
        if len != self.len {
            // From the block in which the shorter of the two ended.
            touched.extend(len.min(self.len) / BLOCK_BYTES..count);
        }
        touched.sort_unstable();
        touched.dedup();

        let mut buf = Vec::new();
        let mut holes = Holes::of(file);
        let mut fresh = Vec::with_capacity(touched.len());
        for index in touched {
            let at = index * BLOCK_BYTES;
            let size = BLOCK_BYTES.min(len - at);
            let hash = match known.get(&index) {
                Some((of, hash)) if *of == size => *hash,
                _ if holes.cover(&(at..at + size)) => zeros(size),
                _ => {
                    buf.resize(size as usize, 0);
                    file.read_exact_at(&mut buf, at)?;
                    *blake3::hash(&buf).as_bytes()
                }
            };
            fresh.push((index, hash));
        }
        self.hashes.resize(count as usize, [0; 32]);
        for (index, hash) in fresh {
            self.hashes[index as usize] = hash;
        }
        self.len = len;
        Ok(())
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash of each block, in order.
    pub fn hashes(&self) -> &[[u8; 32]] {
        &self.hashes
    }

    /// The digest of the whole file.
    pub fn root(&self) -> ContentDigest {
        match self.hashes.as_slice() {
            [] => ContentDigest::EMPTY,
            [only] => ContentDigest(*only),
            many => {
                let mut h = blake3::Hasher::new();
                h.update(TAG);
                many.iter().for_each(|b| {
                    h.update(b);
                });
                h.update(&self.len.to_le_bytes());
                ContentDigest(*h.finalize().as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn sample(len: usize) -> Vec<u8> {
        // The input of BLAKE3's official test vectors.
        (0..len).map(|i| (i % 251) as u8).collect()
    }
    fn hex(d: ContentDigest) -> String {
        d.0.iter().map(|b| format!("{b:02x}")).collect()
    }
    fn file_of(bytes: &[u8]) -> File {
        let mut f = tempfile::tempfile().unwrap();
        f.write_all(bytes).unwrap();
        f
    }

    // The single-block values are the official BLAKE3 vectors; the others were computed with another implementation
    // of BLAKE3 from the description at the head of this file.
    #[test]
    fn golden() {
        assert_eq!(of_bytes(b""), ContentDigest::EMPTY);
        for (len, want) in GOLDEN {
            let bytes = sample(*len);
            assert_eq!(hex(of_bytes(&bytes)), *want, "of_bytes, length {len}");
            assert_eq!(hex(of_file(&file_of(&bytes), *len as u64).unwrap()), *want, "of_file, length {len}");
            assert_eq!(
                hex(Blocks::of_file(&file_of(&bytes), *len as u64).unwrap().root()),
                *want,
                "Blocks, length {len}"
            );
        }
    }

    const GOLDEN: &[(usize, &str)] = &[
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
        (102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
        (262143, "4fbb10c248894f1b56ec8298555b96e597147150a061b1cf1af19f16dbc0557b"),
        (262144, "d57dc906e20d3fd326ffaa85535500486f46a0979f5a323f028dcabfd381fd4a"),
        (262145, "17d2a2818354b21cff86f6be6862877337132d0a72853644078ddeecdf080df0"),
        (524288, "1a7f54f0e7d10cdf46af772779f6884a383704fb493b4c8b4d3246034b72e8e2"),
        (524289, "b48959bf10e5d06795d4451cf40586268b358de2f0bff7baf4edc6673007a1d0"),
        (1000000, "c6de7af10151e48fc10d0271d6ba1e234c3ab01ff5a8b4ddb6e0ee3cc43d9647"),
    ];

    #[test]
    fn a_shorter_file_is_an_error_and_changes_nothing() {
        let f = file_of(&sample(1000));
        assert_eq!(of_file(&f, 1001).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut b = Blocks::of_file(&f, 1000).unwrap();
        let before = b.clone();
        assert!(b.update(&f, 1001, []).is_err());
        assert_eq!(b, before);
        assert_eq!(of_file(&f, 500).unwrap(), of_bytes(&sample(500)));
    }

    #[test]
    fn only_touched_blocks_are_read() {
        let block = BLOCK_BYTES as usize;
        let bytes = sample(block * 4);
        let f = file_of(&bytes);
        let mut b = Blocks::of_file(&f, bytes.len() as u64).unwrap();
        // A change that nobody announced is not seen, so block 2 was not read ...
        f.write_all_at(b"x", (block * 2) as u64).unwrap();
        f.write_all_at(b"y", (block * 3) as u64).unwrap();
        b.update(&f, bytes.len() as u64, std::iter::once((block * 3) as u64..(block * 3 + 1) as u64)).unwrap();
        assert_eq!(b.hashes()[2], *blake3::hash(&bytes[block * 2..block * 3]).as_bytes());
        // ... and block 3 was.
        assert_ne!(b.hashes()[3], *blake3::hash(&bytes[block * 3..]).as_bytes());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn cuts_do_not_matter(len in 0usize..700_000, cuts in proptest::collection::vec(0usize..700_000, 0..6)) {
            let bytes = sample(len);
            let mut h = Hasher::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                h.update(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(h.len(), len as u64);
            prop_assert_eq!(h.finalize(), of_bytes(&bytes));
        }

        #[test]
        fn blocks_that_passed_by_are_those_that_are_read(
            len in 0usize..1_500_000,
            cuts in proptest::collection::vec((0usize..1_500_000, any::<bool>()), 0..8),
        ) {
            let bytes = sample(len);
            let f = file_of(&bytes);
            let mut at: Vec<(usize, bool)> = cuts.into_iter().map(|(c, skip)| (c.min(len), skip)).collect();
            at.extend([(0, false), (len, false)]);
            at.sort_unstable();
            let (mut stream, mut known) = (BlockStream::new(0), Known::new());
            for pair in at.windows(2) {
                let (from, to) = (pair[0].0, pair[1].0);
                if pair[0].1 {
                    continue;
                }
                if stream.at() != from as u64 {
                    stream = BlockStream::new(from as u64);
                }
                stream.push(&bytes[from..to], &mut known);
            }
            if stream.at() == len as u64 {
                stream.unfinished(&mut known);
            }
            let all = Blocks::of_file(&f, len as u64).unwrap();
            for (index, (size, hash)) in &known {
                prop_assert_eq!((*size, *hash), ((len as u64 - index * BLOCK_BYTES).min(BLOCK_BYTES), all.hashes()[*index as usize]));
            }
            // What is known is not read: the file may hold anything there.
            for index in known.keys() {
                f.write_all_at(b"another", index * BLOCK_BYTES).unwrap();
            }
            f.set_len(len as u64).unwrap();
            let mut blocks = Blocks::new();
            blocks.update_knowing(&f, len as u64, [], &known).unwrap();
            prop_assert_eq!(blocks.root(), of_bytes(&bytes));
        }

        #[test]
        fn holes_are_zeros(len in 0u64..4_000_000, runs in proptest::collection::vec((0u64..4_000_000, 1usize..100_000), 0..4)) {
            let f = tempfile::tempfile().unwrap();
            let mut bytes = vec![0; len as usize];
            f.set_len(len).unwrap();
            for (at, n) in runs {
                let n = n.min(len.saturating_sub(at) as usize);
                f.write_all_at(&vec![7; n], at.min(len)).unwrap();
                bytes[at.min(len) as usize..][..n].fill(7);
            }
            prop_assert_eq!(of_file(&f, len).unwrap(), of_bytes(&bytes));
            prop_assert_eq!(of_file(&f, len + 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn updates_end_where_a_full_pass_ends(
            start in 0usize..900_000,
            edits in proptest::collection::vec((0usize..900_000, 1usize..300_000, any::<u8>(), any::<bool>()), 1..5),
        ) {
            let mut bytes = sample(start);
            let f = file_of(&bytes);
            let mut blocks = Blocks::of_file(&f, start as u64).unwrap();
            for (at, n, fill, cut) in edits {
                let mut dirty = Vec::new();
                if cut {
                    bytes.truncate(at);
                } else {
                    if bytes.len() < at + n {
                        bytes.resize(at + n, 0);
                    }
                    bytes[at..at + n].fill(fill);
                    dirty.push(at as u64..(at + n) as u64);
                }
                f.set_len(bytes.len() as u64).unwrap();
                f.write_all_at(&bytes, 0).unwrap();
                blocks.update(&f, bytes.len() as u64, dirty).unwrap();
                prop_assert_eq!(blocks.root(), of_bytes(&bytes));
            }
        }
    }

    #[test]
    fn a_short_file_that_passed_is_all_there_and_a_longer_one_is_hashed() {
        let bytes: Vec<u8> = (0..2 * KEPT_BYTES).map(|i| (i % 251) as u8).collect();
        for part in [1, 1000, KEPT_BYTES - 1, KEPT_BYTES, KEPT_BYTES + 1] {
            let (mut stream, mut known) = (BlockStream::new(0), Known::new());
            for chunk in bytes.chunks(part) {
                stream.push(chunk, &mut known);
                let so_far = &bytes[..stream.at() as usize];
                let all = (so_far.len() <= KEPT_BYTES).then_some(so_far);
                assert_eq!(stream.all(), all);
                if part > 1 || so_far.len().is_multiple_of(4096) {
                    let mut known = Known::new();
                    stream.unfinished(&mut known);
                    assert_eq!(known[&0], (so_far.len() as u64, *blake3::hash(so_far).as_bytes()));
                }
            }
        }
        assert_eq!(BlockStream::new(BLOCK_BYTES).all(), None, "what stands before did not pass");
    }
}
