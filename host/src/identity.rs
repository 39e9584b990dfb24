//! Who this replica is: the `data` directory, its lock, and the marker that ties a `backing` directory to it.
//!
//! `data/identity` is a small text file, replaced atomically and durably:
//!
//! ```text
//! icecluster identity 1
//! replica 5a0c94d1f2b3e687
//! incarnation 12
//! boot 0b7a4f5e-1c2d-4e3f-8a9b-0c1d2e3f4a5b
//! stopped clean
//! backing claimed
//! file 1835021-1790000000.123456789
//! crc 89abcdef
//! ```
//!
//! `file` is the file's own inode number and, where the file system knows it, time of birth: a copy of the directory, made by
//! `cp`, `rsync` or from a backup, has others.

use ice_core::ids::{Incarnation, ReplicaId};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How the previous run on this `data` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastStop {
    /// There was none.
    First,
    /// On purpose, with everything written: `backing` need not be compared with the checkpoint, except for direct edits.
    Clean,
    /// The process ended without saying so, and the machine went on: what it had written, synced or not, is there.
    ProcessCrash,
    /// The machine was started anew in between: only what was synced is certain to be there. Also said of a directory that
    /// was copied: what the copy holds was true at some time, and the original may have gone on since.
    MachineCrash,
}

/// Why a `data` or `backing` directory cannot be used. One line each, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process uses it.
    #[error("{} is in use by another icecluster process{}: stop that one, or give this one another `data`", .data.display(), pid_words(*.pid))]
    InUse {
        /// The directory.
        data: PathBuf,
        /// Of the other process, if it left it in the lock file.
        pid: Option<u32>,
    },
    /// The identity file is there, but cannot be understood.
    #[error("{}: {why}; move the whole `data` directory away and delete `backing`/.icecluster/replica: the files in `backing` are then adopted by a new replica", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// There is data, but no identity.
    #[error("{} is missing although there is data beside it ({found}); move the whole `data` directory away and delete `backing`/.icecluster/replica: the files in `backing` are then adopted by a new replica", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// `backing` carries another replica's marker.
    #[error("{} belongs to replica {theirs}, and `data` to {ours}; use the `data` directory that belongs to it, or, if that one is lost and no other node uses this directory, delete {} to adopt the files as they are", .backing.display(), .marker.display())]
    ForeignBacking {
        /// The directory.
        backing: PathBuf,
        /// The file in it.
        marker: PathBuf,
        /// As in the marker.
        theirs: String,
        /// As in `data`.
        ours: ReplicaId,
    },
    /// `backing` used to carry our marker and does not now.
    #[error("{} does not carry the marker of this replica any more: is its file system mounted? Starting would look like the deletion of every file. If the directory was emptied on purpose, move the whole `data` directory away: everything is then fetched by a new replica", .backing.display())]
    EmptyBacking {
        /// The directory.
        backing: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

fn pid_words(pid: Option<u32>) -> String {
    pid.map_or(String::new(), |p| format!(" (pid {p})"))
}

trait At<T> {
    fn at(self, path: &Path) -> Result<T, IdentityError>;
}
impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, IdentityError> {
        self.map_err(|source| IdentityError::Io { path: path.into(), source })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Stored {
    replica: ReplicaId,
    incarnation: u64,
    boot: String,
    clean: bool,
    claimed: bool,
    /// The file in which this stood; `None` in those of versions that did not write it.
    file: Option<String>,
}

const HEAD: &str = "icecluster identity 1";
/// Far more than the file ever has.
const FILE_MAX_BYTES: u64 = 4096;

impl Stored {
    fn encode(&self) -> String {
        let body = format!(
            "{HEAD}\nreplica {:016x}\nincarnation {}\nboot {}\nstopped {}\nbacking {}\n{}",
            self.replica.0,
            self.incarnation,
            self.boot,
            if self.clean { "clean" } else { "no" },
            if self.claimed { "claimed" } else { "new" },
            self.file.as_ref().map_or(String::new(), |f| format!("file {f}\n")),
        );
        let crc = crc32c::crc32c(body.as_bytes());
        format!("{body}crc {crc:08x}\n")
    }

    fn decode(text: &str) -> Result<Stored, String> {
        let (body, crc) = text.trim_end().rsplit_once('\n').ok_or("it is damaged: too short")?;
        if !body.starts_with("icecluster identity ") {
            return Err("it is damaged, or no identity file".into());
        }
        if !body.starts_with(HEAD) {
            return Err("it was written by a newer version of this program".into());
        }
        let body = format!("{body}\n");
        if crc != format!("crc {:08x}", crc32c::crc32c(body.as_bytes())) {
            return Err("it is damaged: its checksum is wrong".into());
        }
        let field = |key: &str| {
            body.lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))
                .ok_or_else(|| format!("it is damaged: it has no `{key}`"))
        };
        Ok(Stored {
            replica: ReplicaId(u64::from_str_radix(field("replica")?, 16).map_err(|e| format!("it is damaged: {e}"))?),
            incarnation: field("incarnation")?.parse().map_err(|e| format!("it is damaged: {e}"))?,
            boot: field("boot")?.into(),
            clean: field("stopped")? == "clean",
            claimed: field("backing")? == "claimed",
            file: field("file").ok().map(str::to_owned),
        })
    }
}

