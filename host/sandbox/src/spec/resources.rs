//! Limits: checked, put together from a request and an update of it, and as the OCI has them.

use crate::{Result, SandboxError};
use bulkhead_cri::v1::{HugepageLimit, LinuxContainerResources};
use serde_json::{Value, json};
use std::ops::RangeInclusive;

/// Kernel's limits of a period, microseconds (`sched/core.c`).
const PERIOD: RangeInclusive<i64> = 1000..=1_000_000;
/// The least quota, microseconds.
const MIN_QUOTA: i64 = 1000;
/// The longest list of CPUs, and the longest value in `unified`.
const MAX_TEXT: usize = 4096;
/// The most entries of `unified`.
const MAX_UNIFIED: usize = 256;

/// Checks what can be checked without the guest's kernel. `field` is where the resources are in
/// the request.
pub(crate) fn check(field: &'static str, resources: &LinuxContainerResources) -> Result<()> {
    let refuse = |problem: String| Err(SandboxError::InvalidField { field, problem });
    let (period, quota) = (resources.cpu_period, resources.cpu_quota);
    if period != 0 && !PERIOD.contains(&period) {
        let (least, most) = (PERIOD.start(), PERIOD.end());
        return refuse(format!(
            "cpu_period is {period}; it must be from {least} to {most} microseconds"
        ));
    }
    if quota < -1 || (1..MIN_QUOTA).contains(&quota) {
        return refuse(format!(
            "cpu_quota is {quota}; it must be at least {MIN_QUOTA} microseconds, or -1 for no limit"
        ));
    }
    for (name, value, least) in [
        ("cpu_shares", resources.cpu_shares, 0),
        ("memory_limit_in_bytes", resources.memory_limit_in_bytes, 0),
        (
            "memory_swap_limit_in_bytes",
            resources.memory_swap_limit_in_bytes,
            -1,
        ),
    ] {
        if value < least {
            return refuse(format!("{name} is {value}; it must not be negative"));
        }
    }
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        return refuse(format!(
            "oom_score_adj is {}; it must be from -1000 to 1000",
            resources.oom_score_adj
        ));
    }
    for (name, list) in [
        ("cpuset_cpus", &resources.cpuset_cpus),
        ("cpuset_mems", &resources.cpuset_mems),
    ] {
        let allowed = |byte: u8| byte.is_ascii_digit() || matches!(byte, b',' | b'-');
        if list.len() > MAX_TEXT || !list.bytes().all(allowed) {
            return refuse(format!(
                "{name} is {list:?}; it must be a list such as 0-2,4"
            ));
        }
    }
    for huge in &resources.hugepage_limits {
        let size = &huge.page_size;
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return refuse(format!(
                "hugepage_limits has page size {size:?}; it must be one such as 2MB"
            ));
        }
    }
    if resources.unified.len() > MAX_UNIFIED {
        return refuse(format!("unified has more than {MAX_UNIFIED} entries"));
    }
    for (key, value) in &resources.unified {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
        let known = key.contains('.') && !key.starts_with("cgroup.") && key.bytes().all(allowed);
        if !known {
            return refuse(format!(
                "unified has {key:?}; it must be a file of a cgroup v2 controller such as memory.high"
            ));
        }
        if value.is_empty() || value.len() > MAX_TEXT {
            return refuse(format!("unified has an empty or too long value for {key}"));
        }
    }
    let (memory, swap) = (
        resources.memory_limit_in_bytes,
        resources.memory_swap_limit_in_bytes,
    );
    if swap > 0 && swap < memory {
        return refuse(format!(
            "memory_swap_limit_in_bytes is {swap}; it includes memory_limit_in_bytes, which is {memory}"
        ));
    }
    Ok(())
}

/// What holds after an update: what it says, and else what held before.
pub(crate) fn merge(
    old: LinuxContainerResources,
    new: LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: String, new: String| if new.is_empty() { old } else { new };
    let mut hugepage_limits = old.hugepage_limits;
    for limit in new.hugepage_limits {
        hugepage_limits.retain(|old: &HugepageLimit| old.page_size != limit.page_size);
        hugepage_limits.push(limit);
    }
    let mut unified = old.unified;
    unified.extend(new.unified);
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: number(
            old.memory_swap_limit_in_bytes,
            new.memory_swap_limit_in_bytes,
        ),
    }
}

