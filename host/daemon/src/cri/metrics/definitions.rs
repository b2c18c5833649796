//! The metrics, one entry each. Names and help texts are cAdvisor's (its document prometheus.md).

use super::{ContainerFigures, ContainerStats, Definition, InterfaceCounters, Value};
use bulkhead_cri::v1::MetricType::{self, Counter, Gauge};
use bulkhead_sandbox::figures::{CpuStats, IoStats, MemoryStats, Pressure, WritableLayer};

const SECOND_US: u64 = 1_000_000;
const SECOND_NS: i64 = 1_000_000_000;

const fn define<T: ?Sized>(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    values: fn(&T) -> Vec<Value>,
) -> Definition<T> {
    Definition {
        name,
        help,
        kind,
        labels,
        values,
    }
}

fn one(value: Option<u64>) -> Vec<Value> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn cpu(stats: &ContainerStats, value: fn(&CpuStats) -> u64) -> Vec<Value> {
    one(stats.cpu.as_ref().map(value))
}

fn memory(stats: &ContainerStats, value: fn(&MemoryStats) -> u64) -> Vec<Value> {
    one(stats.memory.as_ref().map(value))
}

/// The time that all processes together waited.
fn stalled(pressure: Option<&Pressure>) -> Vec<Value> {
    let full = pressure.and_then(|pressure| pressure.full.as_ref());
    one(full.map(|times| times.total_us / SECOND_US))
}

/// The time that some process waited.
fn waiting(pressure: Option<&Pressure>) -> Vec<Value> {
    let some = pressure.and_then(|pressure| pressure.some.as_ref());
    one(some.map(|times| times.total_us / SECOND_US))
}

fn disks(stats: &ContainerStats, value: fn(&IoStats) -> u64) -> Vec<Value> {
    let disks = stats.io.iter();
    disks
        .map(|disk| (vec![format!("{}:{}", disk.major, disk.minor)], value(disk)))
        .collect()
}

/// Bytes by device and direction.
fn directions(stats: &ContainerStats) -> Vec<Value> {
    let disks = stats.io.iter().flat_map(|disk| {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        let labels = move |operation: &str| {
            let device = format!("{major}:{minor}");
            vec![device, major.clone(), minor.clone(), operation.to_owned()]
        };
        [
            (labels("Read"), disk.read_bytes),
            (labels("Write"), disk.written_bytes),
        ]
    });
    disks.collect()
}

/// What a container's changes are on, where the guest knows it.
fn layer(figures: &ContainerFigures, value: fn(&WritableLayer) -> u64) -> Vec<Value> {
    let layer = figures.stats.writable_layer.as_ref();
    let known = layer.filter(|layer| layer.capacity_bytes != 0);
    let value = known.map(|layer| (vec!["scratch".to_owned()], value(layer)));
    value.into_iter().collect()
}

fn interfaces(all: &[InterfaceCounters], value: fn(&InterfaceCounters) -> u64) -> Vec<Value> {
    let others = all.iter().filter(|one| one.name != "lo");
    others
        .map(|one| (vec![one.name.clone()], value(one)))
        .collect()
}

fn faults(memory: &MemoryStats) -> Vec<Value> {
    let kinds = [
        ("pgfault", memory.page_faults),
        ("pgmajfault", memory.major_page_faults),
    ];
    kinds
        .map(|(kind, count)| (vec![kind.to_owned(), "container".to_owned()], count))
        .into()
}

/// A limit of the request; nothing where it sets none.
fn asked(
    figures: &ContainerFigures,
    value: fn(&bulkhead_cri::v1::LinuxContainerResources) -> i64,
) -> Vec<Value> {
    let linux = figures.record.config.linux.as_ref();
    let resources = linux.and_then(|linux| linux.resources.as_ref());
    let number = resources
        .map(value)
        .and_then(|value| u64::try_from(value).ok());
    one(number.filter(|number| *number != 0))
}

