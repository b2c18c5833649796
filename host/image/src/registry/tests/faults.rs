//! Connections that break, stall or lie.

use super::{Node, REPOSITORY, content, with_blob};
use crate::tests::fixture::{config, serve_small};
use crate::tests::server::{Answer, Manner, Server};
use crate::{ImageError, StoreConfig};
use std::time::{Duration, Instant};

const LENGTH: usize = 3 << 20;

#[tokio::test]
async fn a_cut_download_goes_on_where_it_broke_off() {
    let bytes = content(LENGTH);
    for ranges in [true, false] {
        let (server, blob) = with_blob(&bytes);
        server.alter("/blobs/", |answer| {
            answer.manner = Manner::Cut(1 << 20);
            // More than there are tries: those that come far do not count.
            answer.times = Some(if ranges { 2 } else { 1 });
            answer.ranges = ranges;
        });
        let node = Node::default();
        let name = server.name(REPOSITORY);
        assert!(node.fetch(&name, None, &blob).await.unwrap() == bytes);
        let ranges: Vec<String> = server
            .seen("/blobs/")
            .iter()
            .map(|seen| seen.header("range").to_owned())
            .collect();
        assert_eq!(ranges[0], "");
        assert!(
            ranges[1..].iter().all(|range| range.starts_with("bytes=")),
            "{ranges:?}"
        );
        assert_eq!(node.blobs(), 0);
    }
}

#[tokio::test]
async fn a_download_that_always_breaks_early_fails() {
    let (server, blob) = with_blob(&content(LENGTH));
    server.alter("/blobs/", |answer| {
        answer.manner = Manner::Cut(10);
        answer.ranges = true;
    });
    let node = Node::default();
    let name = server.name(REPOSITORY);
    let error = node.fetch(&name, None, &blob).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, ImageError::RegistryUnreachable { .. }),
        "{error}"
    );
    assert!(
        text.contains(blob.digest.as_str()) && text.contains(&name),
        "{text}"
    );
    assert_eq!(server.seen("/blobs/").len(), 5);
    assert_eq!(node.blobs(), 0);
}

#[tokio::test]
async fn a_silent_connection_is_replaced() {
    let bytes = content(LENGTH);
    let (server, blob) = with_blob(&bytes);
    server.alter("/blobs/", |answer| {
        answer.manner = Manner::Stall(2 << 20);
        answer.times = Some(1);
        answer.ranges = true;
    });
    let impatient = StoreConfig {
        stall_timeout: Duration::from_millis(200),
        ..config()
    };
    let node = Node::new(impatient);
    let got = node.fetch(&server.name(REPOSITORY), None, &blob).await;
    assert!(got.unwrap() == bytes);
    assert_eq!(server.seen("/blobs/").len(), 2);
}

#[tokio::test]
async fn a_download_that_gets_no_further_is_given_up() {
    let (server, blob) = with_blob(&content(LENGTH));
    server.alter("/blobs/", |answer| answer.manner = Manner::Stall(2 << 20));
    let node = Node::new(StoreConfig {
        stall_timeout: Duration::from_secs(60),
        progress_timeout: Duration::from_millis(300),
        ..config()
    });
    let start = Instant::now();
    let error = node.fetch(&server.name(REPOSITORY), None, &blob).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::NoProgress { .. }), "{error}");
    assert!(
        error.to_string().contains("image_pull_progress_timeout"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(node.blobs(), 0);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_not() {
    for (status, tries) in [(503, 3), (429, 3), (502, 3), (501, 1), (403, 1), (400, 1)] {
        let server = Server::start();
        serve_small(&server, "v1");
        server.alter("/manifests/v1", |answer| {
            answer.manner = Manner::Status(status);
            answer.times = Some(2);
            answer.headers = vec![("Retry-After".to_owned(), "0".to_owned())];
        });
        let got = Node::default().resolve(&server.name("team/app:v1")).await;
        assert_eq!(got.is_ok(), tries == 3, "{status}: {:?}", got.err());
        assert_eq!(server.seen("/manifests/v1").len(), tries, "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_too_much_patience_is_not_waited_for() {
    let server = Server::start();
    serve_small(&server, "v1");
    server.alter("/manifests/v1", |answer| {
        answer.status = 429;
        answer.headers = vec![("Retry-After".to_owned(), "21600".to_owned())];
        answer.body = br#"{"errors":[{"message":"pull rate limit"}]}"#.to_vec();
    });
    let error = Node::default().resolve(&server.name("team/app:v1")).await;
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("429") && text.contains("pull rate limit"),
        "{text}"
    );
    assert!(
        text.contains("manifest of 127.0.0.1"),
        "the step and the image: {text}"
    );
    assert_eq!(server.seen("/manifests/v1").len(), 1);
}

#[tokio::test]
async fn a_manifest_whose_digest_the_registry_itself_denies() {
    let server = Server::start();
    let served = serve_small(&server, "v1");
    let announce = |digest: String| {
        let header = ("Docker-Content-Digest".to_owned(), digest);
        server.alter("/manifests/v1", |answer| {
            answer.headers = vec![header.clone()]
        });
    };
    let node = Node::default();
    let name = server.name("team/app:v1");
    announce(served.digest.to_string());
    assert_eq!(node.resolve(&name).await.unwrap().target, served.digest);
    announce(format!("sha256:{}", "0".repeat(64)));
    let error = node.resolve(&name).await.unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
    announce("sha3:12".to_owned());
    node.resolve(&name).await.unwrap();
}

#[tokio::test]
async fn indexes_inside_indexes() {
    let server = Server::start();
    let served = serve_small(&server, "v1");
    let (mut digest, mut size) = (served.digest, served.manifest.len());
    let node = Node::default();
    for depth in 1..=4 {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"digest": digest, "size": size, "platform": null}]});
        let index = index.to_string();
        size = index.len();
        digest = server.put_manifest(REPOSITORY, "nested", index.as_bytes());
        let got = node.resolve(&server.name("team/app:nested")).await;
        assert_eq!(got.is_ok(), depth <= 2, "{depth}: {:?}", got.err());
    }
    // An entry whose size is a lie.
    let index = serde_json::json!({"manifests": [{"digest": digest, "size": size - 1}]});
    server.put_manifest(REPOSITORY, "lie", index.to_string().as_bytes());
    let error = node
        .resolve(&server.name("team/app:lie"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::SizeMismatch { .. }), "{error}");
}

