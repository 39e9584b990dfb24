//! Every route on real sockets, on both runtimes.

mod support;

use ice_core::action::Refused;
use ice_core::event::{Ack, Admin};
use ice_host::runtime::Runtime;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use support::client::{connect, get, read_answer, request, try_request};
use support::{Node, Setup, bytes};

fn plain<R: Runtime>(rt: R) -> Node<R> {
    Node::start(rt, Setup::default())
}

fn identity_and_health<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    for method in ["GET", "POST", "HEAD"] {
        assert_eq!(request(at, method, "/health", &[], &[]).status, 200);
    }
    assert_eq!(get(at, "/health").text(), "ok");
    assert_eq!(get(at, "/ready").text(), "ready");
    assert_eq!(get(at, "/v1/ready").json(), json!({"ready": true}));
    *node.cluster.ready.lock().unwrap() = false;
    assert_eq!((get(at, "/ready").status, get(at, "/ready").text()), (503, "not ready"));
    assert_eq!((get(at, "/v1/ready").status, get(at, "/v1/ready").json()), (503, json!({"ready": false})));
    assert_eq!(get(at, "/v1/node").json(), json!({"id": "node-1"}));
    let version = get(at, "/v1/version");
    assert_eq!(version.text(), env!("CARGO_PKG_VERSION"));
    assert!(version.header("content-type").unwrap().starts_with("text/plain"));
    let time = get(at, "/v1/time").json()["unix"].as_u64().unwrap();
    assert!(time > 1_600_000_000_000_000_000, "nanoseconds: {time}");
    assert_eq!(get(at, "/v1/status").json(), json!({"id": "node-1", "state": "ok", "notes": []}));
    assert_eq!(get(at, "/v1/conflicts").json(), json!([]));
    assert_eq!(get(at, "/v1/stats").json(), json!({}));
    node.stop();
}

fn members<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    let both = json!(["http://a:9000", "http://b:9000"]);
    assert_eq!(get(at, "/v1/peers").json(), both);
    let answer = request(at, "POST", "/v1/peers/register?url=http%3A%2F%2FC%3A9000%2Fx", &[], &[]);
    assert_eq!((answer.status, answer.json()), (200, both));
    assert_eq!(request(at, "POST", "/v1/peers/unregister?url=c:9000", &[], &[]).status, 204);
    assert_eq!(request(at, "DELETE", "/v1/peers/unregister?url=d:9000", &[], &[]).status, 204);
    for path in ["/v1/peers/register", "/v1/peers/register?url=", "/v1/peers/unregister"] {
        let answer = request(at, "POST", path, &[], &[]);
        assert_eq!((answer.status, answer.json()["message"].clone()), (400, json!("missing url")), "{path}");
    }
    assert_eq!(request(at, "POST", "/v1/peers/register?url=ftp://x", &[], &[]).json()["error"], "invalid_url");
    let url = |u: &str| u.to_owned();
    assert_eq!(
        *node.cluster.orders.lock().unwrap(),
        [
            Admin::AddPeer { url: url("http://c:9000") },
            Admin::RemovePeer { url: url("http://c:9000") },
            Admin::RemovePeer { url: url("http://d:9000") }
        ]
    );
    assert_eq!(request(at, "POST", "/v1/stats/reset", &[], &[]).status, 204);
    node.stop();
}

/// Fault 19 of the original: a GET must not change anything.
fn reading_never_changes_anything<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    for path in ["/v1/peers/register?url=x:1", "/v1/peers/unregister?url=x:1", "/v1/stats/reset"] {
        for method in ["GET", "HEAD"] {
            let answer = request(at, method, path, &[], &[]);
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.header("allow").is_some_and(|a| a.contains("POST")));
        }
    }
    assert!(node.cluster.orders.lock().unwrap().is_empty());
    for path in ["/v1/index", "/v1/list", "/v1/peers", "/v1/time", "/v1/version", "/v1/node", "/v1/stats", "/v1/status"]
    {
        assert_eq!(request(at, "POST", path, &[], &[]).status, 405, "{path}");
    }
    assert_eq!(request(at, "POST", "/v1/file?path=a", &[], b"x").json()["error"], "method_not_allowed");
    let nowhere = get(at, "/v1/nowhere");
    assert_eq!((nowhere.status, nowhere.json()["error"].clone()), (404, json!("not_found")));
    node.stop();
}

