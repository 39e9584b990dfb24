//! Rows: the store as keys and values of the host's page store, and of a snapshot.
//!
//! All keys begin with [`PREFIX`], so that they stand beside other pages, then a letter for the table:
//!
//! | table | key | value |
//! |---|---|---|
//! | `m` | | [`Meta`]: which entry of the log was the last one |
//! | `r` | revision, place in it (big-endian) | key, value and lease of that revision; never changes |
//! | `l`, `u`, `o`, `s` | id | a lease, a user, a role, a snapshot record |
//! | `n`, `f` | name, file | a named lock, the locks of a file |
//!
//! Rows are taken while commands are applied ([`Store::take_rows`]): what changes after it was taken is taken again. Once
//! nothing is left, all rows together are the exact state at the index in `m`, which comes last. The host commits them at once.

use super::auth::{Role, User};
use super::command::{AlarmKind, SnapshotRecord};
use super::history::{Record, Rev};
use super::lease::{Lease, LeaseId, LeasePage};
use super::lock::FileKey;
use super::snapshot::Images;
use super::{Damaged, Store};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The first byte of all keys.
pub const PREFIX: u8 = b'S';

/// The version of the rows that this build writes and reads.
const FORMAT: u32 = 1;

/// A row: key and new value (`None`: delete). The same as the tree's.
pub type Put = crate::tree::Put;

/// What changes in place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum RowKey {
    Lease(LeaseId),
    User(String),
    Role(String),
    Snapshot(String),
    Named(Box<[u8]>),
    File(FileKey),
}

impl RowKey {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut key = alloc::vec![PREFIX];
        match self {
            RowKey::Lease(id) => {
                key.push(b'l');
                key.extend_from_slice(&id.0.to_be_bytes());
            }
            RowKey::User(n) => text(&mut key, b'u', n.as_bytes()),
            RowKey::Role(n) => text(&mut key, b'o', n.as_bytes()),
            RowKey::Snapshot(n) => text(&mut key, b's', n.as_bytes()),
            RowKey::Named(n) => text(&mut key, b'n', n),
            RowKey::File(f) => text(&mut key, b'f', &crate::wire::encode(f)),
        }
        key
    }
}

fn text(key: &mut Vec<u8>, table: u8, text: &[u8]) {
    key.push(table);
    key.extend_from_slice(text);
}

pub(super) fn record_key(place: (u64, u32)) -> Vec<u8> {
    let mut key = alloc::vec![PREFIX, b'r'];
    key.extend_from_slice(&place.0.to_be_bytes());
    key.extend_from_slice(&place.1.to_be_bytes());
    key
}

pub(super) fn meta_key() -> Vec<u8> {
    alloc::vec![PREFIX, b'm']
}

/// The one row of `m`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: u32,
    pub(super) applied: u64,
    pub(super) revision: u64,
    pub(super) compacted: u64,
    pub(super) fence: u64,
    pub(super) auth_enabled: bool,
    pub(super) auth_revision: u64,
    pub(super) alarms: BTreeSet<(AlarmKind, u64)>,
    pub(super) secret: Option<[u8; 32]>,
}

/// A row of `r`.
#[derive(Serialize, Deserialize)]
struct RecordPage<'a> {
    tombstone: bool,
    create: u64,
    version: u64,
    lease: LeaseId,
    #[serde(with = "serde_bytes", borrow)]
    key: &'a [u8],
    #[serde(with = "serde_bytes", borrow)]
    value: &'a [u8],
}

/// What has changed since rows were taken last, and what snapshots under way still need of how it was.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Rows {
    dirty: BTreeSet<RowKey>,
    /// Records from here on were not taken yet.
    taken: (u64, u32),
    /// Records before this may stand on disk although they were not taken from this store: it took another one's place.
    inherited: (u64, u32),
    /// Records that stand on disk, and went since.
    dropped: BTreeSet<(u64, u32)>,
    /// The meta row as it was taken last.
    meta: Option<Meta>,
    pub(super) images: Images,
}

