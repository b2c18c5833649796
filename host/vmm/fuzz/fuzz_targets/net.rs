//! A driver's whole conversation with the network interface. In place of the tap there is a socket that
//! gives back whatever packet the guest sends.
#![no_main]

use bulkhead_vmm::devices::net::Net;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

fuzz_target!(|input: &[u8]| {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tap, far) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
    let mut driver = Driver::new(|ram, notifier| Net::new(ram, notifier).expect("an interface"));
    driver.device().bind_socket(tap);
    let mut packet = vec![0; 70_000];
    driver.run(input, |net| {
        net.serve();
        while let Ok((_, length @ 1..)) = recv(&far, &mut packet[..], RecvFlags::empty()) {
            // A full socket drops the packet.
            let _ = send(&far, &packet[..length], SendFlags::empty());
        }
        net.tap_readable();
    });
});
