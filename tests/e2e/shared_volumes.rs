//! Files and directories of the node in a pod's containers.

use crate::environment::{node_with_image, ready};
use crate::mounts::{mount, output, with_mounts};
use bulkhead_cri::v1::{self, MountPropagation};
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, exec, info};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::Code;

fn directory(node: &Node, name: &str) -> PathBuf {
    let path = node.path().join(name);
    fs::create_dir(&path).unwrap();
    path
}

async fn run(node: &Node, id: &str, script: &str) -> (i32, String) {
    let ended = exec(node, id, &["/bin/sh", "-c", script], 30)
        .await
        .unwrap();
    let text = [ended.stdout, ended.stderr].concat();
    (ended.exit_code, String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn the_node_and_its_pods_see_each_others_changes() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let volume = directory(&node, "volume");
    fs::write(volume.join("file"), "of the node\n").unwrap();
    fs::set_permissions(volume.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    // What is mounted inside the volume belongs to it.
    fs::create_dir(volume.join("inner")).unwrap();
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "inner"])
        .arg(volume.join("inner"))
        .status();
    assert!(tmpfs.unwrap().success());
    fs::write(volume.join("inner/deep"), "deep\n").unwrap();
    let hosts = node.path().join("hosts");
    fs::write(&hosts, "10.0.0.1 from-the-kubelet\n").unwrap();
    // As the kubelet means it: the link is followed, once.
    let link = node.path().join("link");
    symlink(&volume, &link).unwrap();
    let (pod_id, id) = {
        let pod = Pod::run(&node, "shared").await.unwrap();
        let mounts = [
            mount(&link, "/volume", false),
            mount(&volume, "/read", true),
            mount(&hosts, "/etc/hosts", false),
        ];
        let config = with_mounts("main", &image, "exec sleep 1000", &mounts);
        let id = pod.start(config).await.unwrap();
        let script = "cat /volume/file /volume/inner/deep /etc/hosts; stat -c '%a %u' /volume/file; \
                      echo of the pod > /volume/new; mkdir -p /volume/a/b; ln -s ../new /volume/a/link; cat /volume/a/link; \
                      echo x 2>/dev/null > /read/new || echo read only; cat /read/new";
        let expected = "of the node\ndeep\n10.0.0.1 from-the-kubelet\n640 0\nof the pod\nread only\nof the pod\n";
        assert_eq!(run(&node, &id, script).await, (0, expected.to_owned()));
        assert_eq!(
            fs::read_to_string(volume.join("new")).unwrap(),
            "of the pod\n"
        );
        assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0);
        fs::write(volume.join("file"), "changed\n").unwrap();
        assert_eq!(run(&node, &id, "cat /volume/file").await.1, "changed\n");
        // As a user: a write takes capabilities away from the file daemon for its time.
        let public = volume.join("public");
        fs::write(&public, "").unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o4777)).unwrap();
        let script =
            "echo of a user > /volume/public; stat -c %a /volume/public; cat /volume/public";
        let mut user = with_mounts("user", &image, script, &mounts);
        user.linux = Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                run_as_user: Some(v1::Int64Value { value: 1000 }),
                ..v1::LinuxContainerSecurityContext::default()
            }),
            ..v1::LinuxContainerConfig::default()
        });
        assert_eq!(output(&node, &pod, user).await, "777\nof a user\n");
        // Not above what was mounted.
        let (code, text) = run(&node, &id, "ls /volume/..; cat /volume/../hosts").await;
        assert_ne!(code, 0, "{text}");
        (pod.id, id)
    };
    node.kill_and_restart().await.unwrap();
    // Of an earlier daemon's file daemon this one sees the end as well.
    kill_file_daemon();
    let wait = "until cat /volume/file 2> /dev/null; do sleep 0.1; done";
    assert_eq!(
        run(&node, &id, wait).await,
        (0, "changed\n".to_owned()),
        "{}",
        node.log()
    );
    let pod = Pod::found(&node, "shared", &pod_id);
    let again = with_mounts("two", &image, "cat /v/file", &[mount(&volume, "/v", true)]);
    assert_eq!(
        output(&node, &pod, again).await,
        "changed\n",
        "{}",
        node.log()
    );
    pod.remove().await.unwrap();
    let unmounted = Command::new("umount").arg(volume.join("inner")).status();
    // Nobody has it any more.
    assert!(unmounted.unwrap().success());
    node.finish().unwrap();
}

