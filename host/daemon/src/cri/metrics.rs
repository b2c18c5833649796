//! Metrics by the names that cAdvisor gave them, with its labels.
//!
//! Those of a pod as a whole, which have no container and no image in their labels, are the host's
//! figures of its cgroup and the guest's of its network; those of containers are the guest's. The
//! CRI's values are whole numbers, so seconds lose their fraction, as with containerd.

mod definitions;

use bulkhead_cri::v1;
use bulkhead_sandbox::figures::{ContainerFigures, ContainerStats, InterfaceCounters, PodFigures};
use definitions::{CONTAINER, CONTAINER_AND_POD, NETWORK};

/// The labels that every metric has, before its own.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What a metric is and where its values come from.
struct Definition<T: 'static + ?Sized> {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    /// Labels besides [`LABELS`].
    labels: &'static [&'static str],
    /// Its values with those labels; none where the kernel does not count it.
    values: fn(&T) -> Vec<Value>,
}

/// A value and its labels.
type Value = (Vec<String>, u64);

/// Every metric that can come.
pub(super) fn descriptors() -> Vec<v1::MetricDescriptor> {
    let mut all = Vec::new();
    all.extend(CONTAINER_AND_POD.iter().map(Definition::descriptor));
    all.extend(CONTAINER.iter().map(Definition::descriptor));
    all.extend(NETWORK.iter().map(Definition::descriptor));
    all
}

/// The metrics of a pod and its containers.
pub(super) fn pod(figures: &PodFigures) -> v1::PodSandboxMetrics {
    let record = &figures.record;
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let (namespace, pod) = (metadata.namespace, metadata.name);
    let whole = ["", &record.id, "", "", &namespace, &pod].map(str::to_owned);
    let mut metrics = Vec::new();
    for definition in CONTAINER_AND_POD {
        definition.add(&figures.host, &whole, figures.at, &mut metrics);
    }
    let guest = figures.guest.as_ref();
    for definition in NETWORK.iter().filter(|_| guest.is_some()) {
        let interfaces = guest.map(|guest| guest.interfaces.as_slice());
        definition.add(
            interfaces.unwrap_or_default(),
            &whole,
            figures.at,
            &mut metrics,
        );
    }
    let containers = guest.map(|guest| guest.containers.iter());
    v1::PodSandboxMetrics {
        pod_sandbox_id: record.id.clone(),
        metrics,
        container_metrics: containers
            .into_iter()
            .flatten()
            .map(|figures| container(figures, &namespace, &pod))
            .collect(),
    }
}

fn container(figures: &ContainerFigures, namespace: &str, pod: &str) -> v1::ContainerMetrics {
    let record = &figures.record;
    let name = record.config.metadata.clone().unwrap_or_default().name;
    let image = record.config.image.clone().unwrap_or_default();
    // What the user wrote says more than the id that the kubelet resolved it to.
    let image = match image.user_specified_image.is_empty() {
        true => image.image,
        false => image.user_specified_image,
    };
    let labels = [&name, &record.id, &image, &record.id, namespace, pod].map(str::to_owned);
    let at = i64::try_from(figures.stats.timestamp_ns).unwrap_or(figures.record.created_at);
    let mut metrics = Vec::new();
    for definition in CONTAINER_AND_POD {
        definition.add(&figures.stats, &labels, at, &mut metrics);
    }
    for definition in CONTAINER {
        definition.add(figures, &labels, at, &mut metrics);
    }
    v1::ContainerMetrics {
        container_id: record.id.clone(),
        metrics,
    }
}

impl<T: ?Sized> Definition<T> {
    fn descriptor(&self) -> v1::MetricDescriptor {
        let labels = LABELS.iter().chain(self.labels);
        v1::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }

    fn add(&self, of: &T, labels: &[String; 6], at: i64, metrics: &mut Vec<v1::Metric>) {
        metrics.extend(
            (self.values)(of)
                .into_iter()
                .map(|(own, value)| v1::Metric {
                    name: self.name.to_owned(),
                    timestamp: at,
                    metric_type: self.kind.into(),
                    label_values: labels.iter().cloned().chain(own).collect(),
                    value: Some(v1::UInt64Value { value }),
                }),
        );
    }
}

#[cfg(test)]
mod tests;
