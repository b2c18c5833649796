//! The benchmarks: figures side by side with the peers, in one run, on one machine. Arguments choose
//! parts (`engine`, `boot`, `pods`, `memory`); without any, all run.

use anyhow::Result;
use bulkhead_tests::bench::{boot, engine, machine, memory, pods};
use bulkhead_tests::{Node, Registry};
use std::path::Path;

fn main() -> Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if let [first, base] = parts.as_slice()
        && first == engine::ARGUMENT
    {
        return engine::work(Path::new(base));
    }
    println!("{}", machine::describe()?);
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    if wanted("engine") {
        println!("{}", engine::run()?);
    }
    if ["boot", "pods", "memory"].into_iter().any(wanted) {
        tokio::runtime::Runtime::new()?.block_on(with_node(wanted))?;
    }
    Ok(())
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
