//! Pods on networks that Debian's CNI plugins make.

use crate::environment::{demo_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::node::Options;
use bulkhead_tests::pod::{self, Ended, Pod, container, exec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::Code;

const BRIDGE: &str = "cni77";
/// Microseconds, and those of each that a pod which floods may have.
const PERIOD: u32 = 100_000;
const FLOOD_QUOTA: i64 = 50_000;

/// A network's configuration, its plugins that are scripts, and what is left of it on the node.
pub(crate) struct Network {
    directory: TempDir,
}

impl Network {
    /// A bridge with both kinds of addresses, then these plugins.
    fn new(mut plugins: Vec<Value>) -> Self {
        let pool = json!({
            "type": "host-local",
            "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        });
        plugins.insert(
            0,
            json!({ "type": "bridge", "bridge": BRIDGE, "isGateway": true, "mtu": 1400, "ipam": pool }),
        );
        Self::of("e2e", plugins)
    }

    /// These plugins.
    pub(crate) fn of(name: &str, plugins: Vec<Value>) -> Self {
        let directory = TempDir::with_prefix("bulkhead-cni-").unwrap();
        let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins });
        fs::write(directory.path().join("10-e2e.conflist"), list.to_string()).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A plugin that runs a script and passes on the result of the one before.
    pub(crate) fn script(&self, name: &str, on_add: &str, on_del: &str) {
        let path = self.path().join(name);
        let text = format!(
            "#!/bin/sh\ncd {}\ninput=$(cat)\ncase $CNI_COMMAND in\nADD) {on_add}\n\
             echo \"$input\" | sed 's/.*\"prevResult\"://; s/,\"runtimeConfig\".*//; s/,\"type\".*//' ;;\n\
             DEL) {on_del} ;;\nesac\n",
            self.path().display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) async fn node(&self) -> (Node, String) {
        let path = self.path().display().to_string();
        let text = toml::Value::String;
        let network: toml::Table = [
            (
                "config_directories".to_owned(),
                vec![text(path.clone())].into(),
            ),
            (
                "plugin_directories".to_owned(),
                vec![text(path), text("/usr/lib/cni".to_owned())].into(),
            ),
            (
                "plugin_timeout_seconds".to_owned(),
                toml::Value::Integer(10),
            ),
        ]
        .into_iter()
        .collect();
        let options = Options {
            configure: Some(Box::new(|config| {
                config.insert("network".to_owned(), network.into());
            })),
            ..Default::default()
        };
        let node = Node::start_with(options).await.unwrap();
        let image = demo_image();
        pod::pull(&node, &image).await.unwrap();
        (node, image)
    }

    fn finish(self, node: Node) {
        run(&["ip", "link", "delete", BRIDGE]);
        node.finish().unwrap();
    }
}

pub(crate) fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn addresses(node: &Node, pod: &str) -> (String, String) {
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: false,
    };
    let answer = node.runtime().pod_sandbox_status(request).await.unwrap();
    let network = answer.into_inner().status.unwrap().network.unwrap();
    assert_eq!(network.additional_ips.len(), 1, "{network:?}");
    (network.ip, network.additional_ips[0].ip.clone())
}

async fn network_ready(node: &Node) -> (bool, String) {
    let status = node
        .runtime()
        .status(v1::StatusRequest::default())
        .await
        .unwrap();
    let conditions = status.into_inner().status.unwrap().conditions;
    let network = conditions
        .into_iter()
        .find(|one| one.r#type == "NetworkReady")
        .unwrap();
    (network.status, network.message)
}

fn has(ended: &Ended, words: &[&str]) {
    for word in words {
        assert!(ended.stdout.contains(word), "{word:?} is not in {ended:?}");
    }
}

/// A container with all capabilities in its pod.
fn powerful(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    let mut config = container(name, image, command);
    config.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    config
}

async fn shell(node: &Node, id: &str, script: &str) -> (i32, String) {
    let output = exec(node, id, &["sh", "-c", script], 30).await.unwrap();
    let both = [output.stdout, output.stderr].concat();
    (
        output.exit_code,
        String::from_utf8_lossy(&both).into_owned(),
    )
}

#[tokio::test]
async fn a_pod_has_its_network_word_for_word() {
    if !ready() {
        return;
    }
    let network = Network::new(vec![
        json!({ "type": "more-routes", "capabilities": { "ipRanges": true } }),
    ]);
    let more = "echo \"$input\" >seen; nsenter --net=$CNI_NETNS sh -ec 'ip route add 10.99.0.0/16 via 10.77.0.1 mtu 1300 advmss 1200 metric 77; \
        ip route add 10.98.0.0/16 via 192.0.2.1 dev eth0 onlink table 1000; ip route add blackhole 10.97.0.0/16; \
        ip neigh add 10.77.0.200 lladdr 02:00:00:00:00:c8 nud permanent dev eth0'";
    network.script("more-routes", more, ":");
    let (node, image) = network.node().await;
    assert_eq!(network_ready(&node).await, (true, String::new()));
    let told = v1::RuntimeConfig {
        network_config: Some(v1::NetworkConfig {
            pod_cidr: "10.77.0.0/24,fd77::/64".to_owned(),
        }),
    };
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(told),
    };
    node.runtime().update_runtime_config(request).await.unwrap();
    let mut config = pod::config(&node, "whole");
    config.hostname = "whole.sub.example".into();
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let (ipv4, ipv6) = addresses(&node, &pod.id).await;
    assert!(
        ipv4.starts_with("10.77.0.") && ipv6.starts_with("fd77::"),
        "{ipv4} {ipv6}"
    );
    let script = "ip addr show eth0; ip route; ip route show table 1000; ip -6 route; ip neigh; cat /etc/hosts; \
        ping -c 2 -w 10 10.77.0.1; ping -c 2 -w 10 fd77::1; cat /proc/net/route; cat /sys/class/net/eth0/address";
    let ended = pod.script(&image, script).await.unwrap();
    let address4 = format!("inet {ipv4}/24");
    let address6 = format!("inet6 {ipv6}/64");
    let hosts = format!("{ipv4}\twhole.sub.example whole");
    has(&ended, &[&address4, &address6, "mtu 1400", &hosts]);
    has(
        &ended,
        &[
            "default via 10.77.0.1",
            "10.99.0.0/16 via 10.77.0.1",
            "metric 77",
            // In /proc/net/route: the advertised segment size and 40.
            "1240",
        ],
    );
    has(
        &ended,
        &[
            "10.98.0.0/16 via 192.0.2.1",
            "blackhole 10.97.0.0/16",
            "default via fd77::1",
            "02:00:00:00:00:c8",
        ],
    );
    has(&ended, &["2 packets transmitted, 2 packets received"]);
    assert_eq!(
        ended.stdout.matches("0% packet loss").count(),
        2,
        "{ended:?}"
    );
    assert!(!ended.stdout.contains("tentative"), "{ended:?}");
    let seen = fs::read(network.path().join("seen")).unwrap();
    let seen: Value = serde_json::from_slice(&seen).unwrap();
    let ranges = json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]]);
    assert_eq!(seen["runtimeConfig"]["ipRanges"], ranges, "{seen}");
    let info = pod::info(&node, &pod.id).await.unwrap();
    let phases = info["phases"].to_string();
    assert!(phases.contains("\"network\""), "{phases}");
    pod.remove().await.unwrap();
    network.finish(node);
}

