//! Pulls from real registries: Debian's docker-registry plain, with TLS, with passwords, with a
//! token server, behind a mirror and behind a connection that breaks.
//!
//! Needs root and `scripts/deps-image`.

mod proxy;
mod support;
mod tokens;

use bulkhead_image::{Auth, Image, ImageError, ImageStore, StoreConfig};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use support::{HTPASSWD, Registry, Site, missing};

/// A store with the settings of a site.
struct Node {
    store: ImageStore,
}

impl Node {
    fn new(site: &Site) -> Self {
        let config = StoreConfig {
            registry_config_paths: vec![site.path("certs.d")],
            retry_delay: std::time::Duration::from_millis(5),
            ..StoreConfig::default()
        };
        let store = ImageStore::open(&site.path("store"), config).unwrap();
        Self { store }
    }

    async fn pull(&self, name: &str, auth: Option<Auth>) -> Result<Image, ImageError> {
        self.store.pull(name, auth, |_| {}).await
    }

    /// Pulls, and removes the image, so that the next pull is a real one.
    async fn try_out(&self, name: &str, auth: Option<Auth>) -> Result<Image, ImageError> {
        let image = self.pull(name, auth).await?;
        self.store.remove(&image.id).await?;
        Ok(image)
    }
}

fn me() -> Option<Auth> {
    Some(Auth::basic("me", "secret"))
}

macro_rules! needs_everything {
    () => {
        if let Some(reason) = missing() {
            eprintln!("SKIPPED: {reason}");
            return;
        }
    };
}

#[tokio::test]
async fn plain_by_tag_and_digest() {
    needs_everything!();
    let site = Site::new();
    let registry = Registry::plain(&site.path("storage"));
    let digest = site.push(&registry, "team/app:v1", 100_000);
    let node = Node::new(&site);
    let name = format!("localhost:{}/team/app", registry.port);
    let image = node.pull(&format!("{name}:v1"), None).await.unwrap();
    assert_eq!(image.repo_tags, [format!("{name}:v1")]);
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
    for other in [format!("{name}@{digest}"), format!("{name}:v1@{digest}")] {
        assert_eq!(node.pull(&other, None).await.unwrap().id, image.id);
    }
    // With a digest, the tag does not count.
    node.pull(&format!("{name}:no@{digest}"), None)
        .await
        .unwrap();
    let error = node.pull(&format!("{name}:no"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = node
        .pull(&format!("localhost:{}/no:v1", registry.port), None)
        .await;
    assert!(matches!(error, Err(ImageError::NotFound { .. })));
}

#[tokio::test]
async fn tls_and_passwords() {
    needs_everything!();
    let site = Site::new();
    site.authority("ca");
    site.certificate("server", "ca");
    let plain = Registry::plain(&site.path("storage"));
    site.push(&plain, "team/app:v1", 10_000);
    std::fs::write(site.path("htpasswd"), HTPASSWD).unwrap();
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}",
        site.text("server.crt"),
        site.text("server.key")
    );
    let auth = format!(
        "auth: {{htpasswd: {{realm: r, path: {}}}}}",
        site.text("htpasswd")
    );
    let registry = Registry::start(&site.path("storage"), &tls, &auth);
    let node = Node::new(&site);
    let server = format!("server = 'https://localhost:{}'\n", registry.port);
    let name = "reg.test/team/app:v1";

    // An authority that nobody has named.
    site.configure("reg.test", "hosts.toml", &server);
    let error = node.try_out(name, me()).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("UnknownIssuer"), "{text}");
    for more in [
        format!("ca = '{}'", site.text("ca.crt")),
        format!("ca = ['{0}', '{0}']", site.text("ca.crt")),
        "skip_verify = true".to_owned(),
    ] {
        site.configure("reg.test", "hosts.toml", &format!("{server}{more}"));
        node.try_out(name, me()).await.unwrap();
    }
    for auth in [
        None,
        Some(Auth::basic("me", "wrong")),
        Some(Auth::identity_token("x")),
    ] {
        let error = node.try_out(name, auth).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("localhost"), "{error}");
    }

    // Docker's layout, at the registry's own name. What is of this machine needs no certificate.
    let ca = std::fs::read_to_string(site.path("ca.crt")).unwrap();
    let host = format!("localhost:{}", registry.port);
    node.try_out(&format!("{host}/team/app:v1"), me())
        .await
        .unwrap();
    site.configure(&format!("localhost_{}_", registry.port), "ca.crt", &ca);
    node.try_out(&format!("{host}/team/app:v1"), me())
        .await
        .unwrap();

    // The name must be right as well.
    let other = format!(
        "server = 'https://127.0.0.2:{}'\nca = '{}'",
        registry.port,
        site.text("ca.crt")
    );
    site.configure("reg.test", "hosts.toml", &other);
    node.try_out(name, me()).await.unwrap_err();
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority() {
    needs_everything!();
    let site = Site::new();
    site.authority("own");
    site.authority("other");
    let plain = Registry::plain(&site.path("storage"));
    site.push(&plain, "team/app:v1", 10_000);
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}",
        site.text("own.crt"),
        site.text("own.key")
    );
    let registry = Registry::start(&site.path("storage"), &tls, "");
    let node = Node::new(&site);
    let ca = |name: &str, host: &str| {
        let server = format!("server = 'https://{host}:{}'\n", registry.port);
        format!("{server}ca = '{}'", site.text(&format!("{name}.crt")))
    };
    site.configure("reg.test", "hosts.toml", &ca("own", "localhost"));
    node.try_out("reg.test/team/app:v1", None).await.unwrap();
    for (name, host) in [("other", "localhost"), ("own", "127.0.0.2")] {
        site.configure("reg.test", "hosts.toml", &ca(name, host));
        node.try_out("reg.test/team/app:v1", None)
            .await
            .unwrap_err();
    }
}

