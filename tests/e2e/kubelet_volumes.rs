//! Volumes as the kubelet lays them out: what it replaces as a whole, and emptyDir.

use crate::environment::{node_with_image, ready};
use crate::mounts::{mount, output, with_mounts};
use bulkhead_tests::artifacts::artifact;
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, exec, wait};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::Code;

fn volume(node: &Node, kind: &str, name: &str) -> PathBuf {
    let path = format!("kubelet/pods/uid/volumes/kubernetes.io~{kind}/{name}");
    let path = node.path().join(path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Replaces a volume's content as the kubelet does.
fn publish(volume: &Path, time: &str, files: &[(&str, &str)]) {
    let directory = volume.join(time);
    fs::create_dir(&directory).unwrap();
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
    }
    let before = fs::read_link(volume.join("..data"));
    symlink(time, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files {
        // The others are there already.
        let _ = symlink(Path::new("..data").join(name), volume.join(name));
    }
    if let Ok(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

async fn run(node: &Node, id: &str, script: &str) -> (i32, String) {
    let ended = exec(node, id, &["/bin/sh", "-c", script], 60)
        .await
        .unwrap();
    let text = [ended.stdout, ended.stderr].concat();
    (ended.exit_code, String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_change_of_a_config_map_reaches_who_watches_it() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let config_map = volume(&node, "configmap", "config");
    publish(&config_map, "..1", &[("key", "one\n"), ("old", "x\n")]);
    let pod_id = {
        let pod = Pod::run(&node, "config").await.unwrap();
        let watch = artifact("bin/e2e-watch");
        let mounts = [
            mount(&config_map, "/config", true),
            mount(&watch, "/watch", true),
        ];
        let main = with_mounts("main", &image, "exec sleep 1000", &mounts);
        let id = pod.start(main).await.unwrap();
        assert_eq!(
            run(&node, &id, "cat /config/key /config/old; ls -A /config; echo x > /config/new").await,
            (
                1,
                "one\nx\n..1\n..data\nkey\nold\n/bin/sh: can't create /config/new: Read-only file system\n"
                    .to_owned()
            )
        );
        let watching = "until [ -e /tmp/watching ]; do :; done";
        let (seen, ()) = tokio::join!(run(&node, &id, "/watch /config /tmp/watching"), async {
            assert_eq!(run(&node, &id, watching).await, (0, String::new()));
            publish(&config_map, "..2", &[("key", "two\n"), ("more", "y\n")]);
        });
        let (code, seen) = seen;
        assert_eq!(code, 0, "{seen}");
        // A new directory, the new link, and the link over the old one: in this order.
        assert_eq!(seen, "created ..2\ncreated ..data_tmp\nmoved ..data\ntwo\n");
        pod.id
    };
    node.kill_and_restart().await.unwrap();
    let pod = Pod::found(&node, "config", &pod_id);
    let again = with_mounts(
        "again",
        &image,
        "until [ \"$(cat /config/key)\" = three ]; do :; done; ls /config",
        &[mount(&config_map, "/config", true)],
    );
    let id = pod.start(again).await.unwrap();
    publish(&config_map, "..3", &[("key", "three\n")]);
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.stdout, "key\n", "{}", node.log());
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn empty_dirs_are_the_pods_and_stay_in_its_vm() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let (cache, fast) = (
        volume(&node, "empty-dir", "cache"),
        volume(&node, "empty-dir", "fast"),
    );
    // As the kubelet does for an fsGroup.
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o2777)).unwrap();
    chown(&cache, None, Some(4000)).unwrap();
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,mode=777", "fast"])
        .arg(&fast)
        .status();
    assert!(tmpfs.unwrap().success());
    // A sub-path, as the kubelet prepares it.
    fs::create_dir_all(cache.join("a/b")).unwrap();
    let bound = node
        .path()
        .join("kubelet/pods/uid/volume-subpaths/cache/two/0");
    fs::create_dir_all(&bound).unwrap();
    let bind = Command::new("mount")
        .arg("--bind")
        .args([&cache.join("a/b"), &bound])
        .status();
    assert!(bind.unwrap().success());
    let pod = Pod::run(&node, "empty").await.unwrap();
    let mounts = [mount(&cache, "/cache", false), mount(&fast, "/fast", false)];
    let script = "stat -c '%a %g' /cache; stat -f -c '%T' /fast /cache; echo of one > /cache/file; \
                  echo fast > /fast/file; mkdir -p /cache/a/b; echo below > /cache/a/b/c; \
                  dd if=/dev/zero of=/fast/big bs=1M count=9 2>&1 | grep -o 'No space left on device'";
    let one = output(&node, &pod, with_mounts("one", &image, script, &mounts)).await;
    assert_eq!(
        one,
        "2777 4000\ntmpfs\next2/ext3\nNo space left on device\n"
    );
    let mounts = [
        mount(&cache, "/cache", true),
        mount(&fast, "/fast", false),
        mount(&bound, "/below", false),
    ];
    let script =
        "cat /cache/file /fast/file /below/c; echo x 2>/dev/null > /cache/x || echo read only";
    let two = output(&node, &pod, with_mounts("two", &image, script, &mounts)).await;
    assert_eq!(two, "of one\nfast\nbelow\nread only\n");
    assert_eq!(fs::read_dir(&fast).unwrap().count(), 0);
    assert!(!cache.join("file").exists());
    // A container that makes its sub-path a link does not get out of the volume.
    let script = "rm -r /cache/a/b && ln -s /etc /cache/a/b";
    let mounts = [mount(&cache, "/cache", false)];
    output(&node, &pod, with_mounts("evil", &image, script, &mounts)).await;
    let mounts = [mount(&bound, "/below", false)];
    let config = with_mounts("lured", &image, "ls -A /below", &mounts);
    assert_eq!(output(&node, &pod, config).await, "");
    assert_eq!(fs::metadata(&cache).unwrap().gid(), 4000);
    // No file daemon was needed.
    let daemons = Command::new("pgrep").args(["-x", "bulkhead-fs"]).output();
    assert_eq!(daemons.unwrap().stdout, b"");
    pod.remove().await.unwrap();
    for place in [&bound, &fast] {
        let unmounted = Command::new("umount").arg(place).status();
        assert!(unmounted.unwrap().success());
    }
    node.finish().unwrap();
}

#[tokio::test]
async fn an_empty_dir_of_huge_pages_is_refused() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let huge = volume(&node, "empty-dir", "huge");
    let mounted = Command::new("mount")
        .args(["-t", "hugetlbfs", "-o", "pagesize=2M", "huge"])
        .arg(&huge)
        .status();
    assert!(mounted.unwrap().success());
    let pod = Pod::run(&node, "huge").await.unwrap();
    let mounts = [mount(&huge, "/huge", false)];
    let refused = pod
        .create(with_mounts("huge", &image, "true", &mounts))
        .await;
    let error = refused.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
    assert!(error.message().contains("huge pages"), "{error}");
    pod.remove().await.unwrap();
    let unmounted = Command::new("umount").arg(&huge).status();
    assert!(unmounted.unwrap().success());
    node.finish().unwrap();
}
