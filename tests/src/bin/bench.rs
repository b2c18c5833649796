//! The benchmarks: figures side by side with the peers, in one run, on one machine. Arguments choose
//! parts (`engine`, `cri`, `boot`, `pods`, `pods-network`, `memory`, `blk`, `net`, `vmm`, `volumes`,
//! `vsock`); without any, all run.
//! `soak` and `proofs` run when they are named. `images`, or `images KIND...`, needs no VM and is meant for the machine itself;
//! `BULKHEAD_BENCH_ROUNDS` makes it shorter, and `blk`, `net`, `pods-network`, `volumes` and `vsock` too.
//! `BULKHEAD_BENCH_FILES` is how many files `volumes` makes.

use anyhow::Result;
use bulkhead_tests::bench::{
    blk, boot, cri, engine, file_daemon, images, machine, memory, net, pods, pods_network, proofs,
    vmm, volumes, vsock,
};
use bulkhead_tests::{Node, Registry, pod, setting, soak};
use std::path::Path;

fn main() -> Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if let [first, base] = parts.as_slice()
        && first == engine::ARGUMENT
    {
        return engine::work(Path::new(base));
    }
    if let [first, daemon, directory] = parts.as_slice()
        && first == file_daemon::ARGUMENT
    {
        return file_daemon::attach(daemon, Path::new(directory));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    if parts == [volumes::ARGUMENT] {
        println!("{}", runtime.block_on(volumes::work())?);
        return Ok(());
    }
    println!("{}", machine::describe()?);
    if let Some((first, kinds)) = parts.split_first()
        && first == "images"
    {
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        return runtime.block_on(with_images(&kinds));
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    if wanted("engine") {
        println!("{}", engine::run()?);
        println!("{}", engine::sizes()?);
    }
    if wanted("blk") {
        println!("{}", blk::run()?);
    }
    if wanted("net") {
        println!("{}", net::run()?);
    }
    if wanted("vmm") {
        println!("{}", vmm::run()?);
    }
    if wanted("vsock") {
        println!("{}", vsock::run()?);
    }
    if wanted("pods-network") {
        let registry = Registry::start()?;
        println!("{}", runtime.block_on(pods_network::run(&registry))?);
    }
    if wanted("volumes") {
        println!("{}", volumes::run()?);
    }
    if wanted("cri") {
        let registry = Registry::start()?;
        println!("{}", runtime.block_on(cri::run(&registry))?);
    }
    // Only when they are asked for: they take long.
    if parts.iter().any(|part| part == "proofs") {
        let registry = Registry::start()?;
        println!("{}", runtime.block_on(proofs::run(&registry))?);
    }
    if parts.iter().any(|part| part == "soak") {
        runtime.block_on(with_soak())?;
    }
    if ["boot", "pods", "memory"].into_iter().any(wanted) {
        runtime.block_on(with_node(wanted))?;
    }
    Ok(())
}

async fn with_images(kinds: &[&str]) -> Result<()> {
    let registry = Registry::start()?;
    let node = Node::start().await?;
    images::run(&node, &registry, kinds).await?;
    node.finish()
}

/// A thousand lives of pods, or BULKHEAD_SOAK_LIVES.
async fn with_soak() -> Result<()> {
    let lives = setting("BULKHEAD_SOAK_LIVES", 1000)?;
    let registry = Registry::start()?;
    let node = Node::start().await?;
    let image = registry.demo_image();
    pod::pull(&node, &image).await?;
    let report = soak::run(&node, &image, [20, lives, 4]).await?;
    println!("Soak of {lives} pods: {report:?}");
    report.check()?;
    node.finish()
}

async fn with_node(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let registry = Registry::start()?;
    let node = Node::start().await?;
    if wanted("boot") {
        println!("{}", boot::run(&node).await?);
    }
    if wanted("pods") {
        println!("{}", pods::run(&node, &registry).await?);
    }
    if wanted("memory") {
        println!("{}", memory::run(&node).await?);
    }
    node.finish()
}
