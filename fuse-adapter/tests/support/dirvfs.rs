//! A `Vfs` that passes everything to a directory and counts the calls.

use ice_host::vfs::{Caller, DirEntry, FsStat, Opened, ROOT_INO, Result, SetStat, SetTime, Stale, Stat, Vfs};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Sink = Box<dyn Fn(&[Stale]) + Send + Sync>;
type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Node {
    refs: u64,
    paths: Vec<PathBuf>,
}

struct OpenDir {
    ino: u64,
    entries: Vec<(OsString, u64, u8)>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<u64, Node>,
    files: HashMap<u64, (u64, Arc<OwnedFd>)>,
    dirs: HashMap<u64, Arc<OpenDir>>,
    next: u64,
}

impl State {
    fn rename(&mut self, moves: &[(&Path, &Path)]) {
        for path in self.nodes.values_mut().flat_map(|n| &mut n.paths) {
            if let Some(new) = moves.iter().find_map(|(from, to)| {
                let rest = path.strip_prefix(from).ok()?;
                Some(if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) })
            }) {
                *path = new;
            }
        }
    }
}

pub struct DirVfs {
    root: PathBuf,
    root_ino: u64,
    state: Mutex<State>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    sink: Mutex<Option<Sink>>,
    /// Milliseconds that `fsync` takes; lowering it ends those in progress.
    pub fsync_ms: AtomicU64,
    /// The same for `open`.
    pub open_ms: AtomicU64,
    /// The same for `read`, `write`, `copy_file_range`, `fallocate`, `rename`, `create` and a change of the size.
    pub disk_ms: AtomicU64,
    /// Called by `lookup` and `readdir` when the answer is ready.
    pub before_answer: Mutex<Option<Hook>>,
    /// Callers of the last changes.
    pub callers: Mutex<Vec<u32>>,
}

