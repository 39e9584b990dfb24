//! A volume on a temporary directory, driven by the real tree without a node around it: what the core would do in several
//! steps happens at once, and a test plays the remote replicas.
#![allow(dead_code)]

use ice_core::action::{Io, Refused, Source};
use ice_core::event::{Ack, Change, IoError, IoResult};
use ice_core::ids::{EntryId, InodeId, IoToken, Name, PayloadId, ReplicaId};
use ice_core::op::{Attr, Attrs, ContentDigest, Kind, Make, OpBody, Payload};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::{Step, Ticket, Tree};
use ice_host::digest;
use ice_host::payload::PayloadPool;
use ice_host::vfs::{Caller, Opened, Stale, Stat, Vfs};
use ice_host::volume::{HIDDEN_NAME, Names, Options, Port, Volume};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// True, with a word, if the volume is built as for systems that lack this.
pub fn lacks(what: &str) -> bool {
    let lacks = cfg!(any(not(target_os = "linux"), feature = "portable"));
    if lacks {
        eprintln!("SKIPPED: other systems have no {what}");
    }
    lacks
}

pub const REPLICA: ReplicaId = ReplicaId(7);
pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const PATIENCE: Duration = ice_testing::PATIENCE;

/// The core as the volume sees it: the tree, nothing else.
pub struct Model {
    tree: Mutex<Tree>,
    pool: PayloadPool,
    time: AtomicU64,
    volume: OnceLock<Volume>,
    sources: Mutex<HashMap<(InodeId, Stamp), Source>>,
    pub told: Mutex<Vec<Change>>,
    pub failed: Mutex<Vec<IoError>>,
    pub syncs: AtomicUsize,
    pub refuse_sync: Mutex<Option<Refused>>,
    /// There is no room to remember changes.
    pub full: std::sync::atomic::AtomicBool,
    pub released: Mutex<Vec<InodeId>>,
    pub results: Mutex<HashMap<IoToken, IoResult>>,
}

impl Model {
    fn mint(&self, replica: ReplicaId) -> Stamp {
        Stamp { time: Hlc(self.time.fetch_add(1, Ordering::SeqCst) + 1), replica }
    }

    pub fn tree<R>(&self, f: impl FnOnce(&mut Tree) -> R) -> R {
        f(&mut self.tree.lock().unwrap())
    }

    /// Hands everything that the tree wants done to the volume.
    pub fn pump(&self) {
        let Some(volume) = self.volume.get() else { return };
        let mut tree = self.tree.lock().unwrap();
        let have = |i, v| self.sources.lock().unwrap().get(&(i, v)).cloned();
        loop {
            tree.own_ops(&have, &mut || self.mint(REPLICA), 16);
            let steps = tree.plan(&have, 64);
            if steps.is_empty() {
                return;
            }
            for step in steps {
                if let Step::Apply { ticket, apply } = step {
                    volume.submit(Io::Apply { token: IoToken(ticket.0), apply }).unwrap();
                }
            }
        }
    }

    /// An operation of another replica.
    pub fn remote(&self, body: OpBody) -> Stamp {
        let stamp = self.mint(ReplicaId(99));
        self.tree(|t| t.integrate(stamp, &body));
        self.pump();
        stamp
    }
}

impl Port for Model {
    fn change(&self, changes: Vec<Change>) -> Result<Vec<Result<InodeId, Refused>>, Refused> {
        let results = {
            let mut tree = self.tree.lock().unwrap();
            changes.iter().map(|c| tree.local(c, &mut || self.mint(REPLICA)).map(|o| o.inode)).collect()
        };
        for c in &changes {
            if let Change::Content { payload: Some(p), .. } = c {
                self.pool.release(p.id);
            }
        }
        self.told.lock().unwrap().extend(changes);
        self.pump();
        Ok(results)
    }
    fn sync(&self, _: Ack, _: Duration) -> Result<u32, Refused> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        match *self.refuse_sync.lock().unwrap() {
            Some(why) => Err(why),
            None => Ok(1),
        }
    }
    fn room(&self) -> bool {
        !self.full.load(Ordering::SeqCst)
    }
    fn released(&self, inode: InodeId) {
        self.released.lock().unwrap().push(inode);
        self.tree(|t| t.released(inode));
        self.pump();
    }
    fn complete(&self, token: IoToken, result: IoResult) {
        self.results.lock().unwrap().insert(token, result.clone());
        match result {
            IoResult::Applied(witness) => {
                self.tree(|t| t.applied(Ticket(token.0), witness));
            }
            IoResult::Failed(e) => {
                self.failed.lock().unwrap().push(e);
                self.tree(|t| t.failed(Ticket(token.0), e));
            }
            _ => {}
        }
        self.pump();
    }
    fn names(&self, read: &mut dyn FnMut(&dyn Names)) {
        read(&*self.tree.lock().unwrap());
    }
    fn payloads(&self) -> &PayloadPool {
        &self.pool
    }
}

