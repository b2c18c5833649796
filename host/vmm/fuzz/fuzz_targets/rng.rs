//! A driver's whole conversation with the entropy device.
#![no_main]

use bulkhead_vmm::devices::rng::Rng;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut driver = Driver::new(|ram, notifier| Rng::new(ram, notifier).expect("an rng"));
    driver.run(input, |rng| rng.serve());
});
