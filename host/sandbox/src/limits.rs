//! Limits of a pod as a whole, from `linux.resources` and `linux.overhead` of its request.
//!
//! The CPU limit is that of the pod's cgroup on the host, so the VM's own work counts too. A memory
//! limit cannot be lowered there, for the host can only kill a VM whose memory is taken away: the host's
//! limit is always the booted size with what the VMM needs, and with the scratch disk where that is in
//! memory too, whose pages nobody can take back; less than that is the guest's to keep
//! ([`crate::agent::Agent::limit_memory`]).

use crate::record::{SandboxRecord, VmSize};
use crate::sandbox::Sandbox;
use crate::{Result, SandboxError, spec};
use bulkhead_cri::v1::LinuxContainerResources;
use std::path::Path;

/// The period of a quota whose request names none, microseconds; the kernel's default.
const PERIOD: i64 = 100_000;
/// Page tables of the VMM and of KVM, and what else the kernel keeps for each page of a VM: so many
/// bytes of its memory cost one.
const BYTES_A_BOOKKEEPING_BYTE: u64 = 128;

/// Files of the pod's cgroup on the host, and what they are to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostLimits {
    pub(crate) files: Vec<(&'static str, String)>,
}

/// Whether files of a directory are in memory, or may be: with overlayfs nobody can tell.
pub(crate) fn is_in_memory(directory: &Path) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    const OVERLAYFS: i64 = 0x794c_7630;
    match rustix::fs::statfs(directory) {
        Ok(stat) => [TMPFS, RAMFS, OVERLAYFS].contains(&stat.f_type),
        Err(_) => true,
    }
}

/// The limits that a request asks for; nothing where it does not. `in_memory` is whether the scratch
/// disk is.
pub(crate) fn of_host(
    record: &SandboxRecord,
    size: VmSize,
    [resources, overhead]: [&LinuxContainerResources; 2],
    in_memory: bool,
) -> HostLimits {
    let mut files = Vec::new();
    if let Some((quota, period)) = quota_of(resources) {
        let own = match quota_of(overhead) {
            Some((own, own_period)) => own.saturating_mul(period) / own_period,
            None => 0,
        };
        files.push(("cpu.max", format!("{} {period}", quota.saturating_add(own))));
    } else if resources.cpu_quota < 0 {
        files.push(("cpu.max", "max".to_owned()));
    }
    if let Some(weight) = weight(resources.cpu_shares) {
        files.push(("cpu.weight", weight.to_string()));
    }
    if resources.memory_limit_in_bytes > 0 {
        let vm = size.memory_mib << 20;
        let scratch = match in_memory {
            true => record.runtime.scratch_mib << 20,
            false => 0,
        };
        let own = (record.runtime.vmm_overhead_mib << 20) + vm / BYTES_A_BOOKKEEPING_BYTE;
        let limit = vm + own + scratch;
        files.push(("memory.max", limit.to_string()));
    }
    HostLimits { files }
}

/// Quota and period; nothing if there is no limit.
fn quota_of(resources: &LinuxContainerResources) -> Option<(i64, i64)> {
    let period = match resources.cpu_period {
        0 => PERIOD,
        period => period,
    };
    (resources.cpu_quota > 0).then_some((resources.cpu_quota, period))
}

/// The weight of cgroup v2 (1 to 10,000) for the shares of v1 (2 to 262,144), as runc converts them.
fn weight(shares: i64) -> Option<i64> {
    (shares > 0).then(|| 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142)
}

/// Refuses what is more than the VM has. `field` is where the resources are in the request.
pub(crate) fn check_within(
    field: &'static str,
    resources: &LinuxContainerResources,
    size: VmSize,
) -> Result<()> {
    let beyond = |problem: String| Err(SandboxError::BeyondVm { field, problem });
    let limit = u64::try_from(resources.memory_limit_in_bytes).unwrap_or(0);
    let most = size.pod_memory_mib << 20;
    if limit > most {
        return beyond(format!(
            "memory_limit_in_bytes is {limit}, but the pod's VM was booted with {most} for its containers"
        ));
    }
    if let Some((quota, period)) = quota_of(resources)
        && quota > i64::from(size.vcpus).saturating_mul(period)
    {
        return beyond(format!(
            "cpu_quota is {quota} in a period of {period}, but the pod's VM was booted with {} CPUs",
            size.vcpus
        ));
    }
    Ok(())
}

