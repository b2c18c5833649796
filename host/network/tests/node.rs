//! Networks as Debian's plugins make them, with a real kernel: `scripts/test-guest` runs this in the lab.
//!
//! There is no VM: packets are written into the tap as a VMM would, or a namespace is behind it.

#[path = "node/guest.rs"]
mod guest;
#[path = "node/traffic.rs"]
mod traffic;

use bulkhead_network::cni::{Bandwidth, PortMapping, RuntimeSettings};
use bulkhead_network::{Networks, PodNetwork, PodRequest, Settings};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whether plugins may be let loose on this machine.
fn ready() -> bool {
    let lab = std::env::var_os("BULKHEAD_LAB").is_some();
    if !lab {
        eprintln!(
            "skipped: it changes the machine's network; scripts/test-guest runs it in the lab"
        );
    }
    lab
}

struct Node {
    directory: TempDir,
    networks: Networks,
    before: BTreeSet<String>,
}

impl Node {
    fn new(list: &Value) -> Self {
        let before = things();
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("net.d")).unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        let node = Self {
            networks: Networks::open(settings(directory.path())).unwrap(),
            before,
            directory,
        };
        node.configure(list);
        node
    }

    fn configure(&self, list: &Value) {
        let path = self.directory.path().join("net.d/10-net.conflist");
        fs::write(path, list.to_string()).unwrap();
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.directory.path().join("bin").join(name);
        let text = format!(
            "#!/bin/sh\ncd {}\n{text}\n",
            self.directory.path().display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn attach(
        &self,
        pod: &str,
        runtime: RuntimeSettings,
    ) -> bulkhead_network::Result<PodNetwork> {
        let request = PodRequest {
            id: pod.into(),
            namespace: "test".into(),
            name: pod.into(),
            uid: format!("uid-{pod}"),
            runtime,
        };
        self.networks.attach(request, std::future::pending()).await
    }

    /// The links that plugins make once and leave.
    fn finish(self, links: &[&str]) {
        for link in links {
            run("ip", &["link", "delete", link]);
        }
        for name in ["netns", "network"] {
            let left = fs::read_dir(self.directory.path().join(name)).unwrap();
            assert_eq!(left.count(), 0, "{name} has something left");
        }
        let left: Vec<_> = things().difference(&self.before).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn settings(directory: &Path) -> Settings {
    Settings {
        config_directories: vec![directory.join("net.d")],
        plugin_directories: vec![directory.join("bin"), "/usr/lib/cni".into()],
        plugin_limit: Duration::from_secs(60),
        delete_wait: Duration::from_secs(60),
        namespaces: directory.join("netns"),
        attachments: directory.join("network"),
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    text
}

/// Links, namespaces, leases and rules of pods.
fn things() -> BTreeSet<String> {
    let mut things = BTreeSet::new();
    for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
        things.insert(format!("link {}", entry.file_name().display()));
    }
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        if line.starts_with("nsfs") {
            things.insert(format!("mount {line}"));
        }
    }
    for network in fs::read_dir("/var/lib/cni/networks")
        .into_iter()
        .flatten()
        .flatten()
    {
        for lease in fs::read_dir(network.path()).into_iter().flatten().flatten() {
            let name = lease.file_name().to_string_lossy().into_owned();
            if name != "lock" && !name.starts_with("last_reserved") {
                things.insert(format!("lease {name}"));
            }
        }
    }
    for line in run("nft", &["list", "ruleset"]).lines() {
        // Plugins leave their own empty chains; what is a pod's has its id or its address.
        if line.contains("id:") || line.contains("10.88.") {
            things.insert(format!("rule {}", line.trim()));
        }
    }
    things
}

fn list(plugins: Value) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "lab", "plugins": plugins })
}

fn pool() -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd88::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    })
}

fn bridge() -> Value {
    json!({ "type": "bridge", "bridge": "cni88", "isGateway": true, "ipMasq": true, "mtu": 1400, "ipam": pool() })
}

/// A frame behind a virtio header, written as the guest's VMM does.
fn send(tap: &OwnedFd, source: [u8; 6], from: [u8; 4]) {
    let mut packet = vec![0; 10];
    packet.extend([0xff; 6]);
    packet.extend(source);
    packet.extend([8, 0]);
    let mut header = [0; 20];
    (header[0], header[3], header[8], header[9]) = (0x45, 20, 64, 17);
    header[12..16].copy_from_slice(&from);
    header[16..20].copy_from_slice(&[10, 88, 255, 255]);
    packet.extend(header);
    assert_eq!(rustix::io::write(tap, &packet).unwrap(), packet.len());
}

