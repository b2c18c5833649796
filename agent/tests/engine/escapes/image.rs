//! Hostile images: links, devices and files in the places that a runtime touches.

use super::{clear, image, of};
use crate::support::{Container, code, run};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use ttrpc::Code;

fn without(mut container: Container, targets: &[&str]) -> Container {
    let mounts = container.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !targets.iter().any(|target| mount["destination"] == *target));
    container
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: with `/proc` a link the paths to mask were
/// looked for elsewhere.
#[test]
fn a_proc_that_is_a_link_hides_nothing_from_masking() {
    run(|pod| async move {
        for (name, target) in [
            ("link-rel", "data/proc"),
            ("link-up", "../../../../../data/proc"),
            ("link-abs", "/data/proc"),
        ] {
            let root = image(&pod, name);
            clear(&root.join("proc"));
            symlink(target, root.join("proc")).unwrap();
            clear(&root.join("sys"));
            symlink("/data/sys", root.join("sys")).unwrap();
            fs::create_dir_all(root.join("data/sys")).unwrap();
            let script = "wc -c < /data/proc/keys; echo 1 > /data/proc/sys/vm/swappiness; ls /sys/firmware; echo end";
            let text = pod.succeed(of(name, script)).await;
            assert!(text.starts_with("0\nend\n"), "{text}");
            assert!(text.contains("Read-only file system"), "{text}");
        }
    });
}

/// Without a /dev of its own a container has the image's, which the runtime must not trust
/// (CVE-2025-31133: /dev/null was what covers masked files).
#[test]
fn device_nodes_of_the_image_are_not_taken_for_what_they_are_called() {
    run(|pod| async move {
        let bare = ["/dev", "/dev/pts", "/dev/mqueue", "/dev/shm"];
        for (name, what) in [
            ("null-link", "link"),
            ("null-file", "file"),
            ("null-other", "device"),
        ] {
            let root = image(&pod, name);
            let null = root.join("dev/null");
            match what {
                "link" => symlink("/data/secret", &null).unwrap(),
                "file" => fs::write(&null, "not the null device").unwrap(),
                _ => mknodat(
                    CWD,
                    &null,
                    FileType::CharacterDevice,
                    Mode::from_raw_mode(0o666),
                    makedev(1, 5),
                )
                .unwrap(),
            }
            let container = without(of(name, "true"), &bare);
            let (code, message) = code(pod.create(&container).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(message.contains("/dev/null"), "{message}");
        }
        // With one of its own nothing of the image's is there, and masks are the null device.
        let script = "stat -c %t:%T /dev/null /proc/keys; cat /proc/keys";
        assert_eq!(pod.succeed(of("null-link", script)).await, "1:3\n1:3\n");
    });
}

/// CVE-2025-52565: the terminal was bound over what /dev/console led to.
#[test]
fn a_console_that_is_a_link_leads_nowhere_outside() {
    run(|pod| async move {
        for (name, target) in [
            ("console-up", "../../../../../../etc/hostname"),
            ("console-proc", "/proc/self/root/etc/hostname"),
            ("console-sysrq", "/proc/sysrq-trigger"),
        ] {
            let root = image(&pod, name);
            symlink(target, root.join("dev/console")).unwrap();
            let before = fs::read("/etc/hostname").unwrap();
            let mut container = without(
                of(
                    name,
                    "echo $?; echo x > /proc/sysrq-trigger || echo refused",
                ),
                &["/dev"],
            );
            container.spec["process"]["terminal"] = json!(true);
            container.spec["linux"]["readonlyPaths"] = json!(["/proc/sysrq-trigger"]);
            container.stdio.terminal = true;
            match pod.create(&container).await {
                // A link with magic in it is refused.
                Err(error) => assert!(error.to_string().contains("/dev/console"), "{error}"),
                Ok(_) => {
                    pod.remove(&container.id).await.unwrap();
                    container.id.push_str("-again");
                    let (text, exit) = pod.run(container).await;
                    assert_eq!(exit.code, 0, "{text}");
                }
            }
            assert_eq!(fs::read("/etc/hostname").unwrap(), before);
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(" /etc/hostname "), "{mounts}");
        }
    });
}

