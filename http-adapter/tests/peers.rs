//! Peer connections and content transfer between real nodes, on both runtimes and between them.

mod support;

use bytes::Bytes;
use ice_core::action::Send;
use ice_core::event::{Event, IoError, IoResult, LinkEvent};
use ice_core::ids::{EntryId, Incarnation, InodeId, IoToken, LinkId, PayloadId, ReplicaId};
use ice_core::message::{Held, Hello, Mark, MemberInfo, Message};
use ice_core::op::{ContentDigest, Op, OpBody, Payload};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_host::digest::of_bytes;
use ice_host::runtime::Runtime;
use ice_host::transport::{Fetch, Transport, frame};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::client::{connect, get, read_head, request};
use support::{Node, PATIENCE, Recorder, Setup, bytes};

fn up(events: &Recorder) -> (LinkId, Option<String>) {
    events.wait("link up", |e| match e {
        Event::Link(LinkEvent::Up { link, dialled }) => Some((*link, dialled.clone())),
        _ => None,
    })
}

fn down(events: &Recorder, which: LinkId) -> String {
    events.wait("link down", |e| match e {
        Event::Link(LinkEvent::Down { link, why }) if *link == which => Some(why.clone()),
        _ => None,
    })
}

fn dial_failed(events: &Recorder) -> String {
    events.wait("failed dial", |e| match e {
        Event::Link(LinkEvent::DialFailed { why, .. }) => Some(why.clone()),
        _ => None,
    })
}

fn message(events: &Recorder, on: LinkId) -> Message {
    events.wait("message", |e| match e {
        Event::Peer { link, message } if *link == on => Some(message.clone()),
        _ => None,
    })
}

fn fetched(events: &Recorder, of: u64) -> IoResult {
    events.wait("end of transfer", |e| match e {
        Event::Io { token, result } if *token == IoToken(of) => Some(result.clone()),
        _ => None,
    })
}

/// Connects `a` to `b`: the link on either side.
fn link<A: Runtime, B: Runtime>(a: &Node<A>, b: &Node<B>) -> (LinkId, LinkId) {
    a.net.send(Send::Dial { url: b.url.clone() });
    let (at_a, dialled) = up(&a.events);
    assert_eq!(dialled.as_deref(), Some(b.url.as_str()));
    let (at_b, dialled) = up(&b.events);
    assert_eq!(dialled, None);
    (at_a, at_b)
}

fn say<R: Runtime>(node: &Node<R>, link: LinkId, message: Message) {
    node.net.send(Send::Message { link, message });
}

fn hello(replica: u64, url: &str) -> Message {
    Message::Hello(Box::new(Hello {
        member: MemberInfo {
            replica: ReplicaId(replica),
            life: ReplicaId(replica),
            incarnation: Incarnation(1),
            name: format!("node-{replica}"),
            urls: vec![url.to_owned()],
            clients: vec![],
            left: false,
            revision: 1,
        },
        called: None,
        wall_ns: 1,
        known: vec![],
        cut: vec![],
        control: ice_core::control::Standing::default(),
    }))
}

fn content_op(seq: u64, payload: Option<Payload>) -> Op {
    let body = OpBody::SetContent {
        inode: InodeId(7),
        base: Stamp::ZERO,
        size: payload.map_or(0, |p| p.len.into()),
        digest: payload.map_or(ContentDigest::EMPTY, |p| p.digest),
        mtime: UnixTime { sec: 1, nsec: 2 },
    };
    Op { origin: ReplicaId(1), seq, time: Hlc(seq), body, payload }
}

fn ops(list: Vec<Op>) -> Message {
    Message::Ops { origin: ReplicaId(1), after: (0, Hlc(0)), ops: list, urgent: false }
}

fn keep<R: Runtime>(node: &Node<R>, bytes: &Bytes) -> Payload {
    let id = node.payloads.insert(bytes.clone()).unwrap();
    Payload { id, len: bytes.len() as u32, digest: of_bytes(bytes) }
}

fn payload_of(op: &Op) -> Payload {
    op.payload.unwrap()
}

