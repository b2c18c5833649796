//! A short soak; `scripts/bench soak` is the long one.

use crate::environment::{node_with_image, ready};
use bulkhead_tests::soak;

#[tokio::test]
async fn the_lives_of_pods_leave_nothing() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let report = soak::run(&node, &image, [4, 8, 2]).await.unwrap();
    // So few lives do not fill the daemon's caches; its memory is the long soak's concern.
    report.check_counts().unwrap();
    node.finish().unwrap();
}
