//! Digests: exact whatever happens to a file, and without reading again what passed by.

mod volume_support;

use ice_core::ids::{IoToken, ReplicaId};
use ice_host::digest;
use ice_host::transport::{ContentStore, Fetch};
use ice_host::vfs::{Opened, SetStat, Vfs};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;
use volume_support::{ROOT, Rig};

const BLOCK: u64 = digest::BLOCK_BYTES;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n.max(1)
    }
}

fn create(rig: &Rig, name: &str) -> Opened {
    rig.volume.create(ROOT, 1, OsStr::new(name), 0o644, libc::O_WRONLY).unwrap().1
}

/// Bytes that this thread had the kernel read so far; `None` where it does not count.
fn read_so_far() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|l| l.strip_prefix("rchar: "))?.trim().parse().ok()
}

#[test]
fn what_was_written_in_order_is_not_read_again() {
    let Some(_) = read_so_far() else {
        eprintln!("SKIPPED: this kernel does not count what a thread reads");
        return;
    };
    let rig = Rig::new();
    let bytes: Vec<u8> = (0..9_000_000u32).map(|i| (i / 7 % 251) as u8).collect();
    let file = create(&rig, "f");
    for (i, part) in bytes.chunks(130_000).enumerate() {
        rig.volume.write(file.fh, i as u64 * 130_000, part).unwrap();
    }
    let before = read_so_far().unwrap();
    rig.volume.fsync(file.fh, false).unwrap();
    let read = read_so_far().unwrap() - before;
    assert!(read < 100_000, "{read} bytes were read");
    rig.assert_content("f", &bytes);
    // Appending goes on with the block that was not full.
    let tail = vec![9; 500_000];
    rig.volume.write(file.fh, bytes.len() as u64, &tail).unwrap();
    let before = read_so_far().unwrap();
    rig.volume.fsync(file.fh, false).unwrap();
    let read = read_so_far().unwrap() - before;
    assert!(read < 100_000, "{read} bytes were read");
    rig.assert_content("f", &[bytes, tail].concat());
    rig.close(file);
    rig.assert_agree();
}

#[test]
fn digests_are_exact_whatever_is_done_to_a_file() {
    for seed in 1..=12u64 {
        let rig = Rig::new();
        let mut rng = Rng(seed);
        let mut file = create(&rig, "f");
        rig.write("other", &vec![5; 700_000]);
        let other = rig.open("other", libc::O_RDONLY);
        let (mut at, mut mapped): (u64, Option<Opened>) = (0, None);
        for step in 0..60 {
            let size = fs::metadata(rig.path("f")).unwrap().len();
            let fill = (seed + step) as u8;
            let what = rng.below(14);
            match what {
                // In order, most of the time.
                0..=5 => {
                    let part: Vec<u8> = (0..rng.below(400_000)).map(|i| fill.wrapping_add((i / 1000) as u8)).collect();
                    at += rig.volume.write(file.fh, at, &part).unwrap() as u64;
                }
                6 => {
                    let part = vec![fill; rng.below(300_000) as usize];
                    rig.volume.write(file.fh, rng.below(size + BLOCK), &part).unwrap();
                }
                7 => {
                    let set = SetStat { size: Some(rng.below(size + BLOCK)), ..SetStat::default() };
                    let fh = (rng.below(2) == 0).then_some(file.fh);
                    rig.volume.setattr(ROOT, rig.ino("f"), fh, set).unwrap();
                    at = fs::metadata(rig.path("f")).unwrap().len();
                }
                8 if volume_support::lacks("fallocate") => {}
                8 => {
                    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    rig.volume.fallocate(file.fh, punch, rng.below(size + 1), 1 + rng.below(BLOCK)).unwrap();
                }
                9 => {
                    rig.volume
                        .copy_file_range(other.fh, rng.below(1000), file.fh, rng.below(size + 1), 300_000)
                        .unwrap();
                }
                10 => {
                    // Behind the mount, at another time than what was done before and is done after.
                    std::thread::sleep(Duration::from_millis(25));
                    let direct = fs::File::options().write(true).open(rig.path("f")).unwrap();
                    direct.write_all_at(&[fill; 100], rng.below(size + 1)).unwrap();
                    std::thread::sleep(Duration::from_millis(25));
                    // Attributes do not make up for it.
                    let set = SetStat { mode: Some(0o600 + u32::from(fill % 8)), ..SetStat::default() };
                    rig.volume.setattr(ROOT, rig.ino("f"), None, set).unwrap();
                    at += rig.volume.write(file.fh, at, &[fill; 10]).unwrap() as u64;
                }
                11 => {
                    let append = rig.open("f", libc::O_WRONLY | libc::O_APPEND);
                    rig.volume.write(append.fh, 0, &vec![fill; rng.below(BLOCK) as usize]).unwrap();
                    rig.close(append);
                }
                12 => match mapped.take() {
                    Some(file) => rig.close(file),
                    None => mapped = Some(rig.open("f", libc::O_RDWR)),
                },
                _ => {
                    rig.close(file);
                    file = rig.open("f", libc::O_WRONLY);
                    at = if rng.below(2) == 0 { 0 } else { size };
                }
            }
            if rng.below(3) == 0 {
                rig.volume.fsync(file.fh, true).unwrap();
                let inode = rig.inode("f");
                let info = rig.core.tree(|t| t.info(inode)).unwrap();
                let bytes = fs::read(rig.path("f")).unwrap();
                let want = (bytes.len() as u64, digest::of_bytes(&bytes));
                assert_eq!((info.size, info.digest), want, "seed {seed}, step {step}: after {what}");
            }
        }
        if let Some(file) = mapped {
            rig.close(file);
        }
        rig.close(other);
        rig.close(file);
        rig.assert_agree();
    }
}