/// Faults 19 and 20: what needs the token, and how it is asked for.
fn the_token_protects<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { token: Some("s3cret"), ..Setup::default() });
    let at = node.address;
    for open in ["/health", "/ready", "/v1/ready"] {
        assert_eq!(get(at, open).status, 200, "{open}");
    }
    for closed in [
        "/v1/time",
        "/v1/version",
        "/v1/node",
        "/v1/file?path=a",
        "/v1/index",
        "/v1/list",
        "/v1/peers",
        "/v1/stats",
        "/v1/status",
        "/v1/conflicts",
        "/v1/nowhere",
        "/v1/peer",
        "/v1/peer/content?inode=1&version=1-1",
    ] {
        let answer = get(at, closed);
        assert_eq!((answer.status, answer.json()["error"].clone()), (401, json!("unauthorized")), "{closed}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        for wrong in ["Bearer s3cre", "Bearer s3cret2", "bearer s3cret", "Basic s3cret", "s3cret"] {
            assert_eq!(request(at, "GET", closed, &[("Authorization", wrong)], &[]).status, 401, "{closed} {wrong}");
        }
        assert_ne!(request(at, "GET", closed, &[("Authorization", "Bearer s3cret")], &[]).status, 401, "{closed}");
    }
    for (method, path) in [
        ("POST", "/v1/peers/register?url=x:1"),
        ("POST", "/v1/stats/reset"),
        ("PUT", "/v1/file?path=a"),
        ("DELETE", "/v1/file?path=a"),
    ] {
        assert_eq!(request(at, method, path, &[], &[]).status, 401, "{method} {path}");
    }
    assert!(node.cluster.orders.lock().unwrap().is_empty());
    node.stop();
}

fn foreign_pages_may_not_write<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    let own = format!("http://{at}");
    for (headers, status) in [
        (&[("Sec-Fetch-Site", "cross-site")][..], 403),
        (&[("Sec-Fetch-Site", "same-site")][..], 403),
        (&[("Origin", "http://evil.example")][..], 403),
        (&[("Origin", "null")][..], 403),
        (&[("Origin", own.as_str())][..], 204),
        (&[("Sec-Fetch-Site", "same-origin"), ("Origin", own.as_str())][..], 204),
    ] {
        assert_eq!(request(at, "PUT", "/v1/file?path=a", headers, b"x").status, status, "{headers:?}");
        assert_eq!(request(at, "POST", "/v1/stats/reset", headers, b"").status, status, "{headers:?}");
    }
    let answer = request(at, "GET", "/v1/file?path=a", &[("Origin", "http://evil.example")], &[]);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
    node.stop();
}

/// Nor is such an address accepted from an operator.
fn addresses_without_tls_are_refused_where_there_is_tls<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { https_only: true, ..Setup::default() });
    let at = node.address;
    for plain in ["http://c:9000", "c:9000"] {
        let answer = request(at, "POST", &format!("/v1/peers/register?url={plain}"), &[], &[]);
        assert_eq!((answer.status, answer.json()["error"].clone()), (400, json!("clear_text")), "{plain}");
        assert!(answer.json()["message"].as_str().unwrap().contains("https://c:9000"));
    }
    assert_eq!(request(at, "POST", "/v1/peers/register?url=https://c:9000", &[], &[]).status, 200);
    assert_eq!(*node.cluster.orders.lock().unwrap(), [Admin::AddPeer { url: "https://c:9000".into() }]);
    node.stop();
}

/// A page whose name was made to lead to this node is of one site with it, as far as a browser can see.
fn browsers_must_name_the_node<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    for (host, status) in [("evil.example:9000", 403), ("localhost:9000", 200), ("127.0.0.1:9000", 200)] {
        let origin = format!("http://{host}");
        for headers in
            [&[("Host", host), ("Origin", &origin)][..], &[("Host", host), ("Sec-Fetch-Site", "same-origin")]]
        {
            let answer = request(at, "GET", "/v1/index", headers, &[]);
            assert_eq!(answer.status, status, "{host}: {}", answer.text());
        }
        // Programs may use any name.
        assert_eq!(request(at, "GET", "/v1/index", &[("Host", host)], &[]).status, 200, "{host}");
    }
    node.stop();
}

