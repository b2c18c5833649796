//! Direct volumes: a file system on a loop device of the node, mounted in a pod's guest only.

use crate::environment::{node_with_image, ready};
use crate::mounts::{mount, output, with_mounts};
use bulkhead_cri::v1;
use bulkhead_tests::device::Loop;
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, exec, info};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tonic::Code;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// A volume as a CSI driver leaves it, with an ext4 on its device.
struct Volume {
    disk: Loop,
    directory: PathBuf,
}

impl Volume {
    fn new(node: &Node, name: &str) -> Self {
        let file = node.path().join(format!("{name}.img"));
        fs::File::create_new(&file).unwrap().set_len(SIZE).unwrap();
        ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file));
        let disk = Loop::over(&file);
        let path = format!("kubelet/pods/uid/volumes/kubernetes.io~csi/{name}");
        let directory = node.path().join(path);
        fs::create_dir_all(directory.join("mount")).unwrap();
        Self { disk, directory }
    }

    /// Writes the file that makes it a direct volume.
    fn describe(&self, options: &[&str], metadata: Value) {
        let file = json!({
            "volume-type": "block", "device": self.disk.device, "fstype": "ext4",
            "options": options, "metadata": metadata,
        });
        self.write(&file.to_string());
    }

    fn file(&self) -> PathBuf {
        self.directory.join("direct-volume.json")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn mount(&self, container: &str, readonly: bool) -> v1::Mount {
        mount(&self.directory.join("mount"), container, readonly)
    }

    /// Asks as a CSI driver does.
    fn ask(&self, node: &Node, what: &str) -> Value {
        let answer = ok(node
            .cli()
            .args(["volumes", what])
            .arg(self.directory.join("mount")));
        serde_json::from_slice(&answer.stdout).unwrap()
    }

    /// What a check finds that repairs nothing; the file system must be unmounted, and left clean.
    fn assert_clean(&self) {
        let header = ok(Command::new("dumpe2fs").args(["-h", &self.disk.device]));
        let header = String::from_utf8(header.stdout).unwrap();
        let state = header.lines().find(|line| line.contains("state:")).unwrap();
        assert!(state.ends_with(" clean"), "{state}");
        assert!(!header.contains("needs_recovery"), "{header}");
        ok(Command::new("e2fsck").args(["-fn", &self.disk.device]));
    }
}

/// Unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn new(what: &Path, options: &[&str], place: PathBuf) -> Self {
        fs::create_dir_all(&place).unwrap();
        ok(Command::new("mount").args(options).arg(what).arg(&place));
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Fails, and is found by the checker, when anybody still has it.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

async fn run(node: &Node, id: &str, script: &str) -> String {
    let ended = exec(node, id, &["/bin/sh", "-c", script], 60).await;
    let ended = ended.unwrap();
    String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap()
}

