//! Several hosts for one registry.

use super::{Node, REPOSITORY, content, descriptor, host, with_blob};
use crate::ImageError;
use crate::tests::fixture::serve_small;
use crate::tests::server::{Answer, Manner, Server};

/// A `hosts.toml` with mirrors and the upstream server.
fn hosts_toml(mirrors: &[(&Server, &str)], upstream: &Server) -> String {
    let mut text = format!("server = 'http://{}'\n", host(upstream));
    for (mirror, more) in mirrors {
        text += &format!("[host.'http://{}']\n{more}\n", host(mirror));
    }
    text
}

#[tokio::test]
async fn mirrors_come_first_and_are_told_whose_image_it_is() {
    let (mirror, upstream) = (Server::start(), Server::start());
    serve_small(&mirror, "v1");
    let served = serve_small(&upstream, "v1");
    let node = Node::default();
    node.configure("reg.example:5000", &hosts_toml(&[(&mirror, "")], &upstream));
    let resolved = node.resolve("reg.example:5000/team/app:v1").await.unwrap();
    assert_eq!(resolved.target, served.digest);
    assert!(upstream.seen("").is_empty(), "the mirror has everything");
    let asked = mirror.seen("/manifests/v1");
    assert_eq!(
        asked[0].text,
        "/v2/team/app/manifests/v1?ns=reg.example%3A5000"
    );

    // What the mirror does not have comes from upstream, which gets no `ns` at its own name.
    mirror.alter("/manifests/v1", |answer| answer.status = 404);
    let name = upstream.name("team/app:v1");
    node.configure(&host(&upstream), &hosts_toml(&[(&mirror, "")], &upstream));
    node.resolve(&name).await.unwrap();
    assert_eq!(
        upstream.seen("/manifests/v1")[0].text,
        "/v2/team/app/manifests/v1"
    );
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_is_asked_for_contents_only() {
    let (mirror, upstream) = (Server::start(), Server::start());
    serve_small(&mirror, "v1");
    serve_small(&upstream, "v1");
    let node = Node::default();
    let text = hosts_toml(&[(&mirror, "capabilities = ['pull']")], &upstream);
    node.configure("reg.example", &text);
    node.resolve("reg.example/team/app:v1").await.unwrap();
    assert!(mirror.seen("/manifests/").is_empty());
    assert_eq!(upstream.seen("/manifests/v1").len(), 1);
    assert_eq!(mirror.seen("/blobs/").len(), 1, "the configuration");
    assert!(upstream.seen("/blobs/").is_empty());
    // Nobody may resolve.
    let text = format!(
        "server = 'http://{}'\ncapabilities = ['push']",
        host(&upstream)
    );
    node.configure("reg.example", &text);
    let error = node.resolve("reg.example/team/app:v1").await.unwrap_err();
    assert!(
        matches!(error, ImageError::RegistrySettings { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_mirror_that_is_down_or_lies_does_not_matter() {
    let bytes = content(3 << 20);
    let upstream = Server::start();
    upstream.put_blob(REPOSITORY, &bytes);
    let blob = descriptor(&bytes);
    for manner in [
        Manner::Corrupt,
        Manner::Cut(0),
        Manner::Status(500),
        Manner::Status(401),
    ] {
        let (mirror, _) = with_blob(&bytes);
        mirror.alter("/blobs/", |answer| answer.manner = manner);
        let node = Node::default();
        node.configure("reg.example", &hosts_toml(&[(&mirror, "")], &upstream));
        let got = node.fetch("reg.example/team/app", None, &blob).await;
        assert!(got.unwrap() == bytes);
        assert!(!mirror.seen("/blobs/").is_empty());
    }
    let node = Node::default();
    let text = format!(
        "server='http://{}'\n[host.'http://127.0.0.1:1']",
        host(&upstream)
    );
    node.configure("reg.example", &text);
    let got = node.fetch("reg.example/team/app", None, &blob).await;
    assert!(got.unwrap() == bytes);
}

#[tokio::test]
async fn a_mirror_that_breaks_off_in_the_middle_and_lies() {
    let bytes = content(3 << 20);
    let upstream = Server::start();
    upstream.put_blob(REPOSITORY, &bytes);
    upstream.alter("/blobs/", |answer| answer.ranges = true);
    // The first half is wrong, and upstream would go on from there.
    let mut wrong = bytes.clone();
    wrong[1000] ^= 1;
    let blob = descriptor(&bytes);
    let (mirror, _) = with_blob(&bytes);
    mirror.alter("/blobs/", |answer| {
        answer.body = wrong.clone();
        answer.manner = Manner::Cut(1 << 19);
        answer.ranges = true;
    });
    let node = Node::default();
    node.configure("reg.example", &hosts_toml(&[(&mirror, "")], &upstream));
    let got = node.fetch("reg.example/team/app", None, &blob).await;
    assert!(got.unwrap() == bytes);
    let last = upstream.seen("/blobs/");
    assert_eq!(
        last.last().unwrap().header("range"),
        "",
        "from the beginning at last"
    );
}

#[tokio::test]
async fn when_no_host_has_it_the_error_tells_of_all() {
    let (mirror, upstream) = (Server::start(), Server::start());
    let answer = Answer {
        status: 500,
        ..Answer::default()
    };
    mirror.put("/v2/team/app/manifests/v1", answer);
    let node = Node::default();
    node.configure("reg.example", &hosts_toml(&[(&mirror, "")], &upstream));
    let error = node.resolve("reg.example/team/app:v1").await.unwrap_err();
    assert!(
        matches!(error.main(), ImageError::NotFound { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains(&host(&mirror)) && text.contains("500"),
        "{text}"
    );
}

#[tokio::test]
async fn settings_that_can_not_be_used_end_the_pull() {
    let node = Node::default();
    node.configure("reg.example", "[host");
    let error = node.resolve("reg.example/a").await.unwrap_err().to_string();
    assert!(
        error.contains("hosts.toml") && error.contains("reg.example"),
        "{error}"
    );
    for text in [
        "ca = 'missing.pem'",
        "client = 'missing.pem'",
        "ca = 'hosts.toml'",
    ] {
        node.configure("reg.example", text);
        let error = node.resolve("reg.example/a").await.unwrap_err();
        assert!(
            matches!(error, ImageError::RegistrySettings { .. }),
            "{text}: {error}"
        );
    }
}

#[tokio::test]
async fn a_path_instead_of_v2() {
    let server = Server::start();
    let served = serve_small(&server, "v1");
    let manifest = served.manifest.clone();
    server.put_at("/artifactory/docker/team/app/manifests/v1", &manifest);
    server.put_at(
        &format!("/artifactory/docker/team/app/blobs/{}", served.config),
        &served.configuration,
    );
    let node = Node::default();
    let text = format!(
        "server='http://{}/artifactory/docker/'\noverride_path=true",
        host(&server)
    );
    node.configure("reg.example", &text);
    let resolved = node.resolve("reg.example/team/app:v1").await.unwrap();
    assert_eq!(resolved.target, served.digest);
}
