//! Mounting, unmounting, dying, waiting.
#![cfg(target_os = "linux")]

mod support;

use ice_fuse::{Mount, MountOptions, Passthrough};
use ice_testing::Process;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{DirVfs, Fixture, can_mount, eventually};

fn mounts_at(path: &Path) -> usize {
    let path = path.to_str().unwrap();
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|l| l.split(' ').nth(4) == Some(path)).count()
}

/// Unmounts whatever a failed test left, so that its directory can be removed.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        while mounts_at(self.0) > 0 && rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

const CHILD: &str = "ICE_FUSE_TEST_CHILD";

#[test]
fn the_mount_of_a_killed_daemon_is_replaced_and_that_of_a_living_one_is_not() {
    if let Some(dir) = std::env::var_os(CHILD) {
        // The daemon that will be killed.
        let dir = Path::new(&dir);
        let vfs = Arc::new(DirVfs::new(&dir.join("backing")));
        let _mount = Mount::start(vfs, MountOptions::new(dir.join("mnt"))).unwrap();
        println!("mounted");
        std::thread::sleep(Duration::from_secs(300));
        panic!("nobody killed this process");
    }
    if !can_mount() {
        return;
    }
    let dir = ice_testing::tempdir();
    let (backing, mnt) = (dir.path().join("backing"), dir.path().join("mnt"));
    fs::create_dir(&backing).unwrap();
    fs::create_dir(&mnt).unwrap();
    let mnt = mnt.canonicalize().unwrap();
    let _sweep = Sweep(&mnt);
    fs::write(backing.join("f"), "f").unwrap();
    let start = || Mount::start(Arc::new(DirVfs::new(&backing)), MountOptions::new(&mnt));

    for round in 0..2 {
        let mut command = ice_testing::command(std::env::current_exe().unwrap());
        let name = "the_mount_of_a_killed_daemon_is_replaced_and_that_of_a_living_one_is_not";
        command.args(["--exact", name, "--nocapture"]).env(CHILD, dir.path());
        let child = Process::spawn(command.stdout(Stdio::piped()));
        let lines = BufReader::new(child.stdout()).lines();
        assert!(lines.map_while(Result::ok).any(|l| l.contains("mounted")), "the child did not mount");
        assert_eq!(fs::read_to_string(mnt.join("f")).unwrap(), "f");
        assert_eq!(start().unwrap_err().kind(), ErrorKind::AddrInUse, "round {round}");
        child.kill();
        assert_eq!(fs::read_dir(&mnt).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        // The next round's child replaces the first dead mount, the last is replaced below.
        assert_eq!(mounts_at(&mnt), 1);
    }
    let mount = start().unwrap();
    assert_eq!(mounts_at(&mnt), 1);
    assert_eq!(fs::read_to_string(mnt.join("f")).unwrap(), "f");
    mount.unmount(Duration::from_secs(10)).unwrap();
    assert_eq!(mounts_at(&mnt), 0);
}

/// The whole life of a mount made without privileges: by the helper program, and without passthrough.
#[test]
fn users_without_privileges_mount_through_the_helper() {
    const NOBODY: u32 = 65534;
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let vfs = Arc::new(DirVfs::new(&dir.join("backing")));
        let own = |allow_other| MountOptions { allow_other, ..MountOptions::new(dir.join("mnt")) };
        let mount = Mount::start(Arc::clone(&vfs) as _, own(false)).unwrap();
        fs::write(dir.join("mnt/f"), "mine").unwrap();
        assert_eq!(fs::read_to_string(dir.join("mnt/f")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(dir.join("backing/f")).unwrap(), "mine");
        let why = mount.passthrough_refused().unwrap();
        assert!(why.contains("CAP_SYS_ADMIN"), "{why}");
        mount.unmount(Duration::from_secs(10)).unwrap();
        assert!(!dir.join("mnt/f").exists());
        // What the helper says reaches the user.
        let allowed =
            fs::read_to_string("/etc/fuse.conf").is_ok_and(|t| t.lines().any(|l| l.trim() == "user_allow_other"));
        if !allowed {
            let e = Mount::start(vfs, own(true)).unwrap_err();
            assert!(e.to_string().contains("user_allow_other"), "{e}");
        }
        return;
    }
    if !can_mount() {
        return;
    }
    let tools = ["fusermount3", "setpriv", "unshare"];
    if !tools.iter().all(|t| std::process::Command::new(t).arg("--version").stdin(Stdio::null()).output().is_ok())
        || !rustix::process::geteuid().is_root()
    {
        eprintln!("SKIPPED: needs root, and {tools:?}");
        return;
    }
    let dir = ice_testing::tempdir();
    let at = |n: &str| dir.path().join(n);
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(dir.path(), open.clone()).unwrap();
    for d in ["backing", "mnt"] {
        fs::create_dir(at(d)).unwrap();
        std::os::unix::fs::chown(at(d), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::copy(std::env::current_exe().unwrap(), at("test")).unwrap();
    fs::set_permissions(at("test"), open).unwrap();
    // The device may be for root only: in a mount namespace of its own the child sees one that is for all.
    let script = format!(
        "mknod device c 10 229; chmod 666 device; mount --bind device /dev/fuse; \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups ./test --exact {} --nocapture",
        "users_without_privileges_mount_through_the_helper"
    );
    let mut command = ice_testing::command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
    let out = ice_testing::output(command.current_dir(dir.path()).env(CHILD, dir.path()));
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(fs::read_to_string(at("backing/f")).unwrap(), "mine");
}

#[test]
fn mounts_of_others_are_never_taken_away() {
    if !can_mount() {
        return;
    }
    let dir = ice_testing::tempdir();
    let (backing, mnt) = (dir.path().join("backing"), dir.path().canonicalize().unwrap().join("mnt"));
    fs::create_dir(&backing).unwrap();
    fs::create_dir(&mnt).unwrap();
    let _sweep = Sweep(&mnt);
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("icecluster", &mnt, "tmpfs", flags, None).unwrap();
    fs::write(mnt.join("theirs"), "").unwrap();
    let start = || Mount::start(Arc::new(DirVfs::new(&backing)), MountOptions::new(&mnt));
    let e = start().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DirectoryNotEmpty, "{e}");
    assert!(mnt.join("theirs").exists());
    // Over an empty one we mount, and leave it there afterwards.
    fs::remove_file(mnt.join("theirs")).unwrap();
    let mount = start().unwrap();
    assert_eq!(mounts_at(&mnt), 2);
    // Somebody unmounts ours and mounts theirs: ending does not touch it.
    rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::empty()).unwrap();
    eventually("the session ends", || !mount.is_alive());
    rustix::mount::mount("x", &mnt, "tmpfs", flags, None).unwrap();
    mount.unmount(Duration::from_secs(10)).unwrap();
    assert_eq!(mounts_at(&mnt), 2);
    // And with theirs on top of ours, there is an error.
    rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::empty()).unwrap();
    let mount = start().unwrap();
    rustix::mount::mount("x", &mnt, "tmpfs", flags, None).unwrap();
    let e = mount.unmount(Duration::from_secs(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ResourceBusy, "{e}");
    assert_eq!(mounts_at(&mnt), 3);
}

#[test]
fn mountpoints_that_will_not_do() {
    if !can_mount() {
        return;
    }
    let dir = ice_testing::tempdir();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("full")).unwrap();
    fs::write(dir.path().join("full/x"), "").unwrap();
    let start = |name: &str| {
        let vfs = Arc::new(DirVfs::new(dir.path()));
        Mount::start(vfs, MountOptions::new(dir.path().join(name))).unwrap_err()
    };
    for (name, kind) in
        [("none", ErrorKind::NotFound), ("file", ErrorKind::NotADirectory), ("full", ErrorKind::DirectoryNotEmpty)]
    {
        let e = start(name);
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.to_string().contains(name), "{e}");
    }
    // Odd names are no obstacle, nor is a way through a symbolic link.
    fs::create_dir(dir.path().join("odd, name \\040")).unwrap();
    std::os::unix::fs::symlink("odd, name \\040", dir.path().join("link")).unwrap();
    let backing = ice_testing::tempdir();
    fs::write(backing.path().join("f"), "").unwrap();
    let vfs = Arc::new(DirVfs::new(backing.path()));
    let mount = Mount::start(vfs, MountOptions::new(dir.path().join("link"))).unwrap();
    assert!(dir.path().join("link/f").exists());
    assert!(mount.mountpoint().ends_with("odd, name \\040"));
    mount.unmount(Duration::from_secs(10)).unwrap();
    assert!(!dir.path().join("link/f").exists());
}

