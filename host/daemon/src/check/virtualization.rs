//! KVM and what concerns its speed.

use super::Finding;
use bulkhead_sandbox::kvm;
use std::fs;
use std::io::ErrorKind;

pub(super) fn kvm() -> Finding {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Finding::ok("kvm", "/dev/kvm can be opened"),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::failed(
            "kvm",
            "there is no /dev/kvm",
            "load kvm-intel or kvm-amd; enable virtualization in the firmware, or nested virtualization in the hypervisor",
        ),
        Err(error) => Finding::failed(
            "kvm",
            format!("/dev/kvm cannot be opened: {error}"),
            "run as root, or as a member of the group kvm",
        ),
    }
}

pub(super) fn hardware() -> Finding {
    match kvm::hardware() {
        Some(hardware) => Finding::ok("hardware", hardware.name()),
        None => Finding::failed(
            "hardware",
            "the CPU shows neither VMX nor SVM; a KVM without them only emulates, and no guest kernel runs on it",
            "enable virtualization in the firmware, or nested virtualization in the hypervisor",
        ),
    }
}

/// On kernels from 6.1 on, KVM_CREATE_VM waits for a worker that moves between cgroups, unless huge
/// pages are left alone or cgroup v2 is mounted for quick moves.
pub(super) fn nx_huge_pages() -> Finding {
    let setting = fs::read_to_string("/sys/module/kvm/parameters/nx_huge_pages");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    judge(setting.ok().as_deref().map(str::trim), &mounts)
}

pub(super) fn judge(setting: Option<&str>, mounts: &str) -> Finding {
    let favoured = mounts
        .lines()
        .any(|line| line.contains(" cgroup2 ") && line.contains("favordynmods"));
    match setting {
        None => Finding::ok("nx_huge_pages", "KVM has no such setting"),
        Some("N" | "never") => Finding::ok("nx_huge_pages", "off: VMs start without delay"),
        Some(_) if favoured => Finding::ok(
            "nx_huge_pages",
            "on, and cgroup v2 is mounted with favordynmods",
        ),
        Some(setting) => Finding::warning(
            "nx_huge_pages",
            format!(
                "{setting}: on kernels from 6.1 on, starting a VM can wait tens of milliseconds"
            ),
            "if the CPU is not affected by iTLB multihit, boot with kvm.nx_huge_pages=never; else remount cgroup v2 with favordynmods",
        ),
    }
}
