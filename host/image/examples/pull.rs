//! Pulls an image into a store and says how long each phase took.
//!
//! usage: pull STORE_DIR IMAGE

use bulkhead_image::{ImageStore, PullPhase, StoreConfig};
use std::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull STORE_DIR IMAGE".into());
    };
    let store = ImageStore::open(root.as_ref(), StoreConfig::default())?;
    let (start, mut phase) = (Instant::now(), PullPhase::Resolving);
    let progress = |progress: &bulkhead_image::PullProgress| {
        if progress.phase != phase {
            phase = progress.phase;
            println!("{:>8.3} s  {phase:?}", start.elapsed().as_secs_f64());
        }
    };
    println!("{:#?}", store.pull(&name, None, progress).await?);
    Ok(())
}
