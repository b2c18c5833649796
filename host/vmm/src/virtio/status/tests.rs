use super::super::queue::Queue;
use super::super::testing::{Raised, notifier, ram};
use super::super::{Device, F_VERSION_1};
use super::{
    ACKNOWLEDGE, Core, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, Half, NEEDS_RESET, QueueField,
};
use crate::sync::lock;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[derive(Debug)]
struct Fake {
    queues: Mutex<Vec<Queue>>,
    features: Mutex<u64>,
    kick: EventFd,
}

impl Device for Fake {
    fn id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        0b110
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[8, 4]
    }
    fn read_config(&self, _: usize, _: &mut [u8]) {}
    fn activate(&self, queues: Vec<Queue>, features: u64) {
        *lock(&self.queues) = queues;
        *lock(&self.features) = features;
    }
    fn reset(&self) {
        lock(&self.queues).clear();
    }
    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

struct Setup {
    core: Core,
    device: Arc<Fake>,
    raised: Arc<Raised>,
}

fn setup() -> Setup {
    let device = Arc::new(Fake {
        queues: Mutex::default(),
        features: Mutex::default(),
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
    });
    let (notifier, raised) = notifier();
    let core = Core::new(Arc::clone(&device) as Arc<dyn Device>, notifier, ram());
    Setup {
        core,
        device,
        raised,
    }
}

fn lay_out(core: &mut Core, index: u32, base: u64) {
    for field in [
        QueueField::Size(4),
        QueueField::Descriptors(Half::Low(base as u32)),
        QueueField::Available(Half::Low(base as u32 + 0x1000)),
        QueueField::Used(Half::Low(base as u32 + 0x2000)),
        QueueField::Ready(true),
    ] {
        core.set_queue(index, field);
    }
}

fn negotiate(core: &mut Core) {
    core.set_status(ACKNOWLEDGE);
    core.set_status(ACKNOWLEDGE | DRIVER);
    core.accept_features(0, 0b010);
    core.accept_features(1, (F_VERSION_1 >> 32) as u32);
    core.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

const ALL: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

#[test]
fn a_driver_that_keeps_to_the_order_gets_its_device() {
    let mut s = setup();
    negotiate(&mut s.core);
    assert_eq!(s.core.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    lay_out(&mut s.core, 0, 0x1_0000);
    lay_out(&mut s.core, 1, 0x2_0000);
    assert!(lock(&s.device.queues).is_empty());
    s.core.set_status(ALL);
    assert_eq!(s.core.status(), ALL);
    assert_eq!(lock(&s.device.queues).len(), 2);
    assert_eq!(*lock(&s.device.features), F_VERSION_1 | 0b010);
    assert_eq!(s.device.kick.read().unwrap(), 1);
    s.core.set_status(0);
    assert_eq!(s.core.status(), 0);
    assert!(lock(&s.device.queues).is_empty());
    assert!(!s.core.queue_ready(0));
}

#[test]
fn steps_out_of_order_change_nothing() {
    let mut s = setup();
    for status in [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE | DRIVER_OK] {
        s.core.set_status(0);
        s.core.set_status(status);
        assert_eq!(s.core.status() & (DRIVER | FEATURES_OK | DRIVER_OK), 0);
    }
    // Without VERSION_1, or with what is not offered, FEATURES_OK does not stick.
    for (page, bits) in [(0, 0b010), (0, 0b1), (1, 0x8000_0001), (7, 1)] {
        s.core.set_status(0);
        s.core.set_status(ACKNOWLEDGE | DRIVER);
        s.core.accept_features(page, bits);
        if page != 1 {
            s.core
                .accept_features(if bits == 0b010 { 0 } else { 1 }, bits & 0b10 | 1);
        }
        s.core.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(s.core.status(), ACKNOWLEDGE | DRIVER, "{page} {bits:#x}");
    }
    // Bits cannot be cleared one by one.
    s.core.set_status(0);
    negotiate(&mut s.core);
    s.core.set_status(ACKNOWLEDGE);
    assert_eq!(s.core.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    // Features are frozen.
    s.core.accept_features(0, !0);
    lay_out(&mut s.core, 0, 0x1_0000);
    lay_out(&mut s.core, 1, 0x2_0000);
    s.core.set_status(ALL);
    assert_eq!(*lock(&s.device.features), F_VERSION_1 | 0b010);
    // What failed stays failed.
    s.core.set_status(ALL | FAILED);
    assert_eq!(s.core.status() & FAILED, FAILED);
}

#[test]
fn queues_are_frozen_when_ready_and_when_in_use() {
    let mut s = setup();
    lay_out(&mut s.core, 0, 0x1_0000);
    assert!(!s.core.queue_ready(0), "before FEATURES_OK");
    negotiate(&mut s.core);
    lay_out(&mut s.core, 0, 0x1_0000);
    lay_out(&mut s.core, 1, 0x2_0000);
    // Ready: the fields are frozen, but the driver may think again.
    s.core
        .set_queue(0, QueueField::Descriptors(Half::High(0xffff)));
    s.core.set_queue(0, QueueField::Size(7));
    s.core.set_queue(99, QueueField::Ready(true));
    s.core.set_status(ALL);
    assert_eq!(lock(&s.device.queues).len(), 2);
    assert_eq!(s.core.status(), ALL);
    // In use: everything is frozen.
    s.core.set_queue(0, QueueField::Ready(false));
    assert!(s.core.queue_ready(0));
}

#[test]
fn a_layout_without_sense_asks_for_a_reset() {
    let mut s = setup();
    negotiate(&mut s.core);
    lay_out(&mut s.core, 0, 0x1_0000);
    lay_out(&mut s.core, 1, 0x20_0000);
    s.core.set_status(ALL);
    assert_eq!(s.core.status(), ALL | NEEDS_RESET);
    assert!(lock(&s.device.queues).is_empty());
    assert_eq!(s.raised.counts(), (0, 1));
    s.core.set_status(0);
    assert_eq!(s.core.status(), 0);
}

#[test]
fn a_change_before_the_driver_is_ready_is_told_when_it_is() {
    let mut s = setup();
    negotiate(&mut s.core);
    s.core.notifier().change_config(|| {});
    assert_eq!(s.raised.counts(), (0, 0));
    lay_out(&mut s.core, 0, 0x1_0000);
    lay_out(&mut s.core, 1, 0x2_0000);
    s.core.set_status(ALL);
    assert_eq!(s.raised.counts(), (0, 1));
    assert_eq!(s.core.notifier().generation(), 1);
    // Nothing is sent once the driver has reset the device.
    s.core.set_status(0);
    s.core.notifier().used(0);
    s.core.notifier().ask_for_reset();
    assert_eq!(s.raised.counts(), (0, 1));
    assert_eq!(s.core.status(), 0);
}
