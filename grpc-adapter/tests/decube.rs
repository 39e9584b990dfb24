//! DeCube's gRPC: the same data as its REST, and none of its faults.

mod support;

use ice_grpc::{decube, jwt};
use serde_json::json;
use std::collections::HashMap;
use support::pb::proto as pb;
use support::pb::proto::de_cube_service_client::DeCubeServiceClient;
use support::{Channel, Servers, Setup, smol, tokio};
use tonic::{Code, Request};

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn pod(name: &str) -> Option<pb::Pod> {
    Some(pb::Pod { name: name.to_owned(), ..pb::Pod::default() })
}

#[test]
fn pods_are_those_of_rest() {
    let s = Servers::start(tokio());
    s.rest("POST", "/api/v1/pods", r#"{"name":"web","replicas":3}"#);
    s.run(async {
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        let got =
            c.get_pod(pb::GetPodRequest { name: "web".into(), namespace: String::new() }).await.unwrap().into_inner();
        assert!(got.found && got.pod.unwrap().namespace == "default");
        // What the original dereferenced.
        let none = c.create_pod(pb::CreatePodRequest { pod: None }).await.unwrap().into_inner();
        assert_eq!((none.success, &none.error[..]), (false, "Pod is required"));
        let none = c.update_pod(pb::UpdatePodRequest { pod: None }).await.unwrap().into_inner();
        assert!(!none.success);
        let bad = c.create_pod(pb::CreatePodRequest { pod: pod("a/b") }).await.unwrap().into_inner();
        assert!(!bad.success && bad.error.starts_with("Invalid pod name"), "{}", bad.error);
        let twice = c.create_pod(pb::CreatePodRequest { pod: pod("web") }).await.unwrap().into_inner();
        assert_eq!((twice.success, &twice.error[..]), (false, "Pod already exists"));
        let made = pb::Pod { labels: labels(&[("app", "db")]), ..pod("db").unwrap() };
        let made = c.create_pod(pb::CreatePodRequest { pod: Some(made) }).await.unwrap().into_inner();
        assert!(made.success && !made.pod.unwrap().created_at.is_empty());
        let missing = c.update_pod(pb::UpdatePodRequest { pod: pod("none") }).await.unwrap().into_inner();
        assert_eq!((missing.success, &missing.error[..]), (false, "Pod not found"));
        let update = pb::Pod { status: "Running".into(), ..pod("web").unwrap() };
        let update = c.update_pod(pb::UpdatePodRequest { pod: Some(update) }).await.unwrap().into_inner();
        assert_eq!(update.pod.unwrap().status, "Running");
        let list = pb::ListPodsRequest { labels: labels(&[("app", "db")]), ..Default::default() };
        let list = c.list_pods(list).await.unwrap().into_inner();
        assert_eq!((list.count, &list.pods[0].name[..]), (1, "db"));
        let first = c.list_pods(pb::ListPodsRequest { limit: 1, ..Default::default() }).await.unwrap().into_inner();
        let rest = pb::ListPodsRequest {
            limit: 1,
            continuation_token: first.next_continuation_token.clone(),
            ..Default::default()
        };
        let rest = c.list_pods(rest).await.unwrap().into_inner();
        assert_eq!((&first.pods[0].name[..], &rest.pods[0].name[..]), ("db", "web"));
        assert_eq!(rest.next_continuation_token, "");
        let wrong = c.list_pods(pb::ListPodsRequest { limit: -1, ..Default::default() }).await.unwrap_err();
        assert_eq!(wrong.code(), Code::InvalidArgument);
        let gone = pb::DeletePodRequest { name: "db".into(), namespace: "default".into() };
        assert!(c.delete_pod(gone).await.unwrap().into_inner().deleted);
    });
    // What gRPC has no words for is still there.
    assert_eq!(s.rest("GET", "/api/v1/pods/web", "").json()["pod"]["replicas"], 3);
    assert_eq!(s.rest("GET", "/api/v1/pods/db", "").status, 404);
}

#[test]
fn leases_and_snapshots() {
    let s = Servers::start(smol());
    let id = s.run(async {
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        let none = c.create_lease(pb::CreateLeaseRequest::default()).await.unwrap().into_inner();
        assert_eq!((none.success, &none.error[..]), (false, "Lease holder is required"));
        let wants = |holder: &str| pb::CreateLeaseRequest {
            holder: holder.to_owned(),
            ttl_seconds: 0,
            metadata: labels(&[("resource", "leader")]),
        };
        let held = c.create_lease(wants("a")).await.unwrap().into_inner().lease.unwrap();
        assert_eq!(held.ttl_seconds, 30);
        let token: u64 = held.metadata["fencing_token"].parse().unwrap();
        assert!(token > 0);
        let other = c.create_lease(wants("b")).await.unwrap().into_inner();
        assert!(!other.success && other.error.contains(&held.id), "{}", other.error);
        let renewed = pb::RenewLeaseRequest { id: held.id.clone(), ttl_seconds: 90 };
        let renewed = c.renew_lease(renewed).await.unwrap().into_inner();
        assert_eq!(renewed.lease.unwrap().ttl_seconds, 90);
        let list = pb::ListLeasesRequest { holder: "a".into(), ..Default::default() };
        assert_eq!(c.list_leases(list).await.unwrap().into_inner().count, 1);
        assert!(c.delete_lease(pb::DeleteLeaseRequest { id: held.id.clone() }).await.unwrap().into_inner().deleted);
        let gone = c.get_lease(pb::GetLeaseRequest { id: held.id }).await.unwrap().into_inner();
        assert_eq!((gone.found, &gone.error[..]), (false, "Lease not found"));
        let made = pb::CreateSnapshotRequest { name: "n".into(), metadata: labels(&[]) };
        let made = c.create_snapshot(made).await.unwrap().into_inner().snapshot.unwrap();
        let got = c.get_snapshot(pb::GetSnapshotRequest { id: made.id.clone() }).await.unwrap().into_inner();
        assert_eq!(got.snapshot, Some(made.clone()));
        assert_eq!(c.list_snapshots(pb::ListSnapshotsRequest::default()).await.unwrap().into_inner().count, 1);
        made.id
    });
    s.plane.lock().damage_snapshot(&id);
    s.run(async {
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        let mut restore = async |id: &str, skip_hash_check| {
            let request = pb::RestoreSnapshotRequest { snapshot_id: id.to_owned(), skip_hash_check };
            c.restore_snapshot(request).await.unwrap().into_inner()
        };
        let bad = restore(&id, false).await;
        assert!(!bad.success && bad.error.contains("checksum"), "{}", bad.error);
        assert_eq!(restore("none", false).await.error, "Snapshot not found");
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        assert!(c.delete_snapshot(pb::DeleteSnapshotRequest { id }).await.unwrap().into_inner().deleted);
    });
}

async fn replicate(
    channel: Channel,
    token: Option<&str>,
    peer: &str,
    key: &str,
    value: &str,
    revision: i64,
) -> Result<pb::ReplicateStateResponse, tonic::Status> {
    let entry = pb::StateEntry { key: key.to_owned(), value: value.to_owned().into(), revision };
    let mut request = Request::new(pb::ReplicateStateRequest { peer_address: peer.to_owned(), entries: vec![entry] });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    DeCubeServiceClient::new(channel).replicate_state(request).await.map(tonic::Response::into_inner)
}

#[test]
fn no_stranger_writes_state() {
    let pod = json!({"name": "a", "status": "new"}).to_string();
    let s = Servers::start(tokio());
    s.run(async {
        // Nobody proves who he is here: all are strangers.
        let refused = replicate(s.grpc_channel().await, None, "127.0.0.1:2380", "/pods/default/a", &pod, 0).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    });
    let secret = "0123456789abcdef0123456789abcdef";
    let gate = jwt::Gate::hs256(secret.as_bytes(), jwt::Claims::default()).unwrap();
    let s = Servers::with(smol(), Setup { decube: decube::Options { gate, ..Default::default() }, ..Setup::default() });
    let token = {
        use base64::Engine;
        let part = |v: &str| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(v);
        let body = json!({"exp": support::plane::now_s() + 60}).to_string();
        let message = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(&body));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = ring::hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(tag))
    };
    s.run(async {
        let call = async |token: Option<&str>, peer: &str, key: &str, value: &str, revision| {
            replicate(s.grpc_channel().await, token, peer, key, value, revision).await
        };
        let (key, us, token) = ("/pods/default/a", "http://127.0.0.1:2380", Some(&token[..]));
        assert_eq!(call(None, us, key, &pod, 0).await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(call(Some("x.y.z"), us, key, &pod, 0).await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(call(token, "10.0.0.9:2380", key, &pod, 0).await.unwrap_err().code(), Code::PermissionDenied);
        for (key, value) in
            [("/leases/x", &pod[..]), ("/pods/default/b", &pod[..]), (key, "junk"), ("anything", &pod[..])]
        {
            let no = call(token, us, key, value, 0).await.unwrap();
            assert!(!no.success && !no.error.is_empty(), "{key}");
        }
        let yes = call(token, us, key, &pod, 9).await.unwrap();
        assert_eq!((yes.success, yes.applied_revision), (true, 2));
        // What is older than what is here changes nothing.
        let old = json!({"name": "a", "status": "old"}).to_string();
        assert!(!call(token, us, key, &old, 2).await.unwrap().success);
        let mut get = Request::new(pb::GetPodRequest { name: "a".into(), namespace: String::new() });
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        assert_eq!(c.get_pod(pb::GetPodRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
        get.metadata_mut().insert("authorization", format!("Bearer {}", token.unwrap()).parse().unwrap());
        assert_eq!(c.get_pod(get).await.unwrap().into_inner().pod.unwrap().status, "new");
    });
}

#[test]
fn replication_is_reported_as_it_is() {
    let s = Servers::start(tokio());
    s.run(async {
        use ice_host::control::{ControlPlane, MemberChange};
        let mut c = DeCubeServiceClient::new(s.grpc_channel().await);
        let alone = c.get_replication_status(pb::GetReplicationStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((alone.peers.len(), alone.is_leader, alone.current_revision), (0, true, 1));
        assert_eq!(alone.leader_address, "127.0.0.1:2379");
        let add = MemberChange::Add { peer_urls: vec!["http://10.0.0.2:2380".into()], learner: true };
        s.plane.change_members(add).await.unwrap();
        let two = c.get_replication_status(pb::GetReplicationStatusRequest {}).await.unwrap().into_inner();
        let peer = &two.peers[0];
        assert_eq!((&peer.address[..], peer.connected, peer.last_heartbeat), ("http://10.0.0.2:2380", false, 0));
    });
}
