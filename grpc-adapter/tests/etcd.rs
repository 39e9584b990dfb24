//! etcd's API, by clients of our own: what `etcdctl` does not ask.

mod support;

use futures::{FutureExt, SinkExt, StreamExt};
use ice_grpc::{etcd, listen};
use ice_host::runtime::Runtime;
use ice_serve::{TlsClient, TlsServer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::pb::etcdserverpb as pb;
use support::pb::etcdserverpb::auth_client::AuthClient;
use support::pb::etcdserverpb::cluster_client::ClusterClient;
use support::pb::etcdserverpb::kv_client::KvClient;
use support::pb::etcdserverpb::lease_client::LeaseClient;
use support::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use support::pb::etcdserverpb::watch_client::WatchClient;
use support::pb::grpc::health::v1 as health;
use support::pb::grpc::reflection::v1 as reflection;
use support::pb::v3electionpb::election_client::ElectionClient;
use support::pb::v3lockpb::lock_client::LockClient;
use support::pb::{v3electionpb, v3lockpb};
use support::{Channel, Servers, Setup, plane, smol, tokio};
use tonic::{Code, Request, Status, Streaming};

fn put(key: &str, value: impl Into<Vec<u8>>) -> pb::PutRequest {
    let value: Vec<u8> = value.into();
    pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

#[track_caller]
fn is<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.expect_err("it is refused");
    assert_eq!((status.code(), status.message()), (code, words));
}

/// Both runtimes serve alike.
fn on_both(test: impl Fn(&dyn Fn() -> Box<dyn AnyServers>)) {
    test(&|| Box::new(Servers::start(tokio())));
    test(&|| Box::new(Servers::start(smol())));
}

/// Servers without their runtime's type.
trait AnyServers: Sync {
    fn within(&self, test: futures::future::BoxFuture<'_, ()>);
    fn channel(&self) -> futures::future::BoxFuture<'_, Channel>;
}

impl<R: Runtime> AnyServers for Servers<R> {
    fn within(&self, test: futures::future::BoxFuture<'_, ()>) {
        self.run(test);
    }
    fn channel(&self) -> futures::future::BoxFuture<'_, Channel> {
        self.etcd_channel().boxed()
    }
}

#[test]
fn headers_and_errors_are_etcds() {
    for runtime in 0..2 {
        let check = |channel: Channel| async move {
            let mut kv = KvClient::new(channel);
            let header = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap();
            let want =
                pb::ResponseHeader { cluster_id: plane::CLUSTER, member_id: plane::MEMBER, revision: 2, raft_term: 2 };
            assert_eq!(header, want);
            let invalid = Code::InvalidArgument;
            is(kv.put(put("", "x")).await, invalid, "etcdserver: key is not provided");
            is(kv.range(get("")).await, invalid, "etcdserver: key is not provided");
            let ignore = pb::PutRequest { ignore_value: true, ..put("a", "x") };
            is(kv.put(ignore).await, invalid, "etcdserver: value is provided");
            let ignore = pb::PutRequest { ignore_lease: true, lease: 5, ..put("a", "x") };
            is(kv.put(ignore).await, invalid, "etcdserver: lease is provided");
            let ignore = pb::PutRequest { ignore_value: true, ..put("none", "") };
            is(kv.put(ignore).await, invalid, "etcdserver: key not found");
            let lease = pb::PutRequest { lease: 5, ..put("a", "x") };
            is(kv.put(lease).await, Code::NotFound, "etcdserver: requested lease not found");
            is(kv.put(put("a", vec![0; 1_600_000])).await, invalid, "etcdserver: request is too large");
            let sort = pb::RangeRequest { sort_order: 9, ..get("a") };
            is(kv.range(sort).await, invalid, "etcdserver: invalid sort option");
            let future = pb::RangeRequest { revision: 99, ..get("a") };
            let words = "etcdserver: mvcc: required revision is a future revision";
            is(kv.range(future).await, Code::OutOfRange, words);
            let op = |p| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(p)) };
            let twice = pb::TxnRequest { success: vec![op(put("a", "1")), op(put("a", "2"))], ..Default::default() };
            is(kv.txn(twice).await, invalid, "etcdserver: duplicate key given in txn request");
            let many = (0..129).map(|i| op(put(&format!("k{i}"), "1"))).collect();
            let many = pb::TxnRequest { success: many, ..Default::default() };
            is(kv.txn(many).await, invalid, "etcdserver: too many operations in txn request");
            // Negative revisions mean nothing: none is less, all are more.
            let most = pb::RangeRequest { max_mod_revision: -1, ..get("a") };
            assert_eq!(kv.range(most).await.unwrap().into_inner().kvs.len(), 0);
            let least = pb::RangeRequest { min_mod_revision: -1, revision: -5, limit: -3, ..get("a") };
            assert_eq!(kv.range(least).await.unwrap().into_inner().kvs.len(), 1);
        };
        if runtime == 0 {
            let s = Servers::start(tokio());
            s.run(async { check(s.etcd_channel().await).await });
        } else {
            let s = Servers::start(smol());
            s.run(async { check(s.etcd_channel().await).await });
        }
    }
}

