//! A stand-in for `bulkhead-vmm` whose guest is a process: for tests of the daemon that are about many pods
//! and not about VMs. To the daemon it is the program that `vmm` of its configuration names, and speaks the
//! same protocol; for each pod there is the agent's engine and service, as in a guest, as PID 1 of a pid
//! namespace of its own.
//!
//! | in a VM | here |
//! |---|---|
//! | the guest's kernel | namespaces: pid, mount, network, uts, ipc, cgroup |
//! | vsock | the connections themselves, accepted where the VMM would |
//! | disks in slots | loop devices, shown in a directory |
//! | the agent's clock, its sysctls that no namespace has | the host's: the clock is not set |
//!
//! It isolates nothing from the host and has no network. The agent of real guests, `bulkhead-agent`, has no part
//! in this and no switch for it: here is another `main` around the same library.

mod agent;
mod disks;
mod vmm;

use bulkhead_agent::init;
use std::process::ExitCode;

/// The first argument of a process that is to be the agent.
const AGENT: &str = "agent";
/// Where the disks are shown, in the mount namespace of the pod.
const DISKS: &str = "/run/disks";

fn main() -> ExitCode {
    if init::is_requested() {
        return init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [] => vmm::run(),
        [word, listener, announcement] if word == AGENT => agent::run(listener, announcement),
        _ => Err(anyhow::anyhow!("It takes no arguments")),
    };
    match result {
        Ok(reason) => ExitCode::from(reason.status()),
        Err(error) => {
            eprintln!("bulkhead-vmm-process: {error:#}");
            ExitCode::from(bulkhead_vmm_api::ExitReason::StartFailed.status())
        }
    }
}