fn files_come_and_go<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let (at, dir) = (node.address, node.dir.path().to_owned());
    let put = request(at, "PUT", "/v1/file?path=/a/b/c.txt", &[], b"hello");
    assert_eq!((put.status, put.body.len()), (204, 0));
    assert_eq!(fs::read(dir.join("a/b/c.txt")).unwrap(), b"hello");
    let got = get(at, "/v1/file?path=a/b/c.txt");
    assert_eq!((got.status, got.text()), (200, "hello"));
    assert_eq!(got.header("etag"), put.header("etag"));
    assert!(got.header("etag").unwrap().starts_with('"'), "strong");
    assert!(got.header("last-modified").unwrap().ends_with("GMT"));
    assert_eq!(got.header("accept-ranges"), Some("bytes"));
    assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
    assert!(got.header("content-type").unwrap().starts_with("text/plain"));
    let head = request(at, "HEAD", "/v1/file?path=a/b/c.txt", &[], &[]);
    assert_eq!((head.status, head.header("content-length"), head.header("etag")), (200, Some("5"), got.header("etag")));
    // Mode of an existing file is kept.
    fs::set_permissions(dir.join("a/b/c.txt"), fs::Permissions::from_mode(0o750)).unwrap();
    request(at, "PUT", "/v1/file?path=a/b/c.txt", &[], b"again");
    assert_eq!(fs::metadata(dir.join("a/b/c.txt")).unwrap().permissions().mode() & 0o777, 0o750);
    // Empty, binary, and a name that is not UTF-8.
    request(at, "PUT", "/v1/file?path=empty", &[], b"");
    assert_eq!((get(at, "/v1/file?path=empty").status, get(at, "/v1/file?path=empty").body.len()), (200, 0));
    assert_eq!(request(at, "PUT", "/v1/file?path=%ff%00x", &[], b"no").status, 400);
    assert_eq!(request(at, "PUT", "/v1/file?path=%ffx", &[], b"\x00\x01").status, 204);
    assert_eq!(fs::read(dir.join(std::ffi::OsStr::from_bytes(b"\xffx"))).unwrap(), b"\x00\x01");
    assert_eq!(get(at, "/v1/file?path=%FFx").header("content-type"), Some("application/octet-stream"));
    assert_eq!(request(at, "PUT", "/v1/file?path=a+b%2Bc..d", &[], b"1").status, 204);
    assert!(dir.join("a b+c..d").exists());
    // Deleting, also twice.
    for _ in 0..2 {
        assert_eq!(request(at, "DELETE", "/v1/file?path=a/b/c.txt", &[], &[]).status, 204);
    }
    let gone = get(at, "/v1/file?path=a/b/c.txt");
    assert_eq!((gone.status, gone.json()["error"].clone()), (404, json!("not_found")));
    assert_eq!(request(at, "DELETE", "/v1/file?path=a", &[], &[]).status, 500, "not empty");
    assert_eq!(request(at, "DELETE", "/v1/file?path=a/b", &[], &[]).status, 204);
    let is_dir = get(at, "/v1/file?path=a");
    assert_eq!((is_dir.status, is_dir.json()["message"].clone()), (400, json!("is a directory")));
    assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"x").status, 400);
    for (path, why) in [
        ("", "missing path"),
        ("?path=", "missing path"),
        ("?path=/", "invalid path"),
        ("?path=..", "invalid path"),
        ("?path=a/../b", "invalid path"),
        ("?path=%2e%2e/etc/passwd", "invalid path"),
        ("?path=..%2fetc%2fpasswd", "invalid path"),
        ("?path=a%00b", "invalid path"),
        ("?path=.", "invalid path"),
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = request(at, method, &format!("/v1/file{path}"), &[], &[]);
            assert_eq!((answer.status, answer.json()["message"].clone()), (400, json!(why)), "{method} {path}");
        }
    }
    node.stop();
}

