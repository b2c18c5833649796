//! Bulkhead's virtual machine monitor: one process per pod, one fixed machine per process.
//!
//! The way of a VM through this crate:
//!
//! 1. [`config`] takes the descriptors named by the [`bulkhead_vmm_api::VmmConfig`] and checks them;
//!    [`cage`] gives up everything else.
//! 2. [`machine`] maps guest memory, loads the kernel, writes the tables, creates the vCPUs and the
//!    row of virtio devices, whose shape never changes afterwards.
//! 3. [`vcpu`] runs each virtual CPU on a thread of its own; [`events`] serves the device queues.
//! 4. [`control`] answers the daemon: what stands behind a device is bound here.
//! 5. Each thread takes its filter of system calls ([`seccomp`]) before the guest's first instruction.
//! 6. Whoever finds the VM's end first tells [`verdict`]; `main` prints it and exits.
//!
//! [`virtio`] holds the status machine and the queues, knowing neither device nor transport;
//! [`devices`] holds the devices, knowing no transport.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod cage;
pub mod config;
pub mod control;
pub mod devices;
pub mod error;
pub mod events;
pub mod exits;
pub mod gate;
pub mod machine;
pub mod rate;
pub mod seccomp;
pub mod sync;
pub mod vcpu;
pub mod verdict;
pub mod virtio;

pub use error::Error;
