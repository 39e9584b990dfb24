//! Whole icecluster clusters in one process, one thread, one seed.
//!
//! See `docs/simulator.md` for how to use it and how it is built. In short: a [`plan::Plan`] says what users do and what
//! goes wrong; [`draw`] makes one from a seed and a [`profile`]; [`run`] carries it out in a [`world::World`] of simulated
//! machines that drive real `ice_core::node::Node`s; the judges ([`judge`], [`ledger`], [`reference`], and the promise
//! checks spread over [`world`]) say what is wrong; [`shrink`] makes a failing plan small.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bugs;
pub mod cli;
pub mod content;
mod control;
pub mod disk;
pub mod draw;
mod exec;
pub mod expect;
mod found;
pub mod fs;
pub mod host;
pub mod judge;
pub mod ledger;
pub mod net;
pub mod plan;
pub mod plane;
pub mod profile;
pub mod queue;
pub mod reference;
pub mod replay;
pub mod rng;
pub mod run;
mod scan;
pub mod show;
pub mod shrink;
pub mod sometimes;
mod user;
pub mod world;