fn ipv4(network: &PodNetwork) -> [u8; 4] {
    let found = network.ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    found.unwrap()
}

/// What the pod has sent, as its interface counts.
async fn sent(node: &Node, pod: &str) -> u64 {
    let counters = node.networks.counters(pod).await.unwrap();
    let (_, counters) = counters.iter().find(|(name, _)| name == "eth0").unwrap();
    counters.tx_packets
}

/// Joins a tap and checks that only the pod's own packets leave by it.
async fn only_its_own_leave(node: &Node, pod: &str, network: &PodNetwork) {
    let taps = node.networks.taps(pod, network, 1, false).await.unwrap();
    let (mac, ip) = (network.interfaces[0].mac, ipv4(network));
    let tap = &taps[0][0];
    // The kernel speaks on the interface too, so the forged ones are many.
    let before = sent(node, pod).await;
    for _ in 0..200 {
        send(tap, [2, 9, 9, 9, 9, 9], ip);
        send(tap, mac, [10, 88, 200, 200]);
    }
    let forged = sent(node, pod).await - before;
    assert!(forged < 100, "{forged} of 400 forged packets left");
    for _ in 0..200 {
        send(tap, mac, ip);
    }
    let own = sent(node, pod).await - before - forged;
    assert!((200..300).contains(&own), "{own} of 200 own packets left");
}

#[tokio::test]
async fn a_bridge_with_everything_chained_to_it() {
    if !ready() {
        return;
    }
    let node = Node::new(&list(json!([
        bridge(),
        { "type": "tuning", "mac": "02:00:00:88:00:01" },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        { "type": "firewall" },
    ])));
    node.networks.status().await.unwrap();
    let runtime = RuntimeSettings {
        port_mappings: vec![PortMapping {
            host_port: 8088,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: String::new(),
        }],
        bandwidth: Some(Bandwidth {
            ingress_rate: 10_000_000,
            ingress_burst: 1_000_000,
            egress_rate: 10_000_000,
            egress_burst: 1_000_000,
        }),
        ..Default::default()
    };
    let network = node.attach("chained", runtime).await.unwrap();
    let [one] = network.interfaces.as_slice() else {
        panic!("{:?}", network.interfaces);
    };
    assert_eq!((one.name.as_str(), one.mtu, one.ipv6), ("eth0", 1400, true));
    assert_eq!(one.mac, [2, 0, 0, 0x88, 0, 1]);
    assert_eq!(network.ips.len(), 2, "{:?}", network.ips);
    let gateways = one.routes.iter().filter(|route| route.gateway.is_some());
    assert_eq!(gateways.count(), 2, "{:?}", one.routes);
    assert!(run("nft", &["list", "ruleset"]).contains("8088"));
    only_its_own_leave(&node, "chained", &network).await;
    drop(network);
    node.networks.detach("chained").await;
    node.finish(&["cni88"]);
}

