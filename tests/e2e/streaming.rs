//! Exec, attach and port-forward, from the URL to the process in the VM.

use crate::environment::{node_with_image, ready};
use anyhow::Result;
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{Pod, container, exec, wait};
use bulkhead_tests::streaming::spdy::{Command, Event, connect};
use bulkhead_tests::streaming::{request, websocket};
use serde_json::Value;
use std::time::Duration;
use tonic::Code;

async fn exec_url(node: &Node, id: &str, streams: &str, command: &[&str]) -> Result<String> {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: streams.contains("tty"),
        stdin: streams.contains("stdin"),
        stdout: streams.contains("stdout"),
        stderr: streams.contains("stderr"),
    };
    Ok(node.runtime().exec(request).await?.into_inner().url)
}

async fn attach_url(node: &Node, id: &str, streams: &str) -> Result<String> {
    let request = v1::AttachRequest {
        container_id: id.to_owned(),
        stdin: streams.contains("stdin"),
        tty: streams.contains("tty"),
        stdout: streams.contains("stdout"),
        stderr: streams.contains("stderr"),
    };
    Ok(node.runtime().attach(request).await?.into_inner().url)
}

async fn forward_url(node: &Node, pod: &str, port: Vec<i32>) -> Result<String> {
    let pod_sandbox_id = pod.to_owned();
    let request = v1::PortForwardRequest {
        pod_sandbox_id,
        port,
    };
    Ok(node.runtime().port_forward(request).await?.into_inner().url)
}

fn status(error: &[u8]) -> Value {
    serde_json::from_slice(error).unwrap()
}