/// Messages with payloads, in order, and what is left of them.
fn talk<A: Runtime, B: Runtime>(a: A, b: B) {
    let setup = || Setup { token: Some("s3cret"), ..Setup::default() };
    let (mut a, mut b) = (Node::start(a, setup()), Node::start(b, setup()));
    let (at_a, at_b) = link(&a, &b);
    say(&a, at_a, hello(1, &a.url));
    assert_eq!(message(&b.events, at_b), hello(1, &a.url));
    let contents: Vec<Bytes> = (0..40).map(|i| bytes(i * 1700, i as u8)).collect();
    let payloads: Vec<Payload> = contents.iter().map(|c| keep(&a, c)).collect();
    for (i, payload) in payloads.iter().enumerate() {
        let plain = content_op(2 * i as u64 + 2, None);
        say(&a, at_a, ops(vec![content_op(2 * i as u64 + 1, Some(*payload)), plain]));
    }
    // Sent is sent: the handles may go before a byte has left.
    for payload in &payloads {
        a.payloads.release(payload.id);
    }
    for (i, content) in contents.iter().enumerate() {
        let Message::Ops { ops, .. } = message(&b.events, at_b) else { panic!("not operations") };
        assert_eq!((ops[0].seq, ops[1].seq, ops[1].payload), (2 * i as u64 + 1, 2 * i as u64 + 2, None));
        let payload = payload_of(&ops[0]);
        assert_eq!(b.payloads.get(payload.id).as_ref(), Some(content));
        b.payloads.release(payload.id);
    }
    assert_eq!((a.payloads.used().count, b.payloads.used().count), (0, 0));
    // The way back, and counters: the answer acknowledges all.
    let held = Held { log: vec![Mark { origin: ReplicaId(1), seq: 80, time: Hlc(80) }], ..Held::default() };
    say(&b, at_b, Message::Held(held));
    assert!(matches!(message(&a.events, at_a), Message::Held(_)));
    let stats = a.net.counters().to_json();
    let put = &stats[&b.url]["ops"]["PUT"];
    assert_eq!(
        (put["requests"].as_u64(), put["success"].as_u64(), put["fail"].as_u64()),
        (Some(80), Some(80), Some(0))
    );
    a.net.send(Send::Hangup { link: at_a, why: "enough".into() });
    assert_eq!(down(&a.events, at_a), "enough");
    assert_eq!(down(&b.events, at_b), "closed by the other side");
    say(&a, at_a, Message::Bye);
    a.stop();
    b.stop();
}

fn links_are_told_apart<R: Runtime>(rt: R) {
    let (mut a, mut b) = (Node::start(rt.clone(), Setup::default()), Node::start(rt, Setup::default()));
    let (a1, b1) = link(&a, &b);
    let (a2, b2) = link(&a, &b);
    let (b3, a3) = link(&b, &a);
    assert!(a1 != a2 && b1 != b2 && a3 != a1 && a3 != a2 && b3 != b1 && b3 != b2);
    say(&a, a2, Message::Want { origin: ReplicaId(2), from: 2 });
    say(&a, a1, Message::Want { origin: ReplicaId(1), from: 1 });
    say(&a, a3, Message::Want { origin: ReplicaId(3), from: 3 });
    for (on, n) in [(b1, 1), (b2, 2), (b3, 3)] {
        assert_eq!(message(&b.events, on), Message::Want { origin: ReplicaId(n), from: n });
    }
    a.net.send(Send::Hangup { link: a1, why: "a duplicate".into() });
    down(&b.events, b1);
    say(&a, a2, Message::Bye);
    assert_eq!(message(&b.events, b2), Message::Bye, "the other connections live on");
    // A node may dial itself: the core finds out.
    let (mine, _) = {
        a.net.send(Send::Dial { url: a.url.clone() });
        (up(&a.events), up(&a.events))
    };
    a.net.send(Send::Hangup { link: mine.0, why: "it is me".into() });
    assert_eq!(down(&a.events, mine.0), "it is me");
    a.stop();
    assert_eq!(down(&a.events, a2), "this node stops");
    b.stop();
}

/// Answers every connection with the same bytes, once its request is complete.
fn impostor(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = read_head(&mut stream);
            let _ = stream.write_all(answer);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    });
    url
}

