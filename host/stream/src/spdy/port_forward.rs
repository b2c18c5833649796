//! Port-forward over SPDY (`portforward.k8s.io`): for each connection a data and an error stream with
//! the same `requestID` and `port`, any number of them.

use super::{Connection, Stream};
use crate::backend::Backend;
use crate::forward;
use crate::limits::Limits;
use crate::streams::{Sink, Source};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The subprotocol's name.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";

/// A stream that waits for the other of its pair.
struct Half {
    stream: Stream,
    is_data: bool,
    port: u16,
    since: Instant,
}

/// Serves a pod's ports over a connection that has been upgraded.
pub(crate) async fn serve<T>(io: T, backend: Arc<dyn Backend>, limits: &Limits, pod: &str)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Connection::start(io, limits);
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let oldest = halves.values().map(|half| half.since + limits.setup).min();
        let expiry = async {
            match oldest {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(_) = forwards.join_next() => continue,
            () = expiry => {
                // Dropped streams are reset.
                halves.retain(|_, half| half.since.elapsed() < limits.setup);
                continue;
            }
        };
        let Some(stream) = stream else {
            return;
        };
        let Some((key, half)) = read(stream) else {
            tracing::debug!("A port-forward client opened a stream with wrong headers");
            continue;
        };
        let Some(other) = halves.remove(&key) else {
            halves.insert(key, half);
            continue;
        };
        let (data, error) = match (half.is_data, other.is_data) {
            (true, false) => (half, other),
            (false, true) => (other, half),
            _ => continue,
        };
        if data.port != error.port {
            continue;
        }
        let (backend, pod) = (Arc::clone(&backend), pod.to_owned());
        forwards.spawn(async move {
            // Of the error stream only our direction is used.
            let Stream { reader, writer, .. } = data.stream;
            let error = Sink::Spdy(error.stream.writer);
            let streams = (Source::Spdy(reader), Sink::Spdy(writer), error);
            if let Err(error) = forward::run(&*backend, (&pod, data.port), streams).await {
                tracing::debug!(%error, pod, "A forwarded connection broke");
            }
        });
    }
}

fn read(stream: Stream) -> Option<(String, Half)> {
    let is_data = match stream.headers.get("streamtype") {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let port = stream
        .headers
        .get("port")
        .parse()
        .ok()
        .filter(|port| *port > 0)?;
    let key = match stream.headers.get("requestid") {
        // Kubernetes 1.0: the error stream is opened first, and the data stream right after it.
        "" if is_data => format!("#{}", stream.id.checked_sub(2)?),
        "" => format!("#{}", stream.id),
        id => id.to_owned(),
    };
    let since = Instant::now();
    Some((
        key,
        Half {
            stream,
            is_data,
            port,
            since,
        },
    ))
}
