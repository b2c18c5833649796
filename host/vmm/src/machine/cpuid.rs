//! What the guest's CPUID says: the host's processor, less what a guest must not have, with a
//! topology of its own.
//!
//! Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid`.
//! The topology is one socket of as many single-threaded cores as there are vCPUs, and the APIC id
//! is the vCPU's number.

use crate::error::Error;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

// Leaf 1.
const ECX_MONITOR: u32 = 1 << 3;
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// CLFLUSH line size in units of 8 bytes, bits 8 to 15.
const EBX_CLFLUSH: u32 = 0xff00;
// Leaf 7, subleaf 0.
const EBX_SGX: u32 = 1 << 2;
const EBX_HLE: u32 = 1 << 4;
const EBX_RTM: u32 = 1 << 11;
const EBX_PROCESSOR_TRACE: u32 = 1 << 25;
const ECX_SGX_LAUNCH: u32 = 1 << 30;
const EDX_PCONFIG: u32 = 1 << 18;
// Leaf 6: the APIC timer runs in every C state.
const EAX_ARAT: u32 = 1 << 2;
// Leaf 0x8000_0001.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_SVM: u32 = 1 << 2;
const ECX_TOPOLOGY: u32 = 1 << 22;
const ECX_PERF_CORE: u32 = 1 << 23;

/// The host's processor as KVM can show it to a guest.
///
/// # Errors
/// [`Error::Kvm`]; [`Error::KvmLacks`] without the timer that the machine relies on.
pub fn supported(kvm: &Kvm) -> Result<CpuId, Error> {
    // There is no PIT and no HPET: without this the guest could not find its timer's frequency.
    if !kvm.check_extension(Cap::TscDeadlineTimer) {
        return Err(Error::KvmLacks("offer the TSC deadline timer"));
    }
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::kvm("say what processor a guest can have"))
}

/// The CPUID of vCPU number `id` out of `count`.
///
/// # Errors
/// [`Error::Config`] when the host has more leaves than KVM takes, which cannot be.
pub fn of_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        // Topology is written anew below.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .collect();
    let max_leaf = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    for entry in &mut entries {
        adjust(entry, id, count);
    }
    for leaf in [0xb, 0x1f] {
        if max_leaf >= leaf {
            entries.extend(topology(leaf, id, count));
        }
    }
    CpuId::from_entries(&entries)
        .map_err(|_| Error::Config("the processor has too many CPUID leaves".to_owned()))
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    let (id, count) = (u32::from(id), u32::from(count));
    match entry.function {
        1 => {
            entry.ebx = id << 24 | count.next_power_of_two() << 16 | entry.ebx & EBX_CLFLUSH;
            entry.ecx &= !(ECX_MONITOR | ECX_VMX | ECX_PDCM);
            entry.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            set(&mut entry.edx, EDX_HTT, count > 1);
        }
        // Caches (Intel 4, AMD 0x8000_001d): the first two levels are a core's own, the rest is
        // shared by all.
        4 | 0x8000_001d => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 {
                count.next_power_of_two() - 1
            } else {
                0
            };
            if entry.eax & 0x1f != 0 {
                entry.eax &= 0x3fff;
                entry.eax |= sharing << 14;
                if entry.function == 4 {
                    entry.eax |= (count.next_power_of_two() - 1).min(0x3f) << 26;
                }
            }
        }
        // MONITOR, performance counters, SGX, Processor Trace, SVM, SEV, PMU and topology
        // extensions of AMD.
        5 | 0xa | 0x12 | 0x14 | 0x8000_000a | 0x8000_001f | 0x8000_0022 | 0x8000_0026 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        6 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & EAX_ARAT, 0, 0, 0);
        }
        7 if entry.index == 0 => {
            entry.ebx &= !(EBX_SGX | EBX_HLE | EBX_RTM | EBX_PROCESSOR_TRACE);
            entry.ecx &= !ECX_SGX_LAUNCH;
            entry.edx &= !EDX_PCONFIG;
        }
        0x8000_0001 => {
            entry.ecx &= !(ECX_SVM | ECX_PERF_CORE);
            let amd = entry.ecx & ECX_TOPOLOGY != 0;
            set(&mut entry.ecx, ECX_CMP_LEGACY, amd && count > 1);
        }
        0x8000_0008 => {
            // Cores less one, and how many bits of the APIC id number them.
            let bits = count.next_power_of_two().trailing_zeros();
            entry.ecx = bits << 12 | (count - 1);
        }
        0x8000_001e => {
            // Extended APIC id; one thread a core, core id; one node.
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id, 0, 0);
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

/// Extended topology: a level of threads (one), a level of cores, the end.
fn topology(leaf: u32, id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let core_bits = u32::from(count).next_power_of_two().trailing_zeros();
    let level = |index: u32, shift: u32, width: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: width,
        ecx: kind << 8 | index,
        edx: u32::from(id),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, core_bits, u32::from(count), 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
