//! File contents, by real system calls on a real mount, with and without passthrough.
#![cfg(target_os = "linux")]

mod support;

use ice_fuse::Passthrough;
use ice_host::vfs::Stale;
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use support::{Fixture, both, can_mount, sh};

fn rw(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn what_is_written_is_read_everywhere() {
    both(|f| {
        let data: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        let mut w = File::create(f.at("f")).unwrap();
        w.write_all(&data).unwrap();
        assert_eq!(w.metadata().unwrap().len(), data.len() as u64);
        let r = File::open(f.at("f")).unwrap();
        w.write_all_at(b"changed", 1_000_000).unwrap();
        let mut buf = [0; 7];
        r.read_exact_at(&mut buf, 1_000_000).unwrap();
        assert_eq!(&buf, b"changed", "by a reader that was open before");
        let mut both_ways = rw(&f.at("f"));
        both_ways.read_exact_at(&mut buf, 1_000_000).unwrap();
        assert_eq!(&buf, b"changed");
        both_ways.seek(std::io::SeekFrom::End(0)).unwrap();
        both_ways.write_all(b"tail").unwrap();
        w.sync_all().unwrap();
        let mut expected = data;
        expected[1_000_000..1_000_007].copy_from_slice(b"changed");
        expected.extend(b"tail");
        assert!(fs::read(f.at("f")).unwrap() == expected);
        assert!(fs::read(f.in_backing("f")).unwrap() == expected);
        assert_eq!(w.read(&mut buf).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(r.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn append_truncate_and_exclusive() {
    both(|f| {
        let a = OpenOptions::new().append(true).create(true).open(f.at("log")).unwrap();
        let b = OpenOptions::new().append(true).open(f.at("log")).unwrap();
        for i in 0..100 {
            writeln!(&a, "a{i}").unwrap();
            writeln!(&b, "b{i}").unwrap();
        }
        let lines: String = (0..100).map(|i| format!("a{i}\nb{i}\n")).collect();
        assert_eq!(fs::read_to_string(f.at("log")).unwrap(), lines);
        a.set_len(5).unwrap();
        writeln!(&b, "c").unwrap();
        assert_eq!(fs::read_to_string(f.at("log")).unwrap(), "a0\nb0c\n");
        b.set_len(10_000).unwrap();
        assert_eq!(fs::read(f.at("log")).unwrap().len(), 10_000);
        let t = File::create(f.at("log")).unwrap();
        assert_eq!((t.metadata().unwrap().len(), fs::read(f.at("log")).unwrap()), (0, vec![]));
        let e = OpenOptions::new().write(true).create_new(true).open(f.at("log")).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists);
        OpenOptions::new().write(true).create_new(true).open(f.at("new")).unwrap();
        // Truncation is part of opening: one request.
        f.vfs.take_counts();
        File::create(f.at("log")).unwrap();
        assert_eq!((f.vfs.counted(&["open"]), f.vfs.counted(&["setattr"])), (1, 0));
    });
}

#[test]
fn holes() {
    both(|f| {
        let file = rw(&f.at("sparse"));
        file.write_all_at(&[1; 65536], 0).unwrap();
        file.write_all_at(&[2; 65536], 1 << 20).unwrap();
        let seek = |to| rustix::fs::seek(&file, to);
        assert_eq!(seek(SeekFrom::Data(70_000)), Ok(1 << 20));
        assert_eq!(seek(SeekFrom::Hole(0)), Ok(65536));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 0, 32768).unwrap();
        assert_eq!(seek(SeekFrom::Data(0)), Ok(32768));
        let mut buf = [9; 4];
        file.read_exact_at(&mut buf, 32766).unwrap();
        assert_eq!(buf, [0, 0, 1, 1]);
        assert_eq!(File::open(f.at("sparse")).unwrap().read_at(&mut buf, 32766).unwrap(), 4);
        assert_eq!(buf, [0, 0, 1, 1]);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 3 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3 << 20);
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 3 << 20, 1 << 20).unwrap();
        assert_eq!(fs::metadata(f.at("sparse")).unwrap().len(), 3 << 20);
        let (ours, theirs) = (fs::metadata(f.at("sparse")).unwrap(), fs::metadata(f.in_backing("sparse")).unwrap());
        assert_eq!(ours.blocks(), theirs.blocks());
        assert!(rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096).is_err());
    });
}

#[test]
fn copies_within_the_mount_stay_in_the_volume() {
    both(|f| {
        let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(f.at("a"), &data).unwrap();
        f.vfs.take_counts();
        let (a, b) = (File::open(f.at("a")).unwrap(), rw(&f.at("b")));
        let (mut from, mut to) = (1000, 7);
        let mut left = 4_000_000;
        while left > 0 {
            let n = rustix::fs::copy_file_range(&a, Some(&mut from), &b, Some(&mut to), left).unwrap();
            assert!(n > 0);
            left -= n;
        }
        assert!(f.vfs.counted(&["copy_file_range"]) >= 1);
        assert_eq!(f.vfs.counted(&["write"]), 0);
        let got = fs::read(f.at("b")).unwrap();
        assert!(got[7..] == data[1000..4_001_000]);
        assert_eq!(b.metadata().unwrap().len(), 4_000_007);
    });
}

/// A shared, written map of a whole file.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn new(file: &File, len: usize) -> Map {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Map { at: at.cast(), len }
    }

    fn put(&self, i: usize, bytes: &[u8]) {
        assert!(i + bytes.len() <= self.len);
        // SAFETY: within the mapping, which lives as long as self.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(i), bytes.len()) }
    }

    fn get(&self, i: usize) -> u8 {
        assert!(i < self.len);
        // SAFETY: as above.
        unsafe { self.at.add(i).read_volatile() }
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, once.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

#[test]
fn shared_maps_agree_with_reads_and_writes() {
    both(|f| {
        let file = rw(&f.at("m"));
        file.write_all_at(&[b'.'; 16384], 0).unwrap();
        let map = Map::new(&file, 16384);
        let other = Map::new(&rw(&f.at("m")), 16384);
        map.put(5000, b"stored");
        assert_eq!(other.get(5000), b's');
        let mut buf = [0; 6];
        file.read_exact_at(&mut buf, 5000).unwrap();
        assert_eq!(&buf, b"stored");
        File::open(f.at("m")).unwrap().read_exact_at(&mut buf, 5000).unwrap();
        assert_eq!(&buf, b"stored");
        file.write_all_at(b"W", 5001).unwrap();
        assert_eq!(map.get(5001), b'W');
        map.sync();
        assert_eq!(&fs::read(f.in_backing("m")).unwrap()[5000..5006], b"sWored");
        // Closing the descriptors does not end the map.
        drop(file);
        map.put(0, b"!");
        map.sync();
        assert_eq!(fs::read(f.in_backing("m")).unwrap()[0], b'!');
    });
}

#[test]
fn times_show_stores_into_a_map() {
    if !can_mount() {
        return;
    }
    let f = Fixture::new(Passthrough::Auto);
    if let Some(why) = f.mount().passthrough_refused() {
        panic!("this test needs passthrough: {why}");
    }
    let first = through_to_backing(&f, "m");
    let file = rw(&f.at("m"));
    file.write_all_at(&[0; 4096], 0).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    file.set_modified(old).unwrap();
    assert_eq!(fs::metadata(f.at("m")).unwrap().modified().unwrap(), old);
    let map = Map::new(&file, 4096);
    // The kernel's idea of the times is fresh, and it learns nothing of stores into the map, nor of msync.
    let stat = || fs::metadata(f.at("m")).unwrap().modified().unwrap();
    let truth = || fs::metadata(f.in_backing("m")).unwrap().modified().unwrap();
    assert_eq!(stat(), old);
    map.put(1, b"x");
    file.sync_all().unwrap();
    assert_eq!(stat(), truth());
    assert_ne!(stat(), old);
    file.set_modified(old).unwrap();
    assert_eq!(stat(), old);
    map.put(2, b"y");
    assert_ne!(truth(), old);
    drop((map, file, first));
    support::eventually("closing shows it", || stat() == truth());
}

/// A new file that is open to be read: the kernel then maps the backing file for all who open it later, too.
fn through_to_backing(f: &Fixture, name: &str) -> File {
    fs::write(f.at(name), "").unwrap();
    let held = File::open(f.at(name)).unwrap();
    assert_eq!(f.mount().passthrough_refused(), None, "this test needs passthrough");
    held
}

/// The first bytes of a file on the way of `sendfile`, which goes through the kernel's page cache.
fn sent(file: &File, len: usize) -> Vec<u8> {
    let mut out: File = tempfile::tempfile().unwrap();
    let mut at = 0;
    while at < len as u64 {
        let left = len - at as usize;
        let n = rustix::fs::sendfile(&out, file, Some(&mut at), left).unwrap();
        assert!(n > 0);
    }
    let mut all = Vec::new();
    out.rewind().unwrap();
    out.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn what_is_stored_into_a_map_is_what_is_sent_and_copied() {
    both(|f| {
        let file = rw(&f.at("m"));
        file.write_all_at(&[b'.'; 8192], 0).unwrap();
        let map = Map::new(&file, 8192);
        for round in 0..20u8 {
            map.put(usize::from(round) * 100, &[b'a' + round]);
            let wanted: Vec<u8> = (0..8192).map(|i| map.get(i)).collect();
            assert!(sent(&file, 8192) == wanted, "sent, round {round}");
            assert!(sent(&File::open(f.at("m")).unwrap(), 8192) == wanted, "sent by a reader, round {round}");
            let copy = rw(&f.at("copy"));
            let (mut from, mut to) = (0, 0);
            while from < 8192 {
                let n = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 8192).unwrap();
                assert!(n > 0);
            }
            assert!(fs::read(f.at("copy")).unwrap() == wanted, "copied, round {round}");
        }
    });
}

#[test]
fn pages_that_splice_left_behind_are_dropped() {
    if !can_mount() {
        return;
    }
    let f = Fixture::new(Passthrough::Auto);
    let _first = through_to_backing(&f, "m");
    let file = rw(&f.at("m"));
    file.write_all_at(&[b'.'; 4096], 0).unwrap();
    let map = Map::new(&file, 4096);
    for round in 0..5u8 {
        map.put(0, &[b'a' + round]);
        support::eventually("the store is sent", || sent(&file, 4096)[0] == b'a' + round);
    }
}

#[test]
fn a_database_is_read_from_the_page_cache() {
    both(|f| {
        let file = rw(&f.at("db"));
        file.write_all_at(&[1; 65536], 0).unwrap();
        let mut page = [0; 8192];
        file.read_exact_at(&mut page, 8192).unwrap();
        f.vfs.take_counts();
        for _ in 0..50 {
            file.read_exact_at(&mut page, 8192).unwrap();
        }
        // By another who opens it meanwhile, too.
        rw(&f.at("db")).read_exact_at(&mut page, 8192).unwrap();
        assert_eq!(f.vfs.counted(&["read"]), 0);
        // One page is changed: one write, and what is read is what was written.
        file.write_all_at(&[2; 8192], 8192).unwrap();
        file.read_exact_at(&mut page, 8192).unwrap();
        assert_eq!((page[0], f.vfs.counted(&["write"])), (2, 1));
    });
}

#[test]
fn files_without_a_name_live_until_they_are_closed() {
    both(|f| {
        let file = rw(&f.at("gone"));
        file.write_all_at(b"abc", 0).unwrap();
        fs::remove_file(f.at("gone")).unwrap();
        assert!(!f.in_backing("gone").exists());
        file.write_all_at(b"def", 3).unwrap();
        let mut buf = [0; 6];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"abcdef");
        let st = file.metadata().unwrap();
        assert_eq!((st.len(), st.nlink()), (6, 0));
        file.set_len(2).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2);
        drop(file);
        // A file replaced by a rename while it is open, as editors and package managers do.
        fs::write(f.at("v"), "old").unwrap();
        let old = File::open(f.at("v")).unwrap();
        fs::write(f.at("v.new"), "new").unwrap();
        fs::rename(f.at("v.new"), f.at("v")).unwrap();
        assert_eq!(std::io::read_to_string(&old).unwrap(), "old");
        assert_eq!(fs::read_to_string(f.at("v")).unwrap(), "new");
    });
}

