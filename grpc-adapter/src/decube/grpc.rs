//! DeCube's gRPC. As in the original, what goes wrong is said in the answer; only lists fail as calls.

use super::leases::{Lease, Wanted};
use super::pods::{self, Expect, Pod, namespace_or_default};
use super::problem::Problem;
use super::snapshots::Snapshot;
use super::{App, BODY_MAX_BYTES};
use crate::deadline;
use crate::health::Health;
use crate::jwt::Gate;
use crate::listen::Stopped;
use crate::pb::proto as pb;
use crate::reflection::{self, Reflection};
use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::middleware::Next;
use ice_core::kv::txn::{Compare, Is, Op, Target, Txn};
use ice_host::control::ControlPlane;
use ice_serve::Rt;
use pb::de_cube_service_server::{DeCubeService, DeCubeServiceServer};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

struct Service<C>(Arc<App<C>>);

/// The services of DeCube's gRPC port: its own, health, reflection.
pub(crate) fn router<C: ControlPlane>(app: Arc<App<C>>, rt: &Rt, stopped: &Stopped) -> Router {
    let reflection = Reflection::of(&["proto", "grpc.health", "grpc.reflection"]);
    let service = DeCubeServiceServer::new(Service(app.clone())).max_decoding_message_size(BODY_MAX_BYTES);
    let limit = app.options.request;
    let routes = Routes::new(service)
        .add_service(Health::server(app.plane.clone(), rt, stopped, &["proto.DeCubeService"]))
        .add_service(reflection::v1::server(reflection.clone()))
        .add_service(reflection::v1alpha::server(reflection))
        .into_axum_router()
        .layer(axum::middleware::from_fn(move |request: HttpRequest, next: Next| {
            let app = app.clone();
            async move {
                let path = request.uri().path();
                let open = path.starts_with("/grpc.health.");
                let said = request.headers().get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
                match app.admit(said) {
                    Err(denied) if !open => Status::unauthenticated(denied.to_string()).into_http(),
                    _ => next.run(request).await,
                }
            }
        }));
    // Snapshots take as long as they take.
    let long = |path: &str| path.ends_with("Snapshot");
    deadline::limited(routes, rt, move |path| (!long(path)).then_some(limit))
}

fn map(m: HashMap<String, String>) -> BTreeMap<String, String> {
    m.into_iter().collect()
}

fn pod_in(p: Option<pb::Pod>) -> Result<Pod, Problem> {
    let p = p.ok_or_else(|| Problem::invalid("Pod is required"))?;
    let namespace = namespace_or_default(&p.namespace).to_owned();
    Ok(Pod {
        name: p.name,
        namespace,
        status: p.status,
        node_name: p.node_name,
        labels: map(p.labels),
        annotations: map(p.annotations),
        ..Pod::default()
    })
}

fn pod_out(p: Pod) -> pb::Pod {
    pb::Pod {
        name: p.name,
        namespace: p.namespace,
        status: p.status,
        node_name: p.node_name,
        created_at: p.created_at,
        updated_at: p.updated_at,
        labels: p.labels.into_iter().collect(),
        annotations: p.annotations.into_iter().collect(),
    }
}

