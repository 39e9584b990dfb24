//! The routes of named locks, on real sockets and both runtimes, over a control plane in memory.

#[path = "../../grpc-adapter/tests/support/plane.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod plane;
mod support;

use ice_host::locks::{LockService, Locking, Options};
use ice_host::runtime::Runtime;
use plane::Plane;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::client::{Answer, get, request};
use support::{Node, PATIENCE, Setup};

/// What is different from the ordinary.
#[derive(Clone, Copy)]
struct Rules {
    timeout: Duration,
    on_write: bool,
    delete_while_locked: bool,
}

const USUAL: Rules = Rules { timeout: PATIENCE, on_write: false, delete_while_locked: false };

fn locking<R: Runtime>(rt: &R, plane: Arc<Plane>, rules: Rules) -> Locking {
    let node = ice_host::control::ControlPlane::name(&*plane);
    let options = Options { node, timeout: rules.timeout, retry: Duration::from_millis(20) };
    let locks = Arc::new(LockService::new(plane, rt.clone(), options));
    Locking { locks, on_write: rules.on_write, delete_while_locked: rules.delete_while_locked }
}

fn with<R: Runtime>(rt: R, plane: Arc<Plane>, rules: Rules) -> Node<R> {
    let locking = Some(locking(&rt, plane, rules));
    Node::start(rt, Setup { locking, ..Setup::default() })
}

fn post(at: SocketAddr, target: &str) -> Answer {
    request(at, "POST", target, &[], &[])
}

fn token(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 204, "{}", answer.text());
    answer.header("fencing-token").unwrap().parse().unwrap()
}

fn locks(at: SocketAddr) -> Vec<Value> {
    let answer = get(at, "/v1/locks");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json().as_array().unwrap().clone()
}

/// Paths and holders.
fn held(at: SocketAddr) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    locks(at).iter().map(|l| (text(&l["path"]), text(&l["holder"]))).collect()
}

fn pair(path: &str, holder: &str) -> (String, String) {
    (path.into(), holder.into())
}

fn locks_come_and_go<R: Runtime>(rt: R) {
    let mut node = with(rt, Plane::new(), USUAL);
    let at = node.address;
    assert_eq!(get(at, "/v1/locks").json(), json!([]));
    let first = post(at, "/v1/lock?path=/b/no%20such%20file&holder=h1");
    let (fence, since) = (token(&first), first.header("lock-since").unwrap().to_owned());
    assert_eq!(first.body, b"");
    assert!(ice_host::time::parse_rfc3339(&since).is_some(), "{since}");
    std::thread::sleep(Duration::from_millis(5));
    // The same holder: as often as he likes, and nothing changes by it.
    let again = post(at, "/v1/lock?path=/b/no%20such%20file&holder=h1");
    assert_eq!((token(&again), again.header("lock-since")), (fence, Some(&*since)));
    let refused = post(at, "/v1/lock?path=/b/no%20such%20file&holder=h2");
    assert_eq!((refused.status, refused.json()["message"].as_str()), (409, Some("locked by another holder")));
    assert!(token(&post(at, "/v1/lock?path=/a&holder=h2")) > fence);
    let list = locks(at);
    assert_eq!(held(at), [pair("/a", "h2"), pair("/b/no such file", "h1")], "by path");
    assert_eq!((list[1]["since"].as_str(), list[1]["token"].as_u64()), (Some(&*since), Some(fence)));
    assert!(list[1].get("ttl").is_none());
    // Nobody else gives it back.
    let refused = post(at, "/v1/unlock?path=/a&holder=h1");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (409, Some("locked")));
    assert_eq!(held(at).len(), 2);
    for _ in 0..2 {
        assert_eq!(post(at, "/v1/unlock?path=/a&holder=h2").status, 204, "also if nobody has it");
    }
    assert_eq!(request(at, "DELETE", "/v1/unlock?path=/b/no%20such%20file&holder=h1", &[], &[]).status, 204);
    assert_eq!(held(at), []);
    node.stop();
}

