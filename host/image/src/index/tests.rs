use super::{Index, Record};
use crate::digest::Digest;
use crate::name::Name;
use std::collections::BTreeMap;

fn id(digit: char) -> Digest {
    Digest::parse(&format!("sha256:{}", digit.to_string().repeat(64))).unwrap()
}

fn index() -> Index {
    let record = || Record::new(4096, 4096, String::new(), Default::default());
    let mut images = BTreeMap::from([(id('a'), record()), (id('b'), record())]);
    let twin = Digest::parse(&format!("sha256:b{}", "c".repeat(63))).unwrap();
    images.insert(twin, record());
    Index { version: 1, images }
}

fn named(names: &[(&str, char)]) -> Index {
    let mut index = index();
    for (name, digit) in names {
        index.name(&id(*digit), &Name::parse(name).unwrap(), &id('f'));
    }
    index
}

#[test]
fn a_tag_belongs_to_one_image() {
    let index = named(&[("app", 'a'), ("app", 'b')]);
    assert_eq!(index.find("app").unwrap(), Some(id('b')));
    assert!(index.images[&id('a')].tags.is_empty());
}

#[test]
fn images_are_found_by_every_name() {
    let index = named(&[("app:v1", 'a')]);
    let digest = format!("docker.io/library/app@{}", id('f'));
    let (whole, bare, start) = (id('a').to_string(), "a".repeat(64), "sha256:aaaaaaaaaaaa");
    for text in [
        "app:v1",
        "docker.io/library/app:v1",
        "a",
        &digest,
        &whole,
        &bare,
        start,
    ] {
        assert_eq!(index.find(text).unwrap(), Some(id('a')), "{text}");
    }
    for text in ["app", "other", "0", &"9".repeat(64), &id('9').to_string()] {
        assert_eq!(index.find(text).unwrap(), None, "{text}");
    }
    assert!(index.find("b").is_err(), "ambiguous");
    assert!(index.find("UPPER").is_err());
    assert!(index.find("").is_err());
}

#[test]
fn an_image_goes_with_all_its_names() {
    let digest = format!("docker.io/library/app@{}", id('f'));
    for text in ["app:v1", "other", &digest, "aaaa", &id('a').to_string()] {
        let mut index = named(&[("app:v1", 'a'), ("other", 'a'), ("third", 'b')]);
        assert_eq!(index.remove(text).unwrap(), Some(id('a')), "{text}");
        assert!(!index.images.contains_key(&id('a')));
        assert_eq!(index.remove("app:v1").unwrap(), None);
        assert_eq!(index.images.len(), 2);
    }
}

#[test]
fn an_index_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Index::load(dir.path()).unwrap().images.is_empty());
    let written = named(&[("app", 'a')]);
    written.save(dir.path()).unwrap();
    let read = Index::load(dir.path()).unwrap();
    assert_eq!(read.images.len(), 3);
    assert_eq!(read.images[&id('a')].tags, written.images[&id('a')].tags);
    std::fs::write(
        dir.path().join("index.json"),
        r#"{"version":2,"images":{}}"#,
    )
    .unwrap();
    assert!(Index::load(dir.path()).is_err());
    std::fs::write(dir.path().join("index.json"), "").unwrap();
    assert!(Index::load(dir.path()).is_err());
}
