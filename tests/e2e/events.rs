//! GetContainerEvents.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1::{self, ContainerEventType as Kind};
use bulkhead_tests::Node;
use bulkhead_tests::pod::{Pod, container};
use std::time::Duration;
use tonic::Streaming;

type Events = Streaming<v1::ContainerEventResponse>;

async fn subscribe(node: &Node) -> Events {
    let request = v1::GetEventsRequest {};
    let response = node.runtime().get_container_events(request).await;
    response.unwrap().into_inner()
}

/// The next events: whose, and what.
async fn next(events: &mut Events, count: usize) -> Vec<v1::ContainerEventResponse> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(60), events.message());
        all.push(next.await.expect("an event").unwrap().unwrap());
    }
    all
}

fn told(events: &[v1::ContainerEventResponse]) -> Vec<(&str, Kind)> {
    let told = events.iter();
    told.map(|event| (event.container_id.as_str(), event.container_event_type()))
        .collect()
}

#[tokio::test]
async fn every_subscriber_hears_of_every_life_in_order() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let (mut one, mut other) = (subscribe(&node).await, subscribe(&node).await);
    let pod = Pod::run(&node, "events").await.unwrap();
    let pod_id = pod.id.clone();
    let short = container("short", &image, &["sh", "-c", "exit 3"]);
    let short = pod.start(short).await.unwrap();
    let mut seen = next(&mut one, 5).await;
    let long = pod.create(container("long", &image, &["sleep", "1000"]));
    let long = long.await.unwrap();
    let missing = pod.start(container("missing", &image, &["/no/such"]));
    missing.await.unwrap_err();
    seen.extend(next(&mut one, 3).await);
    let missing = seen[6].container_id.clone();
    pod.remove().await.unwrap();
    seen.extend(next(&mut one, 6).await);
    let (pod_id, short, long, missing) = (
        pod_id.as_str(),
        short.as_str(),
        long.as_str(),
        missing.as_str(),
    );
    let mut all = told(&seen);
    // Of different containers the order in which they are removed is nobody's concern.
    all[9..].sort();
    let mut want = vec![
        (pod_id, Kind::ContainerCreatedEvent),
        (pod_id, Kind::ContainerStartedEvent),
        (short, Kind::ContainerCreatedEvent),
        (short, Kind::ContainerStartedEvent),
        (short, Kind::ContainerStoppedEvent),
        (long, Kind::ContainerCreatedEvent),
        (missing, Kind::ContainerCreatedEvent),
        // It never ran.
        (missing, Kind::ContainerStoppedEvent),
        (long, Kind::ContainerStoppedEvent),
        (pod_id, Kind::ContainerStoppedEvent),
        (short, Kind::ContainerDeletedEvent),
        (long, Kind::ContainerDeletedEvent),
        (missing, Kind::ContainerDeletedEvent),
        (pod_id, Kind::ContainerDeletedEvent),
    ];
    want[9..].sort();
    assert_eq!(all, want);
    let last = seen.last().unwrap();
    assert_eq!(told(std::slice::from_ref(last))[0].0, pod_id);
    let stopped = &seen[4];
    let status = stopped.pod_sandbox_status.as_ref().unwrap();
    assert_eq!(status.id, pod_id);
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(stopped.containers_statuses[0].exit_code, 3);
    assert!(last.containers_statuses.is_empty());
    let times: Vec<_> = seen.iter().map(|event| event.created_at).collect();
    assert!(
        times.is_sorted() && times[0] > status.created_at,
        "{times:?}"
    );
    // Another subscriber hears the same.
    assert_eq!(next(&mut other, seen.len()).await, seen);
    drop((one, other));
    node.finish().unwrap();
}