#[tokio::test]
async fn containers_share_a_file_system_that_the_node_never_mounts() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let volume = Volume::new(&node, "data");
    let group = json!({ "fsGroup": 4000, "fsGroupChangePolicy": "OnRootMismatch" });
    volume.describe(&["noatime", "discard"], group);
    // A sub-path, as the kubelet prepares it.
    let inside = volume.directory.join("mount/a/b");
    fs::create_dir_all(&inside).unwrap();
    let place = "kubelet/pods/uid/volume-subpaths/data/two/0";
    let bound = Mounted::new(&inside, &["--bind"], node.path().join(place));
    let (pod_id, main) = {
        let pod = Pod::run(&node, "direct").await.unwrap();
        let main = with_mounts(
            "main",
            &image,
            "exec sleep 1000",
            &[volume.mount("/data", false)],
        );
        let main = pod.start(main).await.unwrap();
        let script = "stat -c '%a %g' /data; grep -o ' /data ext4 [a-z,]*' /proc/mounts; \
                      echo of main > /data/file; stat -c %g /data/file";
        assert_eq!(
            run(&node, &main, script).await,
            "2775 4000\n /data ext4 rw,nodev,noatime,discard\n4000\n"
        );
        let mounts = [
            volume.mount("/data", true),
            mount(&bound.0, "/below", false),
        ];
        let script = "cat /data/file; stat -c '%a %g' /below; echo below > /below/c; cat /data/a/b/c; \
                      echo x 2>/dev/null > /data/x || echo read only";
        let two = output(&node, &pod, with_mounts("two", &image, script, &mounts)).await;
        assert_eq!(two, "of main\n2775 4000\nbelow\nread only\n");
        // A container that makes its sub-path a link does not get out of the volume.
        let evil = "rm -r /data/a/b && ln -s /etc /data/a/b";
        assert_eq!(run(&node, &main, evil).await, "");
        let mounts = [mount(&bound.0, "/below", false)];
        let lured = with_mounts("lured", &image, "ls -A /below", &mounts);
        assert_eq!(output(&node, &pod, lured).await, "");
        (pod.id, main)
    };
    // Nothing of it is on the node, and nobody else gets the device.
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
    let taken = Command::new("mount")
        .args([&volume.disk.device, "/mnt"])
        .output();
    assert!(!taken.unwrap().status.success());
    node.kill_and_restart().await.unwrap();
    {
        let other = Pod::run(&node, "other").await.unwrap();
        let thief = with_mounts("thief", &image, "true", &[volume.mount("/data", false)]);
        let error = other.create(thief).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("is in use"), "{error}");
        other.remove().await.unwrap();
    }
    let pod = Pod::found(&node, "direct", &pod_id);
    let again = with_mounts(
        "again",
        &image,
        "cat /data/file",
        &[volume.mount("/data", false)],
    );
    assert_eq!(
        output(&node, &pod, again).await,
        "of main\n",
        "{}",
        node.log()
    );

    // What is mounted stays as it is, whatever the file says by now.
    let refusal = async || {
        let config = with_mounts("changed", &image, "true", &[volume.mount("/data", false)]);
        let error = pod.create(config).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        error.message().to_owned()
    };
    volume.describe(&["noatime", "discard"], json!({ "fsGroup": 4001 }));
    assert!(refusal().await.contains("mounted already"));
    volume.describe(&["ro"], json!({}));
    assert!(refusal().await.contains("not with the same access"));

    // It is full, and grows while it is used.
    let before = volume.ask(&node, "stats");
    let fill = "head -c 16m /dev/urandom > /data/big; md5sum < /data/big";
    let sum = run(&node, &main, fill).await;
    let full = volume.ask(&node, "stats");
    let bytes = |stats: &Value, key: &str| stats["bytes"][key].as_u64().unwrap();
    assert!(
        bytes(&full, "used") >= bytes(&before, "used") + 16 * MIB,
        "{before} {full}"
    );
    assert!(bytes(&full, "available") < 16 * MIB, "{full}");
    assert!(full["inodes"]["used"].as_u64() > before["inodes"]["used"].as_u64());
    assert_eq!(
        volume.ask(&node, "resize"),
        full,
        "its device has not grown"
    );
    let file = fs::File::options().write(true).open(&volume.disk.file);
    file.unwrap().set_len(3 * SIZE).unwrap();
    ok(Command::new("losetup").args(["--set-capacity", &volume.disk.device]));
    let grown = volume.ask(&node, "resize");
    assert!(bytes(&grown, "total") > 2 * SIZE, "{full} {grown}");
    assert!(bytes(&grown, "total") <= 3 * SIZE, "{grown}");
    let more = "head -c 40m /dev/zero > /data/more && md5sum < /data/big; echo last > /data/last";
    assert_eq!(run(&node, &main, more).await, sum);
    assert_eq!(run(&node, &main, "rm /data/big").await, "");

    // All that was written is there when the pod has ended, without a journal to replay.
    pod.remove().await.unwrap();
    volume.assert_clean();
    // The space of what was deleted has been given back.
    let held = fs::metadata(&volume.disk.file).unwrap().blocks() * 512;
    assert!((40 * MIB..52 * MIB).contains(&held), "{held}");
    {
        let place = node.path().join("seen");
        let seen = Mounted::new(Path::new(&volume.disk.device), &[], place);
        assert_eq!(fs::read(seen.0.join("last")).unwrap(), b"last\n");
        assert_eq!(fs::metadata(seen.0.join("more")).unwrap().len(), 40 * MIB);
        let found = fs::metadata(seen.0.join("file")).unwrap();
        assert_eq!((found.gid(), found.len()), (4000, 8));
    }
    drop((bound, volume));
    node.finish().unwrap();
}