#[test]
fn unmounting_with_open_files() {
    if !can_mount() {
        return;
    }
    let mut f = Fixture::new(Passthrough::Off);
    fs::write(f.at("x"), "x").unwrap();
    let file = File::open(f.at("x")).unwrap();
    let start = Instant::now();
    f.unmount(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(fs::read_dir(&f.mnt).unwrap().count(), 0, "out of the tree");
    assert!(file.metadata().is_err(), "cut off");
    assert_eq!(f.vfs.open_handles(), 0, "the volume got its handles back");
    drop(file);

    // Dropping only takes it out of the tree: what is open stays usable.
    let mount = Mount::start(Arc::clone(&f.vfs) as _, MountOptions::new(&f.mnt)).unwrap();
    let mut file = File::create(f.at("y")).unwrap();
    drop(mount);
    assert_eq!(fs::read_dir(&f.mnt).unwrap().count(), 0);
    file.write_all(b"still").unwrap();
    drop(file);
    eventually("released", || f.vfs.open_handles() == 0);
    assert_eq!(fs::read_to_string(f.in_backing("y")).unwrap(), "still");
}

#[test]
fn read_only_mounts_and_their_flags() {
    if !can_mount() {
        return;
    }
    let f = Fixture::with(|o| {
        o.read_only = true;
        o.fsname = "my volume".into();
    });
    fs::write(f.in_backing("f"), "f").unwrap();
    assert_eq!(fs::read_to_string(f.at("f")).unwrap(), "f");
    assert_eq!(fs::write(f.at("g"), "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|l| l.contains(f.mnt.to_str().unwrap())).unwrap();
    assert!(line.contains(" - fuse.icecluster my\\040volume "), "{line}");
    for flag in ["nosuid", "nodev", "ro", "default_permissions", "allow_other"] {
        assert!(line.contains(flag), "{line}");
    }
}

#[test]
fn a_backing_directory_on_a_stacked_file_system_falls_back() {
    if !can_mount() {
        return;
    }
    let dir = ice_testing::tempdir();
    let at = |n: &str| dir.path().join(n);
    for d in ["lower", "upper", "work", "backing", "mnt"] {
        fs::create_dir(at(d)).unwrap();
    }
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let data = std::ffi::CString::new(data).unwrap();
    let backing = at("backing");
    let _sweep = Sweep(&backing);
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &backing, "overlay", flags, data.as_c_str()).unwrap();
    let mount = Mount::start(Arc::new(DirVfs::new(&backing)), MountOptions::new(at("mnt"))).unwrap();
    assert_eq!(mount.passthrough_refused(), None, "not known before a file is opened");
    fs::write(at("mnt/f"), "through the daemon").unwrap();
    assert_eq!(fs::read_to_string(at("mnt/f")).unwrap(), "through the daemon");
    let why = mount.passthrough_refused().unwrap();
    assert!(why.contains("stacked"), "{why}");
    mount.unmount(Duration::from_secs(10)).unwrap();
}

/// However many calls wait for the disk, somebody is left to answer those that do not.
#[test]
fn a_slow_disk_does_not_keep_others_from_looking() {
    use std::os::unix::fs::FileExt;
    if !can_mount() {
        return;
    }
    let f = Fixture::with(|o| {
        o.passthrough = Passthrough::Off;
        o.threads = 2;
    });
    for i in 0..7 {
        fs::create_dir(f.in_backing(&format!("d{i}"))).unwrap();
        fs::write(f.in_backing(&format!("d{i}/f")), "bytes").unwrap();
    }
    fs::write(f.in_backing("other"), "bytes").unwrap();
    let at = |i: usize| f.at(&format!("d{i}/f"));
    let open = |i: usize| File::options().read(true).write(true).open(at(i)).unwrap();
    let files: Vec<File> = (0..7).map(open).collect();
    f.vfs.take_counts();
    f.vfs.disk_ms.store(60_000, Ordering::SeqCst);
    std::thread::scope(|s| {
        /// Lets the disk go on, however the test ends.
        struct GoOn<'a>(&'a std::sync::atomic::AtomicU64);
        impl Drop for GoOn<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::SeqCst);
            }
        }
        let go_on = GoOn(&f.vfs.disk_ms);
        let files = &files;
        let waiting = [
            s.spawn(|| files[0].read_exact_at(&mut [0; 5], 0).unwrap()),
            s.spawn(|| assert_eq!(files[1].write_at(b"BYTES", 0).unwrap(), 5)),
            s.spawn(|| {
                let (mut from, mut to) = (0, 5);
                rustix::fs::copy_file_range(&files[2], Some(&mut from), &files[2], Some(&mut to), 5).unwrap();
            }),
            s.spawn(|| rustix::fs::fallocate(&files[3], rustix::fs::FallocateFlags::empty(), 0, 100).unwrap()),
            s.spawn(|| fs::rename(f.at("d4/f"), f.at("d4/g")).unwrap()),
            s.spawn(|| fs::write(f.at("d5/new"), "").unwrap()),
            s.spawn(|| files[6].set_len(3).unwrap()),
        ];
        let kinds = ["read", "write", "copy_file_range", "fallocate", "rename", "create", "setattr"];
        eventually("all of them wait", || kinds.iter().all(|kind| f.vfs.counted(&[kind]) == 1));
        assert_eq!(fs::metadata(f.at("other")).unwrap().len(), 5);
        assert_eq!(fs::read_dir(f.at("d0")).unwrap().count(), 1);
        assert!(waiting.iter().all(|w| !w.is_finished()), "the disk is slow");
        drop(go_on);
        for waiting in waiting {
            waiting.join().unwrap();
        }
    });
    assert_eq!(fs::read(f.in_backing("d1/f")).unwrap(), b"BYTES");
    assert_eq!(fs::read(f.in_backing("d2/f")).unwrap(), b"bytesbytes");
    assert_eq!(fs::metadata(f.in_backing("d3/f")).unwrap().len(), 100);
    assert!(f.in_backing("d4/g").exists() && f.in_backing("d5/new").exists());
    assert_eq!(fs::metadata(f.in_backing("d6/f")).unwrap().len(), 3);
}

