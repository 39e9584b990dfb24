//! What every real icecluster node shares, whatever its runtime: it executes the core's actions on disk and network.

pub mod config;
pub mod control;
pub mod digest;
pub mod duration;
pub mod engine;
pub mod identity;
pub mod locks;
pub mod log;
pub mod memory;
pub mod node;
pub mod payload;
pub mod plane;
pub mod recorder;
pub mod runtime;
pub mod snapshots;
pub mod store;
pub mod tape;
pub mod time;
pub mod transport;
pub mod vfs;
pub mod volume;

/// The software's version as shown to users.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
