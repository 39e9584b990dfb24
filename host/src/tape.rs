//! What a running node records of itself: always the last megabytes in memory, and everything into a file if asked for.
//!
//! The **ring** ([`Ring`]) holds frames of [`ice_core::trace`] in two halves. A half begins with a state of the node
//! ([`Frame::Key`]) from which a replay can begin; when the newer half is full, the older one is let go. So there is always
//! between one half and all of the ring to look back on. A state costs time in proportion to the tree, while the node waits:
//! above [`KEYFRAME_MAX_BYTES`], or a quarter of the ring, none is taken, and a dump can be shown but not replayed.
//!
//! A **dump** is a recording like any other (`icesim replay`, `icesim show`). It is written on a panic and on request.

use crate::recorder::FrameWriter;
use ice_core::trace::Frame;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size at which a recording into a file ends.
pub const RECORDING_MAX_BYTES: u64 = 4 << 30;
/// Largest state that is put into the ring. Encoding it takes a few tens of milliseconds, during which the node answers nobody.
pub const KEYFRAME_MAX_BYTES: usize = 16 << 20;
/// Dumps kept in a directory: the oldest makes room.
pub const DUMPS_MAX: usize = 8;
/// How long a panic waits for the ring, which another thread may be writing to.
const PANIC_PATIENCE: Duration = Duration::from_secs(1);

/// What a half of the ring holds: lengths and frames.
#[derive(Clone, Default)]
struct Half {
    bytes: Vec<u8>,
}

impl Half {
    fn push(&mut self, frame: &[u8]) {
        // A frame's length is limited by what a step may be given, far below 4 GiB.
        self.bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(frame);
    }

    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            let (frame, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            rest = tail;
            Some(frame)
        })
    }
}

#[derive(Default)]
struct Halves {
    old: Half,
    new: Half,
    dumps: u32,
}

impl Halves {
    /// For a dump: the node goes on while it is written.
    fn copy(&mut self) -> Halves {
        self.dumps += 1;
        Halves { old: self.old.clone(), new: self.new.clone(), dumps: self.dumps }
    }
}

/// The last megabytes of a node's recording, in memory.
pub struct Ring {
    halves: Mutex<Halves>,
    half_bytes: usize,
    dir: PathBuf,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("half_bytes", &self.half_bytes).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring of at most `bytes` (and, for a moment, one frame more), whose dumps go into `dir`, which is made when the first one
    /// is written.
    pub fn new(bytes: usize, dir: PathBuf) -> Arc<Ring> {
        Arc::new(Ring { halves: Mutex::default(), half_bytes: bytes / 2, dir })
    }

