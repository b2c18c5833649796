//! One connection to a port of a pod.

use crate::backend::Backend;
use crate::streams::{CHUNK, Sink, Source};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Relays between a client's stream and the port until both directions have ended, or one breaks. Why
/// it could not be is told on the error stream; each stream is ended.
pub(crate) async fn run(
    backend: &dyn Backend,
    (pod, port): (&str, u16),
    (mut source, mut data, mut error): (Source, Sink, Sink),
) -> io::Result<()> {
    let half_closes = matches!(data, Sink::Spdy(_));
    match backend.forward(pod, port).await {
        Ok((mut reader, mut writer)) => {
            let outward = async {
                while let Some(bytes) = source.read().await? {
                    if writer.write_all(&bytes).await.is_err() {
                        // The port takes no more; what it has to say is still wanted.
                        return Ok(());
                    }
                }
                // One that has closed altogether needs no end of file.
                writer.shutdown().await.or(Ok(()))
            };
            let inward = async {
                loop {
                    let mut bytes = BytesMut::with_capacity(CHUNK);
                    if reader.read_buf(&mut bytes).await? == 0 {
                        return data.finish().await;
                    }
                    data.write(bytes.freeze()).await?;
                }
            };
            if half_closes {
                tokio::try_join!(outward, inward)?;
            } else {
                // The client can not be told that the port has said everything, but by the end.
                let outward = async {
                    outward.await?;
                    std::future::pending().await
                };
                tokio::select! {
                    result = inward => result?,
                    result = outward => return result,
                }
            }
        }
        Err(problem) => {
            let words = format!("error forwarding port {port} to pod {pod}: {problem}");
            error.write(Bytes::from(words)).await?;
            data.finish().await?;
        }
    }
    error.finish().await
}