/// How many processes of a container have this in their command line.
async fn processes(node: &Node, id: &str, text: &str) -> usize {
    let output = exec(node, id, &["ps"], 60).await.unwrap().stdout;
    let output = String::from_utf8(output).unwrap();
    output.lines().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn exec_by_each_protocol() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "exec-streams").await.unwrap();
    let id = pod
        .start(container("main", &image, &["sleep", "1000"]))
        .await
        .unwrap();

    let shell = ["sh", "-c", "cat; echo err >&2; exit 7"];
    let url = exec_url(&node, &id, "stdin stdout stderr", &shell)
        .await
        .unwrap();
    let mut spdy = Command::connect(&url, &["stdin", "stdout", "stderr"])
        .await
        .unwrap();
    spdy.writer.send(spdy.stdin, b"hello\n").await.unwrap();
    spdy.until("hello\n").await.unwrap();
    spdy.writer.send(spdy.stdin, b"world\n").await.unwrap();
    spdy.writer.finish(spdy.stdin).await.unwrap();
    let output = spdy.output().await.unwrap();
    assert_eq!(
        (output.stdout, output.stderr),
        (b"world\n".to_vec(), b"err\n".to_vec())
    );
    assert_eq!(
        status(&output.error)["details"]["causes"][0]["message"],
        "7"
    );

    let url = exec_url(&node, &id, "stdin stdout stderr", &shell)
        .await
        .unwrap();
    let mut channels = websocket::Channels::connect(&url, "v5.channel.k8s.io")
        .await
        .unwrap();
    channels.send(0, b"hello\n").await.unwrap();
    channels.until("hello\n").await.unwrap();
    channels.end(0).await.unwrap();
    let [_, _, stderr, error, _] = channels.output().await.unwrap();
    assert_eq!(stderr, b"err\n");
    assert_eq!(status(&error)["details"]["causes"][0]["message"], "7");

    // What is not asked for does not hold the command up.
    let much = ["sh", "-c", "head -c 1000000 /dev/zero; echo end >&2"];
    let url = exec_url(&node, &id, "stderr", &much).await.unwrap();
    let mut spdy = Command::connect(&url, &["stderr"]).await.unwrap();
    let output = spdy.output().await.unwrap();
    assert_eq!(
        (
            output.stderr.as_slice(),
            status(&output.error)["status"].as_str()
        ),
        (&b"end\n"[..], Some("Success"))
    );

    let url = exec_url(&node, &id, "stdout", &["no-such-program"])
        .await
        .unwrap();
    let mut spdy = Command::connect(&url, &["stdout"]).await.unwrap();
    let told = status(&spdy.output().await.unwrap().error);
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("no-such-program"),
        "{told}"
    );

    let script = "while [ \"$(stty size)\" = '0 0' ]; do :; done; stty size; read line; stty size";
    let url = exec_url(&node, &id, "stdin stdout tty", &["sh", "-c", script])
        .await
        .unwrap();
    let mut spdy = Command::connect(&url, &["stdin", "stdout", "resize"])
        .await
        .unwrap();
    spdy.writer
        .send(spdy.resize, b"{\"Width\":80,\"Height\":24}\n")
        .await
        .unwrap();
    spdy.until("24 80").await.unwrap();
    spdy.writer
        .send(spdy.resize, b"{\"Width\":132,\"Height\":43}\n")
        .await
        .unwrap();
    // The terminal has its size before it has the line, as soon as the agent has answered once more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    spdy.writer.send(spdy.stdin, b"go\n").await.unwrap();
    spdy.until("43 132").await.unwrap();
    spdy.output().await.unwrap();

    // A client that vanishes takes its command along, with what that has started.
    let tree = ["sh", "-c", "sleep 4321 & echo started; wait"];
    let url = exec_url(&node, &id, "stdout", &tree).await.unwrap();
    let mut spdy = Command::connect(&url, &["stdout"]).await.unwrap();
    spdy.until("started").await.unwrap();
    assert_ne!(processes(&node, &id, "sleep 4321").await, 0);
    drop(spdy);
    while processes(&node, &id, "sleep 4321").await > 0 {}

    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn much_data_and_little_memory() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "much").await.unwrap();
    let id = pod
        .start(container("main", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let size = 64 << 20;
    let script = format!("head -c {size} /dev/zero");
    let url = exec_url(&node, &id, "stdout", &["sh", "-c", &script])
        .await
        .unwrap();
    let mut spdy = Command::connect(&url, &["stdout"]).await.unwrap();
    let memory = || {
        let path = format!("/proc/{}/statm", node.pid().unwrap());
        let text = std::fs::read_to_string(path).unwrap();
        let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    };
    let (before, mut most, mut count) = (memory(), 0, 0);
    loop {
        match spdy.reader.next().await.unwrap().unwrap() {
            Event::Data(id, bytes) if id == spdy.stdout => {
                count += bytes.len();
                if count % (1 << 20) < bytes.len() {
                    most = most.max(memory());
                }
            }
            Event::GoAway(_) => break,
            _ => {}
        }
    }
    assert_eq!(count, size);
    assert!(most < before + (8 << 20), "{before} {most}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn attach_joins_a_container_s_streams() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "attach").await.unwrap();
    let script = "while read line; do echo \"got $line\"; echo err >&2; done; echo end";
    let mut config = container("once", &image, &["sh", "-c", script]);
    (config.stdin, config.stdin_once) = (true, true);
    let once = pod.start(config.clone()).await.unwrap();
    config.metadata.as_mut().unwrap().name = "again".to_owned();
    (config.stdin_once, config.log_path) = (false, "again.log".to_owned());
    let again = pod.start(config).await.unwrap();

    // Detached at the end of its input, and joined again; several at once.
    for round in 0..2 {
        let url = attach_url(&node, &again, "stdout").await.unwrap();
        let mut watcher = websocket::Channels::connect(&url, "v5.channel.k8s.io")
            .await
            .unwrap();
        assert_eq!(watcher.next().await.unwrap(), Some((1, Vec::new())));
        let url = attach_url(&node, &again, "stdin stdout").await.unwrap();
        let mut spdy = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
        let line = format!("round {round}\n");
        spdy.writer.send(spdy.stdin, line.as_bytes()).await.unwrap();
        spdy.until(&format!("got {line}")).await.unwrap();
        spdy.writer.finish(spdy.stdin).await.unwrap();
        let output = spdy.output().await.unwrap();
        assert_eq!(status(&output.error)["status"], "Success");
        watcher.until(&format!("got {line}")).await.unwrap();
    }

    // With stdin_once the end of the first input is the container's.
    let url = attach_url(&node, &once, "stdin stdout stderr")
        .await
        .unwrap();
    let mut spdy = Command::connect(&url, &["stdin", "stdout", "stderr"])
        .await
        .unwrap();
    spdy.writer.send(spdy.stdin, b"one\ntwo\n").await.unwrap();
    spdy.writer.finish(spdy.stdin).await.unwrap();
    let output = spdy.output().await.unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "got one\ngot two\nend\n"
    );
    assert_eq!(output.stderr, b"err\nerr\n");
    let ended = wait(&node, &once).await.unwrap();
    assert_eq!(
        ended.stdout, "got one\ngot two\nend\n",
        "the log has it all the same"
    );

    let late = attach_url(&node, &once, "stdout").await.unwrap_err();
    let late = late.downcast::<tonic::Status>().unwrap();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn port_forward_reaches_the_pod_s_loopback() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "ports").await.unwrap();
    let script = "mkdir /www; seq 1 20000 >/www/seq; exec httpd -f -p 127.0.0.1:8080 -h /www";
    let id = pod
        .start(container("web", &image, &["sh", "-c", script]))
        .await
        .unwrap();
    let listening = [
        "sh",
        "-c",
        "until grep -q ':1F90 .* 0A ' /proc/net/tcp; do sleep 0.05; done",
    ];
    assert_eq!(exec(&node, &id, &listening, 60).await.unwrap().exit_code, 0);

    let url = forward_url(&node, &pod.id, vec![]).await.unwrap();
    let (mut writer, mut reader, _) = connect(&url, &["portforward.k8s.io"]).await.unwrap();
    let mut texts = std::collections::HashMap::new();
    let mut refused = 0;
    for number in 0..30 {
        let port = if number == 29 { "81" } else { "8080" };
        let id = number.to_string();
        let headers = [("port", port), ("requestid", &id)];
        let error = writer
            .open(&[&[("streamtype", "error")], &headers[..]].concat())
            .await
            .unwrap();
        writer.finish(error).await.unwrap();
        let data = writer
            .open(&[&[("streamtype", "data")], &headers[..]].concat())
            .await
            .unwrap();
        texts.insert(data, Vec::new());
        if number == 29 {
            refused = error;
        }
        // Half-closed at once: the answer comes all the same.
        writer
            .send(data, b"GET /seq HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        writer.finish(data).await.unwrap();
    }
    let (mut ended, mut words) = (0, Vec::new());
    while ended < 60 {
        match reader.next().await.unwrap().unwrap() {
            Event::Data(id, bytes) if id == refused => words.extend(bytes),
            Event::Data(id, bytes) => texts.get_mut(&id).unwrap().extend(bytes),
            Event::Fin(_) => ended += 1,
            Event::Reset(id, reason) => panic!("stream {id} was reset: {reason}"),
            _ => {}
        }
    }
    let words = String::from_utf8(words).unwrap();
    assert!(
        words.contains("port 81") && words.contains("refused"),
        "{words}"
    );
    let whole = |text: &&Vec<u8>| {
        let text = String::from_utf8_lossy(text);
        text.starts_with("HTTP/1.") && text.contains(" 200 ") && text.ends_with("\n19999\n20000\n")
    };
    assert_eq!(texts.values().filter(whole).count(), 29);

    let zero = forward_url(&node, &pod.id, vec![0]).await.unwrap_err();
    assert_eq!(
        zero.downcast::<tonic::Status>().unwrap().code(),
        Code::InvalidArgument
    );
    let url = forward_url(&node, &pod.id, vec![8080]).await.unwrap();
    let mut channels = websocket::Channels::connect(&url, "v4.channel.k8s.io")
        .await
        .unwrap();
    channels
        .send(0, b"GET /seq HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let [data, error, ..] = channels.output().await.unwrap();
    assert_eq!(error, 8080u16.to_le_bytes());
    assert!(data.ends_with(b"\n20000\n"));
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn what_can_not_be_streamed_is_refused() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "refused-streams").await.unwrap();
    let id = pod
        .start(container("main", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let created = pod
        .create(container("created", &image, &["true"]))
        .await
        .unwrap();
    let code = |result: Result<String>| {
        result
            .unwrap_err()
            .downcast::<tonic::Status>()
            .unwrap()
            .code()
    };
    for (id, streams, command, wanted) in [
        (
            &*id,
            "tty stdout stderr",
            &["true"][..],
            Code::InvalidArgument,
        ),
        (&id, "tty", &["true"], Code::InvalidArgument),
        (&id, "stdout", &[], Code::InvalidArgument),
        ("", "stdout", &["true"], Code::InvalidArgument),
        ("nothing", "stdout", &["true"], Code::NotFound),
        (&created, "stdout", &["true"], Code::FailedPrecondition),
    ] {
        assert_eq!(
            code(exec_url(&node, id, streams, command).await),
            wanted,
            "{id} {streams}"
        );
    }
    assert_eq!(
        code(attach_url(&node, &id, "").await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(forward_url(&node, "nothing", vec![]).await),
        Code::NotFound
    );
    // Without its token nothing is served, and with it once.
    let url = exec_url(&node, &id, "stdout", &["true"]).await.unwrap();
    let fields = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let wrong = format!("{}x", url);
    assert_eq!(request(&wrong, "POST", fields).await.unwrap().1.status, 404);
    assert_eq!(request(&url, "POST", fields).await.unwrap().1.status, 101);
    assert_eq!(request(&url, "POST", fields).await.unwrap().1.status, 404);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
