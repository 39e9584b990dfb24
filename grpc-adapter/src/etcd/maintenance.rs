//! Looking after a member: alarms, status, snapshots, hashes, leadership.

use super::convert::{self, wide};
use super::{API_VERSION, Shared, errors, snapshot};
use crate::pb::etcdserverpb as pb;
use futures::{Stream, StreamExt};
use ice_core::kv::command::{Action, AlarmKind};
use ice_core::kv::{Store, StoreHash};
use ice_host::control::{ControlPlane, Freshness};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Maintenance<C>(pub(crate) Arc<Shared<C>>);

impl<C: ControlPlane> Maintenance<C> {
    /// Only root may, where there is one.
    async fn manages<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let by = self.0.who(request).await?;
        self.0.read(Freshness::Local, move |s: &Store| s.auth().may_manage(&by)).await.map(|_| ())
    }

    /// The hash of this member's store, made in portions.
    async fn hashed(&self, revision: u64) -> Result<(StoreHash, Option<pb::ResponseHeader>), Status> {
        let (mut cursor, _) = self.0.read(Freshness::Local, move |s| s.hash_begin(revision)).await?;
        loop {
            let step = move |s: &Store| {
                let hash = s.hash_step(&mut cursor, HASH_RECORDS_PER_STEP)?;
                Ok((cursor, hash))
            };
            let ((went_on, hash), head) = self.0.read(Freshness::Local, step).await?;
            if let Some(hash) = hash {
                return Ok((hash, self.0.header(head)));
            }
            cursor = went_on;
        }
    }

    fn here(&self) -> Option<pb::ResponseHeader> {
        self.0.header(self.0.plane.head())
    }
}

/// Records that are hashed while the store is held.
const HASH_RECORDS_PER_STEP: usize = 4096;

/// The wire has room for half of a hash.
fn short(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

fn kind(alarm: i32) -> Result<Option<AlarmKind>, Status> {
    match pb::AlarmType::try_from(alarm) {
        Ok(pb::AlarmType::None) => Ok(None),
        Ok(pb::AlarmType::Nospace) => Ok(Some(AlarmKind::NoSpace)),
        Ok(pb::AlarmType::Corrupt) => Ok(Some(AlarmKind::Corrupt)),
        Err(_) => Err(Status::invalid_argument("etcdserver: unknown alarm")),
    }
}

fn kind_out(kind: AlarmKind) -> i32 {
    match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace.into(),
        AlarmKind::Corrupt => pb::AlarmType::Corrupt.into(),
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::maintenance_server::Maintenance for Maintenance<C> {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let by = self.0.known(&request).await?;
        let pb::AlarmRequest { action, member_id: member, alarm } = request.into_inner();
        let (asked, action) = (kind(alarm)?, AlarmAction::try_from(action));
        let standing = move |s: &Store| -> Vec<pb::AlarmMember> {
            let wanted = s.alarms().filter(|(k, _)| asked.is_none_or(|a| a == *k));
            wanted.map(|(k, m)| pb::AlarmMember { member_id: m, alarm: kind_out(k) }).collect()
        };
        let (raise, kind) = match (action, asked) {
            (Ok(AlarmAction::Get), _) => {
                let (alarms, head) = self.0.read(Freshness::Linearizable, move |s| Ok(standing(s))).await?;
                return Ok(Response::new(pb::AlarmResponse { header: self.0.header(head), alarms }));
            }
            (Ok(AlarmAction::Activate), Some(kind)) => (true, kind),
            (Ok(AlarmAction::Deactivate), Some(kind)) => (false, kind),
            _ => return Err(Status::invalid_argument("etcdserver: unknown alarm")),
        };
        let applied = self.0.propose(by, Action::Alarm { kind, member, raise }).await?;
        let alarms = vec![pb::AlarmMember { member_id: member, alarm }];
        Ok(Response::new(pb::AlarmResponse { header: self.0.header(applied.head), alarms }))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.0.plane.status();
        Ok(Response::new(pb::StatusResponse {
            header: self.here(),
            version: API_VERSION.to_owned(),
            db_size: wide(status.db_bytes),
            leader: status.leader,
            raft_index: status.committed,
            raft_term: status.term,
            raft_applied_index: status.applied,
            errors: status.errors,
            db_size_in_use: wide(status.db_used_bytes),
            is_learner: status.learner,
            storage_version: status.version,
            db_size_quota: wide(status.quota_bytes),
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.manages(&request).await?;
        self.0.plane.defragment().await.map_err(errors::refused)?;
        Ok(Response::new(pb::DefragmentResponse { header: self.here() }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.manages(&request).await?;
        let (hash, header) = self.hashed(0).await?;
        Ok(Response::new(pb::HashResponse { header, hash: short(hash.hash) }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.manages(&request).await?;
        let (hash, header) = self.hashed(convert::natural(request.into_inner().revision)).await?;
        Ok(Response::new(pb::HashKvResponse {
            header,
            hash: short(hash.hash),
            compact_revision: wide(hash.compacted),
            hash_revision: wide(hash.revision),
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.manages(&request).await?;
        let snapshot = self.0.plane.snapshot().await.map_err(errors::refused)?;
        let header = self.here();
        let version = self.0.plane.status().version;
        let pieces = snapshot::pieces(snapshot, self.0.stopped.clone());
        let responses = pieces.map(move |piece| {
            let (blob, remaining_bytes) = piece?;
            Ok(pb::SnapshotResponse { header, remaining_bytes, blob, version: version.clone() })
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.manages(&request).await?;
        self.0.plane.move_leader(request.into_inner().target_id).await.map_err(errors::refused)?;
        Ok(Response::new(pb::MoveLeaderResponse { header: self.here() }))
    }

    async fn downgrade(
        &self,
        _request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("etcdserver: versions of etcd's storage do not exist here: nothing to downgrade"))
    }
}
