//! Pulls: what is accepted, and how a bad registry ends.

use super::fixture::{
    Packing, REPOSITORY, assert_clean, config, fail, is_root, open, serve, serve_as, serve_small,
    skip,
};
use super::server::{Answer, Manner, Server};
use super::tarball::Tarball;
use crate::manifest::architecture;
use crate::{Auth, ImageError, ImageStore, PullPhase, StoreConfig};
use base64::Engine as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[tokio::test]
async fn an_image_by_tag_digest_and_index() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let served = serve_small(&server, "v1");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"digest": served.config, "size": 1, "platform": {"os": "linux", "architecture": "s390x"}},
        {"digest": served.digest, "size": served.manifest.len(),
         "platform": {"os": "linux", "architecture": architecture()}},
    ]});
    let index = server.put_manifest(REPOSITORY, "multi", index.to_string().as_bytes());
    let store = open(root.path());
    let phases = Mutex::new(Vec::new());
    let progress = |p: &crate::PullProgress| phases.lock().unwrap().push(p.clone());
    let image = store
        .pull(&server.name("team/app:v1"), None, progress)
        .await
        .unwrap();
    assert_eq!(image.id, served.config.to_string());
    assert_eq!(image.repo_tags, [server.name("team/app:v1")]);
    let repository = server.name(REPOSITORY);
    assert_eq!(
        image.repo_digests,
        [format!("{repository}@{}", served.digest)]
    );
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.size % 4096, 0);
    let phases = phases.into_inner().unwrap();
    assert_eq!(phases.first().unwrap().phase, PullPhase::Resolving);
    assert_eq!(phases.last().unwrap().phase, PullPhase::Done);

    let by_digest = format!("{repository}@{}", served.digest);
    assert_eq!(store.pull(&by_digest, None, |_| {}).await.unwrap(), image);
    let multi = store
        .pull(&server.name("team/app:multi"), None, |_| {})
        .await
        .unwrap();
    assert_eq!(multi.id, image.id);
    assert!(
        multi
            .repo_digests
            .contains(&format!("{repository}@{index}"))
    );
    for layer in &served.layers {
        assert_eq!(server.requests(layer.as_str()).len(), 1, "downloaded once");
    }
    assert_clean(root.path(), 1);
    drop(store);
    assert_eq!(open(root.path()).list().await.unwrap(), [multi]);
}

#[tokio::test]
async fn every_kind_of_bad_image_ends_in_its_error() {
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    let pull = async |tag: &str| {
        fail(
            &store,
            root.path(),
            &server.name(&format!("team/app:{tag}")),
        )
        .await
    };

    assert!(matches!(pull("none").await, ImageError::NotFound { .. }));
    let by_digest = server.name(&format!("team/app@sha256:{}", "0".repeat(64)));
    let error = fail(&store, root.path(), &by_digest).await;
    assert!(matches!(error, ImageError::NotFound { .. }));

    let served = serve_small(&server, "layer");
    server.alter(served.layers[1].as_str(), |answer| answer.body[20] ^= 1);
    let error = pull("layer").await;
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );

    let served = serve_small(&server, "manifest");
    server.alter(served.digest.as_str(), |answer| answer.body.push(b' '));
    let by_digest = server.name(&format!("team/app@{}", served.digest));
    let error = fail(&store, root.path(), &by_digest).await;
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );

    let served = serve_small(&server, "config");
    server.alter(served.config.as_str(), |answer| answer.body[0] = b'[');
    let error = pull("config").await;
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );

    for manner in [Manner::Decent, Manner::Endless] {
        let served = serve_small(&server, "long");
        server.alter(served.layers[0].as_str(), |answer| {
            answer.body.extend([0; 100]);
            answer.manner = manner;
        });
        let error = pull("long").await;
        assert!(matches!(error, ImageError::SizeMismatch { .. }), "{error}");
    }

    let served = serve_small(&server, "cut");
    server.alter(served.layers[0].as_str(), |answer| {
        answer.manner = Manner::Cut(30)
    });
    let error = pull("cut").await;
    assert!(
        matches!(error, ImageError::RegistryUnreachable { .. }),
        "{error}"
    );

    let served = serve_small(&server, "busy");
    server.alter(served.layers[0].as_str(), |answer| {
        answer.status = 429;
        answer.body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#.to_vec();
    });
    let error = pull("busy").await.to_string();
    assert!(
        error.contains("429") && error.contains("slow down"),
        "{error}"
    );

    server.put_manifest(REPOSITORY, "huge", &vec![b' '; (4 << 20) + 1]);
    assert!(matches!(
        pull("huge").await,
        ImageError::SizeMismatch { .. }
    ));
    let other = serde_json::json!({"schemaVersion": 2, "manifests": []}).to_string();
    server.put_manifest(REPOSITORY, "empty", other.as_bytes());
    assert!(matches!(
        pull("empty").await,
        ImageError::InvalidImage { .. }
    ));
}