#[tokio::test]
async fn what_cannot_be_shared_is_refused_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = directory(&node, "volume");
    let socket = node.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let pod = Pod::run(&node, "refused").await.unwrap();
    let missing = mount(&node.path().join("missing"), "/v", false);
    let mut both_ways = mount(&volume, "/v", false);
    both_ways.set_propagation(MountPropagation::PropagationBidirectional);
    let mut recursive = mount(&volume, "/v", false);
    recursive.recursive_read_only = true;
    for (wrong, code, text) in [
        (missing, Code::NotFound, "missing"),
        (
            mount(&socket, "/v", false),
            Code::InvalidArgument,
            "Unix socket",
        ),
        (
            mount(Path::new("/dev/null"), "/v", false),
            Code::InvalidArgument,
            "no directory",
        ),
        (
            mount(Path::new("relative"), "/v", false),
            Code::InvalidArgument,
            "relative",
        ),
        (mount(&volume, "v", false), Code::InvalidArgument, "\"v\""),
        (
            mount(&volume.join("../volume"), "/v", false),
            Code::InvalidArgument,
            "..",
        ),
        (both_ways, Code::InvalidArgument, "BIDIRECTIONAL"),
        (recursive, Code::InvalidArgument, "recursive_read_only"),
    ] {
        // With a good one before it.
        let mounts = [mount(&volume, "/good", false), wrong];
        let refused = pod
            .create(with_mounts("wrong", &image, "true", &mounts))
            .await;
        let error = refused.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
    let good = [mount(&volume, "/good", false)];
    let config = with_mounts("good", &image, "echo fine", &good);
    assert_eq!(output(&node, &pod, config).await, "fine\n");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

/// Ends the file daemon of the only pod that has one.
fn kill_file_daemon() {
    let killed = Command::new("pkill")
        .args(["-KILL", "-x", "bulkhead-fs"])
        .status();
    assert!(killed.unwrap().success());
}

#[tokio::test]
async fn a_file_daemon_that_dies_is_followed_by_another_and_the_pod_lives() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = directory(&node, "volume");
    fs::write(volume.join("file"), "content\n").unwrap();
    fs::create_dir(volume.join("inner")).unwrap();
    let inner = volume.join("inner");
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "inner"])
        .arg(&inner)
        .status();
    assert!(tmpfs.unwrap().success());
    fs::write(inner.join("deep"), "deep\n").unwrap();
    let single = node.path().join("single");
    fs::write(&single, "single\n").unwrap();
    // Never read before, for what the guest has in its cache needs no file daemon.
    let alone = node.path().join("alone");
    fs::write(&alone, "alone\n").unwrap();
    fs::write(inner.join("held"), "held\n").unwrap();
    let pod = Pod::run(&node, "dies").await.unwrap();
    let mounts = [
        mount(&volume, "/volume", false),
        mount(&volume, "/read", true),
        mount(&single, "/single", false),
        mount(&alone, "/alone", false),
    ];
    // It holds what is gone with the process: open files, one of them a volume itself; and what is not: the volume
    // that it works in.
    let script = "exec 3< /volume/inner/held 4< /alone; mkfifo /tmp/go /tmp/told; cd /volume; \
                  cat /tmp/go; { cat <&3; echo $?; cat <&4; echo $?; cat file; } > /tmp/told 2>&1; \
                  exec sleep 1000";
    let id = pod
        .start(with_mounts("main", &image, script, &mounts))
        .await
        .unwrap();
    let look = "cat /volume/file /volume/inner/deep /read/file /single";
    let all = "content\ndeep\ncontent\nsingle\n";
    assert_eq!(run(&node, &id, look).await, (0, all.to_owned()));
    let temporary = with_mounts("temporary", &image, "true", &mounts);
    let temporary = pod.create(temporary).await.unwrap();
    // Twice: the second waits a moment, because the first has not lived long.
    for round in ["1", "2"] {
        kill_file_daemon();
        let wait =
            format!("until {look} 2> /dev/null > /tmp/all; do sleep 0.1; done; cat /tmp/all");
        assert_eq!(
            run(&node, &id, &wait).await,
            (0, all.to_owned()),
            "{}",
            node.log()
        );
        let script = format!(
            "echo pod {round} > /volume/new; echo x 2> /dev/null > /read/new || echo read only; \
             ls /volume; cat /volume/later{round} || :"
        );
        fs::write(volume.join(format!("later{round}")), "later\n").unwrap();
        let (code, text) = run(&node, &id, &script).await;
        let listed = match round {
            "1" => "file\ninner\nlater1\nnew\n",
            _ => "file\ninner\nlater1\nlater2\nnew\n",
        };
        assert_eq!((code, text), (0, format!("read only\n{listed}later\n")));
        let new = fs::read_to_string(volume.join("new")).unwrap();
        assert_eq!(new, format!("pod {round}\n"));
        let name = format!("next{round}");
        let next = with_mounts(&name, &image, look, &mounts);
        assert_eq!(output(&node, &pod, next).await, all);
    }
    let info = info(&node, &pod.id).await.unwrap();
    let held = &info["fileDaemon"];
    assert_eq!(held["epoch"], 3, "{info}");
    // The guest knows more than the volumes, and the daemon has memory and descriptors.
    for (name, least) in [
        ("inodes", 5),
        ("privateBytes", 100_000),
        ("descriptors", 10),
    ] {
        assert!(held[name].as_u64().unwrap() >= least, "{name}: {info}");
    }
    let (code, told) = run(&node, &id, "echo > /tmp/go; cat /tmp/told").await;
    assert_eq!(code, 0, "{told}");
    let told: Vec<&str> = told.lines().collect();
    let [held, "1", alone, "1", "content"] = told[..] else {
        panic!("{told:?}");
    };
    for error in [held, alone] {
        assert!(
            error.contains("Stale file handle") || error.contains("Bad file descriptor"),
            "{told:?}"
        );
    }
    assert_eq!(
        node.log().matches("The file daemon has ended").count(),
        2,
        "{}",
        node.log()
    );
    // A container that goes while no file daemon serves takes its volumes along, and a pod as well.
    kill_file_daemon();
    let mut runtime = node.runtime();
    let request = v1::RemoveContainerRequest {
        container_id: temporary,
    };
    runtime.remove_container(request).await.unwrap();
    pod.remove().await.unwrap();
    let unmounted = Command::new("umount").arg(&inner).status();
    assert!(unmounted.unwrap().success());
    node.finish().unwrap();
}

