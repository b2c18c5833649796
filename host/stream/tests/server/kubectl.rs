//! kubectl, which is others' code from end to end: client-go, spdystream, gorilla/websocket.

use crate::support::{Running, start, wants};
use bulkhead_stream::{AttachRequest, ExecRequest, ForwardRequest, Limits};
use bulkhead_tests::streaming::kubectl::{ApiServer, Route};
use futures_util::FutureExt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// Makes the CRI's part of the kubelet: the request's query becomes a URL.
fn route(running: &Running) -> Route {
    let urls = running.urls.clone();
    Arc::new(move |subresource, query| {
        let urls = urls.clone();
        let url = async move {
            let of = |name: &str| {
                let pairs = query.iter().filter(move |pair| pair.0 == name);
                pairs.map(|pair| pair.1.clone()).collect::<Vec<_>>()
            };
            let streams = ["stdin", "stdout", "stderr", "tty"];
            let asked = streams.into_iter().filter(|name| of(name) == ["true"]);
            let wants = wants(&asked.collect::<Vec<_>>().join(" "));
            let (container, pod) = ("main".to_owned(), "pod".to_owned());
            Ok(match subresource.as_str() {
                "exec" => urls.exec(ExecRequest {
                    container,
                    command: of("command"),
                    wants,
                })?,
                "attach" => urls.attach(AttachRequest { container, wants })?,
                _ => {
                    let ports = of("ports")
                        .iter()
                        .filter_map(|port| port.parse().ok())
                        .collect();
                    urls.forward(ForwardRequest { pod, ports })?
                }
            })
        };
        url.boxed()
    })
}

/// Runs it, with WebSocket where it knows that, and with SPDY.
async fn both(arguments: &[&str], input: &str, check: impl Fn(&Output)) -> Vec<String> {
    let running = start(Limits::default()).await;
    let mut protocols = Vec::new();
    for websocket in ["true", "false"] {
        let server = ApiServer::start(false, route(&running)).await.unwrap();
        let mut command = server.kubectl();
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
            .args(arguments);
        let input = input.to_owned();
        let run = tokio::task::spawn_blocking(move || output(command, &input));
        check(&run.await.unwrap());
        protocols.extend(server.protocols());
    }
    protocols
}

fn output(mut command: Command, input: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .expect("kubectl is installed by scripts/deps");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // It may end without having read everything.
    let _ = writer.join().unwrap();
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_exit_code() {
    let script = "cat; echo err >&2; exit 7";
    let input = "line\n".repeat(200_000);
    let arguments = ["exec", "-i", "pod", "--", "sh", "-c", script];
    let protocols = both(&arguments, &input, |output| {
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(output.stdout.len(), input.len());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("err\n"), "{errors}");
    });
    let protocols = protocols.await;
    assert!(
        protocols
            .iter()
            .any(|name| name.contains("v4.channel.k8s.io")),
        "{protocols:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_passes_input_and_output() {
    both(&["attach", "-i", "pod"], "hello\n", |output| {
        assert!(output.stdout.starts_with(b"hello\n"), "{output:?}");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_reaches_a_port_many_times() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                std::io::copy(&mut socket.try_clone().unwrap(), &mut socket)
            });
        }
    });
    let running = start(Limits::default()).await;
    for websocket in ["true", "false"] {
        let server = ApiServer::start(false, route(&running)).await.unwrap();
        let mut command = server.kubectl();
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket);
        command
            .args(["port-forward", "pod", &format!(":{port}")])
            .stdout(Stdio::piped());
        let check = move || {
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            // Kept open: kubectl writes a line for each connection.
            let mut told = BufReader::new(child.stdout.take().unwrap());
            told.read_line(&mut line).unwrap();
            // "Forwarding from 127.0.0.1:40001 -> 80"
            let address = line.split(' ').nth(2).unwrap().to_owned();
            let clients = (0..20).map(|number: usize| {
                let address = address.clone();
                std::thread::spawn(move || {
                    let mut socket = std::net::TcpStream::connect(address).unwrap();
                    let text = format!("client {number}\n").repeat(1 + 1000 * number);
                    let (mut sender, sent) = (socket.try_clone().unwrap(), text.clone());
                    let sender = std::thread::spawn(move || {
                        sender.write_all(sent.as_bytes()).unwrap();
                        sender.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    let mut received = String::new();
                    socket.read_to_string(&mut received).unwrap();
                    sender.join().unwrap();
                    assert!(
                        received == text,
                        "{number}: {} of {}",
                        received.len(),
                        text.len()
                    );
                })
            });
            let clients: Vec<_> = clients.collect();
            let results = clients.into_iter().map(std::thread::JoinHandle::join);
            let failed = results.filter(Result::is_err).count();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(failed, 0);
        };
        tokio::task::spawn_blocking(check).await.unwrap();
    }
}
