use super::{Challenge, parse};

fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
    Challenge::Bearer {
        realm: realm.to_owned(),
        service: service.map(str::to_owned),
        scope: scope.map(str::to_owned),
    }
}

#[test]
fn challenges() {
    for (header, want) in [
        ("Basic realm=\"x\"", vec![Challenge::Basic]),
        ("basic", vec![Challenge::Basic]),
        (
            r#"Bearer realm="https://a/t",service="r.io",scope="repository:a/b:pull,push""#,
            vec![bearer(
                "https://a/t",
                Some("r.io"),
                Some("repository:a/b:pull,push"),
            )],
        ),
        (
            "bearer service=r.io, Realm=https://a/t",
            vec![bearer("https://a/t", Some("r.io"), None)],
        ),
        (
            r#"Basic realm="a, Bearer realm=b" , Bearer realm = "https://a",scope="""#,
            vec![Challenge::Basic, bearer("https://a", None, None)],
        ),
        (
            r#"Negotiate abc==, Bearer realm="q\"\\x",Basic"#,
            vec![bearer(r#"q"\x"#, None, None), Challenge::Basic],
        ),
        (r#"Bearer service="r.io""#, vec![]),
        (r#"Bearer realm="https://a"#, vec![]),
        ("Negotiate", vec![]),
        ("", vec![]),
        (",,,", vec![]),
        ("=", vec![]),
    ] {
        assert_eq!(parse(header), want, "{header}");
    }
}
