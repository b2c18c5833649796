#![no_main]

libfuzzer_sys::fuzz_target!(|parts: Vec<Vec<u8>>| bulkhead_stream::fuzzing::resize(&parts));
