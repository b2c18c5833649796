//! Whether this node can run VMs, and by what hardware.

use crate::{Result, SandboxError};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// Hardware virtualization of the node's CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

impl Hardware {
    /// The name of the field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmx => "Intel VT-x (vmx)",
            Self::Svm => "AMD-V (svm)",
        }
    }
}

/// What the CPU has, if anything. Read once; a CPU does not change.
#[must_use]
pub fn hardware() -> Option<Hardware> {
    static HARDWARE: OnceLock<Option<Hardware>> = OnceLock::new();
    *HARDWARE
        .get_or_init(|| from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
}

fn from_cpuinfo(text: &str) -> Option<Hardware> {
    let flags = text.lines().find_map(|line| line.strip_prefix("flags"))?;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some(Hardware::Vmx),
        "svm" => Some(Hardware::Svm),
        _ => None,
    })
}

/// Opens `/dev/kvm` for a VMM.
///
/// # Errors
/// [`SandboxError::NodeUnfit`] with what to do, if there is no usable KVM.
pub fn open() -> Result<OwnedFd> {
    let unfit = |problem: &str| SandboxError::NodeUnfit {
        problem: problem.to_owned(),
    };
    let file = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| {
        match error.kind() {
            ErrorKind::NotFound => unfit(
                "there is no /dev/kvm; load kvm-intel or kvm-amd, and enable virtualization in the firmware or nested virtualization in the hypervisor",
            ),
            ErrorKind::PermissionDenied => {
                unfit("/dev/kvm may not be opened; run the daemon as root")
            }
            _ => unfit(&format!("/dev/kvm cannot be opened ({error})")),
        }
    })?;
    if hardware().is_none() {
        return Err(unfit(
            "the CPU shows neither VMX nor SVM, so /dev/kvm only emulates and no kernel runs on it; enable virtualization in the firmware or nested virtualization in the hypervisor",
        ));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::{Hardware, from_cpuinfo};

    #[test]
    fn flags_tell_the_hardware() {
        assert_eq!(
            from_cpuinfo("flags\t\t: fpu vmx sse\n"),
            Some(Hardware::Vmx)
        );
        assert_eq!(
            from_cpuinfo("model : x\nflags : fpu svm\n"),
            Some(Hardware::Svm)
        );
        assert_eq!(
            from_cpuinfo("flags : fpu svm_lock\nvmx flags : vnmi\n"),
            None
        );
        assert_eq!(from_cpuinfo(""), None);
    }
}
