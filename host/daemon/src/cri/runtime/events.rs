//! GetContainerEvents.

use super::{Messages, RuntimeApi};
use crate::cri::convert;
use bulkhead_cri::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use bulkhead_sandbox::{BACKLOG, EventKind, PodEvent};
use futures::{StreamExt, stream};
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tonic::Status;

/// Every event from now on. Nobody waits for a subscriber: one that lags too far behind is ended
/// with RESOURCE_EXHAUSTED, lists and subscribes again, as the kubelet does after any break.
pub(super) async fn subscribe(
    api: &RuntimeApi,
    _: GetEventsRequest,
) -> Result<Messages<ContainerEventResponse>, Status> {
    Ok(follow(api.sandboxes.events()))
}

fn follow(events: broadcast::Receiver<Arc<PodEvent>>) -> Messages<ContainerEventResponse> {
    let events = BroadcastStream::new(events);
    // The first error is the end.
    let until_lost = stream::unfold(Some(events), |events| async {
        let mut events = events?;
        match events.next().await? {
            Ok(event) => Some((Ok(response(&event)), Some(events))),
            Err(BroadcastStreamRecvError::Lagged(count)) => {
                let lost = Status::resource_exhausted(format!(
                    "This subscriber is more than {BACKLOG} events behind and has lost {count}; list the pods and subscribe again"
                ));
                Some((Err(lost), None))
            }
        }
    });
    until_lost.boxed()
}

fn response(event: &PodEvent) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    let containers = event.containers.iter().cloned();
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(convert::sandbox_status(event.sandbox.clone())),
        containers_statuses: containers.map(convert::container_status).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::follow;
    use bulkhead_sandbox::{EventKind, PodEvent};
    use futures::StreamExt;
    use std::sync::Arc;
    use tokio::sync::broadcast;
    use tonic::Code;

    fn event(id: &str) -> Arc<PodEvent> {
        Arc::new(PodEvent {
            id: id.to_owned(),
            kind: EventKind::Stopped,
            at: 7,
            sandbox: crate::cri::tests::sandbox("pod"),
            containers: Vec::new(),
        })
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_dropped_and_a_quick_one_notices_nothing() {
        let sender = broadcast::Sender::new(4);
        let (mut slow, mut quick) = (follow(sender.subscribe()), follow(sender.subscribe()));
        for count in 0..20 {
            // Never waits, whatever the subscribers do.
            sender.send(event(&count.to_string())).unwrap();
            let told = quick.next().await.unwrap().unwrap();
            assert_eq!((told.container_id, told.created_at), (count.to_string(), 7));
        }
        let lost = slow.next().await.unwrap().unwrap_err();
        assert_eq!(lost.code(), Code::ResourceExhausted);
        assert!(lost.message().contains("has lost 16"), "{lost}");
        assert!(slow.next().await.is_none(), "it is over");
    }
}
