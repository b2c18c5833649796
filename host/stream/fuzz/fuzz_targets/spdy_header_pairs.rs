#![no_main]

libfuzzer_sys::fuzz_target!(|blocks: Vec<Vec<(String, String)>>| {
    bulkhead_stream::fuzzing::header_pairs(&blocks);
});
