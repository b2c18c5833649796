//! The `[network]` table of the daemon's configuration.

use crate::pod::Settings;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where pods get their networks from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From CNI plugins; without a configuration there are no pods.
    #[default]
    Cni,
    /// They have their loopback interface only.
    None,
}

/// Which of a pod's addresses is the first that is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpPreference {
    /// The first IPv4 address.
    #[default]
    Ipv4,
    /// The first IPv6 address.
    Ipv6,
    /// The first of the plugins' result.
    Cni,
}

/// The `[network]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Where pods get their networks from.
    pub mode: Mode,
    /// Directories of CNI configurations; the first that has one counts.
    pub config_directories: Vec<PathBuf>,
    /// Directories of plugins' programs, in order.
    pub plugin_directories: Vec<PathBuf>,
    /// How long one execution of one plugin may take, in seconds.
    pub plugin_timeout_seconds: u64,
    /// How long StopPodSandbox waits for the network to be removed, in seconds; it goes on afterwards.
    pub delete_wait_seconds: u64,
    /// Which of a pod's addresses is the first that is told.
    pub ip_preference: IpPreference,
    /// `ipRanges` for plugins that ask for it.
    pub ip_ranges: Vec<Vec<Value>>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Cni,
            config_directories: vec!["/etc/cni/net.d".into()],
            plugin_directories: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            plugin_timeout_seconds: 60,
            delete_wait_seconds: 10,
            ip_preference: IpPreference::Ipv4,
            ip_ranges: Vec::new(),
        }
    }
}

impl NetworkConfig {
    /// With the daemon's directories: what survives a reboot, and what does not.
    #[must_use]
    pub fn settings(&self, root: &Path, state: &Path) -> Settings {
        Settings {
            config_directories: self.config_directories.clone(),
            plugin_directories: self.plugin_directories.clone(),
            plugin_limit: Duration::from_secs(self.plugin_timeout_seconds),
            delete_wait: Duration::from_secs(self.delete_wait_seconds),
            namespaces: state.join("netns"),
            attachments: root.join("network"),
        }
    }
}