fn dials_fail_with_words<R: Runtime>(rt: R) {
    let mut a = Node::start(rt.clone(), Setup { token: Some("s3cret"), ..Setup::default() });
    let mut other = Node::start(rt, Setup { token: Some("different"), ..Setup::default() });
    let gone = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let cases = [
        (other.url.clone(), "401 Unauthorized: a valid bearer token is needed"),
        (gone, "cannot connect"),
        ("ftp://x".to_owned(), "only http and https"),
        ("https://127.0.0.1:1".to_owned(), "cannot connect"),
        (impostor(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope"), "404 Not Found: nope"),
        (
            impostor(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 40\r\n\r\n{\"error\":\"x\",\"message\":\"speak 2\\n\"}    \r\n"),
            "426 Upgrade Required: speak 2",
        ),
        (impostor(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"), "302"),
        (impostor(b"nonsense\r\n\r\n"), "no answer"),
        // Fault 19: whoever answers must know the token, too.
        (
            impostor(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: icecluster/1\r\n\r\n"),
            "cannot prove that it knows the token",
        ),
        (
            impostor(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: icecluster/1\r\nIcecluster-Proof: 00\r\n\r\n"),
            "cannot prove",
        ),
    ];
    for (url, words) in cases {
        a.net.send(Send::Dial { url: url.clone() });
        let why = dial_failed(&a.events);
        assert!(why.contains(words), "{url}: {why:?} instead of {words:?}");
    }
    assert!(a.events.all().is_empty());
    a.stop();
    other.stop();
}

fn only_this_protocol_is_spoken<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    for headers in [
        &[][..],
        &[("Connection", "Upgrade"), ("Upgrade", "icecluster/2")],
        &[("Connection", "Upgrade"), ("Upgrade", "websocket")],
        &[("Upgrade", "icecluster/1")],
    ] {
        let answer = request(node.address, "GET", "/v1/peer", headers, &[]);
        assert_eq!(answer.status, 426, "{headers:?}");
        assert_eq!(answer.header("upgrade"), Some("icecluster/1"));
        assert!(answer.json()["message"].as_str().unwrap().contains("this node speaks icecluster/1"));
    }
    assert_eq!(request(node.address, "POST", "/v1/peer", &[], &[]).status, 405);
    assert!(node.events.all().is_empty());
    node.stop();
}

/// A connection of our own making.
fn raw<R: Runtime>(node: &Node<R>) -> (TcpStream, LinkId) {
    let mut stream = connect(node.address);
    stream
        .write_all(
            b"GET /v1/peer HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: icecluster/1\r\n\r\n",
        )
        .unwrap();
    let (status, headers) = read_head(&mut stream).unwrap();
    assert_eq!(status, 101);
    assert!(headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("upgrade") && v == "icecluster/1"));
    let (link, _) = up(&node.events);
    (stream, link)
}

fn framed(message: &Message, payloads: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(message, payloads, &mut out).unwrap();
    out
}

/// Whatever comes before or after the upgrade: the connection ends or waits, and the node serves on.
fn noise_from_a_peer_does_no_harm<R: Runtime>(rt: R) {
    let (mut node, mut other) = (Node::start(rt.clone(), Setup::default()), Node::start(rt, Setup::default()));
    let words: [&[u8]; 8] =
        [b"Upgrade", b"icecluster/1", b"icecluster/99", b"keep-alive", b",", b"\xff\xfe", b"websocket", b""];
    for seed in 0..40u8 {
        let pick = bytes(8, seed);
        let word = |i: usize| words[usize::from(pick[i]) % words.len()];
        let mut head = b"GET /v1/peer HTTP/1.1\r\nHost: x\r\n".to_vec();
        for (name, i) in [("Connection", 0), ("Upgrade", 1), ("icecluster-nonce", 2), ("icecluster-version", 3)] {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(&[word(i), word(i + 4)].concat());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(&bytes(usize::from(seed) * 50, seed));
        let mut stream = connect(other.address);
        // It may be refused before it has said all.
        let _ = stream.write_all(&head).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let _ = std::io::copy(&mut stream, &mut std::io::sink());

        let (mut stream, link) = raw(&node);
        let _ = stream
            .write_all(&bytes(1 + usize::from(seed) * 70, seed))
            .and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        down(&node.events, link);
    }
    for node in [&mut node, &mut other] {
        assert_eq!(get(node.address, "/health").status, 200);
        node.stop();
    }
}

fn damaged_frames_end_the_connection<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let good = framed(&Message::Bye, &[]);
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let content = bytes(100, 1);
    let lie = Payload { id: PayloadId(1), len: 100, digest: of_bytes(b"something else") };
    let mut future = good.clone();
    future[12] = 77;
    let crc = crc32c_of(&future[8..]);
    future[4..8].copy_from_slice(&crc.to_le_bytes());
    let cases: [(Vec<u8>, &str); 6] = [
        (flipped(4), "checksum"),
        (flipped(good.len() - 1), "checksum"),
        (vec![0xff; 64], "frame of 4294967295 bytes"),
        (vec![0; 64], "frame of 0 bytes"),
        (framed(&ops(vec![content_op(1, Some(lie))]), &[content]), "payload 0 of the message does not match"),
        (future, "protocol version 77"),
    ];
    for (bad, words) in cases {
        let (mut stream, link) = raw(&node);
        stream.write_all(&good).unwrap();
        stream.write_all(&bad).unwrap();
        assert_eq!(message(&node.events, link), Message::Bye, "what came before counts");
        let why = down(&node.events, link);
        assert!(why.contains(words), "{why:?} instead of {words:?}");
        // The reason is told before the end.
        let mut last = Vec::new();
        stream.read_to_end(&mut last).unwrap();
        let told = frame::decode(&mut bytes::BytesMut::from(&last[..])).unwrap().unwrap();
        assert_eq!(*told.message(), Message::Refuse { why });
    }
    assert_eq!(node.payloads.used().count, 0);
    node.stop();
}

fn crc32c_of(bytes: &[u8]) -> u32 {
    // Bit by bit, as in RFC 3720, appendix B.4: a second opinion on the framing's.
    let mut crc = !0u32;
    for b in bytes {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Frames arrive in any pieces.
fn frames_in_pieces<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let (mut stream, link) = raw(&node);
    let content = bytes(300, 9);
    let payload = Payload { id: PayloadId(99), len: 300, digest: of_bytes(&content) };
    let all = framed(&ops(vec![content_op(1, Some(payload))]), std::slice::from_ref(&content));
    for piece in all.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    let Message::Ops { ops, .. } = message(&node.events, link) else { panic!("not operations") };
    assert_eq!(node.payloads.get(payload_of(&ops[0]).id), Some(content));
    node.payloads.release(payload_of(&ops[0]).id);
    // An end within a frame is an end like any other.
    stream.write_all(&all[..50]).unwrap();
    drop(stream);
    down(&node.events, link);
    node.stop();
}

/// The engine never waits for a peer that takes nothing, and memory stays bounded.
fn a_deaf_peer_costs_little<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let (stream, link) = raw(&node);
    let content = bytes(60_000, 3);
    let payload = keep(&node, &content);
    let start = Instant::now();
    for seq in 1..3000 {
        say(&node, link, ops(vec![content_op(seq, Some(payload))]));
    }
    assert!(start.elapsed() < PATIENCE, "sending waited");
    node.payloads.release(payload.id);
    // All that was not taken is dropped with the connection.
    drop(stream);
    down(&node.events, link);
    let stats = node.net.counters().to_json();
    let put = stats.as_object().unwrap().values().next().unwrap()["ops"]["PUT"].clone();
    assert!(put["requests"].as_u64().unwrap() < 3000 && put["success"] == 0, "{put}");
    assert_eq!(put["fail"], put["requests"]);
    node.stop();
}

fn over_tls<A: Runtime, B: Runtime>(a: A, b: B) {
    let setup = || Setup { token: Some("s3cret"), tls: true, https_only: true, ..Setup::default() };
    let (mut a, mut b) = (Node::start(a, setup()), Node::start(b, setup()));
    let (at_a, at_b) = link(&a, &b);
    let content = bytes(60_000, 4);
    for seq in 1..50 {
        let payload = keep(&a, &content);
        say(&a, at_a, ops(vec![content_op(seq, Some(payload))]));
        a.payloads.release(payload.id);
    }
    for _ in 1..50 {
        let Message::Ops { ops, .. } = message(&b.events, at_b) else { panic!("not operations") };
        assert_eq!(b.payloads.get(payload_of(&ops[0]).id).as_ref(), Some(&content));
    }
    transfer(&a, at_a, &b, at_b, 5_000_000);
    // Nothing is ever said to an address without TLS: not to one that was dialled, nor to one that a member named.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    deaf.set_nonblocking(true).unwrap();
    let plain = format!("http://{}", deaf.local_addr().unwrap());
    a.net.send(Send::Dial { url: plain.clone() });
    let why = dial_failed(&a.events);
    assert!(why.contains("clear text") && why.contains("https://"), "{why}");
    assert!(deaf.accept().is_err(), "nobody came");
    // A node that trusts somebody else refuses.
    let mut stranger = Node::start(a.runtime.clone(), Setup { token: Some("s3cret"), ..Setup::default() });
    stranger.net.send(Send::Dial { url: b.url.clone() });
    assert!(dial_failed(&stranger.events).contains("https needs"));
    stranger.stop();
    a.stop();
    b.stop();
}

fn version(n: u64) -> Stamp {
    Stamp { time: Hlc(n), replica: ReplicaId(0xb) }
}

fn fetch(token: u64, content: &[u8], n: u64) -> Fetch {
    Fetch {
        token: IoToken(token),
        from: ReplicaId(2),
        inode: InodeId(0xabc),
        version: version(n),
        size: content.len() as u64,
        digest: of_bytes(content),
    }
}

/// `b` introduces itself as replica 2, `a` fetches from it.
fn transfer<A: Runtime, B: Runtime>(a: &Node<A>, at_a: LinkId, b: &Node<B>, at_b: LinkId, size: usize) {
    say(b, at_b, hello(2, &b.url));
    assert!(matches!(message(&a.events, at_a), Message::Hello(_)));
    let content = bytes(size, 5);
    b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(1)), Arc::new(content.to_vec()));
    a.net.fetch(fetch(1, &content, 1));
    assert_eq!(fetched(&a.events, 1), IoResult::Fetched);
    assert!(a.store.staged.lock().unwrap()[&(InodeId(0xabc), version(1))] == content);
}

fn content_is_fetched<A: Runtime, B: Runtime>(a: A, b: B) {
    let setup = || Setup { token: Some("s3cret"), ..Setup::default() };
    let (mut a, mut b) = (Node::start(a, setup()), Node::start(b, setup()));
    let (at_a, at_b) = link(&a, &b);
    transfer(&a, at_a, &b, at_b, 20_000_000);
    // What is there already is not fetched again: also the other node's absence is not noticed.
    let content = bytes(20_000_000, 5);
    b.store.versions.lock().unwrap().clear();
    a.net.fetch(fetch(2, &content, 1));
    assert_eq!(fetched(&a.events, 2), IoResult::Fetched);
    // Many at once, more than run at once.
    let contents: Vec<Bytes> = (0..30).map(|i| bytes(100_000 + i * 1000, i as u8)).collect();
    for (i, c) in contents.iter().enumerate() {
        b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(100 + i as u64)), Arc::new(c.to_vec()));
    }
    for (i, c) in contents.iter().enumerate() {
        a.net.fetch(fetch(100 + i as u64, c, 100 + i as u64));
    }
    for (i, c) in contents.iter().enumerate() {
        assert_eq!(fetched(&a.events, 100 + i as u64), IoResult::Fetched);
        assert!(a.store.staged.lock().unwrap()[&(InodeId(0xabc), version(100 + i as u64))] == *c);
    }
    a.stop();
    b.stop();
}

fn transfers_end_whatever_happens<R: Runtime>(rt: R) {
    let (mut a, mut b) = (Node::start(rt.clone(), Setup::default()), Node::start(rt, Setup::default()));
    let (at_a, at_b) = link(&a, &b);
    let content = bytes(3_000_000, 6);
    a.net.fetch(fetch(1, &content, 9));
    assert_eq!(fetched(&a.events, 1), IoResult::Failed(IoError::Unreachable), "no address is known yet");
    transfer(&a, at_a, &b, at_b, 10);
    let failed = |token, why| assert_eq!(fetched(&a.events, token), IoResult::Failed(why));
    a.net.fetch(fetch(2, &content, 9));
    failed(2, IoError::Gone);
    let add = |n, bytes: &Bytes| {
        b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(n)), Arc::new(bytes.to_vec()))
    };
    // A break in the middle: the transfer goes on where it was.
    add(10, &content);
    *b.store.break_read_at.lock().unwrap() = Some(1_500_000);
    a.net.fetch(fetch(3, &content, 10));
    assert_eq!(fetched(&a.events, 3), IoResult::Fetched);
    assert!(b.store.break_read_at.lock().unwrap().is_none(), "it did break");
    // Other bytes of the same length.
    add(11, &bytes(3_000_000, 7));
    a.net.fetch(fetch(4, &content, 11));
    failed(4, IoError::Mismatch);
    // Another length.
    add(12, &bytes(4_000_000, 6));
    a.net.fetch(fetch(5, &content, 12));
    failed(5, IoError::Mismatch);
    add(13, &content);
    *a.store.fail_write.lock().unwrap() = Some(28);
    a.net.fetch(fetch(6, &content, 13));
    failed(6, IoError::NoSpace);
    *a.store.fail_write.lock().unwrap() = Some(5);
    a.net.fetch(fetch(7, &content, 13));
    failed(7, IoError::Broken);
    *a.store.fail_write.lock().unwrap() = None;
    b.stop();
    a.net.fetch(fetch(8, &content, 13));
    failed(8, IoError::Unreachable);
    a.stop();
}

