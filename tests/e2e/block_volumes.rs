//! Raw block volumes: a loop device of the node in a pod.

use crate::environment::{node_with_image, ready};
use crate::mounts::output;
use bulkhead_cri::v1;
use bulkhead_tests::device::Loop;
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, container};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tonic::Code;

const SIZE: usize = 8 << 20;

fn new_loop(node: &Node, name: &str) -> Loop {
    let file = node.path().join(name);
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
    fs::write(&file, content).unwrap();
    Loop::over(&file)
}

fn asked(volume: &Loop, permissions: &str) -> v1::Device {
    device(&volume.device, "/dev/volume", permissions)
}

fn device(host_path: &str, container_path: &str, permissions: &str) -> v1::Device {
    v1::Device {
        host_path: host_path.to_owned(),
        container_path: container_path.to_owned(),
        permissions: permissions.to_owned(),
    }
}

fn with_device(name: &str, image: &str, script: &str, device: v1::Device) -> v1::ContainerConfig {
    let mut config = container(name, image, &["/bin/sh", "-c", script]);
    config.devices = vec![device];
    config
}

#[tokio::test]
async fn a_block_device_of_the_node_is_one_in_its_containers() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let volume = new_loop(&node, "volume.img");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&volume.device, mode).unwrap();
    let pod_id = {
        let pod = Pod::run(&node, "block").await.unwrap();
        let script = "stat -c '%F %a %u:%g' /dev/volume; dd if=/dev/volume bs=512 skip=7 count=1 2>/dev/null | od -An -tx1 -N4; \
                      wc -c < /dev/volume; echo new | dd of=/dev/volume bs=512 seek=9 conv=fsync,notrunc 2>/dev/null";
        let text = output(
            &node,
            &pod,
            with_device("one", &image, script, asked(&volume, "rwm")),
        )
        .await;
        let expected = format!("block special file 600 0:0\n 07 07 07 07\n{SIZE}\n");
        assert_eq!(text, expected);
        assert_eq!(fs::read(&volume.file).unwrap()[9 * 512..][..4], *b"new\n");
        // A container without it cannot make itself a node for it.
        let thief = "n=$(cat /sys/block/vd*/dev | sort | tail -1); mknod /dev/d b ${n%:*} ${n#*:}; head -c1 /dev/d";
        let ended = pod.script(&image, thief).await.unwrap();
        assert_ne!(ended.status.exit_code, 0, "{ended:?}");
        pod.id
    };
    node.kill_and_restart().await.unwrap();
    let pod = Pod::found(&node, "block", &pod_id);
    let script = "dd if=/dev/volume bs=512 skip=9 count=1 2>/dev/null | head -c4";
    let again = with_device("two", &image, script, asked(&volume, "mrw"));
    assert_eq!(output(&node, &pod, again).await, "new\n", "{}", node.log());
    // As a mount it is the same.
    let mut mounted = container("mounted", &image, &["/bin/sh", "-c", script]);
    mounted.mounts = vec![v1::Mount {
        host_path: volume.device.clone(),
        container_path: "/dev/volume".to_owned(),
        ..v1::Mount::default()
    }];
    assert_eq!(output(&node, &pod, mounted).await, "new\n");
    pod.remove().await.unwrap();
    drop(volume);
    node.finish().unwrap();
}

#[tokio::test]
async fn a_volume_to_be_read_is_not_written_whatever_the_guest_does() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = new_loop(&node, "volume.img");
    let before = fs::read(&volume.file).unwrap();
    let pod = Pod::run(&node, "block-ro").await.unwrap();
    let script =
        "head -c1 /dev/volume >/dev/null && echo read; echo x > /dev/volume || echo refused";
    let reader = with_device("reader", &image, script, asked(&volume, "r"));
    assert_eq!(output(&node, &pod, reader).await, "read\nrefused\n");
    // A privileged container may open every device of the guest; the disk itself refuses.
    let script = "for d in /dev/vd*; do [ $(blockdev --getsize64 $d) = 8388608 ] && \
                  { dd if=/dev/zero of=$d bs=512 count=1 conv=fsync 2>/dev/null || echo refused; }; done; true";
    let mut root = with_device("root", &image, script, asked(&volume, "r"));
    root.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    assert_eq!(output(&node, &pod, root).await, "refused\n");
    pod.remove().await.unwrap();
    assert!(fs::read(&volume.file).unwrap() == before);
    drop(volume);
    node.finish().unwrap();
}

#[tokio::test]
async fn what_is_no_block_device_is_refused_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "no-block").await.unwrap();
    let file = Path::new(node.path()).join("file");
    fs::write(&file, "x").unwrap();
    for (path, container_path, permissions, code) in [
        ("/dev/null", "/dev/x", "rw", Code::InvalidArgument),
        (
            file.to_str().unwrap(),
            "/dev/x",
            "rw",
            Code::InvalidArgument,
        ),
        ("/dev/there-is-none", "/dev/x", "rw", Code::NotFound),
        ("/dev/null", "/dev/x", "rwx", Code::InvalidArgument),
    ] {
        let asked = device(path, container_path, permissions);
        let error = pod
            .create(with_device("refused", &image, "true", asked))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code, "{path}: {error}");
        assert!(
            error.message().contains(path) || error.message().contains(permissions),
            "{error}"
        );
    }
    let volume = new_loop(&node, "volume.img");
    let asked = device(&volume.device, "/dev/../x", "rw");
    let error = pod
        .create(with_device("refused", &image, "true", asked))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    pod.remove().await.unwrap();
    drop(volume);
    node.finish().unwrap();
}
