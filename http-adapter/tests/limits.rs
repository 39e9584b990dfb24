//! Clients that are slow, many, or talk nonsense; and a graceful stop.

mod support;

use ice_host::runtime::Runtime;
use ice_http::Limits;
use ice_testing::until;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::client::{connect, get, read_answer, read_head, request};
use support::{Node, PATIENCE, Setup, bytes, tls_file};

fn short() -> Limits {
    Limits {
        head: Duration::from_millis(300),
        body_pause: Duration::from_millis(300),
        write_stall: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Reads to the end of the connection, which must come within the patience of the socket.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => all,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => all,
        Err(e) => panic!("the connection was not closed: {e}"),
    }
}

fn slow_heads_are_cut_off<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { limits: short(), ..Setup::default() });
    // Nothing at all; an unfinished head; a head that drips; and nothing after a first request.
    let mut silent = connect(node.address);
    let mut half = connect(node.address);
    half.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut idle = connect(node.address);
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut idle, false).unwrap().text(), "ok");
    let mut drip = connect(node.address);
    let deadline = Instant::now() + PATIENCE;
    drip.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    while drip.write_all(b"X: y\r\n").is_ok() {
        assert!(Instant::now() < deadline, "a dripping head is served for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    for stream in [&mut silent, &mut half, &mut idle] {
        assert!(!rest(stream).starts_with(b"HTTP/1.1 200"));
    }
    node.stop();
}

fn slow_bodies_are_cut_off<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { limits: short(), ..Setup::default() });
    let mut stream = connect(node.address);
    stream.write_all(b"PUT /v1/file?path=a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123").unwrap();
    assert_eq!(read_answer(&mut stream, false).unwrap().status, 408);
    assert_eq!(std::fs::read_dir(node.dir.path()).unwrap().count(), 0, "nothing is left of it");
    node.stop();
}

fn clients_that_take_nothing_are_cut_off<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { limits: short(), ..Setup::default() });
    std::fs::write(node.dir.path().join("big"), bytes(64 << 20, 1)).unwrap();
    let mut stream = connect(node.address);
    stream.write_all(b"GET /v1/file?path=big HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_head(&mut stream).unwrap().0, 200);
    std::thread::sleep(Duration::from_millis(900));
    assert!(rest(&mut stream).len() < 64 << 20, "it was cut off");
    node.stop();
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// Asks on a connection of its own, which may be refused before anything is said.
fn ask_once(at: std::net::SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = connect(at);
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    rest(&mut stream)
}

fn connections_at_work_are_counted_and_peers_have_places_of_their_own<R: Runtime>(rt: R) {
    let limits = Limits { connections: 4, peer_places: 1, ..Limits::default() };
    let mut node = Node::start(rt, Setup { limits, ..Setup::default() });
    let at = node.address;
    let mut busy: Vec<TcpStream> = (0..3).map(|_| connect(at)).collect();
    for (i, stream) in busy.iter_mut().enumerate() {
        write!(stream, "PUT /v1/file?path=f{i} HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc").unwrap();
    }
    until("all are at work", || std::fs::read_dir(node.dir.path()).unwrap().count() == 3);
    let refused = ask_once(at, "/health");
    assert!(refused.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&refused));
    let text = String::from_utf8_lossy(&refused).into_owned();
    assert!(text.ends_with(r#"{"error":"busy","message":"too many connections at once"}"#), "{text}");
    // What a peer would say is heard, and found to be incomplete.
    assert!(ask_once(at, "/v1/peer").starts_with(b"HTTP/1.1 426"));
    busy[0].write_all(b"def").unwrap();
    assert_eq!(read_answer(&mut busy[0], false).unwrap().status, 204);
    until("a place was given back", || ask_once(at, "/health").starts_with(b"HTTP/1.1 200"));
    node.stop();
}

fn idle_connections_make_room_strangers_first<R: Runtime>(rt: R) {
    let limits = Limits { connections: 4, ..Limits::default() };
    let mut node = Node::start(rt, Setup { limits, token: Some("s3cret"), ..Setup::default() });
    let at = node.address;
    let member = b"GET /v1/node HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n\r\n";
    let mut known = connect(at);
    known.write_all(member).unwrap();
    assert_eq!(read_answer(&mut known, false).unwrap().status, 200);
    // Some that say something, some that do not.
    let strangers: Vec<TcpStream> = (0..20)
        .map(|i| {
            let mut stream = connect(at);
            if i % 2 == 0 {
                stream.write_all(HEALTH).unwrap();
                assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
            }
            stream
        })
        .collect();
    for mut gone in strangers.into_iter().take(10) {
        assert!(rest(&mut gone).is_empty(), "it was closed");
    }
    known.write_all(member).unwrap();
    assert_eq!(read_answer(&mut known, false).unwrap().status, 200, "who belongs here stays");
    node.stop();
}

fn nonsense_is_refused<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let at = node.address;
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    let long = format!("GET /health HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(400_000));
    let raw: [(&[u8], &[u8]); 6] = [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (many.as_bytes(), b"HTTP/1.1 431"),
        (long.as_bytes(), b"HTTP/1.1 431"),
        (b"PUT /v1/file?path=a HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"HTTP/1.1 400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 "),
    ];
    for (sent, answer) in raw {
        let mut stream = connect(at);
        // It may be refused before it is read to its end.
        let _ = stream.write_all(sent);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let got = rest(&mut stream);
        let shown = String::from_utf8_lossy(&got[..got.len().min(60)]).into_owned();
        assert!(got.is_empty() || got.starts_with(answer), "{:?}: {shown:?}", &sent[..sent.len().min(30)]);
        assert!(!got.starts_with(b"HTTP/1.1 2"), "{shown:?}");
    }
    assert_eq!(get(at, "/health").status, 200);
    node.stop();
}

/// No bytes stop the server. The bytes are drawn from one seed.
fn noise_does_no_harm<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { limits: short(), ..Setup::default() });
    for seed in 0..60 {
        let mut noise = bytes(1 + usize::from(seed) * 13, seed).to_vec();
        if seed % 2 == 0 {
            noise.splice(0..0, *b"GET /v1/file?path=");
        }
        let mut stream = connect(node.address);
        let _ = stream.write_all(&noise);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        rest(&mut stream);
    }
    assert_eq!(get(node.address, "/health").status, 200);
    node.stop();
}

fn stops_gracefully<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let at = node.address;
    let mut idle = connect(at);
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_answer(&mut idle, false).unwrap();
    let mut busy = connect(at);
    busy.write_all(b"PUT /v1/file?path=a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc").unwrap();
    // Until the request has been taken up.
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_dir(node.dir.path()).unwrap().count() == 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let finish = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        busy.write_all(b"def").unwrap();
        read_answer(&mut busy, false).unwrap().status
    });
    node.stop();
    assert_eq!(finish.join().unwrap(), 204, "a request in flight is served to its end");
    assert!(rest(&mut idle).is_empty());
    assert!(TcpStream::connect(at).is_err(), "nobody listens any more");
    assert_eq!(std::fs::read(node.dir.path().join("a")).unwrap(), b"abcdef");
}

