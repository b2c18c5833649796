#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| bulkhead_stream::fuzzing::channels(message));
