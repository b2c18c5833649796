//! What a guest's packets meet on their way.

use super::guest::{Guest, address};
use super::{Node, bridge, list, ready};
use bulkhead_network::cni::{Bandwidth, RuntimeSettings};
use serde_json::json;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bits in a second; a burst is small beside what goes through in a window.
const RATE: u64 = 8_000_000;
const BURST: u64 = 200_000;
const WINDOW: Duration = Duration::from_secs(1);
const WINDOWS: usize = 30;
/// Bytes of a datagram, and of the headers that the limit counts too (UDP, IPv4, Ethernet).
const DATAGRAM: usize = 1200;
const HEADERS: u64 = 8 + 20 + 14;

/// Sends more than the limit, and looks at what arrives: never more than the limit, and, as soon as the
/// machine has let the sender work for one whole window, as much. Both within a tenth, on the safe side of
/// when the counter was read.
fn is_limited(sender: UdpSocket, receiver: UdpSocket) {
    let finished = Arc::new(AtomicBool::new(false));
    let arrived = Arc::new(AtomicU64::new(0));
    let (seen, count) = (finished.clone(), arrived.clone());
    receiver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let receives = std::thread::spawn(move || {
        let mut bytes = [0; 2 * DATAGRAM];
        while !seen.load(Ordering::Relaxed) {
            if let Ok(length) = receiver.recv(&mut bytes) {
                count.fetch_add(length as u64 + HEADERS, Ordering::Relaxed);
            }
        }
    });
    let seen = finished.clone();
    let sends = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            for _ in 0..10 {
                // Full queues are what is wanted.
                let _ = sender.send(&[7; DATAGRAM]);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let read = || {
        let before = Instant::now();
        (before, arrived.load(Ordering::Relaxed), Instant::now())
    };
    // The first burst is not part of it.
    std::thread::sleep(WINDOW / 2);
    let mut rates = Vec::new();
    let reached = (0..WINDOWS).any(|_| {
        let first = read();
        std::thread::sleep(WINDOW);
        let last = read();
        let bits = (last.1 - first.1) as f64 * 8.0;
        let least = bits / (last.2 - first.0).as_secs_f64() / RATE as f64;
        let most = bits / (last.0 - first.2).as_secs_f64() / RATE as f64;
        rates.push(most);
        assert!(least < 1.1, "{least} of the limit came through");
        most > 0.9
    });
    finished.store(true, Ordering::Relaxed);
    sends.join().unwrap();
    receives.join().unwrap();
    assert!(reached, "less than the limit came through: {rates:?}");
}

#[tokio::test]
async fn a_bandwidth_limit_is_kept_within_a_tenth_in_both_directions() {
    if !ready() {
        return;
    }
    let node = Node::new(&list(json!([
        bridge(),
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ])));
    let runtime = RuntimeSettings {
        bandwidth: Some(Bandwidth {
            ingress_rate: RATE,
            ingress_burst: BURST,
            egress_rate: RATE,
            egress_burst: BURST,
        }),
        ..Default::default()
    };
    let network = node.attach("limited", runtime).await.unwrap();
    let taps = node.networks.taps("limited", &network, 1, false).await;
    let taps = taps.unwrap();
    let guest = Guest::new(node.directory.path().join("guest"), &network, &taps[0][0]);
    let inside = address(&network, false);
    for out in [true, false] {
        let own = guest.within(move || UdpSocket::bind((inside, 0)));
        let host = UdpSocket::bind(("10.88.0.1", 0)).unwrap();
        own.connect(host.local_addr().unwrap()).unwrap();
        host.connect(own.local_addr().unwrap()).unwrap();
        let (sender, receiver) = if out { (own, host) } else { (host, own) };
        is_limited(sender, receiver);
    }
    guest.remove();
    drop((network, taps));
    node.networks.detach("limited").await;
    node.finish(&["cni88"]);
}
