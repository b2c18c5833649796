//! A registry's `hosts.toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_image::fuzzing::hosts_toml(input));
