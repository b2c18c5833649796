use crate::support::{Container, code, run};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn hooks_of_the_guest_and_of_the_image_run_and_know_the_state() {
    run(|pod| async move {
        // The one runs in the guest's root before the container's is entered, the other in the container.
        let out = pod.world.base.join("hook-out");
        let script = pod.world.base.join("hook.sh");
        fs::write(
            &script,
            format!(
                "#!/bin/sh\ncat > {}\necho \"$0 $1 $WORD\" >> {0}\n",
                out.display()
            ),
        )
        .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let hooks = json!({
            "createContainer": [{"path": script, "args": ["named", "one"], "env": ["WORD=w", "PATH=/usr/bin:/bin"], "timeout": 60}],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /state; pwd >> /state"], "env": ["PATH=/bin"]}],
        });
        let container = Container::shell("cat /state")
            .with("/hooks", hooks)
            .with("/annotations", json!({"who": "asks"}));
        let id = container.id.clone();
        let text = pod.succeed(container).await;
        assert!(
            text.contains(&format!("\"id\":\"{id}\"")) && text.contains("\"status\":\"created\""),
            "{text}"
        );
        assert!(text.contains("\"who\":\"asks\""), "{text}");
        let text = fs::read_to_string(out).unwrap();
        assert!(
            text.contains("\"status\":\"creating\"") && text.contains("\"ociVersion\":\"1.2.0\""),
            "{text}"
        );
        assert!(text.ends_with("one w\n"), "{text}");
    });
}

#[test]
fn a_hook_that_fails_or_hangs_ends_the_container() {
    run(|pod| async move {
        for (hook, message) in [
            (json!({"path": "/bin/false"}), "/bin/false"),
            (json!({"path": "/no/such/hook"}), "/no/such/hook"),
            (
                json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}),
                "within 1 second",
            ),
        ] {
            let container =
                Container::shell("true").with("/hooks", json!({"createContainer": [hook]}));
            let (_, text) = code(pod.create(&container).await);
            assert!(text.contains(message), "{text}");
            let container =
                Container::shell("true").with("/hooks", json!({"startContainer": [hook]}));
            pod.create(&container).await.unwrap();
            let (_, text) = code(pod.start(&container.id).await);
            assert!(text.contains(message), "{text}");
            assert_eq!(pod.exit(&container.id, "").await.code, 128);
            pod.remove(&container.id).await.unwrap();
        }
    });
}
