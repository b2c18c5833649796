#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    bulkhead_stream::fuzzing::frames(input.1, input.0.into());
});
