//! Copying between a connection and a process.
//!
//! Output: bytes leave the pipe only while there is a connection, so a host that does not read
//! stops the process, and a broken connection loses nothing that is still in the pipe. When the
//! process has ended, what is in the pipe at that time (no more than the pipe can hold) is taken
//! into memory: then the total is known and the exit can be told, whoever else may still hold the
//! pipe's other end (a background grandchild of an exec: its later output is lost, it gets SIGPIPE)
//! and whether or not the host reads. The rest is delivered after that, then the connection is
//! half-closed.
//!
//! The total counts the bytes read from the process. Bytes that a connection had accepted when it
//! broke may be lost; nobody can tell.

use super::Port;
use crate::sys::fd::Fd;
use crate::sys::ioctl::bytes_waiting;
use tokio::sync::oneshot;

/// Bytes that are copied at a time.
const CHUNK: usize = 64 * 1024;
/// The most that is taken into memory when a process has ended: the largest pipe that an
/// unprivileged process can make (`fs.pipe-max-size`).
const MAX_REST: usize = 1024 * 1024;

/// What a pump is told and tells when its process ends.
#[derive(Debug)]
pub struct OutputEnd {
    /// Comes when the process has ended; also when the sender is dropped.
    pub ended: oneshot::Receiver<()>,
    /// Gets the number of bytes that the process wrote, once that is known.
    pub total: oneshot::Sender<u64>,
}

/// Copies a process's output to its stream until both are finished.
pub async fn output(source: Fd, mut port: Port, mut end: OutputEnd) {
    let mut chunk = vec![0; CHUNK];
    let mut pending = 0..0;
    let mut total = 0u64;
    let mut connection: Option<Fd> = None;
    loop {
        if pending.is_empty() {
            tokio::select! {
                biased;
                newer = port.connection() => connection = Some(newer),
                _ = &mut end.ended => break,
                result = source.read(&mut chunk), if connection.is_some() => match result {
                    Ok(n @ 1..) => {
                        pending = 0..n;
                        total += n as u64;
                    }
                    Ok(0) | Err(_) => break,
                },
            }
        } else {
            let waiting = chunk.get(pending.clone()).unwrap_or_default();
            tokio::select! {
                biased;
                newer = port.connection() => connection = Some(newer),
                _ = &mut end.ended => break,
                result = write(connection.as_ref(), waiting) => match result {
                    Ok(n) => pending.start += n,
                    Err(_) => connection = None,
                },
            }
        }
    }
    let mut rest = chunk.get(pending).unwrap_or_default().to_vec();
    total += drain(&source, &mut chunk, &mut rest);
    drop((source, chunk));
    // Nobody may want to know.
    let _ = end.total.send(total);
    deliver(&rest, connection, &mut port).await;
}

/// Reads what a pipe holds at this time. The kernel has all that a terminal's processes wrote
/// before it says that nothing is there.
fn drain(source: &Fd, chunk: &mut [u8], rest: &mut Vec<u8>) -> u64 {
    // A terminal in line mode counts only whole lines here: its reads end by themselves.
    let limit = bytes_waiting(source).unwrap_or(0).clamp(CHUNK, MAX_REST);
    let mut taken = 0;
    while taken < limit {
        let Ok(Some(n @ 1..)) = source.read_now(chunk) else {
            break;
        };
        rest.extend_from_slice(chunk.get(..n).unwrap_or_default());
        taken += n;
    }
    taken as u64
}

/// Delivers the last bytes, however often the connection breaks, and ends the stream.
async fn deliver(mut rest: &[u8], mut connection: Option<Fd>, port: &mut Port) {
    while !rest.is_empty() {
        tokio::select! {
            biased;
            newer = port.connection() => connection = Some(newer),
            result = write(connection.as_ref(), rest) => match result {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(_) => connection = None,
            },
        }
    }
    if let Some(connection) = connection {
        // The peer may be gone by now.
        let _ = connection.shutdown_write();
    }
}

async fn write(connection: Option<&Fd>, bytes: &[u8]) -> std::io::Result<usize> {
    match connection {
        Some(connection) => connection.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// When a process's stdin ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// When the host half-closes; a connection that is gone altogether may come again. For a
    /// container, which outlives the daemon.
    HalfClose,
    /// When the connection ends, in whatever way. For an exec, which nobody can come back to.
    AnyClose,
}

/// Copies a stream to a process's stdin until either ends. A terminal has no end of file: it gets
/// its end-of-file character.
pub async fn input(mut port: Port, sink: Fd, end: InputEnd, terminal: bool) {
    let mut chunk = vec![0; CHUNK];
    let mut connection = port.connection().await;
    loop {
        let result = tokio::select! {
            biased;
            newer = port.connection() => {
                connection = newer;
                continue;
            }
            result = connection.read(&mut chunk) => result,
        };
        match result {
            Ok(n @ 1..) => {
                if sink
                    .write_all(chunk.get(..n).unwrap_or_default())
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Ok(0) if end == InputEnd::AnyClose || !connection.peer_is_gone() => break,
            Err(_) if end == InputEnd::AnyClose => break,
            Ok(0) | Err(_) => connection = port.connection().await,
        }
    }
    if terminal {
        const END_OF_TRANSMISSION: u8 = 4;
        let character = rustix::termios::tcgetattr(&sink).map_or(END_OF_TRANSMISSION, |settings| {
            settings.special_codes[rustix::termios::SpecialCodeIndex::VEOF]
        });
        // The process may have ended.
        let _ = sink.write_all(&[character]).await;
    }
}