#[tokio::test]
async fn redirections_get_no_credentials() {
    let bytes = content(1000);
    let (server, blob) = with_blob(&bytes);
    let store = Server::start();
    store.put(
        "/store/blob",
        Answer {
            status: 200,
            body: bytes.clone(),
            ..Answer::default()
        },
    );
    let port = store.port;
    server.alter("/blobs/", |answer| {
        answer.status = 307;
        answer.body = Vec::new();
        let location = format!("http://127.0.0.1:{port}/store/blob?signature=x");
        answer.headers = vec![("Location".to_owned(), location)];
    });
    let pair = "bWU6c2VjcmV0";
    server.protect(&format!("Basic {pair}"), "Basic");
    let node = Node::default();
    let registry = super::host(&server);
    node.configure(
        &registry,
        &format!("server='http://{registry}'\n[header]\nX-Key='k'"),
    );
    let auth = crate::Auth::basic("me", "secret");
    let name = server.name(REPOSITORY);
    assert!(node.fetch(&name, Some(auth.clone()), &blob).await.unwrap() == bytes);
    let seen = &store.seen("/store/blob")[0];
    assert_eq!(
        (seen.header("authorization"), seen.header("x-key")),
        ("", "")
    );
    let own = server.seen("/blobs/");
    let own = own.last().unwrap();
    assert_eq!(own.header("authorization"), format!("Basic {pair}"));
    assert_eq!(own.header("x-key"), "k");

    // What goes wrong there is not the registry's 401, and the signature is not shown.
    store.put(
        "/store/blob",
        Answer {
            status: 401,
            ..Answer::default()
        },
    );
    let error = node
        .fetch(&name, Some(auth.clone()), &blob)
        .await
        .unwrap_err();
    assert!(!format!("{error:?}").contains("signature"), "{error:?}");

    for location in ["/v2/team/app/blobs/again", "ftp://x/", "http://[", ""] {
        server.alter("/blobs/", |answer| {
            answer.headers = vec![("Location".to_owned(), location.to_owned())];
        });
        let again = Answer {
            status: 302,
            headers: vec![("Location".to_owned(), "/v2/team/app/blobs/again".to_owned())],
            ..Answer::default()
        };
        server.put("/v2/team/app/blobs/again", again);
        server.forget_requests();
        let error = node
            .fetch(&name, Some(auth.clone()), &blob)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageError::RegistryRefused { .. }),
            "{error}"
        );
        assert!(server.seen("").len() <= 12, "{location}");
    }
}

#[tokio::test]
async fn layers_larger_than_any_image_are_not_begun() {
    let server = Server::start();
    let layer =
        serde_json::json!({"digest": format!("sha256:{}", "1".repeat(64)), "size": 1_u64 << 62});
    let manifest = serde_json::json!({"config": layer, "layers": [layer, layer, layer, layer]});
    server.put_manifest(REPOSITORY, "huge", manifest.to_string().as_bytes());
    let error = Node::default().resolve(&server.name("team/app:huge")).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::InvalidImage { .. }), "{error}");
}