#[tokio::test]
async fn certificates_of_ours() {
    needs_everything!();
    let site = Site::new();
    for authority in ["ca", "strange"] {
        site.authority(authority);
    }
    site.certificate("server", "ca");
    site.certificate("client", "ca");
    site.certificate("stranger", "strange");
    let plain = Registry::plain(&site.path("storage"));
    site.push(&plain, "team/app:v1", 10_000);
    let tls = format!(
        "  tls: {{certificate: {}, key: {}, clientcas: [{}]}}",
        site.text("server.crt"),
        site.text("server.key"),
        site.text("ca.crt")
    );
    let registry = Registry::start(&site.path("storage"), &tls, "");
    let node = Node::new(&site);
    let both = |name: &str| {
        let read = |ending: &str| std::fs::read_to_string(site.path(&format!("{name}.{ending}")));
        std::fs::write(
            site.path(&format!("{name}.pem")),
            read("crt").unwrap() + &read("key").unwrap(),
        )
        .unwrap();
        site.text(&format!("{name}.pem"))
    };
    let (client, stranger) = (both("client"), both("stranger"));
    let pair = format!(
        "['{}', '{}']",
        site.text("client.crt"),
        site.text("client.key")
    );
    for (line, works) in [
        (String::new(), false),
        (format!("client = '{stranger}'"), false),
        (format!("client = '{client}'"), true),
        (format!("client = [{pair}]"), true),
        // The one that the server's authority signed is chosen.
        (format!("client = ['{stranger}', '{client}']"), true),
    ] {
        let text = format!(
            "server = 'https://localhost:{}'\nca = '{}'\n{line}",
            registry.port,
            site.text("ca.crt")
        );
        site.configure("reg.test", "hosts.toml", &text);
        let got = node.try_out("reg.test/team/app:v1", None).await;
        assert_eq!(got.is_ok(), works, "{line}: {got:?}");
    }
}

