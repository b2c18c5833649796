//! A driver's whole conversation with the network interface: one pair of queues or two with a control queue.
//! In place of the tap there are sockets that give back whatever packet the guest sends.
#![no_main]

use bulkhead_vmm::devices::net::Net;
use bulkhead_vmm_api::NetworkLimits;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else {
        return;
    };
    let pairs = 1 + usize::from(kind % 2);
    let taps = 1 + usize::from(kind / 2) % pairs;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (near, far): (Vec<_>, Vec<_>) = (0..taps)
        .map(|_| {
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets")
        })
        .unzip();
    let mut driver =
        Driver::new(|ram, notifier| Net::new(ram, notifier, pairs, Vec::new()).expect("an interface"));
    driver
        .device()
        .bind_sockets(near, &NetworkLimits::default()).expect("sockets");
    let serve = |net: &Net| {
        for pair in 0..pairs {
            // As much as there is, but a guest that makes more all the time has to let others run.
            for _ in 0..100 {
                if !net.turn(pair, false).expect("a turn") {
                    break;
                }
            }
        }
    };
    let mut packet = vec![0; 70_000];
    driver.run(input, |net| {
        serve(net);
        for far in &far {
            while let Ok((_, length @ 1..)) = recv(far, &mut packet[..], RecvFlags::empty()) {
                // A full socket drops the packet.
                let _ = send(far, &packet[..length], SendFlags::empty());
            }
        }
        serve(net);
    });
});