fn requests_are_checked<R: Runtime>(rt: R) {
    let mut node = with(rt, Plane::new(), USUAL);
    let at = node.address;
    for (target, code) in [
        ("/v1/lock?holder=h", "missing_path"),
        ("/v1/lock?path=&holder=h", "missing_path"),
        ("/v1/lock?path=a", "missing_holder"),
        ("/v1/lock?path=a&holder=", "missing_holder"),
        ("/v1/lock?path=a&holder=%ff", "missing_holder"),
        ("/v1/lock?path=a/../b&holder=h", "invalid_path"),
        ("/v1/lock?path=a%00&holder=h", "invalid_path"),
        ("/v1/lock?path=a&holder=h&ttl=5", "invalid_duration"),
        ("/v1/lock?path=a&holder=h&ttl=-5s", "invalid_duration"),
        ("/v1/lock?path=a&holder=h&wait=2h", "invalid_duration"),
        ("/v1/unlock?path=a", "missing_holder"),
        ("/v1/unlock?holder=a", "missing_path"),
        ("/v1/locks/release_by_holder", "missing_holder"),
    ] {
        let answer = post(at, target);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some(code)), "{target}");
    }
    let long = format!("/v1/lock?path=a&holder={}", "h".repeat(5000));
    assert_eq!(post(at, &long).json()["error"], "invalid_holder");
    for target in ["/v1/lock?path=a&holder=h", "/v1/unlock?path=a&holder=h", "/v1/locks/release_by_holder?holder=h"] {
        assert_eq!(get(at, target).status, 405, "reading changes nothing: {target}");
    }
    assert_eq!(post(at, "/v1/locks").status, 405);
    assert_eq!(held(at), []);
    // Names need not be text.
    token(&post(at, "/v1/lock?path=%ff&holder=h"));
    assert_eq!(locks(at)[0]["raw"], "%2F%FF");
    node.stop();
}

fn without_a_control_plane_there_are_none<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let at = node.address;
    for (method, target) in [
        ("POST", "/v1/lock?path=a&holder=h"),
        ("POST", "/v1/unlock?path=a&holder=h"),
        ("POST", "/v1/locks/release_by_holder?holder=h"),
        ("GET", "/v1/locks"),
    ] {
        let answer = request(at, method, target, &[], &[]);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("no_control_plane")), "{target}");
        assert!(answer.json()["message"].as_str().unwrap().contains("control plane"));
    }
    node.stop();
}

fn the_token_is_needed<R: Runtime>(rt: R) {
    let locking = Some(locking(&rt, Plane::new(), USUAL));
    let mut node = Node::start(rt, Setup { locking, token: Some("secret"), ..Setup::default() });
    let at = node.address;
    for target in ["/v1/lock?path=a&holder=h", "/v1/unlock?path=a&holder=h", "/v1/locks/release_by_holder?holder=h"] {
        assert_eq!(post(at, target).status, 401, "{target}");
        let known = request(at, "POST", target, &[("Authorization", "Bearer secret")], &[]);
        assert!(known.status < 300, "{target}: {}", known.text());
    }
    assert_eq!(get(at, "/v1/locks").status, 401);
    node.stop();
}

fn a_holder_is_released_of_everything<R: Runtime>(rt: R) {
    let mut node = with(rt, Plane::new(), USUAL);
    let at = node.address;
    for (path, holder) in [("a", "h1"), ("b", "h2"), ("c", "h1")] {
        token(&post(at, &format!("/v1/lock?path={path}&holder={holder}")));
    }
    assert_eq!(post(at, "/v1/locks/release_by_holder?holder=h1").json(), json!({"released": 2}));
    assert_eq!(post(at, "/v1/locks/release_by_holder?holder=h1").json(), json!({"released": 0}));
    assert_eq!(held(at), [pair("/b", "h2")]);
    node.stop();
}

fn who_waits_is_served_in_turn<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut node = with(rt, plane.clone(), USUAL);
    let at = node.address;
    let mut fence = token(&post(at, "/v1/lock?path=a&holder=h0"));
    std::thread::scope(|s| {
        let mut waiting = vec![];
        for n in 1..=3 {
            // `wait` without a length is `lock_timeout`.
            let wait = if n == 2 { "wait".into() } else { format!("wait={}s", PATIENCE.as_secs()) };
            waiting.push(s.spawn(move || post(at, &format!("/v1/lock?path=a&holder=h{n}&{wait}"))));
            ice_testing::until("it waits", || locks(at)[0]["waiting"] == n);
        }
        for (n, waits) in waiting.into_iter().enumerate() {
            assert!(!waits.is_finished());
            assert_eq!(post(at, &format!("/v1/unlock?path=a&holder=h{n}")).status, 204);
            let next = token(&waits.join().unwrap());
            assert!(next > fence, "{next} after {fence}");
            fence = next;
            assert_eq!(held(at), [pair("/a", &format!("h{}", n + 1))]);
        }
    });
    // Patience has its end, and leaves nothing behind.
    let start = Instant::now();
    let refused = post(at, "/v1/lock?path=a&holder=h4&wait=100ms");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (409, Some("locked")));
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(plane.lock().store().locks().waiting(), 0);
    node.stop();
}

