use super::{Challenge, error_message, parse_challenge};

#[test]
fn challenges() {
    let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    };
    for (header, want) in [
        ("Basic realm=\"x\"", Some(Challenge::Basic)),
        ("basic", Some(Challenge::Basic)),
        (
            r#"Bearer realm="https://a/t",service="r.io",scope="repository:a/b:pull,push""#,
            bearer(
                "https://a/t",
                Some("r.io"),
                Some("repository:a/b:pull,push"),
            ),
        ),
        (
            "bearer service=r.io, Realm=https://a/t",
            bearer("https://a/t", Some("r.io"), None),
        ),
        (r#"Bearer service="r.io""#, None),
        (r#"Bearer realm="https://a"#, None),
        ("Negotiate", None),
        ("", None),
    ] {
        assert_eq!(parse_challenge(header), want, "{header}");
    }
}

#[test]
fn messages_are_made_harmless() {
    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u001b[31m down"}]}"#;
    assert_eq!(error_message(body).unwrap(), r"slow\u{1b}[31m down");
    assert_eq!(error_message(b"<html>"), None);
}