#[tokio::test]
async fn contents_are_checked_too() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let layer = (
        Tarball::default().file("a", &[0; 100_000]).end(),
        Packing::Gzip,
    );
    let diff_ids =
        serde_json::json!({"rootfs": {"diff_ids": [format!("sha256:{}", "0".repeat(64))]}});
    serve_as(&server, "diff", std::slice::from_ref(&layer), &diff_ids);
    serve(
        &server,
        "rubbish",
        &[(b"no archive".repeat(100), Packing::Gzip)],
    );
    serve(&server, "large", &[layer]);
    let small = StoreConfig {
        max_unpacked_bytes: 50_000,
        ..config()
    };
    let store = ImageStore::open(root.path(), small).unwrap();
    for (tag, mismatch) in [("diff", true), ("rubbish", false), ("large", false)] {
        let error = fail(
            &store,
            root.path(),
            &server.name(&format!("team/app:{tag}")),
        )
        .await;
        match error {
            ImageError::DigestMismatch { .. } if mismatch => {}
            // The limit is met before the end, where the digest is known.
            ImageError::InvalidLayer { .. } => {}
            other => panic!("{tag}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_dead_registry_ends_in_an_error() {
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let impatient = StoreConfig {
        stall_timeout: Duration::from_millis(200),
        ..config()
    };
    let store = ImageStore::open(root.path(), impatient).unwrap();
    let start = Instant::now();
    serve_small(&server, "head");
    server.alter("/manifests/head", |answer| {
        answer.manner = Manner::Stall(10)
    });
    let served = serve_small(&server, "body");
    server.alter(served.layers[0].as_str(), |answer| {
        answer.manner = Manner::Stall(30)
    });
    for tag in ["head", "body"] {
        let error = fail(
            &store,
            root.path(),
            &server.name(&format!("team/app:{tag}")),
        )
        .await;
        assert!(
            matches!(error, ImageError::RegistryUnreachable { .. }),
            "{error}"
        );
    }
    let error = fail(&store, root.path(), "127.0.0.1:1/team/app").await;
    assert!(
        matches!(error, ImageError::RegistryUnreachable { .. }),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn credentials() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    let pair = base64::engine::general_purpose::STANDARD.encode("me:secret");
    let me = Auth::from_base64(&pair).unwrap();
    assert!(!format!("{me:?}").contains("secret"));
    let stranger = Auth::basic("me", "wrong");

    server.protect(&format!("Basic {pair}"), "Basic realm=\"r\"");
    for auth in [None, Some(stranger), Some(Auth::registry_token("x"))] {
        let error = store.pull(&name, auth, |_| {}).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    }
    store.pull(&name, Some(me.clone()), |_| {}).await.unwrap();
    // What one pod could pull is not for the next pod.
    let error = store.pull(&name, None, |_| {}).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");

    let realm = format!("http://127.0.0.1:{}/token", server.port);
    server.protect(
        "Bearer T",
        &format!("Bearer realm=\"{realm}\",service=\"s\""),
    );
    let body = br#"{"access_token":"T"}"#.to_vec();
    server.put(
        "/token",
        Answer {
            status: 200,
            body,
            ..Answer::default()
        },
    );
    store.pull(&name, Some(me), |_| {}).await.unwrap();
    let asked = server.requests("/token").remove(0);
    assert!(
        asked.0.contains("scope=repository%3Ateam%2Fapp%3Apull"),
        "{}",
        asked.0
    );
    assert_eq!(asked.1, format!("Basic {pair}"));
    store
        .pull(&name, Some(Auth::identity_token("I")), |_| {})
        .await
        .unwrap();
    let asked = server.requests("refresh_token=I");
    assert!(asked[0].0.contains("grant_type=refresh_token") && asked[0].1.is_empty());
    store
        .pull(&name, Some(Auth::registry_token("T")), |_| {})
        .await
        .unwrap();

    server.protect("Bearer T", "Bearer realm=\"ftp://x\"");
    let error = store.pull(&name, None, |_| {}).await.unwrap_err();
    assert!(
        matches!(error, ImageError::RegistryRefused { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_at_the_same_time_share_one_download() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    let served = serve_small(&server, "v1");
    let digest = served.layers[0].as_str();
    server.alter(digest, |answer| answer.manner = Manner::Gate);
    let name = server.name("team/app:v1");
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let pulls: Vec<_> = (0..4)
        .map(|_| {
            let (store, name, begun) = (store.clone(), name.clone(), Arc::clone(&begun));
            tokio::spawn(async move {
                let progress = |p: &crate::PullProgress| {
                    if p.layers
                        .iter()
                        .any(|layer| layer.done > 0 && layer.done < layer.total)
                    {
                        begun.add_permits(1);
                    }
                };
                store.pull(&name, None, progress).await
            })
        })
        .collect();
    let _ = begun.acquire_many(4).await.unwrap();
    // The one that started the download goes away; the others do not suffer.
    pulls[0].abort();
    server.open_gate();
    for pull in pulls.into_iter().skip(1) {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(server.requests(digest).len(), 1);
    assert_clean(root.path(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_nobody_waits_for_stops() {
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    let served = serve_small(&server, "v1");
    server.alter(served.layers[0].as_str(), |answer| {
        answer.manner = Manner::Gate
    });
    let name = server.name("team/app:v1");
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let progress = move |p: &crate::PullProgress| {
        if p.layers.iter().any(|layer| layer.done > 0) {
            sender.take().map(|sender| sender.send(()));
        }
    };
    let pull = tokio::spawn(async move { store.pull(&name, None, progress).await });
    receiver.await.unwrap();
    pull.abort();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_dir(root.path().join("staging"))
        .unwrap()
        .count()
        > 0
    {
        assert!(Instant::now() < deadline, "the staging directory stays");
        tokio::task::yield_now().await;
    }
    assert_clean(root.path(), 0);
}

#[tokio::test]
async fn an_image_that_has_not_changed_costs_one_request_without_a_body() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    let served = serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    let announce = |digest: String| {
        let header = ("Docker-Content-Digest".to_owned(), digest);
        server.alter("/manifests/", |answer| {
            answer.headers = vec![header.clone()]
        });
    };
    announce(served.digest.to_string());
    let image = store.pull(&name, None, |_| {}).await.unwrap();
    server.forget_requests();
    assert_eq!(store.pull(&name, None, |_| {}).await.unwrap(), image);
    let seen = server.seen("");
    assert_eq!((seen.len(), seen[0].method.as_str()), (1, "HEAD"));
    // Another tag of the same image.
    server.put_manifest(REPOSITORY, "v1.0", &served.manifest);
    announce(served.digest.to_string());
    let again = store
        .pull(&server.name("team/app:v1.0"), None, |_| {})
        .await;
    assert_eq!(again.unwrap().repo_tags.len(), 2);
    // The tag moves.
    let other = serve_small(&server, "v2");
    server.put_manifest(REPOSITORY, "v1", &other.manifest);
    announce(other.digest.to_string());
    let moved = store.pull(&name, None, |_| {}).await.unwrap();
    assert_eq!(moved.id, other.config.to_string());
}
