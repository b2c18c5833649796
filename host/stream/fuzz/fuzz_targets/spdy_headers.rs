#![no_main]

libfuzzer_sys::fuzz_target!(|blocks: Vec<Vec<u8>>| bulkhead_stream::fuzzing::headers(&blocks));