fn tls_keeps_out_the_rest<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup { tls: true, limits: short(), ..Setup::default() });
    // Plain HTTP and silence on the TLS port end soon, and disturb nobody.
    let mut plain = connect(node.address);
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(!rest(&mut plain).starts_with(b"HTTP/1.1 200"));
    rest(&mut connect(node.address));
    let available = std::process::Command::new("curl").arg("--version").stdin(std::process::Stdio::null()).output();
    match available {
        Ok(_) => {
            let mut curl = ice_testing::command("curl");
            curl.args(["-sS", "--max-time", "60", "-w", " %{http_version}", "--cacert"])
                .arg(tls_file("ca.pem"))
                .arg(format!("https://localhost:{}/health", node.address.port()))
                .args(["--resolve", &format!("localhost:{}:127.0.0.1", node.address.port())]);
            let out = ice_testing::output(&mut curl);
            assert!(matches!(String::from_utf8_lossy(&out.stdout).as_ref(), "ok 2" | "ok 1.1"), "{out:?}");
        }
        Err(e) => eprintln!("no curl here, so HTTP over TLS is only tested between nodes: {e}"),
    }
    node.stop();
}

#[test]
fn unusable_certificates_are_explained() {
    let wrong = ice_http::TlsServer::from_files(&tls_file("node.pem"), &tls_file("ca.pem")).unwrap_err().to_string();
    assert!(wrong.contains("ca.pem"), "{wrong}");
    let none = ice_http::TlsServer::from_files(&tls_file("nope.pem"), &tls_file("node.key")).unwrap_err().to_string();
    assert!(none.contains("nope.pem"), "{none}");
    let roots = ice_http::TlsClient::from_file(Some(&tls_file("node.key"))).unwrap_err().to_string();
    assert!(roots.contains("no certificate"), "{roots}");
}

fn big_head_requests_still_work<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let long = "x".repeat(3000);
    assert_eq!(request(node.address, "GET", "/health", &[("A", &long), ("B", &long)], &[]).status, 200);
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
    slow_heads_are_cut_off,
    slow_bodies_are_cut_off,
    clients_that_take_nothing_are_cut_off,
    connections_at_work_are_counted_and_peers_have_places_of_their_own,
    idle_connections_make_room_strangers_first,
    nonsense_is_refused,
    noise_does_no_harm,
    stops_gracefully,
    tls_keeps_out_the_rest,
    big_head_requests_still_work
);
