//! What a hostile driver can put into a queue, once for every device: each case goes through a window's
//! registers and a real queue, and after each the device must work again once it has been reset.

use super::{FIRST_END, INDIRECT, NEXT, Ring, SECOND_END, WRITE, ram};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::mmio::{Causes, Pin, Window};
use crate::virtio::notify::Notifier;
use crate::virtio::status::{Core, NEEDS_RESET};
use std::sync::Arc;

/// Where the queues are, 64 KiB each.
const QUEUES: u64 = 0x1_0000;
/// Room for buffers, across the border of two mappings that touch.
const BUFFER: u64 = 0xf_f000;
/// An indirect table.
const TABLE: u64 = 0xa_0000;

/// What must come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The chain is used.
    Served,
    /// The device asks for a reset.
    Reset,
    /// Either.
    Any,
}

type Attack = fn(&mut Ring);

/// Chains of writable buffers that make sense, and things that make none.
const CASES: &[(&str, Outcome, Attack)] = &[
    ("one buffer", Outcome::Served, |r| {
        r.add(&[(BUFFER, 64, true)]);
    }),
    ("two buffers", Outcome::Served, |r| {
        r.add(&[(BUFFER, 4096, true), (BUFFER + 8192, 64, true)]);
    }),
    ("across mappings that touch", Outcome::Served, |r| {
        r.add(&[(0xf_ff00, 0x200, true)]);
    }),
    ("no length", Outcome::Served, |r| {
        r.add(&[(BUFFER, 0, true)]);
    }),
    ("a table of its own", Outcome::Served, |r| {
        r.descriptor_at(TABLE, 0, BUFFER, 64, WRITE, 0);
        indirect(r, TABLE, 16, INDIRECT);
    }),
    ("a loop of one", Outcome::Reset, |r| {
        r.descriptor(0, BUFFER, 64, WRITE | NEXT, 0);
        r.publish(0);
    }),
    ("a loop of two", Outcome::Reset, |r| {
        r.descriptor(0, BUFFER, 64, WRITE | NEXT, 1);
        r.descriptor(1, BUFFER, 64, WRITE | NEXT, 0);
        r.publish(0);
    }),
    ("a loop in a table", Outcome::Reset, |r| {
        r.descriptor_at(TABLE, 0, BUFFER, 64, WRITE | NEXT, 0);
        indirect(r, TABLE, 16, INDIRECT);
    }),
    ("a table in a table", Outcome::Reset, |r| {
        r.descriptor_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
        indirect(r, TABLE, 16, INDIRECT);
    }),
    ("a table that goes on", Outcome::Reset, |r| {
        indirect(r, TABLE, 16, INDIRECT | NEXT);
    }),
    ("an empty table", Outcome::Reset, |r| {
        indirect(r, TABLE, 0, INDIRECT);
    }),
    ("a table of half an entry", Outcome::Reset, |r| {
        indirect(r, TABLE, 24, INDIRECT);
    }),
    ("a table beyond memory", Outcome::Reset, |r| {
        indirect(r, SECOND_END - 8, 16, INDIRECT);
    }),
    ("a table around the end", Outcome::Reset, |r| {
        indirect(r, u64::MAX - 7, 16, INDIRECT);
    }),
    ("an endless table", Outcome::Reset, |r| {
        indirect(r, TABLE, !15, INDIRECT);
    }),
    ("more buffers than the queue is long", Outcome::Reset, |r| {
        let size = r.layout.size;
        for index in 0..=size {
            r.descriptor_at(TABLE, index, BUFFER, 1, WRITE | NEXT, index + 1);
        }
        r.descriptor_at(TABLE, size + 1, BUFFER, 1, WRITE, 0);
        indirect(r, TABLE, 16 * (u32::from(size) + 2), INDIRECT);
    }),
    ("to be read after one to be written", Outcome::Reset, |r| {
        r.add(&[(BUFFER, 64, true), (BUFFER, 64, false)]);
    }),
    ("into the hole", Outcome::Reset, |r| {
        r.add(&[(FIRST_END - 8, 16, true)]);
    }),
    ("in the hole", Outcome::Reset, |r| {
        r.add(&[(FIRST_END, 16, true)]);
    }),
    ("beyond the end", Outcome::Reset, |r| {
        r.add(&[(SECOND_END - 8, 16, true)]);
    }),
    ("around the end of all addresses", Outcome::Reset, |r| {
        r.add(&[(u64::MAX - 7, 16, true)]);
    }),
    ("all of memory", Outcome::Reset, |r| {
        r.add(&[(0, u32::MAX, true)]);
    }),
    ("a next beyond the table", Outcome::Reset, |r| {
        r.descriptor(0, BUFFER, 64, WRITE | NEXT, r.layout.size);
        r.publish(0);
    }),
    ("a head beyond the table", Outcome::Reset, |r| {
        r.publish(r.layout.size);
    }),
    ("a head far beyond the table", Outcome::Reset, |r| {
        r.publish(u16::MAX);
    }),
    ("an index too far ahead", Outcome::Reset, |r| {
        r.set_available(r.layout.size + 1);
    }),
    ("an index that goes back", Outcome::Reset, |r| {
        r.set_available(u16::MAX);
    }),
    ("one head twice", Outcome::Any, |r| {
        let head = r.add(&[(BUFFER, 64, true)]);
        r.publish(head);
    }),
    ("flags without meaning", Outcome::Any, |r| {
        r.descriptor(0, BUFFER, 64, 0xfff8 | WRITE, 0);
        r.publish(0);
    }),
    ("an index that jumps over old heads", Outcome::Any, |r| {
        r.add(&[(BUFFER, 64, true)]);
        r.set_available(r.layout.size);
    }),
];

