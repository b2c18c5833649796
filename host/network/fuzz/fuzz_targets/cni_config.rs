//! Network configuration lists: what is taken is taken again from what is remembered of it.
#![no_main]

use bulkhead_network::cni::{NetworkList, RuntimeSettings};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(list) = NetworkList::parse(input) else {
        return;
    };
    assert!(!list.plugins.is_empty());
    for plugin in &list.plugins {
        assert!(!plugin.kind.contains('/') && !plugin.kind.starts_with('.'));
        let runtime = RuntimeSettings::default().for_plugin(plugin);
        assert!(runtime.is_empty(), "there is nothing to tell");
    }
    let again = NetworkList::from_object(list.to_object()).expect("what was taken is taken again");
    assert_eq!(again, list);
});
