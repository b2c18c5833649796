use super::{MAX_REQUEST, Rng};
use crate::virtio::testing::hostile;
use crate::virtio::testing::{Ring, activate, get, notifier, ram};
use std::sync::Arc;

#[test]
fn requests_are_filled_up_to_the_cap() {
    let ram = ram();
    let (notifier, raised) = notifier();
    let rng = Rng::new(ram.clone(), Arc::clone(&notifier)).unwrap();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    activate(&rng, &notifier, &[&ring]);
    ring.add(&[(0x2_0000, 64, true)]);
    ring.add(&[(0x3_0000, 0x1_0000, true)]);
    ring.add(&[(0x2_0000, 8, false)]);
    ring.add(&[(0x2_0000, 0, true)]);
    rng.serve();
    assert_eq!(ring.used(), Some((0, 64)));
    assert_eq!(ring.used(), Some((1, MAX_REQUEST as u32)));
    assert_eq!(ring.used(), Some((2, 0)));
    assert_eq!(ring.used(), Some((3, 0)));
    assert_ne!(get(&ram, 0x2_0000, 64), vec![0; 64]);
    assert_eq!(get(&ram, 0x3_0000 + MAX_REQUEST as u64, 8), vec![0; 8]);
    assert!(raised.counts().0 > 0);
}

#[test]
fn a_malformed_chain_stops_the_device() {
    let ram = ram();
    let (notifier, _) = notifier();
    let rng = Rng::new(ram.clone(), Arc::clone(&notifier)).unwrap();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    activate(&rng, &notifier, &[&ring]);
    ring.add(&[(u64::MAX, 64, true)]);
    rng.serve();
    assert!(notifier.needs_reset());
    assert_eq!(ring.used(), None);
}

#[test]
fn a_hostile_driver_gets_a_reset_and_a_good_one_its_bytes() {
    hostile::check(
        |ram, notifier| Rng::new(ram, notifier).unwrap(),
        0,
        Rng::serve,
    );
}
