//! Snapshots: whole copies of the store that are kept, with their checksums.

use super::App;
use super::page::{self, Next};
use super::pods::Page;
use super::problem::Problem;
use super::time::rfc3339;
use ice_core::kv::Store;
use ice_core::kv::command::SnapshotRecord;
use ice_host::control::ControlPlane;
use serde::Serialize;
use std::collections::BTreeMap;

/// Longest name, and text of the metadata.
const TEXT_MAX_BYTES: usize = 1024;
/// Texts of the metadata.
const METADATA_MAX: usize = 64;

/// What is said of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) created_at: String,
    pub(crate) size_bytes: u64,
    pub(crate) etcd_revision: String,
    pub(crate) checksum: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl From<&SnapshotRecord> for Snapshot {
    fn from(r: &SnapshotRecord) -> Snapshot {
        Snapshot {
            id: r.id.clone(),
            name: r.name.clone(),
            // It is remembered when it is whole and durable, not before.
            status: if r.holders.is_empty() { "lost".to_owned() } else { "completed".to_owned() },
            created_at: rfc3339(r.created_s),
            size_bytes: r.size_bytes,
            etcd_revision: r.revision.to_string(),
            checksum: r.checksum.clone(),
            metadata: r.metadata.iter().cloned().collect(),
        }
    }
}

impl<C: ControlPlane> App<C> {
    /// Makes one. Without a name it is called after the time.
    pub(crate) async fn snapshot_create(
        &self,
        name: String,
        metadata: BTreeMap<String, String>,
    ) -> Result<Snapshot, Problem> {
        let name = if name.is_empty() { format!("snapshot-{}", super::now_s()) } else { name };
        let texts = metadata.iter().flat_map(|(k, v)| [k, v]).chain([&name]);
        if metadata.len() > METADATA_MAX || texts.into_iter().any(|t| t.len() > TEXT_MAX_BYTES) {
            return Err(Problem::invalid(format!(
                "Too much: at most {METADATA_MAX} metadata entries, and {TEXT_MAX_BYTES} bytes in each text"
            )));
        }
        let record = self.plane.snapshot_keep(name, metadata.into_iter().collect()).await?;
        self.metrics.snapshots_made.inc();
        Ok(Snapshot::from(&record))
    }

    /// One that is kept.
    pub(crate) async fn snapshot_get(&self, id: &str) -> Result<Snapshot, Problem> {
        let id = id.to_owned();
        let found = self.read(move |s: &Store| Ok(s.snapshot(&id).map(Snapshot::from))).await?;
        found.ok_or_else(|| Problem::not_found("Snapshot"))
    }

    /// A page of them, by id.
    pub(crate) async fn snapshot_list(&self, limit: i64, token: &str) -> Result<Page<Snapshot>, Problem> {
        let size = page::size(limit)?;
        let of = "snapshots".to_owned();
        let after = Next::parse(token, &of)?.map(|next| next.after);
        let look = move |s: &Store| {
            let rest = s.snapshots().filter(|r| after.as_ref().is_none_or(|a| r.id > *a));
            Ok(rest.take(size + 1).map(Snapshot::from).collect::<Vec<_>>())
        };
        let mut items = self.read(look).await?;
        let more = items.len() > size;
        items.truncate(size);
        let next = match items.last() {
            Some(last) if more => Next { of, revision: 0, after: last.id.clone() }.token(),
            _ => String::new(),
        };
        Ok(Page { items, next })
    }

    /// Puts the store back to what it was then; the revision that this made.
    pub(crate) async fn snapshot_restore(&self, id: &str, unchecked: bool) -> Result<u64, Problem> {
        Ok(self.plane.snapshot_restore(id.to_owned(), unchecked).await?)
    }

    /// Forgets one, if it is there.
    pub(crate) async fn snapshot_delete(&self, id: &str) -> Result<bool, Problem> {
        Ok(self.plane.snapshot_forget(id.to_owned()).await?)
    }
}