#[rustfmt::skip]
/// Of a cgroup: the host's of a pod, the guest's of a container.
pub(super) const CONTAINER_AND_POD: &[Definition<ContainerStats>] = &[
    define("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Counter, &["cpu"],
        |stats| cpu(stats, |cpu| cpu.usage_us / SECOND_US).into_iter().map(|(_, value)| (vec!["total".to_owned()], value)).collect()),
    define("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", Counter, &[],
        |stats| cpu(stats, |cpu| cpu.user_us / SECOND_US)),
    define("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", Counter, &[],
        |stats| cpu(stats, |cpu| cpu.system_us / SECOND_US)),
    define("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", Counter, &[],
        |stats| cpu(stats, |cpu| cpu.periods)),
    define("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", Counter, &[],
        |stats| cpu(stats, |cpu| cpu.throttled_periods)),
    define("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", Counter, &[],
        |stats| cpu(stats, |cpu| cpu.throttled_us / SECOND_US)),
    define("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", Gauge, &[],
        |stats| memory(stats, |memory| memory.usage_bytes)),
    define("container_memory_working_set_bytes", "Current working set in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.working_set_bytes)),
    define("container_memory_rss", "Size of RSS in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.rss_bytes)),
    define("container_memory_cache", "Number of bytes of page cache memory.", Gauge, &[],
        |stats| memory(stats, |memory| memory.file_bytes)),
    define("container_memory_mapped_file", "Size of memory mapped files in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.mapped_file_bytes)),
    define("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.kernel_bytes)),
    define("container_memory_total_active_file_bytes", "Current total active file in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.active_file_bytes)),
    define("container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", Gauge, &[],
        |stats| memory(stats, |memory| memory.inactive_file_bytes)),
    define("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", Gauge, &[],
        |stats| one(stats.memory.as_ref().and_then(|memory| memory.peak_bytes))),
    define("container_memory_swap", "Container swap usage in bytes.", Gauge, &[],
        |stats| one(stats.memory.as_ref().and_then(|memory| memory.swap_usage_bytes))),
    define("container_memory_failcnt", "Number of memory usage hits limits", Counter, &[],
        |stats| memory(stats, |memory| memory.limit_hits)),
    define("container_memory_failures_total", "Cumulative count of memory allocation failures.", Counter, &["failure_type", "scope"],
        |stats| stats.memory.as_ref().map(faults).unwrap_or_default()),
    define("container_oom_events_total", "Count of out of memory events observed for the container", Counter, &[],
        |stats| memory(stats, |memory| memory.oom_kills)),
    define("container_blkio_device_usage_total", "Blkio device bytes usage", Counter, &["device", "major", "minor", "operation"],
        directions),
    define("container_fs_reads_bytes_total", "Cumulative count of bytes read", Counter, &["device"],
        |stats| disks(stats, |disk| disk.read_bytes)),
    define("container_fs_reads_total", "Cumulative count of reads completed", Counter, &["device"],
        |stats| disks(stats, |disk| disk.reads)),
    define("container_fs_writes_bytes_total", "Cumulative count of bytes written", Counter, &["device"],
        |stats| disks(stats, |disk| disk.written_bytes)),
    define("container_fs_writes_total", "Cumulative count of writes completed", Counter, &["device"],
        |stats| disks(stats, |disk| disk.writes)),
    define("container_threads", "Number of threads running inside the container", Gauge, &[],
        |stats| one(stats.pids)),
    define("container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero", Gauge, &[],
        |stats| one(stats.pids.map(|_| stats.pids_limit))),
    define("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", Counter, &[],
        |stats| stalled(stats.cpu.as_ref().and_then(|cpu| cpu.pressure.as_ref()))),
    define("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", Counter, &[],
        |stats| waiting(stats.cpu.as_ref().and_then(|cpu| cpu.pressure.as_ref()))),
    define("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", Counter, &[],
        |stats| stalled(stats.memory.as_ref().and_then(|memory| memory.pressure.as_ref()))),
    define("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", Counter, &[],
        |stats| waiting(stats.memory.as_ref().and_then(|memory| memory.pressure.as_ref()))),
    define("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", Counter, &[],
        |stats| stalled(stats.io_pressure.as_ref())),
    define("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", Counter, &[],
        |stats| waiting(stats.io_pressure.as_ref())),
];

#[rustfmt::skip]
/// Of containers only.
pub(super) const CONTAINER: &[Definition<ContainerFigures>] = &[
    define("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", Gauge, &["device"],
        |figures| figures.stats.writable_layer.as_ref().map(|layer| (vec!["scratch".to_owned()], layer.used_bytes)).into_iter().collect()),
    define("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", Gauge, &["device"],
        |figures| layer(figures, |layer| layer.capacity_bytes)),
    define("container_fs_inodes_total", "Number of Inodes", Gauge, &["device"],
        |figures| layer(figures, |layer| layer.capacity_inodes)),
    define("container_fs_inodes_free", "Number of available Inodes", Gauge, &["device"],
        |figures| layer(figures, |layer| layer.free_inodes)),
    define("container_file_descriptors", "Number of open file descriptors for the container.", Gauge, &[],
        |figures| one(Some(figures.stats.file_descriptors))),
    define("container_sockets", "Number of open sockets for the container.", Gauge, &[],
        |figures| one(Some(figures.stats.sockets))),
    define("container_ulimits_soft", "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice", Gauge, &["ulimit"],
        |figures| figures.stats.descriptor_limit.map(|limit| (vec!["max_open_files".to_owned()], limit)).into_iter().collect()),
    define("container_processes", "Number of processes running inside the container.", Gauge, &[],
        |figures| one(Some(figures.stats.processes))),
    define("container_last_seen", "Last time a container was seen by the exporter", Gauge, &[],
        |figures| one(Some(figures.stats.timestamp_ns / SECOND_NS.unsigned_abs()))),
    define("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", Gauge, &[],
        |figures| one(figures.record.state.started_at().and_then(|at| u64::try_from(at / SECOND_NS).ok()))),
    define("container_spec_cpu_period", "CPU period of the container.", Gauge, &[],
        |figures| asked(figures, |resources| resources.cpu_period)),
    define("container_spec_cpu_quota", "CPU quota of the container.", Gauge, &[],
        |figures| asked(figures, |resources| resources.cpu_quota)),
    define("container_spec_cpu_shares", "CPU share of the container.", Gauge, &[],
        |figures| asked(figures, |resources| resources.cpu_shares)),
    define("container_spec_memory_limit_bytes", "Memory limit for the container.", Gauge, &[],
        |figures| one(figures.stats.memory.as_ref().map(|memory| memory.limit_bytes))),
    define("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", Gauge, &[],
        |figures| one(figures.stats.memory.as_ref().map(|memory| memory.reserved_bytes))),
    define("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", Gauge, &[],
        |figures| asked(figures, |resources| resources.memory_swap_limit_in_bytes)),
];

#[rustfmt::skip]
/// Of a pod's interfaces.
pub(super) const NETWORK: &[Definition<[InterfaceCounters]>] = &[
    define("container_network_receive_bytes_total", "Cumulative count of bytes received", Counter, &["interface"],
        |all| interfaces(all, |one| one.rx_bytes)),
    define("container_network_receive_packets_total", "Cumulative count of packets received", Counter, &["interface"],
        |all| interfaces(all, |one| one.rx_packets)),
    define("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", Counter, &["interface"],
        |all| interfaces(all, |one| one.rx_dropped)),
    define("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", Counter, &["interface"],
        |all| interfaces(all, |one| one.rx_errors)),
    define("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", Counter, &["interface"],
        |all| interfaces(all, |one| one.tx_bytes)),
    define("container_network_transmit_packets_total", "Cumulative count of packets transmitted", Counter, &["interface"],
        |all| interfaces(all, |one| one.tx_packets)),
    define("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", Counter, &["interface"],
        |all| interfaces(all, |one| one.tx_dropped)),
    define("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", Counter, &["interface"],
        |all| interfaces(all, |one| one.tx_errors)),
];
