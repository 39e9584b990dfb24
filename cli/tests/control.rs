//! The control plane of real nodes: Debian's `etcdctl`, and DeCube's REST, against clusters of processes.

mod cluster;

use cluster::{Answer, Cluster, Node, PATIENCE, free_port, request};
use ice_testing::{Process, output, until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// A cluster whose nodes have all three listeners.
struct Control {
    c: Cluster,
    etcd: Vec<u16>,
    rest: Vec<u16>,
}

fn sections(etcd: u16, rest: u16, grpc: u16) -> String {
    format!(
        "node: {{listen_address: '127.0.0.1:{etcd}'}}\n\
         api: {{rest: {{enabled: true, address: '127.0.0.1:{rest}'}}, grpc: {{address: '127.0.0.1:{grpc}'}}}}\n"
    )
}

impl Control {
    /// Not started yet. `extra` are further lines of each configuration.
    fn prepare(n: usize, extra: &str) -> Control {
        let mut c = Cluster::prepare(n, &format!("mount: ''\n{extra}"));
        let ports = || (0..n).map(|_| free_port()).collect::<Vec<_>>();
        let (etcd, rest, grpc) = (ports(), ports(), ports());
        for (i, node) in c.nodes.iter_mut().enumerate() {
            node.set_extra(&format!("mount: ''\n{}{extra}", sections(etcd[i], rest[i], grpc[i])));
        }
        Control { c, etcd, rest }
    }

    /// Started, and all are voters.
    fn start(n: usize) -> Control {
        let mut control = Control::prepare(n, "");
        for node in &mut control.c.nodes {
            node.spawn();
        }
        control.c.nodes.iter().for_each(Node::wait_ready);
        control.wait_voters(0, n);
        control
    }

    fn endpoint(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.etcd[i])
    }

    /// `etcdctl` for the node `i`.
    fn ctl(&self, i: usize, args: &[&str]) -> Output {
        output(etcdctl(&self.endpoint(i)).args(args))
    }

    #[track_caller]
    fn run(&self, i: usize, args: &[&str]) -> String {
        good(&self.ctl(i, args), args)
    }

    /// The same, as soon as it is possible.
    #[track_caller]
    fn soon(&self, i: usize, args: &[&str]) -> String {
        let mut last = None;
        let what = format!("etcdctl {args:?} at n{}", i + 1);
        until(&what, || {
            let out = self.ctl(i, args);
            let done = out.status.success();
            last = Some(out);
            done
        });
        good(&last.expect("it ran"), args)
    }

    /// What the node knows without asking anybody.
    fn local(&self, i: usize, key: &str) -> String {
        let out = self.ctl(i, &["get", "--consistency=s", "--print-value-only", key]);
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    fn status(&self, i: usize) -> Value {
        let out = self.ctl(i, &["endpoint", "status", "--write-out=json"]);
        serde_json::from_slice::<Value>(&out.stdout).map_or(Value::Null, |v| v[0]["Status"].clone())
    }

    /// Which node leads, as the node `i` sees it.
    fn leader(&self, i: usize) -> Option<usize> {
        let leader = self.status(i)["leader"].as_u64().filter(|l| *l != 0)?;
        let members = self.ctl(i, &["member", "list"]);
        let members = String::from_utf8_lossy(&members.stdout).into_owned();
        let line = members.lines().find(|l| l.starts_with(&format!("{leader:x},")))?;
        self.c.nodes.iter().position(|n| line.contains(&format!(" {},", n.name)))
    }

    fn wait_voters(&self, at: usize, n: usize) {
        let voters = |list: &str| {
            list.lines().count() == n && list.lines().all(|l| l.contains(" started,") && l.ends_with(", false"))
        };
        let list = || String::from_utf8_lossy(&self.ctl(at, &["member", "list"]).stdout).into_owned();
        self.c.nodes[at].wait(&format!("one of {n} voters"), |_| voters(&list()));
    }

    fn http(&self, i: usize, method: &str, path: &str, body: &str) -> Answer {
        request(self.rest[i], "", method, path, &[], body.as_bytes()).expect("an answer")
    }
}

fn etcdctl(endpoints: &str) -> Command {
    let mut command = ice_testing::command("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}"));
    command
}