fn indirect(ring: &mut Ring, table: u64, length: u32, flags: u16) {
    ring.descriptor(0, table, length, flags, 1);
    ring.publish(0);
}

/// A device in its window with a driver that sets up all queues.
struct Bench<D> {
    ram: GuestRam,
    window: Window,
    device: Arc<D>,
}

impl<D: Device + 'static> Bench<D> {
    fn new(make: impl FnOnce(GuestRam, Arc<Notifier>) -> D) -> Self {
        let ram = ram();
        let causes = Arc::new(Causes::new(Arc::new(Pin::new(Box::new(|_| {}))), 0));
        let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&causes))));
        let device = Arc::new(make(ram.clone(), Arc::clone(&notifier)));
        let shared: Arc<dyn Device> = Arc::<D>::clone(&device);
        Self {
            window: Window::new(Core::new(shared, notifier, ram.clone()), causes),
            ram,
            device,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        let mut status = [0; 4];
        self.window.read(0x70, &mut status);
        u32::from_le_bytes(status)
    }

    /// Resets the device and starts it; the rings are as if nothing had been.
    fn start(&mut self) -> Vec<Ring> {
        for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1)] {
            self.write(offset, value);
        }
        self.write(0x70, 11);
        let sizes = self.device.queue_sizes().to_vec();
        let mut rings = Vec::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let base = QUEUES + index as u64 * 0x1_0000;
            super::put(&self.ram, base, &[0; 0xc000]);
            self.write(0x30, index as u32);
            self.write(0x38, size.into());
            for (register, address) in [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)]
            {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            rings.push(Ring::new(&self.ram, base, size));
        }
        self.write(0x70, 15);
        assert_eq!(self.status(), 15);
        rings
    }
}

/// Lets a hostile driver loose on one queue of a device.
pub(crate) fn check<D: Device + 'static>(
    make: impl FnOnce(GuestRam, Arc<Notifier>) -> D,
    queue: usize,
    serve: impl Fn(&D),
) {
    let mut bench = Bench::new(make);
    for (name, outcome, attack) in CASES {
        let mut rings = bench.start();
        attack(&mut rings[queue]);
        serve(&bench.device);
        let needs_reset = bench.status() & NEEDS_RESET != 0;
        let served = rings[queue].used().is_some();
        match outcome {
            Outcome::Served => assert!(served && !needs_reset, "{name}"),
            Outcome::Reset => assert!(needs_reset && !served, "{name}"),
            Outcome::Any => assert!(needs_reset || served, "{name}"),
        }
        // Until it is reset it does nothing more.
        rings[queue].used();
        if needs_reset {
            rings[queue].add(&[(BUFFER, 64, true)]);
            serve(&bench.device);
            assert_eq!(rings[queue].used(), None, "{name}");
        }
        let mut rings = bench.start();
        rings[queue].add(&[(BUFFER, 64, true)]);
        serve(&bench.device);
        assert!(rings[queue].used().is_some(), "{name}, after a reset");
        assert_eq!(bench.status(), 15, "{name}, after a reset");
    }
}
