//! Snapshots that are kept: made, read, and put back.

use super::{Plane, now_s, spool};
use crate::control::{ControlPlane, Refused, Result, Snapshot};
use crate::snapshots::About;
use futures::StreamExt;
use futures::channel::oneshot;
use ice_core::kv::command::{Action, Command, Delete, Put, SnapshotRecord};
use ice_core::kv::range::{KeyValue, RangeRequest};
use ice_core::kv::txn::{Op, Txn};
use ice_core::kv::{Error, Store};
use ice_core::limits::TXN_OPS_MAX;
use std::io::{BufReader, Seek, Write};
use std::sync::Arc;

/// Keys that are looked at in one go.
const PAGE_KEYS: u64 = 500;
/// Bytes of one transaction of a restoration, about; one key may exceed it alone.
const TXN_BYTES: usize = 512 * 1024;

/// Keys from `after` on, in order.
fn page(store: &Store, after: Option<&[u8]>) -> Vec<KeyValue> {
    let key = after.map_or_else(|| vec![0], |k| [k, &[0]].concat());
    let request = RangeRequest { key, end: vec![0], limit: PAGE_KEYS, ..RangeRequest::default() };
    store.range(&request).map(|a| a.kvs).unwrap_or_default()
}

impl Plane {
    pub(super) async fn keep(&self, name: String, metadata: Vec<(String, String)>) -> Result<SnapshotRecord> {
        let (snapshot, revision) = self.take().await?;
        let created_s = now_s();
        let id = format!("snap-{created_s}-{:x}", self.new_id());
        let about = About { id, name, cluster: self.ids().cluster, revision, created_s, metadata };
        let record = self.parts.snapshots.keep(about, snapshot).await?.record(self.me.0);
        let remembered = self.propose(Command::node(Action::SnapshotPut(record.clone()))).await;
        if let Err(why) = remembered {
            // Whether it is remembered is not known: the chores compare files and records later.
            if why != Refused::Timeout {
                self.parts.snapshots.remove(&record.id).await?;
            }
            return Err(why);
        }
        Ok(record)
    }

    /// The store as it is here, and its revision then.
    pub(super) async fn take(&self) -> Result<(Snapshot, u64)> {
        use ice_core::control::{Answer, Ask};
        let (id, cursor) = match self.ask(Ask::SnapshotBegin).await? {
            Answer::Snapshot { id, cursor } => (id, cursor),
            other => return Err(super::odd(&other)),
        };
        spool::take(Arc::clone(&self.parts.engine), &self.parts.data, id, cursor).await
    }

    fn remembered(&self, id: &str) -> Result<SnapshotRecord> {
        let (record, _) = self.store(|s| s.snapshot(id).cloned())?;
        record.ok_or(Refused::Store(Error::SnapshotNotFound))
    }

    pub(super) async fn open(&self, id: &str) -> Result<Snapshot> {
        let record = self.remembered(id)?;
        if !record.holders.is_empty() && !record.holders.contains(&self.me.0) {
            let holders: Vec<String> = self
                .known_members()
                .into_iter()
                .filter(|m| record.holders.contains(&m.id))
                .map(|m| if m.name.is_empty() { m.id.to_string() } else { m.name })
                .collect();
            return Err(Refused::Failed(format!("the bytes of this snapshot are with {}", holders.join(", "))));
        }
        self.parts.snapshots.read(id).await
    }

    pub(super) async fn forget(&self, id: &str) -> Result<bool> {
        let known = match self.propose(Command::node(Action::SnapshotDelete { id: id.to_owned() })).await {
            Ok(_) => true,
            Err(Refused::Store(Error::SnapshotNotFound)) => false,
            Err(why) => return Err(why),
        };
        let file = if crate::snapshots::is_id(id) { self.parts.snapshots.remove(id).await? } else { false };
        Ok(known || file)
    }

    /// Makes all keys what they were, in as many transactions as that takes: whoever reads meanwhile sees some of both.
    pub(super) async fn restore(&self, id: &str, unchecked: bool) -> Result<u64> {
        let record = self.remembered(id)?;
        let kept = self.parts.snapshots.get(id).await;
        if !unchecked && kept.as_ref().is_ok_and(|k| k.checksum != record.checksum) {
            return Err(Refused::Failed("the snapshot does not have the checksum that is remembered".into()));
        }
        let then = self.loaded(self.open(id).await?).await?;
        let mut txn = Txn::default();
        let mut bytes = 0;
        let mut after: Option<Vec<u8>> = None;
        // First what came since goes, then what was there comes back.
        loop {
            let (now, _) = self.store(|s| page(s, after.as_deref()))?;
            let Some(last) = now.last() else { break };
            after = Some(last.key.clone());
            for kv in now {
                if then.get(&kv.key).is_none() {
                    bytes += kv.key.len();
                    txn.success.push(Op::Delete(Delete { key: kv.key, ..Delete::default() }));
                    self.put_back(&mut txn, &mut bytes, false).await?;
                }
            }
        }
        after = None;
        loop {
            let was = page(&then, after.as_deref());
            let Some(last) = was.last() else { break };
            after = Some(last.key.clone());
            for kv in was {
                let (same, _) = self.store(|s| s.get(&kv.key).is_some_and(|now| now.value == kv.value))?;
                if !same {
                    bytes += kv.key.len() + kv.value.len();
                    txn.success.push(Op::Put(Put { key: kv.key, value: kv.value, ..Put::default() }));
                    self.put_back(&mut txn, &mut bytes, false).await?;
                }
            }
        }
        self.put_back(&mut txn, &mut bytes, true).await?;
        Ok(self.head().revision)
    }

    async fn put_back(&self, txn: &mut Txn, bytes: &mut usize, all: bool) -> Result<()> {
        let full = txn.success.len() == TXN_OPS_MAX || *bytes >= TXN_BYTES;
        if txn.success.is_empty() || !(full || all) {
            return Ok(());
        }
        *bytes = 0;
        self.propose(Command::node(Action::Txn(std::mem::take(txn)))).await.map(drop)
    }

    /// The store in a snapshot.
    async fn loaded(&self, mut snapshot: Snapshot) -> Result<Store> {
        let failed = |e: std::io::Error| Refused::Failed(format!("a snapshot cannot be read: {e}"));
        let mut file = spool::unnamed(&self.parts.data).map_err(failed)?;
        while let Some(portion) = snapshot.chunks.next().await {
            file.write_all(&portion?).map_err(failed)?;
        }
        file.rewind().map_err(failed)?;
        let (tx, rx) = oneshot::channel();
        let work = move || drop(tx.send(spool::load(&mut BufReader::new(file))));
        std::thread::Builder::new().name("ice-restore".into()).spawn(work).map_err(failed)?;
        let loaded = rx.await.map_err(|_| Refused::Failed("the snapshot's thread ended".into()))?;
        loaded.map_err(|why| Refused::Failed(format!("the snapshot is damaged: {why}")))
    }
}