#[track_caller]
fn good(out: &Output, args: &[&str]) -> String {
    let (said, bad) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "etcdctl {args:?}: {said}{bad}");
    said
}

/// A run that goes on, whose lines come as they come.
struct Running {
    process: Process,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let process = Process::spawn(command.stdout(Stdio::piped()));
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
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }

    fn end(self) {
        self.process.signal(Signal::TERM);
        self.process.wait();
    }
}

#[test]
fn etcdctl_does_its_job_against_three_nodes() {
    let control = Control::start(3);
    // Whatever is asked of one node is true on the others.
    assert_eq!(control.run(0, &["put", "a", "1"]), "OK\n");
    assert_eq!(control.run(1, &["put", "--prev-kv", "a", "2"]), "OK\na\n1\n");
    assert_eq!(control.run(2, &["get", "a"]), "a\n2\n");
    assert_eq!(control.run(2, &["get", "a", "--rev=2", "--print-value-only"]), "1\n");
    let watch = Running::start(etcdctl(&control.endpoint(2)).args(["watch", "--prefix", "w/", "--rev=1"]));
    control.run(0, &["put", "w/x", "new"]);
    assert_eq!([watch.line(), watch.line(), watch.line()], ["PUT", "w/x", "new"]);
    assert_eq!(control.run(1, &["del", "--prev-kv", "w/x"]), "1\nw/x\nnew\n");
    assert_eq!([watch.line(), watch.line()], ["DELETE", "w/x"]);
    watch.end();

    let dir = ice_testing::tempdir();
    let input = dir.path().join("txn");
    fs::write(&input, "value(\"a\") = \"2\"\n\nput a 3\n\nput a 0\n\n").expect("write");
    let txn = || {
        let mut command = etcdctl(&control.endpoint(1));
        command.arg("txn").stdin(fs::File::open(&input).expect("open"));
        good(&output(&mut command), &["txn"])
    };
    assert_eq!(txn(), "SUCCESS\n\nOK\n");
    assert_eq!(txn(), "FAILURE\n\nOK\n");

    let granted = control.run(0, &["lease", "grant", "300"]);
    let lease = granted.split_whitespace().nth(1).expect("an id").to_owned();
    control.run(1, &["put", "--lease", &lease, "mine", "1"]);
    let left = control.run(2, &["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(300s)") && left.contains("attached keys([mine])"), "{left}");
    assert!(control.run(2, &["lease", "keep-alive", "--once", &lease]).contains("keepalived with TTL(300)"));
    assert!(control.run(1, &["lease", "list"]).contains(&lease));
    control.run(1, &["lease", "revoke", &lease]);
    assert_eq!(control.run(2, &["get", "mine"]), "");
    let short = control.run(2, &["lease", "grant", "5"]);
    control.run(0, &["put", "--lease", short.split_whitespace().nth(1).expect("an id"), "short", "1"]);
    until("a lease ends by itself", || control.run(1, &["get", "short"]).is_empty());

    // A lock excludes whoever asks another node, and passes on when its holder goes.
    let first = Running::start(etcdctl(&control.endpoint(0)).args(["lock", "l"]));
    assert!(first.line().starts_with("l/"));
    let second = Running::start(etcdctl(&control.endpoint(1)).args(["lock", "l"]));
    let waiting = || control.run(2, &["get", "--prefix", "l/", "--keys-only"]).lines().count() == 4;
    until("the second waits in line", waiting);
    assert!(second.lines.try_recv().is_err(), "two hold one lock");
    first.end();
    assert!(second.line().starts_with("l/"));
    second.end();
    let candidate = Running::start(etcdctl(&control.endpoint(2)).args(["elect", "e", "me"]));
    assert!(candidate.line().starts_with("e/"));
    assert_eq!(candidate.line(), "me");
    let observer = Running::start(etcdctl(&control.endpoint(0)).args(["elect", "--listen", "e"]));
    assert!(observer.line().starts_with("e/"));
    assert_eq!(observer.line(), "me");
    observer.end();
    candidate.end();

    for i in 0..3 {
        let health = control.ctl(i, &["endpoint", "health"]);
        let said = [health.stdout, health.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains("is healthy"), "{}", String::from_utf8_lossy(&said));
        let members = control.run(i, &["member", "list"]);
        for n in &control.c.nodes {
            let at = control.c.nodes.iter().position(|m| m.name == n.name).expect("one of them");
            let line = format!("started, {}, {}, {}, false", n.name, n.url(), control.endpoint(at));
            assert!(members.contains(&line), "{line}: {members}");
        }
    }
    let leader = control.leader(0).expect("a leader");
    let next = (leader + 1) % 3;
    let id = control.status(next)["header"]["member_id"].as_u64().expect("an id");
    control.run(leader, &["move-leader", &format!("{id:x}")]);
    until("another leads", || (0..3).all(|i| control.leader(i) == Some(next)));
    control.run(leader, &["put", "a", "4"]);

    control.run(1, &["compaction", "3"]);
    let old = control.ctl(2, &["get", "a", "--rev=2"]);
    assert!(String::from_utf8_lossy(&old.stderr).contains("required revision has been compacted"));
    let file = dir.path().join("snapshot");
    control.run(0, &["snapshot", "save", file.to_str().expect("a path")]);
    let bytes = fs::read(&file).expect("read");
    let mut inside = ice_grpc::etcd::snapshot::contents(&bytes).expect("a whole snapshot");
    let store = ice_host::plane::load(&mut inside).expect("a store");
    assert_eq!(store.get(b"a").map(|kv| kv.value.to_vec()), Some(b"4".to_vec()));

    control.run(0, &["user", "add", "root:secret"]);
    control.run(1, &["user", "add", "alice:wonder"]);
    control.run(2, &["role", "add", "reader"]);
    control.run(0, &["role", "grant-permission", "reader", "--prefix=true", "read", "pub/"]);
    control.run(1, &["user", "grant-role", "alice", "reader"]);
    control.run(2, &["put", "pub/a", "1"]);
    assert_eq!(control.run(0, &["auth", "enable"]), "Authentication Enabled\n");
    assert!(!control.ctl(1, &["get", "pub/a"]).status.success());
    assert_eq!(control.run(2, &["--user=alice:wonder", "get", "pub/a"]), "pub/a\n1\n");
    assert!(!control.ctl(1, &["--user=alice:wonder", "put", "pub/a", "2"]).status.success());
    assert_eq!(control.run(1, &["--user=root:secret", "auth", "disable"]), "Authentication Disabled\n");
    control.run(2, &["put", "pub/a", "2"]);
}