impl Rows {
    /// A row is about to change. `old` is asked for only if a snapshot needs to know.
    pub(super) fn touch(&mut self, key: RowKey, old: impl FnOnce() -> Option<Vec<u8>>) {
        self.images.touch(&key, old);
        self.dirty.insert(key);
    }

    /// A record went.
    pub(super) fn record_dropped(&mut self, place: (u64, u32)) {
        if place < self.taken || place < self.inherited {
            self.dropped.insert(place);
        }
    }

    /// Records that went and were not taken as deletions yet.
    pub(super) fn dropped(&self) -> usize {
        self.dropped.len()
    }
}

impl Store {
    pub(super) fn meta(&self) -> Meta {
        Meta {
            format: FORMAT,
            applied: self.applied,
            revision: self.revision,
            compacted: self.compacted,
            fence: self.fence,
            auth_enabled: self.auth.enabled,
            auth_revision: self.auth.revision,
            alarms: self.alarms.clone(),
            secret: self.secret,
        }
    }

    pub(super) fn record_page(&self, r: &Record) -> Vec<u8> {
        crate::wire::encode(&RecordPage {
            tombstone: r.rev.is_tombstone(),
            create: r.create,
            version: r.version,
            lease: r.lease,
            key: self.index.key(r.key),
            value: &r.value,
        })
    }

    /// What a row says now; `None` if it is not there.
    pub(super) fn row(&self, key: &RowKey) -> Option<Vec<u8>> {
        use crate::wire::encode;
        match key {
            RowKey::Lease(id) => self.leases.get(id).map(Lease::page),
            RowKey::User(n) => self.auth.users.get(n).map(encode),
            RowKey::Role(n) => self.auth.roles.get(n).map(encode),
            RowKey::Snapshot(n) => self.snapshots.get(n).map(encode),
            RowKey::Named(n) => self.locks.named.get(n).map(encode),
            RowKey::File(f) => self.locks.files.get(f).map(encode),
        }
    }

    /// The first row that is there after `key`.
    pub(super) fn row_after(&self, key: Option<&RowKey>) -> Option<RowKey> {
        use core::ops::Bound::{Excluded, Unbounded};
        // One table after the other, in the order of `RowKey`.
        macro_rules! table {
            ($map:expr, $kind:ident, $rank:literal, $id:ty) => {{
                let from = match key {
                    Some(RowKey::$kind(id)) => Some(Excluded(id)),
                    Some(other) if rank(other) > $rank => None,
                    _ => Some(Unbounded),
                };
                let found = from.and_then(|from| $map.range::<$id, _>((from, Unbounded)).next());
                if let Some((id, _)) = found {
                    return Some(RowKey::$kind(id.clone()));
                }
            }};
        }
        fn rank(key: &RowKey) -> u8 {
            match key {
                RowKey::Lease(_) => 0,
                RowKey::User(_) => 1,
                RowKey::Role(_) => 2,
                RowKey::Snapshot(_) => 3,
                RowKey::Named(_) => 4,
                RowKey::File(_) => 5,
            }
        }
        table!(self.leases, Lease, 0, LeaseId);
        table!(self.auth.users, User, 1, String);
        table!(self.auth.roles, Role, 2, String);
        table!(self.snapshots, Snapshot, 3, String);
        table!(self.locks.named, Named, 4, Box<[u8]>);
        table!(self.locks.files, File, 5, FileKey);
        None
    }

