use super::*;
use crate::init::plan::Source;
use crate::sys::mount::attr;
use serde_json::{Value, json};

fn minimal() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "ignored", "readonly": true},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}]}
    })
}

fn with(pointer: &str, key: &str, value: Value) -> Result<Parsed> {
    let mut spec = minimal();
    spec.pointer_mut(pointer).unwrap()[key] = value;
    parse(spec.to_string().as_bytes())
}

#[test]
fn a_minimal_spec() {
    let parsed = parse(minimal().to_string().as_bytes()).unwrap();
    assert_eq!(parsed.process.args, ["sh"]);
    assert!(parsed.container.root_read_only);
    assert!(parsed.container.cgroup_namespace);
    let all = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    assert_eq!(parsed.container.new_namespaces, all);
    assert_eq!(parsed.process.capabilities, Default::default());
}

#[test]
fn what_the_agent_does_not_do_is_refused_by_name() {
    let time = json!([{"type": "time"}]);
    let net = json!([{"type": "network"}]);
    for (pointer, key, value) in [
        ("/linux", "namespaces", net),
        ("/linux", "namespaces", time),
        (
            "/linux",
            "seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        ),
        ("/linux", "rootfsPropagation", json!("shared")),
        ("/linux", "sysctl", json!({"a.b": "1"})),
        ("/process", "apparmorProfile", json!("x")),
        ("/process", "selinuxLabel", json!("x")),
        ("", "hooks", json!({"createRuntime": [{"path": "/x"}]})),
        ("", "hooks", json!({"prestart": [{"path": "/x"}]})),
        ("", "hooks", json!({"poststart": [{"path": "/x"}]})),
        ("", "hooks", json!({"poststop": [{"path": "/x"}]})),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "ext4", "source": "/dev/vda"}]),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/", "type": "tmpfs", "source": "tmpfs"}]),
        ),
    ] {
        let result = with(pointer, key, value.clone());
        assert!(
            matches!(result, Err(Error::Unimplemented(_))),
            "{key} {value}: {result:?}"
        );
    }
}

#[test]
fn nonsense_is_invalid() {
    for (pointer, key, value) in [
        ("/process", "args", json!([])),
        ("/process", "args", json!([""])),
        ("/process", "args", json!(["a\u{0}b"])),
        ("/process", "cwd", json!("relative")),
        ("/process", "cwd", json!("/a/../../b")),
        ("/process", "oomScoreAdj", json!(2000)),
        (
            "/process",
            "rlimits",
            json!([{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]),
        ),
        (
            "/process",
            "capabilities",
            json!({"bounding": ["CAP_NOPE"]}),
        ),
        ("/linux", "namespaces", json!([{"type": "user"}])),
        (
            "/linux",
            "uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
        ),
        ("", "hooks", json!({"startContainer": [{"path": "x"}]})),
        (
            "",
            "hooks",
            json!({"startContainer": [{"path": "/x", "timeout": 0}]}),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "bind", "source": "/y", "options": ["idmap"]}]),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "image", "source": "../d"}]),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "image", "source": "d", "options": ["subpath=a/../../b"]}]),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "image", "source": "d", "options": ["size=1"]}]),
        ),
        ("/linux", "maskedPaths", json!(["proc"])),
        ("/linux", "readonlyPaths", json!(["/a/../b"])),
        (
            "/linux",
            "namespaces",
            json!([{"type": "pid"}, {"type": "pid"}]),
        ),
        (
            "/linux",
            "namespaces",
            json!([{"type": "ipc", "path": "x"}]),
        ),
        ("/linux", "resources", json!({"unified": {"../x.y": "1"}})),
        (
            "/linux",
            "resources",
            json!({"unified": {"cgroup.procs": "1"}}),
        ),
        ("/linux", "resources", json!({"cpu": {"cpus": "0;1"}})),
        (
            "/linux",
            "resources",
            json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 0}]}),
        ),
        ("", "hostname", json!("a b")),
        ("", "mounts", json!([{"destination": "x", "type": "tmpfs"}])),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "bind", "source": "y"}]),
        ),
        (
            "",
            "mounts",
            json!([{"destination": "/x", "type": "bind", "source": "/y", "options": ["size=1"]}]),
        ),
    ] {
        let result = with(pointer, key, value.clone());
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{key} {value}: {result:?}"
        );
    }
    assert!(matches!(parse(b"{"), Err(Error::Invalid(_))));
    assert!(matches!(
        parse(&vec![b' '; MAX_SPEC + 1]),
        Err(Error::Invalid(_))
    ));
    assert!(matches!(parse(b"{}"), Err(Error::Invalid(_))));
    assert!(matches!(parse_process(b"[]"), Err(Error::Invalid(_))));
}

