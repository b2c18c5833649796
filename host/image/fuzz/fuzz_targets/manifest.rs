//! What a registry says an image is: indexes, manifests and configurations.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_image::fuzzing::manifest(input));
