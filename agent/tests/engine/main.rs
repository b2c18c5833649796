//! The container engine, driven through its ttrpc service over Unix sockets, with containers made
//! of this machine's busybox. Needs root, cgroup v2 and overlayfs: without them every test says so
//! and does nothing, unless BULKHEAD_LAB=1 makes that an error.
#![allow(missing_docs)]

mod compare;
mod control;
mod escapes;
mod exec;
mod hooks;
mod identity;
mod image;
mod isolation;
mod leaks;
mod lifecycle;
mod limits;
mod mounts;
mod namespaces;
mod seccomp;
mod stdio;
mod support;
mod users;
