//! `icectl` against fake nodes: its output lines, exit codes, flags, and what it sends.

mod support;

use ice_testing::{Process, output};
use std::io::{Read, Seek, Write};
use std::process::Stdio;
use std::sync::Arc;
use support::{Fake, closed_port, icectl, ran, run};

#[test]
fn usage_mistakes_exit_with_2_and_say_what_is_wrong() {
    for (args, word) in [
        (&[][..], "Usage: icectl"),
        (&["frobnicate"], "unknown command: frobnicate"),
        (&["get"], "missing -path"),
        (&["put"], "missing -path"),
        (&["repair", "-mode", "force-from"], "missing -source"),
        (&["repair", "-mode", "sideways"], "sideways"),
        (&["peers", "-timeout", "5"], "missing unit"),
        (&["peers", "-base", "ftp://x"], "neither http nor https"),
        (&["lock", "-path", "x"], "missing -holder"),
        (&["unlock", "-holder", "h"], "missing -path"),
        (&["lock", "-path", "x", "-holder", "h", "-ttl", "5"], "missing unit"),
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    }
    assert_eq!(run(&["version"]).out, format!("{}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["-help"]).code, 0);
}

#[test]
fn transport_errors_exit_with_1() {
    let base = format!("http://{}", closed_port());
    for command in [&["peers"][..], &["health"], &["get", "-path", "x"], &["put", "-path", "x"], &["consistency"]] {
        let mut args = vec!["-base", &base];
        args.extend(command);
        let ran = run(&args);
        assert_eq!(ran.code, 1, "{command:?}");
        assert!(ran.err.starts_with("error: "), "{command:?}: {}", ran.err);
    }
}

#[test]
fn a_node_that_does_not_answer_is_given_up_after_the_timeout() {
    let node = Fake::start();
    node.with(|s| s.silent = true);
    let ran = run(&["-base", &node.url(), "-timeout", "100ms", "peers"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("nothing moved for 100ms"), "{}", ran.err);
}

#[test]
fn a_put_waits_for_the_nodes_own_limit_and_shows_its_reason() {
    let node = Fake::start();
    node.with(|s| s.unacknowledged_after = Some(std::time::Duration::from_millis(2_200)));
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(b"bytes").and_then(|()| source.rewind()).unwrap();
    let args = ["-base", &node.url(), "-timeout", "2s", "put", "-path", "/f", "-ack", "all"];
    let ran = ran(output(icectl(&args).stdin(source)));
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("two of three members are up"), "{}", ran.err);
}

#[test]
fn peers_health_and_stats_print_the_lines_of_old() {
    let node = Fake::start();
    node.with(|s| {
        s.peers = vec!["http://a:1".into(), "http://b:2".into()];
        s.fixed.insert("/health".into(), (200, "ok".into()));
        let stats = r#"{"http://b:2":{"total":3,"ops":{"PUT":{"requests":2,"success":1,"fail":1,"avg_ms":1.239,"last_ms":2},
                        "DEL":{"requests":1,"success":1,"fail":0,"avg_ms":0.5,"last_ms":0.5}}},"http://a:1":{"total":0,"ops":{}}}"#;
        s.fixed.insert("/v1/stats".into(), (200, stats.into()));
    });
    let base = format!("{}/", node.url());
    assert_eq!(run(&["-base", &base, "peers"]).out, "[\n  \"http://a:1\",\n  \"http://b:2\"\n]\n");
    assert_eq!(run(&["-base", &base, "health"]).out, "200 OK\n");
    let stats = run(&["-base", &base, "-reset-stats", "stats"]);
    assert_eq!(
        stats.out,
        "http://a:1 total=0\nhttp://b:2 total=3\n  DEL  req=1 ok=1 fail=0 avg=0.50ms last=0.50ms\n  \
         PUT  req=2 ok=1 fail=1 avg=1.24ms last=2.00ms\n"
    );
    assert_eq!(node.with(|s| s.log.last().cloned()).unwrap(), "POST /v1/stats/reset");

    node.with(|s| s.fixed.insert("/health".into(), (503, "no".into())));
    let sick = run(&["-base", &base, "health"]);
    assert_eq!((sick.code, sick.out.as_str()), (1, "503 Service Unavailable\n"));
}