#[test]
fn mount_options_become_attributes_and_parameters() {
    let parsed = with(
        "",
        "mounts",
        json!([
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "size=64k", "mode=755", "strictatime", "exec"]},
            {"destination": "/v", "type": "none", "source": "/run/v", "options": ["rbind", "rprivate", "ro"]},
            {"destination": "/w", "type": "bind", "source": format!("{VOLUMES}/a"), "options": ["bind", "rslave", "rro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ]),
    )
    .unwrap();
    let [tmp, bind, volume, pts, cgroup] = parsed.container.mounts.as_slice() else {
        panic!("five mounts")
    };
    assert_eq!(tmp.set, attr::NOSUID | attr::NODEV | attr::STRICTATIME);
    assert_eq!(tmp.clear & attr::NOEXEC, attr::NOEXEC);
    let Source::New {
        kind, parameters, ..
    } = &tmp.what
    else {
        panic!("tmpfs")
    };
    assert_eq!(kind, "tmpfs");
    assert_eq!(parameters.len(), 2);
    assert!(matches!(
        &bind.what,
        Source::Bind {
            recursive: true,
            create: false,
            ..
        }
    ));
    assert_eq!(
        (bind.set, bind.propagation),
        (attr::RDONLY, Some((libc::MS_PRIVATE, true)))
    );
    assert!(matches!(
        &volume.what,
        Source::Bind {
            recursive: false,
            create: true,
            ..
        }
    ));
    assert_eq!((volume.set, volume.set_recursive), (0, attr::RDONLY));
    assert_eq!(volume.propagation, Some((libc::MS_SLAVE, true)));
    assert!(matches!(&pts.what, Source::New { parameters, .. } if parameters.len() == 1));
    assert!(matches!(&cgroup.what, Source::New { kind, .. } if kind == "cgroup2"));
}

#[test]
fn resources_become_files_of_version_2() {
    let parsed = with(
        "/linux",
        "resources",
        json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 10},
            "cpu": {"shares": 1024, "quota": 5000, "period": 10000, "cpus": "0-1"},
            "pids": {"limit": -1},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.oom.group": "0", "memory.high": "900", "memory.swap.max": "0"}
        }),
    )
    .unwrap();
    let find = |file: &str| {
        let setting = parsed.settings.iter().find(|setting| setting.file == file);
        setting.map(|setting| setting.value.as_str())
    };
    assert_eq!(find("memory.max"), Some("1000"));
    assert_eq!(find("memory.swap.max"), Some("500"));
    assert_eq!(find("memory.low"), Some("10"));
    assert_eq!(find("cpu.weight"), Some("100"));
    assert_eq!(find("cpu.max"), Some("5000 10000"));
    assert_eq!(find("cpuset.cpus"), Some("0-1"));
    assert_eq!(find("pids.max"), Some("max"));
    assert_eq!(find("hugetlb.2MB.max"), Some("0"));
    assert_eq!(find("memory.high"), Some("900"));
    let group: Vec<_> = parsed
        .settings
        .iter()
        .filter(|one| one.file == "memory.oom.group")
        .collect();
    assert_eq!(
        group
            .iter()
            .map(|one| one.value.as_str())
            .collect::<Vec<_>>(),
        ["1", "0"]
    );
    assert_eq!(parsed.device_rules, crate::cgroup::devices::ALWAYS);
    for (shares, weight) in [
        (0, 1),
        (3, 2),
        (102, 17),
        (512, 59),
        (1024, 100),
        (4096, 303),
        (2000, 170),
        (22_000, 1204),
        (262_143, 10_000),
    ] {
        assert_eq!(resources::weight(shares), weight, "{shares}");
    }
    assert_eq!(resources::weight(2), 1);
    assert_eq!(resources::weight(262_144), 10_000);
    assert_eq!(resources::weight(u64::MAX), 10_000);
}

#[test]
fn capabilities_have_the_kernels_numbers() {
    assert_eq!(process::number("CAP_CHOWN"), Some(0));
    assert_eq!(process::number("SYS_ADMIN"), Some(21));
    assert_eq!(process::number("CAP_CHECKPOINT_RESTORE"), Some(40));
    let parsed = with(
        "/process",
        "capabilities",
        json!({"effective": ["CAP_NET_RAW", "CAP_BPF"]}),
    )
    .unwrap();
    assert_eq!(parsed.process.capabilities.effective, 1 << 13 | 1 << 39);
}

#[test]
fn namespaces_can_be_joined_by_path() {
    let parsed = with(
        "/linux",
        "namespaces",
        json!([{"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "pid"}]),
    )
    .unwrap();
    assert_eq!(parsed.container.join_namespaces, [libc::CLONE_NEWIPC]);
    assert_eq!(parsed.namespace_files, [PathBuf::from("/proc/1/ns/ipc")]);
    // The pod's host name is not this specification's business.
    let mut spec = minimal();
    spec["hostname"] = json!("web");
    assert_eq!(
        parse(spec.to_string().as_bytes())
            .unwrap()
            .container
            .hostname
            .as_deref(),
        Some("web")
    );
    spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    assert_eq!(
        parse(spec.to_string().as_bytes())
            .unwrap()
            .container
            .hostname,
        None
    );
}

#[test]
fn user_strings_are_bounded() {
    assert_eq!(user("").unwrap(), None);
    assert_eq!(user("web:7").unwrap().as_deref(), Some("web:7"));
    assert!(user("a\nb").is_err());
    assert!(user(&"a".repeat(257)).is_err());
}
