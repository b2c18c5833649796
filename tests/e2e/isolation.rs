//! Namespaces that containers share, users that are not the guest's, volumes from images.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1::{self, NamespaceMode};
use bulkhead_tests::pod::{self, Pod, container, exec, wait};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use tonic::Code;

fn with_options(
    name: &str,
    image: &str,
    script: &str,
    options: v1::NamespaceOption,
) -> v1::ContainerConfig {
    let security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    let mut config = container(name, image, &["/bin/sh", "-c", script]);
    config.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(security),
        ..Default::default()
    });
    config
}

#[tokio::test]
async fn containers_share_a_pid_namespace_when_the_pod_does_and_debuggers_see_their_target() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "pids").await.unwrap();
    let of = |mode: NamespaceMode| v1::NamespaceOption {
        pid: mode.into(),
        ..Default::default()
    };
    let stays = "while :; do sleep 1; done";
    let first = with_options("first", &image, stays, of(NamespaceMode::Pod));
    pod.start(first).await.unwrap();
    let look = "cat /proc/1/comm; ps -o args | grep -c '[w]hile :'";
    let second = with_options("second", &image, look, of(NamespaceMode::Pod));
    let ended = wait(&node, &pod.start(second).await.unwrap())
        .await
        .unwrap();
    assert_eq!(ended.stdout, "pause\n1\n", "{ended:?}");
    // One with a namespace of its own, and another that looks at it.
    let alone = with_options(
        "alone",
        &image,
        "exec sleep 1000",
        of(NamespaceMode::Container),
    );
    let alone = pod.start(alone).await.unwrap();
    let mut target = of(NamespaceMode::Target);
    target.target_id.clone_from(&alone);
    let debug = with_options(
        "debug",
        &image,
        "cat /proc/1/comm; ps | grep -c [w]hile",
        target,
    );
    let ended = wait(&node, &pod.start(debug).await.unwrap()).await.unwrap();
    assert_eq!(ended.stdout, "sleep\n0\n", "{ended:?}");
    let mut target = of(NamespaceMode::Target);
    target.target_id = "0000".into();
    let nobody = with_options("nobody", &image, "true", target);
    assert_eq!(pod.create(nobody).await.unwrap_err().code(), Code::NotFound);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_pod_without_the_hosts_users_has_a_user_namespace() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let map = v1::IdMapping {
        host_id: 1 << 20,
        container_id: 0,
        length: 65_536,
    };
    let options = v1::NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(v1::UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![map],
            gids: vec![map],
        }),
        ..Default::default()
    };
    let mut config = pod::config(&node, "users");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let script = "tr -s ' ' < /proc/self/uid_map; id -u; stat -c %u:%g /bin/busybox /etc/hosts; \
        echo more >> /etc/hostname && echo wrote; touch /mine; stat -c %u /mine; touch /done; exec sleep 1000";
    // Volumes belong to whom they belong on the node, as the container sees it.
    let volume = node.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    chown(volume.join("file"), Some(7), Some(8)).unwrap();
    let empty = node
        .path()
        .join("pods/uid/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&empty).unwrap();
    let mut config = with_options("mapped", &image, script, options);
    for (host_path, container_path) in [(&volume, "/volume"), (&empty, "/cache")] {
        config.mounts.push(v1::Mount {
            host_path: host_path.to_str().unwrap().to_owned(),
            container_path: container_path.to_owned(),
            uid_mappings: vec![map],
            gid_mappings: vec![map],
            ..Default::default()
        });
    }
    let id = pod.start(config).await.unwrap();
    let seen = exec(
        &node,
        &id,
        &[
            "sh",
            "-c",
            "touch /volume/new /cache/new; chown 9:9 /volume/new; stat -c %u:%g /volume/file /volume/new /cache /cache/new",
        ],
        20,
    )
    .await
    .unwrap();
    let text = String::from_utf8([seen.stdout, seen.stderr].concat()).unwrap();
    assert_eq!(text, "7:8\n9:9\n0:0\n0:0\n");
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 9);
    let seen = exec(
        &node,
        &id,
        &[
            "sh",
            "-c",
            "until [ -e /done ]; do sleep 0.1; done; id -u; tr -s ' ' < /proc/self/gid_map",
        ],
        20,
    )
    .await
    .unwrap();
    let map = " 0 1048576 65536\n";
    assert_eq!(String::from_utf8(seen.stdout).unwrap(), format!("0\n{map}"));
    let stop = v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    node.runtime().stop_container(stop).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    let expected = format!("{map}0\n0:0\n0:0\nwrote\n0\n");
    assert_eq!(ended.stdout, expected, "{ended:?}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn an_image_can_be_a_volume() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "volume").await.unwrap();
    let volume = |name: &str, image: &str, sub_path: &str| {
        let script = "ls /volume/busybox; touch /volume/x 2>/dev/null; echo $?; /volume/busybox true 2>/dev/null; echo $?";
        let mut config = container(name, image, &["/bin/sh", "-c", script]);
        config.mounts = vec![v1::Mount {
            container_path: "/volume".into(),
            image: Some(v1::ImageSpec {
                image: image.to_owned(),
                ..Default::default()
            }),
            image_sub_path: sub_path.into(),
            readonly: true,
            ..Default::default()
        }];
        config
    };
    let id = pod.start(volume("reader", &image, "bin")).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.stdout, "/volume/busybox\n1\n126\n", "{ended:?}");
    let missing = pod.create(volume("missing", &image, "no/such")).await;
    let missing = missing.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    let mut unknown = volume("unknown", &image, "");
    unknown.mounts[0].image.as_mut().unwrap().image = "no.such/image:1".into();
    let unknown = pod.create(unknown).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_time_limit_kills_all_that_an_exec_has_started() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "tree").await.unwrap();
    let id = pod
        .start(container("target", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let script = "setsid sh -c 'sleep 1111 & sleep 1111' & sleep 1111";
    let late = exec(&node, &id, &["sh", "-c", script], 3)
        .await
        .unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    // Killed at once, gone a moment later.
    loop {
        let seen = exec(&node, &id, &["ps"], 20).await.unwrap();
        if !String::from_utf8(seen.stdout).unwrap().contains("1111") {
            break;
        }
    }
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
