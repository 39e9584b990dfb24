//! What the adapters share that listen on sockets: a runtime without its type, hyper's view of a stream, TLS.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod io;
mod rt;
mod tls;

pub use io::{HyperExecutor, HyperIo, HyperTimer, Idle};
pub use rt::{AnyListener, Rt};
pub use tls::{TlsClient, TlsServer, random};
