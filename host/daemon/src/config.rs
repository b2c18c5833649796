//! The daemon's configuration file.

mod streaming;

use anyhow::{Context, Result};
use bulkhead_image::StoreConfig;
use bulkhead_network::NetworkConfig;
use bulkhead_sandbox::{NodeConfig, RuntimeConfig, VmmUsers};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use streaming::StreamingConfig;

/// Where the file is looked for if no option names one.
pub(crate) const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";
/// Where the daemon listens and its clients connect if nothing else is said.
pub(crate) const DEFAULT_SOCKET: &str = "/run/bulkhead/bulkhead.sock";

/// The whole file; every key has a default and an unknown key is an error. `docs/configuration.md`
/// explains them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What survives a reboot: images, the state store.
    pub(crate) root: PathBuf,
    /// What does not: sockets, scratch disks.
    pub(crate) state: PathBuf,
    /// The CRI socket.
    pub(crate) socket: PathBuf,
    /// Its permissions.
    pub(crate) socket_mode: u32,
    /// The user it belongs to.
    pub(crate) socket_uid: u32,
    /// The group it belongs to.
    pub(crate) socket_gid: u32,
    /// The VMM's program.
    pub(crate) vmm: PathBuf,
    /// The program that serves shared volumes.
    pub(crate) file_daemon: PathBuf,
    /// Parent of the cgroups of pods whose request names none.
    pub(crate) cgroup_parent: PathBuf,
    /// The users that VMMs run as.
    pub(crate) vmm_users: VmmUsers,
    /// Where Localhost seccomp profiles are whose path is not absolute.
    pub(crate) seccomp_profiles: PathBuf,
    /// The kubelet's directory.
    pub(crate) kubelet: PathBuf,
    /// The handler of pods whose request names none.
    pub(crate) default_runtime: String,
    /// Where pods get their networks from.
    pub(crate) network: NetworkConfig,
    /// The image store.
    pub(crate) images: ImagesConfig,
    /// Exec, attach and port-forward.
    pub(crate) streaming: StreamingConfig,
    /// Runtime handlers by name.
    pub(crate) runtimes: BTreeMap<String, RuntimeConfig>,
}

/// The `[images]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImagesConfig {
    /// Registries (host or host:port) that are spoken to without TLS, besides this machine's own.
    pub(crate) plain_http: Vec<String>,
    /// Images that the kubelet must not remove, by name.
    pub(crate) pinned: Vec<String>,
    /// Directories in containerd's `certs.d` format.
    pub(crate) registry_config_paths: Vec<PathBuf>,
    /// A Docker `config.json` for pulls without credentials of their own.
    pub(crate) docker_config: Option<PathBuf>,
    /// Layers of one image that are downloaded at the same time.
    pub(crate) max_concurrent_downloads: usize,
    /// MiB in a second that all downloads together may take; 0 is no limit.
    pub(crate) max_download_mib_per_second: u64,
    /// Seconds after which a download that gets no new bytes fails.
    pub(crate) image_pull_progress_timeout_seconds: u64,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        let store = StoreConfig::default();
        Self {
            plain_http: store.plain_http,
            pinned: store.pinned,
            registry_config_paths: store.registry_config_paths,
            docker_config: store.docker_config,
            max_concurrent_downloads: store.parallel_downloads,
            max_download_mib_per_second: store.bytes_per_second >> 20,
            image_pull_progress_timeout_seconds: store.progress_timeout.as_secs(),
        }
    }
}

impl ImagesConfig {
    /// As the image store takes it.
    pub(crate) fn store(&self) -> StoreConfig {
        let progress_timeout = Duration::from_secs(self.image_pull_progress_timeout_seconds);
        let store = StoreConfig::default();
        StoreConfig {
            plain_http: self.plain_http.clone(),
            pinned: self.pinned.clone(),
            registry_config_paths: self.registry_config_paths.clone(),
            docker_config: self.docker_config.clone(),
            parallel_downloads: self.max_concurrent_downloads,
            bytes_per_second: self.max_download_mib_per_second << 20,
            progress_timeout,
            // A silent connection is replaced before the whole download is given up.
            stall_timeout: store.stall_timeout.min(progress_timeout / 2),
            ..store
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/bulkhead".into(),
            state: "/run/bulkhead".into(),
            socket: DEFAULT_SOCKET.into(),
            socket_mode: 0o660,
            socket_uid: 0,
            socket_gid: 0,
            vmm: "/usr/lib/bulkhead/bulkhead-vmm".into(),
            file_daemon: "/usr/lib/bulkhead/bulkhead-fs".into(),
            cgroup_parent: "/bulkhead".into(),
            vmm_users: VmmUsers::default(),
            seccomp_profiles: "/var/lib/kubelet/seccomp".into(),
            kubelet: "/var/lib/kubelet".into(),
            default_runtime: "bulkhead".to_owned(),
            network: NetworkConfig::default(),
            images: ImagesConfig::default(),
            streaming: StreamingConfig::default(),
            runtimes: [("bulkhead".to_owned(), RuntimeConfig::default())].into(),
        }
    }
}