/// Targets of mounts are resolved inside the root, without the links of procfs that are none.
#[test]
fn mount_targets_lead_nowhere_outside() {
    run(|pod| async move {
        let outside = pod.world.base.join("outside");
        fs::create_dir_all(&outside).unwrap();
        let root = image(&pod, "targets");
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../../../../dev/shm", root.join("relative")).unwrap();
        symlink("relative/../..", root.join("chain")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("/proc/self/fd/3", root.join("descriptor")).unwrap();
        let agents: Vec<String> = names(Path::new("/dev/shm"));
        for (target, refused) in [
            ("/absolute/made", false),
            ("/relative/made", false),
            ("/chain/made", false),
            ("/magic/made", true),
            ("/descriptor/made", true),
            ("/proc/1/root/made", true),
            ("/proc/self/cwd/made", true),
        ] {
            let tmpfs = json!({"destination": target, "type": "tmpfs", "source": "marked"});
            let container = of("targets", "grep -c ' marked ' /proc/self/mountinfo").mount(tmpfs);
            if refused {
                let (code, message) = code(pod.create(&container).await);
                assert_eq!(code, Code::INVALID_ARGUMENT, "{target}: {message}");
            } else {
                assert_eq!(pod.succeed(container).await, "1\n", "{target}");
            }
        }
        assert!(names(&outside).is_empty());
        assert_eq!(names(Path::new("/dev/shm")), agents);
        assert!(!Path::new("/made").exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("marked"), "{mounts}");
    });
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// CVE-2024-21626 and others: a working directory by a descriptor of the runtime.
#[test]
fn a_working_directory_is_never_outside() {
    run(|pod| async move {
        let root = image(&pod, "cwd");
        for number in 3..12 {
            symlink(
                format!("/proc/self/fd/{number}"),
                root.join(format!("fd{number}")),
            )
            .unwrap();
            let container = of("cwd", "pwd").with("/process/cwd", json!(format!("/fd{number}")));
            let (code, message) = code(pod.create(&container).await);
            let refused = matches!(code, Code::INVALID_ARGUMENT | Code::NOT_FOUND);
            assert!(refused, "{code:?} {message}");
        }
        symlink("../../../..", root.join("up")).unwrap();
        let container = of("cwd", "pwd; ls -d data").with("/process/cwd", json!("/up"));
        assert_eq!(pod.succeed(container).await, "/\ndata\n");
    });
}

/// What is read of the image is a file of bounded size, or it is not read.
#[test]
fn users_come_from_plain_files_only() {
    run(|pod| async move {
        for (name, file) in [
            ("fifo", "etc/passwd"),
            ("directory", "etc/group"),
            ("large", "etc/passwd"),
            ("device", "etc/group"),
        ] {
            let root = image(&pod, &format!("user-{name}"));
            let path = root.join(file);
            clear(&path);
            match name {
                "fifo" => {
                    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap()
                }
                "directory" => fs::create_dir(&path).unwrap(),
                "large" => fs::write(&path, vec![b'\n'; 2 << 20]).unwrap(),
                _ => mknodat(
                    CWD,
                    &path,
                    FileType::CharacterDevice,
                    Mode::from_raw_mode(0o666),
                    makedev(1, 5),
                )
                .unwrap(),
            }
            let mut container = of(&format!("user-{name}"), "true");
            container.user = "0".to_owned();
            if file == "etc/group" {
                container.user = "web".to_owned();
            }
            let (code, message) = code(pod.create(&container).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{name}: {message}");
            assert!(message.contains(file), "{name}: {message}");
        }
        // One that leads outside leads to the same path inside.
        let root = image(&pod, "user-link");
        clear(&root.join("etc/passwd"));
        symlink(
            "../../../../../../../../etc/shadow",
            root.join("etc/passwd"),
        )
        .unwrap();
        fs::write(root.join("etc/shadow"), "me:x:77:78::/data:/bin/sh\n").unwrap();
        let mut container = of("user-link", "id -u; echo $HOME");
        container.user = "me".to_owned();
        assert_eq!(pod.succeed(container).await, "77\n/data\n");
    });
}

/// Marks of overlayfs in the image are marks of nobody: what they name is not fetched.
#[test]
fn marks_of_overlayfs_in_the_image_fetch_nothing() {
    run(|pod| async move {
        let root = image(&pod, "marks");
        let set = |path: &str, name: &str, value: &[u8]| {
            rustix::fs::setxattr(
                root.join(path),
                format!("trusted.overlay.{name}"),
                value,
                XattrFlags::empty(),
            )
            .unwrap();
        };
        fs::create_dir_all(root.join("data/opaque")).unwrap();
        fs::write(root.join("data/opaque/kept"), "").unwrap();
        set("data/opaque", "opaque", b"y");
        fs::create_dir_all(root.join("data/redirected")).unwrap();
        set("data/redirected", "redirect", b"/etc");
        fs::create_dir_all(root.join("data/up")).unwrap();
        set("data/up", "redirect", b"../../../../etc");
        mknodat(
            CWD,
            root.join("data/whiteout"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(0, 0),
        )
        .unwrap();
        fs::write(root.join("data/.wh.secret"), "").unwrap();
        let script = "cd /data; ls opaque; ls redirected; ls up 2>&1 | grep -c passwd; cat whiteout 2>/dev/null; cat secret; mv redirected elsewhere 2>/dev/null; ls elsewhere 2>/dev/null; echo end";
        assert_eq!(
            pod.succeed(of("marks", script)).await,
            "kept\n0\nsecret\nend\n"
        );
    });
}

/// CVE-2019-5736: the container's program is the runtime's own, reached through /proc/self/exe. It
/// runs as any program of the container would, and cannot be written to.
#[test]
fn the_agents_program_cannot_be_written_through_proc() {
    run(|pod| async move {
        let root = image(&pod, "self");
        fs::write(root.join("bin/shebang"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(
            root.join("bin/shebang"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        symlink("/proc/self/exe", root.join("bin/bulkhead-init")).unwrap();
        let program = env!("CARGO_BIN_EXE_bulkhead-agent");
        let before = fs::metadata(program).unwrap().modified().unwrap();
        let holder = Container::sleeper();
        pod.create(&holder).await.unwrap();
        pod.start(&holder.id).await.unwrap();
        for args in [["/proc/self/exe"], ["/bin/shebang"], ["bulkhead-init"]] {
            let mut container = Container::new(&args);
            container.image = "self".to_owned();
            // Where it needs libraries that the image has not, it does not even start.
            let (text, exit) = pod.run(container).await;
            assert_ne!(exit.code, 0, "{args:?} {text}");
        }
        pod.remove(&holder.id).await.unwrap();
        assert_eq!(fs::metadata(program).unwrap().modified().unwrap(), before);
        // The engine goes on.
        assert_eq!(pod.script("echo well").await, "well\n");
    });
}