/// A small change of a large file costs the blocks it touched.
fn only_what_differs_is_transferred<R: Runtime>(rt: R) {
    let (mut a, mut b) = (Node::start(rt.clone(), Setup::default()), Node::start(rt, Setup::default()));
    let (at_a, at_b) = link(&a, &b);
    transfer(&a, at_a, &b, at_b, 10);
    let base = bytes(8_000_000, 8);
    let mut content = base.to_vec();
    content[1_000_000] ^= 1;
    content[5_000_000] ^= 1;
    content.extend_from_slice(&bytes(100, 9));
    b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(20)), Arc::new(content.clone()));
    *a.store.base.lock().unwrap() = Some(base.to_vec());
    a.store.written.lock().unwrap().clear();
    // The first range breaks once, and is gone on with.
    *b.store.break_read_at.lock().unwrap() = Some(5_000_000);
    a.net.fetch(fetch(20, &content, 20));
    assert_eq!(fetched(&a.events, 20), IoResult::Fetched);
    assert!(a.store.staged.lock().unwrap()[&(InodeId(0xabc), version(20))] == content);
    let moved: u64 = a.store.written.lock().unwrap().iter().map(|r| r.end - r.start).sum();
    let tail = content.len() as u64 - 30 * 262_144;
    assert_eq!(moved, 2 * 262_144 + tail, "two blocks and the end");
    // A file that shares nothing comes whole, and one that shares all not at all.
    let other = bytes(3_000_000, 10);
    b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(21)), Arc::new(other.to_vec()));
    a.net.fetch(fetch(21, &other, 21));
    assert_eq!(fetched(&a.events, 21), IoResult::Fetched);
    a.store.written.lock().unwrap().clear();
    b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(22)), Arc::new(base.to_vec()));
    a.net.fetch(fetch(22, &base, 22));
    assert_eq!(fetched(&a.events, 22), IoResult::Fetched);
    assert!(a.store.written.lock().unwrap().is_empty());
    // What was here changes under our hands: then everything is fetched.
    *a.store.spoil_reuse.lock().unwrap() = true;
    b.store.versions.lock().unwrap().insert((InodeId(0xabc), version(23)), Arc::new(content.clone()));
    a.net.fetch(fetch(23, &content, 23));
    assert_eq!(fetched(&a.events, 23), IoResult::Fetched);
    assert!(a.store.staged.lock().unwrap()[&(InodeId(0xabc), version(23))] == content);
    a.stop();
    b.stop();
}

