//! What every real icecluster node shares, whatever its runtime: it executes the core's actions on disk and network.

pub mod runtime;
pub mod vfs;

/// The software's version as shown to users.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
