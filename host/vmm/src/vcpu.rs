//! Running a virtual CPU.
//!
//! A vCPU stops at the machine's [`Gate`](crate::gate::Gate). To get one out of the guest its thread is sent
//! a signal, whose handler sets `immediate_exit` of the thread's own `kvm_run` (KVM API, 5): a signal that comes just before KVM_RUN
//! is then not lost.

use crate::error::Error;
use crate::exits::{Exit, Exits};
use crate::machine::Machine;
use crate::seccomp;
use bulkhead_vmm_api::ExitReason;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier, mpsc};

/// A vCPU's stack: the deepest call is a device's activation.
const STACK: usize = 256 * 1024;

// KVM_SYSTEM_EVENT_* (KVM API, 5).
const SYSTEM_SHUTDOWN: u32 = 1;
const SYSTEM_RESET: u32 = 2;
const SYSTEM_CRASH: u32 = 3;

/// The signal that gets a vCPU out of the guest.
pub const KICK: i32 = libc::SIGUSR1;

thread_local! {
    /// `immediate_exit` of this thread's vCPU.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Runs in the vCPU's thread, between any two instructions of it.
extern "C" fn kicked(_signal: i32) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the thread has set the pointer to a byte of its vCPU's `kvm_run`, which stays mapped
        // as long as the thread runs. The byte has no other alignment than one.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
}

/// The threads of the vCPUs, to be driven out of the guest.
#[derive(Debug)]
pub struct Threads {
    process: u32,
    threads: Vec<libc::pid_t>,
}

impl Threads {
    /// Has every vCPU leave the guest; it looks at the gate before it enters again.
    pub fn kick(&self) {
        // A thread that has ended, with the VM, is not there any more.
        for thread in &self.threads {
            // SAFETY: sends a signal, for which there is a handler, to a thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, self.process, *thread, KICK) };
        }
    }
}

/// Starts a thread for each vCPU; it enters the guest when all threads are `confined`.
///
/// # Errors
/// [`Error::Host`].
pub fn start(
    machine: &Arc<Machine>,
    vcpus: Vec<VcpuFd>,
    confined: &Arc<Barrier>,
) -> Result<Threads, Error> {
    handle_kicks()?;
    let (sender, ids) = mpsc::channel();
    for (index, mut vcpu) in vcpus.into_iter().enumerate() {
        let (machine, confined) = (Arc::clone(machine), Arc::clone(confined));
        let sender = sender.clone();
        std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK)
            .spawn(move || {
                // SAFETY: asks for the calling thread's own number.
                let _ = sender.send(unsafe { libc::gettid() });
                drop(sender);
                IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
                machine.confine(seccomp::Thread::Vcpu);
                confined.wait();
                let none = Exits::default();
                run(
                    &machine,
                    &mut vcpu,
                    machine.exits.get(index).unwrap_or(&none),
                );
                IMMEDIATE_EXIT.set(std::ptr::null_mut());
            })
            .map_err(Error::host("start a thread"))?;
    }
    drop(sender);
    Ok(Threads {
        process: std::process::id(),
        threads: ids.into_iter().collect(),
    })
}

fn handle_kicks() -> Result<(), Error> {
    // SAFETY: all zeroes are a valid value: no flags, nothing blocked while the handler runs.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = kicked as extern "C" fn(i32) as usize;
    // SAFETY: the handler only does what is allowed in one: it sets a byte. Without SA_RESTART, so that
    // KVM_RUN returns.
    match unsafe { libc::sigaction(KICK, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::host("handle a signal")(io::Error::last_os_error())),
    }
}

/// Runs a vCPU until the VM ends.
fn run(machine: &Machine, vcpu: &mut VcpuFd, exits: &Exits) {
    let now = monotonic_ns();
    // Only the first vCPU's time counts.
    let _ = machine
        .started_ns
        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    while !machine.verdict.is_decided() {
        // First this, then the gate: a kick in between is for a gate that is closed already.
        vcpu.set_kvm_immediate_exit(0);
        if machine.gate.pass() {
            // Tells a guest's watchdogs that it was not there for a while; a guest without kvm-clock
            // cannot be told.
            let _ = vcpu.kvmclock_ctrl();
            continue;
        }
        step(machine, vcpu, exits);
    }
}

/// Enters the guest once and serves what it wants.
fn step(machine: &Machine, vcpu: &mut VcpuFd, exits: &Exits) {
    let broken = |what: String| machine.verdict.decide(ExitReason::KvmError, what);
    let exit = vcpu.run();
    exits.count(match &exit {
        Ok(VcpuExit::MmioRead(..)) => Exit::MmioRead,
        Ok(VcpuExit::MmioWrite(..)) => Exit::MmioWrite,
        Ok(VcpuExit::IoIn(..)) => Exit::PortRead,
        Ok(VcpuExit::IoOut(..)) => Exit::PortWrite,
        Ok(VcpuExit::Intr) | Err(_) => Exit::Interrupted,
        Ok(_) => Exit::Other,
    });
    match exit {
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
