//! The benchmarks: figures side by side with the peers, in one run, on one machine. Arguments choose
//! parts (`boot`, `pods`, `memory`); without any, all run.

use anyhow::Result;
use bulkhead_tests::bench::{boot, machine, memory, pods};
use bulkhead_tests::{Node, Registry};

#[tokio::main]
async fn main() -> Result<()> {
    println!("{}", machine::describe()?);
    let registry = Registry::start()?;
    let node = Node::start().await?;
    let parts: Vec<String> = std::env::args().skip(1).collect();
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