#[tokio::test]
async fn pods_reach_each_other_and_the_nodes_ports_reach_them() {
    if !ready() {
        return;
    }
    let network = Network::new(vec![
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
    ]);
    let (node, image) = network.node().await;
    let mut config = pod::config(&node, "server");
    // Two virtual CPUs, with a pair of queues each.
    config.linux = limited(150_000);
    config.port_mappings = vec![v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 8077,
        host_ip: String::new(),
    }];
    let server = Pod::run_config(&node, config, "").await.unwrap();
    let (ipv4, ipv6) = addresses(&node, &server.id).await;
    let serve = "mkdir -p /tmp/www; head -c 3000000 /dev/zero >/tmp/www/large; echo hello-from-pod >/tmp/www/index.html; \
        exec httpd -f -p 80 -h /tmp/www";
    let id = server
        .start(container("httpd", &image, &["sh", "-c", serve]))
        .await
        .unwrap();
    let (code, said) = shell(
        &node,
        &id,
        "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done",
    )
    .await;
    assert!(code == 0 && said.contains("hello-from-pod"), "{said}");
    let (_, queues) = shell(&node, &id, "ls /sys/class/net/eth0/queues").await;
    assert_eq!(queues, "rx-0\nrx-1\ntx-0\ntx-1\n");
    let mut config = pod::config(&node, "client");
    config.linux = limited(FLOOD_QUOTA);
    let client = Pod::run_config(&node, config, "").await.unwrap();
    let script = format!(
        "wget -q -O - http://{ipv4}/; wget -q -O - 'http://[{ipv6}]/'; wget -q -O - http://{ipv4}/large | wc -c"
    );
    let before = sent_to_pods();
    let ended = client.script(&image, &script).await.unwrap();
    assert_eq!(
        ended.stdout, "hello-from-pod\nhello-from-pod\n3000000\n",
        "{ended:?}"
    );
    // What a TCP stream has in one piece stays in one piece from guest to guest: segmentation is nobody's work.
    let sizes = sent_to_pods()
        .into_iter()
        .filter_map(|(name, [bytes, packets])| {
            let [bytes_before, packets_before] = before.get(&name).copied().unwrap_or_default();
            (bytes - bytes_before).checked_div(packets - packets_before)
        });
    // On average, where no packet that is in pieces has more than the MTU and its Ethernet header. How much more is
    // TCP's affair: on a slow path it makes pieces of two segments.
    let largest = sizes.max().unwrap();
    assert!(largest > 1500 + 14, "{largest} bytes in a packet");
    for address in ["127.0.0.1", "10.77.0.1"] {
        let url = format!("http://{address}:8077/");
        let got = run(&[
            "busybox", "timeout", "20", "busybox", "wget", "-q", "-O", "-", &url,
        ]);
        assert_eq!(got, "hello-from-pod\n", "{address}");
    }
    others_go_on_beside_a_flood(&node, &client, &image).await;
    client.remove().await.unwrap();
    server.remove().await.unwrap();
    network.finish(node);
}

