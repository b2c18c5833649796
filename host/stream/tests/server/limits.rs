//! What nobody gets without a token, and nobody gets too much of.

use crate::support::start;
use bulkhead_stream::{Limits, StreamError};
use bulkhead_tests::streaming::spdy::{Command, Event, connect};
use bulkhead_tests::streaming::{parse, request};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

#[tokio::test]
async fn a_url_is_good_once_and_only_as_it_is() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdout", "true");
    let status = async |url: &str, method: &str, fields: &str| {
        request(url, method, fields).await.unwrap().1.status
    };
    assert_eq!(
        status(&url.replace("/exec/", "/attach/"), "POST", SPDY).await,
        404
    );
    assert_eq!(status(&format!("{url}/"), "POST", SPDY).await, 404);
    assert_eq!(status(&url, "PUT", SPDY).await, 405);
    assert_eq!(status(&format!("{url}?x=y"), "GET", SPDY).await, 101);
    assert_eq!(status(&url, "POST", SPDY).await, 404);
    let (host, _) = parse(&url).unwrap();
    for path in [
        "",
        "/",
        "/exec",
        "/exec/",
        "/exec/x",
        "/portforward/../exec/x",
        "/metrics",
    ] {
        assert_eq!(
            status(&format!("http://{host}{path}/"), "GET", SPDY).await,
            404,
            "{path}"
        );
    }
    // A request that is not for an upgrade has used its token all the same.
    let url = running.shell("stdout", "true");
    assert_eq!(status(&url, "GET", "").await, 400);
    assert_eq!(status(&url, "GET", SPDY).await, 404);
    let fields = "Connection: Upgrade\r\nUpgrade: h2c\r\n";
    assert_eq!(
        status(&running.shell("stdout", "true"), "GET", fields).await,
        400
    );
}

#[tokio::test]
async fn urls_and_sessions_are_limited() {
    let limits = Limits {
        urls: 2,
        sessions: 1,
        ..Limits::default()
    };
    let running = start(limits).await;
    let first = running.exec("stdin stdout", &["cat"]);
    let second = running.exec("stdin stdout", &["cat"]);
    let pod = "pod".to_owned();
    let third = running
        .urls
        .forward(bulkhead_stream::ForwardRequest { pod, ports: vec![] });
    assert!(matches!(third, Err(StreamError::TooManyUrls { limit: 2 })));
    let mut command = Command::connect(&first, &["stdin", "stdout"])
        .await
        .unwrap();
    let (_, answer) = request(&second, "POST", SPDY).await.unwrap();
    assert_eq!(answer.status, 503);
    command.writer.finish(command.stdin).await.unwrap();
    command.output().await.unwrap();
    drop(command);
    // The place is free when the server has seen that the client is gone.
    let free = async {
        let mut status = 503;
        while status == 503 {
            let url = running.exec("stdin stdout", &["cat"]);
            status = request(&url, "POST", SPDY).await.unwrap().1.status;
        }
        status
    };
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(60), free)
            .await
            .unwrap(),
        101
    );
}

#[tokio::test]
async fn headers_and_their_time_are_limited() {
    let limits = Limits {
        setup: Duration::from_millis(200),
        ..Limits::default()
    };
    let running = start(limits).await;
    let url = running.shell("stdout", "true");
    let many: String = (0..100)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect();
    assert_eq!(request(&url, "GET", &many).await.unwrap().1.status, 431);
    let long = format!("X: {}\r\n", "y".repeat(20_000));
    assert_eq!(request(&url, "GET", &long).await.unwrap().1.status, 431);
    let (host, _) = parse(&url).unwrap();
    let mut slow = TcpStream::connect(host).await.unwrap();
    slow.write_all(b"GET /exec/").await.unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    // Nor is it waited for streams that do not come.
    let (_, mut reader, _) = connect(&url, &[]).await.unwrap();
    while reader.next().await.unwrap().is_some() {}
}

#[tokio::test]
async fn streams_are_limited() {
    let limits = Limits {
        streams: 3,
        ..Limits::default()
    };
    let running = start(limits).await;
    let (mut writer, mut reader, _) = connect(&running.forward(&[]), &[]).await.unwrap();
    for number in 0..4 {
        let (number, id) = (number.to_string(), 2 * number + 1);
        let headers = [
            ("streamtype", "error"),
            ("port", "80"),
            ("requestid", number.as_str()),
        ];
        assert_eq!(writer.open(&headers).await.unwrap(), id);
    }
    while reader.next().await.unwrap().unwrap() != Event::Reset(7, 3) {}
    writer.pair(3, 1, 5).await.unwrap();
    writer.pair(3, 3, 5).await.unwrap();
}

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    let running = start(Limits::default()).await;
    for nonsense in [
        // A header block that is no zlib stream, a stream with an even number, data for one that
        // does not exist, a control frame of another version, an endless one.
        &b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x01\0\0\0\0\0\0xx"[..],
        b"\x80\x03\0\x01\0\0\0\x0a\0\0\0\x02\0\0\0\0\0\0",
        b"\0\0\0\x09\0\0\0\x01x",
        b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01",
        b"\x80\x03\0\x01\0\xff\xff\xff",
    ] {
        let url = running.shell("stdout", "true");
        let (mut socket, answer) = request(&url, "POST", SPDY).await.unwrap();
        assert_eq!(answer.status, 101);
        socket.write_all(nonsense).await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        let goaway = b"\x80\x03\0\x07\0\0\0\x08";
        assert!(
            rest.windows(8).any(|part| part == goaway),
            "{nonsense:?}: {rest:?}"
        );
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    let running = start(Limits::default()).await;
    let url = running.exec("stdin stdout", &["cat"]);
    let (mut socket, _) = request(&url, "POST", SPDY).await.unwrap();
    let pings = b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01".repeat(10_000);
    let flood = async { while socket.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), flood)
        .await
        .unwrap();
}
