//! `linux.resources`: limits of cgroup v1 names and units become files of cgroup v2
//! (Documentation/admin-guide/cgroup-v2.rst; the conversion of shares is that of KEP-2254).

use crate::cgroup::Setting;
use crate::id::quote;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

/// Translates them. `devices` is not enforced: what a container can reach is the guest's.
pub(super) fn convert(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        self::memory(memory, &mut settings);
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
        if !known || file.len() > 64 || value.len() > 4096 {
            return Err(Error::Invalid(format!(
                "linux.resources.unified has {}",
                quote(file)
            )));
        }
        set(&mut settings, file, value.clone());
    }
    Ok(settings)
}

fn memory(memory: &LinuxMemory, settings: &mut Vec<Setting>) {
    if let Some(bytes) = memory.limit().filter(|bytes| *bytes != 0) {
        set(settings, "memory.max", limit(bytes));
    }
    if let Some(bytes) = memory.reservation().filter(|bytes| *bytes != 0) {
        set(settings, "memory.low", limit(bytes));
    }
    // The specification counts memory and swap together, version 2 counts swap alone.
    if let Some(both) = memory.swap().filter(|both| *both != 0) {
        let value = match memory.limit() {
            Some(memory @ 1..) if both > 0 => both.saturating_sub(memory).max(0).to_string(),
            _ => limit(both),
        };
        settings.push(Setting {
            file: "memory.swap.max".to_owned(),
            optional: value == "0",
            value,
        });
    }
}

fn cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        set(settings, "cpu.weight", weight(shares).to_string());
    }
    if cpu.idle() == Some(1) {
        set(settings, "cpu.idle", "1".to_owned());
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
        if list.len() > 4096
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

/// 2..=262144 of version 1 onto 1..=10000 of version 2.
pub(super) fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

fn set(settings: &mut Vec<Setting>, file: &str, value: String) {
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
