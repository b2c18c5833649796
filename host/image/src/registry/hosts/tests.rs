use super::file::duration;
use super::{Host, Protocol, TlsFiles, find, is_loopback, parse, wire_authority};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn read(text: &str) -> Result<Vec<Host>, String> {
    let upstream = Host::upstream("reg.example", false);
    parse(text, Path::new("/certs.d/reg.example"), upstream)
}

fn addresses(hosts: &[Host]) -> Vec<String> {
    let one = |host: &Host| format!("{}{}", host.authority, host.path);
    hosts.iter().map(one).collect()
}

/// The examples of containerd's documentation, together.
#[test]
fn everything_that_containerd_documents() {
    let hosts = read(
        r#"
server = "https://registry-1.docker.io"
capabilities = ["pull", "resolve", "push"]
ca = "/etc/certs/root.pem"
[header]
  x-custom-2 = "value2"

[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "certs/mirror.pem"
  skip_verify = false
  dial_timeout = "1s"
  proxy = "http://my-proxy:8080"
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.registry/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.registry"]
  capabilities = ["pull"]

[host."https://test-1.registry"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]

[host."https://test-2.registry"]
  client = "/etc/certs/client.pem"

[host."https://test-3.registry"]
  client = ["/etc/certs/client-1.pem", "/etc/certs/client-2.pem"]

[host."https://non-compliant-mirror.registry/v2/upstream"]
  capabilities = ["Pull"]
  override_path = true
"#,
    )
    .unwrap();
    assert_eq!(
        addresses(&hosts),
        [
            "mirror.registry/v2",
            "mirror-bak.registry/us/v2",
            "mirror.registry/v2",
            "test-1.registry/v2",
            "test-2.registry/v2",
            "test-3.registry/v2",
            "non-compliant-mirror.registry/v2/upstream",
            "registry-1.docker.io/v2",
        ],
        "the order of the file, and the server last"
    );
    let mirror = &hosts[0];
    assert_eq!((mirror.pull, mirror.resolve), (true, false));
    let relative = PathBuf::from("/certs.d/reg.example/certs/mirror.pem");
    assert_eq!(mirror.tls.ca, [relative]);
    assert_eq!(mirror.tls.skip_verify, Some(false));
    assert_eq!(mirror.dial_timeout, Some(Duration::from_secs(1)));
    assert_eq!(mirror.proxy.as_deref(), Some("http://my-proxy:8080"));
    assert_eq!(mirror.header.len(), 2);
    assert_eq!(hosts[1].tls.skip_verify, Some(true));
    assert_eq!(hosts[2].protocol, Protocol::Http);
    let path = PathBuf::from;
    assert_eq!(
        hosts[3].tls.client,
        [
            (
                path("/etc/certs/client.cert"),
                Some(path("/etc/certs/client.key"))
            ),
            (path("/etc/certs/client.pem"), None),
        ]
    );
    assert!((hosts[3].pull, hosts[3].resolve) == (true, true) && hosts[3].tls.ca.len() == 2);
    assert_eq!(hosts[4].tls.client, [(path("/etc/certs/client.pem"), None)]);
    assert_eq!(hosts[5].tls.client.len(), 2);
    assert_eq!(
        hosts[7].header,
        [("x-custom-2".to_owned(), "value2".to_owned())]
    );
    assert_eq!(hosts[7].tls.ca, [path("/etc/certs/root.pem")]);
}

#[test]
fn a_file_without_a_server_ends_with_the_registry_itself() {
    let hosts =
        read("ca = 'x.pem'\n[host.'mirror:5000']\n[host.'http://m2:5000']\nskip_verify=true")
            .unwrap();
    assert_eq!(
        addresses(&hosts),
        ["mirror:5000/v2", "m2:5000/v2", "reg.example/v2"]
    );
    assert_eq!(hosts[0].protocol, Protocol::Https);
    assert_eq!(hosts[1].protocol, Protocol::Either, "containerd's rule");
    assert_eq!(
        hosts[2].tls.ca,
        [PathBuf::from("/certs.d/reg.example/x.pem")]
    );
    let hosts = read("server = 'https://docker.io'\n").unwrap();
    assert_eq!(addresses(&hosts), ["registry-1.docker.io/v2"]);
    let hosts = read("server = 'http://a:80/'\nskip_verify = true").unwrap();
    assert_eq!(
        hosts[0].protocol,
        Protocol::Http,
        "port 80 leaves nothing open"
    );
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_reason() {
    for (text, reason) in [
        ("server = 1", "server must be a string"),
        ("host = 'x'", "[host."),
        (
            "[host.'https://a']\ncapabilities = ['fly']",
            "\"fly\" is no capability",
        ),
        ("[host.'ftp://a']", "https://"),
        ("[host.'https://a?b=c']", "a host, with a port and a path"),
        ("[host.'https://u:p@a']", "a host, with a port and a path"),
        ("ca = 1", "a string or a list of strings"),
        ("client = [['a']]", "client must be"),
        ("[host.'https://a']\ndial_timeout = '1'", "dial_timeout"),
        ("[header]\n'a b' = 'c'", "can not be a header"),
        ("[header]\na = \"b\\nc\"", "can not be a header"),
        ("proxy = 'gopher://x'", "proxy"),
        ("server = 'https://a", "TOML"),
        ("[host.'https://a']\nskip_verify = 'yes'", "skip_verify"),
    ] {
        let error = read(text).unwrap_err();
        assert!(
            error.contains(reason) || reason == "TOML",
            "{text}: {error}"
        );
    }
    let many: String = (0..65)
        .map(|n| format!("[host.'https://h{n}']\n"))
        .collect();
    assert!(read(&many).unwrap_err().contains("64"));
    read("[host.'https://a']\nfuture_key = 1").expect("containerd passes over it too");
}

#[test]
fn durations_are_those_of_go() {
    for (text, milliseconds) in [
        ("1s", 1000),
        ("1m30s", 90_000),
        ("1.5s", 1500),
        ("300ms", 300),
    ] {
        assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds));
    }
    for text in [
        "", "0s", "1", "s", "1x", "-1s", "1..2s", "10000h", "1s1", "\u{b5}s",
    ] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn directories_are_found_as_containerd_does() {
    let root = tempfile::tempdir().unwrap();
    let roots = [root.path().join("missing"), root.path().to_owned()];
    let put = |directory: &str, server: &str| {
        let directory = root.path().join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), format!("server = '{server}'")).unwrap();
    };
    let get = |registry: &str| addresses(&find(&roots, registry, false).unwrap());
    assert_eq!(get("reg.example:5000"), ["reg.example:5000/v2"]);
    put("_default", "https://default");
    assert_eq!(get("reg.example:5000"), ["default/v2"]);
    put("reg.example:5000", "https://colon");
    assert_eq!(get("reg.example:5000"), ["colon/v2"]);
    put("reg.example_5000_", "https://underscore");
    assert_eq!(get("reg.example:5000"), ["underscore/v2"]);
    assert_eq!(get("reg.example"), ["default/v2"]);
    put("[::1]_5000_", "https://six");
    assert_eq!(get("[::1]:5000"), ["six/v2"]);

    let broken = root.path().join("reg.example:5000/hosts.toml");
    fs::remove_dir_all(root.path().join("reg.example_5000_")).unwrap();
    fs::write(&broken, "[host").unwrap();
    let bad = find(&roots, "reg.example:5000", false).unwrap_err();
    assert_eq!(bad.path, broken, "no silent way around the mirrors");
}