/// A started volume.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub volume: Volume,
    pub core: Arc<Model>,
    pub stale: Arc<Mutex<Vec<Stale>>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.volume.stop();
    }
}

pub fn mark(backing: &Path) {
    let work = backing.join(HIDDEN_NAME);
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(work.join("replica"), format!("{:016x}\n", REPLICA.0)).unwrap();
}

impl Rig {
    pub fn new() -> Rig {
        Rig::on(tempfile::tempdir().unwrap(), |_| {})
    }

    pub fn on(dir: tempfile::TempDir, set: impl FnOnce(&mut Options)) -> Rig {
        Rig::with_tree(dir, Tree::new(), 0, set)
    }

    /// With what the core knew before.
    pub fn with_tree(dir: tempfile::TempDir, tree: Tree, time: u64, set: impl FnOnce(&mut Options)) -> Rig {
        mark(dir.path());
        let mut options = Options::new(dir.path(), REPLICA);
        options.ack_timeout = Duration::from_secs(5);
        set(&mut options);
        let volume = Volume::open(options).unwrap();
        let core = Arc::new(Model {
            tree: Mutex::new(tree),
            pool: PayloadPool::new(1 << 26),
            time: AtomicU64::new(time),
            volume: OnceLock::new(),
            sources: Mutex::default(),
            told: Mutex::default(),
            failed: Mutex::default(),
            syncs: AtomicUsize::new(0),
            refuse_sync: Mutex::default(),
            full: Default::default(),
            released: Mutex::default(),
            results: Mutex::default(),
        });
        core.volume.set(volume.clone()).unwrap();
        let stale = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&stale);
        volume.on_stale(Box::new(move |news| sink.lock().unwrap().extend(news.iter().cloned())));
        volume.start(core.clone()).unwrap();
        let rig = Rig { dir, volume, core, stale };
        rig.wait("the first scan", || {
            let status = rig.volume.status();
            !status.scanning && status.dirty_files == 0
        });
        rig
    }

    /// Stops the volume and gives back directory, tree and clock, as after the end of the process.
    pub fn end(self) -> (tempfile::TempDir, Tree, u64) {
        self.volume.stop();
        let tree = self.core.tree(std::mem::take);
        let time = self.core.time.load(Ordering::SeqCst);
        // The objects keep their numbers, as they do when a node starts again.
        let again = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::rename(entry.path(), again.path().join(entry.file_name())).unwrap();
        }
        (again, tree, time)
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn wait(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !ready() {
            assert!(
                Instant::now() < until,
                "waited in vain for {what}; told {:?}; failed {:?}; status {:?}",
                self.core.told.lock().unwrap().iter().rev().take(20).collect::<Vec<_>>(),
                self.core.failed.lock().unwrap(),
                self.volume.status()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nothing is scanned, dirty or waiting to be applied.
    pub fn quiet(&self) {
        self.wait("a quiet volume", || {
            let status = self.volume.status();
            !status.scanning && status.dirty_files == 0 && status.looks_due == 0 && self.core.tree(|t| t.pending()) == 0
        });
    }

    /// Scans everything and waits for the end of what it led to.
    pub fn scan(&self) {
        self.volume.rescan();
        self.quiet();
    }

    pub fn told(&self) -> Vec<Change> {
        self.core.told.lock().unwrap().clone()
    }
    pub fn forget_told(&self) {
        self.core.told.lock().unwrap().clear();
        self.core.failed.lock().unwrap().clear();
    }

    // The mount, as the kernel would use it.

    pub fn ino(&self, path: &str) -> u64 {
        self.stat(path).ino
    }
    pub fn stat(&self, path: &str) -> Stat {
        self.try_stat(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
    pub fn try_stat(&self, path: &str) -> Result<Stat, rustix::io::Errno> {
        let mut stat = self.volume.getattr(1, None)?;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            stat = self.volume.lookup(stat.ino, OsStr::new(part))?;
        }
        Ok(stat)
    }
    fn parent(&self, path: &str) -> (u64, String) {
        match path.rsplit_once('/') {
            Some((dir, name)) => (self.ino(dir), name.to_owned()),
            None => (1, path.to_owned()),
        }
    }
    pub fn create(&self, path: &str) -> (Stat, Opened) {
        let (dir, name) = self.parent(path);
        self.volume.create(ROOT, dir, OsStr::new(&name), 0o644, libc::O_RDWR).unwrap()
    }
    pub fn open(&self, path: &str, flags: i32) -> Opened {
        self.volume.open(ROOT, self.ino(path), flags).unwrap()
    }
    pub fn close(&self, file: Opened) {
        self.volume.flush(file.fh).unwrap();
        self.volume.release(file.fh);
    }
    /// Creates or overwrites a file through the mount.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        let file = match self.try_stat(path) {
            Ok(_) => self.open(path, libc::O_WRONLY | libc::O_TRUNC),
            Err(_) => self.create(path).1,
        };
        assert_eq!(self.volume.write(file.fh, 0, bytes).unwrap(), bytes.len());
        self.close(file);
    }
    pub fn read(&self, path: &str) -> Vec<u8> {
        let file = self.open(path, libc::O_RDONLY);
        let bytes = self.read_open(&file);
        self.close(file);
        bytes
    }
    pub fn read_open(&self, file: &Opened) -> Vec<u8> {
        let mut buf = vec![0; 1 << 20];
        let n = self.volume.read(file.fh, 0, &mut buf).unwrap();
        buf.truncate(n);
        buf
    }
    pub fn mkdir(&self, path: &str) -> Stat {
        let (dir, name) = self.parent(path);
        self.volume.mkdir(ROOT, dir, OsStr::new(&name), 0o755).unwrap()
    }
    pub fn rename(&self, from: &str, to: &str, flags: u32) -> Result<(), rustix::io::Errno> {
        let ((a, from), (b, to)) = (self.parent(from), self.parent(to));
        self.volume.rename(a, OsStr::new(&from), b, OsStr::new(&to), flags)
    }
    pub fn unlink(&self, path: &str) {
        let (dir, name) = self.parent(path);
        self.volume.unlink(dir, OsStr::new(&name)).unwrap();
    }
    pub fn link(&self, from: &str, to: &str) -> Stat {
        let (dir, name) = self.parent(to);
        self.volume.link(self.ino(from), dir, OsStr::new(&name)).unwrap()
    }
    pub fn list(&self, path: &str) -> Vec<String> {
        let fh = self.volume.opendir(self.ino(path)).unwrap();
        let mut names = Vec::new();
        let mut last = 0;
        // In small portions, as the kernel asks.
        loop {
            let mut some = 0;
            self.volume
                .readdir(fh, last, true, &mut |entry| {
                    if some == 3 {
                        return false;
                    }
                    some += 1;
                    last = entry.cookie;
                    names.push(entry.name.into_string().unwrap());
                    true
                })
                .unwrap();
            if some == 0 {
                break;
            }
        }
        self.volume.releasedir(fh);
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }

    // The core's side.

    pub fn inode(&self, path: &str) -> InodeId {
        self.try_inode(path).unwrap_or_else(|| panic!("the tree does not know {path}"))
    }
    pub fn try_inode(&self, path: &str) -> Option<InodeId> {
        self.core.tree(|t| {
            path.split('/').filter(|p| !p.is_empty()).try_fold(InodeId::ROOT, |dir, part| t.child(dir, &name(part)))
        })
    }
    /// The bytes that the core was told a file has.
    pub fn assert_content(&self, path: &str, bytes: &[u8]) {
        let inode = self.inode(path);
        let info = self.core.tree(|t| t.info(inode)).unwrap();
        assert_eq!((info.size, info.digest), (bytes.len() as u64, digest::of_bytes(bytes)), "{path}");
    }
    /// The tree and the disk agree everywhere, bytes, attributes and witnesses included.
    pub fn assert_agree(&self) {
        self.quiet();
        let mut found = Vec::new();
        walk(self.dir.path(), &mut Vec::new(), &mut found);
        found.sort();
        let listed = self.core.tree(|t| t.listing());
        let known: Vec<_> = listed.iter().map(|l| join(&l.path)).collect();
        assert_eq!(found, known);
        for l in &listed {
            let path = self.dir.path().join(join(&l.path));
            let meta = std::fs::symlink_metadata(&path).unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_eq!((meta.uid(), meta.gid()), (l.attrs.uid, l.attrs.gid), "{}", path.display());
            if !meta.is_symlink() {
                assert_eq!(meta.mode() & 0o7777, l.attrs.mode, "{}", path.display());
            }
            if meta.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                assert_eq!((bytes.len() as u64, digest::of_bytes(&bytes)), (l.size, l.digest), "{}", path.display());
                let mtime = UnixTime { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
                assert_eq!(mtime, l.attrs.mtime, "{}", path.display());
            }
            if let Kind::Symlink(t) = &l.kind {
                use std::os::unix::ffi::OsStrExt;
                assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_bytes(), &**t);
            }
        }
        // What the tree remembers of each object is how it looks: a scan finds nothing.
        self.forget_told();
        self.scan();
        assert_eq!(self.told(), [], "a scan of an unchanged directory has nothing to tell");
    }

    // Remote replicas.

    pub fn remote_make(&self, dir: &str, base: &str, kind: Kind, attrs: Attrs) -> InodeId {
        let parent = self.inode(dir);
        let entry = EntryId::derive(parent, &name(base), &kind, 0);
        let inode = entry.first_inode();
        let make = Some(Box::new(Make { kind, attrs }));
        self.core.remote(OpBody::Place { entry, inode, parent, name: name(base), make });
        inode
    }
    pub fn remote_content(&self, inode: InodeId, base: Stamp, bytes: &[u8]) -> Stamp {
        let digest = digest::of_bytes(bytes);
        let body = OpBody::SetContent { inode, base, size: bytes.len() as u64, digest, mtime: time(1234, 5) };
        let stamp = self.core.mint(ReplicaId(99));
        let source = if bytes.is_empty() { Source::Empty } else { Source::Payload(self.payload(bytes)) };
        self.core.sources.lock().unwrap().insert((inode, stamp), source);
        self.core.tree(|t| t.integrate(stamp, &body));
        self.core.pump();
        stamp
    }
    pub fn remote_attr(&self, inode: InodeId, attr: Attr) {
        self.core.remote(OpBody::SetAttr { inode, attr });
    }
    pub fn payload(&self, bytes: &[u8]) -> Payload {
        let id: PayloadId = self.core.pool.insert(bytes.to_vec().into()).unwrap();
        Payload { id, len: bytes.len() as u32, digest: digest::of_bytes(bytes) }
    }
    pub fn held(&self, inode: InodeId) -> Stamp {
        self.core.tree(|t| t.info(inode)).unwrap().held
    }
    pub fn set_source(&self, inode: InodeId, version: Stamp, source: Source) {
        self.core.sources.lock().unwrap().insert((inode, version), source);
    }
    pub fn mint_remote(&self) -> Stamp {
        self.core.mint(ReplicaId(99))
    }
}