#[test]
fn the_death_of_the_leader_and_of_all_costs_nothing_that_was_acknowledged() {
    let mut control = Control::start(3);
    for i in 0..30 {
        control.run(i % 3, &["put", &format!("k{i}"), &i.to_string()]);
    }
    let leader = control.leader(0).expect("a leader");
    control.c.nodes[leader].kill9();
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    control.soon(others[0], &["put", "after", "1"]);
    until("another leads", || control.leader(others[1]).is_some_and(|l| l != leader));
    for i in 0..30 {
        assert_eq!(control.run(others[i % 2], &["get", "--print-value-only", &format!("k{i}")]), format!("{i}\n"));
    }
    control.c.nodes[leader].restart();
    until("the dead one catches up", || control.local(leader, "after") == "1");
    // In order: the one that leads hands over before it goes.
    let leader = control.leader(leader).expect("a leader");
    let begin = Instant::now();
    assert_eq!(control.c.nodes[leader].stop(), Some(0));
    let log = fs::read_to_string(control.c.nodes[leader].dir.join("log")).expect("its log");
    // It waits for a second; where the others are slower than that it is not to blame.
    assert!(!log.contains("no other member took over") || begin.elapsed() > Duration::from_secs(1), "{log}");
    let other = (leader + 1) % 3;
    control.soon(other, &["put", "after", "2"]);
    control.c.nodes[leader].restart();
    // All at once.
    control.c.nodes.iter_mut().for_each(Node::kill9);
    control.c.nodes.iter_mut().for_each(Node::spawn);
    control.c.nodes.iter().for_each(Node::wait_ready);
    assert_eq!(control.soon(0, &["get", "--print-value-only", "after"]), "2\n");
    for i in 0..30 {
        assert_eq!(control.run(i % 3, &["get", "--print-value-only", &format!("k{i}")]), format!("{i}\n"));
    }
    control.wait_voters(1, 3);
}

