//! The guest's physical address space and ports.
//!
//! ```text
//! 0000_0000  RAM: boot data from BOOT_DATA, the rest of the first 640 KiB free
//! 000a_0000  hole of the PC: Linux never uses it as RAM
//! 000e_0000  ACPI tables (BIOS area, reserved), in its last page the VM generation ID
//! 0010_0000  RAM: the kernel where its ELF headers say, the initramfs at the end of low RAM
//! c000_0000  end of low RAM at the latest; from here to 4 GiB devices only
//! d000_0000  virtio-mmio, a page a device
//! fec0_0000  IOAPIC (KVM)
//! fee0_0000  local APICs (KVM)
//! fffb_c000  identity map page, then three pages of task state segment (KVM on Intel)
//! 1_0000_0000  high RAM: what did not fit below the hole
//! ```

/// Boot data: PVH start info, module list, memory map, each in its own page, then the command line.
pub const BOOT_DATA: u64 = 0x6000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the conventional memory that Linux may use.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables start here; the RSDP is the first.
pub const ACPI_BASE: u64 = 0xe_0000;
/// ACPI tables end here at the latest; the page of the generation ID follows.
pub const GENERATION: u64 = 0xf_f000;
/// End of what is reported as ACPI memory.
pub const ACPI_END: u64 = 0x10_0000;
/// RAM from here on is the kernel's.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Low RAM ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// High RAM starts here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Distance from one virtio-mmio window to the next, and its size.
pub const MMIO_STRIDE: u64 = 0x1000;

/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's identity map page (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's task state segment (KVM_SET_TSS_ADDR), three pages.
pub const TSS: usize = 0xfffb_d000;

/// First serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The serial port's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The interrupt that says that the generation ID has changed.
pub const GENERATION_GSI: u32 = 5;
/// The ACPI system control interrupt. Nothing raises it.
pub const SCI: u16 = 9;
/// Keyboard controller's command port: 0xfe pulses the reset line.
pub const I8042_COMMAND: u16 = 0x64;
/// pvpanic's port.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI PM1a event block: status, then enable, 16 bits each.
pub const PM1A_EVENT: u16 = 0x600;
/// ACPI PM1a control block, 16 bits.
pub const PM1A_CONTROL: u16 = 0x604;
/// ACPI reset register, 8 bits.
pub const RESET_PORT: u16 = 0x608;
/// What resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;

/// The first interrupt for virtio devices: below it are the ISA ones.
pub const FIRST_VIRTIO_GSI: u32 = 10;
/// KVM's IOAPIC has 24 pins.
pub const GSI_COUNT: u32 = 24;

/// The interrupt of virtio device number `index`: devices share the pins in turn.
#[must_use]
pub fn virtio_gsi(index: usize) -> u32 {
    let pins = GSI_COUNT - FIRST_VIRTIO_GSI;
    // The remainder is below 24, so the conversion keeps the value.
    FIRST_VIRTIO_GSI + (index % pins as usize) as u32
}

/// The window of virtio device number `index`.
#[must_use]
pub fn virtio_window(index: usize) -> u64 {
    MMIO_BASE + index as u64 * MMIO_STRIDE
}
