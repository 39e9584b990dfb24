//! What systems do differently. Everything else of the volume is plain POSIX.
//!
//! `linux` uses what Linux has. `other` does with what other systems have: it walks paths component by component, looks before it
//! renames, copies by reading and writing, finds direct edits by comparing now and then, and knows no extended attributes.
//! With the feature `portable` it is also built on Linux, so that the volume's tests run on it.

#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod linux;
#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub(crate) use linux::*;

#[cfg(any(not(target_os = "linux"), feature = "portable"))]
mod other;
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
pub(crate) use other::*;

mod objects;
pub(crate) use objects::*;

/// One entry of a directory as it stands on disk.
pub(crate) struct Line {
    pub(crate) name: Vec<u8>,
    pub(crate) disk: u64,
    pub(crate) kind: rustix::fs::FileType,
    /// Go on from here after it.
    pub(crate) next: u64,
}

/// Type and permission bits, wherever `mode_t` is shorter.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) fn mode_of(st: &rustix::fs::Stat) -> u32 {
    st.st_mode as u32
}

/// Permission bits for a call.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) fn mode(bits: u32) -> rustix::fs::Mode {
    rustix::fs::Mode::from_raw_mode(bits as rustix::fs::RawMode)
}

/// The type in a mode.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) fn type_of(mode: u32) -> rustix::fs::FileType {
    rustix::fs::FileType::from_raw_mode(mode as rustix::fs::RawMode)
}

/// The set-group-ID bit.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) const S_ISGID: u32 = libc::S_ISGID as u32;
/// The bits of the type.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) const S_IFMT: u32 = libc::S_IFMT as u32;
/// A directory.
#[allow(clippy::unnecessary_cast, reason = "its length differs between systems")]
pub(crate) const S_IFDIR: u32 = libc::S_IFDIR as u32;
