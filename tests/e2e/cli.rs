//! The command line as a person uses it.

use crate::environment::{node_with_image, ready};
use bulkhead_tests::{Node, artifacts};
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn run(node: &Node, arguments: &[&str]) -> Output {
    node.cli()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn run_gives_output_and_exit_code() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let script = "echo out $A; echo err >&2; exit 9";
    let output = run(
        &node,
        &["run", "--rm", "-e", "A=b", &image, "sh", "-c", script],
    );
    assert_eq!(text(&output.stdout), "out b\n", "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(9));
    let output = run(
        &node,
        &[
            "run", "--rm", "--cpus", "2", "--memory", "64M", &image, "nproc",
        ],
    );
    assert_eq!(text(&output.stdout), "2\n", "{}", text(&output.stderr));
    let output = run(&node, &["run", "--rm", &image, "no-such-program"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no-such-program"));
    assert_eq!(
        text(&run(&node, &["ps", "-q"]).stdout),
        "",
        "--rm leaves nothing"
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn run_passes_standard_input_on() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut child = node
        .cli()
        .args(["run", "--rm", "-i", &image, "sh", "-c", "cat; echo done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = "line\n".repeat(100_000);
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), input.len() + "done\n".len());
    assert!(text(&output.stdout).ends_with("line\ndone\n"));
    node.finish().unwrap();
}

#[tokio::test]
async fn run_gives_a_terminal() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let output = run(
        &node,
        &[
            "run",
            "--rm",
            "-t",
            &image,
            "sh",
            "-c",
            "tty; test -t 1 && echo yes",
        ],
    );
    assert_eq!(
        text(&output.stdout),
        "/dev/pts/0\r\nyes\r\n",
        "{}",
        text(&output.stderr)
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn ps_logs_exec_and_rm() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut running = node
        .cli()
        .args([
            "run",
            "--name",
            "web",
            &image,
            "sh",
            "-c",
            "echo started; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 8];
    std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"started\n");
    let listed = text(&run(&node, &["ps"]).stdout);
    assert!(
        listed.contains("web") && listed.contains("running"),
        "{listed}"
    );
    assert_eq!(text(&run(&node, &["logs", "web"]).stdout), "started\n");
    let output = run(&node, &["exec", "web", "sh", "-c", "echo in; exit 4"]);
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("in\n", Some(4))
    );
    let refused = run(&node, &["rm", "web"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("rm -f"),
        "{}",
        text(&refused.stderr)
    );
    assert!(run(&node, &["rm", "-f", "web"]).status.success());
    assert_eq!(running.wait().unwrap().code(), Some(137));
    let missing = run(&node, &["logs", "web"]);
    assert!(text(&missing.stderr).contains("There is no container \"web\""));
    node.finish().unwrap();
}

#[tokio::test]
async fn without_a_daemon_the_error_says_so() {
    if !ready() {
        return;
    }
    let output = Command::new(artifacts::artifact("bin/bulkhead"))
        .args(["--socket", "/nonexistent.sock", "ps"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("/nonexistent.sock"),
        "{}",
        text(&output.stderr)
    );
    assert!(
        text(&output.stderr).contains("bulkhead serve"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn check_says_that_the_lab_can_run_pods() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let config = node.path().join("config.toml");
    let output = node
        .cli()
        .args(["check", "--json", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ready"], true, "{report:#}");
    assert_eq!(output.status.code(), Some(0));
    let table = node
        .cli()
        .args(["check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(
        text(&table.stdout).contains("kvm"),
        "{}",
        text(&table.stdout)
    );
    node.finish().unwrap();
}
