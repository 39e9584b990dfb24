//! The log lane: an append-only file in segments, with group commit. The only FIFO between the core and the disk.
//!
//! # Files
//!
//! `data/log/` holds segments `<number>.log` and prepared empty ones, `spare-<number>`. A segment is a header block of
//! 4096 bytes and records, each framed by [`mod@format`] with a CRC-32C that is seeded by a salt drawn for every use of the
//! file, so that what a recycled file held before is never taken for a record. Records carry their index and the index up to
//! which everything was durable when they were written: this tells a torn tail, which is normal after a crash, from damage to
//! something that had been acknowledged, which is reported.
//!
//! # Durability
//!
//! [`LogLane::append`] only enqueues; the log thread writes what has come within about a millisecond, so that the end of
//! the process loses almost nothing, and [`LogLane::sync`] makes everything appended before it durable with one `fdatasync`,
//! shared by all who wait at that moment.
//!
//! **After a failed write or sync nothing that the operating system buffered is trusted**: it may have dropped the pages and
//! reported the error once. The lane therefore keeps every record in memory until a sync has covered it. When writing
//! or syncing fails the lane is *broken*: every sync fails with the reason, and appended records pile up in memory, which
//! [`LogLane::backlog`] shows. Once a second, and at [`LogLane::reopen`], it begins a new segment and writes there again
//! everything that no sync had covered. If that and its sync succeed the lane is whole, with no record missing; the new segment
//! supersedes the end of the old one, and recovery reads it so. No checkpoint is needed. If the process ends while the lane is
//! broken, what was not covered may be lost, and none of it had been acknowledged.

pub mod format;
mod lane;
mod recover;
mod segments;
mod writer;

pub(crate) use segments::sync_dir;

pub use lane::{Backlog, FULL, Fault, LaneStats, LogLane, Options, SyncDone};
pub use recover::{Entry, Recovered, recover};
