//! The kernel's requests.

use crate::attr::{errno, file_attr, kind_of_dtype, no_entry, to_set_time, without_suid};
use crate::dirs::DirCache;
use crate::inval::{AGAIN, Item, Queue};
use crate::locks::{Asked, MountLocks};
use crate::opens::{Admitted, OpenTable};
use crate::park::{Handle, Parking, Refuse, Slot};
use crate::readers::{Busy, Readers};
use crate::stale::{Mark, StaleLog};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use ice_host::locks::{LockPath, Locking, WriteLock};
use ice_host::vfs::{Caller, Opened, SetStat, Stale, Stat, Vfs};
use rustix::io::Errno as Sys;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::debug;

/// Most bytes in one write, and in one read of a file that is not cached.
const MAX_WRITE: u32 = 1 << 20;
/// Most bytes copied by one request: a thread is busy with it.
const MAX_COPY: u64 = 16 << 20;
/// Moving more bytes than this takes so long that another thread should be there for what comes meanwhile.
const LONG_BYTES: usize = 64 << 10;
/// Requests in the background (readahead) at a time.
const MAX_BACKGROUND: u16 = 64;
/// Features asked for. fuser accepts others, too, and then misreads the protocol.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // Who changes owner or size is not asked for the mode first: set-ID bits are our business then.
    InitFlags::FUSE_HANDLE_KILLPRIV,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];
/// For locks that hold in the whole cluster.
const LOCKS: InitFlags = InitFlags::FUSE_POSIX_LOCKS.union(InitFlags::FUSE_FLOCK_LOCKS);
/// What of the flags of `open` concerns the volume. `O_DIRECT` is between the caller and the kernel.
const OPEN_FLAGS: i32 =
    libc::O_ACCMODE | libc::O_APPEND | libc::O_TRUNC | libc::O_EXCL | libc::O_CREAT | libc::O_SYNC | libc::O_DSYNC;

/// How long an open waits for the first bytes of a file, before it fails with `EAGAIN`.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(10);
/// First and longest pause between two looks for them.
const FIRST_BYTES_LOOK: Duration = Duration::from_millis(1);
const FIRST_BYTES_LOOK_MAX: Duration = Duration::from_millis(50);

/// What the threads of a mount have in common.
pub(crate) struct Shared {
    vfs: Arc<dyn Vfs>,
    log: StaleLog,
    dirs: DirCache,
    pub(crate) opens: Arc<OpenTable>,
    pub(crate) queue: Arc<Queue>,
    parking: Arc<Parking>,
    notifier: OnceLock<Notifier>,
    readers: OnceLock<Arc<Readers>>,
    locks: Option<Arc<MountLocks>>,
    /// What the kernel has open.
    handles: Mutex<HashSet<Handle>>,
}

