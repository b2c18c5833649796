use super::{build, check_sandbox, stop_signal};
use crate::container::ContainerImage;
use crate::error::Kind;
use bulkhead_cri::v1;
use oci_spec::runtime::{Capability, Process};

fn image() -> ContainerImage {
    ContainerImage {
        id: "sha256:1".into(),
        reference: "registry/app:1".into(),
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into()],
        env: vec!["PATH=/image".into(), "A=image".into()],
        working_dir: "/work".into(),
        user: "app".into(),
        stop_signal: String::new(),
    }
}

fn process(container: v1::ContainerConfig) -> Process {
    let pod = v1::PodSandboxConfig {
        hostname: "pod".into(),
        ..Default::default()
    };
    let built = build("id", &container, &pod, &image()).unwrap();
    built.spec.process().clone().unwrap()
}

fn with_security(security: v1::LinuxContainerSecurityContext) -> v1::ContainerConfig {
    let linux = v1::LinuxContainerConfig {
        security_context: Some(security),
        ..Default::default()
    };
    v1::ContainerConfig {
        linux: Some(linux),
        ..Default::default()
    }
}

#[test]
fn command_and_arguments_follow_kubernetes() {
    let args = |command: &[&str], args: &[&str]| {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let config = v1::ContainerConfig {
            command: own(command),
            args: own(args),
            ..Default::default()
        };
        process(config).args().clone().unwrap()
    };
    assert_eq!(args(&[], &[]), ["/entry", "default"]);
    assert_eq!(args(&[], &["x"]), ["/entry", "x"]);
    assert_eq!(args(&["sh"], &[]), ["sh"]);
    assert_eq!(args(&["sh"], &["-c"]), ["sh", "-c"]);
}

#[test]
fn the_last_variable_of_a_name_stands() {
    let envs = vec![v1::KeyValue {
        key: "A".into(),
        value: "request=1".into(),
    }];
    let process = process(v1::ContainerConfig {
        envs,
        ..Default::default()
    });
    assert_eq!(
        process.env().clone().unwrap(),
        ["PATH=/image", "HOSTNAME=pod", "A=request=1"]
    );
    assert_eq!(process.cwd().to_str(), Some("/work"));
}

#[test]
fn capabilities_are_added_and_dropped() {
    let bounding = |add: &[&str], drop: &[&str], privileged| {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let capabilities = Some(v1::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        });
        let security = v1::LinuxContainerSecurityContext {
            capabilities,
            privileged,
            ..Default::default()
        };
        let process = process(with_security(security));
        process
            .capabilities()
            .clone()
            .unwrap()
            .bounding()
            .clone()
            .unwrap()
    };
    assert_eq!(bounding(&[], &[], false).len(), 14);
    assert_eq!(bounding(&[], &[], true).len(), 41);
    assert!(bounding(&["net_admin"], &[], false).contains(&Capability::NetAdmin));
    assert!(!bounding(&[], &["CAP_CHOWN"], false).contains(&Capability::Chown));
    let only = bounding(&["NET_RAW"], &["ALL"], false);
    assert_eq!(only.into_iter().collect::<Vec<_>>(), [Capability::NetRaw]);
}

#[test]
fn the_user_is_the_requests_or_the_images() {
    let user = |security| {
        let config = with_security(security);
        build("id", &config, &v1::PodSandboxConfig::default(), &image()).map(|built| built.user)
    };
    let id = |value| Some(v1::Int64Value { value });
    assert_eq!(user(Default::default()).unwrap(), "app");
    let of = |run_as_user, name: &str, run_as_group| v1::LinuxContainerSecurityContext {
        run_as_user,
        run_as_username: name.into(),
        run_as_group,
        ..Default::default()
    };
    assert_eq!(user(of(id(7), "", None)).unwrap(), "7");
    assert_eq!(user(of(id(7), "", id(8))).unwrap(), "7:8");
    assert_eq!(user(of(None, "joe", None)).unwrap(), "joe");
    assert!(user(of(None, "", id(8))).is_err());
    assert!(user(of(id(-1), "", None)).is_err());
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let pod = |network: v1::NamespaceMode, pid: v1::NamespaceMode| {
        let mut options = v1::NamespaceOption::default();
        options.set_network(network);
        options.set_pid(pid);
        let security = v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        };
        let linux = v1::LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        };
        v1::PodSandboxConfig {
            linux: Some(linux),
            ..Default::default()
        }
    };
    use v1::NamespaceMode::{Container, Node, Pod};
    assert!(check_sandbox(&v1::PodSandboxConfig::default()).is_ok());
    assert!(check_sandbox(&pod(Pod, Container)).is_ok());
    let host = check_sandbox(&pod(Node, Container)).unwrap_err();
    assert_eq!(host.kind(), Kind::InvalidArgument);
    assert!(host.to_string().contains("network is NODE"), "{host}");
    assert!(check_sandbox(&pod(Pod, Pod)).is_ok());
    let target = check_sandbox(&pod(Pod, v1::NamespaceMode::Target)).unwrap_err();
    assert_eq!(target.kind(), Kind::InvalidArgument);
    let config = v1::ContainerConfig {
        cdi_devices: vec![v1::CdiDevice::default()],
        ..Default::default()
    };
    let devices = build("id", &config, &v1::PodSandboxConfig::default(), &image());
    let error = devices.err().unwrap();
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.to_string().contains("config.CDI_devices"), "{error}");
}