#[test]
fn a_transaction_nests_and_says_what_each_part_did() {
    let s = Servers::start(smol());
    s.run(async {
        let mut kv = KvClient::new(s.etcd_channel().await);
        use pb::request_op::Request as Op;
        let op = |r| pb::RequestOp { request: Some(r) };
        kv.put(put("a", "1")).await.unwrap();
        let inner = pb::TxnRequest { success: vec![op(Op::RequestPut(put("b", "2")))], ..Default::default() };
        let delete = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        let outer = pb::TxnRequest {
            compare: vec![pb::Compare {
                key: "a".into(),
                target: pb::compare::CompareTarget::Value.into(),
                target_union: Some(pb::compare::TargetUnion::Value("1".into())),
                ..Default::default()
            }],
            success: vec![
                op(Op::RequestTxn(inner)),
                op(Op::RequestDeleteRange(delete)),
                op(Op::RequestRange(get("b"))),
            ],
            failure: vec![],
        };
        let answer = kv.txn(outer).await.unwrap().into_inner();
        assert!(answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, 3);
        use pb::response_op::Response as Done;
        let parts: Vec<Done> = answer.responses.into_iter().map(|r| r.response.unwrap()).collect();
        let Done::ResponseTxn(inner) = &parts[0] else { panic!("{parts:?}") };
        let Some(Done::ResponsePut(p)) = &inner.responses[0].response else { panic!("{inner:?}") };
        assert_eq!(p.header.unwrap().revision, 3);
        let Done::ResponseDeleteRange(d) = &parts[1] else { panic!("{parts:?}") };
        assert_eq!((d.deleted, &d.prev_kvs[0].value[..]), (1, &b"1"[..]));
        let Done::ResponseRange(r) = &parts[2] else { panic!("{parts:?}") };
        assert_eq!((r.count, r.kvs[0].mod_revision, r.kvs[0].create_revision, r.kvs[0].version), (1, 3, 3, 1));
        // A comparison with something else than it names.
        let wrong = pb::TxnRequest {
            compare: vec![pb::Compare {
                key: "a".into(),
                target: pb::compare::CompareTarget::Value.into(),
                target_union: Some(pb::compare::TargetUnion::Version(1)),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(kv.txn(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

/// A watch stream and what is said on it.
struct Watching {
    requests: futures::channel::mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn open(channel: Channel) -> Watching {
        let (requests, incoming) = futures::channel::mpsc::channel(16);
        let responses = WatchClient::new(channel).watch(incoming).await.unwrap().into_inner();
        Watching { requests, responses }
    }
    async fn ask(&mut self, request: pb::watch_request::RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }
    async fn create(&mut self, create: pb::WatchCreateRequest) {
        self.ask(pb::watch_request::RequestUnion::CreateRequest(create)).await;
    }
    async fn next(&mut self) -> pb::WatchResponse {
        self.responses.next().await.unwrap().unwrap()
    }
}

fn watch(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

#[test]
fn several_watches_on_one_stream() {
    on_both(|start| {
        let s = start();
        s.within(
            async {
                let channel = s.channel().await;
                let mut kv = KvClient::new(channel.clone());
                let mut w = Watching::open(channel).await;
                w.create(watch("a")).await;
                let created = w.next().await;
                assert_eq!((created.created, created.watch_id, created.header.unwrap().revision), (true, 0, 1));
                w.create(pb::WatchCreateRequest { watch_id: 7, ..watch("a") }).await;
                assert_eq!(w.next().await.watch_id, 7);
                w.create(pb::WatchCreateRequest { watch_id: 7, ..watch("b") }).await;
                let twice = w.next().await;
                assert_eq!((twice.created, twice.canceled, twice.watch_id), (true, true, -1));
                assert!(twice.cancel_reason.contains("duplicate watch ID"), "{}", twice.cancel_reason);
                let no_put = pb::watch_create_request::FilterType::Noput.into();
                w.create(pb::WatchCreateRequest { filters: vec![no_put], prev_kv: true, ..watch("a") }).await;
                assert_eq!(w.next().await.watch_id, 1);
                kv.put(put("a", "1")).await.unwrap();
                let both: BTreeSet<i64> = [w.next().await, w.next().await].iter().map(|r| r.watch_id).collect();
                assert_eq!(both, BTreeSet::from([0, 7]));
                w.ask(pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 })).await;
                let over = w.next().await;
                assert_eq!((over.canceled, over.watch_id, over.compact_revision), (true, 7, 0));
                kv.delete_range(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
                let mut told = [w.next().await, w.next().await];
                told.sort_by_key(|r| r.watch_id);
                assert_eq!(told[0].events[0].prev_kv, None);
                let gone = &told[1].events[0];
                assert_eq!((gone.r#type, gone.kv.as_ref().unwrap().mod_revision), (1, 3));
                assert_eq!(gone.prev_kv.as_ref().unwrap().value, "1");
                w.ask(pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
                let progress = w.next().await;
                assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, 3));
                assert!(progress.events.is_empty());
                // From the past, to the end of history; then what is compacted.
                w.create(pb::WatchCreateRequest { start_revision: 2, ..watch("a") }).await;
                assert!(w.next().await.created);
                let past = w.next().await;
                assert_eq!(past.events.iter().map(|e| e.r#type).collect::<Vec<_>>(), [0, 1]);
                kv.compact(pb::CompactionRequest { revision: 3, physical: true }).await.unwrap();
                w.create(pb::WatchCreateRequest { start_revision: 2, ..watch("a") }).await;
                assert!(w.next().await.created);
                let late = w.next().await;
                assert_eq!((late.canceled, late.compact_revision), (true, 3));
                // The client has no more to say: the stream ends.
                w.requests.close_channel();
                assert!(w.responses.next().await.is_none());
            }
            .boxed(),
        );
    });
}

#[test]
fn large_changes_come_in_pieces_to_those_who_can_put_them_together() {
    let s = Servers::start(tokio());
    s.run(async {
        let channel = s.etcd_channel().await;
        let mut kv = KvClient::new(channel.clone());
        for i in 0..5 {
            kv.put(put(&format!("k{i}"), vec![i; 700_000])).await.unwrap();
        }
        let mut w = Watching::open(channel).await;
        let all = pb::WatchCreateRequest { range_end: "l".into(), start_revision: 2, ..watch("k") };
        w.create(pb::WatchCreateRequest { fragment: true, ..all.clone() }).await;
        assert!(w.next().await.created);
        let mut seen = vec![];
        loop {
            let part = w.next().await;
            seen.extend(part.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision));
            if !part.fragment {
                break;
            }
        }
        assert_eq!(seen, [2, 3, 4, 5, 6]);
        w.create(all).await;
        assert!(w.next().await.created);
        let whole = w.next().await;
        assert_eq!((whole.events.len(), whole.fragment), (5, false));
    });
}

#[test]
fn quiet_watches_hear_how_far_they_are() {
    let etcd = etcd::Options { progress: Duration::from_millis(50), ..etcd::Options::default() };
    let s = Servers::with(smol(), Setup { etcd, ..Setup::default() });
    s.run(async {
        let mut w = Watching::open(s.etcd_channel().await).await;
        w.create(watch("silent")).await;
        w.create(pb::WatchCreateRequest { progress_notify: true, ..watch("told") }).await;
        w.next().await;
        w.next().await;
        let sign = w.next().await;
        assert_eq!((sign.watch_id, sign.events.len(), sign.header.unwrap().revision), (1, 0, 1));
        assert_eq!(w.next().await.watch_id, 1);
    });
}

#[test]
fn a_stop_ends_streams_and_waits_for_nobody() {
    let limits = listen::Limits { grace: Duration::from_millis(500), ..listen::Limits::default() };
    let s = Servers::with(tokio(), Setup { limits, ..Setup::default() });
    let mut w = s.run(async {
        let mut w = Watching::open(s.etcd_channel().await).await;
        w.create(watch("a")).await;
        w.next().await;
        w
    });
    let (runtime, stopping) = (s.runtime.clone(), s.etcd.stop());
    runtime.block_on(async {
        let begin = Instant::now();
        stopping.await;
        assert!(begin.elapsed() < support::PATIENCE / 2);
        let last = w.responses.next().await.unwrap().unwrap_err();
        assert_eq!((last.code(), last.message()), (Code::Unavailable, "etcdserver: server stopped"));
    });
}

#[test]
fn leases_are_kept_alive_on_a_stream() {
    let s = Servers::start(smol());
    s.run(async {
        let mut lease = LeaseClient::new(s.etcd_channel().await);
        let granted = lease.lease_grant(pb::LeaseGrantRequest { ttl: 0, id: 42 }).await.unwrap().into_inner();
        assert_eq!((granted.id, granted.ttl), (42, plane::LEASE_MIN_S as i64));
        let again = lease.lease_grant(pb::LeaseGrantRequest { ttl: 9, id: 42 }).await;
        is(again, Code::FailedPrecondition, "etcdserver: lease already exists");
        let long = lease.lease_grant(pb::LeaseGrantRequest { ttl: i64::MAX, id: 0 }).await;
        is(long, Code::OutOfRange, "etcdserver: too large lease TTL");
        let first = lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner();
        assert!(first.id > 0 && first.ttl == 60);
        let (mut ask, incoming) = futures::channel::mpsc::channel(4);
        let mut answers = lease.lease_keep_alive(incoming).await.unwrap().into_inner();
        ask.send(pb::LeaseKeepAliveRequest { id: first.id }).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap().ttl, 60);
        ask.send(pb::LeaseKeepAliveRequest { id: 4711 }).await.unwrap();
        // Zero: there is none.
        assert_eq!(answers.next().await.unwrap().unwrap().ttl, 0);
        drop(ask);
        assert!(answers.next().await.is_none());
        let gone = pb::LeaseTimeToLiveRequest { id: 4711, keys: true };
        assert_eq!(lease.lease_time_to_live(gone).await.unwrap().into_inner().ttl, -1);
    });
}

#[test]
fn who_gives_up_gives_up_his_place_in_line() {
    on_both(|start| {
        let s = start();
        s.within(
            async {
                let channel = s.channel().await;
                let mut leases = LeaseClient::new(channel.clone());
                let mut lease = async || {
                    leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id
                };
                let mut lock = LockClient::new(channel.clone());
                let (a, b, c) = (lease().await, lease().await, lease().await);
                let wants = |lease| v3lockpb::LockRequest { name: "l".into(), lease };
                let held = lock.lock(wants(a)).await.unwrap().into_inner();
                assert_eq!(held.key, format!("l/{a:x}"));
                // Who holds it already has it.
                assert_eq!(lock.lock(wants(a)).await.unwrap().into_inner().key, held.key);
                let mut impatient = Request::new(wants(b));
                impatient.set_timeout(Duration::from_millis(100));
                assert_eq!(lock.lock(impatient).await.unwrap_err().code(), Code::DeadlineExceeded);
                // His key goes, so the next one in line does not wait for him.
                let mut kv = KvClient::new(channel.clone());
                let his = format!("l/{b:x}");
                while !kv.range(get(&his)).await.unwrap().into_inner().kvs.is_empty() {}
                let mut other = lock.clone();
                let waiting = other.lock(wants(c));
                lock.unlock(v3lockpb::UnlockRequest { key: held.key }).await.unwrap();
                assert_eq!(waiting.await.unwrap().into_inner().key, format!("l/{c:x}"));
                let none = lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: 4711 }).await;
                is(none, Code::NotFound, "etcdserver: requested lease not found");
            }
            .boxed(),
        );
    });
}

#[test]
fn a_lock_is_lost_with_its_lease() {
    let s = Servers::start(tokio());
    s.run(async {
        let channel = s.etcd_channel().await;
        let mut leases = LeaseClient::new(channel.clone());
        let mut lock = LockClient::new(channel);
        let short = leases.lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 0 }).await.unwrap().into_inner().id;
        let long = leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id;
        lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: short }).await.unwrap();
        let next = lock.lock(v3lockpb::LockRequest { name: "l".into(), lease: long }).await.unwrap().into_inner();
        assert_eq!(next.key, format!("l/{long:x}"));
    });
}

#[test]
fn elections_have_leaders() {
    let s = Servers::start(smol());
    s.run(async {
        let channel = s.etcd_channel().await;
        let mut leases = LeaseClient::new(channel.clone());
        let mut lease =
            async || leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id;
        let (a, b) = (lease().await, lease().await);
        let mut election = ElectionClient::new(channel);
        let name = || v3electionpb::LeaderRequest { name: "e".into() };
        is(election.leader(name()).await, Code::Unknown, "election: no leader");
        let mut observed = election.observe(name()).await.unwrap().into_inner();
        let campaign = |lease, value: &str| v3electionpb::CampaignRequest {
            name: "e".into(),
            lease,
            value: value.to_owned().into(),
        };
        let first = election.campaign(campaign(a, "one")).await.unwrap().into_inner().leader.unwrap();
        let value = async |observed: &mut Streaming<v3electionpb::LeaderResponse>| {
            observed.next().await.unwrap().unwrap().kv.unwrap().value
        };
        assert_eq!(value(&mut observed).await, "one");
        let proclaim = |leader: &v3electionpb::LeaderKey| v3electionpb::ProclaimRequest {
            leader: Some(leader.clone()),
            value: "more".into(),
        };
        election.proclaim(proclaim(&first)).await.unwrap();
        assert_eq!(value(&mut observed).await, "more");
        let mut other = election.clone();
        let second = other.campaign(campaign(b, "two"));
        election.resign(v3electionpb::ResignRequest { leader: Some(first.clone()) }).await.unwrap();
        let second = second.await.unwrap().into_inner().leader.unwrap();
        assert!(second.rev > first.rev);
        assert_eq!(value(&mut observed).await, "two");
        is(election.proclaim(proclaim(&first)).await, Code::Unknown, "election: not leader");
        // To resign twice is no harm to the one who leads now.
        election.resign(v3electionpb::ResignRequest { leader: Some(first) }).await.unwrap();
        assert_eq!(election.leader(name()).await.unwrap().into_inner().kv.unwrap().value, "two");
    });
}

#[test]
fn tokens_are_for_those_who_proved_themselves() {
    let s = Servers::start(tokio());
    s.run(async {
        let channel = s.etcd_channel().await;
        let mut auth = AuthClient::new(channel.clone());
        let login =
            |name: &str, password: &str| pb::AuthenticateRequest { name: name.into(), password: password.into() };
        is(
            auth.authenticate(login("root", "x")).await,
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled",
        );
        let add = |name: &str, password: &str| pb::AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        };
        auth.user_add(add("root", "secret")).await.unwrap();
        is(auth.user_add(add("", "x")).await, Code::InvalidArgument, "etcdserver: user name is empty");
        let mut hashed = add("eve", "");
        hashed.hashed_password = "$2a$10$abcdefghijklmnopqrstuv".into();
        assert_eq!(auth.user_add(hashed).await.unwrap_err().code(), Code::InvalidArgument);
        let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        let mut kv = KvClient::new(channel.clone());
        let with = |token: &str, request: pb::PutRequest| {
            let mut request = Request::new(request);
            request.metadata_mut().insert("token", token.parse().unwrap());
            request
        };
        is(kv.put(put("a", "1")).await, Code::InvalidArgument, "etcdserver: user name is empty");
        is(kv.put(with("made-up", put("a", "1"))).await, Code::Unauthenticated, "etcdserver: invalid auth token");
        let token = auth.authenticate(login("root", "secret")).await.unwrap().into_inner().token;
        kv.put(with(&token, put("a", "1"))).await.unwrap();
        // Any change of users makes it old, in the words at which clients log in anew.
        let mut second = Request::new(add("bob", "builder"));
        second.metadata_mut().insert("token", token.parse().unwrap());
        auth.user_add(second).await.unwrap();
        is(kv.put(with(&token, put("a", "1"))).await, Code::Unauthenticated, "etcdserver: invalid auth token");
        let token = auth.authenticate(login("bob", "builder")).await.unwrap().into_inner().token;
        is(kv.put(with(&token, put("a", "1"))).await, Code::PermissionDenied, "etcdserver: permission denied");
        // Bob has no business with the members, nor with a watch on what he may not read.
        let mut remove = Request::new(pb::MemberRemoveRequest { id: 1 });
        remove.metadata_mut().insert("token", token.parse().unwrap());
        let removed = ClusterClient::new(channel.clone()).member_remove(remove).await;
        is(removed, Code::PermissionDenied, "etcdserver: permission denied");
        let mut w = Watching::open(channel.clone()).await;
        w.create(watch("a")).await;
        let refused = w.next().await;
        assert!(refused.created && refused.canceled);
        assert_eq!(refused.cancel_reason, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty");
        let leases = LeaseClient::new(channel).lease_leases(pb::LeaseLeasesRequest {}).await;
        is(leases, Code::InvalidArgument, "etcdserver: user name is empty");
    });
}

#[test]
fn without_a_leader_it_says_so() {
    let s = Servers::start(smol());
    s.run(async {
        let channel = s.etcd_channel().await;
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("a", "1")).await.unwrap();
        let mut checks = health::health_client::HealthClient::new(channel.clone());
        let service = |name: &str| health::HealthCheckRequest { service: name.to_owned() };
        assert_eq!(checks.check(service("etcdserverpb.KV")).await.unwrap().into_inner().status, 1);
        assert_eq!(checks.check(service("nobody.Knows")).await.unwrap_err().code(), Code::NotFound);
        let mut news = checks.watch(service("")).await.unwrap().into_inner();
        assert_eq!(news.next().await.unwrap().unwrap().status, 1);
        s.plane.inner().leaderless.store(true, Ordering::SeqCst);
        is(kv.put(put("a", "2")).await, Code::Unavailable, "etcdserver: no leader");
        is(kv.range(get("a")).await, Code::Unavailable, "etcdserver: no leader");
        let local = pb::RangeRequest { serializable: true, ..get("a") };
        assert_eq!(kv.range(local.clone()).await.unwrap().into_inner().kvs[0].value, "1");
        let mut strict = Request::new(local);
        strict.metadata_mut().insert("hasleader", "true".parse().unwrap());
        is(kv.range(strict).await, Code::Unavailable, "etcdserver: no leader");
        let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.leader, 0);
        assert_eq!(checks.check(service("")).await.unwrap().into_inner().status, 2);
        assert_eq!(news.next().await.unwrap().unwrap().status, 2);
        let page = support::http(&s.rt, s.etcd.local_addr(), "GET", "/health", &[], "").await;
        assert_eq!((page.status, &page.json()["health"]), (503, &"false".into()));
        s.plane.inner().leaderless.store(false, Ordering::SeqCst);
        let page = support::http(&s.rt, s.etcd.local_addr(), "GET", "/health", &[], "").await;
        assert_eq!((page.status, &page.json()["health"]), (200, &"true".into()));
        let version = support::http(&s.rt, s.etcd.local_addr(), "GET", "/version", &[], "").await;
        assert_eq!(version.json()["etcdserver"], etcd::API_VERSION);
        let nothing = support::http(&s.rt, s.etcd.local_addr(), "GET", "/v2/keys", &[], "").await;
        assert_eq!(nothing.status, 404);
    });
}

#[test]
fn what_never_ends_is_given_up() {
    let etcd = etcd::Options { request: Duration::from_millis(100), ..etcd::Options::default() };
    let s = Servers::with(tokio(), Setup { etcd, ..Setup::default() });
    s.run(async {
        let mut kv = KvClient::new(s.etcd_channel().await);
        s.plane.inner().stuck.store(true, Ordering::SeqCst);
        assert_eq!(kv.put(put("a", "1")).await.unwrap_err().code(), Code::DeadlineExceeded);
        let mut short = Request::new(put("a", "1"));
        short.set_timeout(Duration::from_millis(1));
        assert_eq!(kv.put(short).await.unwrap_err().code(), Code::DeadlineExceeded);
        s.plane.inner().stuck.store(false, Ordering::SeqCst);
        kv.put(put("a", "1")).await.unwrap();
    });
}

#[test]
fn reflection_describes_what_is_served() {
    let s = Servers::start(smol());
    s.run(async {
        use reflection::server_reflection_request::MessageRequest as Ask;
        use reflection::server_reflection_response::MessageResponse as Told;
        let ask = async |channel: Channel, what: Ask| {
            let request = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(what) };
            let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
            let mut answers =
                client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
            answers.next().await.unwrap().unwrap().message_response.unwrap()
        };
        let list = async |channel: Channel| {
            let Told::ListServicesResponse(list) = ask(channel, Ask::ListServices(String::new())).await else {
                panic!()
            };
            list.service.into_iter().map(|s| s.name).collect::<BTreeSet<_>>()
        };
        let etcd = list(s.etcd_channel().await).await;
        let want = ["KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth"].map(|n| format!("etcdserverpb.{n}"));
        assert!(want.iter().all(|n| etcd.contains(n)), "{etcd:?}");
        assert!(etcd.contains("v3lockpb.Lock") && etcd.contains("grpc.health.v1.Health"));
        assert!(!etcd.contains("proto.DeCubeService"));
        assert!(list(s.grpc_channel().await).await.contains("proto.DeCubeService"));
        // From a method to the descriptions of everything it needs.
        use prost::Message;
        let mut wanted = vec![Ask::FileContainingSymbol("etcdserverpb.KV.Range".into())];
        let mut files = BTreeSet::new();
        while let Some(what) = wanted.pop() {
            let Told::FileDescriptorResponse(found) = ask(s.etcd_channel().await, what).await else { panic!() };
            for file in found.file_descriptor_proto {
                let file = prost_types::FileDescriptorProto::decode(file).unwrap();
                if files.insert(file.name().to_owned()) {
                    wanted.extend(file.dependency.into_iter().map(Ask::FileByFilename));
                }
            }
        }
        assert_eq!(files, BTreeSet::from(["etcd/rpc.proto", "etcd/kv.proto", "etcd/auth.proto"].map(String::from)));
        let unknown = ask(s.etcd_channel().await, Ask::FileContainingSymbol("no.Such".into())).await;
        assert!(matches!(unknown, Told::ErrorResponse(e) if e.error_code == Code::NotFound as i32));
    });
}

