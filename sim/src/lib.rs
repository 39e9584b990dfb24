//! Whole icecluster clusters in one process, one thread, one seed.
//!
//! See `docs/simulator.md` for how to use it and how it is built.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod cli;
