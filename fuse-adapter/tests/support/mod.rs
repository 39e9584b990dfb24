//! A directory as a volume, complete but for replication, and mounts of it that clean up after themselves.
#![allow(dead_code)]

pub mod dirvfs;
#[path = "../../../grpc-adapter/tests/support/plane.rs"]
pub mod plane;

pub use dirvfs::DirVfs;
use ice_fuse::{Mount, MountOptions, Passthrough};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A mounted temporary directory.
pub struct Fixture {
    pub vfs: Arc<DirVfs>,
    mount: Option<Mount>,
    pub mnt: PathBuf,
    pub backing: PathBuf,
    // Last, so that the mount is gone when it is removed.
    _dir: tempfile::TempDir,
}

/// Whether this machine can mount. In CI a machine that cannot is a failure.
pub fn can_mount() -> bool {
    let able = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !able {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to open /dev/fuse");
        eprintln!("SKIPPED: /dev/fuse cannot be opened, nothing was tested");
    }
    able
}

impl Fixture {
    /// Mounts a fresh directory.
    pub fn new(passthrough: Passthrough) -> Fixture {
        Fixture::with(|o| o.passthrough = passthrough)
    }

    pub fn with(set: impl FnOnce(&mut MountOptions)) -> Fixture {
        Fixture::on(ice_testing::tempdir(), set)
    }

    /// For tests with very many files: in memory, where there is room for that.
    pub fn roomy(passthrough: Passthrough) -> Fixture {
        Fixture::on(ice_testing::memory_dir(), |o| o.passthrough = passthrough)
    }

    fn on(dir: tempfile::TempDir, set: impl FnOnce(&mut MountOptions)) -> Fixture {
        let (backing, mnt) = (dir.path().join("backing"), dir.path().join("mnt"));
        std::fs::create_dir(&backing).unwrap();
        std::fs::create_dir(&mnt).unwrap();
        let mut options = MountOptions::new(&mnt);
        set(&mut options);
        let vfs = Arc::new(DirVfs::new(&backing));
        let mount = Mount::start(Arc::clone(&vfs) as _, options).unwrap();
        Fixture { vfs, mount: Some(mount), mnt, backing, _dir: dir }
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    pub fn unmount(&mut self, timeout: Duration) {
        self.mount.take().unwrap().unmount(timeout).unwrap();
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    pub fn in_backing(&self, name: &str) -> PathBuf {
        self.backing.join(name)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take()
            && let Err(e) = mount.unmount(Duration::from_secs(5))
        {
            eprintln!("unmount: {e}");
        }
    }
}

/// Runs a test on a mount of either kind.
pub fn both(test: impl Fn(&Fixture)) {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let f = Fixture::new(passthrough);
        eprintln!("passthrough {passthrough:?}");
        test(&f);
    }
}

/// Waits for something that comes by itself. The time is only there to fail instead of hanging.
pub fn eventually(what: &str, test: impl FnMut() -> bool) {
    ice_testing::until(what, test);
}

pub fn sh(script: &str, dir: &Path) -> String {
    let out = ice_testing::output(ice_testing::command("sh").args(["-ec", script]).current_dir(dir));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{script}: {err}");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
