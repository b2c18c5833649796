//! Programs of reads and writes of a transport's registers, against a device that only remembers what it was
//! given. What must hold after each access is checked against the registers as the driver reads them.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use bulkhead_vmm::virtio::mmio::{Causes, Pin, Window};
use bulkhead_vmm::virtio::notify::Notifier;
use bulkhead_vmm::virtio::queue::Queue;
use bulkhead_vmm::virtio::status::Core;
use bulkhead_vmm::virtio::{Device, F_VERSION_1, copy_config};
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const FEATURES: u64 = 0b1010;
const SPACE: [u8; 12] = [0x5a; 12];

/// What the driver does. The first ones are frequent, so that many programs come far.
#[derive(Debug, Arbitrary)]
enum Step {
    /// A register that exists, with a small value.
    Known {
        register: u8,
        value: u8,
    },
    /// A queue as it should be.
    Queue {
        index: bool,
    },
    /// The status and the features up to here.
    Status {
        steps: u8,
    },
    Write {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        length: u8,
    },
    /// The device has used a buffer, changed its configuration, met nonsense.
    Used {
        queue: u8,
    },
    Change,
    Nonsense,
}

const KNOWN: [u64; 18] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac,
    0x60, 0x100,
];

#[derive(Debug)]
struct Fake {
    given: Mutex<Option<(usize, u64)>>,
    kick: EventFd,
}

impl Device for Fake {
    fn id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[8, 64]
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&SPACE, offset, data);
    }
    fn activate(&self, queues: Vec<Queue>, features: u64) {
        let before = self.given.lock().unwrap().replace((queues.len(), features));
        assert!(before.is_none(), "activated twice");
    }
    fn reset(&self) {
        *self.given.lock().unwrap() = None;
    }
    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

struct Driver {
    window: Window,
    device: Arc<Fake>,
    notifier: Arc<Notifier>,
    pin: Arc<AtomicBool>,
}

impl Driver {
    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0xee; 4];
        self.window.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    fn queue(&mut self, index: bool) {
        let base = 0x1_0000 + u32::from(index) * 0x1_0000;
        for (register, value) in [
            (0x30, index.into()),
            (0x38, 8),
            (0x80, base),
            (0x84, 0),
            (0x90, base + 0x4000),
            (0x94, 0),
            (0xa0, base + 0x8000),
            (0xa4, 0),
            (0x44, 1),
        ] {
            self.write(register, value);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Known { register, value } => {
                let register = KNOWN[usize::from(register) % KNOWN.len()];
                self.write(register, value.into());
            }
            Step::Queue { index } => self.queue(index),
            Step::Status { steps } => {
                let all = [
                    (0x70, 1),
                    (0x70, 3),
                    (0x24, 1),
                    (0x20, 1),
                    (0x70, 11),
                    (0x70, 15),
                ];
                for (register, value) in all.into_iter().take(usize::from(steps % 7)) {
                    self.write(register, value);
                }
            }
            Step::Write { offset, bytes } => {
                let length = bytes.len().min(8);
                self.window
                    .write((offset % 0x1000).into(), &bytes[..length]);
            }
            Step::Read { offset, length } => {
                let mut bytes = vec![0xee; usize::from(length % 9)];
                self.window.read((offset % 0x1000).into(), &mut bytes);
            }
            Step::Used { queue } => self.notifier.used(queue.into()),
            Step::Change => self.notifier.change_config(|| {}),
            Step::Nonsense => self.notifier.ask_for_reset(),
        }
    }

    /// What holds at any time.
    fn check(&self) {
        let status = self.read(0x70);
        assert_eq!(status & !0xcf, 0, "{status:#x}");
        for (bit, needs) in [(2, 1), (8, 2), (4, 8)] {
            assert!(status & bit == 0 || status & needs != 0, "{status:#x}");
        }
        let given = *self.device.given.lock().unwrap();
        match given {
            Some((queues, features)) => {
                assert!(status & 4 != 0 && queues == 2, "{status:#x}");
                assert!(features & F_VERSION_1 != 0, "{features:#x}");
                let offered = FEATURES | F_VERSION_1 | 3 << 28;
                assert_eq!(features & !offered, 0, "{features:#x}");
                // What is in use cannot be taken back but by a reset.
                assert_eq!(self.window.core().queue_max(0), 8);
                assert!(self.window.core().queue_ready(0) && self.window.core().queue_ready(1));
            }
            None => assert!(status & 4 == 0 || status & 64 != 0, "{status:#x}"),
        }
        // An interrupt is pending exactly as long as there is a cause, and there is none without a driver.
        let causes = self.read(0x60);
        assert_eq!(self.pin.load(Ordering::SeqCst), causes != 0);
        assert!(causes == 0 || status & 4 != 0, "{status:#x} {causes}");
    }
}

fuzz_target!(|input: &[u8]| {
    let ram = bulkhead_vmm_fuzz::ram();
    let pin = Arc::<AtomicBool>::default();
    let level = Arc::clone(&pin);
    let set = move |high| {
        assert_ne!(
            level.swap(high, Ordering::SeqCst),
            high,
            "the same level again"
        );
    };
    let causes = Arc::new(Causes::new(Arc::new(Pin::new(Box::new(set))), 0));
    let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&causes))));
    let device = Arc::new(Fake {
        given: Mutex::default(),
        kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
    });
    let shared: Arc<dyn Device> = Arc::<Fake>::clone(&device);
    let core = Core::new(shared, Arc::clone(&notifier), ram);
    let mut driver = Driver {
        window: Window::new(core, causes),
        device,
        notifier,
        pin,
    };
    let mut input = Unstructured::new(input);
    while let (false, Ok(step)) = (input.is_empty(), Step::arbitrary(&mut input)) {
        driver.step(step);
        driver.check();
    }
    driver.write(0x70, 0);
    assert_eq!((driver.read(0x70), driver.read(0x60)), (0, 0));
    driver.check();
    for step in [
        Step::Status { steps: 5 },
        Step::Queue { index: false },
        Step::Queue { index: true },
        Step::Known {
            register: 8,
            value: 15,
        },
    ] {
        driver.step(step);
        driver.check();
    }
    assert_eq!(
        driver.read(0x70),
        15,
        "the device does not work after a reset"
    );
});