/// A certificate authority, and what it signs.
struct Authority {
    dir: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let dir = ice_testing::tempdir();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { dir, issuer: rcgen::Issuer::new(params, key) }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let (c, k) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&c, cert.pem()).unwrap();
        std::fs::write(&k, key.serialize_pem()).unwrap();
        (c, k)
    }
}

fn etcdctl(address: std::net::SocketAddr, files: &[(&str, &Path)], args: &[&str]) -> (bool, String) {
    let mut command = ice_testing::command("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{address}"));
    command.args(["--command-timeout=2s", "--dial-timeout=2s"]);
    for (name, path) in files {
        command.arg(format!("--{name}={}", path.display()));
    }
    let out = ice_testing::output(command.args(args));
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[test]
fn strangers_do_not_get_through_mutual_tls() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ((cert, key), (client, client_key)) = (ours.sign("server"), ours.sign("client"));
    let (strange, strange_key) = theirs.sign("client");
    let (ca, no_ca) = (ours.path("ca.pem"), ours.path("none.pem"));
    assert!(TlsServer::with_client_ca(&cert, &key, &no_ca).is_err());
    let tls = Some(TlsServer::with_client_ca(&cert, &key, &ca).unwrap());
    let s = Servers::with(tokio(), Setup { tls, ..Setup::default() });
    let at = s.etcd.local_addr();
    let known: &[(&str, &Path)] = &[("cacert", &ca), ("cert", &client), ("key", &client_key)];
    let (ok, said) = etcdctl(at, known, &["put", "a", "1"]);
    assert!(ok, "{said}");
    let (ok, said) = etcdctl(at, known, &["endpoint", "status"]);
    assert!(ok, "{said}");
    assert!(!etcdctl(at, &[("cacert", &ca)], &["put", "a", "2"]).0, "without a certificate");
    let stranger: &[(&str, &Path)] = &[("cacert", &ca), ("cert", &strange), ("key", &strange_key)];
    assert!(!etcdctl(at, stranger, &["put", "a", "2"]).0, "with a stranger's certificate");
    assert_eq!(s.plane.lock().store().get(b"a").unwrap().value, b"1");
    // Without a client's authority anybody may come who trusts ours.
    let tls = Some(TlsServer::from_files(&cert, &key).unwrap());
    let s = Servers::with(smol(), Setup { tls, ..Setup::default() });
    let (ok, said) = etcdctl(s.etcd.local_addr(), &[("cacert", &ca)], &["put", "a", "1"]);
    assert!(ok, "{said}");
    s.run(async {
        let trusting = TlsClient::from_file(Some(&theirs.path("ca.pem"))).unwrap();
        assert!(Channel::try_connect(&s.rt, s.etcd.local_addr(), Some(&trusting)).await.is_err());
    });
}

