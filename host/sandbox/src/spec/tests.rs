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
    assert_eq!(
        check_sandbox(&pod(Pod, Pod)).unwrap_err().kind(),
        Kind::Unimplemented
    );
    let config = v1::ContainerConfig {
        mounts: vec![v1::Mount::default()],
        ..Default::default()
    };
    let mounts = build("id", &config, &v1::PodSandboxConfig::default(), &image());
    let error = mounts.err().unwrap();
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.to_string().contains("config.mounts"), "{error}");
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
