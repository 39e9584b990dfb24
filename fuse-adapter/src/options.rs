//! How to mount.

use ice_host::locks::Locking;
use std::io;
use std::path::PathBuf;

/// Whether the kernel may read and map backing files by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// Where kernel and privileges allow it (Linux 6.9, `CAP_SYS_ADMIN`, a backing file system that is not itself stacked).
    #[default]
    Auto,
    /// Never: all data goes through this process and the kernel's page cache.
    Off,
}

/// How to mount a volume.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory; empty unless `over`.
    pub mountpoint: PathBuf,
    /// The "device" shown in the mount table. No commas, not empty.
    pub fsname: String,
    /// The type shown in the mount table is `fuse.<subtype>`. Letters, digits, `-` and `_`. A dead mount of this type is replaced
    /// by [`Mount::start`](crate::Mount::start).
    pub subtype: String,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
    /// Threads that answer the kernel, 1 to 64; 0 chooses.
    pub threads: usize,
    /// Give each thread its own channel to the kernel, where the device can be opened again.
    pub clone_fd: bool,
    /// See [`Passthrough`].
    pub passthrough: Passthrough,
    /// Refuse all changes.
    pub read_only: bool,
    /// Mount over a directory that is not empty: what is in it is hidden meanwhile.
    pub over: bool,
    /// The cluster's locks; without them locks hold on this node only.
    pub locking: Option<Locking>,
}

impl MountOptions {
    /// The defaults for a mountpoint.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        MountOptions {
            mountpoint: mountpoint.into(),
            fsname: "icecluster".to_owned(),
            subtype: "icecluster".to_owned(),
            allow_other: true,
            threads: 0,
            clone_fd: true,
            passthrough: Passthrough::Auto,
            read_only: false,
            over: false,
            locking: None,
        }
    }

    /// Checks what can be checked without touching the system.
    ///
    /// # Errors
    /// `InvalidInput`, with the reason.
    pub fn validate(&self) -> io::Result<()> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        // A comma would start another mount option where a helper program assembles them.
        if self.fsname.is_empty() || self.fsname.len() > 200 || self.fsname.contains([',', '\0', '\n']) {
            return refuse(format!("mount: fsname {:?}: must be 1 to 200 characters without commas", self.fsname));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.subtype.is_empty() || self.subtype.len() > 64 || !self.subtype.chars().all(word) {
            return refuse(format!("mount: subtype {:?}: must be 1 to 64 letters, digits, '-' or '_'", self.subtype));
        }
        if self.threads > 64 {
            return refuse(format!("mount: {} threads: at most 64", self.threads));
        }
        if self.mountpoint.as_os_str().is_empty() {
            return refuse("mount: no mountpoint given".to_owned());
        }
        Ok(())
    }

    /// Threads to start.
    #[cfg(target_os = "linux")]
    pub(crate) fn thread_count(&self) -> usize {
        match self.threads {
            // More than processors: one may wait for the disk while another answers from memory. But few: the kernel wakes them
            // in turn, and a program that asks one thing after the other finds a cold cache each time.
            0 => std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8) + 1,
            n => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_inject_mount_options_are_refused() {
        let good = MountOptions::new("/mnt/x");
        assert!(good.validate().is_ok());
        for fsname in ["", "a,suid", "a\nb"] {
            let bad = MountOptions { fsname: fsname.into(), ..good.clone() };
            assert_eq!(bad.validate().unwrap_err().kind(), io::ErrorKind::InvalidInput, "{fsname:?}");
        }
        for subtype in ["", "a,dev", "a.b", "a b"] {
            let bad = MountOptions { subtype: subtype.into(), ..good.clone() };
            assert!(bad.validate().is_err(), "{subtype:?}");
        }
        assert!(MountOptions { threads: 65, ..good.clone() }.validate().is_err());
        assert!(MountOptions::new("").validate().is_err());
    }
}
