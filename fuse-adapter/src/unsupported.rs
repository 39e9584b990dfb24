//! Systems without this kernel interface.

use crate::MountOptions;
use ice_host::vfs::Vfs;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A mounted volume: cannot exist on this system.
#[derive(Debug)]
pub enum Mount {}

impl Mount {
    /// Answers `Unsupported`.
    ///
    /// # Errors
    /// Always.
    pub fn start(_vfs: Arc<dyn Vfs>, options: MountOptions) -> io::Result<Mount> {
        options.validate()?;
        Err(io::Error::new(io::ErrorKind::Unsupported, "mounting needs Linux; use the HTTP interface instead"))
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        match *self {}
    }

    /// What the mount hides.
    pub fn hidden(&self) -> &[OsString] {
        match *self {}
    }

    /// Whether the kernel still sends requests.
    pub fn is_alive(&self) -> bool {
        match *self {}
    }

    /// Why the kernel does not read backing files by itself, if it does not.
    pub fn passthrough_refused(&self) -> Option<String> {
        match *self {}
    }

    /// Unmounts.
    ///
    /// # Errors
    /// None can occur.
    pub fn unmount(self, _timeout: Duration) -> io::Result<()> {
        match self {}
    }
}