#[test]
fn a_node_that_comes_later_catches_up_and_gets_a_vote() {
    let mut control = Control::prepare(3, "");
    let first = control.c.nodes[0].port;
    control.c.nodes[0].set_joins(vec![]);
    for node in &mut control.c.nodes[1..] {
        node.set_joins(vec![first]);
    }
    control.c.nodes[0].spawn();
    for i in 0..20 {
        control.soon(0, &["put", &format!("k{i}"), &"x".repeat(1000)]);
    }
    control.run(0, &["put", "last", "one"]);
    for i in 1..3 {
        control.c.nodes[i].restart();
        until("it has what was there before it", || control.local(i, "last") == "one");
        assert_eq!(control.local(i, "k0").len(), 1000);
    }
    control.wait_voters(2, 3);
    // One that is removed is out of it, and starts anew as a member when it is started again.
    let members = control.run(0, &["member", "list"]);
    let line = members.lines().find(|l| l.contains(" n3,")).expect("n3 is a member");
    control.run(0, &["member", "remove", line.split(',').next().expect("an id")]);
    control.c.nodes[1].wait("without n3", |_| !control.run(1, &["member", "list"]).contains(" n3,"));
    assert!(!control.ctl(2, &["put", "last", "lost"]).status.success(), "it is no member");
    control.run(1, &["put", "last", "meanwhile"]);
    control.c.nodes[2].kill9();
    control.c.nodes[2].restart();
    until("it is back", || control.local(2, "last") == "meanwhile");
    control.wait_voters(2, 3);
    // Now the first is one of three.
    control.c.nodes[0].kill9();
    control.soon(1, &["put", "last", "two"]);
    assert_eq!(control.run(2, &["get", "--print-value-only", "last"]), "two\n");
}

#[test]
fn decubes_rest_is_the_same_on_every_node() {
    let control = Control::start(3);
    let made = control.http(0, "POST", "/api/v1/pods", r#"{"name":"web","labels":{"app":"x"}}"#);
    assert_eq!(made.status, 201, "{}", made.text());
    for i in 0..3 {
        let found = control.http(i, "GET", "/api/v1/pods/web", "");
        assert_eq!(json(&found)["pod"]["labels"]["app"], "x");
        let health = json(&control.http(i, "GET", "/health", ""));
        assert_eq!(health["status"], "healthy", "{health}");
        assert_eq!(health["is_leader"], control.leader(i) == Some(i));
        let info = json(&control.http(i, "GET", "/node/info", ""));
        assert_eq!(info["node_id"], control.c.nodes[i].name.as_str());
    }
    // etcd's clients see it.
    assert!(control.run(1, &["get", "/pods/default/web"]).contains("\"app\":\"x\""));
    let lease = json(&control.http(1, "POST", "/api/v1/leases", r#"{"holder":"me","ttl_seconds":60}"#));
    let id = lease["lease"]["id"].as_str().expect("an id");
    assert_eq!(json(&control.http(2, "GET", &format!("/api/v1/leases/{id}"), ""))["lease"]["holder"], "me");
    assert_eq!(control.http(2, "DELETE", "/api/v1/pods/web", "").status, 200);
    assert_eq!(control.http(0, "GET", "/api/v1/pods/web", "").status, 404);
}

#[test]
fn a_named_lock_is_held_in_the_whole_cluster_and_ends_with_its_node() {
    let mut control = Control::start(3);
    let ask = |n: &Node, what: &str, holder: &str| {
        n.http("POST", &format!("/v1/{what}?path=dir/file&holder={holder}"), &[], b"").expect("an answer")
    };
    let token = |a: &Answer| {
        let line =
            a.head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("fencing-token: ").map(str::to_owned));
        line.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("no token: {}", a.head))
    };
    let first = ask(&control.c.nodes[0], "lock", "job");
    assert_eq!(first.status, 204, "{}", first.text());
    for n in &control.c.nodes[1..] {
        assert_eq!(ask(n, "lock", "other&wait=0s").status, 409);
        assert!(n.http("GET", "/v1/locks", &[], b"").expect("an answer").text().contains("\"holder\":\"job\""));
    }
    assert_eq!(ask(&control.c.nodes[2], "unlock", "job").status, 204);
    let second = ask(&control.c.nodes[1], "lock", "n1");
    assert!(second.status == 204 && token(&second) > token(&first), "{}", second.text());
    // That holder is a node: when it is dead its locks are free.
    assert_eq!(ask(&control.c.nodes[2], "lock", "other&wait=0s").status, 409);
    control.c.nodes[0].kill9();
    let mut third = None;
    until("the dead node's lock is free", || {
        let answer = ask(&control.c.nodes[2], "lock", "other&wait=0s");
        let done = answer.status == 204;
        third = Some(answer);
        done
    });
    assert!(token(&third.expect("an answer")) > token(&second));
}

#[test]
fn one_survivor_goes_on_alone_and_the_others_join_it_anew() {
    let mut control = Control::start(3);
    control.run(1, &["put", "precious", "kept"]);
    until("all have it", || (0..3).all(|i| control.local(i, "precious") == "kept"));
    for i in 0..2 {
        control.c.nodes[i].kill9();
    }
    assert!(!control.ctl(2, &["put", "precious", "lost"]).status.success(), "one of three is no majority");
    assert_eq!(control.c.nodes[2].stop(), Some(0));
    control.c.nodes[2].set_flags(&["-force-new-cluster"]);
    control.c.nodes[2].restart();
    control.soon(2, &["put", "after", "1"]);
    assert_eq!(control.run(2, &["get", "--print-value-only", "precious"]), "kept\n");
    let said = fs::read_to_string(control.c.nodes[2].dir.join("log")).expect("its log");
    assert!(said.contains("-force-new-cluster") && said.contains("goes on alone"), "{said}");
    // From then on as any other node.
    assert_eq!(control.c.nodes[2].stop(), Some(0));
    control.c.nodes[2].set_flags(&[]);
    control.c.nodes[2].restart();
    assert_eq!(control.soon(2, &["get", "--print-value-only", "after"]), "1\n");
    for i in 0..2 {
        let dir = control.c.nodes[i].dir.clone();
        for sub in ["data", "backing"] {
            fs::remove_dir_all(dir.join(sub)).expect("the disk is lost");
        }
        control.c.nodes[i].restart();
        until("it has the new cluster's store", || control.local(i, "after") == "1");
    }
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()))
}

