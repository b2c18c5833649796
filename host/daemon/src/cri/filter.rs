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

    mod properties {
        use crate::cri::filter::{container, sandbox};
        use bulkhead_cri::v1;
        use proptest::collection::hash_map;
        use proptest::option;
        use proptest::prelude::*;
        use std::collections::HashMap;

        fn labels() -> impl Strategy<Value = HashMap<String, String>> {
            hash_map("[ab]", "[xy]{0,1}", 0..3)
        }

        prop_compose! {
            fn a_pod()(id in "[01]{4}", state in 0..2, labels in labels()) -> v1::PodSandbox {
                v1::PodSandbox { id, state, labels, ..Default::default() }
            }
        }

        prop_compose! {
            fn a_filter()(id in "[01]{0,4}", state in option::of(0..2), label_selector in labels())
                -> v1::PodSandboxFilter {
                let state = state.map(|state| v1::PodSandboxStateValue { state });
                v1::PodSandboxFilter { id, state, label_selector }
            }
        }

        proptest! {
            /// A filter passes what each part of it alone passes.
            #[test]
            fn pods_pass_when_every_part_fits(pod in a_pod(), filter in a_filter()) {
                let passes = |filter: v1::PodSandboxFilter| sandbox(&pod, Some(&filter));
                let by_id = pod.id.starts_with(&filter.id);
                let by_state = filter.state.is_none_or(|one| one.state == pod.state);
                let by_labels = filter
                    .label_selector
                    .iter()
                    .all(|(key, value)| pod.labels.get(key).is_some_and(|own| own == value));
                prop_assert_eq!(passes(filter), by_id && by_state && by_labels);
            }

            /// Whatever is said of a pod finds it.
            #[test]
            fn a_pods_own_description_finds_it(pod in a_pod(), length in 0..5_usize) {
                let filter = v1::PodSandboxFilter {
                    id: pod.id[..length.min(pod.id.len())].to_owned(),
                    state: Some(v1::PodSandboxStateValue { state: pod.state }),
                    label_selector: pod.labels.clone(),
                };
                prop_assert!(sandbox(&pod, Some(&filter)));
                prop_assert!(sandbox(&pod, None));
            }

            /// Of containers the pod counts too.
            #[test]
            fn containers_pass_as_pods_do(
                pod in a_pod(), filter in a_filter(), own in "[01]{2}", wanted in "[01]{0,2}",
            ) {
                let one = v1::Container {
                    id: pod.id.clone(),
                    pod_sandbox_id: own.clone(),
                    state: pod.state,
                    labels: pod.labels.clone(),
                    ..Default::default()
                };
                let same = v1::ContainerFilter {
                    id: filter.id.clone(),
                    state: filter.state.map(|one| v1::ContainerStateValue { state: one.state }),
                    pod_sandbox_id: wanted.clone(),
                    label_selector: filter.label_selector.clone(),
                };
                let want = sandbox(&pod, Some(&filter)) && own.starts_with(&wanted);
                prop_assert_eq!(container(&one, Some(&same)), want);
            }
        }
    }
}
