//! HTTP bound to an icecluster node: the public API and the peer transport, on one port and on every runtime.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod api;
mod cluster;
pub mod files;
mod peer;
mod places;
mod pump;
mod server;
mod vfs_files;

pub use api::path::RelPath;
pub use api::{ApiConfig, Cluster, router, router_with_locks};
pub use cluster::{EngineCluster, ReadyWhen};
pub use ice_serve::{Rt, TlsClient, TlsServer};
pub use peer::{Net, NetConfig};
pub use server::{Bound, Limits, Server};
pub use vfs_files::VfsFiles;
