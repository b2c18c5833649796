//! The command line.

mod exec;
mod logs;
mod ps;
mod pull;
mod rm;
mod run;
mod session;
mod target;
mod terminal;
mod volumes;

use crate::check;
use crate::config::{Config, DEFAULT_SOCKET};
use crate::serve;
use anyhow::{Context, Result};
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use bulkhead_node_api::v1::node_client::NodeClient;
use clap::{Args, Parser, Subcommand};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Exit status when a command other than `run` fails; `run` uses 125, as Docker does.
pub(crate) const FAILED: u8 = 1;

/// A container runtime that gives every pod its own virtual machine.
#[derive(Parser)]
#[command(name = "bulkhead", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The daemon's socket
    #[arg(long, global = true, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the CRI; this is the daemon
    Serve(ServeArgs),
    /// Say whether this node can run pods, and what to do if not
    Check(CheckArgs),
    /// Run a container in a pod of its own and wait for it
    Run(run::RunArgs),
    /// List pods and containers
    Ps(ps::PsArgs),
    /// Print the log of a container
    Logs(logs::LogsArgs),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// Remove pods with their containers
    Rm(rm::RmArgs),
    /// Pull an image
    Pull(pull::PullArgs),
    /// Ask for direct volumes, or have them grow
    Volumes(volumes::VolumesArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The configuration file [default: /etc/bulkhead/config.toml, if there is one]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Log as JSON, one object a line
    #[arg(long)]
    log_json: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// The configuration file [default: /etc/bulkhead/config.toml, if there is one]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Runs the command and tells the exit status.
    pub(crate) fn run(self) -> Result<u8> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("Cannot start the async runtime")?;
        let result = runtime.block_on(self.dispatch());
        // A read from a terminal cannot be interrupted; it must not keep the program alive.
        runtime.shutdown_background();
        result
    }

    async fn dispatch(self) -> Result<u8> {
        let client = Client {
            socket: self.socket,
        };
        match self.command {
            Command::Serve(args) => {
                let config = Config::load(args.config.as_deref())?;
                serve::serve(config, args.log_json).await.map(|()| 0)
            }
            Command::Check(args) => {
                let config = Config::load(args.config.as_deref())?;
                Ok(check::print(&check::run(&config), args.json))
            }
            Command::Run(args) => run::run(&client, args).await,
            Command::Ps(args) => ps::run(&client, args).await,
            Command::Logs(args) => logs::run(&client, args).await,
            Command::Exec(args) => exec::run(&client, args).await,
            Command::Rm(args) => rm::run(&client, args).await,
            Command::Pull(args) => pull::run(&client, &args.image).await.map(|()| 0),
            Command::Volumes(args) => volumes::run(&client, args).await,
        }
    }
}

/// Connects to the daemon.
struct Client {
    socket: PathBuf,
}

impl Client {
    async fn channel(&self) -> Result<Channel> {
        let socket = self.socket.clone();
        // Tonic wants a URI; the connector below decides where it goes.
        let endpoint = Endpoint::from_static("http://bulkhead");
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .with_context(|| {
                format!(
                    "Cannot reach the daemon at {}; is `bulkhead serve` running, and are you root?",
                    self.socket.display()
                )
            })
    }

    async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>> {
        Ok(RuntimeServiceClient::new(self.channel().await?))
    }

    async fn images(&self) -> Result<ImageServiceClient<Channel>> {
        Ok(ImageServiceClient::new(self.channel().await?))
    }

    async fn node(&self) -> Result<NodeClient<Channel>> {
        Ok(NodeClient::new(self.channel().await?))
    }
}

/// The daemon's refusal, without the transport's decoration.
fn refused(status: tonic::Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow::anyhow!("{}", status.code()),
        message => anyhow::anyhow!("{message} ({:?})", status.code()),
    }
}
