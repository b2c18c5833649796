use crate::support::{Container, run};
use serde_json::json;
use std::fs;

#[test]
fn a_container_sees_its_own_processes_names_and_devices() {
    run(|pod| async move {
        let text = pod
            .script("hostname; echo $$; cat /proc/self/cgroup; ls /proc/self/fd; ls /dev; cat /proc/self/comm")
            .await;
        let expected = "box\n1\n0::/\n0\n1\n2\n3\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nstderr\nstdin\nstdout\ntty\nurandom\nzero\ncat\n";
        assert_eq!(text, expected);
    });
}

#[test]
fn the_old_root_is_gone_and_only_the_specs_mounts_are_there() {
    run(|pod| async move {
        let text = pod
            .script("cut -d' ' -f5 /proc/self/mountinfo | sort -u")
            .await;
        for line in text.lines() {
            let known = ["/", "/dev", "/proc", "/sys"].contains(&line)
                || ["/dev/", "/proc/", "/sys/"]
                    .iter()
                    .any(|prefix| line.starts_with(prefix));
            assert!(known, "{line}\n{text}");
        }
        let text = pod.script("ls /; ls /../..").await;
        assert!(!text.contains("usr/") && text.contains("srv"), "{text}");
    });
}

#[test]
fn masked_paths_show_nothing_and_readonly_paths_do_not_change() {
    run(|pod| async move {
        let container = Container::shell(
            "cat /data/secret; ls /data/inside; ls /srv; touch /srv/x 2>/dev/null; echo $?; touch /tmp/x; echo $?; \
             echo 1 > /proc/sys/vm/swappiness; echo $?; wc -c < /proc/keys",
        )
        .with("/linux/maskedPaths", json!(["/data/secret", "/proc/keys", "/data/inside"]))
        .with("/linux/readonlyPaths", json!(["/proc/sys", "/srv"]));
        let text = pod.succeed(container).await;
        assert!(!text.contains("secret"), "{text}");
        assert!(text.starts_with("web\n1\n0\n"), "{text}");
        assert!(text.contains("1\n0\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
    });
}

#[test]
fn a_readonly_root_takes_no_writes_but_its_mounts_do() {
    run(|pod| async move {
        let container = Container::shell("touch /x 2>/dev/null; echo $?; touch /scratch/x; echo $?; df /scratch | tail -1 | tr -s ' ' | cut -d' ' -f2")
            .with("/root/readonly", json!(true))
            .mount(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1777"]}));
        assert_eq!(pod.succeed(container).await, "1\n0\n64\n");
    });
}

#[test]
fn the_image_is_not_changed() {
    run(|pod| async move {
        pod.script("rm /data/secret; echo x > /data/new; mkdir /etc/more; ls /data")
            .await;
        let image = pod.world.base.join("images/busybox");
        assert_eq!(
            fs::read_to_string(image.join("data/secret")).unwrap(),
            "secret\n"
        );
        assert!(!image.join("data/new").exists() && !image.join("etc/more").exists());
    });
}

#[test]
fn binds_have_their_options_and_do_not_follow_links_of_the_image_outside() {
    run(|pod| async move {
        let volume = pod.world.base.join("volume");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("file"), "shared\n").unwrap();
        let bind = |target: &str, source: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
        let source = volume.to_str().unwrap();
        let file = volume.join("file");
        let container = Container::shell(
            "cat /v/file; touch /v/x 2>/dev/null; echo $?; touch /w/made; echo $?; cat /etc/hosts; cat /escape/v/file; \
             readlink /escape; ls /dev/shm",
        )
        .mount(bind("/v", source, &["rbind", "ro", "nosuid", "nodev"]))
        .mount(bind("/w", source, &["bind", "rw", "rprivate"]))
        .mount(bind("/etc/hosts", file.to_str().unwrap(), &["bind", "ro"]))
        // In the image this is a link to a directory of the host, and to one of the container.
        .mount(json!({"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs"}))
        .mount(bind("/escape/v", source, &["rbind"]));
        let text = pod.succeed(container).await;
        assert!(text.starts_with("shared\n1\n0\nshared\nshared\n"), "{text}");
        assert!(text.ends_with("\nv\n"), "{text}");
        assert!(volume.join("made").exists() && !volume.join("x").exists());
        assert!(!std::path::Path::new("/dev/shm/v").exists());
    });
}

#[test]
fn devices_and_joined_namespaces() {
    run(|pod| async move {
        let device = json!([{"path": "/dev/again", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600, "uid": 3, "gid": 4}]);
        let container =
            Container::shell("stat -c '%t:%T %a %u:%g' /dev/again").with("/linux/devices", device);
        assert_eq!(pod.succeed(container).await, "1:5 600 3:4\n");
        // Namespaces that are not listed are the pod's.
        let container = Container::shell("for i in uts ipc net; do readlink /proc/self/ns/$i; done")
            .with("/linux/namespaces", json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "/proc/self/ns/ipc"}]));
        let ours: String = ["uts", "ipc", "net"]
            .iter()
            .map(|name| {
                format!(
                    "{}\n",
                    fs::read_link(format!("/proc/self/ns/{name}"))
                        .unwrap()
                        .display()
                )
            })
            .collect();
        assert_eq!(pod.succeed(container).await, ours);
    });
}

#[test]
fn containers_can_share_a_pid_namespace() {
    run(|pod| async move {
        let first = Container::sleeper();
        let pid = pod.create(&first).await.unwrap();
        pod.start(&first.id).await.unwrap();
        let namespaces =
            json!([{"type": "pid", "path": format!("/proc/{pid}/ns/pid")}, {"type": "mount"}]);
        let second =
            Container::shell("cat /proc/1/comm; test $$ -ne 1; echo $?; sleep 1000 & echo left")
                .with("/linux/namespaces", namespaces);
        // What the second leaves behind ends with it although its pid namespace goes on.
        assert_eq!(pod.succeed(second).await, "sh\n0\nleft\n");
        pod.remove(&first.id).await.unwrap();
    });
}