/// Also fault 23 of the original, which called a refusal a success.
#[test]
fn locks_print_the_lines_of_old_and_refusals_are_failures() {
    let node = Fake::start();
    let url = node.url();
    let icectl = |args: &[&str]| run(&[&["-base", &url], args].concat());
    let last = || node.with(|s| s.log.last().cloned()).unwrap();
    let answers = |status: u16, body: &str| {
        node.with(|s| {
            for route in ["/v1/lock", "/v1/unlock"] {
                s.fixed.insert(route.into(), (status, body.into()));
            }
        });
    };
    answers(204, "");
    node.with(|s| s.headers = vec![("fencing-token", "17"), ("lock-since", "2026-01-02T03:04:05.6Z")]);
    let lock = icectl(&["lock", "-path", "/a b&c", "-holder", "ho=lder"]);
    assert_eq!((lock.code, lock.out.as_str(), lock.err.as_str()), (0, "204 No Content\n", ""));
    assert_eq!(last(), "POST /v1/lock?path=/a%20b%26c&holder=ho%3Dlder");
    let lock = icectl(&["-json", "lock", "-path", "x", "-holder", "h", "-wait", "2s", "-ttl", "1m30s"]);
    assert_eq!(last(), "POST /v1/lock?path=x&holder=h&ttl=1m30s&wait=2s");
    let json: serde_json::Value = serde_json::from_str(&lock.out).unwrap();
    assert_eq!(json, serde_json::json!({"status": 204, "token": 17, "since": "2026-01-02T03:04:05.6Z"}));
    let unlock = icectl(&["unlock", "-path", "x", "-holder", "h"]);
    assert_eq!(
        (unlock.code, unlock.out.as_str(), last().as_str()),
        (0, "204 No Content\n", "POST /v1/unlock?path=x&holder=h")
    );

    answers(409, r#"{"error":"locked","message":"locked by another holder"}"#);
    for command in ["lock", "unlock"] {
        let refused = icectl(&[command, "-path", "x", "-holder", "h"]);
        assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{command}");
        assert_eq!(refused.err, "error: 409 Conflict\n  locked by another holder\n");
    }

    let ago = |s: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        ice_host::time::rfc3339((now.as_millis() as u64).saturating_sub(s * 1000))
    };
    let list = serde_json::json!([
        {"path": "/a", "holder": "h\u{1b}1", "since": ago(3_600_000), "token": 3},
        {"path": "/b", "holder": "h2", "since": "2200-01-01T00:00:00Z", "token": 4, "ttl": "1m0s"},
    ]);
    node.with(|s| s.fixed.insert("/v1/locks".into(), (200, list.to_string())));
    let locks = icectl(&["locks"]);
    let lines: Vec<&str> = locks.out.lines().collect();
    // Hours ago, whatever the seconds.
    let (path_and_holder, age) = lines[0].rsplit_once('\t').unwrap();
    assert_eq!(path_and_holder, "/a\th\\u{1b}1");
    assert!(age.starts_with("1000h") && age.ends_with('s'), "{age}");
    assert_eq!(lines[1..], ["/b\th2\t0s"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&icectl(&["-json", "locks"]).out).unwrap(), list);
    node.with(|s| s.fixed.insert("/v1/locks".into(), (503, "{}".into())));
    let refused = icectl(&["locks"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.starts_with("error: 503 Service Unavailable\n"), "{}", refused.err);
}

#[test]
fn files_go_in_and_out_byte_by_byte_and_refusals_are_failures() {
    let node = Fake::start();
    let url = node.url();
    let data: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&data).and_then(|()| source.rewind()).unwrap();
    let put = ran(output(icectl(&["-base", &url, "put", "-path=/dir/a b&c.txt"]).stdin(source)));
    assert_eq!((put.code, put.out.as_str()), (0, "204 No Content\n"));
    assert!(node.with(|s| s.files["dir/a b&c.txt"].data == data));

    let got = output(&mut icectl(&["--base", &url, "get", "--path", "dir/a b&c.txt"]));
    assert!(got.status.success() && got.stdout == data && got.stderr.is_empty());

    let missing = run(&["-base", &url, "get", "-path", "nothing"]);
    assert_eq!((missing.code, missing.out.as_str(), missing.err.as_str()), (1, "", "error: 404 Not Found\n"));
    let bad = run(&["-base", &url, "del", "-path", ""]);
    assert_eq!((bad.code, bad.err.as_str()), (1, "error: 400 Bad Request\n  missing path\n"));

    assert_eq!(run(&["-base", &url, "del", "-path", "dir/a b&c.txt"]).out, "204 No Content\n");
    assert!(node.with(|s| s.files.is_empty()));
}