fn conditions<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    let path = "/v1/file?path=f";
    let first = request(at, "PUT", path, &[("If-None-Match", "*")], b"one");
    assert_eq!(first.status, 204);
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(request(at, "PUT", path, &[("If-None-Match", "*")], b"two").status, 412);
    assert_eq!(request(at, "PUT", path, &[("If-Match", "\"other\"")], b"two").status, 412);
    assert_eq!(get(at, path).text(), "one");
    assert_eq!(request(at, "GET", path, &[("If-None-Match", &tag)], &[]).status, 304);
    assert_eq!(request(at, "GET", path, &[("If-None-Match", "\"x\"")], &[]).status, 200);
    assert_eq!(request(at, "GET", path, &[("If-Match", "\"x\"")], &[]).status, 412);
    let date = get(at, path).header("last-modified").unwrap().to_owned();
    let not_modified = request(at, "GET", path, &[("If-Modified-Since", &date)], &[]);
    assert_eq!((not_modified.status, not_modified.header("etag")), (304, Some(tag.as_str())));
    let second = request(at, "PUT", path, &[("If-Match", &tag)], b"two!");
    assert_eq!(second.status, 204);
    assert_ne!(second.header("etag"), Some(tag.as_str()));
    assert_eq!(request(at, "DELETE", path, &[("If-Match", &tag)], &[]).status, 412);
    assert_eq!(request(at, "DELETE", path, &[("If-Match", second.header("etag").unwrap())], &[]).status, 204);
    assert_eq!(request(at, "DELETE", path, &[("If-Match", "*")], &[]).status, 412);
    assert_eq!(request(at, "PUT", path, &[("If-Match", "*")], b"x").status, 412);
    assert_eq!(request(at, "PUT", path, &[("Content-Range", "bytes 0-1/5")], b"x").status, 400);
    // Of many that expect the same version exactly one wins.
    let tag = request(at, "PUT", path, &[], b"start").header("etag").unwrap().to_owned();
    let racers: Vec<_> = (0..8)
        .map(|i| {
            let tag = tag.clone();
            std::thread::spawn(move || {
                request(at, "PUT", path, &[("If-Match", &tag)], format!("by {i}").as_bytes()).status
            })
        })
        .collect();
    let mut all: Vec<u16> = racers.into_iter().map(|r| r.join().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, [204, 412, 412, 412, 412, 412, 412, 412]);
    node.stop();
}

fn ranges<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    let content = bytes(2_000_000, 1);
    fs::write(node.dir.path().join("big"), &content).unwrap();
    let path = "/v1/file?path=big";
    let whole = get(at, path);
    assert_eq!((whole.status, whole.body == content), (200, true));
    let tag = whole.header("etag").unwrap().to_owned();
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-1000099", 1_000_000, 1_000_100),
        ("bytes=1999990-", 1_999_990, 2_000_000),
        ("bytes=-5", 1_999_995, 2_000_000),
        ("bytes=5-9999999", 5, 2_000_000),
    ] {
        let part = request(at, "GET", path, &[("Range", range)], &[]);
        assert_eq!((part.status, part.body == content[from..to]), (206, true), "{range}");
        assert_eq!(part.header("content-range"), Some(format!("bytes {from}-{}/2000000", to - 1).as_str()));
        let head = request(at, "HEAD", path, &[("Range", range)], &[]);
        assert_eq!((head.status, head.header("content-length")), (200, Some("2000000")), "only GET knows ranges");
    }
    let beyond = request(at, "GET", path, &[("Range", "bytes=2000000-")], &[]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */2000000")));
    assert_eq!(request(at, "GET", path, &[("Range", "lines=1-2")], &[]).status, 200);
    assert_eq!(request(at, "GET", path, &[("Range", "bytes=0-1"), ("If-Range", &tag)], &[]).status, 206);
    assert_eq!(request(at, "GET", path, &[("Range", "bytes=0-1"), ("If-Range", "\"x\"")], &[]).status, 200);
    let several = request(at, "GET", path, &[("Range", "bytes=0-9,100-109, -10")], &[]);
    assert_eq!(several.status, 206);
    let kind = several.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut want = Vec::new();
    for (from, to) in [(0, 10), (100, 110), (1_999_990, 2_000_000)] {
        write!(want, "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {from}-{}/2000000\r\n\r\n", to - 1).unwrap();
        want.extend_from_slice(&content[from..to]);
    }
    write!(want, "\r\n--{boundary}--\r\n").unwrap();
    assert_eq!(several.body, want);
    node.stop();
}

