//! What the tests of the store share: a replica with its page store, words for commands, a naive model.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod model;
pub mod parse;

use ice_core::kv::command::Command;
use ice_core::kv::rows::Loader;
use ice_core::kv::snapshot::{Progress, Restore};
use ice_core::kv::{Outcome, Store};
use std::collections::BTreeMap;

/// A store with what a host keeps of it.
#[derive(Default)]
pub struct Replica {
    pub store: Store,
    pub disk: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Entries that the disk does not hold yet.
    pub log: Vec<(u64, Vec<Command>)>,
    /// It has got a snapshot: the disk may not know what it is told to forget.
    pub installed: bool,
}

impl Replica {
    pub fn apply(&mut self, index: u64, commands: &[Command]) -> Vec<Outcome> {
        self.log.push((index, commands.to_vec()));
        self.store.apply_all(index, commands)
    }

    /// Rows are taken and committed, in portions of `rows`.
    pub fn checkpoint(&mut self, rows: usize) {
        let mut all = Vec::new();
        loop {
            let (puts, whole) = self.store.take_rows(rows, 1 << 20);
            assert!(puts.len() <= rows + 1, "a portion too large");
            all.extend(puts);
            if whole {
                break;
            }
        }
        self.commit(all);
    }

    pub fn commit(&mut self, puts: Vec<ice_core::kv::rows::Put>) {
        for (key, value) in puts {
            match value {
                Some(v) => drop(self.disk.insert(key, v)),
                None => {
                    // Other rows may come and go between two checkpoints.
                    let there = self.disk.remove(&key).is_some();
                    assert!(there || self.installed || key[1] != b'r', "deletes a revision that is not there");
                }
            }
        }
        self.log.retain(|(index, _)| *index > self.store.applied());
    }

    /// Begins again from the disk, and applies the log. All of it, as a host that does not know better does.
    pub fn restart(&mut self) {
        let mut loader = Loader::default();
        for (k, v) in &self.disk {
            loader.row(k, v).expect("sound rows");
        }
        let mut store = loader.finish().expect("sound rows");
        for (index, commands) in &self.log {
            store.apply_all(*index, commands);
        }
        if store.digest() != self.store.digest() {
            let (before, after) = (all_rows(&mut self.store), all_rows(&mut store));
            let differ: Vec<_> = before.iter().filter(|(k, v)| after.get(*k) != Some(v)).collect();
            let new: Vec<_> = after.iter().filter(|(k, v)| before.get(*k) != Some(v)).collect();
            panic!("another store after a restart:\nbefore {differ:?}\nafter {new:?}");
        }
        assert_eq!(store.hash(0), self.store.hash(0));
        self.store = store;
    }

    /// A new replica gets everything by a snapshot.
    pub fn install(&mut self, from: &mut Store, bytes: usize) {
        let (id, mut cursor) = from.snapshot_begin().expect("a snapshot");
        let mut restore = Restore::default();
        let mut last = Progress::Next(0);
        while let Some(chunk) = from.snapshot_chunk(&mut cursor, bytes).expect("not overtaken") {
            last = restore.chunk(&chunk).expect("sound");
        }
        assert_eq!(last, Progress::Whole);
        assert!(from.snapshot_end(id));
        let mut store = restore.finish().expect("whole");
        assert_eq!(store.digest(), from.digest(), "another store after a snapshot");
        store.replaces(&self.store);
        self.store = store;
        self.installed = true;
        self.log.clear();
    }
}

/// Everything, as a snapshot says it.
pub fn all_rows(store: &mut Store) -> BTreeMap<String, String> {
    let (id, mut cursor) = store.snapshot_begin().expect("a snapshot");
    let mut out = BTreeMap::new();
    while let Some(chunk) = store.snapshot_chunk(&mut cursor, 1 << 20).expect("not overtaken") {
        out.extend(chunk.rows.iter().map(|(k, v)| (text(k), text(v))));
    }
    store.snapshot_end(id);
    out
}

pub fn text(b: &[u8]) -> String {
    b.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect()
}
