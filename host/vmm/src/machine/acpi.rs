//! The ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, FACS, MADT and a DSDT with the devices.
//!
//! The platform is the ordinary kind, not the hardware-reduced one: Linux maps the ISA interrupts
//! one to one only on the former, and the serial port has one. What there is of fixed hardware is
//! the PM1a block, for powering off, and the reset register; see [`super::platform`].

use super::layout::{
    ACPI_BASE, GENERATION, GENERATION_GSI, IOAPIC, LAPIC, PM1A_CONTROL, PM1A_EVENT, PVPANIC_PORT,
    RESET_PORT, RESET_VALUE, SCI, SERIAL_GSI, SERIAL_PORT, virtio_gsi, virtio_window,
};
use super::memory::GuestRam;
use crate::error::Error;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

const OEM: [u8; 6] = *b"BULKHD";
const TABLE: [u8; 8] = *b"BULKHEAD";
/// SLP_TYP of S5; `\_S5` tells it, [`super::platform`] compares with it.
pub const SLEEP_TYPE_OFF: u8 = 5;

// FADT flags (ACPI 6.5, table 5.10).
const WBINVD: u32 = 1 << 0;
const PROC_C1: u32 = 1 << 2;
const POWER_BUTTON: u32 = 1 << 4;
const SLEEP_BUTTON: u32 = 1 << 5;
const FIX_RTC: u32 = 1 << 6;
const RESET_REG_SUP: u32 = 1 << 10;
/// IAPC_BOOT_ARCH: no VGA, no CMOS clock; nor is there the 8042 bit.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// MADT: there are also the two 8259s.
const PCAT_COMPAT: u32 = 1;
const MADT_LAPIC: u8 = 0;
const MADT_IOAPIC: u8 = 1;
const MADT_OVERRIDE: u8 = 2;
/// Active high, level-triggered, for the SCI.
const OVERRIDE_LEVEL_HIGH: u16 = 0b1101;

/// Writes all tables, the RSDP at [`ACPI_BASE`]. `devices` are the unique IDs of the virtio windows.
///
/// # Errors
/// [`Error::Config`] when the tables are too long, which the caps on devices exclude;
/// [`Error::GuestMemory`].
pub fn write(ram: &GuestRam, vcpus: u8, devices: &[String]) -> Result<(), Error> {
    let mut writer = Writer {
        ram,
        // The RSDP comes first and is known last.
        next: ACPI_BASE + 64,
    };
    let facs = writer.put(&facs())?;
    let dsdt = writer.put(dsdt(devices).as_slice())?;
    let fadt = writer.put(fadt(facs, dsdt).as_slice())?;
    let madt = writer.put(madt(vcpus).as_slice())?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let mut bytes = Vec::new();
    xsdt.to_aml_bytes(&mut bytes);
    let xsdt = writer.put(&bytes)?;
    bytes.clear();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    writer.next = ACPI_BASE;
    writer.put(&bytes)?;
    Ok(())
}

struct Writer<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Writer<'_> {
    /// Writes a table and returns its address.
    fn put(&mut self, table: &[u8]) -> Result<u64, Error> {
        let address = self.next;
        self.next = (address + table.len() as u64).next_multiple_of(64);
        if self.next > GENERATION {
            return Err(Error::Config("the ACPI tables are too long".to_owned()));
        }
        self.ram
            .write_slice(table, GuestAddress(address))
            .map_err(|source| Error::GuestMemory {
                what: "ACPI tables",
                source,
            })?;
        Ok(address)
    }
}

/// Firmware ACPI control structure: nothing but its header (5.2.10).
fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    let (signature, rest) = bytes.split_at_mut(4);
    signature.copy_from_slice(b"FACS");
    if let Some(length) = rest.first_mut() {
        *length = 64;
    }
    bytes
}

