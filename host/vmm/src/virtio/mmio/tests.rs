#[path = "programs.rs"]
mod programs;

use super::super::Device;
use super::super::notify::Notifier;
use super::super::status::Core;
use super::super::testing::ram;
use super::{Causes, Pin, QUEUE_NOTIFY, Window};
use crate::devices::rng::Rng;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use std::sync::{Arc, Mutex};

struct Setup {
    ram: GuestRam,
    window: Window,
    rng: Arc<Rng>,
    notifier: Arc<Notifier>,
    pin: Arc<Pin>,
    levels: Arc<Mutex<Vec<bool>>>,
}

fn setup() -> Setup {
    let levels = Arc::<Mutex<Vec<bool>>>::default();
    let record = Arc::clone(&levels);
    let pin = Arc::new(Pin::new(Box::new(move |high| lock(&record).push(high))));
    let causes = Arc::new(Causes::new(Arc::clone(&pin), 0));
    let notifier = Arc::new(Notifier::new(Box::new(Arc::clone(&causes))));
    let ram = ram();
    let rng = Arc::new(Rng::new(ram.clone(), Arc::clone(&notifier)).unwrap());
    let core = Core::new(
        Arc::clone(&rng) as Arc<dyn Device>,
        Arc::clone(&notifier),
        ram.clone(),
    );
    Setup {
        ram,
        window: Window::new(core, causes),
        rng,
        notifier,
        pin,
        levels,
    }
}

impl Setup {
    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.window.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    fn start(&mut self) {
        for (offset, value) in [
            (0x70, 1),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, 8),
            (0x80, 0x1_0000),
            (0x90, 0x1_1000),
            (0xa0, 0x1_2000),
            (0x44, 1),
            (0x70, 15),
        ] {
            self.write(offset, value);
        }
        assert_eq!(self.read(0x70), 15);
    }
}

#[test]
fn a_window_shows_its_device() {
    let mut s = setup();
    assert_eq!(s.read(0), 0x7472_6976);
    assert_eq!(s.read(4), 2);
    assert_eq!(s.read(8), 4);
    assert_eq!(s.read(0x34), 8);
    s.write(0x30, 1);
    assert_eq!(s.read(0x34), 0);
    assert_eq!(s.read(0x10), 3 << 28);
    s.write(0x14, 1);
    assert_eq!(s.read(0x10), 1);
    s.write(0x14, 2);
    assert_eq!(s.read(0x10), 0);
    // No shared memory, and nothing where there is no register.
    assert_eq!(s.read(0xb0), u32::MAX);
    assert_eq!(s.read(0xc0), 0);
}

#[test]
fn odd_accesses_do_nothing() {
    let mut s = setup();
    for (offset, width) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (0x70, 3),
        (0xfff, 8),
    ] {
        let mut data = vec![0xee; width];
        s.window.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{offset:#x} {width}");
    }
    for width in [1, 2, 8] {
        s.window.write(0x70, &vec![1; width]);
        assert_eq!(s.read(0x70), 0);
    }
    s.window.write(0x71, &[1, 0, 0, 0]);
    s.window.write(0x104, &[1, 0, 0, 0]);
    s.window.write(0x70, &[]);
    assert_eq!(s.read(0x70), 0);
}

#[test]
fn a_pin_is_high_while_a_cause_is_pending() {
    let mut s = setup();
    s.start();
    assert_eq!(s.rng.kick().read().unwrap(), 1);
    s.write(QUEUE_NOTIFY, 0);
    assert_eq!(s.rng.kick().read().unwrap(), 1);
    s.notifier.used(0);
    s.notifier.used(0);
    s.notifier.change_config(|| {});
    assert_eq!(s.read(0x60), 3);
    assert_eq!(s.read(0xfc), 1);
    s.write(0x64, 1);
    assert_eq!(s.read(0x60), 2);
    assert_eq!(*lock(&s.levels), [true]);
    s.write(0x64, 2);
    assert_eq!(*lock(&s.levels), [true, false]);
    // A reset takes the causes away.
    s.notifier.used(0);
    s.write(0x70, 0);
    assert_eq!(s.read(0x60), 0);
    assert_eq!(*lock(&s.levels), [true, false, true, false]);
}

#[test]
fn devices_share_a_pin() {
    let mut s = setup();
    s.start();
    let other = Arc::new(Causes::new(Arc::clone(&s.pin), 1));
    super::Interrupt::queue(&other, 0);
    s.notifier.used(0);
    s.write(0x64, 1);
    assert_eq!(*lock(&s.levels), [true]);
    other.remove(1);
    assert_eq!(*lock(&s.levels), [true, false]);
}
