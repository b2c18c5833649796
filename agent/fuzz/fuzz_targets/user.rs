//! Users and groups of an image: the user string, `/etc/passwd` and `/etc/group`, each ended by a
//! null byte.
#![no_main]

use bulkhead_agent::init::user::{home, resolve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut parts = data
        .splitn(3, |byte| *byte == 0)
        .map(String::from_utf8_lossy);
    let mut next = || parts.next().unwrap_or_default();
    let (user, passwd, group) = (next(), next(), next());
    let Ok(identity) = resolve(&user, &passwd, &group) else {
        return;
    };
    // The largest number means "nobody" to the kernel.
    assert_ne!(identity.uid, u32::MAX);
    assert_ne!(identity.gid, u32::MAX);
    assert!(identity.groups.iter().all(|group| *group != u32::MAX));
    assert!(identity.groups.contains(&identity.gid));
    let mut groups = identity.groups.clone();
    groups.sort_unstable();
    groups.dedup();
    assert_eq!(groups.len(), identity.groups.len());
    assert!(home(identity.uid, &passwd).is_none_or(|home| !home.contains([':', '\n'])));
});
