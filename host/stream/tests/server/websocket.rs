//! Exec over WebSocket.

use crate::support::{is_gone, start};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_stream::Limits;
use bulkhead_tests::streaming::websocket::{Channels, connect};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn channels_carry_output_and_the_exit_code() {
    let running = start(Limits::default()).await;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let url = running.shell("stdout stderr", "echo out; echo err >&2; exit 7");
        let mut channels = Channels::connect(&url, protocol).await.unwrap();
        let [_, stdout, stderr, error, _] = channels.output().await.unwrap();
        assert_eq!((stdout, stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
        let status: Value = serde_json::from_slice(&error).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
    }
    let url = running.shell("stdout", "exit 7");
    let (socket, _) = connect(&url, "").await.unwrap();
    let [_, _, _, error, _] = Channels(socket).output().await.unwrap();
    let words = "command terminated with non-zero exit code: exit status 7";
    assert_eq!(String::from_utf8(error).unwrap(), words);
}

#[tokio::test]
async fn version_5_can_end_standard_input() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdin stdout", "cat; echo end");
    let mut channels = Channels::connect(&url, "v5.channel.k8s.io").await.unwrap();
    assert_eq!(
        channels.next().await.unwrap(),
        Some((1, Vec::new())),
        "we are connected"
    );
    channels.send(0, b"hello\n").await.unwrap();
    channels.until("hello\n").await.unwrap();
    channels.end(0).await.unwrap();
    let [_, stdout, ..] = channels.output().await.unwrap();
    assert_eq!(stdout, b"end\n");
}

#[tokio::test]
async fn a_terminal_has_the_client_s_size() {
    let running = start(Limits::default()).await;
    let script = "while [ \"$(stty size)\" = '0 0' ]; do sleep 0.01; done; stty size";
    let url = running.shell("stdin stdout tty", script);
    let mut channels = Channels::connect(&url, "v5.channel.k8s.io").await.unwrap();
    channels
        .send(4, b"{\"Width\":80,\"Height\":24}")
        .await
        .unwrap();
    let [_, stdout, ..] = channels.output().await.unwrap();
    assert_eq!(stdout, b"24 80\r\n");
}

#[tokio::test]
async fn base64_is_text() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdin stdout", "read line; echo $line");
    let (mut socket, chosen) = connect(&url, "v4.base64.channel.k8s.io").await.unwrap();
    assert_eq!(chosen, "v4.base64.channel.k8s.io");
    let message = format!("0{}", STANDARD.encode("hello\n"));
    socket.send(Message::text(message)).await.unwrap();
    let mut texts = Vec::new();
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        texts.push(text.to_string());
    }
    assert_eq!(
        texts[..2],
        ["1".to_owned(), format!("1{}", STANDARD.encode("hello\n"))]
    );
    assert!(texts[2].starts_with('3'), "{texts:?}");
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_process_along() {
    let running = start(Limits::default()).await;
    for politely in [true, false] {
        let url = running.shell("stdout", "echo $$; exec sleep 1000");
        let mut channels = Channels::connect(&url, "v5.channel.k8s.io").await.unwrap();
        let pid = channels.until("\n").await.unwrap();
        if politely {
            channels.0.close(None).await.unwrap();
        }
        drop(channels);
        is_gone(&pid).await;
    }
}

#[tokio::test]
async fn unknown_subprotocols_and_huge_messages_are_refused() {
    let running = start(Limits::default()).await;
    let refused = connect(&running.shell("stdout", "true"), "v9.channel.k8s.io").await;
    assert!(refused.unwrap_err().to_string().contains("400"));
    let url = running.shell("stdin stdout", "echo $$; exec cat >/dev/null");
    let mut channels = Channels::connect(&url, "v5.channel.k8s.io").await.unwrap();
    let pid = channels.until("\n").await.unwrap();
    channels.send(0, &vec![0; (4 << 20) - 1]).await.unwrap();
    // The server stops reading in the middle of it.
    let _ = channels.send(0, &vec![0; 4 << 20]).await;
    is_gone(&pid).await;
}