/// Fixed ACPI description table (5.2.9).
fn fadt(facs: u64, dsdt: u64) -> Sdt {
    let mut table = Sdt::new(*b"FACP", 276, 6, OEM, TABLE, 1);
    // The tables lie below 4 GiB.
    table.write_u32(36, facs as u32);
    table.write_u32(40, dsdt as u32);
    table.write_u16(46, SCI);
    table.write_u32(56, u32::from(PM1A_EVENT));
    table.write_u32(64, u32::from(PM1A_CONTROL));
    table.write_u8(88, 4); // PM1_EVT_LEN
    table.write_u8(89, 2); // PM1_CNT_LEN
    // Latencies above these limits say that there are no C2 and C3.
    table.write_u16(96, 101);
    table.write_u16(98, 1001);
    table.write_u16(109, BOOT_ARCH);
    table.write_u32(
        112,
        WBINVD | PROC_C1 | POWER_BUTTON | SLEEP_BUTTON | FIX_RTC | RESET_REG_SUP,
    );
    table.write(116, GenericAddress::io_port_address::<u8>(RESET_PORT));
    table.write_u8(128, RESET_VALUE);
    table.write_u8(131, 5); // minor version
    table.write_u64(140, dsdt);
    table.write(148, GenericAddress::io_port_address::<u32>(PM1A_EVENT));
    table.write(172, GenericAddress::io_port_address::<u16>(PM1A_CONTROL));
    table.write_bytes(268, b"Bulkhead");
    table
}

/// Multiple APIC description table (5.2.12).
fn madt(vcpus: u8) -> Sdt {
    let mut body = Vec::new();
    body.extend_from_slice(&LAPIC.to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        body.extend_from_slice(&[MADT_LAPIC, 8, id, id]);
        body.extend_from_slice(&1_u32.to_le_bytes());
    }
    body.extend_from_slice(&[MADT_IOAPIC, 12, 0, 0]);
    body.extend_from_slice(&IOAPIC.to_le_bytes());
    body.extend_from_slice(&0_u32.to_le_bytes());
    body.extend_from_slice(&[MADT_OVERRIDE, 10, 0, SCI as u8]);
    body.extend_from_slice(&u32::from(SCI).to_le_bytes());
    body.extend_from_slice(&OVERRIDE_LEVEL_HIGH.to_le_bytes());
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM, TABLE, 1);
    table.append_slice(&body);
    table
}

/// Differentiated system description table: the devices that cannot be found otherwise.
fn dsdt(devices: &[String]) -> Sdt {
    let mut body = Vec::new();
    let off = SLEEP_TYPE_OFF;
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&off, &aml::ZERO]))
        .to_aml_bytes(&mut body);

    let mut children: Vec<Vec<u8>> = vec![serial(), pvpanic(), generation(), events()];
    let devices = devices.iter().enumerate();
    children.extend(devices.map(|(index, id)| virtio(index, id)));
    let children: Vec<u8> = children.concat();
    body.extend(aml::Scope::raw("_SB_".into(), children));

    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    table.append_slice(&body);
    table
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml::Device::new(name.into(), children).to_aml_bytes(&mut bytes);
    bytes
}

fn serial() -> Vec<u8> {
    device(
        "COM1",
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                    &aml::Interrupt::new(true, true, false, false, SERIAL_GSI),
                ]),
            ),
        ],
    )
}

/// pvpanic as QEMU's documentation of the device describes it: `QEMU0001` with one port.
fn pvpanic() -> Vec<u8> {
    device(
        "PEVT",
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_STA".into(), &0xf_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )
}

/// The VM generation ID under the name that Linux and Windows look for; ADDR is its address in two halves.
fn generation() -> Vec<u8> {
    // Below 4 GiB.
    let low = GENERATION as u32;
    device(
        "VGEN",
        vec![
            &aml::Name::new("_HID".into(), &"BLKH0001"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &aml::ZERO])),
        ],
    )
}

/// The generic event device (5.6.9): the interrupt of the generation ID is a notification of it.
fn events() -> Vec<u8> {
    const CHANGED: u8 = 0x80;
    device(
        "GEVT",
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    GENERATION_GSI,
                )]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &GENERATION_GSI),
                    vec![&aml::Notify::new(&aml::Path::new("\\_SB_.VGEN"), &CHANGED)],
                )],
            ),
        ],
    )
}

/// One virtio-mmio window; `LNRO0005` is what Linux's virtio_mmio driver looks for. The unique ID of a
/// disk slot is its serial.
fn virtio(index: usize, id: &String) -> Vec<u8> {
    // At most 64 slots and a few devices: two hexadecimal digits; windows lie below 4 GiB.
    device(
        &format!("VR{index:02X}"),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), id),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, virtio_window(index) as u32, 0x1000),
                    &aml::Interrupt::new(true, false, false, true, virtio_gsi(index)),
                ]),
            ),
        ],
    )
}
