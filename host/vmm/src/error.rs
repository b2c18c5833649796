//! Why a VM could not start or go on.

use bulkhead_vmm_api::ExitReason;
use std::io;

/// Everything that can stop the VMM, but for what the guest decides.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for what the machine cannot be.
    #[error("The configuration is not usable: {0}")]
    Config(String),
    /// A descriptor of the configuration is not what it should be.
    #[error("Descriptor {fd} ({name}) is not {expected}")]
    Descriptor {
        /// Its name in the configuration.
        name: &'static str,
        /// Its number.
        fd: i32,
        /// What it should have been.
        expected: &'static str,
    },
    /// KVM cannot do what the machine needs.
    #[error("This host's KVM cannot {0}")]
    KvmLacks(&'static str),
    /// A KVM request failed.
    #[error("KVM could not {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest memory could not be had.
    #[error("Guest memory of {mebibytes} MiB could not be mapped")]
    Memory {
        /// Its size.
        mebibytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel image cannot be booted.
    #[error("The kernel image cannot be booted: {0}")]
    Kernel(String),
    /// The initramfs does not fit or could not be read.
    #[error("The initramfs cannot be used: {0}")]
    Initrd(String),
    /// A table for the guest could not be written.
    #[error("The guest's {what} could not be written to its memory")]
    GuestMemory {
        /// Which table.
        what: &'static str,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// The host refused something ordinary.
    #[error("The host refused to {what}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The exit status that stands for this error at start.
    #[must_use]
    pub fn reason(&self) -> ExitReason {
        ExitReason::StartFailed
    }

    /// For `map_err` on KVM requests.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    /// For `map_err` on system calls.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }
}

/// An error and its causes as one sentence.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
