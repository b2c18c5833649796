//! System calls that have no safe wrapper elsewhere. All `unsafe` code of the crate is in this
//! folder, behind functions that are safe to call.

pub mod bpf;
pub mod copy;
pub mod fd;
pub mod ioctl;
pub mod mount;
pub mod net;
pub mod process;
pub mod quota;
pub mod seccomp;
pub mod spawn;
