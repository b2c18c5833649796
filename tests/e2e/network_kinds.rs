//! Interfaces of other plugins than a bridge, and several of them, as a VM's.

use crate::environment::ready;
use crate::network::{Network, run};
use bulkhead_cri::v1;
use bulkhead_tests::pod::Pod;
use serde_json::{Value, json};

/// A link of the node whose other end is in a namespace, as another machine's would be.
struct FarMachine;

const LINK: &str = "up79";
const FAR: &str = "far79";

impl FarMachine {
    fn new() -> Self {
        run(&["ip", "netns", "add", FAR]);
        run(&[
            "ip", "link", "add", LINK, "type", "veth", "peer", "name", FAR, "netns", FAR,
        ]);
        run(&["ip", "link", "set", LINK, "up"]);
        let vlan = format!("{FAR}.5");
        run(&[
            "ip", "-n", FAR, "link", "add", "link", FAR, "name", &vlan, "type", "vlan", "id", "5",
        ]);
        for (device, address) in [(FAR, "10.78.0.1/24"), (vlan.as_str(), "10.79.0.1/24")] {
            run(&["ip", "-n", FAR, "address", "add", address, "dev", device]);
            run(&["ip", "-n", FAR, "link", "set", device, "up"]);
        }
        Self
    }
}

impl Drop for FarMachine {
    fn drop(&mut self) {
        run(&["ip", "netns", "delete", FAR]);
    }
}

fn addresses(network: &str) -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{
            "subnet": format!("{network}.0/24"),
            "rangeStart": format!("{network}.10"),
            "gateway": format!("{network}.1"),
        }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    })
}

#[tokio::test]
async fn a_vm_speaks_through_whatever_interface_a_plugin_makes() {
    if !ready() {
        return;
    }
    let far = FarMachine::new();
    for (name, peer, plugin) in [
        (
            "ptp",
            "10.76.0.1",
            json!({ "type": "ptp", "ipam": addresses("10.76.0") }),
        ),
        (
            "macvlan",
            "10.78.0.1",
            json!({ "type": "macvlan", "master": LINK, "mode": "bridge", "ipam": addresses("10.78.0") }),
        ),
        (
            "vlan",
            "10.79.0.1",
            json!({ "type": "vlan", "master": LINK, "vlanId": 5, "ipam": addresses("10.79.0") }),
        ),
    ] {
        let network = Network::of(name, vec![plugin]);
        let (node, image) = network.node().await;
        let pod = Pod::run(&node, name).await.unwrap();
        let script = format!("ping -c 3 -W 10 {peer}; ip route; ip -o link show eth0");
        let ended = pod.script(&image, &script).await.unwrap();
        assert!(
            ended.stdout.contains(" 0% packet loss"),
            "{name}: {ended:?}"
        );
        assert!(
            ended.stdout.contains(&format!("default via {peer}")),
            "{name}: {ended:?}"
        );
        pod.remove().await.unwrap();
        node.finish().unwrap();
    }
    drop(far);
}

#[tokio::test]
async fn a_vm_has_every_interface_that_plugins_make() {
    if !ready() {
        return;
    }
    let first = json!({
        "type": "bridge", "bridge": "cni74", "isGateway": true, "ipam": addresses("10.74.0"),
    });
    // As Multus does it: one more plugin of another network, for an interface of its own name. What it
    // answers is the first network's result.
    let mut second = json!({
        "cniVersion": "1.0.0", "name": "storage", "type": "bridge", "bridge": "cni75", "isGateway": true,
        "mtu": 9000, "ipam": addresses("10.75.0"),
    });
    second["ipam"]["routes"] = json!([{ "dst": "10.200.0.0/16", "gw": "10.75.0.1" }]);
    let network = Network::of("two", vec![first, json!({ "type": "second" })]);
    let config = second.to_string();
    let delegate = format!("echo '{config}' | CNI_IFNAME=net1 /usr/lib/cni/bridge");
    network.script("second", &format!("{delegate} >&2"), &delegate);
    let (node, image) = network.node().await;
    let pod = Pod::run(&node, "two").await.unwrap();
    let script = "ls /sys/class/net; ip -4 -o addr; ip route; cat /sys/class/net/net1/mtu; \
        ping -c 2 -W 10 10.74.0.1; ping -c 2 -W 10 -s 8000 10.75.0.1";
    let ended = pod.script(&image, script).await.unwrap();
    assert!(ended.stdout.starts_with("eth0\nlo\nnet1\n"), "{ended:?}");
    for word in [
        "eth0    inet 10.74.0.10/24",
        "net1    inet 10.75.0.10/24",
        "default via 10.74.0.1 dev eth0",
        "10.200.0.0/16 via 10.75.0.1 dev net1",
        "\n9000\n",
    ] {
        assert!(ended.stdout.contains(word), "{word:?} is not in {ended:?}");
    }
    let answered = ended.stdout.matches(" 0% packet loss").count();
    assert_eq!(answered, 2, "{ended:?}");
    // The pod's address is the first interface's; the counters are those of both.
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let answer = node.runtime().pod_sandbox_status(request).await.unwrap();
    let told = answer.into_inner().status.unwrap().network.unwrap();
    assert_eq!(
        (told.ip.as_str(), told.additional_ips.len()),
        ("10.74.0.10", 0)
    );
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let answer = node.runtime().pod_sandbox_stats(request).await.unwrap();
    let stats = answer
        .into_inner()
        .stats
        .unwrap()
        .linux
        .unwrap()
        .network
        .unwrap();
    let received = |one: &v1::NetworkInterfaceUsage| one.rx_bytes.unwrap().value;
    let large = stats
        .interfaces
        .iter()
        .find(|one| one.name == "net1")
        .unwrap();
    assert!(received(large) > 16_000, "{stats:?}");
    let default = stats.default_interface.as_ref().unwrap();
    assert!(default.name == "eth0" && received(default) > 0, "{stats:?}");
    pod.remove().await.unwrap();
    for bridge in ["cni74", "cni75"] {
        run(&["ip", "link", "delete", bridge]);
    }
    node.finish().unwrap();
}
