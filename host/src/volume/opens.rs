//! Open files and the inode numbers shown for them.
//!
//! A number is the first half of the inode's id. While a file that was replaced from afar is still open here, the new file
//! is shown under another number (an *alias*): no number ever stands for two files of `backing` at once.

use super::extents::Extents;
use super::meta::{self, Raw};
use crate::digest::{BLOCK_BYTES, BlockStream, Blocks, Known};
use crate::vfs::ROOT_INO;
use ice_core::ids::InodeId;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// The number that an inode has when nothing stands against it.
pub(crate) fn base_ino(inode: InodeId) -> u64 {
    if inode == InodeId::ROOT { ROOT_INO } else { (inode.0 >> 64) as u64 }
}

/// An open file description.
pub(crate) struct Handle {
    pub(crate) fh: u64,
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) node: Arc<Open>,
    pub(crate) write: bool,
    pub(crate) append: bool,
    /// `O_SYNC` or `O_DSYNC`.
    pub(crate) sync: bool,
    /// Counted in [`State::mappers`].
    mapper: AtomicBool,
}

/// A file of `backing` that is open here, or whose changed bytes the core has not been told yet.
pub(crate) struct Open {
    /// Its number as adapters know it.
    pub(crate) ino: u64,
    /// Its number in `backing`.
    pub(crate) disk: u64,
    /// Shared by writers, exclusive for who takes the final look at the bytes. Taken after the namespace lock.
    gate: RwLock<()>,
    /// One publisher at a time. Taken before the namespace lock.
    publishing: Mutex<()>,
    state: Mutex<State>,
}

/// Its state. The lock is held for moments only, and no other is taken under it.
#[derive(Default)]
pub(crate) struct State {
    /// `None` for a file that has no name yet.
    pub(crate) inode: Option<InodeId>,
    /// Open descriptions, by handle.
    pub(crate) files: Vec<Arc<OwnedFd>>,
    /// How many of them can write.
    pub(crate) writers: u32,
    /// How many of them can write and read, and thus be mapped for writing.
    pub(crate) mappers: u32,
    /// Bytes that were changed and not yet told.
    pub(crate) dirty: Option<Dirty>,
    /// All bytes have to be looked at.
    pub(crate) whole: bool,
    /// The scan found it different: no write of ours did that.
    pub(crate) verify: bool,
    /// Bytes to be looked at.
    pub(crate) extents: Extents,
    /// Block hashes as of the last telling.
    pub(crate) blocks: Option<Blocks>,
    /// Somebody stores through a mapping: writes are no longer all there is.
    pub(crate) mapped: bool,
    /// Modification time that our own last change left behind, while there are writers or changes that were not told.
    pub(crate) expected: Option<(i64, u32)>,
    /// Changes of ours under way: until they have ended the modification time may be theirs.
    in_flight: u32,
    /// Hashes of blocks of which every byte passed through us, since the last change of anything in them. Only kept while
    /// nobody can store through a mapping; good as long as the modification time is the expected one.
    passed: Known,
    /// Goes along with who writes in order.
    stream: Option<BlockStream>,
    /// A sync failed: the bytes may not be what was written, however often it is tried again.
    pub(crate) sync_failed: bool,
    /// Waits in the queue of the content workers.
    pub(crate) queued: bool,
    /// An installation was refused because of this file.
    pub(crate) waited_for: bool,
    /// Counts the writes.
    pub(crate) writes: u64,
}

/// Since when bytes wait to be told.
#[derive(Clone, Copy)]
pub(crate) struct Dirty {
    pub(crate) since: Instant,
    pub(crate) last: Instant,
    /// Not before this.
    pub(crate) not_before: Option<Instant>,
    /// The last look failed, and not because the file moved.
    pub(crate) broken: bool,
}

impl Open {
    fn new(ino: u64, disk: u64, inode: Option<InodeId>) -> Arc<Open> {
        let state = State { inode, ..State::default() };
        Arc::new(Open { ino, disk, gate: RwLock::new(()), publishing: Mutex::new(()), state: Mutex::new(state) })
    }
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Held around each write.
    pub(crate) fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// Keeps writers out.
    pub(crate) fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn publisher(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change of ours under way.
pub(crate) struct Change {
    bytes: Range<u64>,
    /// The count of changes with this one.
    writes: u64,
    stream: Option<BlockStream>,
}

impl Change {
    /// Bytes that were written at the beginning of the range. What they are is known then without reading them.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Known {
        let mut known = Known::new();
        if let Some(stream) = &mut self.stream {
            stream.push(bytes, &mut known);
        }
        known
    }
}

impl State {
    /// Bytes are going to change. [`State::end`] must follow. `true`: they had not before, so the file belongs on the list of
    /// dirty ones. `whole`: what is written are all bytes of the range, in order.
    pub(crate) fn begin(&mut self, bytes: Range<u64>, whole: bool, now: Instant) -> (Change, bool) {
        let (at, clear) = (bytes.start, whole && self.mappers == 0 && !self.mapped);
        let stream = self.stream.take().filter(|s| clear && s.at() == at);
        let stream = stream.or_else(|| (clear && at.is_multiple_of(BLOCK_BYTES)).then(|| BlockStream::new(at)));
        let fresh = self.mark(bytes.clone(), now);
        self.in_flight += 1;
        (Change { bytes, writes: self.writes, stream }, fresh)
    }