fn content_requests_are_checked<R: Runtime>(rt: R) {
    let mut node = Node::start(rt, Setup::default());
    let at = node.address;
    let content = bytes(1000, 1);
    node.store.versions.lock().unwrap().insert((InodeId(0xab), version(3)), Arc::new(content.to_vec()));
    let path = "/v1/peer/content?inode=ab&version=3-b";
    let all = request(at, "GET", path, &[], &[]);
    assert_eq!((all.status, all.body == content, all.header("content-range")), (206, true, Some("bytes 0-999/1000")));
    let part = request(at, "GET", path, &[("Range", "bytes=990-")], &[]);
    assert_eq!((part.status, part.body == content[990..]), (206, true));
    let middle = request(at, "GET", path, &[("Range", "bytes=10-19")], &[]);
    assert_eq!((middle.body == content[10..20], middle.header("content-range")), (true, Some("bytes 10-19/1000")));
    let blocks = request(at, "GET", "/v1/peer/blocks?inode=ab&version=3-b", &[], &[]);
    assert_eq!((blocks.status, blocks.body), (200, of_bytes(&content).0.to_vec()));
    for (path, range, status) in [
        (path, "bytes=1000-", 416),
        (path, "bytes=2-1", 400),
        ("/v1/peer/blocks?inode=ab&version=4-b", "bytes=0-", 410),
        ("/v1/peer/blocks?inode=ab", "bytes=0-", 400),
        ("/v1/peer/content", "bytes=0-", 400),
        ("/v1/peer/content?inode=ab&version=4-b", "bytes=0-", 410),
        ("/v1/peer/content?inode=zz&version=4-b", "bytes=0-", 400),
    ] {
        assert_eq!(request(at, "GET", path, &[("Range", range)], &[]).status, status, "{path} {range}");
    }
    node.stop();
}

