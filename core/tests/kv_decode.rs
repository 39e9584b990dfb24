//! Whatever bytes come out of a log, a page or a message: an answer, never a panic, and memory in proportion.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it counts memory, and the environment says how much"
)]

mod kv_support;

use ice_core::kv::Store;
use ice_core::kv::command::{Action, Command, Entry};
use ice_core::kv::rows::Loader;
use ice_core::kv::snapshot::{Chunk, Restore};
use ice_core::kv::txn::{Op, Txn};
use ice_core::rng::{Rng, Seed};
use kv_support::Replica;
use kv_support::model::Draw;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        let now = USED.with(|u| {
            u.set(u.get().wrapping_add(l.size()));
            u.get()
        });
        MOST.with(|m| m.set(m.get().max(now)));
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        USED.with(|u| u.set(u.get().wrapping_sub(l.size())));
        unsafe { System.dealloc(p, l) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `f` had at once, and what it said.
fn memory<T>(f: impl FnOnce() -> T) -> (usize, T) {
    USED.with(|u| u.set(1 << 40));
    MOST.with(|m| m.set(1 << 40));
    let out = f();
    (MOST.with(Cell::get) - (1 << 40), out)
}

/// One byte may become at most so many in memory, and a little besides: what serde allocates ahead for a list.
const FACTOR: usize = 300;
const BESIDES: usize = 2 << 20;

fn decodes(bytes: &[u8]) {
    let (most, entry) = memory(|| Entry::decode(bytes));
    assert!(most <= FACTOR * bytes.len() + BESIDES, "{most} bytes for {}", bytes.len());
    // What can be read can be applied.
    if let Ok(entry) = entry {
        let mut store = Store::new();
        store.apply_all(1, &entry.commands);
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
    }
}

fn damage(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, rng.next_u64() as u8),
        }
    }
}

#[test]
fn damaged_entries_are_refused() {
    let mut rng = Rng::new(Seed(11));
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut draw = Draw(&mut rng);
        let commands = (0..1 + draw.below(4)).map(|_| Command::node(draw.action(20))).collect();
        let mut bytes = Entry { commands }.encode();
        damage(&mut rng, &mut bytes);
        refused += u32::from(Entry::decode(&bytes).is_err());
        decodes(&bytes);
        let noise: Vec<u8> = (0..rng.below(40)).map(|n| if n == 0 { 1 } else { rng.next_u64() as u8 }).collect();
        decodes(&noise);
    }
    assert!(refused > 5000, "hardly anything was damaged: {refused}");
}

#[test]
fn lengths_that_promise_too_much_cost_nothing() {
    // Version, so many commands, by the node, each kind of action, and then lists of any promised length.
    for kind in 0..20u8 {
        for tail in [[0xff, 0xff, 0xff, 0xff, 0x0f], [0xff, 0xff, 0x7f, 0xff, 0x7f], [1, 0xff, 0xff, 0xff, 0x7f]] {
            let mut bytes = vec![1, 1, 0, kind];
            bytes.extend(tail);
            bytes.extend([0xff; 20]);
            decodes(&bytes);
        }
    }
    // Very many commands of few bytes.
    let many = Entry { commands: vec![Command::node(Action::LeaseExpire { ids: vec![] }); 5000] }.encode();
    assert!(Entry::decode(&many).is_err(), "more than we would ever write");
    // Nested as deeply as the bytes allow: read without going deep.
    let mut t = Txn::default();
    for _ in 0..2000 {
        t = Txn { success: vec![Op::Txn(Box::new(t))], ..Txn::default() };
    }
    let deep = Entry { commands: vec![Command::node(Action::Txn(t))] };
    // Neither of the two may use the stack for each level; the last one is ours to take apart.
    assert!(Entry::decode(&deep.encode()).is_err());
}