fn a_time_to_live_ends<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut node = with(rt, plane.clone(), USUAL);
    let at = node.address;
    let leases = || plane.lock().store().leases().count();
    let renewed = || plane.inner().keep_alives.load(Ordering::SeqCst);
    let fence = token(&post(at, "/v1/lock?path=a&holder=h1&ttl=3599500ms"));
    assert_eq!(locks(at)[0]["ttl"], "1h0m0s", "in whole seconds");
    // Asked for again it lives on, as the same lock.
    assert_eq!(renewed(), 0);
    assert_eq!(token(&post(at, "/v1/lock?path=a&holder=h1&ttl=1h")), fence);
    assert_eq!((renewed(), leases()), (1, 1));
    // With another time, or without one, it is the same lock, too.
    assert_eq!(token(&post(at, "/v1/lock?path=a&holder=h1&ttl=2h")), fence);
    assert_eq!(locks(at)[0]["ttl"], "2h0m0s");
    assert_eq!(token(&post(at, "/v1/lock?path=a&holder=h1")), fence);
    assert!(locks(at)[0].get("ttl").is_none());
    assert_eq!(post(at, "/v1/unlock?path=a&holder=h1").status, 204);
    // What is given back takes its lease along.
    let before = leases();
    token(&post(at, "/v1/lock?path=b&holder=h1&ttl=1h"));
    assert_eq!(post(at, "/v1/unlock?path=b&holder=h1").status, 204);
    ice_testing::until("its lease has ended", || leases() == before);
    // Nobody asks again.
    token(&post(at, "/v1/lock?path=c&holder=h1&ttl=1s"));
    ice_testing::until("it has ended", || held(at).is_empty());
    // Who waits does not lose his time by that.
    token(&post(at, "/v1/lock?path=d&holder=h1"));
    let before = renewed();
    let target = format!("/v1/lock?path=d&holder=h2&ttl=10s&wait={}s", PATIENCE.as_secs());
    let waits = std::thread::spawn(move || post(at, &target));
    ice_testing::until("its lease is renewed", || renewed() > before);
    assert_eq!(post(at, "/v1/unlock?path=d&holder=h1").status, 204);
    token(&waits.join().unwrap());
    // And whose wait is over leaves no lease behind.
    let before = leases();
    assert_eq!(post(at, "/v1/lock?path=d&holder=h3&ttl=1h&wait=50ms").status, 409);
    assert_eq!(post(at, "/v1/lock?path=d&holder=h3&ttl=1h").status, 409);
    ice_testing::until("its lease has ended", || leases() <= before);
    node.stop();
}

fn a_leader_is_waited_for<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut node = with(rt.clone(), plane.clone(), USUAL);
    let mut hasty = with(rt, plane.clone(), Rules { timeout: Duration::ZERO, ..USUAL });
    plane.inner().leaderless.store(true, Ordering::SeqCst);
    let (at, hasty_at) = (node.address, hasty.address);
    for target in ["/v1/lock?path=a&holder=h", "/v1/unlock?path=a&holder=h", "/v1/locks/release_by_holder?holder=h"] {
        let answer = post(hasty_at, target);
        assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("no_control_plane")), "{target}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(get(hasty_at, "/v1/locks").status, 503);
    let waits = std::thread::spawn(move || post(at, "/v1/lock?path=a&holder=h"));
    std::thread::sleep(Duration::from_millis(60));
    assert!(!waits.is_finished());
    plane.inner().leaderless.store(false, Ordering::SeqCst);
    token(&waits.join().unwrap());
    node.stop();
    hasty.stop();
}

fn the_list_comes_in_portions<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut node = with(rt, plane.clone(), USUAL);
    let at = node.address;
    for n in 0..2000 {
        plane.take_named(&format!("/{n:04}"), "h");
    }
    let list = held(at);
    assert_eq!(list.len(), 2000);
    assert!(list.is_sorted() && list[0].0 == "/0000" && list[1999].0 == "/1999");
    node.stop();
}

fn deleting_what_is_locked<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut node = with(rt.clone(), plane.clone(), USUAL);
    let mut lax = with(rt, plane, Rules { delete_while_locked: true, ..USUAL });
    let at = node.address;
    for at in [at, lax.address] {
        assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"x").status, 204);
        assert_eq!(request(at, "PUT", "/v1/file?path=b", &[], b"x").status, 204);
    }
    token(&post(at, "/v1/lock?path=a&holder=somebody"));
    let refused = request(at, "DELETE", "/v1/file?path=/a", &[], &[]);
    assert_eq!((refused.status, refused.json()["error"].as_str()), (409, Some("locked")));
    assert_eq!(get(at, "/v1/file?path=a").status, 200);
    assert_eq!(request(at, "DELETE", "/v1/file?path=b", &[], &[]).status, 204, "nobody has locked that");
    assert_eq!(request(lax.address, "DELETE", "/v1/file?path=a", &[], &[]).status, 204, "allowed there");
    post(at, "/v1/unlock?path=a&holder=somebody");
    // The node's own locks are no obstacle to what is done on it.
    token(&post(at, "/v1/lock?path=a&holder=one"));
    assert_eq!(request(at, "DELETE", "/v1/file?path=a", &[], &[]).status, 204);
    node.stop();
    lax.stop();
}

