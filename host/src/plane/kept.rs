//! Snapshots that are kept: made, read, restored, forgotten.
//!
//! A restore makes the keys what they were, by transactions over the running store: clients see it as writes, watches go on, history is
//! kept. Up to [`OPS_MAX`] keys of moderate size change in a single one; more, in several. Each changes only what nobody has changed
//! meanwhile, and what is left is looked for again until nothing is. Users, roles, locks, leases and the records of snapshots stay as
//! they are; a key that was under a lease comes back if that still stands.

use super::{Plane, now_s, odd, spool};
use crate::control::{ControlPlane, Freshness, Refused, Result, Snapshot};
use crate::snapshots::{About, aside};
use futures::StreamExt;
use ice_core::control::{Answer, Ask};
use ice_core::kv::command::{Action, Command, Delete, Put, SnapshotRecord};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::{KeyValue, RangeRequest};
use ice_core::kv::txn::{Compare, Is, Op, Target, Txn};
use ice_core::kv::{Error, Store};
use std::sync::Arc;
use std::time::Duration;

/// Keys that one transaction of a restore changes. With as many comparisons, it must be allowed.
const OPS_MAX: usize = 120;
/// Bytes that it writes, about.
const TXN_BYTES: usize = 512 * 1024;
/// Transactions under way at once.
const TXNS_AT_ONCE: usize = 8;
/// How often what is left is looked for.
const ROUNDS_MAX: u32 = 20;
/// Between two rounds of which the first got stuck.
const ROUND_PAUSE: Duration = Duration::from_millis(300);

/// How a key is to be changed.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    key: Vec<u8>,
    /// Its last revision, as it was found; 0: it was not there.
    found: u64,
    /// `None`: it goes.
    want: Option<(Vec<u8>, LeaseId)>,
}

impl Plane {
    pub(super) async fn spooled(&self) -> Result<spool::Spooled> {
        let (id, cursor) = match self.ask(Ask::SnapshotBegin).await? {
            Answer::Snapshot { id, cursor } => (id, cursor),
            other => return Err(odd(&other)),
        };
        spool::take(Arc::clone(&self.parts.engine), &self.parts.data, id, cursor).await
    }

    /// The store as it is here now, as another one.
    async fn copy(&self) -> Result<Store> {
        let mut spooled = self.spooled().await?;
        aside(move || spool::load(&mut std::io::BufReader::new(&mut spooled.file))).await?.map_err(Refused::Failed)
    }

    async fn record(&self, id: &str) -> Result<SnapshotRecord> {
        let of = id.to_owned();
        let (found, _) = self.read(Freshness::Linearizable, move |s: &Store| s.snapshot(&of).cloned()).await?;
        Ok(found.ok_or(Error::SnapshotNotFound)?)
    }

    /// Where a snapshot is whose bytes are not here.
    fn elsewhere(&self, record: &SnapshotRecord) -> Refused {
        let members = self.known_members();
        let name = |h: &u64| members.iter().find(|m| m.id == *h).map_or_else(|| format!("{h:x}"), |m| m.name.clone());
        let holders: Vec<String> = record.holders.iter().filter(|h| **h != self.me.0).map(name).collect();
        if holders.is_empty() {
            return Refused::Failed(format!("the file of the snapshot {} is gone", record.id));
        }
        Refused::Failed(format!("the snapshot {} is kept by {}: ask there", record.id, holders.join(", ")))
    }

    pub(super) async fn keep(&self, name: String, metadata: Vec<(String, String)>) -> Result<SnapshotRecord> {
        // What was acknowledged to anybody before is in it.
        self.read(Freshness::Linearizable, |_| ()).await?;
        let spooled = self.spooled().await?;
        let created_s = now_s();
        let about = About {
            id: format!("snap-{created_s}-{:x}", self.new_id()),
            name,
            cluster: self.ids().cluster,
            revision: spooled.revision,
            created_s,
            metadata,
        };
        let kept = self.parts.snapshots.keep(about, spooled.stream()).await?;
        let record = kept.record(self.me.0);
        match self.propose(Command::node(Action::SnapshotPut(record.clone()))).await {
            Ok(_) => Ok(record),
            Err(why @ Refused::Store(_)) => {
                self.parts.snapshots.remove(&record.id).await?;
                Err(why)
            }
            // It may be remembered or not: whichever it is, the file is dealt with later.
            Err(why) => Err(why),
        }
    }