/// Bytes and packets that the node has sent to each of the bridge's ports.
fn sent_to_pods() -> BTreeMap<String, [u64; 2]> {
    let ports = fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif")).unwrap();
    let names = ports.map(|port| port.unwrap().file_name().into_string().unwrap());
    let counted = names.map(|name| {
        let counters = ["tx_bytes", "tx_packets"].map(|counter| {
            let path = format!("/sys/class/net/{name}/statistics/{counter}");
            fs::read_to_string(path).unwrap().trim().parse().unwrap()
        });
        (name, counters)
    });
    counted.collect()
}

fn limited(cpu_quota: i64) -> Option<v1::LinuxPodSandboxConfig> {
    Some(v1::LinuxPodSandboxConfig {
        resources: Some(v1::LinuxContainerResources {
            cpu_quota,
            cpu_period: i64::from(PERIOD),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A pod that sends whatever it can: the node's ports and the daemon answer, and what the sending costs is
/// taken from the pod's own share.
async fn others_go_on_beside_a_flood(node: &Node, pod: &Pod<'_>, image: &str) {
    let ping = |address: &str| format!("ping -i 0.0001 -s 1 -q {address} >/dev/null &");
    // To one, and to all.
    let (one, all) = (ping("10.77.0.1"), ping("10.77.0.255"));
    let flood = format!("{one} {one} {all} wait");
    let flood = container("flood", image, &["sh", "-c", &flood]);
    pod.start(flood).await.unwrap();
    let info = pod::info(node, &pod.id).await.unwrap();
    let cgroup = format!("/sys/fs/cgroup/{}", info["cgroup"].as_str().unwrap());
    let number = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix(key));
        found.unwrap().trim().parse::<u64>().unwrap()
    };
    let used = || number(&format!("{cgroup}/cpu.stat"), "usage_usec ");
    let received = format!("/sys/class/net/{BRIDGE}/statistics/rx_packets");
    let packets = || number(&received, "");
    let (first, began) = (packets(), Instant::now());
    while packets() < first + 100 {
        assert!(began.elapsed() < Duration::from_secs(60), "no flood");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (began, before) = (Instant::now(), (packets(), used()));
    let got = run(&[
        "busybox",
        "timeout",
        "20",
        "busybox",
        "wget",
        "-q",
        "-O",
        "-",
        "http://10.77.0.1:8077/",
    ]);
    assert_eq!(got, "hello-from-pod\n");
    assert!(network_ready(node).await.0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(packets() > before.0 + 100, "the flood is over");
    let spent = used() - before.1;
    // What is spent in the kernel for a packet may overrun a period by a little; it is paid back later.
    let periods = began.elapsed().as_micros() / u128::from(PERIOD) + 2;
    let share = u64::try_from(periods).unwrap() * FLOOD_QUOTA.unsigned_abs();
    assert!(spent <= share * 11 / 10, "{spent} of {share} us");
}

#[tokio::test]
async fn what_is_not_the_pods_own_does_not_leave_it() {
    if !ready() {
        return;
    }
    let network = Network::new(Vec::new());
    let (node, image) = network.node().await;
    let pod = Pod::run(&node, "spoofs").await.unwrap();
    let id = pod
        .start(powerful("sleeps", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let reaches = "ping -c 1 -w 5 10.77.0.1";
    assert_eq!(shell(&node, &id, reaches).await.0, 0);
    let forged = "ip addr add 10.77.0.250/24 dev eth0; ping -I 10.77.0.250 -c 3 -w 4 10.77.0.1; \
        arping -U -c 2 -I eth0 -s 10.77.0.250 10.77.0.250; arping -U -c 2 -I eth0 -s 10.77.0.1 10.77.0.1";
    let (code, said) = shell(&node, &id, forged).await;
    assert!(said.contains("100% packet loss"), "{code} {said}");
    let neighbours = run(&["ip", "neigh", "show", "dev", BRIDGE]);
    assert!(!neighbours.contains("10.77.0.250"), "{neighbours}");
    let forged = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up; \
        ip route add 10.77.0.0/24 dev eth0; ping -c 3 -w 4 10.77.0.1";
    let (_, said) = shell(&node, &id, forged).await;
    assert!(said.contains("100% packet loss"), "{said}");
    let learned = fs::read_to_string("/proc/net/arp").unwrap();
    assert!(!learned.contains("02:00:00:00:00:99"), "{learned}");
    pod.remove().await.unwrap();
    network.finish(node);
}

#[tokio::test]
async fn a_network_that_fails_is_one_clear_error_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let network = Network::new(vec![json!({ "type": "fails" })]);
    let (node, _) = network.node().await;
    let (is_ready, why) = network_ready(&node).await;
    assert!(
        !is_ready && why.contains("\"fails\" is in none of"),
        "{why}"
    );
    network.script("fails", "echo broken >&2; exit 3", ":");
    let refused = Pod::run(&node, "refused").await.err().unwrap();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert!(
        refused
            .message()
            .contains("\"fails\" failed at ADD: it exited with status 3; it said: broken"),
        "{refused}"
    );
    network.script("fails", "sleep 1000", ":");
    let late = Pod::run(&node, "late").await.err().unwrap();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    // DEL fails three times: StopPodSandbox does not wait for it, and it is done all the same.
    network.script(
        "fails",
        ":",
        "echo x >>deleted; [ $(wc -l <deleted) -gt 3 ] || exit 1",
    );
    let pod = Pod::run(&node, "stubborn").await.unwrap();
    pod.remove().await.unwrap();
    let began = Instant::now();
    while !node.leaks().is_empty() {
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(60), "{:?}", node.leaks());
        tokio::time::sleep(Duration::from_millis(200)).await;
        if fs::read_dir(node.path().join("state/netns"))
            .unwrap()
            .count()
            == 0
        {
            break;
        }
    }
    fs::remove_file(network.path().join("10-e2e.conflist")).unwrap();
    let none = Pod::run(&node, "none").await.err().unwrap();
    assert_eq!(none.code(), Code::FailedPrecondition, "{none}");
    assert!(none.message().contains("no CNI configuration"), "{none}");
    assert!(!network_ready(&node).await.0);
    network.finish(node);
}

#[tokio::test]
async fn a_daemon_that_is_killed_finds_networks_again() {
    if !ready() {
        return;
    }
    let network = Network::new(vec![json!({ "type": "waits" })]);
    network.script(
        "waits",
        "[ ! -e slow ] || { touch began; sleep 1000; }",
        ":",
    );
    let (mut node, image) = network.node().await;
    let (kept, id, before) = {
        let pod = Pod::run(&node, "kept").await.unwrap();
        let id = pod
            .start(container("sleeps", &image, &["sleep", "1000"]))
            .await
            .unwrap();
        let before = addresses(&node, &pod.id).await;
        (pod.id, id, before)
    };
    // One more is between ADD and Ready when the daemon dies.
    fs::write(network.path().join("slow"), "").unwrap();
    let request = v1::RunPodSandboxRequest {
        config: Some(pod::config(&node, "half")),
        ..Default::default()
    };
    let mut runtime = node.runtime();
    let half = tokio::spawn(async move { runtime.run_pod_sandbox(request).await });
    while !network.path().join("began").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fs::remove_file(network.path().join("slow")).unwrap();
    node.kill_and_restart().await.unwrap();
    assert!(half.await.unwrap().is_err());
    // And one that has its network when the daemon dies, and whose guest still boots.
    let request = v1::RunPodSandboxRequest {
        config: Some(pod::config(&node, "booting")),
        ..Default::default()
    };
    let mut runtime = node.runtime();
    let booting = tokio::spawn(async move { runtime.run_pod_sandbox(request).await });
    let logs = || {
        let pods = fs::read_dir(node.path().join("state/pods")).unwrap();
        let pods = pods.map(|pod| pod.unwrap().path().join("vmm.log"));
        pods.filter(|log| log.exists()).count()
    };
    // The other one is the kept pod's.
    while logs() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.kill_and_restart().await.unwrap();
    assert!(booting.await.unwrap().is_err());
    assert_eq!(addresses(&node, &kept).await, before);
    assert_eq!(shell(&node, &id, "ping -c 1 -w 5 10.77.0.1").await.0, 0);
    let pins = || {
        fs::read_dir(node.path().join("state/netns"))
            .unwrap()
            .count()
    };
    assert_eq!(pins(), 1, "{}", node.log());
    let stop = v1::RemovePodSandboxRequest {
        pod_sandbox_id: kept,
    };
    node.runtime().remove_pod_sandbox(stop).await.unwrap();
    assert_eq!(pins(), 0);
    network.finish(node);
}
