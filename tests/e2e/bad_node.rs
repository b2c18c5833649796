//! Nodes that cannot run pods: the daemon serves, and every refusal says why.

use crate::environment::{ready, registry};
use bulkhead_cri::v1;
use bulkhead_tests::node::{Options, default_config};
use bulkhead_tests::pod::{Pod, pull};
use bulkhead_tests::{Node, artifacts};
use std::path::Path;
use std::process::Command;
use tonic::Code;

/// Runs the daemon in a mount namespace of its own that a shell command has changed.
fn behind(change: &str, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{change} && exec \"$0\" \"$@\"");
    command.args(["--mount", "sh", "-ec", &script]).arg(program);
    command
}

async fn refused(options: Options) -> (Code, String, bool) {
    let node = Node::start_with(options).await.unwrap();
    let error = Pod::run(&node, "unfit").await.err().unwrap();
    let status = node
        .runtime()
        .status(v1::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let conditions = status.status.unwrap().conditions;
    let ready = conditions
        .iter()
        .any(|one| one.r#type == "RuntimeReady" && one.status);
    node.finish().unwrap();
    (error.code(), error.message().to_owned(), ready)
}

#[tokio::test]
async fn without_kvm() {
    if !ready() {
        return;
    }
    // The device hides behind an empty directory of devices.
    let wrapper = |program: &Path| {
        behind(
            "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9",
            program,
        )
    };
    let (code, message, ready) = refused(Options {
        wrapper: Some(wrapper),
        ..Default::default()
    })
    .await;
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    assert!(message.contains("there is no /dev/kvm"), "{message}");
    assert!(!ready);
}

#[tokio::test]
async fn with_kvm_but_without_hardware() {
    if !ready() {
        return;
    }
    let wrapper = |program: &Path| {
        behind(
            "echo 'flags : fpu' > /tmp/cpuinfo.$$ && mount --bind /tmp/cpuinfo.$$ /proc/cpuinfo && rm -f /tmp/cpuinfo.$$",
            program,
        )
    };
    let (code, message, ready) = refused(Options {
        wrapper: Some(wrapper),
        ..Default::default()
    })
    .await;
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    assert!(message.contains("neither VMX nor SVM"), "{message}");
    assert!(!ready);
}

#[tokio::test]
async fn without_kernel_or_initramfs_or_vmm() {
    if !ready() {
        return;
    }
    for key in ["kernel", "initramfs", "vmm"] {
        let missing = toml::Value::String(format!("/nonexistent/{key}"));
        let configure = Box::new(move |config: &mut toml::Table| {
            let table = match key {
                "vmm" => config,
                _ => config["runtimes"]["bulkhead"].as_table_mut().unwrap(),
            };
            table.insert(key.to_owned(), missing);
        });
        let options = Options {
            configure: Some(configure),
            ..Default::default()
        };
        let (code, message, _) = refused(options).await;
        assert!(
            message.contains(&format!("/nonexistent/{key}")),
            "{message}"
        );
        let expected = if key == "vmm" {
            Code::Internal
        } else {
            Code::FailedPrecondition
        };
        assert_eq!(code, expected, "{message}");
    }
}

#[tokio::test]
async fn a_wrong_configuration_key_stops_the_daemon_with_its_name() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut config = default_config(directory.path());
    config.insert("sokcet".into(), toml::Value::String("/x".into()));
    let path = directory.path().join("config.toml");
    std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    let output = Command::new(artifacts::artifact("bin/bulkhead"))
        .args(["serve", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("unknown field `sokcet`"), "{words}");
}

#[tokio::test]
async fn a_full_disk_fails_the_pull_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().display().to_string();
    let mount = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).status();
    // Large enough for the store's own files, too small for the image.
    let mounted = mount(&["mount", "-t", "tmpfs", "-o", "size=3m", "none", &small]).unwrap();
    assert!(mounted.success());
    let root = small.clone();
    let configure = Box::new(move |config: &mut toml::Table| {
        config.insert("root".into(), toml::Value::String(root));
    });
    let node = Node::start_with(Options {
        configure: Some(configure),
        ..Default::default()
    })
    .await
    .unwrap();
    let error = pull(&node, &registry().demo_image()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let images = node
        .images()
        .list_images(v1::ListImagesRequest::default())
        .await
        .unwrap();
    assert!(images.into_inner().images.is_empty());
    let info = node
        .images()
        .image_fs_info(v1::ImageFsInfoRequest::default())
        .await
        .unwrap();
    let used = info.into_inner().image_filesystems[0]
        .used_bytes
        .unwrap()
        .value;
    assert!(used < 64 << 10, "{used} bytes are left");
    node.finish().unwrap();
    assert!(mount(&["umount", &small]).unwrap().success());
}
