//! A registry's `WWW-Authenticate` header and its error messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bulkhead_image::fuzzing::challenge(input));
