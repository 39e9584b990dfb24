//! A node that breaks leaves its last input on the tape.

use ice_core::action::{Io, Notice, Send as NetSend};
use ice_core::config::{Config, Recovered};
use ice_core::event::{Ack, Event, Request};
use ice_core::ids::{OpToken, ReplicaId};
use ice_core::node::Node;
use ice_core::rng::Seed;
use ice_core::time::Span;
use ice_core::trace::{Frame, outbox_digest};
use ice_host::engine::{Actions, Engine};
use ice_host::payload::PayloadPool;
use ice_host::recorder::FrameReader;
use ice_host::tape::{Recorder, Ring};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const DIR: &str = "TAPE_DIR";

struct Nowhere;

impl Actions for Nowhere {
    fn send(&self, _: NetSend) {}
    fn io(&self, _: Io) {}
    fn notice(&self, _: Notice) {}
}

fn fsync(token: u64) -> Event {
    Event::Op { token: OpToken(token), op: Request::Sync { ack: Ack::One, timeout: Span::s(60) } }
}

fn engine(ring: &Arc<Ring>, file: Option<&Path>) -> Arc<Engine> {
    let recorder = Recorder::new(Some(Arc::clone(ring)), file).unwrap();
    let (config, pool) = (Config::new(ReplicaId(7), "alone"), Arc::new(PayloadPool::new(1 << 20)));
    let engine = Arc::new(Engine::new(config, Seed(1), Recovered::default(), pool, Some(recorder)));
    engine.start(Arc::new(Nowhere)).unwrap();
    engine
}

/// Not a test by itself: what the test below starts.
#[test]
fn process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = PathBuf::from(dir);
    let ring = Ring::new(1 << 20, dir.join("tapes"));
    ring.dump_on_panic();
    let engine = engine(&ring, Some(&dir.join("full.trace")));
    for token in 1000..1100 {
        engine.event(fsync(token));
    }
    // Two requests of one token: a mistake of the host that the core asserts against.
    engine.event(fsync(1000));
}

fn frames(path: &Path) -> Vec<Frame> {
    let mut reader = FrameReader::open(path).unwrap();
    let mut out = Vec::new();
    while let Some(bytes) = reader.next_frame().unwrap() {
        out.push(ice_core::wire::decode(&bytes).unwrap());
    }
    out
}

/// Steps that gave the same answers again; what the last one was given if it never answered.
fn replay(frames: Vec<Frame>) -> (u64, Option<String>) {
    let mut frames = frames.into_iter();
    let Some(Frame::Key(key)) = frames.next() else { panic!("a state comes first") };
    let mut node = Node::from_keyframe(&key.node).unwrap();
    assert_eq!(node.digest(), key.digest);
    let (mut same, mut open) = (0, None);
    let mut out = Default::default();
    for frame in frames {
        match frame {
            Frame::Step { now, mut events } => {
                open = Some(format!("{events:?}"));
                let step = std::panic::AssertUnwindSafe(|| node.step(now, &mut events, &mut out));
                if std::panic::catch_unwind(step).is_err() {
                    break;
                }
            }
            Frame::Answer { outbox } => {
                assert_eq!(outbox_digest(&out), outbox);
                (same, open) = (same + 1, None);
            }
            Frame::State { digest } => assert_eq!(node.digest(), digest),
            Frame::Key(key) => assert!(node.keyframe() == key.node, "the state is another one"),
            Frame::Start(_) => panic!("a ring has no start"),
        }
    }
    (same, open)
}

#[test]
fn the_input_that_broke_a_node_is_on_its_tape() {
    if !cfg!(debug_assertions) {
        eprintln!("SKIPPED: the assertion that breaks the node is not in this build");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process"]).env(DIR, dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!command.status().unwrap().success(), "it should have broken");
    let dumps = std::fs::read_dir(dir.path().join("tapes")).unwrap();
    let mut tapes: Vec<PathBuf> = dumps.map(|e| e.unwrap().path()).collect();
    tapes.sort();
    assert!(tapes[0].to_string_lossy().ends_with("-panic.trace"), "{tapes:?}");
    let (same, open) = replay(frames(&tapes[0]));
    assert!(same >= 100, "{same} steps");
    let open = open.expect("the last step has no answer");
    assert!(open.contains("1000"), "{open}");
    // The recording of everything held its last frames back in memory, and wrote them when it broke.
    let full = frames(&dir.path().join("full.trace"));
    assert!(matches!(full.first(), Some(Frame::Start(_))));
    assert!(matches!(full.last(), Some(Frame::Step { events, .. }) if format!("{events:?}").contains("1000")));
}

#[test]
fn a_state_in_the_middle_goes_on_as_the_node_did() {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::new(1 << 20, dir.path().into());
    let engine = engine(&ring, None);
    for token in 1000..20_000 {
        engine.event(fsync(token));
        if token >= 1100 {
            engine.event(Event::Cancel { token: OpToken(token - 100) });
        }
    }
    let frames = frames(&ring.dump("test").unwrap());
    engine.stop();
    let keys = frames.iter().filter(|f| matches!(f, Frame::Key(_))).count();
    assert_eq!(keys, 2, "both halves begin with a state");
    let (same, open) = replay(frames);
    assert!(same > 1000 && open.is_none());
}

#[test]
fn a_ring_too_small_for_the_state_still_shows_the_steps() {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::new(64 << 10, dir.path().into());
    let engine = engine(&ring, None);
    for token in 1000..3000 {
        engine.event(fsync(token));
    }
    let frames = frames(&ring.dump("test").unwrap());
    engine.stop();
    assert!(!frames.iter().any(|f| matches!(f, Frame::Key(_))));
    let last = frames.iter().rev().find_map(|f| if let Frame::Step { events, .. } = f { Some(events) } else { None });
    assert!(last.is_some_and(|e| format!("{e:?}").contains("2999")));
}
