//! A TCP proxy that spoils what the server sends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
struct Plan {
    /// Bytes of a connection after which it is cut; zero for never.
    cut: AtomicUsize,
    /// The byte of a connection that is changed; zero for none.
    corrupt: AtomicUsize,
    connections: AtomicUsize,
}

/// A running proxy; its threads end with the process.
pub(crate) struct Proxy {
    plan: Arc<Plan>,
    pub(crate) port: u16,
}

impl Proxy {
    /// In front of a port of this machine.
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Plan::default());
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, plan) = (client.unwrap(), Arc::clone(&shared));
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                plan.connections.fetch_add(1, Ordering::Relaxed);
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || back(&plan, server, client));
            }
        });
        Self { plan, port }
    }

    pub(crate) fn cut_after(&self, bytes: usize) {
        self.plan.cut.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn corrupt_at(&self, byte: usize) {
        self.plan.cut.store(0, Ordering::Relaxed);
        self.plan.corrupt.store(byte, Ordering::Relaxed);
    }

    pub(crate) fn behave(&self) {
        self.plan.cut.store(0, Ordering::Relaxed);
        self.plan.corrupt.store(0, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self) -> usize {
        self.plan.connections.load(Ordering::Relaxed)
    }
}

/// What the server says, up to the fault.
fn back(plan: &Plan, mut server: TcpStream, mut client: TcpStream) {
    let (mut sent, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        let mut bytes = &mut buffer[..count];
        let corrupt = plan.corrupt.load(Ordering::Relaxed);
        if corrupt > sent && corrupt <= sent + count {
            bytes[corrupt - sent - 1] ^= 1;
        }
        let cut = plan.cut.load(Ordering::Relaxed);
        if cut > 0 && sent + count > cut {
            bytes = &mut bytes[..cut - sent];
        }
        let is_cut = bytes.len() < count;
        if client.write_all(bytes).is_err() || is_cut {
            break;
        }
        sent += count;
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
