//! `bulkhead serve`: opens the stores, listens, and serves until it is told to end.

use crate::config::Config;
use crate::cri::{ImageApi, RuntimeApi};
use crate::heap;
use crate::node::NodeApi;
use crate::streams::PodStreams;
use anyhow::{Context, Result};
use bulkhead_cri::v1::image_service_server::ImageServiceServer;
use bulkhead_cri::v1::runtime_service_server::RuntimeServiceServer;
use bulkhead_image::ImageStore;
use bulkhead_node_api::v1::node_server::NodeServer;
use bulkhead_sandbox::Sandboxes;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;

/// The largest message that is taken or sent; as the kubelet's.
const MAX_MESSAGE: usize = 16 << 20;

/// Serves until SIGTERM or SIGINT. Pods go on without the daemon.
pub(crate) async fn serve(config: Config, json_logs: bool) -> Result<()> {
    log_to_stderr(json_logs);
    let config = Arc::new(config);
    let root = config.root.join("images");
    let settings = config.images.store();
    let images = tokio::task::spawn_blocking(move || ImageStore::open(&root, settings)).await??;
    let sandboxes = Sandboxes::open(config.node()).await?;
    let listener = listen(&config).await?;
    let streams = PodStreams::new(sandboxes.clone());
    let streams =
        bulkhead_stream::Server::start(config.streaming.server()?, Arc::new(streams)).await?;
    tracing::info!(address = %streams.address(), "Streaming");
    let runtime = RuntimeApi::new(
        Arc::clone(&config),
        sandboxes.clone(),
        images.clone(),
        streams.urls(),
    );
    let node = NodeApi::new(sandboxes, images.clone());
    let router = Server::builder()
        .add_service(
            RuntimeServiceServer::new(runtime)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(ImageApi::new(images)).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(NodeServer::new(node).max_decoding_message_size(MAX_MESSAGE));
    tracing::info!(socket = %config.socket.display(), "Serving");
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        result = router.serve_with_incoming(UnixListenerStream::new(listener)) => {
            result.context("The server failed")?;
        }
        // Calls under way are dropped: what they had begun is in the store and is taken up by the
        // next daemon, and waiting for streams could take for ever.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = heap::give_back() => {}
    }
    match tokio::fs::remove_file(&config.socket).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("Cannot remove the socket")
        }
        _ => Ok(()),
    }
}

fn log_to_stderr(json: bool) {
    let filter = EnvFilter::try_from_env("BULKHEAD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,bulkhead=info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match json {
        true => builder.json().init(),
        false => builder.with_ansi(false).init(),
    }
}

/// Listens on the socket, which only its owner and group may use. A socket that a dead daemon left is replaced, a
/// living one's is not.
async fn listen(config: &Config) -> Result<UnixListener> {
    let path = config.socket.as_path();
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory)
            .await
            .with_context(|| format!("Cannot make the directory {}", directory.display()))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        anyhow::bail!(
            "Another daemon serves on {}; stop it or set another socket",
            path.display()
        );
    }
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("Cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("Cannot listen on {}", path.display()))?;
    // In this order: until it has its owner only root can connect.
    let protect = || format!("Cannot protect {}", path.display());
    std::os::unix::fs::chown(path, Some(config.socket_uid), Some(config.socket_gid))
        .with_context(protect)?;
    tokio::fs::set_permissions(path, Permissions::from_mode(config.socket_mode))
        .await
        .with_context(protect)?;
    Ok(listener)
}