    /// The change has ended and left this state of the file behind. `known`: from [`Change::pass`], if all was written.
    pub(crate) fn end(&mut self, change: Change, st: Option<&Raw>, known: Known, now: Instant) {
        self.in_flight -= 1;
        let alone = self.writes == change.writes && self.mappers == 0 && !self.mapped && st.is_some();
        // Whoever looked meanwhile may have seen the bytes before.
        self.mark(change.bytes, now);
        if alone && let Some(stream) = change.stream {
            self.passed.extend(known);
            self.stream = Some(stream);
        }
        if let (Some(st), true) = (st, self.expected.is_some()) {
            self.expected = Some(meta::mtime(st));
        }
    }

    /// Takes what is known of blocks that passed. Everything else of the changed bytes has to be read.
    pub(crate) fn take_passed(&mut self) -> Known {
        let mut known = std::mem::take(&mut self.passed);
        if let Some(stream) = &self.stream {
            stream.unfinished(&mut known);
        }
        known
    }

    /// All bytes of the file, if it is `size` bytes long, short, and they passed in order.
    pub(crate) fn all_passed(&self, size: u64) -> Option<Vec<u8>> {
        let stream = self.stream.as_ref().filter(|s| !self.whole && s.at() == size)?;
        stream.all().map(<[u8]>::to_vec)
    }

    /// How many bytes need not be read thanks to that, about.
    pub(crate) fn passed_bytes(&self) -> u64 {
        self.passed.len() as u64 * BLOCK_BYTES
    }

    /// Notes that bytes change. `true`: they had not before, so the file belongs on the list of dirty ones.
    fn mark(&mut self, bytes: Range<u64>, now: Instant) -> bool {
        if !self.passed.is_empty() && bytes.start < bytes.end {
            let touched = bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES);
            let gone: Vec<u64> = self.passed.range(touched).map(|(index, _)| *index).collect();
            gone.iter().for_each(|index| {
                self.passed.remove(index);
            });
        }
        self.stream = None;
        self.extents.add(bytes);
        self.verify = false;
        self.mark_time(now)
    }
    /// Notes that any byte may have changed.
    pub(crate) fn mark_whole(&mut self, now: Instant) -> bool {
        self.distrust();
        self.mark_time(now)
    }
    /// Nothing that is known of the bytes holds.
    pub(crate) fn distrust(&mut self) {
        self.whole = true;
        self.blocks = None;
        self.passed.clear();
        self.stream = None;
    }
    /// The core knows the bytes.
    pub(crate) fn told(&mut self) {
        self.dirty = None;
        self.whole = false;
        self.verify = false;
        self.extents = Extents::default();
    }
    fn mark_time(&mut self, now: Instant) -> bool {
        self.writes += 1;
        let fresh = self.dirty.is_none();
        let since = self.dirty.map_or(now, |d| d.since);
        self.dirty = Some(Dirty { since, last: now, not_before: None, broken: false });
        fresh
    }
    /// The handle does not count as a mapper any more, if it did.
    fn unmap(&mut self, handle: &Handle) {
        if handle.mapper.swap(false, Ordering::Relaxed) {
            self.mappers -= 1;
            self.mapped &= self.mappers > 0;
        }
    }
    /// Compares with what our own writes left: anything else came through a mapping, or from outside.
    pub(crate) fn notice(&mut self, st: &Raw) {
        if self.in_flight > 0 && self.mappers == 0 {
            return;
        }
        if self.expected.is_some_and(|e| e != meta::mtime(st)) {
            self.mapped = self.mappers > 0;
            self.distrust();
            self.expected = Some(meta::mtime(st));
        }
    }
}

struct Alias {
    inode: Option<InodeId>,
    refs: u64,
}

#[derive(Default)]
struct Inner {
    opens: HashMap<u64, Arc<Open>>,
    dirty: HashMap<u64, Arc<Open>>,
    aliases: HashMap<u64, Alias>,
    /// The alias under which an inode is shown now.
    current: HashMap<InodeId, u64>,
}

/// All open files.
#[derive(Default)]
pub(crate) struct Opens {
    inner: Mutex<Inner>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

/// How a file is opened.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) sync: bool,
}