#[test]
fn programs_run_from_the_mount() {
    both(|f| {
        fs::copy("/bin/cat", f.at("cat")).unwrap();
        fs::write(f.at("script"), "#!/bin/sh\necho \"$1 $(./cat in)\"\n").unwrap();
        fs::write(f.at("in"), "data").unwrap();
        sh("chmod 755 cat script", &f.mnt);
        assert_eq!(sh("./script it", &f.mnt), "it data");
        let busy = Running::new(&f.at("cat"));
        let e = OpenOptions::new().write(true).open(f.at("cat")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ETXTBSY));
        drop(busy);
    });
}

/// A program that waits for its input.
struct Running {
    _program: ice_testing::Process,
    /// Closing it would end the program.
    _stdin: std::process::ChildStdin,
}

impl Running {
    fn new(program: &std::path::Path) -> Running {
        use std::process::Stdio;
        let mut command = ice_testing::command(program);
        let running = ice_testing::Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        // Once it echoes, it runs.
        let mut stdin = running.stdin();
        stdin.write_all(b"x").unwrap();
        let mut x = [0];
        running.stdout().read_exact(&mut x).unwrap();
        Running { _program: running, _stdin: stdin }
    }
}

#[test]
fn direct_and_synchronous_io() {
    both(|f| {
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(f.at("d"))
            .unwrap();
        // SAFETY: an alignment that is a power of two; freed below.
        let layout = std::alloc::Layout::from_size_align(8192, 4096).unwrap();
        let raw = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: allocated above, zeroed, exclusively ours.
        let buf = unsafe { std::slice::from_raw_parts_mut(raw, 8192) };
        buf.fill(3);
        assert_eq!(direct.write_at(buf, 4096).unwrap(), 8192);
        buf.fill(0);
        assert_eq!(direct.read_at(buf, 4096).unwrap(), 8192);
        assert!(buf.iter().all(|b| *b == 3));
        // SAFETY: as allocated.
        unsafe { std::alloc::dealloc(raw, layout) };
        let sync = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(f.at("d")).unwrap();
        f.vfs.take_counts();
        sync.write_all_at(b"durable", 0).unwrap();
        assert!(f.vfs.counted(&["fdatasync", "fsync"]) >= 1, "{:?}", f.vfs.take_counts());
    });
}