#[test]
fn damaged_rows_and_chunks_are_refused() {
    let mut rng = Rng::new(Seed(12));
    let mut replica = Replica::default();
    for n in 1..=60 {
        let action = Draw(&mut rng).action(n);
        replica.apply(n, &[Command::node(action)]);
    }
    replica.checkpoint(10);
    let (id, mut cursor) = replica.store.snapshot_begin().expect("a snapshot");
    let mut chunks: Vec<Chunk> = Vec::new();
    while let Some(c) = replica.store.snapshot_chunk(&mut cursor, 200).expect("not overtaken") {
        chunks.push(c);
    }
    replica.store.snapshot_end(id);
    let rows: Vec<(Box<[u8]>, Box<[u8]>)> = replica.disk.clone().into_iter().collect();
    for _ in 0..3000 {
        // A page of the disk: refused, or a store that can be used.
        let mut loader = Loader::default();
        let victim = rng.below(rows.len() as u64) as usize;
        let mut sound = true;
        for (n, (k, v)) in rows.iter().enumerate() {
            let (mut k, mut v) = (k.to_vec(), v.to_vec());
            if n == victim {
                damage(&mut rng, if n % 2 == 0 { &mut k } else { &mut v });
            }
            sound &= loader.row(&k, &v).is_ok();
        }
        if sound && let Ok(mut store) = loader.finish() {
            let index = store.applied() + 1;
            store.apply(index, &Command::node(Draw(&mut rng).action(60)));
            while store.sweep() {}
            store.digest();
        }
        // A chunk: always refused, and the whole with it.
        let mut restore = Restore::default();
        let victim = rng.below(chunks.len() as u64) as usize;
        let mut refused = false;
        for (n, c) in chunks.iter().enumerate() {
            let mut c = c.clone();
            if n == victim {
                let mut bytes = ice_core::wire::encode(&c);
                let before = bytes.clone();
                damage(&mut rng, &mut bytes);
                match ice_core::wire::decode(&bytes) {
                    Ok(damaged) if bytes != before => c = damaged,
                    _ => {
                        refused = true;
                        break;
                    }
                }
            }
            refused |= restore.chunk(&c).is_err();
        }
        // (A number written in more bytes than needed is the same number.)
        if !refused {
            let store = restore.finish().expect("whole");
            assert_eq!(store.digest(), replica.store.digest(), "damage was not noticed");
        } else {
            assert!(restore.finish().is_err());
        }
    }
}

#[test]
fn chunks_in_the_wrong_order_are_refused() {
    let mut store = Store::new();
    for n in 1..=20u64 {
        let put = ice_core::kv::command::Put { key: vec![b'a' + n as u8], value: vec![7; 50], ..Default::default() };
        store.apply(n, &Command::node(Action::Put(put)));
    }
    let (_, mut cursor) = store.snapshot_begin().expect("a snapshot");
    let mut chunks = Vec::new();
    while let Some(c) = store.snapshot_chunk(&mut cursor, 100).expect("not overtaken") {
        chunks.push(c);
    }
    let mut restore = Restore::default();
    restore.chunk(&chunks[0]).expect("the first");
    assert!(restore.chunk(&chunks[2]).is_err(), "one is missing");
    assert!(restore.chunk(&chunks[1]).is_err(), "and nothing mends it");
    assert!(restore.finish().is_err());
    let mut restore = Restore::default();
    for c in &chunks[..chunks.len() - 1] {
        restore.chunk(c).expect("sound");
    }
    assert!(restore.finish().is_err(), "not whole");
    // Another moment's chunk does not go with these.
    store.apply(21, &Command::node(Action::Compact { revision: 5 }));
    let (_, mut cursor) = store.snapshot_begin().expect("a snapshot");
    let other = store.snapshot_chunk(&mut cursor, 100).expect("not overtaken").expect("a chunk");
    let mut restore = Restore::default();
    restore.chunk(&chunks[0]).expect("the first");
    assert!(restore.chunk(&other).is_err());
}