/// Sleeps for as long as this says, and says until then.
fn linger(ms: &AtomicU64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(ms.load(Ordering::SeqCst)) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn to_stat(st: &rustix::fs::Stat, ino: u64) -> Stat {
    Stat {
        ino,
        mode: st.st_mode,
        nlink: st.st_nlink as u32,
        uid: st.st_uid,
        gid: st.st_gid,
        rdev: st.st_rdev,
        size: st.st_size as u64,
        blocks: st.st_blocks as u64,
        blksize: st.st_blksize as u32,
        atime: (st.st_atime, st.st_atime_nsec as u32),
        mtime: (st.st_mtime, st.st_mtime_nsec as u32),
        ctime: (st.st_ctime, st.st_ctime_nsec as u32),
    }
}

impl DirVfs {
    pub fn new(root: &Path) -> DirVfs {
        // Modes arrive with the caller's mask applied.
        rustix::process::umask(Mode::empty());
        let root_ino = rustix::fs::stat(root).unwrap().st_ino;
        let mut state = State { next: 1, ..State::default() };
        state.nodes.insert(ROOT_INO, Node { refs: 1, paths: vec![root.to_owned()] });
        DirVfs {
            root: root.to_owned(),
            root_ino,
            state: Mutex::new(state),
            counts: Mutex::default(),
            sink: Mutex::default(),
            fsync_ms: AtomicU64::new(0),
            open_ms: AtomicU64::new(0),
            disk_ms: AtomicU64::new(0),
            before_answer: Mutex::default(),
            callers: Mutex::default(),
        }
    }

    /// Calls since the last look, of these kinds.
    pub fn counted(&self, kinds: &[&str]) -> u64 {
        self.counts.lock().unwrap().iter().filter(|(k, _)| kinds.contains(k)).map(|(_, n)| n).sum()
    }

    /// All calls since the last look, other than `forget`.
    pub fn take_counts(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut *self.counts.lock().unwrap())
    }

    /// Inodes the kernel holds references to, without the root.
    pub fn referenced(&self) -> usize {
        self.state.lock().unwrap().nodes.values().filter(|n| n.refs > 0).count() - 1
    }

    pub fn open_handles(&self) -> usize {
        let s = self.state.lock().unwrap();
        s.files.len() + s.dirs.len()
    }

    pub fn tell(&self, news: &[Stale]) {
        self.sink.lock().unwrap().as_ref().unwrap()(news);
    }

    /// The inode number of a path in the backing directory.
    pub fn ino_of(&self, path: &Path) -> u64 {
        self.ino(rustix::fs::lstat(path).unwrap().st_ino)
    }

    fn ino(&self, backing: u64) -> u64 {
        if backing == self.root_ino { ROOT_INO } else { backing }
    }

    /// A rename made in the backing directory, as if it came from another node.
    pub fn moved_behind(&self, from: &Path, to: &Path) {
        self.state.lock().unwrap().rename(&[(from, to)]);
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    fn hook(&self) {
        let hook = self.before_answer.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn path(&self, ino: u64) -> Result<PathBuf> {
        let s = self.state.lock().unwrap();
        s.nodes.get(&ino).and_then(|n| n.paths.first().cloned()).ok_or(Errno::STALE)
    }

    fn child(&self, parent: u64, name: &OsStr) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn file(&self, fh: u64) -> Result<Arc<OwnedFd>> {
        self.state.lock().unwrap().files.get(&fh).map(|f| Arc::clone(&f.1)).ok_or(Errno::BADF)
    }

    /// An open file of an inode that may have no name any more.
    fn any_file(&self, ino: u64) -> Option<Arc<OwnedFd>> {
        self.state.lock().unwrap().files.values().find(|f| f.0 == ino).map(|f| Arc::clone(&f.1))
    }

    // Inode numbers are those of the backing directory, which reuses them: names and numbers change together, under the lock.

    fn refer(&self, path: PathBuf) -> Result<Stat> {
        let mut s = self.state.lock().unwrap();
        let st = rustix::fs::lstat(&path)?;
        let ino = self.ino(st.st_ino);
        let node = s.nodes.entry(ino).or_default();
        node.refs += 1;
        if !node.paths.contains(&path) {
            node.paths.push(path);
        }
        Ok(to_stat(&st, ino))
    }

    /// Removes a name by a system call.
    fn remove(&self, path: &Path, call: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let mut s = self.state.lock().unwrap();
        call(path)?;
        for node in s.nodes.values_mut() {
            node.paths.retain(|p| p != path);
        }
        Ok(())
    }

    /// Gives a new object to its creator.
    fn own(&self, caller: Caller, parent: u64, path: &Path, mode: Option<u32>) -> Result<()> {
        self.callers.lock().unwrap().push(caller.uid);
        let dir = rustix::fs::stat(self.path(parent)?)?;
        let gid = if dir.st_mode & libc::S_ISGID != 0 { dir.st_gid } else { caller.gid };
        let (uid, gid) = (rustix::fs::Uid::from_raw(caller.uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(mode) = mode {
            rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        Ok(())
    }

    fn keep(&self, ino: u64, fd: OwnedFd) -> Opened {
        let file = Arc::new(fd);
        let mut s = self.state.lock().unwrap();
        let fh = s.next;
        s.next += 1;
        s.files.insert(fh, (ino, Arc::clone(&file)));
        Opened { fh, file, shared: true }
    }

    /// A path for attribute calls, through a descriptor where no name is left.
    fn reach(&self, ino: u64) -> Result<(PathBuf, Option<Arc<OwnedFd>>)> {
        use std::os::fd::AsRawFd;
        match self.path(ino) {
            Ok(p) => Ok((p, None)),
            Err(e) => {
                let file = self.any_file(ino).ok_or(e)?;
                Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into(), Some(file)))
            }
        }
    }
}

impl Vfs for DirVfs {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Stat> {
        self.count("lookup");
        let found = self.refer(self.child(parent, name)?);
        self.hook();
        found
    }

    fn forget(&self, ino: u64, n: u64) {
        let mut s = self.state.lock().unwrap();
        let node = s.nodes.get_mut(&ino).expect("forgotten more often than looked up");
        node.refs = node.refs.checked_sub(n).expect("forgotten more often than looked up");
        if node.refs == 0 && ino != ROOT_INO {
            s.nodes.remove(&ino);
        }
    }

    fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Stat> {
        self.count("getattr");
        let st = match fh {
            Some(fh) => rustix::fs::fstat(self.file(fh)?)?,
            None => match (self.path(ino), self.any_file(ino)) {
                (Ok(p), _) => rustix::fs::lstat(p)?,
                (_, Some(f)) => rustix::fs::fstat(f)?,
                (Err(e), None) => return Err(e),
            },
        };
        Ok(to_stat(&st, ino))
    }

    fn setattr(&self, _caller: Caller, ino: u64, fh: Option<u64>, set: SetStat) -> Result<Stat> {
        self.count("setattr");
        let (path, _held) = self.reach(ino)?;
        let follow = if path.starts_with("/proc") { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(rustix::fs::Uid::from_raw), set.gid.map(rustix::fs::Gid::from_raw));
            rustix::fs::chownat(CWD, &path, uid, gid, follow)?;
        }
        if let Some(mode) = set.mode {
            rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if let Some(size) = set.size {
            linger(&self.disk_ms);
            match fh.and_then(|fh| self.file(fh).ok()) {
                Some(f) => rustix::fs::ftruncate(f, size)?,
                None => rustix::fs::ftruncate(rustix::fs::open(&path, OFlags::WRONLY, Mode::empty())?, size)?,
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let spec = |t: Option<SetTime>| match t {
                None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                Some(SetTime::At(s, ns)) => Timespec { tv_sec: s, tv_nsec: i64::from(ns) },
            };
            let times = Timestamps { last_access: spec(set.atime), last_modification: spec(set.mtime) };
            rustix::fs::utimensat(CWD, &path, &times, follow)?;
        }
        Ok(to_stat(&rustix::fs::statat(CWD, &path, follow)?, ino))
    }

    fn path(&self, ino: u64) -> Result<Vec<u8>> {
        let path = self.path(ino)?;
        let below = path.strip_prefix(&self.root).map_err(|_| Errno::STALE)?;
        Ok(below.as_os_str().as_encoded_bytes().to_vec())
    }

    fn readlink(&self, ino: u64) -> Result<OsString> {
        self.count("readlink");
        Ok(OsString::from_vec(rustix::fs::readlink(self.path(ino)?, Vec::new())?.into_bytes()))
    }

    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Stat> {
        self.count("mknod");
        let path = self.child(parent, name)?;
        rustix::fs::mknodat(CWD, &path, FileType::from_raw_mode(mode), Mode::from_raw_mode(mode), rdev)?;
        self.own(caller, parent, &path, Some(mode))?;
        self.refer(path)
    }

    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Stat> {
        self.count("mkdir");
        let path = self.child(parent, name)?;
        rustix::fs::mkdir(&path, Mode::from_raw_mode(mode))?;
        let made = rustix::fs::stat(&path)?.st_mode;
        self.own(caller, parent, &path, Some(made))?;
        self.refer(path)
    }

    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Stat> {
        self.count("symlink");
        let path = self.child(parent, name)?;
        rustix::fs::symlink(target, &path)?;
        self.own(caller, parent, &path, None)?;
        self.refer(path)
    }

    fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Stat> {
        self.count("link");
        let path = self.child(parent, name)?;
        rustix::fs::link(self.path(ino)?, &path)?;
        self.refer(path)
    }

    fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.count("unlink");
        let path = self.child(parent, name)?;
        self.remove(&path, |p| rustix::fs::unlink(p))
    }

    fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.count("rmdir");
        let path = self.child(parent, name)?;
        self.remove(&path, |p| rustix::fs::rmdir(p))
    }

    fn rename(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr, flags: u32) -> Result<()> {
        self.count("rename");
        linger(&self.disk_ms);
        let (from, to) = (self.child(parent, name)?, self.child(new_parent, new_name)?);
        let mut s = self.state.lock().unwrap();
        rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::from_bits_retain(flags))?;
        if flags & RenameFlags::EXCHANGE.bits() != 0 {
            s.rename(&[(&from, &to), (&to, &from)]);
        } else {
            s.nodes.values_mut().for_each(|n| n.paths.retain(|p| *p != to));
            s.rename(&[(&from, &to)]);
        }
        Ok(())
    }

    fn open(&self, _caller: Caller, ino: u64, flags: i32) -> Result<Opened> {
        self.count("open");
        linger(&self.open_ms);
        let (path, _held) = self.reach(ino)?;
        let flags = OFlags::from_bits_retain(flags as u32) - OFlags::CREATE - OFlags::EXCL;
        Ok(self.keep(ino, rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
    }

    fn create(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        self.count("create");
        linger(&self.disk_ms);
        let path = self.child(parent, name)?;
        let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let new = !path.exists();
        let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(mode))?;
        if new {
            self.own(caller, parent, &path, Some(mode))?;
        }
        let st = self.refer(path)?;
        Ok((st, self.keep(st.ino, fd)))
    }

    fn tmpfile(&self, _caller: Caller, _parent: u64, _mode: u32, _flags: i32) -> Result<(Stat, Opened)> {
        // fuser 0.18 never asks.
        Err(Errno::OPNOTSUPP)
    }

    fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.count("read");
        linger(&self.disk_ms);
        let file = self.file(fh)?;
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&file, &mut buf[done..], offset + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.count("write");
        linger(&self.disk_ms);
        let file = self.file(fh)?;
        let mut done = 0;
        while done < data.len() {
            done += rustix::io::pwrite(&file, &data[done..], offset + done as u64)?;
        }
        Ok(done)
    }

    fn flush(&self, fh: u64) -> Result<()> {
        self.count("flush");
        self.file(fh).map(|_| ())
    }

    fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        self.count(if data_only { "fdatasync" } else { "fsync" });
        let file = self.file(fh)?;
        linger(&self.fsync_ms);
        if data_only { rustix::fs::fdatasync(&file) } else { rustix::fs::fsync(&file) }?;
        // Still open: the adapter must not release a handle that is worked on.
        self.file(fh).map(|_| self.count("fsynced"))
    }

    fn release(&self, fh: u64) {
        self.count("release");
        self.state.lock().unwrap().files.remove(&fh).expect("released once");
    }

    fn opendir(&self, ino: u64) -> Result<u64> {
        self.count("opendir");
        let path = self.path(ino)?;
        let parent = match path.parent() {
            Some(p) if ino != ROOT_INO => self.ino(rustix::fs::stat(p)?.st_ino),
            _ => ROOT_INO,
        };
        let mut entries = vec![(".".into(), ino, libc::DT_DIR), ("..".into(), parent, libc::DT_DIR)];
        for e in rustix::fs::Dir::new(rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)? {
            let e = e?;
            let name = OsString::from_vec(e.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                let kind = (e.file_type().as_raw_mode() >> 12) as u8;
                entries.push((name, self.ino(e.ino()), kind));
            }
        }
        let mut s = self.state.lock().unwrap();
        let fh = s.next;
        s.next += 1;
        s.dirs.insert(fh, Arc::new(OpenDir { ino, entries }));
        Ok(fh)
    }

    fn readdir(&self, fh: u64, cookie: u64, plus: bool, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        self.count(if plus { "readdirplus" } else { "readdir" });
        let dir = self.state.lock().unwrap().dirs.get(&fh).cloned().ok_or(Errno::BADF)?;
        for (i, (name, ino, kind)) in dir.entries.iter().enumerate().skip(cookie as usize) {
            let dots = name == "." || name == "..";
            let stat = match plus && !dots {
                true => match self.refer(self.child(dir.ino, name)?) {
                    Ok(st) => Some(st),
                    Err(_) => continue,
                },
                false => None,
            };
            let taken = sink(DirEntry { cookie: i as u64 + 1, ino: *ino, kind: *kind, name: name.clone(), stat });
            if !taken {
                if let Some(st) = stat {
                    self.forget(st.ino, 1);
                }
                break;
            }
        }
        self.hook();
        Ok(())
    }

    fn fsyncdir(&self, fh: u64) -> Result<()> {
        self.count("fsyncdir");
        linger(&self.fsync_ms);
        let _still = self.state.lock().unwrap().dirs.get(&fh).cloned().ok_or(Errno::BADF)?;
        Ok(())
    }

    fn releasedir(&self, fh: u64) {
        self.count("releasedir");
        self.state.lock().unwrap().dirs.remove(&fh).expect("released once");
    }

    fn statfs(&self) -> Result<FsStat> {
        self.count("statfs");
        let s = rustix::fs::statvfs(&self.root)?;
        Ok(FsStat {
            bsize: s.f_frsize as u32,
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            namelen: s.f_namemax as u32,
        })
    }

    fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.count("getxattr");
        let mut buf = vec![0; 65536];
        let n = rustix::fs::lgetxattr(self.reach(ino)?.0, name, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        self.count("listxattr");
        let mut buf = vec![0; 65536];
        let n = rustix::fs::llistxattr(self.reach(ino)?.0, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.count("setxattr");
        rustix::fs::lsetxattr(self.reach(ino)?.0, name, value, XattrFlags::from_bits_retain(flags as u32))
    }

    fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.count("removexattr");
        rustix::fs::lremovexattr(self.reach(ino)?.0, name)
    }

    fn fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.count("fallocate");
        linger(&self.disk_ms);
        rustix::fs::fallocate(self.file(fh)?, FallocateFlags::from_bits_retain(mode as u32), offset, len)
    }

    fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        self.count("lseek");
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let to = match whence {
            libc::SEEK_DATA => SeekFrom::Data(at),
            libc::SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        Ok(rustix::fs::seek(self.file(fh)?, to)? as i64)
    }

    fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<usize> {
        self.count("copy_file_range");
        linger(&self.disk_ms);
        let (mut a, mut b) = (from_off, to_off);
        rustix::fs::copy_file_range(self.file(from)?, Some(&mut a), self.file(to)?, Some(&mut b), len as usize)
    }

    fn on_stale(&self, sink: Sink) {
        *self.sink.lock().unwrap() = Some(sink);
    }
}
