//! `kubectl` as a client of streaming URLs: an API server that knows one pod and passes the connections
//! of exec, attach and port-forward on, byte for byte, as the real one and the kubelet do.

use super::{parse, read_head};
use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Gives the streaming URL for a request: the subresource and the query's pairs.
pub type Route =
    Arc<dyn Fn(String, Vec<(String, String)>) -> BoxFuture<'static, Result<String>> + Send + Sync>;

/// The API server.
pub struct ApiServer {
    address: String,
    upgrades: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// Serves the pod `default/pod` with the container `main`.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(tty: bool, route: Route) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let upgrades = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&upgrades);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (route, seen) = (Arc::clone(&route), Arc::clone(&seen));
                tokio::spawn(async move {
                    if let Err(error) = serve(socket, tty, route, seen).await {
                        eprintln!("API server: {error:#}");
                    }
                });
            }
        });
        Ok(Self {
            address,
            upgrades,
            task,
        })
    }

    /// A `kubectl` of this server.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", "/dev/null")
            .arg(format!("--server={}", self.address));
        command
    }

    /// The subprotocols of the connections that were passed on.
    #[must_use]
    pub fn protocols(&self) -> Vec<String> {
        self.upgrades
            .lock()
            .map(|seen| seen.clone())
            .unwrap_or_default()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut socket: TcpStream,
    tty: bool,
    route: Route,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<()> {
    let head = read_head(&mut socket).await?;
    let (line, fields) = head.split_once("\r\n").context("The request has no line")?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pod = "/api/v1/namespaces/default/pods/pod";
    if let Some(subresource) = path
        .strip_prefix(pod)
        .and_then(|rest| rest.strip_prefix('/'))
    {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), decode(value)));
        let url = route(subresource.to_owned(), pairs.collect()).await?;
        for field in fields.lines().filter_map(|line| line.split_once(": ")) {
            let name = field.0.to_ascii_lowercase();
            if name == "sec-websocket-protocol" || name == "x-stream-protocol-version" {
                seen.lock()
                    .map(|mut seen| seen.push(field.1.to_owned()))
                    .ok();
            }
        }
        let (host, path) = parse(&url)?;
        let mut server = TcpStream::connect(host).await?;
        server
            .write_all(format!("{method} {path} HTTP/1.1\r\n{fields}").as_bytes())
            .await?;
        // A client that goes away breaks this off, which is the server's business.
        let _ = tokio::io::copy_bidirectional(&mut socket, &mut server).await;
        return Ok(());
    }
    let body = match path {
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get"], "shortNames": ["po"] }],
        }),
        _ if path == pod => the_pod(tty),
        _ => {
            let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return Ok(socket.write_all(text.as_bytes()).await?);
        }
    };
    let body = body.to_string();
    let length = body.len();
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    Ok(socket.write_all(text.as_bytes()).await?)
}

fn the_pod(tty: bool) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": "pod", "namespace": "default" },
        "spec": { "containers": [{ "name": "main", "image": "x", "stdin": true, "tty": tty }] },
        "status": { "phase": "Running" },
    })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
