//! Pods: their sandboxes, their containers, and what is remembered of them.
//!
//! [`Sandboxes`] is the node's set of pods. Each [`Sandbox`] is driven by one task (see
//! [`sandbox`]); it lives in a [`place::Place`], today always a virtual machine ([`vm`]), where an
//! agent runs its [`Container`]s. Intent is written to the [`store`] before it is acted upon.
//!
//! The crate knows nothing of gRPC services or images: the daemon resolves an image and hands over
//! its disk as an open file.

mod agent;
mod block;
mod cgroup;
mod config;
mod container;
mod disks;
mod error;
mod events;
mod exec;
mod forward;
mod id;
mod io;
mod limits;
mod names;
pub mod phases;
mod place;
mod record;
mod registry;
mod restore;
pub mod sandbox;
mod scratch;
mod spec;
mod stats;
mod store;
mod update;
mod vm;
mod volumes;

pub use config::{NodeConfig, RuntimeConfig, SeccompDefault, VmmUsers};
pub use container::{Container, ContainerImage};
pub use error::{Kind, SandboxError};
pub use events::{BACKLOG, EventKind, PodEvent};
pub use exec::{ExecOutput, ExecRequest, Execution, Terminal};
pub use io::{OutputChunk, StreamKind, Viewer};
pub use record::{
    ContainerRecord, ContainerState, ExitRecord, FileDaemonRecord, SandboxRecord, SandboxState,
    VmSize,
};
pub use registry::Sandboxes;
pub use sandbox::Sandbox;
pub use vm::kvm;
pub use volumes::FileDaemonGauges;

/// What pods and containers use.
pub mod figures {
    pub use crate::stats::{ContainerFigures, GuestFigures, PodFigures};
    pub use bulkhead_agent_api::agent::{
        ContainerStats, CpuStats, InterfaceCounters, IoStats, MemoryStats, Pressure, PressureTimes,
        VolumeFigures, WritableLayer,
    };
    pub use bulkhead_agent_api::cgroup::figures as of_cgroup;
}

/// The result of this crate's functions.
pub type Result<T, E = SandboxError> = std::result::Result<T, E>;
