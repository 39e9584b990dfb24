//! In which of the kernel's modes files are open.
//!
//! The kernel allows one mode per inode at a time: either all its opens are passthrough, with one backing file, or none is.
//! Mixing them gives `EIO`. So the first open chooses and later ones follow until the last is released.
//!
//! | first opened | mode | further opens to read | to write |
//! |---|---|---|---|
//! | to read, or to write | passthrough | `PASSTHROUGH`: reads and maps of the backing file | and `DIRECT_IO`: reads and writes come here, maps go to the backing file |
//! | to read and write, or where passthrough does not work | page cache | page cache | page cache, written through |
//! | while another backing file of this number is open | none | `DIRECT_IO` | `DIRECT_IO` |
//!
//! Who can both read and write a file can store into a shared map of it, and databases do nothing else with their files: in the
//! page cache their reads cost no request, and their stores come here as writes, so that it is known which bytes changed.
//!
//! If such a file was open in passthrough before, its maps are those of the backing file. Stores then do not pass here, and
//! two things have to be mended. The kernel may show old times: [`OpenTable::stored`] finds this out by comparing what the
//! kernel was last told with the file. And `splice` and `sendfile` from such a descriptor fill the page cache all the same, which
//! no store changes: [`OpenTable::strays`] tells which reads did so, and the pages are dropped again.

use fuser::{BackingId, FopenFlags, ReplyCreate, ReplyOpen};
use ice_host::vfs::Opened;
use rustix::io::Errno;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tracing::warn;

const SHARDS: usize = 16;

/// Something that can register a backing file with the kernel.
pub(crate) trait Backer {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<BackingId>;
}

impl Backer for ReplyOpen {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(file)
    }
}

impl Backer for ReplyCreate {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(file)
    }
}

/// How to answer an open.
pub(crate) struct Admitted {
    pub(crate) flags: FopenFlags,
    /// The backing file of a passthrough open.
    pub(crate) backing: Option<Arc<BackingId>>,
}

enum Mode {
    Passthrough(Arc<BackingId>),
    Cached,
    /// No mode in the kernel's sense: neither caches nor maps.
    Direct,
}

struct OpenInode {
    opens: u64,
    mode: Mode,
    /// The first open's file, kept so that its identity is not reused.
    file: Arc<OwnedFd>,
    /// Device and inode number of `file`.
    identity: Option<(u64, u64)>,
    /// The modification time the kernel has cached, if this is known and the kernel has one.
    told: Option<(i64, u32)>,
}

/// All open inodes.
pub(crate) struct OpenTable {
    shards: [Mutex<HashMap<u64, OpenInode>>; SHARDS],
    /// Passthrough was negotiated and nothing spoke against it so far.
    passthrough: AtomicBool,
    /// It was once in use: pages cached before may be older than the backing file.
    used: AtomicBool,
    refused: OnceLock<String>,
    /// Closing what could not be written concerns nobody.
    quiet_readers: bool,
}

impl OpenTable {
    /// `quiet_readers`: nobody need hear of the closing of files that were only read.
    pub(crate) fn new(quiet_readers: bool) -> OpenTable {
        OpenTable {
            shards: std::array::from_fn(|_| Mutex::default()),
            passthrough: AtomicBool::new(false),
            used: AtomicBool::new(false),
            refused: OnceLock::new(),
            quiet_readers,
        }
    }

    /// The kernel agreed to passthrough, or why it will not be used.
    pub(crate) fn negotiated(&self, outcome: Result<(), &str>) {
        match outcome {
            Ok(()) => self.passthrough.store(true, Ordering::SeqCst),
            Err(why) => self.refuse(why.to_owned()),
        }
    }

