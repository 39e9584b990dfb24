//! The kernel's side of a mount: device, mount table, unmounting.
//!
//! Mounting is not left to fuser 0.18: it unmounts by path without looking who is mounted there by then, and gives up
//! where a file is open.

use crate::MountOptions;
use crate::mountinfo::{self, Entry};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tracing::{info, warn};

const DEVICE: &str = "/dev/fuse";
/// How long a mounted file system may take to answer `statfs`.
const PROBE: Duration = Duration::from_secs(5);
/// Dead mounts on top of each other that are taken away.
const STACKED: usize = 64;

fn err(kind: io::ErrorKind, why: String) -> io::Error {
    io::Error::new(kind, why)
}

fn with(e: impl Into<io::Error>, why: &str) -> io::Error {
    let e = e.into();
    io::Error::new(e.kind(), format!("{why}: {e}"))
}

/// A mount this process made.
#[derive(Debug)]
pub(crate) struct Mounted {
    entry: Entry,
    armed: bool,
}

/// What state a mount is in.
enum Pulse {
    Answers,
    Dead,
    Silent,
}

/// Asks a file system for its size. This always reaches its daemon, whatever is cached.
fn pulse(path: &Path) -> Pulse {
    let (tx, rx) = mpsc::channel();
    let path = path.to_owned();
    // A request that nobody answers cannot be given up by the one who waits, so another thread waits.
    let probe = std::thread::Builder::new().name("ice-fuse-probe".into()).spawn(move || {
        // The receiver may have stopped waiting.
        let _ = tx.send(rustix::fs::statfs(&path).map(|_| ()));
    });
    if probe.is_err() {
        return Pulse::Silent;
    }
    match rx.recv_timeout(PROBE) {
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Pulse::Dead,
        Ok(_) => Pulse::Answers,
        Err(_) => Pulse::Silent,
    }
}

/// The absolute path of a mountpoint, whose last part may be a mount that is dead.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let shown = path.display();
    match std::fs::canonicalize(path) {
        Ok(p) => Ok(p),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::NOTCONN) => {
            let absolute = std::path::absolute(path)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Err(e) };
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(err(e.kind(), format!("mountpoint {shown} does not exist")))
        }
        Err(e) => Err(with(e, &format!("mountpoint {shown}"))),
    }
}

/// Takes away what a killed predecessor left. Mounts of others, and those of ours that still answer, are left alone.
pub(crate) fn clear_stale(target: &Path, options: &MountOptions) -> io::Result<()> {
    let ours = format!("fuse.{}", options.subtype);
    for _ in 0..STACKED {
        let Some(entry) = mountinfo::top_at(target)? else { return Ok(()) };
        let mine = entry.fstype == ours || (entry.fstype == "fuse" && mountinfo::source_is(&entry, &options.fsname));
        if !mine {
            return Ok(());
        }
        match pulse(target) {
            Pulse::Dead => {
                info!(mountpoint = %target.display(), "replacing the mount of a daemon that ended without unmounting");
                detach(&entry)?;
            }
            Pulse::Answers => {
                let why = format!("{} is already mounted by a running {} daemon", target.display(), options.subtype);
                return Err(err(io::ErrorKind::AddrInUse, why));
            }
            Pulse::Silent => {
                let why =
                    format!("{} is mounted by a {} daemon that does not answer", target.display(), options.subtype);
                return Err(err(io::ErrorKind::TimedOut, why));
            }
        }
    }
    Err(err(io::ErrorKind::Other, format!("more than {STACKED} dead mounts at {}", target.display())))
}

/// Names of what a mount hides that are told.
const HIDDEN_MAX: usize = 1_000;

/// A mountpoint must be a directory, and unless `over` an empty one, so that nothing is hidden. What will be hidden, by name.
pub(crate) fn check_mountpoint(target: &Path, over: bool) -> io::Result<Vec<OsString>> {
    let shown = target.display();
    if !std::fs::metadata(target).map_err(|e| with(e, &format!("mountpoint {shown}")))?.is_dir() {
        return Err(err(io::ErrorKind::NotADirectory, format!("mountpoint {shown} is not a directory")));
    }
    let entries = std::fs::read_dir(target).map_err(|e| with(e, &format!("mountpoint {shown}")))?;
    let names = entries.take(HIDDEN_MAX).map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = names.map_err(|e| with(e, &format!("mountpoint {shown}")))?;
    if !names.is_empty() && !over {
        let why = format!("mountpoint {shown} is not empty: mounting would hide what is in it");
        return Err(err(io::ErrorKind::DirectoryNotEmpty, why));
    }
    names.sort();
    Ok(names)
}

/// Mounts, by system call or, where this is not permitted, by `fusermount3`. Returns the channel to the kernel.
pub(crate) fn mount(target: &Path, options: &MountOptions) -> io::Result<(OwnedFd, Mounted)> {
    let fd = match mount_directly(target, options) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => mount_by_helper(target, options)
            .map_err(|helper| with(helper, &format!("{e}; and by the helper program")))?,
        r => r?,
    };
    let fstype = format!("fuse.{}", options.subtype);
    match mountinfo::top_at(target)? {
        Some(entry) if entry.fstype == fstype => Ok((fd, Mounted { entry, armed: true })),
        _ => Err(err(io::ErrorKind::Other, format!("{} is not in the mount table after mounting", target.display()))),
    }
}

