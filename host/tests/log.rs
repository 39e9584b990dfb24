//! The log lane: what is synced survives, what is damaged is said, a failing disk loses nothing.

use bytes::Bytes;
use ice_core::action::LogRecord;
use ice_core::ids::EntryId;
use ice_host::log::format::{FRAME_BYTES, HEADER_BYTES, Header, encode_record, framed_len, push_frame};
use ice_host::log::{Entry, Fault, LogLane, Options, Recovered, recover};
use proptest::prelude::*;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

fn record(i: u64) -> LogRecord {
    LogRecord::Stands { entry: EntryId(u128::from(i) << 60), spot: None }
}
fn payload(i: u64) -> Option<Bytes> {
    match i % 3 {
        0 => None,
        1 => Some(Bytes::from(vec![i as u8; (i % 50) as usize * 10])),
        _ => Some(Bytes::new()),
    }
}
fn append(lane: &LogLane, range: std::ops::RangeInclusive<u64>) {
    range.for_each(|i| lane.append(i, &record(i), payload(i)));
}
fn expected(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(|i| Entry { index: i, record: record(i), payload: payload(i) }).collect()
}
fn small() -> Options {
    Options { segment_bytes: 16 * 1024, retry: Duration::from_secs(3600), ..Options::default() }
}
fn read(dir: &Path, from: u64) -> (Vec<Entry>, Recovered) {
    let mut out = vec![];
    let r = recover(dir, from, &mut |e| out.push(e)).unwrap();
    assert_eq!(r.records, out.len() as u64);
    assert_eq!(r.last, out.last().map_or(0, |e| e.index));
    (out, r)
}
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut v: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "log"))
        .collect();
    v.sort();
    v
}
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for e in fs::read_dir(from).unwrap() {
        let p = e.unwrap().path();
        // Spares come and go while the lane runs.
        if let Err(e) = fs::copy(&p, to.join(p.file_name().unwrap())) {
            assert_eq!(e.kind(), io::ErrorKind::NotFound);
        }
    }
}
/// Waits for what another thread is about to do; a minute is only the limit of a broken test.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_appended_comes_back_in_order() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path().join("data/log");
    fs::create_dir(t.path().join("data")).unwrap();
    assert_eq!(read(&dir, 0), (vec![], Recovered::default()));
    let mut end = 0;
    for run in 1..=3u64 {
        let lane = LogLane::open(&dir, small()).unwrap();
        append(&lane, end + 1..=end + 150);
        end += 150;
        lane.close().unwrap();
        let (got, r) = read(&dir, 0);
        assert_eq!(got, expected(1..=end), "run {run}");
        assert_eq!((r.damage, r.torn), (None, None));
    }
    assert!(segments(&dir).len() >= 6, "several segments in each run");
    let (got, _) = read(&dir, 200);
    assert_eq!(got, expected(200..=450));
    let (got, r) = read(&dir, 451);
    assert_eq!((got, r), (vec![], Recovered::default()));
}

