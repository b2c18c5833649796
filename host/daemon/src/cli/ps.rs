//! `bulkhead ps`.

use super::{Client, target};
use anyhow::Result;
use bulkhead_cri::v1;
use clap::Args;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much of an id is shown; enough to be unique on a node, as containerd's tools show it.
const SHORT_ID: usize = 13;

#[derive(Args)]
pub(super) struct PsArgs {
    /// Print ids only, of pods, one a line
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn run(client: &Client, args: PsArgs) -> Result<u8> {
    let mut runtime = client.runtime().await?;
    let mut pods = target::pods(&mut runtime).await?;
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if args.quiet {
        pods.iter().for_each(|pod| println!("{}", pod.id));
        return Ok(0);
    }
    let containers = target::containers(&mut runtime).await?;
    let mut rows = vec![
        [
            "POD",
            "POD ID",
            "STATE",
            "CONTAINER ID",
            "IMAGE",
            "STATE",
            "AGE",
        ]
        .map(str::to_owned),
    ];
    for pod in &pods {
        let mut own = containers
            .iter()
            .filter(|one| one.pod_sandbox_id == pod.id)
            .peekable();
        if own.peek().is_none() {
            rows.push(row(pod, None));
        }
        rows.extend(own.map(|container| row(pod, Some(container))));
    }
    print!("{}", table(&rows));
    Ok(0)
}

fn row(pod: &v1::PodSandbox, container: Option<&v1::Container>) -> [String; 7] {
    let pod_state = match pod.state() {
        v1::PodSandboxState::SandboxReady => "ready",
        v1::PodSandboxState::SandboxNotready => "not ready",
    };
    let state = container.map_or("-", |container| match container.state() {
        v1::ContainerState::ContainerCreated => "created",
        v1::ContainerState::ContainerRunning => "running",
        v1::ContainerState::ContainerExited => "exited",
        v1::ContainerState::ContainerUnknown => "unknown",
    });
    let image = container.and_then(|container| container.image.as_ref());
    [
        target::name(pod).to_owned(),
        short(&pod.id),
        pod_state.to_owned(),
        container.map_or_else(|| "-".to_owned(), |container| short(&container.id)),
        image.map_or_else(|| "-".to_owned(), |image| image.image.clone()),
        state.to_owned(),
        age(container.map_or(pod.created_at, |container| container.created_at)),
    ]
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn age(created_ns: i64) -> String {
    let created = UNIX_EPOCH + Duration::from_nanos(u64::try_from(created_ns).unwrap_or(0));
    let seconds = SystemTime::now()
        .duration_since(created)
        .unwrap_or_default()
        .as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let rows = [["A", "LONG"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     LONG\nlong  x\n");
    }
}
