//! Images on the node while pods use them.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{Pod, container, exec, pull};
use std::os::unix::fs::FileExt;
use tonic::Code;

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

async fn status(node: &Node, image: &str, verbose: bool) -> v1::ImageStatusResponse {
    let request = v1::ImageStatusRequest {
        image: spec(image),
        verbose,
    };
    let response = node.images().image_status(request).await.unwrap();
    response.into_inner()
}

/// Reads from the disk from now on, not from the host's page cache.
fn forget_what_was_read() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// What a container reads of its image: nearly all there is.
async fn sum(node: &Node, container: &str) -> Vec<u8> {
    let script = "find /bin /lib /usr /etc/passwd -type f -exec cat {} + | md5sum";
    let output = exec(node, container, &["sh", "-c", script], 60)
        .await
        .unwrap();
    assert_eq!(output.exit_code, 0, "{output:?}");
    output.stdout
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_and_not_a_container() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let id = status(&node, &image, false).await.image.unwrap().id;
    let pod = Pod::run(&node, "flipped").await.unwrap();
    let path = node.path().join("root/images/disks");
    let disk = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path.join(id.replace(':', "-")))
        .unwrap();
    let at = disk.metadata().unwrap().len() / 2;
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at).unwrap();
    disk.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    drop(disk);
    forget_what_was_read();
    let config = container("flipped", &image, &["sleep", "1000"]);
    let error = pod.create(config.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(error.message().contains("pull it again"), "{error}");
    assert!(status(&node, &image, false).await.image.is_none());
    // What a kubelet does next.
    pull(&node, &image).await.unwrap();
    let container = pod.start(config).await.unwrap();
    sum(&node, &container).await;
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn an_image_that_is_removed_stays_for_its_containers() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let (pod, first, before) = {
        let pod = Pod::run(&node, "kept").await.unwrap();
        let config = container("first", &image, &["sleep", "1000"]);
        let first = pod.start(config).await.unwrap();
        let before = sum(&node, &first).await;
        (pod.id, first, before)
    };
    let request = v1::RemoveImageRequest {
        image: spec(&image),
    };
    node.images().remove_image(request).await.unwrap();
    assert!(status(&node, &image, false).await.image.is_none());
    for _ in 0..2 {
        forget_what_was_read();
        assert_eq!(sum(&node, &first).await, before);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container("second", &image, &["sleep", "1000"])),
            sandbox_config: None,
        };
        let error = node.runtime().create_container(request).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        node.kill_and_restart().await.unwrap();
    }
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod.clone(),
    };
    node.runtime().stop_pod_sandbox(stop).await.unwrap();
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod,
    };
    node.runtime().remove_pod_sandbox(remove).await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn images_are_told_as_they_are() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let found = status(&node, &image, true).await;
    let told = found.image.unwrap();
    let info: serde_json::Value = serde_json::from_str(&found.info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["os"], "linux");
    assert_eq!(
        info["imageSpec"]["config"]["Cmd"][0],
        "/usr/local/bin/hello"
    );
    assert!(info["chainID"].as_str().unwrap().starts_with("sha256:"));
    let bare = told.id.trim_start_matches("sha256:");
    for name in [&told.id, &told.repo_digests[0], bare, &bare[..12]] {
        let same = status(&node, name, false).await.image;
        assert_eq!(same.as_ref(), Some(&told), "{name}");
        let filter = Some(v1::ImageFilter { image: spec(name) });
        let request = v1::ListImagesRequest {
            filter: filter.clone(),
        };
        let listed = node.images().list_images(request).await.unwrap();
        assert_eq!(listed.into_inner().images, std::slice::from_ref(&told));
        let request = v1::StreamImagesRequest { filter };
        let stream = node.images().stream_images(request).await.unwrap();
        let message = stream.into_inner().message().await.unwrap().unwrap();
        assert_eq!(message.images, std::slice::from_ref(&told));
    }
    let other = Some(v1::ImageFilter {
        image: spec("no/such:image"),
    });
    let request = v1::ListImagesRequest { filter: other };
    let listed = node.images().list_images(request).await.unwrap();
    assert!(listed.into_inner().images.is_empty());
    let request = v1::ImageFsInfoRequest {};
    let info = node.images().image_fs_info(request).await.unwrap();
    let info = info.into_inner().image_filesystems;
    assert!(info[0].used_bytes.unwrap().value >= told.size);
    for _ in 0..2 {
        let request = v1::RemoveImageRequest {
            image: spec(&bare[..12]),
        };
        node.images().remove_image(request).await.unwrap();
        assert!(status(&node, &image, false).await.image.is_none());
    }
    node.finish().unwrap();
}
