//! Messages of the kernel, made up: reading them ends, without a panic.
#![no_main]

use bulkhead_netlink::{Address, Attributes, Link, Neighbour, Route};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = Link::parse(input);
    let _ = Address::parse(input);
    let _ = Route::parse(input);
    let _ = Neighbour::parse(input);
    let values: usize = Attributes::after(input, 0).map(|(_, value)| value.len()).sum();
    assert!(values <= input.len());
});