#[test]
fn a_record_larger_than_a_segment_gets_its_own() {
    let t = tempfile::tempdir().unwrap();
    recover(t.path(), 0, &mut |_| {}).unwrap();
    let lane = LogLane::open(t.path(), small()).unwrap();
    let big = Bytes::from(vec![7; 100_000]);
    lane.append(1, &record(1), None);
    lane.append(2, &record(2), Some(big.clone()));
    lane.append(3, &record(3), None);
    lane.close().unwrap();
    let (got, r) = read(t.path(), 0);
    assert_eq!(got.iter().map(|e| e.index).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((got[1].payload.clone(), r.damage), (Some(big), None));
}

#[test]
fn one_too_large_breaks_the_lane_for_good_and_says_so() {
    let t = tempfile::tempdir().unwrap();
    let lane = LogLane::open(t.path(), small()).unwrap();
    lane.append(1, &record(1), Some(Bytes::from(vec![0; 17 << 20])));
    assert!(lane.sync_blocking().unwrap_err().to_string().contains("exceeds the limit"));
    assert!(lane.reopen().is_err());
    assert!(lane.broken().unwrap().contains("exceeds the limit"));
}

#[test]
fn all_who_wait_share_one_sync() {
    let t = tempfile::tempdir().unwrap();
    // The first sync is held until a hundred others wait behind it.
    let (reached_tx, reached) = mpsc::channel();
    let (go_tx, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    let fault = move |f: Fault| {
        if f == Fault::Sync && counted.fetch_add(1, Ordering::SeqCst) == 0 {
            reached_tx.send(()).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        Ok(())
    };
    let lane = LogLane::open(t.path(), Options { fault: Some(Arc::new(fault)), ..Options::default() }).unwrap();
    let (tx, rx) = mpsc::channel();
    let ask = |i: u64| {
        lane.append(i, &record(i), None);
        let tx = tx.clone();
        lane.sync(Box::new(move |r| tx.send((i, r.is_ok())).unwrap()));
    };
    ask(1);
    reached.recv().unwrap();
    (2..=101).for_each(ask);
    assert!(rx.try_recv().is_err(), "nothing is acknowledged before it is durable");
    go_tx.send(()).unwrap();
    let done: Vec<_> = (0..101).map(|_| rx.recv().unwrap()).collect();
    assert_eq!(done, (1..=101).map(|i| (i, true)).collect::<Vec<_>>());
    assert_eq!(syncs.load(Ordering::SeqCst), 2);
    assert_eq!((lane.stats().syncs, lane.stats().syncs_asked, lane.stats().records), (2, 101, 101));
}

#[test]
fn what_nobody_syncs_is_written_all_the_same_and_bounded() {
    let t = tempfile::tempdir().unwrap();
    let (dir, copy) = (t.path().join("log"), t.path().join("copy"));
    fs::create_dir(&dir).unwrap();
    let options = Options { unsynced_max_age: Duration::from_secs(3600), ..Options::default() };
    let lane = LogLane::open(&dir, options).unwrap();
    append(&lane, 1..=20);
    until("the write", || lane.stats().records == 20);
    assert_eq!(lane.stats().syncs, 0);
    // As after the end of the process: the page cache is there.
    copy_dir(&dir, &copy);
    assert_eq!(read(&copy, 0).0, expected(1..=20));
    let held = lane.backlog();
    assert_eq!(held.records, 20, "kept in memory until a sync covers it");
    lane.sync_blocking().unwrap();
    assert_eq!((lane.backlog().records, lane.backlog().bytes), (0, 0));

    let options = Options { unsynced_max_bytes: 100_000, unsynced_max_age: Duration::from_secs(3600), ..small() };
    let lane = LogLane::open(&t.path().join("two"), options).unwrap();
    for i in 1..=100 {
        lane.append(i, &record(i), Some(Bytes::from(vec![1; 5000])));
    }
    until("a sync of its own", || lane.backlog().bytes < 100_000);
    let options = Options { unsynced_max_age: Duration::from_millis(1), ..small() };
    let lane = LogLane::open(&t.path().join("three"), options).unwrap();
    append(&lane, 1..=5);
    until("a sync by age", || lane.backlog().records == 0);
}

#[test]
fn the_backlog_says_when_it_is_over() {
    let t = tempfile::tempdir().unwrap();
    let (go_tx, go) = mpsc::channel::<()>();
    let go = Mutex::new(go);
    let fault = move |f: Fault| {
        if matches!(f, Fault::Write(_)) {
            go.lock().unwrap().recv().map_err(io::Error::other)?;
        }
        Ok(())
    };
    let options = Options { backlog_max_bytes: 10_000, fault: Some(Arc::new(fault)), ..Options::default() };
    let lane = LogLane::open(t.path(), options).unwrap();
    lane.append(1, &record(1), Some(Bytes::from(vec![0; 9_000])));
    assert!(!lane.backlog().over);
    lane.append(2, &record(2), Some(Bytes::from(vec![0; 9_000])));
    let b = lane.backlog();
    assert!(b.over && b.bytes > 18_000 && b.records == 2, "{b:?}");
    (0..4).for_each(|_| go_tx.send(()).unwrap());
    lane.sync_blocking().unwrap();
    assert!(!lane.backlog().over);
}

#[test]
fn a_failed_sync_fails_everybody_and_loses_nothing() {
    let t = tempfile::tempdir().unwrap();
    let bad = Arc::new(AtomicBool::new(false));
    let fault = {
        let bad = Arc::clone(&bad);
        move |f: Fault| match f {
            Fault::Sync if bad.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    };
    let lane = LogLane::open(t.path(), Options { fault: Some(Arc::new(fault)), ..small() }).unwrap();
    append(&lane, 1..=10);
    lane.sync_blocking().unwrap();
    bad.store(true, Ordering::SeqCst);
    append(&lane, 11..=20);
    let e = lane.sync_blocking().unwrap_err().to_string();
    assert!(e.contains("the log cannot be written") && e.contains("os error 5"), "{e}");
    assert_eq!(lane.broken(), Some(e));
    append(&lane, 21..=30);
    // The disk works again, but nobody said so: what was handed to it before is not trusted.
    bad.store(false, Ordering::SeqCst);
    assert!(lane.sync_blocking().is_err());
    assert_eq!(lane.backlog().records, 20, "all since the last good sync is in memory");

    lane.reopen().unwrap();
    assert_eq!(lane.broken(), None);
    assert_eq!(lane.backlog().records, 0);
    append(&lane, 31..=40);
    lane.close().unwrap();

    // What the old segment holds of 11..=20 may be anything, as the disk dropped it.
    let old = &segments(t.path())[0];
    let mut bytes = fs::read(old).unwrap();
    let start = HEADER_BYTES + (1..=10).map(frame_len).sum::<usize>();
    for (i, b) in bytes[start..].iter_mut().enumerate() {
        *b = (i * 7) as u8;
    }
    fs::write(old, bytes).unwrap();
    let (got, r) = read(t.path(), 0);
    assert_eq!(got, expected(1..=40));
    assert_eq!((r.damage, r.torn), (None, None));
}

fn frame_len(i: u64) -> usize {
    framed_len(encode_record(&record(i)).unwrap().len() + payload(i).map_or(0, |p| p.len()))
}

#[test]
fn a_full_disk_is_survived_and_does_not_fill_up_with_attempts() {
    let t = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let fault = {
        let full = Arc::clone(&full);
        move |f: Fault| match f {
            Fault::Write(_) if full.load(Ordering::SeqCst) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    };
    let lane = LogLane::open(t.path(), Options { fault: Some(Arc::new(fault)), ..small() }).unwrap();
    append(&lane, 1..=5);
    lane.sync_blocking().unwrap();
    full.store(true, Ordering::SeqCst);
    append(&lane, 6..=9);
    assert_eq!(lane.sync_blocking().unwrap_err().kind(), io::ErrorKind::StorageFull);
    for _ in 0..20 {
        assert_eq!(lane.reopen().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    assert!(segments(t.path()).len() <= 2, "{:?}", segments(t.path()));
    full.store(false, Ordering::SeqCst);
    lane.reopen().unwrap();
    lane.close().unwrap();
    assert_eq!(read(t.path(), 0).0, expected(1..=9));

    // With nothing to write again, the disk is still asked.
    full.store(true, Ordering::SeqCst);
    let full2 = Arc::clone(&full);
    let fault = move |f: Fault| match f {
        Fault::Write(_) if full2.load(Ordering::SeqCst) => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    };
    let lane = LogLane::open(t.path(), Options { fault: Some(Arc::new(fault)), ..small() }).unwrap();
    lane.reopen().unwrap();
    append(&lane, 10..=10);
    assert!(lane.sync_blocking().is_err());
    full.store(false, Ordering::SeqCst);
    lane.reopen().unwrap();
    assert!(lane.broken().is_none());
}

#[test]
fn a_broken_lane_mends_itself() {
    let t = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicUsize::new(3));
    let left = Arc::clone(&fails);
    let fault = move |f: Fault| match f {
        Fault::Sync if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() => {
            Err(io::Error::from_raw_os_error(5))
        }
        _ => Ok(()),
    };
    let options = Options { retry: Duration::from_millis(2), fault: Some(Arc::new(fault)), ..small() };
    let lane = LogLane::open(t.path(), options).unwrap();
    append(&lane, 1..=9);
    assert!(lane.sync_blocking().is_err());
    until("mending", || lane.broken().is_none());
    assert_eq!((lane.stats().failures, fails.load(Ordering::SeqCst)), (1, 0));
    lane.close().unwrap();
    assert_eq!(read(t.path(), 0).0, expected(1..=9));
}

#[test]
fn a_checkpoint_mends_a_broken_lane_without_what_it_covers() {
    let t = tempfile::tempdir().unwrap();
    let bad = Arc::new(AtomicBool::new(false));
    let fault = {
        let bad = Arc::clone(&bad);
        move |f: Fault| match f {
            Fault::Sync if bad.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    };
    let lane = LogLane::open(t.path(), Options { fault: Some(Arc::new(fault)), ..small() }).unwrap();
    append(&lane, 1..=10);
    lane.sync_blocking().unwrap();
    bad.store(true, Ordering::SeqCst);
    append(&lane, 11..=20);
    assert!(lane.sync_blocking().is_err());
    append(&lane, 21..=25);
    // Still bad: what the checkpoint covers is let go of, the rest is kept.
    lane.cut(21);
    until("letting go", || lane.backlog().records == 5);
    assert!(lane.broken().is_some());
    bad.store(false, Ordering::SeqCst);
    lane.cut(23);
    until("mending", || lane.broken().is_none() && lane.backlog().records == 0);
    append(&lane, 26..=30);
    lane.close().unwrap();
    let (got, r) = read(t.path(), 23);
    assert_eq!((got, r.damage, r.torn), (expected(23..=30), None, None));
}

#[test]
fn cutting_recycles_and_nothing_old_comes_back() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path().join("log");
    let lane = LogLane::open(&dir, small()).unwrap();
    let mut most = 0;
    for round in 1..=30u64 {
        append(&lane, (round - 1) * 100 + 1..=round * 100);
        lane.sync_blocking().unwrap();
        let cut = (round * 100).saturating_sub(50);
        lane.cut(cut);
        // The cut is done when a later request is answered.
        lane.sync_blocking().unwrap();
        lane.sync_blocking().unwrap();
        most = most.max(segments(&dir).len());
        let copy = t.path().join(format!("copy-{round}"));
        copy_dir(&dir, &copy);
        let (got, r) = read(&copy, cut);
        assert_eq!(got, expected(cut..=round * 100), "round {round}");
        assert_eq!((r.damage, r.torn, r.kept), (None, None, vec![]), "round {round}");
    }
    assert!(most <= 5, "{most} segments");
    let files = fs::read_dir(&dir).unwrap().count();
    assert!(files <= 8, "{files} files");
    lane.close().unwrap();
    // Spares are used again by the next run.
    let lane = LogLane::open(&dir, small()).unwrap();
    append(&lane, 3001..=3010);
    lane.close().unwrap();
    assert_eq!(read(&dir, 2960).0, expected(2960..=3010));
}

#[test]
fn a_torn_tail_is_cut_off_at_every_byte() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path().join("log");
    let lane = LogLane::open(&dir, small()).unwrap();
    append(&lane, 1..=5);
    lane.close().unwrap();
    let path = segments(&dir)[0].clone();
    let whole = fs::read(&path).unwrap();
    let before = HEADER_BYTES + (1..=4).map(frame_len).sum::<usize>();
    let last = FRAME_BYTES + encode_record(&record(5)).unwrap().len();
    for cut in 0..last {
        fs::write(&path, &whole[..before + cut]).unwrap();
        let (got, r) = read(&dir, 0);
        assert_eq!(got, expected(1..=4), "{cut}");
        assert_eq!(r.damage, None, "{cut}");
        assert_eq!(r.torn.is_some(), cut > 0, "{cut}");
        assert!(fs::metadata(&path).unwrap().len() as usize <= before + cut);
        // It is a normal start from here on.
        assert_eq!(read(&dir, 0).1.torn, None);
    }
    let lane = LogLane::open(&dir, small()).unwrap();
    append(&lane, 5..=7);
    lane.close().unwrap();
    assert_eq!(read(&dir, 0).0, expected(1..=7));
}

/// A segment as a lane writes it, with `durable` as given for each record.
fn craft(dir: &Path, number: u64, first: u64, durable: &[u64]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let header = Header { salt: 0xabcd_0000 + number as u32, number, first };
    let mut bytes = header.encode().into_vec();
    for (i, d) in (first..).zip(durable) {
        push_frame(&mut bytes, header.salt, i, *d, &encode_record(&record(i)).unwrap(), payload(i).as_deref());
    }
    bytes.resize(bytes.len() + 4096, 0);
    let path = dir.join(format!("{number:016x}.log"));
    fs::write(&path, bytes).unwrap();
    path
}
fn flip(path: &Path, at: usize) {
    let mut b = fs::read(path).unwrap();
    b[at] ^= 1;
    fs::write(path, b).unwrap();
}

#[test]
fn a_hole_in_what_was_never_synced_is_a_torn_tail() {
    let t = tempfile::tempdir().unwrap();
    let path = craft(t.path(), 1, 1, &[0, 0, 0, 0, 0]);
    flip(&path, HEADER_BYTES + frame_len(1) + frame_len(2) + 40);
    let (got, r) = read(t.path(), 0);
    assert_eq!(got, expected(1..=2));
    let torn = "record 3 was incomplete and never durable; it was cut off with 2 complete ones behind it";
    assert_eq!((r.damage, r.torn.as_deref()), (None, Some(torn)));
}

#[test]
fn damage_to_what_was_durable_is_said_and_kept_aside() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path();
    let one = craft(dir, 1, 1, &[0, 0, 2, 2, 4, 4, 4]);
    craft(dir, 2, 8, &[7, 7, 7]);
    let whole = fs::read(&one).unwrap();
    let at = HEADER_BYTES + (1..=3).map(frame_len).sum::<usize>();
    flip(&one, at + 17);
    let (got, r) = read(dir, 0);
    assert_eq!(got, expected(1..=3));
    let name = "0000000000000001.log";
    let why = format!(
        "log segment {name}: record 4 at byte {at} is damaged; it had been durable, as record 5 after it shows"
    );
    // Of record 5's `durable` 4 follows that record 4 had been durable.
    assert_eq!(r.damage, Some(why));
    assert_eq!(r.kept, [dir.join(format!("{name}.damaged")), dir.join("0000000000000002.log.damaged")]);
    let kept = fs::read(&r.kept[0]).unwrap();
    assert_eq!(kept.len(), whole.len());
    assert_eq!(kept[at + 17] ^ 1, whole[at + 17]);

    // The next start is a normal one, and numbers of files are not used again.
    let (got, r) = read(dir, 0);
    assert_eq!((got, r.damage), (expected(1..=3), None));
    let lane = LogLane::open(dir, small()).unwrap();
    append(&lane, 4..=6);
    lane.close().unwrap();
    assert_eq!(read(dir, 0).0, expected(1..=6));
    assert!(dir.join("0000000000000003.log").exists());
}

#[test]
fn a_later_segment_proves_that_an_earlier_one_was_durable() {
    let t = tempfile::tempdir().unwrap();
    let one = craft(t.path(), 1, 1, &[0, 0, 0]);
    craft(t.path(), 2, 4, &[3]);
    flip(&one, HEADER_BYTES + frame_len(1) + frame_len(2) + 33);
    let (got, r) = read(t.path(), 0);
    assert_eq!(got, expected(1..=2));
    assert!(r.damage.unwrap().contains("record 3"));
}

#[test]
fn missing_and_headless_segments_are_damage_if_they_are_needed() {
    let build = |t: &Path| {
        craft(t, 1, 1, &[0, 0, 0]);
        let two = craft(t, 2, 4, &[3, 3, 3]);
        craft(t, 3, 7, &[6, 6]);
        two
    };
    let t = tempfile::tempdir().unwrap();
    fs::remove_file(build(t.path())).unwrap();
    let (got, r) = read(t.path(), 0);
    assert_eq!(got, expected(1..=3));
    assert!(r.damage.unwrap().contains("records 4 to 6 are missing"));

    let t = tempfile::tempdir().unwrap();
    fs::remove_file(build(t.path())).unwrap();
    let (got, r) = read(t.path(), 7);
    assert_eq!((got, r.damage), (expected(7..=8), None), "a checkpoint covers what is missing");

    for byte in [0, 8, 12, 20, 24, 33] {
        let t = tempfile::tempdir().unwrap();
        flip(&build(t.path()), byte);
        let (got, r) = read(t.path(), 0);
        assert_eq!(got, expected(1..=3), "byte {byte}");
        assert!(r.damage.unwrap().contains("0000000000000002.log"), "byte {byte}");
        assert_eq!(r.kept.len(), 2);

        let t = tempfile::tempdir().unwrap();
        flip(&build(t.path()), byte);
        let (got, r) = read(t.path(), 7);
        assert_eq!((got, r.damage), (expected(7..=8), None), "byte {byte}");
        assert_eq!(r.kept.len(), 1, "kept aside all the same");
        LogLane::open(t.path(), small()).unwrap().close().unwrap();
    }
}

#[test]
fn damage_below_the_checkpoint_does_no_harm() {
    let t = tempfile::tempdir().unwrap();
    let path = craft(t.path(), 1, 1, &[0, 1, 2, 3, 4, 5]);
    flip(&path, HEADER_BYTES + frame_len(1) + 20);
    let (got, r) = read(t.path(), 4);
    assert_eq!((got, r.damage, r.torn), (expected(4..=6), None, None));
    let (got, r) = read(t.path(), 2);
    assert_eq!(got, vec![]);
    assert!(r.damage.unwrap().contains("record 2"));
}

#[test]
fn a_file_reused_but_not_yet_renamed_is_no_damage() {
    let t = tempfile::tempdir().unwrap();
    let one = craft(t.path(), 1, 1, &[0, 1, 2]);
    craft(t.path(), 2, 4, &[3, 4]);
    // The machine stopped between writing segment 3's header into dropped segment 1 and the renaming.
    let mut bytes = fs::read(&one).unwrap();
    bytes[..HEADER_BYTES].copy_from_slice(&Header { salt: 1, number: 3, first: 6 }.encode());
    fs::write(&one, bytes).unwrap();
    let (got, r) = read(t.path(), 4);
    assert_eq!((got, r.damage), (expected(4..=5), None));
    LogLane::open(t.path(), small()).unwrap();
}

#[test]
fn a_record_of_another_version_is_damage_in_words() {
    let t = tempfile::tempdir().unwrap();
    let path = craft(t.path(), 1, 1, &[0]);
    let header = Header { salt: 9, number: 1, first: 1 };
    let mut bytes = header.encode().into_vec();
    push_frame(&mut bytes, 9, 1, 0, &encode_record(&record(1)).unwrap(), payload(1).as_deref());
    push_frame(&mut bytes, 9, 2, 1, &[250, 1, 2], None);
    fs::write(&path, &bytes).unwrap();
    let (got, r) = read(t.path(), 0);
    assert_eq!(got, expected(1..=1));
    assert!(r.damage.unwrap().contains("record 2 cannot be understood"));
}

// The child of `killed_at_any_moment`: appends and syncs without end, and says what was acknowledged.
#[test]
#[ignore = "run by killed_at_any_moment"]
fn child_that_is_killed() {
    use std::io::Write;
    let Some(dir) = std::env::var_os("ICE_TEST_LOG_DIR") else { return };
    let dir = PathBuf::from(dir);
    let mut last = 0;
    recover(&dir, 0, &mut |e| last = e.index).unwrap();
    let lane = LogLane::open(&dir, small()).unwrap();
    let mut out = std::io::stdout();
    for i in last + 1..last + 1_000_000 {
        append(&lane, i..=i);
        if i % 7 == 0 {
            lane.sync_blocking().unwrap();
            writeln!(out, "acked {i}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment() {
    use std::io::{BufRead, BufReader};
    let t = tempfile::tempdir().unwrap();
    let mut acked = 0u64;
    for wait_for in [1, 5, 40] {
        let mut command = ice_testing::command(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"]);
        command.env("ICE_TEST_LOG_DIR", t.path()).stdout(std::process::Stdio::piped());
        let child = ice_testing::Process::spawn(&mut command);
        let mut lines = BufReader::new(child.stdout()).lines();
        let mut seen = 0;
        // SIGKILL after some acknowledgements; those still in the pipe count as well.
        for line in &mut lines {
            let line = line.unwrap();
            let Some((_, n)) = line.split_once("acked ") else { continue };
            acked = acked.max(n.trim().parse().unwrap());
            seen += 1;
            if seen == wait_for {
                child.kill();
            }
        }
        child.wait();
        assert!(seen >= wait_for);
        let (got, r) = read(t.path(), 0);
        assert_eq!(r.damage, None);
        assert!(r.last >= acked, "acknowledged up to {acked}, found {}", r.last);
        assert_eq!(got, expected(1..=r.last));
    }
}

/// Where syncs cost nothing, if there is such a place: what many small cases need.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever happens to the bytes: no panic, a prefix comes back, and what is missing is said.
    #[test]
    fn no_damage_is_silent(
        sizes in proptest::collection::vec(1usize..6, 1..4),
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..4),
        from in 0u64..8,
    ) {
        let t = scratch();
        let (mut first, mut paths) = (1, vec![]);
        for (n, size) in (1..).zip(&sizes) {
            let durable: Vec<u64> = (first..first + *size as u64).map(|i| i - 1).collect();
            paths.push(craft(t.path(), n, first, &durable));
            first += *size as u64;
        }
        let end = first - 1;
                for (file, at, how, byte) in hits {
            let path = &paths[file.index(paths.len())];
            let mut bytes = fs::read(path).unwrap();
            // Not behind the mark of the end, where damage means nothing.
            let used = bytes.len().saturating_sub(4096).max(1);
            let at = at.index(used.min(bytes.len()).max(1));
            match how {
                0 if !bytes.is_empty() => bytes[at] ^= byte.max(1),
                1 => bytes.truncate(at),
                2 => bytes[at..].fill(0),
                _ => bytes.splice(at..at, [byte; 3]).for_each(drop),
            }
            fs::write(path, bytes).unwrap();
        }
        let (got, r) = read(t.path(), from);
        let start = from.max(1);
        if let Some(last) = got.last() {
            prop_assert_eq!(&got, &expected(start..=last.index));
        }
        let found = got.last().map_or(start - 1, |e| e.index);
        // Only the very end may be missing without a word: where the file was cut or zeroed there is no trace of a record.
        let last_first = end + 1 - *sizes.last().unwrap() as u64;
        if found + 1 < last_first.max(start) {
            prop_assert!(r.damage.is_some(), "{} of {} without damage: {:?}", found, end, r);
        }
        // Whatever was found, the next start is normal and the lane goes on.
        let (again, r) = read(t.path(), from);
        prop_assert_eq!((again.len(), r.damage), (got.len(), None));
        let lane = LogLane::open(t.path(), small()).unwrap();
        let next = found.max(start - 1) + 1;
        append(&lane, next..=next + 2);
        lane.close().unwrap();
        prop_assert_eq!(read(t.path(), from).0, expected(start..=next + 2));
    }

    #[test]
    fn no_bytes_panic(files in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4), good in any::<bool>()) {
        let t = scratch();
        for (n, junk) in (1..).zip(files) {
            let bytes = if good {
                let mut b = Header { salt: 3, number: n, first: n }.encode().into_vec();
                b.extend(junk);
                b
            } else {
                junk
            };
            fs::write(t.path().join(format!("{n:016x}.log")), bytes).unwrap();
        }
        read(t.path(), 0);
        read(t.path(), 0);
        LogLane::open(t.path(), small()).unwrap();
    }
}

#[test]
fn what_somebody_waits_for_is_written_at_once_and_not_synced() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path().join("log");
    read(&dir, 0);
    let hour = Duration::from_secs(3600);
    let lane = LogLane::open(&dir, Options { linger: hour, unsynced_max_age: hour, ..small() }).unwrap();
    assert!(lane.written(Duration::ZERO), "nothing was appended");
    append(&lane, 1..=20);
    assert!(lane.written(Duration::from_secs(60)));
    assert_eq!(lane.stats().syncs, 0);
    // The end of the process takes nothing of it.
    let copy = t.path().join("copy");
    copy_dir(&dir, &copy);
    assert_eq!(read(&copy, 0).0, expected(1..=20));
}

#[test]
fn nobody_waits_for_a_lane_that_cannot_write() {
    let t = tempfile::tempdir().unwrap();
    let dir = t.path().join("log");
    read(&dir, 0);
    let fault = |f: Fault| if matches!(f, Fault::Write(_)) { Err(io::Error::other("no")) } else { Ok(()) };
    let lane = LogLane::open(&dir, Options { fault: Some(Arc::new(fault)), ..small() }).unwrap();
    append(&lane, 1..=1);
    let start = Instant::now();
    assert!(!lane.written(Duration::from_secs(600)));
    assert!(start.elapsed() < Duration::from_secs(300), "it was not waited for the limit");
    assert!(lane.broken().is_some());
}
