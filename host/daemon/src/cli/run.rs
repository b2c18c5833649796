//! `bulkhead run`.

use super::session::Session;
use super::{Client, pull, refused, target};
use anyhow::{Context, Result};
use bulkhead_cri::v1;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use bulkhead_node_api::v1::input::Input as In;
use bulkhead_node_api::v1::{Attach, Exit};
use clap::Args;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;
use tonic::transport::Channel;

/// Exit status when the container could not be run at all.
const NOT_RUN: u8 = 125;
/// Exit status when the program may not be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status when the program does not exist in the image.
const NO_PROGRAM: u8 = 127;
/// How long the container may take to stop after SIGINT or SIGTERM, in seconds.
const GRACE: i64 = 10;
/// CPU quotas are per this many microseconds, the kernel's default.
const CPU_PERIOD: i64 = 100_000;
/// Where logs are, as the kubelet has it.
const LOG_ROOT: &str = "/var/log/pods";

#[derive(Args)]
pub(super) struct RunArgs {
    /// Remove the pod and its log when the container has ended
    #[arg(long)]
    rm: bool,
    /// How many CPUs the pod may use, for example 2 or 0.5
    #[arg(long, value_parser = cpus)]
    cpus: Option<f64>,
    /// How much memory the pod's containers may use, for example 512M or 2G
    #[arg(long, value_parser = bytes)]
    memory: Option<i64>,
    /// Set an environment variable; may be repeated
    #[arg(short = 'e', long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// The pod's name [default: made up]
    #[arg(long)]
    name: Option<String>,
    /// The runtime handler [default: the daemon's]
    #[arg(long, default_value = "")]
    runtime: String,
    /// The image; it is pulled if the node does not have it
    image: String,
    /// The command in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.01..=32.0).contains(&number) => Ok(number),
        _ => Err("must be a number from 0.01 to 32".to_owned()),
    }
}

/// A number of bytes, with K, M or G for powers of 1024.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || "must be a number of bytes, or end with K, M or G".to_owned();
    let upper = text.to_uppercase();
    let upper = upper
        .strip_suffix("IB")
        .or(upper.strip_suffix('B'))
        .unwrap_or(&upper);
    let (digits, shift) = match upper.char_indices().next_back() {
        Some((end, 'K')) => (upper.get(..end), 10),
        Some((end, 'M')) => (upper.get(..end), 20),
        Some((end, 'G')) => (upper.get(..end), 30),
        _ => (Some(upper), 0),
    };
    let number: i64 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(wrong)?;
    number
        .checked_mul(1 << shift)
        .filter(|number| *number > 0)
        .ok_or_else(wrong)
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must have the form NAME=VALUE".to_owned()),
    }
}

/// Runs a container; its streams and exit status are this program's.
pub(super) async fn run(client: &Client, args: RunArgs) -> Result<u8> {
    match start_and_wait(client, &args).await {
        Ok(code) => Ok(code),
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            Ok(NOT_RUN)
        }
    }
}

async fn start_and_wait(client: &Client, args: &RunArgs) -> Result<u8> {
    let mut runtime = client.runtime().await?;
    let image = v1::ImageSpec {
        image: args.image.clone(),
        ..Default::default()
    };
    let request = v1::ImageStatusRequest {
        image: Some(image.clone()),
        verbose: false,
    };
    let found = client
        .images()
        .await?
        .image_status(request)
        .await
        .map_err(refused)?;
    if found.into_inner().image.is_none() {
        pull::run(client, &args.image).await?;
    }
    let pod = pod_config(args)?;
    let log_directory = PathBuf::from(&pod.log_directory);
    let request = v1::RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: args.runtime.clone(),
    };
    let made = runtime.run_pod_sandbox(request).await.map_err(refused)?;
    let pod_id = made.into_inner().pod_sandbox_id;
    let ended = run_container(client, &mut runtime, args, pod, &pod_id, image).await;
    // A pod whose container was never started is of no use to anybody.
    let remove = args.rm || !matches!(ended, Ok(End::Exited(_)));
    let cleaned = match remove {
        true => target::remove_pod(&mut runtime, &pod_id, Some(&log_directory)).await,
        false => {
            let request = v1::StopPodSandboxRequest {
                pod_sandbox_id: pod_id,
            };
            runtime
                .stop_pod_sandbox(request)
                .await
                .map(drop)
                .map_err(refused)
        }
    };
    let code = match ended? {
        End::Exited(exit) => {
            if !exit.message.is_empty() {
                eprintln!("bulkhead: {}", exit.message);
            }
            u8::try_from(exit.code).unwrap_or(u8::MAX)
        }
        End::NotStarted(status) => {
            eprintln!("bulkhead: {}", refused(status.clone()));
            match status.code() {
                Code::NotFound => NO_PROGRAM,
                Code::FailedPrecondition => NOT_EXECUTABLE,
                _ => NOT_RUN,
            }
        }
    };
    cleaned.map(|()| code)
}

