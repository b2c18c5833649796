//! What tests of volumes share.

use bulkhead_cri::v1;
use bulkhead_tests::node::Node;
use bulkhead_tests::pod::{Pod, container, wait};
use std::path::Path;

/// A path of the node in a container.
pub(crate) fn mount(host: &Path, container: &str, readonly: bool) -> v1::Mount {
    v1::Mount {
        host_path: host.to_str().unwrap().to_owned(),
        container_path: container.to_owned(),
        readonly,
        ..v1::Mount::default()
    }
}

/// A container that runs a script with these mounts.
pub(crate) fn with_mounts(
    name: &str,
    image: &str,
    script: &str,
    mounts: &[v1::Mount],
) -> v1::ContainerConfig {
    let mut config = container(name, image, &["/bin/sh", "-c", script]);
    config.mounts = mounts.to_vec();
    config
}

/// What a container says that must succeed.
pub(crate) async fn output(node: &Node, pod: &Pod<'_>, config: v1::ContainerConfig) -> String {
    let ended = wait(node, &pod.start(config).await.unwrap()).await.unwrap();
    assert_eq!(ended.status.exit_code, 0, "{ended:?}");
    ended.stdout
}
