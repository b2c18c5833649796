//! What plugins print: converted to every version, it is read alike.
#![no_main]

use bulkhead_network::cni::{CniResult, Version, result::convert};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let versions = [Version::V030, Version::V031, Version::V040, Version::V100, Version::V110];
    let mut all = versions.iter().map(|version| {
        let value = convert(input, *version).ok()?;
        let again = convert(value.to_string().as_bytes(), *version).expect("a conversion can be repeated");
        assert_eq!(again, value);
        let result = CniResult::parse(&value).ok()?;
        assert!(result.addresses("eth0").count() <= result.ips.len());
        Some(result)
    });
    let first = all.next().flatten();
    assert!(all.all(|other| other == first));
});
