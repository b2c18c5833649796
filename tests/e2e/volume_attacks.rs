//! Containers that want more of the node than their volumes, and volumes that give less than a container wants.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, container, exec};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn mount(host: &Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.to_str().unwrap().to_owned(),
        container_path: container.to_owned(),
        ..v1::Mount::default()
    }
}

/// A container with everything that one can have in its guest.
fn privileged(name: &str, image: &str, mounts: &[v1::Mount]) -> v1::ContainerConfig {
    let mut config = container(name, image, &["sleep", "1000"]);
    config.mounts = mounts.to_vec();
    config.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    config
}

async fn run(node: &Node, id: &str, script: &str) -> String {
    let ended = exec(node, id, &["/bin/sh", "-c", script], 120)
        .await
        .unwrap();
    String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap()
}

/// A small file system of its own, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(path: PathBuf, options: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "volume"])
            .arg(&path)
            .status();
        assert!(mounted.unwrap().success());
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Fails, and is found by the checker, when anybody still has it.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn nothing_leads_out_of_a_volume() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = node.path().join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    let outside = node.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "of the node\n").unwrap();
    // Links that the node has in the volume are the container's to follow: in its own root.
    std::os::unix::fs::symlink(&outside, volume.join("to-outside")).unwrap();
    std::os::unix::fs::symlink("../outside/secret", volume.join("to-secret")).unwrap();
    let pod = Pod::run(&node, "attack").await.unwrap();
    let mounts = [mount(&volume, "/v")];
    let main = privileged("main", &image, &mounts);
    let id = pod.start(main).await.unwrap();
    let path = outside.display();
    for script in [
        "cat /v/to-secret".to_owned(),
        "cat /v/to-outside/secret".to_owned(),
        "cat /v/../outside/secret /v/../../outside/secret".to_owned(),
        format!("ln -s {path} /v/made; cat /v/made/secret"),
        format!("cd /v/inner; mv /v/inner /v/moved; cat ../../outside/secret {path}/secret"),
        "mknod /v/block b 7 0 && head -c1 /v/block".to_owned(),
        "mknod /v/memory c 1 1 && head -c1 /v/memory".to_owned(),
        // The device itself, mounted once more, has the volumes of this pod and nothing else.
        "mkdir /all; mount -t virtiofs bulkhead /all && cd /all && cat ../outside/secret */../../outside/secret"
            .to_owned(),
        "ls /all/..//proc/1 /all/proc 2>/dev/null; cat /all/*/../to-secret".to_owned(),
    ] {
        let text = run(&node, &id, &script).await;
        assert!(!text.contains("of the node"), "{script}: {text}");
    }
    // Names that change while they are used.
    let race = format!(
        "cd /v; mkdir d; (i=0; while [ $i -lt 50 ]; do mv d e; ln -s {path} d; rm d; mv e d; i=$((i+1)); done) & \
         i=0; while [ $i -lt 50 ]; do echo raced > d/raced; cat d/secret; i=$((i+1)); done 2>/dev/null; wait"
    );
    let text = run(&node, &id, &race).await;
    assert!(!text.contains("of the node"), "{text}");
    let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    for entry in fs::read_dir(&volume).unwrap() {
        let kind = entry.unwrap().file_type().unwrap();
        assert!(
            !kind.is_block_device() && !kind.is_char_device(),
            "{kind:?}"
        );
    }
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_volume_that_is_full_is_its_pods_problem() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let small = Tmpfs::new(node.path().join("small"), "size=1m,nr_inodes=64");
    let read_only = Tmpfs::new(node.path().join("read-only"), "ro");
    fs::write(small.0.join("file"), "content\n").unwrap();
    let mounts = [mount(&small.0, "/small"), mount(&read_only.0, "/read-only")];
    let pod = Pod::run(&node, "greedy").await.unwrap();
    let other = Pod::run(&node, "neighbour").await.unwrap();
    let main = privileged("main", &image, &mounts);
    let id = pod.start(main).await.unwrap();
    let neighbour = privileged("other", &image, &mounts[..1]);
    let neighbour = other.start(neighbour).await.unwrap();
    let script = "dd if=/dev/zero of=/small/big bs=64k count=32 2>&1 | grep -o 'No space left on device'; rm /small/big; \
                  touch /read-only/x 2>&1 | grep -o 'Read-only file system'; \
                  i=0; while touch /small/g$i 2>/dev/null; do i=$((i+1)); done; rm /small/g*; cat /small/file";
    assert_eq!(
        run(&node, &id, script).await,
        "No space left on device\nRead-only file system\ncontent\n"
    );
    assert_eq!(run(&node, &neighbour, "cat /small/file").await, "content\n");
    pod.remove().await.unwrap();
    other.remove().await.unwrap();
    drop((small, read_only));
    node.finish().unwrap();
}
