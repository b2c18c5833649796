//! How the allocator is to behave.
#![allow(unsafe_code)] // The C library's allocator has no safe interface.

/// The most arenas. glibc makes one for each thread, up to eight for each CPU, and memory that is freed in one
/// serves no other; the daemon's many short-lived threads would fill all of them one after another.
const ARENAS: libc::c_int = 2;

/// Sets it, while there is one thread only.
pub(crate) fn prepare() {
    // SAFETY: sets a parameter of the allocator, and no other thread allocates yet. It refuses nothing but
    // unknown parameters.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}
