//! Running a virtual CPU.

use crate::error::Error;
use crate::machine::Machine;
use crate::seccomp;
use bulkhead_vmm_api::ExitReason;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

/// A vCPU's stack: the deepest call is a device's activation.
const STACK: usize = 256 * 1024;

// KVM_SYSTEM_EVENT_* (KVM API, 5).
const SYSTEM_SHUTDOWN: u32 = 1;
const SYSTEM_RESET: u32 = 2;
const SYSTEM_CRASH: u32 = 3;

/// Starts a thread for each vCPU; it enters the guest when all threads are `confined`.
///
/// # Errors
/// [`Error::Host`].
pub fn start(
    machine: &Arc<Machine>,
    vcpus: Vec<VcpuFd>,
    confined: &Arc<Barrier>,
) -> Result<(), Error> {
    for (index, mut vcpu) in vcpus.into_iter().enumerate() {
        let (machine, confined) = (Arc::clone(machine), Arc::clone(confined));
        std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK)
            .spawn(move || {
                machine.confine(seccomp::Thread::Vcpu);
                confined.wait();
                run(&machine, &mut vcpu);
            })
            .map_err(Error::host("start a thread"))?;
    }
    Ok(())
}

/// Runs a vCPU until the VM ends.
fn run(machine: &Machine, vcpu: &mut VcpuFd) {
    let now = monotonic_ns();
    // Only the first vCPU's time counts.
    let _ = machine
        .started_ns
        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    while !machine.verdict.is_decided() {
        step(machine, vcpu);
    }
}

/// Enters the guest once and serves what it wants.
fn step(machine: &Machine, vcpu: &mut VcpuFd) {
    let broken = |what: String| machine.verdict.decide(ExitReason::KvmError, what);
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => machine.mmio_read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => machine.mmio_write(address, data),
        Ok(VcpuExit::IoIn(port, data)) => machine.platform.read(port, data),
        Ok(VcpuExit::IoOut(port, data)) => machine.platform.write(port, data),
        Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Shutdown) => machine
            .verdict
            .decide(ExitReason::TripleFault, "A virtual CPU met a triple fault."),
        Ok(VcpuExit::SystemEvent(kind, _)) => system_event(machine, kind),
        Ok(VcpuExit::FailEntry(reason, cpu)) => broken(format!(
            "The processor refused to enter the guest (reason {reason:#x}, processor {cpu})."
        )),
        Ok(VcpuExit::InternalError) => {
            broken("KVM gave up on the guest: it met an instruction or a state that it cannot emulate.".to_owned());
        }
        Ok(exit) => {
            let text = format!(
                "KVM left the guest for a reason that the machine has no use for: {exit:?}."
            );
            broken(text);
        }
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
        Err(error) => broken(format!("KVM could not run a virtual CPU: {error}.")),
    }
}

fn system_event(machine: &Machine, kind: u32) {
    let (reason, text) = match kind {
        SYSTEM_SHUTDOWN => (ExitReason::GuestPowerOff, "The guest powered off."),
        SYSTEM_RESET => (ExitReason::GuestReset, "The guest asked for a reset."),
        SYSTEM_CRASH => (ExitReason::GuestPanic, "The guest said that it crashed."),
        _ => (
            ExitReason::KvmError,
            "KVM told of a system event that the machine does not know.",
        ),
    };
    machine.verdict.decide(reason, text);
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is negative, and nanoseconds since boot fit for 584 years.
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}
