use super::pump::{InputEnd, OutputEnd, input, output};
use super::*;
use crate::Error;
use crate::deadline::Deadline;
use crate::sys::fd::Fd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn pair() -> (Fd, Fd) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    (Fd::new(a.into()).unwrap(), Fd::new(b.into()).unwrap())
}

struct Pumped {
    hub: Arc<Hub>,
    ended: oneshot::Sender<()>,
    total: oneshot::Receiver<u64>,
}

fn start_output(source: OwnedFd) -> Pumped {
    let hub = Arc::new(Hub::default());
    let port = hub.claim(7).unwrap();
    let (ended, ended_rx) = oneshot::channel();
    let (total_tx, total) = oneshot::channel();
    let end = OutputEnd {
        ended: ended_rx,
        total: total_tx,
    };
    tokio::spawn(output(Fd::new(source).unwrap(), port, end));
    Pumped { hub, ended, total }
}

async fn read_to_end(fd: &Fd) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = vec![0; 4096];
    loop {
        match timeout(Duration::from_secs(5), fd.read(&mut chunk))
            .await
            .unwrap()
            .unwrap()
        {
            0 => return all,
            n => all.extend_from_slice(&chunk[..n]),
        }
    }
}

#[tokio::test]
async fn output_is_delivered_whether_the_host_connects_first_or_last() {
    for late in [false, true] {
        let (read, write) = pipe();
        let pumped = start_output(read);
        let (host, agent) = pair();
        if !late {
            pumped.hub.connect(7, agent);
            rustix::io::write(&write, b"hello").unwrap();
            drop(write);
        } else {
            rustix::io::write(&write, b"hello").unwrap();
            drop(write);
            tokio::time::sleep(Duration::from_millis(20)).await;
            pumped.hub.connect(7, agent);
        }
        assert_eq!(read_to_end(&host).await, b"hello");
        assert_eq!(pumped.total.await.unwrap(), 5);
    }
}

#[tokio::test]
async fn the_total_is_known_at_the_end_even_if_nobody_reads_and_the_pipe_stays_open() {
    let (read, write) = pipe();
    let pumped = start_output(read);
    rustix::io::write(&write, &[1; 5000]).unwrap();
    pumped.ended.send(()).unwrap();
    assert_eq!(
        timeout(Duration::from_secs(5), pumped.total)
            .await
            .unwrap()
            .unwrap(),
        5000
    );
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    assert_eq!(read_to_end(&host).await.len(), 5000);
    // The stream is over: a later connection ends at once.
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    assert!(read_to_end(&host).await.is_empty());
}

#[tokio::test]
async fn a_connection_that_breaks_loses_nothing_that_was_not_sent() {
    let (read, write) = pipe();
    let pumped = start_output(read);
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    rustix::io::write(&write, b"one").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(host.read(&mut buffer).await.unwrap(), 3);
    drop(host);
    rustix::io::write(&write, b"two").unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    drop(write);
    assert_eq!(read_to_end(&host).await, b"two");
    assert_eq!(pumped.total.await.unwrap(), 6);
}

#[tokio::test]
async fn a_host_that_does_not_read_holds_the_process_back() {
    let (read, write) = pipe();
    let pumped = start_output(read);
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    let write = Fd::new(write).unwrap();
    let block = vec![0; 1 << 16];
    let mut sent = 0;
    while let Ok(result) = timeout(Duration::from_millis(200), write.write(&block)).await {
        sent += result.unwrap();
    }
    assert!(sent < 4 << 20, "{sent}");
    drop(write);
    assert_eq!(read_to_end(&host).await.len(), sent);
    assert_eq!(pumped.total.await.unwrap(), sent as u64);
}

#[tokio::test]
async fn a_half_close_is_the_end_of_stdin_and_a_lost_connection_is_not() {
    let hub = Arc::new(Hub::default());
    let (read, write) = pipe();
    let port = hub.claim(1).unwrap();
    let (host, agent) = pair();
    hub.connect(1, agent);
    tokio::spawn(input(
        port,
        Fd::new(write).unwrap(),
        InputEnd::HalfClose,
        false,
    ));
    let read = Fd::new(read).unwrap();
    host.write_all(b"a").await.unwrap();
    let mut buffer = [0; 16];
    assert_eq!(read.read(&mut buffer).await.unwrap(), 1);
    drop(host);
    assert!(
        timeout(Duration::from_millis(100), read.read(&mut buffer))
            .await
            .is_err()
    );
    let (host, agent) = pair();
    hub.connect(1, agent);
    host.write_all(b"b").await.unwrap();
    host.shutdown_write().unwrap();
    assert_eq!(read_to_end(&read).await, b"b");
}

