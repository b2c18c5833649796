//! `bulkhead rm`.

use super::{Client, target};
use anyhow::{Result, bail};
use bulkhead_cri::v1;
use clap::Args;

#[derive(Args)]
pub(super) struct RmArgs {
    /// Remove pods that are still running too
    #[arg(short, long)]
    force: bool,
    /// Ids or names of pods, or ids of containers, whose pods are meant
    #[arg(required = true)]
    targets: Vec<String>,
}

pub(super) async fn run(client: &Client, args: RmArgs) -> Result<u8> {
    let mut runtime = client.runtime().await?;
    for word in &args.targets {
        let pod = target::pod(&mut runtime, word).await?;
        if pod.state() == v1::PodSandboxState::SandboxReady && !args.force {
            bail!("Pod {word} is still running; `bulkhead rm -f` stops and removes it");
        }
        target::remove_pod(&mut runtime, &pod.id, target::log_directory(&pod)).await?;
        println!("{}", pod.id);
    }
    Ok(0)
}
