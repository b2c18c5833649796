//! Image names, as users and pods write them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_image::fuzzing::image_name(input));
