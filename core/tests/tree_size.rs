//! How much memory a file costs, and how fast a tree starts. `TREE_FILES` sets the number of files (1,000,000 for the record).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures, and the environment says how much"
)]

use ice_core::event::{Change, Witness};
use ice_core::ids::{InodeId, Name, ReplicaId};
use ice_core::op::{Attrs, ContentDigest, Kind};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::Tree;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes per file that the tree may take.
const BYTES_PER_FILE_MAX: usize = 400;

struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);

/// What glibc's allocator takes for a request: 8 bytes of header, in units of 16, at least 32.
fn real(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        USED.fetch_add(real(l.size()), Ordering::Relaxed);
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        USED.fetch_sub(real(l.size()), Ordering::Relaxed);
        unsafe { System.dealloc(p, l) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_file_costs_at_most_400_bytes() {
    let files: u64 = std::env::var("TREE_FILES").ok().and_then(|v| v.parse().ok()).unwrap_or(20_000);
    let empty = USED.load(Ordering::Relaxed);
    let mut tree = Tree::new();
    let mut clock = 0u64;
    let mut mint = || {
        clock += 1;
        Stamp { time: Hlc(clock), replica: ReplicaId(7) }
    };
    let time = UnixTime { sec: 1_700_000_000, nsec: 5 };
    let attrs = Attrs { mode: 0o644, uid: 1000, gid: 1000, atime: time, mtime: time };
    let began = Instant::now();
    let mut dir = InodeId::ROOT;
    for n in 0..files {
        let witness = Witness { disk: n + 1, sum: n };
        if n % 100 == 0 {
            let name = Name::new(format!("directory{n:07}").as_bytes()).expect("name");
            let parent = InodeId::ROOT;
            let change = Change::Create { parent, name, kind: Kind::Dir, attrs, witness };
            dir = tree.local(&change, &mut mint).expect("mkdir").inode;
        }
        let name = Name::new(format!("file{n:08}").as_bytes()).expect("name");
        let change = Change::Create { parent: dir, name, kind: Kind::File, attrs, witness };
        let inode = tree.local(&change, &mut mint).expect("create").inode;
        let mut digest = ContentDigest([0; 32]);
        digest.0[..8].copy_from_slice(&(n + 1).to_le_bytes());
        let change = Change::Content { inode, size: 4096, digest, mtime: time, witness, payload: None };
        tree.local(&change, &mut mint).expect("write");
    }
    let made = began.elapsed();
    assert!(tree.plan(&|_, _| None, 16).is_empty(), "what was made here is on disk here");
    assert_eq!(tree.pending(), 0);
    while tree.cut(Stamp { time: Hlc(u64::MAX - 1), replica: ReplicaId(0) }, 1000) {}
    let mut pages = Vec::new();
    loop {
        let puts = tree.take_dirty(1000);
        let last = puts.len() < 1000;
        if files <= 100_000 {
            pages.extend(puts);
        }
        if last {
            break;
        }
    }
    let kept: usize = pages.iter().map(|(k, v)| real(k.len()) + v.as_ref().map_or(0, |v| real(v.len()))).sum();
    let list = if pages.capacity() > 0 { real(pages.capacity() * size_of::<ice_core::tree::Put>()) } else { 0 };
    let each = (USED.load(Ordering::Relaxed) - empty - kept - list) / files as usize;
    println!("{files} files: {each} bytes a file, made in {made:?}");
    let digest = tree.digest();
    drop(tree);
    if !pages.is_empty() {
        let began = Instant::now();
        let mut again = Tree::new();
        for (k, v) in &pages {
            again.load(k, v.as_ref().expect("a page")).expect("sound");
        }
        again.finish_load();
        println!("loaded in {:?}", began.elapsed());
        assert_eq!(again.digest(), digest);
        assert_eq!(again.pending(), 0);
    }
    assert!(each <= BYTES_PER_FILE_MAX, "{each} bytes a file");
}