/// A shell that does something slow in the mount, and how long it lived after a signal.
fn time_to_die(
    f: &Fixture,
    script: &str,
    waiting: &str,
    signal: rustix::process::Signal,
) -> (Duration, std::process::ExitStatus) {
    f.vfs.take_counts();
    let child = Process::spawn(ice_testing::command("python3").args(["-c", script]).current_dir(&f.mnt));
    eventually("it waits", || f.vfs.counted(&[waiting]) == 1);
    // Longer than one look of the watcher, so that it has seen the process without a signal.
    std::thread::sleep(Duration::from_millis(120));
    let start = Instant::now();
    child.signal(signal);
    let status = child.wait();
    (start.elapsed(), status)
}

#[test]
fn a_process_that_waits_can_be_killed_and_interrupted() {
    use rustix::process::Signal;
    if !can_mount() {
        return;
    }
    let f = Fixture::new(Passthrough::Auto);
    const SLOW: u64 = 60_000;
    const SOON: Duration = Duration::from_secs(10);
    f.vfs.fsync_ms.store(SLOW, Ordering::SeqCst);
    let fsync = "import os; fd = os.open('f', os.O_RDWR | os.O_CREAT); os.write(fd, b'x'); os.fsync(fd)";
    let (took, status) = time_to_die(&f, fsync, "fsync", Signal::KILL);
    assert!(took < SOON, "{took:?}");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    let (took, status) = time_to_die(&f, &fsync.replace("'f'", "'g'"), "fsync", Signal::TERM);
    assert!(took < SOON, "{took:?}");
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    // Caught: the system call returns, the program decides.
    let caught = "import os, signal, sys\ndef stop(*a): sys.exit(7)\nsignal.signal(signal.SIGINT, stop)\n\
        fd = os.open('h', os.O_RDWR | os.O_CREAT)\nos.fsync(fd)";
    let (took, status) = time_to_die(&f, caught, "fsync", Signal::INT);
    assert!(took < SOON, "{took:?}");
    assert_eq!(status.code(), Some(7));
    // Nobody else was held up, and the work went on: the handles are released only after it.
    let start = Instant::now();
    fs::write(f.at("other"), "").unwrap();
    assert!(start.elapsed() < SOON);
    eventually("only those three are open", || f.vfs.open_handles() == 3);
    f.vfs.open_ms.store(SLOW, Ordering::SeqCst);
    let open = "open('other').read()";
    let (took, status) = time_to_die(&f, open, "open", Signal::KILL);
    assert!(took < SOON, "{took:?}");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    f.vfs.open_ms.store(0, Ordering::SeqCst);
    f.vfs.fsync_ms.store(0, Ordering::SeqCst);
    eventually("what was waited for is done, and its handles released", || f.vfs.open_handles() == 0);
}

