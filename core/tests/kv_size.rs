//! How much memory a key costs, and how fast a store starts. `KV_KEYS` sets the number of keys (1,000,000 for the record).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures, and the environment says how much"
)]

use ice_core::kv::Store;
use ice_core::kv::command::{Action, Command, Put};
use ice_core::kv::range::RangeRequest;
use ice_core::kv::rows::Loader;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes of a key, as `etcdctl check perf` and most benchmarks use them.
const KEY_BYTES: usize = 16;
/// Bytes of its value.
const VALUE_BYTES: usize = 256;
/// What a key may take besides its own bytes and those of its value.
const OVERHEAD_BYTES_MAX: usize = 160;

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

fn put(n: u64) -> Command {
    // In no particular order, but each once: an odd factor permutes.
    let key = format!("{:0w$x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15), w = KEY_BYTES).into_bytes();
    Command::node(Action::Put(Put { key, value: vec![b'x'; VALUE_BYTES], ..Put::default() }))
}

#[test]
fn a_key_costs_little_more_than_its_bytes() {
    let keys: u64 = std::env::var("KV_KEYS").ok().and_then(|v| v.parse().ok()).unwrap_or(50_000);
    let empty = USED.load(Ordering::Relaxed);
    let mut store = Store::new();
    let began = Instant::now();
    for n in 1..=keys {
        store.apply(n, &put(n));
    }
    let made = began.elapsed();
    let each = (USED.load(Ordering::Relaxed) - empty) / keys as usize;
    println!("{keys} keys of {KEY_BYTES} + {VALUE_BYTES} bytes: {each} bytes each, put in {made:?}");
    let began = Instant::now();
    let count = RangeRequest { key: vec![0], end: vec![0], count_only: true, ..RangeRequest::default() };
    assert_eq!(store.range(&count).map(|a| a.count), Ok(keys));
    println!("counted in {:?}", began.elapsed());
    let mut rows = Vec::new();
    loop {
        let (puts, whole) = store.take_rows(10_000, 1 << 24);
        rows.extend(puts);
        if whole {
            break;
        }
    }
    let hash = store.hash(0);
    drop(store);
    // As an ordered store gives them.
    rows.sort();
    let began = Instant::now();
    let before = USED.load(Ordering::Relaxed);
    let mut loader = Loader::default();
    for (k, v) in &rows {
        loader.row(k, v.as_ref().expect("no deletions")).expect("sound");
    }
    let again = loader.finish().expect("sound");
    println!("loaded in {:?}", began.elapsed());
    let loaded = (USED.load(Ordering::Relaxed) - before) / keys as usize;
    assert_eq!(again.hash(0), hash);
    for n in [each, loaded] {
        assert!(n <= KEY_BYTES + VALUE_BYTES + OVERHEAD_BYTES_MAX, "{n} bytes a key");
    }
}
