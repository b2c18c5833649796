//! A guest without a VM: a namespace whose interface is wired to the pod's tap, as a virtual one is.

use bulkhead_network::{PodNetwork, netns, tap};
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// What the kernel puts before a frame.
const HEADER: usize = 10;

pub(crate) struct Guest {
    namespace: PathBuf,
    /// Dropped, it ends the wires.
    end: Option<UnixStream>,
    wires: Vec<JoinHandle<()>>,
    /// The largest frame that the guest has sent, in bytes.
    pub(crate) largest: Arc<AtomicUsize>,
}

impl Guest {
    /// With the interface that the pod has, behind the pod's tap.
    pub(crate) fn new(namespace: PathBuf, network: &PodNetwork, pod: &OwnedFd) -> Self {
        netns::create(&namespace).unwrap();
        let opened = netns::open(&namespace).unwrap();
        let own = netns::within(opened, || tap::open("eth0", 1)).unwrap();
        let own = own.into_iter().next().unwrap();
        let (end, ends) = UnixStream::pair().unwrap();
        let largest = Arc::new(AtomicUsize::new(0));
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
        let wires = [
            (copy(&own), copy(pod), largest.clone()),
            (copy(pod), own, Arc::default()),
        ]
        .map(|(from, to, largest)| {
            let ends = ends.try_clone().unwrap();
            std::thread::spawn(move || wire(&from, &to, &ends, &largest))
        });
        let guest = Self {
            namespace,
            end: Some(end),
            wires: wires.into(),
            largest,
        };
        guest.configure(network);
        guest
    }

    fn configure(&self, network: &PodNetwork) {
        let one = &network.interfaces[0];
        let mac = one.mac.map(|byte| format!("{byte:02x}")).join(":");
        self.ip(&format!("link set eth0 address {mac} mtu {} up", one.mtu));
        for address in &one.addresses {
            let words = format!(
                "addr add {}/{} dev eth0 nodad",
                address.address, address.prefix
            );
            self.ip(&words);
        }
        for route in one
            .routes
            .iter()
            .filter(|route| route.destination.is_none())
        {
            if let Some(gateway) = route.gateway {
                self.ip(&format!("route add default via {gateway}"));
            }
        }
    }

    fn ip(&self, words: &str) {
        in_namespace(&self.namespace, words);
    }

    /// Does something in its namespace; sockets that are made there stay there.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> T {
        let opened = netns::open(&self.namespace).unwrap();
        netns::within(opened, function).unwrap()
    }

    pub(crate) fn remove(mut self) {
        self.end = None;
        for wire in self.wires.drain(..) {
            wire.join().unwrap();
        }
        netns::remove(&self.namespace).unwrap();
    }
}

/// Runs `ip` in a namespace.
pub(crate) fn in_namespace(namespace: &Path, words: &str) {
    let net = format!("--net={}", namespace.display());
    let words: Vec<&str> = [net.as_str(), "ip"]
        .into_iter()
        .chain(words.split(' '))
        .collect();
    crate::run("nsenter", &words);
}

/// The address of a kind that a pod has.
pub(crate) fn address(network: &PodNetwork, v6: bool) -> IpAddr {
    let mut ips = network.ips.iter().copied();
    ips.find(|ip| ip.is_ipv6() == v6).unwrap()
}

/// Carries frames until the other end of `end` is closed.
fn wire(from: &OwnedFd, to: &OwnedFd, end: &UnixStream, largest: &AtomicUsize) {
    let mut frame = vec![0; 128 * 1024];
    loop {
        let mut waits = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        rustix::event::poll(&mut waits, None).unwrap();
        if !waits[1].revents().is_empty() {
            return;
        }
        match rustix::io::read(from, &mut frame) {
            Ok(length) => {
                largest.fetch_max(length.saturating_sub(HEADER), Ordering::Relaxed);
                // A wire loses what the other side does not take.
                let _ = rustix::io::write(to, &frame[..length]);
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => panic!("The wire broke: {error}"),
        }
    }
}