    /// Rows that changed since they were taken last, until `max_rows` or `max_bytes` is reached. The second part of the
    /// answer says that nothing is left: together with all taken before, they are the exact state at [`Store::applied`].
    pub fn take_rows(&mut self, max_rows: usize, max_bytes: usize) -> (Vec<Put>, bool) {
        let mut out: Vec<Put> = Vec::new();
        let mut bytes = 0;
        let mut put = |out: &mut Vec<Put>, key: Vec<u8>, value: Option<Vec<u8>>| {
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            out.push((key.into(), value.map(Vec::into_boxed_slice)));
            out.len() < max_rows && bytes < max_bytes
        };
        while let Some(place) = self.rows.dropped.pop_first() {
            if !put(&mut out, record_key(place), None) {
                return (out, false);
            }
        }
        while let Some(r) = self.history.at(self.history.seek(self.rows.taken)) {
            let place = r.rev.place();
            self.rows.taken = (place.0, place.1 + 1);
            let page = self.record_page(r);
            if !put(&mut out, record_key(place), Some(page)) {
                return (out, false);
            }
        }
        while let Some(key) = self.rows.dirty.pop_first() {
            let page = self.row(&key);
            if !put(&mut out, key.bytes(), page) {
                return (out, false);
            }
        }
        let meta = self.meta();
        if self.rows.meta.as_ref() != Some(&meta) {
            out.push((meta_key().into(), Some(crate::wire::encode(&meta).into())));
            self.rows.meta = Some(meta);
        }
        (out, true)
    }

    /// Whether [`Store::take_rows`] has anything to give.
    pub fn has_rows(&self) -> bool {
        self.rows.meta.as_ref() != Some(&self.meta())
    }

    /// This store takes the place of `old` (a snapshot was installed): the rows of this one are all to be written, and those
    /// that only the old one has are to be deleted.
    pub fn replaces(&mut self, old: &Store) {
        self.rows.taken = (0, 0);
        self.rows.inherited = old.rows.taken.max(old.rows.inherited);
        self.rows.meta = None;
        let upto = self.rows.inherited;
        let known = |r: &&Record| r.rev.place() < upto;
        let stale =
            old.history.from((0, 0)).take_while(known).map(|r| r.rev.place()).chain(old.rows.dropped.iter().copied());
        self.rows.dropped = stale.filter(|p| self.history.get(Rev::new(p.0, p.1, false)).is_none()).collect();
        self.rows.dirty.extend(old.rows.dirty.iter().cloned());
        let mut at = self.row_after(None);
        while let Some(key) = at {
            at = self.row_after(Some(&key));
            self.rows.dirty.insert(key);
        }
        let mut at = old.row_after(None);
        while let Some(key) = at {
            at = old.row_after(Some(&key));
            self.rows.dirty.insert(key);
        }
    }
}

/// Makes a store from rows.
#[derive(Default, Serialize, Deserialize)]
pub struct Loader {
    store: Store,
    meta: Option<Meta>,
}

