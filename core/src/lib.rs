//! icecluster's protocol: one deterministic state machine, without clock, randomness, threads or I/O.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod action;
pub mod event;
pub mod ids;
pub mod limits;
pub mod message;
pub mod op;
pub mod rng;
pub mod time;
pub mod tree;
