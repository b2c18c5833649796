//! How the allocator is to behave.
#![allow(unsafe_code)] // The C library's allocator has no safe interface.

#[cfg(test)]
mod tests;

use std::time::Duration;
use tokio::sync::Notify;

/// The most arenas. glibc makes one for each thread, up to eight for each CPU, and memory that is freed in one
/// serves no other; the daemon's many short-lived threads would fill all of them one after another.
const ARENAS: libc::c_int = 2;
/// How much free memory may lie at an arena's end, bytes: glibc's own figure at first, which grows with the largest
/// block that was freed unless it is set. `malloc_trim` cuts the first arena only.
const END: libc::c_int = 128 << 10;
/// Pods often go in numbers, and their memory in one turn.
const TURN: Duration = Duration::from_secs(5);

static POD_GONE: Notify = Notify::const_new();

/// Sets it, while there is one thread only.
pub(crate) fn prepare() {
    // SAFETY: sets parameters of the allocator, and no other thread allocates yet. It refuses nothing but
    // unknown parameters.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, END);
    }
}

/// A pod has gone: much of what was allocated for it is free now.
pub(crate) fn pod_gone() {
    POD_GONE.notify_one();
}

/// Gives the node free memory back whenever pods have gone; the allocator by itself keeps what lies below
/// anything that is in use. Ends only with the runtime.
pub(crate) async fn give_back() {
    loop {
        POD_GONE.notified().await;
        tokio::time::sleep(TURN).await;
        // Fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}

fn trim() {
    // SAFETY: releases free pages only; the allocator locks its own state.
    unsafe { libc::malloc_trim(0) };
}