impl Shared {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, threads: usize, locking: Option<Locking>) -> io::Result<Shared> {
        Ok(Shared {
            vfs,
            log: StaleLog::new(),
            dirs: DirCache::default(),
            opens: Arc::new(OpenTable::new(locking.is_none())),
            queue: Arc::default(),
            parking: Arc::new(Parking::new(threads)?),
            notifier: OnceLock::new(),
            readers: OnceLock::new(),
            locks: locking.map(MountLocks::new),
            handles: Mutex::default(),
        })
    }

    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        // Set once, before the session runs.
        let _ = self.notifier.set(notifier);
    }

    pub(crate) fn set_readers(&self, readers: Arc<Readers>) {
        // Set once, before the session runs.
        let _ = self.readers.set(readers);
    }

    /// The session ends: all its threads are to see that.
    pub(crate) fn all_read(&self) {
        if let Some(readers) = self.readers.get() {
            readers.close();
        }
    }

    #[cfg(test)]
    pub(crate) fn notifier(&self) -> Notifier {
        self.notifier.get().unwrap().clone()
    }

    /// Changes that did not pass through the mount were applied.
    pub(crate) fn news(&self, news: &[Stale]) {
        self.log.record(news.iter().flat_map(|n| {
            match n {
                Stale::Inode(ino) => [Some(*ino), None],
                Stale::Entry { parent, child, .. } => [Some(*parent), *child],
            }
            .into_iter()
            .flatten()
        }));
        for n in news {
            match n {
                Stale::Inode(ino) => self.dirs.changed(*ino),
                Stale::Entry { parent, .. } => self.dirs.changed(*parent),
            }
        }
        let items = news.iter().flat_map(|n| {
            match n {
                Stale::Inode(ino) => [Some(Item::Inode { ino: *ino, data: true }), None, None],
                Stale::Entry { parent, name, child } => [
                    Some(Item::Entry { parent: *parent, name: name.clone(), child: *child }),
                    // The directory's times and listing, and the child's link count.
                    Some(Item::Inode { ino: *parent, data: true }),
                    child.map(|ino| Item::Inode { ino, data: false }),
                ],
            }
            .into_iter()
            .flatten()
        });
        self.queue.push(items, self.log.answered_since(AGAIN));
    }

    /// The session has ended: the volume gets back what the kernel did not return.
    pub(crate) fn finish(&self) {
        self.queue.close();
        let left = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in left {
            if self.parking.release(handle) {
                self.let_go(handle);
            }
        }
        if let Some(locks) = &self.locks {
            locks.end();
        }
    }

    fn opened(&self, handle: Handle) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).insert(handle);
    }

    fn closed(&self, handle: Handle) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        if self.parking.release(handle) {
            self.let_go(handle);
        }
    }

    fn let_go(&self, handle: Handle) {
        match handle {
            Handle::File(fh) => self.vfs.release(fh),
            Handle::Dir(fh) => self.vfs.releasedir(fh),
        }
    }

    /// The locks, if files have one writer at a time and this one is opened to be written.
    fn one_writer(&self, flags: i32) -> Option<&Arc<MountLocks>> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        self.locks.as_ref().filter(|l| writes && l.one_writer())
    }

    /// A path as the name of a lock: of `name` in a directory, or of what has this number.
    fn lock_path(&self, ino: u64, name: Option<&OsStr>) -> Result<LockPath, Sys> {
        let path = self.vfs.path(ino)?;
        let name = name.map(OsStr::as_bytes);
        LockPath::below(path.split(|b| *b == b'/').chain(name)).ok_or(Sys::NAMETOOLONG)
    }

    fn may_delete(&self, parent: u64, name: &OsStr) -> Result<(), Sys> {
        match &self.locks {
            None => Ok(()),
            // Without a path there is no lock on it either.
            Some(locks) => locks.may_delete(|| self.lock_path(parent, Some(name)).ok()),
        }
    }

    /// After a store into a shared map the kernel is told to ask for the times anew. This takes no lock that a request could hold.
    fn tell_stores(&self, ino: u64) {
        if self.opens.stored(ino)
            && let Some(notifier) = self.notifier.get()
            && let Err(e) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            debug!(error = %e, "the kernel refused to forget attributes");
        }
    }

    /// An unprivileged write or truncation takes set-user-ID away, which the kernel leaves to us where it does not cache.
    fn drop_suid(&self, caller: Caller, ino: u64, fh: u64) -> Result<(), Sys> {
        let st = self.vfs.getattr(ino, Some(fh))?;
        if let Some(mode) = without_suid(st.mode) {
            let set = SetStat { mode: Some(mode), ..SetStat::default() };
            self.vfs.setattr(caller, ino, Some(fh), set)?;
            self.queue.push([Item::Inode { ino, data: false }].into_iter(), false);
        }
        Ok(())
    }

    /// Opens a file and answers, unless the caller left meanwhile.
    /// `false`: the first bytes are on their way, and nothing was answered (unless this is the `last` try).
    fn open(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
        slot: &Slot<ReplyOpen>,
        lock: &mut Option<WriteLock>,
        last: bool,
    ) -> bool {
        let truncates = flags & libc::O_TRUNC != 0;
        let opened = self.vfs.open(caller, ino, flags & OPEN_FLAGS).and_then(|o| {
            if truncates && caller.uid != 0 {
                self.drop_suid(caller, ino, o.fh).inspect_err(|_| self.vfs.release(o.fh))?;
            }
            Ok(o)
        });
        if !last && matches!(opened, Err(Sys::AGAIN)) {
            return false;
        }
        if truncates {
            self.opens.written(ino);
        }
        match (opened, slot.take()) {
            (Ok(o), Some(reply)) => {
                let Admitted { flags, backing } = self.opens.admit(ino, &o, flags, &reply);
                if backing.is_none() {
                    self.vfs.stores_are_writes(o.fh);
                }
                self.opened(Handle::File(o.fh));
                self.writes(o.fh, lock.take());
                match backing {
                    Some(id) => reply.opened_passthrough(FileHandle(o.fh), flags, &id),
                    None => reply.opened(FileHandle(o.fh), flags),
                }
            }
            (Ok(o), None) => self.vfs.release(o.fh),
            (Err(e), Some(reply)) => reply.error(errno(e)),
            (Err(_), None) => {}
        }
        true
    }

    fn writes(&self, fh: u64, lock: Option<WriteLock>) {
        if let (Some(locks), Some(lock)) = (&self.locks, lock) {
            locks.writes(fh, lock);
        }
    }

    /// Opens a file as soon as its first bytes have come, or at least one of them was written here.
    fn open_when_here(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
        slot: &Slot<ReplyOpen>,
        lock: &mut Option<WriteLock>,
    ) {
        let until = Instant::now() + FIRST_BYTES_WAIT;
        let mut pause = FIRST_BYTES_LOOK;
        while slot.waits() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(FIRST_BYTES_LOOK_MAX);
            if self.open(caller, ino, flags, slot, lock, Instant::now() >= until) {
                return;
            }
        }
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// Whether set-user-ID goes with this change of a file, as the kernel would do it. A change of nothing is what it sends before
/// an unprivileged write into its page cache, and for a `chown` that changes neither.
fn kills_suid(caller: Caller, set: &SetStat) -> bool {
    let SetStat { mode, uid, gid, size, atime, mtime } = set;
    let owner = uid.is_some() || gid.is_some();
    let nothing = !owner && size.is_none() && atime.is_none() && mtime.is_none();
    mode.is_none() && (owner || nothing || size.is_some() && caller.uid != 0)
}

