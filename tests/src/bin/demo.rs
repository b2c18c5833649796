//! The demo: a pod from nothing to nothing, through the CRI socket, showing each step.

use anyhow::{Context, Result, ensure};
use bulkhead_cri::v1;
use bulkhead_tests::{Node, Registry, pod};
use std::io::Write;
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> Result<()> {
    let registry = step("Start a registry with an image in it", || async {
        let registry = Registry::start()?;
        Ok((
            format!("{} (three layers)", registry.demo_image()),
            registry,
        ))
    })
    .await?;
    let image = registry.demo_image();
    let node = step("Start the daemon", || async {
        let node = Node::start().await?;
        let version = node
            .runtime()
            .version(v1::VersionRequest::default())
            .await?
            .into_inner();
        let answer = format!(
            "{} {}, CRI v1",
            version.runtime_name, version.runtime_version
        );
        Ok((answer, node))
    })
    .await?;
    step("PullImage", || async {
        Ok((pod::pull(&node, &image).await?, ()))
    })
    .await?;
    let sandbox = step("RunPodSandbox", || async {
        let sandbox = pod::Pod::run(&node, "demo").await?;
        Ok((sandbox.id.clone(), sandbox))
    })
    .await?;
    let info = pod::info(&node, &sandbox.id).await?;
    let container = step("CreateContainer, StartContainer", || async {
        // It stays until the command below has been executed in it.
        let script = "hello world; code=$?; until [ -e /tmp/seen ]; do sleep 0.1; done; exit $code";
        let mut config = pod::container("hello", &image, &["sh", "-c", script]);
        config.envs = vec![v1::KeyValue {
            key: "EXIT_CODE".into(),
            value: "7".into(),
        }];
        let id = sandbox.start(config).await?;
        Ok((id.clone(), id))
    })
    .await?;
    step("ExecSync `uname -a`", || async {
        let command = ["sh", "-c", "uname -a; touch /tmp/seen"];
        let output = pod::exec(&node, &container, &command, 10).await?;
        Ok((
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            (),
        ))
    })
    .await?;
    let ended = step("Wait for its end", || async {
        let ended = pod::wait(&node, &container).await?;
        let status = &ended.status;
        Ok((
            format!("{}, exit code {}", status.reason, status.exit_code),
            ended,
        ))
    })
    .await?;
    ensure!(ended.status.exit_code == 7, "The exit code should be 7");
    println!("\nThe container's log, {}:", ended.status.log_path);
    print!("{}", std::fs::read_to_string(&ended.status.log_path)?);
    print_kernels(&info)?;
    print_phases(&info);
    step("Stop and remove everything", || async {
        sandbox.remove().await?;
        let leaks = node.leaks();
        ensure!(leaks.is_empty(), "Left behind:\n{}", leaks.join("\n"));
        let found = "no process, mount, network namespace, cgroup, device or file is left";
        Ok((found.to_owned(), ()))
    })
    .await?;
    node.finish()
}

/// Runs a step, says that it goes on if it takes more than two seconds, and prints what it found.
async fn step<T, F>(what: &str, work: impl FnOnce() -> F) -> Result<T>
where
    F: Future<Output = Result<(String, T)>>,
{
    print!("{what:<34}");
    std::io::stdout().flush()?;
    let began = Instant::now();
    let mut work = std::pin::pin!(work());
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    tick.tick().await;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = tick.tick() => {
                print!(".");
                std::io::stdout().flush()?;
            }
        }
    };
    let (found, value) = result.with_context(|| format!("{what} failed"))?;
    println!(" {:>7.3} s  {found}", began.elapsed().as_secs_f64());
    Ok(value)
}

fn print_kernels(info: &serde_json::Value) -> Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest = info["guestKernel"].as_str().unwrap_or("unknown");
    println!("\nuname -r    host {}    guest {guest}", host.trim());
    ensure!(host.trim() != guest, "The pod runs on the host's kernel");
    Ok(())
}

fn print_phases(info: &serde_json::Value) {
    println!("\nPhases of RunPodSandbox");
    let mut total = 0.0;
    for row in info["phases"].as_array().into_iter().flatten() {
        let seconds = row["seconds"].as_f64().unwrap_or_default();
        total += seconds;
        println!(
            "  {:<12} {:>9.1} ms",
            row["phase"].as_str().unwrap_or_default(),
            seconds * 1e3
        );
    }
    println!("  {:<12} {:>9.1} ms\n", "total", total * 1e3);
}
