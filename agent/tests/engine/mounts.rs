use crate::support::{Container, code, run};
use serde_json::json;
use std::fs;
use std::path::Path;
use ttrpc::Code;

fn mount_on(path: &Path) {
    fs::create_dir_all(path).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, None).unwrap();
}

#[test]
fn read_only_can_be_recursive() {
    run(|pod| async move {
        let outer = pod.world.base.join("recursive");
        mount_on(&outer.join("inner"));
        let bind = |target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": outer, "options": options});
        let container = Container::shell(
            "for i in /a /a/inner /b /b/inner; do touch $i/x 2>/dev/null; echo $?; done; grep -c ' /b/inner .*nosuid' /proc/self/mountinfo",
        )
        .mount(bind("/a", &["rbind", "ro"]))
        .mount(bind("/b", &["rbind", "rro", "rnosuid"]));
        assert_eq!(pod.succeed(container).await, "1\n0\n1\n1\n1\n");
        rustix::mount::unmount(outer.join("inner"), rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn propagation_goes_as_far_as_it_is_asked() {
    run(|pod| async move {
        use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
        let volume = pod.world.base.join("shared-volume");
        mount_on(&volume);
        mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
        let mut containers = Vec::new();
        for (name, option) in [("private", ""), ("slave", "rslave"), ("shared", "rshared")] {
            fs::create_dir_all(volume.join(name)).unwrap();
            fs::create_dir_all(volume.join("host")).unwrap();
            let script = format!(
                "mount -t tmpfs t /v/{name}; while [ ! -e /v/host/go ] && [ ! -e /v/go ]; do sleep 0.1; done; test -e /v/host/go; echo $?"
            );
            let capabilities = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
            let mut options = vec!["rbind"];
            options.extend(Some(option).filter(|option| !option.is_empty()));
            let mut container = Container::shell(&script)
                .with("/process/capabilities", json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}))
                .mount(json!({"destination": "/v", "type": "bind", "source": volume, "options": options}));
            container.stdio.stdout = crate::support::stream_id();
            pod.create(&container).await.unwrap();
            containers.push((container, name));
        }
        for (container, _) in &containers {
            pod.start(&container.id).await.unwrap();
        }
        // What the container with a shared mount has mounted arrives here; the others' does not.
        let mounted = |name: &str| {
            let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
            text.contains(&format!("shared-volume/{name} "))
        };
        while !mounted("shared") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        mount_on(&volume.join("host"));
        fs::write(volume.join("host/go"), "").unwrap();
        fs::write(volume.join("go"), "").unwrap();
        for (container, name) in &containers {
            assert_eq!(pod.exit(&container.id, "").await.code, 0);
            let sees = if *name == "private" { "1\n" } else { "0\n" };
            assert_eq!(pod.read(container.stdio.stdout).await, sees, "{name}");
            pod.remove(&container.id).await.unwrap();
        }
        assert!(!mounted("private") && !mounted("slave"));
        unmount(&volume, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_tmpfs_can_begin_with_what_the_image_has() {
    run(|pod| async move {
        let container = Container::shell("ls /data; cat /data/secret; touch /data/inside/x; stat -c %a /data; readlink /data/link; df /data | tail -1 | cut -d' ' -f1")
            .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m", "mode=750"]}));
        let image = pod.world.base.join("images/busybox/data/link");
        let _ = std::os::unix::fs::symlink("/etc/shadow", &image);
        let text = pod.succeed(container).await;
        assert_eq!(
            text,
            "inside\nlink\nno-interpreter\nnot-executable\nsecret\nsecret\n750\n/etc/shadow\ntmpfs\n"
        );
        fs::remove_file(image).unwrap();
    });
}

#[test]
fn options_of_mounts_and_file_systems_are_kept() {
    run(|pod| async move {
        let tmpfs = |target: &str, options: &[&str]| json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options});
        let container = Container::shell("for i in a b c; do grep \" /$i \" /proc/self/mountinfo | cut -d' ' -f6; done; grep -c ' /b .*sync.*lazytime\\| /b .*lazytime.*sync' /proc/self/mountinfo; ls -l /c/link; cat /c/link")
            .mount(tmpfs("/a", &["nosuid", "nodev", "noexec", "noatime", "nodiratime", "ro"]))
            .mount(tmpfs("/b", &["sync", "lazytime", "strictatime"]))
            .mount(tmpfs("/c", &["nosymfollow", "relatime"]));
        let text = pod.run(container).await.0;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0], "ro,nosuid,nodev,noexec,noatime,nodiratime",
            "{text}"
        );
        assert_eq!(lines[1], "rw", "{text}");
        assert_eq!(lines[2], "rw,relatime,nosymfollow", "{text}");
        assert_eq!(lines[3], "1", "{text}");
    });
}

#[test]
fn a_part_of_an_image_is_a_read_only_volume() {
    run(|pod| async move {
        let image = pod.world.base.join("images/volume");
        fs::create_dir_all(image.join("models/small")).unwrap();
        fs::write(image.join("models/small/weights"), "1 2 3\n").unwrap();
        for (target, link) in [
            ("../../../../etc", "up"),
            ("/etc", "absolute"),
            ("/models", "inside"),
        ] {
            let _ = std::os::unix::fs::symlink(target, image.join(link));
        }
        let volume = |sub_path: &str| {
            let option = format!("subpath={sub_path}");
            let mut options = vec!["ro", "noexec"];
            options.extend(Some(option.as_str()).filter(|_| !sub_path.is_empty()));
            json!({"destination": "/volume", "type": "image", "source": "volume", "options": options})
        };
        let script = "ls /volume; touch /volume/x 2>/dev/null; echo $?; umount /volume 2>/dev/null; mount -o remount,rw /volume 2>/dev/null; touch /volume/x 2>/dev/null; echo $?";
        for (sub_path, content) in [
            ("", "absolute\ninside\nmodels\nup\n"),
            ("models", "small\n"),
            ("inside/small", "weights\n"),
            ("models/small/weights", "/volume\n"),
        ] {
            let text = pod
                .succeed(Container::shell(script).mount(volume(sub_path)))
                .await;
            assert_eq!(text, format!("{content}1\n1\n"), "{sub_path}");
        }
        // Links lead nowhere outside the image, which has no /etc.
        for sub_path in ["up", "absolute", "no/such"] {
            let container = Container::shell(script).mount(volume(sub_path));
            let (kind, message) = code(pod.create(&container).await);
            assert_eq!(kind, Code::NOT_FOUND, "{message}");
        }
        let container = Container::shell(script).mount(volume("../x"));
        assert_eq!(code(pod.create(&container).await).0, Code::INVALID_ARGUMENT);
    });
}