fn acknowledgement<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    for (word, ack) in [("local", Ack::Local), ("one", Ack::One), ("quorum", Ack::Quorum), ("all", Ack::All)] {
        assert_eq!(request(at, "PUT", &format!("/v1/file?path=a&ack={word}"), &[], b"x").status, 204);
        assert_eq!(node.cluster.syncs.lock().unwrap().pop(), Some(ack));
    }
    assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"x").status, 204);
    assert!(node.cluster.syncs.lock().unwrap().is_empty());
    let wrong = request(at, "PUT", "/v1/file?path=z&ack=2", &[], b"x");
    assert_eq!((wrong.status, wrong.json()["error"].clone()), (400, json!("invalid_ack")));
    assert!(!node.dir.path().join("z").exists());
    for (refused, status) in [(Refused::NotAcknowledged, 504), (Refused::Busy, 503), (Refused::LogBroken, 507)] {
        *node.cluster.sync.lock().unwrap() = Err(refused);
        let answer = request(at, "PUT", "/v1/file?path=a&ack=all", &[], b"y");
        assert_eq!(answer.status, status);
        assert!(!answer.json()["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(request(at, "DELETE", "/v1/file?path=a&ack=all", &[], &[]).status, 507);
    node.stop();
}

/// However many wait for other nodes, others are served.
fn waiting_for_others<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let at = node.address;
    assert_eq!(request(at, "PUT", "/v1/file?path=a", &[], b"x").status, 204);
    let cluster = node.cluster.clone();
    std::thread::scope(|s| {
        // Held: nobody acknowledges anything.
        let nobody = cluster.sync.lock().unwrap();
        let clients: Vec<_> = (0..300)
            .map(|i| s.spawn(move || request(at, "PUT", &format!("/v1/file?path=w{i}&ack=all"), &[], b"y").status))
            .collect();
        ice_testing::until("some wait and the rest is refused", || {
            let refused = clients.iter().filter(|c| c.is_finished()).count();
            refused + cluster.syncs.lock().unwrap().len() >= 300
        });
        assert_eq!(cluster.syncs.lock().unwrap().len(), 64);
        assert_eq!(request(at, "GET", "/v1/file?path=a", &[], &[]).body, b"x");
        drop(nobody);
        let mut statuses: Vec<u16> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        statuses.sort_unstable();
        statuses.dedup();
        assert_eq!(statuses, [204, 503]);
    });
    node.stop();
}

fn lists<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let (at, dir) = (node.address, node.dir.path().to_owned());
    assert_eq!(get(at, "/v1/index").json(), json!([]));
    fs::create_dir_all(dir.join("d/empty")).unwrap();
    for i in 0..3000 {
        fs::write(dir.join(format!("d/{i:04}-{}", "x".repeat(60))), "abc").unwrap();
    }
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"\xff")), "z").unwrap();
    std::os::unix::fs::symlink("d", dir.join("link")).unwrap();
    let answer = get(at, "/v1/index");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let mut all = answer.json().as_array().unwrap().clone();
    all.sort_by_key(|e| e["path"].as_str().unwrap().to_owned());
    assert_eq!(all.len(), 3001);
    assert_eq!(all[7]["path"], format!("d/0007-{}", "x".repeat(60)));
    assert_eq!(all[7]["size"], 3);
    let stat = get(at, &format!("/v1/file?path=d/0007-{}", "x".repeat(60)));
    assert_eq!(stat.header("etag"), Some(format!("\"{}\"", all[7]["digest"].as_str().unwrap()).as_str()));
    assert!(all[7]["mtime"].as_i64().unwrap() > 1_600_000_000_000_000_000);
    assert_eq!((&all[3000]["path"], &all[3000]["raw"]), (&json!("\u{fffd}"), &json!("%FF")));
    let mut root = get(at, "/v1/list").json().as_array().unwrap().clone();
    root.sort_by_key(|e| e["name"].as_str().unwrap().to_owned());
    let kinds: Vec<_> = root.iter().map(|e| (e["name"].as_str().unwrap(), e["kind"].as_str().unwrap())).collect();
    assert_eq!(kinds, [("d", "dir"), ("link", "link"), ("\u{fffd}", "file")]);
    assert_eq!(get(at, "/v1/list?path=d").json().as_array().unwrap().len(), 3001);
    assert_eq!(get(at, "/v1/list?path=/").json().as_array().unwrap().len(), 3);
    assert_eq!((get(at, "/v1/list?path=nope").status, get(at, "/v1/list?path=../x").status), (404, 400));
    node.stop();
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn hundred_megabytes_in_bounded_memory<R: Runtime>(rt: R) {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 100;
    let mut node = plain(rt);
    let at = node.address;
    let piece = bytes(PIECE, 3);
    let before = resident();
    let mut most = before;
    let mut stream = connect(at);
    write!(stream, "PUT /v1/file?path=big HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", PIECE * PIECES).unwrap();
    for _ in 0..PIECES {
        stream.write_all(&piece).unwrap();
        most = most.max(resident());
    }
    assert_eq!(read_answer(&mut stream, false).unwrap().status, 204);
    write!(stream, "GET /v1/file?path=big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let (status, _) = support::client::read_head(&mut stream).unwrap();
    assert_eq!(status, 200);
    let mut buf = vec![0; PIECE];
    for _ in 0..PIECES {
        stream.read_exact(&mut buf).unwrap();
        assert!(buf == piece);
        most = most.max(resident());
    }
    assert_eq!(stream.read(&mut buf).unwrap(), 0);
    assert!(most - before < 40 * 1024, "{} KiB more for 100 MiB of content", most - before);
    node.stop();
}

/// A chunked body, a second request on the connection, and a body that ends early.
fn bodies<R: Runtime>(rt: R) {
    let mut node = plain(rt);
    let (at, dir) = (node.address, node.dir.path().to_owned());
    let mut stream = connect(at);
    stream
        .write_all(b"PUT /v1/file?path=c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(read_answer(&mut stream, false).unwrap().status, 204);
    stream.write_all(b"GET /v1/file?path=c HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream, false).unwrap().text(), "abcde");
    let mut broken = connect(at);
    broken.write_all(b"PUT /v1/file?path=c HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    broken.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    broken.read_to_end(&mut rest).unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 2"), "half a body is no success");
    assert_eq!(fs::read(dir.join("c")).unwrap(), b"abcde", "and changes nothing");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "and leaves nothing behind");
    // An expectation is met before the body is sent.
    let mut polite = connect(at);
    polite
        .write_all(b"PUT /v1/file?path=c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(support::client::read_head(&mut polite).unwrap().0, 100);
    polite.write_all(b"ok").unwrap();
    assert_eq!(read_answer(&mut polite, false).unwrap().status, 204);
    assert!(try_request(at, "GET", "/v1/file?path=c", &[], &[]).unwrap().text() == "ok");
    node.stop();
}

macro_rules! suite {
    ($($name:ident),*) => {
        mod tokio {
            $(#[test] fn $name() { super::$name(ice_tokio::Tokio::new(2).unwrap()); })*
        }
        mod smol {
            $(#[test] fn $name() { super::$name(ice_smol::Smol::new(2).unwrap()); })*
        }
    };
}
suite!(
    identity_and_health,
    members,
    reading_never_changes_anything,
    the_token_protects,
    foreign_pages_may_not_write,
    browsers_must_name_the_node,
    addresses_without_tls_are_refused_where_there_is_tls,
    files_come_and_go,
    conditions,
    ranges,
    acknowledgement,
    waiting_for_others,
    lists,
    hundred_megabytes_in_bounded_memory,
    bodies
);
