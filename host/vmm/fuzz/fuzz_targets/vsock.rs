//! A driver's whole conversation with the vsock device, with a daemon that gives back what it is sent.
#![no_main]

use bulkhead_vmm::devices::vsock::Vsock;
use bulkhead_vmm_api::GuestConnection;
use bulkhead_vmm_api::wire;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// The daemon's connections at the most.
const MOST: usize = 8;

fuzz_target!(|input: &[u8]| {
    let name = format!("bulkhead-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a listener");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (theirs, feed) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
    let mut driver = Driver::new(|ram, notifier| {
        Vsock::new(ram, notifier, listener.into()).expect("a vsock device")
    });
    // A request to connect to port 1024 of the host (virtio 1.2, 5.10.6), which the input distorts.
    driver.template = [
        [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat(),
        [5_u32, 1024, 0, 0x0001_0001, 0, 0x1_0000, 0]
            .map(u32::to_le_bytes)
            .concat(),
    ]
    .concat();
    driver.device().set_feed(theirs).expect("a feed");
    let mut streams: Vec<UnixStream> = Vec::new();
    let mut bytes = vec![0; 8192];
    let mut turn = 0_u32;
    driver.run(input, |vsock| {
        vsock.serve();
        while let Ok(Some((GuestConnection { .. }, fds))) = wire::receive(&feed) {
            for stream in fds.into_iter().map(UnixStream::from) {
                stream.set_nonblocking(true).expect("a socket");
                streams.push(stream);
            }
        }
        turn += 1;
        if turn % 4 == 0 && streams.len() < MOST {
            let stream = UnixStream::connect_addr(&address).expect("a connection");
            stream.set_nonblocking(true).expect("a socket");
            // One that the device does not take is closed.
            let _ = (&stream).write_all(b"CONNECT 5000\n");
            streams.push(stream);
        }
        streams.truncate(MOST);
        streams.retain(|mut stream| match stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => stream.write(&bytes[..length]).is_ok(),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        vsock.serve();
    });
});
