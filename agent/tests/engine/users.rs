use crate::support::{Container, process, run, stream_id};
use bulkhead_agent_api::agent::ExecRequest;
use serde_json::json;
use ttrpc::context;

#[test]
fn strict_groups_leave_the_images_groups_out() {
    run(|pod| async move {
        for (strict, groups) in [(false, "34 50 1234\n"), (true, "34 1234\n")] {
            let mut container = Container::shell("id -G").with(
                "/process/user",
                json!({"uid": 0, "gid": 0, "additionalGids": [1234]}),
            );
            container.user = "web".to_owned();
            container.request.strict_groups = strict;
            assert_eq!(pod.succeed(container).await, groups);
        }
        let container = Container::sleeper();
        pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        let mut request = ExecRequest::new();
        request.container_id.clone_from(&container.id);
        request.exec_id = "e".to_owned();
        request.user = "web".to_owned();
        request.strict_groups = true;
        request.process = process(&["id", "-G"]).to_string().into_bytes();
        request.stdio.mut_or_insert_default().stdout = stream_id();
        pod.client
            .exec(context::with_timeout(0), &request)
            .await
            .unwrap();
        assert_eq!(pod.read(request.stdio.stdout).await, "34\n");
        pod.remove(&container.id).await.unwrap();
    });
}

#[test]
fn a_privileged_container_has_the_guests_devices() {
    run(|pod| async move {
        let mut container =
            Container::shell("ls /dev; stat -c %t:%T /dev/kmsg; test -b /dev/pts; echo $?");
        container.request.guest_devices = true;
        let text = pod.succeed(container).await;
        assert!(
            text.contains("\nkmsg\n") && text.ends_with("\n1:b\n1\n"),
            "{text}"
        );
        assert!(!pod.script("ls /dev").await.contains("kmsg"));
    });
}