    /// Why passthrough is not used, if it is not.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused.get().cloned()
    }

    fn refuse(&self, why: String) {
        self.passthrough.store(false, Ordering::SeqCst);
        // Only the first reason counts.
        let _ = self.refused.set(why);
    }

    fn shard(&self, ino: u64) -> std::sync::MutexGuard<'_, HashMap<u64, OpenInode>> {
        // Inode numbers may be hashes or counters: mix, then take high bits.
        let at = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        self.shards[at as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an open with these `O_...` flags and says how to answer it.
    pub(crate) fn admit(&self, ino: u64, opened: &Opened, flags: i32, reply: &impl Backer) -> Admitted {
        let access = flags & libc::O_ACCMODE;
        let writable = access != libc::O_RDONLY;
        let identity = rustix::fs::fstat(&opened.file).ok().map(|st| (st.st_dev, st.st_ino));
        // Held over the registration, so that two first opens do not register two backing files.
        let mut shard = self.shard(ino);
        let (inode, same, first) = match shard.entry(ino) {
            Entry::Occupied(e) => {
                let inode = e.into_mut();
                let same = opened.shared && identity.is_some() && identity == inode.identity;
                inode.opens += 1;
                (inode, same, false)
            }
            Entry::Vacant(e) => {
                let mode = match (opened.shared, access) {
                    (false, _) => Mode::Direct,
                    (true, libc::O_RDWR) => Mode::Cached,
                    (true, _) => self.choose(opened, reply),
                };
                let file = Arc::clone(&opened.file);
                (e.insert(OpenInode { opens: 1, mode, file, identity, told: None }), opened.shared, true)
            }
        };
        let mut flags = match (&inode.mode, same) {
            (Mode::Passthrough(_), true) if !writable => FopenFlags::FOPEN_PASSTHROUGH,
            (Mode::Passthrough(_), _) => FopenFlags::FOPEN_PASSTHROUGH | FopenFlags::FOPEN_DIRECT_IO,
            // What was cached before may be older than what passthrough wrote since. While it is open nothing passes by.
            (Mode::Cached, true) if first && self.used.load(Ordering::SeqCst) => FopenFlags::empty(),
            (Mode::Cached, true) => FopenFlags::FOPEN_KEEP_CACHE,
            (Mode::Cached, false) | (Mode::Direct, _) => FopenFlags::FOPEN_DIRECT_IO,
        };
        if !writable && self.quiet_readers {
            // Closing what could not be written is no news; but it ends locks.
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        let backing = match &inode.mode {
            Mode::Passthrough(id) => Some(Arc::clone(id)),
            Mode::Cached | Mode::Direct => None,
        };
        Admitted { flags, backing }
    }

    fn choose(&self, opened: &Opened, reply: &impl Backer) -> Mode {
        if !self.passthrough.load(Ordering::SeqCst) {
            return Mode::Cached;
        }
        use std::os::fd::AsFd;
        match reply.register(opened.file.as_fd()) {
            Ok(id) => {
                self.used.store(true, Ordering::SeqCst);
                Mode::Passthrough(Arc::new(id))
            }
            Err(e) => {
                let why = match Errno::from_io_error(&e) {
                    Some(Errno::PERM) => Some("the kernel demands CAP_SYS_ADMIN for passthrough"),
                    Some(Errno::LOOP) => Some("the backing directory is on a stacked file system (overlayfs?)"),
                    Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                        Some("the kernel refuses passthrough for this backing file system")
                    }
                    // Out of descriptors or memory: the next file may fare better.
                    _ => None,
                };
                if let Some(why) = why {
                    warn!(error = %e, "{why}: files are read through this process");
                    self.refuse(format!("{why} ({e})"));
                }
                Mode::Cached
            }
        }
    }

    /// An open was released, or was never told to the kernel.
    pub(crate) fn leave(&self, ino: u64) {
        let gone = {
            let mut shard = self.shard(ino);
            match shard.get_mut(&ino) {
                Some(inode) if inode.opens > 1 => {
                    inode.opens -= 1;
                    None
                }
                Some(_) => shard.remove(&ino),
                None => None,
            }
        };
        // Outside the lock: this tells the kernel and closes the file.
        drop(gone);
    }

    /// The kernel is told attributes of an inode.
    pub(crate) fn told(&self, ino: u64, mtime: (i64, u32)) {
        if let Some(inode) = self.shard(ino).get_mut(&ino) {
            inode.told = Some(mtime);
        }
    }

    /// A write through here, after which the kernel asks for attributes anew.
    pub(crate) fn written(&self, ino: u64) {
        if let Some(inode) = self.shard(ino).get_mut(&ino) {
            inode.told = None;
        }
    }

    /// Whether the backing file changed behind what the kernel was told: a store into a shared map.
    pub(crate) fn stored(&self, ino: u64) -> bool {
        let mut shard = self.shard(ino);
        let Some(inode) = shard.get_mut(&ino) else { return false };
        if !matches!(inode.mode, Mode::Passthrough(_)) || inode.told.is_none() {
            return false;
        }
        let now = rustix::fs::fstat(&inode.file).map(|st| (st.st_mtime, st.st_mtime_nsec as u32)).ok();
        if now == inode.told {
            return false;
        }
        inode.told = None;
        true
    }

    /// Whether a read for the page cache came in passthrough mode: from `splice`, which knows no other way.
    pub(crate) fn strays(&self, ino: u64, for_page_cache: bool) -> bool {
        for_page_cache && self.shard(ino).get(&ino).is_some_and(|inode| matches!(inode.mode, Mode::Passthrough(_)))
    }

    /// All inodes that are open now.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).keys().copied());
        }
        all
    }
}
