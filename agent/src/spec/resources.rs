//! `linux.resources`: limits of cgroup v1 names and units become files of cgroup v2
//! (Documentation/admin-guide/cgroup-v2.rst).

use super::{block_io, devices, refuse};
use crate::cgroup::Setting;
use crate::cgroup::devices::Rule;
use crate::id::quote;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

/// The longest value of a file.
const MAX_VALUE: usize = 4096;
/// Killing a process of a container for its memory ends the container as a whole: what is left of
/// it seldom works. `unified` can say otherwise.
const OOM_GROUP: &str = "memory.oom.group";

/// What a container's cgroup is made with: its limits and its rules for devices.
pub(super) fn convert(resources: &LinuxResources) -> Result<(Vec<Setting>, Vec<Rule>)> {
    let mut settings = vec![Setting {
        file: OOM_GROUP.to_owned(),
        value: "1".to_owned(),
        optional: true,
    }];
    settings.extend(limits(resources)?);
    let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
    Ok((settings, rules))
}

/// New limits for a running container, and whether its memory in use is to be looked at first.
pub(super) fn update(resources: &LinuxResources) -> Result<(Vec<Setting>, bool)> {
    refuse(
        "linux.resources.devices in an update",
        resources
            .devices()
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
    )?;
    let check = resources
        .memory()
        .and_then(|memory| memory.check_before_update());
    Ok((limits(resources)?, check.unwrap_or(false)))
}

/// In the order in which they are written.
fn limits(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    refuse("linux.resources.network", resources.network().is_some())?;
    let rdma = resources.rdma().as_ref();
    refuse(
        "linux.resources.rdma",
        rdma.is_some_and(|map| !map.is_empty()),
    )?;
    if let Some(memory) = resources.memory() {
        self::memory(memory, &mut settings)?;
    }
    if let Some(block_io) = resources.block_io() {
        block_io::convert(block_io, &mut settings)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(cpu, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        set(&mut settings, "pids.max", limit(pids.limit()));
    }
    for huge in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let size = huge.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::Invalid(format!(
                "{} is not a huge page size",
                quote(size)
            )));
        }
        settings.push(Setting {
            file: format!("hugetlb.{size}.max"),
            value: limit_or_zero(huge.limit()),
            // A limit of nothing is kept by a kernel that does not know the size.
            optional: huge.limit() == 0,
        });
    }
    for (file, value) in resources.unified().iter().flatten() {
        let known = file.contains('.')
            && !file.starts_with("cgroup.")
            && file
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
        if !known || file.len() > 64 || value.len() > MAX_VALUE || value.is_empty() {
            return Err(Error::Invalid(format!(
                "linux.resources.unified has {}",
                quote(file)
            )));
        }
        settings.push(Setting {
            // A guest that has no swap keeps this one in any case.
            optional: file == "memory.swap.max" && matches!(value.as_str(), "0" | "max"),
            file: file.clone(),
            value: value.clone(),
        });
    }
    Ok(settings)
}

fn memory(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<()> {
    // Version 2 has neither. Kernel memory counts as memory.
    let killer = memory.disable_oom_killer().unwrap_or(false);
    refuse("linux.resources.memory.disableOOMKiller", killer)?;
    let swappiness = memory.swappiness().is_some();
    refuse("linux.resources.memory.swappiness", swappiness)?;
    if let Some(bytes) = memory.limit().filter(|bytes| *bytes != 0) {
        set(settings, "memory.max", limit(bytes));
    }
    if let Some(bytes) = memory.reservation().filter(|bytes| *bytes != 0) {
        set(settings, "memory.low", limit(bytes));
    }
    // The specification counts memory and swap together, version 2 counts swap alone.
    if let Some(both) = memory.swap().filter(|both| *both != 0) {
        let value = match memory.limit() {
            _ if both < 0 => "max".to_owned(),
            Some(memory @ 1..) if memory <= both => (both - memory).to_string(),
            Some(memory @ 1..) => {
                return Err(Error::Invalid(format!(
                    "linux.resources.memory.swap is {both}, less than the memory limit {memory} that it includes"
                )));
            }
            _ => {
                return Err(Error::Invalid(
                    "linux.resources.memory.swap needs a memory limit, which it includes"
                        .to_owned(),
                ));
            }
        };
        settings.push(Setting {
            file: "memory.swap.max".to_owned(),
            optional: matches!(value.as_str(), "0" | "max"),
            value,
        });
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<()> {
    let real_time =
        cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0;
    refuse(
        "linux.resources.cpu.realtimeRuntime or realtimePeriod",
        real_time,
    )?;
    match cpu.idle() {
        None => {}
        Some(idle @ (0 | 1)) => set(settings, "cpu.idle", idle.to_string()),
        Some(idle) => {
            return Err(Error::Invalid(format!(
                "linux.resources.cpu.idle is {idle}; it must be 0 or 1"
            )));
        }
    }
    // What only runs when nobody else wants to has no weight.
    let shares = cpu.shares().filter(|shares| *shares != 0);
    if let (Some(shares), None | Some(0)) = (shares, cpu.idle()) {
        set(settings, "cpu.weight", weight(shares).to_string());
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = limit(quota.unwrap_or(-1));
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        set(settings, "cpu.max", value);
    }
    if let Some(burst) = cpu.burst() {
        set(settings, "cpu.max.burst", burst.to_string());
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else {
            continue;
        };
        if list.len() > MAX_VALUE
            || !list
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-'))
        {
            return Err(Error::Invalid(format!(
                "{} is not a list for {file}",
                quote(list)
            )));
        }
        set(settings, file, list.clone());
    }
    Ok(())
}

/// 2..=262144 of version 1 onto 1..=10000 of version 2 so that the defaults meet: 1024 is 100. The
/// curve is that of runc since 1.3.2 and crun since 1.23 (kubernetes/kubernetes#131216), a parabola of
/// logarithms through the three points; the line that went before gave 1024 only 39.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[allow(clippy::cast_precision_loss)] // Below 2^18.
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Rounded up, but not for what floating point adds to a whole number.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to 10,000.
            let weight = (10f64.powf(exponent) - 1e-9).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

pub(super) fn set(settings: &mut Vec<Setting>, file: &str, value: String) {
    settings.push(Setting {
        file: file.to_owned(),
        value,
        optional: false,
    });
}

/// A limit; 0 and less are none.
fn limit(value: i64) -> String {
    if value > 0 {
        value.to_string()
    } else {
        "max".to_owned()
    }
}

/// A limit; less than 0 is none.
fn limit_or_zero(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}
