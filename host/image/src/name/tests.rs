use super::Name;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn names_are_normalised() {
    let long = format!("a.example:5000/x/y@{DIGEST}");
    let both = format!("busybox:1.36@{DIGEST}");
    let cases = [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        (
            "index.docker.io/busybox",
            "docker.io/library/busybox:latest",
        ),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("a.example/x__y/z--1.2_3", "a.example/x__y/z--1.2_3:latest"),
        (&long, &long),
        (&both, &format!("docker.io/library/busybox@{DIGEST}")),
    ];
    for (text, want) in cases {
        let name = Name::parse(text).unwrap();
        assert_eq!(name.to_string(), want, "{text}");
        assert_eq!(Name::parse(want).unwrap(), name, "{want}");
    }
}

#[test]
fn what_is_no_name_is_refused() {
    let id = "a".repeat(64);
    let long = "a/".repeat(130) + "a";
    for text in [
        "",
        "/",
        "a//b",
        "A",
        "a/B",
        "a:",
        "a:-",
        "a b",
        "a@sha256:12",
        "a@md5:00",
        "..",
        "a/../b",
        "a/.b",
        "-a",
        "a_-b",
        "a:b:c",
        "host:99999/a",
        "[::1/a",
        "[::1]5000/a",
        "[::1]:/a",
        "ho st.x/a",
        "a\n",
        &id,
        &long,
    ] {
        assert!(Name::parse(text).is_err(), "{text:?}");
    }
}
