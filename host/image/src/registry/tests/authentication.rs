//! Who sees which credentials.

use super::{Node, host};
use crate::tests::fixture::{config, serve_small};
use crate::tests::server::{Answer, Manner, Server};
use crate::{Auth, ImageError, Result, StoreConfig};

/// A server that wants the token `T` of its own token server.
fn with_tokens(answer: &str) -> Server {
    let server = Server::start();
    serve_small(&server, "v1");
    let realm = format!("http://{}/token", host(&server));
    server.protect(
        "Bearer T",
        &format!("Bearer realm=\"{realm}\",service=\"s\""),
    );
    server.put_at("/token", answer.as_bytes());
    server
}

async fn resolve(node: &Node, name: &str, auth: Option<Auth>) -> Result<()> {
    node.open(name, auth).await?.resolve().await.map(drop)
}

#[tokio::test]
async fn a_token_is_used_until_it_expires_and_by_its_owner_only() {
    let server = with_tokens(r#"{"token":"T","expires_in":300}"#);
    let node = Node::default();
    let name = server.name("team/app:v1");
    let me = || Some(Auth::basic("me", "secret"));
    for _ in 0..3 {
        resolve(&node, &name, me()).await.unwrap();
    }
    assert_eq!(server.seen("/token").len(), 1);
    resolve(&node, &name, None).await.unwrap();
    assert_eq!(server.seen("/token").len(), 2, "nobody else uses it");
    assert_eq!(server.seen("/token")[1].header("authorization"), "");
    let tried = server.seen("/manifests/v1");
    assert_eq!(tried.len(), 6, "one 401 for each token");
    // It is taken back.
    server.protect(
        "Bearer T2",
        &format!("Bearer realm=\"http://{}/token\"", host(&server)),
    );
    server.put_at("/token", br#"{"access_token":"T2"}"#);
    resolve(&node, &name, me()).await.unwrap();
    assert_eq!(server.seen("/token").len(), 3);
}

#[tokio::test]
async fn what_a_token_server_can_do_wrong() {
    for answer in [
        "",
        "{}",
        "[]",
        r#"{"token":""}"#,
        r#"{"token":"a\nb"}"#,
        r#"{"token":5}"#,
    ] {
        let server = with_tokens(answer);
        let error = resolve(&Node::default(), &server.name("team/app:v1"), None).await;
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("token") || text.contains("credentials"),
            "{answer}: {text}"
        );
    }
    let server = with_tokens(&" ".repeat(2 << 20));
    let error = resolve(&Node::default(), &server.name("team/app:v1"), None).await;
    assert!(error.unwrap_err().to_string().contains("no token"));
    let server = with_tokens("");
    server.put(
        "/token",
        Answer {
            status: 403,
            body: br#"{"details":"incorrect username or password"}"#.to_vec(),
            ..Answer::default()
        },
    );
    let error = resolve(&Node::default(), &server.name("team/app:v1"), None).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("incorrect username"), "{error}");
    // A fault that passes.
    let server = with_tokens(r#"{"token":"T"}"#);
    server.alter("/token", |answer| {
        answer.manner = Manner::Status(503);
        answer.times = Some(2);
    });
    resolve(&Node::default(), &server.name("team/app:v1"), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_sees_credentials_unasked() {
    let server = Server::start();
    serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    let node = Node::default();
    for auth in [
        Auth::basic("me", "x"),
        Auth::registry_token("x"),
        Auth::identity_token("x"),
    ] {
        resolve(&node, &name, Some(auth)).await.unwrap();
    }
    assert!(
        server
            .seen("")
            .iter()
            .all(|seen| seen.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn credentials_for_another_address_are_kept_back() {
    let server = Server::start();
    serve_small(&server, "v1");
    server.protect("Basic bWU6c2VjcmV0", "Basic");
    let name = server.name("team/app:v1");
    let node = Node::default();
    let me = Auth::basic("me", "secret");
    let error = resolve(&node, &name, Some(me.clone().only_for("https://elsewhere"))).await;
    assert!(matches!(error, Err(ImageError::Unauthorized { .. })));
    assert!(
        server
            .seen("")
            .iter()
            .all(|seen| seen.header("authorization").is_empty())
    );
    let here = format!("https://{}/v2/", host(&server));
    resolve(&node, &name, Some(me.only_for(&here)))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_nodes_own_credentials() {
    let server = Server::start();
    serve_small(&server, "v1");
    server.protect("Basic bWU6c2VjcmV0", "Basic");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let node = Node::new(StoreConfig {
        docker_config: Some(file.clone()),
        ..config()
    });
    let name = server.name("team/app:v1");
    let error = resolve(&node, &name, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Credentials { .. }), "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
    let auths = serde_json::json!({"auths": {host(&server): {"auth": "bWU6c2VjcmV0"}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    resolve(&node, &name, None).await.unwrap();
    // The caller's come first.
    let error = resolve(&node, &name, Some(Auth::basic("me", "wrong"))).await;
    assert!(matches!(error, Err(ImageError::Unauthorized { .. })));
}

#[tokio::test]
async fn a_token_server_that_has_moved() {
    let (server, elsewhere) = (with_tokens(""), Server::start());
    let moved = |to: String| Answer {
        status: 307,
        headers: vec![("Location".to_owned(), to)],
        ..Answer::default()
    };
    server.put("/token", moved("/new?scope=x".to_owned()));
    server.put_at("/new", br#"{"token":"T"}"#);
    let name = server.name("team/app:v1");
    let me = || Some(Auth::basic("me", "secret"));
    resolve(&Node::default(), &name, me()).await.unwrap();
    assert_eq!(
        server.seen("/new")[0].header("authorization"),
        "Basic bWU6c2VjcmV0"
    );
    // Another host gets no password.
    server.put(
        "/token",
        moved(format!("http://{}/token", host(&elsewhere))),
    );
    elsewhere.put_at("/token", br#"{"token":"T"}"#);
    resolve(&Node::default(), &name, me()).await.unwrap();
    assert_eq!(elsewhere.seen("/token")[0].header("authorization"), "");
    // And nobody goes round for ever.
    server.put("/token", moved("/token".to_owned()));
    server.forget_requests();
    resolve(&Node::default(), &name, me()).await.unwrap_err();
    assert_eq!(server.seen("/token").len(), 4);
}
