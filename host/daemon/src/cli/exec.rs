//! `bulkhead exec`.

use super::session::Session;
use super::{Client, refused, target, terminal};
use anyhow::Result;
use bulkhead_node_api::v1::input::Input as In;
use bulkhead_node_api::v1::{Exec, Size};
use clap::Args;

#[derive(Args)]
pub(super) struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// A container's id, or a pod's id or name
    target: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(client: &Client, args: ExecArgs) -> Result<u8> {
    let mut runtime = client.runtime().await?;
    let container = target::container(&mut runtime, &args.target).await?;
    let (width, height) = terminal::size();
    let exec = In::Exec(Exec {
        container_id: container.id,
        args: args.command,
        stdin: args.interactive,
        terminal: args.tty,
        size: Some(Size { width, height }),
    });
    let session = Session::join(client, exec).await.map_err(refused)?;
    let exit = session.pass(args.interactive, args.tty).await?;
    Ok(u8::try_from(exit.code).unwrap_or(u8::MAX))
}
