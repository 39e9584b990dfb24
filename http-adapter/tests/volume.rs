//! Files of a real volume, driven by a real state machine, over `FileService`.

use ice_core::action::{Io, Notice, Send};
use ice_core::config::{Config, Recovered};
use ice_core::event::IoResult;
use ice_core::ids::{InodeId, Name};
use ice_core::rng::Seed;
use ice_host::digest::of_bytes;
use ice_host::engine::{Actions, Engine};
use ice_host::identity::DataDir;
use ice_host::payload::PayloadPool;
use ice_host::vfs::{Caller, ROOT_INO, Vfs};
use ice_host::volume::{Options, Volume};
use ice_http::files::{FileKind, FileService, Meta, Result};
use ice_http::{RelPath, VfsFiles};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nothing in these tests takes that long; a wait this long has failed.
const PATIENCE: Duration = ice_testing::PATIENCE;

/// A log and a store that are durable at once, and no network.
struct Lanes {
    volume: Volume,
    completions: Mutex<Sender<(ice_core::ids::IoToken, IoResult)>>,
}

impl Actions for Lanes {
    fn send(&self, send: Send) {
        panic!("there is nobody to talk to: {send:?}");
    }
    fn io(&self, io: Io) {
        let done = match io {
            Io::Log { .. } => return,
            Io::LogSync { token } => (token, IoResult::LogSynced),
            Io::Store { token, .. } => (token, IoResult::Stored),
            Io::Fetch { .. } => panic!("there is nobody to fetch from"),
            other => match self.volume.submit(other) {
                Ok(()) => return,
                Err(io) => panic!("nobody carries out {io:?}"),
            },
        };
        // Fails only at the end of the test.
        let _ = self.completions.lock().unwrap_or_else(PoisonError::into_inner).send(done);
    }
    fn notice(&self, _: Notice) {}
}