fn wide(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn snapshot_out(s: Snapshot) -> pb::Snapshot {
    pb::Snapshot {
        id: s.id,
        name: s.name,
        status: s.status,
        created_at: s.created_at,
        size_bytes: wide(s.size_bytes),
        etcd_revision: s.etcd_revision,
        checksum: s.checksum,
        metadata: s.metadata.into_iter().collect(),
    }
}

fn lease_out(l: Lease) -> pb::Lease {
    let mut metadata: HashMap<String, String> = l.metadata.into_iter().collect();
    if l.fencing_token != 0 {
        // There is no field for it.
        metadata.insert("fencing_token".to_owned(), l.fencing_token.to_string());
        metadata.insert("resource".to_owned(), l.resource);
    }
    pb::Lease {
        id: l.id,
        holder: l.holder,
        ttl_seconds: wide(l.ttl_seconds),
        granted_at: l.granted_at,
        expires_at: l.expires_at,
        metadata,
    }
}

/// `($name: $problem)` into an answer whose first field stays empty.
macro_rules! said {
    ($result:expr, |$found:ident| $yes:expr, $no:ident) => {
        Ok(Response::new(match $result {
            Ok($found) => $yes,
            Err(problem) => pb::$no { error: Problem::from(problem).words, ..Default::default() },
        }))
    };
}

#[tonic::async_trait]
impl<C: ControlPlane> DeCubeService for Service<C> {
    async fn create_pod(
        &self,
        request: Request<pb::CreatePodRequest>,
    ) -> Result<Response<pb::CreatePodResponse>, Status> {
        let made = async { self.0.pod_create(pod_in(request.into_inner().pod)?).await }.await;
        said!(
            made,
            |s| pb::CreatePodResponse { pod: Some(pod_out(s.pod)), success: true, error: String::new() },
            CreatePodResponse
        )
    }

    async fn get_pod(&self, request: Request<pb::GetPodRequest>) -> Result<Response<pb::GetPodResponse>, Status> {
        let pb::GetPodRequest { name, namespace } = request.into_inner();
        said!(
            self.0.pod_get(namespace_or_default(&namespace), &name).await,
            |s| pb::GetPodResponse { pod: Some(pod_out(s.pod)), found: true, error: String::new() },
            GetPodResponse
        )
    }

    async fn list_pods(&self, request: Request<pb::ListPodsRequest>) -> Result<Response<pb::ListPodsResponse>, Status> {
        let pb::ListPodsRequest { namespace, labels, limit, continuation_token } = request.into_inner();
        let namespace = namespace_or_default(&namespace);
        let page = self.0.pod_list(namespace, &map(labels), limit.into(), &continuation_token).await?;
        Ok(Response::new(pb::ListPodsResponse {
            count: count(page.items.len()),
            pods: page.items.into_iter().map(pod_out).collect(),
            next_continuation_token: page.next,
        }))
    }

    async fn update_pod(
        &self,
        request: Request<pb::UpdatePodRequest>,
    ) -> Result<Response<pb::UpdatePodResponse>, Status> {
        let changed = async {
            let pod = pod_in(request.into_inner().pod)?;
            // It replaces what it has words for; what else was said of the pod by others stays.
            let replace = |before: &Pod| Ok(Pod { more: before.more.clone(), ..pod.clone() });
            self.0.pod_change(&pod.namespace, &pod.name, Expect::Anything, replace).await
        };
        said!(
            changed.await,
            |s| pb::UpdatePodResponse { pod: Some(pod_out(s.pod)), success: true, error: String::new() },
            UpdatePodResponse
        )
    }

    async fn delete_pod(
        &self,
        request: Request<pb::DeletePodRequest>,
    ) -> Result<Response<pb::DeletePodResponse>, Status> {
        let pb::DeletePodRequest { name, namespace } = request.into_inner();
        let gone = self.0.pod_delete(namespace_or_default(&namespace), &name).await;
        said!(gone, |_was| pb::DeletePodResponse { deleted: true, error: String::new() }, DeletePodResponse)
    }

    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        let pb::CreateSnapshotRequest { name, metadata } = request.into_inner();
        said!(
            self.0.snapshot_create(name, map(metadata)).await,
            |s| pb::CreateSnapshotResponse { snapshot: Some(snapshot_out(s)), success: true, error: String::new() },
            CreateSnapshotResponse
        )
    }

    async fn get_snapshot(
        &self,
        request: Request<pb::GetSnapshotRequest>,
    ) -> Result<Response<pb::GetSnapshotResponse>, Status> {
        said!(
            self.0.snapshot_get(&request.into_inner().id).await,
            |s| pb::GetSnapshotResponse { snapshot: Some(snapshot_out(s)), found: true, error: String::new() },
            GetSnapshotResponse
        )
    }

    async fn list_snapshots(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        let pb::ListSnapshotsRequest { limit, continuation_token } = request.into_inner();
        let page = self.0.snapshot_list(limit.into(), &continuation_token).await?;
        Ok(Response::new(pb::ListSnapshotsResponse {
            count: count(page.items.len()),
            snapshots: page.items.into_iter().map(snapshot_out).collect(),
            next_continuation_token: page.next,
        }))
    }

    async fn restore_snapshot(
        &self,
        request: Request<pb::RestoreSnapshotRequest>,
    ) -> Result<Response<pb::RestoreSnapshotResponse>, Status> {
        let pb::RestoreSnapshotRequest { snapshot_id, skip_hash_check } = request.into_inner();
        said!(
            self.0.snapshot_restore(&snapshot_id, skip_hash_check).await,
            |revision| pb::RestoreSnapshotResponse {
                success: true,
                error: String::new(),
                restored_revision: revision.to_string(),
            },
            RestoreSnapshotResponse
        )
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DeleteSnapshotResponse>, Status> {
        let gone = self.0.snapshot_delete(&request.into_inner().id).await;
        said!(gone, |_was| pb::DeleteSnapshotResponse { deleted: true, error: String::new() }, DeleteSnapshotResponse)
    }

    async fn create_lease(
        &self,
        request: Request<pb::CreateLeaseRequest>,
    ) -> Result<Response<pb::CreateLeaseResponse>, Status> {
        let pb::CreateLeaseRequest { holder, ttl_seconds, metadata } = request.into_inner();
        let wanted = Wanted { holder, ttl_seconds, resource: String::new(), metadata: map(metadata) };
        said!(
            self.0.lease_create(wanted).await,
            |l| pb::CreateLeaseResponse { lease: Some(lease_out(l)), success: true, error: String::new() },
            CreateLeaseResponse
        )
    }

    async fn get_lease(&self, request: Request<pb::GetLeaseRequest>) -> Result<Response<pb::GetLeaseResponse>, Status> {
        said!(
            self.0.lease_get(&request.into_inner().id).await,
            |l| pb::GetLeaseResponse { lease: Some(lease_out(l)), found: true, error: String::new() },
            GetLeaseResponse
        )
    }

    async fn list_leases(
        &self,
        request: Request<pb::ListLeasesRequest>,
    ) -> Result<Response<pb::ListLeasesResponse>, Status> {
        let pb::ListLeasesRequest { holder, limit, continuation_token } = request.into_inner();
        let page = self.0.lease_list(&holder, limit.into(), &continuation_token).await?;
        Ok(Response::new(pb::ListLeasesResponse {
            count: count(page.items.len()),
            leases: page.items.into_iter().map(lease_out).collect(),
            next_continuation_token: page.next,
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<pb::RenewLeaseRequest>,
    ) -> Result<Response<pb::RenewLeaseResponse>, Status> {
        let pb::RenewLeaseRequest { id, ttl_seconds } = request.into_inner();
        said!(
            self.0.lease_renew(&id, ttl_seconds).await,
            |l| pb::RenewLeaseResponse { lease: Some(lease_out(l)), success: true, error: String::new() },
            RenewLeaseResponse
        )
    }

    async fn delete_lease(
        &self,
        request: Request<pb::DeleteLeaseRequest>,
    ) -> Result<Response<pb::DeleteLeaseResponse>, Status> {
        let gone = self.0.lease_delete(&request.into_inner().id).await;
        said!(gone, |_was| pb::DeleteLeaseResponse { deleted: true, error: String::new() }, DeleteLeaseResponse)
    }

    async fn replicate_state(
        &self,
        request: Request<pb::ReplicateStateRequest>,
    ) -> Result<Response<pb::ReplicateStateResponse>, Status> {
        let pb::ReplicateStateRequest { peer_address, entries } = request.into_inner();
        // Replication goes through the log; this is for tools that somebody has let in, and only for pods.
        if matches!(self.0.options.gate, Gate::Open) {
            return Err(Status::permission_denied("ReplicateState needs callers that prove who they are"));
        }
        if !self.0.is_member(&peer_address).await? {
            return Err(Status::permission_denied(format!("{peer_address:?} is no member of this cluster")));
        }
        let applied = async {
            let mut txn = Txn::default();
            for entry in entries {
                txn.success.push(Op::Put(pods::replicated(&entry.key, &entry.value)?));
                if entry.revision > 0 {
                    let (key, end, is) = (entry.key.into_bytes(), vec![], Is::Less);
                    txn.compare.push(Compare { key, end, is, target: Target::Modified(entry.revision) });
                }
            }
            match self.0.txn(txn).await? {
                (answer, revision) if answer.succeeded => Ok(revision),
                _ => Err(Problem::conflict("Something here is as new as what was sent: nothing was applied")),
            }
        };
        said!(
            applied.await,
            |revision| pb::ReplicateStateResponse {
                success: true,
                error: String::new(),
                applied_revision: wide(revision),
            },
            ReplicateStateResponse
        )
    }

    async fn get_replication_status(
        &self,
        _request: Request<pb::GetReplicationStatusRequest>,
    ) -> Result<Response<pb::GetReplicationStatusResponse>, Status> {
        let r = self.0.replication().await?;
        let peer = |f: ice_host::control::Follower| pb::PeerStatus {
            address: f.address,
            connected: f.connected,
            last_heartbeat: wide(f.heard_s),
            revision: wide(f.revision),
        };
        Ok(Response::new(pb::GetReplicationStatusResponse {
            peers: r.followers.into_iter().map(peer).collect(),
            is_leader: r.is_leader,
            leader_address: r.leader_address,
            current_revision: wide(r.revision),
        }))
    }
}