#[test]
fn long_bodies_pass_through_in_bounded_memory_and_a_closed_pipe_is_no_error() {
    let node = Fake::start();
    let url = node.url();
    let length = 300 << 20;
    node.with(|s| s.zeros = length);
    // 300 MiB through a process that may have 120 MiB of address space for data.
    let limited = |args: &[&str]| {
        let inner = icectl(args);
        let mut command = ice_testing::command("sh");
        command.args(["-c", "ulimit -d 122880; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
        command
    };
    let get = Process::spawn(limited(&["-base", &url, "get", "-path", "/zeros"]).stdout(Stdio::piped()));
    let mut sink = std::io::BufReader::new(get.stdout());
    assert_eq!(std::io::copy(&mut sink, &mut std::io::sink()).unwrap(), length);
    assert!(get.wait().success());

    let put = Process::spawn(limited(&["-base", &url, "put", "-path", "/big"]).stdin(Stdio::piped()));
    let mut stdin = put.stdin();
    let chunk = vec![0; 1 << 20];
    (0..200).for_each(|_| stdin.write_all(&chunk).unwrap());
    drop(stdin);
    assert!(put.wait().success());
    assert_eq!(node.with(|s| s.received_bytes), 200 << 20);

    let errors = tempfile::NamedTempFile::new().unwrap();
    let mut command = limited(&["-base", &url, "get", "-path", "/zeros"]);
    let get = Process::spawn(command.stdout(Stdio::piped()).stderr(errors.reopen().unwrap()));
    let mut some = [0; 1000];
    let mut pipe = get.stdout();
    pipe.read_exact(&mut some).unwrap();
    drop(pipe);
    assert_eq!(get.wait().code(), Some(0));
    assert_eq!(std::fs::read_to_string(&errors).unwrap(), "");
}

/// Only there: what goes into a file or a pipe is the file and nothing else.
#[test]
fn a_terminal_shows_how_far_a_transfer_is() {
    let node = Fake::start();
    node.with(|s| s.zeros = 200 << 20);
    let into = tempfile::NamedTempFile::new().unwrap();
    let shell = "\"$0\" -base \"$1\" get -path /zeros > \"$2\"";
    let terminal = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut command = ice_testing::command("python3");
    command.args(["-c", terminal, "sh", "-c", shell, env!("CARGO_BIN_EXE_icectl"), &node.url()]).arg(into.path());
    let shown = ran(output(command.env("TERM", "xterm")));
    assert_eq!((shown.code, into.as_file().metadata().unwrap().len()), (0, 200 << 20), "{}", shown.err);
    assert!(shown.out.contains(" / 200.00 MiB"), "{:?}", shown.out);
    let piped = run(&["-base", &node.url(), "get", "-path", "/zeros"]);
    assert_eq!((piped.code, piped.err.as_str(), piped.out.len()), (0, "", 200 << 20));
}

#[test]
fn the_token_comes_from_flag_environment_or_file_and_goes_into_the_header() {
    let node = Fake::start();
    let url = node.url();
    node.with(|s| s.token = Some("s3cret".into()));
    let refused = run(&["-base", &url, "peers"]);
    assert_eq!((refused.code, refused.err.as_str()), (1, "error: 401 Unauthorized\n"));
    assert_eq!(run(&["-base", &url, "-token", "s3cret", "peers"]).code, 0);
    assert_eq!(ran(output(icectl(&["-base", &url, "peers"]).env("ICECLUSTER_TOKEN", "s3cret"))).code, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "s3cret\n").unwrap();
    assert_eq!(run(&["-base", &url, "-token-file", file.path().to_str().unwrap(), "peers"]).code, 0);
    assert_eq!(run(&["-base", &url, "-token", "wrong", "peers"]).code, 1);
    let evil = run(&["-base", &url, "-token", "a\nX: y", "peers"]);
    assert!(evil.code == 1 && evil.err.contains("does not allow"), "{}", evil.err);
}

#[test]
fn a_certificate_authority_file_makes_tls_work_and_nothing_else_does() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let node = Fake::start_with(Some(Arc::new(config)));
    let url = format!("https://localhost:{}", node.addr.port());
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let ok = run(&["-base", &url, "-cacert", ca.path().to_str().unwrap(), "peers"]);
    assert_eq!((ok.code, ok.out.as_str()), (0, "[]\n"), "{}", ok.err);
    let refused = run(&["-base", &url, "peers"]);
    assert!(refused.code == 1 && refused.err.contains("certificate"), "{}", refused.err);
}

fn pair() -> (Fake, Fake) {
    let (a, b) = (Fake::start(), Fake::start());
    let peers = vec![a.url(), b.url()];
    a.with(|s| s.peers = peers.clone());
    b.with(|s| s.peers = peers);
    (a, b)
}

#[test]
fn consistency_names_the_differences_and_its_exit_code_tells() {
    let (a, b) = pair();
    a.put("same", "x", 1);
    b.put("same", "x", 2);
    let equal = run(&["-base", &a.url(), "consistency"]);
    assert_eq!((equal.code, equal.out.as_str()), (0, "All peers consistent.\n"));
    let status = r#"{"peers":[{"name":"n3","state":"down","left":false,"urls":["http://127.0.0.1:1"]}]}"#;
    a.with(|s| s.fixed.insert("/v1/status".into(), (200, status.into())));
    let partly = run(&["-base", &a.url(), "consistency"]);
    assert_eq!((partly.code, partly.out.as_str()), (1, "All reachable peers consistent; 1 could not be asked.\n"));

    // Of one size and one time: what only the digests tell.
    a.put("bytes", "ab", 3);
    b.put("bytes", "ba", 3);
    assert!(run(&["-base", &a.url(), "consistency"]).out.starts_with("INCONSISTENT bytes\n"));
    b.put("bytes", "ab", 3);

    a.put("old", "aa", 5);
    b.put("old", "bbb", 6);
    a.put("only", "1", 7);
    let differ = run(&["-base", &a.url(), "consistency"]);
    let (ua, ub) = (a.url(), b.url());
    let wanted = format!(
        "INCONSISTENT old\n  {ua}\tmtime=5\tsize=2\n  {ub}\tmtime=6\tsize=3\n\
         INCONSISTENT only\n  {ua}\tmtime=7\tsize=1\n  {ub}\tmissing\nTotal inconsistent files: 2\n"
    );
    assert_eq!((differ.code, differ.out), (1, wanted));
    let json = run(&["-base", &a.url(), "-json", "consistency"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["inconsistent"][1]["peers"][&ub], serde_json::Value::Null);
    assert_eq!(json["consistent"], false);

    let gone = format!("http://{}", closed_port());
    a.with(|s| s.peers.push(gone.clone()));
    let skipped = run(&["-base", &a.url(), "consistency"]);
    assert_eq!(skipped.code, 1);
    assert!(skipped.err.starts_with(&format!("warn: index {gone}: ")), "{}", skipped.err);
    assert!(skipped.out.contains("Total inconsistent files: 2"));
}

#[test]
fn repair_latest_takes_the_newest_copy_and_deletes_nothing() {
    let (a, b) = pair();
    a.put("x", "old", 1);
    b.put("x", "newer", 2);
    a.put("only", "here", 3);
    let ran = run(&["-base", &a.url(), "repair"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    assert_eq!(a.with(|s| s.files["x"].data.clone()), b"newer");
    assert_eq!(b.with(|s| s.files["only"].data.clone()), b"here");
    assert!(run(&["-base", &a.url(), "consistency"]).out.starts_with("All peers consistent."));
}

#[test]
fn repair_force_from_makes_all_as_the_source_is() {
    let (a, b) = pair();
    a.put("x", "old but right", 1);
    b.put("x", "newer", 2);
    b.put("surplus", "y", 3);
    let ran = run(&["-base", &a.url(), "repair", "-mode", "force-from", "-source", &format!("{}/", a.url())]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(b.with(|s| s.files["x"].data.clone()), b"old but right");
    assert!(b.with(|s| !s.files.contains_key("surplus")));
    let unknown = run(&["-base", &a.url(), "repair", "-mode", "force-from", "-source", "http://elsewhere:1"]);
    assert_eq!(unknown.code, 2);
}

#[test]
fn status_prints_reasons_and_fails_when_there_is_one() {
    let node = Fake::start();
    let status = r#"{"name":"n1","version":"0.1.0","urls":["http://a:1"],"inodes":3,"pending":0,"pending_bytes":0,
        "conflicts":1,"in_sync":true,"notes":["it is open"],"reasons":[],"peers":[{"name":"n2","state":"up","urls":["http://b:2"],"why":"",
        "lag_ops":4,"lag_bytes":2048,"left":false}]}"#;
    node.with(|s| s.fixed.insert("/v1/status".into(), (200, status.into())));
    let well = run(&["-base", &node.url(), "status"]);
    assert_eq!(well.code, 0);
    assert!(well.out.contains("node       n1\tin sync\tversion 0.1.0\n"), "{}", well.out);
    assert!(well.out.contains("note       it is open\n"), "{}", well.out);
    assert!(well.out.contains("peer       n2\tup\tlag 4 operations, 2.00 KiB\thttp://b:2\n"), "{}", well.out);
    let late =
        status.replace("\"in_sync\":true", "\"in_sync\":false,\"waits\":[\"n2 has 4 operations to acknowledge\"]");
    node.with(|s| s.fixed.insert("/v1/status".into(), (200, late)));
    let late = run(&["-base", &node.url(), "status"]);
    assert!(late.code == 0 && late.out.contains("node       n1\tnot in sync\t"), "{}", late.out);
    assert!(late.out.contains("waits      n2 has 4 operations to acknowledge\n"), "{}", late.out);
    let sick = status.replace("\"reasons\":[]", "\"reasons\":[\"degraded: one copy\"]");
    node.with(|s| s.fixed.insert("/v1/status".into(), (200, sick)));
    let sick = run(&["-base", &node.url(), "status"]);
    assert!(sick.code == 1 && sick.out.contains("REASON     degraded: one copy\n"), "{}", sick.out);
}

#[test]
fn ls_shows_a_directory_by_name() {
    let node = Fake::start();
    let list = r#"[{"name":"b","kind":"file","size":3,"mtime":0},{"name":"a","kind":"dir","size":4096,"mtime":0},
        {"name":"c\u001b","kind":"link","size":1,"mtime":0}]"#;
    node.with(|s| s.fixed.insert("/v1/list".into(), (200, list.into())));
    let root = run(&["-base", &node.url(), "ls"]);
    let time = "1970-01-01T00:00:00Z";
    let wanted =
        format!("          4096  {time}  a/\n             3  {time}  b\n             1  {time}  c\\u{{1b}}@\n");
    assert_eq!((root.code, root.out), (0, wanted));
    let json = run(&["-base", &node.url(), "-json", "ls", "-path", "x y"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json[0]["name"], &json[1]["size"]), (&"a".into(), &3.into()));
    assert_eq!(node.with(|s| s.log.clone()), ["GET /v1/list?path=/", "GET /v1/list?path=x%20y"]);
    node.with(|s| s.fixed.insert("/v1/list".into(), (200, "{}".into())));
    let odd = run(&["-base", &node.url(), "ls"]);
    assert!(odd.code == 1 && odd.err.contains("unexpected answer"), "{}", odd.err);
}

#[test]
fn names_that_are_no_text_are_compared_and_repaired_by_their_bytes() {
    let (a, b) = pair();
    let line = r#"[{"path":"x\ufffd","size":1,"mtime":5,"raw":"x%FF"}]"#;
    a.with(|s| s.fixed.insert("/v1/index".into(), (200, line.into())));
    assert!(run(&["-base", &a.url(), "consistency"]).out.starts_with("INCONSISTENT x\u{fffd}\n"));
    run(&["-base", &a.url(), "repair"]);
    assert!(b.with(|s| s.log.contains(&"HEAD /v1/file?path=x%FF".to_owned())));
}

#[test]
fn conflicts_are_one_line_each() {
    let node = Fake::start();
    node.with(|s| s.fixed.insert("/v1/conflicts".into(), (200, "[]".into())));
    assert_eq!(run(&["-base", &node.url(), "conflicts"]).out, "No conflicts.\n");
    let one = r#"[{"path":"d/a.conflict-n2-7","original":"d/a","node":"n2","time_ns":1790000000000000000}]"#;
    node.with(|s| s.fixed.insert("/v1/conflicts".into(), (200, one.into())));
    let wanted = "d/a.conflict-n2-7\tof d/a\tfrom n2\t2026-09-21T14:13:20Z\n";
    assert_eq!(run(&["-base", &node.url(), "conflicts"]).out, wanted);
}

/// Everything that is not a success says so in the exit code, options are parsed as options, and a token goes along.
#[test]
fn fault_23_refusals_are_failures_and_options_are_parsed_where_they_stand() {
    let node = Fake::start();
    let url = node.url();
    for status in [400_u16, 401, 403, 404, 409, 412, 500, 503, 507] {
        let refusal = r#"{"error":"code","message":"in words"}"#;
        node.with(|s| s.fixed.insert("/v1/file".into(), (status, refusal.into())));
        for command in ["put", "del", "get"] {
            let ran = run(&["-base", &url, command, "-path", "x"]);
            let line = format!("error: {status} ");
            assert!(
                ran.code == 1 && ran.out.is_empty() && ran.err.starts_with(&line),
                "{command} {status}: {}",
                ran.err
            );
        }
        for (command, route) in [("peers", "/v1/peers"), ("stats", "/v1/stats"), ("status", "/v1/status")] {
            node.with(|s| s.fixed.insert(route.into(), (status, refusal.into())));
            assert_eq!(run(&["-base", &url, command]).code, 1, "{command} {status}");
        }
    }
    node.with(|s| s.fixed.clear());
    node.put("-path", "a name like an option", 1);
    node.put("x", "another", 1);
    for args in [&["get", "-path=-path"][..], &["get", "--path=-path"]] {
        assert_eq!(run(&[&["-base", &url], args].concat()).out, "a name like an option", "{args:?}");
    }
    // What follows the command and is none of its options is a mistake, not something to be passed over.
    for args in [&["get", "-path", "x", "-holder", "y"][..], &["get", "x", "-path", "x"], &["get", "-path"], &["del"]] {
        let ran = run(&[&["-base", &url], args].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}: {}", ran.err);
    }
    // Global options stand before or behind the command.
    node.with(|s| s.token = Some("s3cret".into()));
    assert_eq!(run(&["-base", &url, "-token", "s3cret", "get", "-path", "x"]).out, "another");
    assert_eq!(run(&["get", "-path", "x", "-base", &url, "-token=s3cret"]).out, "another");
    assert_eq!(run(&["-base", &url, "get", "-path", "x"]).code, 1);
}
