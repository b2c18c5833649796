use super::platform::choose;
use super::{Configuration, Document, architecture};

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
        assert_eq!(choose(&list, 2).ok().map(|d| d.size), want, "{entries:?}");
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
        format!(r#"[2, "", null, {descriptor}, []]"#),
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","config":{descriptor},"layers":[]}}"#
        ),
        r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#.to_owned(),
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

#[test]
fn schema_1_is_refused_by_its_name() {
    let text = r#"{"schemaVersion":1,"name":"a","tag":"b","architecture":"amd64","fsLayers":[]}"#;
    let reason = Document::parse(text.as_bytes()).unwrap_err();
    assert!(reason.contains("schema 1"), "{reason}");
}

#[test]
fn variants_that_the_processor_lacks_are_not_chosen() {
    let arch = architecture();
    let choice = |entries: &[(&str, &str, &str)], level| match index(entries) {
        Document::Index(list) => choose(&list, level).map(|entry| entry.size),
        Document::Manifest(_) => panic!(),
    };
    let levels = match arch {
        "arm64" => ["v10", "v9", "v8"],
        _ => ["v3", "v2", "v1"],
    };
    let all = levels.map(|variant| ("linux", arch, variant));
    assert_eq!(
        choice(&all, 3),
        Ok(2),
        "the plainest runs on every node of the cluster"
    );
    assert_eq!(choice(&all[..2], 2), Ok(1));
    let reason = choice(&all[..1], 2).unwrap_err();
    assert!(
        reason.contains(levels[0]) && reason.contains("processor"),
        "{reason}"
    );
    assert_eq!(
        choice(&[("linux", arch, "odd"), ("linux", "s390x", "")], 4).ok(),
        None
    );
    let list = format!(
        r#"{{"manifests":[
        {{"digest":"{D}","size":0,"platform":{{"os":"linux","architecture":"{arch}","os.version":"1"}}}},
        {{"digest":"{D}","size":1,"platform":{{"os":"linux","architecture":"{arch}","variant":null,
          "os.features":null}}}}]}}"#
    );
    let Ok(Document::Index(list)) = Document::parse(list.as_bytes()) else {
        panic!("{list}")
    };
    assert_eq!(choose(&list, 1).unwrap().size, 1);
}