/// An exclusively held `data` directory. The lock ends with the value, or with the process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    stored: Stored,
    last_stop: LastStop,
    /// Of this start.
    boot: String,
    /// `backing` agrees with the rest, or the differences were found.
    compared: bool,
    _lock: File,
}

impl DataDir {
    /// Takes possession of `data` (made if it is missing): locks it, reads or draws the identity, and makes this start's
    /// incarnation durable before it returns.
    pub fn open(data: &Path) -> Result<DataDir, IdentityError> {
        let boot = boot_id().at(Path::new(BOOT_ID))?;
        Self::open_in_boot(data, &boot)
    }

    fn open_in_boot(data: &Path, boot: &str) -> Result<DataDir, IdentityError> {
        let existed = data.is_dir();
        fs::DirBuilder::new().recursive(true).mode(0o755).create(data).at(data)?;
        if !existed && let Some(parent) = data.parent().filter(|p| !p.as_os_str().is_empty()) {
            crate::log::sync_dir(parent).at(parent)?;
        }
        let lock = lock(data)?;
        let path = data.join("identity");
        let (mut stored, last_stop, copied) = match read_small(&path) {
            Ok(text) => {
                let s = Stored::decode(&text).map_err(|why| IdentityError::Damaged { path: path.clone(), why })?;
                let copied = s.file.is_some() && s.file != Some(file_words(&File::open(&path).at(&path)?).at(&path)?);
                let last = match (s.clean, s.boot == boot) {
                    _ if copied => LastStop::MachineCrash,
                    (true, _) => LastStop::Clean,
                    (false, true) => LastStop::ProcessCrash,
                    (false, false) => LastStop::MachineCrash,
                };
                (s, last, copied)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(found) = ["tree.redb", "log"].into_iter().find(|n| data.join(n).exists()) {
                    return Err(IdentityError::Missing { path, found: found.into() });
                }
                let mut id = [0; 8];
                // 0 stands for "nobody" in stamps.
                while id == [0; 8] {
                    random(&mut id).at(&path)?;
                }
                let replica = ReplicaId(u64::from_le_bytes(id));
                let fresh =
                    Stored { replica, incarnation: 0, boot: String::new(), clean: false, claimed: false, file: None };
                (fresh, LastStop::First, false)
            }
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        // The original may have been started since the copy was made: its starts must not be counted again.
        let skip = if copied {
            tracing::warn!(data = %data.display(), "this directory is a copy: all of `backing` is compared");
            let mut skip = [0; 4];
            random(&mut skip).at(&path)?;
            u64::from(u32::from_le_bytes(skip)) >> 4
        } else {
            0
        };
        stored.incarnation = stored.incarnation.checked_add(1 + skip).ok_or_else(|| IdentityError::Damaged {
            path: path.clone(),
            why: "it is damaged: no start can follow that one".into(),
        })?;
        // Until `backing` was compared the end of the machine is remembered, or the end of this process would hide it.
        if last_stop != LastStop::MachineCrash {
            stored.boot = boot.into();
        } else if copied {
            stored.boot = "copied".into();
        }
        stored.clean = false;
        let compared = matches!(last_stop, LastStop::First | LastStop::Clean);
        let mut dir = DataDir { path: data.into(), stored, last_stop, boot: boot.into(), compared, _lock: lock };
        dir.write()?;
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Whose data it is.
    pub fn replica(&self) -> ReplicaId {
        self.stored.replica
    }
    /// Of this start. Durable.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.stored.incarnation)
    }
    /// How the previous run ended.
    pub fn last_stop(&self) -> LastStop {
        self.last_stop
    }

    /// Ties `backing` (made if it is missing) to this replica by a marker in `backing/.icecluster/replica`, or checks that it is.
    pub fn claim_backing(&mut self, backing: &Path) -> Result<(), IdentityError> {
        let work = backing.join(".icecluster");
        let marker = work.join("replica");
        let ours = format!("{:016x}", self.stored.replica.0);
        match read_small(&marker) {
            Ok(text) if text.trim() == ours => {}
            Ok(text) => {
                let theirs: String = text.trim().chars().take(40).filter(|c| !c.is_control()).collect();
                let theirs = if theirs.is_empty() { "(unreadable)".into() } else { format!("r{theirs}") };
                return Err(IdentityError::ForeignBacking {
                    backing: backing.into(),
                    marker,
                    theirs,
                    ours: self.stored.replica,
                });
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => {
                if self.stored.claimed {
                    return Err(IdentityError::EmptyBacking { backing: backing.into() });
                }
                fs::DirBuilder::new().recursive(true).mode(0o755).create(backing).at(backing)?;
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&work).at(&work)?;
                replace(&marker, format!("{ours}\n").as_bytes()).at(&marker)?;
                crate::log::sync_dir(backing).at(backing)?;
            }
            Err(source) => return Err(IdentityError::Io { path: marker, source }),
        }
        if !self.stored.claimed {
            self.stored.claimed = true;
            self.write()?;
        }
        Ok(())
    }

    /// After a crash: `backing` was compared, and what was found is durable in the log.
    pub fn compared(&mut self) -> Result<(), IdentityError> {
        self.compared = true;
        if self.stored.boot == self.boot {
            return Ok(());
        }
        self.stored.boot.clone_from(&self.boot);
        self.write()
    }

    /// The very last act of a stop on purpose, when log, store and `backing` are durable. If `backing` was not compared since
    /// the last crash, the next start has to do it: then nothing is marked.
    pub fn mark_clean(&mut self) -> Result<(), IdentityError> {
        if !self.compared {
            return Ok(());
        }
        self.stored.clean = true;
        self.write()
    }

    fn write(&mut self) -> Result<(), IdentityError> {
        let path = self.path.join("identity");
        let stored = &mut self.stored;
        replace_with(&path, |file| {
            stored.file = Some(file_words(file)?);
            Ok(stored.encode().into_bytes())
        })
        .at(&path)
    }
}

fn lock(data: &Path) -> Result<File, IdentityError> {
    let path = data.join("lock");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path).at(&path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = read_small(&path).ok().and_then(|t| t.trim().parse().ok());
            return Err(IdentityError::InUse { data: data.into(), pid });
        }
        Err(e) => return Err(IdentityError::Io { path, source: e.into() }),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).at(&path)?;
    Ok(file)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id() -> io::Result<String> {
    match read_small(Path::new(BOOT_ID)) {
        Ok(id) => Ok(id.trim().replace(char::is_whitespace, "-")),
        // Systems without it: every unclean stop counts as the machine's, which is always safe.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut id = [0; 8];
            random(&mut id)?;
            Ok(format!("unknown-{:016x}", u64::from_le_bytes(id)))
        }
        Err(e) => Err(e),
    }
}

