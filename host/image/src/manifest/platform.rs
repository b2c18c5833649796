//! Which entry of an image index is for this node (OCI Image Index Specification, `platform`).

use super::{Descriptor, nullable};
use serde::Deserialize;

/// The most platforms that an error lists.
const MAX_LISTED: usize = 12;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    #[serde(deserialize_with = "nullable")]
    pub(super) os: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) variant: String,
    #[serde(rename = "os.version", deserialize_with = "nullable")]
    pub(super) os_version: String,
    #[serde(rename = "os.features", deserialize_with = "nullable")]
    pub(super) os_features: Vec<String>,
}

/// `GOARCH` of this node, as image indexes name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry of an index for this node: the one that needs least of its processor, or an entry that
/// names no platform when none fits.
pub(crate) fn choose_platform(entries: &[Descriptor]) -> Result<&Descriptor, String> {
    choose(entries, processor_level())
}

/// The same for a processor of this level.
pub(super) fn choose(entries: &[Descriptor], level: u32) -> Result<&Descriptor, String> {
    let rank = |entry: &Descriptor| -> Option<(u32, bool)> {
        let Some(platform) = &entry.platform else {
            return Some((u32::MAX, false));
        };
        if platform.os != "linux" || platform.architecture != architecture() {
            return None;
        }
        let needs = level_of(&platform.variant)?;
        // Linux has no versions and features that an image could ask for.
        let plain = platform.os_version.is_empty() && platform.os_features.is_empty();
        (needs <= level).then_some((needs, !plain))
    };
    let ranked = entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)));
    let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry);
    best.ok_or_else(|| {
        let wanted = architecture();
        match listed(entries) {
            list if list.is_empty() => format!("it has no variant for linux/{wanted}"),
            list => format!(
                "it has no variant for linux/{wanted} that this processor runs, only {list}"
            ),
        }
    })
}

/// The level of the processor that a variant needs: of amd64 the psABI's microarchitecture levels,
/// of arm64 the version of the architecture, of which every Linux node has the eighth.
fn level_of(variant: &str) -> Option<u32> {
    let number: u32 = match variant {
        "" => return Some(1),
        variant => variant.strip_prefix('v')?.parse().ok()?,
    };
    match architecture() {
        "arm64" => number.checked_sub(7),
        _ => Some(number),
    }
    .filter(|level| *level > 0)
}

/// What the processor of this node can do: level 1 is every amd64 or arm64 processor.
#[cfg(target_arch = "x86_64")]
fn processor_level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let v3 = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
    match (v2, v3, v4 && has!("avx512vl")) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        _ => 1,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_level() -> u32 {
    1
}

fn listed(entries: &[Descriptor]) -> String {
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let names = platforms.map(|platform| {
        let Platform {
            os,
            architecture,
            variant,
            ..
        } = platform;
        let text = match variant.is_empty() {
            true => format!("{os}/{architecture}"),
            false => format!("{os}/{architecture}/{variant}"),
        };
        text.escape_debug().take(40).collect::<String>()
    });
    let names: Vec<String> = names.take(MAX_LISTED).collect();
    names.join(", ")
}
