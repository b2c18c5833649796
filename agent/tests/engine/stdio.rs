use crate::support::{Container, code, run, stream_id};
use bulkhead_agent_api::agent::ResizeTerminalRequest;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::{Code, context};

/// Reads until the text has come.
async fn expect(stream: &mut UnixStream, text: &str) -> String {
    let mut all = String::new();
    let mut chunk = [0; 1024];
    while !all.contains(text) {
        let n = stream.read(&mut chunk).await.unwrap();
        assert_ne!(n, 0, "The stream ended before {text:?}: {all:?}");
        all += &String::from_utf8_lossy(&chunk[..n]);
    }
    all
}

#[test]
fn a_terminal_has_a_size_a_name_and_a_console() {
    run(|pod| async move {
        let mut container = Container::shell(
            "tty; stty size; test -c /dev/console; echo $?; read x; echo got $x; stty size; cat",
        );
        container.stdio.terminal = true;
        (container.stdio.width, container.stdio.height) = (100, 30);
        (container.stdio.stdin, container.stdio.stdout) = (stream_id(), stream_id());
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        let mut stdin = pod.stream(container.stdio.stdin).await;
        let mut stdout = pod.stream(container.stdio.stdout).await;
        pod.start(id).await.unwrap();
        let text = expect(&mut stdout, "30 100\r\n0\r\n").await;
        assert!(text.contains("/dev/pts/0\r\n"), "{text:?}");
        let mut request = ResizeTerminalRequest::new();
        request.container_id = id.to_owned();
        (request.width, request.height) = (55, 11);
        pod.client
            .resize_terminal(context::with_timeout(0), &request)
            .await
            .unwrap();
        request.width = 1 << 20;
        let refused = pod
            .client
            .resize_terminal(context::with_timeout(0), &request)
            .await;
        assert_eq!(code(refused).0, Code::INVALID_ARGUMENT);
        stdin.write_all(b"line\n").await.unwrap();
        expect(&mut stdout, "got line\r\n11 55\r\n").await;
        // The end of the stream is the terminal's end of file.
        stdin.shutdown().await.unwrap();
        let exit = pod.exit(id, "").await;
        assert_eq!(exit.code, 0);
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn a_container_reads_its_stdin_over_several_connections() {
    run(|pod| async move {
        let mut container = Container::new(&["cat"]);
        (container.stdio.stdin, container.stdio.stdout) = (stream_id(), stream_id());
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        let mut stdout = pod.stream(container.stdio.stdout).await;
        let mut stdin = pod.stream(container.stdio.stdin).await;
        stdin.write_all(b"one").await.unwrap();
        expect(&mut stdout, "one").await;
        drop(stdin);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut stdin = pod.stream(container.stdio.stdin).await;
        stdin.write_all(b"two").await.unwrap();
        expect(&mut stdout, "two").await;
        stdin.shutdown().await.unwrap();
        let exit = pod.exit(id, "").await;
        assert_eq!((exit.code, exit.stdout_bytes), (0, 6));
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn output_that_nobody_reads_does_not_delay_a_kill() {
    run(|pod| async move {
        let mut container = Container::new(&["yes"]);
        container.stdio.stdout = stream_id();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begin = Instant::now();
        pod.kill(id, libc::SIGKILL, true).await.unwrap();
        let exit = pod.exit(id, "").await;
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert_eq!(exit.signal, 9);
        assert_eq!(
            pod.read(container.stdio.stdout).await.len() as u64,
            exit.stdout_bytes
        );
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn a_connection_can_be_made_again() {
    run(|pod| async move {
        let mut container =
            Container::shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
        container.stdio.stdout = stream_id();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        // Read to the last byte that came before each break: nothing is lost then.
        let mut all = Vec::new();
        let mut stream = pod.stream(container.stdio.stdout).await;
        let mut chunk = vec![0; 1000];
        for _ in 0..5 {
            let n = stream.read(&mut chunk).await.unwrap();
            all.extend_from_slice(&chunk[..n]);
        }
        stream.read_to_end(&mut all).await.unwrap();
        let exit = pod.exit(id, "").await;
        assert_eq!(all.len() as u64, exit.stdout_bytes);
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn throughput_of_stdout() {
    run(|pod| async move {
        const BYTES: u64 = 256 << 20;
        let mut container = Container::new(&["dd", "if=/dev/zero", "bs=1M", "count=256"]);
        container.stdio.stdout = stream_id();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        let mut stream = pod.stream(container.stdio.stdout).await;
        let begin = Instant::now();
        pod.start(id).await.unwrap();
        let mut chunk = vec![0; 1 << 18];
        let mut total = 0;
        loop {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                n => total += n as u64,
            }
        }
        eprintln!(
            "stdout: {} MB/s",
            BYTES / 1_000_000 * 1000 / begin.elapsed().as_millis().max(1) as u64
        );
        assert_eq!(total, BYTES);
        assert_eq!(pod.exit(id, "").await.stdout_bytes, BYTES);
        pod.remove(id).await.unwrap();
    });
}