enum End {
    Exited(Exit),
    NotStarted(tonic::Status),
}

async fn run_container(
    client: &Client,
    runtime: &mut RuntimeServiceClient<Channel>,
    args: &RunArgs,
    pod: v1::PodSandboxConfig,
    pod_id: &str,
    image: v1::ImageSpec,
) -> Result<End> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(container_config(args, image)),
        sandbox_config: Some(pod),
    };
    let made = runtime.create_container(request).await.map_err(refused)?;
    let container_id = made.into_inner().container_id;
    let attach = In::Attach(Attach {
        container_id: container_id.clone(),
    });
    // Joined before the start, so that the first byte of output is seen.
    let session = Session::join(client, attach).await.map_err(refused)?;
    let request = v1::StartContainerRequest {
        container_id: container_id.clone(),
    };
    if let Err(status) = runtime.start_container(request).await {
        return Ok(End::NotStarted(status));
    }
    let mut passed = std::pin::pin!(session.pass(args.interactive, args.tty));
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        exit = &mut passed => return exit.map(End::Exited),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let request = v1::StopContainerRequest {
        container_id,
        timeout: GRACE,
    };
    let (stopped, exit) = tokio::join!(runtime.stop_container(request), passed);
    stopped.map_err(refused)?;
    exit.map(End::Exited)
}

fn pod_config(args: &RunArgs) -> Result<v1::PodSandboxConfig> {
    let uid = random_hex()?;
    let name = args.name.clone().unwrap_or_else(|| format!("run-{uid}"));
    let resources = v1::LinuxContainerResources {
        // Both are small: at most 32 CPUs.
        cpu_quota: args
            .cpus
            .map_or(0, |cpus| (cpus * CPU_PERIOD as f64).round() as i64),
        cpu_period: if args.cpus.is_some() { CPU_PERIOD } else { 0 },
        memory_limit_in_bytes: args.memory.unwrap_or(0),
        ..Default::default()
    };
    let log_directory = format!("{LOG_ROOT}/default_{name}_{uid}");
    Ok(v1::PodSandboxConfig {
        annotations: [(target::LOG_DIRECTORY.to_owned(), log_directory.clone())].into(),
        log_directory,
        hostname: name.clone(),
        metadata: Some(v1::PodSandboxMetadata {
            name,
            uid,
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        linux: Some(v1::LinuxPodSandboxConfig {
            resources: Some(resources),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn container_config(args: &RunArgs, image: v1::ImageSpec) -> v1::ContainerConfig {
    let envs = args.env.iter();
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".to_owned(),
            attempt: 0,
        }),
        image: Some(image),
        // As Docker has it: the words take the place of the image's arguments, not its entrypoint.
        args: args.command.clone(),
        envs: envs
            .map(|(key, value)| v1::KeyValue {
                key: key.clone(),
                value: value.clone().into(),
            })
            .collect(),
        log_path: "main/0.log".to_owned(),
        stdin: args.interactive,
        stdin_once: args.interactive,
        tty: args.tty,
        ..Default::default()
    }
}

fn random_hex() -> Result<String> {
    // A UUID of the kernel's, without its dashes.
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context("Cannot read a random number")?;
    Ok(uuid
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(12)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{bytes, cpus, variable};

    #[test]
    fn sizes_have_units() {
        for (text, number) in [
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("64KiB", 64 << 10),
            ("1048576", 1 << 20),
        ] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "M", "-1M", "1T", "9999999999G", "1.5G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_and_variables_are_checked() {
        assert_eq!(cpus("0.5"), Ok(0.5));
        assert!(cpus("0").is_err() && cpus("33").is_err() && cpus("NaN").is_err());
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }
}
