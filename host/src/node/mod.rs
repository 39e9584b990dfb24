//! Puts a node together: what was found on disk, the state machine, and the lanes that carry out its actions.

mod actions;
mod checkpoints;
mod glue;
mod recover;

pub use actions::{FileActions, Lanes};
pub use recover::{Found, RecoverError, core_config, log_dir, recover};

use ice_core::event::IoError;
use std::io;

/// What an error of the operating system means to the core.
pub fn io_error(e: &io::Error) -> IoError {
    match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => IoError::NoSpace,
        Some(rustix::io::Errno::IO | rustix::io::Errno::ROFS) => IoError::Broken,
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => IoError::Denied,
        Some(other) => IoError::Os(other.raw_os_error()),
        None => IoError::Broken,
    }
}
