//! Versions of one file that come again and again are written into the file that the last one replaced.

mod volume_support;

use ice_core::action::Source;
use ice_core::ids::{InodeId, IoToken, ReplicaId};
use ice_core::op::{Attr, OpBody};
use ice_host::digest::{self, Blocks};
use ice_host::transport::{ContentStore, Fetch};
use ice_host::vfs::Vfs;
use ice_host::volume::HIDDEN_NAME;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use volume_support::*;

const BLOCK: usize = digest::BLOCK_BYTES as usize;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// Receives a version and puts it in place, as a transfer does; returns how many bytes had to be sent.
fn receive(rig: &Rig, inode: InodeId, bytes: &[u8]) -> usize {
    let version = rig.mint_remote();
    let (size, digest) = (bytes.len() as u64, digest::of_bytes(bytes));
    let wanted = tempfile::tempfile().unwrap();
    wanted.write_all_at(bytes, 0).unwrap();
    let blocks = Blocks::of_file(&wanted, size).unwrap();
    let fetch = Fetch { token: IoToken(1), from: ReplicaId(99), inode, version, size, digest };
    let mut arriving = rig.volume.stage(&fetch).unwrap();
    let missing = arriving.reuse(&blocks).unwrap();
    arriving.reserve(&missing).unwrap();
    let mut sent = 0;
    for r in missing {
        let part = &bytes[r.start as usize..r.end as usize];
        arriving.write_at(r.start, part).unwrap();
        sent += part.len();
    }
    assert!(arriving.finish().unwrap());
    rig.set_source(inode, version, Source::Staged { inode, version });
    let body = OpBody::SetContent { inode, base: rig.held(inode), size, digest, mtime: time(1000 + size as i64, 6) };
    rig.core.tree(|t| t.integrate(version, &body));
    rig.core.pump();
    rig.quiet();
    sent
}

fn start(rig: &Rig) -> (InodeId, Vec<u8>) {
    rig.write("f", b"small");
    let bytes: Vec<u8> = (0..10 * BLOCK as u32 + 77).map(|i| (i % 251) as u8 + 1).collect();
    let inode = rig.inode("f");
    receive(rig, inode, &bytes);
    (inode, bytes)
}

fn disk(rig: &Rig) -> u64 {
    fs::metadata(rig.path("f")).unwrap().ino()
}

#[test]
fn two_files_take_turns() {
    let rig = Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false);
    let (inode, mut bytes) = start(&rig);
    let mut seen = vec![disk(&rig)];
    for turn in 0..6u8 {
        let at = usize::from(turn) * BLOCK + 5;
        bytes[at] = 200 + turn;
        let sent = receive(&rig, inode, &bytes);
        assert_eq!(sent, BLOCK, "turn {turn}: only what changed");
        assert!(fs::read(rig.path("f")).unwrap() == bytes, "turn {turn}");
        assert_eq!(fs::metadata(rig.path("f")).unwrap().nlink(), 1);
        seen.push(disk(&rig));
    }
    assert!(seen[1] != seen[0] && seen[2..].chunks(2).all(|pair| pair == &seen[..2][..pair.len()]), "{seen:?}");
    rig.assert_agree();
    // Nothing stays behind.
    let (dir, ..) = rig.end();
    let left: Vec<_> = fs::read_dir(dir.path().join(HIDDEN_NAME).join("tmp")).unwrap().map(|e| e.unwrap()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_somebody_still_sees_is_never_written_into() {
    let rig = Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false);
    let (inode, mut bytes) = start(&rig);
    for turn in 0..3u8 {
        let change = |bytes: &mut Vec<u8>, n: u8| {
            bytes[BLOCK + 1] = n;
            receive(&rig, inode, bytes);
        };
        change(&mut bytes, 100 + turn);
        let old = bytes.clone();
        // In turn: through the volume, directly in `backing`, through a map, under another name.
        let handle = rig.open("f", libc::O_RDONLY);
        let mut direct = fs::File::open(rig.path("f")).unwrap();
        change(&mut bytes, 110 + turn);
        change(&mut bytes, 120 + turn);
        change(&mut bytes, 130 + turn);
        assert!(rig.read_open(&handle) == old[..rig.read_open(&handle).len()], "turn {turn}: by the volume's reader");
        let mut seen = Vec::new();
        direct.read_to_end(&mut seen).unwrap();
        assert!(seen == old, "turn {turn}: by a direct reader");
        rig.close(handle);
        drop(direct);
        let linked = rig.path(&format!("other{turn}"));
        fs::hard_link(rig.path("f"), &linked).unwrap();
        let old = bytes.clone();
        change(&mut bytes, 140 + turn);
        change(&mut bytes, 150 + turn);
        assert!(fs::read(&linked).unwrap() == old, "turn {turn}: under another name");
        fs::remove_file(&linked).unwrap();
        assert!(fs::read(rig.path("f")).unwrap() == bytes, "turn {turn}");
    }
}

#[test]
fn attributes_of_an_earlier_life_do_not_come_back() {
    let rig = Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false);
    let (inode, mut bytes) = start(&rig);
    let name = || (*b"user.x").into();
    let value = Some(serde_bytes::ByteBuf::from(b"1".to_vec()));
    rig.remote_attr(inode, Attr::Xattr { name: name(), value });
    rig.quiet();
    bytes[0] = 7;
    receive(&rig, inode, &bytes);
    bytes[0] = 8;
    receive(&rig, inode, &bytes);
    rig.remote_attr(inode, Attr::Xattr { name: name(), value: None });
    rig.quiet();
    for n in 9..13 {
        bytes[0] = n;
        receive(&rig, inode, &bytes);
        assert_eq!(rig.volume.listxattr(rig.ino("f")).unwrap(), b"", "version {n}");
    }
    assert!(fs::read(rig.path("f")).unwrap() == bytes);
}

#[test]
fn any_sequence_of_versions_is_exact() {
    for seed in 0..6 {
        let rig = Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false);
        let mut rng = Rng(seed);
        let (inode, mut bytes) = start(&rig);
        for turn in 0..12 {
            match rng.below(5) {
                0 => bytes.truncate(4 * BLOCK + rng.below(8 * BLOCK)),
                1 => bytes.resize(bytes.len() + rng.below(2 * BLOCK), rng.below(2) as u8),
                2 => {
                    // Zeros where bytes were.
                    let at = rng.below(bytes.len() / BLOCK) * BLOCK;
                    bytes[at..at + BLOCK].fill(0);
                }
                // Back to what was before, too.
                _ => {
                    let at = rng.below(bytes.len());
                    bytes[at] = rng.below(3) as u8;
                }
            }
            receive(&rig, inode, &bytes);
            assert!(fs::read(rig.path("f")).unwrap() == bytes, "seed {seed}, turn {turn}");
            assert_eq!(fs::metadata(rig.path("f")).unwrap().len(), bytes.len() as u64);
        }
        rig.assert_agree();
    }
}
