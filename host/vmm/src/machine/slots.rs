//! Putting virtio devices into their windows, one after the other.

use super::layout::{FIRST_VIRTIO_GSI, GSI_COUNT, virtio_gsi, virtio_window};
use super::memory::GuestRam;
use crate::devices::blk::Disk;
use crate::error::Error;
use crate::events::{Events, Source};
use crate::virtio::Device;
use crate::virtio::mmio::{Causes, Pin, QUEUE_NOTIFY, Window};
use crate::virtio::notify::Notifier;
use crate::virtio::status::Core;
use bulkhead_vmm_api::DiskSlot;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The windows under construction.
pub(super) struct Slots<'a> {
    vm: &'a Arc<VmFd>,
    ram: &'a GuestRam,
    events: &'a Arc<Events>,
    pins: Vec<Arc<Pin>>,
    windows: Vec<Mutex<Window>>,
    /// What each window is called in the ACPI tables.
    names: Vec<String>,
}

impl<'a> Slots<'a> {
    pub(super) fn new(vm: &'a Arc<VmFd>, ram: &'a GuestRam, events: &'a Arc<Events>) -> Self {
        let pins = (FIRST_VIRTIO_GSI..GSI_COUNT)
            .map(|gsi| {
                let vm = Arc::clone(vm);
                // An error would mean that the VM is gone.
                let set = move |high| {
                    let _ = vm.set_irq_line(gsi, high);
                };
                Arc::new(Pin::new(Box::new(set)))
            })
            .collect();
        Self {
            vm,
            ram,
            events,
            pins,
            windows: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Makes a device, puts it into the next window, and has KVM signal its notifications.
    pub(super) fn add<D: Device + 'static>(
        &mut self,
        make: impl FnOnce(GuestRam, Arc<Notifier>) -> Result<D, Error>,
    ) -> Result<Arc<D>, Error> {
        let register = virtio_window(self.windows.len()) + QUEUE_NOTIFY;
        let device = self.place(make)?;
        signal_notifications(self.vm, device.as_ref(), register)?;
        Ok(device)
    }

    /// Makes a device and puts it into the next window. Notifications come as writes to its register.
    fn place<D: Device + 'static>(
        &mut self,
        make: impl FnOnce(GuestRam, Arc<Notifier>) -> Result<D, Error>,
    ) -> Result<Arc<D>, Error> {
        let index = self.windows.len();
        let pin = (virtio_gsi(index) - FIRST_VIRTIO_GSI) as usize;
        let pin = self
            .pins
            .get(pin)
            .ok_or_else(|| Error::Config("there are more devices than pins".to_owned()))?;
        // Devices of one pin lie as many windows apart as there are pins.
        let bit = (index / self.pins.len()) as u32;
        let causes = Arc::new(Causes::new(Arc::clone(pin), bit));
        let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&causes))));
        let device = Arc::new(make(self.ram.clone(), Arc::clone(&notifier))?);
        let core = Core::new(
            Arc::clone(&device) as Arc<dyn Device>,
            notifier,
            self.ram.clone(),
        );
        self.windows.push(Mutex::new(Window::new(core, causes)));
        self.names.push(index.to_string());
        Ok(device)
    }

    /// Has the device thread serve a device when it is kicked.
    pub(super) fn serve<D: Device + 'static>(
        &self,
        device: &Arc<D>,
        serve: impl Fn(&D) + Send + Sync + 'static,
    ) -> Result<Source, Error> {
        let served = Arc::clone(device);
        // SAFETY: the kick is open as long as the device, and the handler holds the device.
        let kick = unsafe { BorrowedFd::borrow_raw(device.kick().as_raw_fd()) };
        self.events.add(kick, Arc::new(move || serve(&served)))
    }

    /// The row of disk slots, read-only ones first. Each is called by its serial, by which the guest
    /// finds a slot that has no driver yet.
    pub(super) fn disks(&mut self, read_only: u8, read_write: u8) -> Result<Vec<Arc<Disk>>, Error> {
        let slots = (0..read_only)
            .map(DiskSlot::ReadOnly)
            .chain((0..read_write).map(DiskSlot::ReadWrite));
        slots
            .map(|slot| {
                let disk = self.place(|_, notifier| Disk::new(slot, notifier))?;
                if let Some(name) = self.names.last_mut() {
                    *name = slot.serial();
                }
                Ok(disk)
            })
            .collect()
    }

    pub(super) fn finish(self) -> (Vec<Mutex<Window>>, Vec<String>) {
        (self.windows, self.names)
    }
}

/// Has KVM turn the driver's notifications into kicks: by queue number for a device that tells its queues
/// apart.
fn signal_notifications(vm: &VmFd, device: &dyn Device, register: u64) -> Result<(), Error> {
    let address = IoEventAddress::Mmio(register);
    let failed = || Error::kvm("signal a device's notifications");
    // A device has few queues.
    let queues = 0..device.queue_sizes().len() as u16;
    if queues
        .clone()
        .all(|queue| std::ptr::eq(device.kick_of(queue), device.kick()))
    {
        return vm
            .register_ioevent(device.kick(), &address, NoDatamatch)
            .map_err(failed());
    }
    for queue in queues {
        vm.register_ioevent(device.kick_of(queue), &address, u32::from(queue))
            .map_err(failed())?;
    }
    Ok(())
}

/// The disk slots' notifications, which KVM signals from a slot's first binding on.
///
/// To have KVM signal them waits for a grace period of the host's kernel, for each slot, and most slots are never
/// used. Until then a write to the register leaves the guest and kicks the device all the same.
pub(super) struct Doorbells {
    vm: Arc<VmFd>,
    /// The window of the first slot.
    first: usize,
    signalled: Vec<AtomicBool>,
}

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbells").finish_non_exhaustive()
    }
}

impl Doorbells {
    /// For so many slots from the next window on.
    pub(super) fn new(slots: &Slots<'_>, count: usize) -> Self {
        Self {
            vm: Arc::clone(slots.vm),
            first: slots.windows.len(),
            signalled: (0..count).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Has KVM signal the notifications of slot number `index`, which is this disk. Once it does this does nothing.
    pub(super) fn signal(&self, index: usize, disk: &Disk) -> Result<(), Error> {
        let Some(signalled) = self.signalled.get(index) else {
            return Ok(());
        };
        if !signalled.load(Ordering::Relaxed) {
            let register = virtio_window(self.first + index) + QUEUE_NOTIFY;
            signal_notifications(&self.vm, disk, register)?;
            signalled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