/// `linux.resources` of a specification, without devices. 0 and nothing mean that the request does
/// not say.
pub(crate) fn oci(resources: &LinuxContainerResources) -> Value {
    let given = |number: i64| (number != 0).then_some(number);
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let memory = given(resources.memory_limit_in_bytes);
    // As containerd: no swap beyond the memory limit unless the request gives some.
    let swap = match resources.memory_swap_limit_in_bytes {
        0 => memory,
        swap => Some(swap),
    };
    let huge: Vec<_> = resources
        .hugepage_limits
        .iter()
        .map(|limit| {
            let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
            json!({ "pageSize": limit.page_size, "limit": bytes })
        })
        .collect();
    json!({
        "cpu": {
            "shares": given(resources.cpu_shares),
            "quota": given(resources.cpu_quota),
            "period": given(resources.cpu_period),
            "cpus": text(&resources.cpuset_cpus),
            "mems": text(&resources.cpuset_mems),
        },
        "memory": { "limit": memory, "swap": swap },
        "hugepageLimits": huge,
        "unified": resources.unified,
    })
}

#[cfg(test)]
mod tests {
    use super::{check, merge, oci};
    use bulkhead_cri::v1::{HugepageLimit, LinuxContainerResources};

    fn with(change: impl FnOnce(&mut LinuxContainerResources)) -> LinuxContainerResources {
        let mut resources = LinuxContainerResources::default();
        change(&mut resources);
        resources
    }

    fn huge(size: &str, limit: u64) -> HugepageLimit {
        HugepageLimit {
            page_size: size.into(),
            limit,
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let unified = |key: &str, value: &str| {
            with(|r| r.unified = [(key.to_owned(), value.to_owned())].into())
        };
        for (resources, name) in [
            (with(|r| r.cpu_period = 999), "cpu_period"),
            (with(|r| r.cpu_quota = 10), "cpu_quota"),
            (with(|r| r.cpu_quota = -2), "cpu_quota"),
            (with(|r| r.cpu_shares = -1), "cpu_shares"),
            (
                with(|r| r.memory_limit_in_bytes = -5),
                "memory_limit_in_bytes",
            ),
            (with(|r| r.oom_score_adj = 1001), "oom_score_adj"),
            (with(|r| r.cpuset_cpus = "0;1".into()), "cpuset_cpus"),
            (
                with(|r| r.hugepage_limits = vec![huge("../2MB", 0)]),
                "hugepage_limits",
            ),
            (unified("cgroup.procs", "1"), "cgroup.procs"),
            (unified("a/b.c", "1"), "a/b.c"),
            (unified("memory.high", ""), "memory.high"),
            (
                with(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (10, 5)),
                "memory_swap_limit_in_bytes",
            ),
        ] {
            let error = check("linux", &resources).unwrap_err().to_string();
            assert!(
                error.starts_with("linux: ") && error.contains(name),
                "{error}"
            );
        }
        check("linux", &unified("memory.high", "max")).unwrap();
        check(
            "linux",
            &with(|r| (r.cpu_quota, r.cpu_period) = (-1, 100_000)),
        )
        .unwrap();
    }

    #[test]
    fn an_update_changes_what_it_says() {
        let old = with(|r| {
            (r.cpu_quota, r.cpu_period, r.cpuset_cpus) = (5000, 10_000, "0".into());
            r.hugepage_limits = vec![huge("2MB", 1), huge("1GB", 2)];
            r.unified = [
                ("memory.high".into(), "1".into()),
                ("a.b".into(), "2".into()),
            ]
            .into();
        });
        let new = with(|r| {
            (r.cpu_quota, r.memory_limit_in_bytes) = (-1, 77);
            r.hugepage_limits = vec![huge("2MB", 3)];
            r.unified = [("memory.high".into(), "9".into())].into();
        });
        let merged = merge(old, new);
        assert_eq!((merged.cpu_quota, merged.cpu_period), (-1, 10_000));
        assert_eq!(
            (merged.memory_limit_in_bytes, merged.cpuset_cpus.as_str()),
            (77, "0")
        );
        assert_eq!(merged.hugepage_limits, [huge("1GB", 2), huge("2MB", 3)]);
        assert_eq!(merged.unified["memory.high"], "9");
        let oci = oci(&merged);
        assert_eq!(oci["cpu"]["quota"], -1);
        assert_eq!(
            (&oci["memory"]["limit"], &oci["memory"]["swap"]),
            (&77.into(), &77.into())
        );
        assert!(oci["cpu"]["shares"].is_null());
    }
}