impl Sandbox {
    /// Sets new limits of the whole pod within what its VM was booted with; 0 leaves one as it is.
    ///
    /// # Errors
    /// [`SandboxError::InvalidField`], [`SandboxError::BeyondVm`], [`SandboxError::WrongState`] unless
    /// it is ready; the agent's refusal of a memory limit that is in use. Nothing changes then.
    pub async fn update_resources(
        &self,
        resources: LinuxContainerResources,
        overhead: LinuxContainerResources,
    ) -> Result<()> {
        spec::check_resources("resources", &resources)?;
        spec::check_resources("overhead", &overhead)?;
        let running = self.running()?;
        let _turn = self.updates.lock().await;
        let record = self.record();
        let Some(size) = record.size else {
            return Err(SandboxError::BeyondVm {
                field: "resources",
                problem: "the pod was started by a daemon that did not remember its size"
                    .to_owned(),
            });
        };
        check_within("resources", &resources, size)?;
        let linux = record.config.linux.clone().unwrap_or_default();
        let old = record
            .resources
            .clone()
            .or(linux.resources)
            .unwrap_or_default();
        let new = spec::merge_resources(old.clone(), resources.clone());
        let overhead = spec::merge_resources(linux.overhead.unwrap_or_default(), overhead);
        let memory = |limits: &LinuxContainerResources| {
            u64::try_from(limits.memory_limit_in_bytes).unwrap_or(0)
        };
        let memory_given = resources.memory_limit_in_bytes > 0;
        if memory_given {
            running.agent.limit_memory(memory(&new)).await?;
        }
        let in_memory = is_in_memory(&self.directory());
        let limits = of_host(&record, size, [&new, &overhead], in_memory);
        let set = async {
            self.cgroup().limit(limits).await?;
            self.remember_resources(new).await
        };
        let result = set.await;
        if result.is_err() {
            let before = of_host(&record, size, [&old, &overhead], in_memory);
            let undone = async {
                self.cgroup().limit(before).await?;
                match memory_given {
                    true => running.agent.limit_memory(memory(&old)).await,
                    false => Ok(()),
                }
            };
            if let Err(error) = undone.await {
                let pod = self.id();
                tracing::error!(pod, %error, "The pod's former limits could not be restored");
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::{check_within, of_host, weight};
    use crate::config::RuntimeConfig;
    use crate::error::Kind;
    use crate::record::{SandboxRecord, VmSize};
    use bulkhead_cri::v1::LinuxContainerResources;

    const SIZE: VmSize = VmSize {
        vcpus: 2,
        memory_mib: 128,
        pod_memory_mib: 64,
    };

    fn limits(quota: i64, period: i64, memory: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: period,
            memory_limit_in_bytes: memory,
            ..Default::default()
        }
    }

    #[test]
    fn the_host_limits_what_the_request_limits() {
        let record = SandboxRecord {
            runtime: RuntimeConfig {
                vmm_overhead_mib: 10,
                ..Default::default()
            },
            ..Default::default()
        };
        let files = |resources: &LinuxContainerResources, overhead: &LinuxContainerResources| {
            of_host(&record, SIZE, [resources, overhead], false).files
        };
        let none = LinuxContainerResources::default();
        assert_eq!(files(&none, &limits(5000, 0, 1)), []);
        let own = |file, value: &str| (file, value.to_owned());
        assert_eq!(
            files(&limits(50_000, 0, 1), &limits(10_000, 50_000, 0)),
            [
                own("cpu.max", "70000 100000"),
                // Whatever the request says, the VM's memory fits in.
                own("memory.max", &((139 << 20).to_string())),
            ]
        );
        assert_eq!(files(&limits(-1, 0, 0), &none), [own("cpu.max", "max")]);
        let all = of_host(&record, SIZE, [&limits(0, 0, 1), &none], true).files;
        let scratch = record.runtime.scratch_mib << 20;
        assert_eq!(
            all,
            [own("memory.max", &((139 << 20) + scratch).to_string())]
        );
        let shares = LinuxContainerResources {
            cpu_shares: 1024,
            ..Default::default()
        };
        assert_eq!(files(&shares, &none), [own("cpu.weight", "39")]);
        assert_eq!((weight(1), weight(i64::MAX)), (Some(1), Some(10_000)));
    }

    #[test]
    fn more_than_the_vm_has_is_refused_by_name() {
        let refused = |resources: LinuxContainerResources| {
            let error = check_within("linux", &resources, SIZE).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            error.to_string()
        };
        check_within("linux", &limits(200_000, 100_000, 64 << 20), SIZE).unwrap();
        check_within("linux", &limits(-1, 0, 0), SIZE).unwrap();
        let error = refused(limits(0, 0, (64 << 20) + 1));
        assert!(
            error.contains("memory_limit_in_bytes") && error.contains("67108864"),
            "{error}"
        );
        let error = refused(limits(200_001, 0, 0));
        assert!(
            error.contains("cpu_quota") && error.contains("2 CPUs"),
            "{error}"
        );
    }
}
