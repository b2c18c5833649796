//! What the file systems of a pod can do, beside the node's own.

use crate::environment::{node_with_image, ready};
use crate::mounts::mount;
use bulkhead_cri::v1;
use bulkhead_tests::artifacts::artifact;
use bulkhead_tests::disk::Disk;
use bulkhead_tests::pod::{Pod, container, exec};
use std::fs;
use std::process::Command;

const DISK: u64 = 1 << 30;
/// What shared volumes do not have: the file daemon's library knows no files without names.
const KNOWN: [&str; 1] = ["nameless: Operation not supported (os error 95)"];

#[tokio::test]
async fn they_do_what_the_nodes_does() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let disk = Disk::new(DISK).unwrap();
    let [own, shared, empty] = [
        "own",
        "shared",
        "pods/uid/volumes/kubernetes.io~empty-dir/e",
    ]
    .map(|name| disk.path().join(name));
    for directory in [&own, &shared, &empty] {
        fs::create_dir_all(directory).unwrap();
    }
    let program = artifact("bin/e2e-posix");
    let output = Command::new(&program)
        .arg("all")
        .arg(&own)
        .output()
        .unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    assert_eq!(expected.matches(": ok\n").count(), 20, "{expected}");
    let pod = Pod::run(&node, "files").await.unwrap();
    let start = async |name: &str| {
        let script = "mkdir /work; exec sleep 1000";
        let mut config = container(name, &image, &["/bin/sh", "-c", script]);
        config.mounts = vec![
            mount(&shared, "/shared", false),
            mount(&empty, "/scratch", false),
            mount(&program, "/posix", true),
        ];
        pod.start(config).await.unwrap()
    };
    let ids = [start("one").await, start("two").await];
    let run = async |id: &str, script: &str| {
        let ended = exec(&node, id, &["/bin/sh", "-c", script], 120)
            .await
            .unwrap();
        let text = [ended.stdout, ended.stderr].concat();
        String::from_utf8(text).unwrap()
    };
    for place in ["/work", "/scratch", "/shared"] {
        let said = run(&ids[0], &format!("/posix all {place}")).await;
        let differences = said
            .lines()
            .filter(|line| !expected.lines().any(|own| own == *line));
        let differences: Vec<_> = differences.collect();
        let known: &[&str] = if place == "/shared" { &KNOWN } else { &[] };
        assert_eq!(differences, known, "{place}");
        assert_eq!(said.lines().count(), expected.lines().count(), "{place}");
    }
    // Locks hold between the containers of the pod.
    for place in ["/scratch", "/shared"] {
        for kind in ["flock", "posix"] {
            let file = format!("{place}/{kind}");
            let hold = format!(
                "touch {file}; (tail -f /dev/null | /posix hold {kind} {file} > {file}.said) > /dev/null 2>&1 & \
                 until grep -q held {file}.said; do :; done"
            );
            run(&ids[0], &hold).await;
            assert_eq!(
                run(&ids[1], &format!("/posix try {kind} {file}")).await,
                "held\n",
                "{file}"
            );
            run(&ids[0], "killall tail").await;
            let again = format!("until [ $(/posix try {kind} {file}) = free ]; do :; done");
            assert_eq!(run(&ids[1], &again).await, "", "{file}");
        }
    }
    // What they had in common stays with the one that is left.
    let request = v1::RemoveContainerRequest {
        container_id: ids[0].clone(),
    };
    node.runtime().remove_container(request).await.unwrap();
    let still = "echo still there > /shared/still; cat /shared/still";
    assert_eq!(run(&ids[1], still).await, "still there\n");
    let third = start("three").await;
    assert_eq!(run(&third, "cat /shared/still").await, "still there\n");
    pod.remove().await.unwrap();
    drop(disk);
    node.finish().unwrap();
}
