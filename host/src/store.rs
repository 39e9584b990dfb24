//! The checkpoint store: keys and values of the core's pages in one redb file, `data/tree.redb`.
//!
//! A checkpoint is one redb write transaction: pages go into it as the core hands them out, and `commit` makes all of them
//! visible at once and durable, together with the log index from which recovery has to go on. After a crash an unfinished
//! checkpoint has never been.
//!
//! Damage: redb keeps a checksum of every page and checks all of them when it opens the file; every value carries a CRC-32C of
//! its own over key and value. What does not match is [`StoreError::Damaged`], upon which the caller moves the file aside
//! ([`set_aside`]) and rebuilds.

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const PAGES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pages");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Version of what the tables mean.
const FORMAT: u64 = 2;
/// Bytes of memory that redb may use for its page cache: enough for the upper levels of a tree of a million pages. The
/// kernel caches the file as well.
const CACHE_BYTES: usize = 8 << 20;
/// Longest key.
pub const KEY_MAX_BYTES: usize = 64 * 1024;
/// Longest value.
pub const VALUE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// One change of a page: key and new value (`None`: delete).
pub type Put = (Box<[u8]>, Option<Box<[u8]>>);

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is damaged: move it aside with [`set_aside`] and rebuild.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The file is of another version of this program.
    #[error("{} cannot be used by this version: {why}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// The operating system refused (full disk, failed sync, another process). The checkpoint in progress is void.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// An earlier call of this checkpoint failed, so the checkpoint is void: [`Store::restart`], then all its pages anew.
    #[error("the checkpoint is void: {0}")]
    Void(String),
}

impl StoreError {
    /// True if the file has to be moved aside.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Damaged { .. })
    }

    /// What the operating system said, if that is the reason.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            StoreError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// An open store. One caller at a time.
pub struct Store {
    path: PathBuf,
    // `None` only after redb refused to be opened again.
    db: Option<Database>,
    checkpoint: Option<WriteTransaction>,
    void: Option<String>,
    log_cut: u64,
}

