//! The control plane on the network: etcd's v3 API, and DeCube's REST and gRPC, over what a node offers as
//! [`ice_host::control::ControlPlane`]. Works on both runtimes.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod authority;
mod deadline;
pub mod decube;
pub mod etcd;
mod gate;
mod health;
pub mod jwt;
pub mod listen;
mod password;
mod reflection;

/// The wire's types, compiled from the files in `proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/server/all.rs"));
}
