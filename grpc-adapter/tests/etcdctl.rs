//! Debian's `etcdctl` does its job.

mod support;

use ice_testing::{Process, command, output, until};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use support::plane::MEMBER;
use support::{Servers, smol, tokio};

fn etcdctl(address: SocketAddr) -> Command {
    let mut command = command("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{address}"));
    command
}

#[track_caller]
fn run(address: SocketAddr, args: &[&str]) -> String {
    let out = output(etcdctl(address).args(args));
    let (good, bad) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "etcdctl {args:?}: {good}{bad}");
    good
}

#[track_caller]
fn fails(address: SocketAddr, args: &[&str]) -> String {
    let out = output(etcdctl(address).args(args));
    assert!(!out.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A run with something to say on the input.
#[track_caller]
fn tell(address: SocketAddr, args: &[&str], input: &str) -> String {
    let dir = ice_testing::tempdir();
    let file = dir.path().join("input");
    std::fs::write(&file, input).unwrap();
    let mut command = etcdctl(address);
    command.args(args);
    // `output` sets the outputs only.
    command.stdin(std::fs::File::open(&file).unwrap());
    let out = output(&mut command);
    assert!(out.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A run that goes on, whose lines come as they come.
struct Running {
    process: Process,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(address: SocketAddr, args: &[&str]) -> Running {
        let process = Process::spawn(etcdctl(address).args(args).stdout(Stdio::piped()));
        let out = BufReader::new(process.stdout());
        let (tx, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Running { process, lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(support::PATIENCE).expect("another line")
    }
}

#[test]
fn keys_and_values() {
    let servers = Servers::start(tokio());
    let at = servers.etcd.local_addr();
    assert_eq!(run(at, &["put", "a", "1"]), "OK\n");
    assert_eq!(run(at, &["put", "--prev-kv", "a", "2"]), "OK\na\n1\n");
    run(at, &["put", "b", "3"]);
    run(at, &["put", "c", "4"]);
    assert_eq!(run(at, &["get", "a"]), "a\n2\n");
    assert_eq!(run(at, &["get", "--prefix", "", "--keys-only"]), "a\n\nb\n\nc\n\n");
    assert_eq!(run(at, &["get", "--from-key", "b", "--print-value-only"]), "3\n4\n");
    assert_eq!(run(at, &["get", "a", "c", "--order=DESCEND", "--print-value-only"]), "3\n2\n");
    assert_eq!(run(at, &["get", "--prefix", "", "--limit=1", "--sort-by=MODIFY", "--order=DESCEND"]), "c\n4\n");
    assert_eq!(run(at, &["get", "a", "--rev=2", "--print-value-only"]), "1\n");
    assert!(run(at, &["get", "--prefix", "", "--write-out=fields"]).contains("\"Count\" : 3"));
    assert_eq!(run(at, &["del", "--prev-kv", "a"]), "1\na\n2\n");
    assert_eq!(run(at, &["del", "--prefix", ""]), "2\n");
    assert!(fails(at, &["get", "a", "--rev=99"]).contains("etcdserver: mvcc: required revision is a future revision"));
    run(at, &["compaction", "5"]);
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    assert!(fails(at, &["get", "a", "--rev=2"]).contains(compacted));
    assert!(fails(at, &["compaction", "5"]).contains(compacted));
    assert!(fails(at, &["put", "--ignore-value", "nothing"]).contains("etcdserver: key not found"));
    let json = run(at, &["put", "x", "y", "--write-out=json"]);
    assert!(json.contains("\"cluster_id\":193,\"member_id\":17,\"revision\":8,\"raft_term\":2"), "{json}");
}

#[test]
fn transactions() {
    let servers = Servers::start(smol());
    let at = servers.etcd.local_addr();
    run(at, &["put", "n", "1"]);
    let txn = "value(\"n\") = \"1\"\nversion(\"n\") = \"1\"\n\nput n 2\nget n\n\nput n 0\n\n";
    assert_eq!(tell(at, &["txn"], txn), "SUCCESS\n\nOK\n\nn\n2\n");
    assert_eq!(tell(at, &["txn"], txn), "FAILURE\n\nOK\n");
    assert_eq!(run(at, &["get", "n", "--print-value-only"]), "0\n");
    let missing = "create(\"m\") = \"0\"\n\nput m 1\n\ndel m\n\n";
    assert_eq!(tell(at, &["txn"], missing), "SUCCESS\n\nOK\n");
    assert_eq!(tell(at, &["txn"], missing), "FAILURE\n\n1\n");
}

#[test]
fn watches() {
    let servers = Servers::start(tokio());
    let at = servers.etcd.local_addr();
    run(at, &["put", "w/a", "1"]);
    // From a past revision: what is there comes at once, so the watch stands for sure.
    let watch = Running::start(at, &["watch", "--prefix", "w/", "--rev=2", "--prev-kv"]);
    let three = || [watch.line(), watch.line(), watch.line()];
    assert_eq!(three(), ["PUT", "w/a", "1"]);
    run(at, &["put", "other", "x"]);
    run(at, &["put", "w/a", "2"]);
    // With what was there before.
    assert_eq!([watch.line(), watch.line(), watch.line()], ["PUT", "w/a", "1"]);
    assert_eq!([watch.line(), watch.line()], ["w/a", "2"]);
    run(at, &["del", "w/a"]);
    assert_eq!([watch.line(), watch.line(), watch.line()], ["DELETE", "w/a", "2"]);
    assert_eq!([watch.line(), watch.line()], ["w/a", ""]);
    watch.process.kill();
    run(at, &["compaction", "4"]);
    let late = output(etcdctl(at).args(["watch", "w/a", "--rev=2"]));
    let said = String::from_utf8_lossy(&late.stderr);
    assert!(said.contains("required revision has been compacted"), "{said}");
}

#[test]
fn leases() {
    let servers = Servers::start(smol());
    let at = servers.etcd.local_addr();
    let granted = run(at, &["lease", "grant", "300"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(300s)\n"));
    run(at, &["put", "--lease", &id, "mine", "1"]);
    let ttl = run(at, &["lease", "timetolive", &id, "--keys"]);
    assert!(ttl.contains("granted with TTL(300s)") && ttl.contains("attached keys([mine])"), "{ttl}");
    assert_eq!(run(at, &["lease", "keep-alive", "--once", &id]), format!("lease {id} keepalived with TTL(300)\n"));
    assert_eq!(run(at, &["lease", "list"]), format!("found 1 leases\n{id}\n"));
    assert_eq!(run(at, &["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(run(at, &["get", "mine"]), "");
    assert!(fails(at, &["lease", "revoke", &id]).contains("etcdserver: requested lease not found"));
    assert!(fails(at, &["put", "--lease", &id, "a", "b"]).contains("etcdserver: requested lease not found"));
    assert_eq!(run(at, &["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
    // One that nobody keeps alive ends by itself.
    let short = run(at, &["lease", "grant", "1"]);
    let id = short.split_whitespace().nth(1).unwrap();
    run(at, &["put", "--lease", id, "short", "1"]);
    until("the lease ends", || run(at, &["get", "short"]).is_empty());
}

#[test]
fn locks_and_elections() {
    let servers = Servers::start(tokio());
    let at = servers.etcd.local_addr();
    let first = Running::start(at, &["lock", "l"]);
    let key = first.line();
    assert!(key.starts_with("l/"), "{key}");
    let second = Running::start(at, &["lock", "l"]);
    until("the second waits in line", || run(at, &["get", "--prefix", "l/", "--keys-only"]).lines().count() == 4);
    assert!(second.lines.try_recv().is_err(), "two hold one lock");
    first.process.signal(rustix::process::Signal::TERM);
    first.process.wait();
    assert!(second.line().starts_with("l/"));
    // A command under the lock sees its key, and the lock is free again when it has ended.
    second.process.signal(rustix::process::Signal::TERM);
    second.process.wait();
    assert!(run(at, &["lock", "l", "--", "sh", "-c", "echo $ETCD_LOCK_KEY"]).starts_with("l/"));
    let candidate = Running::start(at, &["elect", "e", "me"]);
    assert!(candidate.line().starts_with("e/"));
    assert_eq!(candidate.line(), "me");
    let observer = Running::start(at, &["elect", "--listen", "e"]);
    assert!(observer.line().starts_with("e/"));
    assert_eq!(observer.line(), "me");
}

#[test]
fn members_and_maintenance() {
    let servers = Servers::start(smol());
    let at = servers.etcd.local_addr();
    let dir = ice_testing::tempdir();
    run(at, &["put", "a", "1"]);
    let health = output(etcdctl(at).args(["endpoint", "health"]));
    let health = String::from_utf8_lossy(&health.stdout).into_owned() + &String::from_utf8_lossy(&health.stderr);
    assert!(health.contains("is healthy"), "{health}");
    let status = run(at, &["endpoint", "status", "--write-out=fields"]);
    for want in
        ["\"MemberID\" : 17", "\"Leader\" : 17", "\"RaftTerm\" : 2", "\"IsLearner\" : false", "\"Version\" : \"3.5.0\""]
    {
        assert!(status.contains(want), "{want}: {status}");
    }
    assert!(run(at, &["endpoint", "hashkv"]).contains(", "));
    assert!(
        run(at, &["member", "list"])
            .starts_with("11, started, one, http://127.0.0.1:2380, http://127.0.0.1:2379, false")
    );
    let added = run(at, &["member", "add", "two", "--peer-urls=http://10.0.0.2:2380", "--learner"]);
    assert!(added.contains("added to cluster"), "{added}");
    let id = added.split_whitespace().nth(1).unwrap().to_owned();
    assert!(run(at, &["member", "promote", &id]).contains("promoted"));
    assert!(fails(at, &["member", "promote", &id]).contains("can only promote a learner member"));
    assert!(run(at, &["member", "update", &id, "--peer-urls=http://10.0.0.3:2380"]).contains("updated"));
    run(at, &["move-leader", &id]);
    assert_eq!(servers.plane.lock().moved_to(), Some(u64::from_str_radix(&id, 16).unwrap()));
    assert!(run(at, &["member", "remove", &id]).contains("removed"));
    assert!(fails(at, &["member", "remove", "5"]).contains("etcdserver: member not found"));
    let file = dir.path().join("snap.db");
    run(at, &["snapshot", "save", file.to_str().unwrap()]);
    let want = ice_core::wire::encode(servers.plane.lock().store());
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(ice_grpc::etcd::snapshot::contents(&kept), Some(&want[..]));
    assert!(run(at, &["defrag"]).contains("Finished defragmenting"));
    assert_eq!(run(at, &["alarm", "list"]), "");
    let raise = ice_core::kv::command::Action::Alarm {
        kind: ice_core::kv::command::AlarmKind::NoSpace,
        member: MEMBER,
        raise: true,
    };
    use ice_host::control::ControlPlane;
    servers.run(servers.plane.propose(ice_core::kv::command::Command::node(raise))).unwrap();
    assert_eq!(run(at, &["alarm", "list"]), "memberID:17 alarm:NOSPACE \n");
    assert!(fails(at, &["put", "a", "2"]).contains("etcdserver: mvcc: database space exceeded"));
    assert_eq!(run(at, &["alarm", "disarm"]), "memberID:17 alarm:NOSPACE \n");
    run(at, &["put", "a", "2"]);
}

#[test]
fn users_and_roles() {
    let servers = Servers::start(tokio());
    let at = servers.etcd.local_addr();
    assert!(fails(at, &["auth", "enable"]).contains("etcdserver: root user does not exist"));
    run(at, &["user", "add", "root:secret"]);
    run(at, &["user", "add", "alice:wonder"]);
    assert!(fails(at, &["user", "add", "alice:again"]).contains("etcdserver: user name already exists"));
    run(at, &["role", "add", "reader"]);
    run(at, &["role", "grant-permission", "reader", "--prefix=true", "read", "pub/"]);
    assert!(run(at, &["role", "get", "reader"]).contains("[pub/, pub0) (prefix pub/)"));
    run(at, &["user", "grant-role", "alice", "reader"]);
    run(at, &["put", "pub/a", "1"]);
    assert_eq!(run(at, &["auth", "enable"]), "Authentication Enabled\n");
    assert!(fails(at, &["get", "pub/a"]).contains("etcdserver: user name is empty"));
    assert!(fails(at, &["--user=alice:wrong", "get", "pub/a"]).contains("etcdserver: authentication failed"));
    assert!(fails(at, &["--user=nobody:wrong", "get", "pub/a"]).contains("etcdserver: authentication failed"));
    assert_eq!(run(at, &["--user=alice:wonder", "get", "pub/a"]), "pub/a\n1\n");
    let denied = "etcdserver: permission denied";
    assert!(fails(at, &["--user=alice:wonder", "get", "private"]).contains(denied));
    assert!(fails(at, &["--user=alice:wonder", "put", "pub/a", "2"]).contains(denied));
    assert!(fails(at, &["--user=alice:wonder", "user", "list"]).contains(denied));
    assert!(fails(at, &["--user=alice:wonder", "snapshot", "save", "/dev/null/x"]).contains("not a directory"));
    assert!(fails(at, &["--user=alice:wonder", "defrag"]).contains(denied));
    assert!(
        fails(at, &["--user=alice:wonder", "member", "add", "x", "--peer-urls=http://10.0.0.2:1"]).contains(denied)
    );
    assert_eq!(run(at, &["--user=root:secret", "user", "list"]), "alice\nroot\n");
    assert!(run(at, &["--user=alice:wonder", "user", "get", "alice"]).contains("Roles: reader"));
    assert!(run(at, &["--user=root:secret", "put", "private", "1"]).contains("OK"));
    assert!(
        tell(at, &["--user=root:secret", "user", "passwd", "--interactive=false", "alice"], "x\n").contains("updated")
    );
    assert_eq!(run(at, &["--user=alice:x", "get", "pub/a"]), "pub/a\n1\n");
    assert_eq!(run(at, &["--user=root:secret", "auth", "disable"]), "Authentication Disabled\n");
    assert_eq!(run(at, &["get", "private"]), "private\n1\n");
}
