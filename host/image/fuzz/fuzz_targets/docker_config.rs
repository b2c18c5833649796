//! Docker's `config.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_image::fuzzing::docker_config(input));
