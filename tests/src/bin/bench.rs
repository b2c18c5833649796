//! The benchmarks: figures side by side with the peers, in one run, on one machine. Arguments choose
//! parts (`boot`, `pods`, `memory`); without any, these three run. `images`, or `images KIND...`, needs
//! no VM and is meant for the machine itself; `BULKHEAD_BENCH_ROUNDS` then makes it shorter.

use anyhow::Result;
use bulkhead_tests::bench::{boot, images, machine, memory, pods};
use bulkhead_tests::{Node, Registry};

#[tokio::main]
async fn main() -> Result<()> {
    println!("{}", machine::describe()?);
    let registry = Registry::start()?;
    let node = Node::start().await?;
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, kinds)) = parts.split_first()
        && first == "images"
    {
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        images::run(&node, &registry, &kinds).await?;
        return node.finish();
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
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
