//! What must be installed, and room for it.

use super::Finding;
use crate::config::Config;
use bulkhead_network::{Mode, NetworkConfig};
use std::path::{Path, PathBuf};

/// Below this many bytes free, pulls and scratch disks soon fail.
const LITTLE_ROOM: u64 = 2 << 30;
/// Whether there is a network for pods. A warning only: on many nodes a pod of the network's own brings the
/// configuration later.
pub(super) fn cni(config: &NetworkConfig) -> Finding {
    if config.mode == Mode::None {
        return Finding::ok(
            "cni",
            "pods have their loopback interface only, by network.mode",
        );
    }
    let lists = config.config_directories.iter().flat_map(std::fs::read_dir);
    let count = lists
        .flatten()
        .flatten()
        .filter(|entry| {
            let path = entry.path();
            let ending = path.extension().and_then(|ending| ending.to_str());
            matches!(ending, Some("conf" | "conflist" | "json"))
        })
        .count();
    let plugins = config.plugin_directories.iter().find(|path| path.is_dir());
    match (count, plugins) {
        (0, _) => Finding::warning(
            "cni",
            format!(
                "no network configuration in {}",
                list(&config.config_directories)
            ),
            "install one; until then pods are refused, unless network.mode is \"none\"",
        ),
        (count, Some(path)) => Finding::ok(
            "cni",
            format!("{count} configuration(s), plugins in {}", path.display()),
        ),
        (_, None) => Finding::warning(
            "cni",
            "there is a network configuration, but no plugins",
            format!(
                "install the plugins into one of {}",
                list(&config.plugin_directories)
            ),
        ),
    }
}

fn list(directories: &[PathBuf]) -> String {
    let directories = directories.iter().map(|path| path.display().to_string());
    directories.collect::<Vec<_>>().join(", ")
}

pub(super) fn disk(root: &Path) -> Finding {
    // The directory may not exist yet; then its nearest parent tells.
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(info) => room(root, info.f_bavail.saturating_mul(info.f_frsize)),
        Err(error) => Finding::failed(
            "disk",
            format!(
                "the file system of {} cannot be asked: {error}",
                root.display()
            ),
            "set `root` in the configuration to a directory on a working disk",
        ),
    }
}

pub(super) fn room(root: &Path, free: u64) -> Finding {
    let found = format!("{} MiB free for {}", free >> 20, root.display());
    match free >= LITTLE_ROOM {
        true => Finding::ok("disk", found),
        false => Finding::warning(
            "disk",
            found,
            "make room or remove images; pulls fail when the disk is full",
        ),
    }
}

pub(super) fn tools() -> Finding {
    match in_path("mkfs.ext4") {
        true => Finding::ok("tools", "mkfs.ext4"),
        false => Finding::failed(
            "tools",
            "mkfs.ext4, which makes scratch disks, is missing",
            "apt-get install e2fsprogs",
        ),
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The VMM, and the kernel and initramfs of every runtime handler.
pub(super) fn parts(config: &Config) -> Vec<Finding> {
    let mut findings = vec![part("vmm", &config.vmm, "`vmm`".to_owned())];
    for (name, runtime) in &config.runtimes {
        let option = |key: &str| format!("`{key}` of [runtimes.{name}]");
        findings.push(part("guest-kernel", &runtime.kernel, option("kernel")));
        findings.push(part("initramfs", &runtime.initramfs, option("initramfs")));
    }
    findings
}

fn part(check: &'static str, path: &Path, option: String) -> Finding {
    match path.is_file() {
        true => Finding::ok(check, path.display().to_string()),
        false => Finding::failed(
            check,
            format!("{} is missing", path.display()),
            format!("install it, or set {option} in the configuration"),
        ),
    }
}