#[test]
fn many_slow_requests_do_not_stop_the_others() {
    if !can_mount() {
        return;
    }
    let f = Fixture::with(|o| o.threads = 2);
    fs::write(f.at("f"), "f").unwrap();
    let slow = |ms| [&f.vfs.fsync_ms, &f.vfs.open_ms].map(|s| s.store(ms, Ordering::SeqCst));
    slow(60_000);
    std::thread::scope(|s| {
        for i in 0..12 {
            let (mnt, odd) = (&f.mnt, i % 2 == 1);
            s.spawn(move || {
                if odd {
                    File::open(mnt.join("f")).unwrap();
                } else {
                    File::create(mnt.join(format!("{i}"))).unwrap().sync_all().unwrap();
                }
            });
        }
        eventually("all wait", || f.vfs.counted(&["fsync"]) == 6 && f.vfs.counted(&["open"]) == 6);
        let waiting = || f.vfs.counted(&["fsynced"]) == 0;
        for i in 0..50 {
            fs::create_dir(f.at(&format!("d{i}"))).unwrap();
        }
        assert!(waiting(), "50 changes were made while the others waited");
        slow(0);
    });
    eventually("released", || f.vfs.open_handles() == 0);
}

/// A process that is killed while it waits in a mount that it serves itself keeps waiting, and keeps its descriptors, which
/// keep the mount: only force from outside ends that. No test process may stay behind like this.
#[test]
fn a_test_process_that_is_killed_in_its_own_mount_ends_and_leaves_no_mount() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let f = Fixture::with(|o| o.passthrough = Passthrough::Off);
        f.vfs.fsync_ms.store(300_000, Ordering::SeqCst);
        let (vfs, mnt) = (Arc::clone(&f.vfs), f.mnt.clone());
        std::thread::spawn(move || {
            eventually("it waits in its mount", || vfs.counted(&["fsync"]) == 1);
            fs::write(Path::new(&dir).join("mnt"), mnt.to_str().unwrap()).unwrap();
        });
        File::create(f.at("f")).unwrap().sync_all().unwrap();
        panic!("nobody killed this process");
    }
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = ice_testing::tempdir();
    let mut command = ice_testing::command(std::env::current_exe().unwrap());
    let name = "a_test_process_that_is_killed_in_its_own_mount_ends_and_leaves_no_mount";
    // As a test process that nobody's guardian knows yet.
    command.args(["--exact", name]).env(CHILD, dir.path()).env_remove("ICE_TEST_MARK");
    let child = Process::spawn(&mut command);
    let mut waiting = String::new();
    eventually("it waits in its mount", || {
        assert_eq!(child.ended(), None);
        waiting = fs::read_to_string(dir.path().join("mnt")).unwrap_or_default();
        !waiting.is_empty()
    });
    assert_eq!(mounts_at(Path::new(&waiting)), 1);
    child.kill();
    eventually("the mount is gone", || mounts_at(Path::new(&waiting)) == 0);
    let root = Path::new(&waiting).ancestors().nth(2).unwrap();
    eventually("its directory is gone", || !root.exists());
}