    pub(super) async fn open(&self, id: &str) -> Result<Snapshot> {
        let record = self.record(id).await?;
        match self.parts.snapshots.read(id).await {
            Err(Refused::Store(Error::SnapshotNotFound)) => Err(self.elsewhere(&record)),
            other => other,
        }
    }

    pub(super) async fn forget(&self, id: String) -> Result<bool> {
        match self.propose(Command::node(Action::SnapshotDelete { id: id.clone() })).await {
            Ok(_) => {}
            Err(Refused::Store(Error::SnapshotNotFound)) => return Ok(false),
            Err(why) => return Err(why),
        }
        // Other holders remove theirs when they tidy up.
        self.parts.snapshots.remove(&id).await?;
        Ok(true)
    }

    pub(super) async fn restore(&self, id: &str, unchecked: bool) -> Result<u64> {
        let record = self.record(id).await?;
        let kept = match self.parts.snapshots.get(id).await {
            Err(Refused::Store(Error::SnapshotNotFound)) => return Err(self.elsewhere(&record)),
            other => other?,
        };
        if !unchecked && kept.checksum != record.checksum {
            return Err(Refused::Failed(format!(
                "the file of the snapshot {id} does not have the checksum that is remembered"
            )));
        }
        let then = Arc::new(self.parts.snapshots.load(id).await?);
        let mut last = None;
        for _ in 0..ROUNDS_MAX {
            self.read(Freshness::Linearizable, |_| ()).await?;
            let (now, then) = (self.copy().await?, Arc::clone(&then));
            let changes = aside(move || differences(&now, &then)).await??;
            if changes.is_empty() {
                tracing::info!("the snapshot {id} is restored: revision {}", self.head().revision);
                return Ok(self.head().revision);
            }
            last = self.make(changes).await?;
            if last.is_some() {
                (self.parts.pause)(ROUND_PAUSE).await;
            }
        }
        Err(last.unwrap_or_else(|| Refused::Failed("what is restored is written by others at the same time".into())))
    }

    /// Makes changes, as far as nobody else changed the same keys. Says what went wrong and may be tried again.
    async fn make(&self, changes: Vec<Change>) -> Result<Option<Refused>> {
        let proposals = transactions(changes).into_iter().map(|t| self.propose(Command::node(Action::Txn(t))));
        let mut answers = futures::stream::iter(proposals).buffer_unordered(TXNS_AT_ONCE);
        let mut again = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(_) => {}
                Err(
                    why @ (Refused::NoLeader
                    | Refused::LeaderChanged
                    | Refused::NotLeader
                    | Refused::Timeout
                    | Refused::Busy
                    | Refused::Store(Error::LeaseNotFound { .. })),
                ) => again = Some(why),
                Err(why) => return Err(why),
            }
        }
        Ok(again)
    }
}

fn all_keys(store: &Store) -> Result<Vec<KeyValue>> {
    let all = RangeRequest { key: vec![0], end: vec![0], keys_only: true, ..RangeRequest::default() };
    Ok(store.range(&all)?.kvs)
}

/// What has to change so that the keys of `now` are those of `then`.
fn differences(now: &Store, then: &Store) -> Result<Vec<Change>> {
    let wanted = |kv: &KeyValue| {
        let kv = then.get(&kv.key).filter(|kv| kv.lease == LeaseId(0) || now.lease(kv.lease).is_some())?;
        Some((kv.value, kv.lease))
    };
    let (here, there) = (all_keys(now)?, all_keys(then)?);
    let mut changes = vec![];
    let (mut here, mut there) = (here.into_iter().peekable(), there.into_iter().peekable());
    loop {
        let (found, past) = match (here.peek(), there.peek()) {
            (None, None) => return Ok(changes),
            (Some(a), Some(b)) if a.key == b.key => (here.next(), there.next()),
            (Some(a), b) if b.is_none_or(|b| a.key < b.key) => (here.next(), None),
            _ => (None, there.next()),
        };
        let want = past.as_ref().and_then(wanted);
        let is = found.as_ref().and_then(|kv| now.get(&kv.key)).map(|kv| (kv.value, kv.lease));
        if want != is
            && let Some(key) = found.as_ref().or(past.as_ref()).map(|kv| kv.key.clone())
        {
            changes.push(Change { key, found: found.map_or(0, |kv| kv.modified), want });
        }
    }
}