/// Attributes that are not the volume's business. Access control lists would be stored, but not obeyed. Labels are this host's
/// policy; programs that list directories ask for them file by file unless they are told once that there are none.
fn is_refused(name: &[u8]) -> bool {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    name.starts_with(b"system.posix_acl_") || name == b"security.selinux"
}

/// The volume, as fuser wants it. What only looks is answered by the thread that reads the request. What changes something or
/// reads bytes may wait for the disk: then one thread at least is kept free for those that only look (module `park`).
#[derive(Clone)]
pub(crate) struct IceFs {
    shared: Arc<Shared>,
    passthrough: bool,
}

impl IceFs {
    pub(crate) fn new(shared: Arc<Shared>, passthrough: bool) -> IceFs {
        IceFs { shared, passthrough }
    }

    fn vfs(&self) -> &dyn Vfs {
        &*self.shared.vfs
    }

    /// This thread has read a request. What is returned is to be dropped when it is answered, or handed over.
    fn busy(&self) -> Option<Busy<'_>> {
        self.shared.readers.get().map(|r| r.begin(false))
    }

    /// The same for a request that moves so many bytes.
    fn busy_with(&self, bytes: usize) -> Option<Busy<'_>> {
        self.shared.readers.get().map(|r| r.begin(bytes > LONG_BYTES))
    }

    fn mark(&self) -> Mark {
        self.shared.log.mark()
    }

    /// Does what may wait for the disk.
    fn disk(&self, work: impl FnOnce(&IceFs) + Send + 'static) {
        let fs = self.clone();
        self.shared.parking.disk(move || work(&fs));
    }

    /// Answers with a name that stands in `parent`.
    fn entry(&self, mark: Mark, parent: u64, found: Result<Stat, Sys>, reply: ReplyEntry) {
        match found {
            Ok(st) => match file_attr(&st) {
                Some(attr) => {
                    self.shared.opens.told(st.ino, st.mtime);
                    self.shared.log.answer(mark, &[parent, st.ino], |ttl| reply.entry(&ttl, &attr, Generation(0)));
                }
                None => {
                    self.vfs().forget(st.ino, 1);
                    reply.error(Errno::EIO);
                }
            },
            Err(e) => reply.error(errno(e)),
        }
    }

    fn attr(&self, mark: Mark, ino: u64, found: Result<Stat, Sys>, reply: ReplyAttr) {
        match found.map(|st| (file_attr(&st), st)) {
            Ok((Some(attr), st)) => {
                self.shared.opens.told(ino, st.mtime);
                self.shared.log.answer(mark, &[ino], |ttl| reply.attr(&ttl, &attr));
            }
            Ok((None, _)) => reply.error(Errno::EIO),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn empty(&self, done: Result<(), Sys>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    /// Does work on a handle that may wait, without holding up other requests.
    fn wait<R: Refuse>(
        &self,
        tid: u32,
        handle: Handle,
        usually_short: bool,
        reply: R,
        work: impl FnOnce(&Shared) -> Result<(), Sys> + Send + 'static,
        ok: impl FnOnce(R) + Send + 'static,
    ) {
        let slot = Slot::new(tid, reply);
        let (shared, mine) = (Arc::clone(&self.shared), Arc::clone(&slot));
        shared.parking.begin(handle);
        let parking = Arc::clone(&shared.parking);
        let job = move || {
            let done = work(&shared);
            match (mine.take(), done) {
                (Some(reply), Ok(())) => ok(reply),
                (Some(reply), Err(e)) => reply.refuse(errno(e)),
                (None, Ok(())) => {}
                (None, Err(e)) => debug!(error = %e, "work for a caller that left failed"),
            }
            if shared.parking.end(handle) {
                shared.let_go(handle);
            }
        };
        if usually_short {
            parking.short(&slot, job);
        } else {
            parking.long(&slot, job);
        }
    }

    fn xattr(&self, size: u32, value: Result<Vec<u8>, Sys>, reply: ReplyXattr) {
        match value {
            Ok(v) => match u32::try_from(v.len()) {
                Ok(n) if size == 0 => reply.size(n),
                Ok(n) if n <= size => reply.data(&v),
                _ => reply.error(Errno::ERANGE),
            },
            Err(e) => reply.error(errno(e)),
        }
    }
}

thread_local! {
    /// Bytes on their way from the volume to the kernel; one buffer per thread, grown to the largest read seen.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for IceFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // Older kernels lack some; each is only an improvement.
            let _ = config.add_capabilities(flag);
        }
        if self.shared.locks.is_some() {
            // Every kernel that knows passthrough or readdirplus knows these.
            let _ = config.add_capabilities(LOCKS);
        }
        // Both fit what fuser allows; else its default stays.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Depth 1: backing files are on a plain file system, and the mount can itself be the lower layer of an overlay.
        let passthrough = if !self.passthrough {
            Err("switched off")
        } else if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok()
        {
            Ok(())
        } else {
            Err("the kernel is older than Linux 6.9 or was built without passthrough")
        };
        self.shared.opens.negotiated(passthrough);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.busy();
        let mark = self.mark();
        match self.vfs().lookup(parent.0, name) {
            Err(Sys::NOENT) => self.shared.log.answer(mark, &[parent.0], |ttl| {
                if ttl.is_zero() {
                    reply.error(Errno::ENOENT);
                } else {
                    reply.entry(&ttl, &no_entry(), Generation(0));
                }
            }),
            found => self.entry(mark, parent.0, found, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.vfs().forget(ino.0, nlookup);
    }

    // `batch_forget` calls `forget` for each.

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _busy = self.busy();
        let mark = self.mark();
        let found = self.vfs().getattr(ino.0, fh.map(|f| f.0));
        self.attr(mark, ino.0, found, reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _busy = self.busy();
        let set = SetStat {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(to_set_time),
            mtime: mtime.map(to_set_time),
        };
        let (caller, fh) = (caller(req), fh.map(|f| f.0));
        self.disk(move |fs| {
            let mark = fs.mark();
            let done = fs.vfs().setattr(caller, ino.0, fh, set).and_then(|st| {
                match without_suid(st.mode).filter(|_| kills_suid(caller, &set)) {
                    Some(mode) => {
                        fs.vfs().setattr(caller, ino.0, fh, SetStat { mode: Some(mode), ..SetStat::default() })
                    }
                    None => Ok(st),
                }
            });
            fs.attr(mark, ino.0, done, reply);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _busy = self.busy();
        match self.vfs().readlink(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let _busy = self.busy();
        let (caller, name, mode) = (caller(req), name.to_owned(), mode & !(umask & 0o777));
        self.disk(move |fs| {
            let mark = fs.mark();
            let made = fs.vfs().mknod(caller, parent.0, &name, mode, u64::from(rdev));
            fs.entry(mark, parent.0, made, reply);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _busy = self.busy();
        let (caller, name, mode) = (caller(req), name.to_owned(), mode & 0o7777 & !(umask & 0o777));
        self.disk(move |fs| {
            let mark = fs.mark();
            let made = fs.vfs().mkdir(caller, parent.0, &name, mode);
            fs.entry(mark, parent.0, made, reply);
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.busy();
        let name = name.to_owned();
        self.disk(move |fs| {
            let may = fs.shared.may_delete(parent.0, &name);
            fs.empty(may.and_then(|()| fs.vfs().unlink(parent.0, &name)), reply);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.busy();
        let name = name.to_owned();
        self.disk(move |fs| {
            let may = fs.shared.may_delete(parent.0, &name);
            fs.empty(may.and_then(|()| fs.vfs().rmdir(parent.0, &name)), reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _busy = self.busy();
        let (caller, name, target) = (caller(req), link_name.to_owned(), target.as_os_str().to_owned());
        self.disk(move |fs| {
            let mark = fs.mark();
            let made = fs.vfs().symlink(caller, parent.0, &name, &target);
            fs.entry(mark, parent.0, made, reply);
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        if !(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let (name, newname) = (name.to_owned(), newname.to_owned());
        self.disk(move |fs| {
            fs.empty(fs.vfs().rename(parent.0, &name, newparent.0, &newname, flags.bits()), reply);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _busy = self.busy();
        let newname = newname.to_owned();
        self.disk(move |fs| {
            let mark = fs.mark();
            let made = fs.vfs().link(ino.0, newparent.0, &newname);
            fs.entry(mark, newparent.0, made, reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.busy();
        let slot = Slot::new(req.pid(), reply);
        let (shared, mine, caller) = (Arc::clone(&self.shared), Arc::clone(&slot), caller(req));
        let opening = move |mut lock: Option<WriteLock>| {
            if !shared.open(caller, ino.0, flags.0, &mine, &mut lock, false) {
                let (slot, parking) = (Arc::clone(&mine), Arc::clone(&shared.parking));
                parking.long(&slot, move || shared.open_when_here(caller, ino.0, flags.0, &mine, &mut lock));
            }
        };
        let Some(locks) = self.shared.one_writer(flags.0) else {
            return self.shared.parking.short(&slot, move || opening(None));
        };
        let path = match self.shared.lock_path(ino.0, None) {
            Ok(path) => path,
            // What has no name any more, nobody else can open.
            Err(Sys::NOENT | Sys::STALE) => return self.shared.parking.short(&slot, move || opening(None)),
            Err(e) => return slot.take().map_or((), |reply| reply.refuse(errno(e))),
        };
        let (parking, for_then) = (Arc::clone(&self.shared.parking), Arc::clone(&slot));
        locks.write(&self.shared.parking, req.pid(), &slot, path, move |lock| {
            parking.long(&for_then, move || opening(Some(lock)));
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _busy = self.busy();
        let (caller, name, mode) = (caller(req), name.to_owned(), mode & 0o7777 & !(umask & 0o777));
        let slot = Slot::new(req.pid(), reply);
        let (mine, new) = (Arc::clone(&slot), name.clone());
        let creating = move |fs: &IceFs, lock: Option<WriteLock>| {
            let mark = fs.mark();
            let made = fs.vfs().create(caller, parent.0, &new, mode, flags & OPEN_FLAGS);
            match (made, mine.take()) {
                (Ok((st, o)), Some(reply)) => fs.created(mark, parent.0, st, o, flags, lock, reply),
                (Ok((st, o)), None) => {
                    fs.vfs().release(o.fh);
                    fs.vfs().forget(st.ino, 1);
                }
                (Err(e), Some(reply)) => reply.error(errno(e)),
                (Err(_), None) => {}
            }
        };
        let Some(locks) = self.shared.one_writer(flags) else { return self.disk(move |fs| creating(fs, None)) };
        let path = match self.shared.lock_path(parent.0, Some(&name)) {
            Ok(path) => path,
            Err(e) => return slot.take().map_or((), |reply| reply.refuse(errno(e))),
        };
        let (fs, for_then) = (self.clone(), Arc::clone(&slot));
        locks.write(&self.shared.parking, caller.pid, &slot, path, move |lock| {
            let parking = Arc::clone(&fs.shared.parking);
            parking.long(&for_then, move || creating(&fs, Some(lock)));
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = self.busy_with(size as usize);
        // The kernel names the owner of locks where it reads for a process, not where it fills its page cache.
        let stray = self.shared.opens.strays(ino.0, lock_owner.is_none());
        self.disk(move |fs| {
            BUFFER.with_borrow_mut(|buf| {
                // The kernel asks for at most MAX_WRITE or its readahead; fuser's own limit is 16 MiB.
                let size = (size as usize).min(16 << 20);
                if buf.len() < size {
                    buf.resize(size, 0);
                }
                match fs.vfs().read(fh.0, offset, &mut buf[..size]) {
                    Ok(n) => reply.data(&buf[..n.min(size)]),
                    Err(e) => reply.error(errno(e)),
                }
            });
            if stray {
                fs.shared.queue.push([Item::Inode { ino: ino.0, data: true }].into_iter(), false);
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = self.busy_with(data.len());
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let to = WriteTo { caller: caller(req), ino: ino.0, fh: fh.0, offset, kill, flags: flags.0 };
        match self.shared.parking.turn() {
            Some(_turn) => self.write_to(to, data, reply),
            None => {
                let (fs, data) = (self.clone(), data.to_vec());
                self.shared.parking.hand_over(move || fs.write_to(to, &data, reply));
            }
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let _busy = self.busy();
        let work = move |s: &Shared| {
            let done = s.vfs.flush(fh.0);
            s.tell_stores(ino.0);
            if let Some(locks) = &s.locks {
                locks.flushed(ino.0, lock_owner.0);
            }
            done
        };
        self.wait(req.pid(), Handle::File(fh.0), true, reply, work, ReplyEmpty::ok);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        self.shared.tell_stores(ino.0);
        self.shared.opens.leave(ino.0);
        self.shared.closed(Handle::File(fh.0));
        if let Some(locks) = &self.shared.locks {
            locks.released(fh.0);
        }
        reply.ok();
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let _busy = self.busy();
        let (tid, ino, fh, owner) = (req.pid(), ino.0, fh.0, lock_owner.0);
        match &self.shared.locks {
            Some(locks) => locks.test(&Asked { tid, pid, ino, fh, owner, start, end, typ, wait: false }, reply),
            None => reply.error(Errno::ENOSYS),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        let Some(locks) = &self.shared.locks else { return reply.error(Errno::ENOSYS) };
        let (tid, ino, fh, owner) = (req.pid(), ino.0, fh.0, lock_owner.0);
        let asked = Asked { tid, pid, ino, fh, owner, start, end, typ, wait: sleep };
        if typ != libc::F_UNLCK {
            return locks.lock(&self.shared.parking, asked, reply);
        }
        if !locks.holds(ino, owner) {
            return reply.ok();
        }
        let Some(back) = locks.given_back(&asked) else { return reply.error(Errno::EINVAL) };
        let locks = Arc::clone(locks);
        let work = move |s: &Shared| {
            // Who has the lock next is to find what was written under it.
            if let Err(e) = s.vfs.flush(fh) {
                debug!(error = %e, "what was written under a lock");
            }
            s.tell_stores(ino);
            locks.unlock(back);
            Ok(())
        };
        self.wait(tid, Handle::File(fh), true, reply, work, ReplyEmpty::ok);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _busy = self.busy();
        let work = move |s: &Shared| {
            let done = s.vfs.fsync(fh.0, datasync);
            s.tell_stores(ino.0);
            done
        };
        self.wait(req.pid(), Handle::File(fh.0), false, reply, work, ReplyEmpty::ok);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.busy();
        // Decided before the volume looks at anything, so that a change in between counts.
        let flags = self.shared.dirs.open(ino.0);
        match self.vfs().opendir(ino.0) {
            Ok(fh) => {
                self.shared.opened(Handle::Dir(fh));
                reply.opened(FileHandle(fh), flags);
            }
            Err(e) => {
                self.shared.dirs.close(ino.0);
                reply.error(errno(e));
            }
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _busy = self.busy();
        let mut some = false;
        let done = self.vfs().readdir(fh.0, offset, false, &mut |e| {
            let full = reply.add(INodeNo(e.ino), e.cookie, kind_of_dtype(e.kind), &e.name);
            some |= !full;
            !full
        });
        match done {
            Err(e) if !some => reply.error(errno(e)),
            // An error after some entries comes again with the next request.
            _ => reply.ok(),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let _busy = self.busy();
        let mark = self.mark();
        let mut sent: Vec<(u64, OsString)> = Vec::new();
        let mut unusable: Vec<u64> = Vec::new();
        let mut some = false;
        let done = self.vfs().readdir(fh.0, offset, true, &mut |e| {
            let dots = e.name == "." || e.name == "..";
            let attr = match e.stat.as_ref().and_then(file_attr) {
                Some(attr) => attr,
                None if dots => FileAttr { ino: INodeNo(e.ino), kind: fuser::FileType::Directory, ..no_entry() },
                None => {
                    debug!(name = ?e.name, "an entry without attributes is left out");
                    unusable.push(e.ino);
                    return true;
                }
            };
            let stale = self.shared.log.touched(mark, &[ino.0, e.ino]);
            let ttl = if stale { std::time::Duration::ZERO } else { crate::stale::TTL };
            if reply.add(attr.ino, e.cookie, &e.name, &ttl, &attr, Generation(0)) {
                return false;
            }
            some = true;
            if !dots {
                if let Some(st) = &e.stat {
                    self.shared.opens.told(e.ino, st.mtime);
                }
                sent.push((e.ino, e.name));
            }
            true
        });
        for ino in unusable {
            self.vfs().forget(ino, 1);
        }
        match done {
            Err(e) if !some => reply.error(errno(e)),
            _ => self.shared.log.answer(mark, &[], |_| reply.ok()),
        }
        // What became stale while entries were gathered has just been cached: tell the kernel once more.
        let renewed = |(child, name): &(u64, OsString)| {
            let stale = self.shared.log.touched(mark, &[ino.0, *child]);
            stale.then(|| {
                [
                    Item::Entry { parent: ino.0, name: name.clone(), child: None },
                    Item::Inode { ino: *child, data: false },
                ]
            })
        };
        let again: Vec<Item> = sent.iter().filter_map(renewed).flatten().collect();
        if !again.is_empty() {
            self.shared.queue.push(again.into_iter(), true);
        }
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _busy = self.busy();
        self.shared.dirs.close(ino.0);
        self.shared.closed(Handle::Dir(fh.0));
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _busy = self.busy();
        let work = move |s: &Shared| s.vfs.fsyncdir(fh.0);
        self.wait(req.pid(), Handle::Dir(fh.0), false, reply, work, ReplyEmpty::ok);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _busy = self.busy();
        match self.vfs().statfs() {
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.bsize),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        if is_refused(name.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (name, value) = (name.to_owned(), value.to_vec());
        self.disk(move |fs| fs.empty(fs.vfs().setxattr(ino.0, &name, &value, flags), reply));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _busy = self.busy();
        if is_refused(name.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.xattr(size, self.vfs().getxattr(ino.0, name), reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _busy = self.busy();
        let names = self
            .vfs()
            .listxattr(ino.0)
            .map(|list| list.split_inclusive(|b| *b == 0).filter(|n| !is_refused(n)).flatten().copied().collect());
        self.xattr(size, names, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.busy();
        if is_refused(name.as_bytes()) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let name = name.to_owned();
        self.disk(move |fs| fs.empty(fs.vfs().removexattr(ino.0, &name), reply));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        let _busy = self.busy();
        // The kernel checks by itself and will not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _busy = self.busy();
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let _busy = self.busy();
        // The kernel then treats files as always ready, and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _busy = self.busy();
        self.disk(move |fs| {
            let done = fs.vfs().fallocate(fh.0, mode, offset, length);
            fs.shared.opens.written(ino.0);
            fs.empty(done, reply);
        });
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _busy = self.busy();
        match self.vfs().lseek(fh.0, offset, whence) {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _busy = self.busy_with(len.min(MAX_COPY) as usize);
        self.disk(move |fs| {
            let done = fs.vfs().copy_file_range(fh_in.0, offset_in, fh_out.0, offset_out, len.min(MAX_COPY));
            fs.shared.opens.written(ino_out.0);
            match done {
                Ok(n) => reply.written(n.min(MAX_COPY as usize) as u32),
                Err(e) => reply.error(errno(e)),
            }
        });
    }
}

/// Where the bytes of a `write` go.
struct WriteTo {
    caller: Caller,
    ino: u64,
    fh: u64,
    offset: u64,
    /// Set-user-ID is lost by it.
    kill: bool,
    flags: i32,
}

impl IceFs {
    fn write_to(&self, to: WriteTo, data: &[u8], reply: ReplyWrite) {
        let WriteTo { caller, ino, fh, offset, kill, flags } = to;
        let done = if kill { self.shared.drop_suid(caller, ino, fh) } else { Ok(()) }
            .and_then(|()| self.vfs().write(fh, offset, data));
        self.shared.opens.written(ino);
        let n = match done {
            Ok(n) => n.min(data.len()) as u32,
            Err(e) => return reply.error(errno(e)),
        };
        if flags & (libc::O_SYNC | libc::O_DSYNC) == 0 || n == 0 {
            return reply.written(n);
        }
        // O_SYNC contains the bit of O_DSYNC.
        let data_only = flags & libc::O_SYNC != libc::O_SYNC;
        let work = move |s: &Shared| s.vfs.fsync(fh, data_only);
        self.wait(caller.pid, Handle::File(fh), false, reply, work, move |r: ReplyWrite| r.written(n));
    }

    #[allow(clippy::too_many_arguments, reason = "what a creation brings")]
    fn created(
        &self,
        mark: Mark,
        parent: u64,
        st: Stat,
        o: Opened,
        flags: i32,
        lock: Option<WriteLock>,
        reply: ReplyCreate,
    ) {
        let Some(attr) = file_attr(&st) else {
            self.vfs().release(o.fh);
            self.vfs().forget(st.ino, 1);
            return reply.error(Errno::EIO);
        };
        let Admitted { flags, backing } = self.shared.opens.admit(st.ino, &o, flags, &reply);
        if backing.is_none() {
            self.vfs().stores_are_writes(o.fh);
        }
        self.shared.opened(Handle::File(o.fh));
        self.shared.writes(o.fh, lock);
        self.shared.opens.told(st.ino, st.mtime);
        self.shared.log.answer(mark, &[parent, st.ino], |ttl| {
            let (generation, fh) = (Generation(0), FileHandle(o.fh));
            match backing {
                Some(id) => reply.created_passthrough(&ttl, &attr, generation, fh, flags, &id),
                None => reply.created(&ttl, &attr, generation, fh, flags & !FopenFlags::FOPEN_PASSTHROUGH),
            }
        });
    }
}
