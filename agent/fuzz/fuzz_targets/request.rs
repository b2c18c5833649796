//! The requests of the agent's protocol: the first byte is the method, the rest the message.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((method, payload)) = data.split_first() {
        bulkhead_agent::fuzzing::request(*method, payload);
    }
});
