//! What the kernel is handed: the PVH start info and the state of the first vCPU.
//!
//! x86/HVM direct boot ABI: protected mode without paging, flat 4 GiB segments, EBX points to the
//! `hvm_start_info`. Linux: `Documentation/arch/x86/xen` and `arch/x86/platform/pvh`.

use super::image::{Initrd, Kernel};
use super::layout::{
    ACPI_BASE, ACPI_END, BOOT_DATA, CMDLINE, CONVENTIONAL_END, HIGH_MEMORY, HOLE_END,
};
use super::memory::{GuestRam, ranges};
use crate::error::Error;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

const START_MAGIC: u32 = 0x336e_c578;
const START_INFO: u64 = BOOT_DATA;
const MODULES: u64 = BOOT_DATA + 0x1000;
const MEMORY_MAP: u64 = BOOT_DATA + 0x2000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: what firmware would have set.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The memory map that the guest is shown: start, length, type.
#[must_use]
pub fn memory_map(memory_mib: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, CONVENTIONAL_END, E820_RAM),
        (ACPI_BASE, ACPI_END - ACPI_BASE, E820_RESERVED),
    ];
    for (start, length) in ranges(memory_mib) {
        if start == 0 {
            map.push((HIGH_MEMORY, length - HIGH_MEMORY, E820_RAM));
        } else {
            map.push((HOLE_END, length, E820_RAM));
        }
    }
    map
}

/// Writes the start info and all that it points to.
///
/// # Errors
/// [`Error::GuestMemory`].
pub fn write_start_info(
    ram: &GuestRam,
    memory_mib: u64,
    cmdline: &str,
    initrd: Initrd,
) -> Result<(), Error> {
    let write = |what, address, bytes: &[u8]| {
        ram.write_slice(bytes, GuestAddress(address))
            .map_err(|source| Error::GuestMemory { what, source })
    };
    let map = memory_map(memory_mib);
    let mut bytes = Vec::new();
    for (start, length, kind) in &map {
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
    }
    write("memory map", MEMORY_MAP, &bytes)?;

    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    write("command line", CMDLINE, &line)?;

    let mut module = Vec::new();
    for field in [initrd.start, initrd.length, 0, 0] {
        module.extend_from_slice(&field.to_le_bytes());
    }
    write("module list", MODULES, &module)?;

    let mut info = Vec::new();
    let modules = u32::from(initrd.length > 0);
    for field in [START_MAGIC, 1, 0, modules] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    for field in [MODULES, CMDLINE, ACPI_BASE, MEMORY_MAP] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    // The map has at most four entries.
    info.extend_from_slice(&(map.len() as u32).to_le_bytes());
    info.extend_from_slice(&0_u32.to_le_bytes());
    write("start info", START_INFO, &info)
}

/// Points the first vCPU at the kernel. The others wait for the guest to start them.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set_entry(vcpu: &VcpuFd, kernel: Kernel) -> Result<(), Error> {
    let mut system = vcpu
        .get_sregs()
        .map_err(Error::kvm("read a vCPU's system registers"))?;
    let flat = |kind, selector| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..kvm_segment::default()
    };
    let (code, data) = (flat(0xb, 0x08), flat(0x3, 0x10));
    system.cs = code;
    system.ds = data;
    system.es = data;
    system.fs = data;
    system.gs = data;
    system.ss = data;
    // A busy 32-bit task state segment: what processors demand to enter protected mode.
    system.tr = kvm_segment {
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    system.cr0 = CR0_PE | CR0_ET;
    system.cr3 = 0;
    system.cr4 = 0;
    system.efer = 0;
    vcpu.set_sregs(&system)
        .map_err(Error::kvm("set a vCPU's system registers"))?;
    vcpu.set_regs(&kvm_regs {
        rip: kernel.entry,
        rbx: START_INFO,
        rflags: 2,
        ..kvm_regs::default()
    })
    .map_err(Error::kvm("set a vCPU's registers"))
}

/// Sets the model-specific registers that firmware would have set.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let set = |index, data| {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs = Msrs::from_entries(&[entry])
            .map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))
            .map_err(Error::kvm("list a vCPU's registers"))?;
        // A processor that lacks the register (no MTRRs, or MISC_ENABLE on AMD) needs no value.
        vcpu.set_msrs(&msrs)
            .map(drop)
            .map_err(Error::kvm("set a vCPU's model-specific registers"))
    };
    set(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)?;
    set(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)
}
