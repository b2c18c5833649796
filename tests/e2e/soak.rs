//! Lives of pods, one after another, which leave nothing: a few with VMs, many with processes in their place.
//! `scripts/bench soak` is a long one with VMs.

use crate::environment::{node_with_image, process_node_with_image, ready, ready_for, setting};
use bulkhead_tests::soak;
use std::time::Duration;

#[tokio::test]
async fn the_lives_of_pods_leave_nothing() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let report = soak::run(&node, &image, [4, 8, 2]).await.unwrap();
    // So few lives do not fill the daemon's caches; its memory is the other soak's concern.
    report.check_counts().unwrap();
    node.finish().unwrap();
}

/// BULKHEAD_SOAK_LIVES=1000 makes it the whole.
#[tokio::test]
async fn the_lives_of_pods_of_processes_leave_nothing_and_no_memory() {
    let lives = setting("BULKHEAD_SOAK_LIVES", 40);
    if !ready_for(Duration::from_secs(180 + 2 * lives)) {
        return;
    }
    let (node, image) = process_node_with_image().await;
    let lives = usize::try_from(lives).unwrap();
    let report = soak::run(&node, &image, [40, lives, 4]).await.unwrap();
    println!("Soak of {lives} pods of processes: {report:?}");
    report.check().unwrap();
    node.finish().unwrap();
}