impl Store {
    /// Opens the file, or makes an empty one. Checks all of it, and repairs it if the last run did not end cleanly.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let existed = path.exists();
        let (db, log_cut) = open(path)?;
        if !existed && let Some(dir) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            crate::log::sync_dir(dir).map_err(|source| StoreError::Io { path: path.into(), source })?;
        }
        Ok(Store { path: path.into(), db: Some(db), checkpoint: None, void: None, log_cut })
    }

    /// Hands out all keys and values of the last committed checkpoint, in the order of the keys. After an error what was handed
    /// out must not be used.
    pub fn load(&self, sink: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let db = self.db.as_ref().ok_or_else(|| self.closed())?;
        contain(&self.path, || {
            let read = db.begin_read().map_err(|e| self.error(e))?;
            let pages = read.open_table(PAGES).map_err(|e| self.error(e))?;
            for item in pages.iter().map_err(|e| self.error(e))? {
                let (key, value) = item.map_err(|e| self.error(e))?;
                let (key, sealed) = (key.value(), value.value());
                let value = unseal(key, sealed).ok_or_else(|| StoreError::Damaged {
                    path: self.path.clone(),
                    why: format!("the value of a key of {} bytes does not match its checksum", key.len()),
                })?;
                sink(key, value);
            }
            Ok(())
        })
    }

    /// Recovery needs the log from this index on: what the last [`Store::commit`] said, 0 if there was none.
    pub fn log_cut(&self) -> u64 {
        self.log_cut
    }

    /// Adds to the checkpoint in progress, beginning one if there is none. Nothing of it is visible before [`Store::commit`].
    ///
    /// After an error the whole checkpoint is void: this and [`Store::commit`] fail until [`Store::restart`], and everything
    /// since the last commit has to be put again. So a commit that was already on its way cannot commit half.
    pub fn put_page(&mut self, puts: &[Put]) -> Result<(), StoreError> {
        self.check()?;
        let result = self.try_put(puts);
        self.void_after(result)
    }

    fn try_put(&mut self, puts: &[Put]) -> Result<(), StoreError> {
        if let Some((key, _)) =
            puts.iter().find(|(k, v)| k.len() > KEY_MAX_BYTES || v.as_ref().is_some_and(|v| v.len() > VALUE_MAX_BYTES))
        {
            let why = format!("a page's key of {} bytes, or its value, is too long", key.len());
            return Err(StoreError::Io { path: self.path.clone(), source: io::Error::other(why) });
        }
        let mut sealed = Vec::new();
        let path = self.path.clone();
        let txn = self.begin()?;
        let mut pages = txn.open_table(PAGES).map_err(|e| convert(&path, e))?;
        for (key, value) in puts {
            let key: &[u8] = key;
            match value {
                Some(value) => {
                    seal(key, value, &mut sealed);
                    pages.insert(key, sealed.as_slice()).map_err(|e| convert(&path, e))?;
                }
                None => {
                    pages.remove(key).map_err(|e| convert(&path, e))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the checkpoint in progress visible and durable, and with it that recovery needs the log from `log_cut` on. One sync.
    ///
    /// After an error the state on disk is the old one or the new one, never a mixture; the checkpoint counts as void.
    pub fn commit(&mut self, log_cut: u64) -> Result<(), StoreError> {
        self.check()?;
        let result = self.try_commit(log_cut);
        self.void_after(result)
    }

    fn try_commit(&mut self, log_cut: u64) -> Result<(), StoreError> {
        let path = self.path.clone();
        let txn = self.begin()?;
        txn.open_table(META)
            .map_err(|e| convert(&path, e))?
            .insert("log_cut", log_cut)
            .map_err(|e| convert(&path, e))?;
        if let Some(txn) = self.checkpoint.take() {
            txn.commit().map_err(|e| convert(&path, e))?;
        }
        self.log_cut = log_cut;
        Ok(())
    }

    /// Forgets the checkpoint in progress, and the error that made it void. Opens the file again if the disk had failed, since
    /// redb does not go on after that. Call it when the core begins its checkpoint anew, with no page of the old one on its way.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.checkpoint = None;
        if self.void.is_some() {
            // Closes the file first: redb holds a lock on it.
            self.db = None;
            let (db, log_cut) = open(&self.path)?;
            self.db = Some(db);
            // A commit that reported an error may have succeeded after all.
            self.log_cut = log_cut;
            self.void = None;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<&mut WriteTransaction, StoreError> {
        if self.checkpoint.is_none() {
            let db = self.db.as_ref().ok_or_else(|| self.closed())?;
            let mut txn = db.begin_write().map_err(|e| self.error(e))?;
            txn.set_durability(Durability::Immediate).map_err(|e| self.error(e))?;
            self.checkpoint = Some(txn);
        }
        self.checkpoint.as_mut().ok_or_else(|| StoreError::Void("no transaction".into()))
    }

    fn check(&self) -> Result<(), StoreError> {
        self.void.as_ref().map_or(Ok(()), |why| Err(StoreError::Void(why.clone())))
    }

    fn void_after(&mut self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(e) = &result {
            self.void = Some(e.to_string());
            self.checkpoint = None;
        }
        result
    }

    fn closed(&self) -> StoreError {
        StoreError::Void(format!("{} is not open", self.path.display()))
    }

    fn error(&self, e: impl Into<redb::Error>) -> StoreError {
        convert(&self.path, e)
    }
}

/// Moves a damaged file aside, to `tree.redb.damaged` or, if that is taken, `tree.redb.damaged-2` and so on. Durable. No store may be open
/// on it.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let to = crate::identity::free_name(path, "damaged")?;
    fs::rename(path, &to)?;
    if let Some(dir) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        crate::log::sync_dir(dir)?;
    }
    Ok(to)
}

fn open(path: &Path) -> Result<(Database, u64), StoreError> {
    contain(path, || {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            // A file that was changed behind redb's back would otherwise be trusted, up to a panic.
            .set_check_integrity_on_open(true)
            .create(path)
            .map_err(|e| convert(path, e))?;
        // In one transaction with the first commit nothing could go wrong in between; an empty file has no format yet.
        let read = db.begin_read().map_err(|e| convert(path, e))?;
        let (format, log_cut) = match read.open_table(META) {
            Ok(meta) => {
                let get = |k| meta.get(k).map(|v| v.map(|v| v.value())).map_err(|e| convert(path, e));
                (get("format")?, get("log_cut")?.unwrap_or(0))
            }
            Err(redb::TableError::TableDoesNotExist(_)) => (None, 0),
            Err(e) => return Err(convert(path, e)),
        };
        drop(read);
        match format {
            Some(FORMAT) => {}
            Some(other) => {
                let why = format!("it has format {other}, and this program reads format {FORMAT}");
                return Err(StoreError::Version { path: path.into(), why });
            }
            None => {
                let txn = db.begin_write().map_err(|e| convert(path, e))?;
                txn.open_table(PAGES).map_err(|e| convert(path, e))?;
                txn.open_table(META)
                    .map_err(|e| convert(path, e))?
                    .insert("format", FORMAT)
                    .map_err(|e| convert(path, e))?;
                txn.commit().map_err(|e| convert(path, e))?;
            }
        }
        Ok((db, log_cut))
    })
}

/// Runs code that reads a possibly damaged file: a panic in it is damage. Where panics abort the process this does nothing, and the
/// check of all checksums at the opening is what protects.
fn contain<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("reading it failed");
        Err(StoreError::Damaged { path: path.into(), why: why.into() })
    })
}

fn convert(path: &Path, e: impl Into<redb::Error>) -> StoreError {
    let path = path.to_path_buf();
    match e.into() {
        redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            StoreError::Damaged { path, why: source.to_string() }
        }
        // A file that is too short for what its header says.
        redb::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            StoreError::Damaged { path, why: "it is too short".into() }
        }
        redb::Error::Io(source) => StoreError::Io { path, source },
        redb::Error::Corrupted(why) => StoreError::Damaged { path, why },
        redb::Error::UpgradeRequired(v) => {
            StoreError::Version { path, why: format!("its file format {v} has to be upgraded") }
        }
        e @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::RepairAborted) => StoreError::Damaged { path, why: e.to_string() },
        e => StoreError::Io { path, source: io::Error::other(e.to_string()) },
    }
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(&(key.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), value).to_le_bytes()
}

fn seal(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&checksum(key, value));
    out.extend_from_slice(value);
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, value) = sealed.split_at_checked(4)?;
    (crc == checksum(key, value)).then_some(value)
}
