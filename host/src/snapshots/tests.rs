use super::*;
use futures::FutureExt;
use futures::TryStreamExt;
use std::future::Future;
use std::task::{Context, Wake, Waker};

/// Wakes the thread that waits.
struct Thread(std::thread::Thread);

impl Wake for Thread {
    fn wake(self: Arc<Thread>) {
        self.0.unpark();
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Thread(std::thread::current())));
    let mut work = std::pin::pin!(work);
    let start = std::time::Instant::now();
    loop {
        if let std::task::Poll::Ready(out) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        assert!(start.elapsed() < ice_testing::PATIENCE, "it does not end");
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
}

/// Bytes of which a part can be compressed.
fn sample(len: usize) -> Vec<u8> {
    let mut x = 1_u32;
    (0..len)
        .map(|i| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i / 100_000 % 2 == 0 { b'a' } else { (x >> 24) as u8 }
        })
        .collect()
}

fn stream(bytes: &[u8], said: u64) -> Snapshot {
    let chunks: Vec<Result<Bytes>> = bytes.chunks(70_001).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Snapshot { bytes: said, chunks: Box::pin(futures::stream::iter(chunks)) }
}

fn whole(bytes: &[u8]) -> Snapshot {
    stream(bytes, bytes.len() as u64)
}

fn about(id: &str) -> About {
    About {
        id: id.into(),
        name: format!("{id} by name"),
        cluster: 7,
        revision: 42,
        created_s: 1_000,
        metadata: vec![("k".into(), "v".into())],
    }
}