impl Config {
    /// Reads the named file, or the default one if there is one.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .with_context(|| format!("The configuration {} is wrong", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(Self::default()),
            Err(error) => Err(error)
                .with_context(|| format!("Cannot read the configuration {}", path.display())),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        if !config.runtimes.contains_key(&config.default_runtime) {
            anyhow::bail!(
                "default_runtime is {:?}, but there is no table [runtimes.{}]",
                config.default_runtime,
                config.default_runtime
            );
        }
        anyhow::ensure!(
            config.socket_mode <= 0o777,
            "socket_mode is 0o{:o}; it must be permissions such as 0o660",
            config.socket_mode
        );
        config.streaming.server()?;
        let VmmUsers { first, count } = config.vmm_users;
        anyhow::ensure!(
            first > 0 && count > 0 && first.checked_add(count).is_some(),
            "vmm_users is {count} users from {first}; it must be at least one, none of them root, and end below 2^32 - 1"
        );
        let within = |value: u64, least: u64, most: u64, key: &str| {
            anyhow::ensure!(
                (least..=most).contains(&value),
                "{key} is {value}; it must be from {least} to {most}"
            );
            Ok(())
        };
        let images = &config.images;
        let within_images =
            |value, least, most, key: &str| within(value, least, most, &format!("images.{key}"));
        let downloads = images.max_concurrent_downloads as u64;
        within_images(downloads, 1, 64, "max_concurrent_downloads")?;
        let rate = images.max_download_mib_per_second;
        within_images(rate, 0, 1 << 20, "max_download_mib_per_second")?;
        let timeout = images.image_pull_progress_timeout_seconds;
        within_images(timeout, 1, 86_400, "image_pull_progress_timeout_seconds")?;
        for (value, most, key) in [
            (
                config.network.plugin_timeout_seconds,
                3600,
                "network.plugin_timeout_seconds",
            ),
            (
                config.network.delete_wait_seconds,
                110,
                "network.delete_wait_seconds",
            ),
        ] {
            within(value, 1, most, key)?;
        }
        for (name, runtime) in &config.runtimes {
            anyhow::ensure!(
                !runtime.vhost_net || runtime.network_limits().is_none(),
                "runtimes.{name} has vhost_net and limits of the network; vhost-net cannot limit"
            );
            let within = |value: u64, least: u64, most: u64, key: &str| {
                within(value, least, most, &format!("runtimes.{name}.{key}"))
            };
            within(runtime.cpus.into(), 1, 32, "cpus")?;
            within(runtime.memory_mib, 16, 1 << 24, "memory_mib")?;
            within(runtime.overhead_mib, 32, 1 << 20, "overhead_mib")?;
            within(runtime.vmm_overhead_mib, 16, 1 << 20, "vmm_overhead_mib")?;
            within(runtime.scratch_mib, 64, 1 << 20, "scratch_mib")?;
            within(runtime.read_only_slots.into(), 1, 32, "read_only_slots")?;
            within(runtime.read_write_slots.into(), 1, 32, "read_write_slots")?;
            let (ops, mib) = (
                runtime.disk_max_ops_per_second,
                runtime.disk_max_mib_per_second,
            );
            within(ops, 0, 1 << 32, "disk_max_ops_per_second")?;
            within(mib, 0, 1 << 20, "disk_max_mib_per_second")?;
            within(
                runtime.boot_timeout_seconds,
                1,
                3600,
                "boot_timeout_seconds",
            )?;
        }
        Ok(config)
    }

    /// The part that concerns pods.
    pub(crate) fn node(&self) -> NodeConfig {
        NodeConfig {
            root: self.root.clone(),
            state: self.state.clone(),
            vmm: self.vmm.clone(),
            file_daemon: self.file_daemon.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            vmm_users: self.vmm_users,
            seccomp_profiles: self.seccomp_profiles.clone(),
            kubelet: self.kubelet.clone(),
            network: self.network.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use std::path::Path;

    fn error(text: &str) -> String {
        format!("{:#}", Config::parse(text).unwrap_err())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_are_errors_at_every_level() {
        assert!(error("sokcet = '/x'").contains("unknown field `sokcet`"));
        assert!(error("[images]\nmirror = 1").contains("unknown field `mirror`"));
        assert!(error("[runtimes.bulkhead]\nkernal = '/x'").contains("unknown field `kernal`"));
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert!(error("[runtimes.bulkhead]\ncpus = 0").contains("runtimes.bulkhead.cpus is 0"));
        assert!(error("socket_mode = 0o1777").contains("socket_mode is 0o1777"));
        assert!(
            error("[runtimes.bulkhead]\ndisk_max_mib_per_second = 1048577")
                .contains("runtimes.bulkhead.disk_max_mib_per_second is 1048577")
        );
        assert!(error("vmm_users = { first = 0 }").contains("vmm_users"));
        assert!(error("vmm_users = { first = 4294967295 }").contains("vmm_users"));
        assert!(
            error("[images]\nmax_concurrent_downloads = 0")
                .contains("images.max_concurrent_downloads is 0")
        );
        assert!(error("default_runtime = 'x'").contains("[runtimes.x]"));
        assert!(error("[runtimes.bulkhead]\ncpus = 'two'").contains("cpus"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_named() {
        let named = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(format!("{named:#}").contains("/nonexistent/config.toml"));
    }
}
