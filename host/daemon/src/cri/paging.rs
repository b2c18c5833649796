//! The Stream calls: a long list in messages that are not too large.

use super::runtime::Messages;
use futures::{StreamExt, stream};
use prost::Message;

/// The most bytes of items in one message, far below the limit of a message; one item that is
/// larger comes alone.
const BYTES: usize = 256 * 1024;

/// The list in messages that `wrap` makes of its parts. An empty list is no message at all.
pub(super) fn pages<T, R>(items: Vec<T>, wrap: impl Fn(Vec<T>) -> R + Send + 'static) -> Messages<R>
where
    T: Message + 'static,
    R: Send + 'static,
{
    // One part at a time is made into bytes, when the client takes it.
    let parts = stream::unfold(items.into_iter().peekable(), |mut items| async {
        let mut part = vec![items.next()?];
        let mut bytes = part.first().map_or(0, Message::encoded_len);
        while let Some(next) = items.peek() {
            bytes += next.encoded_len();
            if bytes > BYTES {
                break;
            }
            part.extend(items.next());
        }
        Some((part, items))
    });
    parts.map(move |part| Ok(wrap(part))).boxed()
}

#[cfg(test)]
mod tests {
    use super::{BYTES, pages};
    use bulkhead_cri::v1::{Container, StreamContainersResponse};
    use futures::StreamExt;
    use prost::Message;

    async fn parts(sizes: &[usize]) -> Vec<Vec<usize>> {
        let items = sizes.iter().map(|size| Container {
            id: "x".repeat(*size),
            ..Default::default()
        });
        let stream = pages(items.collect(), |containers| StreamContainersResponse {
            containers,
        });
        let messages: Vec<_> = stream.map(Result::unwrap).collect().await;
        for message in &messages {
            let one = message.containers.len() == 1;
            assert!(one || message.encoded_len() < BYTES + 4096);
        }
        let sizes =
            |containers: Vec<Container>| containers.iter().map(|one| one.id.len()).collect();
        messages
            .into_iter()
            .map(|one| sizes(one.containers))
            .collect()
    }

    #[tokio::test]
    async fn every_item_comes_once_and_in_order() {
        assert_eq!(parts(&[]).await, Vec::<Vec<usize>>::new());
        assert_eq!(parts(&[1, 2]).await, [[1, 2]]);
        assert_eq!(parts(&[5, BYTES + 1, 7]).await, [[5], [BYTES + 1], [7]]);
        let many: Vec<usize> = (1..2000).collect();
        let split = parts(&many).await;
        assert!(split.len() > 5, "{}", split.len());
        assert_eq!(split.concat(), many);
    }
}
