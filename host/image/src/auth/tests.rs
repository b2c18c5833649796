use super::docker::{DockerConfig, Keychain};
use super::{Auth, Secret};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

fn basic(username: &str, password: &str) -> Secret {
    Secret::Basic {
        username: username.to_owned(),
        password: password.to_owned(),
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Basic { username, password } => write!(f, "{username}:{password}"),
            Self::IdentityToken(token) => write!(f, "identity {token}"),
            Self::RegistryToken(token) => write!(f, "registry {token}"),
        }
    }
}

#[test]
fn a_server_address_keeps_others_out() {
    let auth = Auth::basic("me", "secret").only_for("https://reg.example:5000/v2/");
    assert!(auth.for_host("reg.example:5000").is_some());
    assert!(auth.for_host("mirror.example").is_none());
    let auth = Auth::basic("me", "secret").only_for("https://index.docker.io/v1/");
    assert!(auth.for_host("registry-1.docker.io").is_some());
    let auth = Auth::basic("me", "secret").only_for("");
    assert!(auth.for_host("anything").is_some());
}

#[test]
fn fingerprints_tell_apart() {
    let all = [
        Auth::basic("a", "bc"),
        Auth::basic("ab", "c"),
        Auth::identity_token("a"),
        Auth::registry_token("a"),
    ];
    let prints: std::collections::BTreeSet<_> = all.iter().map(Auth::fingerprint).collect();
    assert_eq!(prints.len(), all.len());
    assert_eq!(all[0].clone().fingerprint(), all[0].fingerprint());
}

#[test]
fn entries_of_a_docker_config() {
    let config = DockerConfig::parse(
        br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmE="},
            "reg.example:5000": {"username": "u", "password": "p", "email": "x"},
            "https://reg.example": {"identitytoken": "I", "auth": "aTo="},
            "quay.io/team": {"auth": "dGVhbTph"},
            "quay.io/team/app": {"auth": "YXBwOmE="},
            "quay.io": {"registrytoken": "R"},
            "empty.example": {},
            "bad.example": {"auth": "%"}
        }, "HttpHeaders": {"User-Agent": "Docker"}, "credHelpers": {}}"#,
    )
    .unwrap();
    for (host, repository, want) in [
        (
            "registry-1.docker.io",
            "library/busybox",
            Some(basic("hub", "a")),
        ),
        ("docker.io", "library/busybox", Some(basic("hub", "a"))),
        ("reg.example:5000", "x", Some(basic("u", "p"))),
        (
            "reg.example",
            "x",
            Some(Secret::IdentityToken("I".to_owned())),
        ),
        ("quay.io", "team/app", Some(basic("app", "a"))),
        ("quay.io", "team/application", Some(basic("team", "a"))),
        (
            "quay.io",
            "other",
            Some(Secret::RegistryToken("R".to_owned())),
        ),
        ("empty.example", "x", None),
        ("unknown.example", "x", None),
    ] {
        assert_eq!(
            config.entry(host, repository).unwrap(),
            want,
            "{host}/{repository}"
        );
    }
    let reason = config.entry("bad.example", "x").unwrap_err();
    assert!(
        reason.contains("bad.example") && reason.contains("Base64"),
        "{reason}"
    );
    assert!(DockerConfig::parse(b"[]").is_err());
    assert!(!format!("{config:?}").contains("aHViOmE="));
}

fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(format!("docker-credential-{name}"));
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn credential_helpers() {
    let root = tempfile::tempdir().unwrap();
    let echo = r#"read -r host; printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$host" "$1-$host""#;
    program(root.path(), "store", echo);
    let identity = r#"printf '{"Username":"<token>","Secret":"I"}'"#;
    program(root.path(), "cloud", identity);
    let nothing = "echo credentials not found in native keychain; exit 1";
    program(root.path(), "empty", nothing);
    program(root.path(), "broken", "echo the vault is sealed; exit 3");
    program(root.path(), "loud", "cat /dev/zero");
    program(root.path(), "odd", "echo hello");
    let file = root.path().join("config.json");
    let text = r#"{"auths": {"empty.example": {"auth": "YTpi"}}, "credsStore": "store",
        "credHelpers": {"cloud.example": "cloud", "empty.example": "empty",
        "broken.example": "broken", "loud.example": "loud", "odd.example": "odd",
        "gone.example": "gone", "path.example": "../x"}}"#;
    fs::write(&file, text).unwrap();
    let keychain = Keychain::with_programs(file.clone(), root.path().to_owned());
    let find = |host: &'static str| keychain.find(host, "team/app");
    assert_eq!(
        find("reg.example:1").await.unwrap(),
        Some(basic("get-reg.example:1", "s"))
    );
    let hub = find("registry-1.docker.io").await.unwrap();
    assert_eq!(hub, Some(basic("get-https://index.docker.io/v1/", "s")));
    let cloud = find("cloud.example").await.unwrap();
    assert_eq!(cloud, Some(Secret::IdentityToken("I".to_owned())));
    assert_eq!(find("empty.example").await.unwrap(), Some(basic("a", "b")));
    for (host, reason) in [
        ("broken.example", "the vault is sealed"),
        ("loud.example", "more than"),
        ("odd.example", "JSON"),
        ("gone.example", "docker-credential-gone can not be run"),
        ("path.example", "not the name of a program"),
    ] {
        let error = find(host).await.unwrap_err();
        assert!(
            error.contains(reason) && error.contains("config.json"),
            "{error}"
        );
    }
    fs::remove_file(&file).unwrap();
    assert!(
        find("reg.example")
            .await
            .unwrap_err()
            .contains("config.json")
    );
    assert_eq!(
        Keychain::default().find("reg.example", "x").await.unwrap(),
        None
    );
}