/// What tells a file from a copy of it.
fn file_words(file: &File) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = file.metadata()?;
    let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(match born {
        Some(t) => format!("{}-{}.{:09}", meta.ino(), t.as_secs(), t.subsec_nanos()),
        None => meta.ino().to_string(),
    })
}

fn read_small(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = Vec::new();
    File::open(path)?.take(FILE_MAX_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Fills `buf` with random bytes of the operating system.
pub(crate) fn random(buf: &mut [u8]) -> io::Result<()> {
    use std::io::Read;
    // Every Unix has it, unlike `getrandom`.
    File::open("/dev/urandom")?.read_exact(buf)
}

/// Replaces a file's content so that after a crash it has the old or the new one, and the new one once this has returned.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, |_| Ok(bytes.to_vec()))
}

/// [`replace`] with what `bytes` makes of the new, empty file.
fn replace_with(path: &Path, bytes: impl FnOnce(&File) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    // A file of its own, also if an earlier try left one behind.
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::create(&tmp)?;
    let bytes = bytes(&file)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    crate::log::sync_dir(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
}

/// `path.suffix`, or `path.suffix-2` and so on: the first that is free.
pub(crate) fn free_name(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    for n in 1..=10_000 {
        let ending = if n == 1 { String::new() } else { format!("-{n}") };
        let to = path.with_file_name(format!("{name}.{suffix}{ending}"));
        if fs::symlink_metadata(&to).is_err() {
            return Ok(to);
        }
    }
    Err(io::Error::other(format!("there are too many files {name}.{suffix}-*: move them away")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_told_apart() {
        let t = tempfile::tempdir().unwrap();
        let data = t.path().join("a/data");
        let mut d = DataDir::open_in_boot(&data, "boot-1").unwrap();
        let me = d.replica();
        assert_eq!((d.incarnation(), d.last_stop()), (Incarnation(1), LastStop::First));
        assert_ne!(me, ReplicaId(0));
        d.mark_clean().unwrap();
        drop(d);

        let d = DataDir::open_in_boot(&data, "boot-2").unwrap();
        assert_eq!((d.replica(), d.incarnation(), d.last_stop()), (me, Incarnation(2), LastStop::Clean));
        drop(d);
        let d = DataDir::open_in_boot(&data, "boot-2").unwrap();
        assert_eq!((d.incarnation(), d.last_stop()), (Incarnation(3), LastStop::ProcessCrash));
        drop(d);
        let d = DataDir::open_in_boot(&data, "boot-3").unwrap();
        assert_eq!((d.incarnation(), d.last_stop()), (Incarnation(4), LastStop::MachineCrash));
        drop(d);
        // Neither the end of a process nor a stop on purpose hides it before everything was compared.
        let mut d = DataDir::open_in_boot(&data, "boot-3").unwrap();
        assert_eq!(d.last_stop(), LastStop::MachineCrash);
        d.mark_clean().unwrap();
        drop(d);
        let mut d = DataDir::open_in_boot(&data, "boot-3").unwrap();
        assert_eq!(d.last_stop(), LastStop::MachineCrash);
        d.compared().unwrap();
        drop(d);
        let d = DataDir::open_in_boot(&data, "boot-3").unwrap();
        assert_eq!(d.last_stop(), LastStop::ProcessCrash);
        drop(d);
        let mut d = DataDir::open(&data).unwrap();
        assert_eq!((d.replica(), d.last_stop()), (me, LastStop::MachineCrash), "the real boot id is another one");
        d.compared().unwrap();
        drop(d);
        assert_eq!(DataDir::open(&data).unwrap().last_stop(), LastStop::ProcessCrash);

        let other = DataDir::open(&t.path().join("b")).unwrap();
        assert_ne!(other.replica(), me);
    }

    #[test]
    fn a_copy_is_told_from_the_original() {
        let t = tempfile::tempdir().unwrap();
        let (data, copy) = (t.path().join("data"), t.path().join("copy"));
        let mut d = DataDir::open_in_boot(&data, "boot").unwrap();
        let me = d.replica();
        d.mark_clean().unwrap();
        drop(d);
        fs::create_dir(&copy).unwrap();
        fs::copy(data.join("identity"), copy.join("identity")).unwrap();
        let d = DataDir::open_in_boot(&copy, "boot").unwrap();
        assert_eq!((d.replica(), d.last_stop()), (me, LastStop::MachineCrash), "nothing is certain of a copy");
        assert!(d.incarnation() > Incarnation(1));
        drop(d);
        let mut d = DataDir::open_in_boot(&copy, "boot").unwrap();
        assert_eq!(d.last_stop(), LastStop::MachineCrash, "it was not compared yet");
        d.compared().unwrap();
        d.mark_clean().unwrap();
        drop(d);
        assert_eq!(DataDir::open_in_boot(&copy, "boot").unwrap().last_stop(), LastStop::Clean);
        let d = DataDir::open_in_boot(&data, "boot").unwrap();
        assert_eq!((d.incarnation(), d.last_stop()), (Incarnation(2), LastStop::Clean), "the original is none");
        drop(d);
        // A data directory may be moved, in one file system.
        let moved = t.path().join("moved");
        let mut d = DataDir::open_in_boot(&data, "boot").unwrap();
        d.compared().unwrap();
        d.mark_clean().unwrap();
        drop(d);
        fs::rename(&data, &moved).unwrap();
        assert_eq!(DataDir::open_in_boot(&moved, "boot").unwrap().last_stop(), LastStop::Clean);
    }

    #[test]
    fn two_cannot_share() {
        let t = tempfile::tempdir().unwrap();
        let first = DataDir::open(t.path()).unwrap();
        let e = DataDir::open(t.path()).unwrap_err();
        let pid = std::process::id();
        assert!(e.to_string().contains(&format!("in use by another icecluster process (pid {pid})")), "{e}");
        drop(first);
        DataDir::open(t.path()).unwrap();
    }

    #[test]
    fn damage_is_an_error_in_words() {
        let t = tempfile::tempdir().unwrap();
        drop(DataDir::open(t.path()).unwrap());
        let path = t.path().join("identity");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            fs::write(&path, &bad).unwrap();
            let e = DataDir::open(t.path()).unwrap_err();
            assert!(matches!(e, IdentityError::Damaged { .. }), "byte {at}: {e}");
            // Only the newline at the end may be missing.
            fs::write(&path, &good[..at.min(good.len() - 2)]).unwrap();
            assert!(matches!(DataDir::open(t.path()), Err(IdentityError::Damaged { .. })), "length {at}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(t.path().join("tree.redb"), b"x").unwrap();
        let e = DataDir::open(t.path()).unwrap_err().to_string();
        assert!(e.contains("is missing although there is data beside it (tree.redb)"), "{e}");
    }

    #[test]
    fn backing_is_tied_to_its_replica() {
        let t = tempfile::tempdir().unwrap();
        let backing = t.path().join("backing");
        let mut a = DataDir::open(&t.path().join("a")).unwrap();
        a.claim_backing(&backing).unwrap();
        a.claim_backing(&backing).unwrap();
        drop(a);
        let mut a = DataDir::open(&t.path().join("a")).unwrap();
        a.claim_backing(&backing).unwrap();

        let mut b = DataDir::open(&t.path().join("b")).unwrap();
        let e = b.claim_backing(&backing).unwrap_err();
        assert!(matches!(e, IdentityError::ForeignBacking { .. }));
        let e = e.to_string();
        assert!(
            e.contains(&format!("belongs to replica r{:016x}", a.replica().0))
                && e.contains(".icecluster/replica to adopt"),
            "{e}"
        );
        assert!(!e.contains('\n'));

        // The way out that the error names.
        fs::remove_file(backing.join(".icecluster/replica")).unwrap();
        b.claim_backing(&backing).unwrap();
        // The first owner is now refused.
        assert!(matches!(a.claim_backing(&backing), Err(IdentityError::ForeignBacking { .. })));
    }

    #[test]
    fn a_backing_that_is_not_mounted_is_not_taken_for_deletions() {
        let t = tempfile::tempdir().unwrap();
        let backing = t.path().join("backing");
        let mut a = DataDir::open(&t.path().join("a")).unwrap();
        a.claim_backing(&backing).unwrap();
        fs::remove_dir_all(&backing).unwrap();
        fs::create_dir(&backing).unwrap();
        drop(a);
        let mut a = DataDir::open(&t.path().join("a")).unwrap();
        assert!(matches!(a.claim_backing(&backing), Err(IdentityError::EmptyBacking { .. })));
        assert!(!backing.join(".icecluster").exists());
    }

    /// Whatever stands in the file, also behind a right checksum: it is understood or refused, in one line.
    #[test]
    fn no_identity_panics() {
        use proptest::prelude::*;
        let t = tempfile::tempdir().unwrap();
        let with = |text: &[u8]| {
            fs::write(t.path().join("identity"), text).unwrap();
            DataDir::open_in_boot(t.path(), "boot").map_err(|e| e.to_string())
        };
        let last = Stored {
            replica: ReplicaId(7),
            incarnation: u64::MAX,
            boot: "b".into(),
            clean: true,
            claimed: true,
            file: None,
        };
        assert!(with(last.encode().as_bytes()).unwrap_err().contains("no start can follow"));
        proptest!(ProptestConfig::with_cases(200), |(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            fields in "(replica|incarnation|boot|stopped|backing| |-|\\n|[0-9a-f]{0,20}){0,20}",
        )| {
            let body = format!("{HEAD}\n{fields}\n");
            let crc = crc32c::crc32c(body.as_bytes());
            for text in [noise, format!("{body}crc {crc:08x}\n").into_bytes(), body.into_bytes()] {
                if let Err(words) = with(&text) {
                    prop_assert_eq!(words.lines().count(), 1, "{}", words);
                }
            }
        });
    }
}
