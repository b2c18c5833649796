//! The ways out of containers that other runtimes had to close in recent years, each as a test.

mod image;
mod neighbour;
mod race;

use crate::support::{Container, Pod1};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// An image of its own, to be made hostile. The name is the test's.
fn image(pod: &Pod1, name: &str) -> PathBuf {
    let images = pod.world.base.join("images");
    let root = images.join(name);
    copy(&images.join("busybox"), &root);
    root
}

/// Programs and libraries, which no test changes, are shared.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&source, &target);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if source.to_string_lossy().contains("/etc/") {
            fs::copy(&source, &target).unwrap();
        } else {
            fs::hard_link(&source, &target).unwrap();
        }
    }
}

fn of(image: &str, script: &str) -> Container {
    let mut container = Container::shell(script);
    container.image = image.to_owned();
    container
}

/// Takes what is at a path away.
fn clear(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