#[test]
fn connections_and_messages_have_limits() {
    let limits = listen::Limits { connections: 2, head: Duration::from_millis(200), ..listen::Limits::default() };
    let s = Servers::with(tokio(), Setup { limits, ..Setup::default() });
    s.run(async {
        let one = s.etcd_channel().await;
        let mut kv = KvClient::new(one);
        kv.put(put("a", "1")).await.unwrap();
        let two = s.etcd_channel().await;
        KvClient::new(two.clone()).put(put("a", "2")).await.unwrap();
        // A third one finds the door shut.
        let third = match Channel::try_connect(&s.rt, s.etcd.local_addr(), None).await {
            Ok(channel) => KvClient::new(channel).put(put("a", "3")).await.is_err(),
            Err(_) => true,
        };
        assert!(third);
        drop(two);
        let mut free = false;
        while !free {
            s.rt.sleep(Duration::from_millis(10)).await;
            free = match Channel::try_connect(&s.rt, s.etcd.local_addr(), None).await {
                Ok(channel) => KvClient::new(channel).put(put("a", "4")).await.is_ok(),
                Err(_) => false,
            };
        }
        // More than any request may have is not even read.
        assert!(kv.put(put("a", vec![0; 3 << 20])).await.is_err());
        kv.put(put("a", "5")).await.unwrap();
    });
    // Who says nothing is not waited for.
    use std::io::Read;
    let mut silent = std::net::TcpStream::connect(s.rest.local_addr()).unwrap();
    silent.set_read_timeout(Some(support::PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
}
