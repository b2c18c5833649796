//! Several pulls that want the same blob at the same time.

use super::{Node, REPOSITORY, content, descriptor, with_blob};
use crate::tests::fixture::config;
use crate::tests::server::{Manner, Server};
use crate::{Auth, ImageError, StoreConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits for something that another task does.
async fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn two_images_share_the_download_of_a_layer() {
    let bytes = content(100_000);
    let (server, blob) = with_blob(&bytes);
    server.put_blob("other/app", &bytes);
    server.alter("/v2/team/app/blobs/", |answer| answer.manner = Manner::Gate);
    let node = Arc::new(Node::default());
    let fetch = |repository: &str| {
        let (node, name, blob) = (Arc::clone(&node), server.name(repository), blob.clone());
        tokio::spawn(async move { node.fetch(&name, None, &blob).await })
    };
    let first = fetch(REPOSITORY);
    until(|| server.seen("team/app/blobs").len() == 1).await;
    // Another tag of the repository, and another repository.
    let (second, third) = (fetch("team/app:v2"), fetch("other/app"));
    until(|| server.seen("other/app/blobs").len() == 1).await;
    // The one that began goes away; the download does not.
    first.abort();
    server.open_gate();
    assert!(second.await.unwrap().unwrap() == bytes);
    assert!(third.await.unwrap().unwrap() == bytes);
    let methods = |part: &str| -> Vec<String> {
        server
            .seen(part)
            .into_iter()
            .map(|seen| seen.method)
            .collect()
    };
    assert_eq!(methods("team/app/blobs"), ["GET"]);
    assert_eq!(
        methods("other/app/blobs"),
        ["HEAD"],
        "it only proves that it may read it"
    );
    assert_eq!(node.blobs(), 0);
}

#[tokio::test]
async fn who_may_not_read_a_blob_does_not_get_anothers() {
    let bytes = content(100_000);
    let (server, blob) = with_blob(&bytes);
    server.alter("/blobs/", |answer| answer.manner = Manner::Gate);
    let stranger = Server::start();
    let node = Arc::new(Node::default());
    let fetch = |name: String, auth| {
        let (node, blob) = (Arc::clone(&node), blob.clone());
        tokio::spawn(async move { node.fetch(&name, auth, &blob).await })
    };
    server.protect("Basic bWU6c2VjcmV0", "Basic");
    let owner = fetch(server.name(REPOSITORY), Some(Auth::basic("me", "secret")));
    until(|| server.seen("/blobs").len() == 2).await;
    let error = fetch(server.name(REPOSITORY), None)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    let error = fetch(stranger.name("x/y"), None)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, ImageError::RegistryRefused { .. }),
        "{error}"
    );
    server.open_gate();
    assert!(owner.await.unwrap().unwrap() == bytes);
}

#[tokio::test]
async fn the_failure_of_one_is_not_the_others() {
    let bytes = content(100_000);
    let (broken, blob) = with_blob(&bytes);
    broken.alter("/blobs/", |answer| {
        answer.manner = Manner::Gate;
        answer.body[7] ^= 1;
    });
    let (sound, _) = with_blob(&bytes);
    let node = Arc::new(Node::default());
    let fetch = |server: &Server| {
        let (node, name, blob) = (Arc::clone(&node), server.name(REPOSITORY), blob.clone());
        tokio::spawn(async move { node.fetch(&name, None, &blob).await })
    };
    let first = fetch(&broken);
    until(|| !broken.seen("/blobs").is_empty()).await;
    let second = fetch(&sound);
    until(|| !sound.seen("/blobs").is_empty()).await;
    broken.open_gate();
    let error = first.await.unwrap().unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains(&broken.port.to_string()),
        "{error}"
    );
    assert!(second.await.unwrap().unwrap() == bytes);
}

#[tokio::test]
async fn no_more_than_the_configured_rate() {
    let bytes = content(500_000);
    let (server, blob) = with_blob(&bytes);
    let node = Node::new(StoreConfig {
        bytes_per_second: 1_000_000,
        // A limit of ours is no standstill.
        progress_timeout: Duration::from_millis(400),
        ..config()
    });
    let start = Instant::now();
    let got = node.fetch(&server.name(REPOSITORY), None, &blob).await;
    assert!(got.unwrap() == bytes);
    assert!(
        start.elapsed() >= Duration::from_millis(490),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn an_empty_blob() {
    let (server, blob) = with_blob(b"");
    assert_eq!(descriptor(b"").size, 0);
    let got = Node::default()
        .fetch(&server.name(REPOSITORY), None, &blob)
        .await;
    assert_eq!(got.unwrap(), b"");
}