    /// Dumps the ring when any thread of the process panics, before what was to happen then happens. Where the thread that
    /// panics is the one that writes to the ring, nothing can be dumped.
    pub fn dump_on_panic(self: &Arc<Ring>) {
        let ring = Arc::downgrade(self);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some(ring) = ring.upgrade() {
                let copy = ring.lock_within(PANIC_PATIENCE).map(|mut halves| halves.copy());
                let dumped = match copy {
                    Some(copy) => ring.write(&copy, "panic"),
                    None => Err(io::Error::other("the ring is in use")),
                };
                match dumped {
                    Ok(path) => tracing::error!("tape of the last steps: {}", path.display()),
                    Err(e) => tracing::error!("the tape of the last steps cannot be written: {e}"),
                }
            }
            before(info);
        }));
    }

    /// Writes what the ring holds into a new file, and says which. `why` becomes a part of its name.
    pub fn dump(&self, why: &str) -> io::Result<PathBuf> {
        let copy = self.lock().copy();
        self.write(&copy, why)
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        // Whole frames are pushed: nothing is half done after a panic.
        self.halves.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, Halves>> {
        let end = std::time::Instant::now() + patience;
        loop {
            match self.halves.try_lock() {
                Ok(halves) => return Some(halves),
                Err(TryLockError::Poisoned(p)) => return Some(p.into_inner()),
                Err(TryLockError::WouldBlock) if std::time::Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    fn write(&self, halves: &Halves, why: &str) -> io::Result<PathBuf> {
        std::fs::create_dir_all(&self.dir)?;
        self.make_room()?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let name = format!("{seconds:012}-{}-{:06}-{why}.trace", std::process::id(), halves.dumps);
        let (path, unfinished) = (self.dir.join(&name), self.dir.join(format!("{name}.unfinished")));
        let mut writer = FrameWriter::<File>::create(&unfinished, RECORDING_MAX_BYTES)?;
        for frame in halves.old.frames().chain(halves.new.frames()) {
            if !writer.push(frame) {
                let why = writer.ended().unwrap_or("the recording ended").to_owned();
                let _ = std::fs::remove_file(&unfinished);
                return Err(io::Error::other(why));
            }
        }
        writer.flush()?;
        drop(writer);
        std::fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// Removes the oldest dumps, and what an end in the middle left over.
    fn make_room(&self) -> io::Result<()> {
        let mut dumps = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("trace") => dumps.push(path),
                Some("unfinished") => std::fs::remove_file(path)?,
                _ => {}
            }
        }
        // Their names begin with the time.
        dumps.sort();
        for old in dumps.iter().take((dumps.len() + 1).saturating_sub(DUMPS_MAX)) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }

    /// Appends a frame.
    fn push(&self, frame: &[u8]) {
        self.lock().new.push(frame);
    }

    /// True if a frame of `len` bytes begins a new half.
    fn is_full(&self, len: usize) -> bool {
        let halves = self.lock();
        halves.new.bytes.is_empty() || halves.new.bytes.len() + len + 4 > self.half_bytes
    }

    /// Begins a new half, with a state if there is one.
    fn turn(&self, key: Option<&[u8]>) {
        let mut halves = self.lock();
        let Halves { old, new, .. } = &mut *halves;
        std::mem::swap(old, new);
        new.bytes.clear();
        // A frame that was larger than a half is no reason to keep its memory for ever.
        new.bytes.shrink_to(self.half_bytes);
        if let Some(key) = key {
            new.push(key);
        }
    }
}

/// The tape of a running node, for [`crate::engine::Engine`].
///
/// What a file's recording holds back is written when the recorder is dropped, and when any thread panics, so that the tape of
/// a failed assertion is whole also where panics end the process. `SIGKILL` costs what was held back, up to the next step 100 ms
/// later.
pub struct Recorder {
    ring: Option<Arc<Ring>>,
    file: Option<Arc<Mutex<FrameWriter<File>>>>,
    told: bool,
}

impl Recorder {
    /// Records into `ring`, and into a new file at `path` of at most [`RECORDING_MAX_BYTES`].
    pub fn new(ring: Option<Arc<Ring>>, path: Option<&Path>) -> io::Result<Recorder> {
        let file = match path {
            Some(path) => Some(Arc::new(Mutex::new(FrameWriter::create(path, RECORDING_MAX_BYTES)?))),
            None => None,
        };
        if let Some(file) = &file {
            let weak = Arc::downgrade(file);
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // The panicking thread may be the one that holds the lock.
                if let Some(file) = weak.upgrade()
                    && let Ok(mut file) = file.try_lock()
                    && file.ended().is_none()
                    && let Err(error) = file.flush()
                {
                    tracing::error!(%error, "the end of a recording is lost");
                }
                before(info);
            }));
        }
        Ok(Recorder { ring, file, told: false })
    }

    /// True if the recording has to begin with all that was found on disk.
    pub fn wants_start(&self) -> bool {
        self.file.is_some()
    }

    /// Before a step whose frame has `len` bytes: true if the ring begins a new half. [`Recorder::turn`] must follow.
    pub fn wants_key(&self, len: usize) -> bool {
        self.ring.as_ref().is_some_and(|r| r.is_full(len))
    }

    /// True if a state of about so many bytes may be put into the ring.
    pub fn admits_key(&self, bytes: usize) -> bool {
        self.ring.as_ref().is_some_and(|r| bytes <= KEYFRAME_MAX_BYTES.min(r.half_bytes / 2))
    }

    /// The ring begins a new half, with this state if it is not too large.
    pub fn turn(&self, key: Option<&Frame>) {
        if let Some(ring) = &self.ring {
            ring.turn(key.map(ice_core::wire::encode).as_deref());
        }
    }

    /// Appends an encoded frame.
    pub fn push(&mut self, frame: &[u8]) {
        if let Some(ring) = &self.ring {
            ring.push(frame);
        }
        self.push_file(frame);
    }

    /// Appends a frame to the file only.
    pub fn push_file(&mut self, frame: &[u8]) {
        let Some(file) = &self.file else { return };
        let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !file.push(frame) && !self.told {
            self.told = true;
            tracing::warn!("{}", file.ended().unwrap_or("the recording has ended"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::FrameReader;

    fn frames(path: &Path) -> Vec<Frame> {
        let mut reader = FrameReader::open(path).unwrap();
        let mut out = Vec::new();
        while let Some(bytes) = reader.next_frame().unwrap() {
            out.push(ice_core::wire::decode(&bytes).unwrap());
        }
        out
    }

    fn state(digest: u128) -> Vec<u8> {
        ice_core::wire::encode(&Frame::State { digest })
    }

    #[test]
    fn the_ring_keeps_the_end() {
        let t = tempfile::tempdir().unwrap();
        let dir = t.path().join("tapes");
        let ring = Ring::new(2000, dir.clone());
        let mut recorder = Recorder::new(Some(Arc::clone(&ring)), None).unwrap();
        for n in 0..1000u128 {
            let frame = state(n);
            if recorder.wants_key(frame.len()) {
                recorder.turn(Some(&Frame::State { digest: u128::MAX - n }));
            }
            recorder.push(&frame);
            let halves = ring.lock();
            assert!(halves.old.bytes.len() <= 1000 && halves.new.bytes.len() <= 1000);
        }
        assert!(!dir.exists(), "nothing is written before it is asked for");
        let path = ring.dump("request").unwrap();
        let kept: Vec<u128> = frames(&path)
            .iter()
            .map(|f| if let Frame::State { digest } = f { *digest } else { panic!("{f:?}") })
            .collect();
        assert!(kept[0] > 1000, "it begins with a state to begin from");
        assert_eq!(kept.last(), Some(&999));
        let steps: Vec<u128> = kept.iter().copied().filter(|n| *n < 1000).collect();
        assert!(steps.len() > 100 && steps.windows(2).all(|w| w[1] == w[0] + 1), "without a hole: {steps:?}");
    }

    #[test]
    fn old_dumps_and_leftovers_make_room() {
        let t = tempfile::tempdir().unwrap();
        let ring = Ring::new(1 << 20, t.path().into());
        std::fs::write(t.path().join("000000000001-1-000001-x.trace"), b"old").unwrap();
        std::fs::write(t.path().join("000000000001-1-000001-y.trace.unfinished"), b"torn").unwrap();
        std::fs::write(t.path().join("note"), b"not ours").unwrap();
        ring.turn(None);
        ring.push(&state(1));
        let mut last = PathBuf::new();
        for _ in 0..DUMPS_MAX + 3 {
            last = ring.dump("request").unwrap();
        }
        let names: Vec<String> =
            std::fs::read_dir(t.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.len(), DUMPS_MAX + 1, "{names:?}");
        assert!(names.iter().any(|n| n == "note") && !names.iter().any(|n| n.contains("-x.") || n.contains("-y.")));
        assert_eq!(frames(&last), [Frame::State { digest: 1 }]);
    }
}
