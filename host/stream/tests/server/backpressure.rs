//! Much data, little memory, whoever is slow.

use crate::support::start;
use bulkhead_stream::Limits;
use bulkhead_tests::streaming::spdy::{Command, Event};
use bulkhead_tests::streaming::websocket::Channels;
use std::time::Duration;

const LINE: &[u8] = b"0123456789abcde\n";
const GIB: usize = 1 << 30;
/// What this process may grow by while it moves a GiB; the other tests of it run at the same time.
const GROWTH: usize = 48 << 20;

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// Compares what arrives with the lines that were sent.
struct Check {
    pattern: Vec<u8>,
    count: usize,
    before: usize,
}

impl Check {
    fn new() -> Self {
        Self {
            pattern: LINE.repeat(8192),
            count: 0,
            before: resident(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = self.count % LINE.len();
        assert!(
            self.pattern[start..].starts_with(bytes),
            "at {}",
            self.count
        );
        self.count += bytes.len();
        assert!(
            resident() < self.before + GROWTH,
            "{} bytes",
            resident() - self.before
        );
    }
}

fn lines(count: usize) -> String {
    format!("yes 0123456789abcde | head -c {count}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gib_arrives_over_spdy() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdout", &lines(GIB));
    let mut command = Command::connect(&url, &["stdout"]).await.unwrap();
    let mut check = Check::new();
    loop {
        match command.reader.next().await.unwrap().unwrap() {
            Event::Data(id, bytes) if id == command.stdout => check.push(&bytes),
            Event::GoAway(_) => break,
            _ => {}
        }
    }
    assert_eq!(check.count, GIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_arrives_over_websocket() {
    let running = start(Limits::default()).await;
    let url = running.shell("stdout", &lines(GIB / 8));
    let mut channels = Channels::connect(&url, "v5.channel.k8s.io").await.unwrap();
    let mut check = Check::new();
    while let Some((channel, bytes)) = channels.next().await.unwrap() {
        if channel == 1 {
            check.push(&bytes);
        }
    }
    assert_eq!(check.count, GIB / 8);
}

/// Through a process and back, with a reader that rests now and then: both directions are held back
/// and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_is_whole_with_a_slow_reader() {
    let running = start(Limits::default()).await;
    let url = running.exec("stdin stdout", &["cat"]);
    let command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    let Command {
        mut writer,
        mut reader,
        stdin,
        stdout,
        ..
    } = command;
    let size = 64 << 20;
    let send = async move {
        let block = LINE.repeat(2048);
        for _ in 0..size / block.len() {
            writer.send(stdin, &block).await.unwrap();
        }
        writer.finish(stdin).await.unwrap();
        writer
    };
    let receive = async move {
        let mut check = Check::new();
        let mut rests = 0;
        loop {
            match reader.next().await.unwrap().unwrap() {
                Event::Data(id, bytes) if id == stdout => check.push(&bytes),
                Event::GoAway(_) => break,
                _ => {}
            }
            if check.count / (4 << 20) > rests {
                rests += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        check.count
    };
    let (_writer, count) = tokio::join!(send, receive);
    assert_eq!(count, size);
}

/// A client that does flow control is kept to its windows, and keeps us to ours.
#[tokio::test]
async fn windows_are_kept_for_a_client_that_has_them() {
    let running = start(Limits::default()).await;
    let url = running.exec("stdout", &["cat", "/dev/zero"]);
    let mut command = Command::connect(&url, &[]).await.unwrap();
    // SETTINGS: an initial window of 10,000 bytes.
    let settings = [[1, 7], [10_000, 0]].map(|[a, b]: [u32; 2]| (a, b));
    let content = [settings[0].0, settings[0].1, settings[1].0]
        .map(u32::to_be_bytes)
        .concat();
    command.writer.control(4, &content).await.unwrap();
    command.stdout = command
        .writer
        .open(&[("streamtype", "stdout")])
        .await
        .unwrap();
    let received = async |command: &mut Command<_>| {
        let mut count = 0;
        let quiet = Duration::from_millis(500);
        while let Ok(event) = tokio::time::timeout(quiet, command.reader.next()).await {
            if let Some(Event::Data(_, bytes)) = event.unwrap() {
                count += bytes.len();
            }
        }
        count
    };
    assert_eq!(received(&mut command).await, 10_000);
    command.writer.pair(9, command.stdout, 5_000).await.unwrap();
    assert_eq!(received(&mut command).await, 5_000);
    // The session's window is 64 KiB until the client says more.
    command.writer.pair(9, 0, 1).await.unwrap();
    command
        .writer
        .pair(9, command.stdout, 1 << 20)
        .await
        .unwrap();
    assert_eq!(received(&mut command).await, 65_536 + 1 - 15_000);
    // One window too large is that stream's end.
    command
        .writer
        .pair(9, command.stdout, 0x7fff_ffff)
        .await
        .unwrap();
    while command.reader.next().await.unwrap().unwrap() != Event::Reset(command.stdout, 7) {}
}

#[tokio::test]
async fn a_client_that_has_windows_must_keep_to_ours() {
    let running = start(Limits::default()).await;
    let url = running.exec("stdin stdout", &["sleep", "1000"]);
    let mut command = Command::connect(&url, &["stdin", "stdout"]).await.unwrap();
    let told = async |command: &mut Command<_>, id: u32| loop {
        let event = command.reader.next().await.unwrap().unwrap();
        if let Event::Settings(pairs) = event {
            return pairs.into_iter().find(|pair| pair.0 == id).unwrap().1 as usize;
        }
    };
    let window = told(&mut command, 7).await;
    command.writer.pair(9, command.stdout, 1).await.unwrap();
    // The pipe takes 64 KiB, and what is on its way to it is not in the window any more.
    let mut sent = 0;
    let reset = loop {
        command
            .writer
            .send(command.stdin, &[0; 16 * 1024])
            .await
            .unwrap();
        sent += 16 * 1024;
        let soon = Duration::from_millis(20);
        if let Ok(event) = tokio::time::timeout(soon, command.reader.next()).await
            && let Some(Event::Reset(id, reason)) = event.unwrap()
        {
            break (id, reason);
        }
        assert!(sent < 2 * window, "it goes on and on");
    };
    assert_eq!(reset, (command.stdin, 7));
    assert!(sent > window);
}
