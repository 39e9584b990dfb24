//! The programs `icecluster`, `icectl` and `icesim`: the only place that picks a runtime and wires adapters.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod args;
pub mod ctl;
pub mod daemon;
pub mod dev;
mod disks;
mod faces;
pub mod logging;
pub mod program;
pub mod start;
