//! Packets on the control socket: what is understood can be said again.
#![no_main]

use bulkhead_vmm_api::{Request, VmmConfig, wire};
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

fuzz_target!(|input: &[u8]| {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
    if send(&ours, input, SendFlags::empty()).is_err() {
        return; // Longer than a socket takes.
    }
    if let Ok(Some((request, _))) = wire::receive::<Request>(&theirs) {
        wire::send(&ours, &request, &[]).expect("a request that was understood");
        let again = wire::receive::<Request>(&theirs)
            .expect("the same")
            .expect("the same")
            .0;
        assert_eq!(again, request);
    }
    let _ = serde_json::from_slice::<VmmConfig>(input);
});
