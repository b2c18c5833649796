//! The machine: built once, complete when it boots, never changing shape.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod generation;
pub mod image;
pub mod layout;
pub mod memory;
pub mod platform;
mod slots;
mod volumes;

use crate::config::Resources;
use crate::devices::balloon::Balloon;
use crate::devices::blk::{Disk, Service as DiskService};
use crate::devices::net::Net;
use crate::devices::rng::Rng;
use crate::devices::serial::Serial;
use crate::devices::vsock::Vsock;
use crate::error::{Error, chain};
use crate::events::Events;
use crate::exits::Exits;
use crate::gate::Gate;
use crate::seccomp;
use crate::sync::lock;
use crate::verdict::Verdict;
use crate::virtio::mmio::Window;
use bulkhead_vmm_api::{DiskSlot, ExitReason, queue_pairs};
use generation::Generation;
use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use layout::{GENERATION_GSI, HOLE_START, MMIO_BASE, MMIO_STRIDE, SERIAL_GSI};
use memory::GuestRam;
use platform::Platform;
use slots::{Doorbells, Slots};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use volumes::Volumes;

/// The machine, without its vCPUs.
#[derive(Debug)]
pub struct Machine {
    /// The serial console.
    pub serial: Arc<Serial>,
    /// The ports.
    pub platform: Platform,
    /// The disk slots.
    pub disks: Vec<Arc<Disk>>,
    /// The vsock device.
    pub vsock: Arc<Vsock>,
    /// The entropy device.
    pub rng: Arc<Rng>,
    /// The balloon, which gives free memory back.
    pub balloon: Arc<Balloon>,
    /// The network interfaces.
    pub nets: Vec<Arc<Net>>,
    /// The shared volumes, if there can be any.
    pub volumes: Option<Volumes>,
    /// The VM generation ID.
    pub generation: Generation,
    /// Where the vCPUs, the device thread and the network's threads stop while the VM is paused.
    pub gate: Arc<Gate>,
    /// Exits of each vCPU.
    pub exits: Vec<Exits>,
    /// What the device thread waits for.
    pub events: Arc<Events>,
    /// How the VM ended.
    pub verdict: Arc<Verdict>,
    /// CLOCK_MONOTONIC in nanoseconds when the first vCPU entered the guest; 0 before that.
    pub started_ns: AtomicU64,
    windows: Vec<Mutex<Window>>,
    /// Accesses to the registers of each window.
    accesses: Vec<AtomicU64>,
    doorbells: Doorbells,
    // The VM goes after everything that uses it, its memory last.
    _vm: Arc<VmFd>,
    ram: GuestRam,
}

/// What remains of the configuration for others.
#[derive(Debug)]
pub struct Built {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Its vCPUs, the first one at the kernel's entry.
    pub vcpus: Vec<VcpuFd>,
    /// The listening control socket.
    pub control: std::os::fd::OwnedFd,
    /// What serves the disk slots.
    pub disk_service: DiskService,
}