#[test]
fn local_locks() {
    both(|f| {
        let (a, b) = (rw(&f.at("l")), rw(&f.at("l")));
        a.lock().unwrap();
        assert!(matches!(b.try_lock(), Err(fs::TryLockError::WouldBlock)));
        a.unlock().unwrap();
        b.try_lock().unwrap();
        assert_eq!(sh("flock -n l echo got || echo busy", &f.mnt), "busy");
    });
}

#[test]
fn an_inode_open_in_many_ways_at_once() {
    both(|f| {
        fs::write(f.at("x"), vec![1u8; 100_000]).unwrap();
        let mut files = Vec::new();
        for round in 0..50u8 {
            let w = OpenOptions::new().write(true).open(f.at("x")).unwrap();
            let r = File::open(f.at("x")).unwrap();
            w.write_all_at(&[round], 50_000).unwrap();
            let mut b = [0];
            r.read_exact_at(&mut b, 50_000).unwrap();
            assert_eq!(b, [round]);
            files.extend([w, r]);
            if round % 7 == 0 {
                files.clear();
            }
        }
        files.clear();
        support::eventually("all are released", || f.vfs.open_handles() == 0);
    });
}

#[test]
fn a_backing_file_replaced_while_it_is_open() {
    both(|f| {
        fs::write(f.at("r"), "old content").unwrap();
        let old = File::open(f.at("r")).unwrap();
        assert_eq!(std::io::read_to_string(&old).unwrap(), "old content");
        // The volume installs a new version under the same inode number.
        let ino = f.vfs.ino_of(&f.in_backing("r"));
        fs::write(f.in_backing("r.tmp"), "new, longer content").unwrap();
        fs::rename(f.in_backing("r.tmp"), f.in_backing("r")).unwrap();
        f.vfs.tell(&[Stale::Inode(ino)]);
        let fresh = || std::io::read_to_string(File::open(f.at("r")).unwrap()).unwrap();
        support::eventually("a new open sees the new file", || fresh() == "new, longer content");
        let mut first = [0; 3];
        old.read_exact_at(&mut first, 0).unwrap();
        if f.mount().passthrough_refused().is_none() {
            assert_eq!(&first, b"old", "who has it open keeps the old one");
        }
        let w = OpenOptions::new().write(true).open(f.at("r")).unwrap();
        w.write_all_at(b"NEW", 0).unwrap();
        drop((old, w));
        support::eventually("released", || f.vfs.open_handles() == 0);
        assert_eq!(fresh(), "NEW, longer content");
        assert_eq!(fs::read_to_string(f.in_backing("r")).unwrap(), "NEW, longer content");
    });
}
