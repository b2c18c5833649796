use crate::support::{Container, code, process, run, stream_id};
use bulkhead_agent_api::agent::{PidNamespace, Stdio};
use serde_json::json;
use std::fs;
use ttrpc::Code;

fn in_pod(script: &str) -> Container {
    let mut container = Container::shell(script);
    container.request.pid_namespace = PidNamespace::POD_PID.into();
    container
}

#[test]
fn containers_of_a_pod_share_a_pid_namespace_whose_first_process_reaps() {
    run(|pod| async move {
        let first = in_pod("while :; do sleep 1; done");
        pod.create(&first).await.unwrap();
        pod.start(&first.id).await.unwrap();
        // It sees the other container; its orphan is adopted by the first process and leaves no
        // zombie; the first process shows nothing of the guest and cannot be killed from here.
        let script = "cat /proc/1/comm; sh -c 'sleep 0.2 & echo $!' > /tmp/orphan; test $$ -ne 1; echo $?; \
            ps -o args | grep -q '[w]hile :' && echo sees; while kill -0 $(cat /tmp/orphan) 2>/dev/null; do :; done; \
            kill -9 1; kill -TERM 1; ls /proc/1/root 2>/dev/null | wc -l; cat /proc/1/comm; ps -o stat | grep -c Z";
        let (text, _) = pod.run(in_pod(script)).await;
        assert_eq!(text, "pause\n0\nsees\n0\npause\n0\n");
        // The namespace outlives its containers.
        pod.remove(&first.id).await.unwrap();
        assert_eq!(pod.succeed(in_pod("cat /proc/1/comm")).await, "pause\n");
    });
}

#[test]
fn a_container_can_be_in_the_pid_namespace_of_another() {
    run(|pod| async move {
        let target = Container::sleeper();
        pod.create(&target).await.unwrap();
        pod.start(&target.id).await.unwrap();
        let mut debug = Container::shell("cat /proc/1/comm; test $$ -ne 1; echo $?");
        debug.request.pid_namespace = PidNamespace::TARGET_PID.into();
        debug.request.pid_target.clone_from(&target.id);
        assert_eq!(pod.succeed(debug.clone()).await, "sh\n0\n");
        pod.kill(&target.id, libc::SIGKILL, true).await.unwrap();
        pod.exit(&target.id, "").await;
        assert_eq!(code(pod.create(&debug).await).0, Code::FAILED_PRECONDITION);
        pod.remove(&target.id).await.unwrap();
        assert_eq!(code(pod.create(&debug).await).0, Code::NOT_FOUND);
    });
}

#[test]
fn a_user_namespace_has_the_mappings_of_the_spec() {
    run(|pod| async move {
        let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; stat -c '%u:%g %n' / /data/secret /dev/null /tmp /new; \
            touch /data/mine; chown 7:8 /data/mine; stat -c %u:%g /data/mine; echo x >> /data/secret; \
            stat -c %u:%g /data/secret; echo again > /dev/stdout; pwd; mkdir /m; mount -t tmpfs t /m && echo mounted";
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_SYS_ADMIN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER"
        ]);
        let container = Container::shell(script)
            .in_user_namespace()
            .with("/process/cwd", json!("/new"))
            .with("/process/capabilities", json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}));
        let text = pod.succeed(container).await;
        let map = " 0 100000 65536\n";
        let expected = format!(
            "{map}{map}0\n0:0 /\n0:0 /data/secret\n0:0 /dev/null\n0:0 /tmp\n0:0 /new\n7:8\n0:0\nagain\n/new\nmounted\n"
        );
        assert_eq!(text, expected);
    });
}

#[test]
fn root_of_a_user_namespace_is_nobody_in_the_guest() {
    run(|pod| async move {
        let mut container =
            Container::shell("echo up; while :; do sleep 1; done").in_user_namespace();
        container.stdio.stdout = stream_id();
        let pid = pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(
            status.contains("Uid:\t100000\t100000\t100000\t100000"),
            "{status}"
        );
        assert!(
            status.contains("Gid:\t100000\t100000\t100000\t100000"),
            "{status}"
        );
        // An exec is in the same namespace, and so are other containers with the same mappings.
        let mut stdio = Stdio::new();
        stdio.stdout = stream_id();
        let show = "readlink /proc/self/ns/user; id -u; grep CapEff /proc/self/status | cut -f2";
        pod.exec(
            &container.id,
            "e",
            process(&["sh", "-c", show]),
            stdio.clone(),
        )
        .await
        .unwrap();
        let of_exec = pod.read(stdio.stdout).await;
        let link = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert!(
            of_exec.starts_with(&format!("{}\n0\n", link.display())),
            "{of_exec}"
        );
        let other = pod
            .succeed(Container::shell(show).in_user_namespace())
            .await;
        assert_eq!(other, of_exec);
        let user = Container::shell("id -u; id -g").in_user_namespace();
        let user = user.with("/process/user", json!({"uid": 1000, "gid": 1001}));
        assert_eq!(pod.succeed(user).await, "1000\n1001\n");
        let nobody = Container::shell("true").in_user_namespace();
        let nobody = nobody.with("/process/user", json!({"uid": 70_000, "gid": 0}));
        assert!(pod.create(&nobody).await.is_err());
        pod.remove(&container.id).await.unwrap();
    });
}

#[test]
fn a_volume_can_be_mapped_for_a_user_namespace() {
    run(|pod| async move {
        let volume = pod.world.base.join("mapped");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("file"), "").unwrap();
        let source = volume.to_str().unwrap();
        let container = Container::shell("stat -c %u:%g /v/file /w/file; touch /v/made; touch /w/made 2>/dev/null; echo $?")
            .in_user_namespace()
            .mount(json!({"destination": "/v", "type": "bind", "source": source, "options": ["bind", "ridmap"]}))
            .mount(json!({"destination": "/w", "type": "bind", "source": source, "options": ["bind", "ro"]}));
        assert_eq!(pod.succeed(container).await, "0:0\n65534:65534\n1\n");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 0);
    });
}
