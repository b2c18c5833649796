use super::Pump;
use crate::io::ContainerIo;
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Lines of all lengths, also longer than a log line may be.
fn lines(count: usize) -> Vec<String> {
    let line = |number: usize| format!("{number} {}", "x".repeat(number * 7919 % 40_000));
    (0..count).map(line).collect()
}

/// What a reader of the CRI's log format makes of it.
fn read(log: &str) -> Vec<String> {
    let (mut all, mut line) = (Vec::new(), String::new());
    for entry in log.lines() {
        let mut parts = entry.splitn(4, ' ').skip(1);
        assert_eq!(parts.next(), Some("stdout"), "{entry:.80}");
        let tag = parts.next();
        line.push_str(parts.next().unwrap());
        match tag {
            Some("F") => all.push(std::mem::take(&mut line)),
            tag => assert_eq!(tag, Some("P"), "{entry:.80}"),
        }
    }
    assert_eq!(line, "", "the last line has an end");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_reopened_under_load_has_every_line_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let io = Arc::new(ContainerIo::default());
    io.log.open(&path).await.unwrap();
    let pump = Pump {
        container: "test".to_owned(),
        io: Arc::clone(&io),
    };
    let (mut writer, reader) = tokio::io::duplex(10_000);
    let task = pump.spawn(Some(reader), None);
    let wanted = lines(3000);
    let text = wanted.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    });
    let written = tokio::spawn(async move { writer.write_all(text.as_bytes()).await });
    let mut parts = Vec::new();
    while !written.is_finished() {
        let old = directory.path().join(format!("{}.old", parts.len()));
        tokio::fs::rename(&path, &old).await.unwrap();
        io.log.open(&path).await.unwrap();
        parts.push(old);
        tokio::task::yield_now().await;
    }
    written.await.unwrap().unwrap();
    task.await.unwrap();
    assert!(parts.len() > 10, "it was reopened {} times", parts.len());
    parts.push(path);
    let log: String = parts
        .iter()
        .map(|part| std::fs::read_to_string(part).unwrap())
        .collect();
    assert!(read(&log) == wanted, "the lines differ");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_comes_back_when_it_is_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let io = ContainerIo::default();
    io.log.open("/dev/full".as_ref()).await.unwrap();
    io.log.write("test", b"lost\n").await;
    io.log.write("test", b"dropped\n").await;
    let path = directory.path().join("a/b.log");
    io.log.open(&path).await.unwrap();
    io.log.write("test", b"kept\n").await;
    assert_eq!(std::fs::read(&path).unwrap(), b"kept\n");
}
