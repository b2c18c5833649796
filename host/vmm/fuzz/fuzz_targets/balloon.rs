//! A driver's whole conversation with the balloon.
#![no_main]

use bulkhead_vmm::devices::balloon::Balloon;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut driver = Driver::new(|ram, notifier| Balloon::new(ram, notifier).expect("a balloon"));
    driver.run(input, |balloon| balloon.serve());
});
