//! Clients of streaming URLs, written for the tests: SPDY from the specification, WebSocket with a
//! library, and what `kubectl` needs to be one.

pub mod kubectl;
pub mod spdy;
pub mod websocket;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The answer to an HTTP request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and fields.
    pub head: String,
}

impl Answer {
    /// The values of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        let right = pairs.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        right.map(|(_, value)| value.trim()).collect()
    }
}

/// Host with port, and path of an `http` URL.
///
/// # Errors
/// It is another kind of URL.
pub fn parse(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").context("It is no http URL")?;
    let slash = rest.find('/').context("The URL has no path")?;
    Ok(rest.split_at(slash))
}

/// Sends a request to a URL and reads the answer's head.
///
/// # Errors
/// The server can not be reached, or does not speak HTTP.
pub async fn request(url: &str, method: &str, fields: &str) -> Result<(TcpStream, Answer)> {
    let (host, path) = parse(url)?;
    let mut socket = TcpStream::connect(host).await?;
    let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    socket.write_all(text.as_bytes()).await?;
    let head = read_head(&mut socket).await?;
    let status = head.split(' ').nth(1).context("There is no status line")?;
    let status = status.parse()?;
    Ok((socket, Answer { status, head }))
}

/// Reads the head of an HTTP message, byte by byte because what follows may be another protocol.
pub(crate) async fn read_head(socket: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 64 * 1024, "The head does not end");
        head.push(socket.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
