//! The machine and the lane, without which no figure means anything.

use anyhow::Result;
use std::process::Command;

/// A paragraph about where this runs.
///
/// # Errors
/// `/proc` cannot be read.
pub fn describe() -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let of = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(": ").nth(1))
            .unwrap_or("unknown")
            .to_owned()
    };
    // In the lab there is one more, on which nothing runs.
    let cpus = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let lane = match std::env::var_os("BULKHEAD_IN_LAB") {
        Some(_) => "the lab (QEMU in software emulation; nested virtualization in it)",
        None => "direct KVM",
    };
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory = memory.lines().next().unwrap_or_default().to_owned();
    Ok(format!(
        "Lane: {lane}\nCPU: {cpus} x {}\nKernel: Linux {}\n{memory}\nPeers: {}; {}; {}\n",
        of("model name"),
        kernel.trim(),
        first_line("qemu-system-x86_64", "--version"),
        first_line("containerd", "--version"),
        first_line("runc", "--version"),
    ))
}

fn first_line(program: &str, option: &str) -> String {
    let output = Command::new(program).arg(option).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text
        .ok()
        .and_then(|text| text.lines().next().map(str::to_owned));
    line.unwrap_or_else(|| format!("no {program}"))
}
