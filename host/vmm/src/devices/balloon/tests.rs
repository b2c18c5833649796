use super::{Balloon, TURN};
use crate::virtio::testing::hostile;
use crate::virtio::testing::{FIRST_END, Ring, SECOND, activate, get, notifier, put, ram};
use std::sync::Arc;

const PAGE: u32 = 4096;

#[test]
fn what_is_reported_comes_back_as_zeroes_and_nothing_else_does() {
    let ram = ram();
    let (notifier, raised) = notifier();
    let balloon = Balloon::new(ram.clone(), Arc::clone(&notifier)).unwrap();
    let [inflate, deflate] = [0x1_0000, 0x2_0000].map(|base| Ring::new(&ram, base, 16));
    let mut report = Ring::new(&ram, 0x3_0000, 64);
    activate(&balloon, &notifier, &[&inflate, &deflate, &report]);
    put(&ram, SECOND, &[7; 4 * PAGE as usize]);
    // Two whole pages in two buffers, then one that begins and ends inside a page.
    report.add(&[
        (SECOND, PAGE, true),
        (SECOND + 3 * u64::from(PAGE), PAGE, true),
    ]);
    report.add(&[(SECOND + u64::from(PAGE) + 8, PAGE, true)]);
    balloon.serve();
    assert_eq!(report.used(), Some((0, 0)));
    assert_eq!(report.used(), Some((2, 0)));
    assert!(raised.counts().0 > 0);
    let pages = get(&ram, SECOND, 4 * PAGE as usize);
    let kept = |page: usize| pages[page * PAGE as usize..][..PAGE as usize] == [7; PAGE as usize];
    let gone = |page: usize| pages[page * PAGE as usize..][..PAGE as usize] == [0; PAGE as usize];
    assert!(gone(0) && kept(1) && kept(2) && gone(3));
}

#[test]
fn pages_put_into_the_balloon_are_taken_note_of_only() {
    let ram = ram();
    let (notifier, _) = notifier();
    let balloon = Balloon::new(ram.clone(), Arc::clone(&notifier)).unwrap();
    let mut inflate = Ring::new(&ram, 0x1_0000, 16);
    let mut deflate = Ring::new(&ram, 0x2_0000, 16);
    let report = Ring::new(&ram, 0x3_0000, 64);
    activate(&balloon, &notifier, &[&inflate, &deflate, &report]);
    // Page frame numbers, of pages that do not exist among others.
    put(&ram, 0x4_0000, &[0xff; 64]);
    inflate.add(&[(0x4_0000, 64, false)]);
    deflate.add(&[(0x4_0000, 64, false)]);
    balloon.serve();
    assert_eq!(inflate.used(), Some((0, 0)));
    assert_eq!(deflate.used(), Some((0, 0)));
    assert!(!notifier.needs_reset());
}

#[test]
fn a_report_of_what_is_not_memory_asks_for_a_reset() {
    for bad in [
        (FIRST_END - u64::from(PAGE), 2 * PAGE),
        (u64::MAX - 4095, PAGE),
        (0x20_0000_0000, PAGE),
    ] {
        let ram = ram();
        let (notifier, _) = notifier();
        let balloon = Balloon::new(ram.clone(), Arc::clone(&notifier)).unwrap();
        let [inflate, deflate] = [0x1_0000, 0x2_0000].map(|base| Ring::new(&ram, base, 16));
        let mut report = Ring::new(&ram, 0x3_0000, 64);
        activate(&balloon, &notifier, &[&inflate, &deflate, &report]);
        report.add(&[(bad.0, bad.1, true)]);
        balloon.serve();
        assert!(notifier.needs_reset(), "{bad:?}");
        assert_eq!(report.used(), None);
    }
}

#[test]
fn a_driver_that_never_stops_leaves_the_turn() {
    let ram = ram();
    let (notifier, _) = notifier();
    let balloon = Balloon::new(ram.clone(), Arc::clone(&notifier)).unwrap();
    let [inflate, deflate] = [0x1_0000, 0x2_0000].map(|base| Ring::new(&ram, base, 16));
    let mut report = Ring::new(&ram, 0x3_0000, 64);
    activate(&balloon, &notifier, &[&inflate, &deflate, &report]);
    for _ in 0..TURN {
        report.add(&[(SECOND, PAGE, true)]);
    }
    balloon.serve();
    assert_eq!(std::iter::from_fn(|| report.used()).count(), TURN);
    // It is its own next caller.
    use crate::virtio::Device;
    assert_eq!(balloon.kick().read().unwrap(), 1);
}

#[test]
fn a_hostile_driver_gets_a_reset_on_every_queue() {
    for queue in 0..3 {
        hostile::check(
            |ram, notifier| Balloon::new(ram, notifier).unwrap(),
            queue,
            Balloon::serve,
        );
    }
}
