//! Binds a [`Vfs`](ice_host::vfs::Vfs) to a mountpoint through the kernel's FUSE driver (Linux only; elsewhere
//! [`Mount::start`] answers `Unsupported`).
//!
//! What is special about it:
//!
//! - **Caching.** Names, also those that do not exist, and attributes are cached by the kernel for a day, and directory
//!   listings until something changes. News from `Vfs::on_stale` drops what a remote change made wrong. An answer that
//!   was computed before such a change and leaves after it is sent with a lifetime of zero (module `stale`).
//! - **Passthrough.** Files opened for reading are read from the backing file by the kernel itself, while those opened for
//!   writing send their `write`s here. Files that are opened to be read and written use the kernel's page cache over requests
//!   to this process, and so does every file where the kernel or a missing privilege refuses passthrough. All views of a file agree
//!   (module `opens`).
//! - **Waiting.** `fsync`, `close` and `open` may wait for other nodes. They never hold up other requests, and a process that
//!   waits in one can be killed (module `park`).
//! - **Locks.** `flock` and `fcntl` locks hold in the whole cluster where the mount is given a control plane (module `locks`);
//!   otherwise they are kept by the local kernel.
//! - **Access control** is the kernel's, by mode bits (`default_permissions`). POSIX access control lists are refused, because
//!   the kernel would store but not obey them. The mount is `nosuid,nodev`.

#[cfg(target_os = "linux")]
mod attr;
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod dirs;
#[cfg(target_os = "linux")]
mod fs;
#[cfg(target_os = "linux")]
mod inval;
#[cfg(target_os = "linux")]
mod locks;
#[cfg(target_os = "linux")]
mod mount;
#[cfg(target_os = "linux")]
mod mountinfo;
#[cfg(target_os = "linux")]
mod opens;
mod options;
#[cfg(target_os = "linux")]
mod park;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod readers;
#[cfg(target_os = "linux")]
mod signals;
#[cfg(target_os = "linux")]
mod stale;
#[cfg(target_os = "linux")]
mod syscalls;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
pub use mount::Mount;
pub use options::{MountOptions, Passthrough};
#[cfg(not(target_os = "linux"))]
pub use unsupported::Mount;

// The volume that the tests of `tests/` mount, for those that look inside.
#[cfg(all(test, target_os = "linux"))]
extern crate self as ice_fuse;
#[cfg(all(test, target_os = "linux"))]
#[path = "../tests/support/mod.rs"]
mod support;