fn mount_directly(target: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| match e {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => err(
            io::ErrorKind::NotFound,
            format!("{DEVICE} is missing: load the fuse module, or give the container the device"),
        ),
        e => with(e, DEVICE),
    })?;
    let kind = rustix::fs::stat(target)?.st_mode & libc::S_IFMT;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode={kind:o},user_id={uid},group_id={gid},default_permissions", fd.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let fstype = format!("fuse.{}", options.subtype);
    rustix::mount::mount(options.fsname.as_str(), target, fstype.as_str(), flags, data.as_c_str())
        .map_err(|e| with(e, &format!("mounting at {}", target.display())))?;
    Ok(fd)
}

fn helper() -> std::ffi::OsString {
    std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| "fusermount3".into())
}

/// The helper mounts for users without privileges and sends the channel's descriptor through its standard input.
fn mount_by_helper(target: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let patience = Some(Duration::from_secs(30));
    sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, patience)?;
    let mut list = format!("nosuid,nodev,default_permissions,fsname={},subtype={}", options.fsname, options.subtype);
    list.push_str(if options.read_only { ",ro" } else { ",rw" });
    if options.allow_other {
        list.push_str(",allow_other");
    }
    let program = helper();
    let mut child = Command::new(&program)
        .args(["-o", &list, "--"])
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| with(e, &program.to_string_lossy()))?;
    let received = receive_descriptor(&ours);
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says matters only if it failed, and then for people.
        let _ = stderr.take(4096).read_to_string(&mut words);
    }
    let status = child.wait()?;
    match received {
        Ok(Some(fd)) if status.success() => Ok(fd),
        Err(e) if status.success() => Err(e.into()),
        _ => Err(err(io::ErrorKind::Other, format!("{}: {status}: {}", program.to_string_lossy(), words.trim()))),
    }
}

fn receive_descriptor(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return Ok(fds.next());
        }
    }
    Ok(None)
}

/// Whether each thread can open the device for itself.
pub(crate) fn can_clone() -> bool {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

impl Mounted {
    pub(crate) fn id(&self) -> u64 {
        self.entry.id
    }

    /// Takes the mount out of the tree, if it is still there. Files that are open in it stay usable.
    ///
    /// # Errors
    /// Something else is mounted over it, or no permission.
    pub(crate) fn detach(&mut self) -> io::Result<()> {
        self.armed = false;
        detach(&self.entry)
    }

    /// Ends the session although files are open: whoever uses them gets errors.
    ///
    /// # Errors
    /// The control file system cannot be reached.
    pub(crate) fn abort(&self) -> io::Result<()> {
        let minor = self.entry.dev.split(':').nth(1).unwrap_or_default();
        let switch = format!("{minor}/abort");
        if std::fs::write(Path::new("/sys/fs/fuse/connections").join(&switch), "1").is_ok() {
            return Ok(());
        }
        // Containers often lack it: look into an instance of our own, which is not attached anywhere.
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let file = rustix::fs::openat(root, switch, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, b"1")?;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.armed
            && let Err(e) = detach(&self.entry)
        {
            warn!(error = %e, "the mount stays");
        }
    }
}

/// Unmounts exactly this mount, wherever it was moved to meanwhile, and nothing else.
fn detach(which: &Entry) -> io::Result<()> {
    let table = mountinfo::read()?;
    let Some(now) = table.iter().find(|e| e.id == which.id && e.dev == which.dev && e.fstype == which.fstype) else {
        return Ok(());
    };
    let path = &now.mountpoint;
    if table.iter().rfind(|e| e.mountpoint == *path).is_some_and(|top| top.id != now.id) {
        let why = format!("{}: something else is mounted over it", path.display());
        return Err(err(io::ErrorKind::ResourceBusy, why));
    }
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let program = helper();
            let out = Command::new(&program)
                .args(["-u", "-z", "-q", "--"])
                .arg(path)
                .stdin(Stdio::null())
                .output()
                .map_err(|e| with(e, &program.to_string_lossy()))?;
            if out.status.success() {
                return Ok(());
            }
            let words = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            Err(err(io::ErrorKind::PermissionDenied, format!("{}: {words}", program.to_string_lossy())))
        }
        Err(e) => Err(with(e, &format!("unmounting {}", path.display()))),
    }
}

/// Makes the kernel ask for every name anew (`FUSE_NOTIFY_INC_EPOCH`, Linux 6.16, which fuser does not know).
pub(crate) fn new_epoch(channel: &OwnedFd) -> rustix::io::Result<()> {
    const INC_EPOCH: u32 = 8;
    // struct fuse_out_header { u32 len; i32 error; u64 unique }: a zero `unique` makes it a notification, `error` its kind.
    let mut message = [0u8; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
    rustix::io::write(channel, &message).map(|_| ())
}

/// A remount without change, which drops all names that are not in use.
pub(crate) fn remount(target: &Path, mount_id: u64, read_only: bool) -> io::Result<()> {
    if mountinfo::top_at(target)?.is_none_or(|e| e.id != mount_id) {
        return Err(err(io::ErrorKind::NotFound, format!("{} is not our mount", target.display())));
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    Ok(rustix::mount::mount_remount(target, flags, c"")?)
}
