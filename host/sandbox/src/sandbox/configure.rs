//! How large a pod's VM is and what its agent is told.

use crate::phases::wall_clock_ns;
use crate::record::{SandboxRecord, VmSize};
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::{ConfigureRequest, File};
use bulkhead_cri::v1;
use bulkhead_network::PodNetwork;
use bulkhead_vmm_api::DiskSlot;
use std::net::IpAddr;
use tokio::io::AsyncReadExt;

/// The most virtual CPUs that a VM has.
const MAX_VCPUS: i64 = 32;
/// The least memory for a pod's containers, MiB; less than this cannot work.
const MIN_MEMORY_MIB: u64 = 16;
/// Size of `/dev/shm`, as containerd's.
const SHM_BYTES: u64 = 64 << 20;

/// The node's own resolver, and how many bytes of it a pod gets.
const NODE_RESOLVER: &str = "/etc/resolv.conf";
const MAX_RESOLVER: u64 = 64 << 10;

/// By the request's `linux.resources` and `linux.overhead`, else by the runtime handler.
pub(super) fn size(record: &SandboxRecord) -> Result<VmSize> {
    let runtime = &record.runtime;
    let linux = record.config.linux.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let overhead = linux.overhead.unwrap_or_default();
    let vcpus = match (resources.cpu_quota, resources.cpu_period) {
        (quota, period) if quota > 0 && period > 0 => {
            (quota.saturating_add(period - 1) / period).clamp(1, MAX_VCPUS)
        }
        _ => i64::from(runtime.cpus),
    };
    let memory_mib = mib(resources.memory_limit_in_bytes).unwrap_or(runtime.memory_mib);
    if memory_mib < MIN_MEMORY_MIB {
        return Err(SandboxError::InvalidField {
            field: "config.linux.resources.memory_limit_in_bytes",
            problem: format!(
                "{memory_mib} MiB is too little for a pod; {MIN_MEMORY_MIB} MiB is the least"
            ),
        });
    }
    let overhead_mib = mib(overhead.memory_limit_in_bytes)
        .unwrap_or(0)
        .max(runtime.overhead_mib);
    Ok(VmSize {
        vcpus: u8::try_from(vcpus).unwrap_or(1),
        memory_mib: memory_mib.saturating_add(overhead_mib),
        pod_memory_mib: memory_mib,
    })
}

/// Bytes in MiB, rounded up; `None` where the request says nothing.
fn mib(bytes: i64) -> Option<u64> {
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
    Some(bytes.div_ceil(1 << 20))
}

/// What the agent is told to make the guest into this pod.
pub(super) async fn request(
    record: &SandboxRecord,
    network: Option<&PodNetwork>,
    scratch: DiskSlot,
) -> ConfigureRequest {
    let config = &record.config;
    let hostname = match config.hostname.is_empty() {
        true => config
            .metadata
            .as_ref()
            .map(|meta| meta.name.clone())
            .unwrap_or_default(),
        false => config.hostname.clone(),
    };
    let mut request = ConfigureRequest::new();
    request.files = vec![
        file("hostname", format!("{hostname}\n")),
        file("hosts", hosts(&hostname, &record.ips)),
        file("resolv.conf", resolver(record, network).await),
    ];
    request.hostname = hostname;
    request.scratch_disk = scratch.serial();
    let linux = config.linux.clone().unwrap_or_default();
    let options = linux
        .security_context
        .and_then(|security| security.namespace_options);
    let user = options.and_then(|options| options.userns_options);
    request.sysctls = linux.sysctls;
    if user.is_some_and(|user| user.mode() == v1::NamespaceMode::Pod) {
        // The pod's network is the guest's, in which the root of a user namespace has no
        // capabilities: it must not need them for low ports and for ping.
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ] {
            let entry = request.sysctls.entry(name.to_owned());
            entry.or_insert_with(|| value.to_owned());
        }
    }
    request.time_ns = u64::try_from(wall_clock_ns()).unwrap_or(0);
    request.shm_size = SHM_BYTES;
    request
}

fn file(name: &str, content: String) -> File {
    let mut file = File::new();
    file.name = name.to_owned();
    file.content = content.into_bytes();
    file.mode = 0o644;
    file
}