fn transactions(changes: Vec<Change>) -> Vec<Txn> {
    let mut all: Vec<Txn> = vec![];
    let mut bytes = TXN_BYTES;
    for Change { key, found, want } in changes {
        let more = key.len() * 2 + want.as_ref().map_or(0, |(v, _)| v.len());
        if bytes + more > TXN_BYTES || all.last().is_none_or(|t| t.success.len() >= OPS_MAX) {
            all.push(Txn::default());
            bytes = 0;
        }
        bytes += more;
        let Some(txn) = all.last_mut() else { continue };
        // Revisions are far below 2^63.
        let target = Target::Modified(found as i64);
        txn.compare.push(Compare { key: key.clone(), end: vec![], is: Is::Equal, target });
        txn.success.push(match want {
            Some((value, lease)) => Op::Put(Put { key, value, lease, ..Put::default() }),
            None => Op::Delete(Delete { key, ..Delete::default() }),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str, lease: i64) -> Command {
        let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        Command::node(Action::Put(Put { key, value, lease: LeaseId(lease), ..Put::default() }))
    }

    fn store(commands: &[Command]) -> Store {
        let mut store = Store::new();
        for (i, outcome) in
            commands.iter().enumerate().map(|(i, c)| (i, store.apply(i as u64 + 1, c))).collect::<Vec<_>>()
        {
            outcome.result.unwrap_or_else(|e| panic!("{i}: {e}"));
        }
        store
    }

    fn keys(store: &Store) -> Vec<(Vec<u8>, Vec<u8>, i64)> {
        let of = |kv: &KeyValue| store.get(&kv.key).map(|kv| (kv.key, kv.value, kv.lease.0));
        all_keys(store).unwrap().iter().filter_map(of).collect()
    }

    #[test]
    fn the_differences_make_one_store_the_other() {
        let lease = |id| Command::node(Action::LeaseGrant { id: LeaseId(id), ttl_s: 60 });
        let then = store(&[
            lease(1),
            lease(2),
            put("same", "x", 0),
            put("changed", "old", 0),
            put("deleted", "back", 0),
            put("held", "1", 1),
            put("expired", "1", 2),
            put("released", "1", 1),
        ]);
        let mut now = store(&[
            lease(1),
            put("same", "x", 0),
            put("changed", "new", 0),
            put("added", "x", 0),
            put("released", "1", 0),
            put("zzz", "last", 0),
        ]);
        let changes = differences(&now, &then).unwrap();
        let named: Vec<_> = changes.iter().map(|c| String::from_utf8_lossy(&c.key).into_owned()).collect();
        // What was under a lease that has ended has ended with it.
        assert_eq!(named, ["added", "changed", "deleted", "held", "released", "zzz"]);
        for txn in transactions(changes) {
            let at = now.applied() + 1;
            now.apply(at, &Command::node(Action::Txn(txn))).result.unwrap();
        }
        assert_eq!(differences(&now, &then).unwrap(), []);
        let want: Vec<_> = keys(&then).into_iter().filter(|(k, ..)| k != b"expired").collect();
        assert_eq!(keys(&now), want);
        assert_eq!(differences(&then, &then).unwrap(), []);
    }

    #[test]
    fn a_transaction_is_never_too_large_and_leaves_alone_what_others_wrote() {
        let big = "x".repeat(200_000);
        let mut commands: Vec<Command> = (0..300).map(|i| put(&format!("k{i:03}"), "v", 0)).collect();
        commands.extend((0..10).map(|i| put(&format!("big{i}"), &big, 0)));
        let then = store(&commands);
        let mut now = Store::new();
        let all = transactions(differences(&now, &then).unwrap());
        assert!(all.len() >= 5 && all.iter().all(|t| t.check().is_ok() && t.success.len() <= OPS_MAX));
        now.apply(1, &put("k000", "mine", 0)).result.unwrap();
        for txn in all {
            let at = now.applied() + 1;
            now.apply(at, &Command::node(Action::Txn(txn))).result.unwrap();
        }
        let left = differences(&now, &then).unwrap();
        assert!(now.get(b"k000").unwrap().value == b"mine" && left.iter().any(|c| c.key == b"k000"));
        for txn in transactions(left) {
            let at = now.applied() + 1;
            now.apply(at, &Command::node(Action::Txn(txn))).result.unwrap();
        }
        assert_eq!(keys(&now), keys(&then));
    }
}