impl Opens {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number never used before in this run, for a handle.
    pub(crate) fn next_fh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The number to show for an inode whose file in `backing` is `disk`.
    pub(crate) fn shown(&self, inode: InodeId, disk: u64) -> u64 {
        let mut inner = self.inner();
        let base = base_ino(inode);
        let now = inner.current.get(&inode).copied().unwrap_or(base);
        let fits = |inner: &Inner, ino: u64| {
            inner.opens.get(&ino).is_none_or(|o| o.disk == disk || o.state().files.is_empty())
        };
        if fits(&inner, now) {
            return now;
        }
        // The file under that number is still open and another one stands here now.
        if now != base && fits(&inner, base) {
            inner.current.remove(&inode);
            return base;
        }
        let ino = self.new_alias(&mut inner, Some(inode), base);
        inner.current.insert(inode, ino);
        ino
    }

    /// A number for a file without a name.
    pub(crate) fn nameless(&self, disk: u64) -> u64 {
        let mut inner = self.inner();
        self.new_alias(&mut inner, None, disk)
    }

    fn new_alias(&self, inner: &mut Inner, inode: Option<InodeId>, salt: u64) -> u64 {
        loop {
            let epoch = self.next.fetch_add(1, Ordering::Relaxed);
            let mut h = blake3::Hasher::new();
            h.update(&epoch.to_le_bytes());
            let mut b = [0; 8];
            b.copy_from_slice(&h.finalize().as_bytes()[..8]);
            let ino = salt ^ u64::from_le_bytes(b);
            if ino > ROOT_INO && !inner.aliases.contains_key(&ino) && !inner.opens.contains_key(&ino) {
                inner.aliases.insert(ino, Alias { inode, refs: 0 });
                return ino;
            }
        }
    }

    /// The inode behind an alias; `None`: it is none. `Some(None)`: a file without a name.
    pub(crate) fn aliased(&self, ino: u64) -> Option<Option<InodeId>> {
        self.inner().aliases.get(&ino).map(|a| a.inode)
    }

    /// A file without a name got one.
    pub(crate) fn named(&self, open: &Open, inode: InodeId) {
        let mut inner = self.inner();
        if let Some(alias) = inner.aliases.get_mut(&open.ino) {
            alias.inode = Some(inode);
            inner.current.insert(inode, open.ino);
        }
        open.state().inode = Some(inode);
    }

    /// The adapter counted a reference.
    pub(crate) fn refer(&self, ino: u64) {
        let mut inner = self.inner();
        if !inner.aliases.is_empty()
            && let Some(alias) = inner.aliases.get_mut(&ino)
        {
            alias.refs += 1;
        }
    }

    /// The adapter dropped references.
    pub(crate) fn forget(&self, ino: u64, n: u64) {
        let mut inner = self.inner();
        if let Some(alias) = inner.aliases.get_mut(&ino) {
            alias.refs = alias.refs.saturating_sub(n);
            inner.retire(ino);
        }
    }

    /// What is open, or dirty, under a number.
    pub(crate) fn get(&self, ino: u64) -> Option<Arc<Open>> {
        self.inner().opens.get(&ino).cloned()
    }

    /// What is open, or dirty, of the file that stands in `backing` for an inode now.
    pub(crate) fn of(&self, inode: InodeId) -> Option<Arc<Open>> {
        let inner = self.inner();
        let ino = inner.current.get(&inode).copied().unwrap_or(base_ino(inode));
        inner.opens.get(&ino).cloned()
    }