#[tokio::test]
async fn a_token_server() {
    needs_everything!();
    let site = Site::new();
    site.authority("tokens");
    let plain = Registry::plain(&site.path("storage"));
    site.push(&plain, "team/app:v1", 10_000);
    let server = tokens::Server::start(&site);
    let auth = format!(
        "auth: {{token: {{realm: 'http://127.0.0.1:{}/token', service: s, issuer: tests, \
         rootcertbundle: {}}}}}",
        server.port,
        site.text("tokens.crt")
    );
    let registry = Registry::start(&site.path("storage"), "", &auth);
    let node = Node::new(&site);
    let name = format!("{}/team/app:v1", registry.host());
    for auth in [me(), Some(Auth::identity_token("me")), me()] {
        node.try_out(&name, auth).await.unwrap();
    }
    assert_eq!(
        server.requests(),
        2,
        "the third pull uses the token of the first"
    );
    for auth in [
        None,
        Some(Auth::basic("me", "wrong")),
        Some(Auth::registry_token("x")),
    ] {
        let error = node.try_out(&name, auth).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    }
    // A token for another repository's blobs would be refused by the registry itself.
    let token = server.token("repository:team/app:pull");
    node.try_out(&name, Some(Auth::registry_token(token)))
        .await
        .unwrap();
    let token = server.token("repository:other/app:pull");
    let error = node.try_out(&name, Some(Auth::registry_token(token))).await;
    assert!(matches!(error, Err(ImageError::Unauthorized { .. })));
}

/// The digests of what a registry has in its storage.
fn blobs(storage: &Path) -> HashSet<OsString> {
    let algorithm = storage.join("docker/registry/v2/blobs/sha256");
    let prefixes = std::fs::read_dir(algorithm).into_iter().flatten().flatten();
    prefixes
        .flat_map(|prefix| std::fs::read_dir(prefix.path()).into_iter().flatten())
        .flatten()
        .filter(|digest| digest.path().join("data").exists())
        .map(|digest| digest.file_name())
        .collect()
}

#[tokio::test]
async fn a_mirror_in_front() {
    needs_everything!();
    let site = Site::new();
    let upstream = Registry::plain(&site.path("storage"));
    let digest = site.push(&upstream, "team/app:v1", 50_000);
    std::fs::create_dir(site.path("cache")).unwrap();
    let more = format!("proxy: {{remoteurl: 'http://{}'}}", upstream.host());
    let mirror = Registry::start(&site.path("cache"), "", &more);
    let node = Node::new(&site);
    let hosts = format!(
        "server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull', 'resolve']\n",
        upstream.host(),
        mirror.host()
    );
    site.configure("reg.test", "hosts.toml", &hosts);
    let image = node.try_out("reg.test/team/app:v1", None).await.unwrap();
    assert_eq!(image.repo_digests, [format!("reg.test/team/app@{digest}")]);
    // It keeps what it passes on in its own time.
    let all = blobs(&site.path("storage"));
    while !blobs(&site.path("cache")).is_superset(&all) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Without its registry, the mirror still has what went through it.
    drop(upstream);
    let by_digest = format!("reg.test/team/app@{digest}");
    assert_eq!(node.try_out(&by_digest, None).await.unwrap().id, image.id);
    // And without the mirror there is nobody.
    drop(mirror);
    let error = node.try_out(&by_digest, None).await.unwrap_err();
    assert!(
        matches!(error.main(), ImageError::RegistryUnreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn connections_that_break() {
    needs_everything!();
    let site = Site::new();
    let registry = Registry::plain(&site.path("storage"));
    site.push(&registry, "team/app:v1", 5 << 20);
    let node = Node::new(&site);
    let proxy = proxy::Proxy::start(registry.port);
    let name = format!("127.0.0.1:{}/team/app:v1", proxy.port);

    // Each connection is good for a bit more than 1 MiB; the layer has more.
    proxy.cut_after(1_200_000);
    node.try_out(&name, None).await.unwrap();
    assert!(proxy.connections() >= 4, "{}", proxy.connections());

    // A bit turns over late in the layer.
    proxy.corrupt_at(3_000_000);
    let error = node.try_out(&name, None).await.unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
    assert_eq!(
        std::fs::read_dir(site.path("store/staging"))
            .unwrap()
            .count(),
        0
    );
    assert!(node.store.list().await.unwrap().is_empty());

    proxy.behave();
    node.try_out(&name, None).await.unwrap();
}
