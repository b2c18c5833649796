use crate::support::{Container, code, run};
use serde_json::json;
use ttrpc::Code;

#[test]
fn a_user_name_is_resolved_in_the_image() {
    run(|pod| async move {
        let mut container =
            Container::shell("id -u; id -g; id -G; echo $HOME; echo again > /dev/stdout; umask");
        container.user = "web".to_owned();
        let container = container.with(
            "/process/user",
            json!({"uid": 0, "gid": 0, "additionalGids": [1234], "umask": 0o077}),
        );
        assert_eq!(
            pod.succeed(container).await,
            "33\n34\n34 50 1234\n/srv/web\nagain\n0077\n"
        );
    });
}

#[test]
fn a_numeric_user_is_taken_as_it_is() {
    run(|pod| async move {
        let container = Container::shell("id -u; id -g; id -G; echo $HOME");
        let container = container.with(
            "/process/user",
            json!({"uid": 4242, "gid": 4343, "additionalGids": [7]}),
        );
        assert_eq!(pod.succeed(container).await, "4242\n4343\n4343 7\n/\n");
    });
}

#[test]
fn capabilities_and_privileges_are_what_the_spec_says() {
    run(|pod| async move {
        let status =
            "grep -E '^(Cap|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status | tr -s '\\t' ' '";
        let text = pod.script(status).await;
        let set = format!(
            "{:016x}",
            1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 1
        );
        let empty = format!("{:016x}", 0);
        assert!(text.contains(&format!("CapEff: {set}")), "{text}");
        assert!(text.contains(&format!("CapBnd: {set}")), "{text}");
        assert!(text.contains(&format!("CapInh: {empty}")), "{text}");
        assert!(text.contains(&format!("CapAmb: {empty}")), "{text}");
        assert!(text.contains("NoNewPrivs: 0"), "{text}");
        assert!(text.contains(&format!("SigBlk: {empty}")), "{text}");
        assert!(text.contains(&format!("SigIgn: {empty}")), "{text}");
        let ambient = json!({
            "bounding": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_RAW"],
            "effective": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"]
        });
        let container = Container::shell(status)
            .with("/process/capabilities", ambient)
            .with("/process/noNewPrivileges", json!(true))
            .with("/process/user", json!({"uid": 1000, "gid": 1000}));
        let text = pod.succeed(container).await;
        let raw = format!("{:016x}", 1 << 13);
        for name in ["Prm", "Eff", "Inh", "Amb", "Bnd"] {
            assert!(
                text.contains(&format!("Cap{name}: {raw}")),
                "{name}: {text}"
            );
        }
        assert!(text.contains("NoNewPrivs: 1"), "{text}");
    });
}

#[test]
fn limits_and_oom_score_are_set() {
    run(|pod| async move {
        let container = Container::shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj")
            .with(
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
            )
            .with("/process/oomScoreAdj", json!(500));
        assert_eq!(pod.succeed(container).await, "100\n200\n500\n");
    });
}

#[test]
fn the_working_directory_is_made_and_stays_inside() {
    run(|pod| async move {
        let container = Container::shell("pwd").with("/process/cwd", json!("/srv/new/place"));
        assert_eq!(pod.succeed(container).await, "/srv/new/place\n");
        for outside in ["/proc/self/fd/3", "/proc/self/cwd", "/proc/1/root"] {
            let container = Container::shell("pwd").with("/process/cwd", json!(outside));
            let (code, message) = code(pod.create(&container).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        }
    });
}
