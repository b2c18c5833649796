//! What a guest's packets meet on their way.

use super::guest::{Guest, address, in_namespace};
use super::{Node, bridge, list, ready, run, settings};
use bulkhead_network::cni::{Bandwidth, PortMapping, RuntimeSettings};
use bulkhead_network::{Networks, PodNetwork, PodRequest, netns};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
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

/// Sends bytes to a guest and has them come back.
fn echoes(client: &Guest, server: &Guest, at: std::net::IpAddr) {
    const LENGTH: usize = 4 << 20;
    let listener = server.within(move || TcpListener::bind((at, 0)));
    let to = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let limit = Duration::from_secs(60);
    let mut stream = client.within(move || TcpStream::connect_timeout(&to, limit));
    stream.set_read_timeout(Some(limit)).unwrap();
    let bytes: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == bytes, "{} other bytes came back", back.len());
    echo.join().unwrap();
}

/// A pod of the second node's: all of it happens in that node's namespace, plugins and threads included.
fn on_node<T: Send + 'static>(
    namespace: &Path,
    future: impl AsyncFnOnce() -> T + Send + 'static,
) -> T {
    let opened = netns::open(namespace).unwrap();
    netns::within(opened, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(future()))
    })
    .unwrap()
}

fn large(name: &str, bridge: &str, ipv4: &str, ipv6: &str) -> serde_json::Value {
    let plugins = json!([{
        "type": "bridge", "bridge": bridge, "isGateway": true, "mtu": 9000,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": ipv4 }], [{ "subnet": ipv6 }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    }]);
    json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_two_nodes_talk_in_large_frames() {
    if !ready() {
        return;
    }
    let node = Node::new(&large("lab", "cni88", "10.88.0.0/24", "fd88::/64"));
    let other = tempfile::TempDir::new().unwrap();
    let second = other.path().join("node");
    netns::create(&second).unwrap();
    std::fs::create_dir(other.path().join("net.d")).unwrap();
    let text = large("other", "cni89", "10.89.0.0/24", "fd89::/64").to_string();
    std::fs::write(other.path().join("net.d/10-net.conflist"), text).unwrap();

    let network = node.attach("here", Default::default()).await.unwrap();
    let taps = node.networks.taps("here", &network, 1, false).await;
    let taps = taps.unwrap();
    let here = Guest::new(node.directory.path().join("guest"), &network, &taps[0][0]);
    let settings = settings(other.path());
    let added = {
        let settings = settings.clone();
        on_node(&second, async move || -> (PodNetwork, Vec<_>) {
            let networks = Networks::open(settings).unwrap();
            let request = PodRequest {
                id: "there".into(),
                ..Default::default()
            };
            let pending = std::future::pending();
            let network = networks.attach(request, pending).await.unwrap();
            let taps = networks.taps("there", &network, 1, false).await.unwrap();
            (network, taps)
        })
    };
    let (far, far_taps) = added;
    let there = Guest::new(other.path().join("guest"), &far, &far_taps[0][0]);

    // A wire between the nodes, and each knows where the other's pods are.
    let pair = "link add wire88 mtu 9000 type veth peer name wire89 mtu 9000";
    run("ip", &pair.split(' ').collect::<Vec<_>>());
    move_link("wire89", &second);
    for words in [
        "addr add 192.168.88.1/24 dev wire88",
        "addr add fd90::1/64 dev wire88 nodad",
        "link set wire88 up",
        "route add 10.89.0.0/24 via 192.168.88.2",
        "route add fd89::/64 via fd90::2",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>());
    }
    for words in [
        "addr add 192.168.88.2/24 dev wire89",
        "addr add fd90::2/64 dev wire89 nodad",
        "link set wire89 up",
        "route add 10.88.0.0/24 via 192.168.88.1",
        "route add fd88::/64 via fd90::1",
    ] {
        in_namespace(&second, words);
    }
    for v6 in [false, true] {
        echoes(&here, &there, address(&far, v6));
        echoes(&there, &here, address(&network, v6));
    }
    for guest in [&here, &there] {
        let largest = guest.largest.load(Ordering::Relaxed);
        // With the header of Ethernet.
        assert!(largest > 8_000 && largest <= 9_014, "{largest}");
    }

    here.remove();
    there.remove();
    drop((network, taps, far, far_taps));
    node.networks.detach("here").await;
    on_node(&second, async move || {
        Networks::open(settings).unwrap().detach("there").await;
    });
    for name in ["netns", "network"] {
        let left = std::fs::read_dir(other.path().join(name)).unwrap();
        assert_eq!(left.count(), 0, "{name} of the other node");
    }
    netns::remove(&second).unwrap();
    // Its peer goes with the other namespace, when that has been taken apart, or now.
    run("ip", &["link", "delete", "wire88"]);
    node.finish(&["cni88"]);
}

/// Gives a link to another namespace.
fn move_link(name: &str, namespace: &Path) {
    let path = namespace.display().to_string();
    run("ip", &["link", "set", name, "netns", &path]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_ports_leave_no_rule() {
    if !ready() {
        return;
    }
    let mut plain = bridge();
    plain["ipMasq"] = false.into();
    let node = Node::new(&list(json!([
        plain,
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ])));
    // Each takes a second or two where processors are emulated.
    let rounds = std::env::var("BULKHEAD_PORT_ROUNDS").ok();
    let rounds: u16 = rounds.map_or(1, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let cycle = async |number: u16| {
            let pod = format!("port-{round}-{number}");
            let runtime = RuntimeSettings {
                port_mappings: vec![PortMapping {
                    host_port: 8100 + number,
                    container_port: 80,
                    protocol: "tcp".into(),
                    host_ip: String::new(),
                }],
                ..Default::default()
            };
            drop(node.attach(&pod, runtime).await.unwrap());
            node.networks.detach(&pod).await;
        };
        // Two plugins that make their common chains at once collide, in 1.1.1.
        if round == 0 {
            cycle(4).await;
        }
        tokio::join!(cycle(0), cycle(1), cycle(2), cycle(3));
    }
    let rules = run("nft", &["list", "ruleset"]);
    assert!(!rules.contains("dport 81"), "{rules}");
    node.finish(&["cni88"]);
}