/// Files of kept snapshots.
fn kept(node: &Node) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(node.dir.join("data/snapshots")).expect("the directory");
    files.map(|e| e.expect("an entry").path()).collect()
}

#[test]
fn a_snapshot_is_kept_and_restored_here_and_in_a_new_cluster() {
    let mut control = Control::start(3);
    for i in 0..200 {
        control.run(i % 3, &["put", &format!("k{}", i % 150), &format!("old {i}")]);
    }
    let before = control.run(0, &["get", "--prefix", ""]);
    let made = control.http(1, "POST", "/api/v1/snapshots", r#"{"name":"mine","metadata":{"why":"test"}}"#);
    assert_eq!(made.status, 201, "{}", made.text());
    let made = json(&made)["snapshot"].clone();
    let (id, checksum) =
        (made["id"].as_str().expect("an id").to_owned(), made["checksum"].as_str().expect("a checksum"));
    assert_eq!(
        (&made["name"], &made["status"], &made["metadata"]["why"]),
        (&"mine".into(), &"completed".into(), &"test".into())
    );
    let files = kept(&control.c.nodes[1]);
    assert!(files.len() == 1 && files[0].ends_with(format!("{id}.snap")), "{files:?}");
    assert_eq!(fs::metadata(&files[0]).expect("the file").len(), made["size_bytes"].as_u64().expect("bytes"));
    for i in 0..3 {
        let list = json(&control.http(i, "GET", "/api/v1/snapshots", ""));
        assert_eq!((&list["count"], &list["snapshots"][0]), (&1.into(), &made));
    }
    // Its bytes are where it was made; elsewhere one is told where.
    let path = format!("/api/v1/snapshots/{id}");
    let bytes = control.http(1, "GET", &format!("{path}/download"), "");
    assert_eq!(bytes.status, 200);
    let store = ice_host::plane::load(&mut &bytes.body[..]).expect("a store");
    assert_eq!(store.get(b"k149").map(|kv| kv.value), Some(b"old 149".to_vec()));
    let elsewhere = control.http(0, "GET", &format!("{path}/download"), "");
    assert!(elsewhere.status >= 400 && elsewhere.text().contains("kept by n2"), "{}", elsewhere.text());

    control.run(0, &["del", "--prefix", "k1"]);
    control.run(1, &["put", "k2", "new"]);
    control.run(2, &["put", "other", "new"]);
    let restored = control.http(1, "POST", &format!("{path}/restore"), "");
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(json(&restored)["success"], true);
    for i in 0..3 {
        assert_eq!(control.run(i, &["get", "--prefix", ""]), before, "n{}", i + 1);
    }
    // A file that is damaged is restored by nobody.
    let good = fs::read(&files[0]).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&files[0], &bad).expect("write");
    let refused = control.http(1, "POST", &format!("{path}/restore"), "");
    assert!(refused.status >= 500 && refused.text().contains("damaged"), "{}", refused.text());
    assert_eq!(control.run(0, &["get", "--prefix", ""]), before);
    fs::write(&files[0], &good).expect("write");
    let saved = control.c.nodes[0].dir.join("saved.snap");
    fs::copy(&files[0], &saved).expect("copy");
    assert_eq!(control.http(1, "DELETE", &path, "").status, 200);
    assert_eq!(control.http(2, "GET", &path, "").status, 404);
    assert!(kept(&control.c.nodes[1]).is_empty());
    control.c.nodes.iter_mut().for_each(Node::kill9);

    // The file alone makes the store of another cluster.
    let mut new =
        Control::prepare(1, "snapshot: {enabled: false, interval: 2s}\netcd: {auto_compaction_retention: 4s}\n");
    let dir = new.c.nodes[0].dir.join("data/snapshots");
    fs::create_dir_all(&dir).expect("a directory");
    fs::rename(saved, dir.join(format!("{id}.snap"))).expect("move");
    new.c.nodes[0].restart();
    new.soon(0, &["put", "stranger", "1"]);
    until("it is found", || new.http(0, "GET", &path, "").status == 200);
    assert_eq!(json(&new.http(0, "GET", &path, ""))["snapshot"]["checksum"], checksum);
    let restored = new.http(0, "POST", &format!("{path}/restore"), "");
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(new.run(0, &["get", "--prefix", ""]), before);
    // History is forgotten after its time.
    let old = || String::from_utf8_lossy(&new.ctl(0, &["get", "stranger", "--rev=2"]).stderr).into_owned();
    until("old revisions are forgotten", || old().contains("has been compacted"));
    assert_eq!(new.run(0, &["get", "--prefix", ""]), before);
}

