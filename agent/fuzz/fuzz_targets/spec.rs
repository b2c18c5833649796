//! An OCI specification, a process or new limits, as JSON: refused, or a plan that keeps the rules.
#![no_main]

mod rules;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    rules::spec(data);
    if let Ok(process) = bulkhead_agent::spec::parse_process(data) {
        rules::process(&process);
    }
    if let Ok((settings, _)) = bulkhead_agent::spec::parse_update(data) {
        settings.iter().for_each(rules::setting);
    }
});