#[tokio::test]
async fn any_close_ends_the_stdin_of_an_exec() {
    let hub = Arc::new(Hub::default());
    let (read, write) = pipe();
    let port = hub.claim(1).unwrap();
    let (host, agent) = pair();
    hub.connect(1, agent);
    tokio::spawn(input(
        port,
        Fd::new(write).unwrap(),
        InputEnd::AnyClose,
        false,
    ));
    host.write_all(b"b").await.unwrap();
    drop(host);
    assert_eq!(read_to_end(&Fd::new(read).unwrap()).await, b"b");
}

#[tokio::test]
async fn an_id_is_used_once() {
    let hub = Arc::new(Hub::default());
    assert!(hub.claim(0).is_err());
    let port = hub.claim(3).unwrap();
    assert!(hub.claim(3).is_err());
    drop(port);
    assert!(hub.claim(3).is_err());
}

/// Prints how fast the pump is; `--release --ignored --nocapture` to see something true.
#[tokio::test]
#[ignore = "a measurement"]
async fn throughput() {
    const BLOCKS: usize = 32 * 1024;
    let (read, write) = pipe();
    let pumped = start_output(read);
    let (host, agent) = pair();
    pumped.hub.connect(7, agent);
    std::thread::spawn(move || {
        let block = vec![0; 1 << 16];
        for _ in 0..BLOCKS {
            let mut sent = 0;
            while sent < block.len() {
                sent += rustix::io::write(&write, &block[sent..]).unwrap();
            }
        }
    });
    let reader = std::thread::spawn(move || {
        let mut chunk = vec![0; 1 << 18];
        let begin = std::time::Instant::now();
        let flags = rustix::event::PollFlags::IN;
        loop {
            rustix::event::poll(&mut [rustix::event::PollFd::new(&host, flags)], None).unwrap();
            if rustix::io::read(&host, &mut chunk).unwrap() == 0 {
                return begin.elapsed();
            }
        }
    });
    let total = pumped.total.await.unwrap();
    let time = tokio::task::spawn_blocking(|| reader.join().unwrap())
        .await
        .unwrap();
    println!("{} MB/s", total as f64 / 1e6 / time.as_secs_f64());
}

/// A port that answers, after the end of what it is sent, with that.
async fn echo() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut all)
                    .await
                    .unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut socket, &all)
                    .await
                    .unwrap();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_port_s_connection_is_joined_with_its_stream_and_half_closed() {
    let (hub, port) = (Arc::new(Hub::default()), echo().await);
    let forwards = Forwards::new(hub.clone());
    let mut streams = Vec::new();
    for id in 1..=20 {
        forwards
            .open(port.into(), id, Deadline::NEVER)
            .await
            .unwrap();
        let (ours, theirs) = pair();
        hub.connect(id, theirs);
        streams.push((ours, vec![id as u8; 1000 * id as usize]));
    }
    for (stream, bytes) in &streams {
        stream.write_all(bytes).await.unwrap();
        stream.shutdown_write().unwrap();
    }
    for (stream, bytes) in &streams {
        assert!(read_to_end(stream).await == *bytes);
    }
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told() {
    let hub = Arc::new(Hub::default());
    let forwards = Forwards::new(hub.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    drop(listener);
    let refused = forwards.open(port, 1, Deadline::NEVER).await.unwrap_err();
    assert!(matches!(refused, Error::Precondition(_)), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
    for port in [0, 65_536] {
        let wrong = forwards.open(port, 2, Deadline::NEVER).await.unwrap_err();
        assert!(matches!(wrong, Error::Invalid(_)), "{wrong}");
    }
    // The stream of a refused call is over.
    let (ours, theirs) = pair();
    hub.connect(1, theirs);
    assert_eq!(read_to_end(&ours).await, b"");
}

#[tokio::test]
async fn programs_may_listen_on_ipv6_only() {
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        return eprintln!("skipped: there is no IPv6 here");
    };
    let port = u32::from(listener.local_addr().unwrap().port());
    let forwards = Forwards::new(Arc::default());
    forwards.open(port, 1, Deadline::NEVER).await.unwrap();
}

#[tokio::test]
async fn a_host_that_has_gone_ends_the_port_s_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let hub = Arc::new(Hub::default());
    let forwards = Forwards::new(hub.clone());
    forwards.open(port, 1, Deadline::NEVER).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let (ours, theirs) = pair();
    hub.connect(1, theirs);
    ours.write_all(b"x").await.unwrap();
    drop(ours);
    let mut all = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut all)
        .await
        .unwrap();
    assert_eq!(all, b"x");
    // Though this program never ends its side, the place is free again.
    let free = async {
        while forwards.open_now() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), free).await.unwrap();
}
