//! Filters of the list calls.

use bulkhead_cri::v1;
use std::collections::HashMap;

/// Whether a pod sandbox passes. An id may be the beginning of one.
pub(super) fn sandbox(pod: &v1::PodSandbox, filter: Option<&v1::PodSandboxFilter>) -> bool {
    let Some(filter) = filter else {
        return true;
    };
    pod.id.starts_with(&filter.id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state == pod.state)
        && labels(&pod.labels, &filter.label_selector)
}

/// Whether a container passes. Ids may be the beginning of one.
pub(super) fn container(container: &v1::Container, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(filter) = filter else {
        return true;
    };
    container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state == container.state)
        && labels(&container.labels, &filter.label_selector)
}

fn labels(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::{container, sandbox};
    use bulkhead_cri::v1;
    use std::collections::HashMap;

    fn labelled(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn every_part_of_a_filter_must_fit() {
        let pod = v1::PodSandbox {
            id: "abc".into(),
            state: v1::PodSandboxState::SandboxReady.into(),
            labels: labelled(&[("app", "x"), ("tier", "y")]),
            ..Default::default()
        };
        let passes = |id: &str, state: Option<v1::PodSandboxState>, selector: &[(&str, &str)]| {
            let filter = v1::PodSandboxFilter {
                id: id.into(),
                state: state.map(|state| v1::PodSandboxStateValue {
                    state: state.into(),
                }),
                label_selector: labelled(selector),
            };
            sandbox(&pod, Some(&filter))
        };
        assert!(sandbox(&pod, None));
        assert!(passes("", None, &[]));
        assert!(passes(
            "ab",
            Some(v1::PodSandboxState::SandboxReady),
            &[("app", "x")]
        ));
        assert!(!passes("b", None, &[]));
        assert!(!passes("", Some(v1::PodSandboxState::SandboxNotready), &[]));
        assert!(!passes("", None, &[("app", "y")]));
        assert!(!passes("", None, &[("other", "")]));
    }

    #[test]
    fn containers_are_found_by_their_pod() {
        let one = v1::Container {
            pod_sandbox_id: "pod1".into(),
            ..Default::default()
        };
        let of = |pod: &str| {
            let filter = v1::ContainerFilter {
                pod_sandbox_id: pod.into(),
                ..Default::default()
            };
            container(&one, Some(&filter))
        };
        assert!(of("pod1") && of("pod") && of(""));
        assert!(!of("pod2"));
    }
}