/// Builds the machine that the configuration describes.
///
/// # Errors
/// [`Error`].
pub fn build(resources: Resources, verdict: Arc<Verdict>) -> Result<Built, Error> {
    // SAFETY: the descriptor is owned and given away here.
    let kvm = unsafe { Kvm::from_raw_fd(resources.kvm.into_raw_fd()) };
    check(&kvm)?;
    let vm = kvm.create_vm().map_err(Error::kvm("create a VM"))?;
    let ram = memory::map(resources.memory_mib)?;
    memory::attach(&vm, &ram)?;
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(Error::kvm("set the identity map's address"))?;
    vm.set_tss_address(layout::TSS)
        .map_err(Error::kvm("set the task state segment's address"))?;
    hide_performance_counters(&vm);
    vm.create_irq_chip()
        .map_err(Error::kvm("create the interrupt controllers"))?;
    let vm = Arc::new(vm);

    let kernel = image::load_kernel(&ram, &resources.kernel)?;
    let low_end = (resources.memory_mib << 20).min(HOLE_START);
    let initrd = image::load_initrd(&ram, &resources.initrd, low_end, kernel)?;
    boot::write_start_info(&ram, resources.memory_mib, &resources.cmdline, initrd)?;

    let events = Arc::new(Events::new()?);
    let mut slots = Slots::new(&vm, &ram, &events);
    let vsock = slots.add(|ram, notifier| Vsock::new(ram, notifier, resources.vsock))?;
    slots.serve(&vsock, Vsock::serve)?;
    let device = Arc::clone(&vsock);
    events.add(vsock.sockets(), Arc::new(move || device.serve()))?;
    let rng = slots.add(Rng::new)?;
    slots.serve(&rng, Rng::serve)?;
    let balloon = slots.add(Balloon::new)?;
    slots.serve(&balloon, Balloon::serve)?;
    let pairs = queue_pairs(resources.vcpus);
    let mut vhost = resources.vhost_net.into_iter();
    let nets = (0..resources.network_interfaces)
        .map(|_| {
            let vhost = vhost.by_ref().take(pairs).collect();
            slots.add(|ram, notifier| Net::new(ram, notifier, pairs, vhost))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let volumes = match resources.shared_volumes {
        true => Some(Volumes::new(&mut slots)?),
        false => None,
    };
    let count = usize::from(resources.read_only_slots) + usize::from(resources.read_write_slots);
    let doorbells = Doorbells::new(&slots, count);
    let disks = slots.disks(resources.read_only_slots, resources.read_write_slots)?;
    let mut disk_service = DiskService::new(ram.clone(), disks.clone(), None)?;
    let (windows, names) = slots.finish();
    acpi::write(&ram, resources.vcpus, &names)?;

    let serial = Arc::new(Serial::new(pulse(&vm, SERIAL_GSI)));
    let generation = Generation::new(ram.clone(), pulse(&vm, GENERATION_GSI))?;
    let net_threads = nets.len() * pairs;
    let gate = Arc::new(Gate::new(usize::from(resources.vcpus) + 2 + net_threads)?);
    for net in &nets {
        net.wake_by(gate.ring())?;
    }
    let ringing = Arc::clone(&gate);
    // The thread only has to come back from waiting; it stops before it serves anything else.
    events.add(
        gate.ring(),
        Arc::new(move || {
            ringing.pass();
        }),
    )?;
    disk_service.wake_by(gate.ring())?;
    let vcpus = vcpus(&kvm, &vm, resources.vcpus, kernel)?;
    let machine = Machine {
        platform: Platform::new(Arc::clone(&serial), Arc::clone(&verdict)),
        serial,
        disks,
        vsock,
        rng,
        balloon,
        nets,
        volumes,
        generation,
        gate,
        exits: vcpus.iter().map(|_| Exits::default()).collect(),
        events,
        verdict,
        started_ns: AtomicU64::new(0),
        accesses: windows.iter().map(|_| AtomicU64::new(0)).collect(),
        windows,
        doorbells,
        _vm: vm,
        ram,
    };
    Ok(Built {
        machine: Arc::new(machine),
        vcpus,
        control: resources.control,
        disk_service,
    })
}

impl Machine {
    /// The guest reads memory that is not RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.window(address) {
            Some((window, offset)) => lock(window).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes memory that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((window, offset)) = self.window(address) {
            lock(window).write(offset, data);
        }
    }

    /// Has KVM signal a disk slot's notifications, which must be before its first binding.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn signal_disk(&self, slot: DiskSlot) -> Result<(), Error> {
        let mut disks = self.disks.iter().enumerate();
        match disks.find(|(_, disk)| disk.slot() == slot) {
            Some((index, disk)) => self.doorbells.signal(index, disk),
            None => Ok(()),
        }
    }

    /// How often the guest's accesses to each virtio device's registers came here, in the order of the
    /// windows: vsock, rng, balloon, the network interfaces, the shared volumes if there are such, the disks.
    pub fn register_accesses(&self) -> impl Iterator<Item = u64> {
        self.accesses
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// How many bytes of guest memory the host holds; 0 if it does not say.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        memory::resident(&self.ram).unwrap_or(0)
    }

    /// How many threads serve its devices.
    #[must_use]
    pub fn device_threads(&self) -> usize {
        2 + self.nets.iter().map(|net| net.pairs()).sum::<usize>()
    }

    /// Whether the host's kernel moves the network interfaces' packets.
    #[must_use]
    pub fn uses_vhost(&self) -> bool {
        self.nets.iter().any(|net| net.uses_vhost())
    }

    /// Confines the calling thread's system calls; a thread that cannot be confined ends the VM.
    pub fn confine(&self, thread: seccomp::Thread) {
        let vhost = self.uses_vhost() && thread != seccomp::Thread::Disks;
        if let Err(error) = seccomp::confine_with(thread, vhost) {
            let text = format!("{}.", chain(&error));
            self.verdict.decide(error.reason(), text);
        }
    }

    fn window(&self, address: u64) -> Option<(&Mutex<Window>, u64)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let index = usize::try_from(offset / MMIO_STRIDE).ok()?;
        self.accesses.get(index)?.fetch_add(1, Ordering::Relaxed);
        Some((self.windows.get(index)?, offset % MMIO_STRIDE))
    }
}