#[tokio::test]
async fn a_volume_that_is_read_only_is_not_written_whatever_the_guest_does() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = Volume::new(&node, "data");
    volume.describe(&["ro"], json!({ "fsGroup": 4000 }));
    let before = fs::read(&volume.disk.file).unwrap();
    let pod = Pod::run(&node, "direct-ro").await.unwrap();
    let script = "ls -d /data/lost+found; echo x > /data/x || echo refused";
    let reader = with_mounts("reader", &image, script, &[volume.mount("/data", false)]);
    assert_eq!(
        output(&node, &pod, reader).await,
        "/data/lost+found\nrefused\n"
    );
    // One that has every device of the guest.
    let script = "echo x > /data/x || echo refused; \
                  mount -o remount,rw /data 2>/dev/null || echo refused; \
                  for d in /dev/vd*; do [ $(blockdev --getsize64 $d) = 33554432 ] && \
                  { dd if=/dev/zero of=$d bs=512 count=1 conv=fsync 2>/dev/null || echo refused; }; done; true";
    let mut root = with_mounts("root", &image, script, &[volume.mount("/data", false)]);
    root.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    let text = output(&node, &pod, root).await;
    assert_eq!(text, "refused\nrefused\nrefused\n");
    let cannot = node
        .cli()
        .args(["volumes", "resize"])
        .arg(&volume.directory)
        .output();
    let cannot = String::from_utf8(cannot.unwrap().stderr).unwrap();
    assert!(cannot.contains("read-only and cannot grow"), "{cannot}");
    pod.remove().await.unwrap();
    assert!(fs::read(&volume.disk.file).unwrap() == before);
    drop(volume);
    node.finish().unwrap();
}

#[tokio::test]
async fn a_pod_with_a_user_namespace_sees_the_numbers_on_the_disk() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = Volume::new(&node, "data");
    volume.describe(
        &[],
        json!({ "fsGroup": "4000", "fsGroupChangePolicy": "Always" }),
    );
    let map = v1::IdMapping {
        host_id: 1 << 20,
        container_id: 0,
        length: 65_536,
    };
    let options = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        userns_options: Some(v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: vec![map],
            gids: vec![map],
        }),
        ..Default::default()
    };
    let mut config = bulkhead_tests::pod::config(&node, "mapped");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options.clone()),
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let mut mount = volume.mount("/data", false);
    (mount.uid_mappings, mount.gid_mappings) = (vec![map], vec![map]);
    let script = "touch /data/new; chown 7 /data/new; stat -c '%u:%g %a' /data /data/new";
    let mut main = with_mounts("main", &image, script, &[mount]);
    main.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    assert_eq!(output(&node, &pod, main).await, "0:4000 2775\n7:4000 644\n");
    pod.remove().await.unwrap();
    volume.assert_clean();
    {
        let seen = Mounted::new(
            Path::new(&volume.disk.device),
            &[],
            node.path().join("seen"),
        );
        let found = fs::metadata(seen.0.join("new")).unwrap();
        assert_eq!((found.uid(), found.gid()), (7, 4000));
    }
    drop(volume);
    node.finish().unwrap();
}

