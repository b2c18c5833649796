//! What a VMM costs besides its guest's memory.

use super::figures::table;
use crate::node::Node;
use crate::pod::{self, Pod};
use anyhow::{Context, Result};

/// Measures and prints.
///
/// # Errors
/// A pod did not come up.
pub async fn run(node: &Node) -> Result<String> {
    let pod = Pod::run(node, "memory").await?;
    let info = pod::info(node, &pod.id).await?;
    let pid = info["vmmPid"].as_u64().context("No vmmPid")?;
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    pod.remove().await?;
    let [guest, own] = resident(&smaps);
    let row = |name: &str, memory: Memory| {
        vec![
            name.to_owned(),
            memory.resident.to_string(),
            memory.private.to_string(),
        ]
    };
    Ok(table(
        "Memory of an idle VMM, 1 vCPU, all devices",
        &[
            ["KiB", "resident", "of it private"]
                .map(str::to_owned)
                .to_vec(),
            row("VMM without guest memory", own),
            row("guest memory that is touched", guest),
        ],
    ))
}

#[derive(Default, Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) private: u64,
}

/// The guest's memory and the rest. The VMM keeps guest memory out of core dumps, which marks its
/// mappings with `dd` (proc_pid_smaps(5)); the kernel and the initramfs are mapped into it from their
/// files.
pub(super) fn resident(smaps: &str) -> [Memory; 2] {
    let mut sums = [Memory::default(); 2];
    let mut mapping = Memory::default();
    let mut image = false;
    for line in smaps.lines() {
        if line.contains(" r") && line.contains('-') && !line.starts_with("VmFlags") {
            image = line.ends_with("/vmlinux") || line.ends_with("/initramfs");
        }
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let kib = || {
            line.split_whitespace()
                .nth(1)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        match key {
            "Rss:" => mapping.resident += kib(),
            "Private_Clean:" | "Private_Dirty:" => mapping.private += kib(),
            // The last line of a mapping.
            "VmFlags:" => {
                let guest = image || words.any(|flag| flag == "dd");
                let sum = &mut sums[usize::from(!guest)];
                sum.resident += mapping.resident;
                sum.private += mapping.private;
                mapping = Memory::default();
            }
            _ => {}
        }
    }
    sums
}