fn one_writer_at_a_time<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let rules = Rules { on_write: true, timeout: Duration::from_millis(100), ..USUAL };
    let mut node = with(rt, plane.clone(), rules);
    let at = node.address;
    assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"x").status, 204);
    ice_testing::until("given back", || held(at).is_empty());
    token(&post(at, "/v1/lock?path=a&holder=two"));
    let refused = request(at, "PUT", "/v1/file?path=a", &[], b"y");
    assert_eq!((refused.status, refused.json()["error"].as_str()), (409, Some("locked")));
    assert_eq!(get(at, "/v1/file?path=a").text(), "x");
    post(at, "/v1/unlock?path=a&holder=two");
    assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"y").status, 204);
    node.stop();
}

/// The original had `a` and `/a` as two locks, and each place of its code looked at another one.
fn fault_09_a_path_has_one_lock_whoever_asks<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let rules = Rules { on_write: true, timeout: Duration::from_millis(50), ..USUAL };
    let mut node = with(rt.clone(), plane.clone(), rules);
    let mut other = with(rt, plane.beside(1), rules);
    let at = node.address;
    token(&post(at, "/v1/lock?path=d/a.txt&holder=h1"));
    for same in ["/d/a.txt", "d//a.txt", "./d/a.txt", "/d/./a.txt/", "%2Fd%2Fa.txt"] {
        for at in [at, other.address] {
            assert_eq!(post(at, &format!("/v1/lock?path={same}&holder=h2")).status, 409, "{same}");
            assert_eq!(request(at, "PUT", &format!("/v1/file?path={same}"), &[], b"x").status, 409, "{same}");
            assert_eq!(request(at, "DELETE", &format!("/v1/file?path={same}"), &[], b"x").status, 409, "{same}");
        }
    }
    assert_eq!(held(other.address), [pair("/d/a.txt", "h1")]);
    assert_eq!(post(other.address, "/v1/unlock?path=/d/a.txt&holder=h1").status, 204);
    assert_eq!(held(at), []);
    node.stop();
    other.stop();
}

/// The original forgot all locks with its coordinator, had two coordinators at times, and leaked what a leaving node held.
fn fault_10_locks_outlive_the_node_they_were_taken_through_and_end_with_their_holder<R: Runtime>(rt: R) {
    let plane = Plane::new();
    let mut nodes: Vec<_> = (0..3).map(|n| with(rt.clone(), plane.beside(n), USUAL)).collect();
    let at: Vec<SocketAddr> = nodes.iter().map(|n| n.address).collect();
    let fence = token(&post(at[0], "/v1/lock?path=a&holder=script"));
    token(&post(at[0], "/v1/lock?path=b&holder=one"));
    token(&post(at[0], "/v1/lock?path=c&holder=three"));
    // At most one is granted, wherever it is asked for.
    let answers: Vec<u16> = std::thread::scope(|s| {
        let at = &at;
        let ask = |n: usize| s.spawn(move || post(at[n % 3], &format!("/v1/lock?path=d&holder=h{n}")).status);
        (0..9).map(ask).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|s| **s == 204).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|s| **s == 409).count(), 8, "{answers:?}");
    // The node through which they came is declared down: what its own name holds goes, and nothing else.
    nodes[0].stop();
    plane.ends(0);
    let names = |at| held(at).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(names(at[1]), ["/a", "/c", "/d"]);
    plane.ends(2);
    assert_eq!(names(at[1]), ["/a", "/d"]);
    // Others may have it now, and their token is higher.
    assert!(token(&post(at[1], "/v1/lock?path=b&holder=two")) > fence);
    assert_eq!(post(at[1], "/v1/unlock?path=a&holder=script").status, 204);
    nodes.iter_mut().skip(1).for_each(Node::stop);
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod tokio {
            $(#[test] fn $name() { super::$name(ice_tokio::Tokio::new(2).unwrap()); })*
        }
        mod smol {
            $(#[test] fn $name() { super::$name(ice_smol::Smol::new(2).unwrap()); })*
        }
    };
}
suite!(
    locks_come_and_go,
    requests_are_checked,
    without_a_control_plane_there_are_none,
    the_token_is_needed,
    a_holder_is_released_of_everything,
    who_waits_is_served_in_turn,
    a_time_to_live_ends,
    a_leader_is_waited_for,
    the_list_comes_in_portions,
    deleting_what_is_locked,
    one_writer_at_a_time,
    fault_09_a_path_has_one_lock_whoever_asks,
    fault_10_locks_outlive_the_node_they_were_taken_through_and_end_with_their_holder,
);
