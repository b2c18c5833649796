//! The agent in the guest: a container engine for one pod, and what PID 1 needs around it.
//!
//! | module | owns |
//! |---|---|
//! | [`engine`] | the containers: one actor each, their processes, exits and events |
//! | [`spec`] | the edge: an OCI runtime specification becomes a checked [`init::Plan`] |
//! | [`init`] | the other side of a spawn: from a fresh process to the program's `execve` |
//! | [`streams`] | byte streams between processes and the host |
//! | [`pod`] | `Configure`: the scratch disk, files, sysctls, clock |
//! | [`disk`] | finding a disk by its serial, waiting until something is bound to it |
//! | [`service`] | the ttrpc service, a thin layer over [`engine`] and [`pod`] |
//! | [`guest`] | what only PID 1 of a guest does: early mounts, announcement, logging |
//! | [`seccomp`] | a seccomp profile becomes a filter |
//! | [`sys`] | system calls that have no safe wrapper |
//!
//! The engine runs wherever there are cgroup v2 and overlayfs: its tests need no VM. What stands
//! behind an image or the scratch space is a [`engine::Backing`].
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod blocking;
pub mod cgroup;
pub mod deadline;
pub mod disk;
pub mod engine;
pub mod error;
pub mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod guest;
pub mod id;
pub mod init;
pub mod pod;
pub mod reaper;
pub mod seccomp;
pub mod service;
pub mod spec;
pub mod streams;
pub mod sys;

pub use error::{Error, Result};
