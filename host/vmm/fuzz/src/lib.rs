//! A driver that a fuzzer writes: it talks to a device through its window of registers and through queues
//! in plain memory, mostly as a driver should.

use arbitrary::{Arbitrary, Unstructured};
use bulkhead_vmm::machine::memory::GuestRam;
use bulkhead_vmm::virtio::Device;
use bulkhead_vmm::virtio::mmio::{Causes, Pin, Window};
use bulkhead_vmm::virtio::notify::Notifier;
use bulkhead_vmm::virtio::status::Core;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Two regions with a hole between them, the first one in two mappings that touch.
const RANGES: [(u64, usize); 3] = [
    (0, 0x10_0000),
    (0x10_0000, 0x10_0000),
    (0x40_0000, 0x20_0000),
];
/// Where the queues are; 64 KiB each.
const QUEUES: u64 = 0x1_0000;
/// The largest size of a queue; a device may want it smaller.
const QUEUE_SIZE: u16 = 16;
/// Where the buffers are that are not wild.
const DATA: u64 = 0xf_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What the driver does.
#[derive(Debug, Arbitrary)]
pub enum Step {
    /// Resets the device and begins, with queues as a driver sets them up.
    Begin,
    /// Writes a register.
    Write { offset: u16, value: u32 },
    /// Reads from the window.
    Read { offset: u16, length: u8 },
    /// Makes a chain available.
    Chain { queue: u8, parts: Vec<Part> },
    /// Makes some descriptor available, or again.
    Again { queue: u8, head: u16 },
    /// Jumps with the available index.
    Jump { queue: u8, index: u16 },
    /// Writes anywhere in memory.
    Memory { address: u32, bytes: Vec<u8> },
}

/// A descriptor.
#[derive(Debug, Arbitrary)]
pub struct Part {
    bytes: Vec<u8>,
    length: u16,
    write: bool,
    odd: Odd,
}

/// What is odd about a descriptor.
#[derive(Debug, Arbitrary)]
enum Odd {
    Nothing,
    NothingEither,
    Address(u64),
    Length(u32),
    Next(u16),
    Indirect,
    Flags(u16),
}

/// Memory for a device.
pub fn ram() -> GuestRam {
    let ranges = RANGES.map(|(start, length)| (GuestAddress(start), length));
    GuestRam::from_ranges(&ranges).expect("memory")
}

/// A device with its driver.
pub struct Driver<D> {
    ram: GuestRam,
    window: Window,
    device: Arc<D>,
    /// Per queue: the next descriptor, the next slot of the available ring.
    rings: Vec<(u16, u16)>,
    /// What the first bytes of each chain are where the input has zeroes.
    pub template: Vec<u8>,
}

