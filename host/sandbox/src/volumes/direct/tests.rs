use super::file::{Description, Part, Place, parse, place};
use super::{Direct, find_of};
use crate::error::Kind;
use crate::{Result, SandboxError};
use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A kubelet's directory with one volume.
struct Node {
    root: tempfile::TempDir,
    volume: PathBuf,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("pods/uid/volumes/kubernetes.io~csi/data");
        fs::create_dir_all(volume.join("mount")).unwrap();
        set_mode(&volume, 0o750);
        Self { root, volume }
    }

    fn file(&self) -> PathBuf {
        self.volume.join("direct-volume.json")
    }

    fn write(&self, content: &str) {
        fs::write(self.file(), content).unwrap();
        set_mode(&self.file(), 0o600);
    }

    fn find(&self, path: &Path) -> Result<Option<Direct>> {
        self.find_bound(path, path)
    }

    /// What is at `path` when the kubelet has bound `bound` to it.
    fn find_bound(&self, path: &Path, bound: &Path) -> Result<Option<Direct>> {
        let me = rustix::process::geteuid().as_raw();
        find_of(me, self.root.path(), path, opened(bound).as_fd())
    }

    fn refusal(&self, path: &Path) -> String {
        let error = self.find(path).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains(self.volume.to_str().unwrap()));
        error.to_string()
    }
}