/// After a stop nothing new begins, and everything that was asked for is answered.
fn stops<R: Runtime>(rt: R) {
    let (mut a, mut b) = (Node::start(rt.clone(), Setup::default()), Node::start(rt, Setup::default()));
    let (at_a, at_b) = link(&a, &b);
    say(&a, at_a, Message::Bye);
    a.net.stop();
    assert_eq!(message(&b.events, at_b), Message::Bye, "what was said before the stop arrives");
    assert_eq!(down(&a.events, at_a), "this node stops");
    down(&b.events, at_b);
    a.net.send(Send::Dial { url: b.url.clone() });
    assert_eq!(dial_failed(&a.events), "this node stops");
    a.net.fetch(fetch(1, b"x", 1));
    assert!(matches!(fetched(&a.events, 1), IoResult::Failed(_)));
    std::thread::sleep(Duration::from_millis(20));
    assert!(a.events.all().is_empty(), "each is answered once");
    let removal = OpBody::Remove { entry: EntryId(1), saw: Stamp::ZERO, last: true };
    say(&a, at_a, ops(vec![Op { origin: ReplicaId(1), seq: 1, time: Hlc(1), body: removal, payload: None }]));
    a.stop();
    b.stop();
}

macro_rules! suite {
    (one: $($one:ident),*; two: $($two:ident),*) => {
        mod tokio {
            $(#[test] fn $one() { super::$one(ice_tokio::Tokio::new(2).unwrap()); })*
            $(#[test] fn $two() { super::$two(ice_tokio::Tokio::new(2).unwrap(), ice_tokio::Tokio::new(1).unwrap()); })*
        }
        mod smol {
            $(#[test] fn $one() { super::$one(ice_smol::Smol::new(2).unwrap()); })*
            $(#[test] fn $two() { super::$two(ice_smol::Smol::new(2).unwrap(), ice_smol::Smol::new(1).unwrap()); })*
        }
        mod mixed {
            $(#[test] fn $two() { super::$two(ice_tokio::Tokio::new(1).unwrap(), ice_smol::Smol::new(1).unwrap()); })*
        }
    };
}
suite!(
    one: links_are_told_apart, dials_fail_with_words, only_this_protocol_is_spoken, noise_from_a_peer_does_no_harm, damaged_frames_end_the_connection,
         frames_in_pieces, a_deaf_peer_costs_little, transfers_end_whatever_happens, content_requests_are_checked,
         only_what_differs_is_transferred, stops;
    two: talk, over_tls, content_is_fetched
);