#[test]
fn certificates_of_dockers_layout() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("reg.example");
    fs::create_dir(&directory).unwrap();
    for name in [
        "b.crt", "a.crt", "c.cert", "c.key", "d.cert", "e.key", "README",
    ] {
        fs::write(directory.join(name), "").unwrap();
    }
    let hosts = find(&[root.path().to_owned()], "reg.example", false).unwrap();
    let path = |name: &str| directory.join(name);
    let want = TlsFiles {
        ca: vec![path("a.crt"), path("b.crt")],
        client: vec![
            (path("c.cert"), Some(path("c.key"))),
            (path("d.cert"), None),
        ],
        skip_verify: None,
    };
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].tls, want);
    assert_eq!(hosts[0].authority, "reg.example");
}

/// Found by fuzzing: to the parser of addresses a backslash is a slash.
#[test]
fn a_port_is_not_taken_from_a_path() {
    for (server, authority) in [
        (r"https://reg.example\\x:y.example", "reg.example"),
        ("https://reg.example:443", "reg.example:443"),
        ("http://reg.example:80/x", "reg.example:80"),
        ("https://reg.example:", "reg.example"),
    ] {
        let text = format!("server = \"{server}\"\n");
        let upstream = Host::upstream("reg.example", false);
        let hosts = parse(&text, Path::new("/certs.d"), upstream).unwrap();
        assert_eq!(hosts.last().unwrap().authority, authority, "{server}");
    }
}

#[test]
fn registries_of_this_machine() {
    for (registry, loopback) in [
        ("localhost", true),
        ("localhost:5000", true),
        ("127.0.0.9:1", true),
        ("[::1]:5000", true),
        ("[::1]", true),
        ("127.0.0.1.example.com", false),
        ("localhost.example", false),
        ("docker.io", false),
    ] {
        assert_eq!(is_loopback(registry), loopback, "{registry}");
    }
    let protocol = |registry| Host::upstream(registry, false).protocol;
    assert_eq!(protocol("localhost:5000"), Protocol::Either);
    assert_eq!(protocol("[::1]:5000"), Protocol::Either);
    assert_eq!(protocol("localhost"), Protocol::Https);
    assert_eq!(protocol("localhost:80"), Protocol::Http);
    assert_eq!(protocol("reg.example:5000"), Protocol::Https);
    assert_eq!(Host::upstream("reg.example", true).protocol, Protocol::Http);
    assert_eq!(Host::upstream("reg.example", true).tls.skip_verify, None);
    assert_eq!(wire_authority("docker.io"), "registry-1.docker.io");
    assert!(!Host::upstream("docker.io", false).is_mirror_of("docker.io"));
    assert!(Host::upstream("mirror", false).is_mirror_of("docker.io"));
}
