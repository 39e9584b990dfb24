//! A mount from start to end.

use crate::device::{self, Mounted};
use crate::fs::{IceFs, Shared};
use crate::inval::{Driver, Kernel};
use crate::readers::Readers;
use crate::{MountOptions, Passthrough};
use fuser::{Config, Session, SessionACL};
use ice_host::vfs::{Stale, Vfs};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// A mounted volume. Dropping it takes the mount out of the tree at once; the session ends when the last file in it is closed.
///
/// At its end all handles are released. References that `lookup` counted are not returned: the kernel does not say which
/// ones it still holds.
pub struct Mount {
    mountpoint: PathBuf,
    mounted: Mounted,
    /// What was in the directory before, first by name.
    hidden: Vec<OsString>,
    shared: Arc<Shared>,
    alive: Arc<AtomicBool>,
    /// Only for `unmount`; the lock makes a mount shareable.
    ended: Mutex<Receiver<io::Result<()>>>,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("mountpoint", &self.mountpoint).field("alive", &self.is_alive()).finish()
    }
}

impl Mount {
    /// Mounts a volume and serves it by threads of its own. The volume must be ready to answer: it is asked at once.
    ///
    /// A mount that a killed daemon left at the mountpoint is replaced, provided that its type or name is the one of `options`.
    /// News of the volume ([`Vfs::on_stale`]) go to this mount from now on.
    ///
    /// # Errors
    /// `InvalidInput`: options. `NotFound`, `NotADirectory`, `DirectoryNotEmpty`: the mountpoint. `AddrInUse`, `TimedOut`: a live daemon
    /// is mounted there. `PermissionDenied` and others: from the system.
    pub fn start(vfs: Arc<dyn Vfs>, options: MountOptions) -> io::Result<Mount> {
        options.validate()?;
        let target = device::resolve(&options.mountpoint)?;
        device::clear_stale(&target, &options)?;
        let hidden = device::check_mountpoint(&target, options.over)?;
        let (fd, mounted) = device::mount(&target, &options)?;

        let threads = options.thread_count();
        let shared = Arc::new(Shared::new(Arc::clone(&vfs), threads, options.locking.clone())?);
        // Before the first answer, which may be cached. The volume may keep this for longer than the mount lives.
        let weak = Arc::downgrade(&shared);
        vfs.on_stale(Box::new(move |news: &[Stale]| {
            if let Some(shared) = weak.upgrade() {
                shared.news(news);
            }
        }));
        let mut config = Config::default();
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(threads);
        config.clone_fd = options.clone_fd && threads > 1 && device::can_clone();
        let fs = IceFs::new(Arc::clone(&shared), options.passthrough == Passthrough::Auto);
        let session = Session::from_fd(fs, fd, config.acl, config.clone())?;

        let driver = Driver {
            notifier: session.notifier(),
            channel: session.as_fd().try_clone_to_owned()?,
            vfs: Arc::clone(&vfs),
            opens: Arc::clone(&shared.opens),
            mountpoint: target.clone(),
            mount_id: mounted.id(),
            read_only: options.read_only,
        };
        let mount = Mount::run(target, (mounted, hidden), shared, session, driver, threads)?;
        // It is not asked whether it answers: a process that is killed while it waits for itself could not end.
        if !mount.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the session ended right after mounting"));
        }
        info!(mountpoint = %mount.mountpoint.display(), threads, "mounted");
        Ok(mount)
    }

    fn run(
        mountpoint: PathBuf,
        (mounted, hidden): (Mounted, Vec<OsString>),
        shared: Arc<Shared>,
        session: Session<IceFs>,
        driver: Driver,
        threads: usize,
    ) -> io::Result<Mount> {
        shared.set_notifier(session.notifier());
        shared.set_readers(Readers::start(session.as_fd().try_clone_to_owned()?, threads)?);
        shared.queue.start(&(Arc::new(driver) as Arc<dyn Kernel>)).inspect_err(|_| shared.queue.close())?;
        let alive = Arc::new(AtomicBool::new(true));
        let (tell, ended) = channel();
        let (still, end) = (Arc::clone(&alive), Arc::clone(&shared));
        let served = std::thread::Builder::new().name("ice-fuse".into()).spawn(move || {
            let outcome = session.run();
            still.store(false, Ordering::SeqCst);
            if let Err(e) = &outcome {
                warn!(error = %e, "the session with the kernel ended");
            }
            end.finish();
            // Nobody listens once the mount was dropped.
            let _ = tell.send(outcome);
        });
        if let Err(e) = served {
            shared.queue.close();
            return Err(e);
        }
        Ok(Mount { mountpoint, mounted, hidden, shared, alive, ended: Mutex::new(ended) })
    }

    /// Where it is mounted: absolute, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What the mount hides (see [`MountOptions::over`]): some names, first by name.
    pub fn hidden(&self) -> &[OsString] {
        &self.hidden
    }

    /// Whether the kernel still sends requests. False after somebody else unmounted it.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    /// Why the kernel does not read backing files by itself, if it does not. Known from the first opened file on.
    pub fn passthrough_refused(&self) -> Option<String> {
        self.shared.opens.refused()
    }

    /// Unmounts and waits until the session has ended. Files that are still open after `timeout` are cut off.
    ///
    /// # Errors
    /// From the system; `TimedOut` if the session did not end either way. The mount is out of the tree then unless the error says
    /// otherwise.
    pub fn unmount(mut self, timeout: Duration) -> io::Result<()> {
        self.mounted.detach()?;
        self.shared.all_read();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        match ended.recv_timeout(timeout) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the session's thread panicked")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        warn!(mountpoint = %self.mountpoint.display(), "files are still open: cutting them off");
        let aborted = self.mounted.abort();
        match (ended.recv_timeout(Duration::from_secs(5)), aborted) {
            (Ok(outcome), _) => outcome,
            (Err(_), Err(e)) => Err(e),
            (Err(_), Ok(())) => Err(io::Error::new(io::ErrorKind::TimedOut, "the session did not end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::inval::drop_unused;
    use crate::support::{Fixture, can_mount, eventually};
    use crate::{Passthrough, device};
    use std::fs;

    /// What is done where the kernel has no epochs.
    #[test]
    fn names_are_dropped_by_a_remount() {
        if !can_mount() {
            return;
        }
        let f = Fixture::new(Passthrough::Auto);
        fs::create_dir_all(f.in_backing("a/b")).unwrap();
        fs::write(f.in_backing("a/b/old"), "").unwrap();
        assert!(f.at("a/b/old").exists() && !f.at("a/b/new").exists() && !f.at("top").exists());
        fs::rename(f.in_backing("a/b/old"), f.in_backing("a/b/new")).unwrap();
        fs::write(f.in_backing("top"), "").unwrap();
        assert!(f.at("a/b/old").exists() && !f.at("a/b/new").exists() && !f.at("top").exists(), "cached");
        let mount = f.mount();
        drop_unused(&*f.vfs, &mount.shared.notifier(), mount.mountpoint(), mount.mounted.id(), false);
        assert!(!f.at("a/b/old").exists() && f.at("a/b/new").exists() && f.at("top").exists());
        // A remount of something else is refused.
        assert!(device::remount(mount.mountpoint(), mount.mounted.id() + 1, false).is_err());
    }

    #[test]
    fn an_aborted_session_is_noticed() {
        if !can_mount() {
            return;
        }
        let f = Fixture::new(Passthrough::Auto);
        f.mount().mounted.abort().unwrap();
        eventually("the session ends", || !f.mount().is_alive());
    }
}
