//! Whether end-to-end tests can run here, and what they share.

use bulkhead_tests::{Node, Registry};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

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

/// True if end-to-end tests can run here; else says why not. Where they must run
/// (BULKHEAD_E2E=required) that is a failure.
pub(crate) fn ready() -> bool {
    let Some(obstacle) = obstacle() else {
        watch_the_time();
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

/// The most that one test may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Begins a test's time. One that hangs ends the whole program and is named.
fn watch_the_time() {
    static CURRENT: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let before = CURRENT.lock().unwrap().replace((Instant::now(), name));
    if before.is_some() {
        return;
    }
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let current = CURRENT.lock().unwrap();
            if let Some((began, name)) = current.as_ref().filter(|now| now.0.elapsed() > LIMIT) {
                eprintln!("{name} has not ended after {:?}", began.elapsed());
                std::process::exit(1);
            }
        }
    });
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
    let node = Node::start().await.unwrap();
    let image = demo_image();
    bulkhead_tests::pod::pull(&node, &image).await.unwrap();
    (node, image)
}