#[tokio::test]
async fn other_kinds_of_interfaces() {
    if !ready() {
        return;
    }
    let lower = "lower88";
    for (plugin, links) in [
        (
            json!({ "type": "ptp", "ipMasq": true, "mtu": 9000, "ipam": pool() }),
            vec![],
        ),
        (
            json!({ "type": "macvlan", "master": lower, "mtu": 1400, "ipam": pool() }),
            vec![lower],
        ),
        (
            json!({ "type": "ipvlan", "master": lower, "mtu": 1400, "ipam": pool() }),
            vec![lower],
        ),
        (
            json!({ "type": "vlan", "master": lower, "vlanId": 88, "ipam": pool() }),
            vec![lower],
        ),
        (
            json!({ "type": "bridge", "bridge": "cni88", "ipam": { "type": "static",
                "addresses": [{ "address": "10.88.7.7/24", "gateway": "10.88.7.1" }] } }),
            vec!["cni88"],
        ),
    ] {
        let node = Node::new(&list(json!([plugin])));
        if links.contains(&lower) {
            run("ip", &["link", "add", lower, "type", "dummy"]);
            run("ip", &["link", "set", lower, "up", "mtu", "9000"]);
        }
        let network = node.attach("other", Default::default()).await;
        let network = network.unwrap_or_else(|error| panic!("{plugin}: {error}"));
        if let Some(mtu) = plugin.get("mtu").and_then(Value::as_u64) {
            assert_eq!(u64::from(network.interfaces[0].mtu), mtu, "{plugin}");
        }
        node.networks.check("other").await.unwrap();
        only_its_own_leave(&node, "other", &network).await;
        drop(network);
        node.networks.detach("other").await;
        node.finish(&links);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_leave_nothing() {
    if !ready() {
        return;
    }
    // Without rules of the host's firewall, whose programs are slow here.
    let mut plain = bridge();
    plain["ipMasq"] = false.into();
    let node = Node::new(&list(json!([plain])));
    for round in 0..25 {
        let pods: Vec<String> = (0..4).map(|one| format!("pod-{round}-{one}")).collect();
        let cycle = async |pod: &String| {
            let network = node.attach(pod, Default::default()).await.unwrap();
            let taps = node.networks.taps(pod, &network, 2, false).await.unwrap();
            assert_eq!(taps[0].len(), 2);
            drop((network, taps));
            node.networks.detach(pod).await;
        };
        tokio::join!(
            cycle(&pods[0]),
            cycle(&pods[1]),
            cycle(&pods[2]),
            cycle(&pods[3])
        );
    }
    node.finish(&["cni88"]);
}

#[tokio::test]
async fn del_is_repeated_until_it_succeeds() {
    if !ready() {
        return;
    }
    let node = Node::new(&list(json!([bridge(), { "type": "stubborn" }])));
    node.script(
        "stubborn",
        "input=$(cat)\nif [ $CNI_COMMAND = DEL ]; then echo x >>deleted; [ $(wc -l <deleted) -gt 3 ] || exit 1; exit 0; fi\n\
         echo \"$input\" | sed 's/.*\"prevResult\"://; s/,\"type\".*//'",
    );
    drop(node.attach("stubborn", Default::default()).await.unwrap());
    node.networks.detach("stubborn").await;
    let deleted = || fs::read_to_string(node.directory.path().join("deleted")).unwrap_or_default();
    assert_eq!(
        deleted().lines().count(),
        1,
        "the pod waits for the first attempt only"
    );
    assert!(
        things().iter().any(|thing| thing.starts_with("lease")),
        "it is not done yet"
    );
    let began = Instant::now();
    let namespace = node.directory.path().join("netns/stubborn");
    while namespace.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", deleted());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One that has gone can go again.
    node.networks.detach("stubborn").await;
    assert_eq!(deleted().lines().count(), 4);
    node.finish(&["cni88"]);
}

#[tokio::test]
async fn a_failed_add_and_a_daemon_that_died_leave_nothing() {
    if !ready() {
        return;
    }
    let node = Node::new(&list(json!([bridge(), { "type": "garbage" }])));
    node.script("garbage", "[ $CNI_COMMAND = DEL ] || echo nonsense");
    let error = node.attach("failed", Default::default()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"garbage\" failed at ADD: its output is not JSON"),
        "{error}"
    );
    node.networks.detach("failed").await;
    // The next one is added, and the daemon dies; another takes its place when the node has been given
    // another network.
    node.script("garbage", "input=$(cat)\n[ $CNI_COMMAND = DEL ] || echo \"$input\" | sed 's/.*\"prevResult\"://; s/,\"type\".*//'");
    drop(node.attach("killed", Default::default()).await.unwrap());
    drop(node.attach("living", Default::default()).await.unwrap());
    fs::remove_file(node.directory.path().join("net.d/10-net.conflist")).unwrap();
    let next = Networks::open(settings(node.directory.path())).unwrap();
    next.recover(["living".to_owned()].into()).await.unwrap();
    next.detach("killed").await;
    let left: Vec<_> = fs::read_dir(node.directory.path().join("netns"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].file_name(), "living");
    assert!(
        next.status().await.is_err(),
        "without a configuration there is no network"
    );
    next.detach("living").await;
    node.finish(&["cni88"]);
}

#[tokio::test]
async fn a_pod_that_is_stopped_while_it_is_added_leaves_nothing() {
    if !ready() {
        return;
    }
    let node = Node::new(&list(json!([bridge(), { "type": "slow" }])));
    node.script(
        "slow",
        "[ $CNI_COMMAND = DEL ] || { touch began; sleep 1000; }",
    );
    let began = node.directory.path().join("began");
    let stopped = async {
        while !began.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let request = PodRequest {
        id: "stopped".into(),
        ..Default::default()
    };
    let error = node.networks.attach(request, stopped).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("stopped while its network was made"),
        "{error}"
    );
    node.networks.detach("stopped").await;
    node.finish(&["cni88"]);
}
