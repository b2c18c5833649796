//! `bulkhead volumes`: what a CSI driver asks of direct volumes.

use super::{Client, refused};
use anyhow::{Context, Result};
use bulkhead_node_api::v1::{VolumeRequest, VolumeStatsResponse};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct VolumesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print how full a direct volume is, as JSON
    Stats(Volume),
    /// Grow a direct volume to the size of its device, and print how full it is, as JSON
    Resize(Volume),
}

#[derive(Args)]
struct Volume {
    /// Where it is on the node: the directory with `direct-volume.json`, or `mount` in it
    path: PathBuf,
}

/// In bytes, and in numbers of files; what is available is what users that are not root have left.
#[derive(Serialize)]
struct Printed {
    bytes: Usage,
    inodes: Usage,
}

#[derive(Serialize)]
struct Usage {
    total: u64,
    used: u64,
    available: u64,
}

pub(super) async fn run(client: &Client, args: VolumesArgs) -> Result<u8> {
    let mut node = client.node().await?;
    let (Command::Stats(volume) | Command::Resize(volume)) = &args.command;
    let path = std::path::absolute(&volume.path)
        .with_context(|| format!("{} is no path", volume.path.display()))?;
    let path = path.to_str().context("The path is not UTF-8")?.to_owned();
    let request = VolumeRequest { path };
    let answer = match args.command {
        Command::Stats(_) => node.volume_stats(request).await,
        Command::Resize(_) => node.resize_volume(request).await,
    };
    let printed = printed(&answer.map_err(refused)?.into_inner());
    println!("{}", serde_json::to_string(&printed)?);
    Ok(0)
}

fn printed(stats: &VolumeStatsResponse) -> Printed {
    Printed {
        bytes: Usage {
            total: stats.total_bytes,
            used: stats.used_bytes,
            available: stats.available_bytes,
        },
        inodes: Usage {
            total: stats.total_inodes,
            used: stats.used_inodes,
            available: stats.free_inodes,
        },
    }
}
