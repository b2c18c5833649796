//! What a container may ask of the guest's kernel: seccomp, devices, sysctls.

use crate::environment::{node_with_image, ready, registry};
use bulkhead_cri::v1;
use bulkhead_cri::v1::security_profile::ProfileType;
use bulkhead_tests::Node;
use bulkhead_tests::node::Options;
use bulkhead_tests::pod::{self, Pod, container, exec, pull, wait};
use tonic::Code;

fn with_security(
    name: &str,
    image: &str,
    script: &str,
    security: v1::LinuxContainerSecurityContext,
) -> v1::ContainerConfig {
    let mut config = container(name, image, &["sh", "-c", script]);
    config.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(security),
        ..Default::default()
    });
    config
}

fn seccomp(kind: ProfileType, reference: &str) -> Option<v1::SecurityProfile> {
    let mut profile = v1::SecurityProfile {
        localhost_ref: reference.to_owned(),
        ..Default::default()
    };
    profile.set_profile_type(kind);
    Some(profile)
}

fn adding(capability: &str) -> Option<v1::Capability> {
    Some(v1::Capability {
        add_capabilities: vec![capability.to_owned()],
        ..Default::default()
    })
}

#[tokio::test]
async fn seccomp_is_on_unless_it_is_turned_off() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "seccomp").await.unwrap();
    // Namespaces of one's own are not for everybody; nor are they for want of a capability: a user
    // namespace needs none.
    let script = "grep Seccomp: /proc/self/status; unshare -U true && echo unshared";
    let (on, off) = ("Seccomp:\t2\n", "Seccomp:\t0\nunshared\n");
    let security = v1::LinuxContainerSecurityContext::default;
    let runtime_default = seccomp(ProfileType::RuntimeDefault, "");
    for (name, security, expected) in [
        ("silent", security(), on),
        (
            "default",
            v1::LinuxContainerSecurityContext {
                seccomp: runtime_default.clone(),
                ..security()
            },
            on,
        ),
        (
            "unprivileged",
            v1::LinuxContainerSecurityContext {
                run_as_user: Some(v1::Int64Value { value: 1000 }),
                no_new_privs: true,
                ..security()
            },
            on,
        ),
        (
            "unconfined",
            v1::LinuxContainerSecurityContext {
                seccomp: seccomp(ProfileType::Unconfined, ""),
                ..security()
            },
            off,
        ),
        (
            "privileged",
            v1::LinuxContainerSecurityContext {
                seccomp: runtime_default,
                privileged: true,
                ..security()
            },
            off,
        ),
        (
            "admin",
            v1::LinuxContainerSecurityContext {
                capabilities: adding("SYS_ADMIN"),
                ..security()
            },
            "Seccomp:\t2\nunshared\n",
        ),
    ] {
        let id = pod
            .start(with_security(name, &image, script, security))
            .await
            .unwrap();
        let ended = wait(&node, &id).await.unwrap();
        assert_eq!(ended.stdout, expected, "{name}: {ended:?}");
        if expected == on {
            assert!(
                ended.stderr.contains("Operation not permitted"),
                "{name}: {ended:?}"
            );
        }
    }
    let sleeper = container("sleeper", &image, &["sleep", "1000"]);
    let id = pod.start(sleeper).await.unwrap();
    let output = exec(&node, &id, &["sh", "-c", script], 10).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), on);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn profiles_of_the_node_are_applied() {
    if !ready() {
        return;
    }
    let profiles = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = profiles.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let no_mkdir = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    let absolute = write("no-mkdir.json", no_mkdir);
    write("wrong.json", r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#);
    write("notify.json", r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#);
    let directory = profiles.path().display().to_string();
    let node = Node::start_with(Options {
        configure: Some(Box::new(move |config| {
            config.insert("seccomp_profiles".into(), directory.into());
        })),
        ..Options::default()
    })
    .await
    .unwrap();
    let image = registry().demo_image();
    pull(&node, &image).await.unwrap();
    let pod = Pod::run(&node, "localhost").await.unwrap();
    let localhost = |name: &str, reference: &str| {
        let security = v1::LinuxContainerSecurityContext {
            seccomp: seccomp(ProfileType::Localhost, reference),
            ..Default::default()
        };
        with_security(name, &image, "mkdir /made", security)
    };
    for (name, reference) in [
        ("absolute", absolute.as_str()),
        ("relative", "no-mkdir.json"),
    ] {
        let id = pod.start(localhost(name, reference)).await.unwrap();
        let ended = wait(&node, &id).await.unwrap();
        assert!(
            ended.stderr.contains("No space left on device"),
            "{ended:?}"
        );
    }
    for (reference, code) in [
        ("none.json", Code::InvalidArgument),
        ("../../../etc/passwd", Code::InvalidArgument),
        ("wrong.json", Code::InvalidArgument),
        ("", Code::InvalidArgument),
        ("notify.json", Code::Unimplemented),
    ] {
        let error = pod
            .create(localhost("refused", reference))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let named = if code == Code::Unimplemented {
            "SCMP_ACT_NOTIFY"
        } else {
            "localhost_ref"
        };
        assert!(error.message().contains(named), "{error}");
    }
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn devices_of_the_guest_are_for_privileged_containers() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "devices").await.unwrap();
    // The image's own disk: its node can be made with CAP_MKNOD, but not used.
    let script = "mknod /disk b 254 0 && head -c 1 /disk | wc -c; head -c 1 /dev/zero | wc -c";
    for (name, privileged, expected) in [("plain", false, "0\n1\n"), ("privileged", true, "1\n1\n")]
    {
        let security = v1::LinuxContainerSecurityContext {
            privileged,
            ..Default::default()
        };
        let id = pod
            .start(with_security(name, &image, script, security))
            .await
            .unwrap();
        let ended = wait(&node, &id).await.unwrap();
        assert_eq!(ended.stdout, expected, "{ended:?}");
        assert_eq!(
            ended.stderr.contains("Operation not permitted"),
            !privileged,
            "{ended:?}"
        );
    }
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn sysctls_are_the_pods() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let with = |pairs: &[(&str, &str)]| {
        let mut config = pod::config(&node, "sysctl");
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        config.linux = Some(v1::LinuxPodSandboxConfig {
            sysctls: pairs.iter().map(own).collect(),
            ..Default::default()
        });
        config
    };
    let right = [
        ("net.core.somaxconn", "1234"),
        ("kernel.msgmax", "9000"),
        ("vm.swappiness", "7"),
    ];
    let pod = Pod::run_config(&node, with(&right), "").await.unwrap();
    let script = "cd /proc/sys; cat net/core/somaxconn kernel/msgmax vm/swappiness";
    let ended = pod.script(&image, script).await.unwrap();
    assert_eq!(ended.stdout, "1234\n9000\n7\n", "{ended:?}");
    pod.remove().await.unwrap();
    for (name, value) in [
        ("net.core.somaxconn", "many"),
        ("no.such", "1"),
        ("../x", "1"),
        ("kernel.ostype", "Other"),
    ] {
        let pairs = [("kernel.msgmax", "9000"), (name, value)];
        let error = Pod::run_config(&node, with(&pairs), "")
            .await
            .err()
            .unwrap();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(name), "{error}");
    }
    assert_eq!(node.leaks(), Vec::<String>::new());
    node.finish().unwrap();
}