/// Starts the thread that serves the devices, once all threads are `confined`.
///
/// # Errors
/// [`Error::Host`].
pub fn serve_devices(machine: &Arc<Machine>, confined: &Arc<Barrier>) -> Result<(), Error> {
    let (machine, confined) = (Arc::clone(machine), Arc::clone(confined));
    std::thread::Builder::new()
        .name("devices".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            machine.confine(seccomp::Thread::Devices);
            confined.wait();
            loop {
                machine.gate.pass();
                if let Err(error) = machine.events.turn() {
                    let text = format!("The device thread stopped: {}.", chain(&error));
                    return machine.verdict.decide(ExitReason::Internal, text);
                }
            }
        })
        .map(drop)
        .map_err(Error::host("start a thread"))
}

/// Starts a thread for each pair of queues of each network interface, once all threads are `confined`.
///
/// # Errors
/// [`Error::Host`].
pub fn serve_network(machine: &Arc<Machine>, confined: &Arc<Barrier>) -> Result<(), Error> {
    for (number, net) in machine.nets.iter().enumerate() {
        for pair in 0..net.pairs() {
            let (net, machine) = (Arc::clone(net), Arc::clone(machine));
            let confined = Arc::clone(confined);
            std::thread::Builder::new()
                .name(format!("net{number}.{pair}"))
                .stack_size(64 * 1024)
                .spawn(move || {
                    machine.confine(seccomp::Thread::Net);
                    confined.wait();
                    serve_pair(&machine, &net, pair);
                })
                .map_err(Error::host("start a thread"))?;
        }
    }
    Ok(())
}

/// Serves a pair of queues as long as the VM lives.
fn serve_pair(machine: &Machine, net: &Net, pair: usize) {
    let mut more = false;
    loop {
        machine.gate.pass();
        more = match net.turn(pair, !more) {
            Ok(more) => more,
            Err(error) => {
                let text = format!("A network thread stopped: {}.", chain(&error));
                return machine.verdict.decide(ExitReason::Internal, text);
            }
        };
    }
}

/// Starts the thread that serves the disk slots, once all threads are `confined`.
///
/// # Errors
/// [`Error::Host`].
pub fn serve_disks(
    machine: &Arc<Machine>,
    mut service: DiskService,
    confined: &Arc<Barrier>,
) -> Result<(), Error> {
    let (machine, confined) = (Arc::clone(machine), Arc::clone(confined));
    std::thread::Builder::new()
        .name("disks".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            machine.confine(seccomp::Thread::Disks);
            confined.wait();
            loop {
                let served = if machine.gate.is_closed() {
                    service.rest(|| machine.gate.pass())
                } else {
                    service.turn()
                };
                if let Err(error) = served {
                    let text = format!("The disk thread stopped: {}.", chain(&error));
                    return machine.verdict.decide(ExitReason::Internal, text);
                }
            }
        })
        .map(drop)
        .map_err(Error::host("start a thread"))
}

/// Whether this KVM is what the machine needs.
fn check(kvm: &Kvm) -> Result<(), Error> {
    // The number has been 12 since Linux 2.6.22; another, or an error, means another kind of file.
    if kvm.get_api_version() != 12 {
        return Err(Error::KvmLacks("speak version 12 of its interface"));
    }
    for (cap, what) in [
        (Cap::UserMemory, "map memory into a guest"),
        (Cap::Irqchip, "emulate interrupt controllers"),
        (Cap::SetTssAddr, "place the task state segment"),
        (Cap::SetIdentityMapAddr, "place the identity map"),
        (Cap::Ioeventfd, "signal writes by eventfds"),
        (Cap::ExtCpuid, "tell what processor a guest can have"),
        (Cap::MpState, "start processors"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(Error::KvmLacks(what));
        }
    }
    Ok(())
}

/// Guests do not count events of the host's processor. CPUID says so too, so an older kernel
/// without the capability does no harm.
fn hide_performance_counters(vm: &VmFd) {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..kvm_enable_cap::default()
    };
    if let Some(first) = cap.args.first_mut() {
        *first = u64::from(KVM_PMU_CAP_DISABLE);
    }
    let _ = vm.enable_cap(&cap);
}

fn vcpus(kvm: &Kvm, vm: &VmFd, count: u8, kernel: image::Kernel) -> Result<Vec<VcpuFd>, Error> {
    let supported = cpuid::supported(kvm)?;
    let mut vcpus = Vec::with_capacity(usize::from(count));
    for id in 0..count {
        let vcpu = vm
            .create_vcpu(u64::from(id))
            .map_err(Error::kvm("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::of_vcpu(&supported, id, count)?)
            .map_err(Error::kvm("set a vCPU's CPUID"))?;
        boot::set_msrs(&vcpu)?;
        if id == 0 {
            boot::set_entry(&vcpu, kernel)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// An edge on an interrupt pin. An error would mean that the VM is gone.
fn pulse(vm: &Arc<VmFd>, gsi: u32) -> Box<dyn Fn() + Send + Sync> {
    let vm = Arc::clone(vm);
    Box::new(move || {
        let _ = vm.set_irq_line(gsi, true);
        let _ = vm.set_irq_line(gsi, false);
    })
}
