use super::{Configuration, Document, architecture, choose_platform};

const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn index(entries: &[(&str, &str, &str)]) -> Document {
    let entries: Vec<_> = entries
        .iter()
        .enumerate()
        .map(|(size, (os, arch, variant))| {
            let platform = if os.is_empty() {
                serde_json::Value::Null
            } else {
                serde_json::json!({"os": os, "architecture": arch, "variant": variant})
            };
            serde_json::json!({"digest": D, "size": size, "platform": platform})
        })
        .collect();
    Document::parse(
        serde_json::json!({"manifests": entries})
            .to_string()
            .as_bytes(),
    )
    .unwrap()
}

#[test]
fn the_plainest_entry_of_this_platform_is_chosen() {
    let arch = architecture();
    for (entries, want) in [
        (&[("linux", "s390x", ""), ("linux", arch, "")][..], Some(1)),
        (&[("linux", arch, "v3"), ("linux", arch, "")], Some(1)),
        (&[("linux", arch, "v3"), ("linux", arch, "v1")], Some(1)),
        (&[("windows", arch, ""), ("unknown", "unknown", "")], None),
        (&[("", "", ""), ("linux", arch, "")], Some(1)),
        (&[("", "", "")], Some(0)),
        (&[], None),
    ] {
        let Document::Index(list) = index(entries) else {
            panic!("{entries:?}")
        };
        assert_eq!(choose_platform(&list).map(|d| d.size), want, "{entries:?}");
    }
}

#[test]
fn documents_that_are_two_things_or_none_are_refused() {
    let descriptor = format!(r#"{{"digest":"{D}","size":1}}"#);
    for text in [
        format!(r#"{{"manifests":[{descriptor}],"layers":[]}}"#),
        format!(r#"{{"manifests":[],"config":{descriptor},"layers":[]}}"#),
        format!(r#"{{"config":{descriptor}}}"#),
        r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
        r#"{"config":{"digest":"sha256:zz","size":1},"layers":[]}"#.to_owned(),
        format!(r#"{{"config":{{"digest":"{D}","size":-1}},"layers":[]}}"#),
        format!(r#"{{"config":{{"digest":"{D}","size":1,"mediaType":"text/x"}},"layers":[]}}"#),
        format!(
            r#"{{"config":{descriptor},"layers":[{{"digest":"{D}","size":1,"mediaType":"x"}}]}}"#
        ),
        format!(
            r#"{{"config":{descriptor},"layers":[{}]}}"#,
            vec![descriptor.clone(); 513].join(",")
        ),
        String::new(),
        "[".to_owned(),
    ] {
        assert!(Document::parse(text.as_bytes()).is_err(), "{text:.200}");
    }
}

#[test]
fn a_configuration_with_nulls_is_read() {
    let text = format!(
        r#"{{"os":"linux","architecture":"{}","rootfs":{{"type":"layers","diff_ids":["{D}"]}},
        "config":{{"Env":["A=b"],"Cmd":null,"Volumes":{{"/data":{{}}}},"User":"1000:10",
        "StopSignal":"","Labels":null,"Healthcheck":{{"Test":["NONE"]}}}}}}"#,
        architecture()
    );
    let got = Configuration::parse(text.as_bytes(), 1).unwrap();
    assert_eq!(got.config.env, ["A=b"]);
    assert_eq!(got.config.volumes, ["/data"]);
    assert_eq!(got.config.user, "1000:10");
    assert_eq!(got.config.stop_signal, None);
    assert!(got.config.cmd.is_empty());
    assert!(Configuration::parse(text.as_bytes(), 2).is_err());
    let other = text.replace(architecture(), "s390x");
    assert!(
        Configuration::parse(other.as_bytes(), 1)
            .unwrap_err()
            .contains("s390x")
    );
}
