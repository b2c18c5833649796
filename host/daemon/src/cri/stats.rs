//! From the agent's figures to the CRI's messages.

use bulkhead_cri::v1;
use bulkhead_sandbox::{ContainerRecord, figures};

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

/// The figures of one container. `mountpoint` is where its changes are kept on the node.
pub(super) fn container(
    record: ContainerRecord,
    stats: &figures::ContainerStats,
    mountpoint: String,
) -> v1::ContainerStats {
    let timestamp = time(stats.timestamp_ns);
    let memory = stats.memory.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        cpu: stats.cpu.as_ref().map(|cpu| v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: number(cpu.usage_us.saturating_mul(1000)),
            // The kubelet makes a rate of two samples by itself.
            usage_nano_cores: None,
            psi: pressure(cpu.pressure.as_ref()),
        }),
        memory: memory.map(|memory| v1::MemoryUsage {
            timestamp,
            working_set_bytes: number(memory.working_set_bytes),
            available_bytes: available(memory.limit_bytes, memory.working_set_bytes),
            usage_bytes: number(memory.usage_bytes),
            rss_bytes: number(memory.rss_bytes),
            page_faults: number(memory.page_faults),
            major_page_faults: number(memory.major_page_faults),
            psi: pressure(memory.pressure.as_ref()),
        }),
        writable_layer: stats
            .writable_layer
            .as_ref()
            .map(|layer| v1::FilesystemUsage {
                timestamp: time(layer.timestamp_ns),
                fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
                used_bytes: number(layer.used_bytes),
                inodes_used: number(layer.inodes),
            }),
        swap: memory
            .filter(|memory| memory.swap_usage_bytes.is_some())
            .map(|memory| {
                let used = memory.swap_usage_bytes.unwrap_or(0);
                v1::SwapUsage {
                    timestamp,
                    swap_available_bytes: available(memory.swap_limit_bytes, used),
                    swap_usage_bytes: number(used),
                }
            }),
        io: stats.io_pressure.as_ref().map(|io| v1::IoUsage {
            timestamp,
            psi: pressure(Some(io)),
        }),
    }
}
