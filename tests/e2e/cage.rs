//! The VMM's cage, as the host sees it.

use crate::environment::{node_with_image, ready};
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, Pod, container, wait};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The VMM of a pod, under `/proc`.
async fn vmm_of(node: &Node, pod: &Pod<'_>) -> PathBuf {
    let info = pod::info(node, &pod.id).await.unwrap();
    Path::new("/proc").join(info["vmmPid"].as_i64().unwrap().to_string())
}

/// Fields of `/proc/PID/status`.
fn status(process: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(process.join("status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

#[tokio::test]
async fn a_vmm_has_nothing_but_what_it_holds_open() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "caged").await.unwrap();
    // With a container and a stream each thread has come to work, a disk's worker too.
    assert!(
        pod.script(&image, "id")
            .await
            .unwrap()
            .stdout
            .contains("uid=0")
    );
    let vmm = vmm_of(&node, &pod).await;

    let mut threads = 0;
    for task in fs::read_dir(vmm.join("task")).unwrap() {
        let fields = status(&task.unwrap().path());
        let field = |name: &str| fields[name].as_str();
        for ids in ["Uid", "Gid"] {
            let ids: Vec<u32> = field(ids)
                .split('\t')
                .map(|id| id.parse().unwrap())
                .collect();
            assert!(
                ids.iter().all(|id| *id == ids[0] && *id >= 1_900_000_000),
                "{ids:?}"
            );
        }
        assert_eq!(field("Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set} of {}", field("Name"));
        }
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Seccomp"), "2", "thread {}", field("Name"));
        threads += 1;
    }
    assert!(
        threads >= 4,
        "control, devices, a vCPU and a disk: {threads}"
    );

    for kind in ["mnt", "ipc", "uts", "net"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).unwrap();
        assert_ne!(of(&vmm), of(Path::new("/proc/self")), "{kind}");
    }
    let root = vmm.join("root");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let error = fs::write(root.join("file"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mounts = fs::read_to_string(vmm.join("mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let limits = fs::read_to_string(vmm.join("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "4096");
    let cgroup = fs::read_to_string(vmm.join("cgroup")).unwrap();
    assert!(
        cgroup.trim().ends_with(&format!("bulkhead-{}", pod.id)),
        "{cgroup}"
    );

    let other = Pod::run(&node, "neighbour").await.unwrap();
    let other_vmm = vmm_of(&node, &other).await;
    assert_ne!(status(&vmm)["Uid"], status(&other_vmm)["Uid"]);
    other.remove().await.unwrap();
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_vmm_that_its_filter_kills_is_told_as_such() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "filtered").await.unwrap();
    let id = pod
        .start(container("sleeper", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let vmm = vmm_of(&node, &pod).await;
    let pid = vmm.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // What the kernel does to a process that makes a call its filter forbids.
    rustix::process::kill_process(pid, rustix::process::Signal::SYS).unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.status.reason, "SandboxEnded");
    assert!(
        ended.status.message.contains("seccomp"),
        "{:?}",
        ended.status.message
    );
    assert!(node.log().contains("seccomp"), "{}", node.log());
    pod.remove().await.unwrap();
    node.finish_after_seccomp_violation().unwrap();
}
