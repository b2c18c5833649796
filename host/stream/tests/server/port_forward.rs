//! Ports over SPDY, in a tunnel, and over channels.

use crate::support::start;
use bulkhead_stream::Limits;
use bulkhead_tests::streaming::spdy::{Event, Reader, Writer, connect, over};
use bulkhead_tests::streaming::websocket;
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

/// A server that answers, after the end of what it is sent, with that.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                socket.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

/// A port that nobody listens on: it was free a moment ago.
async fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Opens one connection: the data and the error stream.
async fn open<T>(writer: &mut Writer<T>, port: u16, request: &str) -> (u32, u32)
where
    T: AsyncRead + AsyncWrite,
{
    let port = port.to_string();
    let pairs = [("port", port.as_str()), ("requestid", request)];
    let error = writer
        .open(&[&[("streamtype", "error")], &pairs[..]].concat())
        .await
        .unwrap();
    writer.finish(error).await.unwrap();
    let data = writer
        .open(&[&[("streamtype", "data")], &pairs[..]].concat())
        .await
        .unwrap();
    (data, error)
}

/// Reads until so many streams have ended, and tells what came on each.
async fn ends<T>(reader: &mut Reader<T>, count: usize) -> HashMap<u32, Vec<u8>>
where
    T: AsyncRead + AsyncWrite,
{
    let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut ended = 0;
    while ended < count {
        match reader.next().await.unwrap().unwrap() {
            Event::Data(id, bytes) => streams.entry(id).or_default().extend(bytes),
            Event::Fin(_) => ended += 1,
            Event::Reset(id, reason) => panic!("stream {id} was reset: {reason}"),
            _ => {}
        }
    }
    streams
}

/// Many connections at once, interleaved, each half-closed by the client before the answer comes.
async fn many<T>(mut writer: Writer<T>, mut reader: Reader<T>)
where
    T: AsyncRead + AsyncWrite,
{
    let (port, dead) = (echo().await, nobody().await);
    let mut opened = Vec::new();
    for number in 0..100 {
        let (data, error) = open(&mut writer, port, &number.to_string()).await;
        opened.push((
            data,
            error,
            format!("request {number} ").repeat(number).into_bytes(),
        ));
    }
    let (_, refused) = open(&mut writer, dead, "dead").await;
    for (data, _, text) in &opened {
        writer.send(*data, text).await.unwrap();
    }
    for (data, ..) in opened.iter().rev() {
        writer.finish(*data).await.unwrap();
    }
    let mut streams = ends(&mut reader, 2 * opened.len() + 2).await;
    for (data, error, text) in opened {
        assert_eq!(streams.remove(&data).unwrap_or_default(), text);
        assert_eq!(streams.remove(&error), None);
    }
    let words = String::from_utf8(streams.remove(&refused).unwrap()).unwrap();
    assert!(words.contains(&format!("port {dead}")), "{words}");
    assert!(words.contains("refused"), "{words}");
}

#[tokio::test]
async fn many_connections_at_once_over_spdy() {
    let running = start(Limits::default()).await;
    let (writer, reader, answer) = connect(&running.forward(&[]), &["portforward.k8s.io"])
        .await
        .unwrap();
    assert_eq!(
        answer.field("x-stream-protocol-version"),
        ["portforward.k8s.io"]
    );
    many(writer, reader).await;
}

#[tokio::test]
async fn many_connections_at_once_through_the_tunnel() {
    let running = start(Limits::default()).await;
    let name = "SPDY/3.1+portforward.k8s.io";
    let (socket, chosen) = websocket::connect(&running.forward(&[]), name)
        .await
        .unwrap();
    assert_eq!(chosen, name);
    let (mut sink, mut stream) = socket.split();
    // Bytes on our side of the tunnel, cut anyhow.
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut from, mut to) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut buffer = vec![0; 777];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            sink.send(Message::binary(buffer[..count].to_vec()))
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
            to.write_all(&bytes).await.unwrap();
        }
    });
    let (writer, reader) = over(ours);
    many(writer, reader).await;
}

#[tokio::test]
async fn the_oldest_clients_have_no_request_ids() {
    let running = start(Limits::default()).await;
    let (mut writer, mut reader, _) = connect(&running.forward(&[]), &[]).await.unwrap();
    let port = echo().await.to_string();
    for streams in ["error", "data"] {
        writer
            .open(&[("streamtype", streams), ("port", &port)])
            .await
            .unwrap();
    }
    writer.send(3, b"hello").await.unwrap();
    writer.finish(3).await.unwrap();
    assert_eq!(ends(&mut reader, 2).await, [(3, b"hello".to_vec())].into());
}

#[tokio::test]
async fn half_a_pair_is_not_kept_for_ever() {
    let limits = Limits {
        setup: Duration::from_millis(50),
        ..Limits::default()
    };
    let running = start(limits).await;
    let (mut writer, mut reader, _) = connect(&running.forward(&[]), &[]).await.unwrap();
    let headers = [("streamtype", "error"), ("port", "80"), ("requestid", "1")];
    let alone = writer.open(&headers).await.unwrap();
    while reader.next().await.unwrap().unwrap() != Event::Reset(alone, 5) {}
    for wrong in [
        [("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
        [
            ("streamtype", "data"),
            ("port", "65536"),
            ("requestid", "1"),
        ],
        [("streamtype", "data"), ("port", "0"), ("requestid", "1")],
    ] {
        let id = writer.open(&wrong).await.unwrap();
        while reader.next().await.unwrap().unwrap() != Event::Reset(id, 5) {}
    }
}

#[tokio::test]
async fn two_channels_for_each_port() {
    let running = start(Limits::default()).await;
    let ports = [echo_line().await, nobody().await];
    let url = running.forward(&ports);
    let mut channels = websocket::Channels::connect(&url, "v4.channel.k8s.io")
        .await
        .unwrap();
    for channel in 0..4 {
        let port = ports[usize::from(channel / 2)].to_le_bytes().to_vec();
        assert_eq!(channels.next().await.unwrap(), Some((channel, port)));
    }
    channels.send(0, b"hello\n").await.unwrap();
    let mut output = channels.output().await.unwrap();
    assert_eq!(std::mem::take(&mut output[0]), b"hello\n");
    let words = String::from_utf8(std::mem::take(&mut output[3])).unwrap();
    assert!(words.contains("refused"), "{words}");
    assert_eq!(output, [const { Vec::<u8>::new() }; 5]);
    let none = websocket::Channels::connect(&running.forward(&[]), "v4.channel.k8s.io").await;
    assert!(none.err().unwrap().to_string().contains("400"));
}

/// A server that answers one line: channels have no end that it could wait for.
async fn echo_line() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut line = [0; 6];
        socket.read_exact(&mut line).await.unwrap();
        socket.write_all(&line).await.unwrap();
    });
    port
}