#[tokio::test]
async fn a_file_daemon_that_dies_while_no_daemon_runs_leaves_a_pod_without_volumes() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let volume = directory(&node, "volume");
    fs::write(volume.join("file"), "content\n").unwrap();
    let mounts = [mount(&volume, "/volume", false)];
    let (pod_id, id) = {
        let pod = Pod::run(&node, "lost").await.unwrap();
        let config = with_mounts("main", &image, "exec sleep 1000", &mounts);
        let id = pod.start(config).await.unwrap();
        (pod.id, id)
    };
    node.stop().unwrap();
    kill_file_daemon();
    // As often as it comes.
    for name in ["next", "after"] {
        node.restart().await.unwrap();
        let (code, text) = run(&node, &id, "cat /volume/file").await;
        assert!(
            code != 0 && text.contains("Input/output error"),
            "{code} {text}"
        );
        assert_eq!(run(&node, &id, "echo lives").await.1, "lives\n");
        let pod = Pod::found(&node, "lost", &pod_id);
        let error = pod
            .create(with_mounts(name, &image, "true", &mounts))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("is lost"), "{error}");
        let without = with_mounts(name, &image, "echo fine", &[]);
        assert_eq!(output(&node, &pod, without).await, "fine\n");
        node.stop().unwrap();
    }
    node.restart().await.unwrap();
    let pod = Pod::found(&node, "lost", &pod_id);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
