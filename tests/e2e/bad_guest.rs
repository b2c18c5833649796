//! Guests that do not come up.

use crate::environment::ready;
use bulkhead_tests::node::Options;
use bulkhead_tests::pod::Pod;
use bulkhead_tests::{Node, artifacts};
use std::path::Path;
use tonic::Code;

/// A node whose guests boot with another initramfs.
async fn node_with_initramfs(path: &Path) -> Node {
    let initramfs = toml::Value::String(path.display().to_string());
    let configure = Box::new(move |config: &mut toml::Table| {
        let runtime = config["runtimes"]["bulkhead"].as_table_mut().unwrap();
        runtime.insert("initramfs".into(), initramfs);
        runtime.insert("boot_timeout_seconds".into(), toml::Value::Integer(10));
    });
    Node::start_with(Options {
        configure: Some(configure),
        ..Default::default()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_guest_that_panics_ends_the_call_with_its_last_words() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("initramfs");
    // No archive at all: the kernel finds no init.
    std::fs::write(&empty, [0; 512]).unwrap();
    let node = node_with_initramfs(&empty).await;
    let error = Pod::run(&node, "panics").await.err().unwrap();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("kernel panicked"), "{error}");
    assert!(
        error.message().contains("Kernel panic - not syncing"),
        "{error}"
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn a_guest_that_never_announces_itself_meets_the_deadline() {
    if !ready() {
        return;
    }
    let node = node_with_initramfs(&artifacts::artifact("mute-initramfs")).await;
    let error = Pod::run(&node, "mute").await.err().unwrap();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        error
            .message()
            .contains("did not announce itself within 10s"),
        "{error}"
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn a_kernel_that_is_no_kernel_is_told() {
    if !ready() {
        return;
    }
    let configure = Box::new(|config: &mut toml::Table| {
        let runtime = config["runtimes"]["bulkhead"].as_table_mut().unwrap();
        runtime.insert("kernel".into(), toml::Value::String("/etc/passwd".into()));
    });
    let options = Options {
        configure: Some(configure),
        ..Default::default()
    };
    let node = Node::start_with(options).await.unwrap();
    let error = Pod::run(&node, "kernel").await.err().unwrap();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("could not start"), "{error}");
    node.finish().unwrap();
}
