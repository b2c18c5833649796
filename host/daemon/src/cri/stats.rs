//! From the agent's figures to the CRI's messages.

use bulkhead_cri::v1;
use bulkhead_sandbox::figures::{self, ContainerFigures, PodFigures};

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn time(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

/// What is left of a limit; `None` without one.
fn available(limit: u64, used: u64) -> Option<v1::UInt64Value> {
    (limit != 0).then(|| v1::UInt64Value {
        value: limit.saturating_sub(used),
    })
}

/// Totals stay in the microseconds of the kernel, as containerd passes them on.
fn pressure(pressure: Option<&figures::Pressure>) -> Option<v1::PsiStats> {
    let data = |times: Option<&figures::PressureTimes>| {
        times.map(|times| v1::PsiData {
            total: times.total_us,
            avg10: times.avg10,
            avg60: times.avg60,
            avg300: times.avg300,
        })
    };
    pressure.map(|pressure| v1::PsiStats {
        full: data(pressure.full.as_ref()),
        some: data(pressure.some.as_ref()),
    })
}

fn cpu(timestamp: i64, cpu: &figures::CpuStats, nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(cpu.usage_us.saturating_mul(1000)),
        usage_nano_cores: nano_cores.and_then(number),
        psi: pressure(cpu.pressure.as_ref()),
    }
}

fn memory(timestamp: i64, memory: &figures::MemoryStats) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: number(memory.working_set_bytes),
        available_bytes: available(memory.limit_bytes, memory.working_set_bytes),
        usage_bytes: number(memory.usage_bytes),
        rss_bytes: number(memory.rss_bytes),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: pressure(memory.pressure.as_ref()),
    }
}

fn io(timestamp: i64, stats: &figures::ContainerStats) -> Option<v1::IoUsage> {
    stats.io_pressure.as_ref().map(|io| v1::IoUsage {
        timestamp,
        psi: pressure(Some(io)),
    })
}

/// The figures of one container. `mountpoint` is where its changes are kept on the node.
pub(super) fn container(figures: ContainerFigures, mountpoint: String) -> v1::ContainerStats {
    let ContainerFigures {
        record,
        stats,
        nano_cores,
    } = figures;
    let timestamp = time(stats.timestamp_ns);
    let of_memory = stats.memory.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        cpu: stats
            .cpu
            .as_ref()
            .map(|stats| cpu(timestamp, stats, nano_cores)),
        memory: of_memory.map(|stats| memory(timestamp, stats)),
        writable_layer: stats
            .writable_layer
            .as_ref()
            .map(|layer| v1::FilesystemUsage {
                timestamp: time(layer.timestamp_ns),
                fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
                used_bytes: number(layer.used_bytes),
                inodes_used: number(layer.inodes),
            }),
        swap: of_memory.and_then(|memory| {
            let used = memory.swap_usage_bytes?;
            Some(v1::SwapUsage {
                timestamp,
                swap_available_bytes: available(memory.swap_limit_bytes, used),
                swap_usage_bytes: number(used),
            })
        }),
        io: io(timestamp, &stats),
    }
}

/// The figures of a pod: CPU, memory and I/O of its cgroup on the host, network, processes and
/// containers of its guest.
pub(super) fn pod(figures: PodFigures, mountpoint: &str) -> v1::PodSandboxStats {
    let PodFigures {
        record,
        at,
        host,
        nano_cores,
        guest,
    } = figures;
    let guest = guest.unwrap_or_default();
    let processes = guest.containers.iter().map(|one| one.stats.processes);
    let process_count = number(processes.fold(0, u64::saturating_add));
    let linux = v1::LinuxPodSandboxStats {
        cpu: host.cpu.as_ref().map(|stats| cpu(at, stats, nano_cores)),
        memory: host.memory.as_ref().map(|stats| memory(at, stats)),
        network: network(at, &guest.interfaces),
        process: Some(v1::ProcessUsage {
            timestamp: at,
            process_count,
        }),
        io: io(at, &host),
        containers: guest
            .containers
            .into_iter()
            .map(|one| container(one, mountpoint.to_owned()))
            .collect(),
    };
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        linux: Some(linux),
        windows: None,
    }
}

/// Kubernetes' name of a pod's first interface.
const DEFAULT_INTERFACE: &str = "eth0";

/// The interfaces but loopback, as with containerd.
fn network(timestamp: i64, interfaces: &[figures::InterfaceCounters]) -> Option<v1::NetworkUsage> {
    let others = interfaces.iter().filter(|one| one.name != "lo");
    let mut all: Vec<_> = others
        .map(|one| v1::NetworkInterfaceUsage {
            name: one.name.clone(),
            rx_bytes: number(one.rx_bytes),
            rx_errors: number(one.rx_errors),
            tx_bytes: number(one.tx_bytes),
            tx_errors: number(one.tx_errors),
        })
        .collect();
    if all.is_empty() {
        return None;
    }
    let default = all.iter().position(|one| one.name == DEFAULT_INTERFACE);
    Some(v1::NetworkUsage {
        timestamp,
        default_interface: default.map(|index| all.remove(index)),
        interfaces: all,
    })
}