#[test]
fn stop_signals_have_names_and_numbers() {
    for (text, number) in [
        ("", 15),
        ("SIGINT", 2),
        ("quit", 3),
        ("9", 9),
        ("64", 64),
        ("RTMIN+3", 37),
        ("SIGRTMINPLUS3", 37),
        ("SIGRTMAX", 64),
        ("SIGRTMAXMINUS2", 62),
    ] {
        assert_eq!(stop_signal(text).unwrap(), number, "{text}");
    }
    for text in ["SIGNONE", "0", "65", "-1"] {
        assert!(stop_signal(text).is_err(), "{text}");
    }
}

fn namespaces(pid: v1::NamespaceMode, user: Option<v1::UserNamespace>) -> v1::NamespaceOption {
    v1::NamespaceOption {
        pid: pid.into(),
        userns_options: user,
        ..Default::default()
    }
}

fn mapped(host_id: u32) -> v1::UserNamespace {
    let map = v1::IdMapping {
        host_id,
        container_id: 0,
        length: 65_536,
    };
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: vec![map],
        gids: vec![map],
    }
}

fn pod_with(options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let security = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    let linux = v1::LinuxPodSandboxConfig {
        security_context: Some(security),
        ..Default::default()
    };
    v1::PodSandboxConfig {
        linux: Some(linux),
        ..Default::default()
    }
}

#[test]
fn the_pid_namespace_is_the_requests() {
    use bulkhead_agent_api::agent::PidNamespace;
    let pid = |options: Option<v1::NamespaceOption>| {
        let config = with_security(v1::LinuxContainerSecurityContext {
            namespace_options: options,
            ..Default::default()
        });
        build("id", &config, &v1::PodSandboxConfig::default(), &image()).map(|built| built.pid)
    };
    use v1::NamespaceMode::{Container, Pod, Target};
    let plain = |mode| (mode, String::new());
    assert_eq!(pid(None).unwrap(), plain(PidNamespace::SPEC_PID));
    let of = |mode| Some(namespaces(mode, None));
    assert_eq!(pid(of(Container)).unwrap(), plain(PidNamespace::SPEC_PID));
    assert_eq!(pid(of(Pod)).unwrap(), plain(PidNamespace::POD_PID));
    assert_eq!(pid(of(Target)).unwrap_err().kind(), Kind::InvalidArgument);
    let mut target = namespaces(Target, None);
    target.target_id = "other".into();
    let expected = (PidNamespace::TARGET_PID, "other".to_owned());
    assert_eq!(pid(Some(target)).unwrap(), expected);
}

#[test]
fn a_user_namespace_is_the_pods() {
    let container = v1::NamespaceMode::Container;
    let pod = pod_with(namespaces(container, Some(mapped(1 << 16))));
    let user_of = |options: Option<v1::NamespaceOption>, pod: &v1::PodSandboxConfig| {
        let config = with_security(v1::LinuxContainerSecurityContext {
            namespace_options: options,
            ..Default::default()
        });
        let linux = build("id", &config, pod, &image())?.spec.linux().clone();
        Ok::<_, crate::SandboxError>(linux.unwrap().uid_mappings().clone().unwrap_or_default())
    };
    let same = Some(namespaces(container, Some(mapped(1 << 16))));
    for options in [None, same] {
        let maps = user_of(options, &pod).unwrap();
        assert_eq!((maps[0].host_id(), maps[0].size()), (1 << 16, 65_536));
    }
    let other = Some(namespaces(container, Some(mapped(2 << 16))));
    assert_eq!(
        user_of(other, &pod).unwrap_err().kind(),
        Kind::InvalidArgument
    );
    // NODE means no user namespace.
    let mut node = mapped(0);
    node.set_mode(v1::NamespaceMode::Node);
    let pod = pod_with(namespaces(container, Some(node)));
    assert!(check_sandbox(&pod).is_ok());
    assert!(user_of(None, &pod).unwrap().is_empty());
    let mut empty = mapped(0);
    empty.gids.clear();
    let error = check_sandbox(&pod_with(namespaces(container, Some(empty)))).unwrap_err();
    assert!(error.to_string().contains("userns_options"), "{error}");
}

#[test]
fn image_volumes_are_mounts_of_their_disks() {
    let mount = v1::Mount {
        container_path: "/models".into(),
        image: Some(v1::ImageSpec::default()),
        image_sub_path: "small".into(),
        ..Default::default()
    };
    let config = v1::ContainerConfig {
        mounts: vec![mount],
        ..Default::default()
    };
    let mut built = build("id", &config, &v1::PodSandboxConfig::default(), &image()).unwrap();
    let disks = [super::ImageDisk {
        serial: "ro1".into(),
    }];
    super::add_image_mounts(&mut built.spec, &config.mounts, &disks);
    let mounts = built.spec.mounts().clone().unwrap();
    let volume = mounts.last().unwrap();
    assert_eq!(volume.typ().as_deref(), Some("image"));
    assert_eq!(volume.source().as_ref().unwrap().to_str(), Some("ro1"));
    let options = volume.options().clone().unwrap();
    for option in ["ro", "noexec", "subpath=small"] {
        assert!(options.iter().any(|known| known == option), "{options:?}");
    }
}
