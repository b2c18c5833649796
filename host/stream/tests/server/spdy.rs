//! Exec and attach over SPDY.

use crate::support::{is_gone, start};
use bulkhead_stream::Limits;
use bulkhead_tests::streaming::request;
use bulkhead_tests::streaming::spdy::{Command, Event, connect};
use serde_json::{Value, json};
use std::time::Duration;

fn status(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn a_command_gives_output_and_exit_code() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdout stderr", "echo out; echo err >&2; exit 7");
    let mut command = Command::connect(&url, &["stdout", "stderr"]).await.unwrap();
    let output = command.output().await.unwrap();
    assert_eq!(
        (output.stdout, output.stderr),
        (b"out\n".to_vec(), b"err\n".to_vec())
    );
    let told = status(&output.error);
    assert_eq!(
        (&told["status"], &told["reason"]),
        (&json!("Failure"), &json!("NonZeroExitCode"))
    );
    let cause = json!({ "reason": "ExitCode", "message": "7" });
    assert_eq!(told["details"]["causes"][0], cause);
    let mut command = Command::connect(&running.exec("stdout", &["true"]), &["stdout"])
        .await
        .unwrap();
    let output = command.output().await.unwrap();
    assert_eq!(
        status(&output.error),
        json!({ "metadata": {}, "status": "Success" })
    );
    let url = running.exec("stdout", &["/no/such/program"]);
    let mut command = Command::connect(&url, &["stdout"]).await.unwrap();
    let told = status(&command.output().await.unwrap().error);
    assert_eq!(
        (&told["code"], &told["reason"]),
        (&json!(500), &json!("InternalError"))
    );
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/program"),
        "{told}"
    );
}

#[tokio::test]
async fn standard_input_ends_when_its_stream_ends() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdin stdout", "cat; echo end");
    let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    command.writer.send(command.stdin, b"hello ").await.unwrap();
    assert_eq!(command.until("hello ").await.unwrap(), "hello ");
    command
        .writer
        .send(command.stdin, b"world\n")
        .await
        .unwrap();
    command.writer.finish(command.stdin).await.unwrap();
    let output = command.output().await.unwrap();
    assert_eq!(output.stdout, b"world\nend\n");
    // A process that closes its input early is not harmed by what still comes.
    let url = running.shell("stdin stdout", "exec <&-; echo closed; sleep 0.2");
    let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    command.until("closed").await.unwrap();
    command
        .writer
        .send(command.stdin, &[0; 1000])
        .await
        .unwrap();
    command
        .writer
        .send(command.stdin, &[0; 1000])
        .await
        .unwrap();
    let output = command.output().await.unwrap();
    assert_eq!(status(&output.error)["status"], "Success");
}

#[tokio::test]
async fn a_terminal_has_the_client_s_size_before_and_later() {
    let running = start(Limits::default()).await;
    // With a trap of its own the shell ends also when it is interrupted between two commands.
    let script = "trap 'exit 3' INT; trap 'stty size' WINCH; while [ \"$(stty size)\" = '0 0' ]; do sleep 0.01; done; \
        stty size; while :; do sleep 0.01; done";
    let url = running.exec("stdin stdout tty", &["bash", "-c", script]);
    let mut command = Command::connect(&url, &["stdin", "stdout", "resize"])
        .await
        .unwrap();
    let size = |columns, rows| format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
    command
        .writer
        .send(command.resize, size(80, 24).as_bytes())
        .await
        .unwrap();
    command.until("24 80").await.unwrap();
    command
        .writer
        .send(command.resize, size(132, 43).as_bytes())
        .await
        .unwrap();
    command.until("43 132").await.unwrap();
    // The terminal's own way to interrupt.
    command.writer.send(command.stdin, b"\x03").await.unwrap();
    let output = command.output().await.unwrap();
    let status = status(&output.error);
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_process_along() {
    let limits = Limits {
        ping: Duration::from_millis(50),
        ..Limits::default()
    };
    let running = start(limits).await;
    // Idle; behind with reading; behind with being read.
    for (streams, script) in [
        ("stdin stdout", "echo $$; exec sleep 1000"),
        ("stdin stdout", "echo $$; exec cat /dev/zero"),
        ("stdin stdout stalled", "echo $$; exec sleep 1000"),
    ] {
        let url = running.shell(streams, script);
        let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
        let seen = command.until("\n").await.unwrap();
        let pid = seen.split('\n').next().unwrap();
        if streams.contains("stalled") {
            let stall = async {
                loop {
                    let bytes = [0; 32 * 1024];
                    command.writer.send(command.stdin, &bytes).await.unwrap();
                }
            };
            let stalled = tokio::time::timeout(Duration::from_secs(1), stall).await;
            assert!(stalled.is_err(), "nobody reads");
        }
        drop(command);
        is_gone(pid).await;
    }
}

#[tokio::test]
async fn older_versions_have_plain_words_for_errors() {
    let running = start(Limits::default()).await;
    for version in [
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
        "",
    ] {
        let versions: Vec<&str> = Some(version)
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        for (script, told) in [
            (
                "exit 3",
                "command terminated with non-zero exit code: exit status 3",
            ),
            ("exit 0", ""),
        ] {
            let url = running.shell("stdout", script);
            let (writer, reader, answer) = connect(&url, &versions).await.unwrap();
            assert_eq!(answer.field("x-stream-protocol-version"), versions);
            let mut command = Command::open(writer, reader, &["stdout"]).await.unwrap();
            let output = command.output().await.unwrap();
            assert_eq!(String::from_utf8(output.error).unwrap(), told, "{version}");
        }
    }
    // The client's order counts, in one field or several.
    let url = running.shell("stdout", "true");
    let offered = ["v9.channel.k8s.io, v3.channel.k8s.io", "v4.channel.k8s.io"];
    let (_, _, answer) = connect(&url, &offered).await.unwrap();
    assert_eq!(
        answer.field("x-stream-protocol-version"),
        ["v3.channel.k8s.io"]
    );
    let url = running.shell("stdout", "true");
    let fields = "Connection: upgrade\r\nUpgrade: spdy/3.1\r\nX-Stream-Protocol-Version: v9\r\n";
    let (_, answer) = request(&url, "POST", fields).await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.field("x-accepted-stream-protocol-versions").len(), 4);
}

#[tokio::test]
async fn attach_ends_with_the_client_s_input() {
    let running = start(Limits::default()).await;
    let url = running.attach("stdin stdout");
    let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    command
        .writer
        .send(command.stdin, b"hello\n")
        .await
        .unwrap();
    command.until("hello\n").await.unwrap();
    command.writer.finish(command.stdin).await.unwrap();
    let output = command.output().await.unwrap();
    assert_eq!(status(&output.error)["status"], "Success");
}

#[tokio::test]
async fn pings_are_answered_and_sent() {
    let limits = Limits {
        ping: Duration::from_millis(20),
        ..Limits::default()
    };
    let running = start(limits).await;
    let url = running.exec("stdin stdout", &["cat"]);
    let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    command.writer.control(6, &[0, 0, 0, 9]).await.unwrap();
    let (mut answered, mut asked) = (false, 0);
    while !answered || asked < 3 {
        match command.reader.next().await.unwrap().unwrap() {
            Event::Ping(9) => answered = true,
            Event::Ping(id) if id % 2 == 0 => asked += 1,
            _ => {}
        }
    }
}