/// `/etc/hosts`: the pod's name stands for its addresses, a name with dots for the one before the first
/// too.
fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let names = match hostname.split_once('.') {
        Some((short, _)) if !short.is_empty() => format!("{hostname} {short}"),
        _ => hostname.to_owned(),
    };
    let own: Vec<String> = match ips {
        [] => vec!["127.0.1.1".to_owned()],
        ips => ips.iter().map(IpAddr::to_string).collect(),
    };
    for ip in own {
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text
}

/// `/etc/resolv.conf`: what the request says, else what the plugins say, else the node's.
async fn resolver(record: &SandboxRecord, network: Option<&PodNetwork>) -> String {
    let dns = record.config.dns_config.clone().unwrap_or_default();
    let text = resolv_conf(&dns);
    let Some(network) = network.filter(|_| text.is_empty()) else {
        return text;
    };
    if !network.dns.is_empty() {
        let dns = network.dns.clone();
        return resolv_conf(&v1::DnsConfig {
            servers: dns.nameservers,
            searches: dns.search,
            options: dns.options,
        });
    }
    let mut text = String::new();
    if let Ok(file) = tokio::fs::File::open(NODE_RESOLVER).await {
        // A node without one has nothing to say.
        let _ = file.take(MAX_RESOLVER).read_to_string(&mut text).await;
    }
    text
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut lines = Vec::new();
    if !dns.searches.is_empty() {
        lines.push(format!("search {}\n", dns.searches.join(" ")));
    }
    lines.extend(
        dns.servers
            .iter()
            .map(|server| format!("nameserver {server}\n")),
    );
    if !dns.options.is_empty() {
        lines.push(format!("options {}\n", dns.options.join(" ")));
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::{hosts, resolv_conf, size};
    use crate::config::RuntimeConfig;
    use crate::record::{SandboxRecord, VmSize};
    use bulkhead_cri::v1;

    fn sized(quota: i64, memory: i64, overhead: i64) -> crate::Result<(u8, u64)> {
        let resources = |memory_limit_in_bytes, cpu_quota| v1::LinuxContainerResources {
            memory_limit_in_bytes,
            cpu_quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let linux = v1::LinuxPodSandboxConfig {
            resources: Some(resources(memory, quota)),
            overhead: Some(resources(overhead, 0)),
            ..Default::default()
        };
        let VmSize {
            vcpus, memory_mib, ..
        } = size(&SandboxRecord {
            config: v1::PodSandboxConfig {
                linux: Some(linux),
                ..Default::default()
            },
            runtime: RuntimeConfig {
                cpus: 2,
                memory_mib: 100,
                overhead_mib: 64,
                ..Default::default()
            },
            ..Default::default()
        })?;
        Ok((vcpus, memory_mib))
    }

    #[test]
    fn the_request_wins_over_the_handler() {
        assert_eq!(sized(0, 0, 0).unwrap(), (2, 164));
        assert_eq!(sized(150_000, 200 << 20, 0).unwrap(), (2, 264));
        assert_eq!(sized(1, (16 << 20) + 1, 0).unwrap(), (1, 81));
        assert_eq!(sized(99 * 100_000, 0, 128 << 20).unwrap(), (32, 228));
        let error = sized(0, 1 << 20, 0).unwrap_err().to_string();
        assert!(error.contains("memory_limit_in_bytes"), "{error}");
    }

    #[test]
    fn hosts_has_the_name_for_every_address() {
        let both = [[10, 0, 0, 7].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 7].into()];
        let text = hosts("pod.sub.example", &both);
        assert!(text.ends_with("10.0.0.7\tpod.sub.example pod\nfd00::7\tpod.sub.example pod\n"));
        assert!(hosts("pod", &[]).ends_with("127.0.1.1\tpod\n"));
    }

    #[test]
    fn resolv_conf_has_what_the_request_has() {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let dns = v1::DnsConfig {
            servers: own(&["10.0.0.1", "10.0.0.2"]),
            searches: own(&["a.b", "b"]),
            options: own(&["ndots:5"]),
        };
        let text = "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), text);
        assert_eq!(resolv_conf(&v1::DnsConfig::default()), "");
    }
}
