//! A WebSocket client.

use super::parse;
use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Upgrades a streaming URL to WebSocket and tells the subprotocol that was chosen.
///
/// # Errors
/// The server does not want to.
pub async fn connect(url: &str, protocols: &str) -> Result<(WebSocketStream<TcpStream>, String)> {
    let (host, path) = parse(url)?;
    let mut request = format!("ws://{host}{path}").into_client_request()?;
    if !protocols.is_empty() {
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocols.parse()?);
    }
    let socket = TcpStream::connect(host).await?;
    let (socket, response) = tokio_tungstenite::client_async(request, socket).await?;
    let chosen = response.headers().get("sec-websocket-protocol");
    Ok((
        socket,
        chosen.map_or(Ok(""), |name| name.to_str())?.to_owned(),
    ))
}

/// A connection with channels in binary.
pub struct Channels(pub WebSocketStream<TcpStream>);

impl Channels {
    /// Upgrades a streaming URL with a subprotocol.
    ///
    /// # Errors
    /// The server does not want to.
    pub async fn connect(url: &str, protocol: &str) -> Result<Self> {
        let (socket, chosen) = connect(url, protocol).await?;
        anyhow::ensure!(chosen == protocol, "{chosen}");
        Ok(Self(socket))
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        Ok(self.0.send(Message::binary(message)).await?)
    }

    /// Ends a channel, as version 5 can.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn end(&mut self, channel: u8) -> Result<()> {
        Ok(self.0.send(Message::binary(vec![255, channel])).await?)
    }

    /// The next bytes and their channel; `None` when the server has closed the connection.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match self.0.next().await.context("The connection broke off")?? {
                Message::Binary(bytes) => {
                    let (channel, bytes) = bytes.split_first().context("A message is empty")?;
                    return Ok(Some((*channel, bytes.to_vec())));
                }
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) => {}
                other => bail!("{other:?}"),
            }
        }
    }

    /// Reads until the server closes: what came on channels 0 to 4.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn output(&mut self) -> Result<[Vec<u8>; 5]> {
        let mut output: [Vec<u8>; 5] = Default::default();
        while let Some((channel, bytes)) = self.next().await? {
            let place = output.get_mut(usize::from(channel));
            place.context("An unknown channel")?.extend(bytes);
        }
        Ok(output)
    }

    /// Reads standard output until it has some text.
    ///
    /// # Errors
    /// It ends without.
    pub async fn until(&mut self, text: &str) -> Result<String> {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (channel, bytes) = self.next().await?.context("It was closed")?;
            anyhow::ensure!(
                channel == 1,
                "{channel}: {}",
                String::from_utf8_lossy(&bytes)
            );
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok(seen)
    }
}
