//! The benchmarks: figures side by side with the peers, in one run, on one machine.

use anyhow::Result;
use bulkhead_tests::bench::{boot, machine, memory, pods};
use bulkhead_tests::{Node, Registry};

#[tokio::main]
async fn main() -> Result<()> {
    println!("{}", machine::describe()?);
    let registry = Registry::start()?;
    let node = Node::start().await?;
    println!("{}", boot::run(&node).await?);
    println!("{}", pods::run(&node, &registry).await?);
    println!("{}", memory::run(&node).await?);
    node.finish()
}
