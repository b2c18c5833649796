//! How fast a device may be used.

use serde::{Deserialize, Serialize};

/// Limits of one device, or of one direction of it. What is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RateLimits {
    /// Requests or packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<Rate>,
    /// Bytes of data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
}

impl RateLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A token bucket: it holds `burst` tokens when full and gains `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rate {
    /// Tokens gained in a second; at least 1.
    pub per_second: u64,
    /// Tokens that can be spent at once after a pause; at least 1. A request that needs more waits for a
    /// full bucket and leaves a debt.
    pub burst: u64,
}

impl Rate {
    /// Whether both numbers are usable.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.per_second > 0 && self.burst > 0
    }
}

/// Limits of the network interface, shared by all its queues. A packet is what the guest or the host hands
/// over at once; with segmentation offloads that is up to 64 KiB. The limits hold on average; a packet that
/// was let through may leave a debt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NetworkLimits {
    /// What the guest receives.
    #[serde(skip_serializing_if = "RateLimits::is_none")]
    pub ingress: RateLimits,
    /// What the guest sends.
    #[serde(skip_serializing_if = "RateLimits::is_none")]
    pub egress: RateLimits,
}

impl NetworkLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