impl<D: Device + 'static> Driver<D> {
    /// A device in reset.
    pub fn new(make: impl FnOnce(GuestRam, Arc<Notifier>) -> D) -> Self {
        let ram = ram();
        let pin = Arc::new(Pin::new(Box::new(|_| {})));
        let causes = Arc::new(Causes::new(pin, 0));
        let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&causes))));
        let device = Arc::new(make(ram.clone(), Arc::clone(&notifier)));
        let core = Core::new(
            Arc::clone(&device) as Arc<dyn Device>,
            notifier,
            ram.clone(),
        );
        Self {
            ram,
            window: Window::new(core, causes),
            rings: vec![(0, 0); device.queue_sizes().len()],
            device,
            template: Vec::new(),
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Does what the input says, and lets the device serve after each step. After all of it the device
    /// must still work once it has been reset.
    pub fn run(&mut self, input: &[u8], mut serve: impl FnMut(&Arc<D>)) {
        let mut input = Unstructured::new(input);
        self.begin();
        while !input.is_empty() {
            let Ok(step) = Step::arbitrary(&mut input) else {
                break;
            };
            self.step(step);
            serve(&self.device);
        }
        self.begin();
        serve(&self.device);
        assert_eq!(self.status(), 15, "the device does not work after a reset");
    }

    fn status(&self) -> u32 {
        let mut status = [0; 4];
        self.window.read(0x70, &mut status);
        u32::from_le_bytes(status)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    fn begin(&mut self) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        for page in [0, 1] {
            self.write(0x14, page);
            let mut offered = [0; 4];
            self.window.read(0x10, &mut offered);
            self.write(0x24, page);
            self.write(0x20, u32::from_le_bytes(offered));
        }
        self.write(0x70, 11);
        for queue in 0..self.rings.len() as u32 {
            self.rings[queue as usize] = (0, 0);
            let base = QUEUES + u64::from(queue) * 0x1_0000;
            self.ram
                .write_slice(&[0; 0x1_0000], GuestAddress(base))
                .expect("memory");
            self.write(0x30, queue);
            self.write(0x38, self.size(queue as usize).into());
            for (register, address) in [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)]
            {
                self.write(register, address as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin => self.begin(),
            Step::Write { offset, value } => self.write((offset % 0x200).into(), value),
            Step::Read { offset, length } => {
                let mut bytes = vec![0; usize::from(length % 9)];
                self.window.read((offset % 0x300).into(), &mut bytes);
            }
            Step::Chain { queue, parts } => self.chain(queue, parts),
            Step::Again { queue, head } => {
                let queue = self.queue(queue);
                self.publish(queue, head);
            }
            Step::Jump { queue, index } => {
                let at = Self::base(self.queue(queue)) + 0x4002;
                self.ram.write_obj(index, GuestAddress(at)).expect("memory");
            }
            Step::Memory { address, bytes } => {
                // What is no memory is not written; a driver could not either.
                let _ = self.ram.write(&bytes, GuestAddress(address.into()));
            }
        }
    }

    fn queue(&self, queue: u8) -> usize {
        usize::from(queue) % self.rings.len()
    }

    fn size(&self, queue: usize) -> u16 {
        let most = self.device.queue_sizes().get(queue).copied();
        most.unwrap_or(QUEUE_SIZE).min(QUEUE_SIZE)
    }

    fn base(queue: usize) -> u64 {
        QUEUES + queue as u64 * 0x1_0000
    }

    fn chain(&mut self, queue: u8, parts: Vec<Part>) {
        let queue = self.queue(queue);
        let size = self.size(queue);
        let count = parts.len().min(usize::from(size));
        if count == 0 {
            return;
        }
        let head = self.rings[queue].0 % size;
        for (index, mut part) in parts.into_iter().take(count).enumerate() {
            if index == 0 && !part.write {
                let length = part.bytes.len().max(self.template.len());
                part.bytes.resize(length, 0);
                for (byte, usual) in part.bytes.iter_mut().zip(&self.template) {
                    *byte ^= usual;
                }
            }
            let number = self.rings[queue].0 % size;
            self.rings[queue].0 = self.rings[queue].0.wrapping_add(1);
            let mut address = DATA + u64::from(number) * 0x1_0000;
            let mut length = u32::from(part.length).max(part.bytes.len() as u32);
            let mut next = (number + 1) % size;
            let mut flags = if index + 1 < count { NEXT } else { 0 };
            if part.write {
                flags |= WRITE;
            } else {
                let _ = self.ram.write(&part.bytes, GuestAddress(address));
            }
            match part.odd {
                Odd::Nothing | Odd::NothingEither => {}
                Odd::Address(odd) => address = odd,
                Odd::Length(odd) => length = odd,
                Odd::Next(odd) => {
                    next = odd;
                    flags |= NEXT;
                }
                Odd::Indirect => flags |= INDIRECT,
                Odd::Flags(odd) => flags = odd,
            }
            let at = Self::base(queue) + 16 * u64::from(number);
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            self.ram
                .write_slice(&bytes, GuestAddress(at))
                .expect("memory");
        }
        self.publish(queue, head);
    }

    fn publish(&mut self, queue: usize, head: u16) {
        let base = Self::base(queue);
        let slot = u64::from(self.rings[queue].1 % self.size(queue));
        self.rings[queue].1 = self.rings[queue].1.wrapping_add(1);
        for (at, value) in [
            (base + 0x4004 + 2 * slot, head),
            (base + 0x4002, self.rings[queue].1),
        ] {
            self.ram.write_obj(value, GuestAddress(at)).expect("memory");
        }
    }
}
