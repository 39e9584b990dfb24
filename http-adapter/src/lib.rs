//! HTTP bound to an icecluster node: the public API and the peer transport, on one port and on every runtime.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod api;
mod cluster;
pub mod files;
mod io;
mod peer;
mod places;
mod pump;
mod rt;
mod server;
mod tls;
mod vfs_files;

pub use api::path::RelPath;
pub use api::{ApiConfig, Cluster, router};
pub use cluster::{EngineCluster, ReadyWhen};
pub use peer::{Net, NetConfig};
pub use rt::Rt;
pub use server::{Bound, Limits, Server};
pub use tls::{TlsClient, TlsServer};
pub use vfs_files::VfsFiles;