#[test]
fn writers_at_once_and_a_publisher_in_between_leave_the_right_digest() {
    let rig = Rig::new();
    let file = create(&rig, "f");
    let (a, b) = (rig.open("f", libc::O_WRONLY), rig.open("f", libc::O_WRONLY));
    std::thread::scope(|s| {
        for (n, fh) in [(1u8, file.fh), (2, a.fh), (3, b.fh)] {
            let rig = &rig;
            s.spawn(move || {
                // They meet at the ends of their parts, in the middle of blocks.
                let base = u64::from(n - 1) * 3_000_000;
                for i in 0..60u64 {
                    rig.volume.write(fh, base + i * 51_000, &vec![n + (i % 7) as u8; 51_000]).unwrap();
                    if i % 10 == 9 {
                        rig.volume.fsync(fh, true).unwrap();
                    }
                }
            });
        }
    });
    rig.volume.fsync(file.fh, true).unwrap();
    rig.assert_content("f", &fs::read(rig.path("f")).unwrap());
    for f in [file, a, b] {
        rig.close(f);
    }
    rig.assert_agree();
}

#[test]
fn a_sparse_file_is_received_as_one_and_hashed_once() {
    let rig = Rig::new();
    let size = 1 << 30;
    let file = create(&rig, "f");
    rig.volume.write(file.fh, 5 * BLOCK + 100, b"an island").unwrap();
    rig.volume.write(file.fh, 700 << 20, &vec![7; 900_000]).unwrap();
    let set = SetStat { size: Some(size), ..SetStat::default() };
    rig.volume.setattr(ROOT, rig.ino("f"), Some(file.fh), set).unwrap();
    let before = read_so_far();
    rig.volume.fsync(file.fh, true).unwrap();
    if let (Some(before), Some(after)) = (before, read_so_far()) {
        assert!(after - before < 4 * BLOCK, "{} bytes of a hole were read", after - before);
    }
    rig.close(file);
    let inode = rig.inode("f");
    let info = rig.core.tree(|t| t.info(inode)).unwrap();
    let served = rig.volume.open_version(inode, info.version).unwrap().unwrap();
    assert!(served.is_sparse());
    let blocks = served.blocks().unwrap();
    assert_eq!(blocks.root(), info.digest);

    // The same bytes arrive as another version of another file.
    rig.write("g", b"");
    let (to, version) = (rig.inode("g"), rig.mint_remote());
    let fetch = Fetch { token: IoToken(1), from: ReplicaId(99), inode: to, version, size, digest: info.digest };
    let mut arriving = rig.volume.stage(&fetch).unwrap();
    let missing = arriving.reuse(&blocks).unwrap();
    let bytes: u64 = missing.iter().map(|r| r.end - r.start).sum();
    assert!((1..=6 * BLOCK).contains(&bytes), "{missing:?}");
    arriving.reserve(&missing).unwrap();
    let mut buf = vec![0; 100_000];
    for range in missing {
        let mut at = range.start;
        while at < range.end {
            let n = served.read_at(at, &mut buf[..(range.end - at).min(100_000) as usize]).unwrap();
            arriving.write_at(at, &buf[..n]).unwrap();
            at += n as u64;
        }
    }
    let before = read_so_far();
    assert!(arriving.finish().unwrap());
    if let (Some(before), Some(after)) = (before, read_so_far()) {
        assert!(after - before < 100_000, "{} bytes were read once more", after - before);
    }
    let staged = rig.volume.open_version(to, version).unwrap().unwrap();
    assert_eq!(staged.blocks().unwrap().root(), info.digest);
    assert!(staged.is_sparse());
    let held: u64 = fs::read_dir(rig.path(ice_host::volume::HIDDEN_NAME).join("tmp"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert!(held < 16 * BLOCK, "{held} bytes on disk");
}

#[test]
fn what_a_version_has_in_common_with_another_is_taken_holes_included() {
    let rig = Rig::new();
    for seed in 1..=20u64 {
        let mut rng = Rng(seed);
        let make = |rng: &mut Rng| {
            let n = 4 + rng.below(8);
            let last = rng.below(BLOCK);
            let mut bytes = Vec::new();
            for _ in 0..n {
                bytes.resize(bytes.len() + BLOCK as usize, rng.below(3) as u8);
            }
            bytes.resize(bytes.len() + last as usize, rng.below(2) as u8);
            if rng.below(2) == 0 {
                bytes[BLOCK as usize + 17] = 99;
            }
            bytes
        };
        let (old, new) = (make(&mut rng), make(&mut rng));
        let name = format!("f{seed}");
        rig.write(&name, &old);
        let (inode, version) = (rig.inode(&name), rig.mint_remote());
        let (size, digest) = (new.len() as u64, digest::of_bytes(&new));
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&new, 0).unwrap();
        let blocks = digest::Blocks::of_file(&source, size).unwrap();
        let fetch = Fetch { token: IoToken(1), from: ReplicaId(99), inode, version, size, digest };
        let mut arriving = rig.volume.stage(&fetch).unwrap();
        assert!(arriving.has_base());
        let missing = arriving.reuse(&blocks).unwrap();
        assert!(missing.windows(2).all(|w| w[0].end < w[1].start) && missing.iter().all(|r| r.start < r.end));
        arriving.reserve(&missing).unwrap();
        for r in &missing {
            arriving.write_at(r.start, &new[r.start as usize..r.end as usize]).unwrap();
        }
        assert!(arriving.finish().unwrap(), "seed {seed}: missing {missing:?}");
    }
}

#[test]
fn the_hashes_of_a_file_that_is_open_are_told_without_reading_it() {
    let rig = Rig::new();
    let mut bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 3 % 251) as u8).collect();
    let file = create(&rig, "f");
    rig.volume.write(file.fh, 0, &bytes).unwrap();
    for round in 0..3u8 {
        rig.volume.write(file.fh, 1_000_000, &[round]).unwrap();
        bytes[1_000_000] = round;
        rig.volume.fsync(file.fh, true).unwrap();
        let inode = rig.inode("f");
        let served = rig.volume.open_version(inode, rig.held(inode)).unwrap().unwrap();
        let before = read_so_far();
        let blocks = served.blocks().unwrap();
        if let (Some(before), Some(after)) = (before, read_so_far()) {
            assert!(after - before < 100_000, "{} bytes were read", after - before);
        }
        assert_eq!(blocks.root(), digest::of_bytes(&bytes), "round {round}");
    }
    // Nobody has it open: they are read.
    rig.close(file);
    let inode = rig.inode("f");
    let served = rig.volume.open_version(inode, rig.held(inode)).unwrap().unwrap();
    assert_eq!(served.blocks().unwrap().root(), digest::of_bytes(&bytes));
}