fn opened(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn described(change: impl FnOnce(&mut Value)) -> Result<Description, String> {
    let mut file = json!({
        "volume-type": "block", "device": "/dev/vdb", "fstype": "ext4",
        "options": ["noatime", "discard"],
        "metadata": { "fsGroup": 4000, "fsGroupChangePolicy": "OnRootMismatch" },
    });
    change(&mut file);
    parse(file.to_string().as_bytes())
}

#[test]
fn a_file_says_all_that_the_guest_needs() {
    let whole = described(|_| {}).unwrap();
    let expected = Description {
        device: "/dev/vdb".into(),
        file_system: "ext4".to_owned(),
        options: vec!["noatime".to_owned(), "discard".to_owned()],
        fs_group: Some(4000),
        on_root_mismatch: true,
    };
    assert_eq!(whole, expected);
    let text = described(|file| file["metadata"]["fsGroup"] = json!("4000"));
    assert_eq!(text.unwrap(), expected, "as Kata has it");
    let least = br#"{"volume-type":"block","device":"/dev/vdb","fstype":"ext4"}"#;
    let least = parse(least).unwrap();
    assert_eq!((least.fs_group, least.is_read_only()), (None, false));
    for (options, read_only) in [
        (json!(["ro"]), true),
        (json!(["rw", "noatime", "ro"]), true),
        (json!(["ro", "rw"]), false),
    ] {
        let file = described(|file| file["options"] = options.clone()).unwrap();
        assert_eq!(file.is_read_only(), read_only, "{options}");
    }
}

#[test]
fn what_a_file_says_wrong_is_named() {
    for (key, value, words) in [
        ("volume-type", json!("directory"), "only \"block\""),
        (
            "fstype",
            json!("xfs"),
            "\"xfs\"; the guest's kernel has ext4",
        ),
        ("fstype", json!(""), "fstype"),
        ("device", json!("dev/vdb"), "no absolute path"),
        ("device", json!("/dev/../vdb"), "no absolute path"),
        ("device", json!(""), "no absolute path"),
        ("device", json!("/dev/v\0b"), "no absolute path"),
        (
            "device",
            json!(format!("/{}", "x".repeat(4095))),
            "no absolute path",
        ),
        ("device", json!(7), "expected a string"),
        (
            "options",
            json!(["noatime,ro"]),
            "\"noatime,ro\" is not allowed",
        ),
        ("options", json!(["dev"]), "\"dev\" is not allowed"),
        ("options", json!(vec!["ro"; 33]), "more than 32"),
        (
            "metadata",
            json!({ "fsGroup": -1 }),
            "did not match any variant",
        ),
        (
            "metadata",
            json!({ "fsGroup": "staff" }),
            "\"staff\", no number",
        ),
        ("metadata", json!({ "fsGroup": 4294967295_u32 }), "no group"),
        (
            "metadata",
            json!({ "fsGroupChangePolicy": "Never" }),
            "Never",
        ),
        ("metadata", json!({ "group": 1 }), "unknown field `group`"),
        ("mountpoint", json!("/"), "unknown field `mountpoint`"),
    ] {
        let error = described(|file| file[key] = value.clone()).unwrap_err();
        assert!(error.contains(words), "{key} {value}: {error}");
    }
    for text in ["", "{", "[]", "null", r#"{"volume-type":"block"}"#] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    let twice = r#"{"volume-type":"block","device":"/a","device":"/b","fstype":"ext4"}"#;
    assert!(parse(twice.as_bytes()).unwrap_err().contains("duplicate"));
}

#[test]
fn only_the_kubelets_own_paths_are_volumes() {
    let volume = PathBuf::from("pods/uid/volumes/kubernetes.io~csi/data");
    let at = |part| {
        let volume = volume.clone();
        Some(Place { volume, part })
    };
    for (path, expected) in [
        (
            "pods/uid/volumes/kubernetes.io~csi/data/mount",
            at(Part::Whole),
        ),
        (
            "pods/uid/volumes/kubernetes.io~csi/data/mount/a/b",
            at(Part::Below("a/b".to_owned())),
        ),
        ("pods/uid/volume-subpaths/data/main/0", at(Part::Bound)),
        ("pods/uid/volumes/kubernetes.io~csi/data", None),
        ("pods/uid/volumes/kubernetes.io~csi/data/other", None),
        ("pods/uid/volumes/vendor~driver/data/mount", None),
        ("x/pods/uid/volumes/kubernetes.io~csi/data/mount", None),
        ("plugins/kubernetes.io/csi", None),
    ] {
        assert_eq!(place(Path::new(path)), expected, "{path}");
    }
}

#[test]
fn a_volume_without_the_file_or_elsewhere_is_another_kind() {
    let node = Node::new();
    let mount = node.volume.join("mount");
    assert!(node.find(&mount).unwrap().is_none(), "no file");
    node.write("wrong");
    assert!(node.find(&node.volume).unwrap().is_none());
    let elsewhere = || {
        let (root, opened) = (Path::new("/somewhere/else"), opened(&mount));
        find_of(0, root, &mount, opened.as_fd())
    };
    let error = elsewhere().unwrap_err().to_string();
    assert!(
        error.contains("it is not below /somewhere/else; set `kubelet`"),
        "{error}"
    );
    fs::remove_file(node.file()).unwrap();
    assert!(elsewhere().unwrap().is_none());
    node.write("wrong");
    assert!(node.refusal(&mount).contains("expected value"));
}

#[test]
fn a_file_that_others_could_have_written_is_not_believed() {
    let node = Node::new();
    let mount = node.volume.join("mount");
    let good = r#"{"volume-type":"block","device":"/dev/null","fstype":"ext4"}"#;
    node.write(good);
    assert!(
        node.refusal(&mount)
            .contains("/dev/null is no block device")
    );
    let other = rustix::process::geteuid().as_raw() + 1;
    let error = find_of(other, node.root.path(), &mount, opened(&mount).as_fd()).unwrap_err();
    assert!(error.to_string().contains("belongs to user"), "{error}");
    for mode in [0o620, 0o602, 0o666] {
        set_mode(&node.file(), mode);
        let text = format!("direct-volume.json can be written by others (mode {mode:o})");
        assert!(node.refusal(&mount).contains(&text));
    }
    set_mode(&node.file(), 0o644);
    set_mode(&node.volume, 0o770);
    assert!(
        node.refusal(&mount)
            .contains("its directory can be written by others")
    );
    set_mode(&node.volume, 0o755);
    assert!(node.refusal(&mount).contains("no block device"));
    node.write(&good.replace("/dev/null", "/dev/there-is-none"));
    assert!(
        node.refusal(&mount)
            .contains("/dev/there-is-none cannot be opened")
    );
    node.write(&format!("{good}{}", " ".repeat(64 * 1024)));
    assert!(node.refusal(&mount).contains("larger than 65536 bytes"));
}

#[test]
fn links_and_what_is_no_file_are_refused() {
    let node = Node::new();
    let mount = node.volume.join("mount");
    symlink("/etc/passwd", node.file()).unwrap();
    assert!(node.refusal(&mount).contains("is a link"));
    fs::remove_file(node.file()).unwrap();
    fs::create_dir(node.file()).unwrap();
    assert!(node.refusal(&mount).contains("no plain file"));
    fs::remove_dir(node.file()).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, node.file(), fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert!(node.refusal(&mount).contains("no plain file"));
    fs::remove_file(node.file()).unwrap();
    // Another name for the volume.
    node.write("{}");
    let link = node.volume.with_file_name("link");
    symlink("data", &link).unwrap();
    let error = node.find(&link.join("mount")).unwrap_err();
    assert!(error.to_string().contains("a link leads to"), "{error}");
    fs::remove_file(node.file()).unwrap();
    assert!(node.find(&link.join("mount")).unwrap().is_none());
}

#[test]
fn a_sub_path_is_found_by_what_is_bound() {
    let node = Node::new();
    let good = r#"{"volume-type":"block","device":"/dev/null","fstype":"ext4"}"#;
    node.write(good);
    let place = node
        .root
        .path()
        .join("pods/uid/volume-subpaths/data/main/0");
    let inside = node.volume.join("mount/a/b");
    fs::create_dir_all(&inside).unwrap();
    // What comes after the sub-path is asked for only if that is there.
    let problem = |bound: &Path| match node.find_bound(&place, bound) {
        Err(SandboxError::DirectVolume { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert!(problem(&inside).contains("no block device"));
    assert!(problem(&node.volume).contains("its sub-path is not in it"));
    // It may be that of an emptyDir volume that has the same name.
    let cache = node
        .root
        .path()
        .join("pods/uid/volumes/kubernetes.io~empty-dir/data/c");
    fs::create_dir_all(&cache).unwrap();
    assert!(node.find_bound(&place, &cache).unwrap().is_none());
}

/// Values of every kind for keys that are right or wrong.
fn any_file() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "(block|ext4|ro|noatime|fsGroup|Always|OnRootMismatch|/dev/vdb)".boxed(),
        "[ -~]{0,8}".boxed()
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(2, 8, 4, |inner| {
        let key = "(fsGroup|fsGroupChangePolicy|x)";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let key = "(volume-type|device|fstype|options|metadata)";
    prop::collection::btree_map(key, value, 0..6).prop_map(|changes| {
        let mut file = json!({ "volume-type": "block", "device": "/dev/vdb", "fstype": "ext4" });
        for (key, value) in changes {
            file[key] = value;
        }
        file
    })
}

proptest! {
    #[test]
    fn whatever_is_taken_is_what_the_guest_may_be_told(file in any_file()) {
        if let Ok(taken) = parse(file.to_string().as_bytes()) {
            prop_assert_eq!(taken.device.to_str(), file["device"].as_str());
            prop_assert!(taken.device.is_absolute());
            prop_assert_eq!(&taken.file_system, "ext4");
            prop_assert!(taken.options.iter().all(|option| !option.contains([',', '=', '\0'])));
            prop_assert_ne!(taken.fs_group, Some(u32::MAX));
        }
    }

    #[test]
    fn no_bytes_end_the_daemon(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse(&bytes);
    }
}
