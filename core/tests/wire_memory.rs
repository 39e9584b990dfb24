//! How much memory a message can make its receiver take that says much about itself and is short.

use ice_core::ids::{EntryId, Incarnation, InodeId, Name, ReplicaId};
use ice_core::limits::MESSAGE_MAX_BYTES;
use ice_core::message::{Beat, Held, Hello, Mark, MemberInfo, Message};
use ice_core::op::{Attrs, ContentDigest, Kind, Make, Op, OpBody};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::{EntryRecord, PlaceRecord, Removal, StateRecord, Version, XattrRecord};
use ice_core::wire::{self, WireError};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// One test at a time: they share the counters.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn took(bytes: usize) {
    let now = USED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        took(l.size());
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        USED.fetch_sub(l.size(), Ordering::Relaxed);
        unsafe { System.dealloc(p, l) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was taken at once while `work` ran.
fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

fn removal(at: Stamp) -> Removal {
    Removal { at, saw: at, last: true }
}

fn small_record() -> StateRecord {
    let (zero, time) = (Stamp::ZERO, UnixTime::default());
    StateRecord {
        inode: InodeId(0),
        make: None,
        mode: (zero, 0),
        owner: (zero, 0, 0),
        times: (zero, time),
        mtime: time,
        content: (zero, 0, ContentDigest::EMPTY),
        versions: Vec::new(),
        xattrs: Vec::new(),
        entries: Vec::new(),
        early: Vec::new(),
        cut: zero,
    }
}

fn state(records: Vec<StateRecord>) -> Message {
    Message::State { round: 0, level: 0, bucket: 0, after: None, records, last: false, context: Vec::new() }
}

fn ops(body: OpBody, n: usize) -> Message {
    let op = Op { origin: ReplicaId(0), seq: 0, time: Hlc(0), body, payload: None };
    Message::Ops { origin: ReplicaId(0), after: (0, Hlc(0)), ops: vec![op; n], urgent: false }
}

/// As many of something as fit into a message.
fn full(of: impl Fn(usize) -> Message) -> Vec<u8> {
    let one = (wire::encode(&of(200_000)).len() - wire::encode(&of(100_000)).len()).div_ceil(100_000);
    let bytes = wire::encode(&of(MESSAGE_MAX_BYTES / one - 100));
    assert!(bytes.len() <= MESSAGE_MAX_BYTES && bytes.len() > MESSAGE_MAX_BYTES / 3, "{} bytes", bytes.len());
    bytes
}

#[test]
fn short_messages_do_not_swell() {
    let _alone = ALONE.lock();
    let zero = Stamp::ZERO;
    let version =
        Version { stamp: zero, base: zero, size: 0, digest: ContentDigest::EMPTY, mtime: UnixTime::default() };
    let place = PlaceRecord { stamp: zero, parent: InodeId(0), name: Name::new(b"a").unwrap(), base: false };
    let mark = Mark { origin: ReplicaId(0), seq: 0, time: Hlc(0) };
    let member = |urls: usize| MemberInfo {
        replica: ReplicaId(0),
        life: ReplicaId(0),
        incarnation: Incarnation(0),
        name: String::new(),
        urls: vec![String::new(); urls],
        clients: vec![],
        left: false,
        revision: 0,
    };
    let with = |change: &dyn Fn(&mut StateRecord)| {
        let mut record = small_record();
        change(&mut record);
        state(vec![record])
    };
    let make = Box::new(Make { kind: Kind::File, attrs: Attrs::default() });
    let put = |make: Option<Box<Make>>| OpBody::Place {
        entry: EntryId(0),
        inode: InodeId(0),
        parent: InodeId(0),
        name: Name::new(b"a").unwrap(),
        make,
    };
    let held = |n: usize| Held { log: vec![mark; n], content: Vec::new(), clock: Hlc(0) };
    let messages: Vec<(&str, Vec<u8>)> = vec![
        ("ops", full(|n| ops(OpBody::Remove { entry: EntryId(0), saw: zero, last: true }, n))),
        ("ops that place", full(|n| ops(put(None), n))),
        ("ops that make", full(|n| ops(put(Some(make.clone())), n))),
        ("records", full(|n| state(vec![small_record(); n]))),
        ("versions", full(|n| with(&|r| r.versions = vec![version; n]))),
        ("early", full(|n| with(&|r| r.early = vec![(EntryId(0), removal(zero)); n]))),
        (
            "entries",
            full(|n| {
                let entry = EntryRecord { id: EntryId(0), places: Vec::new(), removed: Vec::new() };
                with(&|r| r.entries = vec![entry.clone(); n])
            }),
        ),
        (
            "places",
            full(|n| {
                let entry = EntryRecord { id: EntryId(0), places: vec![place.clone(); n], removed: Vec::new() };
                with(&|r| r.entries = vec![entry.clone()])
            }),
        ),
        (
            "xattrs",
            full(|n| {
                let xattr = XattrRecord { name: Box::new([]), stamp: zero, value: None };
                with(&|r| r.xattrs = vec![xattr.clone(); n])
            }),
        ),
        ("members", full(|n| Message::Members(vec![member(0); n]))),
        ("addresses", full(|n| Message::Members(vec![member(n)]))),
        ("marks", full(|n| Message::Held(held(n)))),
        ("beat", full(|n| Message::Beat(Beat { number: 0, answer: false, wall_ns: 0, held: held(n) }))),
        (
            "hello",
            full(|n| {
                let known = vec![mark; n];
                Message::Hello(Box::new(Hello {
                    member: member(0),
                    called: None,
                    wall_ns: 0,
                    known,
                    cut: Vec::new(),
                    control: Default::default(),
                }))
            }),
        ),
        (
            "digests",
            full(|n| Message::StateDigests { round: 0, level: 0, buckets: vec![(0, 0); n], context: Vec::new() }),
        ),
        ("wants", full(|n| Message::StateWant { round: 0, level: 0, buckets: vec![0; n] })),
    ];
    for (what, bytes) in &messages {
        let (decoded, most) = peak(|| wire::decode_foreign::<Message>(bytes).map(drop));
        let (_, unbounded) = peak(|| wire::decode::<Message>(bytes).map(drop));
        println!("{what}: {} MiB (without a limit {}) for {} KiB", most >> 20, unbounded >> 20, bytes.len() >> 10);
        // A list that grows is there twice for a moment, once of them with room for as much again.
        assert!(most <= 10 * MESSAGE_MAX_BYTES, "{what}: {} MiB", most >> 20);
        assert!(matches!(decoded, Ok(()) | Err(WireError::Swells)), "{what}: {decoded:?}");
    }
    // A length that promises more than there is.
    let mut lies = wire::encode(&Message::StateWant { round: 0, level: 0, buckets: Vec::new() });
    lies.pop();
    lies.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    lies.resize(100_000, 0);
    let (decoded, most) = peak(|| wire::decode_foreign::<Message>(&lies).map(drop));
    assert_eq!(decoded, Err(WireError::Damaged));
    assert!(most <= MESSAGE_MAX_BYTES, "{} KiB", most >> 10);
}

/// What nodes do send is understood, however large.
#[test]
fn large_messages_of_ours_are_understood() {
    let _alone = ALONE.lock();
    let stamp = Stamp { time: Hlc(1 << 60), replica: ReplicaId(u64::MAX) };
    let time = UnixTime { sec: 1_700_000_000, nsec: 5 };
    let name = Name::new(b"a name of usual length").unwrap();
    let record = StateRecord {
        inode: InodeId(u128::MAX),
        make: Some((stamp, Kind::File)),
        mode: (stamp, 0o644),
        owner: (stamp, 1000, 1000),
        times: (stamp, time),
        mtime: time,
        content: (stamp, 1 << 20, ContentDigest([7; 32])),
        versions: vec![Version { stamp, base: stamp, size: 1, digest: ContentDigest([7; 32]), mtime: time }; 3],
        xattrs: vec![XattrRecord { name: b"user.a".as_slice().into(), stamp, value: None }; 3],
        entries: vec![
            EntryRecord {
                id: EntryId(u128::MAX),
                places: vec![PlaceRecord { stamp, parent: InodeId(u128::MAX), name, base: true }],
                removed: vec![removal(stamp)],
            };
            2
        ],
        early: vec![(EntryId(u128::MAX), removal(stamp)); 3],
        cut: stamp,
    };
    let mark = Mark { origin: ReplicaId(u64::MAX), seq: 1 << 40, time: Hlc(1 << 60) };
    let remove = OpBody::Remove { entry: EntryId(u128::MAX), saw: stamp, last: true };
    for message in [
        state(vec![record; 4000]),
        ops(remove, 512),
        Message::Held(Held { log: vec![mark; 4096], content: vec![mark; 4096], clock: Hlc(1 << 60) }),
        Message::StateDigests { round: 1, level: 2, buckets: vec![(4095, u128::MAX); 4096], context: vec![mark; 4096] },
        Message::StateWant { round: 1, level: 2, buckets: (0..4096).collect() },
    ] {
        let bytes = wire::encode(&message);
        assert_eq!(wire::decode_foreign::<Message>(&bytes).as_ref(), Ok(&message), "{} bytes", bytes.len());
    }
}