#[tokio::test]
async fn daemons_and_vms_that_die_cost_no_data_that_is_safe() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let volume = Volume::new(&node, "data");
    volume.describe(&[], json!({}));
    let pod_id = {
        let pod = Pod::run(&node, "dies").await.unwrap();
        let main = with_mounts(
            "main",
            &image,
            "exec sleep 1000",
            &[volume.mount("/data", false)],
        );
        let main = pod.start(main).await.unwrap();
        // Nothing of it is written back for the next seconds.
        let write = "head -c 16m /dev/zero | tr '\\0' x > /data/big";
        assert_eq!(run(&node, &main, write).await, "");
        pod.id
    };
    let mut runtime = node.runtime();
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod_id.clone(),
    };
    let stopping = tokio::spawn(async move { runtime.stop_pod_sandbox(request).await });
    // Until the guest has something to do.
    let is_stopping = async || {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod_id.clone(),
            verbose: false,
        };
        let status = node.runtime().pod_sandbox_status(request).await.unwrap();
        let status = status.into_inner().status.unwrap();
        status.state() != v1::PodSandboxState::SandboxReady
    };
    while !is_stopping().await {
        tokio::task::yield_now().await;
    }
    node.kill_and_restart().await.unwrap();
    let _ = stopping.await.unwrap();
    Pod::found(&node, "dies", &pod_id).remove().await.unwrap();
    volume.assert_clean();
    {
        let place = node.path().join("seen");
        let seen = Mounted::new(Path::new(&volume.disk.device), &[], place);
        let big = fs::read(seen.0.join("big")).unwrap();
        assert!(big.len() == 16 << 20 && big.iter().all(|byte| *byte == b'x'));
    }
    // As after a power failure: what was synced is there for the next pod, and the device is free for it.
    let pod = Pod::run(&node, "killed").await.unwrap();
    let main = with_mounts(
        "main",
        &image,
        "exec sleep 1000",
        &[volume.mount("/data", false)],
    );
    let main = pod.start(main).await.unwrap();
    let write = "echo kept > /data/kept; sync; echo more > /data/more";
    assert_eq!(run(&node, &main, write).await, "");
    let pid = info(&node, &pod.id).await.unwrap()["vmmPid"].as_i64();
    let pid = rustix::process::Pid::from_raw(pid.unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    pod.remove().await.unwrap();
    let pod = Pod::run(&node, "next").await.unwrap();
    let next = with_mounts(
        "next",
        &image,
        "cat /data/kept",
        &[volume.mount("/data", false)],
    );
    assert_eq!(output(&node, &pod, next).await, "kept\n");
    pod.remove().await.unwrap();
    volume.assert_clean();
    drop(volume);
    node.finish().unwrap();
}

#[tokio::test]
async fn what_cannot_be_a_direct_volume_is_refused_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let volume = Volume::new(&node, "data");
    let pod = Pod::run(&node, "direct-bad").await.unwrap();
    let refusal = async || {
        let config = with_mounts("bad", &image, "true", &[volume.mount("/data", false)]);
        let error = pod.create(config).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        error.message().to_owned()
    };
    volume.write("{}");
    assert!(refusal().await.contains("missing field"));
    volume.describe(&["dax"], json!({}));
    assert!(refusal().await.contains("\"dax\" is not allowed"));
    volume.describe(&[], json!({}));
    chown(volume.file(), Some(1000), None).unwrap();
    assert!(refusal().await.contains("belongs to user 1000"));
    chown(volume.file(), Some(0), None).unwrap();
    {
        let place = node.path().join("taken");
        let _taken = Mounted::new(Path::new(&volume.disk.device), &[], place);
        assert!(refusal().await.contains("is in use"));
    }
    let nobody = node
        .cli()
        .args(["volumes", "stats"])
        .arg(&volume.directory)
        .output();
    let nobody = String::from_utf8(nobody.unwrap().stderr).unwrap();
    assert!(
        nobody.contains("There is no pod with the direct volume"),
        "{nobody}"
    );
    // No file system.
    fs::write(&volume.disk.file, vec![7; SIZE as usize]).unwrap();
    let text = refusal().await;
    assert!(
        text.contains("Cannot mount the volume on disk rw1 as ext4"),
        "{text}"
    );
    pod.remove().await.unwrap();
    drop(volume);
    node.finish().unwrap();
}