fn read(files: &Snapshots, id: &str) -> Result<Vec<u8>> {
    wait(async {
        let snapshot = files.read(id).await?;
        let parts: Vec<Bytes> = snapshot.chunks.try_collect().await?;
        let all = parts.concat();
        assert_eq!(all.len() as u64, snapshot.bytes);
        Ok(all)
    })
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_kept_is_there_after_a_restart_as_it_was() {
    let dir = ice_testing::tempdir();
    for (id, compress, len) in
        [("empty", true, 0), ("one", false, 1), ("a.b-c_1", true, 6_000_000), ("plain", false, 3_000_000)]
    {
        let files = Snapshots::open(dir.path(), compress).unwrap();
        let content = sample(len);
        let kept = wait(files.keep(about(id), whole(&content))).unwrap();
        assert_eq!((kept.bytes, &kept.about), (len as u64, &about(id)));
        assert_eq!(kept.checksum, blake3::hash(&content).to_hex().to_string());
        assert_eq!(kept.file_bytes, fs::metadata(dir.path().join(format!("{id}.snap"))).unwrap().len());
        assert_eq!(kept.file_bytes < kept.bytes, compress && len > 0, "{id}");
        drop(files);
        let files = Snapshots::open(dir.path(), !compress).unwrap();
        assert_eq!(wait(files.verify(id)).unwrap(), kept);
        assert_eq!(wait(files.get(id)).unwrap(), kept);
        assert!(read(&files, id).unwrap() == content, "{id}");
        let record = kept.record(9);
        assert_eq!((record.revision, record.holders, record.size_bytes), (42, vec![9], kept.file_bytes));
    }
    let files = Snapshots::open(dir.path(), true).unwrap();
    let listed = wait(files.list()).unwrap();
    assert_eq!(listed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a.b-c_1", "empty", "one", "plain"]);
    assert!(listed.iter().all(|(id, kept)| kept.as_ref().is_ok_and(|k| k.about.id == *id)));
    assert!(wait(files.remove("one")).unwrap() && !wait(files.remove("one")).unwrap());
    for gone in [wait(files.get("one")).err(), wait(files.verify("one")).err(), read(&files, "one").err()] {
        assert_eq!(gone, Some(Error::SnapshotNotFound.into()));
    }
    assert_eq!(names(dir.path()), ["a.b-c_1.snap", "empty.snap", "plain.snap"]);
}

#[test]
fn every_damaged_and_every_torn_file_is_found() {
    let dir = ice_testing::tempdir();
    let files = Snapshots::open(dir.path(), true).unwrap();
    let content = sample(700_000);
    wait(files.keep(about("x"), whole(&content))).unwrap();
    let path = dir.path().join("x.snap");
    let good = fs::read(&path).unwrap();
    // The head, the tail, and places in between.
    let places = (0..120).chain((1..200).map(|i| good.len() * i / 200)).chain(good.len() - 120..good.len());
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let why = wait(files.verify("x")).unwrap_err();
        assert!(
            matches!(&why, Refused::Failed(w) if w.contains("damaged") || w.contains("is that of")),
            "byte {at}: {why}"
        );
        // Nobody gets all of its bytes without an error.
        assert!(read(&files, "x").is_err(), "byte {at}");
    }
    for len in (0..300).chain((1..100).map(|i| good.len() * i / 100)).chain(good.len() - 100..good.len()) {
        fs::write(&path, &good[..len]).unwrap();
        assert!(wait(files.verify("x")).is_err() && wait(files.get("x")).is_err(), "{len} bytes of {}", good.len());
        assert!(read(&files, "x").is_err(), "{len} bytes");
        let listed = wait(files.list()).unwrap();
        assert!(listed.len() == 1 && listed[0].1.is_err(), "{len} bytes");
    }
    fs::write(&path, [&good[..], b"x"].concat()).unwrap();
    assert!(wait(files.verify("x")).is_err(), "a byte too much");
    fs::write(&path, &good).unwrap();
    assert!(wait(files.verify("x")).is_ok());
    // Under another name it is not taken for another snapshot.
    fs::rename(&path, dir.path().join("y.snap")).unwrap();
    assert!(matches!(wait(files.get("y")), Err(Refused::Failed(w)) if w.contains("is that of the snapshot `x`")));
}

#[test]
fn what_fails_or_is_given_up_leaves_nothing() {
    let dir = ice_testing::tempdir();
    let files = Snapshots::open(dir.path(), true).unwrap();
    let content = sample(5_000_000);
    for said in [content.len() as u64 + 1, content.len() as u64 - 1] {
        assert!(matches!(wait(files.keep(about("x"), stream(&content, said))), Err(Refused::Failed(_))));
    }
    let broken = [Ok(Bytes::from(content.clone())), Err(Refused::Stopping)];
    let broken = Snapshot { bytes: 1 << 30, chunks: Box::pin(futures::stream::iter(broken)) };
    assert_eq!(wait(files.keep(about("x"), broken)), Err(Refused::Stopping));
    // Whoever asked went away in the middle.
    let endless = futures::stream::iter([Ok(Bytes::from(content.clone()))]).chain(futures::stream::pending());
    let mut given_up = Box::pin(files.keep(about("x"), Snapshot { bytes: 1 << 30, chunks: Box::pin(endless) }));
    assert!(given_up.as_mut().now_or_never().is_none());
    ice_testing::until("it is being written", || {
        assert!(given_up.as_mut().now_or_never().is_none());
        names(dir.path()) == ["x.part"]
    });
    drop(given_up);
    ice_testing::until("nothing is left", || names(dir.path()).is_empty());
    // A process that was killed leaves a part.
    fs::write(dir.path().join("y.part"), "half").unwrap();
    fs::write(dir.path().join("note.txt"), "not ours").unwrap();
    let files = Snapshots::open(dir.path(), true).unwrap();
    assert_eq!(names(dir.path()), ["note.txt"]);
    wait(files.keep(about("x"), whole(&content))).unwrap();
    let again = wait(files.keep(about("x"), whole(b"other"))).unwrap_err();
    assert!(again.to_string().contains("exists"), "{again}");
    assert!(read(&files, "x").unwrap() == content, "the first one is untouched");
    let long = About { metadata: vec![("k".into(), "v".repeat(300_000))], ..about("z") };
    assert!(wait(files.keep(long, whole(b""))).is_err());
    assert_eq!(names(dir.path()), ["note.txt", "x.snap"]);
}

#[test]
fn ids_lead_nowhere_else() {
    let dir = ice_testing::tempdir();
    fs::write(dir.path().join("secret.snap"), "x").unwrap();
    let files = Snapshots::open(dir.path().join("inner"), true).unwrap();
    for id in [
        "",
        ".",
        "..",
        "../secret",
        "a/b",
        "/etc/passwd",
        ".hidden",
        "a b",
        "a\0",
        "\u{e9}",
        &"x".repeat(ID_MAX_BYTES + 1),
    ] {
        assert!(!is_id(id), "{id:?}");
        assert_eq!(wait(files.get(id)), Err(Error::SnapshotNotFound.into()), "{id:?}");
        assert_eq!(wait(files.remove(id)), Err(Error::SnapshotNotFound.into()), "{id:?}");
        assert!(wait(files.keep(about(id), whole(b"x"))).is_err(), "{id:?}");
    }
    assert!(is_id(&"x".repeat(ID_MAX_BYTES)) && is_id("snap-1764350000-1f"));
    assert!(names(&dir.path().join("inner")).is_empty() && dir.path().join("secret.snap").exists());
}

#[test]
fn only_so_many_at_once() {
    let dir = ice_testing::tempdir();
    let files = Snapshots::open(dir.path(), true).unwrap();
    wait(files.keep(about("x"), whole(&sample(9_000_000)))).unwrap();
    let open: Vec<Snapshot> = (0..READERS_MAX).map(|_| wait(files.read("x")).unwrap()).collect();
    assert_eq!(wait(files.read("x")).err(), Some(Refused::Busy));
    drop(open);
    assert!(read(&files, "x").is_ok());
    let pending = || Snapshot { bytes: 1, chunks: Box::pin(futures::stream::pending()) };
    let mut under_way: Vec<_> =
        (0..KEEPS_MAX).map(|i| Box::pin(files.keep(about(&i.to_string()), pending()))).collect();
    assert!(under_way.iter_mut().all(|k| k.as_mut().now_or_never().is_none()));
    assert_eq!(wait(files.keep(about("more"), whole(b""))), Err(Refused::Busy));
    drop(under_way);
    assert!(wait(files.keep(about("more"), whole(b""))).is_ok());
}

/// A file system that is full, where one can be mounted.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            if let Err(e) = unmount(&self.0, UnmountFlags::DETACH) {
                eprintln!("{} stays mounted: {e}", self.0.display());
            }
        }
    }
    let dir = ice_testing::tempdir();
    if let Err(e) = mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs to mount: {e}");
        eprintln!("SKIPPED: nothing can be mounted: {e}");
        return;
    }
    let _mounted = Mounted(dir.path().to_path_buf());
    let files = Snapshots::open(dir.path(), false).unwrap();
    wait(files.keep(about("small"), whole(&sample(100_000)))).unwrap();
    let full = wait(files.keep(about("large"), whole(&sample(5_000_000)))).unwrap_err();
    assert!(full.to_string().contains("No space left"), "{full}");
    assert_eq!(names(dir.path()), ["small.snap"]);
    assert!(wait(files.verify("small")).is_ok());
    wait(files.keep(about("next"), whole(&sample(100_000)))).unwrap();
}
