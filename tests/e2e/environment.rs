//! Whether end-to-end tests can run here, and what they share.

use crate::watchdog;
use bulkhead_tests::node::Options;
use bulkhead_tests::{Node, Registry};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// Why end-to-end tests cannot run here; `None` if they can.
fn obstacle() -> Option<&'static str> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpuinfo
        .split_whitespace()
        .any(|word| matches!(word, "vmx" | "svm"))
    {
        return Some("the CPU shows neither VMX nor SVM");
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Some("cgroup v2 is not mounted at /sys/fs/cgroup");
    }
    match rustix::process::geteuid().is_root() {
        true => None,
        false => Some("not root"),
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    bulkhead_tests::setting(name, default).unwrap()
}

/// True if end-to-end tests can run here; else says why not. Where they must run
/// (BULKHEAD_E2E=required) that is a failure.
pub(crate) fn ready() -> bool {
    ready_for(watchdog::LIMIT)
}

/// As [`ready`], for a test that may take this long.
pub(crate) fn ready_for(limit: Duration) -> bool {
    let Some(obstacle) = obstacle() else {
        watchdog::begin(limit);
        return true;
    };
    assert!(
        std::env::var("BULKHEAD_E2E").as_deref() != Ok("required"),
        "End-to-end tests must run here, but {obstacle}"
    );
    // Not by a macro, whose output the test harness would keep back.
    let line = format!("skipped: {obstacle}; `make e2e` runs this in the lab\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    false
}

/// The registry that all tests share, and the demo image's name in it.
pub(crate) fn demo_image() -> String {
    registry().demo_image()
}

pub(crate) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry::start().unwrap())
}

/// A node with the demo image, and the image's name.
pub(crate) async fn node_with_image() -> (Node, String) {
    node_with(Options::default()).await
}

/// The same with pods of processes instead of VMs.
pub(crate) async fn process_node_with_image() -> (Node, String) {
    node_with(Options::processes()).await
}

async fn node_with(options: Options) -> (Node, String) {
    let node = Node::start_with(options).await.unwrap();
    let image = demo_image();
    bulkhead_tests::pod::pull(&node, &image).await.unwrap();
    (node, image)
}