    /// Enters an open file description. `ESTALE`: the number stands for another file that is still open.
    pub(crate) fn enter(
        &self,
        ino: u64,
        inode: Option<InodeId>,
        st: &Raw,
        file: Arc<OwnedFd>,
        how: How,
    ) -> Result<Arc<Handle>, Errno> {
        let fh = self.next_fh();
        let mut inner = self.inner();
        let disk = meta::disk(st);
        let node = match inner.opens.get(&ino) {
            Some(open) if open.disk == disk => Arc::clone(open),
            Some(open) if !open.state().files.is_empty() => return Err(Errno::STALE),
            // Nobody has it open: what was dirty there is not in `backing` any more.
            _ => {
                inner.dirty.remove(&ino);
                let open = Open::new(ino, disk, inode);
                inner.opens.insert(ino, Arc::clone(&open));
                open
            }
        };
        {
            let mut state = node.state();
            state.files.push(Arc::clone(&file));
            state.writers += u32::from(how.write);
            if how.write && how.read {
                state.mappers += 1;
                // It may be mapped from now on.
                state.passed.clear();
                state.stream = None;
            }
            if how.write {
                state.expected.get_or_insert(meta::mtime(st));
            }
        }
        drop(inner);
        let handle = Arc::new(Handle {
            fh,
            file,
            node,
            write: how.write,
            append: how.append,
            sync: how.sync,
            mapper: AtomicBool::new(how.write && how.read),
        });
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::clone(&handle));
        Ok(handle)
    }

    /// The handle.
    pub(crate) fn handle(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned().ok_or(Errno::BADF)
    }

    /// Takes the handle out, before its descriptor is given up with [`Opens::leave`].
    pub(crate) fn take(&self, fh: u64) -> Option<Arc<Handle>> {
        self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&fh)
    }

    /// What is stored through maps of this handle comes as writes.
    pub(crate) fn no_mapper(&self, fh: u64) {
        if let Ok(handle) = self.handle(fh) {
            handle.node.state().unmap(&handle);
        }
    }

    /// A handle is closed.
    pub(crate) fn leave(&self, handle: &Handle) {
        let mut inner = self.inner();
        {
            let mut state = handle.node.state();
            state.files.retain(|f| !Arc::ptr_eq(f, &handle.file));
            state.writers -= u32::from(handle.write);
            state.unmap(handle);
            if state.writers == 0 && state.dirty.is_none() {
                state.expected = None;
            }
        }
        inner.settle(&handle.node);
    }

    /// An entry for a file that nobody has open but whose bytes have to be looked at, on the list of dirty files.
    pub(crate) fn suspect(&self, ino: u64, inode: InodeId, disk: u64, now: Instant) -> Arc<Open> {
        let mut inner = self.inner();
        let open = match inner.opens.get(&ino) {
            Some(open) if open.disk == disk || !open.state().files.is_empty() => Arc::clone(open),
            _ => {
                let open = Open::new(ino, disk, Some(inode));
                inner.opens.insert(ino, Arc::clone(&open));
                open
            }
        };
        if open.disk == disk {
            open.state().mark_whole(now);
            inner.dirty.insert(ino, Arc::clone(&open));
        }
        open
    }

    /// The entry for a file, which nobody need have open. [`Opens::settle`] it afterwards.
    pub(crate) fn kept(&self, ino: u64, inode: InodeId, disk: u64) -> Arc<Open> {
        let mut inner = self.inner();
        match inner.opens.get(&ino) {
            Some(open) if open.disk == disk => Arc::clone(open),
            Some(open) if !open.state().files.is_empty() => Open::new(ino, disk, Some(inode)),
            _ => {
                let open = Open::new(ino, disk, Some(inode));
                inner.opens.insert(ino, Arc::clone(&open));
                open
            }
        }
    }

    /// Puts a file on the list of dirty ones.
    pub(crate) fn note_dirty(&self, open: &Arc<Open>) {
        self.inner().dirty.insert(open.ino, Arc::clone(open));
    }

    /// Drops the entry if it is of no more use.
    pub(crate) fn settle(&self, open: &Arc<Open>) {
        self.inner().settle(open);
    }

    /// The dirty files.
    pub(crate) fn dirty(&self) -> Vec<Arc<Open>> {
        let mut inner = self.inner();
        inner.dirty.retain(|_, o| o.state().dirty.is_some());
        inner.dirty.values().cloned().collect()
    }

    /// Files that may be mapped for writing.
    pub(crate) fn mappers(&self) -> Vec<Arc<Open>> {
        self.inner().opens.values().filter(|o| o.state().mappers > 0).cloned().collect()
    }

    /// How many files are open or dirty, and how many handles there are.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.inner().opens.len(), self.handles.read().unwrap_or_else(PoisonError::into_inner).len())
    }
}

impl Inner {
    fn settle(&mut self, open: &Arc<Open>) {
        let (unused, clean) = {
            let state = open.state();
            (state.files.is_empty(), state.dirty.is_none() && !state.queued)
        };
        if clean {
            remove_same(&mut self.dirty, open);
        }
        if unused && clean {
            remove_same(&mut self.opens, open);
            self.retire(open.ino);
            // An alias that stood in for this number may be of no more use.
            let inode = open.state().inode;
            if let Some(alias) = inode.and_then(|i| self.current.get(&i)).copied() {
                self.retire(alias);
            }
        }
    }

    /// Drops an alias that neither the adapter nor an open file knows any more.
    fn retire(&mut self, ino: u64) {
        let Some(alias) = self.aliases.get(&ino) else { return };
        if alias.refs > 0 || self.opens.contains_key(&ino) {
            return;
        }
        if let Some(inode) = alias.inode
            && self.current.get(&inode) == Some(&ino)
        {
            self.current.remove(&inode);
        }
        self.aliases.remove(&ino);
    }
}

fn remove_same(map: &mut HashMap<u64, Arc<Open>>, open: &Arc<Open>) {
    if map.get(&open.ino).is_some_and(|o| Arc::ptr_eq(o, open)) {
        map.remove(&open.ino);
    }
}