struct Fixture {
    dir: tempfile::TempDir,
    _data: (tempfile::TempDir, DataDir),
    engine: Arc<Engine>,
    volume: Volume,
    files: VfsFiles,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(|_| ())
    }

    /// `before` fills the directory that is adopted.
    fn with(before: impl FnOnce(&Path)) -> Fixture {
        let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        before(dir.path());
        let mut identity = DataDir::open(data.path()).unwrap();
        identity.claim_backing(dir.path()).unwrap();
        let replica = identity.replica();
        let volume = Volume::open(Options::new(dir.path(), replica)).unwrap();
        let pool = Arc::new(PayloadPool::new(64 << 20));
        let config = Config::new(replica, "node-1");
        let engine = Arc::new(Engine::new(config, Seed(1), Recovered::default(), pool, None));
        let (completions, ended) = channel();
        let completing = engine.clone();
        std::thread::spawn(move || {
            while let Ok((token, result)) = ended.recv() {
                completing.complete(token, result);
            }
        });
        let lanes = Lanes { volume: volume.clone(), completions: Mutex::new(completions) };
        engine.start(Arc::new(lanes)).unwrap();
        volume.start(engine.clone()).unwrap();
        let files = VfsFiles::new(Arc::new(volume.outside()));
        Fixture { dir, _data: (data, identity), engine, volume, files }
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<Option<Meta>> {
        self.put_if(path, bytes, &|_| true)
    }

    fn put_if(&self, path: &str, bytes: &[u8], allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<Option<Meta>> {
        let mut upload = self.files.upload(&rel(path))?;
        for piece in bytes.chunks(100_000) {
            upload.write(piece)?;
        }
        upload.commit(allowed)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.files.open(&rel(path))?;
        let mut bytes = vec![0; file.meta().size as usize + 1];
        let n = file.read_at(0, &mut bytes)?;
        assert!(file.unchanged());
        bytes.truncate(n);
        Ok(bytes)
    }

    fn all(&self) -> Vec<String> {
        self.digests().into_iter().map(|(path, _)| path).collect()
    }

    /// All files with what lists say of their digests.
    fn digests(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        self.files
            .walk(&mut |path, meta| {
                all.push((String::from_utf8_lossy(path).into_owned(), meta.etag.clone()));
                true
            })
            .unwrap();
        all.sort();
        all
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.volume.stop();
        self.engine.stop();
    }
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    of_bytes(bytes).0[..16].iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn files_come_and_go() {
    let f = Fixture::new();
    let meta = f.put("a/b/c", b"hello").unwrap().unwrap();
    assert_eq!((meta.kind, meta.size, meta.etag.as_str()), (FileKind::File, 5, hex(b"hello").as_str()));
    assert_eq!(fs::read(f.dir.path().join("a/b/c")).unwrap(), b"hello");
    assert_eq!(f.get("a/b/c").unwrap(), b"hello");
    assert_eq!(f.files.stat(&rel("a/b/c")).unwrap(), meta);
    assert_eq!(f.digests(), [("a/b/c".to_owned(), hex(b"hello"))]);
    let mode = |path: &str| fs::metadata(f.dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o755, 0o755, 0o644));
    assert_eq!(f.put("a", b"x"), Err(Errno::ISDIR));
    assert_eq!(f.put("a/b/c/d", b"x"), Err(Errno::NOTDIR));
    assert_eq!(f.get("a").unwrap_err(), Errno::ISDIR);
    assert_eq!(f.get("a/nope").unwrap_err(), Errno::NOENT);
    assert_eq!(f.files.remove(&rel("a"), &|_| true), Err(Errno::NOTEMPTY));
    assert_eq!(f.files.remove(&rel("a/b/c"), &|_| false), Ok(false));
    assert_eq!(f.files.remove(&rel("a/b/c"), &|m| m.is_some_and(|m| m.size == 5)), Ok(true));
    assert_eq!(f.files.remove(&rel("a/b/c"), &|m| m.is_none()), Ok(true));
    assert_eq!(f.files.remove(&rel("x/y/z"), &|_| true), Ok(true));
    assert_eq!(f.files.remove(&rel("a/b"), &|_| true), Ok(true));
    assert!(f.all().is_empty());
}

/// Fault 3 of the original: a written file loses neither its mode nor its bytes for those who have it open.
#[test]
fn replacing_keeps_mode_and_open_readers() {
    let f = Fixture::new();
    f.put("f", b"old").unwrap();
    let path = f.dir.path().join("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let reader = f.files.open(&rel("f")).unwrap();
    let big = vec![7; 3_000_000];
    let meta = f.put("f", &big).unwrap().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4751);
    assert_eq!(fs::read(&path).unwrap(), big);
    assert_eq!((meta.size, meta.etag.as_str()), (3_000_000, hex(&big).as_str()));
    let mut old = [0; 3];
    assert_eq!((reader.read_at(0, &mut old), &old), (Ok(3), b"old"));
    assert_eq!(f.all(), ["f"], "nothing temporary is left");
    // An upload that is not finished changes nothing and leaves nothing.
    let mut upload = f.files.upload(&rel("f")).unwrap();
    upload.write(b"half").unwrap();
    drop(upload);
    assert_eq!(f.get("f").unwrap(), big);
    // Nor does one that is no longer wanted.
    assert_eq!(f.put_if("f", b"new", &|m| m.is_some_and(|m| m.etag == "other")), Ok(None));
    assert_eq!(f.files.stat(&rel("f")).unwrap(), meta);
    assert_eq!(f.put_if("f", b"new", &|m| m.is_some_and(|m| m.etag == meta.etag)).map(|m| m.is_some()), Ok(true));
    assert_eq!((f.get("f").unwrap(), f.all()), (b"new".to_vec(), vec!["f".to_owned()]));
}

/// An upload is one change of one file: it keeps its identity, its other names and what is attached to it, and the core knows
/// the bytes when the upload ends, so that waiting for acknowledgements waits for them.
#[test]
fn a_replaced_file_stays_the_same_file() {
    let f = Fixture::new();
    let inode = |name: &[u8]| f.engine.tree(|t| t.child(InodeId::ROOT, &Name::new(name).unwrap()));
    let known = |inode| f.engine.tree(|t| t.info(inode).map(|i| (i.held == i.version, i.size, i.digest)));
    let big = vec![3; 20_000_000];
    f.put("f", &big).unwrap();
    let first = inode(b"f").unwrap();
    assert_eq!(known(first), Some((true, 20_000_000, of_bytes(&big))));
    let vfs = f.volume.outside();
    let stat = vfs.lookup(ROOT_INO, "f".as_ref()).unwrap();
    vfs.link(stat.ino, ROOT_INO, "other".as_ref()).unwrap();
    vfs.setxattr(stat.ino, "user.note".as_ref(), b"kept", 0).unwrap();
    for content in [&b"small"[..], &[4; 9_000_000], b"", b"again"] {
        let meta = f.put("f", content).unwrap().unwrap();
        assert_eq!(inode(b"f"), Some(first));
        assert_eq!(known(first), Some((true, content.len() as u64, of_bytes(content))));
        assert_eq!(meta.etag, hex(content));
        assert_eq!((f.get("f").unwrap(), f.get("other").unwrap()), (content.to_vec(), content.to_vec()));
        let now = vfs.lookup(ROOT_INO, "f".as_ref()).unwrap();
        assert_eq!(now.nlink, 2);
        assert_eq!(vfs.getxattr(now.ino, "user.note".as_ref()).unwrap(), b"kept");
        assert_eq!(fs::read(f.dir.path().join("other")).unwrap(), content);
    }
    // The same bytes again are no new version.
    let version = |inode| f.engine.tree(|t| t.info(inode).map(|i| i.version));
    let before = version(first);
    f.put("f", b"again").unwrap();
    assert_eq!(version(first), before);
    // While somebody writes, the name goes to a new file, and the writer keeps the old one.
    let caller = Caller { uid: 0, gid: 0, pid: 0 };
    let opened = vfs
        .open(caller, vfs.lookup(ROOT_INO, "other".as_ref()).unwrap().ino, rustix::fs::OFlags::RDWR.bits() as i32)
        .unwrap();
    vfs.write(opened.fh, 0, b"WRITER").unwrap();
    f.put("f", b"replaced").unwrap();
    assert_eq!((f.get("f").unwrap(), f.get("other").unwrap()), (b"replaced".to_vec(), b"WRITER".to_vec()));
    assert_ne!(inode(b"f"), Some(first));
    vfs.release(opened.fh);
    assert_eq!(f.all(), ["f", "other"]);
}

/// Fault 19: no symbolic link leads out.
#[test]
fn links_stay_inside() {
    let f = Fixture::new();
    f.put("d/e/file", b"inside").unwrap();
    let at = |name: &str| f.dir.path().join(name);
    symlink("d/e/file", at("near")).unwrap();
    symlink("../../d/e", at("d/e/up")).unwrap();
    symlink("../../etc/passwd", at("d/out")).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    symlink("loop", at("loop")).unwrap();
    symlink("d/e/new", at("dangling")).unwrap();
    symlink("d/e/..", at("dir")).unwrap();
    // The volume learns of what was made behind its back by a watch or a scan.
    f.volume.rescan();
    let deadline = Instant::now() + PATIENCE;
    while f.files.stat(&rel("near")).is_err() || f.files.stat(&rel("dir")).is_err() {
        assert!(Instant::now() < deadline, "direct edits were not found");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(f.get("near").unwrap(), b"inside");
    assert_eq!(f.get("d/e/up/file").unwrap(), b"inside");
    assert_eq!(f.files.stat(&rel("dir")).unwrap().kind, FileKind::Dir);
    assert_eq!(f.get("dir/e/file").unwrap(), b"inside");
    for out in ["d/out", "absolute"] {
        assert_eq!(f.get(out).unwrap_err(), Errno::XDEV, "{out}");
        assert_eq!(f.put(out, b"x").unwrap_err(), Errno::XDEV, "{out}");
    }
    assert_eq!(f.get("loop").unwrap_err(), Errno::LOOP);
    f.put("dangling", b"made").unwrap();
    assert_eq!(f.get("d/e/new").unwrap(), b"made");
    f.put("near", b"through the link").unwrap();
    assert_eq!(f.get("d/e/file").unwrap(), b"through the link");
    assert_eq!(f.files.remove(&rel("near"), &|_| true), Ok(true));
    assert_eq!(f.get("d/e/file").unwrap(), b"through the link");
    let mut kinds = Vec::new();
    f.files
        .list(None, &mut |name, meta| {
            kinds.push(format!("{} {}", String::from_utf8_lossy(name), meta.kind.word()));
            true
        })
        .unwrap();
    kinds.sort();
    assert_eq!(kinds, ["absolute link", "d dir", "dangling link", "dir link", "loop link"]);
}

/// Fault 16: what is not part of the volume can neither be seen nor reached.
#[test]
fn the_working_directory_is_out_of_reach() {
    let f = Fixture::new();
    f.put("x", b"1").unwrap();
    let hidden = ice_host::volume::HIDDEN_NAME;
    assert!(f.dir.path().join(hidden).is_dir());
    assert!(f.get(&format!("{hidden}/x")).is_err());
    assert!(f.put(&format!("{hidden}/x"), b"1").is_err());
    assert!(f.put(hidden, b"1").is_err());
    assert!(f.files.remove(&rel(hidden), &|_| true).is_err() || f.dir.path().join(hidden).is_dir());
    assert_eq!(f.all(), ["x"]);
}

#[test]
fn many_files_are_listed() {
    let f = Fixture::with(|dir| {
        for i in 0..1300 {
            let sub = dir.join(format!("d{}", i % 2));
            fs::create_dir_all(&sub).unwrap();
            fs::write(sub.join(format!("f{i:04}")), "x").unwrap();
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while f.all().len() < 1300 {
        assert!(Instant::now() < deadline, "{} files were adopted", f.all().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut some = 0;
    f.files
        .walk(&mut |_, _| {
            some += 1;
            some < 10
        })
        .unwrap();
    assert_eq!(some, 10);
}