#[test]
fn the_schedule_keeps_as_many_snapshots_as_it_should() {
    let mut control = Control::prepare(1, "snapshot: {enabled: true, interval: 1s, retention_count: 2}\n");
    control.c.nodes[0].restart();
    control.soon(0, &["put", "a", "1"]);
    let own = control.http(0, "POST", "/api/v1/snapshots", r#"{"name":"own"}"#);
    let own = json(&own)["snapshot"]["id"].as_str().expect("an id").to_owned();
    let scheduled = || {
        let list = json(&control.http(0, "GET", "/api/v1/snapshots", ""));
        let all = list["snapshots"].as_array().cloned().unwrap_or_default();
        let ids = all.iter().filter(|s| s["metadata"]["created_by"] == "schedule");
        ids.filter_map(|s| s["id"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    until("the first comes", || !scheduled().is_empty());
    let first = scheduled()[0].clone();
    until("the first goes", || !scheduled().contains(&first));
    assert_eq!(control.http(0, "GET", &format!("/api/v1/snapshots/{own}"), "").status, 200, "not by the schedule");
    until("no more than those are kept", || {
        (2..=3).contains(&scheduled().len()) && kept(&control.c.nodes[0]).len() <= 4
    });
    // Whose file is gone is said to be lost.
    fs::remove_file(control.c.nodes[0].dir.join(format!("data/snapshots/{own}.snap"))).expect("remove");
    control.c.nodes[0].kill9();
    control.c.nodes[0].restart();
    let path = format!("/api/v1/snapshots/{own}");
    until("it is said", || {
        let found = control.http(0, "GET", &path, "");
        found.status == 200 && json(&found)["snapshot"]["status"] == "lost"
    });
}

fn write_certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("write");
    let authority_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca", params.self_signed(&authority_key).expect("an authority").pem());
    let authority = Issuer::new(params, authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).expect("parameters");
        write(name, params.signed_by(&key, &authority).expect("a certificate").pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[test]
fn certificates_and_tokens_let_in_whom_they_should() {
    let files = ice_testing::tempdir();
    write_certificates(files.path());
    let at = |name: &str| files.path().join(name).display().to_string();
    let security = format!(
        "security: {{tls_enabled: true, cert_file: {}, key_file: {}, ca_file: {}}}\n",
        at("server"),
        at("server.key"),
        at("ca")
    );
    let mut control = Control::prepare(1, &security);
    control.c.nodes[0].restart();
    let endpoint = format!("https://127.0.0.1:{}", control.etcd[0]);
    let run = |args: &[&str]| output(etcdctl(&endpoint).args(args));
    let (ca, cert, key) = (at("ca"), at("client"), at("client.key"));
    let known = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    let put = [&known[..], &["put", "a", "1"]].concat();
    until("a client with a certificate is served", || run(&put).status.success());
    assert!(!run(&["--cacert", &ca, "put", "a", "2"]).status.success(), "without one");
    assert!(!run(&["put", "a", "3"]).status.success(), "who does not know the authority");
    assert!(!control.ctl(0, &["put", "a", "4"]).status.success(), "in the clear");
    assert_eq!(good(&run(&[&known[..], &["get", "a"]].concat()), &["get"]), "a\n1\n");
    drop(control);

    // A word that all know, and a signed one: {"iss":"me","exp":4102444800}, by HS256.
    let key = "0123456789abcdef0123456789abcdef";
    fs::write(files.path().join("key"), format!("{key}\n")).expect("write");
    let signed = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJtZSIsImV4cCI6NDEwMjQ0NDgwMH0.hLpcAA0gjv4-eAtvpDSYYLUoEpk6PpjgMS8WNc1gyAQ";
    let jwt = format!("jwt_key: {}\njwt_issuer: me\n", at("key"));
    for (extra, token) in [("api_token: s3cret\n", "s3cret"), (&jwt, signed)] {
        let mut control = Control::prepare(1, extra);
        control.c.nodes[0].restart();
        let ask = |token: &str, path: &str| request(control.rest[0], token, "GET", path, &[], b"").expect("an answer");
        assert_ne!(ask("", "/health").status, 401, "{extra}");
        for wrong in ["", "guess", &format!("{token}x")] {
            assert_eq!(ask(wrong, "/api/v1/pods").status, 401, "{extra}: {wrong}");
        }
        until("the right token is let in", || ask(token, "/api/v1/pods").status == 200);
    }
}

#[test]
fn decubes_list_of_members_and_variables_make_a_cluster() {
    let mut control = Control::prepare(2, "");
    let peers: Vec<String> = control.c.nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)).collect();
    for i in 0..2 {
        let node = &mut control.c.nodes[i];
        node.set_joins(vec![]);
        node.set_extra(&format!(
            "mount: ''\nadvertise: {}\nnode: {{peer_addresses: [{}]}}\nlogging: {{format: json}}\n",
            peers[i],
            peers.join(", ")
        ));
        let (etcd, rest) = (control.etcd[i], control.rest[i]);
        node.spawn_through(&[
            "env",
            &format!("DECUBE_NODE_LISTEN_ADDRESS=127.0.0.1:{etcd}"),
            &format!("DECUBE_API_REST_ADDRESS=127.0.0.1:{rest}"),
            "DECUBE_API_GRCP_ADDRESS=:1",
        ]);
    }
    control.soon(0, &["put", "a", "1"]);
    until("the second is part of it", || control.local(1, "a") == "1");
    let members = control.run(1, &["member", "list"]);
    assert_eq!(members.lines().count(), 2, "{members}");
    assert!(control.http(1, "GET", "/health", "").text().contains("\"has_leader\":true"));
    let log = fs::read_to_string(control.c.nodes[0].dir.join("log")).expect("its log");
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).expect("an object on each line")).collect();
    let said = |words: &str| lines.iter().any(|l| l["message"].as_str().is_some_and(|m| m.contains(words)));
    assert!(said("DECUBE_API_GRCP_ADDRESS is no setting") && said("etcd client: http://127.0.0.1"), "{log}");
}