pub fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).unwrap()
}
pub fn time(sec: i64, nsec: u32) -> UnixTime {
    UnixTime { sec, nsec }
}
pub fn attrs(mode: u32) -> Attrs {
    Attrs { mode, uid: 0, gid: 0, atime: time(1000, 1), mtime: time(1000, 2) }
}
pub const EMPTY: ContentDigest = ContentDigest::EMPTY;

fn join(path: &[Name]) -> String {
    path.iter().map(|n| String::from_utf8_lossy(n.as_bytes()).into_owned()).collect::<Vec<_>>().join("/")
}

fn walk(root: &Path, at: &mut Vec<String>, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(at.join("/"))).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if at.is_empty() && name == HIDDEN_NAME {
            continue;
        }
        at.push(name);
        found.push(at.join("/"));
        if entry.file_type().unwrap().is_dir() {
            walk(root, at, found);
        }
        at.pop();
    }
}

impl Rig {
    /// With the tree's lock held already.
    pub fn inode_locked(&self, tree: &Tree, path: &str) -> InodeId {
        path.split('/').try_fold(InodeId::ROOT, |dir, part| tree.child(dir, &name(part))).unwrap()
    }
}

impl Model {
    /// A change of which the disk shows nothing.
    pub fn change_unseen(&self, change: Change) {
        self.tree(|t| t.local(&change, &mut || self.mint(REPLICA))).unwrap();
    }
}