impl Loader {
    /// Takes a row. Those of revisions have to come in the order of their keys, as every ordered store gives them. Keys that
    /// do not begin with [`PREFIX`] are not for this.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        use crate::wire::decode;
        let bad = |_| Damaged("a row of the store cannot be read");
        let (head, id) = key.split_at_checked(2).ok_or(Damaged("a key of the store is too short"))?;
        if head[0] != PREFIX {
            return Err(Damaged("not a row of the store"));
        }
        let name = || String::from_utf8(id.to_vec()).map_err(|_| Damaged("a name that is no text"));
        let s = &mut self.store;
        match head[1] {
            b'm' => {
                let meta: Meta = decode(value).map_err(bad)?;
                if meta.format != FORMAT {
                    return Err(Damaged("the store was written by another version"));
                }
                self.meta = Some(meta);
            }
            b'r' => {
                let main = id.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
                let sub = id.get(8..).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
                let (Some(main), Some(sub)) = (main, sub) else { return Err(Damaged("a revision's key")) };
                self.record(main, sub, value)?;
            }
            b'l' => {
                let id = id.try_into().map_err(|_| Damaged("a lease's key"))?;
                let page: LeasePage = decode(value).map_err(bad)?;
                let lease = Lease { ttl_s: page.ttl_s, remaining_s: page.remaining_s, ..Lease::default() };
                s.leases.insert(LeaseId(i64::from_be_bytes(id)), lease);
            }
            b'u' => drop(s.auth.users.insert(name()?, decode::<User>(value).map_err(bad)?)),
            b'o' => drop(s.auth.roles.insert(name()?, decode::<Role>(value).map_err(bad)?)),
            b's' => drop(s.snapshots.insert(name()?, decode::<SnapshotRecord>(value).map_err(bad)?)),
            b'n' => drop(s.locks.named.insert(id.into(), decode(value).map_err(bad)?)),
            b'f' => drop(s.locks.files.insert(decode(id).map_err(bad)?, decode(value).map_err(bad)?)),
            _ => return Err(Damaged("an unknown table")),
        }
        Ok(())
    }

    fn record(&mut self, main: u64, sub: u32, value: &[u8]) -> Result<(), Damaged> {
        let (version, body) = value.split_first().ok_or(Damaged("an empty row"))?;
        let page: RecordPage<'_> = match postcard::take_from_bytes(body) {
            Ok((page, [])) if *version == crate::wire::VERSION => page,
            _ => return Err(Damaged("a revision cannot be read")),
        };
        let rev = Rev::new(main, sub, page.tombstone);
        let s = &mut self.store;
        if rev.place() < s.rows.taken || sub >= 1 << 31 || page.tombstone != (page.version == 0) {
            return Err(Damaged("revisions out of order"));
        }
        s.rows.taken = (main, sub + 1);
        let key = s.index.add(page.key, rev);
        s.size_bytes += super::history::cost(page.key.len(), page.value.len());
        let (create, version, lease) = (page.create, page.version, page.lease);
        s.history.push(Record { rev, key, create, version, lease, value: page.value.into() });
        Ok(())
    }

    /// The store, if all rows together are one. Without any row it is an empty one.
    pub fn finish(self) -> Result<Store, Damaged> {
        let Loader { mut store, meta } = self;
        let Some(meta) = meta else {
            let none = store.history.len() == 0 && store.row_after(None).is_none();
            return if none { Ok(Store::default()) } else { Err(Damaged("the store has no meta row")) };
        };
        if store.rows.taken.0 > meta.revision || meta.compacted > meta.revision {
            return Err(Damaged("revisions that the store does not know of"));
        }
        store.applied = meta.applied;
        store.revision = meta.revision;
        store.compacted = meta.compacted;
        store.thinned = meta.compacted;
        store.fence = meta.fence;
        store.auth.enabled = meta.auth_enabled;
        store.auth.revision = meta.auth_revision;
        store.alarms = meta.alarms.clone();
        store.secret = meta.secret;
        store.rows.meta = Some(meta);
        store.relist()?;
        store.locks.relist();
        // Compaction may have been under way.
        store.sweep_from = (store.compacted > 0).then_some((0, 0));
        Ok(store)
    }
}

impl Store {
    /// Which keys and locks are under which lease.
    fn relist(&mut self) -> Result<(), Damaged> {
        for slot in self.index.range(super::keys::KeyRange::new(b"\0", b"\0")) {
            let Some(rev) = self.index.revs(slot).last().filter(|r| !r.is_tombstone()) else { continue };
            let Some(record) = self.history.get(*rev) else { continue };
            if record.lease.0 != 0 {
                let lease =
                    self.leases.get_mut(&record.lease).ok_or(Damaged("a key under a lease that is not there"))?;
                lease.keys.insert(slot);
            }
        }
        for (name, lock) in &self.locks.named {
            for id in lock.queue.iter().map(|w| w.lease).chain([lock.lease]).filter(|id| id.0 != 0) {
                let lease = self.leases.get_mut(&id).ok_or(Damaged("a lock under a lease that is not there"))?;
                lease.locks.insert(name.clone());
            }
        }
        Ok(())
    }
}
