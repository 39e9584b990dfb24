//! What the C library's allocator keeps of memory that was given back to it.
//!
//! A start, a scan of everything and a checkpoint need much memory for a while, in pieces between which longer-lived ones
//! lie. glibc keeps all of it for later; here it goes back to the system. Elsewhere both do nothing.

/// Parts into which glibc divides its heap at most. By default eight for each processor, and each holds on to what the
/// threads that use it needed once.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 4;

/// To be called before threads are started: keeps the heap together.
pub fn keep_together() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number, under the allocator's own lock. That it refuses changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}

/// Gives unused memory back to the system. Takes milliseconds for each 100 MB of heap, during which other threads wait that
/// allocate from the same part of it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: works on free memory only, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
