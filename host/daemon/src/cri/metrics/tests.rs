use super::{descriptors, pod};
use bulkhead_cri::v1;
use bulkhead_sandbox::figures::{
    ContainerFigures, ContainerStats, GuestFigures, InterfaceCounters, IoStats, PodFigures,
    WritableLayer,
};
use std::collections::{HashMap, HashSet};

fn figures() -> PodFigures {
    let mut host = bulkhead_agent_files(500_000_000);
    host.timestamp_ns = 0;
    let mut container = bulkhead_agent_files(7_900_000);
    container.timestamp_ns = 3_000_000_000;
    container.processes = 4;
    let mut eth = InterfaceCounters::new();
    (eth.name, eth.rx_bytes, eth.tx_errors) = ("eth0".to_owned(), 11, 12);
    let mut lo = InterfaceCounters::new();
    lo.name = "lo".to_owned();
    let mut record = crate::cri::tests::sandbox("pod-id");
    record.config.metadata = Some(v1::PodSandboxMetadata {
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        ..Default::default()
    });
    PodFigures {
        record,
        at: 9,
        host,
        nano_cores: None,
        guest: Some(GuestFigures {
            containers: vec![ContainerFigures {
                record: crate::cri::tests::container("container-id", "pod-id"),
                stats: container,
                nano_cores: None,
            }],
            interfaces: vec![lo, eth],
        }),
    }
}

/// Figures with everything that a kernel can count.
fn bulkhead_agent_files(usage_us: u64) -> ContainerStats {
    let pressure = "some avg10=0 avg60=0 avg300=0 total=2500000\nfull avg10=0 avg60=0 avg300=0 total=1500000\n";
    let mut stats = bulkhead_sandbox::figures::of_cgroup(|file| {
        Some(match file {
            "cpu.stat" => format!("usage_usec {usage_us}\nnr_periods 5\n"),
            "memory.current" | "memory.peak" | "memory.swap.current" => "4096".to_owned(),
            "memory.stat" => "anon 1\npgfault 2\npgmajfault 3\n".to_owned(),
            "memory.events" => "oom_kill 6\n".to_owned(),
            "pids.current" => "8".to_owned(),
            name if name.ends_with(".pressure") => pressure.to_owned(),
            _ => return None,
        })
    });
    let mut disk = IoStats::new();
    (disk.major, disk.written_bytes) = (254, 77);
    stats.io = vec![disk];
    let mut layer = WritableLayer::new();
    (layer.capacity_bytes, layer.free_inodes) = (1 << 30, 60_000);
    stats.writable_layer = Some(layer).into();
    (stats.file_descriptors, stats.sockets) = (9, 3);
    stats.descriptor_limit = Some(1024);
    stats
}

#[test]
fn every_metric_fits_its_descriptor_and_every_descriptor_has_a_metric() {
    let descriptors = descriptors();
    let known: HashMap<_, _> = descriptors
        .iter()
        .map(|one| (one.name.as_str(), one))
        .collect();
    assert_eq!(known.len(), descriptors.len(), "no name comes twice");
    let metrics = pod(&figures());
    let containers = metrics.container_metrics.iter();
    let all = metrics
        .metrics
        .iter()
        .chain(containers.flat_map(|one| &one.metrics));
    let mut seen = HashSet::new();
    for metric in all {
        let descriptor = known[metric.name.as_str()];
        // A kubelet drops what does not fit.
        assert_eq!(
            metric.label_values.len(),
            descriptor.label_keys.len(),
            "{metric:?}"
        );
        assert!(metric.value.is_some() && metric.timestamp > 0, "{metric:?}");
        assert!(!descriptor.help.is_empty());
        let labels = (metric.name.as_str(), &metric.label_values);
        assert!(seen.insert(labels), "twice: {metric:?}");
    }
    let names: HashSet<_> = seen.iter().map(|(name, _)| *name).collect();
    let absent: Vec<_> = known.keys().filter(|name| !names.contains(*name)).collect();
    assert_eq!(absent, Vec::<&&str>::new());
}

#[test]
fn values_and_labels_are_those_of_the_figures() {
    let metrics = pod(&figures());
    let find = |metrics: &[v1::Metric], name: &str| {
        let found = metrics.iter().find(|one| one.name == name).unwrap();
        (found.label_values.join(","), found.value.unwrap().value)
    };
    let container = &metrics.container_metrics[0];
    assert_eq!(container.container_id, "container-id");
    assert_eq!(
        find(&container.metrics, "container_cpu_usage_seconds_total"),
        (
            "app,container-id,busybox:1,container-id,shop,web,total".to_owned(),
            7
        )
    );
    assert_eq!(
        find(&metrics.metrics, "container_cpu_usage_seconds_total"),
        (",pod-id,,,shop,web,total".to_owned(), 500)
    );
    assert_eq!(
        find(&metrics.metrics, "container_network_receive_bytes_total"),
        (",pod-id,,,shop,web,eth0".to_owned(), 11)
    );
    let value = |name: &str| find(&container.metrics, name).1;
    assert_eq!(value("container_oom_events_total"), 6);
    assert_eq!(value("container_processes"), 4);
    assert_eq!(value("container_threads"), 8);
    assert_eq!(value("container_last_seen"), 3);
    assert_eq!(value("container_start_time_seconds"), 2);
    assert_eq!(value("container_fs_writes_bytes_total"), 77);
    assert_eq!(value("container_fs_limit_bytes"), 1 << 30);
    assert_eq!(value("container_fs_inodes_free"), 60_000);
    assert_eq!(value("container_file_descriptors"), 9);
    assert_eq!(value("container_sockets"), 3);
    assert_eq!(value("container_ulimits_soft"), 1024);
    assert_eq!(value("container_pressure_cpu_waiting_seconds_total"), 2);
    assert_eq!(value("container_pressure_io_stalled_seconds_total"), 1);
}
