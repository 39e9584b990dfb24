//! icecluster's protocol: one deterministic state machine, without clock, randomness, threads or I/O.
//!
//! Start reading at [`node::Node`].
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod action;
pub mod bug;
pub mod config;
pub mod control;
pub mod digest;
pub mod event;
pub mod ids;
pub mod kv;
pub mod limits;
mod member;
pub mod message;
mod mirror;
pub mod node;
pub mod op;
pub mod raft;
pub mod rng;
pub mod status;
pub mod time;
pub mod trace;
pub mod tree;
pub mod wire;
